package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// launchTimeout bounds the time from fork to exec.
const launchTimeout = 10 * time.Second

// Child is a process that Start started. It outlives the caller.
type Child struct {
	id    contract.Identity
	cmd   *exec.Cmd
	pidfd *os.File
	oom   oomWatch
}

// Start starts a process in a session and process group of its own, with /dev/null as input and without a controlling
// terminal. It returns when the program was executed, and fails when it could not be. Nothing ties the process's life to
// the caller's. Whoever started it calls Wait.
func Start(spec Spec) (*Child, error) {
	if !filepath.IsAbs(spec.Path) {
		return nil, fault.New(fault.Invalid, "invalid_path", "The program %q must be named by its absolute path.", spec.Path)
	}
	log, err := folder.OpenFile(spec.LogPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the log of %s: %w", spec.Path, err)
	}
	defer func() { _ = log.Close() }()
	secretR, err := secretPipe(spec.Secret.Reveal())
	if err != nil {
		return nil, err
	}
	defer func() { _ = secretR.Close() }()

	cmd := exec.Command(spec.Path, spec.Args...)
	cmd.Env = spec.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // nil would inherit ours
	}
	cmd.Dir, cmd.Stdout, cmd.Stderr = spec.Dir, log, log
	cmd.ExtraFiles = []*os.File{secretR}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var statusR, statusW *os.File
	if len(spec.ExecChild) > 0 {
		if statusR, statusW, err = os.Pipe(); err != nil {
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		defer func() { _ = statusR.Close() }()
		options := []string{fmt.Sprintf("--status-fd=%d", statusFD)}
		if cmd.Args, err = spec.Sandbox.Launch(slices.Concat(spec.ExecChild, options), spec.Path, spec.Args); err != nil {
			_ = statusW.Close()
			return nil, err
		}
		cmd.Path = cmd.Args[0]
		cmd.ExtraFiles = append(cmd.ExtraFiles, statusW)
	}
	err = cmd.Start()
	if statusW != nil {
		_ = statusW.Close()
	}
	if err != nil {
		return nil, fault.New(fault.Internal, "start_failed", "%s could not be started: %w.", spec.Path, err)
	}
	c, err := newChild(cmd, spec.Args)
	if err == nil && statusR != nil {
		err = awaitExec(statusR, spec.Path)
	}
	if err != nil {
		_ = cmd.Process.Kill() // our own child, not collected yet
		_ = cmd.Wait()
		if c != nil {
			_ = c.pidfd.Close()
		}
		return nil, err
	}
	return c, nil
}

func newChild(cmd *exec.Cmd, args []string) (*Child, error) {
	pid := cmd.Process.Pid
	id, err := identify(flagValue(args, "--worker-id"), pid)
	if err != nil {
		return nil, err
	}
	// Not collected, so the pid is still its own. Non-blocking, so that waiting parks a goroutine and not a thread.
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &Child{id: id, cmd: cmd, pidfd: os.NewFile(uintptr(fd), "pidfd"), oom: newOOMWatch(pid)}, nil
}

// secretPipe returns the reading end of a pipe that holds the secret. It fits a pipe's buffer.
func secretPipe(value string) (*os.File, error) {
	if len(value) > 4096 {
		return nil, errors.New("a secret of more than 4096 bytes cannot be handed to a child")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	_, err = io.WriteString(w, value)
	if err = errors.Join(err, w.Close()); err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("write the secret: %w", err)
	}
	return r, nil
}

// awaitExec reads the launcher's complaint; none means that it has become the program.
func awaitExec(status *os.File, path string) error {
	_ = status.SetReadDeadline(time.Now().Add(launchTimeout)) // a pipe of the runtime's poller
	b, err := io.ReadAll(io.LimitReader(status, 4096))
	switch {
	case err != nil:
		return fault.New(fault.Internal, "start_failed", "%s was not executed within %s: %w.", path, launchTimeout, err)
	case len(b) > 0:
		return fault.New(fault.Internal, "start_failed", "%s could not be started: %s.", path, strings.TrimSuffix(sanitise(string(b)), "."))
	}
	return nil
}

// Identity returns who the child is. The worker id is its --worker-id argument.
func (c *Child) Identity() contract.Identity { return c.id }

// How often a running child's control group is looked at: often in the beginning, because one that is moved to a group of its
// own is moved then.
const (
	oomSampleEarly = 200 * time.Millisecond
	oomSample      = 2 * time.Second
	oomEarly       = 30 * time.Second
)

// Wait blocks until the child has ended, ends what is left of its process group, collects it and says how it ended. When ctx
// ends first the child runs on and is not collected. Wait is called once.
func (c *Child) Wait(ctx context.Context) (Exit, error) {
	defer func() { _ = c.pidfd.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = c.pidfd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := c.pidfd.SyscallConn()
	if err != nil {
		return Exit{}, fmt.Errorf("wait for process %d: %w", c.id.PID, err)
	}
	early := time.Now().Add(oomEarly)
	for {
		if ctx.Err() != nil {
			return Exit{}, ctx.Err()
		}
		c.oom.sample()
		wait := oomSample
		if time.Now().Before(early) {
			wait = oomSampleEarly
		}
		_ = c.pidfd.SetReadDeadline(time.Now().Add(wait))
		if ctx.Err() != nil { // AfterFunc may have run before the line above
			return Exit{}, ctx.Err()
		}
		var werr error
		err := raw.Read(func(uintptr) bool {
			var ended bool
			ended, werr = c.ended()
			return ended || werr != nil
		})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			continue
		case errors.Join(err, werr) != nil:
			return Exit{}, fmt.Errorf("wait for process %d: %w", c.id.PID, errors.Join(err, werr))
		}
		return c.collect(), nil
	}
}

// ended looks without collecting.
func (c *Child) ended() (bool, error) {
	// unix.Siginfo has no accessor for the pid; any content means that the child has ended.
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, c.id.PID, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == unix.EINTR {
			continue
		}
		return err == nil && info.Signo == int32(unix.SIGCHLD), err
	}
}

func (c *Child) collect() Exit {
	oom := c.oom.rose()
	// The leader is not collected, so the number of its group cannot have been given to another: what is left in the group
	// descends from it, and without its worker nobody would ever end it.
	_ = unix.Kill(-c.id.PID, unix.SIGKILL)
	_ = c.cmd.Wait()
	e := Exit{Code: c.cmd.ProcessState.ExitCode()}
	if ws, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Code, e.Signal = -1, int(ws.Signal())
	}
	e.OOM = oom && e.Signal == int(unix.SIGKILL)
	return e
}
