// Package queen is the role that knows the workers from their heartbeats, decides what runs where, and carries out operations
// through hives. It keeps the registry going (time, events, snapshots), polls hives, restarts what crashed, and answers the
// gateway's questions about models. Inference traffic does not pass through it, and it starts no process itself.
package queen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/keys"
	"github.com/apiary-dev/apiary/core/metrics"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/core/secret"
)

// Model is a model of the configuration: names of the operator's own for a reference.
type Model struct {
	Name    string
	Source  string // reference
	Aliases []string
}

// Options configures a Queen. Zero durations mean the defaults named.
type Options struct {
	NodeID     string // of this agent; the hive with the same node id is the local one, where fetches go by default
	Name       string // agent.name
	Version    string
	Start      string        // of this run of the agent, for /healthz
	URL        string        // base URL at which workers reach this queen
	ClusterKey secret.Secret // from which the secrets of workers and hives are derived
	Hives      []string      // base URLs of hive APIs that are polled, beside those that HeardHive tells of; SetHives changes them
	Models     []Model
	Workers    []contract.WorkerKind // worker blocks; the first one that is not echo serves models by default
	// Defaults are what a spawn that does not say otherwise takes from its worker block, by the name of the block: Devices,
	// Context, Slots, Threads and Env. A zero leaves the choice to queen, hive or worker.
	Defaults    map[string]contract.WorkerSpawn
	Deployments []contract.Deployment // what should run, as the configuration has it
	Home        string                // the data folder, for what queens share; empty: it is forgotten with the queen
	Placement   placement.Params      // zero values: the defaults
	Reserve     contract.Bytes        // of a machine's memory, that placement leaves free, where its hive does not say its own
	IdleTTL     time.Duration         // after which a worker that a request started is ended when nobody uses it; 0: never
	Registry    registry.Params       // zero values: the defaults
	Watchdog    Watchdog              // over workers that hang

	Interval   time.Duration // of heartbeats and hive polls; default 5 s
	ReadyAfter time.Duration // after which a queen is ready although not all hives have reported; default 6 s
	Drain      time.Duration // how long a worker that is deleted may finish its requests; default 120 s
	Ready      time.Duration // a worker's time to become ready, restarted by progress; default 60 s
	ReadyGiB   time.Duration // added for each GiB of the model; default 20 s
	ReadyMax   time.Duration // however much progress there is; default 6 h

	Dial     func(ctx context.Context, network, addr string) (net.Conn, error) // towards hives and workers; nil: a plain dialer
	InFlight func(workerID string) int                                         // requests that the gateway has open at a worker; nil: none
	Queued   func() map[string]int                                             // requests that wait in the gateway, by the first id of their model, or its name; nil: none
	Metrics  *metrics.Metrics                                                  // nil: nothing is counted

	Trust      *Trust                                                     // nil: nobody is let in
	Keys       *keys.Table                                                // of API keys, which the queen keeps up to date; nil: one of its own
	Company    bool                                                       // there may be members that have not been heard yet
	Members    func() []contract.Member                                   // of the cluster; nil: this agent is alone
	ChangeKeys func(ctx context.Context, change contract.KeyChange) error // of the gossip, at all members; nil: there is none
	Log        *slog.Logger
}

const (
	tick       = time.Second
	closeBound = 20 * time.Second // for jobs to end when the queen does: a hive kills within 15 s
)

// Queen is the queen role of an agent. It implements gateway.Directory. Its methods may be called from many goroutines.
type Queen struct {
	o    Options
	log  *slog.Logger
	jobs *job.Manager
	// jobWay is how the jobs of other queens are reached.
	jobWay *http.Transport
	links  atomic.Pointer[[]*link]
	start  time.Time // origin of the registry's time

	background context.Context // of everything that is not a job; ends with Run
	stop       context.CancelFunc
	tasks      sync.WaitGroup

	snap atomic.Pointer[registry.Snapshot]
	dir  atomic.Pointer[directory]
	live atomic.Pointer[Settings]
	// configured are the base URLs of the hives of the configuration in force.
	configured atomic.Pointer[[]string]

	mu        sync.Mutex // guards the fields below
	machine   *registry.Machine
	changed   chan struct{} // closed and replaced at each publication
	published time.Duration
	stale     bool // the machine is ahead of the snapshot
	late      bool // a publication is on its way
	exits     map[string]contract.WorkerExit
	exitOrder []string
	recipes   map[registry.Slot]contract.WorkerSpawn // how to start the worker of a slot again
	slots     map[string]registry.Slot               // model id → where its last worker was begun
	keys      map[string]pendingKey                  // spawn keys given out for workers that have not beaten yet
	demanded  map[registry.Slot]bool                 // where requests had workers started
	own       map[string]bool                        // ids of workers that were begun while this queen was young
	lastGen   int64
	verifying map[string]time.Duration // workers whose process was looked for, and when
	deleted   map[string]time.Duration // workers that are or were ended on purpose, and since when
	stopped   bool
	watchdog  watchdog
	hung      map[string]contract.Identity // workers that are being ended because they hang
	suspects  map[string]bool              // hives that the gossip suspects, as the registry was told; true: they left

	demands demands
	keyed   atomic.Bool // an API key was made at some time
	book    *book
	deploy  *deploying
	company *company
	trust   *trusting // nil: nobody is let in
}

// New checks the options and makes a queen. It starts nothing.
func New(o Options) (*Queen, error) {
	if o.NodeID == "" || o.ClusterKey == "" {
		return nil, errors.New("a queen needs a node id and a cluster key")
	}
	for _, base := range append([]string{o.URL}, o.Hives...) {
		if !isBase(base) {
			return nil, fmt.Errorf("%q is not a base URL such as http://127.0.0.1:7833", base)
		}
	}
	for d, def := range map[*time.Duration]time.Duration{&o.Interval: 5 * time.Second, &o.ReadyAfter: 6 * time.Second,
		&o.Watchdog.Stall: time.Minute, &o.Watchdog.Answer: 30 * time.Second, &o.Drain: 2 * time.Minute, &o.Ready: time.Minute, &o.ReadyGiB: 20 * time.Second, &o.ReadyMax: 6 * time.Hour} {
		if *d == 0 {
			*d = def
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.InFlight == nil {
		o.InFlight = func(string) int { return 0 }
	}
	if o.Members == nil {
		o.Members = func() []contract.Member { return []contract.Member{} }
	}
	q := &Queen{o: o, log: o.Log, start: time.Now(), changed: make(chan struct{}),
		machine: registry.New(o.Registry, 0), exits: map[string]contract.WorkerExit{},
		recipes: map[registry.Slot]contract.WorkerSpawn{}, slots: map[string]registry.Slot{}, keys: map[string]pendingKey{}, demanded: map[registry.Slot]bool{}, own: map[string]bool{}, verifying: map[string]time.Duration{},
		watchdog: watchdog{stall: o.Watchdog.Stall, all: map[string]*watched{}}, hung: map[string]contract.Identity{},
		deleted: map[string]time.Duration{}, suspects: map[string]bool{}}
	if o.Queued == nil {
		q.o.Queued = func() map[string]int { return nil }
	}
	q.live.Store(&Settings{Models: o.Models, Workers: o.Workers, Defaults: o.Defaults, Deployments: o.Deployments})
	q.demands.all = map[string]*demand{}
	q.deploy = newDeploying()
	q.company = newCompany(q)
	var err error
	if q.book, err = openBook(o.Home, o.NodeID); err != nil {
		return nil, err
	}
	if q.deploy.peaks, err = openPeaks(o.Home); err != nil {
		q.log.Warn("estimates of memory start from nothing", "error", err.Error())
	}
	if err := q.book.configure(o.Deployments); err != nil {
		return nil, err
	}
	if q.o.Keys == nil {
		q.o.Keys = &keys.Table{}
	}
	q.readKeys()
	q.readWishes()
	if o.Trust != nil {
		q.trust = newTrusting(q, *o.Trust)
		q.trust.read()
		if err := q.trust.enter(); err != nil {
			q.log.Error("this node is not among those that were let in", "error", err.Error())
		}
	}
	q.background, q.stop = context.WithCancel(context.Background())
	q.jobs = job.New(job.Options{NodeID: o.NodeID, Log: o.Log, Ended: func(j contract.Job) {
		o.Metrics.Job(j.Operation, string(j.State))
	}})
	q.jobWay = &http.Transport{DialContext: o.Dial, ResponseHeaderTimeout: 2 * syncTimeout, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: 4, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true}
	var links []*link
	for _, base := range o.Hives {
		links = append(links, newLink(q, base))
	}
	q.links.Store(&links)
	q.configured.Store(&o.Hives)
	q.snap.Store(q.machine.Snapshot(0))
	q.dir.Store(q.index(q.snap.Load()))
	return q, nil
}

func isBase(base string) bool {
	u, err := url.Parse(base)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https")
}

// Run keeps the registry's time and polls the hives until ctx ends. Then it cancels the jobs, waits for them and for its
// goroutines, within 20 s. It may be called once.
func (q *Queen) Run(ctx context.Context) error {
	for _, l := range *q.links.Load() {
		q.do(l.run)
	}
	q.do(q.clock)
	q.do(q.place)
	q.do(q.company.run)
	if q.trust != nil {
		q.do(q.trust.run)
	}
	q.log.Info("queen started", "node", q.o.NodeID, "url", q.o.URL, "hives", len(*q.links.Load()))
	<-ctx.Done()
	q.company.leave(ctx)
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeBound)
	defer cancel()
	err := q.jobs.Close(end)
	q.mu.Lock()
	q.stopped = true
	q.mu.Unlock()
	q.stop()
	q.tasks.Wait()
	q.jobWay.CloseIdleConnections()
	for _, l := range *q.links.Load() {
		l.close()
	}
	return err
}

// do runs f until the queen ends, if it has not ended yet.
func (q *Queen) do(f func(ctx context.Context)) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.stopped {
		return false
	}
	q.tasks.Go(func() { f(q.background) })
	return true
}

func (q *Queen) clock(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		q.step(registry.Tick{})
		q.mu.Lock()
		if q.stale {
			q.publish(q.now())
		}
		q.mu.Unlock()
		q.count()
		q.watch()
		if n%5 == 0 {
			q.probe()
		}
		if n%600 == 0 {
			q.forgetLinks()
		}
	}
}

// now is the registry's time: monotonic, since the queen was made.
func (q *Queen) now() time.Duration { return time.Since(q.start) }

// step feeds the registry, publishes what changed and acts on it.
func (q *Queen) step(ev registry.Event) {
	q.mu.Lock()
	now := q.now()
	fx := q.machine.Step(now, ev)
	q.stale = true
	if slices.ContainsFunc(fx, func(e registry.Effect) bool { return e.Kind != registry.EffectDropped }) {
		q.publishSoon(now)
	}
	q.mu.Unlock()
	for _, e := range fx {
		q.act(e)
	}
	q.deploy.note(fx)
}

// publishSoon publishes now, unless many workers make a snapshot costly and the last one is very fresh. q.mu is held.
func (q *Queen) publishSoon(now time.Duration) {
	gap := time.Duration(len(q.snap.Load().Workers)) * 2 * time.Microsecond
	if now-q.published >= gap {
		q.publish(now)
		return
	}
	if q.late {
		return
	}
	q.late = true
	time.AfterFunc(gap, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.late = false
		q.publish(q.now())
	})
}

// publish makes the registry's state visible and wakes those who wait for a change. q.mu is held.
func (q *Queen) publish(now time.Duration) {
	s := q.machine.Snapshot(now)
	if old := q.snap.Swap(s); !sameInventories(old, s) {
		q.dir.Store(q.index(s))
	}
	q.published, q.stale = now, false
	q.wake()
}

// wake closes the channel that Changed gave out. q.mu is held.
func (q *Queen) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *Queen) notify() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wake()
}

// Snapshot returns the current picture of workers and hives. It never blocks.
func (q *Queen) Snapshot() *registry.Snapshot { return q.snap.Load() }

// Changed returns a channel that is closed at the next change of the snapshot or of a demand. Who waits for a condition takes
// the channel first, then looks, then waits.
func (q *Queen) Changed() <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.changed
}

// ReportFailure tells that a request to a worker failed through the worker's fault. After a refused dial the worker's hive is
// asked whether the process is still there.
func (q *Queen) ReportFailure(workerID string, kind registry.FailureKind) {
	if kind == registry.FailureStall {
		q.mu.Lock()
		q.watchdog.stalled(workerID)
		q.mu.Unlock()
	}
	q.step(registry.Failure{WorkerID: workerID, Kind: kind})
	if kind == registry.FailureDialRefused {
		q.verify(workerID)
	}
}

// ReportSuccess tells that a request to a worker was answered.
func (q *Queen) ReportSuccess(workerID string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.machine.Step(q.now(), registry.Success{WorkerID: workerID})
}

// act logs an effect and does what it asks for.
func (q *Queen) act(e registry.Effect) {
	q.o.Metrics.Event(string(e.Kind))
	attrs := []any{"event", string(e.Kind)}
	for _, a := range []struct{ k, v string }{{"worker", e.WorkerID}, {"hive", e.HiveID}, {"from", string(e.From)},
		{"to", string(e.To)}, {"reason", e.Reason}, {"model", e.Slot.ModelID}, {"device", e.Slot.Device}} {
		if a.v != "" {
			attrs = append(attrs, a.k, a.v)
		}
	}
	switch e.Kind {
	case registry.EffectDropped:
		q.log.Debug("beat dropped", attrs...)
	case registry.EffectPanicOn:
		q.log.Error("most hives fell silent at once: nothing is replaced until they are back", attrs...)
	case registry.EffectCrashLoop, registry.EffectDoesNotFit:
		q.log.Error("worker is not started again by itself", attrs...)
	case registry.EffectExited:
		q.log.Warn("worker ended", attrs...)
		if e.Delay > 0 {
			q.do(func(ctx context.Context) {
				if run.Sleep(ctx, e.Delay) == nil {
					q.step(registry.Due{})
				}
			})
		}
	case registry.EffectEjected, registry.EffectRebooted, registry.EffectPaused:
		q.log.Warn("registry changed", append(attrs, "delay", e.Delay)...)
	case registry.EffectRespawn:
		if q.planned(e.Slot) { // the plan decides where it runs from now on
			q.step(registry.Release{Slot: e.Slot})
			return
		}
		if !q.company.tends(e.Slot) {
			q.log.Info("worker is left to another queen to start again", attrs...)
			q.step(registry.Release{Slot: e.Slot})
			return
		}
		q.log.Info("worker is started again", attrs...)
		q.respawn(e.Slot)
	case registry.EffectSurplus:
		if q.wishOf(e.WorkerID) != nil { // the plan ends what is too much
			return
		}
		q.log.Info("a worker that was replaced is back, so the newer one is drained and ended", attrs...)
		q.do(func(context.Context) { q.endSurplus(e.WorkerID) })
	case registry.EffectLiveness:
		q.log.Info("registry changed", attrs...)
		if e.To != contract.LivenessAlive { // silent: perhaps its end was not reported
			q.verify(e.WorkerID)
		}
	default:
		q.log.Info("registry changed", attrs...)
	}
}

// count sets the gauges.
func (q *Queen) count() {
	workers, hives := map[string]int{}, map[string]int{}
	s := q.Snapshot()
	for i := range s.Workers {
		workers[string(s.Workers[i].Liveness)]++
	}
	for i := range s.Hives {
		hives[string(s.Hives[i].Liveness)]++
	}
	q.o.Metrics.Members(workers, hives)
}

// jitter is from -1 to 1.
func jitter() float64 { return 2*rand.Float64() - 1 }
