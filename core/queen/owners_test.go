package queen

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

// spawns counts the workers that hives were asked to start.
func spawns(hives ...*fakeHive) (n int) {
	for _, h := range hives {
		n += len(h.spawned())
	}
	return n
}

// TestQueensShareTheWork: each of several replicas is started by one queen, and by the other when that one ends.
func TestQueensShareTheWork(t *testing.T) {
	h := newHall(t)
	one, two := newFakeHive(t, "h1"), newFakeHive(t, "h2")
	a, b := h.start("q1", Options{Home: t.TempDir()}, one, two), h.start("q2", Options{Home: t.TempDir()}, one, two)
	h.together()
	if got := a.run(planOp(contract.OpApply, echoDeployment("chat", 8, 8))); got.err != nil {
		t.Fatalf("%s\n%s", got.err, got.text())
	}
	h.eventually("both know that all serve", func() bool { return len(a.serving(echoModel)) == 8 && len(b.serving(echoModel)) == 8 })
	if n := spawns(one, two); n != 8 {
		t.Errorf("%d spawns", n)
	}
	for _, w := range a.Snapshot().Workers {
		owner := placement.Owner(w.Info.SpawnKey, []string{"q1", "q2"})
		for _, q := range []*agent{a, b} {
			if began := q.deploy.reason(w.Info.ID) != ""; began != (owner == q.o.NodeID) {
				t.Errorf("%s: the owner is %s, and %s has started it: %t", w.Info.SpawnKey, owner, q.o.NodeID, began)
			}
		}
	}
	h.eventually("nobody is busy", func() bool { return !a.placing() && !b.placing() })
	a.end()
	h.eventually("the other one has all keys at once", func() bool { return slices.Equal(b.company.owners(), []string{"q2"}) })
	for _, w := range append(one.workers(), two.workers()...) {
		if placement.Owner(w.spec.SpawnKey, []string{"q1", "q2"}) == "q1" {
			w.beatTo(b.base)
			w.crash <- 9
			break
		}
	}
	h.eventually("it replaces one of the other's", func() bool { return spawns(one, two) == 9 && len(b.serving(echoModel)) == 8 })
}

// TestOneSpawnForAll: however many requests come to two queens for a model that nobody serves, one worker is started, and both say by which job.
func TestOneSpawnForAll(t *testing.T) {
	for _, deployed := range []bool{false, true} {
		t.Run(fmt.Sprintf("deployed=%t", deployed), func(t *testing.T) {
			h := newHall(t)
			one, two := newFakeHive(t, "h1"), newFakeHive(t, "h2")
			var hives []*fakeHive
			for _, v := range []*fakeHive{one, two} {
				v.withModel(modelID, modelRef).withEngine()
				v.behave = func(w *fakeWorker) { w.loadFor = 700 * time.Millisecond }
				hives = append(hives, v)
			}
			var o Options
			if deployed {
				d := llamaDeployment("chat")
				d.Replicas.Min = 0
				o.Deployments = []contract.Deployment{d}
			}
			a, b := h.start("q1", o, hives...), h.start("q2", o, hives...)
			h.together()
			jobs := map[string]bool{}
			for i := 0; len(a.serving(modelID)) == 0 || len(b.serving(modelID)) == 0; i++ {
				for _, q := range []*agent{a, b} {
					d := q.Demand(modelRef)
					if d.Err != nil || d.RetryAfter <= 0 {
						t.Fatalf("%s: %+v", q.o.NodeID, d)
					}
					if d.JobID != "" {
						jobs[q.o.NodeID+" "+d.JobID] = true
					}
				}
				if time.Sleep(15 * time.Millisecond); i > 1000 {
					t.Fatal("nobody serves")
				}
			}
			time.Sleep(300 * time.Millisecond)
			if n := spawns(hives...); n != 1 {
				t.Errorf("%d spawns", n)
			}
			if len(jobs) != 2 {
				t.Errorf("jobs %v", jobs)
			}
		})
	}
}

// TestDemandThatFailsElsewhere: what the queen that is to start a worker cannot do is said at the other one too.
func TestDemandThatFailsElsewhere(t *testing.T) {
	h := newHall(t)
	v := newFakeHive(t, "h1").withModel(modelID, modelRef).withEngine()
	v.behave = func(w *fakeWorker) { w.loadFor, w.exitCode = 10*time.Millisecond, 3 }
	a, b := h.start("q1", Options{}, v), h.start("q2", Options{}, v)
	h.together()
	said := map[string]registry.Demand{}
	h.eventually("both say that it failed", func() bool {
		for _, q := range []*agent{a, b} {
			if d := q.Demand(modelRef); d.Err != nil {
				said[q.o.NodeID] = d
			}
		}
		return len(said) == 2
	})
	for q, d := range said {
		if !strings.Contains(d.Err.Error(), "3") {
			t.Errorf("%s: %+v", q, d)
		}
	}
}

// TestDrainIsRespected: a worker that one queen ends gets nothing from the other, which ends nothing before the requests of the other are over, and
// knows afterwards that it ended on purpose.
func TestDrainIsRespected(t *testing.T) {
	h := newHall(t)
	v := newFakeHive(t, "h1").withModel(modelID, modelRef).withEngine()
	var open atomic.Int32
	open.Store(1)
	a, b := h.start("q1", Options{InFlight: func(string) int { return int(open.Load()) }}, v), h.start("q2", Options{}, v)
	h.together()
	if got := a.run(spawnOp(modelRef)); got.err != nil {
		t.Fatal(got.err)
	}
	h.eventually("both know it", func() bool { return len(a.serving(modelID)) == 1 && len(b.serving(modelID)) == 1 })
	id := a.serving(modelID)[0].Info.ID
	routed := func(q *agent) bool { w, ok := q.Snapshot().Worker(id); return ok && !w.Draining }
	job := a.submit(contract.WorkerRef{Operation: contract.OpWorkerDelete, WorkerID: id})
	h.eventually("neither sends anything there", func() bool { return !routed(a) && !routed(b) })
	// Given up: it is back at both.
	res, err := send(a.http, "DELETE", a.base+"/v1/jobs/"+job, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	h.eventually("both use it again", func() bool { return routed(a) && routed(b) })
	open.Store(0)
	if got := a.run(contract.WorkerRef{Operation: contract.OpWorkerDelete, WorkerID: id}); got.err != nil {
		t.Fatal(got.err)
	}
	h.eventually("both have forgotten it", func() bool {
		_, x := a.Snapshot().Worker(id)
		_, y := b.Snapshot().Worker(id)
		return !x && !y
	})
	if !b.Deleted(id) {
		t.Error("the other queen takes it for lost")
	}
	if v := b.verdict(registry.Slot{ModelID: modelID, HiveID: "h1", Device: "cpu0"}); v.Reason == contract.ConditionStartFailed || v.OOMs > 0 || v.Wait > 0 {
		t.Errorf("its end counts as a crash at the other queen: %+v", v)
	}
	if n := spawns(v); n != 1 {
		t.Errorf("%d spawns", n)
	}
}

// TestOneRestartsWhatCrashed: a worker that no deployment wants is started again once, however many queens hear of its end.
func TestOneRestartsWhatCrashed(t *testing.T) {
	h := newHall(t)
	v := newFakeHive(t, "h1").withModel(modelID, modelRef).withEngine()
	a, b, c := h.start("q1", Options{}, v), h.start("q2", Options{}, v), h.start("q3", Options{}, v)
	h.together()
	if got := b.run(spawnOp(modelRef)); got.err != nil {
		t.Fatal(got.err)
	}
	all := func() bool {
		return len(a.serving(modelID)) == 1 && len(b.serving(modelID)) == 1 && len(c.serving(modelID)) == 1
	}
	h.eventually("all know it", all)
	v.workers()[0].crash <- 9
	h.eventually("it is started again", func() bool { return spawns(v) == 2 && all() })
	time.Sleep(500 * time.Millisecond)
	if n := spawns(v); n != 2 {
		t.Errorf("%d spawns", n)
	}
}

// TestSplitHeals: while two queens cannot hear each other each has its replica, nobody kills anything, and afterwards the newer one is drained.
func TestSplitHeals(t *testing.T) {
	h := newHall(t)
	one, two := newFakeHive(t, "h1"), newFakeHive(t, "h2")
	p := registry.Params{Stale: time.Second, Suspect: 1500 * time.Millisecond, Down: 2 * time.Second, Lost: 3 * time.Second, Grace: 300 * time.Millisecond}
	o := Options{Registry: p, Interval: 100 * time.Millisecond, Placement: placement.Params{Warm: 100 * time.Millisecond}}
	a, b := h.start("q1", o, one, two), h.start("q2", o, one, two)
	h.together()
	a.run(planOp(contract.OpApply, echoDeployment("chat", 1, 1)))
	h.eventually("both know the one", func() bool { return len(a.serving(echoModel)) == 1 && len(b.serving(echoModel)) == 1 })
	old := a.serving(echoModel)[0].Info
	near, far, farHive := a, b, two
	if old.HiveID == "h2" {
		near, far, farHive = b, a, one
	}
	var oldWorker *fakeWorker
	for _, w := range append(one.workers(), two.workers()...) {
		oldWorker = w
	}
	oldWorker.beatTo(near.base)
	h.split(true, []string{near.o.NodeID, old.HiveID}, []string{far.o.NodeID, farHive.id})
	h.eventually("the other half has one too", func() bool { return len(farHive.workers()) == 1 })
	farHive.workers()[0].beatTo(far.base)
	h.eventually("each half is served", func() bool { return len(near.serving(echoModel)) == 1 && len(far.serving(echoModel)) == 1 })
	if len(one.workers()) != 1 || len(two.workers()) != 1 {
		t.Errorf("%d and %d workers", len(one.workers()), len(two.workers()))
	}
	served := func() {
		if len(near.serving(echoModel)) == 0 || len(far.serving(echoModel)) == 0 {
			for _, q := range []*agent{near, far} {
				for _, w := range q.Snapshot().Workers {
					t.Logf("%s: %s %s %s draining %t ready %v exit %v gen %d", q.o.NodeID, w.Info.ID, w.Liveness, w.Info.Status, w.Draining, w.ReadyAt, w.Exit, w.Info.Generation>>32)
				}
			}
			t.Fatalf("for a while a queen had nobody to send requests to; near %s far %s old %s", near.o.NodeID, far.o.NodeID, old.ID)
		}
	}
	oldWorker.beatTo(a.base, b.base)
	farHive.workers()[0].beatTo(a.base, b.base)
	h.split(false, []string{near.o.NodeID, old.HiveID}, []string{far.o.NodeID, farHive.id})
	h.eventually("one is left", func() bool { served(); return len(one.workers())+len(two.workers()) == 1 })
	if w := append(one.workers(), two.workers()...)[0]; w.spec.WorkerID != old.ID {
		t.Errorf("the newer one is left: %s", w.spec.WorkerID)
	}
	time.Sleep(500 * time.Millisecond)
	if n := spawns(one, two); n != 2 {
		t.Errorf("%d spawns", n)
	}
}
