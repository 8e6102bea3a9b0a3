package process

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// Bounds of what a plugin may put into the log.
const (
	maxLine    = 8 << 10
	linesASec  = 200
	maxTelling = 300
)

// lineLog puts the lines that a plugin writes into the log: at most 200 a second, each of at most 8 KiB.
type lineLog struct {
	log  *slog.Logger
	name string
	now  func() time.Time

	mu      sync.Mutex // guards the fields below
	tokens  float64
	filled  time.Time
	dropped int
	last    string // the last line
	panics  string // the first line that says why a Go program ended
}

func newLineLog(log *slog.Logger, name string) *lineLog {
	return &lineLog{log: log, name: name, now: time.Now, tokens: linesASec, filled: time.Now()}
}

// writer takes the bytes of one stream.
func (l *lineLog) writer(stream string) *lineWriter { return &lineWriter{log: l, stream: stream} }

func (l *lineLog) line(stream, text string) {
	text = strings.ToValidUTF8(strings.TrimRight(text, "\r\n"), "�")
	if text == "" {
		return
	}
	l.mu.Lock()
	l.last = cut(text, maxTelling)
	if l.panics == "" && (strings.HasPrefix(text, "panic: ") || strings.HasPrefix(text, "fatal error: ")) {
		l.panics = l.last
	}
	now := l.now()
	l.tokens = min(linesASec, l.tokens+now.Sub(l.filled).Seconds()*linesASec)
	l.filled = now
	allowed, dropped := l.tokens >= 1, 0
	if allowed {
		l.tokens--
		dropped, l.dropped = l.dropped, 0
	} else {
		l.dropped++
	}
	l.mu.Unlock()
	if dropped > 0 {
		l.log.Warn("plugin wrote too many lines", "plugin", l.name, "dropped", dropped)
	}
	if allowed {
		l.log.Warn("plugin wrote", "plugin", l.name, "stream", stream, "line", text)
	}
}

// telling is the line that says most about why the process ended.
func (l *lineLog) telling() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.panics != "" {
		return l.panics
	}
	return l.last
}

// lineWriter cuts a stream into lines.
type lineWriter struct {
	log    *lineLog
	stream string

	mu       sync.Mutex // guards the fields below
	buffer   []byte
	skipping bool // the rest of a line that was too long
}

// Write implements io.Writer. It never fails.
func (w *lineWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(b)
	for len(b) > 0 {
		part, rest, found := bytes.Cut(b, []byte("\n"))
		b = rest
		if !w.skipping {
			room := maxLine - len(w.buffer)
			w.buffer = append(w.buffer, part[:min(len(part), room)]...)
			if found || len(part) > room {
				w.log.line(w.stream, string(w.buffer))
				w.buffer = w.buffer[:0]
			}
			w.skipping = !found && len(part) > room
		} else if found {
			w.skipping = false
		}
	}
	return n, nil
}
