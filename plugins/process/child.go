package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
)

// child is the operating system's process. It implements runner.Runner of go-plugin.
type child struct {
	spec    Spec
	command []string
	home    string
	sockets string

	cmd       *exec.Cmd
	stdout    *os.File // our ends of the pipes
	stderr    *os.File
	handshake *handshake
	lines     *lineLog
	readers   sync.WaitGroup
	exited    chan struct{} // closed when the process has ended and was collected

	mu      sync.Mutex // guards the fields below
	number  int        // of the process; 0: not started
	alone   bool       // in a process table of its own
	killed  bool       // before it ended
	reaped  bool
	waitErr error
}

func newChild(spec Spec, command []string, home string) *child {
	return &child{spec: spec, command: command, home: home, exited: make(chan struct{}), handshake: &handshake{}, lines: newLineLog(spec.Log, spec.Name)}
}

// prepare makes the command. handshake is what go-plugin adds to the environment, sockets the folder for the plugin's socket.
func (c *child) prepare(handshakeEnv []string, sockets string) {
	c.sockets = sockets
	c.cmd = &exec.Cmd{
		Path: c.command[0], Args: c.command, Dir: c.home,
		Env: slices.Concat([]string{"PATH=/usr/bin:/bin", "HOME=" + c.home, "TMPDIR=" + c.home, "LANG=C.UTF-8"}, c.spec.Env, handshakeEnv),
	}
}

// Start implements runner.Runner.
func (c *child) Start(context.Context) error {
	stdout, stdoutW, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	stderr, stderrW, err := os.Pipe()
	if err != nil {
		_, _ = stdout.Close(), stdoutW.Close()
		return fmt.Errorf("make a pipe: %w", err)
	}
	c.stdout, c.stderr, c.cmd.Stdout, c.cmd.Stderr = stdout, stderr, stdoutW, stderrW
	started := make(chan error)
	go c.run(started)
	err = <-started
	_, _ = stdoutW.Close(), stderrW.Close()
	if err != nil {
		_, _ = stdout.Close(), stderr.Close()
		return err
	}
	c.readers.Go(func() { _, _ = io.Copy(c.output("stderr"), stderr) })
	return nil
}

// run starts the process and waits for it on one thread: the kernel kills the process when the thread that started it ends.
func (c *child) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := errors.New("it was given up before it began")
	for _, way := range ways() {
		cmd := &exec.Cmd{Path: c.cmd.Path, Args: c.cmd.Args, Dir: c.cmd.Dir, Env: c.cmd.Env, Stdout: c.cmd.Stdout, Stderr: c.cmd.Stderr, SysProcAttr: attributes(way)}
		c.mu.Lock()
		if c.killed {
			c.mu.Unlock()
			break
		}
		if err = cmd.Start(); err == nil {
			c.cmd, c.number, c.alone = cmd, cmd.Process.Pid, way.processes
		}
		c.mu.Unlock()
		if err == nil || !notPermitted(err) {
			break
		}
	}
	started <- err
	if err != nil {
		return
	}
	awaitEnd(c.cmd.Process.Pid)
	c.mu.Lock()
	c.signalGroup() // what it started goes with it
	c.reaped = true
	c.mu.Unlock()
	err = c.cmd.Wait()
	c.mu.Lock()
	c.waitErr = err
	c.mu.Unlock()
	// Whoever else has the other ends of the pipes must not keep us.
	end := time.Now().Add(100 * time.Millisecond)
	_, _ = c.stdout.SetReadDeadline(end), c.stderr.SetReadDeadline(end)
	close(c.exited)
}

// kill ends the process and its group at once. It is safe before the start, after the end, and several times.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = c.killed || !c.reaped
	c.signalGroup()
}

// signalGroup is called with mu held.
func (c *child) signalGroup() {
	if c.number > 0 && !c.reaped { // afterwards the number may be another's
		_ = syscall.Kill(-c.number, syscall.SIGKILL)
	}
}

func (c *child) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.number
}

func (c *child) isAlone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.alone
}

// waitExit reports whether the process ended within d.
func (c *child) waitExit(d time.Duration) bool {
	if c.pid() == 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c.exited:
		return true
	case <-timer.C:
		return false
	}
}

// endedItself reports whether the process ended without being killed.
func (c *child) endedItself() bool {
	if !c.waitExit(200 * time.Millisecond) {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.killed
}

// wait returns when nothing reads from the process any more, which has ended.
func (c *child) wait() {
	c.readers.Wait()
	if c.pid() != 0 {
		_, _ = c.stdout.Close(), c.stderr.Close()
	}
}

// state says how the process ended: "exit status 1".
func (c *child) state() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.waitErr != nil:
		return c.waitErr.Error()
	case c.number == 0:
		return "not started"
	}
	return "exit status 0"
}

// said is the line that says most about the end of the process, for the end of a sentence, "" when it wrote none.
func (c *child) said() string {
	// What it wrote last may still be on its way.
	for range 20 {
		if line := c.lines.telling(); line != "" {
			return "; it wrote " + strconv.Quote(line)
		}
		select {
		case <-c.exited:
		default:
			return ""
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ""
}

// output takes what the process writes.
func (c *child) output(stream string) io.Writer { return c.lines.writer(stream) }

// Wait implements runner.Runner.
func (c *child) Wait(context.Context) error {
	<-c.exited
	return nil
}

// Kill implements runner.Runner. A process that closed its output may be about to end by itself, and how it does says more.
func (c *child) Kill(context.Context) error {
	if !c.waitExit(200 * time.Millisecond) {
		c.kill()
	}
	return nil
}

// Stdout implements runner.Runner.
func (c *child) Stdout() io.ReadCloser { return io.NopCloser(io.TeeReader(c.stdout, c.handshake)) }

// Stderr implements runner.Runner: go-plugin gets nothing, because its lines have no bound.
func (*child) Stderr() io.ReadCloser { return io.NopCloser(bytes.NewReader(nil)) }

// Name implements runner.Runner.
func (c *child) Name() string { return c.spec.Name }

// Diagnose implements runner.Runner.
func (*child) Diagnose(context.Context) string { return "" }

// ID implements runner.Runner.
func (c *child) ID() string {
	if n := c.pid(); n > 0 {
		return strconv.Itoa(n)
	}
	return ""
}

// PluginToHost implements runner.Runner. Without TLS only a socket in the private folder is safe to use.
func (c *child) PluginToHost(network, address string) (string, string, error) {
	line, _ := c.handshake.seen()
	switch {
	case c.spec.TLS == TLSNone && len(line) > 5 && line[5] != "":
		return "", "", fault.New(fault.Internal, CodeHandshake, "it answers with a certificate, and its manifest says that it has none")
	case network == "unix" && strings.HasPrefix(address, c.sockets+string(os.PathSeparator)) && !strings.Contains(address, ".."):
		return network, address, nil
	case network == "tcp" && strings.HasPrefix(address, "127.0.0.1:") && c.spec.TLS != TLSNone:
		return network, address, nil
	}
	return "", "", fault.New(fault.Internal, CodeHandshake, "it listens at %.100q, and not at a socket in PLUGIN_UNIX_SOCKET_DIR", network+" "+address)
}

// HostToPlugin implements runner.Runner.
func (*child) HostToPlugin(network, address string) (string, string, error) {
	return network, address, nil
}

// handshake keeps the beginning of the first line.
type handshake struct {
	mu    sync.Mutex
	first []byte
	whole bool
}

const maxHandshake = 16 << 10

func (h *handshake) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.whole {
		line, _, found := bytes.Cut(b, []byte("\n"))
		h.first = append(h.first, line[:min(len(line), maxHandshake-len(h.first))]...)
		h.whole = found
	}
	return len(b), nil
}

// seen returns the fields of the first line, and whether all of it was seen.
func (h *handshake) seen() ([]string, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return strings.Split(strings.TrimSpace(string(h.first)), "|"), h.whole
}
