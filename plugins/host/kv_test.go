package host

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state", "hf.json")
	s := OpenStore(path)
	now := time.Unix(1_000_000, 0)
	s.now = func() time.Time { return now }
	ctx := t.Context()
	for _, x := range []struct {
		key, value string
		ttl        int64
	}{{"etag", "abc", 0}, {"short", "lived", 10}, {"gone", "x", 0}, {"gone", "", 0}} {
		if err := s.Set(ctx, x.key, []byte(x.value), x.ttl); err != nil {
			t.Fatal(err)
		}
	}
	again := OpenStore(path)
	again.now = s.now
	for key, want := range map[string]string{"etag": "abc", "short": "lived", "gone": "", "never": ""} {
		if got, err := again.Get(ctx, key); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", key, got, err)
		}
	}
	now = now.Add(10 * time.Second)
	if got, _ := again.Get(ctx, "short"); got != nil {
		t.Errorf("after its time: %q", got)
	}
}

func TestStoreBounds(t *testing.T) {
	s := OpenStore("")
	ctx := t.Context()
	for name, err := range map[string]error{
		"bad_key":         s.Set(ctx, strings.Repeat("k", maxKey+1), nil, 0),
		"value_too_large": s.Set(ctx, "k", make([]byte, maxValue+1), 0),
		"bad_ttl":         s.Set(ctx, "k", nil, -1),
	} {
		if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != name {
			t.Errorf("%s: %v", name, err)
		}
	}
	var full error
	for i := 0; full == nil && i < 100; i++ {
		full = s.Set(ctx, strings.Repeat("k", i+1), bytes.Repeat([]byte{1}, maxValue), 0)
	}
	if e, ok := errors.AsType[*vendor.Error](full); !ok || e.Code != "store_full" || fault.KindOf(Fault(full)) != fault.Exhausted {
		t.Errorf("%v", full)
	}
	// Replacing needs no more room.
	if err := s.Set(ctx, "k", []byte("small"), 0); err != nil {
		t.Error(err)
	}
}

func TestStoreForgetsWhatItCannotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hf.json")
	for _, text := range []string{"", "null", "[1]", `{"a":`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := OpenStore(path)
		if err := s.Set(t.Context(), "a", []byte("b"), 0); err != nil {
			t.Errorf("after %q: %v", text, err)
		}
	}
}
