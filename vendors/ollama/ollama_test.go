package ollama

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/testutil/fakehost"
	"github.com/apiary-dev/apiary/core/testutil/ociregistry"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func newVendor(t testing.TB, registry string) (*Vendor, *fakehost.Host) {
	t.Helper()
	values, err := json.Marshal(Settings{Registry: registry})
	if err != nil {
		t.Fatal(err)
	}
	v, host := New(), &fakehost.Host{}
	if err := v.Configure(t.Context(), vendor.Configuration{Values: values, Host: host}); err != nil {
		t.Fatal(err)
	}
	return v, host
}

func newRegistry(t testing.TB) *ociregistry.Registry {
	r := ociregistry.New()
	t.Cleanup(r.Close)
	return r
}

func push(t testing.TB, r *ociregistry.Registry, name, tag string, layers ...ociregistry.Layer) string {
	t.Helper()
	d, err := r.Push(name, tag, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func resolve(t testing.TB, v *Vendor, ref string) (*vendor.Manifest, error) {
	t.Helper()
	return v.Resolve(t.Context(), vendor.ResolveRequest{Reference: ref})
}

func wantError(t *testing.T, err error, kind vendor.Kind, code, part string) *vendor.Error {
	t.Helper()
	e, ok := errors.AsType[*vendor.Error](err)
	if !ok || e.Kind != kind || e.Code != code || !strings.Contains(e.Message, part) || !strings.HasSuffix(e.Message, ".") {
		t.Fatalf("got %+v, want %s %s %q", err, kind, code, part)
	}
	return e
}

func TestResolve(t *testing.T) {
	model, err := os.ReadFile("../builtin/models/stories260k.gguf")
	if err != nil {
		t.Fatal(err)
	}
	r := newRegistry(t)
	pinned := push(t, r, "library/stories", "latest",
		ociregistry.Layer{Kind: "model", Body: model}, ociregistry.Layer{Kind: "template", Body: []byte("{{ .Prompt }}")}, ociregistry.Layer{Kind: "params", Body: []byte("{}")},
		ociregistry.Layer{Kind: "system", Body: []byte("be kind")}, ociregistry.Layer{Kind: "license", Body: []byte("MIT")}, ociregistry.Layer{Kind: "license", Body: []byte("more")},
		ociregistry.Layer{Kind: "projector", Body: []byte("GGUF")}, ociregistry.Layer{Kind: "embed", Body: []byte("?")})
	v, host := newVendor(t, r.URL)
	at := strings.TrimPrefix(r.URL, "http://")
	got, err := resolve(t, v, "ollama:stories")
	if err != nil {
		t.Fatal(err)
	}
	if want := "ollama:" + at + "/library/stories:latest@" + pinned; got.Reference != want || got.Format != "gguf" || got.Meta["manifest"] != pinned {
		t.Errorf("%+v", got)
	}
	var files []string
	for _, f := range got.Files {
		files = append(files, f.Path+" "+f.Role)
		if len(f.Sources) != 1 || f.Sources[0].URL != r.URL+"/v2/library/stories/blobs/sha256:"+f.Digests.SHA256 || !f.Sources[0].Ranges || f.Sources[0].Credential != "ollama" {
			t.Errorf("%+v", f)
		}
	}
	if diff := cmp.Diff([]string{"model.gguf weights", "template.txt template", "params.json config", "system.txt config", "license.txt license", "license-2.txt license", "projector.gguf projector"}, files); diff != "" {
		t.Error(diff)
	}
	if got.Files[0].Size != int64(len(model)) || len(host.Asked) != 1 || host.Asked[0] != "GET /v2/library/stories/manifests/latest" {
		t.Errorf("%+v, asked %v", got.Files[0], host.Asked)
	}
	for _, ref := range []string{"ollama:library/stories:latest", "ollama:" + at + "/library/stories", got.Reference} {
		if again, err := resolve(t, v, ref); err != nil || again.Reference != got.Reference {
			t.Errorf("%s: %+v, %v", ref, again, err)
		}
	}
}

// A tag that moves on does not take pinned references along.
func TestPinned(t *testing.T) {
	r := newRegistry(t)
	first := push(t, r, "me/m", "v1", ociregistry.Layer{Kind: "model", Body: []byte("one")})
	v, _ := newVendor(t, r.URL)
	old, err := resolve(t, v, "ollama:me/m:v1")
	if err != nil {
		t.Fatal(err)
	}
	second := push(t, r, "me/m", "v1", ociregistry.Layer{Kind: "model", Body: []byte("two")})
	if got, err := resolve(t, v, "ollama:me/m:v1"); err != nil || !strings.HasSuffix(got.Reference, second) {
		t.Errorf("%+v, %v", got, err)
	}
	got, err := resolve(t, v, old.Reference)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(old, got); diff != "" || !strings.HasSuffix(got.Reference, first) {
		t.Error(diff)
	}
	r.Set(ociregistry.Faults{OnlyByTag: true})
	_, err = resolve(t, v, old.Reference)
	if e := wantError(t, err, vendor.KindNotFound, "model_changed", "has me/m:v1 no more as it was"); len(e.Candidates) != 1 || !strings.HasSuffix(e.Candidates[0], "/me/m:v1") {
		t.Errorf("%+v", e.Candidates)
	}
}

func TestShards(t *testing.T) {
	r := newRegistry(t)
	push(t, r, "library/big", "latest", ociregistry.Layer{Kind: "template", Body: []byte("t")}, ociregistry.Layer{Kind: "model", Body: []byte("one")}, ociregistry.Layer{Kind: "model", Body: []byte("two")})
	v, _ := newVendor(t, r.URL)
	got, err := resolve(t, v, "ollama:big")
	if err != nil || got.Files[1].Path != "model-00001-of-00002.gguf" || got.Files[2].Path != "model-00002-of-00002.gguf" {
		t.Errorf("%+v, %v", got, err)
	}
}

// answers is a host that answers everything with the same.
type answers struct {
	fakehost.Host
	res vendor.HTTPResponse
	err error
	url []string
}

func (a *answers) HTTP(_ context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	a.url = append(a.url, req.URL)
	return &a.res, a.err
}

func with(t testing.TB, registry string, a *answers) *Vendor {
	t.Helper()
	v := New()
	if err := v.Configure(t.Context(), vendor.Configuration{Values: []byte(`{"registry":"` + registry + `"}`), Host: a}); err != nil {
		t.Fatal(err)
	}
	return v
}

const layerOne = `{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53","size":5}`

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		kind   vendor.Kind
		code   string
		part   string
	}{
		"unknown":     {404, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, vendor.KindNotFound, "model_not_found", "no model m:latest"},
		"private":     {401, "", vendor.KindDenied, "registry_denied", "apiary credential set ollama"},
		"busy":        {503, "", vendor.KindUnavailable, "registry_unavailable", "try again later"},
		"too often":   {429, "", vendor.KindExhausted, "rate_limited", "try again later"},
		"odd status":  {302, "", vendor.KindUnavailable, "registry_garbage", "its status is 302"},
		"web page":    {200, "<html>", vendor.KindUnavailable, "registry_garbage", "no JSON"},
		"no layers":   {200, `{}`, vendor.KindUnavailable, "registry_garbage", "0 layers"},
		"many layers": {200, `{"layers":[` + strings.Repeat(layerOne+",", maxLayers) + layerOne + `]}`, vendor.KindUnavailable, "registry_garbage", "513 layers"},
		"an index":    {200, `{"manifests":[{}]}`, vendor.KindUnavailable, "registry_garbage", "images for containers"},
		"bad digest":  {200, `{"layers":[{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:../../x","size":5}]}`, vendor.KindUnavailable, "registry_garbage", "no digest"},
		"bad size":    {200, strings.Replace(`{"layers":[`+layerOne+`]}`, ":5", ":-5", 1), vendor.KindUnavailable, "registry_garbage", "no digest or size"},
		"adapter":     {200, `{"layers":[` + layerOne + `,` + strings.Replace(layerOne, "image.model", "image.adapter", 1) + `]}`, vendor.KindInvalid, "unsupported_model", "adapter"},
		"tensors":     {200, `{"layers":[` + strings.Replace(layerOne, "image.model", "image.tensor", 1) + `]}`, vendor.KindInvalid, "unsupported_model", "GGUF"},
		"a container": {200, `{"layers":[` + strings.Replace(layerOne, "vnd.ollama.image.model", "vnd.docker.image.rootfs.diff.tar.gzip", 1) + `]}`, vendor.KindInvalid, "unsupported_model", "GGUF"},
	} {
		t.Run(name, func(t *testing.T) {
			a := &answers{res: vendor.HTTPResponse{Status: c.status, Body: []byte(c.body)}}
			_, err := resolve(t, with(t, "https://r.test", a), "ollama:m")
			wantError(t, err, c.kind, c.code, c.part)
		})
	}
	a := &answers{res: vendor.HTTPResponse{Status: 429, Header: map[string]string{"Retry-After": "7"}}}
	_, err := resolve(t, with(t, "https://r.test", a), "ollama:m")
	if e := wantError(t, err, vendor.KindExhausted, "rate_limited", "in 7 s"); e.RetryAfterMS != 7000 {
		t.Errorf("%+v", e)
	}
	a = &answers{err: errors.New("no network")}
	if _, err := resolve(t, with(t, "https://r.test", a), "ollama:m"); !errors.Is(err, a.err) {
		t.Errorf("got %v", err)
	}
	if _, err := resolve(t, New(), "ollama:m"); err == nil {
		t.Error("without settings")
	}
}

// Only the configured registry is asked in the clear, and only its host is left out of nothing.
func TestHosts(t *testing.T) {
	body := `{"layers":[` + layerOne + `]}`
	for _, c := range []struct{ registry, ref, url, canonical string }{
		{"", "ollama:m", DefaultRegistry + "/v2/library/m/manifests/latest", "ollama:library/m:latest"},
		{"", "ollama:other.test/a/m", "https://other.test/v2/a/m/manifests/latest", "ollama:other.test/a/m:latest"},
		{"http://127.0.0.1:5000", "ollama:m", "http://127.0.0.1:5000/v2/library/m/manifests/latest", "ollama:127.0.0.1:5000/library/m:latest"},
		{"http://127.0.0.1:5000/", "ollama:127.0.0.1:5000/library/m:x", "http://127.0.0.1:5000/v2/library/m/manifests/x", "ollama:127.0.0.1:5000/library/m:x"},
		{"http://127.0.0.1:5000", "ollama:127.0.0.1:5001/library/m", "https://127.0.0.1:5001/v2/library/m/manifests/latest", "ollama:127.0.0.1:5001/library/m:latest"},
		{"http://R.test", "ollama:r.TEST/A/M:Q4", "http://r.test/v2/A/M/manifests/Q4", "ollama:r.test/A/M:Q4"},
	} {
		a := &answers{res: vendor.HTTPResponse{Status: 200, Body: []byte(body)}}
		m, err := resolve(t, with(t, c.registry, a), c.ref)
		if err != nil || !slices.Equal(a.url, []string{c.url}) || m.Reference != c.canonical+"@"+digestOf([]byte(body)) {
			t.Errorf("%s at %s: %v, %+v, %v", c.ref, c.registry, a.url, m, err)
		}
	}
}

func TestReferences(t *testing.T) {
	sha := "sha256:" + strings.Repeat("0a", 32)
	for ref, want := range map[string]string{
		"ollama:m": "ollama:library/m:latest", "ollama:m:7b-q4_K_M": "ollama:library/m:7b-q4_K_M", "ollama:a/m": "ollama:a/m:latest", "ollama:h.test:1/a/m:t@" + sha: "ollama:h.test:1/a/m:t@" + sha,
		"ollama:m@" + sha: "ollama:library/m:latest@" + sha, "ollama:hf.co/User/Repo-GGUF:Q4_K_M": "ollama:hf.co/User/Repo-GGUF:Q4_K_M", "ollama:[::1]:5000/a/m": "ollama:[::1]:5000/a/m:latest",
		"ollama:": "", "ollama:/m": "", "ollama:a/": "", "ollama:a/b/c/d": "", "ollama:m:": "", "ollama:../m": "", "ollama:a/../m": "", "ollama:-m": "", "ollama:m m": "", "ollama:m%2f": "", "ollama:m?x": "",
		"ollama:m@sha256:12": "", "ollama:m@": "", "ollama:u@h/a/m": "", "ollama:h?/a/m": "", "ollama:./a/m": "", "ollama:h#/a/m": "", "ollama:" + strings.Repeat("a", 81): "", "hf:m": "", "ollama:m\x1b[2J": "",
	} {
		got, err := parse(ref)
		if want == "" {
			if err == nil {
				t.Errorf("%q: %v", ref, got)
				continue
			}
			wantError(t, err, vendor.KindInvalid, "invalid_reference", "ollama:MODEL")
		} else if err != nil || got.String() != want {
			t.Errorf("%q: %q, %v", ref, got, err)
		}
	}
}

func TestConfigure(t *testing.T) {
	for _, bad := range []string{`{"registry":"r.test"}`, `{"registry":"ftp://r.test"}`, `{"registry":"https://r.test/v2"}`, `{"registry":"https://u:p@r.test"}`, `{"registry":7}`, `x`} {
		err := New().Configure(t.Context(), vendor.Configuration{Values: []byte(bad)})
		if e := wantError(t, err, vendor.KindInvalid, "invalid_registry", "write for example"); e.Param != "registry" {
			t.Errorf("%s: %+v", bad, e)
		}
	}
	v := New()
	if s := v.Schema(); len(s.Attributes) != 1 || !v.Supports("ollama:x") || v.Supports("hf:x") || v.Info().Name != "ollama" {
		t.Errorf("%+v", s)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("ollama:m", `{"layers":[`+layerOne+`]}`)
	f.Add("ollama:h.test/a/m:t@sha256:"+strings.Repeat("0a", 32), `{"layers":[`+layerOne+`,`+layerOne+`]}`)
	f.Fuzz(func(t *testing.T, ref, body string) {
		m, err := resolve(t, with(t, "https://r.test", &answers{res: vendor.HTTPResponse{Status: 200, Body: []byte(body)}}), ref)
		if err != nil {
			return
		}
		if again, err := parse(m.Reference); err != nil || again.String() != m.Reference {
			t.Errorf("the canonical reference %q is read as %v, %v", m.Reference, again, err)
		}
	})
}
