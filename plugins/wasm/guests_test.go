package wasm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/plugins/toolchain"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// update rebuilds the fixtures of testdata from examples, with toolchains that must be there:
//
//	go test ./plugins/wasm -run TestFixtures -args -update
var update = flag.Bool("update", false, "build the fixtures of testdata again")

const indexURL = "https://models.example.org/index.json"

// guest is a plugin in some language that resolves shelf:NAME by the index at indexURL.
type guest struct {
	name    string
	fixture string       // in testdata, for when there is no toolchain
	tools   func() error // nil: everything that build needs is there
	sources string       // folder
	build   func(to string) error
	large   bool // compiling it takes a minute under the race detector, so it runs in a plugin host, which has none
}

func guests() []guest {
	examples := filepath.Join("..", "..", "examples")
	all := []guest{
		{name: "go", large: true, sources: filepath.Join("testdata", "shelf-go")},
		{name: "c", fixture: "shelf-c.wasm", sources: filepath.Join(examples, "plugin-c")},
		{name: "rust", fixture: "shelf-rust.wasm", sources: filepath.Join(examples, "plugin-rust")},
		{name: "assemblyscript", sources: filepath.Join(examples, "plugin-assemblyscript")},
	}
	for i, g := range all {
		sources, err := toolchain.Detect(g.sources)
		if err != nil {
			panic(err)
		}
		all[i].build = func(to string) error { return sources.Module(context.Background(), to, os.Stderr) }
		all[i].tools = func() error {
			if _, err := os.Stat(filepath.Join(g.sources, "node_modules")); sources.Language == toolchain.AssemblyScript && os.Getenv("ASC") == "" && err != nil {
				return errors.New("neither ASC nor node_modules")
			}
			return sources.Missing()
		}
	}
	return all
}

// module returns the guest, built where that can be, and its fixture otherwise.
func (g guest) module(t testing.TB) []byte {
	t.Helper()
	if err := g.tools(); err != nil {
		if g.fixture == "" {
			t.Skipf("there is no toolchain for %s: %v", g.name, err)
		}
		t.Logf("there is no toolchain for %s (%v): the fixture is used", g.name, err)
		return readFile(t, filepath.Join("testdata", g.fixture))
	}
	return g.fresh(t)
}

func (g guest) fresh(t testing.TB) []byte {
	t.Helper()
	to := filepath.Join(t.TempDir(), "shelf.wasm")
	if err := g.build(to); err != nil {
		t.Fatal(err)
	}
	module := readFile(t, to)
	if _, err := Manifest(module); code(err) != "no_manifest" {
		return module
	}
	m := new(vendor.StaticManifest)
	if err := json.Unmarshal(readFile(t, filepath.Join(g.sources, "manifest.json")), m); err != nil {
		t.Fatal(err)
	}
	module, err := AppendManifest(module, m)
	if err != nil {
		t.Fatal(err)
	}
	return module
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sourceDigest tells whether a fixture was made from the sources as they are.
func (g guest) sourceDigest(t *testing.T) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(g.sources, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && (d.Name() == "target" || d.Name() == "testdata") {
			return fs.SkipDir
		}
		switch filepath.Ext(path) {
		case ".c", ".h", ".rs", ".json", ".toml":
			fmt.Fprintf(h, "%s\n%s\n", d.Name(), readFile(t, path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestFixtures makes sure that the fixtures are those of the sources.
func TestFixtures(t *testing.T) {
	for _, g := range guests() {
		if g.fixture == "" {
			continue
		}
		path := filepath.Join("testdata", g.fixture)
		if *update {
			if err := os.WriteFile(path, g.fresh(t), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path+".sources", []byte(g.sourceDigest(t)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got := strings.TrimSpace(string(readFile(t, path+".sources"))); got != g.sourceDigest(t) {
			t.Errorf("%s was not built from the sources as they are; run: go test ./plugins/wasm -run TestFixtures -args -update", g.fixture)
		}
		if bytes.Contains(readFile(t, path), []byte("/root/")) || bytes.Contains(readFile(t, path), []byte("/home/")) {
			t.Errorf("%s names folders of the machine that built it", g.fixture)
		}
	}
}

// index is the text of an index with a model of n files.
func index(n int) []byte {
	type file struct {
		Path   string `json:"path"`
		Size   int    `json:"size"`
		SHA256 string `json:"sha256"`
		URL    string `json:"url"`
	}
	type model struct {
		Name  string `json:"name"`
		Files []file `json:"files"`
	}
	m := model{Name: "forty"}
	for i := range n {
		name := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, n)
		m.Files = append(m.Files, file{name, 4<<30 + i, fmt.Sprintf("%x", sha256.Sum256([]byte(name))), "https://models.example.org/forty/" + name})
	}
	body, err := json.MarshalIndent(map[string][]model{"models": {{Name: "other"}, m, {Name: "more"}}}, "", "  ")
	if err != nil {
		panic(err)
	}
	return body
}

// shelf is a host whose only page is an index with one model of n files, and of a hundred times as many where it is asked for that.
func shelf(n int) host {
	body, large := index(n), index(100*n)
	return func(_ context.Context, method string, request []byte) ([]byte, error) {
		if method != vendor.MethodHTTPDo {
			return nil, &vendor.Error{Kind: vendor.KindInvalid, Code: vendor.CodeUnimplemented, Message: "No."}
		}
		var req vendor.HTTPRequest
		if err := json.Unmarshal(request, &req); err != nil {
			return nil, err
		}
		switch req.URL {
		case indexURL:
			return json.Marshal(vendor.HTTPResponse{Status: 200, Header: map[string]string{"Content-Type": "application/json"}, Body: body, URL: req.URL})
		case indexURL + "?large":
			return json.Marshal(vendor.HTTPResponse{Status: 200, Body: large, URL: req.URL})
		case indexURL + "?html":
			return json.Marshal(vendor.HTTPResponse{Status: 200, Body: []byte("<html><body>\"Log in\"</body></html>"), URL: req.URL})
		case indexURL + "?empty":
			return json.Marshal(vendor.HTTPResponse{Status: 200, URL: req.URL})
		case indexURL + "?missing":
			return json.Marshal(vendor.HTTPResponse{Status: 404, Body: []byte("no"), URL: req.URL})
		}
		return nil, &vendor.Error{Kind: vendor.KindDenied, Code: "not_granted", Message: "The host of " + req.URL + " is not granted.", RetryAfterMS: 1}
	}
}

func configure(t testing.TB, m vendor.Invoker, url string) error {
	t.Helper()
	config, err := json.Marshal(map[string]string{"index": url})
	if err != nil {
		t.Fatal(err)
	}
	request, err := json.Marshal(vendor.ConfigureRequest{ConfigJSON: string(config)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = m.Invoke(t.Context(), vendor.MethodConfigure, request)
	return err
}

func resolve(t testing.TB, m vendor.Invoker, reference string) (*vendor.Manifest, error) {
	t.Helper()
	request, err := json.Marshal(vendor.ResolveRequest{Reference: reference, Platform: vendor.Platform{OS: "linux", Arch: "amd64", Devices: []string{"cpu"}}})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := m.Invoke(t.Context(), vendor.MethodResolve, request)
	if err != nil {
		return nil, err
	}
	manifest := new(vendor.Manifest)
	if err := json.Unmarshal(raw, manifest); err != nil {
		t.Fatalf("the manifest cannot be read: %v\n%.500s", err, raw)
	}
	return manifest, nil
}

// openGuest opens a guest as the host does, with the memory that it asks for.
func openGuest(t testing.TB, module []byte, h vendor.Invoker) (*Module, *vendor.StaticManifest) {
	t.Helper()
	static, err := Manifest(module)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(t.Context(), Options{Module: module, Host: h, MemoryPages: uint32(static.Info.Requests.MemoryBytes >> 16), Log: slog.New(slog.NewTextHandler(testLog{t}, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m, static
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", bytes.TrimSpace(p))
	return len(p), nil
}

func TestGuests(t *testing.T) {
	for _, g := range guests() {
		t.Run(g.name, func(t *testing.T) {
			t.Parallel()
			testGuest(t, g, g.module(t))
		})
		if g.fixture != "" {
			t.Run(g.name+" fixture", func(t *testing.T) {
				t.Parallel()
				testGuest(t, g, readFile(t, filepath.Join("testdata", g.fixture)))
			})
		}
	}
}

func testGuest(t *testing.T, g guest, module []byte) {
	static, err := Manifest(module)
	if err != nil {
		t.Fatal(err)
	}
	var m vendor.Invoker
	memory := func() (now, most uint32) { return 0, 0 }
	if g.large {
		m = spawn(t, module, shelf(40))
	} else {
		here, _ := openGuest(t, module, shelf(40))
		m, memory = here, func() (uint32, uint32) { return here.idle[0].mod.Memory().Size(), here.o.MemoryPages << 16 }
	}
	if len(module) > 4<<20 {
		t.Errorf("the module has %d bytes; a plugin of this kind has at most 4 MiB", len(module))
	}
	var info vendor.Info
	var schema vendor.Schema
	ask := func(method string, into any) {
		t.Helper()
		raw, err := m.Invoke(t.Context(), method, []byte("{}"))
		if err == nil {
			err = json.Unmarshal(raw, into)
		}
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
	}
	ask(vendor.MethodGetInfo, &info)
	ask(vendor.MethodGetSchema, &schema)
	if diff := cmp.Diff(static.Info, info) + cmp.Diff(static.Schema, schema); diff != "" {
		t.Errorf("the manifest and the plugin differ:\n%s", diff)
	}
	if e := pluginError(t, configure(t, m, "")); e.Kind != vendor.KindInvalid || e.Param != "index" {
		t.Errorf("without a setting: %+v", e)
	}
	for url, want := range map[string]string{
		indexURL + "?html": "", indexURL + "?empty": "", indexURL + "?missing": "no_index", "https://elsewhere.example.org/": "not_granted", indexURL: "model_not_found",
	} {
		if err := configure(t, m, url); err != nil {
			t.Fatal(err)
		}
		_, err := resolve(t, m, "shelf:none")
		if e := pluginError(t, err); want != "" && e.Code != want || e.Message == "" {
			t.Errorf("%s: %+v, want the code %q", url, e, want)
		}
	}
	if err := configure(t, m, indexURL); err != nil {
		t.Fatal(err)
	}
	got, err := resolve(t, m, "shelf:forty")
	if err != nil {
		t.Fatal(err)
	}
	name := "model-00003-of-00040.safetensors"
	want := vendor.File{Path: name, Role: vendor.RoleWeights, Size: 4<<30 + 2, Digests: vendor.Digests{SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(name)))},
		Sources: []vendor.Source{{URL: "https://models.example.org/forty/" + name, Ranges: true}}}
	if got.Reference != "shelf:forty" || got.Format != "gguf" || len(got.Files) != 40 {
		t.Fatalf("the manifest has the reference %q, the format %q and %d files", got.Reference, got.Format, len(got.Files))
	}
	if diff := cmp.Diff(want, got.Files[2]); diff != "" {
		t.Errorf("a file (-want +got):\n%s", diff)
	}
	if _, err := m.Invoke(t.Context(), "/vendor.v1.Vendor/Other", []byte("{}")); pluginError(t, err).Code != vendor.CodeUnimplemented {
		t.Errorf("an unknown method: %v", err)
	}
	t.Run("memory stays", func(t *testing.T) {
		for range 200 {
			if _, err := resolve(t, m, "shelf:forty"); err != nil {
				t.Fatal(err)
			}
		}
		if now, most := memory(); now > most/4*3 {
			t.Errorf("the guest has %d of %d bytes of memory", now, most)
		}
	})
	t.Run("large index", func(t *testing.T) {
		if err := configure(t, m, indexURL+"?large"); err != nil {
			t.Fatal(err)
		}
		got, err := resolve(t, m, "shelf:forty")
		if err != nil || len(got.Files) != 4000 {
			t.Errorf("a model of 4,000 files: %v", err)
		}
	})
}
