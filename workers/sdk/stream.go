package sdk

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// progressEvery is how often a stream that has nothing to show says that its request advances: well within the 5 s of the
// contract.
const progressEvery = 2 * time.Second

// stream writes server-sent events. The status is held back until the first event or comment, so that what can be refused
// is refused with a status of its own.
type stream struct {
	w  http.ResponseWriter
	rc *http.ResponseController

	prefilled, prefillTotal atomic.Int64 // of this request
	tokens                  atomic.Int64 // generated, shown or held back

	// mu guards the fields below: the engine's goroutine writes events, a timer writes comments.
	mu      sync.Mutex
	begun   bool // the status is out
	ended   bool // nothing is written any more
	written bool // since the last tick of the timer
	buf     []byte
	timer   *time.Timer
}

func newStream(w http.ResponseWriter) *stream {
	return &stream{w: w, rc: http.NewResponseController(w)}
}

// write sends the events that fill appends to a buffer. It returns the error of the connection.
func (st *stream) write(fill func([]byte) []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.buf = fill(st.buf[:0])
	if len(st.buf) == 0 {
		return nil
	}
	return st.send()
}

func (st *stream) send() error {
	if !st.begun {
		st.begun = true
		h := st.w.Header()
		h["Content-Type"] = []string{"text/event-stream"}
		h["Cache-Control"] = []string{"no-store"}
		h["X-Accel-Buffering"] = []string{"no"}
		h["Trailer"] = []string{contract.UsageTrailer}
		st.w.WriteHeader(http.StatusOK)
	}
	st.written = true
	if _, err := st.w.Write(st.buf); err != nil {
		return fmt.Errorf("write to the caller: %w", err)
	}
	if err := st.rc.Flush(); err != nil {
		return fmt.Errorf("write to the caller: %w", err)
	}
	return nil
}

// watch writes `: progress n/m` while the request advances without an event being written. Before the request left the
// engine's queue, an advance of the engine counts; afterwards only the request's own prefill and decode do, so that a request
// that hangs is silent however busy its engine is. end stops it.
func (st *stream) watch(engineProgress func() uint64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	lastEngine, lastOwn := engineProgress(), int64(-1)
	st.timer = time.AfterFunc(progressEvery, func() {
		st.mu.Lock()
		defer st.mu.Unlock()
		if st.ended {
			return
		}
		st.timer.Reset(progressEvery)
		engine, done, total, tokens := engineProgress(), st.prefilled.Load(), st.prefillTotal.Load(), st.tokens.Load()
		own := done + tokens
		advanced := own != lastOwn
		if total == 0 && tokens == 0 {
			advanced = engine != lastEngine
		}
		lastEngine, lastOwn = engine, own
		if advanced && !st.written {
			st.buf = fmt.Appendf(st.buf[:0], ": progress %d/%d\n\n", own, total)
			_ = st.send() // the engine's next write meets the same error
		}
		st.written = false
	})
}

// end stops the timer. After it nothing but the caller writes. It reports whether the status is out.
func (st *stream) end() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.ended = true
	if st.timer != nil {
		st.timer.Stop()
	}
	return st.begun
}
