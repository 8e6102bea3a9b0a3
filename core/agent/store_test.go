package agent

import (
	"net/url"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/workers/provision/npm"
)

func testReach(t *testing.T, change func(*config.Config, *config.Vendor)) *reach {
	t.Helper()
	cfg := &config.Config{Home: t.TempDir(), Vendors: []config.Vendor{{Name: config.VendorHub, Enabled: true, Credential: "hf_canary"}}}
	change(cfg, &cfg.Vendors[0])
	r := newReach(cfg)
	r.registry = npm.New(npm.Options{})
	return r
}

// S17: only what the configuration names may be private or plain.
func TestOwnOrigins(t *testing.T) {
	r := testReach(t, func(c *config.Config, v *config.Vendor) {
		v.Endpoint = "http://10.0.0.5:9000/hf"
		c.Hive.Mirrors = []string{"http://10.0.0.6"}
	})
	for u, want := range map[string]bool{
		"http://10.0.0.5:9000/api/models": true, "http://10.0.0.5:9001/": false, "https://10.0.0.5:9000/": false, "http://10.0.0.6:80/x": true, "http://10.0.0.6:81/x": false,
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
