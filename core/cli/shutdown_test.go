package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
)

// waitExit waits for a command that ends by itself and returns its exit code.
func waitExit(t *testing.T, cmd *exec.Cmd, ended <-chan struct{}, limit time.Duration) int {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(limit):
		t.Fatalf("%v does not end within %v", cmd.Args, limit)
	}
	return cmd.ProcessState.ExitCode()
}

// TestGracefulStop (F21): readiness is off at once, the stream that runs is finished, then the agent ends with 0 and its worker
// runs on.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	n, _ := slowNode(t)
	worker := n.alive()[0]
	var all []string
	tokens, refused := 0, 0
	err := n.stream(t.Context(), slowRequest, func(s string) bool {
		all = append(all, s)
		if !isToken(s) {
			return true
		}
		switch tokens++; tokens {
		case 5:
			if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		case 15:
			for _, path := range []string{"/readyz", "/v1/models"} {
				resp, err := http.Get("http://" + n.addr + path)
				if err != nil {
					t.Errorf("%s while it drains: %v", path, err)
					continue
				}
				_ = resp.Body.Close()
				if resp.StatusCode == http.StatusServiceUnavailable && resp.Header.Get("Retry-After") != "" {
					refused++
				}
			}
		}
		return true
	})
	text := strings.Join(all, "\n")
	if err != nil || tokens != 60 || strings.Count(text, "[DONE]") != 1 || strings.Contains(text, `"error"`) {
		t.Errorf("the stream gave %d tokens and %v:\n%s", tokens, err, text)
	}
	if refused != 2 {
		t.Errorf("%d of 2 requests were refused while it drained", refused)
	}
	if code := waitExit(t, n.cmd, n.ended, 10*time.Second); code != 0 {
		t.Errorf("the exit code is %d", code)
	}
	if err := process.Verify(worker.Identity()); err != nil {
		t.Errorf("the worker did not outlive its agent: %v", err)
	}
}

// TestSignalDuringStart: an agent whose start is held up ends on SIGTERM.
func TestSignalDuringStart(t *testing.T) {
	t.Parallel()
	n := newNode(t, slowEcho)
	if err := os.MkdirAll(filepath.Join(n.home, "partial"), 0o700); err != nil {
		t.Fatal(err)
	}
	// The start waits some seconds for the catalog of a store that another process changes.
	lock, err := os.Create(filepath.Join(n.home, "partial", "catalog.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	cmd := n.command("agent")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	n.until(20*time.Second, "the start gets to the keys", func() bool {
		_, err := os.Stat(filepath.Join(n.home, "secrets", secret.AdminKeyFile))
		return err == nil
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitExit(t, cmd, ended, 20*time.Second)
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !s.Signaled() || s.Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v", cmd.ProcessState)
	}
}

// TestIrregularFiles: commands do not wait at a FIFO in the place of a file of the data folder, but name it.
func TestIrregularFiles(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"node.json", "run/lock", "run/agent.json", "secrets/admin.key", "agent.log", "partial/catalog.lock"} {
		for _, args := range [][]string{{"agent"}, {"run"}, {"stop"}, {"agent", "--background"}} {
			if file == "agent.log" && len(args) == 1 && args[0] == "agent" {
				continue // an agent in the foreground has none
			}
			n := newNode(t, slowEcho)
			path := filepath.Join(n.home, file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), syscall.Mkfifo(path, 0o600)); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			cmd := exec.CommandContext(ctx, n.command(args...).Path, args...)
			cmd.Env = n.command().Env
			out, err := cmd.CombinedOutput()
			if ctx.Err() != nil {
				t.Errorf("%v with %s a FIFO hangs", args, file)
			}
			cancel()
			text := string(out)
			if b, logErr := folder.ReadFile(filepath.Join(n.home, "agent.log"), 1<<20); logErr == nil {
				text += string(b)
			}
			// Without an agent to end, stop needs no more than these.
			uses := args[0] != "stop" || file == "node.json" || file == "run/lock"
			if uses && (err == nil || !strings.Contains(text, path)) {
				t.Errorf("%v with %s a FIFO: %v\n%s", args, file, err, text)
			}
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestDeleteWhileStreaming: a worker that is deleted finishes its requests, also those that came to it past this queen. What
// takes longer than hive.drain ends with an error that says so, and with --force nothing is waited for.
func TestDeleteWhileStreaming(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		hive, tokens string
		direct       bool
		flags        []string
		want         string // in the end of the stream
		within       time.Duration
	}{
		"finishes":                {`kill { term = "1s" }`, "60", false, nil, "[DONE]", 20 * time.Second},
		"of another queen":        {`kill { term = "1s" }`, "60", true, nil, "[DONE]", 20 * time.Second},
		"longer than it may take": {`drain = "11s"`, "6000", false, nil, `"code":"draining"`, 40 * time.Second},
		"forced":                  {`kill { term = "30s" }`, "6000", false, []string{"--force"}, `was deleted while it answered; send the request again.","type":"server_error","code":"worker_lost"`, 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := strings.ReplaceAll(slowEcho, `hive { listen = "127.0.0.1:0" }`, "hive {\n  listen = \"127.0.0.1:0\"\n  "+c.hive+"\n}")
			n := newNode(t, strings.ReplaceAll(strings.ReplaceAll(config, "60", c.tokens), `, "--history", "../history"`, ""))
			n.start()
			n.run(nil, "worker", "spawn", "echo:slow")
			w := n.alive()[0]
			url, key := "http://"+n.addr, ""
			if c.direct {
				cluster, err := loadKey(n.home, secret.ClusterKeyFile)
				if err != nil {
					t.Fatal(err)
				}
				url, key = fmt.Sprintf("http://%s:%d", w.Address, w.Port), secret.ForWorker(cluster, w.ID).Reveal()
			}
			deleted := make(chan error, 1)
			var all []string
			tokens := 0
			began := time.Now()
			err := streamFrom(t.Context(), url, key, slowRequest, func(s string) bool {
				all = append(all, s)
				if isToken(s) {
					if tokens++; tokens == 5 {
						go func() {
							out, err := n.command(append([]string{"worker", "delete", w.ID}, c.flags...)...).CombinedOutput()
							if err != nil {
								err = fmt.Errorf("%w\n%s", err, out)
							}
							deleted <- err
						}()
					}
				}
				return true
			})
			if text := strings.Join(all, "\n"); err != nil || !strings.Contains(text, c.want) {
				t.Errorf("after %d tokens %v:\n%s", tokens, err, text[max(0, len(text)-600):])
			}
			if took := time.Since(began); took > c.within {
				t.Errorf("it took %v", took)
			}
			if err := <-deleted; err != nil {
				t.Error(err)
			}
			if process.Verify(w.Identity()) == nil {
				t.Error("the worker still runs")
			}
		})
	}
}

// TestSecondSignalHurries (F21): it does not wait for a stream that would take long.
func TestSecondSignalHurries(t *testing.T) {
	t.Parallel()
	n := newNode(t, strings.ReplaceAll(strings.ReplaceAll(slowEcho, "60", "6000"), `, "--history", "../history"`, ""))
	n.start()
	n.run(nil, "worker", "spawn", "echo:slow")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tokens := 0
	var second time.Time
	err := n.stream(ctx, slowRequest, func(s string) bool {
		if isToken(s) {
			if tokens++; tokens == 5 || tokens == 15 {
				second = time.Now()
				if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
					t.Error(err)
				}
			}
		}
		return true
	})
	_ = waitExit(t, n.cmd, n.ended, 10*time.Second)
	if tokens < 15 {
		t.Errorf("the first signal ended the stream after %d tokens: %v", tokens, err)
	}
	if took := time.Since(second); took > 7*time.Second {
		t.Errorf("it took %v after the second signal", took)
	}
}

// TestInterruptedRun: Ctrl-C in `apiary run` ends the request and the command with 130; agent and worker stay.
func TestInterruptedRun(t *testing.T) {
	t.Parallel()
	n, history := slowNode(t)
	cmd := n.command("run", "echo:slow", "one two three")
	cmd.Env = append(cmd.Env, "APIARY_ADDR="+n.addr)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	n.until(10*time.Second, "the request runs", func() bool {
		b := readAll(history)
		return strings.Contains(string(b), `"token"`)
	})
	if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := waitExit(t, cmd, ended, 5*time.Second); code != 130 {
		t.Errorf("the exit code is %d", code)
	}
	n.until(5*time.Second, "the worker sees the cancel", func() bool {
		b := readAll(history)
		return strings.Contains(string(b), `"cancel"`)
	})
	if len(n.alive()) != 1 {
		t.Error("the worker is gone")
	}
}

// TestStopEndsOrphans: an agent that was killed cannot end its workers; the command can.
func TestStopEndsOrphans(t *testing.T) {
	t.Parallel()
	n, _ := slowNode(t)
	worker := n.alive()[0]
	n.kill()
	if out, err := n.command("stop", "--keep-workers").CombinedOutput(); err != nil || process.Verify(worker.Identity()) != nil {
		t.Errorf("apiary stop --keep-workers: %v\n%s", err, out)
	}
	out, err := n.command("stop").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "worker "+worker.ID+" terminated") || !strings.Contains(string(out), "No agent runs") {
		t.Errorf("apiary stop: %v\n%s", err, out)
	}
	if err := leftovers(n.home); err != nil {
		t.Error(err)
	}
}

// TestConformanceCommand runs the suite as somebody who wrote a worker does.
func TestConformanceCommand(t *testing.T) {
	t.Parallel()
	n := newNode(t, "queen { listen = \"ADDR\" }\nhive { listen = \"127.0.0.1:0\" }\n")
	n.start()
	n.run(nil, "worker", "spawn", "echo:test")
	w := n.alive()[0]
	out, err := n.command("worker", "test", fmt.Sprintf("http://%s:%d", w.Address, w.Port)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), " passed, 0 failed") {
		t.Errorf("apiary worker test: %v\n%s", err, out)
	}
	// Something that is no worker fails it, with an exit code that says so.
	out, err = n.command("worker", "test", "http://"+n.addr).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 2 {
		t.Errorf("against the queen: %v\n%s", err, out)
	}
}

// TestWorkerLostAdvice: a person whose answer breaks off is told what to do, and the code stays.
func TestWorkerLostAdvice(t *testing.T) {
	t.Parallel()
	n, history := slowNode(t)
	cmd := n.command("run", "echo:slow", "one two three")
	cmd.Env = append(cmd.Env, "APIARY_ADDR="+n.addr)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	n.until(10*time.Second, "the request runs", func() bool {
		b := readAll(history)
		return strings.Contains(string(b), `"token"`)
	})
	if err := syscall.Kill(n.alive()[0].PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := waitExit(t, cmd, ended, 10*time.Second); code != 5 || !strings.Contains(stderr.String(), "Error: The worker ended while it answered; send the request again.") {
		t.Errorf("exit code %d\n%s", code, &stderr)
	}
}
