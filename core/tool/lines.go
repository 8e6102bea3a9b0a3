package tool

import (
	"bytes"
	"regexp"
	"strings"
	"time"
)

// Bounds of what is kept of an output, however much there is.
const (
	maxLines = 12          // the last ones
	maxLine  = 400         // bytes
	linePace = time.Second // between the lines that are told while the program runs
)

// escapes are the sequences by which programs colour a terminal.
var escapes = regexp.MustCompile("\x1b\\[[0-9;?]*[A-Za-z]")

// lines cuts an output into lines and keeps the last ones. It is used by one goroutine.
type lines struct {
	each func(line string)
	next time.Time // before then each is not called
	part []byte    // of the line that is not complete; at most maxLine
	last [][]byte  // as they came
}

// Write implements io.Writer. It never fails.
func (l *lines) Write(p []byte) (int, error) {
	for rest := p; ; {
		i := bytes.IndexAny(rest, "\n\r")
		if i < 0 {
			l.part = append(l.part, rest[:min(len(rest), maxLine-len(l.part))]...)
			return len(p), nil
		}
		l.part = append(l.part, rest[:min(i, maxLine-len(l.part))]...)
		l.end()
		rest = rest[i+1:]
	}
}

// end takes what there is as a line.
func (l *lines) end() {
	if len(bytes.TrimSpace(l.part)) == 0 {
		l.part = l.part[:0]
		return
	}
	line := l.part
	if l.part = nil; len(l.last) == maxLines { // the room of the oldest is used again: there may be millions
		l.part = l.last[0][:0]
		copy(l.last, l.last[1:])
		l.last = l.last[:maxLines-1]
	}
	l.last = append(l.last, line)
	if l.each != nil && time.Now().After(l.next) {
		l.next = time.Now().Add(linePace)
		if text := clean(line); text != "" {
			l.each(text)
		}
	}
}

// kept returns the last lines.
func (l *lines) kept() []string {
	var out []string
	for _, line := range l.last {
		if text := clean(line); text != "" {
			out = append(out, text)
		}
	}
	return out
}

// clean makes a line harmless on a terminal.
func clean(line []byte) string {
	text := escapes.ReplaceAllString(strings.ToValidUTF8(string(line), "?"), "")
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, text))
}
