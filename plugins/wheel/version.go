package wheel

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Version is a version as PEP 440 orders them.
type Version struct {
	Text    string // as it was written
	epoch   int64
	release []int64 // without zeros at its end
	pre     string  // "a", "b", "rc", or empty
	preN    int64
	post    int64 // -1: none
	dev     int64 // -1: none
	local   []string
}

// ParseVersion reads a version in any spelling that PEP 440 allows.
func ParseVersion(text string) (Version, bool) {
	p := &scanner{rest: strings.ToLower(strings.TrimSpace(text))}
	v := Version{Text: strings.TrimSpace(text), post: -1, dev: -1}
	if len(text) > 128 {
		return v, false
	}
	p.skip("v")
	n, ok := p.number()
	if ok && p.skip("!") {
		v.epoch = n
		n, ok = p.number()
	}
	if !ok {
		return v, false
	}
	for v.release = append(v.release, n); len(p.rest) > 1 && p.rest[0] == '.' && isDigit(p.rest[1]); v.release = append(v.release, n) {
		p.rest = p.rest[1:]
		if n, ok = p.number(); !ok {
			return v, false
		}
	}
	for len(v.release) > 1 && v.release[len(v.release)-1] == 0 {
		v.release = v.release[:len(v.release)-1]
	}
	// The longer of two names with the same beginning comes first.
	if word, n, ok := p.segment("alpha", "a", "beta", "b", "preview", "pre", "rc", "c"); ok {
		v.pre, v.preN = word[:1], n
		if word[0] != 'a' && word[0] != 'b' {
			v.pre = "rc"
		}
	}
	if _, n, ok := p.segment("post", "rev", "r"); ok {
		v.post = n
	} else if len(p.rest) > 1 && p.rest[0] == '-' && isDigit(p.rest[1]) {
		p.rest = p.rest[1:]
		if v.post, ok = p.number(); !ok {
			return v, false
		}
	}
	if _, n, ok := p.segment("dev"); ok {
		v.dev = n
	}
	if p.skip("+") {
		v.local = strings.FieldsFunc(p.rest, func(r rune) bool { return r == '.' || r == '-' || r == '_' })
		if len(v.local) == 0 || strings.Trim(p.rest, "abcdefghijklmnopqrstuvwxyz0123456789.-_") != "" {
			return v, false
		}
		p.rest = ""
	}
	return v, p.rest == ""
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// scanner takes parts off the beginning of a text.
type scanner struct{ rest string }

func (p *scanner) skip(prefix string) bool {
	rest, ok := strings.CutPrefix(p.rest, prefix)
	p.rest = rest
	return ok
}

func (p *scanner) number() (int64, bool) {
	i := 0
	for i < len(p.rest) && isDigit(p.rest[i]) {
		i++
	}
	n, err := strconv.ParseInt(p.rest[:i], 10, 64)
	p.rest = p.rest[i:]
	return n, err == nil
}

// segment reads a separator, one of words, a separator and a number, of which only the word must be there.
func (p *scanner) segment(words ...string) (word string, n int64, ok bool) {
	rest := p.rest
	if rest != "" && strings.IndexByte(".-_", rest[0]) >= 0 {
		rest = rest[1:]
	}
	for _, w := range words {
		if after, ok := strings.CutPrefix(rest, w); ok {
			p.rest = after
			if len(after) > 1 && strings.IndexByte(".-_", after[0]) >= 0 && isDigit(after[1]) {
				p.rest = after[1:]
			}
			n, _ := p.number() // none is 0
			return w, n, true
		}
	}
	return "", 0, false
}

// Preview reports whether v is one that nobody gets without asking for it.
func (v Version) Preview() bool { return v.pre != "" || v.dev >= 0 }

// Compare orders versions as PEP 440 does.
func (v Version) Compare(o Version) int {
	return cmp.Or(
		cmp.Compare(v.epoch, o.epoch), slices.Compare(v.release, o.release),
		cmp.Compare(v.prePlace(), o.prePlace()), cmp.Compare(v.preN, o.preN),
		cmp.Compare(v.post, o.post), cmp.Compare(v.devPlace(), o.devPlace()), slices.CompareFunc(v.local, o.local, compareLocal),
	)
}

// prePlace orders what may follow the release: the development of it, its previews, itself.
func (v Version) prePlace() int {
	switch {
	case v.pre == "a":
		return 1
	case v.pre == "b":
		return 2
	case v.pre == "rc":
		return 3
	case v.post < 0 && v.dev >= 0:
		return 0
	}
	return 4
}

// devPlace puts a development before what it leads to.
func (v Version) devPlace() int64 {
	if v.dev < 0 {
		return 1<<63 - 1
	}
	return v.dev
}

// compareLocal puts numbers above words.
func compareLocal(a, b string) int {
	n, err1 := strconv.ParseInt(a, 10, 64)
	m, err2 := strconv.ParseInt(b, 10, 64)
	switch {
	case err1 == nil && err2 == nil:
		return cmp.Compare(n, m)
	case err1 == nil:
		return 1
	case err2 == nil:
		return -1
	}
	return strings.Compare(a, b)
}
