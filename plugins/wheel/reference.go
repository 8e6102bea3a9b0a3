package wheel

import (
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of the references.
const Scheme = "pypi"

// Reference is pypi:NAME[@VERSION][/PATH].
type Reference struct {
	Name    string // normalised
	Version string // empty: the newest
	Path    string // in the wheel; may be empty
}

func (r Reference) String() string {
	s := Scheme + ":" + r.Name
	if r.Version != "" {
		s += "@" + r.Version
	}
	if r.Path != "" {
		s += "/" + r.Path
	}
	return s
}

// ParseReference reads a reference. Between name and version "==" may stand too, as pip writes it. In messages, example stands for
// the path.
func ParseReference(ref, example string) (Reference, error) {
	invalid := func(ref, why string) error {
		return &vendor.Error{
			Kind: vendor.KindInvalid, Code: "invalid_reference", Param: "reference",
			Message: Quote(ref) + " is no reference to a Python package: " + why + "; write pypi:NAME, pypi:NAME@1.2.3 or pypi:NAME@1.2.3/" + example + ".",
		}
	}
	rest, ok := strings.CutPrefix(ref, Scheme+":")
	if !ok || len(ref) > 2048 {
		return Reference{}, invalid(ref, "it does not begin with pypi:")
	}
	var r Reference
	rest, r.Path, ok = strings.Cut(rest, "/")
	if ok {
		if !goodMember(r.Path) {
			return r, invalid(ref, "what follows the first / is no path in a package")
		}
	}
	rest = strings.ReplaceAll(rest, "==", "@")
	rest, r.Version, ok = strings.Cut(rest, "@")
	if ok {
		if v, ok := ParseVersion(r.Version); !ok || v.Text != r.Version {
			return r, invalid(ref, Quote(r.Version)+" is not a version")
		}
	}
	if !goodName(rest) {
		return r, invalid(ref, Quote(rest)+" is not the name of a package")
	}
	r.Name = Normalise(rest)
	return r, nil
}

const letters = "abcdefghijklmnopqrstuvwxyz0123456789"

// goodName is the rule for names of projects (PEP 508).
func goodName(s string) bool {
	s = strings.ToLower(s)
	return s != "" && len(s) <= 128 && strings.Trim(s, letters+"-_.") == "" &&
		strings.IndexByte(letters, s[0]) >= 0 && strings.IndexByte(letters, s[len(s)-1]) >= 0
}

// Normalise writes a name as registries compare them (PEP 503): small letters, and one dash for each run of dashes, dots and
// underlines.
func Normalise(name string) string {
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

// Quote writes a text from elsewhere so that it is harmless on a terminal and not too long.
func Quote(s string) string {
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
