//go:build unix

package httpd

import (
	"math"
	"syscall"
)

// reservedFiles are kept for what is not a client's connection: listeners, connections between agents and to workers, logs,
// catalogs.
const reservedFiles = 64

// connectionsByFiles is how many clients a server may have open at once without using up the descriptors of the process. Each
// may cost one towards a worker too, and an agent runs two servers.
func connectionsByFiles() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur > math.MaxInt32 {
		return math.MaxInt32
	}
	return max(8, (int(l.Cur)-reservedFiles)/3)
}
