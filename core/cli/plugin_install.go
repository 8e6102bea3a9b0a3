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
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/logging"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func (a *app) pluginInstall() *cobra.Command {
	var name, transport, tls string
	var yes bool
	c := &cobra.Command{Use: "install SOURCE", Short: "Install a plugin, after you have seen and granted what it asks for",
		Long: "Install a plugin, after you have seen and granted what it asks for.\n\nSOURCE is a file, a folder, https://HOST/FILE or git::https://HOST/REPO?ref=REF. Of an archive (.tar.gz, .tgz, .zip, or ?archive=zip),\nof a repository and of a folder the plugin inside is taken; //FILE behind the place names it. ?checksum=sha256:HEX is compared.",
		Args: argCount(1, 1, "SOURCE"),
		RunE: interruptible(func(ctx context.Context, args []string) error {
			if tls != "" && tls != config.TLSNone {
				return fault.New(fault.Invalid, "bad_flag", "--tls is none, or left out, not %q.", tls)
			}
			w, err := a.openPlugins()
			if err != nil {
				return err
			}
			b, err := a.bring(ctx, args[0], transport, true)
			if err != nil {
				return err
			}
			defer b.drop()
			return w.holding(func() error { return a.install(ctx, w, b, installOptions{name: name, tls: tls, yes: yes}) })
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
			return w.holding(func() error { return a.install(ctx, w, b, installOptions{name: p.Name, tls: p.TLS, yes: yes}) })
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

// holding runs f, which puts files on the shelf. What is not needed there is gone before and after it, where that is possible.
func (w *pluginWork) holding(f func() error) error {
	if err := w.shelf.Sweep(); err != nil {
		return err
	}
	release, err := w.shelf.Hold()
	if err != nil {
		return err
	}
	err = folder.Full(f(), w.cfg.Home, "the plugin", 0)
	release()
	return errors.Join(err, w.shelf.Sweep())
}

// install takes a plugin that was brought, has the operator grant what it asks for, and writes both files. What the lock file has for
// this platform already, as after a move to another machine, has to be that and needs no grant.
func (a *app) install(ctx context.Context, w *pluginWork, b *brought, o installOptions) error {
	name, yes, source := o.name, o.yes, b.source
	if err := w.agrees(ctx, b); err != nil {
		return err // before anything of it is run
	}
	beside := manifestBeside(b.Path)
	confirm := func(path string) error {
		if yes || beside != nil || w.agreed(source, filepath.Base(path)) {
			return nil
		}
		return a.agree(fmt.Sprintf("%s is a program: it has to be run to say what it is, and then, as ever, it may do all that your user may. Run it?", b.what()))
	}
	c, err := w.shelf.Take(ctx, b.Path, confirm, func(ctx context.Context, path, digest string) (*vendor.StaticManifest, error) {
		if beside != nil {
			return beside, nil
		}
		own, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find this executable: %w", err)
		}
		return host.Ask(ctx, host.Question{Path: path, SHA256: digest, Store: w.shelf.Programs(), TLS: o.tls, ExecChild: []string{own, "exec-child"}, Home: w.cfg.Home, Log: a.warnings()})
	})
	if err != nil {
		return err
	}
	for _, v := range b.Others {
		k, err := v.Package(ctx)
		if err != nil {
			return err
		}
		c.Others = append(c.Others, k)
	}
	name = cmp.Or(name, c.Manifest.Info.Name)
	before, known := w.lock.Find(name)
	current, configured := w.find(name)
	if configured {
		if err := c.Wanted(current); err != nil {
			return err
		}
	}
	if known {
		if err := w.samePlugin(before, c); err != nil {
			return err
		}
	}
	same := known && before.Source == source && w.agreed(source, c.Digest)
	switch {
	case same && before.Pending: // it was granted
		p := config.Plugin{Name: name, Source: source, Transport: c.Transport, Grants: before.Grants}
		return a.commit(ctx, w, p, c, o)
	case same && configured:
		return a.tell("%s %s is installed already, as the lock file has it.", name, before.Version)
	}
	if err := w.schemesFree(name, c); err != nil {
		return err
	}
	grants := c.Asked()
	if configured && known && !before.Pending && w.asksAsBefore(before, c) {
		grants = current.Grants // what the operator made of the same wishes
	} else if configured {
		grants.Private = current.Grants.Private // the operator's own, which no plugin asks for
		grants.Private = slices.DeleteFunc(grants.Private, func(h string) bool { return !slices.Contains(grants.HTTP, h) })
	}
	shown := before
	if configured && known {
		now := *before
		now.Grants, shown = current.Grants, &now
	}
	if err := a.showAsked(name, c, shown); err != nil {
		return err
	}
	if !yes {
		if err := a.agree("Grant?"); err != nil {
			return err
		}
	}
	return a.commit(ctx, w, config.Plugin{Name: name, Source: source, Transport: c.Transport, Grants: grants}, c, o)
}

// commit writes what was granted into both files, unless another command has changed there what was looked at. The lock file is first,
// and says that the plugin is pending until the configuration has its grants: killed in between, none of it runs.
func (a *app) commit(ctx context.Context, w *pluginWork, p config.Plugin, c *host.Candidate, o installOptions) error {
	if c.Transport == config.TransportProcess {
		p.TLS = cmp.Or(o.tls, c.Manifest.TLS)
	}
	done, err := config.TakeTurn(ctx, w.cfg.Home)
	if err != nil {
		return err
	}
	defer done()
	now, err := a.openPlugins()
	if err != nil {
		return err
	}
	if !w.sameAbout(now, p.Name) {
		return fault.New(fault.Conflict, "changed_meanwhile", "Another command has changed the plugin %s meanwhile, so nothing was written; look at it with `apiary plugin list %s`, and say this again.", p.Name, p.Name)
	}
	if err := now.schemesFree(p.Name, c); err != nil {
		return err
	}
	entry := c.Locked(p.Name, p.Source, p.Grants)
	entry.Pending = true
	now.lock.Put(entry)
	if err := config.WriteLock(w.cfg.Home, now.lock); err != nil {
		return err
	}
	if err := config.PutPlugin(now.file(), p); err != nil {
		return err
	}
	entry.Pending = false
	now.lock.Put(entry)
	if err := config.WriteLock(w.cfg.Home, now.lock); err != nil {
		return err
	}
	text := fmt.Sprintf("%s %s is installed, and written into %s and %s. An agent that runs uses it after its next start.",
		p.Name, c.Manifest.Info.Version, now.file(), filepath.Join(w.cfg.Home, config.LockName))
	if now, err = a.openPlugins(); err != nil {
		return err
	}
	if p, ok := now.find(p.Name); ok {
		if _, err := p.Values(c.Manifest.Schema); err != nil {
			text += missing(now.file(), &p, c.Manifest.Schema)
		}
	}
	return a.tell("%s", text)
}

// missing says what settings a plugin lacks that was just installed, with a block that can be copied.
func missing(file string, p *config.Plugin, s vendor.Schema) string {
	var lines []string
	for _, one := range s.Attributes {
		if !one.Required || one.DefaultJSON != "" {
			continue
		}
		value := one.Example
		if value == "" {
			value = map[string]string{"string": `"..."`, "number": "0", "bool": "false"}[one.Type]
		}
		switch {
		case value == "":
			value = "[]"
		case one.Type == "string" && !strings.HasPrefix(value, `"`):
			value = strconv.Quote(value)
		}
		lines = append(lines, printable(fmt.Sprintf("    %s = %s # %s", one.Name, value, one.Description)))
	}
	if p.Configured() || len(lines) == 0 {
		return fmt.Sprintf("\nIts settings are not what it needs; `apiary plugin doctor %s` says why.", p.Name)
	}
	return fmt.Sprintf("\nIt needs settings before it can be used; write them into the block plugin %q of %s:\n\n  config {\n%s\n  }", p.Name, file, strings.Join(lines, "\n"))
}

// sameAbout reports whether both files say about a plugin what they said before.
func (w *pluginWork) sameAbout(now *pluginWork, name string) bool {
	was, inFile := w.find(name)
	is, stillInFile := now.find(name)
	locked, inLock := w.lock.Find(name)
	still, stillInLock := now.lock.Find(name)
	return inFile == stillInFile && inLock == stillInLock && was.Source == is.Source && was.SHA256 == is.SHA256 && was.Version == is.Version &&
		reflect.DeepEqual(was.Grants, is.Grants) && (!inLock || reflect.DeepEqual(locked, still))
}

// schemesFree refuses a plugin that answers for what another one answers for.
func (w *pluginWork) schemesFree(name string, c *host.Candidate) error {
	if err := host.CheckSchemes(c.Manifest.Info, func(vendor string) bool { return w.cfg.Vendor(vendor).Enabled }); err != nil {
		return err
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
	return nil
}

// samePlugin refuses another plugin under the name of one that is installed.
func (w *pluginWork) samePlugin(before *config.LockedPlugin, c *host.Candidate) error {
	was, err := w.shelf.Manifest(before.Packages[0].SHA256)
	if err != nil || was.Info.Name == c.Manifest.Info.Name {
		return nil // or nobody knows
	}
	return fault.New(fault.Conflict, "another_plugin", "The source holds the plugin %s now, and %s was installed as %s; say `apiary plugin remove %s` and then `apiary plugin install` if that is meant.", c.Manifest.Info.Name, was.Info.Name, before.Name, before.Name)
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
	lines = append(lines, "  asks for: "+cmp.Or(strings.Join(asks, " · "), "nothing"))
	if slices.Contains(i.Features, vendor.FeatureBare) {
		lines = append(lines, "  It answers for all ORG/REPO without a scheme too, which the vendors before it do not know.")
	}
	if i.Kind == vendor.KindProvisioner {
		lines = append(lines, "  The engines that it installs run as your user, and may do all that your user may.")
	}
	if c.Transport == config.TransportProcess {
		says := "  It is a program, which nothing holds to that: it may do all that your user may."
		if sandbox.Kernel().ABI > 0 {
			says = "  It is a program: it may do all that your user may, but for the files and connections that Landlock keeps from it."
		}
		lines = append(lines, says)
	}
	if before != nil {
		had := before.Grants
		lines = append(lines, fmt.Sprintf("  Installed is %s, granted: http to %s · credentials %s · running %s", before.Version, list(had.HTTP), list(had.Credentials), list(had.Run)))
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(a.err, plain(printable(l), isTerminal(a.err))); err != nil {
			return err
		}
	}
	return nil
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
