package hive

import (
	"encoding/json"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
)

func TestDocumentIsComplete(t *testing.T) {
	doc := apitest.Load(t, "hive-api.yaml")
	for name, v := range map[string]any{
		"ConfigReloaded": contract.ConfigReloaded{}, "ConfigChange": contract.ConfigChange{}, "FieldChange": contract.FieldChange{},
		"HiveBeat": contract.HiveBeat{}, "Inventory": contract.Inventory{}, "Device": contract.Device{}, "Model": contract.Model{}, "File": contract.File{},
		"InPlace": contract.InPlace{}, "Engine": contract.Engine{}, "Identity": contract.Identity{}, "WorkerSpawned": contract.WorkerSpawned{},
		"WorkerDeleted": contract.WorkerDeleted{}, "WorkerLogLines": contract.WorkerLogLines{}, "WorkerExit": contract.WorkerExit{},
		"Process": contract.Process{}, "JobAccepted": contract.JobAccepted{}, "Job": contract.Job{}, "Narration": contract.Narration{},
		"Progress": contract.Progress{}, "JobDoneEvent": contract.JobDoneEvent{}, "JobFailedEvent": job.FailedEvent{}, "ErrorBody": contract.ErrorBody{},
		"Error": contract.Error{}, "ArtifactRef": contract.ArtifactRef{}, "WorkerRef": contract.WorkerRef{}, "WorkerKind": contract.WorkerKind{}, "Peer": contract.Peer{}, "State": state{},
	} {
		doc.Fields(t, name, v)
	}
}

func TestOpenAndClosedPaths(t *testing.T) {
	t.Parallel()
	a := serve(t)
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/v1/id": 200, "/metrics": 401, "/v1/hive": 401, "/v1/inventory": 401, "/v1/jobs": 401, "/v1/jobs/x": 401,
		"/v1/jobs/x/stream": 401, "/v1/nothing": 401,
	} {
		eventually(t, path, func() bool { // the hive becomes ready
			res, err := a.http.Get(a.base + path)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			return res.StatusCode == want
		})
	}
	var who id
	a.get("/v1/id", &who)
	if who != (id{a.hive.opts.NodeID, "test", "0.0.0"}) {
		t.Errorf("id %+v", who)
	}
	r, _ := http.NewRequest(http.MethodGet, a.base+"/v1/nothing", nil)
	if status, b := a.request(r); status != http.StatusNotFound {
		t.Errorf("an unknown path: %d %s", status, b)
	}
	r, _ = http.NewRequest(http.MethodGet, a.base+"/metrics", nil)
	if status, b := a.request(r); status != http.StatusOK || !strings.Contains(string(b), "go_goroutines") {
		t.Errorf("metrics: %d", status)
	}
	a.stop()
	if a.hive.ready.Load() {
		t.Error("a hive that has stopped is ready")
	}
}

func TestBeatAndInventory(t *testing.T) {
	t.Parallel()
	a := serve(t, func(o *Options) {
		o.Labels = []string{"quiet"}
		o.Name, o.Version, o.Address = strings.Repeat("<\"é", 100), strings.Repeat("9", 300), "http://127.0.0.1/"+strings.Repeat("x", 300)
	})
	var first, second contract.HiveBeat
	a.get("/v1/hive", &first)
	if _, err := do[contract.Model](a, artifactRef(contract.OpModelDownload, "file:/models/m.gguf"), "Model"); err != nil {
		t.Fatal(err)
	}
	if _, err := do[contract.Engine](a, artifactRef(contract.OpWorkerInstall, "npm:x@1"), "Engine"); err != nil {
		t.Fatal(err)
	}
	a.get("/v1/hive", &second)
	if first.InventoryDigest == second.InventoryDigest || second.Models != 1 || second.Engines != 1 || second.Devices != 2 || second.Sequence <= first.Sequence {
		t.Errorf("beats %+v\n%+v", first, second)
	}
	if second.MemoryFree == 0 || second.DiskFree == 0 || second.BootID == "" || second.Incarnation == 0 {
		t.Errorf("beat %+v", second)
	}
	var inv contract.Inventory
	a.get("/v1/inventory", &inv)
	if inv.Digest != second.InventoryDigest || len(inv.Models) != 1 || len(inv.Engines) != 1 || inv.HiveID != a.hive.opts.NodeID ||
		inv.MemoryReserve == nil || *inv.MemoryReserve != a.hive.opts.ReserveMemory || !slices.Equal(inv.Labels, []string{"quiet"}) || inv.OS != runtime.GOOS || inv.Arch != runtime.GOARCH {
		t.Errorf("inventory %+v", inv)
	}
	if ids := []string{inv.Devices[0].ID, inv.Devices[1].ID}; !slices.Equal(ids, []string{"cpu0", "vulkan0"}) {
		t.Errorf("devices %v: the engine is the authority on accelerators", ids)
	}
	for _, list := range [][]contract.Device{inv.Devices, must[[]contract.Device](t)(do[[]contract.Device](a, operation(contract.OpDeviceList), ""))} {
		if len(list) != 2 || list[0].Source != "engine" || list[1].Source != "engine" {
			t.Errorf("right after the engine was installed the devices are %+v", list)
		}
	}
	inv.Devices[0].MemoryFree++
	if d, err := digest(inv); err != nil || d == "" {
		t.Fatal(err)
	} else {
		inv.Devices[0].MemoryFree++
		if again, _ := digest(inv); again != d {
			t.Error("free memory changes the digest")
		}
	}
	b, err := json.Marshal(second)
	if err != nil || len(b) > contract.MaxHiveBeat {
		t.Errorf("a beat of %d bytes", len(b))
	}
}

func TestArtifactOperations(t *testing.T) {
	t.Parallel()
	a := serve(t)
	const model, engine = "file:/models/m.gguf@0123456789ab", "npm:x@1"
	if _, err := do[contract.Model](a, artifactRef(contract.OpModelGet, model), ""); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a missing model: %v", err)
	}
	must[contract.Model](t)(do[contract.Model](a, artifactRef(contract.OpModelDownload, model), "Model"))
	must[contract.Model](t)(do[contract.Model](a, artifactRef(contract.OpModelGet, model), "Model"))
	if l := must[[]contract.Model](t)(do[[]contract.Model](a, operation(contract.OpModelList), "")); len(l) != 1 || l[0].ID != model {
		t.Errorf("models %+v", l)
	}
	if l := must[[]contract.Engine](t)(do[[]contract.Engine](a, operation(contract.OpWorkerInstalledList), "")); l == nil || len(l) != 0 {
		t.Errorf("engines %#v, want an empty list", l)
	}
	must[contract.Engine](t)(do[contract.Engine](a, artifactRef(contract.OpWorkerInstall, engine), "Engine"))
	must[contract.Engine](t)(do[contract.Engine](a, artifactRef(contract.OpWorkerInstalledGet, engine), "Engine"))
	devices := must[[]contract.Device](t)(do[[]contract.Device](a, operation(contract.OpDeviceList), ""))
	if len(devices) != 2 || devices[0].Cores < 1 || devices[0].MemoryTotal == 0 {
		t.Errorf("devices %+v", devices)
	}

	search := contract.ModelSearch{Operation: contract.OpModelSearch, Query: "m"}
	if f := must[contract.ModelsFound](t)(do[contract.ModelsFound](a, search, "ModelsFound")); len(f.Models) != 1 || f.Models[0].Reference != "file:/m" {
		t.Errorf("found %+v", f)
	}

	spec := recorderSpawn("w-1")
	spec.Worker.Source = engine
	s := a.spawn(spec)
	if _, err := do[contract.Model](a, artifactRef(contract.OpModelDelete, model), ""); fault.KindOf(err) != fault.Conflict || err.Code != "model_in_use" {
		t.Errorf("deleting a model in use: %v", err)
	}
	if _, err := do[contract.Engine](a, artifactRef(contract.OpWorkerRemove, engine), ""); fault.KindOf(err) != fault.Conflict || err.Code != "engine_in_use" {
		t.Errorf("removing an engine in use: %v", err)
	}
	// All workers that use it are named.
	second := recorderSpawn("w-2")
	second.Worker.Source = engine
	s2 := a.spawn(second)
	for _, op := range []string{contract.OpModelDelete, contract.OpWorkerRemove} {
		ref := map[string]string{contract.OpModelDelete: model, contract.OpWorkerRemove: engine}[op]
		if _, err := do[any](a, artifactRef(op, ref), ""); err == nil || !strings.Contains(err.Message, `by 2 workers, "w-1", "w-2"; end each`) {
			t.Errorf("%s: %v", op, err)
		}
	}
	must[contract.WorkerDeleted](t)(a.delete(s2.Identity))
	must[contract.WorkerDeleted](t)(a.delete(s.Identity))
	must[contract.Model](t)(do[contract.Model](a, artifactRef(contract.OpModelDelete, model), "Model"))
	must[contract.Engine](t)(do[contract.Engine](a, artifactRef(contract.OpWorkerRemove, engine), "Engine"))
	var jobs []contract.Job
	a.get("/v1/jobs?all=true", &jobs)
	if len(jobs) < 10 || !strings.HasPrefix(jobs[0].ID, a.hive.opts.NodeID) {
		t.Errorf("%d jobs", len(jobs))
	}
	var one contract.Job
	a.get("/v1/jobs/"+jobs[0].ID, &one)
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	a := serve(t)
	for name, tc := range map[string]struct {
		op   any
		code string
	}{
		"unknown operation":   {operation("WorkerDance"), "unknown_operation"},
		"no operation":        {map[string]int{}, "operation_missing"},
		"operation twice":     {json.RawMessage(`{"operation":"ProcessList","operation":"DeviceList"}`), "duplicate_field"},
		"in another case":     {json.RawMessage(`{"operation":"ProcessList","Operation":"DeviceList"}`), "duplicate_field"},
		"reference twice":     {json.RawMessage(`{"operation":"ModelGet","reference":"a:b","reference":"c:d"}`), "duplicate_field"},
		"wrong type":          {map[string]any{"operation": contract.OpWorkerSpawn, "worker_id": 5}, "invalid_value"},
		"no reference":        {artifactRef(contract.OpModelGet, ""), "invalid_reference"},
		"option as reference": {artifactRef(contract.OpModelDownload, "--help"), "invalid_reference"},
		"no words":            {contract.ModelSearch{Operation: contract.OpModelSearch, Query: "  "}, "invalid_query"},
		"hidden words":        {contract.ModelSearch{Operation: contract.OpModelSearch, Query: "a\u202eb"}, "invalid_query"},
		"too many results":    {contract.ModelSearch{Operation: contract.OpModelSearch, Query: "a", Limit: 1000}, "invalid_limit"},
		"no identity":         {contract.WorkerDelete{Operation: contract.OpWorkerDelete, WorkerID: "w-1"}, "invalid_identity"},
		"two workers": {contract.WorkerDelete{Operation: contract.OpWorkerDelete, WorkerID: "w-1",
			Identity: &contract.Identity{WorkerID: "w-2", BootID: "b", PID: 2, StartTicks: 1}}, "invalid_identity"},
		"log outside the folder": {contract.WorkerRef{Operation: contract.OpWorkerLogs, WorkerID: "../../secrets"}, "invalid_worker_id"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := a.submit(tc.op); err == nil || err.Kind != fault.Invalid || err.Code != tc.code {
				t.Errorf("answer %+v, want invalid %s", err, tc.code)
			}
		})
	}
}

func TestNewChecksItsOptions(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"address": func(o *Options) { o.Address = "here" },
		"home":    func(o *Options) { o.Home = "relative" },
		"ports":   func(o *Options) { o.Ports = [2]int{10, 9} },
		"key":     func(o *Options) { o.ClusterKey = "" },
	} {
		o := options("/tmp", "node")
		change(&o)
		if _, err := New(o); err == nil {
			t.Errorf("a bad %s was accepted", name)
		}
	}
}

func TestRunEndsSoonAndTakesNoMoreJobs(t *testing.T) {
	t.Parallel()
	a := serve(t)
	a.spawn(recorderSpawn("w-1"))
	start := time.Now()
	a.stop()
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("the hive took %s to stop", d)
	}
	if a.hive.spawnTask(func() {}) {
		t.Error("a stopped hive takes work")
	}
}
