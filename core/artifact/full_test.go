package artifact

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/testutil/smalldisk"
)

// F17: on a disk that fills up, a transfer fails with one sentence that says how much is missing where, and goes on when
// there is space again, without a restart.
func TestFullDisk(t *testing.T) {
	smalldisk.Run(t, "1m", func(home string) { fillDisk(t, home) })
}

func fillDisk(t *testing.T, home string) {
	body := ggufFile(4, 0, 1, 700_000)
	web := newServer(t, body)
	s := openStore(t, home, func(o *Options) { o.Vendors = append(o.Vendors, web.vendor("w", 0)) })
	s.free = func(string) (contract.Bytes, error) { return 1 << 40, nil } // others write at the same time
	filler := write(t, s.path("views", "filler"), make([]byte, 600_000))
	check := func(err error, part string) {
		t.Helper()
		wantFault(t, err, fault.Exhausted, "no_space", part)
		if msg := err.Error(); strings.Contains(msg, ".part") || strings.Contains(msg, tmpPrefix) || strings.Count(msg, home) != 1 || !strings.Contains(msg, "are free there") {
			t.Errorf("got %s", msg)
		}
	}
	_, err := s.PullModel(t.Context(), "w:x", nil)
	check(err, "The disk that holds "+home+" is full: m-00001-of-00001.gguf needs ")
	if ms, err := s.Models(); err != nil || len(ms) > 0 {
		t.Errorf("in the catalog: %v, %v", ms, err)
	}
	// What is there already takes what is left: now the smallest file does not fit.
	if err := os.WriteFile(s.path("views", "rest"), make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	check(s.publishJSON(s.path("catalog", "models", "x.json"), strings.Repeat("x", 9000)), "x.json needs 8.8 KiB more")
	if left := files(t, s, "catalog"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := errors.Join(os.Remove(filler), os.Remove(s.path("views", "rest"))); err != nil {
		t.Fatal(err)
	}
	n := partSize(t, s)
	if _, err := s.PullModel(t.Context(), "w:x", nil); err != nil {
		t.Fatalf("with space again: %v", err)
	}
	if got := web.last().Header.Get("Range"); n == 0 || got == "" {
		t.Errorf("%d bytes were kept, asked for %q", n, got)
	}
}
