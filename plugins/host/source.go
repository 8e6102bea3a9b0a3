package host

import (
	"context"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
)

// Fetcher brings what a Source names to this machine. core/artifact implements it.
type Fetcher interface {
	// Fetch puts what s names into dir, an empty folder, and returns the path of the file, or of the folder: what was unpacked, or
	// checked out. What lies on this machine already stays where it is. Neither s.Inside nor what the files are is looked at.
	Fetch(ctx context.Context, s Source, dir string) (path string, err error)
}

// SourceKind is how a Source is brought.
type SourceKind string

// The kinds of sources.
const (
	SourcePath SourceKind = "path" // a file or a folder of this machine
	SourceHTTP SourceKind = "http" // a file on a server
	SourceGit  SourceKind = "git"  // a repository
)

// Archives that a source may be.
const (
	ArchiveTar = "tar.gz"
	ArchiveZip = "zip"
)

// Source is where a plugin comes from, in the forms of go-getter: a path, https://HOST/FILE, or git::https://HOST/REPO?ref=REF, with
// //FOLDER-OR-FILE behind the place and, but for git, ?checksum=sha256:HEX and ?archive=zip, tar.gz or false in the query.
type Source struct {
	Kind    SourceKind
	Place   string // absolute path, or URL without what is said here
	Inside  string // slash-separated, below what Place is; "": all of it
	Ref     string // git: branch, tag or commit; "": the default branch
	Archive string // ArchiveTar or ArchiveZip; "": what it is brought as is what it is
	SHA256  string // of the file at Place; "": not known
	written string
}

// String is the source as the configuration has it; paths are absolute.
func (s Source) String() string { return s.written }

// With is the source as it is written for a file inside what it brings.
func (s Source) With(inside string) string {
	place, query, _ := strings.Cut(s.written, "?")
	if s.Inside != "" {
		place = strings.TrimSuffix(place, "//"+s.Inside)
		inside = path.Join(s.Inside, inside)
	}
	if query != "" {
		query = "?" + query
	}
	return place + "//" + inside + query
}

var (
	refPattern    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/+-]{0,199}$`)
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func badSource(format string, args ...any) error {
	return fault.New(fault.Invalid, "bad_source", format, args...)
}

// ParseSource reads a source. Relative paths are made absolute.
func ParseSource(text string) (Source, error) {
	if text == "" || len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return Source{}, badSource("The source of a plugin is a path, an https URL or git::https://HOST/REPO, and not empty or longer than 4096 characters.")
	}
	s := Source{written: text}
	rest := text
	if forced, after, ok := strings.Cut(text, "::"); ok && !strings.ContainsAny(forced, "/.\\") {
		if forced != "git" && forced != "https" {
			return s, badSource("%q begins with %q, which is no way to bring a plugin; write a path, an https URL or git::https://HOST/REPO.", short(text), short(forced)+"::")
		}
		if rest = after; forced == "git" {
			s.Kind = SourceGit
		}
		if !strings.Contains(rest, "://") {
			return s, badSource("%q names no address behind %s::; only https is used, as in git::https://HOST/REPO.", short(text), forced)
		}
	}
	if scheme, _, ok := strings.Cut(rest, "://"); ok && !strings.ContainsAny(scheme, `/\.?`) {
		return s.web(rest)
	}
	return s.file(rest)
}

// web reads a URL.
func (s Source) web(raw string) (Source, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
		return s, badSource("A plugin comes from a file, an https URL without a password, or git::https://HOST/REPO, and %q is none of them.", short(s.written))
	}
	if s.Kind == "" {
		s.Kind = SourceHTTP
	}
	u.Fragment, u.RawFragment = "", ""
	kept, err := s.query(u.RawQuery)
	if err != nil {
		return s, err
	}
	u.RawQuery = kept
	if i := strings.Index(u.Path, "//"); i >= 0 {
		s.Inside = u.Path[i+2:]
		u.Path, u.RawPath = u.Path[:i], ""
	}
	s.Place = u.String()
	if s.Kind == SourceGit && kept != "" {
		return s, badSource("The source %q has %q in its query, which says nothing about a repository; ?ref= is possible.", short(s.written), short(kept))
	}
	return s.complete(u.Path)
}

// file reads a path of this machine.
func (s Source) file(text string) (Source, error) {
	s.Kind = SourcePath
	place, query := text, ""
	if i := strings.LastIndexByte(text, '?'); i >= 0 && (strings.Contains(text[i:], "checksum=") || strings.Contains(text[i:], "archive=")) {
		place, query = text[:i], text[i+1:]
		if kept, err := s.query(query); err != nil || kept != "" {
			return s, badSource("The query of the source %q says more than ?checksum= and ?archive=.", short(text))
		}
		query = "?" + query
	}
	if i := strings.Index(strings.TrimLeft(place, "/"), "//"); i >= 0 {
		i += len(place) - len(strings.TrimLeft(place, "/"))
		place, s.Inside = place[:i], place[i+2:]
	}
	abs, err := filepath.Abs(place)
	if err != nil {
		return s, badSource("The path %q cannot be made absolute: %w.", short(place), err)
	}
	s.Place, s.written = abs, abs
	if s.Inside != "" {
		s.written += "//" + s.Inside
	}
	s.written += query
	return s.complete(abs)
}

// query takes out of a query what is said to us, and returns the rest as it was written.
func (s *Source) query(raw string) (string, error) {
	var kept []string
	for part := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(part, "=")
		value, err := url.QueryUnescape(value)
		switch {
		case part == "":
		case name == "checksum" && s.Kind != SourceGit:
			kind, sum, ok := strings.Cut(value, ":")
			if !ok {
				kind, sum = "sha256", value
			}
			if s.SHA256 = strings.ToLower(sum); err != nil || kind != "sha256" || !digestPattern.MatchString(s.SHA256) {
				return "", badSource("The checksum of the source %q is none; write ?checksum=sha256: and its 64 digits.", short(s.written))
			}
		case name == "archive" && s.Kind != SourceGit:
			if value != ArchiveTar && value != "tgz" && value != ArchiveZip && value != "false" {
				return "", badSource("The source %q is said to be an archive %q; write archive=tar.gz, archive=zip or archive=false.", short(s.written), short(value))
			}
			s.Archive = value
		case name == "ref" && s.Kind == SourceGit:
			if s.Ref = value; err != nil || !refPattern.MatchString(value) || strings.Contains(value, "..") {
				return "", badSource("%q in the source %q is no branch, tag or commit.", short(value), short(s.written))
			}
		default:
			kept = append(kept, part)
		}
	}
	return strings.Join(kept, "&"), nil
}

// complete checks what is inside and tells archives by the name.
func (s Source) complete(name string) (Source, error) {
	s.Inside = strings.TrimSuffix(s.Inside, "/")
	if s.Inside != "" && !filepath.IsLocal(s.Inside) || strings.ContainsAny(s.Inside, `\`) || s.Inside != "" && path.Clean(s.Inside) != s.Inside {
		return s, badSource("%q is no path below what the source %q brings.", short(s.Inside), short(s.written))
	}
	switch {
	case s.Kind == SourceGit:
	case s.Archive == "false":
		s.Archive = ""
	case s.Archive == "tgz", s.Archive == "" && (strings.HasSuffix(name, ".tar.gz") || strings.HasSuffix(name, ".tgz")):
		s.Archive = ArchiveTar
	case s.Archive == "" && strings.HasSuffix(name, ".zip"):
		s.Archive = ArchiveZip
	}
	if s.Kind == SourceHTTP && s.Inside != "" && s.Archive == "" {
		return s, badSource("The source %q names %q inside a file that is no archive; say ?archive=tar.gz or zip if it is one.", short(s.written), short(s.Inside))
	}
	return s, nil
}
