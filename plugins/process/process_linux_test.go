package process

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	coreprocess "github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// slack is how much later than promised something may be on a machine that is busy with other tests.
const slack = 5 * time.Second

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "exec-child" {
		fmt.Fprintln(os.Stderr, coreprocess.ExecChild(os.Args[2:]))
		os.Exit(127)
	}
	if program := os.Getenv("HOST_OF"); program != "" {
		hostThatIsKilled(program)
	}
	dir, err := os.MkdirTemp("", "process-test-")
	if err != nil {
		panic(err)
	}
	program := filepath.Join(dir, "hostile")
	cmd := exec.Command("go", "build", "-o", program, "./testdata/hostile")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		panic(fmt.Sprintf("%v\n%s", err, out))
	}
	if err := os.Setenv("HOSTILE", program); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// logged is a log that a test reads.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func specOf(t *testing.T, args ...string) (Spec, *logged) {
	t.Helper()
	log := &logged{}
	store := filepath.Join(t.TempDir(), "store")
	return Spec{Name: "hostile", Path: os.Getenv("HOSTILE"), Args: args, Store: store, Log: slog.New(slog.NewTextHandler(log, nil)), StartTimeout: 20 * time.Second}, log
}

// start starts the plugin and configures it. At the end of the test nothing of it may be left.
func start(t *testing.T, spec Spec) *Process {
	t.Helper()
	p, err := Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeAndLook(t, p) })
	if _, err := sdk.Call[struct{}](t.Context(), p, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: "{}"}); err != nil {
		t.Fatal(err)
	}
	return p
}

func closeAndLook(t *testing.T, p *Process) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("Done is open after Close")
	}
	if left := group(t, p.PID()); len(left) > 0 {
		t.Errorf("of the group %d is left: %v", p.PID(), left)
	}
	if _, err := os.Stat(p.room.dir); !os.IsNotExist(err) {
		t.Errorf("its folder is left: %v", err)
	}
}

// group lists the processes of a group that are more than an entry in the table.
func group(t *testing.T, leader int) (alive []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range stats {
		raw, err := os.ReadFile(name)
		if err != nil {
			continue // it ended meanwhile
		}
		fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:])) // state, parent, group
		if fields[2] == strconv.Itoa(leader) && fields[0] != "Z" && fields[0] != "X" {
			alive = append(alive, string(raw))
		}
	}
	return alive
}

func resolve(ctx context.Context, on vendor.Invoker, ref string) (*vendor.Manifest, error) {
	return sdk.Call[vendor.Manifest](ctx, on, vendor.MethodResolve, vendor.ResolveRequest{Reference: ref})
}

func codeOf(err error) string {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.Code
	}
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e.Code
	}
	return fmt.Sprint(err)
}

// TestProcess: a plugin is called, with the deadline of the caller, and calls its host; it is told what fails.
func TestProcess(t *testing.T) {
	t.Parallel()
	spec, _ := specOf(t)
	host := &testHost{}
	spec.Host = sdk.HostDispatch(host)
	for _, tls := range []string{"", TLSNone} {
		spec.TLS = tls
		p := start(t, spec)
		info, err := sdk.Call[vendor.Info](t.Context(), p, vendor.MethodGetInfo, nil)
		if err != nil || info.Name != "hostile" {
			t.Fatalf("tls %q: %+v, %v", tls, info, err)
		}
		if m, err := resolve(t.Context(), p, "get:k"); err != nil || m.Format != "value of k" {
			t.Errorf("a call of the host: %+v, %v", m, err)
		}
		if _, err := resolve(t.Context(), p, "get:"); codeOf(err) != "bad_key" {
			t.Errorf("an error of the host: %v", err)
		}
		if m, err := resolve(t.Context(), p, "http:large"); err != nil || m.Format != fmt.Sprint(16<<20-1000) {
			t.Errorf("a large answer of the host: %+v, %v", m, err)
		}
		if _, err := resolve(t.Context(), p, "http:larger"); codeOf(err) != "reply_too_large" {
			t.Errorf("an answer of the host that is too large: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if m, err := resolve(ctx, p, "deadline"); err != nil || m.Format != "true" {
			t.Errorf("the plugin does not see the deadline: %+v, %v", m, err)
		}
		cancel()
		if _, err := resolve(t.Context(), p, "panic"); codeOf(err) != "plugin_panic" {
			t.Errorf("a panic: %v", err)
		}
		for _, method := range []string{vendor.MethodSearch, vendor.MethodPlan, "/vendor.v1.Vendor/Later"} {
			if _, err := p.Invoke(t.Context(), method, []byte("{}")); codeOf(err) != vendor.CodeUnimplemented {
				t.Errorf("%s: %v", method, err)
			}
		}
		if _, err := p.Invoke(t.Context(), vendor.MethodResolve, []byte("{")); codeOf(err) != "bad_request" {
			t.Errorf("a request that is no JSON: %v", err)
		}
		if err := p.Err(); err != nil {
			t.Error(err)
		}
		closeAndLook(t, p)
		if err := p.Err(); err != nil {
			t.Error(err)
		}
	}
}

// TestHostCallsAreBounded: a plugin that calls its host a hundred times at once has sixteen calls in progress.
func TestHostCallsAreBounded(t *testing.T) {
	t.Parallel()
	spec, _ := specOf(t)
	host := &testHost{}
	spec.Host = sdk.HostDispatch(host)
	p := start(t, spec)
	if _, err := resolve(t.Context(), p, "many"); err != nil {
		t.Fatal(err)
	}
	if most := host.most.Load(); most > hostCalls || most < 2 {
		t.Errorf("%d calls at once", most)
	}
}

// TestEnvironment: a plugin sees nothing of the agent's environment.
func TestEnvironment(t *testing.T) {
	t.Setenv("HF_TOKEN", "canary")
	spec, _ := specOf(t)
	spec.Env = []string{"GREETING=hello"}
	m, err := resolve(t.Context(), start(t, spec), "environment")
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"PATH", "HOME", "TMPDIR", "LANG", "GREETING", "APIARY_PLUGIN", "PLUGIN_"}
	for name, value := range m.Meta {
		if strings.Contains(value, "canary") {
			t.Errorf("the plugin sees the canary in %s", name)
		}
		known := false
		for _, a := range allowed {
			known = known || name == a || a == "PLUGIN_" && strings.HasPrefix(name, a)
		}
		if !known {
			t.Errorf("the plugin sees %s=%s", name, value)
		}
	}
	if m.Meta["GREETING"] != "hello" || m.Meta["PATH"] != "/usr/bin:/bin" {
		t.Errorf("the environment is %v", m.Meta)
	}
}

// TestBadStart: what does not become a plugin is one error that says so, in time.
func TestBadStart(t *testing.T) {
	t.Parallel()
	for mode, x := range map[string]struct {
		tls, code, says string
	}{
		"hang":           {"", CodeStartTime, "not ready after 2s"},
		"exit":           {"", CodeStart, `exit status 3); it wrote "cannot find the library that I need"`},
		"garbage":        {"", CodeHandshake, "does not begin with"},
		"endless":        {"", CodeHandshake, "does not begin with"},
		"version":        {"", CodeVersion, `keeps version "7" of the contract`},
		"outside":        {TLSNone, CodeHandshake, "not at a socket in"},
		"no-certificate": {"", CodeHandshake, "without a certificate"},
		"certificate":    {TLSNone, CodeHandshake, "with a certificate, and its manifest says that it has none"},
		"mute":           {TLSNone, CodeStartTime, "not ready after 2s"},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			spec, _ := specOf(t, mode)
			spec.TLS, spec.StartTimeout = x.tls, 2*time.Second
			begin := time.Now()
			p, err := Start(t.Context(), spec)
			if err == nil {
				_ = p.Close()
			}
			if codeOf(err) != x.code || !strings.Contains(fmt.Sprint(err), x.says) {
				t.Errorf("%v (%s)", err, codeOf(err))
			}
			if took := time.Since(begin); took > spec.StartTimeout+slack {
				t.Errorf("it took %v", took)
			}
			t.Log(err)
		})
	}
}

func TestStartIsGivenUp(t *testing.T) {
	t.Parallel()
	spec, _ := specOf(t, "hang")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	if _, err := Start(ctx, spec); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestDigest: only the file that was pinned is executed, and the copy in the store is not believed.
func TestDigest(t *testing.T) {
	t.Parallel()
	spec, _ := specOf(t)
	raw, err := os.ReadFile(spec.Path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(raw)
	spec.SHA256 = hex.EncodeToString(sum[:])
	_ = start(t, spec).Close()

	kept := filepath.Join(spec.Store, spec.SHA256)
	info, err := os.Stat(kept)
	if err != nil || info.Mode().Perm() != 0o500 {
		t.Fatalf("the copy: %v, %v", info, err)
	}
	if err := os.Chmod(kept, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kept, []byte("#!/bin/sh\ntouch /tmp/owned\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(kept, 0o500); err != nil {
		t.Fatal(err)
	}
	_ = start(t, spec).Close()

	spec.SHA256 = strings.Repeat("0", 64)
	if _, err := Start(t.Context(), spec); codeOf(err) != CodeDigest || fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), hex.EncodeToString(sum[:])) {
		t.Errorf("another digest: %v", err)
	}
	if err := os.Chmod(spec.Store, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), spec); codeOf(err) != "store_not_private" {
		t.Errorf("a store that others may write to: %v", err)
	}
}

// TestCrash: what happens while a plugin is called is an error of the call, and the end of the process.
func TestCrash(t *testing.T) {
	t.Parallel()
	for ref, says := range map[string]string{"crash": "panic: in the background", "third": "exit status 7"} {
		spec, _ := specOf(t)
		p := start(t, spec)
		var err error
		for range 3 {
			if err != nil {
				break
			}
			_, err = resolve(t.Context(), p, ref)
		}
		if codeOf(err) != CodeExited || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "goroutine") {
			t.Errorf("%s: %v", ref, err)
		}
		<-p.Done()
		if p.Err() == nil {
			t.Error("no reason")
		}
		if _, err := resolve(t.Context(), p, "third"); codeOf(err) != CodeExited {
			t.Errorf("a call after the end: %v", err)
		}
	}
}

// TestStuck: a call returns with its time, and a plugin that goes on, or shows no sign of life, ends soon after.
func TestStuck(t *testing.T) {
	t.Parallel()
	for _, ref := range []string{"sleep", "frozen"} {
		spec, _ := specOf(t)
		p := start(t, spec)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		begin := time.Now()
		if ref == "frozen" { // the whole process, as if a module held the threads
			_ = syscall.Kill(p.PID(), syscall.SIGSTOP)
		}
		_, err := resolve(ctx, p, ref)
		cancel()
		if codeOf(err) != CodeTime || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", ref, err)
		}
		if took := time.Since(begin); took > time.Second+slack {
			t.Errorf("%s took %v", ref, took)
		}
		select {
		case <-p.Done():
		case <-time.After(answerTime + slack):
			t.Errorf("%s: the process goes on", ref)
		}
	}
}

// TestCancel: a call that is cancelled ends, and a plugin that minds its context goes on.
func TestCancel(t *testing.T) {
	t.Parallel()
	spec, _ := specOf(t)
	p := start(t, spec)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := resolve(ctx, p, "wait"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := resolve(short, p, "wait"); codeOf(err) != CodeTime {
		t.Errorf("%v", err)
	}
	time.Sleep(2 * answerTime)
	if _, err := resolve(t.Context(), p, "other"); err != nil {
		t.Errorf("a call after those: %v", err)
	}
}

// TestLarge: an answer of 100 MiB is refused, and the plugin goes on.
func TestLarge(t *testing.T) {
	t.Parallel()
	spec, _ := specOf(t)
	p := start(t, spec)
	if _, err := resolve(t.Context(), p, "large"); codeOf(err) != CodeReplyLarge {
		t.Errorf("%v", err)
	}
	if _, err := resolve(t.Context(), p, "other"); err != nil {
		t.Errorf("a call after that: %v", err)
	}
}

// TestFlood: a gigabyte on standard output and error costs neither memory nor the log, nor is the plugin held up.
func TestFlood(t *testing.T) {
	spec, log := specOf(t)
	p := start(t, spec)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin := time.Now()
	if _, err := resolve(t.Context(), p, "flood"); err != nil {
		t.Fatal(err)
	}
	took := time.Since(begin)
	runtime.ReadMemStats(&after)
	lines := strings.Count(log.String(), "plugin wrote\"")
	if most := linesASec * (int(took.Seconds()) + 3); lines == 0 || lines > most {
		t.Errorf("%d lines in %v, at most %d expected", lines, took, most)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if !strings.Contains(log.String(), "too many lines") {
		t.Error("the log does not say that lines are missing")
	}
}

// TestGrandchild: what a plugin starts, and what holds its pipes, neither delays the end nor survives it. Where the plugin has a
// process table of its own that is so also for what left its group.
func TestGrandchild(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"grandchild", "session"} {
		for _, how := range []string{"close", "crash"} {
			spec, _ := specOf(t)
			p := start(t, spec)
			if what == "session" && !p.Alone() {
				t.Skip("this system gives no process table of its own")
			}
			mark := marker()
			if _, err := resolve(t.Context(), p, what+":"+mark); err != nil {
				t.Fatal(err)
			}
			grandchild := sleeper(t, mark)
			begin := time.Now()
			if how == "crash" {
				_ = syscall.Kill(p.PID(), syscall.SIGKILL)
				<-p.Done()
			} else if err := p.Close(); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took > graceTime+slack {
				t.Errorf("%s, %s: the end took %v", what, how, took)
			}
			gone(t, grandchild)
		}
	}
}

// marker is a time to sleep that no other process sleeps.
func marker() string { return fmt.Sprintf("1000.%d", rand.Int64()) }

// sleeper finds the process that sleeps so long. It has another number for the plugin than for us.
func sleeper(t *testing.T, mark string) int {
	t.Helper()
	for end := time.Now().Add(slack); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		all, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range all {
			if raw, err := os.ReadFile(name); err == nil && strings.Contains(string(raw), "sleep\x00"+mark) {
				pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
				if err != nil {
					t.Fatal(err)
				}
				return pid
			}
		}
	}
	t.Fatal("the plugin started nothing")
	return 0
}

// TestExecChild: the program may be started through the launcher that gives up privileges.
func TestExecChild(t *testing.T) {
	t.Parallel()
	spec, _ := specOf(t)
	spec.ExecChild = []string{executable(t), "exec-child"}
	p := start(t, spec)
	if _, err := resolve(t.Context(), p, "other"); err != nil {
		t.Error(err)
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	if err != nil || !strings.Contains(string(raw), "NoNewPrivs:\t1") {
		t.Errorf("it may gain privileges: %v", err)
	}
	raw, err = os.ReadFile(fmt.Sprintf("/proc/%d/limits", p.PID()))
	if err != nil || !regexp.MustCompile(`(?m)^Max core file size +0 +0 `).Match(raw) {
		t.Errorf("it may leave a core file: %v", err)
	}
	spec.ExecChild = []string{"/bin/false"}
	if _, err := Start(t.Context(), spec); codeOf(err) != CodeStart {
		t.Errorf("%v", err)
	}
	spec.ExecChild = []string{"/none"}
	if _, err := Start(t.Context(), spec); codeOf(err) != CodeStart {
		t.Errorf("%v", err)
	}
}

func executable(t *testing.T) string {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// TestManyThreads: a plugin lives as long as it is wanted, whatever becomes of the threads of the agent.
func TestManyThreads(t *testing.T) {
	spec, _ := specOf(t)
	p := start(t, spec)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(runtime.LockOSThread) // the thread ends with its goroutine
	}
	wg.Wait()
	time.Sleep(300 * time.Millisecond)
	if _, err := resolve(t.Context(), p, "other"); err != nil {
		t.Error(err)
	}
}

// hostThatIsKilled is a host in a process of its own.
func hostThatIsKilled(program string) {
	p, err := Start(context.Background(), Spec{Name: "hostile", Path: program, Store: os.Getenv("HOST_STORE"), Log: slog.New(slog.DiscardHandler), RunDir: os.Getenv("HOST_RUN"),
		ExecChild: []string{os.Args[0], "exec-child"}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	_, err = sdk.Call[struct{}](context.Background(), p, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: "{}"})
	for _, what := range strings.Fields(os.Getenv("HOST_ASKS")) {
		if err == nil {
			_, err = resolve(context.Background(), p, what)
		}
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println(p.PID(), p.Alone())
	select {}
}

// TestHostIsKilled: with the agent its plugins are gone, and the next one removes what they left.
func TestHostIsKilled(t *testing.T) {
	t.Parallel()
	run, err := os.MkdirTemp("/tmp", "run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	inGroup, elsewhere := marker(), marker()
	cmd := exec.Command(executable(t))
	cmd.Env = append(os.Environ(), "HOST_OF="+os.Getenv("HOSTILE"), "HOST_STORE="+filepath.Join(t.TempDir(), "store"), "HOST_RUN="+run, "HOST_ASKS=grandchild:"+inGroup+" session:"+elsewhere)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	var pid int
	var alone bool
	_, aerr := fmt.Sscan(line, &pid, &alone)
	if err != nil || aerr != nil {
		_ = cmd.Process.Kill()
		t.Fatalf("the host said %q, %v", line, err)
	}
	others := []int{sleeper(t, inGroup), sleeper(t, elsewhere)}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	gone(t, pid)
	for _, other := range others {
		if alone {
			gone(t, other)
		}
		_ = syscall.Kill(other, syscall.SIGKILL)
	}

	left := entries(t, run)
	if len(left) != 1 {
		t.Fatalf("left are %v", left)
	}
	sweep(run)
	if len(entries(t, run)) != 1 {
		t.Error("a folder that is new is not to be touched")
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(filepath.Join(run, left[0]), old, old); err != nil {
		t.Fatal(err)
	}
	used, err := newRoom(run) // sweeps
	if err != nil {
		t.Fatal(err)
	}
	defer used.remove()
	if err := os.Chtimes(used.dir, old, old); err != nil {
		t.Fatal(err)
	}
	sweep(run)
	if left := entries(t, run); len(left) != 1 || filepath.Join(run, left[0]) != used.dir {
		t.Errorf("left are %v", left)
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// gone waits until a process is no more, or only waits for its parent to ask after it.
func gone(t *testing.T, pid int) {
	t.Helper()
	for end := time.Now().Add(slack); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(raw), ") Z ") {
			return
		}
	}
	t.Errorf("process %d is still there", pid)
}

type testHost struct {
	now, most atomic.Int32
}

func (*testHost) HTTP(_ context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	size := 16<<20 - 1000
	if req.URL == "larger" {
		size += 2000
	}
	return &vendor.HTTPResponse{Status: 200, Body: make([]byte, size)}, nil
}

func (h *testHost) Get(_ context.Context, key string) ([]byte, error) {
	if n := h.now.Add(1); n > h.most.Load() {
		h.most.Store(n)
	}
	defer h.now.Add(-1)
	switch key {
	case "":
		return nil, &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_key", Message: "A key has a byte."}
	case "slow":
		time.Sleep(20 * time.Millisecond)
	}
	return []byte("value of " + key), nil
}
func (*testHost) Set(context.Context, string, []byte, int64) error { return nil }
func (*testHost) Log(string, string, ...string)                    {}
