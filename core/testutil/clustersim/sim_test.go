package main

import (
	"flag"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
)

var (
	seeds = flag.Int("seeds", 20, "how many seeds to play")
	seed  = flag.Uint64("seed", 0, "the only seed to play")
	steps = flag.Int("steps", 100_000, "steps of each seed in which things go wrong")
)

// gpu allows accelerators only, of which there are few.
func gpu(_ *placement.Hive, d *placement.Device) placement.Opinion {
	if d.Kind == "cpu" {
		return placement.Opinion{Excluded: "excluded by require"}
	}
	return placement.Opinion{}
}

func deployments() []placement.Deployment {
	return []placement.Deployment{
		{Name: "chat", Model: "m-chat", Spec: "s0", Min: 2, Max: 4, Spread: true, Priority: 5, Judge: gpu},
		{Name: "code", Model: "m-code", Spec: "s0", Min: 1, Max: 2, Judge: gpu},
		{Name: "embed", Model: "m-embed", Spec: "s0", Min: 3, Max: 3, Spread: true, Judge: gpu},
		{Name: "rare", Model: "m-rare", Spec: "s0", Max: 2, IdleTTL: 5 * time.Minute, Judge: gpu},
		{Name: "other", Model: "m-rare", Spec: "s0", Max: 1, IdleTTL: time.Minute, Priority: -1},
	}
}

// TestChaos plays seeds: whatever goes wrong, the rules hold all the time, and when it stops, everything that is wished for runs.
func TestChaos(t *testing.T) {
	first, last := uint64(1), uint64(*seeds)
	if *seed != 0 {
		first, last = *seed, *seed
	}
	for s := first; s <= last; s++ {
		t.Run(fmt.Sprint("seed=", s), func(t *testing.T) {
			t.Parallel()
			play(t, s)
		})
	}
}

func play(t *testing.T, seed uint64) {
	w := newWorld(seed, 4+int(seed%3), 2+int(seed%2), deployments())
	w.every(time.Second, func() bool { return true }, w.serve)
	w.chaos(*steps)
	w.run(*steps, 0, nil)
	if w.failed != nil {
		t.Fatalf("seed %d: %v\n%s%s", seed, w.failed, w.views(), w.report())
	}
	w.calm()
	// I7: a minute after the last fault, and after the last wait that the rules want, everything that is wished for runs.
	why, calm, since, old := "nothing was looked at", w.now, w.now, 0
	for why != "" && w.failed == nil && w.now-since <= time.Minute && w.now-calm < 20*time.Minute { // longer than a crash loop
		w.run(1<<30, w.now+time.Second, nil)
		why = w.settled(false)
		excused, now := w.excused(old)
		if old = now; excused {
			since = w.now
		}
	}
	if w.failed != nil || why != "" {
		t.Fatalf("seed %d: %v; %s after the last fault, and %s after the last wait that was due, %s (I7)\n%s%s", seed, w.failed, w.now-calm, w.now-since, why, w.views(), w.report())
	}
	took, alone := w.now-calm, w.now-since
	w.run(1<<30, w.now+6*time.Minute, nil) // replicas that were added for a load are taken away again
	// And it stays so.
	before := w.count["processes started"]
	w.run(1<<30, w.now+10*time.Minute, nil)
	if why := w.settled(true); why != "" || w.count["processes started"] != before || w.failed != nil {
		t.Fatalf("seed %d: it does not stay as it is: %s, %v, %d workers were started\n%s%s", seed, why, w.failed, w.count["processes started"]-before, w.views(), w.report())
	}
	if testing.Verbose() {
		t.Logf("%d steps, %s; all was well %s after the last fault, and %s after the last wait that was due\n%s", w.steps, w.now.Round(time.Second), took.Round(time.Second), alone.Round(time.Second), w.report())
	}
}

// views says what each queen thinks, and what runs.
func (w *world) views() string {
	out := ""
	for _, p := range w.procs() {
		out += fmt.Sprintf("  %s runs on %s: %s of generation %d\n", p.id, p.hive.id, p.key, p.gen)
	}
	for _, q := range w.queens {
		in := q.input()
		out += fmt.Sprintf("  %s, started %s ago, planned %s ago, sees %v, brake %v\n", q.id, w.now-q.started, w.now-q.planned, in.Queens, in.Panic)
		for _, h := range in.Hives {
			if h.Liveness != contract.LivenessAlive {
				out += fmt.Sprintf("    hive %s is %s\n", h.ID, h.Liveness)
			}
		}
		for _, k := range in.Workers {
			if k.State != placement.StateReady {
				out += fmt.Sprintf("    worker %s of %s#%d, generation %d, on %s/%v is %s and has %s\n", k.ID, k.Deployment, k.Replica, k.Generation, k.Hive, k.Devices, k.State, k.Memory)
			}
		}
		for _, p := range in.Past {
			out += fmt.Sprintf("    past %+v\n", p)
		}
		for _, a := range q.plan.Actions {
			out += fmt.Sprintf("    %s does: %s %s, after %v\n", a.Owner, a.Kind, a.Reason, a.After)
		}
		for _, s := range q.plan.Shortfalls {
			out += "    " + s.Reason + "\n"
		}
	}
	return out
}

// report says how often what happened.
func (w *world) report() string {
	out := ""
	for _, k := range slices.Sorted(maps.Keys(w.count)) {
		out += fmt.Sprintf("  %7d %s\n", w.count[k], k)
	}
	return out
}

// TestNothingIsDoubledWithoutASplit: while everybody hears everybody, workers die and deployments change, and no two processes serve one
// generation of a replica.
func TestNothingIsDoubledWithoutASplit(t *testing.T) {
	w := newWorld(11, 6, 3, deployments())
	w.every(time.Second, func() bool { return true }, w.serve)
	w.every(10*time.Second, func() bool { return true }, func() {
		procs := w.procs()
		switch w.rnd.IntN(8) {
		case 0:
			if len(procs) > 0 {
				w.end(procs[w.rnd.IntN(len(procs))], contract.WorkerExit{Signal: 9})
			}
		case 1:
			w.deps[w.rnd.IntN(len(w.deps))].Spec = fmt.Sprint("s", w.steps)
		case 2:
			w.load[w.deps[w.rnd.IntN(len(w.deps))].Name] = w.rnd.IntN(12)
		}
	})
	w.run(60_000, 0, func() {
		seen := map[string]*proc{}
		for _, h := range w.hives {
			for _, p := range h.procs {
				if p.ending {
					continue
				}
				k := p.key + " " + p.spec
				if o := seen[k]; o != nil {
					w.fail("%s and %s serve %s", o.id, p.id, k)
				}
				seen[k] = p
			}
		}
	})
	if w.failed != nil {
		t.Fatalf("%v\n%s", w.failed, w.report())
	}
	if w.count["surge new_generation"] < 10 || w.count["spawn replace"] < 10 {
		t.Errorf("too little happened:\n%s", w.report())
	}
}

// TestCrashLoopEnds: a model that ends wherever it is started is started five times on each of two devices, and the others do not notice.
func TestCrashLoopEnds(t *testing.T) {
	for replicas, most := range map[int]int{1: 10, 2: 12} { // two of them may start at once
		w := newWorld(5, 6, 3, append(deployments(), placement.Deployment{Name: "bad", Model: "m-bad", Spec: "s0", Min: replicas}))
		w.bad["m-bad"] = true
		w.run(1<<30, 14*time.Minute, nil)
		starts := w.count["processes started"] - 6 // of the others
		if starts < 10 || starts > most || w.failed != nil {
			t.Errorf("with %d replicas it was started %d times: %v\n%s", replicas, starts, w.failed, w.report())
		}
		for _, q := range w.queens {
			if s := q.plan.Shortfalls; len(s) != 1 || s[0].Deployment != "bad" || s[0].Code != placement.ShortCrashLoop {
				t.Errorf("%s says %+v", q.id, s)
			}
		}
	}
}
