package conformance_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/plugins/conformance"
	"github.com/apiary-dev/apiary/plugins/conformance/conformancetest"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/toolchain"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wasm"
	"github.com/apiary-dev/apiary/vendors/builtin"
	"github.com/apiary-dev/apiary/vendors/huggingface"
	"github.com/apiary-dev/apiary/vendors/local"
	"github.com/apiary-dev/apiary/vendors/ollama"
	"github.com/apiary-dev/apiary/vendors/pypi"
	"github.com/apiary-dev/apiary/vendors/url"
	"github.com/apiary-dev/apiary/workers/provision/github"
	"github.com/apiary-dev/apiary/workers/provision/npm"
	"github.com/apiary-dev/apiary/workers/provision/path"
	engines "github.com/apiary-dev/apiary/workers/provision/pypi"
	"github.com/apiary-dev/apiary/workers/provision/recipe"
)

// root is the folder of the repository.
const root = "../.."

// TestBuiltIn checks every plugin of this repository inside the program. Its cases are testdata/conformance.json of its folder.
func TestBuiltIn(t *testing.T) {
	for dir, make := range map[string]func(vendor.Host) any{
		"vendors/builtin":          func(vendor.Host) any { return builtin.New() },
		"vendors/huggingface":      func(vendor.Host) any { return huggingface.New() },
		"vendors/local":            func(vendor.Host) any { return local.New() },
		"vendors/ollama":           func(vendor.Host) any { return ollama.New() },
		"vendors/pypi":             func(vendor.Host) any { return pypi.New() },
		"vendors/url":              func(vendor.Host) any { return url.New() },
		"workers/provision/github": func(vendor.Host) any { return github.New() },
		"workers/provision/npm":    func(vendor.Host) any { return npm.New() },
		"workers/provision/path":   func(vendor.Host) any { return path.New() },
		"workers/provision/pypi":   func(vendor.Host) any { return engines.New() },
		"workers/provision/recipe": func(vendor.Host) any {
			return recipe.New(func(path string) ([]byte, error) {
				raw, err := os.ReadFile(path)
				if err != nil {
					return nil, &vendor.Error{Kind: vendor.KindNotFound, Code: "recipe_not_found", Message: "There is no such recipe."}
				}
				return raw, nil
			})
		},
	} {
		t.Run(dir, func(t *testing.T) {
			sum := conformancetest.Run(t, conformancetest.BuiltIn(make), filepath.Join(root, dir, conformance.CasesFile))
			if sum.Passed < 15 {
				t.Errorf("only %d checks say something of it", sum.Passed)
			}
		})
	}
}

// guest is a plugin that is built from a folder of this repository.
type guest struct {
	dir      string
	cases    string // folder with the cases; "": dir. Of a folder of Apiary's own plugins
	only     string // the transport that it has, where its language could have more
	prebuilt string // in plugins/wasm/testdata: the module, for when its compiler is missing
	tls      string // as in process.Spec
}

// TestProcesses checks the plugins that are programs or modules, each in the transports that it has.
func TestProcesses(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("processes are looked at through /proc")
	}
	apiary := filepath.Join(t.TempDir(), "apiary")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", apiary, root) // without the race detector, under which modules compile for a minute
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, g := range []guest{
		{dir: "examples/plugin-go"},
		{dir: "examples/plugin-rust", prebuilt: "shelf-rust.wasm"},
		{dir: "examples/plugin-c", prebuilt: "shelf-c.wasm"},
		{dir: "examples/plugin-assemblyscript"},
		{dir: "examples/plugin-python", tls: process.TLSNone},
		{dir: "examples/provisioner-go"},
		{dir: "vendors/huggingface/plugin", cases: "vendors/huggingface"},
		{dir: "vendors/local/plugin", cases: "vendors/local", only: config.TransportProcess},
		{dir: "vendors/ollama/plugin", cases: "vendors/ollama"},
		{dir: "vendors/pypi/plugin", cases: "vendors/pypi"},
		{dir: "vendors/url/plugin", cases: "vendors/url"},
		{dir: "workers/provision/github/plugin", cases: "workers/provision/github"},
		{dir: "workers/provision/npm/plugin", cases: "workers/provision/npm"},
		{dir: "workers/provision/path/plugin", cases: "workers/provision/path", only: config.TransportProcess},
		{dir: "workers/provision/pypi/plugin", cases: "workers/provision/pypi"},
	} {
		dir := filepath.Join(root, g.dir)
		sources, err := toolchain.Detect(dir)
		if err != nil {
			t.Fatal(err)
		}
		check := func(t *testing.T, s conformance.Subject) {
			s.Own, s.Calls = g.cases != "", 200
			if sum := conformancetest.Run(t, s, filepath.Join(root, cmp.Or(g.cases, g.dir), conformance.CasesFile)); sum.Passed < 16 {
				t.Errorf("only %d checks say something of it", sum.Passed)
			}
		}
		if sources.HasProgram() && g.only != config.TransportWASM {
			t.Run(g.dir+" as process", func(t *testing.T) {
				t.Parallel()
				if err := sources.Missing(); err != nil {
					t.Skip(err)
				}
				sources := sources
				if sources.Language == toolchain.Python {
					sources = withPython(t, sources)
				}
				program := filepath.Join(t.TempDir(), "plugin")
				if err := sources.Program(t.Context(), program, t.Output()); err != nil {
					t.Fatal(err)
				}
				check(t, conformance.Program(process.Spec{Name: "plugin", Path: program, TLS: g.tls, Store: filepath.Join(t.TempDir(), "store")}))
			})
		}
		if sources.HasModule() && g.only != config.TransportProcess {
			t.Run(g.dir+" as wasm", func(t *testing.T) {
				t.Parallel()
				file := filepath.Join(t.TempDir(), "plugin.wasm")
				g.module(t, sources, file)
				module, manifest := described(t, dir, file)
				s := conformance.Program(process.Spec{Name: "plugin", Path: apiary, Store: filepath.Join(t.TempDir(), "store"), StartTimeout: host.CompileTime,
					Args: host.ModuleArgs(file, fmt.Sprintf("%x", sha256.Sum256(module)), filepath.Join(t.TempDir(), "cache"), memory(manifest))})
				s.Manifest = manifest
				check(t, s)
			})
		}
	}
}

// withPython is a copy of sources with the virtual environment that `make test-parts` makes.
func withPython(t *testing.T, sources *toolchain.Sources) *toolchain.Sources {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	venv := filepath.Join(cache, "apiary-test", "python")
	if _, err := os.Stat(filepath.Join(venv, "ready")); err != nil {
		t.Skip("there is no Python with grpcio in the cache folder: run make test-parts")
	}
	dir, err := os.MkdirTemp("", "py") // a path that fits into the first line of a script
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.CopyFS(dir, os.DirFS(sources.Dir)); err != nil {
		t.Fatal(err)
	}
	_ = os.RemoveAll(filepath.Join(dir, ".venv"))
	if err := os.Symlink(venv, filepath.Join(dir, ".venv")); err != nil {
		t.Fatal(err)
	}
	return &toolchain.Sources{Dir: dir, Language: sources.Language}
}

// module builds the module of a guest, or takes the prebuilt one.
func (g guest) module(t *testing.T, sources *toolchain.Sources, to string) {
	t.Helper()
	missing := sources.Missing()
	if _, err := os.Stat(filepath.Join(sources.Dir, "node_modules")); sources.Language == toolchain.AssemblyScript && os.Getenv("ASC") == "" && err != nil {
		missing = errors.New("there is neither ASC nor node_modules, and tests fetch nothing")
	}
	if missing == nil {
		if err := sources.Module(t.Context(), to, t.Output()); err != nil {
			t.Fatal(err)
		}
		return
	}
	if g.prebuilt == "" {
		t.Skip(missing)
	}
	t.Logf("%v: the prebuilt module is used", missing)
	raw, err := os.ReadFile(filepath.Join(root, "plugins", "wasm", "testdata", g.prebuilt))
	if err == nil {
		err = os.WriteFile(to, raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// memory is what an instance gets.
func memory(m *vendor.StaticManifest) contract.Bytes {
	if m != nil && m.Info.Requests.MemoryBytes > 0 {
		return contract.Bytes(m.Info.Requests.MemoryBytes)
	}
	return config.DefaultPluginMemory
}

// described returns a module and what it says about itself. One whose compiler cannot write a section gets it from manifest.json in
// the folder, and one that has neither has none.
func described(t *testing.T, dir, file string) ([]byte, *vendor.StaticManifest) {
	t.Helper()
	module, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if m, err := wasm.Manifest(module); err == nil {
		return module, m
	}
	m := &vendor.StaticManifest{}
	raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if os.IsNotExist(err) {
		return module, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, m)
	}
	if err == nil {
		module, err = wasm.AppendManifest(module, m)
	}
	if err == nil {
		err = os.WriteFile(file, module, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return module, m
}
