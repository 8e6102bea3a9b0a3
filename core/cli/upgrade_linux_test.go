package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
)

// nextVersion is what the program of nextProgram says of itself; that of built is v0.0.0-test.
const nextVersion = "v0.0.1-test"

var nextBuild sync.Once

// nextProgram builds the program once more, under another version.
func nextProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(built, "apiary-next")
	nextBuild.Do(func() {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w -X main.version="+nextVersion, "-o", path, ".")
		cmd.Dir = filepath.Join("..", "..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	})
	return path
}

// brokenProgram is a next version whose agent does something else.
func brokenProgram(t *testing.T, agent string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "apiary")
	text := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = agent ]; then %s; fi\nexec %s \"$@\"\n", agent, nextProgram(t))
	if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// upgradeNode is an agent with an echo worker, started from a program of its own.
func upgradeNode(t *testing.T) (n *node, program string, worker contract.WorkerView) {
	t.Helper()
	n = newNode(t, "agent { advertise = env(\"UPGRADE_TEST\") }\nqueen { listen = \"ADDR\" }\nhive { listen = \"127.0.0.1:0\" }\n")
	program = filepath.Join(t.TempDir(), "apiary")
	copyProgram(t, filepath.Join(built, "apiary"), program)
	cmd := n.command("agent")
	cmd.Path = program
	n.startAs(cmd)
	n.run(nil, "worker", "spawn", "echo:test")
	return n, program, n.alive()[0]
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = errors.Join(os.WriteFile(to+".new", b, 0o755), os.Rename(to+".new", to))
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (n *node) startAs(cmd *exec.Cmd) {
	n.t.Helper()
	log, err := os.OpenFile(filepath.Join(n.home, "test.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		n.t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	ended := make(chan struct{})
	n.cmd, n.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
	n.ready()
}

func (n *node) ready() {
	n.t.Helper()
	n.until(30*time.Second, "the agent is ready", func() bool {
		code, err := get(n.t.Context(), "http://"+n.addr+"/readyz")
		return err == nil && code == 200
	})
}

// as runs a command of another program and wants its exit code.
func (n *node) as(program string, code int, args ...string) (stdout, stderr string) {
	n.t.Helper()
	cmd := n.command(args...)
	cmd.Path = program
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != code {
		log, _ := os.ReadFile(agent.LogPath(n.home))
		n.t.Fatalf("%s %s: %v, not exit code %d\n%s%s\nlog: %s", program, strings.Join(args, " "), err, code, &out, &errs, log)
	}
	return out.String(), errs.String()
}

// runs checks which version runs, from which program, and that the worker went on and answers.
func (n *node) runs(version, program string, worker contract.WorkerView) {
	n.t.Helper()
	r, err := agent.ReadRunFile(n.home)
	if err != nil || r.Version != version || r.Launch == nil || r.Launch.Program.Path != program {
		n.t.Fatalf("there runs %+v (%v), not %s from %s", r, err, version, program)
	}
	if err := process.Verify(worker.Identity()); err != nil {
		n.t.Errorf("the worker did not go on: %v", err)
	}
	n.until(20*time.Second, "the queen hears the worker", func() bool {
		list := n.alive()
		return len(list) == 1 && list[0].PID == worker.PID
	})
	n.run(nil, "run", "echo:test", "hello")
	files, _ := os.ReadDir(filepath.Join(n.home, "run"))
	for _, f := range files {
		if name := f.Name(); name == "upgrade.json" || strings.HasPrefix(name, ".tmp") || name == "apiary-before" && program != agent.KeptProgram(n.home) {
			n.t.Errorf("%s is left", name)
		}
	}
}

// TestUpgrade goes to the next version and back, by a program elsewhere and by one in the same place. The worker goes on.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	n, program, worker := upgradeNode(t)
	next := nextProgram(t)

	out, _ := n.as(program, 0, "upgrade")
	wants(t, out, "agent v0.0.0-test runs already · 1 worker kept")

	out, errs := n.as(next, 0, "upgrade")
	wants(t, out, "agent v0.0.0-test → v0.0.1-test · 1 worker kept")
	wants(t, errs, "runs in the background now")
	if code := waitExit(t, n.cmd, n.ended, 5*time.Second); code != 0 {
		t.Errorf("the old agent ended with %d", code)
	}
	n.runs(nextVersion, next, worker)
	out, _ = n.as(program, 0, "upgrade", "--binary", next, "--json")
	var v upgradeView
	if err := json.Unmarshal([]byte(out), &v); err != nil || v.Changed || v.Kept != 1 {
		t.Errorf("a second time: %v %s", err, out)
	}

	// Back, and then by a program in the place of the one that runs.
	n.as(next, 0, "upgrade", "--binary", program)
	n.runs("v0.0.0-test", program, worker)
	copyProgram(t, next, program)
	out, errs = n.as(program, 0, "upgrade", "--json")
	wants(t, out, `"from": "v0.0.0-test"`, `"to": "v0.0.1-test"`, `"changed": true`, `"workers_kept": 1`)
	if strings.Contains(errs, "background now") {
		t.Errorf("it was in the background before: %s", errs)
	}
	n.runs(nextVersion, program, worker)
}

// TestUpgradeKeepsHowItWasStarted: options and environment are those of the old agent.
func TestUpgradeKeepsHowItWasStarted(t *testing.T) {
	t.Parallel()
	n := newNode(t, "gossip { bind = \"127.0.0.1:0\" }\nqueen { listen = \"ADDR\" }\nhive { listen = \"0.0.0.0:0\" }\nagent { name = env(\"UPGRADE_TEST\") }\n")
	moved := filepath.Join(n.home, "other.hcl")
	if err := os.Rename(filepath.Join(n.home, "config.hcl"), moved); err != nil {
		t.Fatal(err)
	}
	cmd := n.command("agent", "--insecure-i-know", "--join", "127.0.0.1:1", "--config", "other.hcl")
	cmd.Dir = n.home
	cmd.Env = append(cmd.Env, "UPGRADE_TEST=tower")
	n.startAs(cmd)
	r, err := agent.ReadRunFile(n.home)
	if err != nil || strings.Join(r.Launch.Needs, " ") != "UPGRADE_TEST" {
		t.Errorf("%+v %v", r.Launch, err)
	}
	n.as(nextProgram(t), 0, "upgrade")
	r, err = agent.ReadRunFile(n.home)
	if err != nil || strings.Join(r.Launch.Args, " ") != "agent --background --config "+moved+" --insecure-i-know --join 127.0.0.1:1" {
		t.Errorf("%+v %v", r.Launch, err)
	}
	if out, _ := n.as(nextProgram(t), 0, "--addr", n.addr, "member", "list"); !strings.Contains(out, "tower *") {
		t.Errorf("the name is not that of the environment:\n%s", out)
	}
}

// TestEnvironmentOf: where the environment of the old agent cannot be seen, this command's must have what that one had.
func TestEnvironmentOf(t *testing.T) {
	t.Setenv("APIARY_ADDR", "127.0.0.1:9")
	r := agent.RunFile{Launch: &agent.Launch{Env: map[string]string{"APIARY_HOME": "/there"}, Needs: []string{"UPGRADE_TOKEN"}}}
	if _, err := environmentOf(r); fault.As(err).Code != "environment_missing" || !strings.Contains(err.Error(), "UPGRADE_TOKEN") {
		t.Errorf("%v", err)
	}
	t.Setenv("UPGRADE_TOKEN", "secret")
	env, err := environmentOf(r)
	if err != nil || !slices.Contains(env, "UPGRADE_TOKEN=secret") || !slices.Contains(env, "APIARY_HOME=/there") ||
		slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "APIARY_ADDR=") }) {
		t.Errorf("%v %v", env, err)
	}
}

// TestUpgradeFails: what is no good is found out before anything changes, or taken back.
func TestUpgradeFails(t *testing.T) {
	t.Parallel()
	n, program, worker := upgradeNode(t)
	was, err := agent.ReadRunFile(n.home)
	if err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(n.home, "text")
	if err := os.WriteFile(text, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		file, want string
		kind       fault.Kind
	}{
		{filepath.Join(n.home, "nothing"), "There is no program", fault.NotFound},
		{filepath.Join(n.home, "config.hcl"), "may not be executed", fault.Invalid},
		{text, "is no program for this machine", fault.Invalid},
		{"/bin/true", "is no apiary", fault.Invalid},
		{"/bin/false", "does not say its version", fault.Invalid},
	} {
		_, errs := n.as(program, exitOf(c.kind), "upgrade", "--binary", c.file)
		wants(t, errs, c.want)
	}
	strict := filepath.Join(t.TempDir(), "apiary")
	if err := os.WriteFile(strict, []byte("#!/bin/sh\nif [ \"$1\" = config ]; then echo 'Error: no such block' >&2; exit 2; fi\nexec "+nextProgram(t)+" \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	_, errs := n.as(program, exitOf(fault.Invalid), "upgrade", "--binary", strict)
	wants(t, errs, "does not take the agent's configuration", "no such block")
	if now, err := agent.ReadRunFile(n.home); err != nil || now.Process != was.Process {
		t.Errorf("the agent was touched: %+v %v", now, err)
	}

	// One that ends at once.
	_, errs = n.as(program, exitOf(fault.Unavailable), "upgrade", "--binary", brokenProgram(t, "echo 'Error: the disk is on fire.' >&2; exit 1"))
	wants(t, errs, "could not be upgraded to v0.0.1-test", "the disk is on fire", "v0.0.0-test runs again, and its workers went on")
	n.runs("v0.0.0-test", program, worker)

	// One that was put in the place of the one that runs: the way back is the copy that the agent leaves.
	copyProgram(t, brokenProgram(t, "exit 1"), program)
	_, errs = n.as(filepath.Join(built, "apiary"), exitOf(fault.Unavailable), "upgrade", "--binary", program)
	wants(t, errs, "v0.0.0-test runs again")
	n.runs("v0.0.0-test", agent.KeptProgram(n.home), worker)
	copyProgram(t, nextProgram(t), program)
	n.as(program, 0, "upgrade")
	n.runs(nextVersion, program, worker)
}

// TestUpgradeWithoutAgent: there is nothing to upgrade.
func TestUpgradeWithoutAgent(t *testing.T) {
	t.Parallel()
	n := newNode(t, "queen { listen = \"ADDR\" }\n")
	_, errs := n.as(filepath.Join(built, "apiary"), exitOf(fault.Unavailable), "upgrade")
	wants(t, errs, "No agent runs with the data folder")
	n.start()
	n.run(nil, "stop")
	_, errs = n.as(filepath.Join(built, "apiary"), exitOf(fault.Unavailable), "upgrade")
	wants(t, errs, "No agent runs with the data folder")
}

// TestUpgradeCutOff kills the command at each of its steps. Given again, it brings the next version; two at once are a conflict.
func TestUpgradeCutOff(t *testing.T) {
	t.Parallel()
	n, program, worker := upgradeNode(t)
	gate := filepath.Join(n.home, "gate")
	slow := brokenProgram(t, "while [ ! -e "+gate+" ]; do sleep 0.05; done")
	started := func() bool {
		b, _ := exec.Command("pgrep", "-f", "^/bin/sh "+slow+" agent").Output()
		return len(b) > 0
	}
	upgrade := n.command("upgrade", "--binary", slow)
	if err := upgrade.Start(); err != nil {
		t.Fatal(err)
	}
	n.until(30*time.Second, "the old agent has ended and the new one starts", started)
	_, errs := n.as(program, exitOf(fault.Conflict), "upgrade", "--binary", nextProgram(t))
	wants(t, errs, "Another command is upgrading the agent")
	if err := upgrade.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = upgrade.Wait()
	// The new agent hangs before it takes the data folder: the next command starts one all the same.
	out, errs := n.as(program, 0, "upgrade", "--binary", nextProgram(t))
	wants(t, errs, "is taken up again")
	wants(t, out, "v0.0.0-test → v0.0.1-test · 1 worker kept")
	n.runs(nextVersion, nextProgram(t), worker)
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.until(10*time.Second, "the one that hung is gone, because another has the folder", func() bool { return !started() })

	// Killed after the new one has started and before it is known to be ready.
	r, err := agent.ReadRunFile(n.home)
	if err != nil {
		t.Fatal(err)
	}
	r.Process.PID, r.Version, r.Launch.Program.Path = 1, "v0.0.0-test", program
	if err := (agent.Upgrade{Before: r, Program: nextProgram(t)}).Begin(n.home); err != nil {
		t.Fatal(err)
	}
	out, _ = n.as(nextProgram(t), 0, "upgrade")
	wants(t, out, "v0.0.1-test runs already")
	n.runs(nextVersion, nextProgram(t), worker)

	// A Ctrl-C while requests are waited for does not leave the machine without an agent.
	copyProgram(t, filepath.Join(built, "apiary"), program)
	upgrade = n.command("upgrade", "--binary", program)
	if err := upgrade.Start(); err != nil {
		t.Fatal(err)
	}
	n.until(20*time.Second, "it begins", func() bool { _, err := agent.ReadUpgrade(n.home); return err == nil })
	_ = upgrade.Process.Signal(syscall.SIGINT)
	_ = upgrade.Wait()
	n.runs("v0.0.0-test", program, worker)
}
