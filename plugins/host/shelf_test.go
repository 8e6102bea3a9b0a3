package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestShelf(t *testing.T) {
	home := t.TempDir()
	s, err := OpenShelf(home)
	if err != nil {
		t.Fatal(err)
	}
	text := []byte("#!/bin/sh\nexit 1\n")
	digest, size, err := s.Put(t.Context(), bytes.NewReader(text))
	if want := sha256.Sum256(text); err != nil || digest != hex.EncodeToString(want[:]) || size != int64(len(text)) {
		t.Fatalf("%s, %d, %v", digest, size, err)
	}
	if st, err := os.Stat(s.Path(digest)); err != nil || st.Mode().Perm() != 0o500 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if again, _, err := s.Put(t.Context(), bytes.NewReader(text)); err != nil || again != digest {
		t.Errorf("put twice: %s, %v", again, err)
	}
	if err := s.Verify(digest); err != nil {
		t.Error(err)
	}
	if _, err := s.Manifest(digest); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a manifest that nobody kept: %v", err)
	}
	m := vendor.StaticManifest{Contract: vendor.ContractVendor, Info: vendor.Info{Name: "x", Version: "1.0.0"}}
	if err := s.SetManifest(digest, m); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Manifest(digest); err != nil || !reflect.DeepEqual(*got, m) {
		t.Errorf("%+v, %v", got, err)
	}
	m.Info.Description = strings.Repeat("x", maxNotes)
	if err := s.SetManifest(digest, m); fault.KindOf(err) != fault.Invalid {
		t.Errorf("%v", err)
	}

	// A changed file, and a link in its place, are not run.
	if err := os.Chmod(s.Path(digest), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.Path(digest), []byte("#!/bin/sh\nexit 0\n"), 0o500); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(digest); fault.As(err).Code != "plugin_changed" {
		t.Errorf("%v", err)
	}
	if err := s.Sweep(); err != nil { // no lock file names it
		t.Fatal(err)
	}
	if err := s.Verify(digest); fault.As(err).Code != "plugin_missing" {
		t.Errorf("%v", err)
	}
	other := filepath.Join(home, "other")
	if err := os.WriteFile(other, text, 0o500); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, s.Path(digest)); err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(digest); err == nil {
		t.Error("a link was followed")
	}
	if left, _ := filepath.Glob(filepath.Join(home, "plugins/store/.new-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNature(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	here := runtime.GOOS + "_" + runtime.GOARCH
	for path, want := range map[string]string{write("a", "\x00asm\x01\x00\x00\x00"): "wasm", own: here, write("b", "#!/usr/bin/env python3\n"): here} {
		if _, platform, err := Nature(path); err != nil || platform != want {
			t.Errorf("%s: %s, %v", path, platform, err)
		}
	}
	foreign := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\x15\x00\x01\x00\x00\x00" + strings.Repeat("\x00", 200) // for PowerPC
	for name, text := range map[string]string{"empty": "", "text": "Dear all", "half": "\x7fELF", "foreign": foreign, "short": "MZ"} {
		if _, _, err := Nature(write(name, text)); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
