package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/logging"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func (a *app) pluginCommand() *cobra.Command {
	return a.holder("plugin", "Install and look at plugins: model vendors and worker provisioners of others",
		a.pluginNew(), a.pluginBuild(), a.pluginServe(), a.pluginCheck(), a.pluginDoctor(), a.pluginInstall(), a.pluginUpdate(), a.pluginList(), a.pluginVerify(), a.pluginRemove(), a.pluginValidate(), a.pluginPack())
}

// pluginWork is what the commands about plugins work with.
type pluginWork struct {
	cfg   *config.Config
	lock  *config.Lock
	shelf *host.Shelf
}

func (a *app) openPlugins() (*pluginWork, error) {
	cfg, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	shelf, err := host.OpenShelf(cfg.Home)
	if err != nil {
		return nil, err
	}
	lock, err := config.ReadLock(cfg.Home)
	if err != nil {
		return nil, err
	}
	return &pluginWork{cfg: cfg, lock: lock, shelf: shelf}, nil
}

// file is the configuration file that installing changes.
func (w *pluginWork) file() string {
	return cmp.Or(w.cfg.Path, filepath.Join(w.cfg.Home, "config.hcl"))
}

func (w *pluginWork) find(name string) (config.Plugin, bool) {
	i := slices.IndexFunc(w.cfg.Plugins, func(p config.Plugin) bool { return p.Name == name })
	if i < 0 {
		return config.Plugin{}, false
	}
	return w.cfg.Plugins[i], true
}

func noPlugin(name string) error {
	return fault.New(fault.NotFound, "plugin_not_found", "There is no plugin %q in the configuration or the lock file; `apiary plugin list` shows those that there are.", name)
}

func (a *app) pluginInstall() *cobra.Command {
	var name, transport, tls string
	var yes bool
	c := &cobra.Command{Use: "install SOURCE", Short: "Install a plugin, after you have seen and granted what it asks for",
		Long: "Install a plugin, after you have seen and granted what it asks for.\n\nSOURCE is a file, a folder, https://HOST/FILE or git::https://HOST/REPO?ref=REF. Of an archive (.tar.gz, .tgz, .zip, or ?archive=zip),\nof a repository and of a folder the plugin inside is taken; //FILE behind the place names it. ?checksum=sha256:HEX is compared.",
		Args: argCount(1, 1, "SOURCE"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			w, err := a.openPlugins()
			if err != nil {
				return err
			}
			if tls != "" && tls != config.TLSNone {
				return fault.New(fault.Invalid, "bad_flag", "--tls is none, or left out, not %q.", tls)
			}
			b, err := a.bring(ctx, args[0], transport, true)
			if err != nil {
				return err
			}
			defer b.drop()
			return a.install(ctx, w, b, installOptions{name: name, tls: tls, yes: yes})
		})}
	c.Flags().StringVar(&tls, "tls", "", "`none`: the program speaks plainly, on a socket in a folder of your user alone (default: as its manifest says)")
	c.Flags().StringVar(&transport, "transport", "", "what to install from a folder or archive: `wasm` or process (default: the module, where there is one)")
	c.Flags().StringVar(&name, "name", "", "name of its block in the configuration (default: the plugin's own name)")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "grant what it asks for without a question")
	return c
}

func (a *app) pluginUpdate() *cobra.Command {
	var yes bool
	c := &cobra.Command{Use: "update NAME", Short: "Take what the source of a plugin gives now, after you have seen what changes", Args: argCount(1, 1, "NAME"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			w, err := a.openPlugins()
			if err != nil {
				return err
			}
			p, ok := w.find(args[0])
			if !ok {
				return noPlugin(args[0])
			}
			b, err := a.bring(ctx, p.Source, p.Transport, false)
			if err != nil {
				return err
			}
			defer b.drop()
			b.update = true
			return a.install(ctx, w, b, installOptions{name: p.Name, tls: p.TLS, yes: yes})
		})}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "grant what it asks for without a question")
	return c
}

// installOptions are the choices of an installation.
type installOptions struct {
	name string // of the block; "": the plugin's own
	tls  string // config.TLSNone, or "": as the manifest says
	yes  bool   // no questions
}

// install takes a plugin that was brought, has the operator grant what it asks for, and writes both files. What the lock file has for
// this platform already, as after a move to another machine, has to be that and needs no grant.
func (a *app) install(ctx context.Context, w *pluginWork, b *brought, o installOptions) error {
	name, yes, source := o.name, o.yes, b.source
	r, err := os.Open(b.Path)
	if err != nil {
		return fault.New(fault.Invalid, "file_unreadable", "The file %s cannot be read: %w.", b.Path, err)
	}
	defer func() { _ = r.Close() }()
	if err := w.agrees(b); err != nil {
		return err // before anything of it is run
	}
	beside := manifestBeside(b.Path)
	confirm := func(path string) error {
		if yes || beside != nil || w.agreed(source, filepath.Base(path)) {
			return nil
		}
		return a.agree(fmt.Sprintf("%s is a program: it has to be run to say what it is, and then, as ever, it may do all that your user may. Run it?", b.what()))
	}
	c, err := w.shelf.Take(ctx, r, confirm, func(ctx context.Context, path, digest string) (*vendor.StaticManifest, error) {
		if beside != nil {
			return beside, nil
		}
		own, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this executable: %w", err)
		}
		return host.Ask(ctx, host.Question{Path: path, SHA256: digest, Store: w.shelf.Programs(), TLS: o.tls, ExecChild: []string{own, "exec-child"}, Log: a.warnings()})
	})
	if err != nil {
		return err
	}
	for _, v := range b.Others {
		k, err := v.Package()
		if err != nil {
			return err
		}
		c.Others = append(c.Others, k)
	}
	name = cmp.Or(name, c.Manifest.Info.Name)
	before, known := w.lock.Find(name)
	if known && before.Source == source && w.agreed(source, c.Digest) && a.inConfig(w, name) {
		return a.tell("%s %s is installed already, as the lock file has it.", name, before.Version)
	}
	for _, p := range w.lock.Plugins {
		k, ok := host.For(&p, herePlatform())
		if p.Name == name || !ok {
			continue
		}
		m, err := w.shelf.Manifest(k.SHA256)
		if err != nil {
			continue // it is broken, which verify tells
		}
		for _, scheme := range c.Manifest.Info.Schemes {
			if slices.Contains(m.Info.Schemes, scheme) {
				return fault.New(fault.Conflict, "scheme_taken", "The plugin %s answers for %q already; say `apiary plugin remove %s` first.", p.Name, scheme, p.Name)
			}
		}
	}
	grants := c.Asked()
	if current, ok := w.find(name); ok && known && w.asksAsBefore(before, c) {
		grants = current.Grants // what the operator made of the same wishes
	} else if ok {
		grants.Private = current.Grants.Private // the operator's own, which no plugin asks for
		grants.Private = slices.DeleteFunc(grants.Private, func(h string) bool { return !slices.Contains(grants.HTTP, h) })
	}
	if err := a.showAsked(name, c, before); err != nil {
		return err
	}
	if !yes {
		if err := a.agree("Grant?"); err != nil {
			return err
		}
	}
	p := config.Plugin{Name: name, Source: source, Transport: c.Transport, Grants: grants}
	if c.Transport == config.TransportProcess {
		p.TLS = cmp.Or(o.tls, c.Manifest.TLS)
	}
	if err := config.PutPlugin(w.file(), p); err != nil {
		return err
	}
	var old []config.Package
	if known {
		old = slices.Clone(before.Packages)
	}
	w.lock.Put(c.Locked(name, source, grants))
	if err := config.WriteLock(w.cfg.Home, w.lock); err != nil {
		return err
	}
	for _, k := range old {
		if !w.used(k.SHA256) {
			if err := w.shelf.Remove(k.SHA256); err != nil {
				return err
			}
		}
	}
	return a.tell("%s %s is installed, and written into %s and %s. An agent that runs uses it after its next start.",
		name, c.Manifest.Info.Version, w.file(), filepath.Join(w.cfg.Home, config.LockName))
}

// asksAsBefore reports whether a plugin that is installed asks for what it asked for then.
func (w *pluginWork) asksAsBefore(before *config.LockedPlugin, c *host.Candidate) bool {
	m, err := w.shelf.Manifest(before.Packages[0].SHA256)
	return err == nil && reflect.DeepEqual(m.Info.Requests, c.Manifest.Info.Requests)
}

// warnings is a log of what goes wrong while a plugin is asked something.
func (a *app) warnings() *slog.Logger {
	return logging.New(a.err, logging.Options{Level: slog.LevelWarn, Format: "auto"})
}

// used reports whether a plugin of the lock file is the file of that digest.
func (w *pluginWork) used(digest string) bool {
	return slices.ContainsFunc(w.lock.Plugins, func(p config.LockedPlugin) bool {
		return slices.ContainsFunc(p.Packages, func(k config.Package) bool { return k.SHA256 == digest })
	})
}

func (a *app) inConfig(w *pluginWork, name string) bool {
	_, ok := w.find(name)
	return ok
}

// tell says what was done: to people; to programs as an object.
func (a *app) tell(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if a.json {
		return a.printJSON(map[string]string{"message": text})
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}

// showAsked says what a plugin is and asks for; before is what was installed under its name, or nil.
func (a *app) showAsked(name string, c *host.Candidate, before *config.LockedPlugin) error {
	i := c.Manifest.Info
	var asks []string
	for _, h := range i.Requests.HTTP {
		asks = append(asks, "http to "+h)
	}
	for _, k := range i.Requests.Credentials {
		asks = append(asks, fmt.Sprintf("credential %q", k))
	}
	for _, t := range i.Requests.Run {
		asks = append(asks, "running "+t)
	}
	if c.Transport == config.TransportWASM {
		asks = append(asks, c.Asked().Memory.String()+" of memory")
	}
	lines := []string{fmt.Sprintf("%s %s, a %s for %s:", name, i.Version, i.Kind, strings.Join(i.Schemes, ", "))}
	if i.Description != "" {
		lines = append(lines, "  "+i.Description)
	}
	lines = append(lines, "  asks for: "+strings.Join(asks, " · "))
	if c.Transport == config.TransportProcess {
		lines = append(lines, "  It is a program, which nothing holds to that: it may do all that your user may.")
	}
	if before != nil {
		had := before.Grants
		lines = append(lines, fmt.Sprintf("  Installed is %s, granted: http to %s · credentials %s · running %s", before.Version, list(had.HTTP), list(had.Credentials), list(had.Run)))
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(a.err, plain(l, isTerminal(a.err))); err != nil {
			return err
		}
	}
	return nil
}

func list(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

// agree asks a question that somebody at a terminal answers with yes.
func (a *app) agree(question string) error {
	if !isTerminal(a.in) {
		return fault.New(fault.Denied, "not_granted", "Nothing was installed, because nobody is there to answer; say --yes to grant what the plugin asks for.")
	}
	if _, err := fmt.Fprint(a.err, question+" [y/N] "); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(a.in, 100)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return fault.New(fault.Denied, "not_granted", "Nothing was installed, because it was not granted.")
	}
	return nil
}

// pluginView is a plugin as programs see it.
type pluginView struct {
	Name      string        `json:"name"`
	Version   string        `json:"version,omitempty"`
	Kind      string        `json:"kind,omitempty"`
	Schemes   []string      `json:"schemes"`
	Transport string        `json:"transport,omitempty"`
	State     string        `json:"state"` // "ready", "off", "not installed", or "broken"
	Problem   string        `json:"problem,omitempty"`
	Source    string        `json:"source"`
	SHA256    string        `json:"sha256,omitempty"`
	Settings  []settingView `json:"settings,omitempty"`
	Grants    *pluginGrants `json:"grants,omitempty"`
	manifest  *vendor.StaticManifest
}

type pluginGrants struct {
	HTTP        []string `json:"http"`
	Private     []string `json:"private"`
	Credentials []string `json:"credentials"`
	Run         []string `json:"run"`
	MemoryBytes int64    `json:"memory_bytes"`
}

type settingView struct {
	Name        string `json:"name"`
	Type        string `json:"type"`
	Required    bool   `json:"required,omitempty"`
	Default     string `json:"default,omitempty"`
	Description string `json:"description,omitempty"`
}

// view looks at a plugin of the configuration. deep reads its file again.
func (w *pluginWork) view(p config.Plugin, deep bool) pluginView {
	v := pluginView{Name: p.Name, Source: p.Source, State: "ready", Schemes: []string{}}
	digest, err := host.Pinned(p, w.lock, herePlatform())
	if err != nil {
		v.State, v.Problem = "not installed", err.Error()
		return v
	}
	v.SHA256 = digest
	m, err := w.shelf.Manifest(digest)
	if err == nil && deep {
		err = w.shelf.Verify(digest)
	}
	if err == nil {
		v.Transport, _, err = host.Nature(w.shelf.Path(digest))
	}
	if err == nil {
		v.manifest = m
		v.Version, v.Kind, v.Schemes = m.Info.Version, m.Info.Kind, m.Info.Schemes
		g := p.Grants
		v.Grants = &pluginGrants{HTTP: slices.Concat([]string{}, g.HTTP), Private: slices.Concat([]string{}, g.Private), Credentials: slices.Concat([]string{}, g.Credentials), Run: slices.Concat([]string{}, g.Run), MemoryBytes: int64(g.Memory)}
		for _, s := range m.Schema.Attributes {
			v.Settings = append(v.Settings, settingView{s.Name, s.Type, s.Required, s.DefaultJSON, s.Description})
		}
		_, err = p.Values(m.Schema)
	}
	switch {
	case err != nil:
		v.State, v.Problem = "broken", err.Error()
	case !p.Enabled:
		v.State = "off"
	}
	return v
}

func (a *app) pluginList() *cobra.Command {
	return &cobra.Command{Use: "list [NAME]", Short: "List the plugins of the configuration; with a name, what one may do and its settings", Args: argCount(0, 1, "[NAME]"),
		RunE: func(_ *cobra.Command, args []string) error {
			w, err := a.openPlugins()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				p, ok := w.find(args[0])
				if !ok {
					return noPlugin(args[0])
				}
				return a.showPlugin(w.view(p, false))
			}
			views := []pluginView{}
			rows := [][]string{}
			for _, p := range w.cfg.Plugins {
				v := w.view(p, false)
				views = append(views, v)
				rows = append(rows, []string{v.Name, cmp.Or(v.Version, "-"), cmp.Or(v.Kind, "-"), cmp.Or(strings.Join(v.Schemes, ","), "-"), cmp.Or(v.Transport, "-"), v.State, v.Source})
			}
			if a.json {
				return a.printJSON(views)
			}
			return a.table([]string{"NAME", "VERSION", "KIND", "SCHEMES", "RUNS AS", "STATE", "SOURCE"}, rows, "There are no plugins; `apiary plugin install FILE` installs one.")
		}}
}

func (a *app) showPlugin(v pluginView) error {
	if a.json {
		return a.printJSON(v)
	}
	lines := []string{fmt.Sprintf("%s %s · %s · %s · %s", v.Name, v.Version, v.Kind, v.Transport, v.State), "source  " + v.Source, "sha256  " + v.SHA256}
	if v.Problem != "" {
		lines = append(lines, "problem "+v.Problem)
	}
	if g := v.Grants; g != nil {
		lines = append(lines, "http    "+list(g.HTTP), "private "+list(g.Private), "keys    "+list(g.Credentials), "runs    "+list(g.Run))
	}
	if v.manifest != nil && v.manifest.Info.Description != "" {
		lines = append(lines, "", v.manifest.Info.Description)
	}
	if len(v.Settings) > 0 {
		lines = append(lines, "", "Settings, in its block config:")
	}
	for _, s := range v.Settings {
		need := "default " + cmp.Or(s.Default, "none")
		if s.Required {
			need = "required"
		}
		lines = append(lines, fmt.Sprintf("  %s (%s, %s): %s", s.Name, s.Type, need, s.Description))
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(a.out, plain(l, isTerminal(a.out))); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) pluginVerify() *cobra.Command {
	return &cobra.Command{Use: "verify [NAME]", Short: "Read the files of the plugins again and compare them with the lock file", Args: argCount(0, 1, "[NAME]"),
		RunE: func(_ *cobra.Command, args []string) error {
			w, err := a.openPlugins()
			if err != nil {
				return err
			}
			views := []pluginView{}
			var bad error
			for _, p := range w.cfg.Plugins {
				if len(args) == 1 && p.Name != args[0] {
					continue
				}
				v := w.view(p, true)
				if views = append(views, v); v.Problem != "" {
					bad = fault.New(fault.Conflict, "plugin_broken", "%s", v.Problem)
				}
				if !a.json {
					if _, err := fmt.Fprintf(a.out, "%s: %s\n", v.Name, cmp.Or(v.Problem, "as installed")); err != nil {
						return err
					}
				}
			}
			if len(args) == 1 && len(views) == 0 {
				return noPlugin(args[0])
			}
			if a.json {
				if err := a.printJSON(views); err != nil {
					return err
				}
			}
			return bad
		}}
}

func (a *app) pluginRemove() *cobra.Command {
	return &cobra.Command{Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a plugin: its block, its entry in the lock file and its file", Args: argCount(1, 1, "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			w, err := a.openPlugins()
			if err != nil {
				return err
			}
			locked, inLock := w.lock.Find(args[0])
			inFile, err := config.RemovePlugin(w.file(), args[0])
			if err != nil {
				return err
			}
			if !inFile && !inLock {
				return noPlugin(args[0])
			}
			if inLock {
				packages := locked.Packages
				w.lock.Remove(args[0])
				if err := config.WriteLock(w.cfg.Home, w.lock); err != nil {
					return err
				}
				for _, k := range packages {
					if !w.used(k.SHA256) {
						if err := w.shelf.Remove(k.SHA256); err != nil {
							return err
						}
					}
				}
			}
			return a.tell("%s is removed. An agent that runs lets go of it at its next start.", args[0])
		}}
}

// pluginValidate checks a file without installing it.
func (a *app) pluginValidate() *cobra.Command {
	return &cobra.Command{Use: "validate FILE", Short: "Check the file of a plugin without running it", Args: argCount(1, 1, "FILE"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			b, err := a.bring(ctx, args[0], "", false)
			if err != nil {
				return err
			}
			defer b.drop()
			c, err := host.Inspect(b.Path)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(c.Manifest)
			}
			i := c.Manifest.Info
			if c.Transport == config.TransportProcess {
				return a.tell("%s is a program for %s; what it asks for is known when `apiary plugin install` runs it.", args[0], c.Platform)
			}
			return a.tell("%s is a plugin: %s %s, a %s for %s.", args[0], i.Name, i.Version, i.Kind, strings.Join(i.Schemes, ", "))
		})}
}
