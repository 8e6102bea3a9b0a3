package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/process"
)

// Stop sends the agent that r describes a SIGTERM and waits until it has ended; it does not touch workers. When it still
// runs after patience, a second SIGTERM makes it hurry. It reports false, without a signal, when that agent is not running any
// more. The signal goes through a pidfd whose process was verified after the descriptor was opened, so that it cannot
// meet another process that got the same number.
func Stop(ctx context.Context, r RunFile, patience time.Duration) (bool, error) {
	fd, err := unix.PidfdOpen(r.Process.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open the agent's process: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if !alive(r.Process) {
		return false, nil
	}
	for _, wait := range []time.Duration{patience, 15 * time.Second} {
		if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return false, fmt.Errorf("stop the agent: %w", err)
		}
		for deadline := time.Now().Add(wait); time.Now().Before(deadline); {
			if err := ctx.Err(); err != nil {
				return false, err
			}
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
			if err != nil && !errors.Is(err, unix.EINTR) {
				return false, fmt.Errorf("wait for the agent: %w", err)
			}
			if n > 0 {
				return true, nil
			}
		}
	}
	return false, fmt.Errorf("the agent (process %d) does not end", r.Process.PID)
}

// alive reports whether id names a process that runs now.
func alive(id contract.Identity) bool {
	boot, err := process.BootID()
	if err != nil || boot != id.BootID || id.PID <= 1 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", id.PID))
	if err != nil {
		return false
	}
	// The command name is in parentheses and may hold spaces and parentheses; state is the first field after it.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 || f[0][0] == 'Z' || f[0][0] == 'X' {
		return false
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	return err == nil && start == id.StartTicks
}

func self() (contract.Identity, error) { return process.Self("") }
