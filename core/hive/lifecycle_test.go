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
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
)

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
	}, having("cpu0", "cuda0"))
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
