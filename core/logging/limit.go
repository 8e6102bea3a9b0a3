package logging

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	perSecond = 10   // lines of one site (S20)
	maxSites  = 4096 // that are remembered; a program has far fewer, records without a place are told apart by message
)

// limited is a handler that passes at most perSecond lines of each site on.
type limited struct {
	slog.Handler
	sites *sites // shared by the loggers that With and WithGroup derive
}

// Handle passes r on unless its site has had its share of this second.
func (l *limited) Handle(ctx context.Context, r slog.Record) error {
	dropped, ok := l.sites.allow(site{r.PC, messageOf(r)}, r.Time)
	if !ok {
		return nil
	}
	if dropped > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("suppressed", dropped))
	}
	return l.Handler.Handle(ctx, r)
}

// messageOf tells records apart that have no place.
func messageOf(r slog.Record) string {
	if r.PC != 0 {
		return ""
	}
	return r.Message
}

// WithAttrs keeps the limit.
func (l *limited) WithAttrs(a []slog.Attr) slog.Handler {
	return &limited{Handler: l.Handler.WithAttrs(a), sites: l.sites}
}

// WithGroup keeps the limit.
func (l *limited) WithGroup(name string) slog.Handler {
	return &limited{Handler: l.Handler.WithGroup(name), sites: l.sites}
}

// site is where a message is logged.
type site struct {
	pc      uintptr
	message string
}

// window counts the lines of a site within a second.
type window struct {
	begin   time.Time
	lines   int
	dropped int
}

type sites struct {
	mu sync.Mutex
	// mu guards the field below.
	windows map[site]*window
}

func newSites() *sites { return &sites{windows: map[site]*window{}} }

// allow counts a line of s at now. ok says whether it may be written, dropped how many were not since the last one that was.
func (s *sites) allow(key site, now time.Time) (dropped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.windows[key]
	if w == nil {
		if len(s.windows) >= maxSites {
			clear(s.windows) // a burst may pass once more: better than growing without bound
		}
		w = &window{begin: now}
		s.windows[key] = w
	}
	if age := now.Sub(w.begin); age >= time.Second || age < 0 {
		w.begin, w.lines = now, 0
	}
	if w.lines >= perSecond {
		w.dropped++
		return 0, false
	}
	w.lines++
	dropped, w.dropped = w.dropped, 0
	return dropped, true
}
