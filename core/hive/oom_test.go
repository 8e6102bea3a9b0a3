package hive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/apiary-dev/apiary/core/process"
)

// TestOutOfMemoryIsReported is T19 on the hive's side: a real worker that is moved to a memory group while it loads outgrows it.
func TestOutOfMemoryIsReported(t *testing.T) {
	t.Parallel()
	group := memoryGroup(t, 200<<20)
	q := newQueen(t)
	a := serve(t, func(o *Options) { o.QueenURLs = []string{q.url} })
	s := a.spawn(echoSpawn("echo-oom", "--load", "2s", "--alloc-mb", "400"))
	other := a.spawn(recorderSpawn("w-other"))
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(s.PID)), 0o600); err != nil {
		t.Fatal(err)
	}
	if e := <-q.exits; e.Identity != s.Identity || e.Signal != 9 || e.ExitCode != -1 || !e.OOM {
		t.Errorf("report %+v, want a kill for memory", e)
	}
	if err := process.Verify(other.Identity); err != nil {
		t.Errorf("the other worker suffered: %v", err)
	}
}

// memoryGroup makes a control group with a memory limit.
func memoryGroup(t *testing.T, limit int) string {
	t.Helper()
	for _, v := range []struct{ root, limit string }{{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"}} {
		group := filepath.Join(v.root, fmt.Sprintf("apiary-hive-test-%d", os.Getpid()))
		if err := os.Mkdir(group, 0o755); err != nil {
			continue
		}
		t.Cleanup(func() {
			eventually(t, "the group is empty", func() bool {
				err := os.Remove(group)
				return err == nil || errors.Is(err, os.ErrNotExist)
			})
		})
		if err := os.WriteFile(filepath.Join(group, v.limit), []byte(strconv.Itoa(limit)), 0o600); err == nil {
			return group
		}
	}
	t.Skip("skipped: making a memory control group needs root and a writable /sys/fs/cgroup")
	return ""
}
