package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/landlock-lsm/go-landlock/landlock"
	kernel "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
)

// Kernel asks the kernel what it can do.
func Kernel() Support { return support(kernel.LandlockGetABIVersion()) }

func isDisabled(err error) bool { return errors.Is(err, unix.EOPNOTSUPP) }

func isMissing(err error) bool { return errors.Is(err, unix.ENOSYS) }

// Rights of a policy's lists. Only folders can have those that are not in onFiles.
const (
	onFiles   = kernel.AccessFSExecute | kernel.AccessFSReadFile | kernel.AccessFSWriteFile | kernel.AccessFSTruncate | kernel.AccessFSIoctlDev
	toRead    = kernel.AccessFSExecute | kernel.AccessFSReadFile | kernel.AccessFSReadDir
	toDevices = kernel.AccessFSReadFile | kernel.AccessFSWriteFile | kernel.AccessFSReadDir | kernel.AccessFSTruncate | kernel.AccessFSIoctlDev
	toWrite   = toRead | kernel.AccessFSWriteFile | kernel.AccessFSTruncate | kernel.AccessFSRemoveDir | kernel.AccessFSRemoveFile | kernel.AccessFSMakeDir |
		kernel.AccessFSMakeReg | kernel.AccessFSMakeSock | kernel.AccessFSMakeFifo | kernel.AccessFSMakeSym | kernel.AccessFSRefer
)

// config is all that the version of the interface can restrict.
func config(abi int) landlock.Config {
	return []landlock.Config{landlock.V1, landlock.V2, landlock.V3, landlock.V4, landlock.V5, landlock.V6, landlock.V7}[min(abi, Newest)-1]
}

// Restrict holds the calling thread, and what it executes, to the policy. The thread stays locked to the goroutine, and the other threads
// of the process stay as they are: the caller executes another program next. It fails where the kernel does not have the version
// that the policy names.
func Restrict(p Policy) error {
	if p.ABI == 0 {
		return nil
	}
	if have := Kernel(); p.ABI < 0 || have.ABI < p.ABI {
		return fmt.Errorf("version %d of Landlock is to be put in force, and the kernel has %d", p.ABI, have.ABI)
	}
	c := config(p.ABI)
	var rules []landlock.Rule
	for _, list := range []struct {
		paths  []string
		access landlock.AccessFSSet
	}{{p.Read, toRead}, {p.Write, toWrite}, {p.Devices, toDevices}} {
		for _, path := range list.paths {
			access := list.access & c.HandledAccessFS
			st, err := os.Stat(path)
			switch {
			case errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOTDIR):
				continue
			case err != nil:
				return fmt.Errorf("permit %s: %w", path, err)
			case !st.IsDir():
				access &= onFiles
			}
			rules = append(rules, landlock.PathAccess(access, path).IgnoreIfMissing())
		}
	}
	if p.ABI >= abiPorts {
		if p.Bind == nil {
			c.HandledAccessNet &^= kernel.AccessNetBindTCP
		}
		for _, port := range p.Bind {
			rules = append(rules, landlock.BindTCP(port))
		}
		if p.Connect == nil {
			c.HandledAccessNet &^= kernel.AccessNetConnectTCP
		}
		for _, port := range p.Connect {
			rules = append(rules, landlock.ConnectTCP(port))
		}
	}
	ruleset, flags, err := c.NewRulesetFD(rules...)
	if err != nil {
		return fmt.Errorf("make the rules: %w", err)
	}
	defer func() { _ = unix.Close(ruleset) }()
	runtime.LockOSThread() // and never unlocked
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("give up new privileges: %w", err)
	}
	if err := kernel.LandlockRestrictSelf(ruleset, flags); err != nil {
		return fmt.Errorf("put the rules in force: %w", err)
	}
	return nil
}
