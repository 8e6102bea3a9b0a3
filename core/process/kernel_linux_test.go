package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/fault"
)

// TestKillAfterPIDReuse runs in a PID namespace, where the next pid can be chosen: the worker's number is given to another
// process, and then to another run of the same worker.
func TestKillAfterPIDReuse(t *testing.T) {
	if os.Getenv("APIARY_TEST_PID_NAMESPACE") == "" {
		unshare, err := exec.LookPath("unshare")
		if err != nil || os.Geteuid() != 0 {
			t.Skip("skipped: a PID namespace needs root and the program unshare")
		}
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		// The test binary must not be process 1 of the namespace: nobody could start it twice.
		cmd := exec.Command(unshare, "-pf", "--mount-proc", "--kill-child", exe, "-test.run=^TestKillAfterPIDReuse$", "-test.v")
		cmd.Env = append(os.Environ(), "APIARY_TEST_PID_NAMESPACE=1")
		out, err := cmd.CombinedOutput()
		if strings.Contains(string(out), "unshare failed") {
			t.Skipf("skipped: no PID namespace can be made here: %s", out)
		}
		if err != nil || !strings.Contains(string(out), "reused twice") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	first, _ := startHelper(t, "w-1")
	old := first.Identity()
	if outcome, err := Kill(context.Background(), old, quick()); err != nil || outcome != OutcomeTerminated {
		t.Fatalf("outcome %q, %v", outcome, err)
	}
	<-wait(t, first)
	for _, worker := range []string{"w-2", "w-1"} {
		next := startWithPID(t, worker, old.PID)
		if next.Identity() == old {
			t.Skip("skipped: the whole test fitted into one clock tick")
		}
		if outcome, err := Kill(context.Background(), old, quick()); fault.KindOf(err) != fault.Conflict {
			t.Errorf("kill of the old identity while %s has its pid: %q, %v", worker, outcome, err)
		}
		if !running(old.PID) {
			t.Fatalf("the stranger %s was signalled", worker)
		}
		if outcome, err := Kill(context.Background(), next.Identity(), quick()); err != nil || outcome != OutcomeTerminated {
			t.Errorf("kill of the new one: %q, %v", outcome, err)
		}
		<-wait(t, next)
	}
	t.Log("reused twice")
}

// startWithPID starts workers until one has the pid; threads of the test take numbers too.
func startWithPID(t *testing.T, workerID string, pid int) *Child {
	t.Helper()
	for range 50 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0o600); err != nil {
			t.Fatal(err)
		}
		c, _ := startHelper(t, workerID)
		if c.Identity().PID == pid {
			return c
		}
		if _, err := Kill(context.Background(), c.Identity(), quick()); err != nil {
			t.Fatal(err)
		}
		<-wait(t, c)
	}
	t.Fatalf("pid %d could not be had again", pid)
	return nil
}

// TestWaitTellsAnOutOfMemoryKill has the kernel kill a real process in a memory group of 64 MiB, into which it was moved after
// its start, and kills another in the same group by hand.
func TestWaitTellsAnOutOfMemoryKill(t *testing.T) {
	group, file := memoryGroup(t, 64<<20)
	before := oomCount(file)
	c, s := startHelper(t, "w-hungry", "--alloc-mb", "256")
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(s.PID)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.oom.sample() // what Wait does now and then
	ended := wait(t, c)
	if err := os.WriteFile(filepath.Join(c.cmd.Dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e != (Exit{Code: -1, Signal: 9, OOM: true}) {
		t.Errorf("exit %+v, want a kill for memory; the kernel's count went from %d to %d", e, before, oomCount(file))
	}

	c, s = startHelper(t, "w-modest")
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(s.PID)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.oom.sample()
	ended = wait(t, c)
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e != (Exit{Code: -1, Signal: 9}) {
		t.Errorf("exit %+v: an earlier kill for memory in the same group was blamed", e)
	}
}

// memoryGroup makes a control group with a memory limit and returns its folder and the file with its count of kills.
func memoryGroup(t *testing.T, limit int) (group, countFile string) {
	t.Helper()
	name := fmt.Sprintf("apiary-test-%d", os.Getpid())
	for _, v := range []struct{ root, marker, limit, count string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.limit_in_bytes", "memory.oom_control"},
		{"/sys/fs/cgroup", "cgroup.controllers", "memory.max", "memory.events"},
	} {
		if _, err := os.Stat(filepath.Join(v.root, v.marker)); err != nil {
			continue
		}
		group = filepath.Join(v.root, name)
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Skipf("skipped: a memory group needs root and a writable %s: %v", v.root, err)
		}
		t.Cleanup(func() {
			eventually(t, "the group is empty", func() bool {
				err := os.Remove(group)
				return err == nil || errors.Is(err, os.ErrNotExist)
			})
		})
		if err := os.WriteFile(filepath.Join(group, v.limit), []byte(strconv.Itoa(limit)), 0o600); err != nil {
			t.Skipf("skipped: the memory of a group cannot be limited here: %v", err)
		}
		return group, filepath.Join(group, v.count)
	}
	t.Skip("skipped: no memory control groups are mounted")
	return "", ""
}

func TestOOMFileFallsBackToTheWholeMachine(t *testing.T) {
	for _, text := range []string{"", "garbage\n", "4:memory:/no/such/group\n", "0::/no/such/group\n"} {
		if got := oomFile(text); got != "/proc/vmstat" {
			t.Errorf("oomFile(%q) = %s", text, got)
		}
	}
}

func TestParseStat(t *testing.T) {
	tail := strings.Repeat(" 0", 16) // fields 6 to 21
	got, err := parseStat([]byte("42 (a) Z 9 (b)) S 1 40" + tail + " 1234 0 0\n"))
	if err != nil || got != (stat{state: 'S', pgrp: 40, start: 1234}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S", "42 (a) SS 1 40" + tail + " 1", "42 (a) S 1 x" + tail + " 1", "42 (a) S 1 40 0 0 0 x" + tail[8:] + " 1", "42 (a) S 1 40" + tail + " -1"} {
		if got, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("parseStat(%q) = %+v", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("42 (a) Z 9 (b)) S 1 40 0 0"))
	if b, err := os.ReadFile("/proc/self/stat"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = parseStat(b) })
}

func TestExecChildRefusesBadArguments(t *testing.T) {
	for _, args := range [][]string{nil, {"--"}, {"relative"}, {"--status-fd=3", "--", "/bin/true"}, {"--status-fd=x", "--", "/bin/true"}} {
		if err := ExecChild(args); fault.KindOf(err) != fault.Invalid {
			t.Errorf("ExecChild(%q) = %v", args, err)
		}
	}
}
