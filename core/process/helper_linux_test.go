package process

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

// The test binary plays the launcher and the worker: its first argument says which.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "exec-child":
			fmt.Fprintln(os.Stderr, ExecChild(os.Args[2:]))
			os.Exit(exitNotExecuted)
		case "worker":
			os.Exit(helperWorker(os.Args[2:]))
		case "starter":
			os.Exit(helperStarter(os.Args[2:]))
		}
	}
	os.Exit(m.Run())
}

// seen is what a helper worker tells of itself in the file "seen" of its working folder.
type seen struct {
	Args, Env, FDs []string
	Secret         string
	NoNewPrivs     int
	Core           uint64
	Session, Group int
	PID            int
	Grandchild     int
	Stdin          string
}

func helperWorker(args []string) int {
	if slices.Contains(args, "--ignore-sigterm") {
		signal.Ignore(syscall.SIGTERM)
	}
	s := seen{Args: os.Args, Env: os.Environ(), PID: os.Getpid(), Group: unix.Getpgrp()}
	s.Session, _ = unix.Getsid(0)
	s.NoNewPrivs, _ = unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	var core unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_CORE, &core)
	s.Core = core.Max
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && !strings.HasPrefix(to, "anon_inode:") { // the runtime's own
			s.FDs = append(s.FDs, filepath.Base(fd)+" "+to)
		}
	}
	s.Stdin, _ = os.Readlink("/proc/self/fd/0")
	f := os.NewFile(SecretFD, "secret")
	b, _ := io.ReadAll(f)
	s.Secret = string(b)
	if slices.Contains(args, "--grandchild") {
		c := exec.Command(os.Args[0], "worker", "--ignore-sigterm", "--as-grandchild")
		c.Dir, c.Env = "/", os.Environ()
		ready, _ := c.StdoutPipe()
		if err := c.Start(); err != nil {
			return 1
		}
		_, _ = bufio.NewReader(ready).ReadString('\n') // it ignores SIGTERM from here on
		s.Grandchild = c.Process.Pid
	}
	if err := Harden(); err != nil { // as every worker does
		return 1
	}
	if slices.Contains(args, "--as-grandchild") {
		fmt.Println("ready")
	} else {
		out, _ := json.Marshal(s)
		if os.WriteFile("seen.tmp", out, 0o600) != nil || os.Rename("seen.tmp", "seen") != nil {
			return 1
		}
		fmt.Println("helper worker is up")
	}
	if v := flagValue(args, "--exit"); v != "" {
		n, _ := strconv.Atoi(v)
		return n
	}
	if v := flagValue(args, "--alloc-mb"); v != "" {
		for _, err := os.Stat("go"); err != nil; _, err = os.Stat("go") {
			<-time.After(5 * time.Millisecond)
		}
		mb, _ := strconv.Atoi(v)
		var hold [][]byte
		for range mb {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			hold = append(hold, b)
		}
		fmt.Println("allocated", len(hold))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // nothing stays behind
	defer cancel()
	<-ctx.Done()
	return 0
}

// helperStarter starts a worker as an agent would, prints its identity and waits to be killed.
func helperStarter(args []string) int {
	c, err := Start(helperSpec(args[0], args[1], args[2]))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(c.Identity())
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, _ = c.Wait(ctx)
	return 0
}

func helperSpec(dir, workerID, hiveID string, extra ...string) Spec {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Spec{
		ExecChild: []string{exe, "exec-child"}, Path: exe,
		Args: append([]string{"worker", "--worker-id", workerID, "--model", "echo:x", "--device", "cpu0", "--port", "7999",
			"--hive-id", hiveID, "--spawn-key", "key of " + workerID, "--generation", "3"}, extra...),
		Env: []string{"DECLARED=yes", "GORACE=atexit_sleep_ms=0"}, Dir: dir, LogPath: filepath.Join(dir, "worker.log"),
		Secret: secret.Secret("the secret of " + workerID),
	}
}

// startHelper starts a worker that is killed and collected with the test, and waits until it is up.
func startHelper(t *testing.T, workerID string, extra ...string) (*Child, seen) {
	t.Helper()
	dir := t.TempDir()
	c, err := Start(helperSpec(dir, workerID, hiveOf(t), extra...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Kill(-c.id.PID, unix.SIGKILL); _ = c.cmd.Wait() })
	return c, awaitSeen(t, dir)
}

// hiveOf gives each test a hive of its own, so that tests and their leftovers do not meet.
func hiveOf(t *testing.T) string { return fmt.Sprintf("hive-%d-%s", os.Getpid(), t.Name()) }

func awaitSeen(t *testing.T, dir string) seen {
	t.Helper()
	var s seen
	eventually(t, "the worker comes up", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "seen"))
		return err == nil && json.Unmarshal(b, &s) == nil
	})
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("gave up waiting: %s", what)
		}
	}
}

func running(pid int) bool {
	st, err := readStat(pid)
	return err == nil && !st.dead()
}

// wait collects the child in the background, as a hive does.
func wait(t *testing.T, c *Child) <-chan Exit {
	t.Helper()
	out := make(chan Exit, 1)
	go func() {
		e, err := c.Wait(context.Background())
		if err != nil {
			t.Error(err)
		}
		out <- e
	}()
	return out
}

func quick() KillOptions {
	return KillOptions{Term: 300 * time.Millisecond, Kill: 5 * time.Second}
}

func mustIdentity(t *testing.T, b []byte) contract.Identity {
	t.Helper()
	var id contract.Identity
	if err := json.Unmarshal(b, &id); err != nil {
		t.Fatalf("no identity in %q: %v", b, err)
	}
	return id
}
