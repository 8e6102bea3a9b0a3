package github

import (
	"path"
	"strings"

	"github.com/apiary-dev/apiary/plugins/llamaserver"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// reference is github:OWNER/REPO@TAG/ASSET[//PROGRAM].
type reference struct {
	owner, repo string
	tag         string // may hold slashes
	asset       string // its name, or a pattern for it
	program     string // path in the archive; empty: llama-server, wherever it is
}

func (r reference) release() string { return r.owner + "/" + r.repo + "@" + r.tag }

func (r reference) String() string {
	s := Scheme + ":" + r.release() + "/" + r.asset
	if r.program != "" {
		s += "//" + r.program
	}
	return s
}

// open reports whether the name of the asset is a pattern.
func (r reference) open() bool { return strings.ContainsAny(r.asset, "*?[{") }

// at is the path of the program in the engine's folder.
func (r reference) at() string {
	if r.program != "" {
		return r.program
	}
	return llamaserver.Program
}

const (
	alnum = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
	words = alnum + "._-"
)

func parse(ref string) (reference, error) {
	bad := func(why string) (reference, error) {
		return reference{}, &vendor.Error{Kind: vendor.KindInvalid, Code: "invalid_reference", Param: "reference", Message: quote(ref) + " is no reference to a file of a release: " + why + "; write github:owner/repository@tag/asset.tar.gz, where the asset may hold * and {platform}."}
	}
	rest, ok := strings.CutPrefix(ref, Scheme+":")
	if !ok || len(ref) > 1024 || strings.ContainsFunc(rest, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '\\' || c == '"' }) {
		return bad("it is too long or holds characters that no such name has")
	}
	var r reference
	rest, r.program, ok = strings.Cut(rest, "//")
	if ok && (path.Clean("/"+r.program) != "/"+r.program || r.program == "") {
		return bad("what follows // is no path in an archive")
	}
	name, rest, ok := strings.Cut(rest, "@")
	if !ok {
		return bad("it names no tag, and an engine needs an exact one")
	}
	if r.owner, r.repo, ok = strings.Cut(name, "/"); !ok || !segmentOf(r.owner, alnum+"-_") || !segmentOf(r.repo, words) {
		return bad("what stands before the @ is not an owner and a repository")
	}
	i := strings.LastIndexByte(rest, '/')
	if i <= 0 || i == len(rest)-1 {
		return bad("it names no asset of the release")
	}
	r.tag, r.asset = rest[:i], rest[i+1:]
	for part := range strings.SplitSeq(r.tag, "/") {
		if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "*?[{}%#~^:") {
			return bad("its tag is none")
		}
	}
	if r.tag == "latest" {
		return bad("\"latest\" would mean another build tomorrow, and an engine needs an exact tag")
	}
	if _, err := path.Match(r.asset, ""); err != nil || strings.ContainsAny(r.asset, "%#") {
		return bad("the pattern of its asset is none")
	}
	return r, nil
}

func segmentOf(s, chars string) bool {
	return s != "" && s != "." && s != ".." && len(s) <= 100 && strings.Trim(s, chars) == ""
}

// choose finds the one asset that the reference means on a machine.
func (r reference) choose(assets []asset, on vendor.Platform) (*asset, error) {
	var found []*asset
	for i := range assets {
		a := &assets[i]
		if !r.open() && a.Name == r.asset || r.open() && matches(r.asset, a.Name, on) {
			found = append(found, a)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	e := &vendor.Error{Kind: vendor.KindNotFound, Code: "engine_not_found", Param: "reference", Message: "The release " + r.release() + " has no asset " + quote(r.asset) + " for " + on.OS + " on " + on.Arch}
	list := found
	if len(found) > 1 {
		e.Kind, e.Code, e.Message = vendor.KindInvalid, "ambiguous_asset", "Several assets of "+r.release()+" are called like "+quote(r.asset)
	} else {
		for i := range assets {
			list = append(list, &assets[i])
		}
	}
	var names []string
	for _, a := range list[:min(len(list), maxListed)] {
		names = append(names, quote(a.Name))
		r.asset = a.Name
		e.Candidates = append(e.Candidates, r.String())
	}
	e.Message += "; there are " + strings.Join(names, ", ")
	if n := len(list) - len(names); n > 0 {
		e.Message += " and more"
	}
	if len(names) == 0 {
		e.Message += "none"
	}
	e.Message += "; name one of them."
	return nil, e
}

// matches reports whether a name is like a pattern, in which {os}, {arch} and {platform} stand for any way to write those of the
// machine. Small and large letters are the same.
func matches(pattern, name string, on vendor.Platform) bool {
	oses := map[string][]string{"linux": {"linux", "ubuntu"}, "darwin": {"darwin", "macos", "osx", "mac"}}[on.OS]
	arches := map[string][]string{"amd64": {"x64", "amd64", "x86_64", "x86-64"}, "arm64": {"arm64", "aarch64"}}[on.Arch]
	if oses == nil {
		oses = []string{on.OS}
	}
	if arches == nil {
		arches = []string{on.Arch}
	}
	pattern, name = strings.ToLower(pattern), strings.ToLower(name)
	for _, system := range oses {
		for _, arch := range arches {
			for _, between := range []string{"-", "_"} {
				p := strings.NewReplacer("{platform}", system+between+arch, "{os}", system, "{arch}", arch).Replace(pattern)
				if ok, err := path.Match(p, name); ok && err == nil {
					return true
				}
			}
		}
	}
	return false
}

// quote writes a text from elsewhere so that it is harmless on a terminal and not too long.
func quote(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f || r == '"' {
			return '?'
		}
		return r
	}, s)
	return `"` + s[:min(len(s), 120)] + `"`
}
