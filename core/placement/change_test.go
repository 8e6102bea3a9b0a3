package placement

import (
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

func TestFailures(t *testing.T) {
	d := Deployment{Name: "chat", Min: 1}
	here := Place{"h1", "cuda0"}
	failed := at("w", "chat", 0, "h1/cuda0", gib)
	failed.State = StateFailed
	past := func(p Past) Input {
		p.Model, p.Place = "m-smol", here
		in := trio().with(d).and(failed)
		in.Past = []Past{p}
		return in
	}
	expect(t, past(Past{}), "spawn chat#0 h1/cuda0 generation 2")
	in := past(Past{Until: 1020 * time.Second, Reason: "crashed"})
	p := expect(t, in, "short chat 1 back_off") // it waits for its turn where it was
	if p.Next != 1020*time.Second || p.Shortfalls[0].RetryAfter != 20*time.Second {
		t.Errorf("looks again at %s, tells %s", p.Next, p.Shortfalls[0].RetryAfter)
	}
	in.Hives[0].Liveness = contract.LivenessDown
	expect(t, in, "spawn chat#0 h3/cpu0 generation 2") // … unless nobody is there
	expect(t, past(Past{Until: 1900 * time.Second, Loop: true}), "spawn chat#0 h1/cuda1 generation 2")
	in = past(Past{Until: 1900 * time.Second, Loop: true})
	in.Past = append(in.Past, Past{Model: "m-smol", Place: Place{"h1", "cuda1"}, Until: 1500 * time.Second, Loop: true})
	p = expect(t, in, "short chat 1 crashloop") // it is not the device's fault
	if p.Shortfalls[0].RetryAfter != 500*time.Second {
		t.Errorf("tells %s", p.Shortfalls[0].RetryAfter)
	}
	expect(t, past(Past{NoFit: true}), "spawn chat#0 h1/cuda1 generation 2")
	// One that nobody needs is not started again.
	d = Deployment{Name: "chat", IdleTTL: 10 * time.Minute}
	failed.LastUsed = 300 * time.Second
	expect(t, past(Past{}))
	failed.LastUsed = 900 * time.Second
	expect(t, past(Past{}), "spawn chat#0 h1/cuda0 generation 2")
	// What no worker has shown to work waits as a whole, however it came to be asked for.
	d = Deployment{Name: "chat", Waiting: 3}
	in = trio().with(d)
	in.Past = []Past{{Model: "m-smol", Place: here, Until: 1020 * time.Second, Crashed: true}}
	expect(t, in, "short chat 1 back_off")
	in.Past[0].Crashed = false // a hive refused: another one may not
	expect(t, in, "spawn chat#0 h1/cuda1")
	// The back-off of one replica does not hold up the others.
	d = Deployment{Name: "chat", Min: 2}
	expect(t, past(Past{Until: 1020 * time.Second}), "spawn chat#1 h1/cuda1", "short chat 1 back_off")
	in = past(Past{Until: 1020 * time.Second, Crashed: true}).and(at("v", "chat", 2, "h1/cuda1", gib))
	in.Deployments[0].Min = 3
	expect(t, in, "spawn chat#1 h1/cuda1", "short chat 1 back_off")
}

func TestOutOfMemory(t *testing.T) {
	d := Deployment{Name: "big", Model: "m-big", Min: 1, Slots: 1, Context: 8192, Judge: only("cuda")}
	in := trio().with(d)
	in.Hives[0].Devices = in.Hives[0].Devices[:1]
	in.Past = []Past{{Model: "m-big", Place: Place{"h1", "cuda0"}, OOMs: 1, Context: 8192, Reason: "oom"}}
	p := expect(t, in, "spawn big#0 h1/cuda0 context 4096")
	if got := p.Actions[0].Reason; got != "big#0 goes to tower/cuda0: it needs 20.2 GiB of 23.0 GiB free with a context of 4,096 tokens, as more does not fit, and 20.0 GiB are fetched from the model's origin." {
		t.Error(got)
	}
	w := at("w", "big", 0, "h1/cuda0", 20*gib) // with the smaller context it is what is wanted
	w.Model, w.Context = "m-big", 4096
	expect(t, in.and(w))
	in.Past[0].OOMs, in.Past[0].Context = 2, 4096
	p = expect(t, in, "short big 1 does_not_fit")
	if got := p.Shortfalls[0].Reason; got != "big does not fit on tower/cuda0: its workers were killed there for want of memory; choose a smaller model or context." {
		t.Error(got)
	}
}

// TestOutOfMemoryElsewhere: a device on which nobody was killed comes first; a smaller deployment forgets; an engine that chose the context
// itself is given half of what it will have chosen.
func TestOutOfMemoryElsewhere(t *testing.T) {
	d := Deployment{Name: "mid", Model: "m-mid", Min: 1, Judge: only("cuda")}
	in := trio().with(d)
	in.Past = []Past{{Model: "m-mid", Place: Place{"h1", "cuda0"}, OOMs: 1}}
	expect(t, in, "spawn mid#0 h1/cuda1")
	in.Past = append(in.Past, Past{Model: "m-mid", Place: Place{"h1", "cuda1"}, NoFit: true, Context: 8192})
	expect(t, in, "spawn mid#0 h1/cuda0 context 4096")
	in.Deployments[0].Context = 4096
	expect(t, in, "spawn mid#0 h1/cuda1 context 4096")
}

func TestSilence(t *testing.T) {
	d := Deployment{Name: "chat", Min: 1, Judge: only("cpu")}
	w := at("w", "chat", 0, "h2/cpu0", gib)
	w.State = StateDown
	expect(t, trio().with(d).and(w)) // it may well be back
	d.Waiting = 1
	expect(t, trio().with(d).and(w), "spawn chat#0 h3/cpu0 generation 2") // nobody else serves
	d.Waiting, w.State = 0, StateLost
	in := trio().with(d).and(w)
	in.Hives[1].Liveness = contract.LivenessLost
	expect(t, in, "spawn chat#0 h3/cpu0 generation 2")
	in.Panic = true
	expect(t, in, "short chat 1 cut_off")
	in.Panic = false
	// It is back: the newer one is drained, once one of them serves.
	v := at("v", "chat", 0, "h3/cpu0", gib)
	v.Generation, v.State, w.State = 2, StateStarting, StateReady
	in = trio().with(d).and(w, v)
	expect(t, in, "stop v surplus")
	in.Workers[1].State = StateReady
	expect(t, in, "stop v surplus")
	in.Workers[0].State = StateDown
	expect(t, in)
}

// TestLostWorkerThatRuns: a spawn on the device of a lost worker carries its generation, so that the hive gives back the process that
// runs, and its memory is not counted twice.
func TestLostWorkerThatRuns(t *testing.T) {
	d := Deployment{Name: "mid", Model: "m-mid", Min: 1, Judge: func(h *Hive, v *Device) Opinion {
		if h.ID != "h2" {
			return Opinion{Excluded: "excluded"}
		}
		return Opinion{}
	}}
	w := at("w", "mid", 0, "h2/cpu0", 10*gib)
	w.Model, w.State, w.Generation, w.ReadyAt = "m-mid", StateLost, 4, 100*time.Second
	p := expect(t, trio().with(d).and(w), "spawn mid#0 h2/cpu0 generation 4")
	in := trio().with(d).and(w, apply1(p.Actions[0], "again"))
	expect(t, in)
	if used := newPlanner(&in).byPlace[Place{"h2", "cpu0"}].pool.used; used != int64(10*gib) {
		t.Errorf("counts %s", amount(used))
	}
}

func apply1(a Action, id string) Worker {
	return Worker{ID: id, Deployment: a.Deployment, Replica: a.Replica, Generation: a.Generation, Hive: a.Place.Hive, Devices: []string{a.Place.Device}, Context: a.Context,
		Slots: a.Slots, State: StateStarting, Memory: a.Need}
}

func TestRollingChange(t *testing.T) {
	d := Deployment{Name: "chat", Min: 2, Max: 2, Spec: "s2", Judge: only("cuda")}
	w0, w1 := at("w0", "chat", 0, "h1/cuda0", gib), at("w1", "chat", 1, "h1/cuda1", gib)
	in := trio().with(d).and(w0, w1)
	expect(t, in, "surge chat#0 h1/cuda0 generation 2") // one at a time
	n0 := at("n0", "chat", 0, "h1/cuda0", gib)
	n0.Spec, n0.State, n0.Generation = "s2", StateStarting, 2
	in = trio().with(d).and(w0, w1, n0)
	expect(t, in)
	in.Workers[2].State, in.Workers[2].ReadyAt = StateReady, 995*time.Second
	if p := expect(t, in); p.Next != 1005*time.Second { // it warms up
		t.Errorf("looks again at %s", p.Next)
	}
	in.Workers[2].ReadyAt = 990 * time.Second
	expect(t, in, "stop w0 new_generation", "surge chat#1 h1/cuda0 generation 2")
	in.Workers[0].State = StateDraining
	expect(t, in, "surge chat#1 h1/cuda0 generation 2")

	t.Run("a successor that fails leaves the old one serving", func(t *testing.T) {
		n0.State = StateFailed
		in := trio().with(d).and(w0, w1, n0)
		in.Past = []Past{{Model: "m-smol", Place: Place{"h1", "cuda0"}, Until: 1010 * time.Second, Reason: "start_failed"}}
		p := expect(t, in, "short chat 1 back_off")
		if got := p.Shortfalls[0].Reason; !strings.HasSuffix(got, "in 10s, because its last worker failed (start_failed); `apiary job list` says more.") {
			t.Error(got)
		}
	})
	t.Run("without room for two", func(t *testing.T) {
		w0.Memory, w1.Memory = 14*gib, 14*gib
		d.Model = "m-mid"
		in := trio().with(d).and(w0, w1)
		p := expect(t, in, "stop w0 new_generation", "spawn chat#0 h1/cuda0 generation 2 after w0")
		if got := p.Actions[0].Reason; got != "Worker w0 is drained before its successor starts, because there is no room for both: the deployment chat has changed; the other replicas serve meanwhile." {
			t.Error(got)
		}
		in.Workers[0].State = StateDraining
		expect(t, in, "spawn chat#0 h1/cuda0 generation 2 after w0")
		in.Workers = in.Workers[1:]
		in.seen()
		expect(t, in, "spawn chat#0 h1/cuda0")
		one := d
		one.Min, one.Max = 1, 1
		in = trio().with(one).and(w0, at("x", "", 0, "h1/cuda1", 20*gib))
		p = expect(t, in, "stop w0 new_generation (downtime)", "spawn chat#0 h1/cuda0 generation 2 after w0")
		one.Model = "m-big" // with 64 KiB for each of 4 slots of 8,192 tokens it does not even fit alone: the old one stays
		one.Context = 65536
		in = trio().with(one).and(w0, at("x", "", 0, "h1/cuda1", 20*gib))
		expect(t, in, "short chat 1 does_not_fit")
	})
	t.Run("one on demand that is idle just goes", func(t *testing.T) {
		one := Deployment{Name: "chat", Spec: "s2", IdleTTL: time.Hour}
		in := trio().with(one).and(w0)
		expect(t, in, "stop w0 new_generation")
		in.Workers[0].LastUsed = 990 * time.Second
		expect(t, in, "surge chat#0 h1/cuda0 generation 2")
	})
	t.Run("one on each accelerator is replaced where it is", func(t *testing.T) {
		in := trio().with(Deployment{Name: "chat", Spec: "s2", PerGPU: true}).and(at("w0", "chat", 0, "h1/cuda0", gib), at("w1", "chat", 1, "h1/cuda1", gib))
		expect(t, in, "surge chat#0 h1/cuda0 generation 2")
	})
}

func TestDrainedHive(t *testing.T) {
	d := Deployment{Name: "chat", Min: 1}
	w := at("w", "chat", 0, "h1/cuda0", gib)
	in := trio().with(d).and(w)
	in.Hives[0].Drained = true
	expect(t, in, "surge chat#0 h3/cpu0 generation 2")
	n := at("n", "chat", 0, "h3/cpu0", gib)
	n.Generation, n.ReadyAt = 2, 980*time.Second
	in = in.and(n)
	p := expect(t, in, "stop w hive_drained")
	if got := p.Actions[0].Reason; got != "Worker w is drained: its successor n has served for 20s, and the hive tower is drained." {
		t.Error(got)
	}
	in.Workers = in.Workers[:1]
	in.Hives[1].Drained, in.Hives[2].Drained = true, true
	p = expect(t, in, "short chat 1 hives_drained")
	if len(p.Actions) != 0 {
		t.Error("what cannot move stays")
	}
}

func TestRemovedDeployment(t *testing.T) {
	in := trio().with(Deployment{Name: "a", Min: 1}).and(at("w", "chat", 0, "h1/cuda0", gib), at("a", "a", 0, "h1/cuda0", gib))
	expect(t, in) // perhaps another queen knows it
	in.Removed = []string{"chat", "a"}
	expect(t, in, "stop w removed") // a is there again
}

// TestRequireOfFreeMemory: a worker is not driven out by a rule about free memory that it breaks by being there.
func TestRequireOfFreeMemory(t *testing.T) {
	d := Deployment{Name: "mid", Model: "m-mid", Min: 1, Max: 2, Judge: func(_ *Hive, v *Device) Opinion {
		if v.MemoryFree < 16*gib || v.Kind == "cpu" {
			return Opinion{Excluded: "excluded by require"}
		}
		return Opinion{}
	}}
	in := trio().with(d)
	expect(t, in, "spawn mid#0 h1/cuda0")
	w := at("w", "mid", 0, "h1/cuda0", 10*gib)
	w.Model = "m-mid"
	in = in.and(w)
	expect(t, in)
	in.Deployments[0].Pressure.QueuedSince = 1
	expect(t, in, "spawn mid#1 h1/cuda1") // but another one is
}
