//go:build !linux

package process

import "syscall"

// attributes puts the process into a group of its own, which it leads. It notices by itself when the agent is gone.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// awaitEnd returns at once: this system cannot wait for a process and leave its number taken.
func awaitEnd(int) {}
