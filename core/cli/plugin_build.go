package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/toolchain"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wasm"
)

// describeTime is how long a plugin that was just built may take to say what it is; most of it compiles a module.
const describeTime = 2 * time.Minute

// manifestFile is the file in which the author of a plugin says what it is, where the plugin itself cannot be asked before it runs.
const manifestFile = "manifest.json"

// builtFile is a file that was built, as programs see it.
type builtFile struct {
	Path      string `json:"path"`
	Transport string `json:"transport"`
	Platform  string `json:"platform"` // as the lock file has it
	Size      int64  `json:"size"`
	SHA256    string `json:"sha256"`
}

func (a *app) pluginBuild() *cobra.Command {
	var transport string
	c := &cobra.Command{Use: "build [DIR]", Short: "Build the plugin in a folder: a WASM module, a program, or both", Args: argCount(0, 1, "[DIR]"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			if err := checkTransport(transport); err != nil {
				return err
			}
			sources, err := toolchain.Detect(append(args, ".")[0])
			if err != nil {
				return err
			}
			b := &builder{app: a, sources: sources}
			return b.build(ctx, transport)
		})}
	c.Flags().StringVar(&transport, "transport", "", "build only this: `wasm` or process (default: all that the language can become)")
	return c
}

// checkTransport checks the option --transport.
func checkTransport(transport string) error {
	if transport != "" && transport != config.TransportWASM && transport != config.TransportProcess {
		return fault.New(fault.Invalid, "bad_flag", "--transport is wasm or process, not %q.", transport)
	}
	return nil
}

// builder builds one plugin. What compilers print goes to standard error.
type builder struct {
	*app
	sources  *toolchain.Sources
	work     string                 // folder of this build, beside what it makes, so that files can be moved
	manifest *vendor.StaticManifest // as soon as it is known
}

func (b *builder) build(ctx context.Context, transport string) error {
	module := b.sources.HasModule() && transport != config.TransportProcess
	program := b.sources.HasProgram() && transport != config.TransportWASM
	if !module && !program {
		return fault.New(fault.Invalid, "bad_flag", "A plugin in %s cannot be built with --transport %s; leave the option out.", b.sources.Language, transport)
	}
	var err error
	if b.manifest, err = readManifest(b.sources.Dir); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp(b.sources.Dir, ".build-*"); err != nil {
		return fault.New(fault.Invalid, "not_written", "Nothing can be written into %s: %w.", b.sources.Dir, err)
	}
	defer func() { _ = os.RemoveAll(b.work) }()
	var files []builtFile
	if module {
		f, err := b.module(ctx)
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	if program {
		f, err := b.program(ctx)
		if err != nil && module && fault.As(err).Code == toolchain.CodeFailed {
			return fault.New(fault.Invalid, toolchain.CodeFailed, "%s is built, and the program is not: %w `apiary plugin build --transport wasm` builds the module alone.", filepath.Base(files[0].Path), err)
		}
		if err != nil {
			return err
		}
		files = append(files, f)
	}
	return b.show(files)
}

func (b *builder) show(files []builtFile) error {
	if b.json {
		return b.printJSON(map[string]any{"name": b.manifest.Info.Name, "version": b.manifest.Info.Version, "files": files})
	}
	var parts []string
	for _, f := range files {
		how := ""
		if f.Transport == config.TransportProcess {
			how = fmt.Sprintf(" (process, %s)", strings.ReplaceAll(f.Platform, "_", "-"))
		}
		parts = append(parts, fmt.Sprintf("%s%s %s", filepath.Base(f.Path), how, contract.Bytes(f.Size)))
	}
	return b.tell("%s", strings.Join(parts, " · "))
}

// module builds the WASM module, puts the manifest into it and checks it as an installation does.
func (b *builder) module(ctx context.Context) (builtFile, error) {
	path := filepath.Join(b.work, "module")
	if err := b.sources.Module(ctx, path, b.err); err != nil {
		return builtFile{}, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return builtFile{}, fmt.Errorf("read what was built: %w", err)
	}
	if b.manifest == nil {
		if b.manifest, err = b.describe(ctx, raw); err != nil {
			return builtFile{}, err
		}
	}
	m := *b.manifest
	m.ABI = 1
	if raw, err = wasm.AppendManifest(raw, &m); err != nil {
		return builtFile{}, err
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		return builtFile{}, fmt.Errorf("write the module: %w", err)
	}
	if _, err := host.Inspect(path); err != nil {
		return builtFile{}, err
	}
	return b.finish(path, b.manifest.Info.Name+".wasm", config.TransportWASM, config.PlatformWASM)
}

// describe asks the module what it is, which its author then need not write down.
func (b *builder) describe(ctx context.Context, raw []byte) (*vendor.StaticManifest, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTime)
	defer cancel()
	m, err := wasm.Open(ctx, wasm.Options{Module: raw, Host: host.Nothing(), Log: b.warnings()})
	if err != nil {
		return nil, err
	}
	described, err := host.Describe(ctx, m)
	return described, errors.Join(err, m.Close(context.WithoutCancel(ctx)))
}

// program builds the program, and asks it what it is where nobody has said so.
func (b *builder) program(ctx context.Context) (builtFile, error) {
	path := filepath.Join(b.work, "program")
	if err := b.sources.Program(ctx, path, b.err); err != nil {
		return builtFile{}, err
	}
	if b.manifest == nil {
		store := filepath.Join(b.work, "store")
		m, err := host.Ask(ctx, host.Question{Path: path, Store: store, Log: b.warnings()})
		if err != nil {
			return builtFile{}, err
		}
		b.manifest = m
	}
	if err := host.CheckManifest(b.manifest); err != nil {
		return builtFile{}, err
	}
	if _, err := host.Inspect(path); err != nil {
		return builtFile{}, err
	}
	return b.finish(path, b.manifest.Info.Name, config.TransportProcess, runtime.GOOS+"_"+runtime.GOARCH)
}

// finish moves a file to where its author finds it.
func (b *builder) finish(path, name, transport, platform string) (builtFile, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return builtFile{}, fmt.Errorf("read what was built: %w", err)
	}
	sum := sha256.Sum256(raw)
	f := builtFile{Path: filepath.Join(b.sources.Dir, name), Transport: transport, Platform: platform, Size: int64(len(raw)), SHA256: hex.EncodeToString(sum[:])}
	if info, err := os.Lstat(f.Path); err == nil && !info.Mode().IsRegular() {
		return builtFile{}, fault.New(fault.Conflict, "not_written", "The plugin would be written to %s, where something that is no file is already; give the plugin another name, or move that away.", f.Path)
	}
	if err := os.Rename(path, f.Path); err != nil {
		return builtFile{}, fmt.Errorf("put what was built into its place: %w", err)
	}
	return f, nil
}

// readManifest reads manifest.json of a folder; nil when there is none.
func readManifest(dir string) (*vendor.StaticManifest, error) {
	path := filepath.Join(dir, manifestFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	m := new(vendor.StaticManifest)
	if err == nil {
		err = json.Unmarshal(raw, m)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "bad_manifest", "%s is no manifest of a plugin: %w.", path, err)
	}
	return m, nil
}

// builtFiles are the modules and programs in a folder, as build names them: NAME.wasm, and NAME.
func builtFiles(dir string) (modules, programs []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "file_unreadable", "The folder %s cannot be read: %w.", dir, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue
		}
		switch ext := filepath.Ext(e.Name()); {
		case ext == ".wasm":
			modules = append(modules, path)
		case ext == "" && info.Mode()&0o111 != 0:
			if transport, _, err := host.Nature(path); err == nil && transport == config.TransportProcess {
				programs = append(programs, path)
			}
		}
	}
	return modules, programs, nil
}

// manifestBeside is what a program says about itself without being run: manifest.json in its folder, when that has the program's name.
func manifestBeside(source string) *vendor.StaticManifest {
	if strings.Contains(source, "://") || filepath.Ext(source) == ".wasm" {
		return nil
	}
	m, err := readManifest(filepath.Dir(source))
	if err != nil || m == nil || m.Info.Name != filepath.Base(source) {
		return nil // of something else
	}
	return m
}
