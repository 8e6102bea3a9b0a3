package queen

import (
	"maps"
	"math"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

// Bounds of what a queen says of its work, and of what is taken from others.
const (
	maxListed = 10_000 // of each kind
	maxWanted = 200
	maxTended = 2_000
)

// state is what this queen lets others know, with the next sequence.
func (c *company) state() contract.QueenState {
	c.making.Lock()
	defer c.making.Unlock()
	st := c.matters()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sequence++
	st.Sequence = c.sequence
	return st
}

// matters is what this queen lets others know.
func (c *company) matters() contract.QueenState {
	q := c.q
	st := contract.QueenState{NodeID: q.o.NodeID, Start: q.o.Start, Acquainted: q.acquainted(), Wishes: c.wishes()}
	s, dir, now := q.Snapshot(), q.dir.Load(), q.now()
	d := q.deploy
	d.mu.Lock()
	queued := q.o.Queued()
	st.Queued, st.Waiting = sayable(queued), sayable(d.waiting(s, dir, now, queued))
	for id, b := range d.pending {
		if t := b.tell(id); len(st.Pending) < maxListed && !wrongPending(t) {
			st.Pending = append(st.Pending, t)
		}
	}
	d.mu.Unlock()
	slices.SortFunc(st.Pending, func(a, b contract.PendingSpawn) int { return compareText(a.WorkerID, b.WorkerID) })
	ending := map[string]bool{}
	q.mu.Lock()
	for id, at := range q.deleted {
		if now-at <= deletedKept {
			ending[id] = true
		}
	}
	for slot := range q.recipes {
		if len(st.Tended) < maxTended {
			st.Tended = append(st.Tended, contract.TendedSlot{Model: slot.ModelID, HiveID: slot.HiveID, Device: slot.Device})
		}
	}
	q.mu.Unlock()
	slices.SortFunc(st.Tended, func(a, b contract.TendedSlot) int {
		return compareText(a.Model, b.Model, a.HiveID, b.HiveID, a.Device, b.Device)
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	st.Leaving = c.leaving
	maps.Copy(ending, c.drains)
	st.Draining = slices.Sorted(maps.Keys(ending))
	for name, w := range c.wanted {
		if now-w.at > askedKept {
			delete(c.wanted, name)
			continue
		}
		if st.Wanted == nil {
			st.Wanted = map[string]string{}
		}
		st.Wanted[name] = w.owner
	}
	return st
}

// compareText orders by the first pair of texts that differ.
func compareText(pairs ...string) int {
	for i := 0; i+1 < len(pairs); i += 2 {
		switch {
		case pairs[i] < pairs[i+1]:
			return -1
		case pairs[i] > pairs[i+1]:
			return 1
		}
	}
	return 0
}

// gist is a state with what is worth telling at once: not how many wait, only that some do.
func gist(st contract.QueenState) contract.QueenState {
	some := func(m map[string]int) map[string]int {
		out := map[string]int{}
		for k, n := range m {
			out[k] = min(n, 1)
		}
		return out
	}
	st.Waiting, st.Queued = some(st.Waiting), some(st.Queued)
	st.Wishes = slices.Clone(st.Wishes)
	for i := range st.Wishes {
		st.Wishes[i].RetryAfterMS = 0
	}
	return st
}

// coarse keeps small steps of progress from being told one by one.
func coarse(progress float64) float64 { return math.Floor(20*progress) / 20 }

// tell is what others are told of a worker that was begun.
func (b *pending) tell(id string) contract.PendingSpawn {
	a := b.action
	return contract.PendingSpawn{WorkerID: id, Deployment: a.Deployment, OnDemand: b.onDemand, Replica: a.Replica, Generation: a.Generation, Spec: b.spec, Model: b.model, Engine: b.engine,
		HiveID: a.Place.Hive, Device: a.Place.Device, Context: a.Context, Slots: a.Slots, Need: a.Need, JobID: b.jobID, Fetching: b.fetching, Progress: coarse(b.progress)}
}

// hearPending is a worker that another queen began.
func hearPending(t contract.PendingSpawn) pending {
	a := placement.Action{Kind: placement.Spawn, Deployment: t.Deployment, Replica: t.Replica, Generation: t.Generation, Place: placement.Place{Hive: t.HiveID, Device: t.Device},
		Context: t.Context, Slots: t.Slots, Need: t.Need, WorkerID: t.WorkerID}
	return pending{action: a, model: t.Model, engine: t.Engine, spec: t.Spec, onDemand: t.OnDemand, jobID: t.JobID, fetching: t.Fetching, progress: t.Progress}
}

// sayable leaves out what other queens would refuse together with all the rest: names are those that clients ask for.
func sayable(m map[string]int) map[string]int {
	out := make(map[string]int, len(m))
	for k, n := range m {
		if n >= 0 && !bad(k, true) && len(out) < maxListed {
			out[k] = min(n, maxCount)
		}
	}
	return out
}

// bad reports whether a text is none that a queen says.
func bad(s string, required bool) bool {
	return required && s == "" || len(s) > maxText || contract.HasHidden(s)
}

func wrongPending(p contract.PendingSpawn) bool {
	return !workerID.MatchString(p.WorkerID) || bad(p.Deployment, true) || bad(p.Model, true) || bad(p.Engine, false) || bad(p.HiveID, true) || bad(p.Device, true) || bad(p.Spec, false) || bad(p.JobID, false) ||
		p.Replica < 0 || p.Generation < 0 || p.Context < 0 || p.Slots < 0 || p.Need > maxMemory
}

// checkState refuses what no queen says.
func checkState(st contract.QueenState) error {
	wrong := func(field string) error {
		return fault.New(fault.Invalid, "invalid_sync", "The field %q of what a queen says is missing, or is not what it can be.", field).WithParam(field)
	}
	counts := func(m map[string]int) bool {
		for k, n := range m {
			if bad(k, true) || n < 0 || n > maxCount {
				return true
			}
		}
		return len(m) > maxListed
	}
	switch {
	case st.NodeID == "" || len(st.NodeID) > maxName || contract.HasHidden(st.NodeID):
		return wrong("state.node_id")
	case len(st.Start) > maxName || contract.HasHidden(st.Start):
		return wrong("state.start")
	case st.Sequence == 0:
		return wrong("state.sequence")
	case counts(st.Waiting):
		return wrong("state.waiting")
	case counts(st.Queued):
		return wrong("state.queued")
	case len(st.Draining) > maxListed || slices.ContainsFunc(st.Draining, func(id string) bool { return !workerID.MatchString(id) }):
		return wrong("state.draining")
	case len(st.Pending) > maxListed || slices.ContainsFunc(st.Pending, wrongPending):
		return wrong("state.pending")
	case len(st.Wanted) > maxWanted:
		return wrong("state.wanted")
	case len(st.Wishes) > maxListed || slices.ContainsFunc(st.Wishes, func(w contract.DemandState) bool {
		return bad(w.Name, true) || bad(w.JobID, false) || bad(w.State, true)
	}):
		return wrong("state.wishes")
	case len(st.Tended) > maxListed:
		return wrong("state.tended")
	}
	for name, owner := range st.Wanted {
		if bad(name, true) || bad(owner, true) {
			return wrong("state.wanted")
		}
	}
	return nil
}

// draining notes that this queen drains a worker, or no longer does. Another queen may drain it too.
func (q *Queen) draining(id string, on bool) {
	c := q.company
	c.mu.Lock()
	if delete(c.drains, id); on {
		c.drains[id] = true
	}
	on = on || c.others[id]
	c.mu.Unlock()
	q.step(registry.Draining{WorkerID: id, On: on})
	c.touch()
}

// forgetWorker notes that a worker has been ended on purpose.
func (q *Queen) forgetWorker(id string) {
	q.company.mu.Lock()
	delete(q.company.drains, id)
	q.company.mu.Unlock()
	q.step(registry.Deleted{WorkerID: id})
}

// takeDrains has the gateway send nothing to the workers that other queens drain, and again to those that they have given up to end.
func (c *company) takeDrains() {
	now := map[string]bool{}
	for _, st := range c.states() {
		for _, id := range st.Draining {
			now[id] = true
		}
	}
	type change struct {
		id string
		on bool
	}
	var todo []change
	s := c.q.Snapshot()
	c.mu.Lock()
	for id := range now {
		if w, ok := s.Worker(id); ok && !w.Draining && w.Exit == nil {
			todo = append(todo, change{id, true})
		}
	}
	for id := range c.others {
		if !now[id] && !c.drains[id] {
			todo = append(todo, change{id, false})
		}
	}
	c.others = now
	c.mu.Unlock()
	for _, t := range todo {
		c.q.step(registry.Draining{WorkerID: t.id, On: t.on})
	}
}

// ends reports whether another queen drains a worker, or has ended it within the last minute.
func (c *company) ends(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.others[id]
}

// owners are the node ids of the queens that carry out plans: those that are there and know what runs.
func (c *company) owners() []string {
	var out []string
	for _, st := range c.states() {
		if st.Acquainted {
			out = append(out, st.NodeID)
		}
	}
	if len(out) == 0 || c.q.acquainted() {
		out = append(out, c.q.o.NodeID)
	}
	slices.Sort(out)
	return out
}

// pending are the workers that other queens have begun.
func (c *company) pending() map[string]pending {
	out := map[string]pending{}
	for _, st := range c.states() {
		for _, t := range st.Pending {
			out[t.WorkerID] = hearPending(t)
		}
	}
	return out
}

// sum adds what the other queens count, by name.
func (c *company) sum(of func(contract.QueenState) map[string]int) map[string]int {
	out := map[string]int{}
	for _, st := range c.states() {
		for k, n := range of(st) {
			out[k] += n
		}
	}
	return out
}

// tends reports whether it is this queen that starts the worker of a slot again: of those that have started workers there and know how,
// one, or of all.
func (c *company) tends(slot registry.Slot) bool {
	own := c.q.o.NodeID
	c.q.mu.Lock()
	_, mine := c.q.recipes[slot]
	c.q.mu.Unlock()
	var all, know []string
	for _, st := range c.states() {
		all = append(all, st.NodeID)
		if slices.Contains(st.Tended, contract.TendedSlot{Model: slot.ModelID, HiveID: slot.HiveID, Device: slot.Device}) {
			know = append(know, st.NodeID)
		}
	}
	if mine {
		know = append(know, own)
	}
	if len(know) > 0 {
		all = know
	} else {
		all = append(all, own)
	}
	return placement.Owner(slot.ModelID+" "+slot.HiveID+" "+slot.Device, all) == own
}

// elsewhere passes a wish for a model that nobody serves to the queen that is to start it. ok is false where that is this one.
func (q *Queen) elsewhere(name, key string) (out registry.Demand, ok bool) {
	c := q.company
	states := c.states()
	if len(states) == 0 {
		return out, false
	}
	all := []string{q.o.NodeID}
	for _, st := range states {
		all = append(all, st.NodeID)
	}
	owner := placement.Owner(placement.Key(key, 0), all)
	if owner == q.o.NodeID {
		return out, false
	}
	i := slices.IndexFunc(states, func(st contract.QueenState) bool { return st.NodeID == owner })
	now := q.now()
	c.mu.Lock()
	_, known := c.wanted[name]
	if known || len(c.wanted) < maxWanted {
		c.wanted[name] = wanted{owner: owner, at: now}
	} else {
		ok = true
	}
	c.mu.Unlock()
	if ok { // too many at once; this one will be told later
		return registry.Demand{State: registry.DemandStarting, RetryAfter: retryLoad}, true
	}
	if !known {
		c.touch()
	}
	for _, w := range states[i].Wishes {
		if w.Name != name {
			continue
		}
		out = registry.Demand{State: w.State, JobID: w.JobID, Progress: w.Progress, RetryAfter: time.Duration(w.RetryAfterMS) * time.Millisecond}
		if w.Error != nil {
			if w.Error.Code == codeModelNotFound {
				return out, false // that queen's configuration does not name it
			}
			out.Err = fault.FromWire(w.Status, *w.Error, out.RetryAfter)
		}
		return out, true
	}
	return registry.Demand{State: registry.DemandStarting, RetryAfter: retrySoon}, true
}

// wishes says how what other queens want of this one stands, and begins it.
func (c *company) wishes() []contract.DemandState {
	names := map[string]bool{}
	for _, st := range c.states() {
		for name, owner := range st.Wanted {
			if owner == c.q.o.NodeID {
				names[name] = true
			}
		}
	}
	var out []contract.DemandState
	if c.leaves() {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		d := c.q.demand(name, false)
		w := contract.DemandState{Name: name, State: d.State, JobID: d.JobID, Progress: coarse(d.Progress), RetryAfterMS: d.RetryAfter.Milliseconds()}
		if d.Err != nil {
			e := fault.Wire(d.Err, "")
			w.Status, w.Error = fault.HTTPStatus(d.Err), &e
		}
		out = append(out, w)
	}
	return out
}

// members lists the agents of the cluster, with how the records of other queens stand.
func (q *Queen) members() []contract.Member {
	list := q.o.Members()
	digest := q.book.digest()
	for i := range list {
		m := &list[i]
		if m.Queen == "" || m.Self || m.State == contract.MemberLeft {
			continue
		}
		m.Records = contract.RecordsUnheard
		q.company.mu.Lock()
		p := q.company.peers[m.ID]
		q.company.mu.Unlock()
		if p == nil {
			continue
		}
		p.mu.Lock()
		switch {
		case !p.counts():
		case p.digest == digest:
			m.Records = contract.RecordsSame
		default:
			m.Records = contract.RecordsDifferent
		}
		p.mu.Unlock()
	}
	return list
}
