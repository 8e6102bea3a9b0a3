package artifact

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// stranger is a vendor from elsewhere: what it names is fetched with a client that knows its grants.
type stranger struct {
	shelf
	client *http.Client
}

func (s stranger) FileClient() *http.Client { return s.client }

// shelf is a vendor of one model, for the scheme "x".
type shelf struct{ manifest vendor.Manifest }

func (shelf) Info() vendor.Info        { return vendor.Info{Name: "shelf", Schemes: []string{"x"}} }
func (shelf) Supports(ref string) bool { return strings.HasPrefix(ref, "x:") }
func (s shelf) Resolve(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
	m := s.manifest
	return &m, nil
}

// onShelf is a shelf with the model of this test, to be had at url.
func onShelf(t *testing.T, url string) (shelf, []byte) {
	body := stories(t)
	return shelf{vendor.Manifest{Reference: "x:m@1", Format: "gguf", Files: []vendor.File{{
		Path: "m.gguf", Size: int64(len(body)), Digests: vendor.Digests{SHA256: hashText(string(body))}, Sources: []vendor.Source{{URL: url, Ranges: true}},
	}}}}, body
}

// granting returns a client of a plugin that may go to the servers.
func granting(servers ...*httptest.Server) *http.Client {
	o := pluginhost.ServicesOptions{Name: "x", Store: pluginhost.OpenStore(""), Log: slog.New(slog.DiscardHandler)}
	for _, s := range servers {
		o.Grants.HTTP = append(o.Grants.HTTP, s.Listener.Addr().String())
	}
	o.Grants.Private = o.Grants.HTTP
	return pluginhost.NewServices(o).Client()
}

// TestRedirectOfPlugin: what a plugin names may redirect only to where the plugin may go, however many hops there are; what a vendor
// of this build names may lead to servers that the configuration names.
func TestRedirectOfPlugin(t *testing.T) {
	body := stories(t)
	end := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	defer end.Close()
	middle := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, end.URL+"/signed?secret=1", http.StatusFound)
	}))
	defer middle.Close()
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, middle.URL+"/cdn", http.StatusFound) }))
	defer first.Close()
	v, _ := onShelf(t, first.URL+"/m")
	for name, c := range map[string]struct {
		may  []*httptest.Server
		code string
	}{
		"all":          {[]*httptest.Server{first, middle, end}, ""},
		"not the last": {[]*httptest.Server{first, middle}, pluginhost.CodeNotGranted},
		"not the next": {[]*httptest.Server{first, end}, pluginhost.CodeNotGranted},
	} {
		s := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = []vendor.Vendor{stranger{v, granting(c.may...)}} })
		_, err := s.PullModel(t.Context(), "x:m", nil)
		if c.code == "" && err != nil || c.code != "" && (fault.As(err).Code != c.code || fault.KindOf(err) != fault.Denied || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A host that is granted to a plugin is none that others may be led to.
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Vendors, o.HTTP = []vendor.Vendor{stranger{v, granting(first, middle, end)}, shelf2{v}}, nil
	})
	if _, err := s.PullModel(t.Context(), "y:m", nil); fault.As(err).Code != "source_refused" {
		t.Errorf("a vendor of this build: %v", err)
	}
	built := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = []vendor.Vendor{v} })
	if _, err := built.PullModel(t.Context(), "x:m", nil); err != nil {
		t.Errorf("servers of the configuration: %v", err)
	}
}

// shelf2 is a shelf for another scheme.
type shelf2 struct{ shelf }

func (shelf2) Supports(ref string) bool { return strings.HasPrefix(ref, "y:") }

// signer is a server whose addresses are signed, and the vendor that signs them.
type signer struct {
	shelf
	srv  *httptest.Server
	body []byte

	mu sync.Mutex
	// mu guards the fields below.
	valid  string // the signature that is accepted
	next   int
	status int  // of a refusal
	cut    int  // bytes after which a signature ends; 0: never
	stale  bool // what is signed has expired already
	change func(*vendor.File)
	asked  []string
	ranges []string
}

func newSigner(t *testing.T) *signer {
	s := &signer{status: http.StatusForbidden}
	s.srv = httptest.NewServer(s)
	t.Cleanup(s.srv.Close)
	s.shelf, s.body = onShelf(t, s.srv.URL+"/m?sig=0")
	return s
}

func (s *signer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ranges = append(s.ranges, r.Header.Get("Range"))
	if r.URL.Query().Get("sig") != s.valid {
		w.WriteHeader(s.status)
		return
	}
	body, from := s.body, 0
	if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(body)-1, len(body)))
		body = body[from:]
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	if s.cut > 0 && s.cut < len(body) {
		s.valid = ""
		_, _ = w.Write(body[:s.cut])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(body)
}

func (s *signer) RefreshSources(_ context.Context, req vendor.RefreshRequest) ([]vendor.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, req.Reference+" "+strings.Join(req.Paths, ","))
	s.next++
	s.valid = fmt.Sprint(s.next)
	f := s.manifest.Files[0]
	f.Sources = []vendor.Source{{URL: s.srv.URL + "/m?sig=" + s.valid, Ranges: true}}
	if s.stale {
		f.Sources[0].ExpiresUnixMS = 1
	}
	if s.change != nil {
		s.change(&f)
	}
	return []vendor.File{f}, nil
}

// TestRefreshSources: an address that has expired, before the first byte or in the middle, is replaced by the vendor, three times a
// file, and what has arrived is not fetched again.
func TestRefreshSources(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(*signer)
		asked int
		code  string
	}{
		"refused with 401": {func(s *signer) { s.status = http.StatusUnauthorized }, 1, ""},
		"refused with 403": {func(*signer) {}, 1, ""},
		"gone":             {func(s *signer) { s.status = http.StatusGone }, 1, ""},
		"time is over": {func(s *signer) {
			s.valid = "0"
			s.manifest.Files[0].Sources[0].ExpiresUnixMS = time.Now().Add(-time.Minute).UnixMilli()
		}, 1, ""},
		"time is left": {func(s *signer) {
			s.valid = "0"
			s.manifest.Files[0].Sources[0].ExpiresUnixMS = time.Now().Add(time.Hour).UnixMilli()
		}, 0, ""},
		"in the middle":      {func(s *signer) { s.valid, s.cut = "0", 400_000 }, 2, ""},
		"no end":             {func(s *signer) { s.cut = 100_000 }, 3, "source_denied"},
		"always expired":     {func(s *signer) { s.stale = true }, 3, ""},
		"not found":          {func(s *signer) { s.status = http.StatusNotFound }, 0, "source_not_found"},
		"another digest":     {func(s *signer) { s.change = func(f *vendor.File) { f.Digests.SHA256 = strings.Repeat("0", 64) } }, 1, "source_changed"},
		"another size":       {func(s *signer) { s.change = func(f *vendor.File) { f.Size++ } }, 1, "source_changed"},
		"another member":     {func(s *signer) { s.change = func(f *vendor.File) { f.Member = &vendor.ArchiveMember{Path: "x"} } }, 1, "source_changed"},
		"another file":       {func(s *signer) { s.change = func(f *vendor.File) { f.Path = "other" } }, 1, "no_new_source"},
		"without an address": {func(s *signer) { s.change = func(f *vendor.File) { f.Sources = nil } }, 1, "no_new_source"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSigner(t)
			c.set(s)
			st := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = []vendor.Vendor{s} })
			_, err := st.PullModel(t.Context(), "x:m", nil)
			if c.code == "" && err != nil || c.code != "" && fault.As(err).Code != c.code {
				t.Errorf("%v, want %q", err, c.code)
			}
			if len(s.asked) != c.asked || c.asked > 0 && s.asked[0] != "x:m@1 m.gguf" {
				t.Errorf("asked for others %q, want %d times", s.asked, c.asked)
			}
			if name == "in the middle" && s.ranges[len(s.ranges)-1] != fmt.Sprintf("bytes=800000-%d", len(s.body)-1) {
				t.Errorf("asked for %q", s.ranges)
			}
		})
	}
}
