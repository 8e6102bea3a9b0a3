package contract_test

import (
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
)

func TestParseBytes(t *testing.T) {
	for in, want := range map[string]contract.Bytes{
		"0": 0, "17": 17, "512B": 512, "1KB": 1000, "1KiB": 1024, "10MiB": 10 << 20, "2 GiB": 2 << 30, "1.5GB": 1_500_000_000, " 1TiB ": 1 << 40,
	} {
		got, err := contract.ParseBytes(in)
		if err != nil || got != want {
			t.Errorf("ParseBytes(%q) = %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "MiB", "-1", "-1MiB", "10mib", "10 apples", "1e3", "99999999TiB", "NaN", "1..2GiB"} {
		if got, err := contract.ParseBytes(in); err == nil {
			t.Errorf("ParseBytes(%q) = %d, want an error", in, got)
		}
	}
}

func TestBytesString(t *testing.T) {
	for in, want := range map[contract.Bytes]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536 << 20: "1.5 GiB", 3 << 40: "3.0 TiB"} {
		if got := in.String(); got != want {
			t.Errorf("Bytes(%d) = %q, want %q", uint64(in), got, want)
		}
	}
}
