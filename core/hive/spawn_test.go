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
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
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
	want := contract.Process{Identity: s.Identity, HiveID: node, SpawnKey: "echo:test#echo-0a0a0a0a", Model: "echo:test", Device: "cpu0", Port: s.Port}
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
	a := serve(t, func(o *Options) { o.QueenURLs = []string{"http://127.0.0.1:1"} })
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
		"--spawn-key", "echo:test#w-1", "--generation", "7", "--secret-fd", "3", "--context", "128", "--slots", "2", "--threads", "3",
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
		"model: NUL":           func(s *contract.WorkerSpawn) { s.Model = "file:/a\x00b" },
		"worker: option":       func(s *contract.WorkerSpawn) { s.Worker.Source = "-x" },
		"spawn_key: option":    func(s *contract.WorkerSpawn) { s.SpawnKey = "--hive-id" },
		"spawn_key: newline":   func(s *contract.WorkerSpawn) { s.SpawnKey = "a\nb" },
		"devices: option":      func(s *contract.WorkerSpawn) { s.Devices = []string{"--x"} },
		"devices: two":         func(s *contract.WorkerSpawn) { s.Devices = []string{"cpu0,cuda0"} },
		"context: negative":    func(s *contract.WorkerSpawn) { s.Context = -1 },
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

// queen is what a hive reports exits to. It refuses the first attempts.
type queen struct {
	url     string
	exits   chan contract.WorkerExit
	refused atomic.Int32
}

func newQueen(t *testing.T, refuse ...int32) *queen {
	t.Helper()
	q := &queen{exits: make(chan contract.WorkerExit, 10)}
	q.refused.Store(slices.Max(append(refuse, 0)))
	node := fmt.Sprintf("node-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/worker-exits", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer "+secret.ForHive(clusterKey, node).Reveal() {
			t.Errorf("a report with the token %q", r.Header.Get("Authorization"))
		}
		if q.refused.Add(-1) >= 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var e contract.WorkerExit
		if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
			t.Error(err)
		}
		q.exits <- e
		w.WriteHeader(http.StatusNoContent)
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	q.url = "http://" + l.Addr().String()
	return q
}

// TestCrashWhileLoading is F3 on the hive's side: every queen gets the exit code and the log, also after refusing twice.
func TestCrashWhileLoading(t *testing.T) {
	t.Parallel()
	configured, named := newQueen(t, 2), newQueen(t)
	a := serve(t, func(o *Options) { o.QueenURLs = []string{configured.url} })
	spec := recorderSpawn("w-1", "--fail")
	spec.QueenURLs = []string{named.url, configured.url}
	s := a.spawn(spec)
	for _, q := range []*queen{named, configured} {
		e := <-q.exits
		if e.Identity != s.Identity || e.WorkerID != "w-1" || e.ExitCode != 3 || e.Signal != 0 || e.OOM || !slices.Equal(e.LogTail, []string{"the engine is broken"}) {
			t.Errorf("report %+v", e)
		}
		b, _ := json.Marshal(e)
		a.doc.Value(t, "WorkerExit", b)
	}
	eventually(t, "the temporary folder is gone", func() bool { _, err := os.Stat(a.hive.workerTmp("w-1")); return err != nil })

	real := echoSpawn("echo-1", "--load", "50ms", "--exit-during-load", "3")
	real.QueenURLs = []string{named.url}
	a.spawn(real)
	if e := <-named.exits; e.WorkerID != "echo-1" || e.ExitCode != 3 || len(e.LogTail) == 0 {
		t.Errorf("report %+v", e)
	}
	killed := a.spawn(recorderSpawn("w-2"))
	if err := syscall.Kill(killed.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e := <-configured.exits
	if e.WorkerID == "echo-1" {
		e = <-configured.exits
	}
	if e.Identity != killed.Identity || e.ExitCode != -1 || e.Signal != 9 || e.OOM {
		t.Errorf("report %+v", e)
	}
}

func TestDeleteIsForOneIdentityOnly(t *testing.T) {
	t.Parallel()
	a := serve(t)
	s := a.spawn(recorderSpawn("w-1"))
	for name, change := range map[string]func(*contract.Identity){
		"another start":  func(id *contract.Identity) { id.StartTicks++ },
		"another boot":   func(id *contract.Identity) { id.BootID = "11111111-2222-3333-4444-555555555555" },
		"another worker": func(id *contract.Identity) { id.WorkerID = "w-2" },
		"another pid":    func(id *contract.Identity) { id.PID = os.Getpid() },
	} {
		id := s.Identity
		change(&id)
		if _, err := a.delete(id); fault.KindOf(err) != fault.Conflict || err.Code != process.CodeIdentityMismatch {
			t.Errorf("%s: %v", name, err)
		}
	}
	if l := a.list(); len(l) != 1 {
		t.Errorf("processes %+v", l)
	}
}

// TestUnkillable is T20: signals are accepted and do nothing.
func TestUnkillable(t *testing.T) {
	t.Parallel()
	var deaf atomic.Bool
	deaf.Store(true)
	a := serve(t, func(o *Options) {
		o.Kill = process.KillOptions{Term: 20 * time.Millisecond, Kill: 20 * time.Millisecond, Send: func(pid int, sig syscall.Signal) error {
			if deaf.Load() {
				return nil
			}
			return syscall.Kill(-pid, sig)
		}}
	})
	s := a.spawn(recorderSpawn("w-1"))
	if _, err := a.delete(s.Identity); fault.KindOf(err) != fault.Unavailable || err.Code != process.CodeUnkillable {
		t.Fatalf("error %v", err)
	}
	if _, err := do[contract.WorkerSpawned](a, recorderSpawn("w-2"), ""); fault.KindOf(err) != fault.Conflict || err.Code != "device_fenced" {
		t.Errorf("a spawn on the fenced device: %v", err)
	}
	other := recorderSpawn("w-3")
	other.Devices = []string{"cuda0"}
	a.spawn(other)
	deaf.Store(false)
	if err := syscall.Kill(s.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process is gone", func() bool { return process.Verify(s.Identity) != nil })
	a.spawn(recorderSpawn("w-2"))
}

func TestLogsAreRotatedAndReadOn(t *testing.T) {
	t.Parallel()
	a := serve(t)
	dir := a.hive.workerDir("w-1")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old := strings.Repeat(strings.Repeat("x", 99)+"\n", int(logMax)/100+1) + "before the start\n"
	if err := os.WriteFile(filepath.Join(dir, logName), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	queen := newQueen(t)
	spec := recorderSpawn("w-1", "--fail")
	spec.QueenURLs = []string{queen.url}
	a.spawn(spec)
	<-queen.exits
	if st, err := os.Stat(filepath.Join(dir, logName)); err != nil || st.Size() > 1000 {
		t.Errorf("the log was not rotated: %v %v", st, err)
	}
	got := must[contract.WorkerLogLines](t)(do[contract.WorkerLogLines](a, contract.WorkerRef{Operation: contract.OpWorkerLogs, WorkerID: "w-1", Lines: 2}, "WorkerLogLines"))
	if want := []string{"before the start", "the engine is broken"}; !slices.Equal(got.Lines, want) {
		t.Errorf("lines %q, want %q", got.Lines, want)
	}
}

func TestSweep(t *testing.T) {
	t.Parallel()
	a := serve(t)
	s := a.spawn(recorderSpawn("w-runs"))
	now := time.Now()
	for i := range keepFoldersMax + 5 {
		dir := a.hive.workerDir(fmt.Sprintf("w-%d", i))
		age := time.Duration(i+2) * time.Minute
		if i == 0 {
			age = keepFolders + time.Hour
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(dir, now.Add(-age), now.Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc", a.hive.workerDir("link")); err != nil {
		t.Fatal(err)
	}
	if err := a.hive.sweep(now.Add(2 * keepFolders)); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(a.hive.workersDir(), "*")); len(left) != 2 {
		t.Errorf("left %q, want the running worker's and the foreign link", left)
	}
	for i := range keepFoldersMax + 5 {
		if err := os.MkdirAll(a.hive.workerDir(fmt.Sprintf("w-%d", i)), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.hive.sweep(now); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(a.hive.workersDir(), "w-*")); len(left) != keepFoldersMax+6 {
		t.Errorf("%d folders are left; new ones must stay", len(left))
	}
	if err := a.hive.sweep(now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(a.hive.workersDir(), "w-*")); len(left) != keepFoldersMax+1 {
		t.Errorf("%d folders are left, want %d and the running worker's", len(left), keepFoldersMax)
	}
	if err := process.Verify(s.Identity); err != nil {
		t.Error(err)
	}
}

// TestWorkersOutliveTheHive is F10: a hive process is killed with SIGKILL, and the next hive of the same node takes over.
func TestWorkersOutliveTheHive(t *testing.T) {
	t.Parallel()
	node := fmt.Sprintf("node-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	home := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	old, err := os.StartProcess(exe, []string{exe, "hive", home, node}, &os.ProcAttr{Env: os.Environ(), Files: []*os.File{nil, w, os.Stderr}})
	_ = w.Close()
	if err != nil {
		t.Fatal(err)
	}
	var done struct{ Result contract.WorkerSpawned }
	if err := json.NewDecoder(r).Decode(&done); err != nil || done.Result.PID == 0 {
		t.Fatalf("the first hive did not spawn: %v", err)
	}
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = old.Wait()
	a := serve(t, func(o *Options) { o.Home = home })
	if l := a.list(); len(l) != 1 || l[0].Identity != done.Result.Identity {
		t.Fatalf("processes %+v, want %+v", l, done.Result)
	}
	res, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/health", done.Result.Port))
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("the worker does not serve any more: %v", err)
	} else {
		_ = res.Body.Close()
	}
	if s := a.spawn(echoSpawn("echo-00000001")); !s.Existing || s.Identity != done.Result.Identity || s.Port != done.Result.Port {
		t.Errorf("spawned %+v, want the one that runs", s)
	}
	if d := must[contract.WorkerDeleted](t)(a.delete(done.Result.Identity)); d.Outcome != "terminated" {
		t.Errorf("deleted %+v", d)
	}
}

func TestKeyLocks(t *testing.T) {
	var k keyLocks
	unlock, err := k.lock(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := k.lock(ctx, "a"); err == nil {
		t.Error("two hold one key")
	}
	other, err := k.lock(ctx, "b")
	if err == nil {
		other()
	}
	unlock()
	again, err := k.lock(context.Background(), "a")
	if err != nil {
		t.Fatal(err)
	}
	again()
	if len(k.held) != 0 {
		t.Errorf("%d keys are kept", len(k.held))
	}
}
