package process

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

func TestLogTail(t *testing.T) {
	path := filepath.Join(t.TempDir(), "worker.log")
	if got := LogTail(path, 20); len(got) != 0 || got == nil {
		t.Errorf("a missing log gave %#v, want an empty list", got)
	}
	text := strings.Repeat("an early line\n", 100) + "\x1b[31mred\x1b[0m\ttext\x00\r\n" + "bad \xff bytes\n" + strings.Repeat("é", 400) + "\nlast\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"an early line", "red text?", "bad ? bytes", strings.Repeat("é", 250), "last"}
	if got := LogTail(path, 5); !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	if got := LogTail(path, 1000); len(got) != 104 {
		t.Errorf("got %d lines of a log of 104", len(got))
	}
	if got := LogTail(path, 0); len(got) != 0 {
		t.Errorf("got %q for no lines", got)
	}
	link, pipe := filepath.Join(filepath.Dir(path), "link"), filepath.Join(filepath.Dir(path), "pipe")
	if err := errors.Join(os.Symlink(path, link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, odd := range []string{link, pipe} {
		if got := LogTail(odd, 5); len(got) != 0 {
			t.Errorf("%s gave %q", odd, got)
		}
		if err := Rotate(odd, 0, 3); err != nil {
			t.Error(err)
		}
	}
	// A flood without an end of line.
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 1<<20)), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := LogTail(path, 2); len(got) != 1 || len(got[0]) != maxLine {
		t.Errorf("a flood gave %d lines", len(got))
	}
}

func FuzzSanitise(f *testing.F) {
	f.Add("\x1b[1;31m\xff\x00plain\x7f")
	f.Fuzz(func(t *testing.T, s string) {
		got := sanitise(s)
		if len(got) > maxLine || !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			t.Errorf("sanitise(%q) = %q", s, got)
		}
	})
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "worker.log")
	if err := Rotate(path, 10, 3); err != nil {
		t.Fatalf("a missing log: %v", err)
	}
	w, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	write := func(s string) {
		if _, err := w.WriteString(s); err != nil {
			t.Fatal(err)
		}
		if err := Rotate(path, 10, 3); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return string(b)
	}
	write("short")
	if read("worker.log") != "short" || read("worker.log.1") != "" {
		t.Error("a short log was rotated")
	}
	write(" and long")
	write("the second")
	write("the third, far longer than ten bytes")
	write("the fourth")
	write("rest")
	got := []string{read("worker.log"), read("worker.log.1"), read("worker.log.2"), read("worker.log.3"), read("worker.log.4")}
	want := []string{"rest", "the fourth", " ten bytes", "the second", ""}
	if !slices.Equal(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
}
