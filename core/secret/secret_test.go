package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/apiary-dev/apiary/core/secret"
)

func TestSecretNeverPrints(t *testing.T) {
	const canary = "canary-0123456789-canary-0123456789"
	s := secret.Secret(canary)
	holder := struct {
		S secret.Secret
		P *secret.Secret
	}{s, &s}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "s", s, "holder", holder)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "s", s, "holder", holder)
	j, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	out := log.String() + string(j) + s.String() + fmt.Sprintf("%v %s %q %x %d %#v %+v", s, s, s, s, s, s, holder)
	if strings.Contains(out, "canary") || strings.Contains(out, fmt.Sprintf("%x", canary)) {
		t.Errorf("the secret shows in %s", out)
	}
	if s.Reveal() != canary || !s.Equal(canary) || s.Equal("x") || secret.Secret("").Equal("") {
		t.Error("Reveal or Equal is wrong")
	}
}

func TestCheck(t *testing.T) {
	for _, bad := range []string{"", "  ", "\n", "short", strings.Repeat("x", 31)} {
		if secret.Check(bad) == nil {
			t.Errorf("%q passes as a secret", bad)
		}
	}
	if err := secret.Check(strings.Repeat("x", 32)); err != nil {
		t.Error(err)
	}
}

func TestLoadOrCreateRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "secrets")
	got := make([]secret.Secret, 16)
	var wg sync.WaitGroup
	for i := range got {
		wg.Go(func() {
			s, err := secret.LoadOrCreate(dir, secret.ClusterKeyFile)
			if err != nil {
				t.Error(err)
			}
			got[i] = s
		})
	}
	wg.Wait()
	for _, s := range got {
		if s.Reveal() != got[0].Reveal() || len(s.Reveal()) != 64 {
			t.Fatal("two starts got different keys")
		}
	}
	st, err := os.Stat(filepath.Join(dir, secret.ClusterKeyFile))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.key.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestLoadRefusesDamagedKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	for content, mode := range map[string]os.FileMode{"abc": 0o600, "": 0o600, strings.Repeat("ab", 32): 0o644} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := secret.Load(path); err == nil {
			t.Errorf("a key file with %d bytes and mode %v is accepted", len(content), mode)
		}
	}
}

func TestLoadDoesNotWait(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "k")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{path, dir} {
		if _, err := secret.LoadOrCreate(filepath.Dir(p), filepath.Base(p)); err == nil || !strings.Contains(err.Error(), p+" is not a regular file") {
			t.Errorf("%s: %v", p, err)
		}
	}
}

func TestDerivedSecretsDiffer(t *testing.T) {
	a := secret.ForWorker("k", "w1").Reveal()
	if a == secret.ForWorker("k", "w2").Reveal() || a == secret.ForHive("k", "w1").Reveal() || a == secret.ForWorker("j", "w1").Reveal() {
		t.Error("two derived secrets are equal")
	}
	if a != secret.ForWorker("k", "w1").Reveal() || len(a) != 64 {
		t.Error("a derived secret is not stable")
	}
}
