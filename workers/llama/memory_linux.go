package llama

import (
	"bufio"
	"fmt"
	"os"
	"strings"
)

// freeMemory returns the bytes that the system could give without swapping; 0 when it does not say. ggml's own figure for the
// processor is the total.
func freeMemory() uint64 {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib uint64
		if rest, ok := strings.CutPrefix(s.Text(), "MemAvailable:"); ok {
			if _, err := fmt.Sscan(rest, &kib); err == nil {
				return kib << 10
			}
		}
	}
	return 0
}
