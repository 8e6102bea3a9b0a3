package placement

import (
	"cmp"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
)

// Why a device is not considered, beside the codes of shortfalls.
const (
	notDrained   = "hive_drained"
	notSilent    = "hive_silent"
	notExcluded  = "excluded"
	notGPU       = "not_an_accelerator"
	notTwice     = "has_one"
	notKnown     = "memory_unknown"
	notRemembers = "was_killed_for_memory"
)

// filter says why a replica of the deployment cannot be on a device, whatever memory is free there; empty: it can.
func (pl *planner) filter(d *deployment, n int, v *dev) string {
	h := v.hive
	switch {
	case h.Drained:
		return notDrained
	case h.Liveness != contract.LivenessAlive && h.Liveness != contract.LivenessStale:
		return notSilent
	case v.d.Fenced != "":
		return ShortFenced
	case d.opinion(v).Excluded != "":
		return notExcluded
	}
	if d.PerGPU {
		if !v.accelerator() {
			return notGPU
		}
		if slices.ContainsFunc(d.at[v.place], func(other int) bool { return other != n }) {
			return notTwice
		}
	}
	if p := pl.pastOf(d, v.place); p != nil {
		switch {
		case len(pl.contexts(d, p)) == 0:
			return notRemembers
		case p.Loop && p.Until > pl.in.Now:
			return ShortCrashLoop
		case p.Until > pl.in.Now:
			return ShortBackOff
		}
	}
	if !v.pool.known && d.model.Estimate.size(0, 0) > 0 {
		return notKnown
	}
	return ""
}

func (pl *planner) pastOf(d *deployment, at Place) *Past { return pl.past[pastKey{d.Model, at}] }

// How soon a candidate has room.
const (
	tierNow   = iota
	tierAfter // once workers that are being drained are gone
	tierEvict
)

// candidate is a device on which a worker would fit.
type candidate struct {
	v       *dev
	context int
	need    int64
	room    int64
	tier    int
	again   *Worker // the replica's silent worker, which may still be there; nil: there is none
	shrunk  bool    // with a smaller context, after a kill for want of memory
	prefer  bool
	onHive  int // replicas of the deployment on the hive
	fetch   contract.Bytes
	lacks   bool // the engine is not there
	evict   []*Worker
	breaks  bool    // one of them is the last that its deployment must have
	rank    int     // the highest priority among those evicted
	value   float64 // what is lost with them
}

// consider looks at one device. code says why it is none; need is set with ShortDoesNotFit, to the least that would do.
func (pl *planner) consider(d *deployment, n int, v *dev, evict, essential bool) (c candidate, code string) {
	if code = pl.filter(d, n, v); code != "" {
		return c, code
	}
	past := pl.pastOf(d, v.place)
	c = candidate{v: v, shrunk: past.killed(d), prefer: d.opinion(v).Prefer, onHive: d.onHive[v.place.Hive], lacks: d.Engine != "" && !v.hive.Holds[d.Engine]}
	if !v.hive.Holds[d.Model] {
		c.fetch = d.model.Bytes
	}
	own := int64(0)
	if w := pl.silent(d, n, v); w != nil {
		own, c.again = pl.held(w), w
	}
	for tier, room := range [2]int64{v.pool.room() + own, v.pool.later() + own} {
		if tier == tierAfter && v.pool.leaving == 0 {
			break
		}
		if c.context, c.need = pl.fit(d, v.place, past, room); c.context >= 0 {
			c.tier, c.room = tier, room
			return c, ""
		}
	}
	if evict {
		later := v.pool.later() + own
		c.evict = pl.victims(d, v, c.need-later, essential, false)
		if len(c.evict) == 0 && essential {
			c.evict = pl.victims(d, v, c.need-later, essential, true)
			c.breaks = true
		}
		if len(c.evict) > 0 {
			room := later
			for _, w := range c.evict {
				room += pl.held(w)
				c.rank = max(c.rank, pl.byName[w.Deployment].Priority)
				c.value += pl.worth(w)
			}
			c.context, c.need = pl.fit(d, v.place, past, room)
			c.tier, c.room = tierEvict, room
			return c, ""
		}
	}
	c.room = v.pool.room() + own
	return c, ShortDoesNotFit
}

// silent is the replica's own worker on a device that is given up because it is silent: a spawn there finds it again, or takes its
// place and its memory. nil: there is none.
func (pl *planner) silent(d *deployment, n int, v *dev) *Worker {
	if w := d.newestOf(n); w != nil && pl.again(d, n, w, v.place) && slices.Contains(d.replicas[n].gone, w) {
		return w
	}
	return nil
}

// better orders candidates: those that have room before those that must wait for it, and these before those that cost others their
// place; those where a worker of the replica fell silent, or one was killed for want of memory, last; then what the deployment prefers, the hives with the fewest replicas where it is to be spread, accelerators, hives that hold
// the bytes; then the fullest device that will do, or the emptiest for one that is spread.
func (d *deployment) better(a, b *candidate) int {
	yes := func(x, y bool) int { // true first
		switch {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	}
	c := cmp.Or(cmp.Compare(a.tier, b.tier), yes(a.again == nil, b.again == nil), yes(!a.shrunk, !b.shrunk), yes(!a.breaks, !b.breaks), cmp.Compare(a.rank, b.rank), yes(a.prefer, b.prefer))
	if c == 0 && d.Spread {
		c = cmp.Compare(a.onHive, b.onHive)
	}
	c = cmp.Or(c, yes(a.v.accelerator(), b.v.accelerator()))
	if c == 0 && d.Spread {
		c = cmp.Compare(len(d.at[a.v.place]), len(d.at[b.v.place]))
	}
	c = cmp.Or(c, cmp.Compare(a.value, b.value), cmp.Compare(a.fetch, b.fetch), yes(!a.lacks, !b.lacks))
	left, other := a.room-a.need, b.room-b.need
	if d.Spread {
		left, other = other, left
	}
	return cmp.Or(c, cmp.Compare(left, other), cmp.Compare(a.v.pool.begun, b.v.pool.begun), cmp.Compare(a.v.index, b.v.index))
}

// choose returns the best device for a replica, or nil and why there is none.
func (pl *planner) choose(d *deployment, n int, evict, essential bool) (*candidate, refusals) {
	var best *candidate
	var why refusals
	for _, v := range pl.devs {
		// Evicting is looked at only where nothing else works: it is dear.
		c, code := pl.consider(d, n, v, false, essential)
		if code != "" {
			why.add(pl, d, v, code, c)
		} else if best == nil || d.better(&c, best) < 0 {
			best = &c
		}
	}
	if best != nil || !evict || why.memory == 0 {
		return best, why
	}
	for _, v := range pl.devs {
		if c, code := pl.consider(d, n, v, true, essential); code == "" && (best == nil || d.better(&c, best) < 0) {
			best = &c
		}
	}
	return best, why
}

// worth is what is lost with an idle worker: the cost of loading it again, which falls with the time in which nobody missed it. A model
// that the hive would have to fetch again costs ten times as much.
func (pl *planner) worth(w *Worker) float64 {
	bytes := float64(pl.held(w))
	if h := pl.hives[w.Hive]; h != nil && !h.Holds[w.Model] {
		bytes *= 10
	}
	return bytes / (1 + pl.idle(w).Seconds())
}

// victims chooses the workers whose end would give the deployment so many bytes more on a device: the lowest priority first, then
// those that are worth least, and none of them in vain. It is empty where that cannot be. Workers that are busy, pinned, of a
// higher priority, started by a person or of deployments that are not known stay; of the same priority only those go that nobody
// used for a while, and only for a replica that must be. breaks allows that a lower priority loses more than it can spare, which
// is for a replica that must be too.
func (pl *planner) victims(d *deployment, v *dev, lack int64, essential, breaks bool) []*Worker {
	type victim struct {
		w     *Worker
		vd    *deployment
		bytes int64
		value float64
	}
	var all []victim
	for _, w := range v.pool.workers {
		vd := pl.byName[w.Deployment]
		if vd == nil || vd == d || w.State != StateReady || w.Busy > 0 || w.Queue > 0 || vd.Pinned || vd.Priority > d.Priority {
			continue
		}
		if vd.Priority == d.Priority && (!essential || vd.Waiting > 0 || pl.idle(w) < pl.p.EvictIdle) {
			if essential {
				pl.wake(max(w.LastUsed, w.ReadyAt) + pl.p.EvictIdle)
			}
			continue
		}
		all = append(all, victim{w, vd, pl.held(w), pl.worth(w)})
	}
	slices.SortFunc(all, func(a, b victim) int {
		return cmp.Or(cmp.Compare(a.vd.Priority, b.vd.Priority), cmp.Compare(a.value, b.value), strings.Compare(a.w.ID, b.w.ID))
	})
	taken := map[*deployment]int{}
	var out []victim
	for _, x := range all {
		if lack <= 0 {
			break
		}
		spare := x.vd.present() - taken[x.vd] - pl.wanted(x.vd)
		if spare <= 0 && (x.vd.Priority == d.Priority || !breaks) || x.bytes <= 0 {
			continue
		}
		taken[x.vd]++
		out = append(out, x)
		lack -= x.bytes
	}
	if lack > 0 {
		return nil
	}
	for i := len(out) - 1; i >= 0; i-- { // the last ones may have made earlier ones needless
		if out[i].bytes+lack <= 0 {
			lack += out[i].bytes
			out = slices.Delete(out, i, i+1)
		}
	}
	ws := make([]*Worker, 0, len(out))
	for _, x := range out {
		ws = append(ws, x.w)
	}
	sortWorkers(ws)
	return ws
}
