package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

// node is an agent of its own, with its own data folder, that a test can kill and start again.
type node struct {
	t          *testing.T
	home, addr string
	cmd        *exec.Cmd
	ended      chan struct{} // closed when cmd is reaped
}

// newNode makes a data folder with that configuration; ADDR in it stands for a free address, which ready probes.
func newNode(t *testing.T, config string) *node {
	t.Helper()
	addr, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, home: t.TempDir(), addr: addr}
	if err := os.WriteFile(filepath.Join(n.home, "config.hcl"), []byte(strings.ReplaceAll(config, "ADDR", addr)), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := stopHome(n.home); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(built, "apiary"), args...)
	cmd.Env = []string{"APIARY_HOME=" + n.home, "HOME=" + n.home, "PATH=/usr/bin:/bin"}
	return cmd
}

func (n *node) start() {
	n.t.Helper()
	n.cmd = n.command("agent")
	log, err := os.OpenFile(filepath.Join(n.home, "test.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	n.cmd.Stdout, n.cmd.Stderr = log, log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	cmd, ended := n.cmd, make(chan struct{})
	n.ended = ended
	go func() { _ = cmd.Wait(); close(ended) }() // newNode's cleanup stops it
	n.until(20*time.Second, "the agent answers", func() bool {
		resp, err := http.Get("http://" + n.addr + "/healthz")
		if err != nil {
			return false
		}
		return resp.Body.Close() == nil && resp.StatusCode == http.StatusOK
	})
}

// kill ends the agent as a crash would.
func (n *node) kill() {
	n.t.Helper()
	if err := n.cmd.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	<-n.ended
}

func (n *node) until(limit time.Duration, what string, done func() bool) {
	n.t.Helper()
	for deadline := time.Now().Add(limit); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			log, _ := os.ReadFile(filepath.Join(n.home, "test.log"))
			n.t.Fatalf("not within %v: %s; the agent's log:\n%s", limit, what, log)
		}
	}
}

// run runs a command and gives its standard output as JSON.
func (n *node) run(out any, args ...string) {
	n.t.Helper()
	b, err := n.command(append(args, "--json")...).Output()
	if err != nil {
		var stderr []byte
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			stderr = exit.Stderr
		}
		n.t.Fatalf("apiary %s: %v %s%s", strings.Join(args, " "), err, b, stderr)
	}
	if out != nil {
		if err := json.Unmarshal(b, out); err != nil {
			n.t.Fatalf("apiary %s: %v\n%s", strings.Join(args, " "), err, b)
		}
	}
}

func (n *node) workers() []contract.WorkerView {
	var w []contract.WorkerView
	n.run(&w, "worker", "list")
	return w
}

func (n *node) alive() (out []contract.WorkerView) {
	for _, w := range n.workers() {
		if w.Liveness == contract.LivenessAlive && w.Status != contract.StatusStopped {
			out = append(out, w)
		}
	}
	return out
}

// stream opens a streaming completion and hands each line of the answer to line until that returns false.
func (n *node) stream(ctx context.Context, body string, line func(string) bool) error {
	return streamFrom(ctx, "http://"+n.addr, "", body, line)
}

// streamFrom does the same at any base URL, with a key.
func streamFrom(ctx context.Context, base, key, body string, line func(string) bool) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s", resp.Status, b)
	}
	for s := bufio.NewScanner(resp.Body); ; {
		if !s.Scan() {
			return s.Err()
		}
		if !line(s.Text()) {
			return nil
		}
	}
}

// isToken reports whether a line of a stream carries text; the first event only says who speaks.
func isToken(line string) bool {
	return strings.Contains(line, `"content":"`) && !strings.Contains(line, `"content":""`)
}

const slowEcho = `
queen { listen = "ADDR" }
hive { listen = "127.0.0.1:0" }
worker "echo" {
  adapter = "echo"
  args    = ["--tps", "20", "--tokens", "60", "--history", "../history"]
}
`

const slowRequest = `{"model":"echo:slow","stream":true,"messages":[{"role":"user","content":"one two three"}]}`

func slowNode(t *testing.T) (n *node, history string) {
	n = newNode(t, slowEcho)
	n.start()
	n.run(nil, "worker", "spawn", "echo:slow")
	return n, filepath.Join(n.home, "workers", "*", "history") // a worker may write in its own folder alone
}

// readAll reads the files that a pattern names, one after the other.
func readAll(pattern string) (all []byte) {
	files, _ := filepath.Glob(pattern) // the pattern is well formed
	for _, f := range files {
		b, _ := os.ReadFile(f)
		all = append(all, b...)
	}
	return all
}

// TestWorkerKilledMidStream (F6): the stream ends with exactly one error event, without [DONE] and without a finish reason.
func TestWorkerKilledMidStream(t *testing.T) {
	t.Parallel()
	n, _ := slowNode(t)
	worker := n.alive()[0]
	var all []string
	tokens := 0
	err := n.stream(t.Context(), slowRequest, func(s string) bool {
		all = append(all, s)
		if isToken(s) {
			if tokens++; tokens == 5 {
				if err := syscall.Kill(worker.PID, syscall.SIGKILL); err != nil {
					t.Error(err)
				}
			}
		}
		return true
	})
	if err != nil {
		t.Fatalf("the stream did not end cleanly: %v", err)
	}
	text := strings.Join(all, "\n")
	if strings.Count(text, `"code":"worker_lost"`) != 1 || strings.Contains(text, "[DONE]") || strings.Contains(text, `"finish_reason":"`) || tokens < 5 {
		t.Errorf("after %d tokens the stream ended with\n%s", tokens, text)
	}
	// It is started again and serves.
	n.until(20*time.Second, "another worker serves", func() bool {
		w := n.alive()
		return len(w) == 1 && w[0].PID != worker.PID && w[0].Status == contract.StatusReady
	})
}

// TestStopAfterCrash: a worker that has just died does not keep `apiary stop` from ending everything and saying so.
func TestStopAfterCrash(t *testing.T) {
	t.Parallel()
	n, _ := slowNode(t)
	if err := syscall.Kill(n.alive()[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if out, err := n.command("stop").CombinedOutput(); err != nil || !bytes.Contains(out, []byte("stopped")) {
		t.Errorf("apiary stop: %v\n%s", err, out)
	}
}

// TestClientGone (F7): the worker hears of it, and its slot is free again.
func TestClientGone(t *testing.T) {
	t.Parallel()
	n, history := slowNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	if err := n.stream(ctx, slowRequest, func(s string) bool { return !isToken(s) }); err != nil {
		t.Fatal(err)
	}
	cancel()
	gone := time.Now()
	n.until(5*time.Second, "the worker sees the cancel", func() bool {
		b := readAll(history)
		return bytes.Contains(b, []byte(`"cancel"`))
	})
	t.Logf("seen after %v", time.Since(gone))
	n.until(5*time.Second, "the slot is free", func() bool { w := n.alive(); return len(w) == 1 && w[0].SlotsBusy == 0 && w[0].InFlight == 0 })
}

// TestQueenRestart (F9): a queen that was killed knows its workers again from their beats, and none of them is started anew.
func TestQueenRestart(t *testing.T) {
	t.Parallel()
	n, _ := slowNode(t)
	before := n.alive()[0]
	n.kill()
	if err := syscall.Kill(before.PID, 0); err != nil {
		t.Fatalf("the worker ended with its agent: %v", err)
	}
	began := time.Now()
	n.start()
	n.until(12*time.Second, "the worker is known again", func() bool { return len(n.alive()) == 1 })
	t.Logf("known again after %v", time.Since(began))
	// A request that comes while the queen still listens for beats must not start another one either.
	got := ""
	if err := n.stream(t.Context(), strings.ReplaceAll(slowRequest, "three", "four"), func(s string) bool { got += s + "\n"; return true }); err != nil || !strings.Contains(got, "[DONE]") {
		t.Errorf("the request: %v\n%s", err, got)
	}
	if after := n.alive(); len(after) != 1 || after[0].PID != before.PID || after[0].StartTicks != before.StartTicks {
		t.Errorf("before %d, afterwards %+v", before.PID, after)
	}
}

// TestQueenAsksWorkers (F9): a queen that was just started does not wait for the next beats of the workers that it finds, and what
// is asked for right away is said to run already.
func TestQueenAsksWorkers(t *testing.T) {
	t.Parallel()
	n := newNode(t, `
queen {
  listen = "ADDR"
  heartbeat { interval = "60s" }
  detection {
    stale   = "2m"
    suspect = "3m"
    down    = "4m"
    lost    = "5m"
    forget  = "6m"
  }
}
hive { listen = "127.0.0.1:0" }
`)
	n.start()
	n.run(nil, "worker", "spawn", "echo:test")
	before := n.alive()[0]
	n.until(10*time.Second, "the worker was told how often to beat", func() bool { w := n.alive(); return len(w) == 1 && w[0].AgeMS > 6000 })
	n.kill()
	n.start()
	cmd := n.command("run", "echo:test", "one two")
	cmd.Env = append(cmd.Env, "APIARY_ADDR="+n.addr)
	began := time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "ready in") || !strings.Contains(string(out), "one two") {
		t.Errorf("apiary run: %v\n%s", err, out)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("it took %v", took)
	}
	if after := n.alive(); len(after) != 1 || after[0].PID != before.PID {
		t.Errorf("before %d, afterwards %+v", before.PID, after)
	}
}

// TestNothingStartsTwiceAfterAKill (F9): what is asked for right after an agent was killed and started again is given by the
// workers that run on, although they have not beaten yet.
func TestNothingStartsTwiceAfterAKill(t *testing.T) {
	t.Parallel()
	n := newNode(t, "queen { listen = \"ADDR\" }\nhive { listen = \"127.0.0.1:0\" }\nworker \"echo\" { adapter = \"echo\" }\n")
	n.start()
	for _, model := range []string{"echo:run", "echo:spawn", "echo:request"} {
		n.run(nil, "worker", "spawn", model)
	}
	pids := func() (out []int) {
		for _, w := range n.alive() {
			out = append(out, w.PID)
		}
		slices.Sort(out)
		return out
	}
	before := pids()
	n.kill()
	n.start()
	var all sync.WaitGroup
	for _, args := range [][]string{{"run", "echo:run", "one two"}, {"worker", "spawn", "echo:spawn"}} {
		all.Go(func() {
			if out, err := n.command(args...).CombinedOutput(); err != nil {
				t.Errorf("apiary %v: %v\n%s", args, err, out)
			}
		})
	}
	all.Go(func() {
		err := n.stream(t.Context(), `{"model":"echo:request","stream":true,"messages":[{"role":"user","content":"x"}]}`, func(string) bool { return true })
		if err != nil {
			t.Error(err)
		}
	})
	all.Wait()
	n.until(10*time.Second, "all workers are heard again", func() bool { return len(n.alive()) >= 3 })
	if after := pids(); !slices.Equal(before, after) {
		t.Errorf("the workers' processes were %v and are %v", before, after)
	}
}

// TestHiveRestartDuringStream (F10): a hive that is killed and started again disturbs no stream; its worker is listed by it and
// can be deleted through it.
func TestHiveRestartDuringStream(t *testing.T) {
	t.Parallel()
	hiveAddr, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	const echo = "\nworker \"echo\" {\n  adapter = \"echo\"\n  args = [\"--tps\", \"20\", \"--tokens\", \"60\"]\n}\n"
	queen := newNode(t, "agent { roles = [\"queen\"] }\nqueen {\n  listen = \"ADDR\"\n  hives = [\"http://"+hiveAddr+"\"]\n}"+echo)
	hive := newNode(t, "agent { roles = [\"hive\"] }\nhive { listen = \""+hiveAddr+"\" }"+echo)
	hive.addr = hiveAddr
	queen.start()
	// Until there is `apiary join` the cluster's key is copied by hand.
	key, err := os.ReadFile(filepath.Join(queen.home, "secrets", "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(hive.home, "secrets"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(hive.home, "secrets", "cluster.key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	hive.start()
	queen.until(15*time.Second, "the queen hears the hive", func() bool {
		var hives []contract.HiveView
		queen.run(&hives, "hive", "list")
		return len(hives) == 1 && hives[0].Liveness == contract.LivenessAlive
	})
	queen.run(nil, "worker", "spawn", "echo:slow")
	worker := queen.alive()[0]
	var all []string
	tokens := 0
	err = queen.stream(t.Context(), slowRequest, func(s string) bool {
		all = append(all, s)
		if isToken(s) {
			switch tokens++; tokens {
			case 5:
				hive.kill()
			case 20:
				hive.start()
			}
		}
		return true
	})
	text := strings.Join(all, "\n")
	if err != nil || tokens != 60 || strings.Count(text, "[DONE]") != 1 || strings.Contains(text, `"error"`) {
		t.Fatalf("the stream gave %d tokens and %v:\n%s", tokens, err, text)
	}
	if after := queen.alive(); len(after) != 1 || after[0].PID != worker.PID || after[0].StartTicks != worker.StartTicks {
		t.Fatalf("before %d, afterwards %+v", worker.PID, after)
	}
	queen.run(nil, "worker", "delete", worker.ID)
	if err := leftoverWorkers(hive.home); err != nil {
		t.Error(err)
	}
}

// TestBadBodies: what is no request is refused in OpenAI's shape, and the agent goes on.
func TestBadBodies(t *testing.T) {
	t.Parallel()
	n, _ := slowNode(t)
	for _, c := range []struct {
		name, body string
		status     int
	}{
		{"garbage", `{"model": echo`, 400},
		{"no object", `[1,2]`, 400},
		{"two models", `{"model":"echo:slow","model":"echo:other","messages":[]}`, 400},
		{"no model", `{"messages":[]}`, 400},
		{"deep", `{"model":"echo:slow","messages":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`, 400},
		{"over the limit", `{"model":"echo:slow","messages":[{"role":"user","content":"` + strings.Repeat("x", 11<<20) + `"}]}`, 413},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+n.addr+"/v1/chat/completions", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		var answer contract.ErrorBody
		err = json.NewDecoder(resp.Body).Decode(&answer)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || answer.Error.Type != "invalid_request_error" || answer.Error.RequestID == "" || answer.Error.Message == "" {
			t.Errorf("%s: %s %+v %v", c.name, resp.Status, answer, err)
		}
	}
	if w := n.alive(); len(w) != 1 {
		t.Errorf("afterwards there are the workers %+v", w)
	}
}
