package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// finding is one thing that was looked at.
type finding struct {
	Level string `json:"level"` // "ok", "note", which may be meant so, or "wrong"
	Check string `json:"check"`
	Text  string `json:"text"` // what was seen; where it is wrong, a sentence that says what to do
}

// diagnosis is what was found of one plugin.
type diagnosis struct {
	Name     string    `json:"name"`
	Path     string    `json:"path,omitempty"`
	Findings []finding `json:"findings"`

	broken bool
}

func (d *diagnosis) ok(check, format string, args ...any) {
	d.Findings = append(d.Findings, finding{"ok", check, fmt.Sprintf(format, args...)})
}

func (d *diagnosis) note(check, format string, args ...any) {
	d.Findings = append(d.Findings, finding{"note", check, fmt.Sprintf(format, args...)})
}

func (d *diagnosis) wrong(check, format string, args ...any) {
	d.Findings = append(d.Findings, finding{"wrong", check, fmt.Sprintf(format, args...)})
	d.broken = true
}

// settings takes what is wrong with settings, each mistake by itself.
func (d *diagnosis) settings(err error) {
	mistakes, ok := errors.AsType[config.Diagnostics](err)
	if !ok {
		d.wrong("settings", "%v", err)
	}
	for _, m := range mistakes {
		at := ""
		if m.Line > 0 {
			at = fmt.Sprintf("%s:%d: ", m.File, m.Line)
		}
		d.wrong("settings", "%s%s in %s: %s", at, m.Summary, m.Block, m.Detail)
	}
}

func (a *app) pluginDoctor() *cobra.Command {
	return &cobra.Command{Use: "doctor [NAME|FILE]", Short: "Say why a plugin does not start, or does not do what it should", Args: argCount(0, 1, "[NAME|FILE]"),
		Long: "Say why a plugin does not start, or does not do what it should: its file, what it needs of the machine, the lock file, grants,\nsettings, and a start of it. A program is run for that. Without a name, all plugins of the configuration are looked at.",
		RunE: interruptible(func(ctx context.Context, args []string) error {
			w, err := a.openPlugins()
			if err != nil {
				return err
			}
			var all []*diagnosis
			switch p, known := w.find(append(args, "")[0]); {
			case known:
				all = append(all, a.diagnose(ctx, w, p))
			case len(args) == 1:
				d, err := a.diagnoseFile(ctx, w, args[0])
				if err != nil {
					return err
				}
				all = append(all, d)
			default:
				for _, p := range w.cfg.Plugins {
					all = append(all, a.diagnose(ctx, w, p))
				}
			}
			return a.showDiagnoses(all)
		})}
}

func (a *app) showDiagnoses(all []*diagnosis) error {
	if a.json {
		if err := a.printJSON(slices.Concat([]*diagnosis{}, all)); err != nil {
			return err
		}
	}
	var broken []string
	for _, d := range all {
		if d.broken {
			broken = append(broken, d.Name)
		}
		for _, f := range d.Findings {
			if !a.json {
				if _, err := fmt.Fprintf(a.out, "%-5s  %s: %s: %s\n", f.Level, d.Name, f.Check, printable(f.Text)); err != nil {
					return err
				}
			}
		}
	}
	if len(broken) > 0 {
		return fault.New(fault.Conflict, "plugin_broken", "Something is wrong with %s; each line that begins with \"wrong\" says what to do.", strings.Join(broken, ", "))
	}
	if len(all) == 0 && !a.json {
		_, err := fmt.Fprintln(a.err, "There are no plugins; `apiary plugin install FILE` installs one.")
		return err
	}
	return nil
}

// diagnoseFile looks at a file that need not be installed.
func (a *app) diagnoseFile(ctx context.Context, w *pluginWork, path string) (*diagnosis, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", path, err)
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "plugin_not_found", "There is neither a plugin %q in the configuration nor a file %s; `apiary plugin list` shows the plugins.", filepath.Base(path), path)
	}
	d := &diagnosis{Name: filepath.Base(path), Path: path}
	if m := a.examine(ctx, d, w.shelf, path, 0, ""); m != nil {
		d.ok("grants", "it asks for http to %s, credentials %s, running %s", list(m.Info.Requests.HTTP), list(m.Info.Requests.Credentials), list(m.Info.Requests.Run))
	}
	return d, nil
}

// diagnose looks at a plugin of the configuration.
func (a *app) diagnose(ctx context.Context, w *pluginWork, p config.Plugin) *diagnosis {
	d := &diagnosis{Name: p.Name}
	if !p.Enabled {
		d.note("configuration", "It is switched off; take enabled = false out of its block to use it.")
	}
	digest, err := host.Pinned(p, w.lock, runtime.GOOS+"_"+runtime.GOARCH)
	if err == nil {
		d.Path = w.shelf.Path(digest)
		err = w.shelf.Verify(digest)
	}
	if err != nil {
		d.wrong("lock file", "%v", err)
		return d
	}
	d.ok("lock file", "its file has the digest %s... that is pinned", digest[:12])
	m, err := w.shelf.Manifest(digest)
	if err == nil {
		err = host.CheckManifest(m)
	}
	if err == nil {
		err = host.CheckSchemes(m.Info, func(vendor string) bool { return w.cfg.Vendor(vendor).Enabled })
	}
	if err != nil {
		d.wrong("manifest", "%v", err)
		return d
	}
	lacking(d, m.Info.Requests, p.Grants)
	values, err := p.Values(m.Schema)
	if err != nil {
		d.settings(err)
	} else {
		d.ok("settings", "they are as its schema wants them")
	}
	if said := a.examine(ctx, d, w.shelf, d.Path, int64(p.Grants.Memory), string(values)); said != nil && (said.Info.Name != m.Info.Name || said.Info.Version != m.Info.Version) {
		d.wrong("start", "It says that it is %s %s, and installed was %s %s; say `apiary plugin update %s`.", said.Info.Name, said.Info.Version, m.Info.Name, m.Info.Version, p.Name)
	}
	return d
}

// lacking says what a plugin asks for and was not granted.
func lacking(d *diagnosis, asked vendor.Requests, granted config.Grants) {
	found := true
	for _, x := range []struct {
		grant       string
		asked, have []string
	}{{"http", asked.HTTP, granted.HTTP}, {"credentials", asked.Credentials, granted.Credentials}, {"run", asked.Run, granted.Run}} {
		for _, one := range x.asked {
			if !slices.Contains(x.have, one) {
				found = false
				d.note("grants", "It asks for %q, which is not in grants.%s; add it if it is not left out on purpose.", one, x.grant)
			}
		}
	}
	if asked.MemoryBytes > int64(granted.Memory) {
		found = false
		d.wrong("grants", "It asks for %d MiB of memory and is granted %s; raise grants.memory.", asked.MemoryBytes>>20, granted.Memory)
	}
	if found {
		d.ok("grants", "it has what it asks for")
	}
}

// examine looks at the file of a plugin and what it needs, and starts it; a memory of 0 is what it asks for, settings of "" are the
// defaults. It returns what the plugin says of itself, nil when it does not come to that.
func (a *app) examine(ctx context.Context, d *diagnosis, shelf *host.Shelf, path string, memory int64, values string) *vendor.StaticManifest {
	c, err := host.Inspect(path)
	if err != nil {
		d.wrong("file", "%v", err)
		return nil
	}
	if c.Transport == config.TransportWASM {
		d.ok("file", "a WASM module, which runs on any machine")
		private(d, shelf.CacheDir())
	} else {
		d.ok("file", "a program for %s", c.Platform)
		if info, err := os.Stat(path); err == nil && info.Mode()&0o111 == 0 {
			d.wrong("file", "It is not marked as executable; say `chmod +x %s`.", path)
			return nil
		}
		needs(d, path)
		executable(ctx, d, shelf.Programs())
	}
	spec, err := a.specOf(path, c, filepath.Dir(shelf.CacheDir()))
	if err != nil {
		d.wrong("start", "%v", err)
		return nil
	}
	if c.Transport == config.TransportWASM && memory > 0 {
		spec.Args[slices.Index(spec.Args, "--memory")+1] = fmt.Sprint(memory)
	}
	spec.Host, spec.Name = host.Nothing(), d.Name
	return start(ctx, d, spec, values, d.broken)
}

// start starts a plugin and gives it its settings, unless they are wrong already.
func start(ctx context.Context, d *diagnosis, spec process.Spec, values string, broken bool) *vendor.StaticManifest {
	begun := time.Now()
	p, err := process.Start(ctx, spec)
	if err != nil {
		d.wrong("start", "%v", err)
		return nil
	}
	defer func() { _ = p.Close() }()
	d.ok("start", "the handshake was done after %d ms", time.Since(begun).Milliseconds())
	m, err := host.Describe(ctx, p)
	if err == nil {
		err = host.CheckManifest(m)
	}
	if err != nil {
		d.wrong("contract", "%v", err)
		return nil
	}
	d.ok("contract", "%s %s keeps %s, for %s", m.Info.Name, m.Info.Version, m.Contract, strings.Join(m.Info.Schemes, ", "))
	if values == "" {
		plain, err := config.PluginWith("")
		if err != nil {
			d.wrong("settings", "%v", err)
			return m
		}
		raw, err := plain.Values(m.Schema)
		if err != nil {
			d.note("settings", "It needs some, which the block config of the configuration gives it: `apiary plugin list NAME` shows them.")
			return m
		}
		values = string(raw)
	}
	if broken {
		return m
	}
	if err := host.Configure(ctx, p, values); err != nil {
		d.wrong("settings", "The plugin does not take them: %v", err)
	}
	return m
}

// private looks at the folder of compiled code, which others must not write to.
func private(d *diagnosis, dir string) {
	info, err := os.Lstat(dir)
	switch {
	case err != nil:
		d.wrong("cache", "The folder %s for compiled modules cannot be looked at (%v); remove it, and it is made again.", dir, err)
	case !info.IsDir() || info.Mode().Perm()&0o077 != 0:
		d.wrong("cache", "The folder %s holds code that is run, and others may use it; say `chmod 700 %s`.", dir, dir)
	default:
		d.ok("cache", "the folder for compiled modules is this user's alone")
	}
}

// needs looks for what a program needs to be started: its interpreter, or its dynamic loader.
func needs(d *diagnosis, path string) {
	f, err := os.Open(path)
	if err != nil {
		d.wrong("file", "It cannot be read (%v); check its permissions.", err)
		return
	}
	defer func() { _ = f.Close() }()
	head, err := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
	if line, script := strings.CutPrefix(head, "#!"); script {
		interpreter(d, line)
		return
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return // what can be read was looked at
	}
	x, err := elf.NewFile(f)
	if err != nil {
		return // no program of Linux, whose loader is a part of the system
	}
	for _, p := range x.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		raw, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
		loader := string(bytes.TrimRight(raw, "\x00"))
		if err != nil {
			continue
		}
		if _, err := os.Stat(loader); err != nil {
			d.wrong("loader", "It needs the dynamic loader %s, which is not on this machine; build it statically (for Go: CGO_ENABLED=0), or install the C library that it was built with.", loader)
			return
		}
		libraries, err := x.ImportedLibraries()
		if err == nil {
			d.ok("loader", "%s is there; it also needs %s", loader, list(libraries))
		}
		return
	}
	d.ok("loader", "it is static and needs none")
}

// interpreter looks for the program that runs a script. A plugin has the PATH of the system alone.
func interpreter(d *diagnosis, line string) {
	if strings.HasSuffix(line, "\r\n") {
		d.wrong("interpreter", "Its first line ends as lines do on Windows, so the system looks for another program; write it with line feeds alone.")
		return
	}
	words := strings.Fields(line)
	if len(words) == 0 {
		d.wrong("interpreter", "Its first line names no program; write for example #!/usr/bin/python3.")
		return
	}
	name := words[0]
	if filepath.Base(name) == "env" && len(words) > 1 {
		name = words[1]
		for _, dir := range []string{"/usr/bin", "/bin"} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				d.ok("interpreter", "%s is there", filepath.Join(dir, name))
				return
			}
		}
		d.wrong("interpreter", "It is run by %s, which is neither in /usr/bin nor in /bin; a plugin has no other PATH: name the program with its whole path in the first line.", name)
		return
	}
	if _, err := os.Stat(name); err != nil {
		d.wrong("interpreter", "It is run by %s, which is not on this machine; install it, or name another one in its first line.", name)
		return
	}
	d.ok("interpreter", "%s is there", name)
}

// executable looks whether programs may be run from the folder from which plugins are.
func executable(ctx context.Context, d *diagnosis, dir string) {
	f, err := os.CreateTemp(dir, ".try-*")
	if err == nil {
		defer func() { _ = os.Remove(f.Name()) }()
		_, err = f.WriteString("#!/bin/sh\nexit 0\n")
		err = cmp.Or(err, f.Chmod(0o700), f.Close())
	}
	if folder.IsFull(err) {
		d.wrong("folder", "The disk that holds %s, from which plugins are run, is full; free some space.", dir)
		return
	}
	if err != nil {
		d.wrong("folder", "Nothing can be written into %s, from which plugins are run (%v); check its permissions.", dir, err)
		return
	}
	if err := exec.CommandContext(ctx, f.Name()).Run(); errors.Is(err, fs.ErrPermission) {
		d.wrong("folder", "No program can be run from %s: its disk is mounted with noexec; move APIARY_HOME to another one, or mount it again without.", dir)
		return
	}
	d.ok("folder", "programs can be run from %s", dir)
}
