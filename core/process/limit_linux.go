package process

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// LimitMemory has the kernel refuse memory to this process beyond n bytes of data, for what no other limit of it reaches. A Go
// program ends when it is refused memory.
func LimitMemory(n int64) error {
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: uint64(n), Max: uint64(n)}); err != nil {
		return fmt.Errorf("limit the memory of this process: %w", err)
	}
	return nil
}

// sigevent is struct sigevent of the kernel, for a signal (SIGEV_SIGNAL is 0).
type sigevent struct {
	value  uint64
	signal int32
	notify int32
	_      [48]byte
}

// KillSelfAfter has the kernel kill this process after d, unless cancel is called before. It works also when no goroutine can run
// any more, because one that runs foreign code cannot be stopped and a collection of garbage waits for it.
func KillSelfAfter(d time.Duration) (cancel func(), err error) {
	var id int32
	event := sigevent{signal: int32(unix.SIGKILL)}
	if _, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_MONOTONIC, uintptr(unsafe.Pointer(&event)), uintptr(unsafe.Pointer(&id))); errno != 0 {
		return nil, fmt.Errorf("make a timer: %w", errno)
	}
	cancel = func() { _, _, _ = unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(id), 0, 0) }
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))}
	if _, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(id), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		cancel()
		return nil, fmt.Errorf("set a timer: %w", errno)
	}
	return cancel, nil
}
