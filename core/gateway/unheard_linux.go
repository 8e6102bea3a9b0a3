package gateway

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// giveUp has the system end a connection on which the other machine has acknowledged nothing for the time of unheard.
func giveUp(raw syscall.RawConn) {
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unheard.Milliseconds())) // fails where it is no TCP
	})
}
