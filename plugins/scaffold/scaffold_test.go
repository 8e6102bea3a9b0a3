package scaffold

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

var tree = os.DirFS("../..")

func create(t *testing.T, o Options) string {
	t.Helper()
	o.Parent = t.TempDir()
	files, err := New(tree, o)
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(o.Parent, o.Name)
	if !slices.Contains(files, "README.md") || !slices.Contains(files, ".gitignore") {
		t.Errorf("the folder has %q", files)
	}
	if info, err := os.Stat(folder); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the folder: %v, %v", info, err)
	}
	return folder
}

// TestNames: nothing of a new plugin has the name of the example, and everything has its own.
func TestNames(t *testing.T) {
	for _, e := range examples() {
		folder := create(t, Options{Name: "my-models", Language: e.language, Kind: e.kind})
		found := false
		err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				if d.Name() == sdkFolder {
					return filepath.SkipDir
				}
				return err
			}
			raw, err := os.ReadFile(path)
			found = found || bytes.Contains(raw, []byte("my-models:"))
			for _, old := range []string{"shelf", "Shelf", "forge", "index:", `"index"`} {
				if at := bytes.Index(raw, []byte(old)); at >= 0 && (e.module || !strings.Contains(old, "index")) {
					t.Errorf("%s of %s has %q: %q", filepath.Base(path), e.folder, old, raw[max(at-30, 0):min(at+30, len(raw))])
				}
			}
			return err
		})
		if err != nil || !found {
			t.Errorf("%s: the new name is nowhere (%v)", e.folder, err)
		}
	}
}

func TestRefusals(t *testing.T) {
	parent := t.TempDir()
	for _, x := range []struct {
		o    Options
		code string
	}{
		{Options{Name: "x", Language: "cobol", Kind: vendor.KindVendor}, CodeNoExample},
		{Options{Name: "x", Language: "go", Kind: "worker"}, CodeNoExample},
		{Options{Name: "x", Language: "c", Kind: vendor.KindProvisioner}, CodeNoExample},
	} {
		x.o.Parent = parent
		if _, err := New(tree, x.o); fault.As(err).Code != x.code {
			t.Errorf("%+v: %v", x.o, err)
		}
	}
	if err := os.Mkdir(filepath.Join(parent, "there"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := New(tree, Options{Name: "there", Language: "c", Kind: vendor.KindVendor, Parent: parent}); fault.As(err).Code != CodeExists {
		t.Errorf("a folder that exists: %v", err)
	}
	if _, err := New(fstest.MapFS{}, Options{Name: "half", Language: "go", Kind: vendor.KindVendor, Parent: parent}); err == nil {
		t.Error("there was something to copy")
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// TestGo: a new plugin in Go becomes a module without anything from the network, its go.mod names the modules that a program needs
// and no other, and its own tests pass.
func TestGo(t *testing.T) {
	for _, e := range examples() {
		if !e.module {
			continue
		}
		folder := create(t, Options{Name: "gitea", Language: e.language, Kind: e.kind})
		run := func(env []string, args ...string) string {
			cmd := exec.CommandContext(t.Context(), "go", args...)
			cmd.Dir = folder
			cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly", "GOPROXY=off", "GOWORK=off"), env...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("%s: go %v: %v\n%s", e.folder, args, err, out)
			}
			return string(out)
		}
		empty := t.TempDir()
		run([]string{"GOMODCACHE=" + empty, "GOOS=wasip1", "GOARCH=wasm"}, "build", "-buildmode=c-shared", "-o", os.DevNull, ".")
		run(nil, "vet", "./...")
		run(nil, "test", "./...")
		direct, indirect := sdkModules()
		want := slices.Sorted(slices.Values(slices.Concat(direct, indirect, []string{"github.com/apiary-dev/apiary", "example.org/gitea"})))
		got := strings.Fields(run(nil, "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "."))
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, want) {
			t.Errorf("a program needs the modules\n%q, and go.mod names\n%q", got, want)
		}
	}
}
