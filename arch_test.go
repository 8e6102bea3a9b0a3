package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	goversion "go/version"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// ownedBy says which package may import a third-party library, by the prefix of the import path. Test files may import what
// they like. A library that is not listed here and not free fails the test, so that a new one is a decision.
var ownedBy = map[string][]string{
	"github.com/hashicorp/hcl/v2":            {"core/config"},
	"github.com/zclconf/go-cty":              {"core/config"},
	"github.com/spf13/cobra":                 {"core/cli"},
	"github.com/spf13/pflag":                 {"core/cli"},
	"github.com/prometheus/client_golang":    {"core/metrics"},
	"github.com/prometheus/client_model":     {"core/metrics"},
	"github.com/prometheus/common":           {"core/metrics"},
	"github.com/getkin/kin-openapi":          {"core/testutil/apitest"},
	"github.com/hybridgroup/yzma":            {"workers/llama"},
	"github.com/ebitengine/purego":           {"workers/llama"},
	"github.com/jupiterrider/ffi":            {"workers/llama"},
	"github.com/ardanlabs/jinja":             {"workers/llama"},
	"github.com/google/go-cmp":               {"core/testutil"},
	"github.com/google/go-containerregistry": {"core/testutil"},
	"github.com/rogpeppe/go-internal":        {"core/testutil"},
	"pgregory.net/rapid":                     {"core/testutil"},
	"github.com/hashicorp/memberlist":        {"core/gossip"},
	"github.com/hashicorp/go-plugin":         {"plugins/process", "plugins/sdk"},
	"github.com/hashicorp/go-hclog":          {"plugins/process", "plugins/sdk"}, // what go-plugin logs to
	"github.com/hashicorp/go-getter":         {"core/artifact"},
	"github.com/tetratelabs/wazero":          {"plugins/wasm"},
	"github.com/landlock-lsm/go-landlock":    {"core/sandbox"},
	"golang.org/x/sys":                       nil, // free: the standard library's own annex
	"golang.org/x/term":                      nil,
	"google.golang.org/protobuf":             {"plugins/proto", "plugins/sdk"},
	"google.golang.org/grpc":                 {"plugins/proto", "plugins/sdk", "plugins/process"},
}

// foreignToMain must not be linked into bin/apiary: they need libc, and a process that has them cannot use Landlock.
var foreignToMain = []string{"github.com/ebitengine/purego", "github.com/hybridgroup/yzma", "github.com/jupiterrider/ffi", "runtime/cgo"}

// floors are the oldest versions that are safe to use (reliability.md, S24), checked for the modules that are required.
var floors = map[string]string{
	"github.com/hashicorp/memberlist":   "v0.7.0",
	"google.golang.org/grpc":            "v1.82.1",
	"github.com/hashicorp/go-getter/v2": "v2.2.5",
}

const goFloor = "go1.26.6"

type goPackage struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

type layer struct {
	pattern string
	number  int
}

func TestLayers(t *testing.T) {
	module, layers := modulePath(t), readLayers(t)
	for _, p := range listPackages(t, "./...") {
		name := short(module, p.ImportPath)
		own, ok := layerOf(layers, name)
		if !ok {
			t.Errorf("%s is not in the table of ARCHITECTURE.md: add it there, with its layer and its reason to exist", name)
			continue
		}
		for _, imp := range p.Imports {
			if imported, ours := strings.CutPrefix(imp, module+"/"); ours {
				// Packages of one room, below the same entry of the table, arrange themselves.
				if l, ok := layerOf(layers, imported); ok && l.number >= own.number && l.dir != own.dir {
					t.Errorf("%s (layer %d) imports %s (layer %d): imports go to smaller layers only", name, own.number, imported, l.number)
				}
			}
		}
		// A test may meet its neighbours (a worker runs the conformance suite) but not what is built on top of it.
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			if imported, ours := strings.CutPrefix(imp, module+"/"); ours {
				if l, ok := layerOf(layers, imported); ok && l.number > own.number {
					t.Errorf("the tests of %s (layer %d) import %s (layer %d)", name, own.number, imported, l.number)
				}
			}
		}
	}
}

func TestLibrariesHaveOneOwner(t *testing.T) {
	module := modulePath(t)
	for _, p := range listPackages(t, "./...") {
		name := short(module, p.ImportPath)
		for _, imp := range p.Imports {
			if imp == "C" {
				t.Errorf("%s uses cgo; everything builds with CGO_ENABLED=0", name)
			}
			first, _, _ := strings.Cut(imp, "/")
			if !strings.Contains(first, ".") || strings.HasPrefix(imp, module+"/") || imp == module {
				continue // the standard library, or ours
			}
			owners, known := ownersOf(imp)
			switch {
			case !known:
				t.Errorf("%s imports %s, which has no owner: add it to ownedBy in arch_test.go and to RATIONALE.md", name, imp)
			case owners != nil && !slices.ContainsFunc(owners, func(o string) bool { return within(name, o) }):
				t.Errorf("%s imports %s, which belongs to %s alone", name, imp, strings.Join(owners, " and "))
			}
		}
	}
}

func TestMainLinksNoForeignCode(t *testing.T) {
	for _, tags := range []string{"", "embedllama"} {
		for _, p := range listPackages(t, "-deps", "-tags="+tags, ".") {
			for _, foreign := range foreignToMain {
				if p.ImportPath == foreign || strings.HasPrefix(p.ImportPath, foreign+"/") {
					t.Errorf("bin/apiary (tags %q) would link %s; only apiary-llama may", tags, p.ImportPath)
				}
			}
		}
	}
}

// guests are vendors that are also built as WASM guests: they have the contract, and none of what makes a guest large.
var guests = []string{"./vendors/huggingface", "./vendors/ollama", "./vendors/pypi", "./vendors/url"}

// forAuthors are the packages that a vendor or a provisioner may use, as the author of a plugin may.
var forAuthors = []string{"plugins/vendor", "plugins/wheel", "plugins/llamaserver"}

func TestGuestsAreSmall(t *testing.T) {
	module := modulePath(t)
	for _, p := range listPackages(t, append([]string{"-deps"}, guests...)...) {
		name := short(module, p.ImportPath)
		own := slices.Contains(guests, "./"+name) || slices.Contains(forAuthors, name)
		if strings.HasPrefix(p.ImportPath, module+"/") && !own || p.ImportPath == "net/http" || p.ImportPath == "regexp" {
			t.Errorf("a vendor that is a guest links %s", name)
		}
		for _, imp := range p.Imports {
			if own && imp == "fmt" { // encoding/json has it inside, and what is not used of it is left out
				t.Errorf("%s, which is a part of guests, imports %s", name, imp)
			}
		}
	}
}

// TestPluginsKnowTheContractAlone keeps the vendors and provisioners of this repository such that a stranger could have written
// them. The main package that makes a plugin of one knows the SDK too.
func TestPluginsKnowTheContractAlone(t *testing.T) {
	module := modulePath(t)
	for _, p := range listPackages(t, "./vendors/...", "./workers/provision/...") {
		name := short(module, p.ImportPath)
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, module+"/")
			if allowed := slices.Contains(forAuthors, imp) || path.Base(name) == "plugin" && (imp == "plugins/sdk" || imp == path.Dir(name)); ours && !allowed {
				t.Errorf("%s imports %s: a vendor or provisioner is written against plugins/vendor only", name, imp)
			}
		}
	}
}

func TestVersionFloors(t *testing.T) {
	if goversion.Compare(runtime.Version(), goFloor) < 0 {
		t.Errorf("this is %s; %s is the oldest toolchain without known holes in what Apiary uses", runtime.Version(), goFloor)
	}
	var mod struct {
		Go      string
		Require []struct{ Path, Version string }
	}
	decode(t, output(t, "go", "mod", "edit", "-json"), &mod)
	if goversion.Compare("go"+mod.Go, goFloor) < 0 {
		t.Errorf("go.mod says go %s; it must say at least %s", mod.Go, goFloor)
	}
	for _, r := range mod.Require {
		if floor, ok := floors[r.Path]; ok && compareVersions(r.Version, floor) < 0 {
			t.Errorf("go.mod requires %s %s; at least %s is needed", r.Path, r.Version, floor)
		}
		if r.Path == "github.com/hashicorp/go-getter" {
			t.Errorf("go.mod requires go-getter v1; only v2 may be used")
		}
	}
}

// TestLayerTableHasNoDuplicates keeps a package from having two layers.
func TestLayerTableHasNoDuplicates(t *testing.T) {
	seen := map[string]bool{}
	for _, l := range readLayers(t) {
		if seen[l.pattern] {
			t.Errorf("ARCHITECTURE.md lists %s twice", l.pattern)
		}
		seen[l.pattern] = true
	}
}

// readLayers reads the table | package | layer | … | of ARCHITECTURE.md, so that the text and the test cannot differ. The
// first column holds one or several names in backticks; a name may end in /* or be a glob.
func readLayers(t *testing.T) []layer {
	t.Helper()
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatalf("the layers are read from ARCHITECTURE.md: %v", err)
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	var layers []layer
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 4 || cells[0] != "" {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(cells[2]))
		if err != nil {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			layers = append(layers, layer{strings.TrimSuffix(m[1], "/"), n})
		}
	}
	if len(layers) < 10 {
		t.Fatalf("ARCHITECTURE.md has no table of packages and layers (found %d rows)", len(layers))
	}
	return layers
}

// room is the entry of the table that a package falls under: the folder that matched, and its layer.
type room struct {
	dir    string
	number int
}

// layerOf finds the most specific entry for a package: itself, a glob, or the folder that it is inside of.
func layerOf(layers []layer, name string) (room, bool) {
	for dir := name; ; dir = path.Dir(dir) {
		for _, l := range layers {
			if l.pattern == dir {
				return room{dir, l.number}, true
			}
		}
		for _, l := range layers {
			if ok, err := path.Match(l.pattern, dir); err == nil && ok {
				return room{dir, l.number}, true
			}
		}
		if !strings.Contains(dir, "/") {
			return room{}, false
		}
	}
}

// within reports whether a package is dir or lies below it.
func within(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

func ownersOf(imp string) (owners []string, known bool) {
	for prefix, o := range ownedBy {
		if within(imp, prefix) {
			return o, true
		}
	}
	return nil, false
}

func short(module, importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

func modulePath(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(string(output(t, "go", "list", "-m")))
}

func listPackages(t *testing.T, args ...string) []goPackage {
	t.Helper()
	out := output(t, "go", append([]string{"list", "-json=ImportPath,Imports,TestImports,XTestImports"}, args...)...)
	var all []goPackage
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("read the output of go list: %v", err)
		}
		all = append(all, p)
	}
}

func output(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, stderr.Bytes())
	}
	return out
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatalf("read JSON: %v", err)
	}
}

// compareVersions compares v1.2.3 forms; what follows a hyphen is left out.
func compareVersions(a, b string) int {
	return slices.Compare(numbers(a), numbers(b))
}

func numbers(v string) []int {
	core, _, _ := strings.Cut(strings.TrimPrefix(v, "v"), "-")
	var out []int
	for part := range strings.SplitSeq(core, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			panic(fmt.Sprintf("version %q", v))
		}
		out = append(out, n)
	}
	return out
}
