// Package scaffold makes the folder of a new plugin, which builds and passes its tests as it is. It has no templates of its own: a
// new plugin is one of the examples with another name, and for Go also the packages that plugins are built with.
package scaffold

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Options says what to make.
type Options struct {
	Name     string // of the plugin, of its scheme and of its folder: lower-case letters, digits and dashes
	Language string // one of Languages
	Kind     string // vendor.KindVendor or vendor.KindProvisioner
	Parent   string // folder in which the folder is made
}

// Codes of errors.
const (
	CodeNoExample = "no_example"    // there is no example in that language of that kind
	CodeExists    = "folder_exists" // something of that name is there already
)

// example says where an example is, and what in its files is its name.
type example struct {
	language, kind string
	folder         string
	names          []string // texts that are replaced: a text, what takes its place, …; NAME and Name stand for the name
	module         bool     // it is a Go package of this module, and needs a go.mod of its own
}

func examples() []example {
	return []example{
		{language: "go", kind: vendor.KindVendor, folder: "examples/plugin-go", module: true,
			names: []string{`"index"`, `"NAME"`, "index:", "NAME:", "`index`", "`NAME`", "list index", "list NAME", "plugin index", "plugin NAME", "index.wasm", "NAME.wasm", "/index\n", "/NAME\n", "Plugin-go", "NAME"}},
		{language: "go", kind: vendor.KindProvisioner, folder: "examples/provisioner-go", module: true,
			names: []string{"Provisioner-go", "NAME", "forge", "NAME"}},
		{language: "rust", kind: vendor.KindVendor, folder: "examples/plugin-rust", names: []string{"shelf-rust", "NAME", "shelf", "NAME", "Shelf", "Name"}},
		{language: "as", kind: vendor.KindVendor, folder: "examples/plugin-assemblyscript", names: []string{"shelf-assemblyscript", "NAME", "shelf", "NAME"}},
		{language: "c", kind: vendor.KindVendor, folder: "examples/plugin-c", names: []string{"shelf-c", "NAME", "shelf", "NAME"}},
		{language: "python", kind: vendor.KindVendor, folder: "examples/plugin-python", names: []string{"shelf-python", "NAME", "shelf", "NAME", "Shelf", "Name"}},
	}
}

// Languages are the languages that there are examples in.
func Languages() []string {
	var out []string
	for _, e := range examples() {
		if !slices.Contains(out, e.language) {
			out = append(out, e.language)
		}
	}
	return out
}

// sdkFolder is where the packages that a plugin in Go is built with are, until a published version of them is required.
const sdkFolder = "apiary-sdk"

// New makes the folder o.Name in o.Parent and returns its files, slash-separated and sorted. sources is the tree of Apiary's own sources,
// or as much of it as examples and SDK need. The folder appears whole or not at all. One that exists is a Conflict.
func New(sources fs.FS, o Options) ([]string, error) {
	i := slices.IndexFunc(examples(), func(e example) bool { return e.language == o.Language && e.kind == o.Kind })
	if i < 0 {
		return nil, noExample(o)
	}
	e := examples()[i]
	files := map[string][]byte{}
	if err := e.collect(sources, o.Name, files); err != nil {
		return nil, err
	}
	if e.module {
		if err := collectSDK(sources, o.Name, files); err != nil {
			return nil, err
		}
	}
	if err := publish(filepath.Join(o.Parent, o.Name), files); err != nil {
		return nil, err
	}
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func noExample(o Options) error {
	if !slices.Contains(Languages(), o.Language) {
		return fault.New(fault.Invalid, CodeNoExample, "There is no example of a plugin in %q; --lang is one of %s.", o.Language, strings.Join(Languages(), ", "))
	}
	var have []string
	for _, e := range examples() {
		if e.kind == o.Kind {
			have = append(have, "--lang "+e.language)
		}
	}
	if len(have) == 0 {
		return fault.New(fault.Invalid, CodeNoExample, "There is no example of a plugin of the kind %q; --kind is %s or %s.", o.Kind, vendor.KindVendor, vendor.KindProvisioner)
	}
	return fault.New(fault.Invalid, CodeNoExample, "There is no example of a %s in %s; say %s, or begin with a vendor.", o.Kind, o.Language, strings.Join(have, " or "))
}

// collect reads the files of the example, with the name in its place. What was built there, or is ignored, is left out.
func (e example) collect(sources fs.FS, name string, into map[string][]byte) error {
	replace := slices.Clone(e.names)
	for i := 1; i < len(replace); i += 2 {
		replace[i] = strings.NewReplacer("NAME", name, "Name", camel(name)).Replace(replace[i])
	}
	replacer := strings.NewReplacer(replace...)
	err := fs.WalkDir(sources, e.folder, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if slices.Contains([]string{"target", "node_modules", ".venv", "__pycache__"}, d.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		rel := strings.TrimPrefix(file, e.folder+"/")
		if path.Ext(rel) == ".wasm" || rel == "assembly/manifest.ts" || !d.Type().IsRegular() {
			return nil
		}
		raw, err := fs.ReadFile(sources, file)
		if err != nil {
			return err
		}
		into[rel] = []byte(replacer.Replace(string(raw)))
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the example in %s: %w", e.folder, err)
	}
	return nil
}

// camel is a name as a type: "my-models" becomes "MyModels".
func camel(name string) string {
	var b strings.Builder
	up := true
	for _, r := range name {
		if r == '-' {
			up = true
			continue
		}
		if up {
			r, up = unicode.ToUpper(r), false
		}
		b.WriteRune(r)
	}
	return b.String()
}

// publish makes the folder, under another name until it is whole.
func publish(folder string, files map[string][]byte) error {
	exists := fault.New(fault.Conflict, CodeExists, "There is a %s already, and it was left as it is; choose another name, or another folder to work in.", folder)
	if _, err := os.Lstat(folder); err == nil {
		return exists
	}
	work, err := os.MkdirTemp(filepath.Dir(folder), ".new-*")
	if err != nil {
		return fault.New(fault.Invalid, "not_written", "Nothing can be written into %s: %w.", filepath.Dir(folder), err)
	}
	defer func() { _ = os.RemoveAll(work) }() // after the rename it is not there any more
	for name, content := range files {
		to := filepath.Join(work, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("make the folder of the plugin: %w", err)
		}
		if err := os.WriteFile(to, content, 0o644); err != nil {
			return fmt.Errorf("write the plugin: %w", err)
		}
	}
	if err := os.Chmod(work, 0o755); err != nil {
		return fmt.Errorf("make the folder of the plugin: %w", err)
	}
	if err := os.Rename(work, folder); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return exists
		}
		return fmt.Errorf("make the folder of the plugin: %w", err)
	}
	return nil
}
