// Package hive is the executor role on one machine: it fetches models and engines into its catalogs, starts worker
// processes, finds them in the process table, and ends the one whose identity it is sent. It keeps no record of workers and
// decides nothing about them: restarting a hive never touches a running worker.
package hive

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/device"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/metrics"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/core/secret"
)

// Artifacts is the hive's store of models and engines. Errors are faults; a missing entry is a NotFound.
type Artifacts interface {
	PullModel(ctx context.Context, ref string, report func(action, message string, p *contract.Progress), peers ...contract.Peer) (contract.Model, error)
	SearchModels(ctx context.Context, req contract.ModelSearch) (contract.ModelsFound, error)
	Models() ([]contract.Model, error)
	Model(ref string) (contract.Model, error)
	RemoveModel(ref string) error
	ModelPath(ctx context.Context, m contract.Model) (string, error)
	OpenBlob(sha256 string) (*os.File, error) // the caller closes it
	InstallEngine(ctx context.Context, ref string, devices []contract.Device, report func(action, message string, p *contract.Progress)) (contract.Engine, error)
	Engines() ([]contract.Engine, error)
	Engine(ref string) (contract.Engine, error)
	IsServer(ctx context.Context, ref string) bool
	RemoveEngine(ref string) error
	EngineDir(e contract.Engine) string
}

// Launcher says how the workers of one adapter are started: the absolute path of the program and the arguments that come before
// those of the worker contract. engineDir is "" for an adapter without an engine.
type Launcher func(ctx context.Context, spec contract.WorkerSpawn, engineDir string) (path string, args []string, err error)

// Options configures a Hive.
type Options struct {
	NodeID     string
	Name       string
	Labels     []string // of the configuration, for the conditions of deployments
	Version    string
	Address    string // base URL under which queens reach this hive; workers listen on its host
	Home       string // APIARY_HOME, absolute
	ClusterKey secret.Secret
	Artifacts  Artifacts
	Launchers  map[string]Launcher // by adapter: "native", "echo"
	ExecChild  []string            // see process.Spec
	Ports      [2]int              // first and last port of workers
	Start      string              // of this run of the agent, for /healthz
	QueenURLs  []string            // base URLs of the queens that workers beat to and exits are reported to, beside those a spawn names
	Queens     func() []string     // more of them, as they are now; nil: none
	Changed    func()              // called when a job has ended that may have changed the inventory; must not block; nil: nothing
	Kill       process.KillOptions
	// ReserveMemory stays free: a model that would not leave it is not started on a processor.
	ReserveMemory contract.Bytes
	Sandbox       *sandbox.Support // what the kernel can hold children to; nil: it is asked
	Metrics       *metrics.Metrics
	Devices       func(context.Context) ([]contract.Device, error)                  // of the machine; nil: device.List
	Dial          func(ctx context.Context, network, addr string) (net.Conn, error) // towards queens; nil: a plain dialer
	Log           *slog.Logger
}

// Hive is the role. New, then Run and Routes.
type Hive struct {
	opts        Options
	log         *slog.Logger
	host        string // on which workers listen
	boot        string
	incarnation int64
	sequence    atomic.Uint64
	jobs        *job.Manager
	ready       atomic.Bool
	devices     devices
	keys        keyLocks
	patterns    patterns
	sending     chan struct{} // holds one token for each file that is being sent to another hive
	support     sandbox.Support

	// Background work ends with background, which Run cancels when it ends.
	background context.Context
	stop       context.CancelFunc

	mu       sync.Mutex // mu guards the fields below
	stopped  bool
	tasks    sync.WaitGroup
	reserved map[int]bool                 // ports of workers that are being started
	nextPort int                          // where the search for a port goes on
	fenced   map[string]contract.Identity // device → worker that could not be killed
}

// New checks the options and makes a hive. It starts nothing but reads the boot id.
func New(o Options) (*Hive, error) {
	u, err := url.Parse(o.Address)
	switch {
	case err != nil || u.Host == "" || u.Scheme == "":
		return nil, fault.New(fault.Invalid, "invalid_address", "The hive's address %q is not a URL such as http://127.0.0.1:7835.", o.Address)
	case o.NodeID == "" || o.ClusterKey == "" || o.Artifacts == nil:
		return nil, errors.New("a hive needs a node id, a cluster key and an artifact store")
	case !filepath.IsAbs(o.Home):
		return nil, fault.New(fault.Invalid, "invalid_home", "The data folder %q must be an absolute path.", o.Home)
	case o.Ports[0] < 1 || o.Ports[1] > 65535 || o.Ports[0] > o.Ports[1]:
		return nil, fault.New(fault.Invalid, "invalid_ports", "The range of worker ports %d-%d is not one; write for example 7855-7999.", o.Ports[0], o.Ports[1])
	}
	boot, err := process.BootID()
	if err != nil {
		return nil, err
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Devices == nil {
		o.Devices = device.List
	}
	if o.Sandbox == nil {
		support := sandbox.Kernel()
		o.Sandbox = &support
	}
	host := u.Hostname()
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	h := &Hive{
		opts: o, log: o.Log, host: host, boot: boot, incarnation: time.Now().UnixNano(),
		devices: devices{look: o.Devices, turn: make(chan struct{}, 1)}, patterns: newPatterns(), sending: make(chan struct{}, maxSending), support: *o.Sandbox,
		jobs: job.New(job.Options{NodeID: o.NodeID, Log: o.Log, Ended: func(j contract.Job) {
			o.Metrics.Job(j.Operation, string(j.State))
			if o.Changed != nil && !contract.IsRead(j.Operation) {
				o.Changed()
			}
		}}),
		reserved: map[int]bool{}, nextPort: o.Ports[0], fenced: map[string]contract.Identity{},
	}
	h.devices.turn <- struct{}{}
	h.background, h.stop = context.WithCancel(context.Background())
	return h, nil
}

// Run keeps the hive's own house until ctx ends: it looks at the devices and removes what ended workers left behind. Then
// it ends the jobs and waits for its goroutines. Workers run on.
func (h *Hive) Run(ctx context.Context) error {
	if err := folder.Make(h.opts.Home, "workers"); err != nil {
		return fmt.Errorf("make the folder of workers: %w", folder.Full(err, h.opts.Home, "the folder of workers", 0))
	}
	if _, err := h.devices.newest(ctx, deviceEvery); err != nil {
		return err
	}
	h.ready.Store(true)
	h.log.Info("hive started", "node", h.opts.NodeID, "address", h.opts.Address)
	h.tidy()
	sweep, look := time.NewTicker(time.Hour), time.NewTicker(deviceEvery)
	defer sweep.Stop()
	defer look.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-sweep.C:
			h.tidy()
		case <-look.C:
			if _, err := h.devices.newest(ctx, deviceEvery/2); err != nil && ctx.Err() == nil {
				h.log.Warn("cannot look at the devices", "error", err)
			}
		}
	}
	h.ready.Store(false)
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err := h.jobs.Close(bound)
	h.mu.Lock()
	h.stopped = true
	h.mu.Unlock()
	h.stop()
	h.tasks.Wait()
	h.log.Info("hive stopped", "node", h.opts.NodeID)
	return err
}

// spawnTask runs f in a goroutine that Run waits for. It reports false, without running f, when the hive is stopping.
func (h *Hive) spawnTask(f func()) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.stopped {
		return false
	}
	h.tasks.Go(f)
	return true
}

const (
	requestTimeout = 30 * time.Second
	maxJobBody     = 64 * contract.KiB
)

// Routes returns the hive's HTTP API; core/contract/openapi/hive-api.yaml describes it.
func (h *Hive) Routes() []httpd.Route {
	open, hive := httpd.ClassOpen, httpd.ClassHive
	return []httpd.Route{
		{Pattern: "GET /healthz", Class: open, Timeout: requestTimeout, Handler: http.HandlerFunc(h.serveHealth)},
		{Pattern: "GET /readyz", Class: open, Timeout: requestTimeout, Handler: http.HandlerFunc(h.serveReady)},
		{Pattern: "GET /v1/id", Class: open, Timeout: requestTimeout, Handler: http.HandlerFunc(h.serveID)},
		{Pattern: "GET /metrics", Class: httpd.ClassMetrics, Timeout: requestTimeout, Handler: h.opts.Metrics.Handler()},
		{Pattern: "GET /v1/hive", Class: hive, Timeout: requestTimeout, Handler: http.HandlerFunc(h.serveBeat)},
		{Pattern: "GET /v1/inventory", Class: hive, Timeout: requestTimeout, Handler: http.HandlerFunc(h.serveInventory)},
		{Pattern: "GET /v1/blobs", Class: httpd.ClassPeer, Timeout: requestTimeout, Handler: http.HandlerFunc(h.serveBlobs)},
		{Pattern: "GET /v1/blobs/{sha256}", Class: httpd.ClassPeer, Handler: http.HandlerFunc(h.serveBlob)},
		{Pattern: "POST /v1/jobs", Class: hive, BodyLimit: maxJobBody, Timeout: requestTimeout, Handler: h.jobs.SubmitHandler(h.dispatch)},
		{Pattern: "GET /v1/jobs", Class: hive, Timeout: requestTimeout, Handler: h.jobs.ListHandler(nil)},
		{Pattern: "GET /v1/jobs/{id}", Class: hive, Timeout: requestTimeout, Handler: h.jobs.GetHandler()},
		{Pattern: "GET /v1/jobs/{id}/stream", Class: hive, Handler: h.jobs.StreamHandler()},
		{Pattern: "DELETE /v1/jobs/{id}", Class: hive, Timeout: requestTimeout, Handler: h.jobs.CancelHandler()},
	}
}

// state is the answer of /readyz.
type state struct {
	Status string `json:"status"`
}

func (h *Hive) serveHealth(w http.ResponseWriter, _ *http.Request) {
	httpd.WriteJSON(w, http.StatusOK, contract.Health{Status: "ok", NodeID: h.opts.NodeID, Start: h.opts.Start})
}

func (h *Hive) serveReady(w http.ResponseWriter, r *http.Request) {
	if !h.ready.Load() {
		httpd.WriteError(w, r, fault.New(fault.Unavailable, "not_ready", "The hive is starting or stopping; try again in a moment.").WithRetryAfter(time.Second))
		return
	}
	httpd.WriteJSON(w, http.StatusOK, state{"ready"})
}

// id is the answer of /v1/id: what a queen must know before it can derive the hive's secret.
type id struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Version string `json:"version"`
}

func (h *Hive) serveID(w http.ResponseWriter, _ *http.Request) {
	httpd.WriteJSON(w, http.StatusOK, id{h.opts.NodeID, h.opts.Name, h.opts.Version})
}

func (h *Hive) serveBeat(w http.ResponseWriter, r *http.Request) {
	beat, err := h.Beat(r.Context())
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	httpd.WriteJSON(w, http.StatusOK, beat)
}

func (h *Hive) serveInventory(w http.ResponseWriter, r *http.Request) {
	inv, err := h.inventory(r.Context())
	if err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	httpd.WriteJSON(w, http.StatusOK, inv)
}
