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
