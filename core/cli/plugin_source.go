package cli

import (
	"context"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/apiary-dev/apiary/core/artifact"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/host"
)

// brought is a plugin that was brought from its source, in a folder of its own where it was not on this machine.
type brought struct {
	host.Chosen
	source string // as the configuration has it
	update bool   // another version may take the place of the installed one
	dir    string
}

// drop removes what was brought.
func (b *brought) drop() { _ = os.RemoveAll(b.dir) }

// what is how the plugin is called before it has said its name.
func (b *brought) what() string { return filepath.Base(b.Path) }

// herePlatform is this machine's platform, as the lock file calls it.
func herePlatform() string { return runtime.GOOS + "_" + runtime.GOARCH }

// bring fetches what a source names and finds the plugin in it. chosen says that somebody chose the transport just now.
func (a *app) bring(ctx context.Context, text, transport string, chosen bool) (*brought, error) {
	if err := checkTransport(transport); err != nil {
		return nil, err
	}
	src, err := host.ParseSource(text)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(src.Place)
	isFolder := src.Kind == host.SourcePath && err == nil && info.IsDir()
	if chosen && transport != "" && !isFolder && src.Kind != host.SourceGit && src.Archive == "" {
		return nil, fault.New(fault.Invalid, "bad_flag", "--transport chooses among the files in a folder, an archive or a repository, and %s is no folder; leave it out.", text)
	}
	dir, err := os.MkdirTemp("", "apiary-plugin-")
	if err != nil {
		return nil, fault.New(fault.Unavailable, "no_temporary_folder", "No temporary folder for the plugin can be made: %w.", err)
	}
	b := &brought{source: src.String(), dir: dir}
	root, err := artifact.NewSources().Fetch(ctx, src, dir)
	if err == nil {
		b.Chosen, err = host.Choose(src, root, transport, herePlatform())
	}
	if err != nil {
		b.drop()
		if fault.As(err).Code == host.CodeNoPlugin && isFolder && src.Inside == "" {
			return nil, fault.New(fault.NotFound, "not_built", "Nothing that could be installed was built in %s; say `apiary plugin build %s` first.", text, text)
		}
		return nil, err
	}
	if isFolder && len(b.Others) == 0 {
		b.source = b.Path // what is built beside it later is another plugin
	}
	return b, nil
}

// agreed reports whether the file of that digest is what the lock file has for a plugin from source: the operator agreed to it, perhaps on
// another machine.
func (w *pluginWork) agreed(source, digest string) bool {
	return slices.ContainsFunc(w.lock.Plugins, func(p config.LockedPlugin) bool {
		k, ok := host.For(&p, herePlatform())
		return ok && p.Source == source && k.SHA256 == digest
	})
}

// agrees refuses a file that is not the one that the lock file has for its source, where that one was never on this machine: it is not
// what was agreed to elsewhere.
func (w *pluginWork) agrees(ctx context.Context, b *brought) error {
	got, err := host.Variant{Path: b.Path}.Package(ctx)
	if err != nil {
		return err
	}
	for _, p := range w.cfg.Plugins {
		if p.Source == b.source {
			if err := host.WantedFile(p, got.SHA256); err != nil {
				return err
			}
		}
	}
	if b.update {
		return nil
	}
	for _, p := range w.lock.Plugins {
		k, ok := host.For(&p, herePlatform())
		if !ok || p.Source != b.source || k.SHA256 == got.SHA256 || w.shelf.Verify(k.SHA256) == nil {
			continue
		}
		return fault.New(fault.Denied, "plugin_changed", "%s is not the file that the lock file has for the plugin %s: its sha256 is %s…, and %s… was agreed to; say `apiary plugin update %s` if the change is meant.", b.what(), p.Name, got.SHA256[:12], k.SHA256[:12], p.Name)
	}
	return nil
}
