//go:build !linux

package tool

import (
	"os"
	"syscall"
)

// confinement is what a program gets of its own: here nothing.
type confinement struct{ network, processes bool }

func confinements(bool) []confinement { return []confinement{{}} }

// attributes puts the process into a group of its own.
func attributes(confinement) *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func notPermitted(error) bool { return false }

// awaitEnd returns at once: this system cannot wait for a process and leave its number taken.
func awaitEnd(int) {}

func openPath(dir *os.File) string { return dir.Name() }
