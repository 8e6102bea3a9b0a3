package config

import (
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
)

// maxIncluded bounds what file() reads.
const maxIncluded = 64 << 10

// evalContext holds the two functions of the language. path is that of the configuration, "" for the embedded one.
func evalContext(path string, env func(string) (string, bool)) *hcl.EvalContext {
	return &hcl.EvalContext{Functions: map[string]function.Function{
		"env":  envFunction(env),
		"file": fileFunction(path),
	}}
}

// envFunction is env(NAME): the value of an environment variable, null where it is not set.
func envFunction(env func(string) (string, bool)) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "name", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			v, ok := env(args[0].AsString())
			if !ok {
				return cty.NullVal(cty.String), nil
			}
			if !utf8.ValidString(v) {
				return cty.NilVal, function.NewArgErrorf(0, "the variable does not hold UTF-8 text")
			}
			return cty.StringVal(v), nil
		},
	})
}

// fileFunction is file(PATH): the text of a file without the line break at its end. A relative path begins at the folder of the
// configuration.
func fileFunction(config string) function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			p := args[0].AsString()
			if !filepath.IsAbs(p) {
				if config == "" {
					return cty.NilVal, function.NewArgErrorf(0, "the built-in configuration has no folder; give an absolute path")
				}
				p = filepath.Join(filepath.Dir(config), p)
			}
			b, err := read(p)
			switch {
			case err != nil:
				return cty.NilVal, function.NewArgErrorf(0, "%s", err)
			case len(b) > maxIncluded:
				return cty.NilVal, function.NewArgErrorf(0, "the file is larger than 64 KiB")
			case !utf8.Valid(b):
				return cty.NilVal, function.NewArgErrorf(0, "the file does not hold UTF-8 text")
			}
			s := strings.TrimSuffix(string(b), "\n")
			return cty.StringVal(strings.TrimSuffix(s, "\r")), nil
		},
	})
}
