package github

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/testutil/fakehost"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const sha = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

var linux = vendor.Platform{OS: "linux", Arch: "amd64"}

// hub is a server that behaves like the API: one release, its assets in pages of two.
type hub struct {
	*httptest.Server
	assets []asset
	sums   string // what the list of checksums says
	status int    // of every answer of the API
	header http.Header
	tokens []string
}

func newHub(t *testing.T, assets ...asset) (*hub, *Provisioner, *fakehost.Host) {
	t.Helper()
	h := &hub{}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	for i, a := range assets {
		a.URL, a.Download = fmt.Sprintf("%s/api/v3/repos/o/r/releases/assets/%d", h.URL, i), h.URL+"/o/r/releases/download/b1/"+a.Name
		h.assets = append(h.assets, a)
	}
	p, host := New(), &fakehost.Host{Token: "canary"}
	values, err := json.Marshal(Settings{Endpoint: h.URL + "/api/v3/"})
	if err == nil {
		err = p.Configure(t.Context(), vendor.Configuration{Values: values, Host: host})
	}
	if err != nil {
		t.Fatal(err)
	}
	return h, p, host
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.tokens = append(h.tokens, r.Header.Get("Authorization"))
	if h.status != 0 {
		for k, v := range h.header {
			w.Header()[k] = v
		}
		w.WriteHeader(h.status)
		return
	}
	at := strings.TrimPrefix(r.URL.EscapedPath(), "/api/v3/repos/o/r/releases/")
	switch {
	case at == "tags/b1" || at == "tags/v1%2Fx":
		_ = json.NewEncoder(w).Encode(map[string]any{"id": 7, "tag_name": "b1", "draft": false, "assets": h.assets[:min(1, len(h.assets))]})
	case at == "7/assets":
		page, _ := strconv.Atoi(r.URL.Query().Get("page"))
		page = max(page, 1)
		if from := 2 * page; from < len(h.assets) {
			w.Header().Set("Link", fmt.Sprintf(`<%s/api/v3/repos/o/r/releases/7/assets?per_page=100&page=%d>; rel="next", <%s/x>; rel="last"`, h.URL, page+1, h.URL))
		}
		_ = json.NewEncoder(w).Encode(h.assets[min(2*page-2, len(h.assets)):min(2*page, len(h.assets))])
	case strings.HasPrefix(at, "assets/"):
		if r.Header.Get("Accept") != "application/octet-stream" {
			_ = json.NewEncoder(w).Encode(h.assets[0])
			return
		}
		http.Redirect(w, r, "https://objects.test/signed?sig=1", http.StatusFound)
	case strings.Contains(r.URL.Path, "/releases/download/") && strings.Contains(strings.ToLower(r.URL.Path), "sha256"):
		_, _ = w.Write([]byte(h.sums))
	default:
		w.WriteHeader(404)
		_, _ = w.Write([]byte(`{"message":"Not Found","status":"404"}`))
	}
}

func plan(t *testing.T, p *Provisioner, ref string) (*vendor.Plan, error) {
	t.Helper()
	return p.Plan(t.Context(), vendor.PlanRequest{Reference: ref, Platform: linux})
}

func TestPlan(t *testing.T) {
	h, p, _ := newHub(t,
		asset{Name: "llama-b1-bin-macos-arm64.zip", Digest: "sha256:" + strings.Repeat("0", 64)}, asset{Name: "llama-b1-bin-win-cpu-x64.zip"}, asset{Name: "llama-b1-bin-ubuntu-arm64.tar.gz"},
		asset{Name: "llama-b1-bin-ubuntu-x64.tar.gz", State: "uploaded", Size: 1000, Digest: "sha256:" + strings.ToUpper(sha)}, asset{Name: "llama-b1-bin-linux-x64.tar.gz", State: "starter"}, asset{Name: "llama-b1-bin-ubuntu-vulkan-x64.tar.gz"},
	)
	want := "github:o/r@b1/llama-b1-bin-ubuntu-x64.tar.gz"
	for _, ref := range []string{want, "github:o/r@b1/llama-*-bin-{platform}.tar.gz", "github:o/r@b1/*-{os}-{arch}.tar.gz"} {
		got, err := plan(t, p, ref)
		if err != nil {
			t.Fatal(err)
		}
		f := got.Files[0]
		if got.Reference != want || got.Name != "r" || got.Version != "b1" || f.Digests.SHA256 != sha || f.Size != 1000 || len(f.Sources) != 2 || f.Sources[0].URL != h.URL+"/o/r/releases/download/b1/llama-b1-bin-ubuntu-x64.tar.gz" ||
			f.Sources[0].Credential != Scheme || f.Sources[1].URL != "https://objects.test/signed?sig=1" || f.Sources[1].Credential != "" || got.Steps[1].Link.Match != "**/llama-server" || !got.Steps[2].Expect.Executable {
			t.Errorf("%s: %+v", ref, got)
		}
	}
	if slices.Contains(h.tokens, "") || h.tokens[0] != "Bearer canary" {
		t.Errorf("tokens: %q", h.tokens)
	}
	got, err := plan(t, p, want+"//build/bin/llama-server")
	if err != nil || got.Reference != want+"//build/bin/llama-server" || len(got.Steps) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if spec, err := p.Launch(t.Context(), vendor.LaunchRequest{Reference: got.Reference, EngineDir: "/e"}); err != nil || spec.Path != "build/bin/llama-server" || spec.Env["LD_LIBRARY_PATH"] != "/e/build/bin" {
		t.Errorf("%+v, %v", spec, err)
	}
	if got, err := plan(t, p, "github:o/r@v1/x/llama-b1-bin-macos-arm64.zip"); err != nil || got.Version != "v1-x" {
		t.Errorf("%+v, %v", got, err)
	}
	for ref, id := range map[string]string{want: want, "github:o/r@b1/*.zip": "", "github:o/r@b1/a-{os}": ""} {
		if got, platform, err := p.Pin(ref, linux); err != nil || got != id || platform != "linux-amd64" {
			t.Errorf("%s: %q, %v", ref, got, err)
		}
	}
}

func TestChecksums(t *testing.T) {
	h, p, _ := newHub(t, asset{Name: "x.tar.gz"}, asset{Name: "x.tar.gz.asc"}, asset{Name: "SHA256SUMS"})
	h.sums = strings.Repeat("1", 64) + "  y.tar.gz\n" + sha + " *x.tar.gz\n"
	if got, err := plan(t, p, "github:o/r@b1/x.tar.gz"); err != nil || got.Files[0].Digests.SHA256 != sha {
		t.Errorf("%+v, %v", got, err)
	}
	h.assets[2].Name, h.assets[2].Download, h.sums = "x.tar.gz.sha256", h.URL+"/o/r/releases/download/b1/x.tar.gz.sha256", sha+"\n"
	if got, err := plan(t, p, "github:o/r@b1/x.tar.gz"); err != nil || got.Files[0].Digests.SHA256 != sha {
		t.Errorf("%+v, %v", got, err)
	}
	h.sums = "nothing"
	_, err := plan(t, p, "github:o/r@b1/x.tar.gz")
	if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != "no_digest" || e.Kind != vendor.KindDenied {
		t.Errorf("got %v", err)
	}
}

func TestErrors(t *testing.T) {
	h, p, _ := newHub(t, asset{Name: "a-linux-x64.zip", Digest: "sha256:" + sha}, asset{Name: "b-linux-x64.zip", Digest: "sha256:" + sha})
	p.now = func() time.Time { return time.Unix(1_000_000, 0) }
	check := func(ref, code string, kind vendor.Kind) *vendor.Error {
		t.Helper()
		_, err := plan(t, p, ref)
		e, ok := errors.AsType[*vendor.Error](err)
		if !ok || e.Code != code || e.Kind != kind || !strings.HasSuffix(e.Message, ".") {
			t.Fatalf("%s: %v (%+v)", ref, err, e)
		}
		return e
	}
	check("github:o/r@b2/a", "engine_not_found", vendor.KindNotFound)
	if e := check("github:o/r@b1/c.zip", "engine_not_found", vendor.KindNotFound); len(e.Candidates) != 2 || e.Candidates[0] != "github:o/r@b1/a-linux-x64.zip" {
		t.Errorf("%v", e.Candidates)
	}
	check("github:o/r@b1/*-{platform}.zip", "ambiguous_asset", vendor.KindInvalid)
	for _, c := range []struct {
		status int
		header http.Header
		code   string
		kind   vendor.Kind
		wait   int64
	}{
		{403, http.Header{"X-Ratelimit-Remaining": {"0"}, "X-Ratelimit-Reset": {"1000090"}}, "rate_limited", vendor.KindExhausted, 90_000},
		{429, http.Header{"Retry-After": {"7"}}, "rate_limited", vendor.KindExhausted, 7_000},
		{429, nil, "rate_limited", vendor.KindExhausted, 60_000},
		{403, http.Header{"X-Ratelimit-Remaining": {"3"}}, "github_denied", vendor.KindDenied, 0},
		{401, nil, "github_denied", vendor.KindDenied, 0},
		{500, nil, "github_unavailable", vendor.KindUnavailable, 0},
		{200, nil, "bad_answer", vendor.KindUnavailable, 0},
	} {
		h.status, h.header = c.status, c.header
		if e := check("github:o/r@b1/a-linux-x64.zip", c.code, c.kind); e.RetryAfterMS != c.wait {
			t.Errorf("%d: wait %d", c.status, e.RetryAfterMS)
		}
	}
	for _, ref := range []string{
		"github:", "github:o/r", "github:o/r@b1", "github:o/r@b1/", "github:o@b1/x", "github:/r@b1/x", "github:o/..@b1/x", "github:o/r@../x/y", "github:o/r@latest/x", "github:o/r@b*/x", "github:o/r@b1/[", "github:o/r@b1/a b",
		"github:o/r@b1/x//../y", "github:o/r@b1/x//", "github:o/r@b1/x///etc/passwd", "github:o/r?@b1/x", "github:o/r@b1/%2e", "github:" + strings.Repeat("o", 200) + "/r@b1/x",
	} {
		if _, _, err := p.Pin(ref, linux); err == nil {
			t.Errorf("%q is accepted", ref)
		}
	}
	for _, bad := range []string{`{"endpoint":"ftp://x"}`, `{"endpoint":"https://u:p@x"}`, `[]`} {
		if New().Configure(t.Context(), vendor.Configuration{Values: []byte(bad)}) == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("github:o/r@v1/x/a-{os}.zip//b/c")
	f.Fuzz(func(t *testing.T, s string) {
		if r, err := parse(s); err == nil {
			if again, err := parse(r.String()); err != nil || again != r {
				t.Errorf("%q is read as %v, %v", r.String(), again, err)
			}
		}
	})
}
