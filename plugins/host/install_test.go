package host

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/testutil/smalldisk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func manifest() *vendor.StaticManifest {
	return &vendor.StaticManifest{Contract: vendor.ContractVendor, Info: vendor.Info{Name: "gitea", Version: "0.1.0", Kind: vendor.KindVendor, Schemes: []string{"gitea"},
		Requests: vendor.Requests{HTTP: []string{"git.example.org"}, Credentials: []string{"gitea"}}}}
}

func TestTake(t *testing.T) {
	s, err := OpenShelf(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	ask := func(context.Context, string, string) (*vendor.StaticManifest, error) { asked++; return manifest(), nil }
	no := errors.New("no")
	text := "#!/bin/sh\n"
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	program := write("program", text)
	if _, err := s.Take(t.Context(), program, func(string) error { return no }, ask); !errors.Is(err, no) || asked != 0 {
		t.Errorf("a program that was not to be run: %v, asked %d times", err, asked)
	}
	c, err := s.Take(t.Context(), program, func(string) error { return nil }, ask)
	if err != nil || c.Transport != config.TransportProcess || c.Size != int64(len(text)) {
		t.Fatalf("%+v, %v", c, err)
	}
	if want := (config.Grants{HTTP: []string{"git.example.org"}, Credentials: []string{"gitea"}, Memory: 64 * contract.MiB}); !reflect.DeepEqual(c.Asked(), want) {
		t.Errorf("%+v", c.Asked())
	}
	if _, err := s.Take(t.Context(), write("it.wasm", "\x00asm\x01\x00\x00\x00"), nil, nil); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a module without a manifest: %v", err)
	}

	// What is refused is called as the user called it.
	for name, text := range map[string]string{"letter": "Dear all", "it": "PK\x03\x04 and so on"} {
		path := write(name, text)
		if _, err := s.Take(t.Context(), path, nil, nil); fault.As(err).Code != "not_a_plugin" || !strings.Contains(err.Error(), path) || name == "it" && !strings.Contains(err.Error(), "?archive=zip") {
			t.Errorf("%v", err)
		}
	}
	// A file that blocks, one that is only large, and a command that is to end.
	fifo := filepath.Join(t.TempDir(), "fifo.wasm")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	large := write("large", "#!/bin/sh\n")
	if err := os.Truncate(large, 1<<40); err != nil {
		t.Fatal(err)
	}
	for path, code := range map[string]string{fifo: "not_a_plugin", large: "plugin_too_large"} {
		_, inspected := Inspect(path)
		_, taken := s.Take(t.Context(), path, nil, nil)
		_, hashed := Variant{Path: path}.Package(t.Context())
		for _, err := range []error{inspected, taken, hashed} {
			if fault.As(err).Code != code {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := s.Take(ended, program, nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestCheckManifest(t *testing.T) {
	if err := CheckManifest(manifest()); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*vendor.StaticManifest){
		"name":        func(m *vendor.StaticManifest) { m.Info.Name = "../x" },
		"version":     func(m *vendor.StaticManifest) { m.Info.Version = "latest" },
		"kind":        func(m *vendor.StaticManifest) { m.Info.Kind = "worker" },
		"contract":    func(m *vendor.StaticManifest) { m.Contract = "vendor.v2" },
		"no scheme":   func(m *vendor.StaticManifest) { m.Info.Schemes = nil },
		"scheme":      func(m *vendor.StaticManifest) { m.Info.Schemes = []string{"A b"} },
		"description": func(m *vendor.StaticManifest) { m.Info.Description = strings.Repeat("x", 501) },
		"requests":    func(m *vendor.StaticManifest) { m.Info.Requests.Run = make([]string, 100) },
		"all hosts":   func(m *vendor.StaticManifest) { m.Info.Requests.HTTP = []string{"*"} },
		"a URL":       func(m *vendor.StaticManifest) { m.Info.Requests.HTTP = []string{"https://example.org"} },
		"credential":  func(m *vendor.StaticManifest) { m.Info.Requests.Credentials = []string{"a b"} },
		"tool":        func(m *vendor.StaticManifest) { m.Info.Requests.Run = []string{"/bin/sh"} },
		"memory":      func(m *vendor.StaticManifest) { m.Info.Requests.MemoryBytes = 1 << 50 },
		"no memory":   func(m *vendor.StaticManifest) { m.Info.Requests.MemoryBytes = -1 },
		"schema":      func(m *vendor.StaticManifest) { m.Schema.Attributes = []vendor.Attribute{{Name: "a", Type: "x("}} },
	} {
		m := manifest()
		change(m)
		if err := CheckManifest(m); fault.As(err).Code != "bad_manifest" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPinned(t *testing.T) {
	one, two := strings.Repeat("1", 64), strings.Repeat("2", 64)
	l := &config.Lock{}
	c := &Candidate{Digest: one, Platform: "linux_amd64", Manifest: *manifest()}
	l.Put(c.Locked("gitea", "./gitea", c.Asked()))
	good := config.Plugin{Name: "gitea", Source: "./gitea"}
	if digest, err := Pinned(good, l, "linux_amd64"); err != nil || digest != one {
		t.Errorf("%s, %v", digest, err)
	}
	for code, change := range map[string]func(*config.Plugin){
		"plugin_not_installed": func(p *config.Plugin) { p.Name = "other" },
		"plugin_changed":       func(p *config.Plugin) { p.Source = "./evil" },
		"plugin_version":       func(p *config.Plugin) { p.Version = "9.0.0" },
		"plugin_transport":     func(p *config.Plugin) { p.Transport = config.TransportWASM },
		"plugin_pending":       func(p *config.Plugin) { l.Plugins[0].Pending = true },
		"plugin_kind":          func(p *config.Plugin) { p.Kind = vendor.KindProvisioner },
	} {
		p := good
		change(&p)
		if _, err := Pinned(p, l, "linux_amd64"); fault.As(err).Code != code {
			t.Errorf("%s: %v", code, err)
		}
		l.Plugins[0].Pending = false
	}
	p := good
	p.SHA256 = two
	if _, err := Pinned(p, l, "linux_amd64"); fault.As(err).Code != "plugin_changed" {
		t.Errorf("%v", err)
	}
	if _, err := Pinned(good, l, "darwin_arm64"); fault.As(err).Code != "wrong_platform" {
		t.Errorf("%v", err)
	}
	c.Digest, c.Platform = two, config.PlatformWASM
	l.Put(c.Locked("gitea", "./gitea", c.Asked()))
	if digest, err := Pinned(good, l, "darwin_arm64"); err != nil || digest != two {
		t.Errorf("%s, %v", digest, err)
	}
}

func TestFullDisk(t *testing.T) {
	smalldisk.Run(t, "1m", func(home string) {
		s, err := OpenShelf(home)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = s.Put(t.Context(), bytes.NewReader(make([]byte, 2<<20)))
		if fault.KindOf(err) != fault.Exhausted || !strings.Contains(err.Error(), "is full") {
			t.Errorf("%v", err)
		}
	})
}

func TestCheckSchemes(t *testing.T) {
	only := func(off string) func(string) bool { return func(vendor string) bool { return vendor != off } }
	for _, c := range []struct {
		kind, scheme, off, want string
	}{
		{vendor.KindVendor, "gitea", "", ""},
		{vendor.KindVendor, "ollama", "", `vendor "ollama" { enabled = false }`},
		{vendor.KindVendor, "ollama", "ollama", ""},
		{vendor.KindVendor, "ollama", "pypi", `vendor "ollama"`},
		{vendor.KindVendor, "https", "url", ""},
		{vendor.KindVendor, "file", "local", "Apiary's own; ask"},
		{vendor.KindVendor, "npm", "", "Apiary's own; ask"},
		{vendor.KindProvisioner, "pypi", "pypi", "Apiary's own; ask"},
	} {
		err := CheckSchemes(vendor.Info{Name: "x", Kind: c.kind, Schemes: []string{c.scheme}}, only(c.off))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s for %s without %q: %v", c.kind, c.scheme, c.off, err)
		}
	}
}
