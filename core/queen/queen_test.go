package queen

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
)

func spawnOp(model string) contract.WorkerSpawn {
	return contract.WorkerSpawn{Operation: contract.OpWorkerSpawn, Model: model, Wait: true}
}

func TestDocumentMatchesTypes(t *testing.T) {
	doc := apitest.Load(t, "queen-api.yaml")
	for name, v := range map[string]any{"WorkerView": contract.WorkerView{}, "HiveView": contract.HiveView{}, "ModelView": contract.ModelView{},
		"Status": contract.Status{}, "ClusterView": contract.ClusterView{}, "Heartbeat": contract.Heartbeat{}, "HeartbeatReply": contract.HeartbeatReply{},
		"WorkerExit": contract.WorkerExit{}, "WorkerInfo": contract.WorkerInfo{}, "Removed": removed{}, "Job": contract.Job{}, "Narration": contract.Narration{},
		"WorkerSpawned": contract.WorkerSpawned{}, "WorkerDeleted": contract.WorkerDeleted{}, "Process": contract.Process{}, "ErrorBody": contract.ErrorBody{},
		"ConfigReloaded": contract.ConfigReloaded{}, "ConfigChange": contract.ConfigChange{}, "FieldChange": contract.FieldChange{},
		"Deployment": contract.Deployment{}, "DeploymentView": contract.DeploymentView{}, "PlanRequest": contract.PlanRequest{}, "PlanView": contract.PlanView{},
		"PlanItem": contract.PlanItem{}, "PlanStep": contract.PlanStep{}, "Applied": contract.Applied{}, "ExplainRequest": contract.ExplainRequest{}, "Explanation": contract.Explanation{},
		"PlaceVerdict": contract.PlaceVerdict{}, "HiveDrain": contract.HiveDrain{}, "Replicas": contract.Replicas{}, "PlacementRule": contract.PlacementRule{}, "Expression": contract.Expression{},
		"QueenSync": contract.QueenSync{}, "QueenState": contract.QueenState{}, "PendingSpawn": contract.PendingSpawn{}, "DemandState": contract.DemandState{}, "TendedSlot": contract.TendedSlot{}, "Record": contract.Record{},
		"Member": contract.Member{}, "KeyChange": contract.KeyChange{}, "Health": contract.Health{}} {
		doc.Fields(t, name, v)
	}
}

// TestSpawnFromNothing goes the whole way of a first spawn: the model is fetched, the engine installed, the worker started and
// waited for; then it is listed, its log read, and it is deleted.
func TestSpawnFromNothing(t *testing.T) {
	h := newFakeHive(t, "q1")
	h.behave = func(w *fakeWorker) { w.loadFor = 100 * time.Millisecond }
	a := startQueen(t, Options{}, h)
	got := a.run(spawnOp(modelRef))
	if got.err != nil {
		t.Fatalf("%s\n%s", got.err, got.text())
	}
	a.doc.Value(t, "WorkerSpawned", got.result)
	var s contract.WorkerSpawned
	if err := json.Unmarshal(got.result, &s); err != nil || !strings.HasPrefix(s.WorkerID, "llama-") || len(s.WorkerID) != len("llama-")+8 {
		t.Errorf("spawned %s, %v", got.result, err)
	}
	for _, want := range []string{"fetch: the model builtin:stories260k is not in the catalog", "download: fetching", "engine: the engine npm:", "place: on cpu0", "load: loading", "ready: worker llama-"} {
		if !strings.Contains(got.text(), want) {
			t.Errorf("%q is not in the narration:\n%s", want, got.text())
		}
	}
	spec := h.spawned()[0]
	if spec.Model != modelID || spec.SpawnKey != modelID+"#0" || spec.Generation == 0 || spec.Worker.Source != engineRef || spec.QueenURLs[0] != a.base || spec.Devices[0] != "cpu0" {
		t.Errorf("the hive was asked for %+v", spec)
	}
	if len(a.serving(modelID)) != 1 {
		t.Error("the worker is not routed to")
	}

	var list []contract.WorkerView
	a.read(operation{contract.OpWorkerList}, "[]WorkerView", &list)
	if len(list) != 1 || list[0].ID != s.WorkerID || list[0].Liveness != contract.LivenessAlive || list[0].HiveName != "q1-name" {
		t.Errorf("list %+v", list)
	}
	var logs contract.WorkerLogLines
	a.read(contract.WorkerRef{Operation: contract.OpWorkerLogs, WorkerID: s.WorkerID}, "WorkerLogLines", &logs)
	if len(logs.Lines) != 1 {
		t.Errorf("logs %+v", logs)
	}
	if got := a.run(contract.ArtifactRef{Operation: contract.OpModelDelete, Reference: modelRef}); got.err == nil || got.err.Code != "model_in_use" {
		t.Errorf("a model in use was deleted: %+v", got)
	}
	another := spawnOp(modelRef)
	another.WorkerID = "another"
	if got := a.run(another); got.err != nil {
		t.Fatal(got.err)
	}
	if got := a.run(contract.ArtifactRef{Operation: contract.OpModelDelete, Reference: modelRef}); got.err == nil || !strings.Contains(got.err.Message, "2 workers serve the model, another, "+s.WorkerID+"; end each") {
		t.Errorf("a model that two workers serve: %+v", got.err)
	}
	a.read(contract.WorkerRef{Operation: contract.OpWorkerDelete, WorkerID: "another"}, "WorkerDeleted", new(contract.WorkerDeleted))
	var gone contract.WorkerDeleted
	a.read(contract.WorkerRef{Operation: contract.OpWorkerDelete, WorkerID: s.WorkerID}, "WorkerDeleted", &gone)
	if gone.Outcome != "terminated" || len(h.workers()) != 0 || len(a.Snapshot().Workers) != 0 {
		t.Errorf("deleted %+v, %d processes, %d workers", gone, len(h.workers()), len(a.Snapshot().Workers))
	}
	var rm removed
	a.read(contract.ArtifactRef{Operation: contract.OpModelDelete, Reference: modelRef}, "Removed", &rm)
	if _, err := a.Resolve(modelRef); fault.KindOf(err) != fault.NotFound || len(rm.Hives) != 1 {
		t.Errorf("a deleted model resolves: %v, removed %+v", err, rm)
	}
	if n := len(h.spawned()); n != 2 { // those that were asked for
		t.Errorf("%d spawns", n)
	}
}

// TestDeleteStray: a worker of a hive that is not known, or of none, is taken off the list: there is nobody who could end it.
func TestDeleteStray(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	a := startQueen(t, Options{}, h)
	a.until("ready", a.settled)
	for id, hive := range map[string]string{"w-none": "", "w-unknown": "elsewhere"} {
		beat := beatOf(id)
		beat.Worker.HiveID = hive
		body, err := json.Marshal(beat)
		if err != nil {
			t.Fatal(err)
		}
		if w := a.beatFrom(localPeer, id, body); w.Code != 200 {
			t.Fatalf("%s: %s", id, w.Body)
		}
		got := a.run(contract.WorkerRef{Operation: contract.OpWorkerDelete, WorkerID: id})
		if _, known := a.Snapshot().Worker(id); got.err != nil || known || !strings.Contains(got.text(), "belongs to no hive") || !strings.Contains(string(got.result), `"forgotten"`) {
			t.Errorf("%s: %+v, still listed: %v", id, got, known)
		}
	}
	if n := h.did(contract.OpWorkerDelete); n != 0 {
		t.Errorf("a hive was asked %d times", n)
	}
}

func TestReads(t *testing.T) {
	h := newFakeHive(t, "h1").withModel(modelID, modelRef).withEngine()
	a := startQueen(t, Options{Models: []Model{{Name: "smol", Source: modelRef, Aliases: []string{"gpt-4o"}}, {Name: "later", Source: "file:/x.gguf"}}}, h)
	a.until("ready", a.settled)
	var status contract.Status
	a.read(operation{contract.OpStatus}, "Status", &status)
	if len(status.Hives) != 1 || len(status.Models) != 2 || status.Hives[0].DeviceList == nil {
		t.Errorf("status %+v", status)
	}
	var hives []contract.HiveView
	a.read(operation{contract.OpHiveList}, "[]HiveView", &hives)
	var hive contract.HiveView
	a.read(contract.ArtifactRef{Operation: contract.OpHiveGet, HiveID: "h1-name"}, "HiveView", &hive)
	var models []contract.ModelView
	a.read(operation{contract.OpModelList}, "[]ModelView", &models)
	var model contract.ModelView
	a.read(contract.ArtifactRef{Operation: contract.OpModelGet, Reference: "gpt-4o"}, "ModelView", &model)
	if model.ID != modelID || model.Names[0] != "smol" || model.Hives[0] != "h1" {
		t.Errorf("model %+v", model)
	}
	var found contract.ModelsFound
	a.read(contract.ModelSearch{Operation: contract.OpModelSearch, Query: "smol", HiveID: "h1"}, "ModelsFound", &found)
	if len(found.Models) != 1 || found.Models[0].Reference != "x:smol" || found.Models[0].Vendor != "h1" {
		t.Errorf("found %+v", found)
	}
	var devices []hiveDevice
	a.read(operation{contract.OpDeviceList}, "[]HiveDevice", &devices)
	var engines []hiveEngine
	a.read(operation{contract.OpWorkerInstalledList}, "[]HiveEngine", &engines)
	var engine hiveEngine
	a.read(contract.ArtifactRef{Operation: contract.OpWorkerInstalledGet, Reference: engineRef}, "HiveEngine", &engine)
	if len(devices) != 1 || devices[0].HiveID != "h1" || len(engines) != 1 || engine.HiveID != "h1" {
		t.Errorf("devices %v, engines %v, engine %v", devices, engines, engine)
	}
	var procs []contract.Process
	a.read(operation{contract.OpProcessList}, "[]Process", &procs)
	var rm removed
	a.read(contract.ArtifactRef{Operation: contract.OpWorkerRemove, Reference: engineRef}, "Removed", &rm)
	var installed contract.Engine
	a.read(contract.ArtifactRef{Operation: contract.OpWorkerInstall}, "Engine", &installed)
	var m contract.Model
	a.read(contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: "later"}, "Model", &m)
	if m.ID != "file:/x.gguf@0123456789ab" {
		t.Errorf("the name of a configured model fetched %s", m.ID)
	}
	for _, c := range []struct {
		op   any
		code string
	}{
		{contract.WorkerRef{Operation: contract.OpWorkerGet, WorkerID: "none"}, "worker_not_found"},
		{contract.WorkerRef{Operation: contract.OpWorkerDelete, WorkerID: "none"}, "worker_not_found"},
		{contract.ArtifactRef{Operation: contract.OpHiveGet, HiveID: "none"}, "hive_not_found"},
		{contract.ArtifactRef{Operation: contract.OpModelGet, Reference: "none"}, "model_not_found"},
		{contract.ArtifactRef{Operation: contract.OpModelDelete, Reference: "none"}, "model_not_found"},
		{contract.ArtifactRef{Operation: contract.OpWorkerRemove, Reference: "none"}, "engine_not_found"},
		{contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: modelRef, HiveID: "none"}, "hive_not_found"},
		{spawnOp("nothing-such"), "model_not_found"},
		{contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: "none"}, "model_not_found"},
		{spawnOp("echo:Not/Valid"), "model_not_found"},
		{contract.WorkerSpawn{Operation: contract.OpWorkerSpawn, Model: modelRef, Worker: contract.WorkerKind{Name: "vllm"}}, "worker_kind_not_found"},
	} {
		if got := a.run(c.op); got.err == nil || got.err.Code != c.code || got.err.Kind != fault.NotFound {
			t.Errorf("%+v gave %+v, want %s", c.op, got.err, c.code)
		}
	}
	res, err := send(a.http, "GET", a.base+"/admin/cluster", "", nil)
	if err != nil || res.StatusCode != 200 {
		t.Errorf("cluster: %v %v", res, err)
	}
}

// TestSpawnUnderATakenID: the id of a worker that runs is refused, and that worker stays as it was.
func TestSpawnUnderATakenID(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	a := startQueen(t, Options{}, h)
	op := spawnOp(modelRef)
	op.WorkerID, op.SpawnKey = "w1", "mine"
	if got := a.run(op); got.err != nil {
		t.Fatal(got.err)
	}
	for _, other := range []contract.WorkerSpawn{
		{Model: "echo:a", WorkerID: "w1"}, {Model: modelRef, WorkerID: "w1"}, {Model: modelRef, WorkerID: "w1", SpawnKey: "other"},
	} {
		other.Operation, other.Wait = contract.OpWorkerSpawn, true
		if got := a.run(other); got.err == nil || got.err.Code != "worker_exists" || got.err.Kind != fault.Conflict || !strings.Contains(got.err.Message, "apiary worker delete w1") {
			t.Errorf("%+v: %+v", other, got.err)
		}
	}
	if got := a.run(op); got.err != nil { // the same key again is the same worker
		t.Errorf("the same spawn again: %v", got.err)
	}
	if s := a.serving(modelID); len(s) != 1 || s[0].Info.ID != "w1" || len(h.spawned()) != 1 {
		t.Errorf("%d workers serve after %d spawns", len(s), len(h.spawned()))
	}
	// A worker that a queen does not know yet, because it was just started, is found among the processes.
	a.end()
	b := startQueen(t, Options{Interval: time.Hour}, h)
	if got := b.run(contract.WorkerSpawn{Operation: contract.OpWorkerSpawn, Model: "echo:a", WorkerID: "w1"}); got.err == nil || got.err.Code != "worker_exists" {
		t.Errorf("a queen that was started again: %+v", got.err)
	}
}

// TestSpawnThatCannotBe: what does not fit together is refused before anything is fetched, in a sentence that says what would.
func TestSpawnThatCannotBe(t *testing.T) {
	h := newFakeHive(t, "h1")
	a := startQueen(t, Options{Defaults: map[string]contract.WorkerSpawn{"echo": {Threads: 4}}}, h)
	a.until("ready", a.settled)
	for _, c := range []struct {
		op   contract.WorkerSpawn
		kind fault.Kind
		code string
		text []string
	}{
		{contract.WorkerSpawn{Model: modelRef, Devices: []string{"cpu99"}}, fault.NotFound, "device_not_found", []string{`"cpu99"`, "has cpu0;"}},
		{contract.WorkerSpawn{Model: modelRef, Devices: []string{"cpu0", "cuda0"}}, fault.NotFound, "device_not_found", []string{`"cuda0"`, "has cpu0;"}},
		{contract.WorkerSpawn{Model: "echo:a", Devices: []string{"cuda0"}, HiveID: "h1"}, fault.NotFound, "device_not_found", []string{`"cuda0"`}},
		{contract.WorkerSpawn{Model: modelRef, Threads: 3}, fault.Invalid, "too_many_threads", []string{"h1-name has 2 cores", "3 were asked for"}},
		{contract.WorkerSpawn{Model: "echo:a"}, fault.Invalid, "too_many_threads", []string{"has 2 cores", "4 were asked for"}},
		{contract.WorkerSpawn{Model: modelRef, Worker: contract.WorkerKind{Name: "echo"}}, fault.Invalid, "model_and_worker", []string{"builtin:stories260k", `"echo"`, "echo:"}},
		{contract.WorkerSpawn{Model: "echo:a", Worker: contract.WorkerKind{Name: "llama"}}, fault.Invalid, "model_and_worker", []string{"echo:a", `"llama"`}},
	} {
		c.op.Operation = contract.OpWorkerSpawn
		got := a.run(c.op)
		if got.err == nil || got.err.Kind != c.kind || got.err.Code != c.code {
			t.Errorf("%+v: %+v", c.op, got.err)
			continue
		}
		for _, want := range c.text {
			if !strings.Contains(got.err.Message, want) {
				t.Errorf("%+v: %q is not in %q", c.op, want, got.err.Message)
			}
		}
	}
	if h.did(contract.OpModelDownload)+h.did(contract.OpWorkerInstall)+h.did(contract.OpWorkerSpawn) != 0 {
		t.Error("something was fetched or started for a spawn that cannot be")
	}
}

// TestFailedManualSpawnIsNotRepeated: a person hears why, and where to read more.
func TestFailedManualSpawnIsNotRepeated(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	h.behave = func(w *fakeWorker) { w.loadFor, w.exitCode = 10*time.Millisecond, 3 }
	a := startQueen(t, Options{}, h)
	got := a.run(spawnOp(modelRef))
	if id := h.spawned()[0].WorkerID; got.err == nil || got.err.Code != "start_failed" || !strings.Contains(got.err.Message, "apiary worker logs "+id) {
		t.Errorf("%+v", got.err)
	}
	time.Sleep(300 * time.Millisecond) // several of the waits
	if n := len(h.spawned()); n != 1 {
		t.Errorf("%d spawns", n)
	}
}

func TestRefusedBodies(t *testing.T) {
	a := startQueen(t, Options{})
	for body, code := range map[string]string{
		`{"operation":"Infer"}`: "unknown_operation", `{"operation":"ModelGet"}`: "reference_missing", `{"operation":"ModelSearch","query":" "}`: "query_missing", `{"operation":"WorkerGet","worker_id":3}`: "invalid_operation",
		`{"operation":"WorkerSpawn"}`: "model_missing", `{"operation":"WorkerSpawn","model":"m","slots":-1}`: "invalid_number",
		`{"operation":"WorkerSpawn","model":"m","worker_id":"-x"}`: "invalid_worker_id", `{"operation":"HiveGet"}`: "hive_id_missing",
		`{"operation":"ModelDownload","reference":"hf:a/b\u202ec"}`: "invalid_reference", `{"operation":"WorkerSpawn","model":"hf:a/b\u2028c"}`: "invalid_reference",
		`{"operation":"WorkerSpawn","model":"m","devices":["cpu0","cpu0"]}`:        "invalid_devices",
		`{"operation":"ModelGet","reference":"` + strings.Repeat("x", 2000) + `"}`: "reference_too_long",
	} {
		res, err := send(a.http, "POST", a.base+"/v1/jobs", "", json.RawMessage(body))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		if res.StatusCode != 400 || !strings.Contains(string(b), `"code":"`+code+`"`) {
			t.Errorf("%.60s: %d %s, want %s", body, res.StatusCode, b, code)
		}
	}
	if jobs := a.jobs.List(); len(jobs) != 0 {
		t.Errorf("%d jobs were made", len(jobs))
	}
}

func TestBeatsAndReportsNeedTheirSecret(t *testing.T) {
	h := newFakeHive(t, "h1")
	a := startQueen(t, Options{}, h)
	a.until("ready", a.settled)
	beat := contract.Heartbeat{Sequence: 1, Worker: contract.WorkerInfo{ID: "w1", ModelID: "m", Device: "cpu0", Port: 1, Address: "127.0.0.1", Status: contract.StatusReady, HiveID: "h2", ContractVersion: 1,
		Implementation: "x", Incarnation: 1, PID: 2, BootID: "b", StartTicks: 1, APIs: []string{"infer"}, Capabilities: []string{}}}
	own := secret.ForWorker(clusterKey, "w1")
	exit := contract.WorkerExit{WorkerID: "w1", Identity: beat.Worker.Identity(), LogTail: []string{}}
	huge := beat
	huge.Worker.ModelID = strings.Repeat("m", contract.MaxWorkerBeat)
	nameless := beat
	nameless.Worker.Port = 0
	for _, c := range []struct {
		path   string
		token  secret.Secret
		body   any
		status int
	}{
		{"/v1/heartbeat", "", beat, 401}, {"/v1/heartbeat", secret.ForWorker(clusterKey, "w2"), beat, 401}, {"/v1/heartbeat", clusterKey, beat, 401},
		{"/v1/heartbeat", own, huge, 413}, {"/v1/heartbeat", own, nameless, 400}, {"/v1/heartbeat", own, json.RawMessage(`[1]`), 400}, {"/v1/heartbeat", own, beat, 200},
		{"/v1/worker-exits", own, exit, 401}, {"/v1/worker-exits", secret.ForHive(clusterKey, "h3"), exit, 401},
		{"/v1/worker-exits", secret.ForHive(clusterKey, "h1"), exit, 403}, // the worker is another hive's
		{"/v1/worker-exits", secret.ForHive(clusterKey, "h1"), contract.WorkerExit{}, 400},
	} {
		res, err := send(a.http, "POST", a.base+c.path, c.token, c.body)
		if err != nil || res.StatusCode != c.status {
			t.Errorf("%s %T: %v %v, want %d", c.path, c.body, res.StatusCode, err, c.status)
		}
	}
	if len(a.serving("m")) != 1 {
		t.Error("the worker of the good beat is not known")
	}
}

// refusing is a network on which nobody listens.
func refusing(context.Context, string, string) (net.Conn, error) { return nil, syscall.ECONNREFUSED }

func (q *Queen) get(path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	for _, r := range q.Routes() {
		if r.Pattern == "GET "+path {
			r.Handler.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		}
	}
	return w
}

// TestStart is the first 6 s of a queen whose hive does not answer (F9), in fake time.
func TestStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q, err := New(Options{NodeID: "q", ClusterKey: clusterKey, URL: "http://127.0.0.1:1", Hives: []string{"http://127.0.0.1:2"}, Dial: refusing})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- q.Run(ctx) }()
		time.Sleep(5900 * time.Millisecond)
		if w := q.get("/readyz"); w.Code != 503 || w.Header().Get("Retry-After") == "" {
			t.Errorf("ready after 5.9 s: %d", w.Code)
		}
		if w := q.get("/healthz"); w.Code != 200 {
			t.Errorf("health %d", w.Code)
		}
		// An unknown model may be that of a worker that has not beaten yet.
		if target, err := q.Resolve("m"); err != nil || len(target.ModelIDs) != 0 {
			t.Errorf("unknown model within the grace: %v %v", target, err)
		}
		if d := q.Demand("m"); d.State != registry.DemandStarting || d.RetryAfter <= 0 {
			t.Errorf("demand within the grace: %+v", d)
		}
		time.Sleep(200 * time.Millisecond)
		if w := q.get("/readyz"); w.Code != 200 {
			t.Errorf("not ready after 6.1 s: %d", w.Code)
		}
		if _, err := q.Resolve("m"); fault.As(err).Code != "model_not_found" || strings.Contains(err.Error(), "pull m`") || !strings.Contains(err.Error(), "apiary model list") {
			t.Errorf("unknown model: %v", err)
		}
		if _, err := q.Resolve("file:/m"); fault.As(err).Code != "model_not_found" || !strings.Contains(err.Error(), "apiary model pull file:/m") {
			t.Errorf("unknown reference: %v", err)
		}
		if _, err := q.Resolve("file:m; rm -rf /"); !strings.Contains(err.Error(), "apiary model pull REF`") {
			t.Errorf("an odd name: %v", err)
		}
		if d := q.Demand("m"); d.State != registry.DemandImpossible || fault.KindOf(d.Err) != fault.NotFound {
			t.Errorf("demand: %+v", d)
		}
		// A worker that beats is routed to at once, and down after 17.5 s of silence.
		q.step(registry.Beat{Heartbeat: contract.Heartbeat{Sequence: 1, Worker: contract.WorkerInfo{ID: "w", ModelID: "m", Status: contract.StatusReady, ContractVersion: 1, Incarnation: 1}}})
		if target, err := q.Resolve("m"); err != nil || len(q.Snapshot().Serving("m")) != 1 || target.ModelIDs[0] != "m" {
			t.Errorf("after a beat: %v %v", target, err)
		}
		time.Sleep(17 * time.Second)
		if n := len(q.Snapshot().Serving("m")); n != 1 {
			t.Errorf("down after 17 s")
		}
		time.Sleep(2 * time.Second)
		if n := len(q.Snapshot().Serving("m")); n != 0 {
			t.Errorf("still routed to after 19 s of silence")
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if w := q.get("/readyz"); w.Code != 503 {
			t.Errorf("ready although it has stopped: %d", w.Code)
		}
		if _, err := q.jobs.Start("x", "", nil); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("a job after the end: %v", err)
		}
	})
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{{}, {NodeID: "q", ClusterKey: clusterKey, URL: "localhost:1"}, {NodeID: "q", ClusterKey: clusterKey, URL: "http://h:1", Hives: []string{"x"}}} {
		if _, err := New(o); err == nil {
			t.Errorf("options %+v were taken", o)
		}
	}
}

func TestMetricsRoute(t *testing.T) {
	a := startQueen(t, Options{})
	a.run(operation{contract.OpStatus})
	a.until("the job is counted", func() bool {
		res, err := http.Get(a.base + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		b, err := io.ReadAll(res.Body)
		a.notify()
		return errors.Is(err, nil) && strings.Contains(string(b), `apiary_jobs_total{operation="Status",state="done"} 1`)
	})
}
