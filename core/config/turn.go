package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// maxTurn bounds how long a command waits for others that change the same files, each for some milliseconds.
const maxTurn = time.Minute

// TakeTurn waits until no other command changes the configuration and the lock file of a data folder, so that what was read under
// it is still so when it is written. Who calls done lets the next one in, and so does the end of the process.
func TakeTurn(ctx context.Context, home string) (done func(), err error) {
	if err := folder.Make(home, "run"); err != nil {
		return nil, fmt.Errorf("make the run folder: %w", folder.Full(err, home, "the run folder", 0))
	}
	path := filepath.Join(home, "run", "config.lock")
	f, err := folder.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, folder.Full(err, home, "the lock of the configuration", 0))
	}
	bound, cancel := context.WithTimeout(ctx, maxTurn)
	defer cancel()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = f.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-bound.Done():
			_ = f.Close()
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fault.New(fault.Unavailable, "config_busy", "Another command changes the configuration and has not ended for %v; end it, and say this again.", maxTurn)
		}
	}
}
