package hive

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/core/secret"
)

// TestSpawnListDelete is the life of a real worker.
func TestSpawnListDelete(t *testing.T) {
	t.Parallel()
	a := serve(t)
	node := a.hive.opts.NodeID
	s := a.spawn(echoSpawn("echo-0a0a0a0a"))
	if s.HiveID != node || s.Existing || s.PID <= 1 || s.Port < a.hive.opts.Ports[0] || s.Port > a.hive.opts.Ports[1] || s.Address != "127.0.0.1" {
		t.Errorf("spawned %+v", s)
	}
	r, _ := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/info", s.Port), nil)
	r.Header.Set("Authorization", "Bearer "+secret.ForWorker(clusterKey, s.WorkerID).Reveal())
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	var info contract.WorkerInfo
	err = json.NewDecoder(res.Body).Decode(&info)
	_ = res.Body.Close()
	if err != nil || res.StatusCode != http.StatusOK || info.Identity() != s.Identity || info.HiveID != node {
		t.Errorf("the worker says %d %+v (%v), the hive %+v", res.StatusCode, info, err, s)
	}
	want := contract.Process{Identity: s.Identity, HiveID: node, SpawnKey: "echo:test#echo-0a0a0a0a", Model: "echo:test", Device: "cpu0", Port: s.Port,
		Protection: contract.Protection{NoNewPrivs: true, Landlock: sandbox.Kernel().ABI, Seccomp: process.Protection(os.Getpid(), 0).Seccomp}}
	if info.Protection == nil || *info.Protection != want.Protection {
		t.Errorf("the worker says that it is protected by %+v, want %+v", info.Protection, want.Protection)
	}
	if l := a.list(); len(l) != 1 || l[0] != want {
		t.Errorf("processes %+v, want %+v", l, want)
	}
	log := must[contract.WorkerLogLines](t)(do[contract.WorkerLogLines](a, contract.WorkerRef{Operation: contract.OpWorkerLogs, WorkerID: s.WorkerID}, "WorkerLogLines"))
	if len(log.Lines) == 0 {
		t.Error("the worker's log is empty")
	}
	if d := must[contract.WorkerDeleted](t)(a.delete(s.Identity)); d.Outcome != "terminated" {
		t.Errorf("deleted %+v", d)
	}
	if l := a.list(); len(l) != 0 {
		t.Errorf("processes after the delete %+v", l)
	}
	if d := must[contract.WorkerDeleted](t)(a.delete(s.Identity)); d.Outcome != "gone" {
		t.Errorf("deleted again %+v", d)
	}
	if _, err := do[contract.WorkerLogLines](a, contract.WorkerRef{Operation: contract.OpWorkerLogs, WorkerID: "w-none"}, ""); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the log of nobody: %v", err)
	}
}

func TestSpawnKey(t *testing.T) {
	t.Parallel()
	a := serve(t)
	spec := recorderSpawn("w-1")
	spec.Generation = 4
	var wg sync.WaitGroup
	got := make([]contract.WorkerSpawned, 6)
	jobs := make([]contract.JobAccepted, len(got))
	for i := range jobs {
		jobs[i], _ = a.submit(spec)
	}
	for i := range got {
		wg.Go(func() {
			result, err, _ := a.follow(jobs[i])
			if err != nil || json.Unmarshal(result, &got[i]) != nil {
				t.Errorf("%s %v", result, err)
			}
		})
	}
	wg.Wait()
	fresh := 0
	for _, s := range got {
		if !s.Existing {
			fresh++
		}
		if s.Identity != got[0].Identity || s.Port != got[0].Port {
			t.Errorf("two processes for one key: %+v, %+v", s, got[0])
		}
	}
	if l := a.list(); fresh != 1 || len(l) != 1 {
		t.Errorf("%d spawns were new, processes %+v", fresh, l)
	}

	older := spec
	older.Generation, older.WorkerID = 3, "w-2"
	if _, err := do[contract.WorkerSpawned](a, older, ""); fault.KindOf(err) != fault.Conflict || err.Code != "stale_generation" {
		t.Errorf("an older generation: %v", err)
	}
	sameName := spec
	sameName.SpawnKey = "another"
	if _, err := do[contract.WorkerSpawned](a, sameName, ""); fault.KindOf(err) != fault.Conflict || err.Code != "worker_exists" {
		t.Errorf("a second worker of one id: %v", err)
	}
	keyless := recorderSpawn("w-9")
	keyless.SpawnKey, keyless.Generation = "", 0
	first := a.spawn(keyless)
	if again := a.spawn(keyless); !again.Existing || again.Identity != first.Identity {
		t.Errorf("the same spawn without a key: %+v, %+v", first, again)
	}
	keyless.Model += "-other"
	if _, err := do[contract.WorkerSpawned](a, keyless, ""); fault.KindOf(err) != fault.Conflict || err.Code != "worker_exists" {
		t.Errorf("another model under a taken id: %v", err)
	}
	must[contract.WorkerDeleted](t)(a.delete(first.Identity))
	newer := spec
	newer.Generation, newer.WorkerID = 5, "w-3"
	if s := a.spawn(newer); s.Existing || s.PID == got[0].PID {
		t.Errorf("a newer generation: %+v", s)
	}
	must[contract.WorkerDeleted](t)(a.delete(got[0].Identity))
	if _, err := do[contract.WorkerSpawned](a, spec, ""); fault.KindOf(err) != fault.Conflict {
		t.Errorf("generation 4 after 5 runs: %v", err)
	}
}

// TestArguments is T61 and T55: what the worker is given is exactly the expected, and what is dangerous is refused.
func TestArguments(t *testing.T) {
	t.Setenv("HF_TOKEN", "canary-env")
	t.Setenv("APIARY_SECRET", "canary-env")
	t.Setenv("LANG", "C.UTF-8")
	t.Setenv("CUDA_VISIBLE_DEVICES", "1")
	a := serve(t, func(o *Options) { o.QueenURLs = []string{"http://127.0.0.1:1"} }, having("cpu0", "cpu1"))
	node := a.hive.opts.NodeID
	spec := recorderSpawn("w-1", "--text", "$(id)", "--more=;id", "--file", "@file", "--env", "LD_PRELOAD=x", "--flag")
	spec.Env = map[string]string{"GGML_LOG": "a b", "LD_LIBRARY_PATH": "/usr/local/cuda/lib64"}
	spec.QueenURLs = []string{"http://127.0.0.1:1", "http://127.0.0.1:2"}
	spec.Devices, spec.Context, spec.Slots, spec.Threads, spec.Generation = []string{"cpu0", "cpu1"}, 128, 2, 3, 7
	s := a.spawn(spec)
	got := readRecorded(t, a, "w-1")
	exe, _ := os.Executable()
	want := []string{exe, "recorder", "--worker-id", "w-1", "--model", spec.Model, "--model-path", "/models/m.gguf", "--device", "cpu0,cpu1",
		"--port", strconv.Itoa(s.Port), "--address", "127.0.0.1", "--queen-url", "http://127.0.0.1:1", "--queen-url", "http://127.0.0.1:2", "--hive-id", node,
		"--spawn-key", "echo:test#w-1", "--generation", "7", "--secret-fd", "3", "--context", "128", "--slots", "2", "--threads", "3", "--landlock", strconv.Itoa(sandbox.Kernel().ABI),
		"--text", "$(id)", "--more=;id", "--file", "@file", "--env", "LD_PRELOAD=x", "--flag"}
	if !slices.Equal(got.Args, want) {
		t.Errorf("arguments\n%q, want\n%q", got.Args, want)
	}
	env := []string{"CUDA_VISIBLE_DEVICES=1", "GGML_LOG=a b", "HOME=/nonexistent", "LANG=C.UTF-8", "LD_LIBRARY_PATH=/usr/local/cuda/lib64",
		"PATH=" + os.Getenv("PATH"), "TMPDIR=" + a.hive.workerTmp("w-1")}
	slices.Sort(got.Env)
	if !slices.Equal(got.Env, env) {
		t.Errorf("environment\n%q, want\n%q", got.Env, env)
	}
	for _, name := range []string{"environ", "cmdline"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", s.PID, name))
		if err != nil || strings.Contains(string(b), "canary") || strings.Contains(string(b), secret.ForWorker(clusterKey, "w-1").Reveal()) {
			t.Errorf("/proc/PID/%s shows a secret (%v)", name, err)
		}
	}

	for name, change := range map[string]func(*contract.WorkerSpawn){
		"worker_id: option":    func(s *contract.WorkerSpawn) { s.WorkerID = "--help" },
		"worker_id: path":      func(s *contract.WorkerSpawn) { s.WorkerID = "a/../b" },
		"worker_id: dots":      func(s *contract.WorkerSpawn) { s.WorkerID = "a..b" },
		"worker_id: empty":     func(s *contract.WorkerSpawn) { s.WorkerID = "" },
		"model: option":        func(s *contract.WorkerSpawn) { s.Model = "--host=0.0.0.0" },
		"model: short option":  func(s *contract.WorkerSpawn) { s.Model = "-m/etc/passwd" },
		"model: newline":       func(s *contract.WorkerSpawn) { s.Model = "file:/a\nb" },
		"model: reversed":      func(s *contract.WorkerSpawn) { s.Model = "file:/a\u202eb" },
		"devices: twice":       func(s *contract.WorkerSpawn) { s.Devices = []string{"cpu0", "cpu1", "cpu0"} },
		"generation: inexact":  func(s *contract.WorkerSpawn) { s.Generation = 1 << 53 },
		"model: NUL":           func(s *contract.WorkerSpawn) { s.Model = "file:/a\x00b" },
		"worker: option":       func(s *contract.WorkerSpawn) { s.Worker.Source = "-x" },
		"spawn_key: option":    func(s *contract.WorkerSpawn) { s.SpawnKey = "--hive-id" },
		"spawn_key: newline":   func(s *contract.WorkerSpawn) { s.SpawnKey = "a\nb" },
		"devices: option":      func(s *contract.WorkerSpawn) { s.Devices = []string{"--x"} },
		"devices: two":         func(s *contract.WorkerSpawn) { s.Devices = []string{"cpu0,cuda0"} },
		"context: negative":    func(s *contract.WorkerSpawn) { s.Context = -1 },
		"slots: many":          func(s *contract.WorkerSpawn) { s.Slots = contract.MaxSlots + 1 },
		"threads: many":        func(s *contract.WorkerSpawn) { s.Threads = 1 << 30 },
		"generation: negative": func(s *contract.WorkerSpawn) { s.Generation = -1 },
		"queen_urls: option":   func(s *contract.WorkerSpawn) { s.QueenURLs = []string{"--x"} },
		"queen_urls: file":     func(s *contract.WorkerSpawn) { s.QueenURLs = []string{"file:///etc/passwd"} },
		"queen_urls: password": func(s *contract.WorkerSpawn) { s.QueenURLs = []string{"http://a:b@c"} },
		"args: host":           func(s *contract.WorkerSpawn) { s.Args = []string{"--host=0.0.0.0"} },
		"args: model":          func(s *contract.WorkerSpawn) { s.Args = []string{"--model", "x"} },
		"args: hive":           func(s *contract.WorkerSpawn) { s.Args = []string{"--hive-id=x"} },
		"args: short":          func(s *contract.WorkerSpawn) { s.Args = []string{"-m/etc/passwd"} },
		"args: single hyphen":  func(s *contract.WorkerSpawn) { s.Args = []string{"-port", "1"} },
		"args: bare":           func(s *contract.WorkerSpawn) { s.Args = []string{"$(id)"} },
		"args: second value":   func(s *contract.WorkerSpawn) { s.Args = []string{"--a", "b", "c"} },
		"args: end of options": func(s *contract.WorkerSpawn) { s.Args = []string{"--"} },
		"args: newline":        func(s *contract.WorkerSpawn) { s.Args = []string{"--a=x\ny"} },
		"args: file value":     func(s *contract.WorkerSpawn) { s.Args = []string{"@file"} },
		"args: negative":       func(s *contract.WorkerSpawn) { s.Args = []string{"--a", "-1"} },
		"env: loader":          func(s *contract.WorkerSpawn) { s.Env = map[string]string{"LD_PRELOAD": "/x.so"} },
		"env: loader's folder": func(s *contract.WorkerSpawn) { s.Env = map[string]string{"LD_LIBRARY_PATH": "/a:b"} },
		"env: path":            func(s *contract.WorkerSpawn) { s.Env = map[string]string{"PATH": "/tmp"} },
		"env: name":            func(s *contract.WorkerSpawn) { s.Env = map[string]string{"A=B": "c"} },
		"env: NUL":             func(s *contract.WorkerSpawn) { s.Env = map[string]string{"A": "\x00"} },
	} {
		t.Run(name, func(t *testing.T) {
			bad := recorderSpawn("w-2")
			change(&bad)
			param, _, _ := strings.Cut(name, ":")
			if _, err := a.submit(bad); err == nil || err.Kind != fault.Invalid || err.Param != param {
				t.Errorf("answer %+v, want invalid %s", err, param)
			}
		})
	}
	unknown := echoSpawn("w-2")
	unknown.Worker.Adapter = "vllm"
	if _, err := do[contract.WorkerSpawned](a, unknown, ""); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an unknown adapter: %v", err)
	}
	foreign := recorderSpawn("w-2")
	foreign.Model = "echo:x"
	if _, err := do[contract.WorkerSpawned](a, foreign, ""); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an echo model for another adapter: %v", err)
	}
	if l := a.list(); len(l) != 1 {
		t.Errorf("a refused spawn left a process: %+v", l)
	}
}

func TestSpawnFetchesWhatIsMissing(t *testing.T) {
	t.Parallel()
	a := serve(t)
	spec := recorderSpawn("w-1")
	spec.Worker.Source = "npm:x@1"
	j, err := a.submit(spec)
	if err != nil {
		t.Fatal(err)
	}
	_, err, story := a.follow(j)
	if err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, n := range story {
		actions = append(actions, n.Action)
	}
	if want := []string{"download", "fetch", "install", "verify", "done", "spawn"}; !slices.Equal(actions, want) {
		t.Errorf("narrated %v, want %v", actions, want)
	}
	args := readRecorded(t, a, "w-1").Args
	if i := slices.Index(args, "--engine-dir"); i < 0 || args[i+1] != "/engines/llama.cpp/1" {
		t.Errorf("arguments %q", args)
	}
	again := recorderSpawn("w-2")
	a.spawn(again)
	if n := a.hive.opts.Artifacts.(*store).pulls; n != 1 {
		t.Errorf("the model was fetched %d times", n)
	}
	huge := recorderSpawn("w-3")
	huge.Model = "file:/huge"
	if _, err := do[contract.WorkerSpawned](a, huge, ""); fault.KindOf(err) != fault.Unavailable || err.Code != "does_not_fit" {
		t.Errorf("a model of a petabyte: %v", err)
	}
	none := recorderSpawn("w-4")
	none.Model = "nosuch:model"
	if _, err := do[contract.WorkerSpawned](a, none, ""); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a model that nobody has: %v", err)
	}
}

func TestPortTaken(t *testing.T) {
	t.Parallel()
	// Three ports: one is in use by us, one by nobody, one is found taken by the worker.
	var l net.Listener
	first := 0
	for range 50 {
		probe, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		first = probe.Addr().(*net.TCPAddr).Port
		if first+2 < 65535 && bindable("127.0.0.1", first+1) && bindable("127.0.0.1", first+2) {
			l = probe
			break
		}
		_ = probe.Close()
	}
	if l == nil {
		t.Skip("skipped: no three ports in a row are free")
	}
	defer func() { _ = l.Close() }()
	queen := newQueen(t)
	a := serve(t, func(o *Options) { o.Ports = [2]int{first, first + 2}; o.QueenURLs = []string{queen.url} })
	setTaken(t, a, "w-1", 1)
	j, err := a.submit(recorderSpawn("w-1"))
	if err != nil {
		t.Fatal(err)
	}
	result, err, story := a.follow(j)
	if err != nil {
		t.Fatal(err)
	}
	var s contract.WorkerSpawned
	if err := json.Unmarshal(result, &s); err != nil || s.Port != first+2 {
		t.Errorf("spawned %s, want port %d", result, first+2)
	}
	if !slices.ContainsFunc(story, func(n contract.Narration) bool {
		return n.Level == "warn" && strings.Contains(n.Message, strconv.Itoa(first+1))
	}) {
		t.Errorf("the taken port was not narrated: %+v", story)
	}
	a.spawn(recorderSpawn("w-2"))
	if _, err := do[contract.WorkerSpawned](a, recorderSpawn("w-3"), ""); fault.KindOf(err) != fault.Exhausted || err.Code != "no_free_port" {
		t.Errorf("no port is free: %v", err)
	}
	if n := len(queen.exits); n != 0 {
		t.Errorf("%d exits were reported of a worker that was started again at once", n)
	}
}

func setTaken(t *testing.T, a *api, workerID string, times int) {
	t.Helper()
	dir := a.hive.workerDir(workerID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ports"), []byte(strings.Repeat("x", times)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestPortTakenTooOften(t *testing.T) {
	t.Parallel()
	a := serve(t)
	setTaken(t, a, "w-1", 10)
	if _, err := do[contract.WorkerSpawned](a, recorderSpawn("w-1"), ""); fault.KindOf(err) != fault.Unavailable || err.Code != "port_taken" {
		t.Errorf("error %v", err)
	}
	if l := a.list(); len(l) != 0 {
		t.Errorf("processes %+v", l)
	}
}

func TestCancelledSpawnLeavesNoProcess(t *testing.T) {
	t.Parallel()
	a := serve(t)
	j, err := a.submit(recorderSpawn("w-1", "--deaf"))
	if err != nil {
		t.Fatal(err)
	}
	readRecorded(t, a, "w-1") // it runs, and the spawn waits for it to listen
	r, _ := http.NewRequest(http.MethodDelete, a.base+"/v1/jobs/"+j.JobID, nil)
	if status, b := a.request(r); status != http.StatusAccepted {
		t.Fatalf("%d %s", status, b)
	}
	if _, err, _ := a.follow(j); fault.KindOf(err) != fault.Interrupted {
		t.Errorf("outcome %v", err)
	}
	if l := a.list(); len(l) != 0 {
		t.Errorf("the worker of a cancelled spawn runs: %+v", l)
	}
}

// TestDeviceThatDoesNotExist: before anything is fetched or started, a spawn hears which devices there are.
func TestDeviceThatDoesNotExist(t *testing.T) {
	t.Parallel()
	a := serve(t, having("cpu0", "cuda0"))
	refused := func(device, source, has string) {
		t.Helper()
		spec := recorderSpawn("w-1")
		spec.Devices, spec.Worker.Source = []string{"cpu0", device}, source
		_, err := do[contract.WorkerSpawned](a, spec, "")
		if fault.KindOf(err) != fault.NotFound || err.Code != "device_not_found" || !strings.Contains(err.Message, device) || !strings.Contains(err.Message, "it has "+has+";") {
			t.Errorf("%s: %v", device, err)
		}
	}
	refused("cpu99", "", "cpu0 and cuda0")
	refused("cuda1", "npm:x@1", "cpu0 and cuda0")
	if m, _ := a.hive.opts.Artifacts.Models(); len(m) != 0 {
		t.Error("a model was fetched for a device that does not exist")
	}
	// What only an engine can see is known when it is installed; then it is the authority.
	spec := recorderSpawn("w-2")
	spec.Devices, spec.Worker.Source = []string{"vulkan0"}, "npm:x@1"
	a.spawn(spec)
	refused("cuda0", "npm:x@1", "cpu0 and vulkan0")
	refused("vulkan1", "npm:x@1", "cpu0 and vulkan0")
}

// TestMoreThreadsThanCores: they are refused with the number of cores, before anything is fetched.
func TestMoreThreadsThanCores(t *testing.T) {
	t.Parallel()
	a := serve(t, func(o *Options) {
		o.Devices = func(context.Context) ([]contract.Device, error) {
			return []contract.Device{{ID: "cpu0", Kind: "cpu", Name: "CPU", Cores: 2, Source: "system"}}, nil
		}
	})
	spec := recorderSpawn("w-1")
	spec.Threads = 3
	_, err := do[contract.WorkerSpawned](a, spec, "")
	if fault.KindOf(err) != fault.Invalid || err.Code != "too_many_threads" || !strings.Contains(err.Message, "has 2 cores") {
		t.Errorf("%v", err)
	}
	if m, _ := a.hive.opts.Artifacts.Models(); len(m) != 0 {
		t.Error("a model was fetched for a worker that cannot be")
	}
	spec.Threads = 2
	a.spawn(spec)
}

func TestModelAndAdapterMustFit(t *testing.T) {
	t.Parallel()
	a := serve(t)
	spec := echoSpawn("w-1")
	spec.Model = "builtin:stories260k@0123456789ab"
	if _, err := do[contract.WorkerSpawned](a, spec, ""); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Message, "echo:") {
		t.Errorf("a real model in an echo worker: %v", err)
	}
	if m, _ := a.hive.opts.Artifacts.Models(); len(m) != 0 {
		t.Error("a model was fetched for a worker that cannot serve it")
	}
}

func TestEngineThatIsAServer(t *testing.T) {
	t.Parallel()
	a := serve(t)
	spec := echoSpawn("w-1")
	spec.Worker.Source = "server:x"
	if _, err := do[contract.WorkerSpawned](a, spec, ""); fault.KindOf(err) != fault.Invalid || err.Code != "engine_is_server" {
		t.Errorf("a server program as the engine of a worker: %v", err)
	}
	if e, _ := a.hive.opts.Artifacts.Engines(); len(e) != 0 {
		t.Error("an engine was installed for a worker that cannot run it")
	}
}
