package placement

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// start plans a worker for a replica. essential says that the replica must be: others may have to make room for it, and its lack is a
// shortfall. It returns false where no other replica has a place either.
func (pl *planner) start(d *deployment, n int, code string, essential bool) bool {
	if pl.blocked(d, n, essential) {
		return d.model != nil && pl.loops[d.Model] < 2
	}
	c, why := pl.choose(d, n, true, essential)
	if c == nil {
		if essential {
			pl.shortOf(d, why)
		}
		return false
	}
	pl.begin(d, n, Spawn, code, c)
	return true
}

// blocked tells the shortfall of a deployment that cannot be placed anywhere for the time being.
func (pl *planner) blocked(d *deployment, n int, essential bool) bool {
	tell := func(code, reason string, until time.Duration) bool {
		if until != 0 {
			pl.wake(until)
			until -= pl.in.Now
		}
		if essential {
			pl.short(d, 1, code, reason, until)
		}
		return true
	}
	if d.model == nil {
		return tell(ShortNoModel, fmt.Sprintf("%s cannot be placed: its model %s is not known; `apiary model list` shows those that are.", d.Name, d.Model), 0)
	}
	if pl.loops[d.Model] > 1 {
		// What crashes everywhere is the model's or the engine's fault, and one more device would not show anything new.
		until := time.Duration(0)
		for _, p := range pl.past {
			if p.Model == d.Model && p.Loop && p.Until > pl.in.Now && (until == 0 || p.Until < until) {
				until = p.Until
			}
		}
		return tell(ShortCrashLoop, fmt.Sprintf("The workers of %s keep ending on %s, so none is started by itself for another %s; `apiary worker logs` shows why they end.",
			d.Name, count(pl.loops[d.Model], "device"), short(until-pl.in.Now)), until)
	}
	// A replica whose worker crashed waits for its turn where it was: elsewhere it would crash just the same, only sooner.
	if r := d.replicas[n]; r != nil {
		for _, w := range r.gone {
			at := Place{w.Hive, first(w.Devices)}
			p, v := pl.pastOf(d, at), pl.byPlace[at]
			if w.State == StateFailed && p != nil && v != nil && p.Until > pl.in.Now && pl.filter(d, n, v) == ShortBackOff {
				return tell(ShortBackOff, fmt.Sprintf("%s is started again on %s in %s, because its last worker failed (%s); `apiary job list` says more.", Key(d.Name, n), pl.name(at),
					short(p.Until-pl.in.Now), orElse(p.Reason, "no reason given")), p.Until)
			}
		}
	}
	// Where nobody shows that the model works, it is the model that waits, not the device: else it would crash everywhere in turn.
	if d.serving > 0 {
		return false
	}
	var wait *Past
	for i := range pl.in.Past {
		p := &pl.in.Past[i]
		v := pl.byPlace[p.Place]
		if p.Model == d.Model && p.Crashed && p.Until > pl.in.Now && v != nil && pl.filter(d, n, v) == ShortBackOff &&
			(wait == nil || cmp.Or(cmp.Compare(p.Until, wait.Until), cmp.Compare(v.index, pl.byPlace[wait.Place].index)) < 0) {
			wait = p
		}
	}
	if wait != nil {
		return tell(ShortBackOff, fmt.Sprintf("%s is started again on %s in %s, because its last worker failed (%s); `apiary job list` says more.", Key(d.Name, n), pl.name(wait.Place),
			short(wait.Until-pl.in.Now), orElse(wait.Reason, "no reason given")), wait.Until)
	}
	return false
}

// begin plans a worker at a candidate, with the ends that it needs.
func (pl *planner) begin(d *deployment, n int, kind Kind, code string, c *candidate) {
	key := Key(d.Name, n)
	owner := Owner(key, pl.in.Queens)
	for _, w := range c.evict {
		vd := pl.byName[w.Deployment]
		pl.stop(Action{Kind: Evict, Code: CodeMakesRoom, For: d.Name, Owner: owner, Reason: fmt.Sprintf("Worker %s of %s is evicted to make room for %s on %s: it has been idle for %s and its priority is %d, that of %s %d.",
			w.ID, vd.Name, d.Name, pl.name(c.v.place), short(pl.idle(w)), vd.Priority, d.Name, d.Priority)}, w)
	}
	a := Action{Kind: kind, Owner: owner, Deployment: d.Name, Replica: n, Key: key, Code: code, Place: c.v.place, Context: c.context, Slots: d.Slots,
		Need: amount(c.need), Free: amount(c.room), Fetch: c.fetch, Generation: pl.generation(d, n, c.v.place)}
	if c.fetch > 0 {
		a.From = pl.holder(d.Model)
	}
	if c.tier != tierNow {
		a.After = pl.leavers(c, key)
	}
	a.Reason = pl.startText(d, n, code, c, &a)
	w := &Worker{Deployment: d.Name, Replica: n, Generation: a.Generation, Model: d.Model, Engine: d.Engine, Hive: c.v.place.Hive,
		Devices: []string{c.v.place.Device}, Spec: d.Spec, Context: c.context, Slots: d.Slots, State: StateStarting, Memory: a.Need}
	if c.again != nil {
		c.v.pool.begin(max(0, c.need-pl.held(c.again)))
	} else {
		c.v.pool.begin(c.need)
	}
	d.starting++
	pl.enlist(d, w)
	pl.plan.Actions = append(pl.plan.Actions, a)
}

// generation is that of the next worker of a replica. Where a silent worker may still run on the device, its own generation makes the hive
// return it instead of starting a second one.
func (pl *planner) generation(d *deployment, n int, at Place) int64 {
	newest := d.newestOf(n)
	if newest != nil && pl.again(d, n, newest, at) {
		return newest.Generation
	}
	if newest == nil {
		return 1
	}
	return newest.Generation + 1
}

// leavers names the draining workers whose end gives a candidate its room: those of the replica itself first, and no more than it takes.
func (pl *planner) leavers(c *candidate, key string) []string {
	room := c.v.pool.room()
	if c.again != nil {
		room += pl.held(c.again)
	}
	var out []string
	for _, own := range [2]bool{true, false} {
		for _, w := range c.v.pool.workers {
			if w.State == StateDraining && (Key(w.Deployment, w.Replica) == key) == own && room < c.need {
				out = append(out, w.ID)
				room += pl.held(w)
			}
		}
	}
	slices.Sort(out)
	return out
}

// newestOf is the replica's worker of the newest generation; nil: it had none.
func (d *deployment) newestOf(n int) *Worker {
	r := d.replicas[n]
	if r == nil {
		return nil
	}
	var newest *Worker
	for _, list := range [][]*Worker{r.current, r.stale, r.gone, r.leaving} {
		for _, w := range list {
			if newest == nil || compareWorkers(w, newest) > 0 {
				newest = w
			}
		}
	}
	return newest
}

// again reports whether a spawn at a place would mean the silent worker w, the newest of its replica, that is there.
func (pl *planner) again(d *deployment, n int, w *Worker, at Place) bool {
	return (w.State == StateLost || w.State == StateDown) && w.Hive == at.Hive && len(w.Devices) == 1 && w.Devices[0] == at.Device &&
		w.Spec == d.Spec && w == d.newestOf(n)
}

// holder returns a hive that can give the model to others; empty: there is none.
func (pl *planner) holder(model string) string {
	best := ""
	for _, h := range pl.hives {
		if h.Holds[model] && (h.Liveness == contract.LivenessAlive || h.Liveness == contract.LivenessStale) && (best == "" || h.ID < best) {
			best = h.ID
		}
	}
	return best
}

// change replaces one worker of a deployment that is to be replaced: its successor starts beside it where there is room, and in its
// place where there is not.
func (pl *planner) change(d *deployment) {
	var old *Worker
	for _, n := range d.order {
		r := d.replicas[n]
		if len(r.stale) > 0 && len(r.current) > 0 || !r.present() && len(r.leaving) > 0 {
			return // one at a time
		}
		if len(r.stale) > 0 && (old == nil || old.State == StateReady && r.stale[0].State != StateReady) {
			old = r.stale[0]
		}
	}
	if old == nil || d.starting > 0 {
		return
	}
	code := pl.whyStale(d, old)
	if d.present() > pl.wanted(d) && d.Waiting == 0 && old.State == StateReady && pl.idle(old) >= pl.p.EvictIdle {
		pl.stop(Action{Code: code, Reason: fmt.Sprintf("Worker %s is drained and not replaced, because nobody used it for %s: %s.", old.ID, short(pl.idle(old)), pl.staleText(d, old, code))}, old)
		return
	}
	if pl.blocked(d, old.Replica, true) {
		return
	}
	c, why := pl.choose(d, old.Replica, false, true)
	if c != nil {
		pl.begin(d, old.Replica, Surge, code, c)
		return
	}
	if v := pl.byPlace[Place{old.Hive, first(old.Devices)}]; v != nil && old.State == StateReady {
		held := pl.held(old)
		v.pool.leave(held)
		c, no := pl.consider(d, old.Replica, v, false, true)
		v.pool.stay(held)
		if no == "" {
			// Once it is gone nobody may be left to show that the model works: what would keep its successor waiting then, keeps it now.
			d.serving--
			waits := pl.blocked(d, old.Replica, true)
			d.serving++
			if waits {
				return
			}
			if d.present() > pl.wanted(d) && d.Waiting == 0 {
				pl.stop(Action{Code: code, Reason: fmt.Sprintf("Worker %s is drained, and its successor starts when one is needed, because there is no room for both: %s.",
					old.ID, pl.staleText(d, old, code))}, old)
				return
			}
			down := "the other replicas serve meanwhile"
			if d.serving < 2 {
				down = "nobody serves it until the new one is ready"
			}
			pl.stop(Action{Code: code, Reason: fmt.Sprintf("Worker %s is drained before its successor starts, because there is no room for both: %s; %s.", old.ID,
				pl.staleText(d, old, code), down)}, old)
			pl.begin(d, old.Replica, Spawn, code, &c)
			return
		}
	}
	pl.shortOf(d, why)
}
