package artifact

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// A source that says no length, or too much, fills no disk and leaves nothing behind that is of no use.
func TestTooLong(t *testing.T) {
	t.Parallel()
	for name, announce := range map[string]bool{"announced": true, "endless": false} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if announce {
					w.Header().Set("Content-Length", "1099511627776")
				}
				buf := make([]byte, 64<<10)
				for r.Context().Err() == nil {
					n, err := w.Write(buf)
					if sent.Add(int64(n)); err != nil {
						return
					}
				}
			}))
			defer srv.Close()
			for _, digest := range []string{"", sum256(nil)} {
				v := &webVendor{scheme: "w", man: vendor.Manifest{Reference: "w:x", Format: "gguf", Files: []vendor.File{{
					Path: "m.gguf", Size: -1, Digests: vendor.Digests{SHA256: digest}, Sources: []vendor.Source{{URL: srv.URL}},
				}}}}
				s, _, err := pull(t, v, func(o *Options) { o.MaxFile = 1 << 20 })
				wantFault(t, err, fault.Unavailable, "source_too_large", "1.0 MiB")
				if left := files(t, s, "partial"); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			}
			if n := sent.Load(); n > 64<<20 {
				t.Errorf("%d bytes were read", n)
			}
		})
	}
}

// Of a transfer that failed, only what can be gone on with stays.
func TestHopelessPartial(t *testing.T) {
	t.Parallel()
	body := ggufFile(9, 0, 1, 400_000)
	for name, c := range map[string]struct {
		prepare func(*server)
		pinned  bool
		stays   bool
	}{
		"not found":             {func(w *server) { w.status, w.statusTimes = 404, 99 }, true, false},
		"busy":                  {func(w *server) { w.status, w.statusTimes = 503, 99 }, true, false},
		"cut, pinned":           {func(w *server) { w.cutAt, w.ignoreRange = 100_000, true }, true, true},
		"cut, an etag":          {func(w *server) { w.cutAt, w.ignoreRange = 100_000, true }, false, true},
		"cut, nothing to prove": {func(w *server) { w.cutAt, w.ignoreRange, w.noETag = 100_000, true, true }, false, false},
		"another size":          {func(w *server) { w.bodies[0] = append(w.bodies[0], 0) }, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newServer(t, append([]byte(nil), body...))
			v := w.vendor("w", 0)
			if !c.pinned {
				v.man.Files[0].Digests = vendor.Digests{}
			}
			c.prepare(w)
			s, _, err := pull(t, v, nil)
			if err == nil {
				t.Fatal("no error")
			}
			if left := files(t, s, "partial"); (len(left) > 0) != c.stays {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// What is in quarantine is for a look at it, and has a bound: the oldest go first.
func TestQuarantineIsBounded(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	jail := func(i, size int) string {
		p := write(t, s.path("partial", "x.part"), make([]byte, size))
		at := time.Now().Add(time.Duration(i-1000) * time.Second)
		if err := os.Chtimes(p, at, at); err != nil {
			t.Fatal(err)
		}
		sum := fmt.Sprintf("%032d", i)
		if _, err := s.quarantine(p, sum); err != nil {
			t.Fatal(err)
		}
		return sum
	}
	for i := range maxQuarantined + 3 {
		jail(i, 10)
	}
	left := files(t, s, "quarantine")
	if len(left) != maxQuarantined || strings.Contains(strings.Join(left, " "), fmt.Sprintf("%032d", 2)) || !strings.Contains(strings.Join(left, " "), fmt.Sprintf("%032d", 3)) {
		t.Errorf("left: %v", left)
	}
	s.maxQuarantine = 25
	last := jail(900, 10)
	if left := files(t, s, "quarantine"); len(left) != 2 || !strings.Contains(strings.Join(left, " "), last) {
		t.Errorf("left: %v", left)
	}
	jail(901, 26)
	if left := files(t, s, "quarantine"); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
