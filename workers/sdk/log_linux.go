package sdk

import (
	"os"

	"golang.org/x/sys/unix"
)

// appendedLog returns the path of the regular file behind descriptor 2 when it is open for appending, as a hive opens it, and
// "" otherwise: only such a file can be cut while it is written to.
func appendedLog() string {
	var st unix.Stat_t
	if unix.Fstat(2, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ""
	}
	if flags, err := unix.FcntlInt(2, unix.F_GETFL, 0); err != nil || flags&unix.O_APPEND == 0 {
		return ""
	}
	path, err := os.Readlink("/proc/self/fd/2")
	if err != nil {
		return ""
	}
	return path
}
