// Package artifact turns references into verified files on disk: it asks a vendor or provisioner which files make up a
// model or an engine, transfers and verifies them, publishes them under APIARY_HOME and lists what is there. It does not
// decide what is fetched or where it runs. The programs of an engine's plan run through core/tool, and the self-test of a library
// is given to it as a function.
package artifact

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/tool"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Options say where a Store lives and whom it asks.
type Options struct {
	Home         string                   // APIARY_HOME: absolute, made if missing
	Vendors      []vendor.Vendor          // asked in this order which of them supports a model reference
	Provisioners []vendor.Provisioner     // likewise for engine references
	Openers      map[string]vendor.Opener // by URL scheme: how to open sources that are no network protocol ("builtin")
	// Credentials gives the token called name if it may be sent to host (host or host:port), else "". Nil: there are none.
	Credentials func(name, host string) (secret.Secret, error)
	Reserve     contract.Bytes // disk that stays free, hive.reserve.disk
	// MaxFile bounds a file whose size nobody has promised. 0: 256 GiB.
	MaxFile contract.Bytes
	// SelfTest loads the engine in dir in a process of its own and says what it found. An error keeps the engine out of the
	// catalog. Nil: engines are not tested.
	SelfTest func(ctx context.Context, dir string) (SelfTestReport, error)
	// Tools gives the names of the programs that the plans of a provisioner may run. Nil: none.
	Tools func(p vendor.Provisioner) []string
	// Runner runs them, and asks engines that are programs for their version. Nil: no plan may run anything, and such engines are
	// not tested.
	Runner *tool.Runner
	// LeftOut says, by scheme, why references of it have nobody who answers for them: a plugin that cannot be used.
	LeftOut map[string]string
	HTTP    *http.Client // made by core/egress; nil: one without hosts that the configuration names
	// Dial connects to other hives. Nil: a plain dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	Log  *slog.Logger // nil: no log
}

// SelfTestReport is what a working engine says of itself.
type SelfTestReport struct {
	Build   string            `json:"build"`
	Devices []contract.Device `json:"devices"`
}

// Report receives the progress of a long operation, from one goroutine at a time: action is a word ("fetch", "verify",
// "extract", …), message a sentence for a person, p is nil where nothing is counted. Progress of one action never decreases.
type Report = func(action, message string, p *contract.Progress)

// Store is the artifact store of one hive. Its methods may be called from many goroutines and by several processes with
// the same home at once.
type Store struct {
	home   string
	opts   Options
	log    *slog.Logger
	client *http.Client
	// peerClient asks other hives.
	peerClient *http.Client
	timing     timing
	flights    flights
	// at is called before each step that changes the disk, with the step's name. Tests kill the process in it.
	at func(point string)
	// free tells the free bytes of the file system that holds a folder.
	free func(dir string) (contract.Bytes, error)
	now  func() time.Time
	// maxQuarantine bounds the bytes in quarantine.
	maxQuarantine int64
	builds        builds
}

// How long things that are not in a catalog are kept.
const keepLeftovers = 7 * 24 * time.Hour

// Bounds of what nobody has promised.
const (
	defaultMaxFile       = contract.Bytes(256 << 30) // larger than any model file that people share
	maxQuarantined       = 16                        // files
	defaultMaxQuarantine = 4 << 30                   // bytes
)

// Open makes the folders of a store and removes what interrupted operations left behind more than seven days ago.
func Open(o Options) (*Store, error) {
	if !filepath.IsAbs(o.Home) {
		return nil, fmt.Errorf("open artifact store: the home %q is not an absolute path", o.Home)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	o.MaxFile = cmp.Or(o.MaxFile, defaultMaxFile)
	s := &Store{
		home: filepath.Clean(o.Home), opts: o, log: o.Log, client: withTokens(cmp.Or(o.HTTP, egress.NewClient(egress.Options{}))), peerClient: newPeerClient(o.Dial), timing: defaultTiming,
		at: func(string) {}, free: folder.Free, now: time.Now, maxQuarantine: defaultMaxQuarantine, builds: defaultBuilds,
	}
	if err := folder.Make(s.home, "blobs/sha256", "partial", "quarantine", "catalog/models", "catalog/engines", "views", "engines"); err != nil {
		return nil, fmt.Errorf("open artifact store: %w", folder.Full(err, s.home, "the artifact store", 0))
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("open artifact store: %w", err)
	}
	return s, nil
}

// path joins slash-separated parts below the home.
func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.home}, parts...)...)
}

// sweepWait bounds how long the start of an agent waits for another process to let the sweep begin.
const sweepWait = 5 * time.Second

// sweep removes partial files, quarantined files, unfinished folders and blobs of no model that nobody touched for
// keepLeftovers. A younger one may belong to an operation that is running or will be run again.
func (s *Store) sweep() error {
	ctx, cancel := context.WithTimeout(context.Background(), sweepWait)
	defer cancel()
	unlock, err := s.lockCatalog(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		s.log.Warn("the store is in use by another process, leftovers stay until the next start")
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	used, err := s.usedBlobs()
	if err != nil {
		s.log.Warn("blobs that no model needs stay until the catalog can be read", "error", err.Error())
	}
	old := s.now().Add(-keepLeftovers)
	for _, pattern := range []string{
		"partial/*.part", "partial/*.json", "partial/" + tmpPrefix + "*", "quarantine/*", "engines/" + tmpPrefix + "*",
		"catalog/*/" + tmpPrefix + "*", "views/" + tmpPrefix + "*", "blobs/sha256/*/*",
	} {
		matches, err := filepath.Glob(s.path(pattern))
		if err != nil {
			return err
		}
		for _, m := range matches {
			st, err := os.Lstat(m)
			blob := strings.HasPrefix(pattern, "blobs/")
			if err != nil || st.ModTime().After(old) || blob && (used == nil || used[filepath.Base(m)]) {
				continue
			}
			s.log.Info("removing a leftover", "path", m)
			if err := removeAll(m); err != nil {
				return err
			}
		}
	}
	return nil
}

// platform describes this machine to a vendor or provisioner. Devices are in the order in which they are preferred.
func platform(devices []contract.Device) vendor.Platform {
	p := vendor.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH}
	for _, kind := range []string{"cuda", "metal", "rocm", "vulkan", "cpu"} {
		for _, d := range devices {
			if d.Kind == kind {
				p.Devices = append(p.Devices, kind)
				break
			}
		}
	}
	return p
}

// noSpace turns an error of a write into a fault where the disk or the quota is full. what needs need bytes; 0: not known.
func (s *Store) noSpace(err error, what string, need int64) error {
	return folder.Full(err, s.home, what, need)
}
