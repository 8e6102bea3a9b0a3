package netlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// cli runs a command of the machine's own executable there and gives its answer.
func (a *agent) cli(into any, args ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c := a.inside(append([]string{a.lab.binary, "--json"}, args...)...)
	c.Env = append(c.Env, fmt.Sprintf("APIARY_ADDR=%s:7833", a.ip))
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	stop := context.AfterFunc(ctx, func() { _ = c.Process.Kill() })
	defer stop()
	if err := c.Run(); err != nil {
		return fmt.Errorf("apiary %s: %w: %s%s", strings.Join(args, " "), err, out.Bytes(), errs.Bytes())
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		return fmt.Errorf("apiary %s: %w: %s", strings.Join(args, " "), err, out.Bytes())
	}
	return nil
}

// spawn starts a worker of the block kind on the hive hN and waits until it serves.
func (a *agent) spawn(t *testing.T, model, kind string, hive int) contract.WorkerSpawned {
	t.Helper()
	var w contract.WorkerSpawned
	if err := a.cli(&w, "worker", "spawn", model, "--worker", kind, "--hive", fmt.Sprintf("h%d", hive), "--spawn-key", fmt.Sprintf("%s-h%d", model, hive)); err != nil {
		t.Fatal(err)
	}
	return w
}

// worker is how the queen on a sees a worker; false: it does not know it.
func (a *agent) worker(id string) (contract.WorkerView, bool) {
	all := a.cluster().Workers
	i := slices.IndexFunc(all, func(w contract.WorkerView) bool { return w.ID == id })
	if i < 0 {
		return contract.WorkerView{}, false
	}
	return all[i], true
}

// block is a worker block of an echo worker with these arguments, which writes a history.
func (l *lab) block(name string, args ...string) string {
	args = append(args, "--history", "history") // in its scratch folder: it may write nowhere else
	quoted := make([]string, len(args))
	for i, a := range args {
		quoted[i] = strconv.Quote(a)
	}
	return fmt.Sprintf("worker %q {\n  adapter = \"echo\"\n  args = [%s]\n}\n", name, strings.Join(quoted, ", "))
}

// event is a line of the history of echo workers.
type event struct {
	Time   time.Time `json:"time"`
	Worker string    `json:"worker"`
	Event  string    `json:"event"`
}

// events are those of one kind, since then, of workers that run.
func (l *lab) events(kind string, since time.Time) (out []event) {
	files, _ := filepath.Glob(filepath.Join(l.dir, "*", "workers", "*", "tmp", "history"))
	for _, f := range files {
		b, _ := os.ReadFile(f)
		for line := range bytes.Lines(b) {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Event == kind && !e.Time.Before(since) {
				out = append(out, e)
			}
		}
	}
	return out
}

// answer is what a client got.
type answer struct {
	at     time.Time // of the request
	took   time.Duration
	status int // 0: no answer
	body   string
	err    error
}

func (r answer) String() string {
	return fmt.Sprintf("%d after %v (%v): %.300s", r.status, r.took.Round(time.Millisecond), r.err, r.body)
}

// client is one of the machine's.
func (a *agent) client() *http.Client {
	return &http.Client{Timeout: 3 * time.Minute, Transport: &http.Transport{DialContext: a.dial, MaxIdleConnsPerHost: 64}}
}

// ask sends a request for a model to the machine's queen, and waits for the answer.
func (a *agent) ask(client *http.Client, model string) answer {
	r := answer{at: time.Now()}
	body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"one two three four"}]}`, model)
	res, err := client.Post(fmt.Sprintf("http://%s:7833/v1/chat/completions", a.ip), "application/json", strings.NewReader(body))
	if err != nil {
		r.err = err
	} else {
		b, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		r.status, r.body, r.err = res.StatusCode, string(b), err
	}
	r.took = time.Since(r.at)
	return r
}

// load sends requests at a rate until stop is called, which waits for the answers and returns them in the order of the requests.
func (a *agent) load(model string, perSecond int) (stop func() []answer) {
	client, end := a.client(), make(chan struct{})
	var mu sync.Mutex
	var all []answer
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(time.Second / time.Duration(perSecond))
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
			}
			wg.Go(func() {
				r := a.ask(client, model)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, r)
			})
		}
	})
	return func() []answer {
		close(end)
		wg.Wait()
		client.CloseIdleConnections()
		slices.SortFunc(all, func(a, b answer) int { return a.at.Compare(b.at) })
		return all
	}
}

// failed are the answers other than 200.
func failed(all []answer) []answer {
	return slices.DeleteFunc(slices.Clone(all), func(r answer) bool { return r.status == http.StatusOK && r.err == nil })
}

// slowest is the time within which that share of the answers came.
func slowest(all []answer, share float64) time.Duration {
	took := make([]time.Duration, 0, len(all))
	for _, r := range all {
		took = append(took, r.took)
	}
	slices.Sort(took)
	if len(took) == 0 {
		return 0
	}
	return took[min(int(share*float64(len(took))), len(took)-1)]
}

// lines counts those of the agent's log that hold text, each "" counts.
func (a *agent) lines(text string) int {
	b, _ := os.ReadFile(a.log)
	n := 0
	for line := range bytes.Lines(b) {
		if bytes.Contains(line, []byte(text)) {
			n++
		}
	}
	return n
}

// pid is the agent's own process id: ip(8) has become the agent.
func (a *agent) pid() int { return a.cmd.Process.Pid }

// resident is the memory of a process in bytes, and 0 when it is gone.
func resident(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) > 1 && f[0] == "VmRSS:" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n << 10
		}
	}
	return 0
}

// cpu is the processor time that the threads of a process have used.
func cpu(pid int) time.Duration {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	var sum time.Duration
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			n, _ := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			sum += time.Duration(n)
		}
	}
	return sum
}

// alive reports whether a process is there and no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(b, []byte(") "))
	return ok && rest[0] != 'Z'
}

// memoryGroup makes a control group whose processes have so many bytes of memory together, or skips the test.
func memoryGroup(t *testing.T, limit int) string {
	t.Helper()
	for _, v := range []struct{ root, limit string }{{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}} {
		group := filepath.Join(v.root, fmt.Sprintf("apiary-netlab-%d", os.Getpid()))
		if os.Mkdir(group, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			for range 100 {
				if err := os.Remove(group); err == nil || errors.Is(err, os.ErrNotExist) {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
		if os.WriteFile(filepath.Join(group, v.limit), []byte(strconv.Itoa(limit)), 0o600) == nil {
			return group
		}
	}
	t.Skip("skipped: no memory control group can be made here")
	return ""
}

// killAll ends an agent and these processes at once, as a machine that loses its power does.
func (a *agent) killAll(pids ...int) {
	a.signal(syscall.SIGKILL)
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-a.ended
}
