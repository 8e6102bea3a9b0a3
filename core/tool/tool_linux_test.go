package tool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/sandbox"
	"golang.org/x/sys/unix"
)

// The test binary plays the launcher and the tool: its first argument says which.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case "exec-child":
			fmt.Fprintln(os.Stderr, process.ExecChild(os.Args[2:]))
			os.Exit(127)
		case "play":
			os.Exit(play(os.Args[2], os.Args[3:]))
		}
	}
	os.Exit(m.Run())
}

// play is what the tool does.
func play(what string, args []string) int {
	switch what {
	case "tell":
		dir, _ := os.Getwd()
		privs, _ := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
		fmt.Println("env", strings.Join(os.Environ(), " "))
		fmt.Println("dir", dir)
		fmt.Println("args", args)
		fmt.Fprintln(os.Stderr, "no_new_privs", privs)
		fmt.Println("group", unix.Getpgrp() == os.Getpid() || unix.Getpgrp() == 0)
		if b, err := os.ReadFile("/proc/self/fd/0"); err == nil {
			fmt.Println("input", len(b))
		}
	case "try": // reading, changing and making the files of args
		for _, path := range args {
			b, rerr := os.ReadFile(path)
			werr := os.WriteFile(path, append(b, 'x'), 0o600)
			fmt.Println(filepath.Base(path), rerr == nil, werr == nil)
		}
	case "fail":
		for i := range 100 {
			fmt.Println("line", i)
		}
		fmt.Print("\x1b[31mred\x1b[0m and\x00\x07 end")
		return 3
	case "flood":
		chunk := bytes.Repeat([]byte(strings.Repeat("x", 1023)+"\n"), 64)
		for range 100 << 20 / len(chunk) {
			if _, err := os.Stdout.Write(chunk); err != nil {
				return 1
			}
		}
	case "hang":
		time.Sleep(time.Hour)
	case "leave": // a grandchild in a session of its own, which holds the output
		cmd := exec.Command(os.Args[0], "play", "hang")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: args[0] == "session"}
		cmd.Env = append(os.Environ(), "MARK="+args[1])
		if err := cmd.Start(); err != nil {
			return 1
		}
		if len(args) > 2 {
			time.Sleep(time.Hour)
		}
	case "dial":
		c, err := net.DialTimeout("tcp", args[0], time.Second)
		if err != nil {
			fmt.Println("refused:", err)
			return 0
		}
		fmt.Println("connected")
		_ = c.Close()
	}
	return 0
}

// run lets the test binary play.
func run(t *testing.T, ctx context.Context, change func(*Command), what string, args ...string) (Result, error) {
	t.Helper()
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	c := Command{Path: own, Args: append([]string{"play", what}, args...), Dir: dir, Scratch: t.TempDir(), Timeout: time.Minute}
	if change != nil {
		change(&c)
	}
	return New([]string{own, "exec-child"}, sandbox.Kernel(), "").Run(ctx, c)
}

func TestRun(t *testing.T) {
	t.Setenv("HF_TOKEN", "canary")
	var scratch, dir string
	told := 0
	res, err := run(t, t.Context(), func(c *Command) {
		c.Env = map[string]string{"CC": "gcc", "PATH": "/evil", "HOME": "/evil"}
		scratch, dir = c.Scratch, c.Dir.Name()
		c.Line = func(string) { told++ }
	}, "tell", "a b", "$(id)")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"env PATH=" + searchPath + " HOME=" + scratch + " TMPDIR=" + scratch + " LANG=C.UTF-8 CC=gcc", "dir " + dir, "args [a b $(id)]", "no_new_privs 1", "group true", "input 0",
	}
	if got := res.Lines; strings.Join(got, "\n") != strings.Join(want, "\n") || told == 0 {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestFailure(t *testing.T) {
	_, err := run(t, t.Context(), nil, "fail")
	f, ok := errors.AsType[*Failure](err)
	if !ok || f.Reason != "exit status 3" || f.Timeout || len(f.Lines) != maxLines || f.Lines[maxLines-1] != "red and end" || f.Lines[maxLines-2] != "line 99" {
		t.Errorf("got %+v, %v", f, err)
	}
	_, err = run(t, t.Context(), func(c *Command) { c.Path = "/nonexistent/program" }, "tell")
	if f, ok := errors.AsType[*Failure](err); !ok || f.Reason != "exit status 127" || !strings.Contains(f.Error(), "/nonexistent/program") {
		t.Errorf("got %v", err)
	}
}

// A tool that writes without end costs no memory.
func TestFlood(t *testing.T) {
	n := 0
	res, err := run(t, t.Context(), func(c *Command) { c.Line = func(string) { n++ } }, "flood")
	if err != nil || n == 0 || n > 1000 || len(res.Lines) != maxLines {
		t.Errorf("%d lines, %v", n, err)
	}
}

func TestTimeoutAndCancel(t *testing.T) {
	start := time.Now()
	_, err := run(t, t.Context(), func(c *Command) { c.Timeout = 300 * time.Millisecond }, "hang")
	if f, ok := errors.AsType[*Failure](err); !ok || !f.Timeout || !strings.Contains(f.Reason, "within 300ms") {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := run(t, ctx, nil, "hang"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// marked counts the processes whose environment holds the mark.
func marked(mark string) (n int) {
	all, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range all {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte("MARK="+mark)) {
			n++
		}
	}
	return n
}

// Nothing that a tool started outlives it: what is in its group in any case, and everything where there is a process table of
// its own.
func TestGrandchildren(t *testing.T) {
	for _, how := range []string{"group", "session"} {
		for _, hangs := range []bool{false, true} {
			mark := how + strconv.FormatBool(hangs) + strconv.Itoa(os.Getpid())
			args := []string{how, mark}
			if hangs {
				args = append(args, "hang")
			}
			start := time.Now()
			res, err := run(t, t.Context(), func(c *Command) { c.Timeout = 2 * time.Second }, "leave", args...)
			if (err != nil) != hangs || time.Since(start) > 20*time.Second {
				t.Errorf("%s: %v after %v", mark, err, time.Since(start))
			}
			if how == "session" && !res.Alone {
				t.Log("this system gives no process table of its own")
				continue
			}
			for end := time.Now().Add(5 * time.Second); marked(mark) > 0; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s: a grandchild is left", mark)
				}
			}
		}
	}
}

func TestNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	for _, network := range []bool{false, true} {
		res, err := run(t, t.Context(), func(c *Command) { c.Network = network }, "dial", l.Addr().String())
		if err != nil || len(res.Lines) != 1 {
			t.Fatalf("%+v, %v", res, err)
		}
		if !network && !res.Offline {
			t.Log("this system cannot withhold the network")
			continue
		}
		if got := res.Lines[0] == "connected"; got != network || network == res.Offline {
			t.Errorf("network %v: %+v", network, res)
		}
	}
}

func TestFind(t *testing.T) {
	r := New(nil, sandbox.Support{}, "")
	if p, err := r.Find("sh"); err != nil || !filepath.IsAbs(p) {
		t.Errorf("%q, %v", p, err)
	}
	for _, bad := range []string{"", "/bin/sh", "../sh", ".", "..", "no-such-program-anywhere", "sh\x00"} {
		if _, err := r.Find(bad); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := r.Find("sh"); err != nil {
		t.Error(err)
	}
}

// TestConfined: a step changes its working folder and its scratch folder and reads nothing of the data folder; an engine that is asked
// for its version changes its scratch folder alone. Without Landlock it could, or the test would show nothing.
func TestConfined(t *testing.T) {
	support := sandbox.Kernel()
	if support.ABI == 0 {
		t.Skip("skipped: " + support.Why)
	}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		support sandbox.Support
		engine  bool
		want    string
	}{
		"a step without Landlock": {want: "secret true true|work true true|scratch true true"},
		"a step":                  {support: support, want: "secret false false|work true true|scratch true true"},
		"an engine":               {support: support, engine: true, want: "secret false false|work true false|scratch true true"},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			var paths []string
			for _, file := range []string{"secret", "work", "scratch"} {
				path := filepath.Join(home, file+".d", file)
				if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, []byte("x"), 0o600)); err != nil {
					t.Fatal(err)
				}
				paths = append(paths, path)
			}
			dir, err := os.Open(filepath.Dir(paths[1]))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = dir.Close() }()
			res, err := New([]string{own, "exec-child"}, c.support, home).Run(t.Context(), Command{
				Path: own, Args: append([]string{"play", "try"}, paths...), Dir: dir, Scratch: filepath.Dir(paths[2]), Engine: c.engine, Timeout: time.Minute,
			})
			if got := strings.Join(res.Lines, "|"); err != nil || got != c.want {
				t.Errorf("%s, %v; want %s", got, err, c.want)
			}
		})
	}
}
