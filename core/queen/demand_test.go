package queen

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/registry"
)

// TestOnDemand: many requests at once for a model of the catalog start one worker.
func TestOnDemand(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	h.behave = func(w *fakeWorker) { w.loadFor = 200 * time.Millisecond }
	a := startQueen(t, Options{Defaults: map[string]contract.WorkerSpawn{
		"llama": {Devices: []string{"cpu0"}, Context: 128, Slots: 3, Threads: 1, Env: map[string]string{"A": "b"}}}}, h)
	var all sync.WaitGroup
	for range 30 {
		all.Go(func() {
			if d := a.Demand(modelRef); d.Err != nil || d.State != registry.DemandStarting {
				t.Errorf("demand %+v", d)
			}
		})
	}
	all.Wait()
	a.until("loading is seen", func() bool { return a.Demand(modelRef).Progress == 0.5 })
	a.until("a worker serves", func() bool { a.Demand(modelRef); return len(a.serving(modelID)) == 1 })
	if specs := h.spawned(); len(specs) != 1 || specs[0].Context != 128 || specs[0].Slots != 3 || specs[0].Threads != 1 ||
		specs[0].Env["A"] != "b" || specs[0].Devices[0] != "cpu0" {
		t.Errorf("spawns %+v", specs)
	}
	jobs := a.jobs.List()
	if len(jobs) != 1 || jobs[0].Operation != contract.OpWorkerSpawn { // it can be followed like any other
		t.Errorf("jobs %+v", jobs)
	}
}

// TestConfiguredModelIsFetched: a model of the configuration that no catalog has is downloaded by a job that the caller is told of.
func TestConfiguredModelIsFetched(t *testing.T) {
	h := newFakeHive(t, "q1").withEngine()
	h.hold = make(chan struct{})
	a := startQueen(t, Options{Models: []Model{{Name: "smol", Source: modelRef, Aliases: []string{"alias"}}}}, h)
	if target, err := a.Resolve("alias"); err != nil || len(target.ModelIDs) != 0 {
		t.Errorf("a model that is not fetched resolves to %v, %v", target, err)
	}
	var fetching registry.Demand
	a.until("it is being fetched", func() bool {
		fetching = a.Demand("alias")
		return fetching.State == registry.DemandFetching && fetching.JobID != "" && fetching.Progress == 0.5
	})
	close(h.hold)
	a.until("it is fetched", func() bool { a.Demand("alias"); return len(a.serving(modelID)) == 1 })
	if j, err := a.jobs.Get(fetching.JobID); err != nil || j.Operation != contract.OpModelDownload {
		t.Errorf("the fetching demand %+v names %+v, %v", fetching, j, err)
	}
	if target, err := a.Resolve("alias"); err != nil || len(target.ModelIDs) != 1 || target.ModelIDs[0] != modelID {
		t.Errorf("afterwards the alias is %v, %v", target, err)
	}
	a.until("the demand is over", func() bool {
		a.notify()
		a.demands.mu.Lock()
		defer a.demands.mu.Unlock()
		for _, d := range a.demands.all {
			if d.running {
				return false
			}
		}
		return true
	})
	if n, s := h.did(contract.OpModelDownload), len(h.spawned()); n != 1 || s != 1 {
		t.Errorf("%d downloads and %d spawns", n, s)
	}
}

func TestFetchThatFailsIsRemembered(t *testing.T) {
	h := newFakeHive(t, "q1")
	h.fail[contract.OpModelDownload] = fault.New(fault.Internal, "no_space", "The disk is full.")
	a := startQueen(t, Options{Models: []Model{{Name: "smol", Source: modelRef}}, Registry: registry.Params{Backoff: []time.Duration{0, time.Hour}}}, h)
	var d registry.Demand
	a.until("it failed", func() bool { d = a.Demand("smol"); return d.State == registry.DemandFailed })
	for range 10 {
		d = a.Demand("smol")
	}
	if fault.KindOf(d.Err) != fault.Unavailable || d.RetryAfter < 40*time.Minute || h.did(contract.OpModelDownload) != 1 {
		t.Errorf("demand %+v after %d downloads", d, h.did(contract.OpModelDownload))
	}
}

// TestCallersHearNoPaths (S21): a caller of inference gets the code of the cause and the name that it used; paths and addresses are in
// the job, for those who may see it.
func TestCallersHearNoPaths(t *testing.T) {
	for _, c := range []struct {
		err    *fault.Error
		status int
		want   string
	}{
		{fault.New(fault.NotFound, "model_not_found", "There is no file /data/secret/m.gguf; check the path."), 404, "its files are gone"},
		{fault.New(fault.Denied, "model_unreadable", "Apiary may not read /data/secret/m.gguf; check its permissions."), 503, "(model_unreadable)"},
		{fault.New(fault.Conflict, "model_changed", "file:/data/secret/m.gguf has changed since it was added."), 503, "(model_changed)"},
		{fault.New(fault.Exhausted, "no_space", "The disk that holds /data/secret is full."), 503, "(no_space)"},
		{fault.New(fault.Unavailable, "unreachable", "open:/data/secret failed"), 503, "(unreachable)"},
		{fault.New(fault.Unavailable, "unreachable", "http://10.1.2.3:9000 does not answer."), 503, "(unreachable)"},
		{fault.New(fault.Denied, "gated", "Accept the licence at https://hub.example/org/repo first."), 503, "Accept the licence at https://hub.example/org/repo first."},
		{fault.New(fault.Internal, "internal", "open /data/secret/x: input/output error"), 503, "job list"},
	} {
		h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
		h.fail[contract.OpWorkerSpawn] = c.err
		a := startQueen(t, Options{Models: []Model{{Name: "mine", Source: modelRef}}, Registry: registry.Params{Backoff: []time.Duration{0, time.Hour}}}, h)
		var d registry.Demand
		a.until("it failed", func() bool { d = a.Demand("mine"); return d.Err != nil })
		e := fault.As(d.Err)
		if fault.HTTPStatus(d.Err) != c.status || !strings.Contains(e.Message, c.want) || strings.Contains(e.Message, "secret") || strings.Contains(e.Message, "10.1") {
			t.Errorf("%s: %d %q", c.err.Code, fault.HTTPStatus(d.Err), e.Message)
		}
		if c.err.Code != "gated" && c.err.Code != "internal" && (e.Code != c.err.Code || !strings.Contains(e.Message, `"mine"`)) {
			t.Errorf("%s: %s %q", c.err.Code, e.Code, e.Message)
		}
		var jobs []contract.Job
		a.until("its job has ended, which may be after the demand", func() bool {
			jobs = a.jobs.List()
			return !slices.ContainsFunc(jobs, func(j contract.Job) bool { return j.State == contract.JobRunning })
		})
		if c.err.Kind != fault.Internal && !slices.ContainsFunc(jobs, func(j contract.Job) bool { return j.Error != nil && strings.Contains(j.Error.Message, c.err.Message) }) {
			t.Errorf("%s: jobs %+v", c.err.Code, jobs)
		}
	}
}

// TestCrashLoopOnDemand is T14 with short waits: five starts, then none, and the exit code in the answer from the first one on.
func TestCrashLoopOnDemand(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	h.behave = func(w *fakeWorker) { w.loadFor, w.exitCode = 10*time.Millisecond, 3 }
	a := startQueen(t, Options{}, h)
	var first registry.Demand
	a.until("the first failure is answered", func() bool { first = a.Demand(modelRef); return first.Err != nil })
	if e := fault.As(first.Err); first.State != registry.DemandFailed || e.Code != "start_failed" || !strings.Contains(e.Message, "exit code 3") ||
		strings.Contains(e.Message, "secret path") || e.Kind != fault.Unavailable || e.RetryAfter <= 0 {
		t.Errorf("first answer %+v %+v", first, e)
	}
	var last registry.Demand
	a.until("the crash loop is seen", func() bool { last = a.Demand(modelRef); return last.State == registry.DemandImpossible })
	if e := fault.As(last.Err); e.Code != "crashloop" || !strings.Contains(e.Message, "exit code 3") || last.RetryAfter < 14*time.Minute {
		t.Errorf("last answer %+v", last)
	}
	time.Sleep(100 * time.Millisecond) // as long as two of the waits
	if n := len(h.spawned()); n != 5 {
		t.Errorf("%d starts, want 5", n)
	}
	if w := a.Snapshot().Workers; len(w) != 1 || w[0].Condition != contract.ConditionCrashLoop || w[0].Exit.ExitCode != 3 {
		t.Errorf("listed %+v", w)
	}
	// A person may try at once, and hears why it fails: the code in the error, the log in the narration only.
	got := a.run(spawnOp(modelRef))
	if got.err == nil || got.err.Code != "start_failed" || !strings.Contains(got.err.Message, "exit code 3") || strings.Contains(got.err.Message, "secret path") {
		t.Errorf("a person's spawn: %+v", got.err)
	}
	if !strings.Contains(got.text(), "log: engine: a secret path") {
		t.Errorf("narration:\n%s", got.text())
	}
}

func TestCrashedWorkerIsRestarted(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	a := startQueen(t, Options{}, h)
	op := spawnOp(modelRef)
	op.Context, op.Env = 77, map[string]string{"A": "b"}
	if got := a.run(op); got.err != nil {
		t.Fatal(got.err)
	}
	h.workers()[0].crash <- 9
	a.until("another worker serves", func() bool {
		s := a.serving(modelID)
		return len(h.spawned()) == 2 && len(s) == 1 && s[0].Info.ID == h.spawned()[1].WorkerID
	})
	if s := h.spawned()[1]; s.Context != 77 || s.Env["A"] != "b" || s.SpawnKey != modelID+"#0" || s.Generation <= h.spawned()[0].Generation {
		t.Errorf("restarted as %+v", s)
	}
	a.until("the crashed one is not listed any more", func() bool { return len(a.Snapshot().Workers) == 1 })
}

// TestProcessThatIsGone: a refused dial makes the queen ask the hive, which has no such process: it is replaced without an exit report.
func TestProcessThatIsGone(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	a := startQueen(t, Options{}, h)
	if got := a.run(spawnOp(modelRef)); got.err != nil {
		t.Fatal(got.err)
	}
	w := h.workers()[0]
	a.ReportFailure(w.spec.WorkerID, registry.FailureDialRefused)
	a.until("the hive was asked", func() bool { a.notify(); return h.did(contract.OpProcessList) >= 2 })
	if len(a.serving(modelID)) != 1 {
		t.Error("a worker that lives was given up")
	}
	w.beatTo() // its end is not reported
	w.kill()
	a.mu.Lock()
	clear(a.verifying)
	a.mu.Unlock()
	a.ReportFailure(w.spec.WorkerID, registry.FailureDialRefused)
	a.until("it is replaced", func() bool { s := a.serving(modelID); return len(s) == 1 && s[0].Info.ID != w.spec.WorkerID })
}

// TestReplacedWorkerIsBack (F12): a worker whose beats do not arrive is replaced and not killed; when it is heard again the newer
// one is drained and ended.
func TestReplacedWorkerIsBack(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	ms := time.Millisecond
	a := startQueen(t, Options{Registry: registry.Params{Stale: 1500 * ms, Suspect: 1600 * ms, Down: 1700 * ms, Lost: 1800 * ms, Grace: ms}}, h)
	a.until("the first worker serves", func() bool { a.Demand(modelRef); return len(a.serving(modelID)) == 1 })
	old := h.workers()[0]
	old.beatTo()
	a.until("it is replaced", func() bool { s := a.serving(modelID); return len(s) == 1 && s[0].Info.ID != old.spec.WorkerID })
	if len(h.workers()) != 2 {
		t.Fatal("a worker was killed because it was not heard")
	}
	old.beatTo(a.base)
	a.until("one is left", func() bool { return len(h.workers()) == 1 && len(a.Snapshot().Workers) == 1 })
	if w := a.Snapshot().Workers[0]; w.Info.ID != old.spec.WorkerID || len(h.spawned()) != 2 {
		t.Errorf("%s is left after %d spawns, want the older one", w.Info.ID, len(h.spawned()))
	}
}

func TestCancelledSpawnLeavesNoProcess(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	h.behave = func(w *fakeWorker) { w.loadFor = time.Hour }
	a := startQueen(t, Options{}, h)
	id := a.submit(spawnOp(modelRef))
	a.until("it loads", func() bool { return len(a.Snapshot().Workers) == 1 })
	res, err := send(a.http, "DELETE", a.base+"/v1/jobs/"+id, "", nil)
	if err != nil || res.StatusCode != 202 {
		t.Fatalf("cancel: %v %v", res, err)
	}
	if got := a.follow(id); got.state != contract.JobEventCancelled {
		t.Errorf("the job ended as %s %v", got.state, got.err)
	}
	if len(h.workers()) != 0 || len(a.Snapshot().Workers) != 0 {
		t.Errorf("%d processes and %d workers are left", len(h.workers()), len(a.Snapshot().Workers))
	}
	if n := len(h.spawned()); n != 1 {
		t.Errorf("%d spawns", n)
	}
}

func TestLoadWithoutProgressTimesOut(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	h.behave = func(w *fakeWorker) { w.silent = true }
	a := startQueen(t, Options{Ready: 200 * time.Millisecond}, h)
	got := a.run(spawnOp(modelRef))
	if got.err == nil || got.err.Code != "start_timeout" || len(h.workers()) != 0 {
		t.Errorf("%+v with %d processes left", got.err, len(h.workers()))
	}
}

// TestQueenRestart: a new queen takes over the worker of the old one from its beats and starts no other (F9).
func TestQueenRestart(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	first := startQueen(t, Options{}, h)
	if got := first.run(spawnOp(modelRef)); got.err != nil {
		t.Fatal(got.err)
	}
	first.end()
	second := startQueen(t, Options{}, h)
	second.until("requests are made before the worker's first beat, and the hive is asked", func() bool {
		second.notify()
		second.Demand(modelRef)
		second.demands.mu.Lock()
		defer second.demands.mu.Unlock()
		return second.demands.all[modelID] != nil && h.did(contract.OpProcessList) >= 2
	})
	w := h.workers()[0]
	w.beatTo(second.base) // its next beat finds the new queen
	second.until("the worker serves", func() bool { return len(second.serving(modelID)) == 1 })
	second.until("the demand is over", func() bool {
		second.demands.mu.Lock()
		defer second.demands.mu.Unlock()
		d := second.demands.all[modelID]
		return d != nil && !d.running
	})
	if n := len(h.spawned()); n != 1 {
		t.Errorf("%d spawns", n)
	}
	// It is managed as before: it can be deleted.
	var gone contract.WorkerDeleted
	second.read(contract.WorkerRef{Operation: contract.OpWorkerDelete, WorkerID: w.spec.WorkerID}, "WorkerDeleted", &gone)
	if gone.Outcome != "terminated" {
		t.Errorf("deleted %+v", gone)
	}
}

// TestSpawnAfterQueenRestart (F9): a person's spawn right after a restart is given the worker that runs on: before it has beaten,
// and while it loads. A second one is started for who names a key, another device, or asks once more.
func TestSpawnAfterQueenRestart(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	gpu := contract.Device{ID: "cuda0", Kind: "cuda", Name: "GPU", MemoryTotal: contract.GiB, Source: "engine"}
	h.engines[0].Devices = append(h.engines[0].Devices, gpu)
	load := time.Duration(0)
	h.behave = func(w *fakeWorker) { w.loadFor = load }
	first := startQueen(t, Options{}, h)
	if got := first.run(spawnOp(modelRef)); got.err != nil {
		t.Fatal(got.err)
	}
	first.end()
	w := h.workers()[0]
	second := startQueen(t, Options{}, h)
	id := second.submit(spawnOp(modelRef))
	second.until("the hive was asked", func() bool { second.notify(); return h.did(contract.OpProcessList) >= 2 })
	w.beatTo(second.base)
	same := func(got outcome, want bool) {
		t.Helper()
		var s contract.WorkerSpawned
		if err := json.Unmarshal(got.result, &s); got.err != nil || err != nil || s.Existing != want || (s.WorkerID == w.spec.WorkerID) != want || want && (s.PID != w.pid || s.Port != 1 || s.Address != "127.0.0.1") {
			t.Errorf("spawned %s, %v %v\n%s", got.result, got.err, err, got.text())
		}
	}
	same(second.follow(id), true)
	same(second.run(spawnOp(modelRef)), true) // it beats meanwhile: still the inherited one
	other := spawnOp(modelRef)
	other.Devices = []string{"cuda0"}
	load = time.Hour
	other.Wait = false
	same(second.run(other), false)
	keyed := spawnOp(modelRef)
	keyed.SpawnKey, keyed.Wait = "mine", false
	load = 0
	same(second.run(keyed), false)
	if n := len(h.spawned()); n != 3 {
		t.Errorf("%d spawns", n)
	}
}

// TestLoadingWorkerIsInherited: requests wait for a worker that a former queen started and that still loads.
func TestLoadingWorkerIsInherited(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	h.behave = func(w *fakeWorker) { w.loadFor = time.Second }
	first := startQueen(t, Options{}, h)
	op := spawnOp(modelRef)
	op.Wait = false
	if got := first.run(op); got.err != nil {
		t.Fatal(got.err)
	}
	first.end()
	second := startQueen(t, Options{}, h)
	h.workers()[0].beatTo(second.base)
	second.until("the worker serves", func() bool { second.Demand(modelRef); return len(second.serving(modelID)) > 0 })
	if n := len(h.spawned()); n != 1 {
		t.Errorf("%d spawns", n)
	}
}

func TestEcho(t *testing.T) {
	h := newFakeHive(t, "q1")
	a := startQueen(t, Options{}, h)
	a.until("a worker serves", func() bool { a.Demand("echo:hello"); return len(a.serving("echo:hello")) == 1 })
	if s := h.spawned(); len(s) != 1 || s[0].Worker.Adapter != "echo" || h.did(contract.OpWorkerInstall) != 0 {
		t.Errorf("spawned %+v", s)
	}
	s := *a.settings()
	s.Workers = s.Workers[1:]
	a.Reconfigure(s) // without a worker block for it
	if _, err := a.Resolve("echo:other"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("echo without a worker block: %v", err)
	}
}

func TestDeleteDrains(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	var open atomic.Int32
	a := startQueen(t, Options{InFlight: func(string) int { return int(open.Load()) }}, h)
	if got := a.run(spawnOp(modelRef)); got.err != nil {
		t.Fatal(got.err)
	}
	id := h.spawned()[0].WorkerID
	open.Store(2)
	job := a.submit(contract.WorkerRef{Operation: contract.OpWorkerDelete, WorkerID: id})
	a.until("it drains", func() bool {
		w, _ := a.Snapshot().Worker(id)
		return w.Condition == contract.ConditionDraining && len(a.serving(modelID)) == 0
	})
	if len(h.workers()) != 1 {
		t.Error("the worker was ended while requests are open")
	}
	open.Store(0)
	if got := a.follow(job); got.err != nil || !strings.Contains(got.text(), "drain: waiting up to 2m0s for 2 open requests") {
		t.Errorf("%v\n%s", got.err, got.text())
	}
	if len(h.workers()) != 0 {
		t.Error("the worker lives")
	}
}

func TestHiveRefusalIsKeptAndNotRepeated(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	h.fail[contract.OpWorkerSpawn] = fault.New(fault.Conflict, "device_fenced", "The device cpu0 is held by a process that cannot be killed.")
	a := startQueen(t, Options{Registry: registry.Params{Backoff: []time.Duration{time.Hour}}}, h)
	var d registry.Demand
	a.until("it failed", func() bool { d = a.Demand(modelRef); return d.State == registry.DemandFailed })
	for range 10 {
		d = a.Demand(modelRef)
	}
	if e := fault.As(d.Err); e.Code != "device_fenced" || e.Kind != fault.Unavailable || h.did(contract.OpWorkerSpawn) != 1 {
		t.Errorf("demand %+v after %d spawns", d, h.did(contract.OpWorkerSpawn))
	}
	if got := a.run(spawnOp(modelRef)); got.err == nil || got.err.Kind != fault.Conflict {
		t.Errorf("a person's spawn: %+v", got.err)
	}
}

func TestHiveAway(t *testing.T) {
	h := newFakeHive(t, "q1")
	a := startQueen(t, Options{Hives: []string{"http://127.0.0.1:1"}, ReadyAfter: 300 * time.Millisecond}, h)
	if a.settled() && a.now() < a.o.ReadyAfter {
		t.Error("settled although a hive has not reported")
	}
	a.until("settled", func() bool { a.notify(); return a.settled() && len(a.Snapshot().Hives) == 1 })
	if got := a.run(contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: modelRef}); got.err != nil {
		t.Errorf("with one hive of two: %v", got.err)
	}
}

func TestPlacementPrefersAnAcceleratorWithRoom(t *testing.T) {
	for _, c := range []struct {
		free contract.Bytes
		want string
	}{{24 * contract.GiB, "cuda0"}, {100 * contract.MiB, "cpu0"}} {
		h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
		gpu := contract.Device{ID: "cuda0", Kind: "cuda", Name: "GPU", MemoryTotal: 24 * contract.GiB, MemoryFree: 23 * contract.GiB, Source: "engine"}
		h.engines[0].Devices = append(h.engines[0].Devices, gpu)
		gpu.MemoryFree = c.free // the catalog's number is as old as the engine
		h.gpus = []contract.Device{gpu}
		a := startQueen(t, Options{}, h)
		got := a.run(spawnOp(modelRef))
		if got.err != nil || h.spawned()[0].Devices[0] != c.want || !strings.Contains(got.text(), "on cuda0") {
			t.Errorf("with %s free: %v %+v\n%s", c.free, got.err, h.spawned()[0].Devices, got.text())
		}
	}
}

// TestOldInventoryDoesNotWin: an inventory that was asked for before a download and comes after it does not hide the model.
func TestOldInventoryDoesNotWin(t *testing.T) {
	h := newFakeHive(t, "q1")
	h.slow = make(chan struct{})
	a := startQueen(t, Options{Interval: time.Hour}, h)
	a.until("the old inventory is on its way", func() bool { a.notify(); return h.asked.Load() == 1 })
	done := make(chan outcome, 1)
	go func() {
		done <- a.run(contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: modelRef})
	}()
	a.until("the model is fetched", func() bool { a.notify(); return len(h.inventory().Models) == 1 })
	time.AfterFunc(100*time.Millisecond, func() { close(h.slow) }) // a download that does not wait for it ends sooner
	if got := <-done; got.err != nil {
		t.Fatal(got.err)
	}
	<-h.slow
	for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); runtime.Gosched() { // the old answer arrives
		if target, err := a.Resolve(modelRef); err != nil || len(target.ModelIDs) != 1 {
			t.Fatalf("after the download the model is %v, %v", target, err)
		}
	}
}
