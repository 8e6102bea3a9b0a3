package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Kind says what an action does.
type Kind string

// Kinds of actions.
const (
	Spawn Kind = "spawn" // start a worker
	Surge Kind = "surge" // start the successor of a worker that serves until then
	Stop  Kind = "stop"  // drain a worker, then end it
	Evict Kind = "evict" // the same, to make room for For
)

// Action is one step of a plan.
type Action struct {
	Kind       Kind
	Owner      string // the queen that carries it out
	Deployment string
	Replica    int
	Key        string // of the replica; a worker is spawned under it
	Code       string // stable: one of the Code constants
	Reason     string // one sentence

	// Of Spawn and Surge.
	Generation int64
	Place      Place
	Context    int // 0: the engine's choice
	Slots      int // 0: the engine's choice
	Need       contract.Bytes
	Free       contract.Bytes // what the place has for it, once After is gone
	Fetch      contract.Bytes // of the model, which is not there yet
	From       string         // a hive that has it; empty: only its origin, or nothing is fetched
	After      []string       // ids of workers that must be gone first

	// Of Stop and Evict.
	WorkerID string
	For      string // the deployment that gets the room
	Downtime bool   // nobody serves the deployment, which must be served, until its next worker is ready
}

// Codes of actions.
const (
	CodeReplicas  = "replicas"    // there are fewer than the deployment wants
	CodeReplace   = "replace"     // the replica's worker failed or is lost
	CodeDemand    = "demand"      // requests wait and nobody serves
	CodeQueue     = "queue"       // requests have queued for too long
	CodeChange    = staleSpec     // the deployment changed
	CodeDrained   = staleDrained  // the hive is being emptied
	CodeExcluded  = staleExcluded // the deployment's rules exclude the device
	CodeSurplus   = "surplus"     // the replica runs twice
	CodeIdle      = "idle"        // nobody used the worker
	CodeSlack     = "slack"       // fewer replicas do
	CodeTooMany   = "too_many"    // there are more than the deployment allows
	CodeRemoved   = "removed"     // the deployment was taken back
	CodeMakesRoom = "makes_room"  // for another deployment
)

// Shortfall is a wish that a plan cannot fulfil.
type Shortfall struct {
	Deployment string
	Missing    int // replicas
	Code       string
	Reason     string        // one sentence, with what to do
	RetryAfter time.Duration // when another look may help; 0: only a change does
}

// Codes of shortfalls.
const (
	ShortDoesNotFit = "does_not_fit"
	ShortNoHive     = "no_hive"
	ShortExcluded   = "excluded_everywhere"
	ShortCrashLoop  = "crashloop"
	ShortBackOff    = "back_off"
	ShortFenced     = "device_fenced"
	ShortDrained    = "hives_drained"
	ShortNoModel    = "model_not_found"
	ShortCutOff     = "cut_off"
)

// Plan is what is to be done, in this order: what ends comes before what is started in its place. Actions without After may be
// carried out at once and side by side.
type Plan struct {
	Actions    []Action
	Shortfalls []Shortfall   // ordered by priority and name of the deployment, one for each at most
	Next       time.Duration // when time alone makes another plan worth making; 0: never
}

// maxRounds bounds how often Make looks at what its own actions lead to.
const maxRounds = 8

// Make plans. With the actions of the plan begun, and nothing else changed, another plan has only those that wait for others.
func Make(in Input) Plan {
	var out Plan
	for round := 1; ; round++ {
		pl := newPlanner(&in)
		pl.run()
		var now, waiting []Action
		for _, a := range pl.plan.Actions {
			if len(a.After) == 0 {
				now = append(now, a)
			} else {
				waiting = append(waiting, a)
			}
		}
		out.Actions = append(out.Actions, now...)
		out.Shortfalls, out.Next = pl.plan.Shortfalls, pl.plan.Next
		if len(now) == 0 || round == maxRounds {
			out.Actions = append(out.Actions, waiting...)
			break
		}
		// What one deployment gives up another one may take that was looked at before: look again, as if all this had begun.
		in.Workers = pl.begun(now)
	}
	slices.SortStableFunc(out.Actions, func(a, b Action) int { return cmp.Compare(rank(a), rank(b)) })
	return out
}

// begun is the workers as they are once the actions have begun.
func (pl *planner) begun(actions []Action) []Worker {
	ends := map[string]bool{}
	out := make([]Worker, 0, len(pl.in.Workers)+len(actions))
	for _, a := range actions {
		switch a.Kind {
		case Spawn, Surge:
			d := pl.byName[a.Deployment]
			out = append(out, Worker{ID: fmt.Sprintf("%s (%d)", a.Key, a.Generation), Deployment: a.Deployment, Replica: a.Replica, Generation: a.Generation, Model: d.Model,
				Engine: d.Engine, Hive: a.Place.Hive, Devices: []string{a.Place.Device}, Spec: d.Spec, Context: a.Context, Slots: a.Slots, State: StateStarting, Memory: a.Need})
		case Stop, Evict:
			ends[a.WorkerID] = true
		}
	}
	for _, w := range pl.in.Workers {
		if ends[w.ID] {
			w.State = StateDraining
		}
		out = append(out, w)
	}
	return out
}

// run makes one plan, which does not know yet what it leads to.
func (pl *planner) run() {
	if pl.in.Panic {
		for _, d := range pl.deps {
			if n := pl.wanted(d) - d.present(); n > 0 {
				pl.short(d, n, ShortCutOff, fmt.Sprintf("Nothing is started for %s now: most hives fell silent at once, so this queen may be the one that is cut off.", d.Name), 0)
			}
		}
		return
	}
	pl.endRemoved()
	for _, d := range pl.deps {
		pl.endSurplus(d)
		pl.endOld(d)
		pl.shrink(d)
	}
	for _, d := range pl.deps {
		pl.resume(d)
	}
	for _, d := range pl.deps {
		pl.fill(d)
	}
	for _, d := range pl.deps {
		pl.change(d)
	}
	for _, d := range pl.deps {
		pl.grow(d)
	}
	slices.SortStableFunc(pl.plan.Shortfalls, func(a, b Shortfall) int {
		x, y := pl.byName[a.Deployment], pl.byName[b.Deployment]
		return cmp.Or(cmp.Compare(y.Priority, x.Priority), cmp.Compare(a.Deployment, b.Deployment))
	})
}

func rank(a Action) int {
	if a.Kind == Stop || a.Kind == Evict {
		return 0
	}
	return 1
}

// wanted is the number of replicas that the deployment should have, whatever its queue is. One that may have none keeps one that
// was in use when it failed.
func (pl *planner) wanted(d *deployment) int {
	n := pl.floor(d)
	if d.PerGPU || n > 0 {
		return n
	}
	if d.Waiting > 0 {
		return 1
	}
	for _, r := range d.replicas {
		for _, w := range r.gone {
			if until := max(w.LastUsed, w.ReadyAt) + d.IdleTTL; d.IdleTTL == 0 || pl.in.Now < until {
				pl.wake(until) // then nobody needs it any more
				return 1
			}
		}
	}
	return 0
}

// stop plans the end of a worker.
func (pl *planner) stop(a Action, w *Worker) {
	a.Deployment, a.Replica, a.Key, a.WorkerID = w.Deployment, w.Replica, Key(w.Deployment, w.Replica), w.ID
	if a.Kind == "" {
		a.Kind = Stop
	}
	if a.Owner == "" {
		a.Owner = Owner(a.Key, pl.in.Queens)
	}
	held := pl.held(w)
	for _, p := range pl.poolsOf(w) {
		p.leave(held)
	}
	if d := pl.byName[w.Deployment]; d != nil {
		r := d.replicas[w.Replica]
		gone := func(o *Worker) bool { return o == w }
		r.current, r.stale = slices.DeleteFunc(r.current, gone), slices.DeleteFunc(r.stale, gone)
		r.leaving = append(r.leaving, w)
		d.onHive[w.Hive]--
		at := Place{w.Hive, first(w.Devices)}
		if i := slices.Index(d.at[at], w.Replica); i >= 0 {
			d.at[at] = slices.Delete(d.at[at], i, i+1)
		}
		switch w.State {
		case StateReady:
			d.serving--
		case StateStarting:
			d.starting--
		}
		d.draining++
		a.Downtime = w.State == StateReady && d.serving == 0 && pl.wanted(d) > 0
	}
	w.State = StateDraining
	pl.plan.Actions = append(pl.plan.Actions, a)
}

// endRemoved ends the workers of deployments that were taken back.
func (pl *planner) endRemoved() {
	removed := map[string]bool{}
	for _, n := range pl.in.Removed {
		removed[n] = pl.byName[n] == nil
	}
	for _, w := range pl.workers {
		if removed[w.Deployment] && (w.State == StateStarting || w.State == StateReady) {
			pl.stop(Action{Code: CodeRemoved, Reason: fmt.Sprintf("Worker %s ends: the deployment %s was removed.", w.ID, w.Deployment)}, w)
		}
	}
}

// endSurplus ends the newer ones of the workers that run for one replica, as after a split, once one of them serves. Clients have
// their conversations with the older one.
func (pl *planner) endSurplus(d *deployment) {
	for _, n := range d.order {
		r := d.replicas[n]
		for _, list := range [][]*Worker{slices.Clone(r.current), slices.Clone(r.stale)} {
			i := slices.IndexFunc(list, func(w *Worker) bool { return w.State == StateReady })
			if i < 0 {
				continue
			}
			for j, w := range list {
				if j != i && (w.State == StateReady || w.State == StateStarting) {
					pl.stop(Action{Code: CodeSurplus, Reason: fmt.Sprintf("Worker %s is drained: worker %s, which is older, serves %s too.", w.ID, list[i].ID, Key(d.Name, n))}, w)
				}
			}
		}
	}
}

// endOld ends the workers whose successor has served for a while.
func (pl *planner) endOld(d *deployment) {
	for _, n := range d.order {
		r := d.replicas[n]
		i := slices.IndexFunc(r.current, func(w *Worker) bool { return w.State == StateReady })
		if i < 0 || len(r.stale) == 0 {
			continue
		}
		next := r.current[i]
		if pl.in.Now-next.ReadyAt < pl.p.Warm {
			pl.wake(next.ReadyAt + pl.p.Warm)
			continue
		}
		for _, w := range slices.Clone(r.stale) {
			if w.State == StateReady || w.State == StateStarting {
				code := pl.whyStale(d, w)
				pl.stop(Action{Code: code, Reason: fmt.Sprintf("Worker %s is drained: its successor %s has served for %s, and %s.", w.ID, next.ID,
					short(pl.in.Now-next.ReadyAt), pl.staleText(d, w, code))}, w)
			}
		}
	}
}

// shrink ends workers that are not needed.
func (pl *planner) shrink(d *deployment) {
	limit := pl.limit(d)
	for d.present() > limit {
		w := pl.dispensable(d)
		if w == nil {
			break
		}
		pl.stop(Action{Code: CodeTooMany, Reason: fmt.Sprintf("Worker %s is drained: %s has more than %s.", w.ID, d.Name, count(limit, "replica"))}, w)
	}
	if d.PerGPU {
		return
	}
	pl.unload(d)
	if s := d.Pressure.SlackSince; s != 0 && d.present() > max(d.Min, 1) && d.draining == 0 && d.starting == 0 {
		if pl.in.Now-s < pl.p.ScaleDown {
			pl.wake(s + pl.p.ScaleDown)
		} else if w := pl.dispensable(d); w != nil {
			pl.stop(Action{Code: CodeSlack, Reason: fmt.Sprintf("Worker %s is drained: for %s %s would have done for %s.", w.ID, short(pl.in.Now-s),
				count(d.present()-1, "replica"), d.Name)}, w)
		}
	}
}

// unload ends workers that nobody used for the idle TTL.
func (pl *planner) unload(d *deployment) {
	if d.IdleTTL <= 0 || d.Waiting > 0 || d.Pressure.QueuedSince != 0 {
		return
	}
	for _, n := range d.order {
		r := d.replicas[n]
		for _, w := range slices.Concat(r.stale, r.current) {
			if w.State != StateReady || w.Busy > 0 || w.Queue > 0 || d.present() <= d.Min {
				continue
			}
			if idle := pl.idle(w); idle < d.IdleTTL {
				pl.wake(pl.in.Now + d.IdleTTL - idle)
			} else if d.present() > pl.wanted(d) {
				pl.stop(Action{Code: CodeIdle, Reason: fmt.Sprintf("Worker %s is unloaded: nobody used %s for %s.", w.ID, d.Name, short(idle))}, w)
			}
		}
	}
}

// dispensable is the worker that the deployment misses least. It is chosen by what every queen sees alike: where two of them chose differently,
// each would leave it to the other.
func (pl *planner) dispensable(d *deployment) *Worker {
	var best *Worker
	rankOf := func(w *Worker) [3]int64 {
		out := [3]int64{0, int64(w.Busy + w.Queue), -int64(w.Replica)}
		switch {
		case w.State == StateStarting:
			out[0] = -2
		case pl.whyStale(d, w) != "":
			out[0] = -1
		}
		return out
	}
	for _, n := range d.order {
		r := d.replicas[n]
		all := slices.Concat(r.current, r.stale)
		if len(all) != 1 { // a replica in the middle of a change
			continue
		}
		if w := all[0]; w.State != StateDown {
			if a := rankOf(w); best == nil {
				best = w
			} else if b := rankOf(best); slices.Compare(a[:], b[:]) <= 0 {
				best = w
			}
		}
	}
	return best
}

// resume starts the successors of workers that end before them for want of room: that room is theirs, whoever else would like it.
func (pl *planner) resume(d *deployment) {
	for _, n := range d.order {
		r := d.replicas[n]
		if r.present() || d.present() >= min(pl.wanted(d), pl.limit(d)) {
			continue
		}
		for _, w := range r.leaving {
			if code := pl.whyStale(d, w); code != "" {
				pl.start(d, n, code, true)
				break
			}
		}
	}
}

// fill starts the replicas that are missing.
func (pl *planner) fill(d *deployment) {
	want := min(pl.wanted(d), pl.limit(d))
	defer func() {
		for i := range pl.plan.Shortfalls {
			if s := &pl.plan.Shortfalls[i]; s.Deployment == d.Name {
				s.Missing = want - d.present()
			}
		}
	}()
	tried := map[int]bool{}
	for range want - d.present() {
		n, r := d.vacant(tried)
		tried[n] = true
		code := CodeReplicas
		switch {
		case r != nil && len(r.gone) > 0:
			code = CodeReplace
		case d.Min == 0 && !d.PerGPU:
			code = CodeDemand
		}
		if !pl.start(d, n, code, true) {
			return
		}
	}
}

// vacant is the number of the next replica to start: the smallest that no worker has. It must not depend on who failed before: queens remember
// different ones, and where each wanted another number, each would leave it to the other.
func (d *deployment) vacant(not map[int]bool) (int, *replica) {
	for n := 0; ; n++ {
		if r := d.replicas[n]; !not[n] && (r == nil || !r.present()) {
			return n, r
		}
	}
}

// grow adds a replica where requests have queued.
func (pl *planner) grow(d *deployment) {
	since := d.Pressure.QueuedSince
	if d.PerGPU || since == 0 || d.serving == 0 || d.starting > 0 || d.draining > 0 || d.present() >= pl.limit(d) || d.short {
		return
	}
	if at := max(since+pl.p.ScaleUp, d.newest+pl.p.Settle); pl.in.Now < at {
		pl.wake(at)
		return
	}
	n, _ := d.vacant(nil)
	pl.start(d, n, CodeQueue, false)
}
