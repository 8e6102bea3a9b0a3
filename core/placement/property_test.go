package placement

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/apiary-dev/apiary/core/contract"
)

// drawInput makes a cluster that could be: workers that were placed by an earlier plan, under deployments that may have changed since.
func drawInput(t *rapid.T) Input {
	in := Input{Now: time.Hour, Queens: []string{"q1", "q2", "q3"}}
	num := func(lo, hi int, what string) int { return rapid.IntRange(lo, hi).Draw(t, what) }
	flip := func(what string) bool { return rapid.Bool().Draw(t, what) }
	for i := range num(1, 4, "hives") {
		h := Hive{ID: fmt.Sprintf("h%d", i), Name: fmt.Sprintf("hive%d", i), Liveness: contract.LivenessAlive, Holds: map[string]bool{}}
		for j, kind := range []string{"cpu", "cuda", "cuda"}[:num(1, 3, "devices")] {
			total := contract.Bytes(num(2, 20, "memory")) * gib
			h.Devices = append(h.Devices, Device{ID: fmt.Sprintf("%s%d", kind, j), Kind: kind, MemoryTotal: total, Reserve: gib})
		}
		for m := range 4 {
			h.Holds[fmt.Sprintf("m%d", m)] = flip("holds")
		}
		in.Hives = append(in.Hives, h)
	}
	for m := range 4 {
		e := Estimate{Weights: contract.Bytes(num(1, 8, "size")) * gib}
		if flip("cache") {
			e.PerToken = 64 * contract.KiB
		}
		in.Models = append(in.Models, Model{ID: fmt.Sprintf("m%d", m), Name: fmt.Sprintf("model%d", m), Bytes: e.Weights, MaxContext: 8192, Estimate: e})
	}
	for i := range num(1, 5, "deployments") {
		d := Deployment{Name: fmt.Sprintf("d%d", i), Model: fmt.Sprintf("m%d", num(0, 3, "model")), Spec: "s1", Min: num(0, 3, "min"), Max: num(0, 4, "max"), Slots: num(0, 2, "slots"),
			Priority: num(0, 2, "priority"), Spread: flip("spread"), Pinned: num(0, 5, "pin") == 0, IdleTTL: time.Duration(num(0, 2, "ttl")) * 30 * time.Minute}
		switch num(0, 5, "rules") {
		case 0:
			d.Judge = only("cuda")
		case 1:
			d.Judge = func(h *Hive, _ *Device) Opinion { return Opinion{Prefer: h.ID == "h1"} }
		case 2:
			d.PerGPU = true
		}
		if d.Min == 0 {
			d.Waiting = num(0, 2, "waiting")
		}
		in.Deployments = append(in.Deployments, d)
	}
	// A first plan, of which all came to be.
	in = settle(t, in)
	for i := range in.Workers {
		w := &in.Workers[i]
		w.ReadyAt = time.Minute * time.Duration(num(1, 59, "ready"))
		w.LastUsed = time.Minute * time.Duration(num(0, 59, "used"))
		w.Busy = num(-3, 1, "busy")
		w.Busy = max(w.Busy, 0)
	}
	// Then things change.
	for i := range in.Deployments {
		d := &in.Deployments[i]
		switch num(0, 6, "change") {
		case 0:
			d.Spec = "s2"
		case 1:
			d.Min, d.Max = num(0, 3, "min"), num(0, 4, "max")
		case 2:
			d.Judge = only("cpu")
		case 3:
			d.Pressure.QueuedSince = time.Minute
		case 4:
			d.Pressure.SlackSince = time.Minute
		case 5:
			d.Priority = num(0, 4, "priority")
		}
	}
	for i := range in.Workers {
		if num(0, 9, "fate") == 0 {
			in.Workers[i].State = rapid.SampledFrom([]State{StateDown, StateLost, StateFailed, StateStarting}).Draw(t, "state")
		}
	}
	for i := range in.Hives {
		for _, d := range in.Hives[i].Devices {
			for _, m := range in.Models {
				if num(0, 9, "past") == 0 {
					in.Past = append(in.Past, Past{Model: m.ID, Place: Place{in.Hives[i].ID, d.ID}, Until: time.Duration(num(0, 120, "until")) * time.Minute, Loop: flip("loop"),
						Crashed: flip("crashed"), NoFit: num(0, 3, "no fit") == 0, OOMs: num(0, 2, "ooms"), Context: 4096})
				}
				if num(0, 9, "peak") == 0 {
					in.Peaks = append(in.Peaks, Peak{Model: m.ID, Context: 8192, Place: Place{in.Hives[i].ID, d.ID}, Bytes: contract.Bytes(num(1, 16, "peak")) * gib / 2})
				}
			}
		}
	}
	for i := range in.Hives {
		switch num(0, 9, "hive") {
		case 0:
			in.Hives[i].Drained = true
		case 1:
			in.Hives[i].Liveness = contract.LivenessDown
		}
	}
	return in
}

// settle applies plans until nothing changes any more: drains end, spawns become ready, and successors grow warm.
func settle(t *rapid.T, in Input) Input {
	for round := range 60 {
		p := Make(in)
		checkPlan(t, in, p)
		next := apply(in, p)
		// With its actions begun and nothing finished, the plan asks for nothing more than what still waits.
		again := Make(next)
		for _, a := range again.Actions {
			if len(a.After) == 0 {
				t.Fatalf("round %d: after the plan\n%s\nwas begun, another one wants\n%s", round, shown(p), shown(again))
			}
		}
		if len(p.Actions) == 0 && !slices.ContainsFunc(in.Workers, func(w Worker) bool { return w.State == StateStarting || w.State == StateDraining }) {
			return in
		}
		in = finish(next)
	}
	t.Fatalf("it does not come to rest; the last plan is\n%s", shown(Make(in)))
	return in
}

// apply begins the actions that may be begun.
func apply(in Input, p Plan) Input {
	in.Workers = slices.Clone(in.Workers)
	for _, a := range p.Actions {
		switch a.Kind {
		case Spawn, Surge:
			if len(a.After) == 0 {
				w := apply1(a, fmt.Sprintf("%s-%d-%s-%d", a.Key, a.Generation, a.Place.Hive, len(in.Workers)))
				for _, d := range in.Deployments {
					if d.Name == a.Deployment {
						w.Model, w.Spec = d.Model, d.Spec
					}
				}
				in.Workers = append(in.Workers, w)
			}
		default:
			for i := range in.Workers {
				if in.Workers[i].ID == a.WorkerID {
					in.Workers[i].State = StateDraining
				}
			}
		}
	}
	return in
}

// finish lets what was begun come to its end.
func finish(in Input) Input {
	in.Now += time.Minute
	var out []Worker
	for _, w := range in.Workers {
		switch w.State {
		case StateStarting:
			w.State, w.ReadyAt, w.LastUsed = StateReady, in.Now-30*time.Second, in.Now
		case StateDraining:
			continue
		case StateFailed, StateLost:
			if slices.ContainsFunc(in.Workers, func(o Worker) bool {
				return o.Deployment == w.Deployment && o.Replica == w.Replica && (o.State == StateStarting || o.State == StateReady)
			}) {
				continue
			}
		}
		out = append(out, w)
	}
	in.Workers = out
	in.Deployments = slices.Clone(in.Deployments)
	for i := range in.Deployments { // who waited is served now
		d := &in.Deployments[i]
		served := slices.ContainsFunc(in.Workers, func(w Worker) bool { return w.Deployment == d.Name && w.State == StateReady })
		if served {
			d.Waiting, d.Pressure = 0, Pressure{}
		}
	}
	return in
}

// checkPlan holds a plan against the rules.
func checkPlan(t *rapid.T, in Input, p Plan) {
	states := map[string]Worker{}
	deps := map[string]Deployment{}
	for _, w := range in.Workers {
		states[w.ID] = w
	}
	for _, d := range in.Deployments {
		deps[d.Name] = d
	}
	used, waits := map[Place]contract.Bytes{}, map[Place]bool{}
	before, stops := map[Place]contract.Bytes{}, map[string]bool{}
	present, runs, had := map[string]int{}, map[string]int{}, map[string]int{}
	for _, w := range in.Workers {
		if w.State != StateFailed {
			at := Place{w.Hive, w.Devices[0]}
			used[at] += w.Memory
			before[at] += w.Memory
		}
		if w.State == StateReady || w.State == StateStarting || w.State == StateDown {
			present[w.Deployment]++
			if runs[Key(w.Deployment, w.Replica)]++; runs[Key(w.Deployment, w.Replica)] == 1 {
				had[w.Deployment]++
			}
		}
	}
	surging := map[string]int{}
	for _, a := range p.Actions {
		if a.Reason == "" || a.Owner == "" || a.Code == "" {
			t.Fatalf("%v lacks something: %+v", a, a)
		}
		switch a.Kind {
		case Stop, Evict:
			w := states[a.WorkerID]
			if w.ID == "" || stops[w.ID] || w.State == StateDraining || w.State == StateFailed {
				t.Fatalf("%v of a worker that is %q", a, w.State)
			}
			stops[w.ID] = true
			present[w.Deployment]--
			if a.Kind == Evict {
				if d := deps[w.Deployment]; w.Busy > 0 || d.Pinned || d.Priority > deps[a.For].Priority {
					t.Fatalf("%v: worker %+v of %+v is evicted for %+v", a, w, d, deps[a.For])
				}
			}
			if d := deps[w.Deployment]; a.Code == CodeIdle && (w.Busy > 0 || present[d.Name] < d.Min) {
				t.Fatalf("%v: worker %+v of %+v is unloaded", a, w, d)
			}
		case Spawn, Surge:
			d := deps[a.Deployment]
			for _, h := range in.Hives {
				if h.ID != a.Place.Hive {
					continue
				}
				for i := range h.Devices {
					if h.Devices[i].ID == a.Place.Device && d.Judge != nil && d.Judge(&h, &h.Devices[i]).Excluded != "" {
						t.Fatalf("%v is on a device that the deployment excludes", a)
					}
				}
				if h.Drained || h.Liveness != contract.LivenessAlive {
					t.Fatalf("%v is on a hive that is %s, drained %v", a, h.Liveness, h.Drained)
				}
			}
			if a.Kind == Surge {
				if surging[a.Deployment]++; surging[a.Deployment] > 1 {
					t.Fatalf("two replicas of %s change at once", a.Deployment)
				}
			}
			if len(a.After) > 0 {
				waits[a.Place] = true
				for _, id := range a.After {
					if states[id].State != StateDraining && !stops[id] {
						t.Fatalf("%v waits for a worker that stays", a)
					}
				}
			} else {
				used[a.Place] += a.Need
				present[a.Deployment]++
			}
		}
	}
	// A replica that is replaced in place goes for a moment; beyond that nobody falls below the minimum while all of them are there.
	inPlace := map[string]int{}
	for _, a := range p.Actions {
		if len(a.After) > 0 {
			inPlace[a.Deployment]++
		}
		if a.Kind == Evict {
			inPlace[states[a.WorkerID].Deployment]++
		}
	}
	for _, a := range p.Actions {
		if a.Kind == Stop {
			if d := deps[a.Deployment]; !d.PerGPU && present[d.Name]+inPlace[d.Name] < min(d.Min, had[d.Name]) {
				t.Fatalf("%v takes %s below its minimum: %d of %d\n%s", a, d.Name, present[d.Name], d.Min, shown(p))
			}
		}
	}
	for _, h := range in.Hives {
		for _, d := range h.Devices {
			at := Place{h.ID, d.ID}
			if used[at] > d.MemoryTotal-d.Reserve && used[at] > before[at] && !silentThere(in, at) {
				t.Fatalf("%s/%s is oversubscribed: %s of %s\n%s", h.ID, d.ID, used[at], d.MemoryTotal-d.Reserve, shown(p))
			}
		}
	}
}

// silentThere reports whether a worker at a place is lost or down: a spawn may mean the same process.
func silentThere(in Input, at Place) bool {
	return slices.ContainsFunc(in.Workers, func(w Worker) bool {
		return (w.State == StateLost || w.State == StateDown) && w.Hive == at.Hive && w.Devices[0] == at.Device
	})
}

// TestPlansAreSafe: whatever the cluster, a plan oversubscribes no device, ends nobody whom it must not, and never asks twice; plans come to
// rest.
func TestPlansAreSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		settle(t, drawInput(t))
	})
}

// TestOrderDoesNotMatter: the same cluster in another order has the same plan.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		p := Make(in)
		in.Hives = rapid.Permutation(in.Hives).Draw(t, "hives")
		in.Models = rapid.Permutation(in.Models).Draw(t, "models")
		in.Deployments = rapid.Permutation(in.Deployments).Draw(t, "deployments")
		in.Workers = rapid.Permutation(in.Workers).Draw(t, "workers")
		in.Past = rapid.Permutation(in.Past).Draw(t, "past")
		in.Peaks = rapid.Permutation(in.Peaks).Draw(t, "peaks")
		in.Queens = rapid.Permutation(in.Queens).Draw(t, "queens")
		before := fmt.Sprintf("%+v", in.Workers)
		if q := Make(in); !reflect.DeepEqual(p, q) {
			t.Fatalf("planned\n%s\nand in another order\n%s", shown(p), shown(q))
		}
		if fmt.Sprintf("%+v", in.Workers) != before {
			t.Fatal("the input was changed")
		}
	})
}
