package placement

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// planner is one run of Make or Explain.
type planner struct {
	in      *Input
	p       Params
	hives   map[string]*Hive
	devs    []*dev // ordered by place
	byPlace map[Place]*dev
	models  map[string]*Model
	deps    []*deployment // ordered by priority, then name
	byName  map[string]*deployment
	workers []*Worker // copies, ordered
	past    map[pastKey]*Past
	loops   map[string]int // places at which a model keeps crashing
	peaks   map[peakKey][]Peak
	plan    Plan
}

type pastKey struct {
	model string
	place Place
}

// dev is a device with its hive and its memory.
type dev struct {
	hive  *Hive
	d     *Device
	place Place
	pool  *pool
	index int
}

func (v *dev) accelerator() bool { return v.d.Kind != "cpu" }

// deployment is a Deployment and what runs of it.
type deployment struct {
	*Deployment
	model    *Model
	replicas map[int]*replica
	order    []int            // the numbers of replicas
	opinions map[int]*Opinion // by dev.index
	allowed  map[int]string   // by dev.index: why a worker may not stay there
	onHive   map[string]int
	at       map[Place][]int // numbers of the replicas that are present there

	serving, starting, draining int
	newest                      time.Duration // when the newest worker became ready
	short                       bool          // a shortfall was told
	gpus                        int           // that are for it, plus 1; 0: not counted yet
}

// replica is one of a deployment's replicas: by its number, with its workers, each list ordered by generation and id.
type replica struct {
	current []*Worker // present, and of the wanted generation
	stale   []*Worker // present, and to be replaced
	gone    []*Worker // failed or lost
	leaving []*Worker // being drained
}

func (r *replica) present() bool { return len(r.current)+len(r.stale) > 0 }

func compareWorkers(a, b *Worker) int {
	return cmp.Or(strings.Compare(a.Deployment, b.Deployment), cmp.Compare(a.Replica, b.Replica), cmp.Compare(a.Generation, b.Generation),
		strings.Compare(a.ID, b.ID))
}

func newPlanner(in *Input) *planner {
	pl := &planner{in: in, p: in.Params.withDefaults(), hives: map[string]*Hive{}, byPlace: map[Place]*dev{}, models: map[string]*Model{},
		byName: map[string]*deployment{}, past: map[pastKey]*Past{}, loops: map[string]int{}, peaks: map[peakKey][]Peak{}}
	for i := range in.Models {
		pl.models[in.Models[i].ID] = &in.Models[i]
	}
	for _, k := range in.Peaks {
		key := peakKey{k.Model, k.Engine}
		pl.peaks[key] = append(pl.peaks[key], k)
	}
	for i := range in.Past {
		p := &in.Past[i]
		pl.past[pastKey{p.Model, p.Place}] = p
		if p.Loop && p.Until > in.Now {
			pl.loops[p.Model]++
		}
	}
	pl.addDevices()
	for i := range in.Deployments {
		d := &deployment{Deployment: &in.Deployments[i], replicas: map[int]*replica{}, opinions: map[int]*Opinion{}, allowed: map[int]string{},
			onHive: map[string]int{}, at: map[Place][]int{}}
		d.model = pl.models[d.Model]
		pl.deps = append(pl.deps, d)
		pl.byName[d.Name] = d
	}
	slices.SortFunc(pl.deps, func(a, b *deployment) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), strings.Compare(a.Name, b.Name))
	})
	pl.addWorkers()
	return pl
}

func (pl *planner) addDevices() {
	for i := range pl.in.Hives {
		h := &pl.in.Hives[i]
		pl.hives[h.ID] = h
		pools := map[string]*pool{}
		for j := range h.Devices {
			d := &h.Devices[j]
			v := &dev{hive: h, d: d, place: Place{h.ID, d.ID}}
			if d.Pool != "" {
				v.pool = pools[d.Pool]
			}
			if v.pool == nil {
				v.pool = &pool{known: d.MemoryTotal > 0, total: int64(d.MemoryTotal) - int64(d.Reserve), freeAt: d.FreeAt}
				v.pool.free = v.pool.total
				if d.FreeAt != 0 {
					v.pool.free = int64(d.MemoryFree) - int64(d.Reserve)
				}
				if d.Pool != "" {
					pools[d.Pool] = v.pool
				}
			}
			pl.devs = append(pl.devs, v)
			pl.byPlace[v.place] = v
		}
	}
	slices.SortFunc(pl.devs, func(a, b *dev) int {
		return cmp.Or(strings.Compare(a.hive.Name, b.hive.Name), strings.Compare(a.place.Hive, b.place.Hive), strings.Compare(a.d.ID, b.d.ID))
	})
	for i, v := range pl.devs {
		v.index = i
	}
}

func (pl *planner) addWorkers() {
	own := slices.Clone(pl.in.Workers)
	for i := range own {
		pl.workers = append(pl.workers, &own[i])
	}
	slices.SortFunc(pl.workers, compareWorkers)
	for _, w := range pl.workers {
		if d := pl.byName[w.Deployment]; d != nil {
			switch w.State {
			case StateReady:
				d.serving++
				d.newest = max(d.newest, w.ReadyAt)
			case StateStarting:
				d.starting++
			case StateDraining:
				d.draining++
			}
		}
	}
	for _, w := range pl.workers {
		if w.State != StateFailed {
			held := pl.held(w)
			if t := pl.twin(w); t != nil {
				held = max(0, held-pl.held(t))
			}
			for _, p := range pl.poolsOf(w) {
				p.add(w, held)
			}
		}
		if d := pl.byName[w.Deployment]; d != nil {
			pl.enlist(d, w)
		}
	}
}

// twin returns the silent worker that a starting one was asked for again: of its generation, on its device. The hive answers with the
// process that it has, or starts one in its place, so the memory of the two is taken once. nil: there is none.
func (pl *planner) twin(w *Worker) *Worker {
	if w.State != StateStarting || w.Deployment == "" {
		return nil
	}
	i, _ := slices.BinarySearchFunc(pl.workers, w, func(o, t *Worker) int {
		return cmp.Or(strings.Compare(o.Deployment, t.Deployment), cmp.Compare(o.Replica, t.Replica), cmp.Compare(o.Generation, t.Generation))
	})
	for ; i < len(pl.workers); i++ {
		o := pl.workers[i]
		if o.Deployment != w.Deployment || o.Replica != w.Replica || o.Generation != w.Generation {
			break
		}
		if (o.State == StateLost || o.State == StateDown) && o.Hive == w.Hive && slices.Equal(o.Devices, w.Devices) {
			return o
		}
	}
	return nil
}

// poolsOf returns the memories that a worker takes. One on several devices counts whole on each: how the engine splits it is not
// known.
func (pl *planner) poolsOf(w *Worker) []*pool {
	var out []*pool
	for _, id := range w.Devices {
		if v := pl.byPlace[Place{w.Hive, id}]; v != nil && !slices.Contains(out, v.pool) {
			out = append(out, v.pool)
		}
	}
	return out
}

// enlist counts a worker of a deployment.
func (pl *planner) enlist(d *deployment, w *Worker) {
	r := d.replicas[w.Replica]
	if r == nil {
		r = &replica{}
		d.replicas[w.Replica] = r
		i, _ := slices.BinarySearch(d.order, w.Replica)
		d.order = slices.Insert(d.order, i, w.Replica)
	}
	// Where requests wait and nobody serves or is about to, a silent worker is not waited for.
	forsaken := w.State == StateDown && d.Waiting > 0 && d.serving+d.starting == 0
	switch {
	case w.State == StateDraining:
		r.leaving = append(r.leaving, w)
		return
	case w.State == StateFailed || w.State == StateLost || forsaken:
		r.gone = append(r.gone, w)
		return
	case pl.whyStale(d, w) != "":
		r.stale = append(r.stale, w)
	default:
		r.current = append(r.current, w)
	}
	d.onHive[w.Hive]++
	at := Place{w.Hive, first(w.Devices)}
	d.at[at] = append(d.at[at], w.Replica)
}

// Why a worker is to be replaced.
const (
	staleSpec     = "new_generation"
	staleDrained  = "hive_drained"
	staleExcluded = "excluded"
)

// whyStale says why a worker is to be replaced; empty: it is not.
func (pl *planner) whyStale(d *deployment, w *Worker) string {
	v := pl.byPlace[Place{w.Hive, first(w.Devices)}]
	switch h := pl.hives[w.Hive]; {
	case w.Spec != d.Spec:
		return staleSpec
	case h != nil && h.Drained:
		return staleDrained
	case v != nil && d.banned(v) != "":
		return staleExcluded
	}
	return ""
}

func (d *deployment) opinion(v *dev) *Opinion {
	if d.Judge == nil {
		return &Opinion{}
	}
	o := d.opinions[v.index]
	if o == nil {
		judged := d.Judge(v.hive, v.d)
		o = &judged
		d.opinions[v.index] = o
	}
	return o
}

// banned says why no worker of the deployment may be on a device, however much memory is free there; empty: it may.
func (d *deployment) banned(v *dev) string {
	if d.Judge == nil {
		return ""
	}
	why, ok := d.allowed[v.index]
	if !ok {
		empty := *v.d
		empty.MemoryFree = empty.MemoryTotal
		why = d.Judge(v.hive, &empty).Excluded
		d.allowed[v.index] = why
	}
	return why
}

// present is the number of replicas that have a worker.
func (d *deployment) present() int {
	n := 0
	for _, r := range d.replicas {
		if r.present() {
			n++
		}
	}
	return n
}

// floor is the number of replicas that the deployment always has.
func (pl *planner) floor(d *deployment) int {
	if !d.PerGPU {
		return max(d.Min, 0)
	}
	if d.gpus == 0 {
		d.gpus = 1
		for _, v := range pl.devs {
			h := v.hive
			if v.accelerator() && h.Liveness != contract.LivenessLost && !h.Drained && v.d.Fenced == "" && d.banned(v) == "" {
				d.gpus++
			}
		}
	}
	return d.gpus - 1
}

// limit is the number of replicas that the deployment may have.
func (pl *planner) limit(d *deployment) int {
	if d.PerGPU {
		return pl.floor(d)
	}
	return max(d.Max, d.Min, 1)
}

// idle is how long a worker has had nothing to do.
func (pl *planner) idle(w *Worker) time.Duration {
	if w.State != StateReady || w.Busy > 0 || w.Queue > 0 {
		return 0
	}
	return pl.in.Now - max(w.LastUsed, w.ReadyAt)
}

// wake makes the plan say that another look is worth it at a time.
func (pl *planner) wake(at time.Duration) {
	if at > pl.in.Now && (pl.plan.Next == 0 || at < pl.plan.Next) {
		pl.plan.Next = at
	}
}

func (pl *planner) name(at Place) string {
	if h := pl.hives[at.Hive]; h != nil && h.Name != "" {
		return h.Name + "/" + at.Device
	}
	return at.Hive + "/" + at.Device
}
