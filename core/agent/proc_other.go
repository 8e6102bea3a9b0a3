//go:build !linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Stop sends the agent that r describes a SIGTERM and waits until it has ended. Without pidfds the process is only known by
// its number.
func Stop(ctx context.Context, r RunFile, patience time.Duration) (bool, error) {
	if !alive(r.Process) {
		return false, nil
	}
	for _, wait := range []time.Duration{patience, 15 * time.Second} {
		if err := syscall.Kill(r.Process.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return false, fmt.Errorf("stop the agent: %w", err)
		}
		for deadline := time.Now().Add(wait); time.Now().Before(deadline); {
			select {
			case <-ctx.Done():
				return false, ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
			if !alive(r.Process) {
				return true, nil
			}
		}
	}
	return false, fmt.Errorf("the agent (process %d) does not end", r.Process.PID)
}

func alive(id contract.Identity) bool {
	return id.PID > 1 && syscall.Kill(id.PID, 0) == nil
}

func self() (contract.Identity, error) { return contract.Identity{PID: os.Getpid()}, nil }
