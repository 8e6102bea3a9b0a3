package placement

import (
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// pool is the memory of a device, or of several that share it.
type pool struct {
	known   bool
	total   int64 // less the reserve
	free    int64 // as measured, less the reserve; total where nobody measured
	freeAt  time.Duration
	used    int64 // by the workers here, those included that are yet to load
	unseen  int64 // the part of used that the measurement cannot have seen
	leaving int64 // the part of used that draining workers give back
	workers []*Worker
	begun   int // spawns of this plan
}

// room is what another worker may take now. It is negative where the pool is oversubscribed.
func (p *pool) room() int64 { return min(p.total-p.used, p.free-p.unseen) }

// later is what another worker may take once the draining ones are gone. What they were measured to take is free then.
func (p *pool) later() int64 { return p.room() + p.leaving }

// add counts a worker.
func (p *pool) add(w *Worker, bytes int64) {
	p.workers = append(p.workers, w)
	p.used += bytes
	seen := w.State != StateStarting && w.ReadyAt != 0 && w.ReadyAt <= p.freeAt
	if !seen {
		p.unseen += bytes
	}
	if w.State == StateDraining {
		p.leaving += bytes
	}
}

// leave marks a worker, which is there, as one that is being ended.
func (p *pool) leave(bytes int64) { p.leaving += bytes }

// stay takes the mark back.
func (p *pool) stay(bytes int64) { p.leaving -= bytes }

// begin counts a spawn of this plan.
func (p *pool) begin(bytes int64) {
	p.used += bytes
	p.unseen += bytes
	p.begun++
}

// mostBytes is more than any machine has, and so little that sums of it are none of less than nothing.
const mostBytes = 1 << 52

// size is what a worker with such a context and so many slots takes by the estimate, at most mostBytes.
func (e Estimate) size(context, slots int) int64 {
	if float64(e.Weights)+float64(e.Fixed)+float64(e.PerToken)*float64(max(context, 0))*float64(max(slots, 1)) >= mostBytes {
		return mostBytes
	}
	return int64(e.Weights) + int64(e.Fixed) + int64(e.PerToken)*int64(max(context, 0))*int64(max(slots, 1))
}

// Accuracy of what is said of a worker's memory, as a share.
const (
	accuracyMeasured  = 0.04 // such a worker was measured
	accuracyCorrected = 0.10 // others of its model and engine were
	accuracyEstimated = 0.20
)

// need is what a worker would take at a place, and how well that is known. A measured peak of the same kind of worker at the same
// place wins; other peaks of the model and engine correct the estimate by the largest factor seen, those of the place first.
func (pl *planner) need(d *deployment, at Place, context, slots int) (bytes int64, accuracy float64) {
	if slots == 0 {
		slots = pl.p.AutoSlots
	}
	est := d.model.Estimate.size(context, slots)
	var here, elsewhere float64
	for _, k := range pl.peaks[peakKey{d.Model, d.Engine}] {
		ks := k.Slots
		if ks == 0 {
			ks = pl.p.AutoSlots
		}
		if k.Place == at && k.Context == context && ks == slots {
			bytes = max(bytes, int64(k.Bytes))
			continue
		}
		e := d.model.Estimate.size(k.Context, ks)
		if e <= 0 {
			continue
		}
		if f := float64(k.Bytes) / float64(e); k.Place == at {
			here = max(here, f)
		} else {
			elsewhere = max(elsewhere, f)
		}
	}
	switch {
	case bytes > 0:
		return bytes + bytes/25, accuracyMeasured
	case here == 0 && elsewhere == 0:
		return est, accuracyEstimated
	case here == 0:
		here = elsewhere
	}
	// A peak of a worker that had hardly begun, or one beside other things, does not make an estimate absurd.
	return int64(float64(est) * min(max(here, 0.5), 3)), accuracyCorrected
}

type peakKey struct{ model, engine string }

// held is what an existing worker takes.
func (pl *planner) held(w *Worker) int64 {
	if w.Memory > 0 {
		return int64(w.Memory)
	}
	m := pl.models[w.Model]
	if m == nil {
		return 0
	}
	d := &deployment{Deployment: &Deployment{Model: w.Model, Engine: w.Engine}, model: m}
	bytes, _ := pl.need(d, Place{Hive: w.Hive, Device: first(w.Devices)}, w.Context, w.Slots)
	return bytes
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// contexts lists the contexts that a worker of the deployment may have at a place, the most wanted first. It is empty where none is
// left after kills for want of memory.
func (pl *planner) contexts(d *deployment, past *Past) []int {
	if past.killed(d) {
		c := past.Context
		if c == 0 {
			if c = pl.autoContext(d); d.Context == 0 && d.model.Estimate.PerToken == 0 {
				c = min(c, pl.p.AutoContext) // what engines choose by themselves
			}
		}
		if c /= 2; past.NoFit || past.OOMs > 1 || c < pl.p.MinContext {
			return nil
		}
		return []int{c}
	}
	switch {
	case d.Context > 0:
		return []int{d.Context}
	case d.model.Estimate.PerToken == 0:
		return []int{0} // the engine chooses
	}
	return pl.ladder(pl.autoContext(d))
}

// killed reports whether workers like those of the deployment were killed for want of memory. Those with a larger context than it asks for
// now say nothing of it.
func (p *Past) killed(d *deployment) bool {
	return p != nil && (p.NoFit || p.OOMs > 0) && (d.Context == 0 || p.Context <= d.Context)
}

func (pl *planner) autoContext(d *deployment) int {
	switch {
	case d.Context > 0:
		return d.Context
	case d.model.MaxContext > 0:
		return d.model.MaxContext
	}
	return pl.p.AutoContext
}

// ladder halves a context down to the smallest one.
func (pl *planner) ladder(from int) []int {
	out := []int{from}
	for c := from / 2; c >= pl.p.MinContext; c /= 2 {
		out = append(out, c)
	}
	return out
}

// fit chooses the context with which a worker fits into room. Where the deployment leaves the choice, the cache takes half of what
// the weights leave free at most, unless only the smallest context fits at all. context is -1 where none does, and need is that
// of the smallest then.
func (pl *planner) fit(d *deployment, at Place, past *Past, room int64) (context int, need int64) {
	list := pl.contexts(d, past)
	if len(list) == 0 {
		return -1, 0
	}
	bare, _ := pl.need(d, at, 0, d.Slots)
	for i, c := range list {
		need, _ = pl.need(d, at, c, d.Slots)
		if need <= room && (len(list) == 1 || i == len(list)-1 || need-bare <= (room-bare)/2) {
			return c, need
		}
	}
	return -1, need
}

// sortWorkers orders workers as they are in a plan: by deployment, replica, generation and id.
func sortWorkers(ws []*Worker) {
	slices.SortFunc(ws, compareWorkers)
}

func amount(n int64) contract.Bytes {
	return contract.Bytes(max(n, 0))
}
