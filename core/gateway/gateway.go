// Package gateway is the queen's OpenAI surface: it finds the model in a request without unmarshalling it, picks a worker,
// relays bytes in both directions, and says what happened when it cannot. Requests for which no worker is free wait in a
// bounded queue for each model. It knows workers through a Directory; it starts none and fetches nothing.
//
// Towards clients it is an ordinary handler of net/http, whose parser is tested by the world. Towards workers it speaks
// HTTP/1.1 itself, over pooled connections and without goroutines of its own, because http.Transport costs more than all the
// rest of a relayed request.
package gateway

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

// Directory is what the gateway asks of the queen. Its methods are called often and from many goroutines; none may block.
type Directory interface {
	// Snapshot returns the current picture of the workers. It is never changed.
	Snapshot() *registry.Snapshot
	// Changed returns a channel that is closed at the next change of the snapshot or of a demand.
	Changed() <-chan struct{}
	// Resolve returns the models that a client's name stands for, or a fault of kind NotFound.
	Resolve(name string) (registry.Target, error)
	// Demand makes sure that a worker for the name is being started and says where that stands.
	Demand(name string) registry.Demand
	// Models lists the models by the names they answer to.
	Models() []contract.ModelView
	// Deleted reports whether a worker was ended on purpose a short while ago, or is just being ended.
	Deleted(workerID string) bool
	// ReportFailure and ReportSuccess say how a request to a worker went.
	ReportFailure(workerID string, kind registry.FailureKind)
	ReportSuccess(workerID string)
}

// Metrics counts what the gateway does.
type Metrics interface {
	Request(model string, status int, d time.Duration)
	Tokens(model string, prompt, cached, completion int)
	Retry()
	InFlight(delta int)
}

// Limits are the bounds of the request path. Zero values mean the defaults, which are those of reliability.md.
type Limits struct {
	Body          contract.Bytes // request body; default 10 MiB
	Response      contract.Bytes // answer that does not stream; default 64 MiB
	QueuePerModel int            // waiting requests; default 64
	QueuePerKey   int            // of them under one API key that does not say otherwise; default 16
	QueueWait     time.Duration  // for a free slot; default 30 s
	LoadWait      time.Duration  // for a worker that is being started; default 2 min
	Withhold      time.Duration  // how long a stream's status is held back, so that a refusal can be a real one; default 2 s
	KeepAlive     time.Duration  // between comments on a silent stream; default 10 s
	FirstToken    time.Duration  // for the first byte of an answer, beside 1 s per 1,000 prompt tokens; default 120 s
	Stall         time.Duration  // between two tokens; default 60 s
	Dial          time.Duration  // for a connection to a worker; default 2 s
	Retries       int            // further attempts of one request; default 2
	RetryShare    float64        // share of the active requests that may be in a further attempt; default 0.2
	RetryMin      int            // and how many always may; default 3
	Poison        time.Duration  // how long a request that ended two workers is refused; default 10 min
}

func (l Limits) withDefaults() Limits {
	l.Body = cmp.Or(l.Body, 10*contract.MiB)
	l.Response = cmp.Or(l.Response, 64*contract.MiB)
	l.QueuePerModel = cmp.Or(l.QueuePerModel, 64)
	l.QueuePerKey = cmp.Or(l.QueuePerKey, 16)
	l.QueueWait = cmp.Or(l.QueueWait, 30*time.Second)
	l.LoadWait = cmp.Or(l.LoadWait, 2*time.Minute)
	l.Withhold = cmp.Or(l.Withhold, 2*time.Second)
	l.KeepAlive = cmp.Or(l.KeepAlive, 10*time.Second)
	l.FirstToken = cmp.Or(l.FirstToken, 120*time.Second)
	l.Stall = cmp.Or(l.Stall, 60*time.Second)
	l.Dial = cmp.Or(l.Dial, 2*time.Second)
	l.Retries = cmp.Or(l.Retries, 2)
	l.RetryShare = cmp.Or(l.RetryShare, 0.2)
	l.RetryMin = cmp.Or(l.RetryMin, 3)
	l.Poison = cmp.Or(l.Poison, 10*time.Minute)
	return l
}

// Options configures a Gateway. Directory is required.
type Options struct {
	Directory Directory
	// Secret returns the bearer token that a worker wants, "" for none. It is asked once for each worker.
	Secret func(workerID string) secret.Secret
	// Dial connects to a worker; nil: the operating system's TCP.
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	Limits  Limits
	Metrics Metrics // nil: nothing is counted
	Log     *slog.Logger
}

// Gateway serves the OpenAI API over the workers of a Directory.
type Gateway struct {
	dir     Directory
	secret  func(string) secret.Secret
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	bounds  atomic.Pointer[Limits] // never changed, only replaced
	metrics Metrics
	log     *slog.Logger
	created int64 // Unix time reported for models without one

	jsonType, streamType, noCache []string // header values, shared by all answers and never changed

	bodies  sync.Pool // *[]byte: request bodies, and answers that do not stream
	reads   sync.Pool // *[]byte of readSize: what a worker sent last
	spread  atomic.Uint64
	active  atomic.Int64
	retries atomic.Int64 // active requests that are in a further attempt
	poison  poisonTable
	sweep   sweeper

	mu       sync.Mutex // guards the fields below
	backends map[string]*backend
	queues   map[string]*queue
}

func (g *Gateway) limits() *Limits { return g.bounds.Load() }

// SetLimits takes over the bounds of waiting and of further attempts: QueuePerModel, QueuePerKey, QueueWait, LoadWait, FirstToken, Stall, Retries,
// RetryShare and RetryMin; the others stay as they were made. They hold for requests that come or begin to wait from now on, and
// Stall for all. It may be called at any time.
func (g *Gateway) SetLimits(l Limits) {
	l = l.withDefaults()
	next := *g.limits()
	next.QueuePerModel, next.QueuePerKey, next.QueueWait, next.LoadWait = l.QueuePerModel, l.QueuePerKey, l.QueueWait, l.LoadWait
	next.FirstToken, next.Stall = l.FirstToken, l.Stall
	next.Retries, next.RetryShare, next.RetryMin = l.Retries, l.RetryShare, l.RetryMin
	g.bounds.Store(&next)
}

// New returns a Gateway. It starts nothing: goroutines are those of its callers, and one timer runs while requests or idle
// connections are open. Close ends both.
func New(o Options) *Gateway {
	g := &Gateway{
		dir: o.Directory, secret: o.Secret, dial: o.Dial, metrics: o.Metrics, log: o.Log,
		created:  time.Now().Unix(),
		jsonType: []string{"application/json"}, streamType: []string{"text/event-stream"}, noCache: []string{"no-cache"},
		backends: map[string]*backend{}, queues: map[string]*queue{},
	}
	bounds := o.Limits.withDefaults()
	g.bounds.Store(&bounds)
	if g.secret == nil {
		g.secret = func(string) secret.Secret { return "" }
	}
	if g.dial == nil {
		g.dial = new(net.Dialer).DialContext
	}
	if g.metrics == nil {
		g.metrics = noMetrics{}
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.bodies.New = func() any { b := make([]byte, 0, 4<<10); return &b }
	g.reads.New = func() any { b := make([]byte, readSize); return &b }
	g.poison.init(g.limits().Poison)
	g.sweep.init(g)
	return g
}

// Close closes the idle connections to workers and stops the timer. Requests that are open go on.
func (g *Gateway) Close() {
	g.sweep.close()
	g.mu.Lock()
	backends := g.backends
	g.backends = map[string]*backend{}
	g.mu.Unlock()
	for _, b := range backends {
		b.closeIdle(time.Time{})
	}
}

// Routes returns the gateway's paths.
func (g *Gateway) Routes() []httpd.Route {
	post := func(api *api) httpd.Route {
		return httpd.Route{Pattern: "POST " + api.path, Class: httpd.ClassInference, BodyLimit: g.limits().Body,
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.serve(w, r, api) })}
	}
	return []httpd.Route{
		post(&api{path: "/v1/chat/completions", name: contract.APIChat, translate: chatToInfer}),
		post(&api{path: "/v1/completions", name: contract.APICompletions, translate: completionToInfer}),
		post(&api{path: "/v1/embeddings", name: contract.APIEmbeddings}),
		{Pattern: "GET /v1/models", Class: httpd.ClassInference, Timeout: 10 * time.Second, Handler: http.HandlerFunc(g.listModels)},
		{Pattern: "GET /v1/models/{model...}", Class: httpd.ClassInference, Timeout: 10 * time.Second, Handler: http.HandlerFunc(g.getModel)},
	}
}

// InFlight returns the number of requests that are open at a worker.
func (g *Gateway) InFlight(workerID string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if b := g.backends[workerID]; b != nil {
		return b.inFlight
	}
	return 0
}

// Queued returns how many requests wait for each model, by the first id of what its name stands for, or by the name.
func (g *Gateway) Queued() map[string]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make(map[string]int, len(g.queues))
	for key, q := range g.queues {
		out[key] = len(q.waiters)
	}
	return out
}

// api is one OpenAI path.
type api struct {
	path      string
	name      string // as WorkerInfo.APIs lists it
	translate func(body []byte) (*translation, error)
}

type noMetrics struct{}

func (noMetrics) Request(string, int, time.Duration) {}
func (noMetrics) Tokens(string, int, int, int)       {}
func (noMetrics) Retry()                             {}
func (noMetrics) InFlight(int)                       {}
