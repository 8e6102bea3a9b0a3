package gateway

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/route"
)

// queue holds the requests that wait for one model: first come first served, and callers with keys take turns. Gateway.mu guards it.
type queue struct {
	waiters []*waiter
}

// waiter is a request in a queue. Whoever frees a slot hands the slot over through granted.
type waiter struct {
	f       *flight
	granted chan struct{}
	done    bool // granted, or left; guarded by Gateway.mu
}

// admit gives f a slot of a worker, after waiting for one where it must. The slot is given back with leave.
func (g *Gateway) admit(f *flight) error {
	snap := g.dir.Snapshot()
	g.mu.Lock()
	ok, reason := false, route.ReasonNone
	if q := g.queues[f.queueKey()]; q == nil || len(q.waiters) == 0 || f.attempt > 0 {
		ok, reason = g.pick(snap, f)
	}
	g.mu.Unlock()
	if ok {
		return nil
	}
	if reason == route.ReasonTried {
		if err := g.pause(f); err != nil {
			return err
		}
	}
	return g.wait(f)
}

// queueKey names the queue of f: requests for one model wait together, under whichever name.
func (f *flight) queueKey() string {
	if len(f.ids) > 0 {
		return f.ids[0]
	}
	return f.name
}

// pause waits a little before a request goes to a worker again that has just refused it.
func (g *Gateway) pause(f *flight) error {
	d := time.Duration(f.attempt) * 100 * time.Millisecond
	t := time.NewTimer(d/2 + rand.N(d))
	defer t.Stop()
	select {
	case <-f.ctx.Done():
		return f.ctx.Err()
	case <-t.C:
		f.tried = nil
		return nil
	}
}

// leave gives the slot of f back and hands free slots to those who wait.
func (g *Gateway) leave(f *flight) {
	g.mu.Lock()
	f.backend.inFlight--
	f.serving(false)
	waiting := len(g.queues) > 0
	g.mu.Unlock()
	if waiting {
		g.dispatch()
	}
}

// dispatch gives free slots to the heads of the queues.
func (g *Gateway) dispatch() {
	snap := g.dir.Snapshot()
	g.mu.Lock()
	defer g.mu.Unlock()
	for key, q := range g.queues {
		g.serveQueue(snap, q)
		if len(q.waiters) == 0 {
			delete(g.queues, key)
		}
	}
}

func (g *Gateway) serveQueue(snap *registry.Snapshot, q *queue) {
	for len(q.waiters) > 0 {
		i := q.next()
		w := q.waiters[i]
		ok, reason := g.pick(snap, w.f)
		if !ok && reason == route.ReasonTried { // another worker would have been better; none came free first
			w.f.tried = nil
			ok, _ = g.pick(snap, w.f)
		}
		if !ok {
			return
		}
		q.waiters = slices.Delete(q.waiters, i, i+1)
		w.done = true
		close(w.granted)
	}
}

// pick reserves a slot for f and notes in f which worker it is. Gateway.mu is held.
func (g *Gateway) pick(snap *registry.Snapshot, f *flight) (ok bool, reason string) {
	reason = route.ReasonNone
	var room [16]route.Candidate
	var index [16]int
	for _, id := range f.ids {
		workers := snap.Serving(id)
		cands, which := room[:0], index[:0]
		for i := range workers {
			w := &workers[i]
			if !f.servedBy(w) {
				continue
			}
			c := route.Candidate{Slots: w.Info.Slots, Queue: w.Info.QueueDepth, Weight: w.Weight, Excluded: contains(f.tried, w.Info.ID)}
			if b := g.backends[w.Info.ID]; b != nil && b.incarnation == w.Info.Incarnation {
				c.InFlight = b.inFlight
			}
			cands, which = append(cands, c), append(which, i)
		}
		k, why := route.Pick(cands, route.Request{Spread: g.spread.Load()})
		if k < 0 {
			if why != route.ReasonNone {
				reason = why
			}
			continue
		}
		g.spread.Add(1)
		w := &workers[which[k]]
		f.backend = g.backendOf(w)
		f.backend.inFlight++
		f.serving(true)
		f.direct = contains(w.Info.APIs, f.api.name)
		f.modelName = w.Info.ModelName
		f.workerProgress = w.Info.Progress
		return true, why
	}
	return false, reason
}

// servedBy reports whether w can answer f, as it is or translated.
func (f *flight) servedBy(w *registry.Worker) bool {
	return contains(w.Info.APIs, f.api.name) || f.api.translate != nil && contains(w.Info.APIs, contract.APIInfer)
}

// anyWorker reports whether workers of the models exist, and whether one of them can answer this kind of request.
func (f *flight) anyWorker(snap *registry.Snapshot) (exists, able bool) {
	for _, id := range f.ids {
		workers := snap.Serving(id)
		exists = exists || len(workers) > 0
		for i := range workers {
			able = able || f.servedBy(&workers[i])
		}
	}
	return exists, able
}

// wait queues f until it has a slot, its wait is over, or it is clear that none will come.
func (g *Gateway) wait(f *flight) error {
	key := f.queueKey()
	w := &waiter{f: f, granted: make(chan struct{})}
	begun := time.Now()
	joined := false
	comfortAt := f.sentAt.Add(g.limits().Withhold - g.limits().Withhold/8)
	if f.committed {
		comfortAt = begun.Add(g.limits().KeepAlive)
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		changed := g.dir.Changed() // before looking, so that no change is missed
		until, late, err := f.prospect(begun)
		if err != nil && !joined {
			return err
		} else if err != nil {
			return g.settle(key, w, err)
		}
		if !joined {
			if err := g.join(key, w); err != nil {
				return err
			}
			joined = true
		}
		g.dispatch()
		now := time.Now()
		if !now.Before(until) {
			return g.settle(key, w, late())
		}
		next := until
		if f.stream && comfortAt.Before(next) {
			next = comfortAt
		}
		timer.Reset(next.Sub(now))
		select {
		case <-w.granted:
			return nil
		case <-f.ctx.Done():
			return g.settle(key, w, f.ctx.Err())
		case <-changed:
		case <-timer.C:
			if f.stream && !time.Now().Before(comfortAt) {
				if err := f.comfort(); err != nil {
					return g.settle(key, w, err)
				}
				comfortAt = time.Now().Add(g.limits().KeepAlive)
			}
		}
	}
}

// join puts w at the end of the queue, or at its head where it has been served before.
func (g *Gateway) join(key string, w *waiter) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := g.queues[key]
	if q == nil {
		q = &queue{}
		g.queues[key] = q
	}
	switch {
	case w.f.attempt > 0:
		q.waiters = append([]*waiter{w}, q.waiters...)
	case len(q.waiters) >= g.limits().QueuePerModel:
		return fault.New(fault.Exhausted, "queue_full", "All workers of this model are busy and %d requests are waiting already; try again later.",
			len(q.waiters)).WithRetryAfter(time.Second)
	default:
		if s := w.f.share(); s != nil {
			if most := cmp.Or(s.Queue(), g.limits().QueuePerKey); q.waitingOf(s) >= most {
				return fault.New(fault.Exhausted, "queue_per_key", "%d requests of the API key %s wait for this model already (queue_per_key); try again when one has been answered.",
					most, s.ID()).WithRetryAfter(time.Second)
			}
		}
		q.waiters = append(q.waiters, w)
	}
	return nil
}

// settle takes w out of its queue and returns err, or nil where a slot came just in time for a client that is still there.
func (g *Gateway) settle(key string, w *waiter, err error) error {
	if g.quit(key, w) {
		return err
	}
	if fault.KindOf(err) == fault.Interrupted {
		g.leave(w.f)
		return err
	}
	return nil
}

// quit takes w out of its queue; false means that it had got a slot.
func (g *Gateway) quit(key string, w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.done {
		return false
	}
	w.done = true
	q := g.queues[key]
	q.waiters = slices.DeleteFunc(q.waiters, func(o *waiter) bool { return o == w })
	if len(q.waiters) == 0 {
		delete(g.queues, key)
	}
	return true
}

// prospect says until when f may wait and which error that would end with, or why waiting is of no use.
func (f *flight) prospect(begun time.Time) (until time.Time, late func() error, err error) {
	g := f.g
	t, err := g.dir.Resolve(f.name)
	if err != nil {
		return until, nil, err
	}
	g.mu.Lock() // dispatch reads ids
	f.ids = t.ModelIDs
	g.mu.Unlock()
	switch exists, able := f.anyWorker(g.dir.Snapshot()); {
	case able:
		return begun.Add(g.limits().QueueWait), func() error {
			return fault.New(fault.Exhausted, "queue_timeout", "All workers of this model were busy for %v; try again later.",
				g.limits().QueueWait).WithRetryAfter(5 * time.Second)
		}, nil
	case exists:
		return until, nil, fault.New(fault.Invalid, "unsupported_api", "The workers of this model do not serve %s.", f.api.path).WithParam("model")
	}
	d := g.dir.Demand(f.name)
	switch {
	case d.State == registry.DemandFetching:
		return until, nil, f.notYet("model_not_fetched", "is being fetched", d)
	case d.State == registry.DemandStarting:
		return begun.Add(g.limits().LoadWait), func() error { return f.notYet("model_loading", "is still being loaded", d) }, nil
	case d.Err == nil:
		return until, nil, f.notYet("model_unavailable", "cannot be served at the moment", d)
	}
	e := *fault.As(d.Err)
	if d.RetryAfter > 0 {
		e.RetryAfter = d.RetryAfter
	}
	return until, nil, &e
}

// notYet is the refusal of a request for a model that may be there later.
func (f *flight) notYet(code, what string, d registry.Demand) error {
	var more strings.Builder
	if d.Progress > 0 {
		fmt.Fprintf(&more, " (%.0f %%)", 100*d.Progress)
	}
	if d.JobID != "" {
		fmt.Fprintf(&more, " by job %s", d.JobID)
	}
	after := d.RetryAfter
	if after <= 0 {
		after = 5 * time.Second
	}
	return fault.New(fault.Unavailable, code, "The model %.200q %s%s; try again in %.0f s.", f.name, what, more.String(), after.Seconds()).WithRetryAfter(after)
}
