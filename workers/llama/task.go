package llama

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// state is where a task is in its life.
type state uint8

const (
	waiting    state = iota // in the queue
	computing               // its prompt is being computed
	generating              // one token in every step
	ended
)

// task is one request inside the engine. The fields of the first part belong to the loop; the caller sets them before it
// submits the task and reads them after the task ended.
type task struct {
	prompt    []int32
	maxTokens int // at least 1; prompt and maxTokens together fit in the context
	ignoreEOS bool
	choose    chooser

	all       []int32 // prompt and what was generated; the last one is not computed yet
	seq       *sequence
	state     state
	order     uint64
	generated int
	cached    int

	submitted, started, first, ended time.Time

	cancelled atomic.Bool
	wake      chan struct{} // one place: something below changed

	mu sync.Mutex // guards the fields below
	// out are generated tokens that the caller has not fetched. It is bounded by maxTokens.
	out      []int32
	prefill  int // prompt tokens computed or found
	done     bool
	finish   string
	err      error
	spareOut []int32
}

func newTask(prompt []int32, maxTokens int, choose chooser, now time.Time) *task {
	return &task{prompt: prompt, maxTokens: maxTokens, choose: choose, submitted: now, wake: make(chan struct{}, 1),
		all: append(make([]int32, 0, len(prompt)+min(maxTokens, 1024)), prompt...)}
}

// signal tells the caller to look, without waiting for it.
func (t *task) signal() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

func (t *task) put(token int32) {
	t.mu.Lock()
	t.out = append(t.out, token)
	t.mu.Unlock()
	t.signal()
}

func (t *task) progress(n int) {
	t.mu.Lock()
	t.prefill = n
	t.mu.Unlock()
	t.signal()
}

// end makes the task's result final; a second call changes nothing.
func (t *task) end(finish string, err error) {
	t.mu.Lock()
	if !t.done {
		t.done, t.finish, t.err = true, finish, err
	}
	t.mu.Unlock()
	t.signal()
}

// fetch returns what came since the last call. The slice is valid until the next one.
func (t *task) fetch() (tokens []int32, prefill int, done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tokens = t.out
	t.out, t.spareOut = t.spareOut[:0], t.out
	return tokens, t.prefill, t.done
}

func (t *task) usage() contract.Usage {
	return contract.Usage{PromptTokens: len(t.prompt), CachedTokens: t.cached, CompletionTokens: t.generated}
}

func (t *task) timings() contract.Timings {
	ms := func(from, to time.Time) float64 {
		if from.IsZero() || to.IsZero() {
			return 0
		}
		return float64(to.Sub(from)) / float64(time.Millisecond)
	}
	started, first := t.started, t.first
	if started.IsZero() {
		started = t.ended
	}
	if first.IsZero() {
		first = t.ended
	}
	return contract.Timings{QueueMS: ms(t.submitted, started), PrefillMS: ms(started, first), DecodeMS: ms(first, t.ended)}
}
