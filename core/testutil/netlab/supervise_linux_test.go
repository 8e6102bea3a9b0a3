package netlab

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

// single starts one machine that is queen and hive.
func single(t *testing.T, more string, blocks func(l *lab) string) *agent {
	l := newLab(t)
	t.Parallel()
	a := l.machine(1, both, blocks(l)+more)
	a.start()
	within(t, 30*time.Second, "the hive is alive", func() bool { return a.alive() == 1 })
	return a
}

var started = regexp.MustCompile(`time=(\S+) .*msg="worker started" role=hive worker=(\S+) pid=(\d+)`)

// starts are when the hive has started workers whose names begin so, and their process ids.
func (a *agent) starts(prefix string) (at []time.Time, pids []int) {
	b, _ := os.ReadFile(a.log)
	for _, m := range started.FindAllStringSubmatch(string(b), -1) {
		if when, err := time.Parse(time.RFC3339Nano, m[1]); err == nil && strings.HasPrefix(m[2], prefix) {
			pid, _ := strconv.Atoi(m[3])
			at, pids = append(at, when), append(pids, pid)
		}
	}
	return at, pids
}

// TestCrashLoop is T14 with the real waits: five starts, and then none.
func TestCrashLoop(t *testing.T) {
	a := single(t, "", func(l *lab) string { return l.block("echo", "--load", "100ms", "--exit-during-load", "3") })
	client, begin := a.client(), time.Now()
	first := a.ask(client, "echo:crash")
	if first.status != http.StatusServiceUnavailable || !strings.Contains(first.body, "exit code 3") {
		t.Errorf("the request that started it ends with %v", first)
	}
	time.Sleep(time.Until(begin.Add(80 * time.Second)))
	at, _ := a.starts("echo-")
	if len(at) != 5 {
		t.Fatalf("%d starts, want 5", len(at))
	}
	for i, want := range []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second} {
		if got := at[i+1].Sub(at[i]); got < want*3/4 || got > want*5/4+2*time.Second {
			t.Errorf("start %d comes %v after the one before, want %v ± 25 %%", i+2, got, want)
		}
	}
	if v := a.cluster().Workers; len(v) != 1 || v[0].Condition != contract.ConditionCrashLoop {
		t.Errorf("the workers are %+v", v)
	}
	if r := a.ask(client, "echo:crash"); r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, "exit code 3") || r.took > 5*time.Second {
		t.Errorf("a request after the crash loop ends with %v", r)
	}
	if at, _ := a.starts("echo-"); len(at) != 5 {
		t.Errorf("a request after the crash loop starts another worker")
	}
}

// TestOutOfMemory is T19: a worker outgrows the memory that it is given.
func TestOutOfMemory(t *testing.T) {
	a := single(t, "", func(l *lab) string { return l.block("echo", "--load", "2s", "--alloc-mb", "400") + l.block("quick") })
	group := memoryGroup(t, 200<<20)
	other := a.spawn(t, "echo:other", "quick", 1)
	done := make(chan answer, 1)
	begin := time.Now()
	go func() { done <- a.ask(a.client(), "echo:big") }()
	moved := map[int]bool{}
	within(t, 60*time.Second, "it is known that the model does not fit", func() bool {
		_, pids := a.starts("echo-")
		for _, pid := range pids {
			if !moved[pid] && os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600) == nil {
				moved[pid] = true
			}
		}
		return a.logged("event=does_not_fit")
	})
	row("cluster/oom_given_up", time.Since(begin).Seconds(), "s", 40, true)
	time.Sleep(3 * time.Second)
	if at, _ := a.starts("echo-"); len(at) > 3 {
		t.Errorf("it was started %d times", len(at))
	}
	i := slices.IndexFunc(a.cluster().Workers, func(w contract.WorkerView) bool { return w.ModelID == "echo:big" })
	if i < 0 || a.cluster().Workers[i].Condition != contract.ConditionOOM {
		t.Errorf("the workers are %+v", a.cluster().Workers)
	}
	if r := <-done; r.status == http.StatusOK || !strings.Contains(r.body, "memory") {
		t.Errorf("the request ends with %v", r)
	}
	if v, ok := a.worker(other.WorkerID); !ok || v.PID != other.PID || !alive(other.PID) {
		t.Error("the other worker suffered")
	}
}

// TestOrphans is T21: workers whose queen and hive are gone.
func TestOrphans(t *testing.T) {
	l := newLab(t)
	t.Parallel()
	blocks := l.block("quick") + l.block("slow", "--tps", "4", "--tokens", "120")
	short := l.machine(1, both, "")
	kept := l.machine(2, both, "")
	for a, ttl := range map[*agent]string{short: "10s", kept: "0s"} {
		a.configure(both, blocks)
		b, err := os.ReadFile(filepath.Join(a.home, "config.hcl"))
		if err != nil {
			t.Fatal(err)
		}
		a.write("config.hcl", strings.Replace(string(b), "hive {\n", "hive {\n  orphan_ttl = \""+ttl+"\"\n", 1))
		a.start()
		within(t, 30*time.Second, "the hive is alive", func() bool { return a.alive() == 1 })
	}
	idle := short.spawn(t, "echo:idle", "quick", 1)
	busy := short.spawn(t, "echo:busy", "slow", 1)
	stays := kept.spawn(t, "echo:idle", "quick", 2)
	stream := make(chan string, 1)
	begun := make(chan struct{})
	go func() {
		req, _ := http.NewRequest(http.MethodPost, fmt.Sprintf("http://%s:%d/v1/chat/completions", short.ip, busy.Port), strings.NewReader(`{"stream":true,"messages":[{"role":"user","content":"a b"}]}`))
		req.Header.Set("Authorization", "Bearer "+secret.ForWorker(secret.Secret(strings.Repeat("ab", 32)), busy.WorkerID).Reveal())
		req.Header.Set("Content-Type", "application/json")
		res, err := short.client().Do(req)
		close(begun)
		if err != nil {
			stream <- err.Error()
			return
		}
		defer func() { _ = res.Body.Close() }()
		b, err := io.ReadAll(res.Body)
		stream <- fmt.Sprint(string(b[max(0, len(b)-40):]), err)
	}()
	<-begun
	short.kill()
	kept.kill()
	killed := time.Now()
	took := within(t, 40*time.Second, "the idle worker has ended", func() bool { return !alive(idle.PID) })
	if took < 8*time.Second || took > 20*time.Second {
		t.Errorf("it ended after %v, want 8 to 20 s", took)
	}
	if !alive(busy.PID) {
		t.Error("the worker with an open stream has ended")
	}
	if end := <-stream; !strings.Contains(end, "[DONE]") {
		t.Errorf("the stream ends with %q", end)
	}
	within(t, 30*time.Second, "the worker has ended after its stream", func() bool { return !alive(busy.PID) })
	time.Sleep(time.Until(killed.Add(62 * time.Second)))
	if !alive(stays.PID) {
		t.Error("a worker without a lease has ended")
	}
}

// TestLogFlood is T22: a worker writes 200 MB without a line end, and then a million lines.
func TestLogFlood(t *testing.T) {
	a := single(t, "", func(l *lab) string { return l.block("flood", "--log-flood") })
	w := a.spawn(t, "echo:flood", "flood", 1)
	most, total, peak := int64(0), int64(0), int64(0)
	client := a.client()
	for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(200 * time.Millisecond) {
		most = max(most, resident(w.PID))
		size := int64(0)
		files, _ := filepath.Glob(filepath.Join(a.home, "workers", w.WorkerID, "worker.log*"))
		for _, f := range files {
			if st, err := os.Stat(f); err == nil {
				size += st.Size()
			}
		}
		total, peak = size, max(peak, size)
		if r := a.ask(client, "echo:flood"); r.status != http.StatusOK {
			t.Fatalf("a request ends with %v", r)
		}
	}
	if most == 0 || most > 100<<20 {
		t.Errorf("the worker takes %d MB", most>>20)
	}
	// Three old logs and the one that is written, of 10 MiB each. The worker looks at the size every so often: in between it may be more.
	if total == 0 || total > 42<<20 {
		t.Errorf("the logs take %d MB in the end", total>>20)
	}
	row("cluster/log_flood_peak", float64(peak>>20), "MiB", 0, true)
}

// TestLongLoad is T24: a load of a minute blocks nothing, and its cancel frees everything.
func TestLongLoad(t *testing.T) {
	a := single(t, "", func(l *lab) string { return l.block("long", "--load", "60s") })
	done := make(chan error, 1)
	go func() {
		done <- a.cli(nil, "worker", "spawn", "echo:long", "--worker", "long")
	}()
	within(t, 20*time.Second, "the worker is there", func() bool { return len(a.cluster().Workers) == 1 })
	w := a.cluster().Workers[0]
	var oldest int64
	seen := a.watch(func() {
		for begin := time.Now(); time.Since(begin) < 25*time.Second; time.Sleep(300 * time.Millisecond) {
			if v, ok := a.worker(w.ID); ok {
				oldest = max(oldest, v.AgeMS)
				w = v
			}
		}
	})
	row("cluster/beat_while_loading", float64(oldest)/1000, "s", 6, false)
	if oldest > 7500 { // from which it would be stale
		t.Errorf("the worker was not heard for %d ms while it loads", oldest)
	}
	if s := seen["h1"]; len(s) != 1 || s[0] != contract.LivenessAlive {
		t.Errorf("the hive went through %v", s)
	}
	if w.Status != contract.StatusStarting || w.LoadProgress < 0.2 || w.LoadProgress > 0.9 {
		t.Errorf("after 25 s of 60 the worker says %s and %.2f", w.Status, w.LoadProgress)
	}
	var jobs []contract.Job
	if err := a.cli(&jobs, "job", "list"); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(jobs, func(j contract.Job) bool { return j.Operation == contract.OpWorkerSpawn })
	if i < 0 {
		t.Fatalf("the jobs are %+v", jobs)
	}
	begin := time.Now()
	_ = a.cli(nil, "job", "cancel", jobs[i].ID)
	within(t, 30*time.Second, "the process has ended", func() bool { return !alive(w.PID) })
	within(t, 30*time.Second, "the worker is out of the list", func() bool { return len(a.cluster().Workers) == 0 })
	took := time.Since(begin)
	row("cluster/cancelled_load", took.Seconds(), "s", 16, false)
	if took > 16*time.Second {
		t.Errorf("freed after %v", took)
	}
	if err := <-done; err == nil {
		t.Error("the command of the cancelled load succeeds")
	}
}
