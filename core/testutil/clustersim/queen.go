package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

// planEvery is how old a plan gets at most: what others leave free of a device's memory changes without an event.
const planEvery = 5 * time.Second

// queen is a queen without its I/O: the registry, and plans that are carried out.
type queen struct {
	w       *world
	id      string
	inc     int64
	up      bool
	started time.Duration
	paused  time.Duration

	m        *registry.Machine
	specs    map[string]string // of workers, as their beats say
	contexts map[string]int    // of workers that this queen began: what they were told
	used     map[string]time.Duration
	devices  map[string][]placement.Device // of hives, as they said last
	intents  map[string]*intent            // spawns that were begun, by worker id
	draining map[string]bool
	troubled map[registry.Slot]bool
	heard    map[string]time.Duration // other queens
	pressure map[string]placement.Pressure
	dirty    bool
	planned  time.Duration
	next     time.Duration
	minted   int
	plan     placement.Plan
	brake    bool // the mass-failure brake is on
}

// intent is a spawn that was asked for and has not beaten.
type intent struct {
	a     placement.Action
	spec  string
	model string
	at    time.Duration
}

func (q *queen) alive() bool { return q.up && q.w.now >= q.paused }

// start starts the queen, which knows nobody.
func (q *queen) start() {
	w := q.w
	w.epoch++
	q.inc, q.up, q.started = w.epoch, true, w.now
	q.m = registry.New(registry.Params{}, w.now)
	q.specs, q.used, q.intents, q.draining = map[string]string{}, map[string]time.Duration{}, map[string]*intent{}, map[string]bool{}
	q.contexts = map[string]int{}
	q.devices = map[string][]placement.Device{}
	q.troubled = map[registry.Slot]bool{}
	q.brake = false
	q.heard, q.pressure, q.dirty, q.next = map[string]time.Duration{}, map[string]placement.Pressure{}, true, 0
	inc := q.inc
	same := func() bool { return q.up && q.inc == inc }
	w.every(5*time.Second, same, func() {
		if q.alive() {
			for _, o := range w.queens {
				if o != q {
					w.send(q.id, o.id, func() { o.heard[q.id] = w.now })
				}
			}
		}
	})
	var tick func()
	tick = func() {
		if !same() {
			return
		}
		if q.alive() {
			q.step(registry.Tick{})
			q.second()
		}
		w.after(time.Second, tick)
	}
	w.after(time.Second, tick)
}

func (q *queen) step(ev registry.Event) {
	for _, fx := range q.m.Step(q.w.now, ev) {
		switch fx.Kind {
		case registry.EffectDropped:
			continue
		case registry.EffectRespawn: // the plan does that
			q.m.Step(q.w.now, registry.Release{Slot: fx.Slot})
		case registry.EffectRemoved, registry.EffectExited:
			if fx.Slot != (registry.Slot{}) {
				q.troubled[fx.Slot] = true
			}
			delete(q.draining, fx.WorkerID)
			delete(q.intents, fx.WorkerID)
		case registry.EffectPanicOn, registry.EffectPanicOff:
			q.brake = fx.Kind == registry.EffectPanicOn
			q.w.count["the brake went "+map[bool]string{true: "on", false: "off"}[q.brake]]++
		case registry.EffectHive:
			if fx.To == contract.LivenessLost && q.brake {
				q.w.fail("for %s hive %s became lost while the brake is on (I6)", q.id, fx.HiveID)
			}
		case registry.EffectLiveness:
			if fx.To == contract.LivenessLost && q.brake {
				q.w.fail("for %s worker %s became lost while the brake is on (I6)", q.id, fx.WorkerID)
			}
			if fx.To == contract.LivenessDown || fx.To == contract.LivenessLost {
				q.verify(fx.WorkerID, fx.HiveID)
			}
		}
		q.dirty = true
	}
}

// verify asks a hive whether it has the process of a silent worker.
func (q *queen) verify(worker, hiveID string) {
	w, inc := q.w, q.inc
	for _, h := range w.hives {
		if h.id == hiveID {
			w.send(q.id, h.id, func() {
				if !h.up || w.now < h.paused {
					return
				}
				there := h.procs[worker] != nil
				w.send(h.id, q.id, func() {
					if q.alive() && q.inc == inc && !there {
						q.step(registry.Gone{WorkerID: worker, Jitter: w.rnd.Float64()})
					}
				})
			})
		}
	}
}

func (q *queen) beat(hb contract.Heartbeat, spec string) {
	if !q.alive() {
		return
	}
	id := hb.Worker.ID
	delete(q.intents, id)
	q.specs[id] = spec
	if hb.Worker.SlotsBusy > 0 {
		q.used[id] = q.w.now
	}
	q.step(registry.Beat{Heartbeat: hb})
}

func (q *queen) hiveBeat(b contract.HiveBeat, devices []placement.Device) {
	if q.alive() {
		for i := range devices {
			devices[i].FreeAt = q.w.now
		}
		q.devices[b.ID] = devices
		q.step(registry.HiveBeat{Beat: b})
	}
}

func (q *queen) exited(x contract.WorkerExit) {
	if q.alive() {
		q.step(registry.Exited{Report: x, Jitter: 2*q.w.rnd.Float64() - 1})
	}
}

// queens lists the live queens as this one sees them.
func (q *queen) queens() []string {
	out := []string{q.id}
	for _, id := range slices.Sorted(maps.Keys(q.heard)) {
		if q.w.now-q.heard[id] <= 17500*time.Millisecond {
			out = append(out, id)
		}
	}
	return out
}

// second looks whether there is something to plan.
func (q *queen) second() {
	w := q.w
	for _, id := range slices.Sorted(maps.Keys(q.intents)) {
		if i := q.intents[id]; w.now-i.at > 40*time.Second {
			q.failed(id, i, "start_timeout")
		}
	}
	if w.now-q.started < 17500*time.Millisecond {
		return // it does not know everybody yet
	}
	in := q.input()
	for i := range in.Deployments {
		d := &in.Deployments[i]
		replicas, slots, busy := 0, 0, 0
		for _, k := range in.Workers {
			if k.Deployment == d.Name && k.State == placement.StateReady {
				replicas, slots, busy = replicas+1, slots+4, busy+k.Busy
			}
		}
		p := q.pressure[d.Name].Observe(w.now, replicas, slots, busy, d.Waiting)
		q.dirty = q.dirty || p != q.pressure[d.Name] || d.Waiting > 0 && replicas == 0
		q.pressure[d.Name], d.Pressure = p, p
	}
	if !q.dirty && (q.next == 0 || w.now < q.next) && w.now-q.planned < planEvery {
		return
	}
	q.plan = placement.Make(in)
	q.dirty, q.next, q.planned = false, q.plan.Next, w.now
	w.count["plans"]++
	q.check(in)
	for _, a := range q.plan.Actions {
		if a.Owner == q.id && len(a.After) == 0 {
			q.carryOut(a, in)
		}
	}
}

// check holds the queen's plan against the rules that hold whatever it knows.
func (q *queen) check(in placement.Input) {
	type place = placement.Place
	used, total := map[place]contract.Bytes{}, map[place]contract.Bytes{}
	states := map[string]placement.Worker{}
	for _, h := range in.Hives {
		for _, d := range h.Devices {
			total[place{Hive: h.ID, Device: d.ID}] = d.MemoryTotal - d.Reserve
		}
	}
	// A hive has one process of a key and a generation, so what goes by both is one, and silent ones are what a spawn of theirs finds.
	type process struct {
		key        string
		generation int64
		at         place
	}
	seen := map[process]bool{}
	for _, a := range q.plan.Actions {
		if a.Kind == placement.Spawn || a.Kind == placement.Surge {
			seen[process{a.Key, a.Generation, a.Place}] = true
		}
	}
	for _, k := range in.Workers {
		states[k.ID] = k
		p := process{placement.Key(k.Deployment, k.Replica), k.Generation, place{Hive: k.Hive, Device: k.Devices[0]}}
		if k.State != placement.StateFailed && !seen[p] {
			seen[p] = true
			used[p.at] += k.Memory
		}
	}
	for _, a := range q.plan.Actions {
		switch a.Kind {
		case placement.Spawn, placement.Surge:
			if len(a.After) == 0 {
				if used[a.Place] += a.Need; used[a.Place] > total[a.Place] {
					q.w.fail("%s oversubscribes %v: %s of %s", q.id, a.Place, used[a.Place], total[a.Place])
				}
			}
		default:
			// Silence never ends a worker: only one that is heard is ever told to end.
			if s := states[a.WorkerID].State; s != placement.StateReady && s != placement.StateStarting {
				q.w.fail("%s ends worker %s, which is %s: %s", q.id, a.WorkerID, s, a.Reason)
			}
			if k := states[a.WorkerID]; k.Busy > 0 && (a.Code == placement.CodeIdle || a.Kind == placement.Evict) {
				q.w.fail("%s ends the busy worker %s: %s", q.id, a.WorkerID, a.Reason)
			}
		}
	}
}

// input is the queen's picture of the cluster.
func (q *queen) input() placement.Input {
	w := q.w
	s := q.m.Snapshot(w.now)
	in := placement.Input{Now: w.now, Panic: s.Panic, Queens: q.queens(), Models: w.models, Deployments: slices.Clone(w.deps)}
	for i := range in.Deployments {
		in.Deployments[i].Waiting = w.waiting(in.Deployments[i].Name)
	}
	for i := range s.Hives {
		h := &s.Hives[i]
		in.Hives = append(in.Hives, placement.Hive{ID: h.Beat.ID, Name: h.Beat.Name, Liveness: h.Liveness, BeatAt: h.BeatAt, Devices: q.devices[h.Beat.ID]})
	}
	in.Workers = make([]placement.Worker, 0, len(s.Workers)+len(q.intents))
	for i := range s.Workers {
		k := &s.Workers[i]
		dep, replica, ok := placement.ParseKey(k.Info.SpawnKey)
		i := q.intents[k.Info.ID]
		if !ok && i != nil {
			dep, replica = i.a.Deployment, i.a.Replica
		}
		out := placement.Worker{ID: k.Info.ID, Deployment: dep, Replica: replica, Generation: k.Info.Generation, Model: k.Info.ModelID, Hive: k.Info.HiveID, Devices: []string{k.Info.Device},
			Spec: q.specs[k.Info.ID], Slots: 4, ReadyAt: k.ReadyAt, LastUsed: q.used[k.Info.ID], Busy: k.Info.SlotsBusy, Memory: k.Info.MemoryBytes, State: stateOf(k, q.draining[k.Info.ID])}
		in.Workers = append(in.Workers, out)
	}
	for slot := range q.troubled {
		v := q.m.Verdict(w.now, slot)
		if v.Allowed && v.OOMs == 0 {
			delete(q.troubled, slot)
			continue
		}
		p := placement.Past{Model: slot.ModelID, Place: placement.Place{Hive: slot.HiveID, Device: slot.Device}, Reason: v.Reason, Loop: v.Reason == contract.ConditionCrashLoop, NoFit: v.NoFit, Crashed: v.Exit != nil, OOMs: v.OOMs}
		if v.Exit != nil {
			p.Context = q.contexts[v.Exit.WorkerID]
		}
		if v.Wait > 0 {
			p.Until = w.now + v.Wait
		}
		in.Past = append(in.Past, p)
	}
	for _, id := range slices.Sorted(maps.Keys(q.intents)) {
		if _, beats := s.Worker(id); !beats {
			i := q.intents[id]
			in.Workers = append(in.Workers, placement.Worker{ID: id, Deployment: i.a.Deployment, Replica: i.a.Replica, Generation: i.a.Generation, Model: i.model, Hive: i.a.Place.Hive,
				Devices: []string{i.a.Place.Device}, Spec: i.spec, Slots: 4, State: placement.StateStarting, Memory: i.a.Need})
		}
	}
	return in
}

func stateOf(k *registry.Worker, draining bool) placement.State {
	switch {
	case k.Exit != nil:
		return placement.StateFailed
	case k.Liveness == contract.LivenessLost:
		return placement.StateLost
	case draining:
		return placement.StateDraining
	case k.Liveness == contract.LivenessDown:
		return placement.StateDown
	case k.Info.Status == contract.StatusReady || k.Info.Status == contract.StatusBusy:
		return placement.StateReady
	}
	return placement.StateStarting
}

// carryOut begins an action.
func (q *queen) carryOut(a placement.Action, in placement.Input) {
	w := q.w
	w.count[string(a.Kind)+" "+a.Code]++
	if a.Kind == placement.Stop || a.Kind == placement.Evict {
		q.drain(a.WorkerID)
		return
	}
	i := slices.IndexFunc(in.Deployments, func(d placement.Deployment) bool { return d.Name == a.Deployment })
	q.minted++
	id := fmt.Sprintf("%s-%s-%d-%d", a.Deployment, q.id, q.inc, q.minted)
	it := &intent{a: a, spec: in.Deployments[i].Spec, model: in.Deployments[i].Model, at: w.now}
	q.intents[id], q.contexts[id] = it, a.Context
	q.step(registry.SpawnBegan{Slot: it.slot(), WorkerID: id, Automatic: true})
	q.ask(id, it, 0)
}

func (i *intent) slot() registry.Slot {
	return registry.Slot{ModelID: i.model, HiveID: i.a.Place.Hive, Device: i.a.Place.Device}
}

// ask sends the spawn to its hive, and again while there is no answer: it carries the same key, so it is the same spawn.
func (q *queen) ask(id string, it *intent, attempt int) {
	w, inc := q.w, q.inc
	same := func() bool { return q.alive() && q.inc == inc && q.intents[id] == it }
	h := w.hives[slices.IndexFunc(w.hives, func(h *hive) bool { return h.id == it.a.Place.Hive })]
	w.send(q.id, h.id, func() {
		if !h.up || w.now < h.paused {
			return
		}
		runs, why := h.spawn(w, it.a, id, it.spec, it.model)
		w.send(h.id, q.id, func() {
			switch {
			case !same():
			case why != "":
				q.failed(id, it, why)
			case runs != id:
				delete(q.intents, id)
				q.step(registry.SpawnIs{WorkerID: id, RunningID: runs})
				if k, ok := q.m.Snapshot(w.now).Worker(runs); ok && k.Liveness != contract.LivenessAlive {
					q.failed(id, it, "silent") // it runs and is not heard: asking again at once would not help
				}
			}
		})
	})
	if attempt < 2 {
		w.after(10*time.Second, func() {
			if same() {
				q.ask(id, it, attempt+1)
			}
		})
	}
}

func (q *queen) failed(id string, it *intent, why string) {
	delete(q.intents, id)
	q.w.count["spawn failed: "+why]++
	q.troubled[it.slot()] = true
	q.step(registry.SpawnFailed{WorkerID: id, Slot: it.slot(), Reason: why, Jitter: q.w.rnd.Float64()})
	q.dirty = true
}

// drain ends a worker: it takes nothing new, and is killed by its identity once its requests had time.
func (q *queen) drain(id string) {
	w, inc := q.w, q.inc
	k, ok := q.m.Snapshot(w.now).Worker(id)
	if !ok {
		return
	}
	q.draining[id] = true
	q.step(registry.Draining{WorkerID: id, On: true})
	h := w.hives[slices.IndexFunc(w.hives, func(h *hive) bool { return h.id == k.Info.HiveID })]
	if p := h.procs[id]; p != nil {
		p.ending = true // requests go elsewhere
	}
	var try func(attempt int)
	try = func(attempt int) {
		switch {
		case q.inc != inc || !q.draining[id]:
			return
		case !q.alive(): // it stands still and goes on later
			w.after(time.Second, func() { try(attempt) })
			return
		}
		if attempt > 6 { // the worker is given back
			delete(q.draining, id)
			if p := h.procs[id]; p != nil {
				p.ending = false
			}
			q.step(registry.Draining{WorkerID: id})
			return
		}
		w.send(q.id, h.id, func() {
			if h.up && w.now >= h.paused {
				h.kill(w, k.Info.Identity())
				w.send(h.id, q.id, func() {
					if q.alive() && q.inc == inc && q.draining[id] {
						delete(q.draining, id)
						q.step(registry.Deleted{WorkerID: id})
						q.dirty = true
					}
				})
			}
		})
		w.after(10*time.Second, func() { try(attempt + 1) })
	}
	w.after(cmp.Or(time.Duration(w.rnd.Int64N(int64(20*time.Second))), time.Second), func() { try(0) })
}
