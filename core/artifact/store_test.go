package artifact

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/builtin"
	"github.com/apiary-dev/apiary/vendors/local"
	"github.com/apiary-dev/apiary/workers/provision/path"
)

const story = "builtin:stories260k"

// quick are the bounds of transfers in tests.
var quick = timing{backoff: time.Millisecond, longest: 5 * time.Millisecond, attempts: 3, span: 1 << 40}

// impatient is for how long a source may send nothing in tests.
const impatient = 300 * time.Millisecond

// ownClient may go to this machine, as to hosts that the configuration names.
func ownClient(idle time.Duration) *http.Client {
	return egress.NewClient(egress.Options{Idle: idle, Own: func(u *url.URL) bool { return u.Scheme == "http" && u.Hostname() == "127.0.0.1" }})
}

// openStore opens a store over home with all vendors, and those given.
func openStore(t testing.TB, home string, change func(*Options)) *Store {
	t.Helper()
	b := builtin.New()
	o := Options{
		Home: home, Vendors: []vendor.Vendor{b, local.New()}, Openers: map[string]vendor.Opener{builtin.Scheme: b},
		Provisioners: []vendor.Provisioner{path.New()}, HTTP: ownClient(impatient),
		Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
	if change != nil {
		change(&o)
	}
	s, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	s.timing = quick
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// log collects reports.
type reports struct {
	mu     sync.Mutex
	events []event
}

func (r *reports) add(action, message string, p *contract.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, event{action, message, p})
}

func (r *reports) has(action, part string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.action == action && strings.Contains(e.message, part) {
			return true
		}
	}
	return false
}

// checkMonotonic fails when the progress of an action went back.
func (r *reports) checkMonotonic(t *testing.T) {
	t.Helper()
	last := map[string]uint64{}
	for _, e := range r.events {
		if e.progress == nil {
			continue
		}
		if k := e.action + e.message; e.progress.Done < last[k] {
			t.Errorf("%s went from %d to %d", k, last[k], e.progress.Done)
		} else {
			last[k] = e.progress.Done
		}
		if e.progress.Total > 0 && e.progress.Done > e.progress.Total {
			t.Errorf("%s is at %d of %d", e.action, e.progress.Done, e.progress.Total)
		}
	}
}

// ggufFile makes a small valid model whose weights are the byte fill.
func ggufFile(fill byte, shard, shards, weights int) []byte {
	var b bytes.Buffer
	put := func(vs ...any) {
		for _, v := range vs {
			if s, ok := v.(string); ok {
				_ = binary.Write(&b, binary.LittleEndian, uint64(len(s)))
				b.WriteString(s)
			} else {
				_ = binary.Write(&b, binary.LittleEndian, v)
			}
		}
	}
	b.WriteString("GGUF")
	put(uint32(3), uint64(1), uint64(4), "general.architecture", uint32(8), "llama", "llama.context_length", uint32(4), uint32(128))
	put("split.no", uint32(4), uint32(shard), "split.count", uint32(4), uint32(shards))
	put("w", uint32(1), uint64(weights), uint32(24), uint64(0))
	for b.Len()%32 != 0 {
		b.WriteByte(0)
	}
	b.Write(bytes.Repeat([]byte{fill}, weights))
	return b.Bytes()
}

func sum256(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
func sum512(b []byte) string { s := sha512.Sum512(b); return hex.EncodeToString(s[:]) }

func write(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantFault checks kind, code and a part of the message of an error.
func wantFault(t *testing.T, err error, kind fault.Kind, code, part string) {
	t.Helper()
	e := fault.As(err)
	if e == nil || e.Kind != kind || e.Code != code || !strings.Contains(e.Message, part) {
		t.Fatalf("got %v (%+v), want %s/%s with %q", err, e, kind, code, part)
	}
}

// files lists what is below a folder of the home, locks left out.
func files(t *testing.T, s *Store, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(s.path(dir), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasSuffix(p, ".lock") {
			rel, _ := filepath.Rel(s.home, p)
			out = append(out, rel)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return out
}

func TestPullBuiltin(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	if _, err := s.Model(story); fault.As(err).Code != "model_not_found" || !strings.Contains(err.Error(), "apiary model pull "+story) {
		t.Fatalf("an empty catalog says %v", err)
	}
	var log reports
	m, err := s.PullModel(t.Context(), story, log.add)
	if err != nil {
		t.Fatal(err)
	}
	log.checkMonotonic(t)
	if !strings.HasPrefix(m.ID, story+"@") || len(m.ID) != len(story)+13 || m.Vendor != "builtin" || m.Architecture != "llama" || m.ContextLength != 512 || !m.Chat || m.Quantization != "F32" {
		t.Errorf("got %+v", m)
	}
	p, err := s.ModelPath(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(p)
	if err != nil || sum256(b) != m.Files[0].SHA256 || m.ID[len(story)+1:] != sum256(b)[:12] || int(m.SizeBytes) != len(b) {
		t.Errorf("the blob has %d bytes, digest %s, %v", len(b), sum256(b), err)
	}
	if left := files(t, s, "partial"); len(left) > 0 {
		t.Errorf("left in partial: %v", left)
	}
	for _, ref := range []string{story, m.ID} {
		if got, err := openStore(t, s.home, nil).Model(ref); err != nil || got.ID != m.ID {
			t.Errorf("Model(%q): %v, %v", ref, got.ID, err)
		}
		if got, err := s.PullModel(t.Context(), ref, nil); err != nil || got.ID != m.ID {
			t.Errorf("PullModel(%q): %v, %v", ref, got.ID, err)
		}
	}
	if _, err := s.PullModel(t.Context(), story+"@000000000000", nil); fault.KindOf(err) != fault.NotFound {
		t.Errorf("another digest: %v", err)
	}
	_, err = s.PullModel(t.Context(), "builtin:nothing", nil)
	wantFault(t, err, fault.NotFound, "model_not_found", story)
	_, err = s.PullModel(t.Context(), "nope:x", nil)
	wantFault(t, err, fault.Invalid, "unknown_scheme", "builtin:, file:")
	if err := s.RemoveModel(story); err != nil {
		t.Fatal(err)
	}
	if left := append(files(t, s, "blobs"), files(t, s, "catalog")...); len(left) > 0 {
		t.Errorf("left after removing: %v", left)
	}
	wantFault(t, s.RemoveModel(story), fault.NotFound, "model_not_found", story)
}

// A blob that vanished is noticed and fetched again; the entry keeps its date.
func TestPullAgainAfterLoss(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	m, err := s.PullModel(t.Context(), story, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.blobPath(m.Files[0].SHA256)); err != nil {
		t.Fatal(err)
	}
	_, err = s.ModelPath(t.Context(), m)
	wantFault(t, err, fault.NotFound, "model_not_found", "model pull "+story)
	again, err := s.PullModel(t.Context(), story, nil)
	if err != nil || !again.AddedAt.Equal(m.AddedAt) {
		t.Fatalf("%+v, %v", again, err)
	}
	if _, err := s.ModelPath(t.Context(), again); err != nil {
		t.Error(err)
	}
}

func TestNoSpace(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) { o.Reserve = 1 << 30 })
	s.free = func(string) (contract.Bytes, error) { return 1<<30 + 1000, nil }
	_, err := s.PullModel(t.Context(), story, nil)
	wantFault(t, err, fault.Exhausted, "no_space", " of disk in "+s.home+", with the reserve of 1.0 GiB")
	s.free = func(string) (contract.Bytes, error) { return 1<<30 + 2<<20, nil }
	if _, err := s.PullModel(t.Context(), story, nil); err != nil {
		t.Errorf("with space again, without a restart: %v", err)
	}
}

func TestCatalogSurvivesDamage(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	m, err := s.PullModel(t.Context(), story, nil)
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.path("catalog", "models", "broken.json"), []byte("{"))
	evil := m
	evil.ID = "evil"
	evil.Files = []contract.File{{Path: "../../x", SHA256: m.Files[0].SHA256}}
	if err := s.publishJSON(s.path("catalog", "models", "evil.json"), evil); err != nil {
		t.Fatal(err)
	}
	got, err := openStore(t, s.home, nil).Models()
	if err != nil || len(got) != 1 || got[0].ID != m.ID {
		t.Fatalf("got %v, %v", got, err)
	}
	// With an entry that cannot be read, nobody knows which blobs are needed: none is removed.
	if err := s.RemoveModel(story); err == nil {
		t.Error("removed blobs without knowing who needs them")
	}
	if !s.hasBlob(m.Files[0].SHA256, -1) {
		t.Error("the blob is gone")
	}
}

func TestSweep(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	m, err := s.PullModel(t.Context(), story, nil)
	if err != nil {
		t.Fatal(err)
	}
	var gone []string
	for _, p := range []string{"partial/x.part", "quarantine/y", "engines/.tmp-z/lib.so", "catalog/models/.tmp-1", "blobs/sha256/ab/" + strings.Repeat("ab", 32)} {
		gone = append(gone, write(t, s.path(p), []byte("x")))
	}
	openStore(t, s.home, nil)
	for _, p := range gone {
		if _, err := os.Stat(p); err != nil {
			t.Errorf("young leftover: %v", err)
		}
	}
	o := s.opts
	late, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	late.now = func() time.Time { return time.Now().Add(keepLeftovers + time.Hour) }
	if err := late.sweep(); err != nil {
		t.Fatal(err)
	}
	for _, p := range gone {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", p, err)
		}
	}
	if !late.complete(m) {
		t.Error("a blob of the catalog was removed")
	}
}

// Two models share a blob: it stays until the second is removed.
// Locks and catalog entries that are FIFOs are not waited for.
func TestIrregularFiles(t *testing.T) {
	home := t.TempDir()
	if err := folder.Make(home, "partial", "catalog/models"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(home, "catalog", "models", "x.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(Options{Home: home})
	if err != nil {
		t.Fatal(err)
	}
	if all, err := s.Models(); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	lock := filepath.Join(home, "partial", "catalog.lock")
	if err := syscall.Mkfifo(lock, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Home: home}); fault.As(err) == nil || fault.As(err).Code != folder.CodeUnsafeFile || !strings.Contains(err.Error(), lock) {
		t.Errorf("a lock: %v", err)
	}
}

func TestSharedBlob(t *testing.T) {
	body := ggufFile(7, 0, 1, 1000)
	web := newServer(t, body)
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Vendors = append(o.Vendors, web.vendor("a", 0), web.vendor("b", 0))
	})
	a, err := s.PullModel(t.Context(), "a:x", nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.PullModel(t.Context(), "b:x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := web.count(); n != 1 {
		t.Errorf("%d requests for one blob", n)
	}
	if err := s.RemoveModel(a.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ModelPath(t.Context(), b); err != nil {
		t.Error(err)
	}
	if err := s.RemoveModel("b:x"); err != nil {
		t.Fatal(err)
	}
	if left := files(t, s, "blobs"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestShardsInTheStore(t *testing.T) {
	one, two := ggufFile(1, 0, 2, 500), ggufFile(2, 1, 2, 700)
	web := newServer(t, one, two)
	s := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = append(o.Vendors, web.vendor("w", 0, 1), web.vendor("half", 0)) })
	m, err := s.PullModel(t.Context(), "w:x", nil)
	if err != nil || m.Parameters != 1200 {
		t.Fatalf("%+v, %v", m, err)
	}
	p, err := s.ModelPath(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range [][]byte{one, two} {
		if got, err := os.ReadFile(filepath.Join(filepath.Dir(p), m.Files[i].Path)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("shard %d in the view: %v", i, err)
		}
	}
	if again, err := s.ModelPath(t.Context(), m); err != nil || again != p {
		t.Errorf("the second time: %s, %v", again, err)
	}
	_, err = s.PullModel(t.Context(), "half:x", nil)
	wantFault(t, err, fault.Invalid, "shard_missing", "of 2 files")
	if err := s.RemoveModel("w:x"); err != nil {
		t.Fatal(err)
	}
	if left := append(files(t, s, "views"), files(t, s, "blobs")...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// Many callers and several stores over one home, as of several processes, share one transfer.
func TestSingleFlight(t *testing.T) {
	body := ggufFile(3, 0, 1, 300_000)
	web := newServer(t, body)
	web.hold = make(chan struct{})
	home := t.TempDir()
	change := func(o *Options) { o.Vendors = append(o.Vendors, web.vendor("w", 0)) }
	stores := []*Store{openStore(t, home, change), openStore(t, home, change)}
	var wg sync.WaitGroup
	var waited reports
	for i := range 10 {
		wg.Go(func() {
			if _, err := stores[i%2].PullModel(t.Context(), "w:x", waited.add); err != nil {
				t.Error(err)
			}
		})
	}
	<-web.asked
	// One who leaves does not disturb the others.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := stores[0].PullModel(ctx, "w:x", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	for !waited.has("wait", "another process") {
		time.Sleep(time.Millisecond)
	}
	close(web.hold)
	wg.Wait()
	if n := web.count(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// When the last caller leaves, the transfer ends, and the bytes stay for the next time.
func TestCancelKeepsBytes(t *testing.T) {
	body := ggufFile(4, 0, 1, 500_000)
	web := newServer(t, body)
	web.cutAt = 200_000
	web.hang = true
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Vendors, o.HTTP = append(o.Vendors, web.vendor("w", 0)), ownClient(time.Minute)
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for len(files(t, s, "partial")) == 0 || partSize(t, s) < 200_000 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := s.PullModel(ctx, "w:x", nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	web.change(func() { web.cutAt, web.hang = 0, false })
	var log reports
	if _, err := s.PullModel(t.Context(), "w:x", log.add); err != nil {
		t.Fatal(err)
	}
	if got := web.last(); !strings.HasPrefix(got.Header.Get("Range"), "bytes=200000-") || got.Header.Get("If-Range") != `"v1"` {
		t.Errorf("the second request asked for %q if %q", got.Header.Get("Range"), got.Header.Get("If-Range"))
	}
}

func partSize(t *testing.T, s *Store) int64 {
	t.Helper()
	parts, _ := filepath.Glob(s.path("partial", "*.part"))
	if len(parts) == 0 {
		return 0
	}
	st, err := os.Stat(parts[0])
	if err != nil {
		return 0
	}
	return st.Size()
}

// S14: nothing is stored through links inside the data folder, neither at the start nor later.
func TestLinkedFolders(t *testing.T) {
	for _, name := range []string{"blobs", "partial", "quarantine", "catalog", "catalog/models", "views", "engines"} {
		home := t.TempDir()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(home, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(t.TempDir(), filepath.Join(home, name)); err != nil {
			t.Fatal(err)
		}
		_, err := Open(Options{Home: home})
		wantFault(t, err, fault.Conflict, folder.CodeUnsafe, filepath.Join(home, name)+" is a symbolic link")
	}
	s := openStore(t, t.TempDir(), nil)
	elsewhere := t.TempDir()
	sum := sum256(stories(t))
	if err := os.Symlink(elsewhere, s.path("blobs", "sha256", sum[:2])); err != nil {
		t.Fatal(err)
	}
	_, err := s.PullModel(t.Context(), story, nil)
	wantFault(t, err, fault.Conflict, folder.CodeUnsafe, sum[:2]+" is a symbolic link")
	if got, err := os.ReadDir(elsewhere); err != nil || len(got) > 0 {
		t.Errorf("written elsewhere: %v, %v", got, err)
	}
}

func stories(t *testing.T) []byte {
	t.Helper()
	r, _, err := builtin.New().Open(t.Context(), story)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
