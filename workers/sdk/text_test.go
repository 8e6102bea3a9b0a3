package sdk

import (
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func TestRuneJoiner(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []string
		want []string // after each push
		end  string
	}{
		{"plain", []string{"a", "bc"}, []string{"a", "bc"}, ""},
		{"emoji byte by byte", []string{"\xf0", "\x9f", "\x90", "\x9d!"}, []string{"", "", "", "🐝!"}, ""},
		{"two runes cut", []string{"é\xc3", "\xa9"}, []string{"é", "é"}, ""},
		{"rune never finished", []string{"a\xe2\x82"}, []string{"a"}, "\ufffd"},
		{"broken by ASCII: one replacement for the part", []string{"\xe2\x82", "A"}, []string{"", "\ufffdA"}, ""},
		{"stray continuation", []string{"\x80a"}, []string{"\ufffda"}, ""},
		{"never valid", []string{"\xff\xfe"}, []string{"\ufffd\ufffd"}, ""},
		{"surrogate half", []string{"\xed", "\xa0\x80"}, []string{"", "\ufffd\ufffd\ufffd"}, ""},
		{"overlong", []string{"\xc0\xaf"}, []string{"\ufffd\ufffd"}, ""},
		{"real U+FFFD stays one", []string{"\xef\xbf", "\xbd"}, []string{"", "\ufffd"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var j runeJoiner
			for i, in := range c.in {
				if got := j.push([]byte(in)); got != c.want[i] {
					t.Errorf("push %d (%q) = %q, want %q", i, in, got, c.want[i])
				}
			}
			if got := j.flush(); got != c.end {
				t.Errorf("flush = %q, want %q", got, c.end)
			}
		})
	}
}

// cut splits s at drawn places.
func cut(t *rapid.T, s string) []string {
	var parts []string
	for len(s) > 0 {
		n := rapid.IntRange(1, len(s)).Draw(t, "n")
		parts = append(parts, s[:n])
		s = s[n:]
	}
	return parts
}

func TestRuneJoinerIsTheSameHoweverCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOf(rapid.SampledFrom([]byte("ab\xc3\xa9\xf0\x9f\x90\x9d\xe2\x82\xac\xff\x80"))).Draw(t, "raw")
		var whole, pieces runeJoiner
		want := whole.push(raw) + whole.flush()
		got := ""
		for _, p := range cut(t, string(raw)) {
			s := pieces.push([]byte(p))
			if !utf8.ValidString(s) {
				t.Fatalf("push gave %q, which is not UTF-8", s)
			}
			got += s
		}
		if got += pieces.flush(); got != want {
			t.Fatalf("cut: %q, whole: %q", got, want)
		}
		if utf8.Valid(raw) && got != string(raw) {
			t.Fatalf("valid text %q came out as %q", raw, got)
		}
	})
}

// stopReference is the definition: the stop sequence that ends first wins, of several that end there the longest.
func stopReference(text string, stops []string) (string, bool) {
	for end := 1; end <= len(text); end++ {
		longest := 0
		for _, s := range stops {
			if strings.HasSuffix(text[:end], s) {
				longest = max(longest, len(s))
			}
		}
		if longest > 0 {
			return text[:end-longest], true
		}
	}
	return text, false
}

func TestStopperAgainstDefinition(t *testing.T) {
	word := rapid.StringOfN(rapid.SampledFrom([]rune("abé")), 1, 5, -1)
	rapid.Check(t, func(t *rapid.T) {
		stops := rapid.SliceOfN(word, 1, 4).Draw(t, "stops")
		text := rapid.StringOfN(rapid.SampledFrom([]rune("abé")), 0, 40, -1).Draw(t, "text")
		want, wantStop := stopReference(text, stops)
		s := newStopper(stops)
		var got strings.Builder
		stopped := false
		for rest := []rune(text); len(rest) > 0 && !stopped; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			var out string
			out, stopped = s.push(string(rest[:n]))
			rest = rest[n:]
			got.WriteString(out)
			if !strings.HasPrefix(want, got.String()) || !utf8.ValidString(out) {
				t.Fatalf("gave out %q of %q with stops %q", got.String(), text, stops)
			}
			// Nothing is held that cannot become a stop sequence any more.
			if held := s.held; held != "" {
				ok := false
				for _, w := range stops {
					ok = ok || strings.HasPrefix(w, held) && w != held
				}
				if !ok {
					t.Fatalf("holds %q for stops %q", held, stops)
				}
			}
		}
		if !stopped {
			got.WriteString(s.flush())
		}
		if got.String() != want || stopped != wantStop {
			t.Fatalf("got %q %v, want %q %v", got.String(), stopped, want, wantStop)
		}
	})
}

func TestNilStopper(t *testing.T) {
	s := newStopper(nil)
	if out, stopped := s.push("abc"); out != "abc" || stopped || s.flush() != "" {
		t.Errorf("a stopper without sequences gave %q, %v", out, stopped)
	}
}
