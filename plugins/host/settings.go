package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
)

// CheckConfig holds the blocks of plugins of a configuration against what is installed: that they are, in the version and of the kind
// that the block wants, and that its settings are as the schema of the plugin has them. No plugin is run, and no file is read as a whole.
// Where c has no hive, which is what uses plugins, nothing is looked at. The error is that of config.Load: Invalid, with all mistakes
// as config.Diagnostics.
func CheckConfig(c *config.Config) error {
	if !c.Agent.Has(config.RoleHive) {
		return nil
	}
	lock, err := config.ReadLock(c.Home)
	if err != nil {
		return err
	}
	shelf := &Shelf{home: c.Home} // which need not be there
	var all config.Diagnostics
	on := func(vendor string) bool { return c.Vendor(vendor).Enabled }
	taken := map[string]string{}
	for _, p := range c.Plugins {
		if p.Enabled {
			all = append(all, checkBlock(shelf, lock, &p, on, taken)...)
		}
	}
	return c.Mistakes(all)
}

// checkBlock returns what is wrong with one block. Taken are the schemes of those before it.
func checkBlock(shelf *Shelf, lock *config.Lock, p *config.Plugin, on func(vendor string) bool, taken map[string]string) config.Diagnostics {
	digest, err := Pinned(*p, lock, runtime.GOOS+"_"+runtime.GOARCH)
	if err != nil {
		option := map[string]string{"plugin_version": "version", "plugin_kind": "kind", "plugin_changed": "source", "plugin_transport": "transport"}[fault.As(err).Code]
		if option == "source" && p.SHA256 != "" {
			if l, ok := lock.Find(p.Name); ok && l.Source == p.Source {
				option = "sha256"
			}
		}
		return config.Diagnostics{p.Mistake(option, "Not as it is installed", fault.As(err).Message)}
	}
	m, err := shelf.Manifest(digest)
	if err == nil {
		if _, gone := os.Stat(shelf.Path(digest)); errors.Is(gone, fs.ErrNotExist) {
			err = shelf.Verify(digest)
		}
	}
	if err == nil {
		err = CheckManifest(m)
	}
	if err == nil {
		err = CheckSchemes(m.Info, on)
	}
	if err != nil {
		return config.Diagnostics{p.Mistake("", "Plugin cannot be used", fault.As(err).Message)}
	}
	for _, scheme := range m.Info.Schemes {
		if other, ok := taken[scheme]; ok {
			return config.Diagnostics{p.Mistake("", "Scheme is taken", fmt.Sprintf("The plugins %s and %s both answer for %q; switch one of them off.", other, p.Name, scheme))}
		}
		taken[scheme] = p.Name
	}
	_, err = p.Values(m.Schema)
	if diags, ok := errors.AsType[config.Diagnostics](err); ok {
		return diags
	}
	if err != nil {
		return config.Diagnostics{p.Mistake("", "Plugin cannot be used", err.Error())}
	}
	return nil
}
