// Transferbench measures how long a model takes from one hive to another on loopback, beside other ways to bring the same file from
// the same hive: curl followed by sha256sum, and a plain copy in Go that hashes what it writes. All leave a file that was checked and
// is on the disk.
//
//	go run ./core/testutil/transferbench [-quick]
//
// It prints one row a comparison: name, ours, other, ratio, goal, and met or missed; times are in milliseconds, those of rows with "cpu"
// are of the processor, at both ends together. The ways take turns within each round, in an order that rotates, and the medians are
// compared: other load on the machine then hits all of them alike.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/artifact"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/hive"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/metrics"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const goal = 1.25

func main() {
	quick := flag.Bool("quick", false, "fewer rounds with a smaller file")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	mib, rounds := 256, 5
	if *quick {
		mib, rounds = 64, 3
	}
	if err := bench(ctx, mib, rounds); err != nil {
		fmt.Fprintln(os.Stderr, "transferbench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, mib, rounds int) error {
	dir, err := os.MkdirTemp("", "apiary-transfer-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	h, err := start(ctx, dir, mib<<20)
	if err != nil {
		return err
	}
	defer h.stop()
	ways := []way{{"", h.ours}, {"copy", h.copy}, {"curl", h.curl}}
	times, cpu := map[string][]float64{}, map[string][]float64{}
	for round := range rounds + 1 {
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			to := filepath.Join(dir, "to")
			if err := os.Mkdir(to, 0o700); err != nil {
				return err
			}
			begin, used := time.Now(), processor()
			err := w.fetch(ctx, to)
			took := time.Since(begin)
			used = processor() - used
			if errors.Is(err, exec.ErrNotFound) {
				err = nil // that way cannot be had
			} else if round > 0 { // the first one warms up
				times[w.name] = append(times[w.name], float64(took.Microseconds())/1000)
				cpu[w.name] = append(cpu[w.name], float64(used.Microseconds())/1000)
			}
			if err = errors.Join(err, os.RemoveAll(to)); err != nil {
				return fmt.Errorf("%s: %w", w.name, err)
			}
		}
	}
	for _, w := range ways[1:] {
		name := fmt.Sprintf("transfer/peer-%dm/%s", mib, w.name)
		if len(times[w.name]) == 0 {
			fmt.Printf("%s skipped: it is not installed\n", name)
			continue
		}
		row(name, times[""], times[w.name])
	}
	row(fmt.Sprintf("transfer/peer-%dm-cpu/copy", mib), cpu[""], cpu["copy"])
	return nil
}

func row(name string, a, b []float64) {
	ours, other := median(a), median(b)
	verdict := "missed"
	if ours/other <= goal {
		verdict = "met"
	}
	fmt.Printf("%s %.0f %.0f %.2f %.2f %s\n", name, ours, other, ours/other, goal, verdict)
}

// processor is the time that this process has had of processors.
func processor() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

type way struct {
	name  string
	fetch func(ctx context.Context, to string) error
}

// server is a hive that holds one model of one file.
type server struct {
	peer contract.Peer
	sha  string
	stop func()
}

const reference = "bench:m"

// shelf is a vendor whose model lies in a file.
type shelf struct {
	path, sha string
	size      int64
}

func (*shelf) Info() vendor.Info        { return vendor.Info{Name: "bench", Schemes: []string{"bench"}} }
func (*shelf) Supports(ref string) bool { return strings.HasPrefix(ref, "bench:") }

func (s *shelf) Resolve(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
	return &vendor.Manifest{Reference: reference, Format: "gguf", Files: []vendor.File{{Path: "m.gguf", Size: s.size, Digests: vendor.Digests{SHA256: s.sha}, Sources: []vendor.Source{{URL: reference}}}}}, nil
}

// Open implements vendor.Opener.
func (s *shelf) Open(context.Context, string) (io.ReadCloser, int64, error) {
	f, err := os.Open(s.path)
	return f, s.size, err
}

// start makes a model with that many bytes of weights and serves it.
func start(ctx context.Context, dir string, weights int) (*server, error) {
	s := &shelf{path: filepath.Join(dir, "m.gguf")}
	if err := s.make(weights); err != nil {
		return nil, err
	}
	home := filepath.Join(dir, "home")
	store, err := artifact.Open(artifact.Options{Home: home, Vendors: []vendor.Vendor{s}, Openers: map[string]vendor.Opener{"bench": s}})
	if err != nil {
		return nil, err
	}
	m, err := store.PullModel(ctx, reference, nil)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	base, key := "http://"+ln.Addr().String(), secret.Secret("a key that lives as long as this program")
	h, err := hive.New(hive.Options{NodeID: "bench", Name: "bench", Address: base, Home: home, ClusterKey: key, Artifacts: store, Ports: [2]int{7855, 7999}, Metrics: metrics.New()})
	if err != nil {
		return nil, err
	}
	srv, err := httpd.New(httpd.Options{Routes: h.Routes(), DrainTimeout: time.Second})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, ln) }()
	ticket := secret.NewTicket(secret.ForHive(key, "bench"), contract.TicketForBlobs(m.ID), time.Now().Add(secret.TicketLife))
	return &server{sha: s.sha, peer: contract.Peer{HiveID: "bench", URL: base, Model: m.ID, Ticket: ticket.Reveal()}, stop: func() { cancel(); <-done }}, nil
}

func (s *shelf) make(weights int) error {
	var b bytes.Buffer
	put := func(vs ...any) {
		for _, v := range vs {
			if text, ok := v.(string); ok {
				_ = binary.Write(&b, binary.LittleEndian, uint64(len(text)))
				b.WriteString(text)
			} else {
				_ = binary.Write(&b, binary.LittleEndian, v)
			}
		}
	}
	b.WriteString("GGUF")
	put(uint32(3), uint64(1), uint64(1), "general.architecture", uint32(8), "llama", "w", uint32(1), uint64(weights), uint32(24), uint64(0))
	for b.Len()%32 != 0 {
		b.WriteByte(0)
	}
	for i := range weights {
		b.WriteByte(byte(i * 2654435761 >> 13))
	}
	sum := sha256.Sum256(b.Bytes())
	s.size, s.sha = int64(b.Len()), hex.EncodeToString(sum[:])
	return os.WriteFile(s.path, b.Bytes(), 0o600)
}

// ours brings the model into a store.
func (h *server) ours(ctx context.Context, to string) error {
	store, err := artifact.Open(artifact.Options{Home: to})
	if err != nil {
		return err
	}
	_, err = store.PullModel(ctx, reference, nil, h.peer)
	return err
}

// copy is what a program without a store would do.
func (h *server) copy(ctx context.Context, to string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url(), nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+h.peer.Ticket)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	f, err := os.Create(filepath.Join(to, "m.gguf"))
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), res.Body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return h.check(hex.EncodeToString(sum.Sum(nil)))
}

// curl is what a person would do.
func (h *server) curl(ctx context.Context, to string) error {
	path := filepath.Join(to, "m.gguf")
	if out, err := exec.CommandContext(ctx, "curl", "-sSf", "--noproxy", "*", "-H", "Authorization: Bearer "+h.peer.Ticket, "-o", path, h.url()).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, "sync", path).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	out, err := exec.CommandContext(ctx, "sha256sum", path).Output()
	if err != nil {
		return err
	}
	sum, _, _ := strings.Cut(string(out), " ")
	return h.check(sum)
}

func (h *server) url() string { return h.peer.URL + "/v1/blobs/" + h.sha }

func (h *server) check(sum string) error {
	if sum != h.sha {
		return fmt.Errorf("%s arrived instead of %s", sum, h.sha)
	}
	return nil
}
