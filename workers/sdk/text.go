package sdk

import (
	"strings"
	"unicode/utf8"
)

// runeJoiner turns the bytes of tokens, which may end inside a rune, into whole UTF-8. Bytes that can no longer become part
// of a rune turn into U+FFFD, one for each maximal part of a broken rune (Unicode 16, section 3.9, table 3-11).
type runeJoiner struct {
	tail [utf8.UTFMax]byte // the beginning of a rune
	n    int
}

// push returns the text that b completes.
func (j *runeJoiner) push(b []byte) string {
	if j.n == 0 && utf8.Valid(b) {
		return string(b)
	}
	all := append(j.tail[:j.n:j.n], b...)
	j.n = 0
	var out strings.Builder
	for len(all) > 0 {
		if !utf8.FullRune(all) {
			j.n = copy(j.tail[:], all)
			break
		}
		_, size := utf8.DecodeRune(all)
		if size == 1 && all[0] >= utf8.RuneSelf {
			size = brokenPart(all)
			out.WriteRune(utf8.RuneError)
		} else {
			out.Write(all[:size])
		}
		all = all[size:]
	}
	return out.String()
}

// flush returns what stands for a rune that never became whole.
func (j *runeJoiner) flush() string {
	if j.n == 0 {
		return ""
	}
	j.n = 0
	return string(utf8.RuneError)
}

// brokenPart returns how many bytes at the start of b are the beginning of a rune that b breaks off: at least 1.
func brokenPart(b []byte) int {
	for n := min(len(b), utf8.UTFMax-1); n > 1; n-- {
		if !utf8.FullRune(b[:n]) {
			return n
		}
	}
	return 1
}

// stopper finds stop sequences in text that arrives in pieces and holds back what may become one. The result depends on the
// whole text only, not on where it was cut: the stop sequence that ends first wins, of several that end there the longest.
type stopper struct {
	stops []matcher
	held  string // a suffix of the text, and a proper prefix of a stop sequence
}

// matcher is the automaton of Knuth, Morris and Pratt for one stop sequence.
type matcher struct {
	word  string
	fail  []int // fail[i]: length of the longest proper border of word[:i+1]
	state int   // length of the longest prefix of word that the text ends with
}

func newStopper(stops []string) *stopper {
	if len(stops) == 0 {
		return nil
	}
	s := &stopper{stops: make([]matcher, len(stops))}
	for i, w := range stops {
		m := matcher{word: w, fail: make([]int, len(w))}
		for j, k := 1, 0; j < len(w); j++ {
			for k > 0 && w[j] != w[k] {
				k = m.fail[k-1]
			}
			if w[j] == w[k] {
				k++
			}
			m.fail[j] = k
		}
		s.stops[i] = m
	}
	return s
}

// push returns the text that can be given out now, and whether a stop sequence was met: it and what follows are not given.
// A nil stopper gives everything.
func (s *stopper) push(text string) (string, bool) {
	if s == nil || text == "" {
		return text, false
	}
	all := s.held + text
	for i := len(s.held); i < len(all); i++ {
		met := 0
		for j := range s.stops {
			if m := &s.stops[j]; m.step(all[i]) {
				met = max(met, len(m.word))
			}
		}
		if met > 0 {
			s.held = ""
			return all[:i+1-met], true
		}
	}
	hold := 0
	for j := range s.stops {
		hold = max(hold, s.stops[j].state)
	}
	s.held = all[len(all)-hold:]
	return all[:len(all)-hold], false
}

// flush returns what was held back, at the end of the text.
func (s *stopper) flush() string {
	if s == nil {
		return ""
	}
	h := s.held
	s.held = ""
	return h
}

func (m *matcher) step(c byte) bool {
	if m.state == len(m.word) {
		m.state = m.fail[m.state-1]
	}
	for m.state > 0 && m.word[m.state] != c {
		m.state = m.fail[m.state-1]
	}
	if m.word[m.state] == c {
		m.state++
	}
	return m.state == len(m.word)
}
