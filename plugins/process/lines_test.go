package process

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"
)

// TestLines: what a plugin writes comes to the log in lines that are whole, short, few and clean.
func TestLines(t *testing.T) {
	var out bytes.Buffer
	l := newLineLog(slog.New(slog.NewTextHandler(&out, nil)), "p")
	now := time.Now()
	l.now, l.filled = func() time.Time { return now }, now
	w := l.writer("stderr")
	for _, part := range []string{"one ", "line\r\nand", " two\n\n", "\xff\n", strings.Repeat("x", maxLine+10), "rest of it\n", "after\n"} {
		if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatal(n, err)
		}
	}
	text := out.String()
	for _, want := range []string{`line="one line"`, `line="and two"`, `line="�"`, "line=" + strings.Repeat("x", maxLine) + "\n", "line=after"} {
		if !strings.Contains(text, want) {
			t.Errorf("the log lacks %.40q", want)
		}
	}
	if n := strings.Count(text, "\n"); n != 5 || strings.Contains(text, "rest of it") {
		t.Errorf("%d lines: %s", n, text)
	}

	out.Reset()
	for range 1000 {
		_, _ = w.Write([]byte("flood\n"))
	}
	if n := strings.Count(out.String(), "line=flood"); n != linesASec-5 {
		t.Errorf("%d lines at once", n)
	}
	out.Reset()
	now = now.Add(time.Second / 2)
	for range 1000 {
		_, _ = w.Write([]byte("flood\n"))
	}
	if n := strings.Count(out.String(), "line=flood"); n != linesASec/2 {
		t.Errorf("%d lines in half a second", n)
	}
	if !strings.Contains(out.String(), "dropped=805") {
		t.Errorf("the log does not say how many lines it lacks: %.200s", out.String())
	}
	if l.telling() != "flood" {
		t.Errorf("the telling line is %q", l.telling())
	}
	for _, line := range []string{"panic: oh no\n", "goroutine 1 [running]:\n", "main.go:7\n"} {
		_, _ = w.Write([]byte(line))
	}
	if l.telling() != "panic: oh no" {
		t.Errorf("the telling line is %q", l.telling())
	}
}
