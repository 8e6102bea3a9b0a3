package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func TestPutPlugin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.hcl")
	p := Plugin{Name: "gitea", Source: "/plugins/gitea.wasm", Grants: Grants{HTTP: []string{"git.example.org"}, Memory: 64 * contract.MiB}}
	read := func() (*Config, string) {
		t.Helper()
		c, err := Load(Options{Path: path, Env: environment(map[string]string{"HOME": "/h"})})
		if err != nil {
			t.Fatal(err)
		}
		raw, _ := os.ReadFile(path)
		return c, string(raw)
	}
	if err := PutPlugin(path, p); err != nil {
		t.Fatal(err)
	}
	if c, text := read(); len(c.Plugins) != 1 || c.Plugins[0].Source != p.Source || !c.Plugins[0].Enabled || strings.Contains(text, "credentials") {
		t.Errorf("%s", text)
	}

	p.TLS = TLSNone
	if err := PutPlugin(path, p); err != nil {
		t.Fatal(err)
	}
	if c, text := read(); c.Plugins[0].TLS != TLSNone {
		t.Errorf("%s", text)
	}
	p.TLS = ""

	const own = `# mine
agent {
  name = "tower" # the big one
}

plugin "gitea" {
  source = "./old.wasm"
  grants {
    http = ["old.example.org"]
    run  = ["cmake"]
  }
  config {
    region = env("REGION") # kept
  }
}
`
	if err := os.WriteFile(path, []byte(own), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	p.Grants.Credentials = []string{"gitea"}
	if err := PutPlugin(path, p); err != nil {
		t.Fatal(err)
	}
	c, text := read()
	if g := c.Plugins[0].Grants; len(c.Plugins) != 1 || c.Plugins[0].Source != p.Source || len(g.Run) != 0 || g.HTTP[0] != "git.example.org" || g.Credentials[0] != "gitea" {
		t.Errorf("%s", text)
	}
	for _, want := range []string{"# mine", "# the big one", `env("REGION") # kept`} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is lost from\n%s", want, text)
		}
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if found, err := RemovePlugin(path, "gitea"); err != nil || !found {
		t.Errorf("%t, %v", found, err)
	}
	if found, err := RemovePlugin(path, "gitea"); err != nil || found {
		t.Errorf("%t, %v", found, err)
	}
	if c, text := read(); len(c.Plugins) != 0 || c.Agent.Name != "tower" {
		t.Errorf("%s", text)
	}

	// A file with a mistake is left alone.
	if err := os.WriteFile(path, []byte("agent {\n nam = 1\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := PutPlugin(path, p); fault.KindOf(err) != fault.Invalid {
		t.Errorf("%v", err)
	}
	if raw, _ := os.ReadFile(path); !strings.Contains(string(raw), "nam = 1") {
		t.Errorf("%s", raw)
	}
	// One that would be wrong afterwards too.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	p.Grants.HTTP = []string{"http://x"}
	if err := PutPlugin(path, p); fault.KindOf(err) != fault.Invalid {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a wrong file was made")
	}
}

func TestPutHive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.hcl")
	text := func() string {
		t.Helper()
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	put := func(address string, want bool) {
		t.Helper()
		if changed, err := PutHive(path, address); err != nil || changed != want {
			t.Fatalf("%s: %v %v", address, changed, err)
		}
	}
	put("http://10.0.0.7:7835", true)
	put("http://10.0.0.7:7835", false)
	put("http://10.0.0.8:7835", true)
	if got := text(); got != "queen {\n  hives = [\"http://10.0.0.7:7835\", \"http://10.0.0.8:7835\"]\n}\n" {
		t.Errorf("%s", got)
	}
	for _, address := range []string{"http://10.0.0.7:7835", "http://10.0.0.8:7835"} {
		if changed, err := RemoveHive(path, address); err != nil || !changed {
			t.Errorf("%v %v", changed, err)
		}
	}
	if changed, err := RemoveHive(path, "http://10.0.0.7:7835"); err != nil || changed || strings.Contains(text(), "hives") {
		t.Errorf("%v %v %s", changed, err, text())
	}
	// The hive that a queen without one knows by default stays known, and so do the comments.
	if err := os.WriteFile(path, []byte("# mine\nagent {\n  roles = [\"queen\"] # only\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	put("http://10.0.0.7:7835", true)
	if got := text(); !strings.Contains(got, `hives = ["http://127.0.0.1:7835", "http://10.0.0.7:7835"]`) || !strings.Contains(got, "# only") {
		t.Errorf("%s", got)
	}
	if err := os.WriteFile(path, []byte("queen {\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := PutHive(path, "http://10.0.0.7:7835"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a file with mistakes: %v", err)
	}
}
