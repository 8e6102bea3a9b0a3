//go:build !linux

package sdk

// appendedLog finds no path here: the log is not rotated.
func appendedLog() string { return "" }
