package process

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// attributes puts the process into a group of its own, which it leads, and has the kernel kill it with the agent.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// awaitEnd returns when the process has ended and before its number is free for another.
func awaitEnd(pid int) {
	for errors.Is(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
	}
}
