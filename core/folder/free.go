package folder

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
)

// Free tells how much an unprivileged process may still write to the file system of dir.
func Free(dir string) (contract.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("ask for free disk space: %w", err)
	}
	return contract.Bytes(uint64(st.Bavail) * uint64(st.Bsize)), nil // the types differ between systems
}
