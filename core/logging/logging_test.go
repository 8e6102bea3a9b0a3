package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/secret"
)

func TestFormats(t *testing.T) {
	for format, prefix := range map[string]string{"text": "time=", "json": "{", "auto": "{", "": "{"} {
		var b bytes.Buffer
		New(&b, Options{Format: format}).Info("agent started", "port", 7833)
		if !strings.HasPrefix(b.String(), prefix) || !strings.Contains(b.String(), "agent started") {
			t.Errorf("%q: %s", format, b.String())
		}
	}
}

func TestLevel(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, Options{Level: slog.LevelWarn})
	l.Info("no")
	l.Warn("yes")
	if strings.Contains(b.String(), "no") || !strings.Contains(b.String(), "yes") {
		t.Error(b.String())
	}
}

// TestForeignStrings: nothing that a stranger sends may forge a line or reach a terminal as a control, in either format.
func TestForeignStrings(t *testing.T) {
	evil := "model\nlevel=ERROR msg=\"pwned\" \x1b[2J \u009b31m \u202egnp \xff"
	for _, format := range []string{"text", "json"} {
		for name, v := range map[string]any{"string": evil, "error": errors.New(evil), "bytes": []byte(evil), "strings": []string{evil}, "stringer": stringer(evil)} {
			var b bytes.Buffer
			New(&b, Options{Format: format}).With("w", v).Info("request refused", "v", v)
			out := b.String()
			if strings.Count(out, "\n") != 1 || strings.ContainsAny(out, "\x1b\u009b\u202e") {
				t.Errorf("%s %s: %q", format, name, out)
			}
			if format == "json" && !json.Valid(b.Bytes()) {
				t.Errorf("%s: not JSON: %s", name, out)
			}
		}
	}
}

type stringer string

func (s stringer) String() string { return string(s) }

func TestLongValuesAreCut(t *testing.T) {
	var b bytes.Buffer
	New(&b, Options{Format: "json"}).Info("x", "v", strings.Repeat("é", 1<<20))
	if b.Len() > 2*maxValue || !strings.Contains(b.String(), "bytes more") {
		t.Errorf("%d bytes", b.Len())
	}
}

func TestSecretsAreHidden(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var b bytes.Buffer
		New(&b, Options{Format: format}).Info("x", "key", secret.Secret("canary"), "in", []any{secret.Secret("canary")})
		if strings.Contains(b.String(), "canary") {
			t.Error(b.String())
		}
	}
}

func TestRateLimitPerSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		l := New(&b, Options{Format: "text"})
		flood(l, 1000)
		for range 5 {
			l.Info("calm")
		}
		if n := strings.Count(b.String(), "flood"); n != perSecond {
			t.Errorf("%d lines of the flood, want %d", n, perSecond)
		}
		if n := strings.Count(b.String(), "calm"); n != 5 {
			t.Errorf("%d lines of another site, want 5", n)
		}
		b.Reset()
		time.Sleep(time.Second)
		flood(l, 1)
		if !strings.Contains(b.String(), "suppressed=990") {
			t.Errorf("the next line does not say how many were dropped: %s", b.String())
		}
		b.Reset()
		flood(l, 1)
		if strings.Contains(b.String(), "suppressed") {
			t.Errorf("counted twice: %s", b.String())
		}
	})
}

// flood is one message site; inlined it would be one for each call.
//
//go:noinline
func flood(l *slog.Logger, n int) {
	for i := range n {
		l.With("i", i).Warn("flood") // derived loggers share the limit
	}
}

func TestSitesAreBounded(t *testing.T) {
	s := newSites()
	for i := range 3 * maxSites {
		s.allow(site{message: fmt.Sprint(i)}, time.Unix(0, 0))
	}
	if len(s.windows) > maxSites {
		t.Errorf("%d sites", len(s.windows))
	}
}

func TestFileRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.log")
	f, err := OpenFile(path, 100, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		if _, err := fmt.Fprintf(f, "%02d%s\n", i, strings.Repeat(".", 37)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("write after close: %v", err)
	}
	for name, first := range map[string]string{"": "08", ".1": "06", ".2": "04"} {
		b, err := os.ReadFile(path + name)
		if err != nil || len(b) != 80 || !strings.HasPrefix(string(b), first) {
			t.Errorf("agent.log%s: %v %q", name, err, b)
		}
		if st, err := os.Stat(path + name); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("agent.log%s: mode %v %v", name, st.Mode(), err)
		}
	}
	if _, err := os.Stat(path + ".3"); !errors.Is(err, os.ErrNotExist) {
		t.Error("a third old file was kept")
	}
}

func TestFileContinuesAndSurvivesRefusedRename(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.log")
	if err := os.WriteFile(path, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A folder that is not empty in the place of the old file cannot be replaced by a rename.
	if err := os.MkdirAll(filepath.Join(path+".1", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(path, 8, 1)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := f.Write([]byte("new line\n")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(path)
	if want := "old\n" + strings.Repeat("new line\n", 4); string(b) != want {
		t.Errorf("%q", b)
	}
}

func TestFileIsRegular(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// With a reader the open succeeds; without one it must not wait.
	if _, err := OpenFile(path, 10, 1); err == nil {
		t.Error("a FIFO without a reader is taken")
	}
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	if _, err := OpenFile(path, 10, 1); err == nil || !strings.Contains(err.Error(), path+" is not a regular file") {
		t.Errorf("a FIFO with a reader: %v", err)
	}
}

func TestFileWithoutOldOnes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.log")
	f, err := OpenFile(path, 10, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		_, _ = f.Write([]byte("12345678\n"))
	}
	_ = f.Close()
	if b, _ := os.ReadFile(path); len(b) != 9 {
		t.Errorf("%q", b)
	}
}
