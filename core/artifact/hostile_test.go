package artifact

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
)

// TestHostileRegistry installs from a registry that does what it can to do harm. Nothing of it becomes visible, nothing stays
// that is of no use, and every failure is one short sentence.
func TestHostileRegistry(t *testing.T) {
	t.Parallel()
	onLinux(t)
	const platform = "linux-x64"
	good := engineArchive(t, platform)
	other := bytes.Repeat([]byte("other"), len(good)/5+1)[:len(good)]
	private := newServer(t, good) // an address that the configuration does not name
	away := strings.Replace(private.URL, "http://127.0.0.1", "https://127.0.0.1", 1) + "/0"

	flood := func(w http.ResponseWriter, r *http.Request) {
		for buf := make([]byte, 64<<10); r.Context().Err() == nil; {
			if _, err := w.Write(buf); err != nil {
				return
			}
		}
	}
	drip := func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write([]byte(" "))
			_ = http.NewResponseController(w).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	}
	says := func(body string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
	}
	leads := func(to string) func(http.ResponseWriter, *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) }
	}
	// metadata and tarball say which of the two answers is the hostile one.
	metadata := func(f func(http.ResponseWriter, *http.Request)) func(*registry) {
		return func(r *registry) {
			r.hostile = func(w http.ResponseWriter, req *http.Request, tarball bool, _ int) bool {
				if !tarball {
					f(w, req)
				}
				return !tarball
			}
		}
	}
	tarball := func(f func(http.ResponseWriter, *http.Request)) func(*registry) {
		return func(r *registry) {
			r.hostile = func(w http.ResponseWriter, req *http.Request, tarball bool, _ int) bool {
				if tarball {
					f(w, req)
				}
				return tarball
			}
		}
	}
	named := func(at, version string) func(*registry) {
		return func(r *registry) {
			inner := says(fmt.Sprintf(`{"version":%q,"dist":{"tarball":%q,"integrity":%q}}`, version, at, integrityOf(good)))
			r.hostile = func(w http.ResponseWriter, req *http.Request, tarball bool, _ int) bool {
				if tarball {
					http.NotFound(w, req) // only the place that it names is left
				} else {
					inner(w, req)
				}
				return true
			}
		}
	}
	// cutThen ends the first answer in the middle; the rest comes from later.
	cutThen := func(later func(w http.ResponseWriter, r *http.Request)) func(*registry) {
		return func(r *registry) {
			r.hostile = func(w http.ResponseWriter, req *http.Request, tarball bool, n int) bool {
				if !tarball {
					return false
				}
				if n > 1 {
					later(w, req)
					return true
				}
				w.Header().Set("ETag", `"e"`)
				w.Header().Set("Content-Length", fmt.Sprint(len(good)))
				_, _ = w.Write(good[:100_000])
				panic(http.ErrAbortHandler)
			}
		}
	}
	part := func(body []byte) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("ETag", `"e"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		}
	}
	for name, c := range map[string]struct {
		prepare func(*registry)
		code    string // empty: it is installed after all
		jail    bool   // the bytes are in quarantine
		stays   bool   // the part stays for the next time
	}{
		"metadata leads away":            {prepare: metadata(leads(away)), code: egress.CodeRefused},
		"metadata leads to plain http":   {prepare: metadata(leads("http://192.0.2.1/x")), code: egress.CodeRefused},
		"metadata leads to a file":       {prepare: metadata(leads("file:///etc/passwd")), code: egress.CodeRefused},
		"metadata leads in a circle":     {prepare: metadata(leads("/@test/linux-x64/1.2.3")), code: egress.CodeRedirect},
		"metadata without an end":        {prepare: metadata(flood), code: "answer_too_large"},
		"metadata drips":                 {prepare: metadata(drip), code: codeUnreachable},
		"metadata of 9 MiB":              {prepare: metadata(says(`{"version":"1.2.3"` + strings.Repeat(" ", 9<<20) + "}")), code: "answer_too_large"},
		"metadata that is a page":        {prepare: metadata(says("<html>\x1b[2J")), code: "registry_garbage"},
		"metadata that is deep":          {prepare: metadata(says(`{"dist":` + strings.Repeat("[", 1<<20))), code: "registry_garbage"},
		"metadata of another version":    {prepare: named("/x.tgz", "9.9.9"), code: "engine_not_found"},
		"another host, private":          {prepare: named(away, "1.2.3"), code: egress.CodeRefused},
		"another host, link-local":       {prepare: named("https://169.254.169.254/latest", "1.2.3"), code: egress.CodeRefused},
		"another host, plain http":       {prepare: named(private.URL+"/0", "1.2.3"), code: "source_not_found"},
		"tarball leads away":             {prepare: tarball(leads(away)), code: egress.CodeRefused},
		"tarball leads in a circle":      {prepare: tarball(leads("/@test/linux-x64/-/linux-x64-1.2.3.tgz")), code: egress.CodeRedirect},
		"tarball without an end":         {prepare: func(r *registry) { tarball(flood)(r); r.unpacked = 1 << 20 }, code: "source_too_large"},
		"tarball drips":                  {prepare: tarball(drip), code: "source_stalled", stays: true},
		"tarball announced as huge":      {prepare: func(r *registry) { tarball(announced(1 << 50))(r); r.unpacked = 1 << 20 }, code: "source_too_large"},
		"tarball that is cut off":        {prepare: tarball(announced(1 << 20)), code: "source_cut", stays: true},
		"tarball of other bytes":         {prepare: tarball(says(string(other))), code: codeDigest, jail: true},
		"weaker integrity only":          {prepare: func(r *registry) { r.integrity = "sha256-AAAA sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=" }, code: "no_integrity"},
		"unpacks to more than announced": {prepare: func(r *registry) { r.unpacked = 1000 }, code: "bad_archive"},
		"changed, another part":          {prepare: cutThen(part(other)), code: codeDigest, jail: true},
		"changed, another whole":         {prepare: cutThen(says(string(other))), code: codeDigest, jail: true},
		"changed, then it leads away":    {prepare: cutThen(leads(away)), code: egress.CodeRefused, stays: true},
		"changed, then it is gone":       {prepare: cutThen(http.NotFound), code: "source_not_found", stays: true},
		"cut, and the rest is right":     {prepare: cutThen(part(good))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t, platform)
			r.tarballs[platform] = good
			c.prepare(r)
			s := openStore(t, t.TempDir(), r.use)
			begin := time.Now()
			_, err := s.InstallEngine(t.Context(), enginePackage, nil, nil)
			if d := time.Since(begin); d > time.Minute {
				t.Errorf("took %v", d)
			}
			if c.code == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			f := fault.As(err)
			if f == nil || f.Code != c.code {
				t.Fatalf("got %v, want %s", err, c.code)
			}
			if len(f.Message) > 600 || strings.ContainsFunc(f.Message, func(r rune) bool { return r < ' ' || r == 0x7f }) {
				t.Errorf("a message of %d bytes: %q", len(f.Message), f.Message[:min(len(f.Message), 600)])
			}
			if left := append(files(t, s, "engines"), files(t, s, "catalog")...); len(left) > 0 {
				t.Errorf("published: %v", left)
			}
			if q := files(t, s, "quarantine"); (len(q) > 0) != c.jail {
				t.Errorf("quarantine: %v", q)
			}
			if p := files(t, s, "partial"); (len(p) > 0) != c.stays {
				t.Errorf("partial: %v", p)
			}
		})
	}
	t.Cleanup(func() {
		if n := private.count(); n > 0 {
			t.Errorf("%d requests reached an address that the configuration does not name", n)
		}
	})
}

// announced promises size bytes and sends few.
func announced(size int64) func(http.ResponseWriter, *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = w.Write(make([]byte, 1000))
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
}
