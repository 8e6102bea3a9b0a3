//go:build !linux

package llama

import "github.com/hybridgroup/yzma/pkg/llama"

// freeMemory returns the bytes that the system could give without swapping, as far as ggml knows.
func freeMemory() uint64 {
	free, _ := llama.GGMLBackendDeviceMemory(llama.GGMLBackendDeviceByType(llama.GGMLBackendDeviceTypeCPU))
	return free
}
