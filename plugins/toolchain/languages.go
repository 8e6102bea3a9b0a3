package toolchain

import (
	"archive/zip"
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
)

const rustTarget = "wasm32-unknown-unknown"

func missingRust() error {
	if err := need("cargo", "Rust and its target "+rustTarget); err != nil {
		return err
	}
	out, err := exec.Command("rustc", "--target", rustTarget, "--print", "target-libdir").Output()
	if err == nil {
		_, err = os.Stat(strings.TrimSpace(string(out)))
	}
	if err != nil {
		return fault.New(fault.Unavailable, CodeMissing, "Rust has no standard library for %s; say `rustup target add %s` (Debian: install libstd-rust-dev-wasm32), and build again.", rustTarget, rustTarget)
	}
	return nil
}

// rustModule builds with cargo, which names the module that it made. Paths of the machine would be in the texts of panics.
func (s *Sources) rustModule(ctx context.Context, path string, output io.Writer) error {
	args := []string{"build", "--quiet", "--release", "--target", rustTarget, "--message-format=json-render-diagnostics"}
	if _, err := os.Stat(filepath.Join(s.Dir, "Cargo.lock")); err == nil {
		args = append(args, "--locked")
	}
	flags := []string{"--remap-path-prefix=" + s.Dir + "=."}
	if home, err := os.UserHomeDir(); err == nil {
		flags = append([]string{"--remap-path-prefix=" + home + "=home"}, flags...)
	}
	messages := &bytes.Buffer{}
	if err := s.run(ctx, messages, output, []string{"RUSTFLAGS=", "CARGO_ENCODED_RUSTFLAGS=" + strings.Join(flags, "\x1f")}, "cargo", args...); err != nil {
		return err
	}
	made := ""
	lines := bufio.NewScanner(messages)
	lines.Buffer(nil, 8<<20)
	for lines.Scan() {
		var m struct {
			Reason    string   `json:"reason"`
			Filenames []string `json:"filenames"`
		}
		if json.Unmarshal(lines.Bytes(), &m) != nil || m.Reason != "compiler-artifact" {
			continue
		}
		for _, f := range m.Filenames {
			if filepath.Ext(f) == ".wasm" {
				made = f
			}
		}
	}
	if made == "" {
		return fault.New(fault.Invalid, CodeFailed, "cargo made no WASM module of %s; its Cargo.toml needs [lib] with crate-type = [\"cdylib\"].", s.Dir)
	}
	return copyFile(made, path)
}

func missingC() error {
	clang := tool("CLANG", "clang")
	if err := need(clang, "clang and lld"); err != nil {
		return err
	}
	out, err := exec.Command(clang, "--target=wasm32", "-nostdlib", "-Wl,--no-entry", "-x", "c", os.DevNull, "-o", os.DevNull).CombinedOutput()
	if err != nil {
		return fault.New(fault.Unavailable, CodeMissing, "%s cannot build for wasm32 (%.200s); install lld, which brings wasm-ld, and build again.", clang, firstLine(out))
	}
	return nil
}

func firstLine(out []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return line
}

func (s *Sources) cModule(ctx context.Context, path string, output io.Writer) error {
	return s.run(ctx, output, output, nil, tool("CLANG", "clang"), "--target=wasm32", "-std=c11", "-Wall", "-Wextra", "-Werror", "-Os",
		"-ffreestanding", "-fno-builtin", "-nostdlib", "-Wl,--no-entry", "-Wl,--strip-debug", "-Wl,-z,stack-size=65536", "-o", path, "plugin.c")
}

// asc is the compiler of AssemblyScript: the one that ASC names, or that of the folder; "" when there is none yet.
func (s *Sources) asc() string {
	own := filepath.Join(s.Dir, "node_modules", ".bin", "asc")
	if asc, err := exec.LookPath(tool("ASC", own)); err == nil {
		return asc
	}
	return ""
}

// assemblyScriptModule fetches the compiler with the user's npm where it is missing. The manifest is also what the plugin answers
// about itself, so it becomes a source.
func (s *Sources) assemblyScriptModule(ctx context.Context, path string, output io.Writer) error {
	if s.asc() == "" {
		if err := s.run(ctx, output, output, nil, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"); err != nil {
			return err
		}
	}
	if manifest, err := os.ReadFile(filepath.Join(s.Dir, "manifest.json")); err == nil {
		source := []byte("// Made from manifest.json by apiary plugin build.\nexport const MANIFEST: string = `" + strings.NewReplacer("\\", "\\\\", "`", "\\`", "$", "\\$").Replace(string(manifest)) + "`;\n")
		to := filepath.Join(s.Dir, "assembly", "manifest.ts")
		if !same(to, source) {
			if err := os.WriteFile(to, source, 0o644); err != nil {
				return fmt.Errorf("write the manifest as a source: %w", err)
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the manifest: %w", err)
	}
	return s.run(ctx, output, output, nil, s.asc(), "assembly/index.ts", "-O2", "--runtime", "incremental", "--noAssert", "--use", "abort=assembly/abi/abort", "--outFile", path)
}

// longestShebang is how much of the first line of a script kernels read.
const longestShebang = 120

// pythonProgram makes one executable file, an archive that Python runs: plugin.py, the other modules of the folder, and the manifest. Its
// first line names the interpreter of a virtual environment beside it, because a plugin has no environment, and no packages of its
// user, when it runs.
func (s *Sources) pythonProgram(ctx context.Context, path string, output io.Writer) error {
	python := filepath.Join(s.Dir, ".venv", "bin", "python3")
	line := "#!" + python + " -IB\n"
	if len(line) > longestShebang || strings.ContainsAny(python, " \t") {
		return fault.New(fault.Invalid, CodeFailed, "The path of %s is too long or has a space, so that a script cannot name it; move the plugin to a folder with a shorter path.", python)
	}
	if _, err := os.Stat(python); errors.Is(err, fs.ErrNotExist) {
		if err := s.run(ctx, output, output, nil, "python3", "-m", "venv", ".venv"); err != nil {
			return err
		}
		if err := s.run(ctx, output, output, nil, python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "-r", "requirements.txt"); err != nil {
			_ = os.RemoveAll(filepath.Join(s.Dir, ".venv")) // half of it would be taken for the whole next time
			return err
		}
	}
	modules, err := filepath.Glob(filepath.Join(s.Dir, "*.py"))
	if err != nil {
		return fmt.Errorf("look for modules in %s: %w", s.Dir, err)
	}
	archive := bytes.NewBufferString(line)
	z := zip.NewWriter(archive)
	z.SetOffset(int64(len(line)))
	for _, file := range append(modules, filepath.Join(s.Dir, "manifest.json")) {
		name := filepath.Base(file)
		if strings.HasPrefix(name, "test_") || strings.HasSuffix(name, "_test.py") {
			continue
		}
		raw, err := os.ReadFile(file)
		if err != nil {
			return fault.New(fault.Invalid, CodeFailed, "%s of the plugin cannot be read: %w; a plugin in Python has plugin.py and manifest.json.", name, err)
		}
		if filepath.Ext(name) == ".py" { // a mistake is found now, and not by the agent
			check := `import sys; compile(open(sys.argv[1], "rb").read(), sys.argv[1], "exec")`
			if err := s.run(ctx, output, output, nil, python, "-IBc", check, name); err != nil {
				return err
			}
		}
		if name == "plugin.py" {
			name = "__main__.py"
		}
		w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate}) // without a time
		if err == nil {
			_, err = w.Write(raw)
		}
		if err != nil {
			return fmt.Errorf("pack %s: %w", name, err)
		}
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("pack the plugin: %w", err)
	}
	if err := os.WriteFile(path, archive.Bytes(), 0o755); err != nil {
		return fmt.Errorf("write the program: %w", err)
	}
	return nil
}
