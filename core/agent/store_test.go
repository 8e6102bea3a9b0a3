package agent

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/npmrc"
	"github.com/apiary-dev/apiary/core/pip"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/fakehost"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/pypi"
)

func testReach(t *testing.T, change func(*config.Config, *config.Vendor)) *reach {
	t.Helper()
	cfg := &config.Config{Home: t.TempDir(), Vendors: []config.Vendor{{Name: config.VendorHub, Enabled: true, Credential: "hf_canary"}}}
	change(cfg, &cfg.Vendors[0])
	r := newReach(cfg)
	r.registry, r.index = npmrc.New("", npmrc.Environment{}), pip.New("", pip.Environment{})
	return r
}

// S17: only what the configuration names may be private or plain.
func TestOwnOrigins(t *testing.T) {
	r := testReach(t, func(c *config.Config, v *config.Vendor) {
		v.Endpoint = "http://10.0.0.5:9000/hf"
		c.Hive.Mirrors = []string{"http://10.0.0.6"}
		// What one plugin may ask is open to that plugin alone.
		c.Plugins = []config.Plugin{{Name: "x", Enabled: true, Grants: config.Grants{HTTP: []string{"10.0.0.7:3000"}, Private: []string{"10.0.0.7:3000"}}}}
	})
	for u, want := range map[string]bool{
		"http://10.0.0.5:9000/api/models": true, "http://10.0.0.5:9001/": false, "https://10.0.0.5:9000/": false, "http://10.0.0.6:80/x": true, "http://10.0.0.6:81/x": false, "http://10.0.0.7:3000/": false,
		"https://huggingface.co/": false, "http://127.0.0.1/": false,
	} {
		parsed, err := url.Parse(u)
		if err != nil || r.own(parsed) != want {
			t.Errorf("%s: %v", u, err)
		}
	}
	off := testReach(t, func(_ *config.Config, v *config.Vendor) { v.Enabled = false })
	if parsed, _ := url.Parse("https://huggingface.co/"); off.own(parsed) {
		t.Error("a vendor that is switched off names an origin")
	}
}

// S17: the hub's token goes to the hub and nowhere else.
func TestHubToken(t *testing.T) {
	check := func(r *reach, name, host string, want secret.Secret) {
		t.Helper()
		if got, err := r.credential(name, host); err != nil || got.Reveal() != want.Reveal() {
			t.Errorf("%s for %s: %s, %v", name, host, got.Reveal(), err)
		}
	}
	r := testReach(t, func(*config.Config, *config.Vendor) {})
	check(r, "huggingface", "huggingface.co", "hf_canary")
	check(r, "huggingface", "HuggingFace.co:443", "hf_canary")
	for _, host := range []string{"cdn.huggingface.co", "huggingface.co:8443", "huggingface.co.example.org", "127.0.0.1", ""} {
		check(r, "huggingface", host, "")
	}
	check(r, "npm", "huggingface.co", "")
	check(r, "url", "huggingface.co", "")
	mirror := testReach(t, func(_ *config.Config, v *config.Vendor) { v.Endpoint = "http://127.0.0.1:9000" })
	check(mirror, "huggingface", "127.0.0.1:9000", "hf_canary")
	check(mirror, "huggingface", "huggingface.co", "")
	// A configured credential comes first, and for its hosts only.
	both := testReach(t, func(c *config.Config, _ *config.Vendor) {
		c.Credentials = []config.Credential{{Name: "huggingface", Value: "stored", Hosts: []string{"huggingface.co", "other.example.org"}}}
	})
	check(both, "huggingface", "huggingface.co", "stored")
	check(both, "huggingface", "other.example.org", "stored")
	off := testReach(t, func(_ *config.Config, v *config.Vendor) { v.Enabled = false })
	check(off, "huggingface", "huggingface.co", "")
}

// S17: the registries of Ollama and of Python packages, and the password that pip has for the latter.
func TestRegistries(t *testing.T) {
	r := testReach(t, func(c *config.Config, _ *config.Vendor) {
		c.Vendors = append(c.Vendors, config.Vendor{Name: config.VendorOllama, Enabled: true, Registry: "http://127.0.0.1:5000"})
	})
	r.index = pip.New("", pip.Environment{Getenv: func(name string) string {
		return map[string]string{"PIP_INDEX_URL": "http://me:canary@10.0.0.7:3141/simple"}[name]
	}})
	at, err := r.index.URL(t.Context())
	if err != nil || at != "http://10.0.0.7:3141/simple" {
		t.Fatalf("%s, %v", at, err)
	}
	for u, want := range map[string]bool{
		"http://127.0.0.1:5000/v2/": true, "http://127.0.0.1:5001/v2/": false, "http://10.0.0.7:3141/packages/x": true, "http://10.0.0.7/packages/x": false, "https://registry.ollama.ai/": false,
	} {
		parsed, err := url.Parse(u)
		if err != nil || r.own(parsed) != want {
			t.Errorf("%s: %v", u, err)
		}
	}
	for _, c := range []struct{ name, host, want string }{
		{"pypi", "10.0.0.7:3141", "Basic bWU6Y2FuYXJ5"}, {"pypi", "10.0.0.7", ""}, {"pypi", "files.test", ""}, {"ollama", "10.0.0.7:3141", ""}, {"npm", "10.0.0.7:3141", ""},
	} {
		if got, err := r.credential(c.name, c.host); err != nil || got.Reveal() != c.want {
			t.Errorf("%s for %s: %q, %v", c.name, c.host, got.Reveal(), err)
		}
	}
}

// The vendor of Python packages is configured when it is first asked, and again after a failure.
func TestLate(t *testing.T) {
	asked, answer := 0, error(errors.New("pip is broken"))
	v := pypi.New()
	l := &late{Vendor: v, settled: settled{plugin: v, host: &fakehost.Host{}, find: func(context.Context) (any, error) {
		asked++
		return pypi.Settings{Registry: "http://127.0.0.1:1/simple"}, answer
	}}}
	if asked != 0 || !l.Supports("pypi:x") {
		t.Fatal("asked too early")
	}
	if _, err := l.Resolve(t.Context(), vendor.ResolveRequest{Reference: "pypi:x"}); !errors.Is(err, answer) {
		t.Errorf("got %v", err)
	}
	answer = nil
	for range 2 {
		if _, err := l.Resolve(t.Context(), vendor.ResolveRequest{Reference: "pypi:x"}); err == nil || !strings.Contains(err.Error(), "127.0.0.1:1/simple/x/") {
			t.Errorf("got %v", err)
		}
	}
}
