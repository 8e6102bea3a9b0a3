package contract

import (
	"fmt"
	"strconv"
	"strings"
)

// Bytes is an amount of memory or disk in bytes.
type Bytes uint64

// The binary units in which people read and write amounts.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

// String gives the amount with one decimal in the largest unit that keeps it at 1 or more, for example "1.5 GiB".
func (b Bytes) String() string {
	for _, u := range []struct {
		size Bytes
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if b >= u.size {
			return fmt.Sprintf("%.1f %s", float64(b)/float64(u.size), u.name)
		}
	}
	return strconv.FormatUint(uint64(b), 10) + " B"
}

// ParseBytes reads "10MiB", "2 GiB", "1.5GB", "512KB" or a plain number of bytes. KB, MB, GB and TB are powers of
// 1,000; KiB, MiB, GiB and TiB powers of 1,024.
func ParseBytes(s string) (Bytes, error) {
	t := strings.TrimSpace(s)
	i := len(t) - len(strings.TrimLeft(t, "0123456789."))
	n, err := strconv.ParseFloat(t[:i], 64)
	unit := map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KiB": float64(KiB), "MiB": float64(MiB), "GiB": float64(GiB), "TiB": float64(TiB)}
	f, ok := unit[strings.TrimSpace(t[i:])]
	if err != nil || !ok || n < 0 || n*f >= 1<<63 {
		return 0, fmt.Errorf("%q is not an amount of bytes; write for example 512MiB or 10GiB", s)
	}
	return Bytes(n * f), nil
}
