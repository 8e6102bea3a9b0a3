package sdk

import (
	"bytes"
	"os"
	"strconv"

	"github.com/apiary-dev/apiary/core/contract"
)

// residentMemory returns the memory of this process that is in RAM, 0 when it cannot be told.
func residentMemory() contract.Bytes {
	b, err := os.ReadFile("/proc/self/statm") // size, resident, … in pages (proc_pid_statm(5))
	if err != nil {
		return 0
	}
	f := bytes.Fields(b)
	if len(f) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(string(f[1]), 10, 64)
	if err != nil {
		return 0
	}
	return contract.Bytes(pages * uint64(os.Getpagesize()))
}
