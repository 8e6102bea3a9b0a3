package cli

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
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

// tell says what was done: to people; to programs as an object.
func (a *app) tell(format string, args ...any) error {
	text := fmt.Sprintf(format, args...)
	if a.json {
		return a.printJSON(map[string]string{"message": text})
	}
	_, err := fmt.Fprintln(a.out, text)
	return err
}

func list(s []string) string {
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ", ")
}

// pluginView is a plugin as programs see it.
type pluginView struct {
	Name      string        `json:"name"`
	Version   string        `json:"version,omitempty"`
	Kind      string        `json:"kind,omitempty"`
	Schemes   []string      `json:"schemes"`
	Transport string        `json:"transport,omitempty"`
	State     string        `json:"state"` // "ready", "off", "not installed", "refused", because it is not what the configuration wants, or "broken"
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

// view looks at a plugin of the configuration. bytes reads its file again, and leaves its settings aside.
func (w *pluginWork) view(p config.Plugin, bytes bool) pluginView {
	v := pluginView{Name: p.Name, Source: p.Source, State: "ready", Schemes: []string{}}
	digest, err := host.Pinned(p, w.lock, herePlatform())
	if err != nil {
		v.State, v.Problem = "refused", err.Error()
		if code := fault.As(err).Code; code == "plugin_not_installed" || code == "wrong_platform" {
			v.State = "not installed"
		}
		return v
	}
	v.SHA256 = digest
	m, err := w.shelf.Manifest(digest)
	if err == nil && bytes {
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
		if !bytes {
			_, err = p.Values(m.Schema)
		}
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
		if _, err := fmt.Fprintln(a.out, plain(printable(l), isTerminal(a.out))); err != nil {
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
		RunE: interruptible(func(ctx context.Context, args []string) error {
			w, err := a.openPlugins()
			if err != nil {
				return err
			}
			if err := a.forget(ctx, w.cfg.Home, args[0]); err != nil {
				return err
			}
			if err := w.shelf.Sweep(); err != nil {
				return err
			}
			return a.tell("%s is removed. An agent that runs lets go of it at its next start.", args[0])
		})}
}

// forget takes a plugin out of both files.
func (a *app) forget(ctx context.Context, home, name string) error {
	done, err := config.TakeTurn(ctx, home)
	if err != nil {
		return err
	}
	defer done()
	w, err := a.openPlugins()
	if err != nil {
		return err
	}
	_, inLock := w.lock.Find(name)
	inFile, err := config.RemovePlugin(w.file(), name)
	if err != nil {
		return err
	}
	if !inFile && !inLock {
		return noPlugin(name)
	}
	if !inLock {
		return nil
	}
	w.lock.Remove(name)
	return config.WriteLock(home, w.lock)
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
