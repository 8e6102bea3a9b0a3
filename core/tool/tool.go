// Package tool runs a program that the core needs for a moment, such as a compiler in a step of a plan, or a server that is asked
// for its version: without a shell, in a clean environment, in a process group of its own, bounded in time and output, and gone
// when the call returns. It decides nothing about which program may run.
//
// Where the system permits it the program also gets a network and a process table of its own: then it reaches no network, and
// nothing that it started outlives it.
package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/sandbox"
)

// searchPath is where programs are looked for, and the PATH of those that run. The agent's own PATH does not count.
const searchPath = "/usr/local/bin:/usr/bin:/bin"

// Runner runs programs. Its methods may be called concurrently.
type Runner struct {
	execChild []string
	support   sandbox.Support
	home      string

	mu    sync.Mutex
	found map[string]string // by name: absolute path; guarded by mu
}

// New returns a runner that starts programs through the launcher execChild, {"/path/apiary", "exec-child"}, which holds them to what
// support permits: they read the system's folders, and change their working folder and Scratch, or a folder in which both are. The
// data folder home is out of bounds but for those. Without a launcher programs are executed directly.
func New(execChild []string, support sandbox.Support, home string) *Runner {
	return &Runner{execChild: execChild, support: support, home: home, found: map[string]string{}}
}

// Find returns the absolute path of the program name. What was found once stays. The error is fs.ErrNotExist for a name that is
// none or cannot be found.
func (r *Runner) Find(name string) (string, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return "", fmt.Errorf("find %q: %w", name, os.ErrNotExist)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if p, ok := r.found[name]; ok {
		return p, nil
	}
	for _, dir := range filepath.SplitList(searchPath) {
		p := filepath.Join(dir, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			r.found[name] = p
			return p, nil
		}
	}
	return "", fmt.Errorf("find %q in %s: %w", name, searchPath, os.ErrNotExist)
}

// Command says what to run.
type Command struct {
	Path    string            // absolute
	Args    []string          // without the program's name
	Env     map[string]string // beside PATH, HOME, TMPDIR and LANG, which it cannot change
	Dir     *os.File          // the working folder, open
	Scratch string            // absolute; HOME and TMPDIR
	Write   []string          // folders that it may change beside Scratch, and the working folder where Engine is not set
	Engine  bool              // it is an engine in the working folder, which it does not change; it may use the graphics devices
	Network bool              // it may reach the network
	Timeout time.Duration
	// Line gets a line of the output now and then, from one goroutine and not after Run has returned: without control characters
	// and shortened. Nil: nobody listens.
	Line func(line string)
}

// Result says how a program ran.
type Result struct {
	Offline bool     // it could reach no network
	Alone   bool     // nothing that it started can have outlived it
	Lines   []string // the last lines of its output, in order
}

// Failure is the error for a program that ran and did not end well.
type Failure struct {
	Reason  string // "exit status 2", "it did not end within 10m0s"
	Timeout bool
	Lines   []string // the last lines of its output, in order
}

func (f *Failure) Error() string {
	if len(f.Lines) == 0 {
		return f.Reason + ", without a word"
	}
	return f.Reason + ": " + strings.Join(f.Lines, " ⏎ ")
}

// drainTime bounds the wait for output that somebody else still holds open when the program has ended.
const drainTime = 200 * time.Millisecond

// Run runs a program until it ends, ctx ends or its time is over, ends its process group, and returns when its output was read. A
// program that ran and did not end well is a *Failure; a cancelled ctx is its cause.
func (r *Runner) Run(ctx context.Context, c Command) (Result, error) {
	if !filepath.IsAbs(c.Path) || c.Dir == nil {
		return Result{}, fmt.Errorf("run %q: the program needs an absolute path and a folder", c.Path)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return Result{}, fmt.Errorf("make a pipe: %w", err)
	}
	defer func() { _ = read.Close() }()
	child := &child{started: make(chan error, 1), ended: make(chan struct{})}
	args, err := r.arguments(c)
	if err != nil {
		return Result{}, errors.Join(err, write.Close())
	}
	go child.run(func(confined confinement) *exec.Cmd { return r.command(c, args, write, confined) }, confinements(c.Network))
	err = <-child.started
	_ = write.Close()
	if err != nil {
		return Result{}, fmt.Errorf("start %s: %w", c.Path, err)
	}
	output := &lines{each: c.Line}
	var readers sync.WaitGroup
	readers.Go(func() { _, _ = io.Copy(output, read); output.end() })

	timer := time.NewTimer(c.Timeout)
	defer timer.Stop()
	timedOut := false
	select {
	case <-child.ended:
	case <-ctx.Done():
		child.kill()
		<-child.ended
	case <-timer.C:
		timedOut = true
		child.kill()
		<-child.ended
	}
	_ = read.SetReadDeadline(time.Now().Add(drainTime)) // a process that left the group may hold the other end
	readers.Wait()
	last := output.kept()
	result := Result{Offline: child.confined.network, Alone: child.confined.processes, Lines: last}
	switch {
	case ctx.Err() != nil:
		return result, context.Cause(ctx)
	case timedOut:
		return result, &Failure{Reason: fmt.Sprintf("it did not end within %v", c.Timeout), Timeout: true, Lines: last}
	case child.err != nil:
		reason := child.err.Error()
		if _, ok := errors.AsType[*exec.ExitError](child.err); !ok {
			reason = "it could not be waited for (" + reason + ")"
		}
		return result, &Failure{Reason: reason, Lines: last}
	}
	return result, nil
}

// arguments is the argument vector. The launcher's working folder is that of the command.
func (r *Runner) arguments(c Command) ([]string, error) {
	policy := sandbox.Policy{
		Read:    append(sandbox.System(r.home), c.Path),
		Write:   append([]string{c.Scratch}, c.Write...),
		Devices: sandbox.Plain(),
	}
	if !c.Engine {
		policy.Write = append(policy.Write, ".")
	} else {
		parts, err := sandbox.Followed(c.Dir.Name())
		if err != nil {
			return nil, fmt.Errorf("look at the engine: %w", err)
		}
		policy.Read = slices.Concat(policy.Read, []string{"."}, parts, sandbox.Graphics(r.home))
		policy.Devices = append(policy.Devices, sandbox.GPUs()...)
	}
	return r.support.With(policy).Launch(r.execChild, c.Path, c.Args)
}

func (r *Runner) command(c Command, args []string, output *os.File, confined confinement) *exec.Cmd {
	env := []string{"PATH=" + searchPath, "HOME=" + c.Scratch, "TMPDIR=" + c.Scratch, "LANG=C.UTF-8"}
	for _, name := range slices.Sorted(maps.Keys(c.Env)) {
		if name != "PATH" && name != "HOME" && name != "TMPDIR" && name != "LANG" {
			env = append(env, name+"="+c.Env[name])
		}
	}
	return &exec.Cmd{
		Path: args[0], Args: args, Env: env, Dir: openPath(c.Dir), Stdout: output, Stderr: output, SysProcAttr: attributes(confined),
	}
}

// child is a process that leads a group of its own.
type child struct {
	started  chan error
	ended    chan struct{} // closed when the process and its group have ended
	confined confinement   // valid after a start
	err      error         // valid after the end

	mu     sync.Mutex // guards the fields below
	number int
	reaped bool
}

// run starts the process, as confined as the system permits, and waits for it on one thread: the kernel kills the process when the
// thread that started it ends.
func (c *child) run(command func(confinement) *exec.Cmd, ways []confinement) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var cmd *exec.Cmd
	var err error
	for i, way := range ways {
		cmd, c.confined = command(way), way
		c.mu.Lock()
		if err = cmd.Start(); err == nil {
			c.number = cmd.Process.Pid
		}
		c.mu.Unlock()
		if err == nil || i == len(ways)-1 || !notPermitted(err) {
			break
		}
	}
	c.started <- err
	if err != nil {
		return
	}
	awaitEnd(cmd.Process.Pid)
	c.mu.Lock()
	_ = syscall.Kill(-c.number, syscall.SIGKILL) // what it started goes with it
	c.reaped = true
	c.mu.Unlock()
	c.err = cmd.Wait()
	close(c.ended)
}

// kill ends the process and its group at once.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped { // afterwards the number may be another's
		_ = syscall.Kill(-c.number, syscall.SIGKILL)
	}
}
