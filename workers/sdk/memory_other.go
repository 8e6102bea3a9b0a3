//go:build !linux

package sdk

import (
	"runtime"

	"github.com/apiary-dev/apiary/core/contract"
)

// residentMemory returns what the Go runtime got from the system; the engine's own memory cannot be told here.
func residentMemory() contract.Bytes {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return contract.Bytes(m.Sys)
}
