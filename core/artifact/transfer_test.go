package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// server serves files at /0, /1, … with the faults of real ones.
type server struct {
	*httptest.Server
	bodies [][]byte

	cutAt       int  // the connection ends after so many bytes of the file, once per request, when > 0
	cuts        int  // how many requests are cut; 0: all
	drip        bool // a byte now and then
	hang        bool // instead of ending, nothing more is sent
	ignoreRange bool // a range is answered with 200
	wrongRange  bool // a range is answered with another range
	noETag      bool
	status      int // answered instead, statusTimes times
	statusTimes int
	header      http.Header // sent with status
	encoding    string
	hold        chan struct{} // requests wait for it to be closed
	asked       chan struct{} // closed by the first request

	once sync.Once
	mu   sync.Mutex
	// mu guards the field below, and the others once requests come.
	requests []*http.Request
}

func newServer(t testing.TB, bodies ...[]byte) *server {
	w := &server{bodies: bodies, asked: make(chan struct{})}
	w.Server = httptest.NewServer(w)
	t.Cleanup(w.Close)
	return w
}

func (w *server) count() int { w.mu.Lock(); defer w.mu.Unlock(); return len(w.requests) }

// change changes the faults of a server that is in use.
func (w *server) change(f func()) { w.mu.Lock(); defer w.mu.Unlock(); f() }

func (w *server) last() *http.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests[len(w.requests)-1]
}

func (w *server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	w.requests = append(w.requests, r)
	n := len(w.requests)
	cutAt, hang := w.cutAt, w.hang
	w.mu.Unlock()
	w.once.Do(func() { close(w.asked) })
	if w.hold != nil {
		<-w.hold
	}
	if w.status != 0 && n <= w.statusTimes {
		for k, v := range w.header {
			rw.Header()[k] = v
		}
		rw.WriteHeader(w.status)
		return
	}
	i, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
	body := w.bodies[i]
	if !w.noETag {
		rw.Header().Set("ETag", `"v1"`)
	}
	if w.encoding != "" {
		rw.Header().Set("Content-Encoding", w.encoding)
	}
	start := 0
	if rng := r.Header.Get("Range"); rng != "" && !w.ignoreRange && (r.Header.Get("If-Range") == "" || r.Header.Get("If-Range") == `"v1"`) {
		_, _ = fmt.Sscanf(rng, "bytes=%d-", &start)
		if w.wrongRange {
			start--
		}
		if start >= len(body) {
			rw.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(body)))
			rw.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		rw.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(body)-1, len(body)))
		rw.Header().Set("Content-Length", strconv.Itoa(len(body)-start))
		rw.WriteHeader(http.StatusPartialContent)
	} else {
		rw.Header().Set("Content-Length", strconv.Itoa(len(body)))
	}
	for i := start; w.drip && i < len(body) && r.Context().Err() == nil; i++ {
		_, _ = rw.Write(body[i : i+1])
		_ = http.NewResponseController(rw).Flush()
		time.Sleep(10 * time.Millisecond)
	}
	if cutAt > start && cutAt < len(body) && (w.cuts == 0 || n <= w.cuts) {
		_, _ = rw.Write(body[start:cutAt])
		_ = http.NewResponseController(rw).Flush()
		if hang {
			<-r.Context().Done()
		}
		panic(http.ErrAbortHandler)
	}
	_, _ = rw.Write(body[start:])
}

// webVendor resolves SCHEME:x to files of a server.
type webVendor struct {
	scheme string
	man    vendor.Manifest
}

// vendor gives the files with the numbers as one model.
func (w *server) vendor(scheme string, numbers ...int) *webVendor {
	v := &webVendor{scheme: scheme, man: vendor.Manifest{Reference: scheme + ":x@pinned", Format: "gguf"}}
	for i, n := range numbers {
		v.man.Files = append(v.man.Files, vendor.File{
			Path: fmt.Sprintf("m-%05d-of-%05d.gguf", i+1, len(numbers)), Size: int64(len(w.bodies[n])),
			Digests: vendor.Digests{SHA256: sum256(w.bodies[n])}, Sources: []vendor.Source{{URL: fmt.Sprintf("%s/%d?secret=1", w.URL, n), Credential: "cred"}},
		})
	}
	return v
}

func (v *webVendor) Info() vendor.Info {
	return vendor.Info{Name: "web-" + v.scheme, Schemes: []string{v.scheme}}
}
func (v *webVendor) Supports(ref string) bool { return strings.HasPrefix(ref, v.scheme+":") }
func (v *webVendor) Resolve(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
	man := v.man
	return &man, nil
}

// pull opens a store for the vendor and pulls its model.
func pull(t *testing.T, v *webVendor, change func(*Options)) (*Store, *reports, error) {
	t.Helper()
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Vendors = append(o.Vendors, v)
		if change != nil {
			change(o)
		}
	})
	log := &reports{}
	_, err := s.PullModel(t.Context(), v.scheme+":x", log.add)
	log.checkMonotonic(t)
	if ms, _ := s.Models(); err != nil && len(ms) > 0 {
		t.Errorf("failed, and is in the catalog: %v", ms)
	}
	if err != nil {
		if b := files(t, s, "blobs"); len(b) > 0 {
			t.Errorf("failed, and left blobs: %v", b)
		}
	}
	return s, log, err
}

// A source that breaks off every time and cannot go on where it stopped is given up.
func TestTransferThatAlwaysBreaks(t *testing.T) {
	t.Parallel()
	w := newServer(t, ggufFile(9, 0, 1, 400_000))
	w.cutAt, w.ignoreRange = 100_000, true
	_, _, err := pull(t, w.vendor("w", 0), nil)
	wantFault(t, err, fault.Unavailable, "source_cut", "")
	if n := w.count(); n > quick.attempts+1 {
		t.Errorf("asked %d times", n)
	}
}

func TestTransferRecovers(t *testing.T) {
	t.Parallel()
	body := ggufFile(9, 0, 1, 400_000)
	for name, prepare := range map[string]func(*server){
		"cut once":            func(w *server) { w.cutAt, w.cuts = 100_000, 1 },
		"cut, no etag":        func(w *server) { w.cutAt, w.cuts, w.noETag = 100_000, 1, true },
		"cut, range ignored":  func(w *server) { w.cutAt, w.cuts, w.ignoreRange = 100_000, 1, true },
		"stalls once":         func(w *server) { w.cutAt, w.cuts, w.hang = 100_000, 1, true },
		"busy":                func(w *server) { w.status, w.statusTimes = 503, 2 },
		"too many, with date": func(w *server) { w.status, w.statusTimes, w.header = 429, 1, http.Header{"Retry-After": {"1"}} },
		"internal error":      func(w *server) { w.status, w.statusTimes = 500, 1 },
		"wrong range":         func(w *server) { w.cutAt, w.cuts, w.wrongRange = 100_000, 1, true },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newServer(t, body)
			prepare(w)
			s, log, err := pull(t, w.vendor("w", 0), nil)
			if err != nil {
				t.Fatal(err)
			}
			if !log.has("retry", "") {
				t.Error("nothing was said about the second try")
			}
			m, _ := s.Model("w:x")
			p, err := s.ModelPath(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := os.ReadFile(p); sum256(b) != sum256(body) {
				t.Error("wrong bytes")
			}
		})
	}
}

func TestTransferGivesUp(t *testing.T) {
	t.Parallel()
	body := ggufFile(9, 0, 1, 400_000)
	for name, c := range map[string]struct {
		prepare func(*server)
		kind    fault.Kind
		code    string
		tries   int
	}{
		"gone":                            {func(w *server) { w.status, w.statusTimes = 404, 99 }, fault.NotFound, "source_not_found", 1},
		"forbidden":                       {func(w *server) { w.status, w.statusTimes = 403, 99 }, fault.Denied, "source_denied", 1},
		"always busy":                     {func(w *server) { w.status, w.statusTimes = 503, 99 }, fault.Unavailable, "source_unavailable", 3},
		"teapot":                          {func(w *server) { w.status, w.statusTimes = 418, 99 }, fault.Unavailable, "source_broken", 1},
		"encoded":                         {func(w *server) { w.encoding = "gzip" }, fault.Unavailable, "source_broken", 1},
		"cut at the same place, no range": {func(w *server) { w.cutAt, w.ignoreRange = 100_000, true }, fault.Unavailable, "source_cut", 3},
		"another size":                    {func(w *server) { w.bodies[0] = append(w.bodies[0], 0) }, fault.Conflict, "source_changed", 1},
		"redirect loop":                   {func(w *server) { w.status, w.statusTimes, w.header = 302, 99, http.Header{"Location": {"/0"}} }, fault.Unavailable, egress.CodeRedirect, 2},
		"redirect to a file": {func(w *server) {
			w.status, w.statusTimes, w.header = 302, 99, http.Header{"Location": {"file:///etc/passwd"}}
		}, fault.Denied, egress.CodeRefused, 1},
		"redirect to this machine": {func(w *server) {
			w.status, w.statusTimes, w.header = 302, 99, http.Header{"Location": {strings.Replace(w.URL, "http:", "https:", 1)}}
		}, fault.Denied, egress.CodeRefused, 1},
		"drips": {func(w *server) { w.drip = true }, fault.Unavailable, "source_stalled", 3},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newServer(t, append([]byte(nil), body...))
			v := w.vendor("w", 0)
			c.prepare(w)
			_, _, err := pull(t, v, nil)
			wantFault(t, err, c.kind, c.code, "")
			if strings.Contains(err.Error(), "secret=1") {
				t.Errorf("the query is shown: %v", err)
			}
			if n := w.count(); n != c.tries {
				t.Errorf("%d requests, want %d", n, c.tries)
			}
		})
	}
}

func TestWrongBytes(t *testing.T) {
	body := ggufFile(5, 0, 1, 5000)
	w := newServer(t, body)
	v := w.vendor("w", 0)
	want := sum256(body)
	w.bodies[0] = ggufFile(6, 0, 1, 5000) // as long, but another
	s, _, err := pull(t, v, nil)
	wantFault(t, err, fault.Conflict, codeDigest, want)
	if got := sum256(w.bodies[0]); !strings.Contains(err.Error(), got) {
		t.Errorf("%v does not name %s", err, got)
	}
	jail := files(t, s, "quarantine")
	if len(jail) != 1 || len(files(t, s, "partial")) != 0 {
		t.Errorf("quarantine %v, partial %v", jail, files(t, s, "partial"))
	}
	// A second source with the right bytes is used.
	good := newServer(t, body)
	v.man.Files[0].Sources = append(v.man.Files[0].Sources, good.vendor("w", 0).man.Files[0].Sources...)
	if _, _, err := pull(t, v, nil); err != nil {
		t.Error(err)
	}
}

// A partial file with damaged bytes is noticed and fetched anew, once.
func TestDamagedPartial(t *testing.T) {
	body := ggufFile(5, 0, 1, 5000)
	w := newServer(t, body)
	v := w.vendor("w", 0)
	s := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = append(o.Vendors, v) })
	for _, garbage := range [][]byte{body[:1000], []byte(strings.Repeat("x", 1000)), []byte(strings.Repeat("x", len(body))), []byte(strings.Repeat("x", len(body)+5))} {
		write(t, s.path("partial", sum256(body)+".part"), garbage)
		if _, err := s.PullModel(t.Context(), "w:x", nil); err != nil {
			t.Fatal(err)
		}
		if err := s.RemoveModel("w:x"); err != nil {
			t.Fatal(err)
		}
	}
	if q := files(t, s, "quarantine"); len(q) > 0 {
		t.Errorf("in quarantine: %v", q)
	}
}

// What arrives as it was published but is no model never becomes visible.
func TestNotAModel(t *testing.T) {
	whole := ggufFile(5, 0, 1, 5000)
	for name, c := range map[string]struct {
		body []byte
		code string
		part string
	}{
		"text":      {[]byte("Dear all, here is the list"), "not_a_model", `m-00001-of-00001.gguf is not a model: it starts with "Dear all, he", and a GGUF file starts with "GGUF".`},
		"zip":       {[]byte("PK\x03\x04archive/data.pkl"), "not_a_model", "zip archive"},
		"pickle":    {[]byte("\x80\x02}q\x00."), "not_a_model", "pickle"},
		"truncated": {whole[:len(whole)-1], "model_truncated", "cut off"},
		"version":   {append([]byte("GGUF\x09\x00\x00\x00"), whole[8:]...), "not_a_model", "version 9"},
		"malformed": {append(append([]byte(nil), whole[:16]...), make([]byte, 200)...), "model_malformed", "malformed"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newServer(t, c.body)
			s, _, err := pull(t, w.vendor("w", 0), nil)
			wantFault(t, err, fault.Invalid, c.code, c.part)
			if left := files(t, s, "partial"); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// T63: a credential goes to the host that it belongs to, and not along with a redirect to another port.
func TestCredentialStaysAtItsHost(t *testing.T) {
	body := ggufFile(5, 0, 1, 5000)
	cdn := newServer(t, body)
	front := newServer(t, body)
	front.status, front.statusTimes, front.header = 302, 99, http.Header{"Location": {cdn.URL + "/0?signed"}}
	var asked []string
	_, _, err := pull(t, front.vendor("w", 0), func(o *Options) {
		o.Credentials = func(name, host string) (secret.Secret, error) {
			asked = append(asked, name+"@"+host)
			return "canary", nil
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := front.last().Header.Get("Authorization"); got != "Bearer canary" {
		t.Errorf("the host got %q", got)
	}
	for _, h := range []string{"Authorization", "Cookie", "Referer"} {
		if got := cdn.last().Header.Get(h); got != "" {
			t.Errorf("the other host got %s %q", h, got)
		}
	}
	if len(asked) != 1 || asked[0] != "cred@"+strings.TrimPrefix(front.URL, "http://") {
		t.Errorf("asked for %v", asked)
	}
}

func TestManifestIsChecked(t *testing.T) {
	body := ggufFile(5, 0, 1, 500)
	w := newServer(t, body)
	secretFile := write(t, filepath.Join(t.TempDir(), "secret.gguf"), body)
	for name, change := range map[string]func(m *vendor.Manifest){
		"up":        func(m *vendor.Manifest) { m.Files[0].Path = "../x.gguf" },
		"absolute":  func(m *vendor.Manifest) { m.Files[0].Path = "/x.gguf" },
		"backslash": func(m *vendor.Manifest) { m.Files[0].Path = `a\b.gguf` },
		"control":   func(m *vendor.Manifest) { m.Files[0].Path = "a\x1b.gguf" },
		"no files":  func(m *vendor.Manifest) { m.Files = nil },
		"no source": func(m *vendor.Manifest) { m.Files[0].Sources = nil },
		"twice": func(m *vendor.Manifest) {
			m.Files = append(m.Files, m.Files[0])
			m.Files[1].Path = "M-00001-OF-00001.gguf"
		},
		"digest":     func(m *vendor.Manifest) { m.Files[0].Digests.SHA256 = "../../../etc" },
		"sha512":     func(m *vendor.Manifest) { m.Files[0].Digests.SHA512 = "abc" },
		"git digest": func(m *vendor.Manifest) { m.Files[0].Digests.GitBlobSHA1 = strings.Repeat("G", 40) },
		"git, no size": func(m *vendor.Manifest) {
			m.Files[0].Digests.GitBlobSHA1, m.Files[0].Size = strings.Repeat("0", 40), -1
		},
		"role":         func(m *vendor.Manifest) { m.Files[0].Role = "x\n" },
		"no weights":   func(m *vendor.Manifest) { m.Files[0].Role = vendor.RoleProjector },
		"local file":   func(m *vendor.Manifest) { m.Files[0].Sources[0].URL = "file://" + secretFile },
		"unknown":      func(m *vendor.Manifest) { m.Files[0].Sources[0].URL = "gopher://x/y" },
		"other format": func(m *vendor.Manifest) { m.Format = "safetensors" },
		"member":       func(m *vendor.Manifest) { m.Files[0].Member = &vendor.ArchiveMember{} },
		"user in URL":  func(m *vendor.Manifest) { m.Files[0].Sources[0].URL = "http://u:p@h/0" },
	} {
		t.Run(name, func(t *testing.T) {
			v := w.vendor("w", 0)
			change(&v.man)
			if _, _, err := pull(t, v, nil); fault.KindOf(err) != fault.Invalid {
				t.Errorf("got %v", err)
			}
		})
	}
}

// A body of unknown length must not fill the disk.
func TestUnknownLength(t *testing.T) {
	body := ggufFile(5, 0, 1, 100_000)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(body); i += 10_000 { // chunked
			_, _ = w.Write(body[i:min(i+10_000, len(body))])
			_ = http.NewResponseController(w).Flush()
		}
	}))
	defer srv.Close()
	v := &webVendor{scheme: "w", man: vendor.Manifest{Reference: "w:x", Format: "gguf", Files: []vendor.File{{
		Path: "m.gguf", Size: -1, Sources: []vendor.Source{{URL: srv.URL}},
	}}}}
	s, _, err := pull(t, v, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Model("w:x")
	if err != nil || m.ID != "w:x@"+sum256(body)[:12] {
		t.Errorf("pinned as %q, %v", m.ID, err)
	}
}

func TestHostHTTP(t *testing.T) {
	t.Parallel()
	var tries int
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/busy":
			if tries++; tries < 3 {
				w.WriteHeader(503)
			}
		case "/big":
			buf := make([]byte, 1<<20)
			for range 18 {
				if _, err := w.Write(buf); err != nil {
					return
				}
			}
		case "/moved":
			http.Redirect(w, r, "/auth", http.StatusFound)
		case "/auth":
			_, _ = w.Write([]byte(r.Header.Get("Authorization")))
		}
	}))
	defer srv.Close()
	h := NewHost(HostOptions{Name: "test", HTTP: ownClient(impatient), Credentials: func(name, _ string) (secret.Secret, error) {
		if name == "damaged" {
			return "", fault.New(fault.Invalid, "credential_damaged", "It is damaged.")
		}
		return secret.Secret("token-" + name), nil
	}})
	h.(*host).pause = time.Millisecond
	get := func(path string) (*vendor.HTTPResponse, error) {
		return h.HTTP(t.Context(), vendor.HTTPRequest{Method: "GET", URL: srv.URL + path, Credential: "c", Header: map[string]string{"Authorization": "forged"}})
	}
	if res, err := get("/busy"); err != nil || res.Status != 200 || tries != 3 {
		t.Errorf("busy: %+v after %d tries, %v", res, tries, err)
	}
	if _, err := get("/big"); fault.As(err).Code != "answer_too_large" {
		t.Errorf("big: %v", err)
	}
	if res, err := get("/auth"); err != nil || string(res.Body) != "Bearer token-c" {
		t.Errorf("auth: %s, %v", res.Body, err)
	}
	if res, err := get("/moved"); err != nil || res.Status != 200 {
		t.Errorf("moved: %+v, %v", res, err)
	}
	if res, err := h.HTTP(t.Context(), vendor.HTTPRequest{Method: "HEAD", URL: srv.URL + "/moved", Manual: true}); err != nil || res.Status != 302 || res.Header["Location"] != "/auth" {
		t.Errorf("moved, by hand: %+v, %v", res, err)
	}
	if _, err := h.HTTP(t.Context(), vendor.HTTPRequest{Method: "GET", URL: "file:///etc/passwd"}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("file: %v", err)
	}
	if _, err := h.HTTP(t.Context(), vendor.HTTPRequest{Method: "GET", URL: srv.URL, Credential: "damaged"}); fault.As(err) == nil || fault.As(err).Code != "credential_damaged" {
		t.Errorf("a credential that cannot be read: %v", err)
	}
	h.Log("warn", "hello", "key", "value")
}

func TestLockIsReleasedAndFair(t *testing.T) {
	s := openStore(t, t.TempDir(), nil)
	unlock, err := s.lock(t.Context(), "x", nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.lock(ctx, "x", cancel); !errors.Is(err, context.Canceled) {
		t.Fatalf("a held lock: %v", err)
	}
	unlock()
	if unlock, err = s.lock(t.Context(), "x", nil); err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := os.Stat(s.path("partial", "x.lock")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the lock file stays: %v", err)
	}
}
