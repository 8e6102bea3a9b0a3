//go:build !linux

package process

import "syscall"

// way is how a process is started.
type way struct{ processes bool }

// ways lists the only one that there is here.
func ways() []way { return []way{{}} }

// attributes puts the process into a group of its own, which it leads. It notices by itself when the agent is gone.
func attributes(way) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// notPermitted reports whether another way is to be tried.
func notPermitted(error) bool { return false }

// awaitEnd returns at once: this system cannot wait for a process and leave its number taken.
func awaitEnd(int) {}
