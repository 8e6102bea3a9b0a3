//go:build !linux

package sandbox

import "runtime"

// Kernel says that there is nothing on this platform.
func Kernel() Support {
	return Support{Why: "Landlock is a part of Linux, so on " + runtime.GOOS + " it is not confined what workers and plugins may read and write."}
}

func isDisabled(error) bool { return false }

func isMissing(error) bool { return false }

// Restrict does nothing here.
func Restrict(Policy) error { return nil }
