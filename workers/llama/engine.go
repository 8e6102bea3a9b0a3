package llama

import (
	"context"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/device"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/workers/sdk"
)

// maxQueue bounds the requests that wait for a slot.
const maxQueue = 128

// hostShare is the part of the free memory that may hold copies of ended conversations, and hostMost its bound.
const (
	hostShare = 8
	hostMost  = 2 << 30
)

// Engine implements sdk.Engine with llama.cpp.
type Engine struct {
	o        Options
	counters counters
	tasks    chan *task
	embeds   chan *embedJob
	quit     chan struct{} // closed by Close: the loop ends
	stopped  chan struct{} // closed when the loop takes nothing more
	freed    chan struct{} // closed when the loop has ended and the model is gone

	closing sync.Once
	users   sync.WaitGroup // calls that use the model outside the loop

	mu      sync.Mutex // guards the fields below
	m       *model     // nil before Load and after Close
	looping bool
}

var _ sdk.Engine = (*Engine)(nil)

// Options make an Engine.
type Options struct {
	EngineDir string   // folder with libllama
	Library   *Library // already open; nil: opened from EngineDir by Load
	ModelPath string   // GGUF file, or the first of several
	Devices   []string // "cpu0", "cuda0", …; none: the processor
	Context   int      // tokens of one request; 0: the engine decides
	Slots     int      // requests at once; 0: the engine decides
	Threads   int      // 0: as many as cores are free
	Log       *slog.Logger
}

// New makes an Engine. It starts and loads nothing.
func New(o Options) *Engine {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Engine{o: o, tasks: make(chan *task, maxQueue), embeds: make(chan *embedJob, maxQueue),
		quit: make(chan struct{}), stopped: make(chan struct{}), freed: make(chan struct{})}
}

// Implementation describes this engine to the worker SDK.
func Implementation() sdk.Implementation {
	return sdk.Implementation{
		Name:    "llama-cpp",
		Version: Build,
		New: func(c sdk.Config) (sdk.Engine, error) {
			return New(Options{EngineDir: c.EngineDir, ModelPath: c.ModelPath, Devices: splitDevices(c.Device),
				Context: c.Context, Slots: c.Slots, Threads: c.Threads, Log: c.Log}), nil
		},
	}
}

func splitDevices(list string) []string {
	return strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' })
}

// Load opens the library and the model and starts the loop.
func (e *Engine) Load(ctx context.Context, progress func(float64)) (sdk.Model, error) {
	lib := e.o.Library
	if lib == nil {
		var err error
		if lib, err = OpenLibrary(e.o.EngineDir, e.o.Log); err != nil {
			return sdk.Model{}, err
		}
	}
	threads := e.o.Threads
	if threads <= 0 {
		threads = device.FreeCores()
	}
	threads = min(threads, 512) // the pool's mask has as many
	m, n, err := e.load(ctx, lib, sizes{e.o.Context, e.o.Slots, threads}, progress)
	if err != nil {
		return sdk.Model{}, err
	}
	progress(1)
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.quit:
		n.free()
		m.close()
		return sdk.Model{}, errStopping()
	default:
	}
	e.m, e.looping = m, true
	go e.loop(m, n)
	return describe(m), nil
}

// load loads the model and tries it, on a thread that it may lose: see abortSink.
func (e *Engine) load(ctx context.Context, lib *Library, want sizes, progress func(float64)) (*model, *native, error) {
	type result struct {
		m   *model
		n   *native
		err error
	}
	failed, end := lib.abort.during()
	defer end()
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		before := lib.freeOn(e.o.Devices)
		m, err := loadModel(ctx, lib, e.o.ModelPath, e.o.Devices, want, func(f float64) {
			e.counters.progress.Add(1)
			progress(f)
		})
		if err != nil {
			done <- result{err: err}
			return
		}
		n := newNative(m, m.batch)
		if err := warmUp(m, n); err != nil {
			n.free()
			m.close()
			done <- result{err: err}
			return
		}
		e.counters.deviceMemory.Store(uint64(taken(before, lib.freeOn(e.o.Devices), e.o.ModelPath)))
		done <- result{m: m, n: n}
	}()
	select {
	case r := <-done:
		return r.m, r.n, r.err
	case text := <-failed:
		return nil, nil, modelFault("The model file %s is damaged or of a kind that the engine does not know, and the engine gave up on it (%s); fetch the model again or use another.", e.o.ModelPath, text)
	}
}

func describe(m *model) sdk.Model {
	out := sdk.Model{ContextLength: m.context, Slots: m.slots}
	if m.embeds() {
		out.Capabilities = []string{contract.CapabilityEmbedding}
		return out
	}
	out.Capabilities = []string{contract.CapabilityCompletion, contract.CapabilityResume}
	if m.template != nil {
		out.Capabilities = append(out.Capabilities, contract.CapabilityChat)
	}
	return out
}

// warmUp computes one token, so that the first request does not pay for reading the weights into memory, and a model that
// cannot be computed fails here.
func warmUp(m *model, n *native) error {
	t := llama.VocabBOS(m.vocab)
	if t < 0 || int(t) >= m.vocabSize {
		t = 0
	}
	rc := n.decode([]row{{token: int32(t), out: true}})
	n.remove(0, 0)
	if rc != 0 {
		return modelFault("The engine loaded the model and cannot compute with it (llama_decode returned %d); use another model.", rc)
	}
	return nil
}

// loop owns the context until the engine is closed. OpenMP builds of the libraries want one thread throughout.
func (e *Engine) loop(m *model, n *native) {
	runtime.LockOSThread()
	defer close(e.freed)
	c := newCache(n, m.cells, m.seqs, m.sharing, int(min(freeMemory()/hostShare, hostMost)))
	s := &scheduler{b: n, c: c, eog: m.eog, slots: m.slots, maxBatch: m.batch, now: time.Now, counters: &e.counters}
	em := &embedder{m, n}
	for e.receive(s, em) {
		s.step()
	}
	s.failAll(errStopping())
	close(e.stopped) // what is still on its way to the loop ends by this
	e.users.Wait()
	c.close()
	n.free()
	m.close()
}

// receive takes what came in, and waits for it when there is nothing to do. It returns false when the engine closes.
func (e *Engine) receive(s *scheduler, em *embedder) bool {
	if s.idle() {
		select {
		case t := <-e.tasks:
			s.submit(t)
		case j := <-e.embeds:
			e.embed(em, j)
		case <-e.quit:
			return false
		}
	}
	for {
		select {
		case t := <-e.tasks:
			s.submit(t)
		case <-e.quit:
			return false
		default:
			return true
		}
	}
}

func (e *Engine) embed(em *embedder, j *embedJob) {
	e.counters.waiting.Add(-1)
	e.counters.busy.Store(1)
	em.run(j, func() { e.counters.progress.Add(1) })
	e.counters.busy.Store(0)
}

// Generate runs one request.
func (e *Engine) Generate(ctx context.Context, req *sdk.Request, sink func(sdk.Token) error) (sdk.Result, error) {
	m, err := e.use()
	if err != nil {
		return sdk.Result{}, err
	}
	defer e.users.Done()
	if m.embeds() {
		return sdk.Result{}, sdk.ErrUnsupported
	}
	prompt, err := m.prompt(req)
	if err != nil {
		return sdk.Result{}, err
	}
	room := m.context - len(prompt)
	if room < 1 {
		return sdk.Result{}, &sdk.PromptTooLongError{PromptTokens: len(prompt), ContextLength: m.context}
	}
	most := room
	if req.MaxTokens > 0 {
		most = min(most, req.MaxTokens)
	}
	if err := e.enter(); err != nil {
		return sdk.Result{}, err
	}
	t := newTask(prompt, most, newChooser(req.Temperature, req.TopP, req.MinP, req.TopK, req.RepeatPenalty, req.Seed), time.Now())
	t.ignoreEOS = req.IgnoreEOS
	select {
	case e.tasks <- t:
	case <-e.stopped:
		e.counters.waiting.Add(-1)
		return sdk.Result{}, errStopping()
	}
	return e.follow(ctx, t, m, req.Prefill, sink)
}

// prompt returns the tokens of a request's prompt.
func (m *model) prompt(req *sdk.Request) ([]int32, error) {
	text := req.Prompt
	if len(req.Messages) > 0 {
		if m.template == nil {
			return nil, sdk.ErrUnsupported
		}
		var err error
		if text, err = m.template.render(req.Messages, m.addBOS); err != nil {
			return nil, err
		}
	}
	text += req.ResumeText
	if m.longest > 0 && len(text) > m.longest*m.context {
		return nil, &sdk.PromptTooLongError{PromptTokens: m.estimate(text), ContextLength: m.context}
	}
	tokens, err := m.tokens(text, true)
	if err == nil && len(tokens) == 0 {
		return nil, errEmptyPrompt("prompt")
	}
	return tokens, err
}

// follow hands what the loop makes of t to sink until t ends. The loop never waits for it.
func (e *Engine) follow(ctx context.Context, t *task, m *model, prefill func(done, total int), sink func(sdk.Token) error) (sdk.Result, error) {
	var failed error
	reported := -1
	cancel := ctx.Done()
	for {
		select {
		case <-t.wake:
		case <-cancel:
			cancel = nil
			failed = ctx.Err()
			t.cancelled.Store(true)
		case <-e.stopped:
			// The loop has ended the tasks that it had; this one was on its way.
			t.end("", errStopping())
		}
		tokens, done, over := t.fetch()
		if prefill != nil && failed == nil && done > reported {
			reported = done
			prefill(done, len(t.prompt))
		}
		for _, id := range tokens {
			if failed != nil {
				break
			}
			if failed = sink(sdk.Token{ID: int(id), Bytes: m.pieces[id]}); failed != nil {
				t.cancelled.Store(true)
			}
		}
		if !over {
			continue
		}
		if failed == nil {
			failed = t.err
		}
		return sdk.Result{FinishReason: t.finish, Usage: t.usage(), Timings: t.timings()}, failed
	}
}

// use returns the model, which stays loaded until users.Done, or the reason why there is none.
func (e *Engine) use() (*model, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.m == nil {
		return nil, fault.New(fault.Unavailable, "model_loading", "The worker has not loaded its model; try again in a moment.").WithRetryAfter(time.Second)
	}
	e.users.Add(1)
	return e.m, nil
}

// enter counts a request as waiting, or refuses it because too many are.
func (e *Engine) enter() error {
	if e.counters.waiting.Add(1) > maxQueue {
		e.counters.waiting.Add(-1)
		return fault.New(fault.Exhausted, "queue_full", "The worker has %d requests waiting, which is its limit; try again in a moment.", maxQueue).WithRetryAfter(time.Second)
	}
	return nil
}

func errStopping() error {
	return fault.New(fault.Unavailable, "worker_stopping", "The worker is stopping; send the request again.").WithRetryAfter(time.Second)
}

func errEmptyPrompt(param string) error {
	return fault.New(fault.Invalid, "prompt_empty", "The %s has no tokens; send some text.", param).WithParam(param)
}

// Stats says what the engine does now.
func (e *Engine) Stats() sdk.Stats {
	return sdk.Stats{
		SlotsBusy:    int(e.counters.busy.Load()),
		QueueDepth:   max(0, int(e.counters.waiting.Load())),
		KVTokensUsed: int(e.counters.kvUsed.Load()),
		DeviceMemory: contract.Bytes(e.counters.deviceMemory.Load()),
		Progress:     e.counters.progress.Load(),
	}
}

// Close ends the running requests, waits for them and frees the model. The library stays loaded.
func (e *Engine) Close() error {
	e.closing.Do(func() { close(e.quit) })
	e.mu.Lock()
	looping := e.looping
	e.m = nil
	e.mu.Unlock()
	if looping {
		<-e.freed
	}
	return nil
}
