package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

func TestReadRecipe(t *testing.T) {
	b, err := ReadRecipe("../../examples/recipes/llama-server.hcl")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`{"name":"llama-server","version":"0.4.0","files":[{"path":"source.tar.gz","url":"https://downloads.example.org/`, `"steps":[{"extract":{"file":"source.tar.gz","prefix":"llama.cpp-0.4.0/","into":"src"}},{"run":{"tool":"cmake"`,
		`"timeoutSeconds":3600`, `{"expect":{"path":"bin/llama-server","executable":true`, `"launch":{"path":"bin/llama-server","args":["--model","{model}"`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%s is missing in %s", want, b)
		}
	}
}

func TestBadRecipes(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ text, want string }{
		"syntax":           {"name = ", "line 1"},
		"no name":          {`version = "1"`, "needs a name"},
		"unknown option":   {"name = \"a\"\nversion = \"1\"\ntarget = \"x\"", "line 3"},
		"unknown block":    {"name = \"a\"\nversion = \"1\"\nshell {}", "no block \"shell\""},
		"unknown in block": {"name = \"a\"\nversion = \"1\"\nrun {\n  tool = \"make\"\n  shell = true\n}", "line 5, in run"},
		"no digest":        {"name = \"a\"\nversion = \"1\"\nfile \"x\" {\n  url = \"https://x\"\n}", "\"sha256\""},
		"file without":     {"name = \"a\"\nversion = \"1\"\nfile {\n  url = \"https://x\"\n  sha256 = \"0\"\n}", "A block file has 1 names"},
		"step with a name": {"name = \"a\"\nversion = \"1\"\nrun \"x\" {\n  tool = \"make\"\n}", "A block run has 0 names"},
		"time":             {"name = \"a\"\nversion = \"1\"\nrun {\n  tool = \"make\"\n  timeout = \"10\"\n}", "line 5"},
		"link":             {"name = \"a\"\nversion = \"1\"\nlink {\n  name = \"x\"\n}", "either a target or a match"},
		"two launches":     {"name = \"a\"\nversion = \"1\"\nlaunch {\n  path = \"x\"\n}\nlaunch {\n  path = \"x\"\n}", "one block launch"},
		"function":         {"name = env(\"HOME\")\nversion = \"1\"", "line 1"},
		"too large":        {strings.Repeat("#", maxRecipe+1), "it has more than 256 KiB, and no recipe is that long"},
	} {
		file := filepath.Join(dir, "recipe.hcl")
		if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadRecipe(file)
		if fault.KindOf(err) != fault.Invalid || fault.As(err).Code != "recipe_invalid" || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadRecipe(filepath.Join(dir, "none.hcl")); fault.KindOf(err) != fault.NotFound {
		t.Errorf("got %v", err)
	}
}

func FuzzRecipe(f *testing.F) {
	f.Add([]byte("name = \"a\"\nversion = \"1\"\nrun {\n  tool = \"make\"\n  timeout = \"1m\"\n}"))
	f.Fuzz(func(t *testing.T, src []byte) { parseRecipe(src, "x") })
}
