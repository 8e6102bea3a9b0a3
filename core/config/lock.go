package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// LockName is the name of the lock file in the data folder.
const LockName = ".apiary.lock.hcl"

// PlatformWASM is the platform of packages that run everywhere.
const PlatformWASM = "wasm"

// Lock is the lock file: which bytes the plugins of the configuration are, and what they were granted when they were installed. It is
// written by `apiary plugin install` and update, and may be kept under version control.
type Lock struct {
	Plugins []LockedPlugin // by name
}

// LockedPlugin is a block plugin "NAME" of the lock file.
type LockedPlugin struct {
	Name     string
	Source   string // as in the configuration
	Version  string
	Kind     string
	Contract string
	Grants   Grants // what it asked for and was granted
	Packages []Package

	// Pending says that the configuration does not have it yet: it is set before the configuration is written, and taken away after
	// that. A command that was killed in between leaves it, and the plugin does not run until the same command ended.
	Pending bool
}

// Package is a block package "PLATFORM": one file of a plugin.
type Package struct {
	Platform string // PlatformWASM, or as "linux_amd64"
	Size     contract.Bytes
	SHA256   string
}

// Find returns the plugin of that name.
func (l *Lock) Find(name string) (*LockedPlugin, bool) {
	i := slices.IndexFunc(l.Plugins, func(p LockedPlugin) bool { return p.Name == name })
	if i < 0 {
		return nil, false
	}
	return &l.Plugins[i], true
}

// Put replaces the plugin of p's name, or adds it.
func (l *Lock) Put(p LockedPlugin) {
	l.Remove(p.Name)
	l.Plugins = append(l.Plugins, p)
	slices.SortFunc(l.Plugins, func(a, b LockedPlugin) int { return strings.Compare(a.Name, b.Name) })
}

// Remove takes the plugin of that name away.
func (l *Lock) Remove(name string) {
	l.Plugins = slices.DeleteFunc(l.Plugins, func(p LockedPlugin) bool { return p.Name == name })
}

// Package returns the package for a platform.
func (p *LockedPlugin) Package(platform string) (*Package, bool) {
	i := slices.IndexFunc(p.Packages, func(k Package) bool { return k.Platform == platform })
	if i < 0 {
		return nil, false
	}
	return &p.Packages[i], true
}

func lockSchema(l *Lock) *block {
	return &block{groups: []*group{{
		name: "plugin", check: checkName,
		open: func(label string) (*block, func()) {
			p := LockedPlugin{Name: label}
			b := lockedSchema(&p)
			return b, func() { l.Plugins = append(l.Plugins, p) }
		},
		each: func() []*block {
			return bind(l.Plugins, func(p *LockedPlugin) *block {
				b := lockedSchema(p)
				if !p.Pending { // as nearly ever
					b.options = slices.DeleteFunc(b.options, func(o option) bool { return o.field == &p.Pending })
				}
				return b
			})
		},
	}}}
}

func lockedSchema(p *LockedPlugin) *block {
	return &block{name: "plugin", label: p.Name,
		options: []option{
			text("source", "A file or a URL is needed.", &p.Source, nil),
			text("version", "A version is needed.", &p.Version, pattern(versionPattern, "a version such as 1.2.0")),
			text("kind", "A kind is needed.", &p.Kind, nil),
			text("contract", "A contract is needed.", &p.Contract, nil),
			boolean("pending", &p.Pending),
		},
		blocks: []*block{grantsSchema(&p.Grants)},
		groups: []*group{{
			name: "package", check: pattern(platformPattern, "a platform such as linux_amd64"),
			open: func(label string) (*block, func()) {
				k := Package{Platform: label}
				b := packageSchema(&k)
				return b, func() { p.Packages = append(p.Packages, k) }
			},
			each: func() []*block { return bind(p.Packages, packageSchema) },
		}},
	}
}

func packageSchema(k *Package) *block {
	return &block{name: "package", label: k.Platform, options: []option{
		{name: "size", field: &k.Size, need: "A number of bytes is needed.",
			set: func(v cty.Value) error {
				n, err := asNumber(v)
				if err != nil {
					return err
				}
				i, _ := n.Int64()
				if i < 0 || !n.IsInt() {
					return errType
				}
				k.Size = contract.Bytes(i)
				return nil
			},
			get: func() cty.Value { return cty.NumberIntVal(int64(k.Size)) }},
		text("sha256", "The SHA-256 of the file in hexadecimal is needed.", &k.SHA256, pattern(sha256Pattern, "a SHA-256 of 64 lower-case hexadecimal digits")),
	}}
}

// ReadLock reads the lock file in a data folder. A file that does not exist is an empty one.
func ReadLock(home string) (*Lock, error) {
	path := filepath.Join(home, LockName)
	src, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &Lock{}, nil
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "lock_unreadable", "The lock file %s cannot be read: %w.", path, err)
	}
	l, diags := parseLock(src, path)
	if len(diags) > 0 {
		return nil, fault.New(fault.Invalid, "lock_invalid", "The lock file %s is damaged; restore it, or remove it and say `apiary plugin install` again.\n\n%w", path, diags)
	}
	return l, nil
}

// parseLock reads the text of a lock file, in which nothing is evaluated.
func parseLock(src []byte, name string) (*Lock, Diagnostics) {
	if tooDeep(src, name) {
		return nil, Diagnostics{{Summary: "Too deep", Detail: "Brackets are nested too deep in " + name + "."}}
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	var body *hclsyntax.Body
	if file != nil {
		body, _ = file.Body.(*hclsyntax.Body)
	}
	l := &Lock{}
	d := &decoder{diags: diags, broken: diags.HasErrors(), root: lockSchema(l), src: src, name: name, at: map[any]hcl.Range{}, failed: map[any]bool{}}
	if body != nil {
		seen := map[string]bool{}
		d.labelled(body, d.root, seen, "")
		for _, p := range l.Plugins {
			for _, k := range p.Packages {
				if k.SHA256 == "" && !d.broken {
					d.add("Missing option", body.SrcRange, "The package %q of plugin %q has no sha256", k.Platform, p.Name)
				}
			}
		}
	}
	if out := fromHCL(d.diags, src, name, body); len(out) > 0 {
		return nil, out
	}
	return l, nil
}

// labelled decodes body with all blocks of groups in it; seen are the labels that were used, below path.
func (d *decoder) labelled(body *hclsyntax.Body, b *block, seen map[string]bool, path string) {
	d.body(body, b, func(g *group, in *hclsyntax.Block) {
		if len(in.Labels) != 1 {
			d.add("Wrong number of names", in.TypeRange, "The block %q takes one name", g.name)
			return
		}
		label := in.Labels[0]
		at := path + "/" + g.name + "/" + label
		switch err := g.check(label); {
		case err != nil:
			d.add("Wrong name", in.LabelRanges[0], "%s", err)
		case seen[at]:
			d.add("Duplicate block", in.LabelRanges[0], "There is a %s %q already", g.name, label)
		}
		seen[at] = true
		inner, done := g.open(label)
		d.labelled(in.Body, inner, seen, at)
		done()
	})
}

// WriteLock publishes the lock file by rename.
func WriteLock(home string, l *Lock) error {
	f := hclwrite.NewEmptyFile()
	showBody(f.Body(), lockSchema(l), nil)
	out := append([]byte("# Written by `apiary plugin install` and `apiary plugin update`. It says which bytes may run; keep it with the configuration.\n\n"), hclwrite.Format(f.Bytes())...)
	if _, diags := parseLock(out, LockName); len(diags) > 0 {
		return fmt.Errorf("write the lock file: it could not be read again: %w", diags)
	}
	path := filepath.Join(home, LockName)
	tmp, err := os.CreateTemp(home, ".lock-*")
	if err != nil {
		return fmt.Errorf("write the lock file: %w", err)
	}
	_, err = bytes.NewReader(out).WriteTo(tmp)
	err = errors.Join(err, tmp.Chmod(0o644), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("write the lock file %s: %w", path, err)
	}
	return nil
}
