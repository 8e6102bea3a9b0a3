package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/smalldisk"
)

func TestCredentials(t *testing.T) {
	home := t.TempDir()
	s := OpenCredentials(home)
	if l, err := s.List(); err != nil || len(l) != 0 {
		t.Fatal(l, err)
	}
	if err := s.Set("npm", "one", []string{"npm.example.org"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Set("npm", "two", []string{"npm.example.org", "other.example.org:8443"}); err != nil {
		t.Fatal(err)
	}
	if err := s.Set("another", "three", []string{"10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	l, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	want := []Credential{{"another", "three", []string{"10.0.0.1"}}, {"npm", "two", []string{"npm.example.org", "other.example.org:8443"}}}
	if d := cmp.Diff(want, l); d != "" || l[1].Value.Reveal() != "two" {
		t.Error(d)
	}
	dir := filepath.Join(home, "secrets", "credentials")
	entries, _ := os.ReadDir(dir)
	if len(entries) != 2 {
		t.Errorf("%d files", len(entries))
	}
	if st, _ := os.Stat(dir); st.Mode().Perm() != 0o700 {
		t.Error(st.Mode())
	}
	if st, _ := os.Stat(filepath.Join(dir, "npm")); st.Mode().Perm() != 0o600 {
		t.Error(st.Mode())
	}
	if err := s.Remove("npm"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove("npm"); fault.KindOf(err) != fault.NotFound {
		t.Error(err)
	}
}

func TestCredentialsRefused(t *testing.T) {
	s := OpenCredentials(t.TempDir())
	ok := []string{"npm.example.org"}
	for name, c := range map[string]struct {
		name  string
		value secret.Secret
		hosts []string
	}{
		"empty name": {"", "v", ok}, "path": {"../cluster.key", "v", ok}, "dots": {"a..b", "v", ok}, "upper": {"NPM", "v", ok}, "hidden": {".npm", "v", ok},
		"slash": {"a/b", "v", ok}, "empty": {"npm", "", ok}, "blank": {"npm", " \n", ok}, "line break": {"npm", "a\nX-Evil: 1", ok},
		"no hosts": {"npm", "v", nil}, "url": {"npm", "v", []string{"https://npm.example.org/"}}, "empty host": {"npm", "v", []string{""}},
	} {
		if err := s.Set(c.name, c.value, c.hosts); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Remove(c.name); err == nil {
			t.Errorf("%s was stored", name)
		}
	}
}

func TestCredentialsOnAFullDisk(t *testing.T) {
	smalldisk.Run(t, "64k", func(home string) {
		s := OpenCredentials(home)
		if err := s.Set("npm", "one", []string{"npm.example.org"}); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, "filler"), make([]byte, 128<<10), 0o600); err == nil {
			t.Fatal("the disk is not full")
		}
		err := s.Set("other", "two", []string{"npm.example.org"})
		if f := fault.As(err); f == nil || f.Code != "no_space" || !strings.HasPrefix(f.Message, "The disk that holds "+home+" is full: the credential other needs ") || strings.Contains(f.Message, ".new-") {
			t.Errorf("got %v", err)
		}
		if l, err := s.List(); err != nil || len(l) != 1 {
			t.Errorf("%v, %v", l, err)
		}
	})
}

// S14: the store is not looked for at the end of a link, and not where others may write.
func TestCredentialFolders(t *testing.T) {
	for name, spoil := range map[string]func(home string) error{
		"link": func(home string) error { return os.Symlink(t.TempDir(), filepath.Join(home, "secrets")) },
		"link inside": func(home string) error {
			return errors.Join(os.Mkdir(filepath.Join(home, "secrets"), 0o700), os.Symlink(t.TempDir(), filepath.Join(home, "secrets", "credentials")))
		},
		"writable": func(home string) error {
			return errors.Join(os.Mkdir(filepath.Join(home, "secrets"), 0o700), os.Chmod(filepath.Join(home, "secrets"), 0o770))
		},
	} {
		home := t.TempDir()
		if err := spoil(home); err != nil {
			t.Fatal(err)
		}
		s := OpenCredentials(home)
		_, listed := s.List()
		for what, err := range map[string]error{"set": s.Set("npm", "v", []string{"npm.example.org"}), "list": listed, "remove": s.Remove("npm")} {
			if f := fault.As(err); f == nil || f.Code != folder.CodeUnsafe {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
	}
}

func TestDamagedCredentials(t *testing.T) {
	home := t.TempDir()
	s := OpenCredentials(home)
	if err := s.Set("npm", "value", []string{"h"}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(home, "secrets", "credentials", "npm")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "chmod 600") {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(path, 0o600)
	if _, err := s.List(); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
	if err := s.Set("npm", "again", []string{"h"}); err != nil {
		t.Fatal(err)
	}
	if l, err := s.List(); err != nil || len(l) != 1 {
		t.Error(l, err)
	}
}

// TestCredentialsAreAtomic: a reader sees one whole credential or the other while they are replaced.
func TestCredentialsAreAtomic(t *testing.T) {
	s := OpenCredentials(t.TempDir())
	values := []secret.Secret{secret.Secret(strings.Repeat("a", 4000)), secret.Secret(strings.Repeat("b", 3))}
	if err := s.Set("npm", values[0], []string{"h"}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for _, v := range values {
		wg.Go(func() {
			for range 20 {
				if err := s.Set("npm", v, []string{"h"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 200 {
		c, err := s.get("npm")
		if err != nil || c.Value != values[0] && c.Value != values[1] {
			t.Fatalf("%d bytes %v", len(c.Value), err)
		}
	}
	wg.Wait()
}

func TestCredentialLookup(t *testing.T) {
	s := OpenCredentials(t.TempDir())
	for _, name := range []string{"npm", "stored"} {
		if err := s.Set(name, secret.Secret("store-"+name), []string{"npm.example.org", "mirror.example.org:8443"}); err != nil {
			t.Fatal(err)
		}
	}
	c := &Config{Credentials: []Credential{{"npm", "file-npm", []string{"npm.example.org"}}}}
	lookup := c.CredentialLookup(s)
	for _, x := range []struct{ name, host, want string }{
		{"npm", "npm.example.org", "file-npm"},
		{"npm", "NPM.example.org:443", "file-npm"},
		{"npm", "npm.example.org:80", ""},
		{"npm", "evil.example.org", ""},
		{"npm", "npm.example.org.evil.org", ""},
		{"npm", "mirror.example.org:8443", ""}, // the file's entry hides the store's
		{"stored", "mirror.example.org:8443", "store-stored"},
		{"stored", "mirror.example.org", ""},
		{"stored", "", ""},
		{"../stored", "npm.example.org", ""},
		{"none", "npm.example.org", ""},
	} {
		if got, err := lookup(x.name, x.host); err != nil || got.Reveal() != x.want {
			t.Errorf("%s %s: %q, %v", x.name, x.host, got.Reveal(), err)
		}
	}
	// One that cannot be read is told of: without it, the host's refusal would be a riddle.
	for _, damaged := range []string{"", "{", `{"value":"v"}`, `{"value":"","hosts":["npm.example.org"]}`, "\x00\x00"} {
		if err := os.WriteFile(filepath.Join(s.dir, "stored"), []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := lookup("stored", "npm.example.org")
		if f := fault.As(err); f == nil || f.Code != "credential_damaged" || !strings.Contains(f.Message, "`apiary credential set stored`") {
			t.Errorf("%q: %v", damaged, err)
		}
	}
}
