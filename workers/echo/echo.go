// Package echo is a worker without a model: it answers with the words of the prompt. It is the fake of tests and benchmarks,
// with flags that play the faults of real engines (reliability.md, harness), and cheap enough to stand behind a relay that
// is being measured. It does no arithmetic and judges nothing.
package echo

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/workers/sdk"
)

// Version is WorkerInfo.Version of the echo worker.
const Version = "1"

const (
	defaultSlots   = 4
	defaultContext = 128 << 10
	dimensions     = 8 // of embeddings
)

// Main runs `apiary worker echo ARGS` and returns its exit code.
func Main(args []string) int {
	impl, _ := Implementation()
	return sdk.Main(args, impl)
}

// Implementation returns an echo worker and the faults that its flags set, for tests that run one without a process.
func Implementation() (sdk.Implementation, *Faults) {
	f := newFaults()
	return sdk.Implementation{
		Name:       "echo",
		Version:    Version,
		Flags:      f.flags,
		New:        func(c sdk.Config) (sdk.Engine, error) { return newEngine(c, f) },
		Middleware: f.middleware,
		Listen:     f.listen,
	}, f
}

type engine struct {
	f       *Faults
	slots   int
	context int
	sem     chan struct{}
	history *history

	busy, queued, used atomic.Int64
	progress           atomic.Uint64

	closing context.Context
	close   context.CancelFunc
	wg      sync.WaitGroup
}

func newEngine(c sdk.Config, f *Faults) (sdk.Engine, error) {
	e := &engine{f: f, slots: c.Slots, context: c.Context}
	if e.slots == 0 {
		e.slots = defaultSlots
	}
	if e.context == 0 {
		e.context = defaultContext
	}
	e.sem = make(chan struct{}, e.slots)
	e.closing, e.close = context.WithCancel(context.Background())
	var err error
	e.history, err = openHistory(f.History, c.WorkerID)
	return e, err
}

// Load waits as long as the faults say.
func (e *engine) Load(ctx context.Context, progress func(float64)) (sdk.Model, error) {
	if err := e.f.atStart(&e.wg, e.closing); err != nil {
		return sdk.Model{}, err
	}
	start, step := time.Now(), max(e.f.Load/100, time.Millisecond)
	for {
		done := time.Since(start)
		if done >= e.f.Load/2 && e.f.ExitDuringLoad >= 0 {
			fmt.Fprintf(os.Stderr, "echo: leaving during the load with code %d\n", e.f.ExitDuringLoad)
			os.Exit(e.f.ExitDuringLoad)
		}
		if done >= e.f.Load {
			break
		}
		progress(float64(done) / float64(e.f.Load))
		if err := run.Sleep(ctx, step); err != nil {
			return sdk.Model{}, err
		}
	}
	e.f.allocate()
	return sdk.Model{ContextLength: e.context, Slots: e.slots, Capabilities: []string{
		contract.CapabilityChat, contract.CapabilityCompletion, contract.CapabilityEmbedding, contract.CapabilityResume,
	}}, nil
}

// Generate answers with the words of the prompt, or of the last message.
func (e *engine) Generate(ctx context.Context, req *sdk.Request, sink func(sdk.Token) error) (sdk.Result, error) {
	e.wg.Add(1)
	defer e.wg.Done()
	e.history.write(event{Event: "start", Request: req.ID})
	var res sdk.Result
	prompt, text := e.text(ctx, req)
	res.Usage.PromptTokens = countTokens(prompt) + countTokens(req.ResumeText)
	if res.Usage.PromptTokens >= e.context {
		return res, &sdk.PromptTooLongError{PromptTokens: res.Usage.PromptTokens, ContextLength: e.context}
	}
	arrived := time.Now()
	e.queued.Add(1)
	select {
	case e.sem <- struct{}{}:
		e.queued.Add(-1)
	case <-ctx.Done():
		e.queued.Add(-1)
		e.history.write(event{Event: "cancel", Request: req.ID})
		return res, ctx.Err()
	}
	e.busy.Add(1)
	e.used.Add(int64(res.Usage.PromptTokens))
	defer func() {
		e.used.Add(-int64(res.Usage.PromptTokens + res.Usage.CompletionTokens))
		e.busy.Add(-1)
		<-e.sem
	}()
	admitted := time.Now()
	res.Timings.QueueMS = milliseconds(admitted.Sub(arrived))
	err := e.prefill(ctx, req, res.Usage.PromptTokens)
	decode := time.Now()
	res.Timings.PrefillMS = milliseconds(decode.Sub(admitted))
	if err == nil {
		err = e.decode(ctx, req, text, &res, sink)
	}
	res.Timings.DecodeMS = milliseconds(time.Since(decode))
	what := "end"
	if ctx.Err() != nil {
		what = "cancel"
	}
	e.history.write(event{Event: what, Request: req.ID, N: res.Usage.CompletionTokens})
	return res, err
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// text returns the prompt as it counts and the text to answer with.
func (e *engine) text(ctx context.Context, req *sdk.Request) (prompt, text string) {
	prompt, text = req.Prompt, req.Prompt
	if n := len(req.Messages); n > 0 {
		var all strings.Builder
		for i, m := range req.Messages {
			if i > 0 {
				all.WriteByte('\n')
			}
			all.WriteString(m.Content)
		}
		prompt, text = all.String(), req.Messages[n-1].Content
	}
	if v, ok := ctx.Value(overrideKey{}).(string); ok {
		text = v
	}
	return prompt, strings.TrimPrefix(text, req.ResumeText)
}

// prefill pretends to compute the prompt for as long as the faults say.
func (e *engine) prefill(ctx context.Context, req *sdk.Request, total int) error {
	report := req.Prefill
	if report == nil {
		report = func(int, int) {}
	}
	if e.f.Prefill == 0 {
		e.progress.Add(1)
		report(total, total)
		return nil
	}
	const steps = 20
	for i := range steps {
		report(total*i/steps, total)
		if err := run.Sleep(e.patience(ctx), e.f.Prefill/steps); err != nil {
			return err
		}
		e.progress.Add(1)
	}
	report(total, total)
	return nil
}

// patience is the context that the engine heeds: with the fault IgnoreCancel only its own end.
func (e *engine) patience(ctx context.Context) context.Context {
	if e.f.IgnoreCancel {
		return e.closing
	}
	return ctx
}

// decode gives out the tokens at the pace of the faults.
func (e *engine) decode(ctx context.Context, req *sdk.Request, text string, res *sdk.Result, sink func(sdk.Token) error) error {
	limit := e.context - res.Usage.PromptTokens
	if req.MaxTokens > 0 {
		limit = min(limit, req.MaxTokens)
	}
	words := tokens{text: text, again: e.f.Tokens >= 0 || req.IgnoreEOS}
	stop := math.MaxInt
	if e.f.Tokens >= 0 {
		stop = e.f.Tokens
	}
	pace := newPacer(e.f.TPS)
	defer pace.stop()
	var gone error // the sink wants no more
	for n := 0; ; n++ {
		word := words.next()
		if word == "" || n >= stop {
			res.FinishReason = contract.FinishStop
			return gone
		}
		if n >= limit {
			res.FinishReason = contract.FinishLength
			return gone
		}
		if err := e.f.before(e.patience(ctx), n); err != nil {
			return err
		}
		if err := pace.wait(e.patience(ctx)); err != nil {
			return err
		}
		res.Usage.CompletionTokens++
		e.used.Add(1)
		e.progress.Add(1)
		if gone == nil {
			gone = sink(sdk.Token{ID: n, Bytes: []byte(word)})
			e.history.write(event{Event: "token", Request: req.ID, N: n + 1})
		}
		if gone != nil && !e.f.IgnoreCancel {
			return gone
		}
	}
}

// Embed gives vectors of unit length that depend on the text only.
func (e *engine) Embed(ctx context.Context, inputs []string) ([][]float32, int, error) {
	total := 0
	out := make([][]float32, len(inputs))
	for i, in := range inputs {
		if n := countTokens(in); n >= e.context {
			return nil, 0, &sdk.PromptTooLongError{PromptTokens: n, ContextLength: e.context}
		} else {
			total += n
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(in))
		x, sum := h.Sum64()|1, 0.0
		v := make([]float32, dimensions)
		for d := range v {
			x ^= x << 13 // xorshift64, Marsaglia 2003
			x ^= x >> 7
			x ^= x << 17
			v[d] = float32(x>>40)/(1<<23) - 1
			sum += float64(v[d]) * float64(v[d])
		}
		for d := range v {
			v[d] /= float32(math.Sqrt(sum))
		}
		out[i] = v
		e.progress.Add(1)
	}
	return out, total, ctx.Err()
}

// Stats says what the engine is doing.
func (e *engine) Stats() sdk.Stats {
	return sdk.Stats{SlotsBusy: int(e.busy.Load()), QueueDepth: int(e.queued.Load()), KVTokensUsed: int(e.used.Load()), Progress: e.progress.Load()}
}

// Close ends what runs on after its request, and waits.
func (e *engine) Close() error {
	e.close()
	e.wg.Wait()
	return e.history.Close()
}

type overrideKey struct{}

// withText returns a context under which Generate answers with text.
func withText(ctx context.Context, text any) context.Context {
	s, ok := text.(string)
	if !ok {
		b, err := json.Marshal(text)
		if err != nil {
			b = []byte(err.Error())
		}
		s = string(b)
	}
	return context.WithValue(ctx, overrideKey{}, s)
}
