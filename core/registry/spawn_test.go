package registry

import (
	"slices"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestCrashLoop is T14 in fake time: five starts, at the back-off's distances, and then none.
func TestCrashLoop(t *testing.T) {
	for _, jitter := range []float64{-1, 0, 1} {
		w := newWorld(t)
		slot := Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}
		starts := []time.Duration{}
		id := 0
		spawn := func() {
			id++
			name := "w" + string(rune('0'+id))
			w.step(SpawnBegan{Slot: slot, WorkerID: name, Automatic: true})
			starts = append(starts, w.now)
			i := info(name, "")
			w.step(Exited{Report: contract.WorkerExit{WorkerID: name, Identity: i.Identity(), ExitCode: 3}, Jitter: jitter})
		}
		spawn()
		for end := 10 * time.Minute; w.now < end; w.now += 250 * time.Millisecond {
			if w.now%time.Second == 0 {
				w.step(Tick{})
			}
			for w.count(EffectRespawn) > len(starts)-1 {
				spawn()
			}
		}
		if len(starts) != 5 || starts[4] > 75*time.Second {
			t.Fatalf("jitter %v: starts at %v, want five within 75 s", jitter, starts)
		}
		for i, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second} {
			if got := starts[i+1] - starts[i]; got < want*3/4 || got > want*5/4+time.Second {
				t.Errorf("jitter %v: start %d came %s after the one before, want %s ± 25 %%", jitter, i+2, got, want)
			}
		}
		v := w.m.Verdict(w.now, slot)
		if v.Allowed || v.Reason != contract.ConditionCrashLoop || v.Exit == nil || v.Exit.ExitCode != 3 {
			t.Errorf("verdict %+v, want a crash loop with exit code 3", v)
		}
		if got := w.worker("w5").Condition; got != contract.ConditionCrashLoop || len(w.m.Snapshot(w.now).Workers) != 1 {
			t.Errorf("the last worker is %q and %d are listed", got, len(w.m.Snapshot(w.now).Workers))
		}
		w.pass(16 * time.Minute)
		if v := w.m.Verdict(w.now, slot); !v.Allowed {
			t.Errorf("16 minutes after the crash loop: %+v", v)
		}
	}
}

func TestOOMTwiceDoesNotFit(t *testing.T) {
	w := newWorld(t)
	slot := Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}
	for i := range 3 {
		id := "w" + string(rune('1'+i))
		w.step(SpawnBegan{Slot: slot, WorkerID: id, Automatic: true})
		w.beat(id, contract.StatusReady)
		w.exit(id, -1, true)
		if got := w.worker(id).Condition; got != contract.ConditionOOM {
			t.Errorf("condition %q after an out-of-memory kill", got)
		}
		if v := w.m.Verdict(w.now, slot); v.OOMs != i+1 {
			t.Errorf("after %d kills: %+v", i+1, v)
		}
		w.pass(30 * time.Second)
	}
	if n := w.count(EffectRespawn); n != 2 {
		t.Errorf("%d restarts after out-of-memory kills, want 2", n)
	}
	if v := w.m.Verdict(w.now, slot); v.Allowed || !v.NoFit || v.Reason != "does_not_fit" {
		t.Errorf("verdict %+v", v)
	}
	w.step(SpawnBegan{Slot: slot, WorkerID: "w9"}) // a person tries again
	if v := w.m.Verdict(w.now, slot); !v.Allowed || v.Exit != nil {
		t.Errorf("after a person's wish: %+v", v)
	}
}

func TestHealthyTimeResetsTheBackoff(t *testing.T) {
	w := newWorld(t)
	slot := Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}
	for i := range 3 {
		id := "w" + string(rune('1'+i))
		w.step(SpawnBegan{Slot: slot, WorkerID: id, Automatic: true})
		w.beat(id, contract.StatusReady)
		w.pass(11*time.Minute, id)
		w.exit(id, 1, false)
		if v := w.m.Verdict(w.now, slot); v.Wait != 0 || !v.Live {
			t.Errorf("after a long healthy time a crash waits: %+v", v)
		}
		if got := w.worker(id); got.Condition != "" || got.Info.Status != contract.StatusStopped || got.Liveness != contract.LivenessDown {
			t.Errorf("a crashed worker is listed as %q %s %s", got.Condition, got.Info.Status, got.Liveness)
		}
	}
}

func TestDeletedWhileARestartIsDue(t *testing.T) {
	w := newWorld(t)
	w.beat("w1", contract.StatusReady)
	w.m.p.Backoff = []time.Duration{10 * time.Second}
	w.exit("w1", 1, false)
	w.step(Deleted{WorkerID: "w1"})
	w.pass(time.Minute)
	if n := w.count(EffectRespawn); n != 0 {
		t.Errorf("a deleted worker was restarted %d times", n)
	}
}

// TestFailedManualSpawnIsNotRepeated: a worker that a person started and that never took requests is not started again by itself.
// Once it did, it is.
func TestFailedManualSpawnIsNotRepeated(t *testing.T) {
	slot := Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}
	for _, beats := range []bool{false, true} {
		w := newWorld(t)
		w.step(SpawnBegan{Slot: slot, WorkerID: "w1"})
		if beats {
			w.beat("w1", contract.StatusStarting)
		}
		w.exit("w1", 3, false)
		w.pass(time.Minute)
		if n := w.count(EffectRespawn); n != 0 {
			t.Errorf("beats %v: a person's spawn that failed was repeated %d times", beats, n)
		}
		if v := w.m.Verdict(w.now, slot); v.Reason != contract.ConditionStartFailed || v.Exit == nil || v.Live {
			t.Errorf("beats %v: verdict %+v", beats, v)
		}
	}
	w := newWorld(t)
	w.step(SpawnBegan{Slot: slot, WorkerID: "w1"})
	w.beat("w1", contract.StatusReady)
	w.exit("w1", 3, false)
	if n := w.count(EffectRespawn); n != 1 {
		t.Errorf("a person's worker that crashed later was restarted %d times", n)
	}
}

func TestSpawnThatFailsWaitsButIsNotRepeated(t *testing.T) {
	w := newWorld(t)
	slot := Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}
	for range 2 {
		w.step(SpawnBegan{Slot: slot, WorkerID: "w1", Automatic: true})
		w.step(SpawnFailed{WorkerID: "w1", Slot: slot, Reason: "no_space"})
	}
	if v := w.m.Verdict(w.now, slot); v.Wait != 10*time.Second || v.Reason != "no_space" || v.Live {
		t.Errorf("verdict %+v", v)
	}
	w.pass(time.Minute)
	if n := w.count(EffectRespawn); n != 0 {
		t.Errorf("a refused spawn was repeated %d times", n)
	}
}

// TestRefusedForMemoryIsTriedAgain: a hive that has no room now refuses with the same code as the one for workers that were killed too often,
// and may well have room later.
func TestRefusedForMemoryIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	slot := Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}
	for range 2 {
		w.step(SpawnBegan{Slot: slot, WorkerID: "w1", Automatic: true})
		w.step(SpawnFailed{WorkerID: "w1", Slot: slot, Reason: "does_not_fit"})
	}
	if v := w.m.Verdict(w.now, slot); v.Allowed || v.NoFit || v.Wait != 10*time.Second || v.Reason != "does_not_fit" {
		t.Errorf("verdict %+v", v)
	}
	w.pass(11 * time.Second)
	if v := w.m.Verdict(w.now, slot); !v.Allowed || v.NoFit {
		t.Errorf("later: %+v", v)
	}
}

// TestFailedSpawnLeavesALiveWorker: a spawn that asks for the id of a worker that runs fails, and the worker runs on.
func TestFailedSpawnLeavesALiveWorker(t *testing.T) {
	w := newWorld(t)
	here, there := Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}, Slot{ModelID: "other", HiveID: "h1", Device: "cpu0"}
	w.step(SpawnBegan{Slot: here, WorkerID: "w1"})
	w.beat("w1", contract.StatusReady)
	w.step(SpawnBegan{Slot: there, WorkerID: "w1"})
	if fx := w.step(SpawnFailed{WorkerID: "w1", Slot: there, Reason: "worker_exists"}); len(fx) != 0 {
		t.Errorf("a spawn that failed had the effects %v", fx)
	}
	w.beat("w1", contract.StatusReady)
	if ids := w.serving(); !slices.Equal(ids, []string{"w1"}) {
		t.Errorf("after a failed spawn under the same id %v serve", ids)
	}
	if a, b := w.m.Verdict(w.now, here), w.m.Verdict(w.now, there); a.Reason != "" || !a.Live || b.Live {
		t.Errorf("verdicts %+v and %+v", a, b)
	}
	w.pass(time.Minute, "w1")
	if n := w.count(EffectRespawn); n != 0 {
		t.Errorf("%d workers were asked for", n)
	}
}

// TestSurplusAfterALoss (F12): when a worker that was lost and replaced comes back, the newer one is to be drained, once, and the
// older one is kept and looked after as before.
func TestSurplusAfterALoss(t *testing.T) {
	surplus := func(w *world) (ids []string) {
		for _, e := range w.seen {
			if e.Kind == EffectSurplus {
				ids = append(ids, e.WorkerID)
			}
		}
		return ids
	}
	here, there := Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}, Slot{ModelID: "m", HiveID: "h2", Device: "cpu0"}
	for _, c := range []struct {
		slot   Slot
		manual bool
		want   []string
	}{{here, false, []string{"w2"}}, {there, false, []string{"w2"}}, {here, true, nil}, {there, true, nil}} {
		w := newWorld(t)
		w.step(SpawnBegan{Slot: here, WorkerID: "w1", Automatic: true})
		w.beat("w1", contract.StatusReady)
		w.pass(20*time.Second, "h1", "h2", "w1")
		w.pass(70*time.Second, "h1", "h2")
		if l := w.worker("w1").Liveness; l != contract.LivenessLost || w.count(EffectRespawn) != 1 {
			t.Fatalf("after 70 s of silence: %s, %d respawns", l, w.count(EffectRespawn))
		}
		second := func(status contract.WorkerStatus) {
			i := info("w2", status)
			i.HiveID, i.PID, i.Incarnation = c.slot.HiveID, 8, 200
			w.seqs["w2"]++
			w.step(Beat{Heartbeat: contract.Heartbeat{Worker: i, Sequence: w.seqs["w2"]}})
		}
		w.step(SpawnBegan{Slot: c.slot, WorkerID: "w2", Automatic: !c.manual})
		second(contract.StatusStarting)
		w.beat("w1", contract.StatusReady)
		w.pass(3*time.Second, "w1")
		if ids := surplus(w); len(ids) != 0 {
			t.Errorf("%+v: %v is surplus although only one worker serves", c, ids)
		}
		second(contract.StatusReady)
		w.pass(3*time.Second, "w1")
		if ids := surplus(w); !slices.Equal(ids, c.want) {
			t.Errorf("%+v: surplus %v, want %v", c, ids, c.want)
		}
		if c.want == nil {
			continue
		}
		w.step(Draining{WorkerID: "w2", On: true})
		i := info("w2", "")
		i.PID = 8
		w.step(Exited{Report: contract.WorkerExit{WorkerID: "w2", Identity: i.Identity()}})
		w.step(Deleted{WorkerID: "w2"})
		before := w.count(EffectRespawn)
		w.step(Release{Slot: here}) // the respawn that was answered elsewhere
		if c.slot == here {
			w.exit("w1", 1, false)
			if n := w.count(EffectRespawn) - before; n != 1 {
				t.Errorf("the worker that was kept crashed and %d were asked for", n)
			}
		}
	}
}
