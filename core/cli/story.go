package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/apiary-dev/apiary/core/contract"
)

// redrawEvery bounds how often a line on a terminal is drawn again.
const redrawEvery = 100 * time.Millisecond

// story tells on stderr what is being done, one step at a time. On a terminal the current step is one line that is drawn
// again, with a bar where the amount is known; elsewhere every step is a plain line.
type story struct {
	w        io.Writer
	terminal bool
	width    func() int
	now      func() time.Time
	stop     func() bool // ends the watch over the context of the command; nil: there is none

	mu    sync.Mutex // guards the fields below
	quiet bool       // nothing is drawn any more
	label string     // of the current step, padded: "engine "
	drawn bool       // the current line has something on it that must be erased
	last  time.Time
	long  string // the action that was last said in a pipe
}

// story begins the story of a command, which says nothing to programs. When ctx ends, as by Ctrl-C, what is drawn goes away at
// once: the command may still take a while, and a second Ctrl-C ends it where it is. The caller ends the story.
func (a *app) story(ctx context.Context) *story {
	w := a.err
	if a.json && !isTerminal(w) {
		w = io.Discard
	}
	s := newStory(w, a.getenv)
	s.stop = context.AfterFunc(ctx, s.hush)
	return s
}

// newStory tells to a file, which is looked at to see if it is a terminal, or to any other writer.
func newStory(w io.Writer, getenv func(string) string) *story {
	s := &story{w: w, now: time.Now, width: func() int { return 80 }}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && getenv("TERM") != "dumb" {
		s.terminal = true
		s.width = func() int {
			if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 20 {
				return width
			}
			return 80
		}
	}
	return s
}

// end erases what is drawn.
func (s *story) end() {
	if s.stop != nil {
		s.stop()
	}
	s.clear()
}

// hush erases what is drawn and draws nothing more.
func (s *story) hush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.quiet = true
	s.erase()
}

// step begins a step.
func (s *story) step(label string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.label, s.long, s.last = label, "", time.Time{}
}

// narrate shows a line of a job's narration.
func (s *story) narrate(n contract.Narration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.Level == "warn" || n.Level == "error" {
		s.write(s.prefix() + printable(n.Message))
		return
	}
	if !s.terminal {
		// A pipe gets one line for each thing that takes long, when it begins; how it ended is said by done.
		if n.Progress != nil && n.Action != s.long {
			s.long = n.Action
			s.write(s.prefix() + printable(n.Message))
		}
		return
	}
	if now := s.now(); s.drawn && now.Sub(s.last) < redrawEvery && !complete(n.Progress) {
		return
	} else {
		s.last = now
	}
	text := s.label + n.Message
	if p := n.Progress; p != nil && p.Total > 0 {
		text = s.label + s.bar(p.Done, p.Total) + amount(*p) + " · " + n.Message
	}
	s.draw(text)
}

func complete(p *contract.Progress) bool { return p != nil && p.Total > 0 && p.Done >= p.Total }

// done ends the step with a line that stays.
func (s *story) done(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(s.prefix() + fmt.Sprintf(format, args...))
	s.label = ""
}

// prefix is how a line of the current step begins.
func (s *story) prefix() string {
	if s.terminal {
		return s.label
	}
	return strings.TrimSpace(s.label) + ": "
}

// line prints a line that stays.
func (s *story) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.write(text)
}

// clear erases what is drawn and not to stay.
func (s *story) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
}

func (s *story) write(text string) {
	s.erase()
	_, _ = fmt.Fprintln(s.w, plain(printableLines(text), s.terminal))
}

func (s *story) erase() {
	if s.drawn {
		_, _ = io.WriteString(s.w, "\r\x1b[K")
		s.drawn = false
	}
}

func (s *story) draw(text string) {
	if s.quiet {
		return
	}
	_, _ = io.WriteString(s.w, "\r\x1b[K"+clip(printable(text), s.width()-1))
	s.drawn = true
}

// printable makes foreign text fit for one line of a terminal: control characters, which could move the cursor, are dropped, and
// those that change how the text around them looks are written as escapes.
func printable(s string) string { return escaped(s, "") }

// printableLines is printable for text of several lines.
func printableLines(s string) string { return escaped(s, "\n\t") }

func escaped(s, kept string) string {
	if !contract.HasHidden(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case !contract.Hidden(r), strings.ContainsRune(kept, r):
			b.WriteRune(r)
		case !unicode.IsControl(r):
			_, _ = fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func clip(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:max(0, width-1)]) + "…"
}

const barWidth = 20

// bar draws how much of total is done, on a terminal, and a space after it.
func (s *story) bar(done, total uint64) string {
	if !s.terminal {
		return ""
	}
	return bar(done, total) + " "
}

// bar draws how much of total is done.
func bar(done, total uint64) string {
	n := barWidth
	if done < total {
		n = int(float64(done) / float64(total) * barWidth)
	}
	return strings.Repeat("█", n) + strings.Repeat("░", barWidth-n)
}

func amount(p contract.Progress) string {
	switch p.Unit {
	case "bytes":
		if p.Done >= p.Total {
			return contract.Bytes(p.Total).String()
		}
		return contract.Bytes(p.Done).String() + " of " + contract.Bytes(p.Total).String()
	case "percent":
		return fmt.Sprintf("%d %%", p.Done*100/max(p.Total, 1))
	}
	return fmt.Sprintf("%d of %d %s", p.Done, p.Total, p.Unit)
}
