package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/apiary-dev/apiary/core/fault"
)

// PutPlugin writes the source and the grants of p into its block in the configuration file at path, and leaves all else there as it is,
// comments too. A block or a file that does not exist is made. The file is published by rename, keeps its mode, and is not
// touched when it has mistakes or would have them afterwards.
func PutPlugin(path string, p Plugin) error {
	return edit(path, func(body *hclwrite.Body) {
		b := body.FirstMatchingBlock("plugin", []string{p.Name})
		if b == nil {
			if len(body.Attributes())+len(body.Blocks()) > 0 {
				body.AppendNewline()
			}
			b = body.AppendNewBlock("plugin", []string{p.Name})
		}
		b.Body().SetAttributeValue("source", cty.StringVal(p.Source))
		if p.Transport != "" {
			b.Body().SetAttributeValue("transport", cty.StringVal(p.Transport))
		}
		if p.TLS != "" {
			b.Body().SetAttributeValue("tls", cty.StringVal(p.TLS))
		} else {
			b.Body().RemoveAttribute("tls")
		}
		g := b.Body().FirstMatchingBlock("grants", nil)
		if g == nil {
			g = b.Body().AppendNewBlock("grants", nil)
		}
		for _, o := range grantsSchema(&p.Grants).options {
			if v := o.get(); v.Type().IsPrimitiveType() || v.LengthInt() > 0 {
				g.Body().SetAttributeValue(o.name, v)
			} else {
				g.Body().RemoveAttribute(o.name)
			}
		}
	})
}

// RemovePlugin takes the block of a plugin out of the configuration file at path. It reports whether there was one.
func RemovePlugin(path, name string) (bool, error) {
	found := false
	err := edit(path, func(body *hclwrite.Body) {
		if b := body.FirstMatchingBlock("plugin", []string{name}); b != nil {
			found = body.RemoveBlock(b)
		}
	})
	return found, err
}

// edit applies change to the configuration file at path.
func edit(path string, change func(*hclwrite.Body)) error {
	src, err := read(path)
	mode := fs.FileMode(0o600)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fault.New(fault.Invalid, "config_unreadable", "The configuration %s cannot be read: %w.", path, err)
	default:
		if st, err := os.Stat(path); err == nil {
			mode = st.Mode().Perm()
		}
	}
	if _, diags := parse(src, path, path, os.LookupEnv); len(diags) > 0 {
		return fault.New(fault.Invalid, "config_invalid", "The configuration %s has mistakes, so nothing was written into it; correct it first.\n\n%w", path, diags)
	}
	file, hdiags := hclwrite.ParseConfig(src, path, hcl.InitialPos)
	if hdiags.HasErrors() {
		return fmt.Errorf("read the configuration to change it: %w", hdiags)
	}
	change(file.Body())
	out := hclwrite.Format(file.Bytes())
	if _, diags := parse(out, path, path, os.LookupEnv); len(diags) > 0 {
		return fault.New(fault.Invalid, "config_invalid", "The configuration %s was not changed, because it would not be right afterwards.\n\n%w", path, diags)
	}
	if slices.Equal(out, src) {
		return nil
	}
	target, err := filepath.EvalSymlinks(path) // a link to a file under version control stays one
	if err != nil {
		target = path
	}
	tmp, err := os.CreateTemp(filepath.Dir(target), ".config-*")
	if err != nil {
		return fault.New(fault.Invalid, "config_unwritable", "The configuration %s cannot be written: %w.", path, err)
	}
	_, err = tmp.Write(out)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), target)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write the configuration %s: %w", path, err)
	}
	return nil
}

// PutHive adds a hive to queen.hives in the configuration file at path, as PutPlugin does, and reports whether it was missing.
func PutHive(path, address string) (bool, error) {
	return editHives(path, func(hives []string) []string {
		if slices.Contains(hives, address) {
			return hives
		}
		return append(hives, address)
	})
}

// RemoveHive takes a hive out of queen.hives in the configuration file at path. It reports whether it was there.
func RemoveHive(path, address string) (bool, error) {
	return editHives(path, func(hives []string) []string {
		return slices.DeleteFunc(hives, func(h string) bool { return h == address })
	})
}

// editHives changes queen.hives of a file that sets them by a list, and nothing where they stay the same.
func editHives(path string, change func([]string) []string) (changed bool, err error) {
	src, err := read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fault.New(fault.Invalid, "config_unreadable", "The configuration %s cannot be read: %w.", path, err)
	}
	c, diags := parse(src, path, path, os.LookupEnv)
	if len(diags) > 0 {
		return false, fault.New(fault.Invalid, "config_invalid", "The configuration %s has mistakes, so nothing was written into it; correct it first.\n\n%w", path, diags)
	}
	var had []string
	if c.Queen.HivesSet || !c.Agent.Has(RoleHive) { // an agent's own hive needs no mention
		had = c.Queen.Hives
	}
	want := change(slices.Clone(had))
	if slices.Equal(had, want) {
		return false, nil
	}
	return true, edit(path, func(body *hclwrite.Body) {
		q := body.FirstMatchingBlock("queen", nil)
		if q == nil {
			if len(body.Attributes())+len(body.Blocks()) > 0 {
				body.AppendNewline()
			}
			q = body.AppendNewBlock("queen", nil)
		}
		if len(want) == 0 {
			q.Body().RemoveAttribute("hives")
			return
		}
		values := make([]cty.Value, len(want))
		for i, h := range want {
			values[i] = cty.StringVal(h)
		}
		q.Body().SetAttributeValue("hives", cty.ListVal(values))
	})
}
