package wasm

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	maxLine        = 1 << 10 // bytes of a line that a guest prints; the rest is left out
	linesPerSecond = 200
)

// limiter writes to a log, and no more than linesPerSecond.
type limiter struct {
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex // guards the fields below
	since   time.Time
	lines   int // since then
	dropped int
}

func newLimiter(log *slog.Logger) *limiter { return &limiter{log: log, now: time.Now} }

// line writes one line, or counts it where there were too many within a second.
func (l *limiter) line(level slog.Level, message string, attrs ...any) {
	l.mu.Lock()
	now := l.now()
	if now.Sub(l.since) >= time.Second {
		l.since, l.lines = now, 0
	}
	l.lines++
	drop := l.lines > linesPerSecond
	dropped := l.dropped
	if drop {
		l.dropped++
	} else {
		l.dropped = 0
	}
	l.mu.Unlock()
	if drop {
		return
	}
	if dropped > 0 {
		l.log.Warn("lines of a plugin were left out", "lines", dropped)
	}
	l.log.Log(context.Background(), level, message, attrs...)
}

// output is what a guest prints: lines for the log.
type output struct {
	in     *instance
	stream string
	level  slog.Level
	line   []byte // what came of a line that has not ended
}

func (o *output) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		o.in.stopIfDone()
		part, rest, ended := bytes.Cut(p, []byte{'\n'})
		o.line = append(o.line, part[:min(len(part), maxLine-len(o.line))]...)
		p = rest
		if ended {
			if len(o.line) > 0 {
				o.in.m.out.line(o.level, "plugin printed", "stream", o.stream, "line", string(o.line))
			}
			o.line = o.line[:0]
		}
	}
	return n, nil
}
