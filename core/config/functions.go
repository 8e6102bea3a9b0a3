package config

import (
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
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

// hidden stands in a diagnostic for what a variable or a file holds, which may be a secret.
const hidden = "What env and file give is not shown here."

// isForeign reports whether an expression has a value from a variable or a file in it.
func isForeign(e hclsyntax.Expression) bool {
	found := false
	_ = hclsyntax.VisitAll(e, func(n hclsyntax.Node) hcl.Diagnostics {
		if call, ok := n.(*hclsyntax.FunctionCallExpr); ok && (call.Name == "env" || call.Name == "file") {
			found = true
		}
		return nil
	})
	return found
}

// literalCall reports whether a diagnostic is about a call whose arguments stand in the file as they are: it says then
// which variable or file it means, and cannot say more.
func literalCall(m *hcl.Diagnostic) bool {
	e, ok := m.Expression.(hclsyntax.Expression)
	if call, isCall := e.(*hclsyntax.FunctionCallExpr); isCall {
		return !slices.ContainsFunc(call.Args, isForeign)
	}
	// HCL names the argument that is at fault instead of the call.
	call, about := hcl.DiagnosticExtra[hclsyntax.FunctionCallDiagExtra](m)
	return ok && about && call.CalledFunctionName() != "" && !isForeign(e)
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

// unset returns the name of a variable that is not set and that an option's value asks for by name; "" when there is none.
func (d *decoder) unset(a *hclsyntax.Attribute) string {
	name := ""
	if a == nil {
		return name
	}
	_ = hclsyntax.VisitAll(a.Expr, func(n hclsyntax.Node) hcl.Diagnostics {
		call, ok := n.(*hclsyntax.FunctionCallExpr)
		if !ok || call.Name != "env" || len(call.Args) != 1 || isForeign(call.Args[0]) {
			return nil
		}
		arg, bad := call.Args[0].Value(d.eval)
		v, diags := call.Value(d.eval)
		if !bad.HasErrors() && !diags.HasErrors() && v.IsNull() && arg.Type() == cty.String && arg.IsWhollyKnown() && !arg.IsNull() {
			name = arg.AsString()
		}
		return nil
	})
	return name
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
