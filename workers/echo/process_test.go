package echo

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
)

// queen takes beats as a queen does.
type queen struct {
	*httptest.Server
	mu    sync.Mutex
	beats []contract.Heartbeat
	bad   []string
}

func newQueen(t *testing.T) *queen {
	doc := apitest.Load(t, "worker-api.yaml")
	q := &queen{}
	q.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var b contract.Heartbeat
		q.mu.Lock()
		defer q.mu.Unlock()
		switch {
		case err != nil || json.Unmarshal(body, &b) != nil:
			q.bad = append(q.bad, "not a beat")
		case len(body) > contract.MaxWorkerBeat || r.URL.Path != "/v1/heartbeat" || r.Header.Get("Authorization") != "Bearer "+key.Reveal():
			q.bad = append(q.bad, fmt.Sprintf("%s with %d bytes", r.URL.Path, len(body)))
		}
		doc.Value(t, "Heartbeat", body)
		q.beats = append(q.beats, b)
		_ = json.NewEncoder(w).Encode(contract.HeartbeatReply{Queens: []string{q.URL}, IntervalMS: 5000})
	}))
	t.Cleanup(func() {
		q.Close()
		for _, b := range q.bad {
			t.Errorf("a bad beat: %s", b)
		}
		for i := 1; i < len(q.beats); i++ {
			if q.beats[i].Sequence <= q.beats[i-1].Sequence {
				t.Errorf("the sequence does not grow: %d after %d", q.beats[i].Sequence, q.beats[i-1].Sequence)
			}
		}
	})
	return q
}

func (q *queen) last() contract.WorkerInfo {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.beats) == 0 {
		return contract.WorkerInfo{}
	}
	return q.beats[len(q.beats)-1].Worker
}

// worker is an echo worker in a process of its own.
type worker struct {
	cmd  *exec.Cmd
	log  string
	done chan error
}

func start(t *testing.T, args ...string) *worker {
	t.Helper()
	pr, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w := &worker{log: filepath.Join(t.TempDir(), "worker.log"), done: make(chan error, 1)}
	out, err := os.OpenFile(w.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	w.cmd = exec.Command(os.Args[0], append([]string{"--worker-id", "echo-1", "--model", "echo:test", "--hive-id", "hive-1", "--spawn-key", "k", "--generation", "3"}, args...)...)
	w.cmd.Env = []string{asWorker + "=1", "GORACE=atexit_sleep_ms=0", "PATH=" + os.Getenv("PATH")}
	w.cmd.ExtraFiles = []*os.File{pr}
	w.cmd.Stdout, w.cmd.Stderr = out, out
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(pw, key.Reveal())
	_ = pw.Close()
	_ = pr.Close()
	_ = out.Close()
	go func() { w.done <- w.cmd.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-w.cmd.Process.Pid, syscall.SIGKILL) // the group of a child that this test started
		if t.Failed() {
			b, _ := os.ReadFile(w.log)
			t.Logf("worker.log:\n%.4000s", b)
		}
	})
	return w
}

// exit waits for the end of the process and returns its exit code, or minus the signal.
func (w *worker) exit(t *testing.T) int {
	t.Helper()
	select {
	case <-w.done:
	case <-time.After(10 * time.Second):
		t.Fatal("the worker does not end")
	}
	ws := w.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ws.Signaled() {
		return -int(ws.Signal())
	}
	return ws.ExitStatus()
}

func url(w contract.WorkerInfo) string { return "http://127.0.0.1:" + strconv.Itoa(w.Port) }

func TestProcess(t *testing.T) {
	q := newQueen(t)
	w := start(t, "--queen-url", q.URL, "--load", "300ms", "--context", "2048")
	wait(t, func() bool { return q.last().Status == contract.StatusStarting }, "a beat while loading")
	if res := get(t, http.MethodPost, url(q.last())+"/v1/infer", `{"prompt":"a"}`); res.StatusCode == 503 && res.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After while loading")
	}
	wait(t, func() bool { return q.last().Status == contract.StatusReady }, "a beat at once when ready")
	got := q.last()
	id, err := process.Self("echo-1")
	if err != nil {
		t.Fatal(err)
	}
	if got.PID != w.cmd.Process.Pid || got.BootID != id.BootID || got.StartTicks == 0 || got.HiveID != "hive-1" || got.SpawnKey != "k" || got.Generation != 3 ||
		got.MemoryBytes < contract.MiB || got.LoadProgress != 1 || got.ContextLength != 2048 {
		t.Errorf("the beat says %+v", got)
	}
	conform(t, url(got))
	// The secret is nowhere to be seen, and other users cannot look (dumpable 0 gives the files to root).
	for _, f := range []string{"cmdline", "environ"} {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", got.PID, f))
		if bytes.Contains(b, []byte(key.Reveal())) {
			t.Errorf("the secret is in %s", f)
		}
	}
	if _, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", got.PID)); err == nil {
		target, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/3", got.PID))
		if strings.HasPrefix(target, "pipe:") {
			t.Error("the descriptor of the secret is still open")
		}
	}
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	if code := w.exit(t); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	if s := q.last().Status; s != contract.StatusStopped {
		t.Errorf("the last beat says %s", s)
	}
}

func TestProcessDrainsOnSIGTERM(t *testing.T) {
	q := newQueen(t)
	w := start(t, "--queen-url", q.URL, "--tps", "50", "--tokens", "30")
	wait(t, func() bool { return q.last().Status == contract.StatusReady }, "ready")
	res := get(t, http.MethodPost, url(q.last())+"/v1/chat/completions", `{"messages":[{"role":"user","content":"go on"}],"stream":true}`)
	lines := bufio.NewScanner(res.Body)
	if !lines.Scan() {
		t.Fatal("no first event")
	}
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	wait(t, func() bool { return q.last().Status == contract.StatusStopped }, "a beat at once")
	if r := get(t, http.MethodPost, url(q.last())+"/v1/infer", `{"prompt":"a"}`); r.StatusCode != 503 {
		t.Errorf("a draining worker takes a new request: %d", r.StatusCode)
	}
	last := ""
	for lines.Scan() {
		if lines.Text() != "" {
			last = lines.Text()
		}
	}
	if last != "data: [DONE]" {
		t.Errorf("the open stream ended with %q", last)
	}
	if code := w.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestProcessDrainBound(t *testing.T) {
	q := newQueen(t)
	w := start(t, "--queen-url", q.URL, "--hang-after-tokens", "1", "--drain", "100ms")
	wait(t, func() bool { return q.last().Status == contract.StatusReady }, "ready")
	res := get(t, http.MethodPost, url(q.last())+"/v1/completions", `{"prompt":"a b c","stream":true}`)
	first := make([]byte, 1)
	if _, err := res.Body.Read(first); err != nil {
		t.Fatal(err)
	}
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	rest, err := io.ReadAll(res.Body)
	if err != nil || !bytes.Contains(rest, []byte(`"code":"draining"`)) || bytes.Contains(rest, []byte("[DONE]")) {
		t.Errorf("a stream longer than the drain ended with %q, %v", rest, err)
	}
	if code := w.exit(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestProcessFaults(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	_, port, _ := net.SplitHostPort(taken.Addr().String())
	dead := httptest.NewServer(nil)
	dead.Close()
	for _, c := range []struct {
		name string
		args []string
		code int
	}{
		{"exit during load", []string{"--exit-during-load", "3", "--load", "20ms"}, 3},
		{"port taken", []string{"--port", port}, process.ExitPortTaken},
		{"unknown argument", []string{"--host=0.0.0.0"}, 2},
		{"no such garbage", []string{"--garbage=nice"}, 2},
		{"no secret", []string{"--secret-fd", "9"}, 2},
		{"orphan lease", []string{"--orphan-ttl", "300ms", "--queen-url", dead.URL}, 0},
		{"history that cannot be", []string{"--history", "/nonexistent/x"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := start(t, c.args...)
			if code := w.exit(t); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if b, _ := os.ReadFile(w.log); len(b) == 0 {
				t.Error("the log says nothing")
			}
		})
	}
}

func TestProcessDies(t *testing.T) {
	q := newQueen(t)
	w := start(t, "--queen-url", q.URL, "--die-after-tokens", "2", "--fork-grandchild", "--ignore-sigterm", "--alloc-mb", "64")
	wait(t, func() bool { return q.last().Status == contract.StatusReady }, "ready")
	if m := info(t, url(q.last())).MemoryBytes; m < 64*contract.MiB {
		t.Errorf("--alloc-mb 64 uses %v", m)
	}
	_ = w.cmd.Process.Signal(syscall.SIGTERM)
	grandchild := func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", w.cmd.Process.Pid, w.cmd.Process.Pid))
		all, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", w.cmd.Process.Pid))
		for _, f := range all {
			more, _ := os.ReadFile(f)
			b = append(b, more...)
		}
		return len(bytes.TrimSpace(b)) > 0
	}
	if !grandchild() {
		t.Error("there is no grandchild")
	}
	res := get(t, http.MethodPost, url(q.last())+"/v1/infer", `{"prompt":"a b c d","stream":true}`)
	if b, err := io.ReadAll(res.Body); err == nil || bytes.Count(b, []byte("event: token")) != 2 {
		t.Errorf("the stream ended with %q, %v", b, err)
	}
	if code := w.exit(t); code != -int(syscall.SIGKILL) {
		t.Errorf("exit code %d", code)
	}
}

func TestLogFloodIsRotated(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 200 MB")
	}
	q := newQueen(t)
	w := start(t, "--queen-url", q.URL, "--log-flood")
	wait(t, func() bool { return q.last().Status == contract.StatusReady }, "ready")
	if r := answerOf(t, url(q.last()), `{"prompt":"still here"}`); r.Text != "still here" {
		t.Errorf("answered %q", r.Text)
	}
	wait(t, func() bool { _, err := os.Stat(w.log + ".1"); return err == nil }, "a rotated log")
	if m := info(t, url(q.last())).MemoryBytes; m > 300*contract.MiB { // the race detector takes its share
		t.Errorf("the flood takes %v of memory", m)
	}
	for _, suffix := range []string{".1", ".2", ".3"} {
		if st, err := os.Stat(w.log + suffix); err == nil && st.Size() > 10<<20 {
			t.Errorf("the rotated log %s has %d bytes", suffix, st.Size())
		}
	}
}
