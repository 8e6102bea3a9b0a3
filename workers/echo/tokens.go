package echo

import (
	"context"
	"time"
	"unicode/utf8"
)

// maxToken bounds a token in bytes.
const maxToken = 4 << 10

// tokens cuts a text into tokens whose concatenation is the text: a word with the space before it. A rune that is not ASCII
// is cut after its first byte, as byte-level vocabularies do.
type tokens struct {
	text  string
	again bool // start over at the end
	pos   int
}

// next returns the next token, "" at the end.
func (t *tokens) next() string {
	if t.pos >= len(t.text) && t.again {
		if t.pos = 0; t.text == "" {
			t.text = " token"
		}
	}
	rest := t.text[t.pos:]
	n := 0
	if rest != "" && !utf8.RuneStart(rest[0]) {
		for n < len(rest) && !utf8.RuneStart(rest[n]) {
			n++
		}
		t.pos += n
		return rest[:n]
	}
	for n < len(rest) && n < maxToken && isSpace(rest[n]) {
		n++
	}
	for n < len(rest) && n < maxToken && !isSpace(rest[n]) {
		n++
		if rest[n-1] >= utf8.RuneSelf {
			break
		}
	}
	t.pos += n
	return rest[:n]
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func countTokens(s string) int {
	n := 0
	for t := (tokens{text: s}); t.next() != ""; {
		n++
	}
	return n
}

// pacer spaces tokens evenly.
type pacer struct {
	interval time.Duration
	next     time.Time
	timer    *time.Timer
}

func newPacer(perSecond float64) *pacer {
	p := &pacer{}
	if perSecond > 0 {
		p.interval, p.next = time.Duration(float64(time.Second)/perSecond), time.Now()
	}
	return p
}

// wait blocks until the next token is due or ctx ends.
func (p *pacer) wait(ctx context.Context) error {
	if p.interval == 0 {
		return ctx.Err()
	}
	d := time.Until(p.next)
	p.next = p.next.Add(p.interval)
	if d <= 0 {
		return ctx.Err()
	}
	if p.timer == nil {
		p.timer = time.NewTimer(d)
	} else {
		p.timer.Reset(d)
	}
	select {
	case <-p.timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *pacer) stop() {
	if p.timer != nil {
		p.timer.Stop()
	}
}
