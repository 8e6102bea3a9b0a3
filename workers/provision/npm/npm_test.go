package npm

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestPin(t *testing.T) {
	p := New(Options{})
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
		if got, _, err := p.Pin(ref, linux); fault.As(err) == nil || fault.As(err).Code != "invalid_reference" {
			t.Errorf("%q: %q, %v", ref, got, err)
		}
	}
	for _, ref := range []string{"npm:b@1.2.3", "npm:@a/b.c_d@10.20.30-beta.1"} {
		if got, _, err := p.Pin(ref, linux); err != nil || got != ref {
			t.Errorf("%q: %q, %v", ref, got, err)
		}
	}
	if _, _, err := p.Pin("npm:@a/{platform}@1.2.3", on("plan9", "amd64")); fault.As(err).Code != "no_build" {
		t.Errorf("plan9: %v", err)
	}
}

// environment is one for tests.
func environment(vars map[string]string, files map[string]string, npmSays string) Environment {
	return Environment{
		Getenv: func(k string) string { return vars[k] }, Home: "/home/u",
		ReadFile: func(p string) ([]byte, error) {
			if s, ok := files[p]; ok {
				return []byte(s), nil
			}
			return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
		},
		AskNpm: func(context.Context) (string, error) {
			if npmSays == "" {
				return "", errors.New("npm is not installed")
			}
			return npmSays + "\n", nil
		},
	}
}

func TestDiscover(t *testing.T) {
	rc := map[string]string{"/home/u/.npmrc": "registry=https://rc.test/\n", "/other": "registry = \"https://other.test/npm/\"\n; a comment\n[section]\nbroken line\n"}
	for name, c := range map[string]struct {
		configured string
		env        Environment
		scope      string
		want       string // empty: an error
	}{
		"configuration first": {"https://conf.test/", environment(map[string]string{"NPM_CONFIG_REGISTRY": "https://env.test"}, rc, "https://npm.test/"), "", "https://conf.test"},
		"environment":         {"", environment(map[string]string{"NPM_CONFIG_REGISTRY": "https://env.test/x/"}, rc, "https://npm.test/"), "", "https://env.test/x"},
		"environment, lower":  {"", environment(map[string]string{"npm_config_registry": "http://env.test:8080"}, rc, ""), "", "http://env.test:8080"},
		"npmrc":               {"", environment(nil, rc, "https://npm.test/"), "", "https://rc.test"},
		"another npmrc":       {"", environment(map[string]string{"NPM_CONFIG_USERCONFIG": "/other"}, rc, "https://npm.test/"), "", "https://other.test/npm"},
		"npm":                 {"", environment(nil, nil, "https://npm.test/"), "", "https://npm.test"},
		"nothing":             {"", environment(nil, nil, ""), "", ""},
		"npm says nonsense":   {"", environment(nil, nil, "undefined"), "", ""},
		"scope":               {"", environment(nil, map[string]string{"/home/u/.npmrc": "@s:registry=https://scope.test\n"}, "https://npm.test/"), "@s", "https://scope.test"},
		"other scope":         {"", environment(nil, map[string]string{"/home/u/.npmrc": "@s:registry=https://scope.test\n"}, "https://npm.test/"), "@t", "https://npm.test"},
		"scope, configured":   {"https://conf.test", environment(nil, map[string]string{"/home/u/.npmrc": "@s:registry=https://scope.test\n"}, ""), "@s", "https://conf.test"},
		"empty environment":   {"https://conf.test", Environment{}, "", "https://conf.test"},
	} {
		s, err := discover(t.Context(), c.configured, c.env)
		got := ""
		if err == nil {
			got, err = s.registry(c.scope)
		}
		if got != c.want || (err != nil) != (c.want == "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if c.want == "" && (fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "NPM_CONFIG_REGISTRY")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{"registry.test", "ftp://x", "https://u:p@x", "https://x/?q=1", "https://", "file:///x"} {
		if _, err := discover(t.Context(), bad, Environment{}); fault.As(err) == nil || fault.As(err).Code != "invalid_registry" {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestTokens(t *testing.T) {
	env := environment(map[string]string{"TOKEN": "from-env"}, map[string]string{"/home/u/.npmrc": strings.Join([]string{
		"//one.test/:_authToken=plain", "//two.test:8443/path/:_authToken=${TOKEN}", "//three.test/:_authToken=${UNSET}", "_authToken=global", "//four.test/:_password=x",
	}, "\n")}, "https://npm.test")
	host := &fakeHost{answers: map[string]string{}}
	p := New(Options{Host: host, Env: env})
	if got := p.Credential(Scheme, "one.test"); got != "" {
		t.Error("a token before anything was read")
	}
	_, _ = p.Plan(t.Context(), vendor.PlanRequest{Reference: "npm:b@1.2.3"})
	for h, want := range map[string]string{"one.test": "plain", "ONE.test": "plain", "two.test:8443": "from-env", "two.test": "", "three.test": "${UNSET}", "four.test": "", "npm.test": "", "evil.one.test": ""} {
		if got := p.Credential(Scheme, h).Reveal(); got != want {
			t.Errorf("%s: %q, want %q", h, got, want)
		}
	}
	if p.Credential("huggingface", "one.test") != "" {
		t.Error("the token answers to another name")
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
		p, err := New(Options{Registry: registry, Host: h}).Plan(t.Context(), vendor.PlanRequest{Reference: "npm:@n/{platform}@1.2.3", Platform: on})
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
		if _, _, err := plan("https://reg.test", packumentOf("https://reg.test/x.tgz", sri)); fault.As(err) == nil || fault.As(err).Code != "no_integrity" || len(err.Error()) > 500 {
			t.Errorf("integrity %q: %v", sri, err)
		}
	}
	for name, c := range map[string]struct {
		body string
		kind fault.Kind
	}{
		"no such version":  {`{"versions":{"1.2.4":{}}}`, fault.NotFound},
		"a page":           {"<!DOCTYPE html>", fault.Unavailable},
		"another shape":    {`{"versions":[]}`, fault.Unavailable},
		"null":             {`null`, fault.NotFound},
		"deep":             {`{"versions":` + strings.Repeat("[", 1<<20), fault.Unavailable},
		"8 MiB":            {`{"versions":{}}` + strings.Repeat(" ", 8<<20), fault.Exhausted},
		"huge number":      {packumentOf("https://reg.test/x.tgz", "x")[:20] + strings.Repeat("9", 4000), fault.Unavailable},
		"number too large": {`{"versions":{"1.2.3":{"dist":{"unpackedSize":1e99}}}}`, fault.Unavailable},
	} {
		if _, _, err := plan("https://reg.test", c.body); fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v", name, err)
		} else if len(err.Error()) > 400 || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' }) {
			t.Errorf("%s: a message of %d bytes", name, len(err.Error()))
		}
	}
	for status, kind := range map[int]fault.Kind{404: fault.NotFound, 401: fault.Denied, 403: fault.Denied, 429: fault.Unavailable, 500: fault.Unavailable, 302: fault.Unavailable} {
		h := &fakeHost{status: status}
		_, err := New(Options{Registry: "https://reg.test", Host: h}).Plan(t.Context(), vendor.PlanRequest{Reference: "npm:b@1.2.3", Platform: on})
		if fault.KindOf(err) != kind {
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
		p, err := New(Options{Registry: "https://reg.test", Host: h}).Plan(t.Context(), vendor.PlanRequest{Reference: "npm:b@1.2.3"})
		if c.want == "" && fault.KindOf(err) != fault.NotFound || c.want != "" && (err != nil || p.Files[0].Sources[0].URL != c.want) || len(h.requests) != c.asked {
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

// S17: only the host of a configured registry counts as the user's own choice.
func TestOwn(t *testing.T) {
	env := environment(nil, map[string]string{"/home/u/.npmrc": "@s:registry=http://scope.test:4873/npm\n"}, "https://Npm.test/")
	p := New(Options{Host: &fakeHost{}, Env: env})
	own := func(s string) bool {
		u, err := url.Parse(s)
		return err == nil && p.Own(u)
	}
	if own("https://npm.test/x") {
		t.Error("before anything was read")
	}
	_, _ = p.Plan(t.Context(), vendor.PlanRequest{Reference: "npm:b@1.2.3"})
	for u, want := range map[string]bool{
		"https://npm.test/x": true, "http://npm.test/x": false, "https://npm.test:8443/": false, "https://evil.npm.test/": false,
		"http://scope.test:4873/y": true, "https://scope.test:4873/y": true, "http://scope.test/": false, "https://cdn.test/": false,
	} {
		if own(u) != want {
			t.Errorf("%s: %v", u, !want)
		}
	}
}
