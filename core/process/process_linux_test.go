package process

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func TestStartGivesTheChildOnlyWhatItNeeds(t *testing.T) {
	t.Setenv("HF_TOKEN", "canary-in-the-environment")
	// A descriptor without the close-on-exec flag, as an agent may inherit one from its own parent.
	leak, err := unix.Open("/etc/hostname", unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(leak) }()
	c, s := startHelper(t, "w-1", "--text", "a b;$(id)")
	exe, _ := os.Executable()
	wantArgs := append([]string{exe}, helperSpec("", "w-1", hiveOf(t), "--text", "a b;$(id)").Args...)
	if !slices.Equal(s.Args, wantArgs) {
		t.Errorf("arguments\n%q, want\n%q", s.Args, wantArgs)
	}
	slices.Sort(s.Env)
	if want := []string{"DECLARED=yes", "GORACE=atexit_sleep_ms=0"}; !slices.Equal(s.Env, want) {
		t.Errorf("environment %q, want %q", s.Env, want)
	}
	if s.Secret != "the secret of w-1" {
		t.Errorf("secret on descriptor 3: %q", s.Secret)
	}
	if s.NoNewPrivs != 1 || s.Core != 0 {
		t.Errorf("no_new_privs %d, core limit %d; want 1 and 0", s.NoNewPrivs, s.Core)
	}
	if s.PID != c.Identity().PID || s.Session != s.PID || s.Group != s.PID {
		t.Errorf("pid %d (started as %d), session %d, group %d: want one number", s.PID, c.Identity().PID, s.Session, s.Group)
	}
	if s.Stdin != "/dev/null" {
		t.Errorf("standard input is %s", s.Stdin)
	}
	for _, fd := range s.FDs {
		n, _ := strconv.Atoi(strings.Fields(fd)[0])
		if n > SecretFD && !strings.Contains(fd, "/proc/") && !strings.Contains(fd, "/sys/fs/cgroup/") { // the folder that was listed; the Go runtime's own
			t.Errorf("descriptor %s was inherited", fd)
		}
	}
	id, err := identify("w-1", s.PID)
	if err != nil || id != c.Identity() {
		t.Errorf("identity after exec %+v (%v), at the start %+v", id, err, c.Identity())
	}
}

func TestStartSaysWhyNot(t *testing.T) {
	dir := t.TempDir()
	notExecutable := filepath.Join(dir, "text")
	if err := os.WriteFile(notExecutable, []byte("no program"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Spec){
		"missing":                  func(s *Spec) { s.Path = filepath.Join(dir, "missing") },
		"not executable":           func(s *Spec) { s.Path = notExecutable },
		"not executable, directly": func(s *Spec) { s.Path, s.ExecChild = notExecutable, nil },
		"relative":                 func(s *Spec) { s.Path = "worker" },
		"no folder":                func(s *Spec) { s.Dir = filepath.Join(dir, "none") },
		"log is a link": func(s *Spec) {
			s.LogPath = filepath.Join(dir, "link")
			if err := os.Symlink("/dev/null", s.LogPath); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := helperSpec(dir, "w-1", hiveOf(t))
			change(&spec)
			if c, err := Start(spec); err == nil {
				_ = unix.Kill(c.id.PID, unix.SIGKILL)
				t.Fatal("it started")
			}
		})
	}
}

func TestWaitSaysHowItEnded(t *testing.T) {
	c, _ := startHelper(t, "w-exit", "--exit", "7")
	if e := <-wait(t, c); e != (Exit{Code: 7}) {
		t.Errorf("exit %+v, want code 7", e)
	}
	c, s := startHelper(t, "w-signal")
	ended := wait(t, c)
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e != (Exit{Code: -1, Signal: 9}) {
		t.Errorf("exit %+v, want signal 9 and no out-of-memory kill", e)
	}
}

func TestWaitEndsWithItsContextAndLeavesTheChild(t *testing.T) {
	c, s := startHelper(t, "w-1")
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { _, err := c.Wait(ctx); ended <- err }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("Wait returned %v", err)
	}
	if !running(s.PID) {
		t.Error("the child ended with the wait")
	}
}

func TestWaitEndsWhatAWorkerLeavesBehind(t *testing.T) {
	c, s := startHelper(t, "w-1", "--grandchild")
	ended := wait(t, c)
	if err := unix.Kill(s.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-ended
	eventually(t, "the grandchild ends", func() bool { return !running(s.Grandchild) })
}

func TestScanFindsTheWorkersOfAHive(t *testing.T) {
	hive := hiveOf(t)
	c, _ := startHelper(t, "w-1", "--worker-id", "somebody-else", "--engine-dir=/engines/x", "--landlock", "6")
	startHelper(t, "w-2")
	found, err := Scan(hive)
	if err != nil || len(found) != 2 {
		t.Fatalf("found %+v, %v; want two", found, err)
	}
	i := slices.IndexFunc(found, func(e Entry) bool { return e.PID == c.Identity().PID })
	want := Entry{Generation: 3, EngineDir: "/engines/x", Process: contract.Process{
		Identity: c.Identity(), HiveID: hive, SpawnKey: "key of w-1", Model: "echo:x", Device: "cpu0", Port: 7999,
		Protection: contract.Protection{NoNewPrivs: true, Landlock: 6, Seccomp: Protection(os.Getpid(), 0).Seccomp},
	}}
	if found[i] != want {
		t.Errorf("found %+v\nwant  %+v", found[i], want)
	}
	if other, err := Scan("another hive"); err != nil || len(other) != 0 {
		t.Errorf("found %+v of another hive (%v)", other, err)
	}
	if list, err := List(hive); err != nil || len(list) != 2 || list[i] != want.Process {
		t.Errorf("List gave %+v, %v", list, err)
	}
}

func TestKill(t *testing.T) {
	for name, tc := range map[string]struct {
		extra   []string
		collect bool // the hive that started it waits for it; else its parent is somebody who does not
		want    string
	}{
		"that ends when asked":           {want: OutcomeTerminated, collect: true},
		"that nobody collects":           {want: OutcomeTerminated},
		"that ignores SIGTERM":           {extra: []string{"--ignore-sigterm"}, want: OutcomeKilled, collect: true},
		"with a grandchild, collected":   {extra: []string{"--grandchild"}, want: OutcomeTerminated, collect: true},
		"with a grandchild, uncollected": {extra: []string{"--grandchild"}, want: OutcomeKilled},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, s := startHelper(t, "w-1", tc.extra...)
			var ended <-chan Exit
			if tc.collect {
				ended = wait(t, c)
			}
			outcome, err := Kill(context.Background(), c.Identity(), quick())
			if err != nil || outcome != tc.want {
				t.Fatalf("outcome %q, %v; want %q", outcome, err, tc.want)
			}
			if running(s.PID) || s.Grandchild != 0 && running(s.Grandchild) {
				t.Error("a process of the group still runs")
			}
			if ended != nil {
				if e := <-ended; e.OOM {
					t.Error("our own SIGKILL was taken for the kernel's")
				}
			}
			if outcome, err := Kill(context.Background(), c.Identity(), quick()); err != nil || outcome != OutcomeGone {
				t.Errorf("again: %q, %v; want gone", outcome, err)
			}
			if err := Verify(c.Identity()); fault.KindOf(err) != fault.NotFound {
				t.Errorf("Verify of the dead: %v", err)
			}
		})
	}
}

// TestKillEndsAGroupWhoseLeaderWasCollected is the fallback of kernels without PIDFD_SIGNAL_PROCESS_GROUP too.
func TestKillEndsAGroupWithoutTheNewFlag(t *testing.T) {
	c, s := startHelper(t, "w-1", "--grandchild")
	tg := &target{id: c.Identity(), leader: true}
	tg.members()
	ended := wait(t, c)
	if err := tg.signalGroup(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-ended
	eventually(t, "the group ends", func() bool { return !running(s.Grandchild) })
	if err := tg.signalGroup(unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
		t.Errorf("a signal to a group that is gone: %v, want ESRCH", err)
	}
}

func TestKillSignalsNobodyElse(t *testing.T) {
	c, s := startHelper(t, "w-1")
	good := c.Identity()
	for name, tc := range map[string]struct {
		change func(*contract.Identity)
		kind   fault.Kind
	}{
		"another boot":   {func(id *contract.Identity) { id.BootID = "00000000-0000-0000-0000-000000000000" }, fault.Conflict},
		"another start":  {func(id *contract.Identity) { id.StartTicks++ }, fault.Conflict},
		"another worker": {func(id *contract.Identity) { id.WorkerID = "w-2" }, fault.Conflict},
		"another pid":    {func(id *contract.Identity) { id.PID = os.Getpid() }, fault.Conflict},
		"no pid":         {func(id *contract.Identity) { id.PID = 0 }, fault.Invalid},
		"init":           {func(id *contract.Identity) { id.PID = 1 }, fault.Invalid},
		"everybody":      {func(id *contract.Identity) { id.PID = -1 }, fault.Invalid},
		"no boot":        {func(id *contract.Identity) { id.BootID = "" }, fault.Invalid},
		"no worker":      {func(id *contract.Identity) { id.WorkerID = "" }, fault.Invalid},
		"no start":       {func(id *contract.Identity) { id.StartTicks = 0 }, fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			id := good
			tc.change(&id)
			opts := quick()
			opts.Send = func(pid int, sig syscall.Signal) error { t.Errorf("signal %v was sent to %d", sig, pid); return nil }
			if outcome, err := Kill(context.Background(), id, opts); fault.KindOf(err) != tc.kind {
				t.Errorf("outcome %q, error %v; want %s", outcome, err, tc.kind)
			}
			if err := Verify(id); fault.KindOf(err) != tc.kind {
				t.Errorf("Verify: %v; want %s", err, tc.kind)
			}
		})
	}
	if err := Verify(good); err != nil || !running(s.PID) {
		t.Errorf("the worker suffered: %v", err)
	}
	gone := good
	gone.PID = unusedPID(t)
	if outcome, err := Kill(context.Background(), gone, quick()); err != nil || outcome != OutcomeGone {
		t.Errorf("no such process: %q, %v", outcome, err)
	}
}

func unusedPID(t *testing.T) int {
	t.Helper()
	for pid := 30000; pid > 2; pid-- {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); errors.Is(err, os.ErrNotExist) {
			return pid
		}
	}
	t.Fatal("every pid is in use")
	return 0
}

func TestKillGivesUpOnTheUnkillable(t *testing.T) {
	c, s := startHelper(t, "w-1")
	var sent []syscall.Signal
	opts := KillOptions{Term: 10 * time.Millisecond, Kill: 10 * time.Millisecond, Send: func(_ int, sig syscall.Signal) error {
		sent = append(sent, sig)
		return nil
	}}
	_, err := Kill(context.Background(), c.Identity(), opts)
	if e := fault.As(err); e == nil || e.Code != CodeUnkillable || e.Kind != fault.Unavailable {
		t.Errorf("error %v", err)
	}
	if !slices.Equal(sent, []syscall.Signal{unix.SIGTERM, unix.SIGTERM, unix.SIGKILL}) || !running(s.PID) {
		t.Errorf("sent %v", sent)
	}
}

func TestKillStopsWaitingWithItsContext(t *testing.T) {
	c, _ := startHelper(t, "w-1")
	ctx, cancel := context.WithCancel(context.Background())
	opts := KillOptions{Send: func(int, syscall.Signal) error { cancel(); return nil }}
	if _, err := Kill(ctx, c.Identity(), opts); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// TestAWorkerOutlivesWhoStartedIt kills the starter with SIGKILL, as F10 has it.
func TestAWorkerOutlivesWhoStartedIt(t *testing.T) {
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	starter := exec.Command(exe, "starter", dir, "w-1", hiveOf(t))
	starter.Stderr = os.Stderr
	out, err := starter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := starter.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	id := mustIdentity(t, line)
	awaitSeen(t, dir)
	if err := starter.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = starter.Wait()
	found, err := Scan(hiveOf(t))
	if err != nil || len(found) != 1 || found[0].Identity != id {
		t.Fatalf("found %+v, %v; want %+v", found, err, id)
	}
	if outcome, err := Kill(context.Background(), id, quick()); err != nil || outcome != OutcomeTerminated {
		t.Errorf("outcome %q, %v", outcome, err)
	}
}

func TestHarden(t *testing.T) {
	if os.Getenv("APIARY_TEST_HARDEN") == "" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(exe, "-test.run=^TestHarden$")
		cmd.Env = append(os.Environ(), "APIARY_TEST_HARDEN=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := Harden(); err != nil {
		t.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("dumpable %d, %v", dumpable, err)
	}
	if _, err := Self("w"); err != nil {
		t.Errorf("an undumpable process cannot identify itself: %v", err)
	}
	if !sameUser(os.Getpid()) {
		t.Error("an undumpable process does not count as our user's")
	}
}
