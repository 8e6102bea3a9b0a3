// Package toolchain runs the compilers of the languages that plugins are written in: a folder of sources becomes a WASM module or
// a program. It knows how each language is told apart, what has to be installed for it and how it is called; it does not look
// into what a compiler makes.
package toolchain

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/apiary-dev/apiary/core/fault"
)

// Language is a language that plugins are written in.
type Language string

// The languages. Go becomes a module and a program; Python, which has no compiler, a program; the others a module.
const (
	Go             Language = "go"
	Rust           Language = "rust"
	AssemblyScript Language = "as"
	C              Language = "c"
	Python         Language = "python"
)

// Codes of errors.
const (
	CodeUnknown = "unknown_language"  // the folder has no sources of a plugin
	CodeMissing = "toolchain_missing" // a tool has to be installed; the message says which
	CodeFailed  = "build_failed"      // the compiler found mistakes, which it printed
)

// Sources is a folder with the sources of a plugin.
type Sources struct {
	Dir      string // absolute
	Language Language
}

// Detect finds out what a folder holds, by the files that each language has.
func Detect(dir string) (*Sources, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", dir, err)
	}
	if info, err := os.Stat(abs); err != nil || !info.IsDir() {
		return nil, fault.New(fault.NotFound, CodeUnknown, "There is no folder %s; `apiary plugin new NAME` makes one with a plugin in it.", dir)
	}
	for _, c := range []struct {
		file     string
		language Language
	}{{"Cargo.toml", Rust}, {"assembly", AssemblyScript}, {"plugin.c", C}, {"plugin.py", Python}, {"go.mod", Go}, {"main.go", Go}} {
		if _, err := os.Stat(filepath.Join(abs, c.file)); err == nil {
			return &Sources{Dir: abs, Language: c.language}, nil
		}
	}
	return nil, fault.New(fault.Invalid, CodeUnknown, "%s holds no plugin: there is none of go.mod, main.go, Cargo.toml, assembly/, plugin.c and plugin.py; `apiary plugin new NAME` makes a folder with one.", dir)
}

// HasModule reports whether the sources can become a WASM module.
func (s *Sources) HasModule() bool { return s.Language != Python }

// HasProgram reports whether the sources can become a program.
func (s *Sources) HasProgram() bool { return s.Language == Go || s.Language == Python }

// Missing says what has to be installed before Module or Program can succeed, as a *fault.Error of CodeMissing; nil: nothing.
func (s *Sources) Missing() error {
	switch s.Language {
	case Go:
		return need("go", "Go 1.26.6 or newer")
	case Rust:
		return missingRust()
	case AssemblyScript:
		if s.asc() != "" {
			return nil
		}
		return need("npm", "Node.js, which brings it")
	case C:
		return missingC()
	case Python:
		return need("python3", "Python 3.9 or newer, with venv and pip")
	}
	return nil
}

// Module compiles the sources to the file at path. What compilers print goes to output.
func (s *Sources) Module(ctx context.Context, path string, output io.Writer) error {
	if err := s.Missing(); err != nil {
		return err
	}
	switch s.Language {
	case Go:
		return s.goBuild(ctx, output, path, []string{"GOOS=wasip1", "GOARCH=wasm"}, "-buildmode=c-shared")
	case Rust:
		return s.rustModule(ctx, path, output)
	case AssemblyScript:
		return s.assemblyScriptModule(ctx, path, output)
	case C:
		return s.cModule(ctx, path, output)
	case Python:
	}
	return fault.New(fault.Invalid, CodeUnknown, "A plugin in %s cannot become a WASM module; build it as a process.", s.Language)
}

// Program makes an executable file at path for this machine. What compilers print goes to output.
func (s *Sources) Program(ctx context.Context, path string, output io.Writer) error {
	if err := s.Missing(); err != nil {
		return err
	}
	switch s.Language {
	case Go:
		return s.goBuild(ctx, output, path, nil)
	case Python:
		return s.pythonProgram(ctx, path, output)
	case Rust, AssemblyScript, C:
	}
	return fault.New(fault.Invalid, CodeUnknown, "A plugin in %s becomes a WASM module here, and not a program.", s.Language)
}

// goBuild builds the main package of the folder so that the same sources give the same bytes, wherever the folder is.
func (s *Sources) goBuild(ctx context.Context, output io.Writer, path string, env []string, flags ...string) error {
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", path}, flags...)
	env = append([]string{"CGO_ENABLED=0", "GOFLAGS="}, env...)
	if _, err := os.Stat(filepath.Join(s.Dir, "go.mod")); err == nil {
		env = append(env, "GOWORK=off")
	}
	return s.run(ctx, output, output, env, "go", append(args, ".")...)
}

// run calls a tool in the folder.
func (s *Sources) run(ctx context.Context, stdout, stderr io.Writer, env []string, tool string, args ...string) error {
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, stdout, stderr
	cmd.Env = append(os.Environ(), env...)
	err := cmd.Run()
	if ctx.Err() != nil {
		return fmt.Errorf("run %s: %w", tool, ctx.Err())
	}
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		return fault.New(fault.Invalid, CodeFailed, "%s could not build the plugin in %s (%w); what it printed says why.", filepath.Base(tool), s.Dir, err)
	}
	if err != nil {
		return fault.New(fault.Unavailable, CodeMissing, "%s could not be run: %w.", tool, err)
	}
	return nil
}

// need says that a tool is missing, unless it is there.
func need(tool, install string) error {
	if _, err := exec.LookPath(tool); err != nil {
		return fault.New(fault.Unavailable, CodeMissing, "There is no %s on the PATH, which builds this plugin; install %s, and build again.", tool, install)
	}
	return nil
}

// tool is the program of that name, or the one that a variable of the environment names.
func tool(variable, name string) string {
	if v := os.Getenv(variable); v != "" {
		return v
	}
	return name
}

// copyFile copies what a compiler made to where it is wanted.
func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o644)
	}
	if err != nil {
		return fmt.Errorf("take what was built: %w", err)
	}
	return nil
}

// same reports whether the file at path has that content.
func same(path string, content []byte) bool {
	b, err := os.ReadFile(path)
	return err == nil && bytes.Equal(b, content)
}
