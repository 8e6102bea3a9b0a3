package toolchain

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
)

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

func codeOf(err error) string {
	if err == nil {
		return ""
	}
	return fault.As(err).Code
}

func TestDetect(t *testing.T) {
	for file, want := range map[string]Language{
		"go.mod": Go, "main.go": Go, "Cargo.toml": Rust, "assembly/index.ts": AssemblyScript, "plugin.c": C, "plugin.py": Python,
	} {
		dir := t.TempDir()
		write(t, dir, file, "")
		s, err := Detect(dir)
		if err != nil || s.Language != want {
			t.Errorf("%s: %+v, %v", file, s, err)
		}
	}
	if _, err := Detect(t.TempDir()); codeOf(err) != CodeUnknown || fault.KindOf(err) != fault.Invalid {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := Detect(filepath.Join(t.TempDir(), "none")); codeOf(err) != CodeUnknown || fault.KindOf(err) != fault.NotFound {
		t.Errorf("no folder: %v", err)
	}
}

// TestMissing: where a tool is missing, one sentence says which, and what to install.
func TestMissing(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	t.Setenv("CLANG", "")
	t.Setenv("ASC", "")
	for language, want := range map[Language]string{Go: "install Go", Rust: "install Rust", AssemblyScript: "install Node.js", C: "install clang and lld", Python: "install Python"} {
		s := &Sources{Dir: t.TempDir(), Language: language}
		err := s.Module(t.Context(), filepath.Join(s.Dir, "out"), io.Discard)
		if language == Python {
			err = s.Program(t.Context(), filepath.Join(s.Dir, "out"), io.Discard)
		}
		if codeOf(err) != CodeMissing || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", language, err)
		}
	}
}

// TestSecondToolMissing: the parts that a compiler needs besides itself are named too.
func TestSecondToolMissing(t *testing.T) {
	bin := t.TempDir()
	write(t, bin, "cargo", "#!/bin/sh\nexit 0\n")
	write(t, bin, "rustc", "#!/bin/sh\necho /none\n")
	write(t, bin, "clang", "#!/bin/sh\necho 'clang: error: unable to execute command: wasm-ld' >&2\nexit 1\n")
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	t.Setenv("CLANG", filepath.Join(bin, "clang"))
	if err := (&Sources{Language: Rust}).Missing(); codeOf(err) != CodeMissing || !strings.Contains(err.Error(), "rustup target add wasm32-unknown-unknown") {
		t.Errorf("Rust without its target: %v", err)
	}
	if err := (&Sources{Language: C}).Missing(); codeOf(err) != CodeMissing || !strings.Contains(err.Error(), "install lld") {
		t.Errorf("clang without its linker: %v", err)
	}
}

// TestMistakes: what the compiler printed comes through, and the error points to it.
func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "go.mod", "module example.org/x\n\ngo 1.26\n")
	write(t, dir, "main.go", "package main\n\nfunc main() { nothing() }\n")
	s, err := Detect(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err = s.Program(t.Context(), filepath.Join(dir, "x"), &out)
	if codeOf(err) != CodeFailed || fault.KindOf(err) != fault.Invalid || !strings.Contains(out.String(), "undefined: nothing") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if err := (&Sources{Dir: dir, Language: C}).Program(t.Context(), "x", io.Discard); err == nil {
		t.Error("a plugin in C became a program")
	}
}

// TestGoIsReproducible: neither the folder nor the time of a build is in what it makes.
func TestGoIsReproducible(t *testing.T) {
	var made [2]string
	for i := range made {
		dir := t.TempDir()
		write(t, dir, "go.mod", "module example.org/x\n\ngo 1.26\n")
		write(t, dir, "main.go", "package main\n\nfunc main() { panic(\"no\") }\n")
		s, err := Detect(dir)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, "x")
		if err := s.Module(t.Context(), to, os.Stderr); err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		made[i] = string(raw)
		if strings.Contains(made[i], dir) {
			t.Error("the module names the folder that it was built in")
		}
	}
	if made[0] != made[1] {
		t.Error("the same sources gave different modules")
	}
}
