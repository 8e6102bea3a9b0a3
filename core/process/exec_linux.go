package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/sandbox"
)

// statusFD is where the launcher writes why it could not execute; it closes when it could.
const statusFD = 4

// exitNotExecuted is the launcher's exit code when it could not execute, as of a shell that finds no command.
const exitNotExecuted = 127

// ExecChild is the launcher "exec-child [--status-fd=N] [--sandbox=POLICY] -- PATH ARGS…": it takes the right to gain privileges
// from the calling process, switches core dumps off, closes every descriptor but 0 to 3, puts the policy in force, and becomes
// PATH. It returns only on failure, which it also writes to the status descriptor.
func ExecChild(args []string) error {
	status, policy := -1, sandbox.Policy{}
	for len(args) > 0 && args[0] != "--" {
		if v, ok := strings.CutPrefix(args[0], "--status-fd="); ok {
			n, err := strconv.Atoi(v)
			if err != nil || n <= SecretFD {
				return fault.New(fault.Invalid, "invalid_arguments", "The status descriptor of exec-child must be a number above %d, not %q.", SecretFD, v)
			}
			status = n
		} else if v, ok := strings.CutPrefix(args[0], "--sandbox="); ok {
			var err error
			if policy, err = sandbox.Decode(v); err != nil {
				return err
			}
		} else {
			break
		}
		args = args[1:]
	}
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	err := execChild(args, policy)
	if status >= 0 {
		if f := os.NewFile(uintptr(status), "status"); f != nil {
			_, werr := f.WriteString(err.Error())
			err = errors.Join(err, werr)
		}
	}
	return err
}

func execChild(args []string, policy sandbox.Policy) error {
	if len(args) == 0 || !filepath.IsAbs(args[0]) {
		return fault.New(fault.Invalid, "invalid_arguments", "exec-child needs the absolute path of a program; it is called by the agent, not by people.")
	}
	// no_new_privs belongs to the thread, and the thread that executes decides.
	runtime.LockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if err := noCore(); err != nil {
		return err
	}
	if err := closeOnExec(SecretFD + 1); err != nil {
		return err
	}
	if err := sandbox.Restrict(policy); err != nil {
		return fmt.Errorf("confine %s: %w", args[0], err)
	}
	return fmt.Errorf("execute %s: %w", args[0], unix.Exec(args[0], args, os.Environ()))
}

// closeOnExec has every descriptor from first on closed by the next exec: also those that the agent got from whoever
// started it, without the flag.
func closeOnExec(first int) error {
	err := unix.CloseRange(uint(first), ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return nil
	}
	// Linux before 5.11 has no close_range with this flag.
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("close inherited files: %w", err)
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n >= first {
			unix.CloseOnExec(n)
		}
	}
	return nil
}
