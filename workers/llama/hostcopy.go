package llama

import "golang.org/x/sys/unix"

// hostCopy is the state of a sequence outside the KV cache. It lies outside the Go heap: gigabytes of it there would double
// the memory that the collector lets the process use.
type hostCopy struct {
	tokens []int32
	data   []byte
	used   uint64 // the cache's clock at the last use
}

// newHostCopy returns a copy with room for size bytes, or nil when the system gives none.
func newHostCopy(size int) *hostCopy {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil
	}
	return &hostCopy{data: b}
}

func (c *hostCopy) free() {
	if c.data != nil {
		_ = unix.Munmap(c.data) // fails for a wrong address only
		c.data = nil
	}
}
