package ollama

import (
	"net/url"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// reference is ollama:[HOST/][NAMESPACE/]MODEL[:TAG][@sha256:DIGEST].
type reference struct {
	host   string // empty: the configured registry
	space  string
	model  string
	tag    string
	digest string // "sha256:" and 64 hex: of the manifest; empty: whatever the tag means now
}

// String writes the reference in full.
func (r reference) String() string {
	s := Scheme + ":"
	if r.host != "" {
		s += r.host + "/"
	}
	s += r.space + "/" + r.model + ":" + r.tag
	if r.digest != "" {
		s += "@" + r.digest
	}
	return s
}

func invalid(ref, why string) error {
	return &vendor.Error{
		Kind: vendor.KindInvalid, Code: "invalid_reference", Param: "reference",
		Message: quote(ref) + " is no reference to a model of an Ollama registry: " + why + "; write ollama:MODEL, ollama:MODEL:TAG, ollama:NAMESPACE/MODEL or ollama:HOST/NAMESPACE/MODEL.",
	}
}

// parse reads a reference.
func parse(ref string) (reference, error) {
	rest, ok := strings.CutPrefix(ref, Scheme+":")
	if !ok || len(ref) > 1024 {
		return reference{}, invalid(ref, "it does not begin with ollama:, or is too long")
	}
	r := reference{space: "library", tag: "latest"}
	if rest, r.digest, ok = strings.Cut(rest, "@"); ok && !goodDigest(r.digest) {
		return r, invalid(ref, "what follows the @ is not sha256: and 64 hexadecimal digits")
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, r.tag = rest[:i], rest[i+1:]
	}
	parts := strings.Split(rest, "/")
	r.model = parts[len(parts)-1]
	switch len(parts) {
	case 3:
		r.host, r.space = strings.ToLower(parts[0]), parts[1]
		if !goodHost(r.host) {
			return r, invalid(ref, quote(parts[0])+" is not a host")
		}
	case 2:
		r.space = parts[0]
	case 1:
	default:
		return r, invalid(ref, "it has more than three parts")
	}
	for _, part := range []string{r.space, r.model, r.tag} {
		if !goodPart(part) {
			return r, invalid(ref, quote(part)+" is not a name")
		}
	}
	return r, nil
}

// goodPart is the rule for the parts of names: letters, digits, underlines, dashes and dots, the first neither of the last two.
func goodPart(s string) bool {
	const first = "abcdefghijklmnopqrstuvwxyz0123456789_"
	l := strings.ToLower(s)
	return s != "" && len(s) <= 80 && strings.Trim(l, first+"-.") == "" && strings.IndexByte(first, l[0]) >= 0
}

func goodHost(s string) bool {
	u, err := url.Parse("https://" + s)
	return err == nil && len(s) <= 350 && u.Host == s && u.User == nil && u.Hostname() != "" && strings.Trim(u.Hostname(), ".-") != ""
}

// goodDigest reports whether s is a digest of a registry that can be compared with.
func goodDigest(s string) bool {
	hex, ok := strings.CutPrefix(s, "sha256:")
	return ok && len(hex) == 64 && strings.Trim(hex, "0123456789abcdef") == ""
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
