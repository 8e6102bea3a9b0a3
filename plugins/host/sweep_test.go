package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
)

func TestSweep(t *testing.T) {
	home := t.TempDir()
	open := func() *Shelf {
		t.Helper()
		s, err := OpenShelf(home)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	put := func(s *Shelf, text string) string {
		t.Helper()
		digest, _, err := s.Put(t.Context(), strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetManifest(digest, *manifest()); err != nil {
			t.Fatal(err)
		}
		return digest
	}
	sweep := func(s *Shelf) {
		t.Helper()
		if err := s.Sweep(); err != nil {
			t.Fatal(err)
		}
	}
	there := func(digest string, want bool) {
		t.Helper()
		for _, path := range []string{open().Path(digest), open().Path(digest) + ".json"} {
			if _, err := os.Stat(path); (err == nil) != want {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	one := open()
	old, now := put(one, "old"), put(one, "now")
	half := filepath.Join(home, "plugins/store/.new-1")
	if err := os.WriteFile(half, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := &config.Lock{}
	l.Put((&Candidate{Digest: now, Platform: "linux_amd64", Manifest: *manifest()}).Locked("gitea", "./gitea", config.Grants{Memory: config.DefaultPluginMemory}))
	if err := config.WriteLock(home, l); err != nil {
		t.Fatal(err)
	}

	// A command that puts files there, in whose way nobody gets.
	release, err := one.Hold()
	if err != nil {
		t.Fatal(err)
	}
	sweep(open())
	there(old, true)
	if _, err := os.Stat(half); err != nil {
		t.Error(err)
	}
	release()

	// An agent, which started when the lock file named the old one. What was put there and refused is nothing to it.
	release, err = open().Use()
	if err != nil {
		t.Fatal(err)
	}
	two := open()
	refused := put(two, "refused")
	put(two, "old") // and this one was there
	sweep(two)
	there(old, true)
	there(now, true)
	there(refused, false)
	if _, err := os.Stat(half); err == nil {
		t.Error("half a file stays")
	}
	release()

	sweep(open())
	there(old, false)
	there(now, true)
}
