package huggingface

import (
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of the references.
const Scheme = "hf"

const defaultRevision = "main"

// maxReference bounds a reference in bytes.
const maxReference = 2048

// reference is hf:repo[@revision][:quant|/path].
type reference struct {
	repo     string // org/name, or the bare name of an old repository
	revision string // branch, tag, commit or refs/pr/N; "": the default one
	quant    string // what follows the colon
	path     string // what follows the slash: a file or a folder
}

// String writes the reference so that parse reads the same one.
func (r reference) String() string {
	s := Scheme + ":" + r.repo
	switch {
	case strings.HasPrefix(r.revision, "refs/"):
		s += "@" + r.revision
	case r.revision != "":
		s += "@" + strings.ReplaceAll(strings.ReplaceAll(r.revision, "%", "%25"), "/", "%2F")
	}
	switch {
	case r.quant != "":
		s += ":" + r.quant
	case r.path != "":
		s += "/" + r.path
	}
	return s
}

func badReference(ref, why string) error {
	if len(ref) > 200 {
		ref = ref[:200] + "…"
	}
	return &vendor.Error{
		Kind: vendor.KindInvalid, Code: "invalid_reference", Param: "reference",
		Message: quote(ref) + " is no reference to a model on Hugging Face: " + why + "; write hf:ORG/REPO, with @REVISION, :QUANT or /FILE behind it where needed.",
	}
}

// parse reads a reference, with or without its scheme.
func parse(full string) (reference, error) {
	bad := func(why string) (reference, error) { return reference{}, badReference(full, why) }
	if len(full) > maxReference {
		return bad("it is too long")
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(full, Scheme+":"), "//")
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\\' }); i >= 0 {
		return bad("it has a character that no name has")
	}
	var r reference
	first, rest := word(rest)
	r.repo = first
	if after, ok := strings.CutPrefix(rest, "/"); ok {
		second, tail := word(after)
		r.repo, rest = first+"/"+second, tail
	}
	if why := checkRepo(r.repo); why != "" {
		return bad(why)
	}
	if after, ok := strings.CutPrefix(rest, "@"); ok {
		var err error
		if r.revision, rest, err = cutRevision(after); err != nil || !goodRevision(r.revision) {
			return bad("what follows @ is no revision")
		}
	}
	switch {
	case rest == "":
		return r, nil
	case rest[0] == ':':
		if r.quant = rest[1:]; r.quant == "" || len(r.quant) > 200 || strings.ContainsAny(r.quant, "@ /") {
			return bad("what follows the last colon names no quantisation")
		}
	case rest[0] == '/':
		if r.path = strings.TrimSuffix(rest[1:], "/"); !goodPath(r.path) {
			return bad("what follows the slash is no path of a file in the repository")
		}
	}
	return r, nil
}

// word cuts off the first name of s.
func word(s string) (name, rest string) {
	if i := strings.IndexAny(s, "/@:"); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

// checkRepo says why s is not the name of a repository; "": it is one.
func checkRepo(s string) string {
	if s == "" {
		return "the repository is missing"
	}
	if len(s) > 200 {
		return "the name of the repository is too long"
	}
	for part := range strings.SplitSeq(s, "/") {
		switch {
		case part == "":
			return "a name is missing before or after the slash"
		case strings.Trim(part, letters+digits+"-_.") != "":
			return "names have letters, digits, dashes, dots and underscores"
		case part != strings.Trim(part, "-."), strings.Contains(part, ".."), strings.Contains(part, "--"):
			return "a name neither begins nor ends with a dot or a dash, and has no two of them in a row"
		}
	}
	return ""
}

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// cutRevision reads a revision. Those of pull requests and conversions have slashes; in others a slash is written %2F.
func cutRevision(s string) (revision, rest string, err error) {
	for _, prefix := range []string{"refs/pr/", "refs/convert/", "refs/heads/", "refs/tags/"} {
		if after, ok := strings.CutPrefix(s, prefix); ok {
			name, rest := word(after)
			return prefix + name, rest, nil
		}
	}
	name, rest := word(s)
	revision, err = unescape(name)
	return revision, rest, err
}

func goodRevision(s string) bool {
	return s != "" && len(s) <= 250 && !strings.Contains(s, "..") && s[0] != '-' && s == strings.Trim(s, "/") &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`\~^:?*[#`, r) })
}

func goodPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// isCommit reports whether s is the full name of a commit.
func isCommit(s string) bool { return isHex(s, 40) }

func isHex(s string, n int) bool { return len(s) == n && strings.Trim(s, digits+"abcdef") == "" }
