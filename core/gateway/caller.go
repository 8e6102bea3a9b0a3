package gateway

import (
	"context"
	"slices"
	"sync"

	"github.com/apiary-dev/apiary/core/keys"
)

// under counts a request under the key that its caller showed, and has it end when that is revoked.
func (f *flight) under(g *keys.Grant) error {
	f.revoked = &revocation{}
	var err error
	if f.use, err = g.Begin(f.start, f.revoked.end); err != nil {
		return err
	}
	f.ctx = f.revoked.watch(f.ctx)
	return nil
}

// revocation ends the context of a request, whichever one counts at the time.
type revocation struct {
	mu     sync.Mutex // guards the fields below
	cause  error
	cancel context.CancelCauseFunc
}

// watch returns a context that ends with ctx and at the revocation. It takes the place of the one before.
func (v *revocation) watch(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cancel = cancel
	if v.cause != nil {
		cancel(v.cause)
	}
	return ctx
}

func (v *revocation) end(cause error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cause = cause
	v.cancel(cause)
}

// over frees what the context holds.
func (v *revocation) over() { v.end(context.Canceled) }

// share names the callers that share their turns in a queue: those without a key are one.
func (f *flight) share() *keys.Grant {
	if f.use == nil {
		return nil
	}
	return f.use.Grant()
}

// next returns the waiter whose turn it is: of the callers that have the fewest requests at workers, the one that has waited
// longest. The requests of one caller keep their order. Gateway.mu is held, and q is not empty.
func (q *queue) next() int {
	if !slices.ContainsFunc(q.waiters, func(w *waiter) bool { return w.f.use != nil }) {
		return 0
	}
	best, least := 0, -1
	seen := map[*keys.Grant]bool{}
	for i, w := range q.waiters {
		s := w.f.share()
		if seen[s] {
			continue
		}
		seen[s] = true
		load := 0
		if w.f.use != nil {
			load = w.f.use.Load()
		}
		if least < 0 || load < least {
			best, least = i, load
		}
	}
	return best
}

// waitingOf counts the waiters of one caller.
func (q *queue) waitingOf(s *keys.Grant) (n int) {
	for _, w := range q.waiters {
		if w.f.share() == s {
			n++
		}
	}
	return n
}

// serving tells the account of the caller's key whether its request has a worker.
func (f *flight) serving(on bool) {
	if f.use != nil {
		f.use.Serving(on)
	}
}
