package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// fails runs a command with --json, wants that exit code, and gives the code of the one error object on standard error.
func (n *node) fails(exit int, args ...string) string {
	n.t.Helper()
	out, err := n.command(append(args, "--json")...).Output()
	e, ok := errors.AsType[*exec.ExitError](err)
	if !ok || e.ExitCode() != exit {
		n.t.Fatalf("apiary %s: %v, want exit code %d\n%s", strings.Join(args, " "), err, exit, out)
	}
	var body struct {
		Error    contract.Error `json:"error"`
		ExitCode int            `json:"exit_code"`
	}
	if err := json.Unmarshal(e.Stderr, &body); err != nil || body.ExitCode != exit || body.Error.Message == "" {
		n.t.Fatalf("apiary %s: standard error is no error object: %v\n%s", strings.Join(args, " "), err, e.Stderr)
	}
	return body.Error.Code
}

// TestJobCommands: a running job is cancelled, one that is over cannot be, and what was only looked up is not in the way.
func TestJobCommands(t *testing.T) {
	t.Parallel()
	n := newNode(t, strings.ReplaceAll(slowEcho, `"--tps"`, `"--load", "60s", "--tps"`))
	n.start()
	spawn := n.command("worker", "spawn", "echo:slow")
	if err := spawn.Start(); err != nil {
		t.Fatal(err)
	}
	jobs := func(args ...string) (all []contract.Job) {
		n.run(&all, append([]string{"job", "list"}, args...)...)
		return all
	}
	n.until(20*time.Second, "the spawn runs", func() bool { j := jobs(); return len(j) == 1 && j[0].State == contract.JobRunning })
	n.run(nil, "worker", "list")
	n.run(nil, "status")
	if j := jobs(); len(j) != 1 || j[0].Operation != contract.OpWorkerSpawn {
		t.Errorf("the jobs are %+v, want the spawn alone", j)
	}
	if j := jobs("--all"); len(j) < 3 {
		t.Errorf("all jobs are %+v, want the reads too", j)
	}

	id := jobs()[0].ID
	var cancelled contract.Job
	n.run(&cancelled, "job", "cancel", id)
	if cancelled.ID != id || cancelled.State != contract.JobCancelled {
		t.Errorf("the cancelled job is %+v", cancelled)
	}
	if e, ok := errors.AsType[*exec.ExitError](spawn.Wait()); !ok || e.ExitCode() != 130 {
		t.Errorf("the command that waited for the job ended with %v, want 130", e)
	}
	if code := n.fails(4, "job", "cancel", id); code != "job_over" {
		t.Errorf("cancelling it again: %s", code)
	}
	if code := n.fails(3, "job", "cancel", "nonesuch"); code != "job_not_found" {
		t.Errorf("cancelling no job: %s", code)
	}

	// A story is JSON objects, each on a line of its own.
	n.run(nil, "worker", "spawn", "echo:slow", "--no-wait")
	out, err := n.command("job", "follow", jobs()[0].ID, "--json").Output()
	if err != nil {
		t.Fatal(err)
	}
	lines := 0
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); lines++ {
		if !json.Valid(s.Bytes()) {
			t.Errorf("a line of the story is %q", s.Text())
		}
	}
	if lines < 2 || !strings.HasPrefix(lastLine(out), `{"result":{`) {
		t.Errorf("the story is\n%s", out)
	}
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}
