package cli

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

// TestUpgradeHosts upgrades the hives of other machines through ssh: the first failure is undone and ends the command.
func TestUpgradeHosts(t *testing.T) {
	t.Parallel()
	far := newFarMachine(t, farOptions{})
	q := newQueen(t, "127.0.0.1")
	at := []string{"--ssh-config", far.config}
	upgrade := func(args ...string) []string { return append(append([]string{"upgrade"}, at...), args...) }
	_, errs := q.apiary(exitOf(fault.NotFound), upgrade("far")...)
	wants(t, errs, "There is no hive on far")
	install := append([]string{"hive", "install", "far", "--json", "--listen", "127.0.0.1:" + freePort(t)}, at...)
	q.apiary(0, install...)
	q.stop()
	q.start()
	q.apiary(0, install...) // until the queen lists it
	id, _ := q.apiary(0, "worker", "spawn", "echo:far", "--worker", "echo")
	worker := strings.TrimSpace(id)
	pid := far.there("pgrep -f '[w]orker-id " + worker + "'")
	next := nextProgram(t)
	goesOn := func() {
		t.Helper()
		if now := far.there("pgrep -f '[w]orker-id " + worker + "'"); now != pid {
			t.Errorf("the worker was %s and is %s", pid, now)
		}
		if files := far.files(); strings.Contains(files, ".apiary-") {
			t.Errorf("files are left: %s", files)
		}
	}
	version := func() string {
		t.Helper()
		return far.there(`sed -n 's/^  "version": "\(.*\)".*/\1/p' /home/bee/.local/share/apiary/run/agent.json`)
	}

	out, errs := q.apiary(0, upgrade("--binary", next, "far")...)
	wants(t, out, "far v0.0.0-test → v0.0.1-test · 1 worker kept")
	wants(t, version(), nextVersion)
	goesOn()
	if strings.Contains(errs, "No queen runs") {
		t.Error(errs)
	}
	out, _ = q.apiary(0, upgrade("--binary", next, "far", "--json")...)
	var v []upgradeView
	if err := json.Unmarshal([]byte(out), &v); err != nil || len(v) != 1 || v[0].Changed || v[0].Kept != 1 {
		t.Errorf("a second time: %v %s", err, out)
	}

	// A program whose agent does not start is taken back, and the machines after it are left alone. far is one, by another name.
	broken := filepath.Join(t.TempDir(), "apiary")
	brokenBuild(t, broken)
	_, errs = q.apiary(exitOf(fault.Unavailable), upgrade("--binary", broken, "far", "farroot")...)
	wants(t, errs, "was undone", "Not upgraded: farroot.")
	wants(t, version(), nextVersion)
	goesOn()

	// One that was cut off between the program and the restart is brought to its end.
	own := filepath.Join(built, "apiary")
	far.there("cp " + own + " /home/bee/.local/bin/new && chown bee: /home/bee/.local/bin/new && cd /home/bee/.local/bin && ln apiary apiary.apiary-old && mv new apiary && touch apiary")
	out, _ = q.apiary(0, upgrade("far")...)
	wants(t, out, "far v0.0.1-test → v0.0.0-test · 1 worker kept")
	wants(t, version(), "v0.0.0-test")
	goesOn()

	// Of two at once one is refused.
	type result struct {
		code int
		said string
	}
	results := make(chan result, 2)
	for range 2 {
		go func() {
			cmd := exec.Command(own, upgrade("--binary", next, "far")...)
			cmd.Env = q.env
			said, _ := cmd.CombinedOutput()
			results <- result{cmd.ProcessState.ExitCode(), string(said)}
		}()
	}
	a, b := <-results, <-results
	if a.code == 0 {
		a, b = b, a
	}
	if a.code != exitOf(fault.Conflict) || b.code != 0 || !strings.Contains(a.said, "Another command is upgrading") {
		t.Errorf("two at once: %+v %+v", a, b)
	}
	goesOn()
	q.apiary(0, append([]string{"hive", "uninstall", "--purge", "--yes", "far"}, at...)...)
}

// brokenBuild builds a program that says a version and has no agent.
func brokenBuild(t *testing.T, path string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module broken\n\ngo 1.26\n", "main.go": `package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "version" {
		fmt.Println("apiary v9 (go, linux/amd64)")
		return
	}
	fmt.Fprintln(os.Stderr, "Error: there is nothing here.")
	os.Exit(1)
}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
