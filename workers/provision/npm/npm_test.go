package npm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// kindOf is the kind of an error for the user.
func kindOf(err error) vendor.Kind {
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e.Kind
	}
	return ""
}

func codeOf(err error) string {
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e.Code
	}
	return ""
}

// at is the provisioner of one registry.
func at(t *testing.T, registry string, h vendor.Host) *Provisioner {
	t.Helper()
	p := New()
	values, err := json.Marshal(Settings{Registry: registry})
	if err == nil {
		err = p.Configure(t.Context(), vendor.Configuration{Values: values, Host: h})
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConfigure(t *testing.T) {
	p := New()
	if _, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: "npm:b@1.2.3"}); codeOf(err) != "no_registry" {
		t.Errorf("got %v", err)
	}
	if err := p.Configure(t.Context(), vendor.Configuration{Values: []byte(`{"registry":"https://reg.test/npm/","scopes":{"@s":"https://scope.test/"}}`)}); err != nil {
		t.Fatal(err)
	}
	for scope, want := range map[string]string{"": "https://reg.test/npm", "@s": "https://scope.test", "@t": "https://reg.test/npm"} {
		if got, err := p.registry(scope); err != nil || got != want {
			t.Errorf("%q: %q, %v", scope, got, err)
		}
	}
	for _, bad := range []string{`{"registry":"ftp://x"}`, `{"registry":"https://u:p@x"}`, `{"registry":"https://x/?q"}`, `{"registry":7}`, `[]`, `{"scopes":{"@s":"x"}}`} {
		if err := p.Configure(t.Context(), vendor.Configuration{Values: []byte(bad)}); codeOf(err) != "invalid_registry" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestPin(t *testing.T) {
	p := New()
	on := func(osName, arch string, devices ...string) vendor.Platform {
		return vendor.Platform{OS: osName, Arch: arch, Devices: devices}
	}
	for _, c := range []struct {
		on   vendor.Platform
		want string
	}{
		{on("linux", "amd64"), "linux-x64"},
		{on("linux", "amd64", "cpu"), "linux-x64"},
		{on("linux", "amd64", "cuda", "vulkan", "cpu"), "linux-x64-cuda"},
		{on("linux", "amd64", "vulkan", "cuda"), "linux-x64-cuda"},
		{on("linux", "amd64", "vulkan", "cpu"), "linux-x64-vulkan"},
		{on("linux", "amd64", "rocm", "cpu"), "linux-x64-vulkan"},
		{on("linux", "arm64", "cuda"), "linux-arm64"},
		{on("darwin", "arm64", "metal"), "mac-arm64-metal"},
		{on("darwin", "amd64"), "mac-x64"},
	} {
		ref, platform, err := p.Pin("npm:@a/{platform}@3.21.1", c.on)
		if err != nil || ref != "npm:@a/"+c.want+"@3.21.1" || platform != c.want {
			t.Errorf("%+v: %s %s %v", c.on, ref, platform, err)
		}
	}
	linux := on("linux", "amd64")
	for _, ref := range []string{
		"npm:", "npm:@a/b", "npm:a", "npm:@a/b@", "npm:@a/b@latest", "npm:@a/b@^1.2.3", "npm:@a/b@1.x", "npm:@a/b@1.2", "npm:@a/b@>=1.2.3", "npm:@a/b@1.2.3 || 2.0.0",
		"npm:@a/b@*", "npm:@a/../b@1.2.3", "npm:../b@1.2.3", "npm:@/b@1.2.3", "npm:@a@1.2.3", "npm:@a/b/c@1.2.3", "npm:@a/b@1.2.3-../x", "npm:@a/B@1.2.3", "npm:-b@1.2.3",
		"npm:b@1.2.3/../..", "npm:b@1.2.3-", "npm:b?x@1.2.3", "npm:b%2f@1.2.3", "npm:" + strings.Repeat("b", 65) + "@1.2.3",
	} {
		if got, _, err := p.Pin(ref, linux); codeOf(err) != "invalid_reference" {
			t.Errorf("%q: %q, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"npm:b@1.2.3", "npm:@a/b.c_d@10.20.30-beta.1"} {
		if got, _, err := p.Pin(ref, linux); err != nil || got != ref {
			t.Errorf("%q: %q, %v", ref, got, err)
		}
	}
	if _, _, err := p.Pin("npm:@a/{platform}@1.2.3", on("plan9", "amd64")); codeOf(err) != "no_build" {
		t.Errorf("plan9: %v", err)
	}
}

// fakeHost answers metadata requests.
type fakeHost struct {
	vendor.Host
	answers  map[string]string // by URL
	status   int
	requests []vendor.HTTPRequest
}

func (h *fakeHost) HTTP(_ context.Context, r vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	h.requests = append(h.requests, r)
	if h.status != 0 {
		return &vendor.HTTPResponse{Status: h.status}, nil
	}
	if a, ok := h.answers[r.URL]; ok {
		return &vendor.HTTPResponse{Status: 200, Body: []byte(a)}, nil
	}
	return &vendor.HTTPResponse{Status: 404}, nil
}

func (h *fakeHost) Log(string, string, ...string) {}

const goodIntegrity = "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk= sha512-" // and 64 zero bytes

func packumentOf(tarball, integrity string) string {
	return fmt.Sprintf(`{"name":"x","versions":{"1.2.3":{"dist":{"tarball":%q,"integrity":%q,"shasum":"da39","unpackedSize":1000}}}}`, tarball, integrity)
}

func TestPlan(t *testing.T) {
	integrity := goodIntegrity + base64.StdEncoding.EncodeToString(make([]byte, 64))
	on := vendor.Platform{OS: "linux", Arch: "amd64", Devices: []string{"cpu"}}
	plan := func(registry, body string) (*vendor.Plan, *fakeHost, error) {
		h := &fakeHost{answers: map[string]string{registry + "/@n%2flinux-x64": body}}
		p, err := at(t, registry, h).Plan(t.Context(), vendor.PlanRequest{Reference: "npm:@n/{platform}@1.2.3", Platform: on})
		return p, h, err
	}
	p, h, err := plan("https://reg.test/npm", packumentOf("https://reg.test/npm/@n/linux-x64/-/linux-x64-1.2.3.tgz", integrity))
	if err != nil {
		t.Fatal(err)
	}
	if h.requests[0].URL != "https://reg.test/npm/@n%2flinux-x64/1.2.3" {
		t.Errorf("asked for %v", h.requests[0])
	}
	if a := h.requests[1].Header["Accept"]; !strings.HasPrefix(a, "application/vnd.npm.install-v1+json") {
		t.Errorf("asked with %v", h.requests[0].Header)
	}
	f, x := p.Files[0], p.Steps[0].Extract
	if p.Reference != "npm:@n/linux-x64@1.2.3" || p.Name != "llama.cpp" || p.Version != "1.2.3" || p.Platform != "linux-x64" || f.Digests.SHA512 != strings.Repeat("0", 128) || f.Digests.SHA256 != "" ||
		x.Prefix != "package/bins/linux-x64/" || x.MaxBytes != 1000 || x.MaxEntries != maxEntries || p.Steps[1].Link.Match != "libllama.v*.so" || p.Steps[1].Link.Name != "libllama.so" {
		t.Errorf("got %+v", p)
	}
	// Where the tarball may come from.
	for tarball, want := range map[string]string{
		"https://reg.test/npm/@n/linux-x64/-/linux-x64-1.2.3.tgz": "https://reg.test/npm/@n/linux-x64/-/linux-x64-1.2.3.tgz",
		"/elsewhere/x.tgz":           "https://reg.test/elsewhere/x.tgz",
		"https://cdn.test/x.tgz":     "https://reg.test/npm/@n/linux-x64/-/linux-x64-1.2.3.tgz https://cdn.test/x.tgz",
		"http://cdn.test/x.tgz":      "https://reg.test/npm/@n/linux-x64/-/linux-x64-1.2.3.tgz",
		"http://reg.test/x.tgz":      "https://reg.test/npm/@n/linux-x64/-/linux-x64-1.2.3.tgz",
		"file:///etc/passwd":         "",
		"https://u:p@cdn.test/x.tgz": "",
		"":                           "", // the registry itself is no tarball
		"https:///x":                 "",
	} {
		p, _, err := plan("https://reg.test/npm", packumentOf(tarball, integrity))
		var got []string
		if err == nil {
			for _, s := range p.Files[0].Sources {
				got = append(got, s.URL)
			}
		}
		if strings.Join(got, " ") != want || (err == nil) != (want != "") {
			t.Errorf("%q: %v, %v", tarball, got, err)
		}
	}
	// What is no proof.
	for _, sri := range []string{"", "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk=", "sha512-", "sha512-AAAA", "sha512-!!!", "sha512-" + strings.Repeat("A", 5000), strings.Repeat("md5-x ", 5000), "SHA512-" + base64.StdEncoding.EncodeToString(make([]byte, 64))} {
		if _, _, err := plan("https://reg.test", packumentOf("https://reg.test/x.tgz", sri)); codeOf(err) != "no_integrity" || len(err.Error()) > 500 {
			t.Errorf("integrity %q: %v", sri, err)
		}
	}
	for name, c := range map[string]struct {
		body string
		kind vendor.Kind
	}{
		"no such version":  {`{"versions":{"1.2.4":{}}}`, vendor.KindNotFound},
		"a page":           {"<!DOCTYPE html>", vendor.KindUnavailable},
		"another shape":    {`{"versions":[]}`, vendor.KindUnavailable},
		"null":             {`null`, vendor.KindNotFound},
		"deep":             {`{"versions":` + strings.Repeat("[", 1<<20), vendor.KindUnavailable},
		"8 MiB":            {`{"versions":{}}` + strings.Repeat(" ", 8<<20), vendor.KindExhausted},
		"huge number":      {packumentOf("https://reg.test/x.tgz", "x")[:20] + strings.Repeat("9", 4000), vendor.KindUnavailable},
		"number too large": {`{"versions":{"1.2.3":{"dist":{"unpackedSize":1e99}}}}`, vendor.KindUnavailable},
	} {
		if _, _, err := plan("https://reg.test", c.body); kindOf(err) != c.kind {
			t.Errorf("%s: %v", name, err)
		} else if len(err.Error()) > 400 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
			t.Errorf("%s: a message of %d bytes", name, len(err.Error()))
		}
	}
	for status, kind := range map[int]vendor.Kind{404: vendor.KindNotFound, 401: vendor.KindDenied, 403: vendor.KindDenied, 429: vendor.KindUnavailable, 500: vendor.KindUnavailable, 302: vendor.KindUnavailable} {
		h := &fakeHost{status: status}
		_, err := at(t, "https://reg.test", h).Plan(t.Context(), vendor.PlanRequest{Reference: "npm:b@1.2.3", Platform: on})
		if kindOf(err) != kind {
			t.Errorf("%d: %v", status, err)
		}
	}
}

// The description of one version is asked for where the registry gives it; a whole package may have thousands.
func TestOneVersion(t *testing.T) {
	integrity := goodIntegrity + base64.StdEncoding.EncodeToString(make([]byte, 64))
	one := func(version string) string {
		return fmt.Sprintf(`{"version":%q,"dist":{"tarball":"https://reg.test/x.tgz","integrity":%q}}`, version, integrity)
	}
	whole := fmt.Sprintf(`{"versions":{"1.2.3":{"dist":{"tarball":"https://reg.test/whole.tgz","integrity":%q}}}}`, integrity)
	for name, c := range map[string]struct {
		answers map[string]string
		want    string // empty: not found
		asked   int
	}{
		"it is given":     {map[string]string{"b/1.2.3": one("1.2.3")}, "https://reg.test/x.tgz", 1},
		"it is not given": {map[string]string{"b": whole}, "https://reg.test/whole.tgz", 2},
		"another version": {map[string]string{"b/1.2.3": one("1.2.4"), "b": whole}, "https://reg.test/whole.tgz", 2},
		"a whole package": {map[string]string{"b/1.2.3": whole, "b": whole}, "https://reg.test/whole.tgz", 2},
		"nothing":         {nil, "", 2},
	} {
		h := &fakeHost{answers: map[string]string{}}
		for k, v := range c.answers {
			h.answers["https://reg.test/"+k] = v
		}
		p, err := at(t, "https://reg.test", h).Plan(t.Context(), vendor.PlanRequest{Reference: "npm:b@1.2.3"})
		if c.want == "" && kindOf(err) != vendor.KindNotFound || c.want != "" && (err != nil || p.Files[0].Sources[0].URL != c.want) || len(h.requests) != c.asked {
			t.Errorf("%s: %+v, %v after %d requests", name, p, err, len(h.requests))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"npm:@a/b@1.2.3", "npm:b@1.2.3-x", "npm:@a/{platform}@1.2.3", "npm:@@@"} {
		f.Add(s)
	}
	on := vendor.Platform{OS: "linux", Arch: "amd64"}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parse(s, on)
		if err != nil {
			return
		}
		for _, part := range []string{p.base, p.version, p.platform} {
			if strings.ContainsAny(part, "/\\ \x00%?#") || strings.Contains(part, "..") || part == "" {
				t.Errorf("%q gives %+v", s, p)
			}
		}
		if again, err := parse(p.reference(), on); err != nil || again != p {
			t.Errorf("%q is not stable: %+v, %v", p.reference(), again, err)
		}
	})
}
