package config

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

func TestHubEnvironment(t *testing.T) {
	all := map[string]string{"HF_ENDPOINT": "https://mirror.example.org/", "HF_TOKEN": " canary\n", "HF_HUB_OFFLINE": "on"}
	for name, c := range map[string]struct {
		file string
		env  map[string]string
		want Vendor
		show string
	}{
		"nothing":     {"", nil, Vendor{}, `endpoint   = ""`},
		"environment": {"", all, Vendor{Endpoint: "https://mirror.example.org", Credential: "canary", Offline: true}, "# from HF_TOKEN"},
		"file first": {"endpoint = \"http://10.0.0.5\"\ncredential = \"mine\"\noffline = true", all,
			Vendor{Endpoint: "http://10.0.0.5", Credential: "mine", Offline: true}, `endpoint   = "http://10.0.0.5"`},
		"empty":         {"", map[string]string{"HF_ENDPOINT": "", "HF_TOKEN": "  ", "HF_HUB_OFFLINE": "0"}, Vendor{}, "credential = null"},
		"null is empty": {"endpoint = null\ncredential = null", all, Vendor{Endpoint: "https://mirror.example.org", Credential: "canary", Offline: true}, "# from HF_ENDPOINT"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.hcl")
			if err := os.WriteFile(path, []byte("vendor \"huggingface\" {\n"+c.file+"\n}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := Load(Options{Path: path, Env: environment(c.env)})
			if err != nil {
				t.Fatal(err)
			}
			v := cfg.Vendor(VendorHub)
			if v.Endpoint != c.want.Endpoint || v.Credential.Reveal() != c.want.Credential.Reveal() || v.Offline != c.want.Offline || !v.Enabled {
				t.Errorf("%+v, %s", v, v.Credential.Reveal())
			}
			var out strings.Builder
			if err := cfg.Show(&out); err != nil || !strings.Contains(out.String(), c.show) || strings.Contains(out.String(), "canary") || strings.Contains(out.String(), "mine") {
				t.Errorf("%v\n%s", err, out.String())
			}
		})
	}
	for name, value := range map[string]string{"HF_ENDPOINT": "mirror.example.org", "HF_TOKEN": "a\x01b"} {
		_, err := Load(Options{Env: environment(map[string]string{name: value})})
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSameOrigin(t *testing.T) {
	for u, want := range map[string]bool{
		"https://hub.example.org/a/b?c": true, "https://HUB.example.org.:443/": true, "http://hub.example.org/": false, "https://hub.example.org:8443/": false, "https://x.hub.example.org/": false,
	} {
		parsed, err := url.Parse(u)
		if err != nil || SameOrigin("https://hub.example.org/hf", parsed) != want {
			t.Errorf("%s: %v", u, err)
		}
	}
	if SameOrigin("", &url.URL{}) {
		t.Error("nothing is an origin")
	}
}
