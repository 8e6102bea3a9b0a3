package npmrc

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

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
		want       string // empty: none is found
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
		base, scopes, err := New(c.configured, c.env).Addresses(t.Context())
		if at, ok := scopes[c.scope]; ok {
			base = at
		}
		if base != c.want || err != nil {
			t.Errorf("%s: %q, %v", name, base, err)
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
	r := New("", env)
	if got := r.Credential("one.test"); got != "" {
		t.Error("a token before anything was read")
	}
	if _, _, err := r.Addresses(t.Context()); err != nil {
		t.Fatal(err)
	}
	for h, want := range map[string]string{"one.test": "plain", "ONE.test": "plain", "two.test:8443": "from-env", "two.test": "", "three.test": "${UNSET}", "four.test": "", "npm.test": "", "evil.one.test": ""} {
		if got := r.Credential(h).Reveal(); got != want {
			t.Errorf("%s: %q, want %q", h, got, want)
		}
	}
}

// S17: only the host of a configured registry counts as the user's own choice.
func TestOwn(t *testing.T) {
	env := environment(nil, map[string]string{"/home/u/.npmrc": "@s:registry=http://scope.test:4873/npm\n"}, "https://Npm.test/")
	p := New("", env)
	own := func(s string) bool {
		u, err := url.Parse(s)
		return err == nil && p.Own(u)
	}
	if own("https://npm.test/x") {
		t.Error("before anything was read")
	}
	if _, _, err := p.Addresses(t.Context()); err != nil {
		t.Fatal(err)
	}
	for u, want := range map[string]bool{
		"https://npm.test/x": true, "http://npm.test/x": false, "https://npm.test:8443/": false, "https://evil.npm.test/": false,
		"http://scope.test:4873/y": true, "https://scope.test:4873/y": true, "http://scope.test/": false, "https://cdn.test/": false,
	} {
		if own(u) != want {
			t.Errorf("%s: %v", u, !want)
		}
	}
}
