package process

import (
	"errors"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// way is how a process is started.
type way struct {
	processes bool // with a process table of its own: what it starts ends with it, also what left its group
	user      bool // by the way of a user namespace, which is open to those who are not root
}

// ways lists them, from the one that is wanted to the one that every system permits.
func ways() []way {
	all := []way{{true, false}, {true, true}, {}}
	if os.Geteuid() != 0 {
		return all[1:]
	}
	return all
}

// attributes puts the process into a group of its own, which it leads, and has the kernel kill it with the agent.
func attributes(w way) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if w.processes {
		a.Cloneflags |= unix.CLONE_NEWPID
	}
	if w.user {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// notPermitted reports whether a start failed because the system does not permit what is wanted, or does not have it.
func notPermitted(err error) bool {
	return slices.ContainsFunc([]syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.ENOSPC, syscall.ENOSYS, syscall.EUSERS}, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// awaitEnd returns when the process has ended and before its number is free for another.
func awaitEnd(pid int) {
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
}
