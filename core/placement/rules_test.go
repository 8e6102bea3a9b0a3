package placement

import (
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

func TestWhereReplicasGo(t *testing.T) {
	holds := func(in Input, hive, what string) Input {
		for i := range in.Hives {
			if in.Hives[i].ID == hive {
				in.Hives[i].Holds[what] = true
			}
		}
		return in
	}
	t.Run("an accelerator first, the fullest that will do", func(t *testing.T) {
		in := trio().with(Deployment{Name: "chat", Min: 1}).and(at("x", "", 0, "h1/cuda1", 4*gib))
		expect(t, in, "spawn chat#0 h1/cuda1")
	})
	t.Run("spread takes the emptiest, and another hive each time", func(t *testing.T) {
		in := trio().with(Deployment{Name: "chat", Min: 3, Spread: true}).and(at("x", "", 0, "h1/cuda0", 4*gib))
		expect(t, in, "spawn chat#0 h1/cuda1", "spawn chat#1 h2/cpu0", "spawn chat#2 h3/cpu0")
	})
	t.Run("the hive that holds the bytes", func(t *testing.T) {
		in := holds(trio().with(Deployment{Name: "chat", Min: 1, Judge: only("cpu")}), "h2", "m-smol")
		p := expect(t, in, "spawn chat#0 h2/cpu0")
		if p.Actions[0].Fetch != 0 {
			t.Error("fetches what is there")
		}
		in.Hives[1].Liveness = contract.LivenessSuspect
		in = holds(in, "h1", "m-smol")
		in.Hives[0].Drained = true
		p = expect(t, in, "spawn chat#0 h3/cpu0")
		if a := p.Actions[0]; a.Fetch != gib || a.From != "h1" {
			t.Errorf("fetches %s from %q; the drained hive has it still", a.Fetch, a.From)
		}
	})
	t.Run("prefer before everything but room", func(t *testing.T) {
		in := trio().with(Deployment{Name: "chat", Min: 1, Judge: func(h *Hive, _ *Device) Opinion { return Opinion{Prefer: h.Name == "attic"} }})
		expect(t, in, "spawn chat#0 h3/cpu0")
		in.Deployments[0].Model = "m-mid"
		expect(t, in, "spawn chat#0 h1/cuda0")
	})
	t.Run("one on each accelerator", func(t *testing.T) {
		in := trio().with(Deployment{Name: "embed", PerGPU: true, Min: 7})
		expect(t, in, "spawn embed#0 h1/cuda0", "spawn embed#1 h1/cuda1")
		in = in.and(at("w0", "embed", 0, "h1/cuda0", gib), at("w1", "embed", 1, "h1/cuda1", gib))
		expect(t, in)
		in.Deployments[0].Judge = func(_ *Hive, d *Device) Opinion {
			if d.ID == "cuda1" {
				return Opinion{Excluded: "excluded"}
			}
			return Opinion{}
		}
		expect(t, in, "stop w1 too_many")
	})
	t.Run("memory is shared between deployments, highest priority first", func(t *testing.T) {
		in := trio().with(Deployment{Name: "a", Min: 2, Model: "m-mid", Judge: only("cuda")}, Deployment{Name: "b", Min: 3, Model: "m-mid", Priority: 1, Judge: only("cuda")})
		expect(t, in, "spawn b#0 h1/cuda0", "spawn b#1 h1/cuda0", "spawn b#2 h1/cuda1", "spawn a#0 h1/cuda1", "short a 1 does_not_fit")
	})
	t.Run("starting workers hold their memory", func(t *testing.T) {
		w := at("w", "a", 0, "h1/cuda0", 20*gib)
		w.State = StateStarting
		v := at("v", "", 0, "h1/cuda1", 20*gib)
		in := trio().with(Deployment{Name: "a", Min: 1}, Deployment{Name: "b", Min: 1, Model: "m-mid", Judge: only("cuda")}).and(w, v)
		expect(t, in, "short b 1 does_not_fit")
	})
	t.Run("what others than workers use counts", func(t *testing.T) {
		in := trio().with(Deployment{Name: "b", Min: 1, Model: "m-mid", Judge: only("cuda")})
		in.Hives[0].Devices[0].MemoryFree = 5 * gib
		expect(t, in, "spawn b#0 h1/cuda1")
	})
	t.Run("what is measured has not seen those that load, nor those of this plan", func(t *testing.T) {
		in := trio().with(Deployment{Name: "a", Min: 1}, Deployment{Name: "b", Min: 2, Model: "m-mid", Judge: func(_ *Hive, d *Device) Opinion {
			if d.ID != "cuda0" {
				return Opinion{Excluded: "excluded"}
			}
			return Opinion{}
		}})
		in.Hives[0].Devices[0].MemoryFree = 12 * gib
		expect(t, in, "spawn a#0 h1/cuda0", "spawn b#0 h1/cuda0", "short b 1 does_not_fit")
		w := at("w", "a", 0, "h1/cuda0", 8*gib)
		w.State = StateStarting
		in.Workers = in.and(w).Workers
		in.Hives[0].Devices[0].MemoryFree = 12 * gib
		expect(t, in, "short b 2 does_not_fit")
		in.Workers[0].State, in.Workers[0].ReadyAt = StateReady, 998*time.Second
		expect(t, in, "spawn b#0 h1/cuda0", "short b 1 does_not_fit")
		in.Workers[0].ReadyAt = 1000 * time.Second // later than the measurement
		expect(t, in, "short b 2 does_not_fit")
	})
	t.Run("devices of one pool share it", func(t *testing.T) {
		in := trio().with(Deployment{Name: "a", Min: 2, Model: "m-mid"})
		in.Hives = in.Hives[1:2]
		in.Hives[0].Devices[0].Pool = "ram"
		in.Hives[0].Devices = append(in.Hives[0].Devices, Device{ID: "vulkan0", Kind: "vulkan", MemoryTotal: 16 * gib, Reserve: gib, Pool: "ram"})
		expect(t, in, "spawn a#0 h2/vulkan0", "short a 1 does_not_fit")
	})
	t.Run("hives that do not answer, are drained, or have fenced devices get nothing", func(t *testing.T) {
		in := trio().with(Deployment{Name: "a", Min: 1})
		in.Hives[0].Drained = true
		in.Hives[1].Liveness = contract.LivenessSuspect
		expect(t, in, "spawn a#0 h3/cpu0")
		in.Hives[2].Devices[0].Fenced = "a process that cannot be killed holds it"
		expect(t, in, "short a 1 device_fenced")
		in.Hives = in.Hives[:2]
		expect(t, in, "short a 1 hives_drained")
		expect(t, Input{Deployments: in.Deployments, Models: in.Models}, "short a 1 no_hive")
		in.Deployments[0].Model = "unheard-of"
		expect(t, in, "short a 1 model_not_found")
	})
}

func TestContextThatFits(t *testing.T) {
	d := Deployment{Name: "big", Model: "m-big", Min: 1, Slots: 1, Judge: only("cuda")}
	in := trio().with(d)
	expect(t, in, "spawn big#0 h1/cuda0 context 8192")
	in.Models[1].MaxContext = 131072 // 8 GiB
	expect(t, in, "spawn big#0 h1/cuda0 context 16384")
	in.Deployments[0].Context = 40000
	expect(t, in, "spawn big#0 h1/cuda0 context 40000")
	in.Deployments[0].Context = 131072
	expect(t, in, "short big 1 does_not_fit")
}

func TestMeasuredPeaks(t *testing.T) {
	d := Deployment{Name: "mid", Model: "m-mid", Engine: "e1", Min: 1, Judge: only("cuda")}
	in := trio().with(d)
	need := func(peaks ...Peak) contract.Bytes {
		in.Peaks = peaks
		p := Make(in)
		if len(p.Actions) == 0 {
			return 0
		}
		return p.Actions[0].Need
	}
	peak := func(model, engine, device string, context int, bytes contract.Bytes) Peak {
		return Peak{Model: model, Engine: engine, Place: Place{"h1", device}, Context: context, Bytes: bytes}
	}
	cuda1 := func(_ *Hive, d *Device) Opinion {
		return Opinion{Prefer: d.ID == "cuda1", Excluded: map[bool]string{true: "no"}[d.Kind == "cpu"]}
	}
	if got := need(); got != 10*gib {
		t.Errorf("without peaks %s", got)
	}
	if got := need(peak("m-mid", "e1", "cuda0", 0, 5*gib)); got < 5*gib || got > 5*gib+gib/4 {
		t.Errorf("such a worker took 5 GiB: %s", got)
	}
	in.Deployments[0].Judge = cuda1
	if got := need(peak("m-mid", "e1", "cuda0", 0, 15*gib)); got != 15*gib {
		t.Errorf("one elsewhere took 15 GiB: %s", got)
	}
	if got := need(peak("m-mid", "e1", "cuda0", 0, 12*gib), peak("m-mid", "e1", "cuda1", 1, 11*gib)); got != 11*gib {
		t.Errorf("the same device says more than another one: %s", got)
	}
	if got := need(peak("m-mid", "e2", "cuda1", 0, 15*gib), peak("m-smol", "e1", "cuda1", 0, 15*gib)); got != 10*gib {
		t.Errorf("peaks of others: %s", got)
	}
	if got := need(peak("m-mid", "e1", "cuda0", 0, 100*gib)); got != 0 {
		t.Errorf("one that does not fit is placed with %s", got)
	}
}

func TestOnDemand(t *testing.T) {
	d := Deployment{Name: "chat", Max: 2, IdleTTL: 15 * time.Minute}
	expect(t, trio().with(d))
	d.Waiting = 30
	expect(t, trio().with(d), "spawn chat#0 h1/cuda0")
	w := at("w0", "chat", 0, "h1/cuda0", gib)
	w.State = StateStarting
	expect(t, trio().with(d).and(w)) // one, however many ask
	w.State, w.ReadyAt = StateReady, 200*time.Second
	d.Waiting = 0
	p := expect(t, trio().with(d).and(w))
	if p.Next != 1100*time.Second {
		t.Errorf("looks again at %s", p.Next)
	}
	w.ReadyAt = 50 * time.Second
	expect(t, trio().with(d).and(w), "stop w0 idle")
	w.LastUsed = 990 * time.Second
	expect(t, trio().with(d).and(w))
	// One that was in use when it failed counts as long as it would have been kept; then there is another look.
	failed := at("f", "chat", 1, "h1/cuda0", gib)
	failed.State, failed.LastUsed, w.LastUsed = StateFailed, 600*time.Second, 0
	if p := expect(t, trio().with(d).and(w, failed)); p.Next != 1500*time.Second {
		t.Errorf("looks again at %s", p.Next)
	}
	failed.LastUsed = 100 * time.Second
	expect(t, trio().with(d).and(w, failed), "stop w0 idle")
	w.LastUsed, w.Busy = 0, 1
	expect(t, trio().with(d).and(w))
	w.Busy, d.Min = 0, 1
	expect(t, trio().with(d).and(w))
}

func TestScale(t *testing.T) {
	d := Deployment{Name: "chat", Min: 1, Max: 3, Pressure: Pressure{QueuedSince: 995 * time.Second}}
	w0 := at("w0", "chat", 0, "h1/cuda0", gib)
	p := expect(t, trio().with(d).and(w0))
	if p.Next != 1005*time.Second {
		t.Errorf("looks again at %s", p.Next)
	}
	d.Pressure.QueuedSince = 980 * time.Second
	expect(t, trio().with(d).and(w0), "spawn chat#1 h1/cuda0")
	w1 := at("w1", "chat", 1, "h1/cuda0", gib)
	w1.State = StateStarting
	expect(t, trio().with(d).and(w0, w1)) // one at a time
	w1.State, w1.ReadyAt = StateReady, 990*time.Second
	expect(t, trio().with(d).and(w0, w1)) // it has just begun to help
	w1.ReadyAt = 960 * time.Second
	expect(t, trio().with(d).and(w0, w1), "spawn chat#2 h1/cuda0")
	expect(t, trio().with(d).and(w0, w1, at("w2", "chat", 2, "h1/cuda0", gib)))
	// One too many, for long enough, and one at a time.
	d.Pressure = Pressure{SlackSince: 800 * time.Second}
	p = expect(t, trio().with(d).and(w0, w1))
	if p.Next != 1100*time.Second {
		t.Errorf("looks again at %s", p.Next)
	}
	d.Pressure = Pressure{SlackSince: 600 * time.Second}
	w0.Busy = 1
	expect(t, trio().with(d).and(w0, w1), "stop w1 slack")
	w0.Busy, w0.ReadyAt = 0, 990*time.Second // a queen that was restarted has not seen it for longer, and chooses the same
	expect(t, trio().with(d).and(w0, w1), "stop w1 slack")
	w1.State = StateDraining
	expect(t, trio().with(d).and(w0, w1, at("w2", "chat", 2, "h1/cuda0", gib)))
	expect(t, trio().with(d).and(w0))
	d.Max = 1
	expect(t, trio().with(d).and(w0, at("w2", "chat", 2, "h1/cuda0", gib)), "stop w2 too_many")
}

func TestPressure(t *testing.T) {
	var p Pressure
	p = p.Observe(10, 2, 8, 8, 3)
	p = p.Observe(20, 2, 8, 8, 1)
	if p.QueuedSince != 10 || p.SlackSince != 0 {
		t.Errorf("queued: %+v", p)
	}
	p = p.Observe(30, 2, 8, 3, 0)
	if p.QueuedSince != 0 || p.SlackSince != 0 {
		t.Errorf("three of four slots that would be left are busy: %+v", p)
	}
	p = p.Observe(40, 2, 8, 2, 0)
	p = p.Observe(50, 2, 8, 1, 0)
	if p.SlackSince != 40 {
		t.Errorf("slack: %+v", p)
	}
	if p = p.Observe(60, 3, 12, 1, 0); p.SlackSince != 60 {
		t.Errorf("with another replica the wait begins anew: %+v", p)
	}
	if p = p.Observe(70, 1, 4, 0, 0); p.SlackSince != 0 {
		t.Errorf("one replica is never too many: %+v", p)
	}
}

// crowd leaves no room on processors.
func crowd(in Input) {
	for i := range in.Hives {
		for j := range in.Hives[i].Devices {
			if d := &in.Hives[i].Devices[j]; d.Kind == "cpu" {
				d.MemoryTotal, d.MemoryFree = 8*gib, 8*gib
			}
		}
	}
}

func TestEviction(t *testing.T) {
	need := Deployment{Name: "new", Model: "m-mid", Min: 1, Judge: only("cuda")}
	base := func(d Deployment, ds ...Deployment) Input { return trio().with(append(ds, d)...) }
	old := func(id, deployment, place string, used time.Duration) Worker {
		w := at(id, deployment, 0, place, 20*gib)
		w.LastUsed = used
		return w
	}
	idle := 900 * time.Second
	t.Run("the lowest priority, then what is worth least", func(t *testing.T) {
		in := base(Deployment{Name: "new", Model: "m-mid", Min: 1, Priority: 5, Judge: only("cuda")}, Deployment{Name: "a", Priority: 1}, Deployment{Name: "b"}).
			and(old("wa", "a", "h1/cuda0", idle), old("wb", "b", "h1/cuda1", idle))
		p := expect(t, in, "evict wb makes_room", "spawn new#0 h1/cuda1 after wb")
		if p.Actions[0].For != "new" || p.Actions[0].Owner != p.Actions[1].Owner {
			t.Errorf("%+v", p.Actions[0])
		}
		in.Deployments[0].Priority = 0
		in.Workers[0].LastUsed = 800 * time.Second
		expect(t, in, "evict wa makes_room", "spawn new#0 h1/cuda0 after wa")
		in.Hives[0].Holds["m-smol"] = false // both would have to be fetched again: the same choice
		expect(t, in, "evict wa makes_room", "spawn new#0 h1/cuda0 after wa")
		// While it drains the plan stays the same, and nobody else is evicted.
		in.Workers[0].State = StateDraining
		expect(t, in, "spawn new#0 h1/cuda0 after wa")
	})
	t.Run("no more than needed", func(t *testing.T) {
		in := base(need, Deployment{Name: "a"}, Deployment{Name: "b"}, Deployment{Name: "c"}).and(at("wa", "a", 0, "h1/cuda0", 2*gib), at("wb", "b", 0, "h1/cuda0", 12*gib),
			at("wc", "c", 0, "h1/cuda0", 9*gib), at("x", "", 0, "h1/cuda1", 22*gib))
		expect(t, in, "evict wa makes_room", "evict wc makes_room", "spawn new#0 h1/cuda0 after wa,wc")
	})
	for name, c := range map[string]struct {
		victim Deployment
		worker func(*Worker)
	}{
		"pinned":                {Deployment{Pinned: true}, nil},
		"a higher priority":     {Deployment{Priority: 7}, nil},
		"busy":                  {Deployment{}, func(w *Worker) { w.Busy = 1 }},
		"a queue":               {Deployment{}, func(w *Worker) { w.Queue = 1 }},
		"used a moment ago":     {Deployment{}, func(w *Worker) { w.LastUsed = 990 * time.Second }},
		"its minimum":           {Deployment{Min: 1}, nil},
		"requests wait for it":  {Deployment{Waiting: 2}, nil},
		"it is loading":         {Deployment{}, func(w *Worker) { w.State = StateStarting }},
		"a person started it":   {Deployment{}, func(w *Worker) { w.Deployment = "" }},
		"of unknown deployment": {Deployment{}, func(w *Worker) { w.Deployment = "from another queen" }},
	} {
		t.Run("never: "+name, func(t *testing.T) {
			c.victim.Name = "old"
			w := old("w", "old", "h1/cuda0", idle)
			if c.worker != nil {
				c.worker(&w)
			}
			in := base(need, c.victim).and(w, at("x", "", 0, "h1/cuda1", 20*gib))
			p := expect(t, in, "short new 1 does_not_fit")
			if want := map[string]time.Duration{"used a moment ago": 1050 * time.Second}[name]; p.Next != want {
				t.Errorf("looks again at %s", p.Next)
			}
		})
	}
	t.Run("a higher priority takes the last replica for one that must be, and only then", func(t *testing.T) {
		d := need
		d.Priority = 1
		in := base(d, Deployment{Name: "old", Min: 1, Judge: only("cuda")}).and(old("w", "old", "h1/cuda0", idle), at("x", "", 0, "h1/cuda1", 22*gib))
		in.Models[0].Estimate.Weights = 20 * gib
		expect(t, in, "evict w makes_room (downtime)", "spawn new#0 h1/cuda0 after w", "short old 1 does_not_fit")
		in.Deployments[1].Max, in.Deployments[1].Pressure.QueuedSince, in.Deployments[1].Judge = 2, 1, nil
		crowd(in)
		in = in.and(at("n", "new", 0, "h1/cpu0", gib))
		expect(t, in)
	})
	t.Run("a replica that is only wished for takes what a lower priority can spare", func(t *testing.T) {
		d := need
		d.Priority, d.Max, d.Pressure.QueuedSince = 1, 2, 1
		in := base(d, Deployment{Name: "old"}).and(old("w", "old", "h1/cuda0", idle), at("x", "", 0, "h1/cuda1", 22*gib), at("n", "new", 0, "h1/cpu0", gib))
		in.Deployments[1].Judge = nil
		crowd(in)
		expect(t, in, "evict w makes_room", "spawn new#1 h1/cuda0 after w")
	})
}
