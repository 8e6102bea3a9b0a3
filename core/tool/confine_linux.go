package tool

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// confinement is what a program gets of its own.
type confinement struct {
	network   bool // none but its own
	processes bool // a process table, whose processes end with the program
	user      bool // by the way of a user namespace, which is open to those who are not root
}

// confinements lists the ways to start a program, from the one that is wanted to the one that every system permits.
func confinements(network bool) []confinement {
	ways := []confinement{{!network, true, false}, {!network, true, true}, {!network, false, true}, {}}
	if os.Geteuid() != 0 {
		ways = ways[1:]
	}
	return slices.Compact(ways)
}

// attributes puts the process into a group of its own and has the kernel kill it with the agent.
func attributes(c confinement) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if c.network {
		a.Cloneflags |= unix.CLONE_NEWNET
	}
	if c.processes {
		a.Cloneflags |= unix.CLONE_NEWPID
	}
	if c.user && a.Cloneflags != 0 {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Geteuid(), HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getegid(), HostID: os.Getegid(), Size: 1}}
	}
	return a
}

// notPermitted reports whether a start failed because the system does not permit the confinement, or does not have it.
func notPermitted(err error) bool {
	return slices.ContainsFunc([]syscall.Errno{syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.ENOSPC, syscall.ENOSYS, syscall.EUSERS}, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// awaitEnd returns when the process has ended and before its number is free for another.
func awaitEnd(pid int) {
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
}

// openPath names the folder that is open, wherever its name leads by now.
func openPath(dir *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", dir.Fd()) }
