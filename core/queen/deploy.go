package queen

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

const (
	planEvery   = 5 * time.Second        // at the latest, so that nothing is missed for long
	planGap     = 200 * time.Millisecond // between two plans
	measureGap  = 5 * time.Second        // between two looks at what is free on a hive's accelerators
	askedKept   = 5 * time.Second        // how long a request that found nobody counts as waiting
	startedKept = 10_000                 // workers of which it is remembered how they were started
	maxBegun    = 8                      // workers that plans start at once on one device
)

// deploying is what a queen keeps for placement beside its registry.
type deploying struct {
	changed chan struct{} // buffered: another plan may be worth making

	mu       sync.Mutex // guards the fields below
	wishes   []*wish
	pending  map[string]pending
	ending   map[string]bool
	used     map[string]usage
	fresh    map[string]measured
	started  map[string]started       // how workers were started, and why
	order    []string                 // of started
	asked    map[string]time.Duration // when a request last found nobody who serves a deployment
	pressure map[string]placement.Pressure
	slots    map[registry.Slot]bool // where plans began workers
	plan     placement.Plan
	planned  time.Duration // when it was made; 0: never
	fetching map[string]bool
	peaks    *peaks
}

// started is what is remembered of how a worker came to be.
type started struct {
	context int
	slots   int
	engine  string
	reason  string
}

func newDeploying() *deploying {
	return &deploying{changed: make(chan struct{}, 1), pending: map[string]pending{}, ending: map[string]bool{}, used: map[string]usage{}, fresh: map[string]measured{},
		started: map[string]started{}, asked: map[string]time.Duration{}, pressure: map[string]placement.Pressure{}, slots: map[registry.Slot]bool{}, fetching: map[string]bool{}}
}

// wake has another plan made soon.
func (d *deploying) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// note looks whether something happened that may change a plan.
func (d *deploying) note(fx []registry.Effect) {
	for _, e := range fx {
		switch e.Kind {
		case registry.EffectDropped, registry.EffectEjected, registry.EffectReturned, registry.EffectPaused:
		default:
			d.wake()
			return
		}
	}
}

// remember keeps how a worker was started.
func (d *deploying) remember(workerID string, s started) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.started[workerID]; !ok {
		d.order = append(d.order, workerID)
		if len(d.order) > startedKept {
			delete(d.started, d.order[0])
			d.order = slices.Delete(d.order, 0, 1)
		}
	}
	d.started[workerID] = s
}

func (d *deploying) reason(workerID string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.started[workerID].reason
}

// models are the names that deployments give to what they serve.
func (d *deploying) models() []Model {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []Model
	for _, w := range d.wishes {
		if w.Model != w.Source {
			out = append(out, Model{Name: w.Model, Source: w.Source, Aliases: w.Aliases})
		}
	}
	return out
}

// readWishes reads the deployments in force. One that cannot be read is told of and left out.
func (q *Queen) readWishes() {
	var wishes []*wish
	for _, d := range q.book.deployments() {
		w, err := newWish(d)
		if err == nil {
			err = checkDeployments([]contract.Deployment{d}) // another queen may have written it
		}
		if err != nil {
			q.log.Error("a deployment cannot be read and is left alone", "deployment", d.Name, "error", err.Error())
			continue
		}
		wishes = append(wishes, w)
	}
	q.deploy.mu.Lock()
	defer q.deploy.mu.Unlock()
	q.deploy.wishes = wishes
	for name := range q.deploy.pressure {
		if !slices.ContainsFunc(wishes, func(w *wish) bool { return w.Name == name }) {
			delete(q.deploy.pressure, name)
			delete(q.deploy.asked, name)
		}
	}
}

// wish returns a deployment in force by its name; nil: there is none.
func (d *deploying) wish(name string) *wish {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.wishes {
		if w.Name == name {
			return w
		}
	}
	return nil
}

// wishOf returns the deployment of a worker; nil: it is of none.
func (q *Queen) wishOf(workerID string) *wish {
	if w, ok := q.Snapshot().Worker(workerID); ok {
		if name, _, onDemand := replicaOf(w.Info.SpawnKey); name != "" && !onDemand {
			return q.deploy.wish(name)
		}
	}
	return nil
}

// wishFor returns the deployment that serves a model, by its id or source: that of the highest priority.
func (q *Queen) wishFor(dir *directory, key string) *wish {
	q.deploy.mu.Lock()
	defer q.deploy.mu.Unlock()
	var best *wish
	for _, w := range q.deploy.wishes {
		if (w.Source == key || dir.modelOf(w) == key) && (best == nil || w.Priority > best.Priority) {
			best = w
		}
	}
	return best
}

// planned reports whether plans decide about what runs in a slot: where a worker of a deployment ended or fell silent, and none of others'.
func (q *Queen) planned(slot registry.Slot) bool {
	q.deploy.mu.Lock()
	ours := q.deploy.slots[slot]
	q.deploy.mu.Unlock()
	q.mu.Lock()
	s := q.machine.Snapshot(q.now())
	q.mu.Unlock()
	found := false
	for i := range s.Workers {
		w := &s.Workers[i]
		if w.Exit == nil && w.Liveness != contract.LivenessLost || (registry.Slot{ModelID: w.Info.ModelID, HiveID: w.Info.HiveID, Device: w.Info.Device}) != slot {
			continue
		}
		name, _, onDemand := replicaOf(w.Info.SpawnKey)
		if w.Info.SpawnKey == "" {
			q.deploy.mu.Lock()
			b := q.deploy.pending[w.Info.ID]
			q.deploy.mu.Unlock()
			name, onDemand = b.action.Deployment, b.onDemand
		}
		if name == "" || onDemand {
			return false
		}
		found = true
	}
	return found || ours
}

// place plans and carries out what is this queen's, until ctx ends.
func (q *Queen) place(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	dirty := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			dirty = q.observe() || dirty
		case <-q.deploy.changed:
			dirty = true
		}
		if !q.acquainted() {
			continue
		}
		q.deploy.mu.Lock()
		since, next := q.now()-q.deploy.planned, q.deploy.plan.Next
		q.deploy.mu.Unlock()
		switch {
		case dirty && since < planGap:
			time.AfterFunc(planGap-since, q.deploy.wake)
		case dirty || since >= planEvery || next != 0 && q.now() >= next:
			dirty = false
			q.replan(ctx)
		}
	}
}

// acquainted reports whether the queen knows what runs: it has asked every hive and every worker there, and there are no others that may
// yet be heard of, or it has listened for long enough.
func (q *Queen) acquainted() bool {
	if q.company.leaves() {
		return false
	}
	if !q.young() {
		return true
	}
	if q.o.Company || slices.ContainsFunc(q.o.Members(), func(m contract.Member) bool { return !m.Self }) {
		return false
	}
	links := *q.links.Load()
	return len(links) > 0 && !slices.ContainsFunc(links, func(l *link) bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !l.reported || !l.greeted
	})
}

// observe notes who works and where requests wait. It reports whether that makes a plan worth making.
func (q *Queen) observe() (changed bool) {
	s, now, dir := q.Snapshot(), q.now(), q.dir.Load()
	queued := q.company.sum(func(st contract.QueenState) map[string]int { return st.Queued })
	for name, n := range q.o.Queued() {
		queued[name] += n
	}
	d := q.deploy
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range s.Workers {
		w := &s.Workers[i].Info
		u, known := d.used[w.ID]
		works := w.SlotsBusy > 0 || w.QueueDepth > 0 || q.o.InFlight(w.ID) > 0
		if s.Workers[i].ReadyAt != 0 && (works || known && u.progress != w.Progress && w.Status != contract.StatusStarting && u.progress != 0) {
			u.at = now
		}
		u.progress = w.Progress
		d.used[w.ID] = u
	}
	if len(d.used) > len(s.Workers) { // each of s has an entry
		for id := range d.used {
			if _, ok := s.Worker(id); !ok {
				delete(d.used, id)
			}
		}
	}
	q.notePeaks(s)
	type load struct{ replicas, slots, busy, waiting int }
	loads := make(map[string]*load, len(d.wishes))
	for _, w := range d.wishes {
		loads[w.Name] = &load{waiting: queued[dir.modelOf(w)]}
	}
	for i := range s.Workers {
		k := &s.Workers[i]
		name, _, onDemand := replicaOf(k.Info.SpawnKey)
		l := loads[name]
		if l == nil || onDemand || stateOf(k, d.ending[k.Info.ID]) != placement.StateReady {
			continue
		}
		l.replicas, l.slots = l.replicas+1, l.slots+max(k.Info.Slots, 1)
		l.busy, l.waiting = l.busy+max(k.Info.SlotsBusy, q.o.InFlight(k.Info.ID)-k.Info.QueueDepth), l.waiting+k.Info.QueueDepth
	}
	for _, w := range d.wishes {
		l := loads[w.Name]
		p := d.pressure[w.Name].Observe(now, l.replicas, l.slots, l.busy, l.waiting)
		changed = changed || p != d.pressure[w.Name]
		d.pressure[w.Name] = p
	}
	return changed
}

// picture is what the queen knows now.
func (q *Queen) picture() *picture {
	s, dir, now := q.Snapshot(), q.dir.Load(), q.now()
	p := &picture{now: now, queens: q.company.owners(), snap: s, dir: dir, removed: q.book.removed(), drained: q.book.drained(), verdict: q.verdict,
		waiting: q.company.sum(func(st contract.QueenState) map[string]int { return st.Waiting }), inFlight: q.o.InFlight, reserve: q.o.Reserve, idleTTL: q.o.IdleTTL, params: q.o.Placement}
	queued, others := q.o.Queued(), q.company.pending()
	d := q.deploy
	d.mu.Lock()
	defer d.mu.Unlock()
	p.wishes, p.pending, p.ending, p.used = d.wishes, maps.Clone(d.pending), maps.Clone(d.ending), maps.Clone(d.used)
	p.fresh, p.pressure, p.peaks = maps.Clone(d.fresh), maps.Clone(d.pressure), d.peaks.list()
	began := make(map[string]int, len(d.started))
	for id, v := range d.started {
		began[id] = v.context
	}
	p.begun = func(id string) int { return began[id] }
	for id, b := range others {
		if _, own := p.pending[id]; !own {
			p.pending[id] = b
		}
	}
	for name, n := range d.waiting(s, dir, now, queued) {
		p.waiting[name] += n
	}
	return p
}

// waiting counts the requests at this queen that wait because nobody serves, by deployment. d.mu is held.
func (d *deploying) waiting(s *registry.Snapshot, dir *directory, now time.Duration, queued map[string]int) map[string]int {
	out := map[string]int{}
	for _, w := range d.wishes {
		id := dir.modelOf(w)
		if len(s.Serving(id)) > 0 {
			delete(d.asked, w.Name) // those who asked are served now
			continue
		}
		n := max(queued[id], queued[w.Model])
		if at, ok := d.asked[w.Name]; ok && now-at <= askedKept {
			n = max(n, 1)
		}
		if n > 0 {
			out[w.Name] = n
		}
	}
	return out
}

// replan makes a plan and begins what is this queen's in it.
func (q *Queen) replan(ctx context.Context) {
	p := q.picture()
	if len(p.wishes) == 0 && len(p.removed) == 0 && !slices.ContainsFunc(p.snap.Workers, func(w registry.Worker) bool {
		_, _, onDemand := replicaOf(w.Info.SpawnKey)
		return onDemand
	}) {
		q.deploy.mu.Lock()
		q.deploy.plan, q.deploy.planned = placement.Plan{}, q.now()
		q.deploy.mu.Unlock()
		return
	}
	if q.measure(ctx, p) {
		p = q.picture()
	}
	plan := placement.Make(p.input())
	q.deploy.mu.Lock()
	old := q.deploy.plan
	q.deploy.plan, q.deploy.planned = plan, q.now()
	q.deploy.mu.Unlock()
	for _, s := range plan.Shortfalls {
		if !slices.ContainsFunc(old.Shortfalls, func(o placement.Shortfall) bool { return o.Deployment == s.Deployment && o.Code == s.Code }) {
			q.log.Warn("a deployment is short of workers", "deployment", s.Deployment, "missing", s.Missing, "code", s.Code, "reason", s.Reason)
		}
	}
	begun := map[placement.Place]int{} // the next ones have their turn when one of these serves or has failed: each makes another plan
	for _, b := range p.pending {
		if !b.fetching {
			begun[b.action.Place]++
		}
	}
	for _, a := range plan.Actions {
		if a.Owner != q.o.NodeID || len(a.After) > 0 {
			continue
		}
		if (a.Kind == placement.Spawn || a.Kind == placement.Surge) && begun[a.Place] >= maxBegun {
			continue
		}
		if q.carryOut(p, a) {
			begun[a.Place]++
		}
	}
	q.notify()
}
