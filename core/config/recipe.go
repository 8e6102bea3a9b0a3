package config

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// maxRecipe bounds the file of a recipe.
const maxRecipe = 256 << 10

// recipe is a recipe in the form in which the provisioner of recipes reads it.
type recipe struct {
	Name    string        `json:"name"`
	Version string        `json:"version"`
	Files   []recipeFile  `json:"files"`
	Steps   []vendor.Step `json:"steps"`
	Launch  *recipeLaunch `json:"launch,omitempty"`
}

type recipeFile struct {
	Path     string `json:"path"`
	URL      string `json:"url"`
	SHA256   string `json:"sha256"`
	Platform string `json:"platform,omitempty"`
}

type recipeLaunch struct {
	Path           string            `json:"path"`
	Args           []string          `json:"args,omitempty"`
	Env            map[string]string `json:"env,omitempty"`
	Ready          string            `json:"ready,omitempty"`
	TimeoutSeconds int32             `json:"timeoutSeconds,omitempty"`
}

// ReadRecipe reads the file of a recipe and returns it as one JSON object, for the provisioner of recipes. Mistakes are an Invalid
// fault with the code recipe_invalid that shows each with its line. It has neither variables nor functions: a recipe means the same
// everywhere.
func ReadRecipe(path string) ([]byte, error) {
	invalid := func(why string) ([]byte, error) {
		return nil, fault.New(fault.Invalid, "recipe_invalid", "The file %s is not a recipe: %s; check its path.", path, why)
	}
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return invalid("it is no regular file")
	}
	f, err := folder.OpenFile(path, os.O_RDONLY, 0) // which does not wait for a FIFO that takes its place
	if err != nil {
		return nil, fault.New(fault.NotFound, "recipe_not_found", "The recipe %s cannot be read; check its path: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	src, err := io.ReadAll(io.LimitReader(f, maxRecipe+1))
	switch {
	case err != nil:
		return nil, fault.New(fault.Unavailable, "recipe_unreadable", "The recipe %s cannot be read: %w; check its disk.", path, err)
	case len(src) > maxRecipe:
		return invalid(fmt.Sprintf("it has more than %d KiB, and no recipe is that long", maxRecipe>>10))
	}
	r, diags := parseRecipe(src, filepath.Base(path))
	if len(diags) > 0 {
		return nil, fault.New(fault.Invalid, "recipe_invalid", "The recipe %s cannot be used:\n%w", path, diags)
	}
	return json.Marshal(r)
}

// isServerRecipe reports whether a file is a recipe of an engine that is a program of its own.
func isServerRecipe(path string) bool {
	src, err := read(path)
	if err != nil {
		return false // which is told when the recipe is needed
	}
	r, diags := parseRecipe(src, filepath.Base(path))
	return len(diags) == 0 && r.Launch != nil
}

func parseRecipe(src []byte, name string) (*recipe, Diagnostics) {
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, fromHCL(diags, src, name, nil)
	}
	body := file.Body.(*hclsyntax.Body)
	r := &recipe{Files: []recipeFile{}, Steps: []vendor.Step{}}
	add := func(summary string, at hcl.Range, format string, args ...any) {
		diags = append(diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(format, args...), Subject: &at})
	}
	texts := map[string]*string{"name": &r.Name, "version": &r.Version}
	for attr, a := range body.Attributes {
		if texts[attr] == nil {
			add("Wrong name", a.NameRange, "A recipe has no option %q; it has \"name\" and \"version\".", attr)
			continue
		}
		diags = append(diags, gohcl.DecodeExpression(a.Expr, nil, texts[attr])...)
	}
	for attr, value := range texts {
		if *value == "" && body.Attributes[attr] == nil {
			add("Missing option", body.MissingItemRange(), "A recipe needs a %s, for example %s = \"1.0\".", attr, attr)
		}
	}
	for _, b := range body.Blocks {
		diags = append(diags, r.block(b, add)...)
	}
	return r, fromHCL(diags, src, name, body)
}

// block reads one block of a recipe. Steps are taken in the order of the file.
func (r *recipe) block(b *hclsyntax.Block, add func(summary string, at hcl.Range, format string, args ...any)) hcl.Diagnostics {
	into := func(to any) hcl.Diagnostics { return gohcl.DecodeBody(b.Body, nil, to) }
	seconds := func(text string) int32 {
		if text == "" {
			return 0
		}
		d, err := time.ParseDuration(text)
		if err != nil || d < time.Second || d > day {
			add("Wrong value", b.Body.Attributes["timeout"].Expr.Range(), "A time with its unit is needed, from 1s to 24h, for example \"10m\".")
		}
		return int32(min(max(d/time.Second, 0), day/time.Second))
	}
	labels := 0
	defer func() {
		if len(b.Labels) != labels {
			add("Wrong name", b.TypeRange, "A block %s has %d names; write them in quotation marks after it.", b.Type, labels)
		}
	}()
	switch b.Type {
	case "file":
		labels = 1
		var x struct {
			URL      string `hcl:"url"`
			SHA256   string `hcl:"sha256"`
			Platform string `hcl:"platform,optional"`
		}
		diags := into(&x)
		f := recipeFile{URL: x.URL, SHA256: x.SHA256, Platform: x.Platform}
		if len(b.Labels) > 0 {
			f.Path = b.Labels[0]
		}
		r.Files = append(r.Files, f)
		return diags
	case "extract":
		var x struct {
			File   string `hcl:"file"`
			Prefix string `hcl:"prefix,optional"`
			Into   string `hcl:"into,optional"`
		}
		diags := into(&x)
		if x.Into == "" {
			x.Into = "."
		}
		r.Steps = append(r.Steps, vendor.Step{Extract: &vendor.ExtractStep{File: x.File, Prefix: x.Prefix, Into: x.Into}})
		return diags
	case "run":
		var x struct {
			Tool    string            `hcl:"tool"`
			Args    []string          `hcl:"args,optional"`
			Env     map[string]string `hcl:"env,optional"`
			Dir     string            `hcl:"dir,optional"`
			Network bool              `hcl:"network,optional"`
			Timeout string            `hcl:"timeout,optional"`
		}
		diags := into(&x)
		r.Steps = append(r.Steps, vendor.Step{Run: &vendor.RunStep{Tool: x.Tool, Args: x.Args, Env: x.Env, Dir: x.Dir, Network: x.Network, TimeoutSeconds: seconds(x.Timeout)}})
		return diags
	case "link":
		var x struct {
			Name   string `hcl:"name"`
			Target string `hcl:"target,optional"`
			Match  string `hcl:"match,optional"`
		}
		diags := into(&x)
		if (x.Target == "") == (x.Match == "") && !diags.HasErrors() {
			add("Missing option", b.TypeRange, "A link needs either a target or a match.")
		}
		r.Steps = append(r.Steps, vendor.Step{Link: &vendor.LinkStep{Name: x.Name, Target: x.Target, Match: x.Match}})
		return diags
	case "expect":
		var x struct {
			Path       string `hcl:"path"`
			Executable bool   `hcl:"executable,optional"`
			Message    string `hcl:"message,optional"`
		}
		diags := into(&x)
		if x.Message == "" {
			x.Message = "The recipe was carried out and there is no file " + x.Path + " as it promises; correct the recipe."
		}
		r.Steps = append(r.Steps, vendor.Step{Expect: &vendor.ExpectStep{Path: x.Path, Executable: x.Executable, Message: x.Message}})
		return diags
	case "launch":
		if r.Launch != nil {
			add("Duplicate block", b.TypeRange, "A recipe has one block launch at most.")
		}
		r.Launch = &recipeLaunch{}
		var x struct {
			Path    string            `hcl:"path"`
			Args    []string          `hcl:"args,optional"`
			Env     map[string]string `hcl:"env,optional"`
			Ready   string            `hcl:"ready,optional"`
			Timeout string            `hcl:"timeout,optional"`
		}
		diags := into(&x)
		*r.Launch = recipeLaunch{Path: x.Path, Args: x.Args, Env: x.Env, Ready: x.Ready, TimeoutSeconds: seconds(x.Timeout)}
		return diags
	}
	labels = len(b.Labels)
	add("Wrong name", b.TypeRange, "A recipe has no block %q; it has \"file\", \"extract\", \"run\", \"link\", \"expect\" and \"launch\".", b.Type)
	return nil
}
