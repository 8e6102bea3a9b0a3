package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
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

	label string // of the current step, padded: "engine "
	drawn bool   // the current line has something on it that must be erased
	last  time.Time
	long  string // the action that was last said in a pipe
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

// step begins a step.
func (s *story) step(label string) {
	s.label, s.long, s.last = label, "", time.Time{}
}

// narrate shows a line of a job's narration.
func (s *story) narrate(n contract.Narration) {
	if n.Level == "warn" || n.Level == "error" {
		s.line(s.prefix() + printable(n.Message))
		return
	}
	if !s.terminal {
		// A pipe gets one line for each thing that takes long, when it begins; how it ended is said by done.
		if n.Progress != nil && n.Action != s.long {
			s.long = n.Action
			s.line(s.prefix() + printable(n.Message))
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
		text = s.label + bar(p.Done, p.Total) + " " + amount(*p) + " · " + n.Message
	}
	s.draw(text)
}

func complete(p *contract.Progress) bool { return p != nil && p.Total > 0 && p.Done >= p.Total }

// done ends the step with a line that stays.
func (s *story) done(format string, args ...any) {
	s.line(s.prefix() + fmt.Sprintf(format, args...))
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
	s.clear()
	_, _ = fmt.Fprintln(s.w, text)
}

// clear erases what is drawn and not to stay.
func (s *story) clear() {
	if s.drawn {
		_, _ = io.WriteString(s.w, "\r\x1b[K")
		s.drawn = false
	}
}

func (s *story) draw(text string) {
	_, _ = io.WriteString(s.w, "\r\x1b[K"+clip(printable(text), s.width()-1))
	s.drawn = true
}

// printable drops control characters, which could move the cursor.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || (r >= 0x7f && r < 0xa0) {
			return -1
		}
		return r
	}, s)
}

func clip(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:max(0, width-1)]) + "…"
}

const barWidth = 20

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
			return megabytes(p.Total)
		}
		return megabytes(p.Done) + " of " + megabytes(p.Total)
	case "percent":
		return fmt.Sprintf("%d %%", p.Done*100/max(p.Total, 1))
	}
	return fmt.Sprintf("%d of %d %s", p.Done, p.Total, p.Unit)
}
