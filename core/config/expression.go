package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/apiary-dev/apiary/core/contract"
)

// Conditions on devices are a part of HCL's expressions: operators, a few functions, the attributes of a device and its hive. HCL's
// own evaluator is not used for them. It converts between texts and numbers, repeats bodies with for, and can be made to write out
// a number with a billion digits; here the types are checked when the file is read, so that an evaluation cannot fail, and it
// takes as long as the expression is.

// maxExpression bounds the text of a condition in bytes.
const maxExpression = 4 << 10

// kind is the type of a value in a condition.
type kind int

const (
	kindBool kind = iota
	kindNumber
	kindText
	kindTexts
	kindNumbers
)

func (k kind) String() string {
	return [...]string{"true or false", "a number", "a text", "a list of texts", "a list of numbers"}[k]
}

// value is one of a kind, in the field that belongs to it.
type value struct {
	b       bool
	n       float64
	s       string
	texts   []string
	numbers []float64
}

// node is a part of a condition that was checked.
type node struct {
	kind kind
	eval func(*PlaceDevice) value
	// why names what a device has that the value of the node comes from.
	why func(*PlaceDevice) []string
	// literal is set for a text that stands in the condition as it is.
	literal *string
	// attribute is the name of the attribute that the node is; empty: it is something else.
	attribute string
}

// attribute is something that a condition may ask of a device.
type attribute struct {
	kind   kind
	get    func(*PlaceDevice) value
	amount bool     // of bytes, for texts
	only   []string // all values that there are; nil: any
}

func attributes() map[string]attribute {
	txt := func(f func(*PlaceDevice) string) attribute {
		return attribute{kind: kindText, get: func(d *PlaceDevice) value { return value{s: f(d)} }}
	}
	num := func(f func(*PlaceDevice) float64) attribute {
		return attribute{kind: kindNumber, get: func(d *PlaceDevice) value { return value{n: f(d)} }}
	}
	kinds, memory, free := txt(func(d *PlaceDevice) string { return d.Kind }),
		num(func(d *PlaceDevice) float64 { return float64(d.Memory) }), num(func(d *PlaceDevice) float64 { return float64(d.Free) })
	kinds.only, memory.amount, free.amount = deviceKinds(), true, true
	return map[string]attribute{
		"device.id":     txt(func(d *PlaceDevice) string { return d.ID }),
		"device.kind":   kinds,
		"device.index":  num(func(d *PlaceDevice) float64 { return float64(d.Index) }),
		"device.name":   txt(func(d *PlaceDevice) string { return d.Name }),
		"device.vendor": txt(func(d *PlaceDevice) string { return d.Vendor }),
		"device.driver": txt(func(d *PlaceDevice) string { return d.Driver }),
		"device.cores":  num(func(d *PlaceDevice) float64 { return float64(d.Cores) }),
		"device.memory": memory,
		"device.free":   free,
		"hive.id":       txt(func(d *PlaceDevice) string { return d.HiveID }),
		"hive.name":     txt(func(d *PlaceDevice) string { return d.HiveName }),
		"hive.labels":   {kind: kindTexts, get: func(d *PlaceDevice) value { return value{texts: d.Labels} }},
		"hive.os":       txt(func(d *PlaceDevice) string { return d.OS }),
		"hive.arch":     txt(func(d *PlaceDevice) string { return d.Arch }),
	}
}

// describe gives the value of an attribute as a message shows it.
func (a attribute) describe(name string, d *PlaceDevice) string {
	v := a.get(d)
	switch {
	case a.amount && v.n == 0:
		return name + " is not known"
	case a.amount:
		return fmt.Sprintf("%s is %s", name, contract.Bytes(v.n))
	case a.kind == kindNumber:
		return name + " is " + strconv.FormatFloat(v.n, 'g', -1, 64)
	case a.kind == kindTexts:
		return fmt.Sprintf("%s is [%s]", name, quoteAll(v.texts))
	}
	return fmt.Sprintf("%s is %q", name, v.s)
}

// call is a function that conditions may use. Functions are bounded by the size of what they are given.
type call struct {
	params [][]kind // what each argument may be
	result kind
	apply  func(args []value, kinds []kind) value
	usage  string
}

func calls() map[string]call {
	scale := func(unit contract.Bytes, usage string) call {
		return call{[][]kind{{kindNumber}}, kindNumber, func(a []value, _ []kind) value { return value{n: a[0].n * float64(unit)} }, usage}
	}
	change := func(f func(string) string, usage string) call {
		return call{[][]kind{{kindText}}, kindText, func(a []value, _ []kind) value { return value{s: f(a[0].s)} }, usage}
	}
	ask := func(f func(s, part string) bool, usage string) call {
		return call{[][]kind{{kindText}, {kindText}}, kindBool, func(a []value, _ []kind) value { return value{b: f(a[0].s, a[1].s)} }, usage}
	}
	return map[string]call{
		"gib":        scale(contract.GiB, "gib(8)"),
		"mib":        scale(contract.MiB, "mib(512)"),
		"lower":      change(strings.ToLower, "lower(device.name)"),
		"upper":      change(strings.ToUpper, "upper(device.name)"),
		"startswith": ask(strings.HasPrefix, `startswith(hive.name, "gpu-")`),
		"endswith":   ask(strings.HasSuffix, `endswith(hive.name, ".lan")`),
		"length": {[][]kind{{kindText, kindTexts, kindNumbers}}, kindNumber, func(a []value, k []kind) value {
			if k[0] == kindText {
				return value{n: float64(len([]rune(a[0].s)))}
			}
			return value{n: float64(len(a[0].texts) + len(a[0].numbers))}
		}, "length(hive.labels)"},
		"contains": {[][]kind{{kindTexts, kindNumbers, kindText}, {kindText, kindNumber}}, kindBool, func(a []value, k []kind) value {
			switch k[0] {
			case kindText:
				return value{b: strings.Contains(a[0].s, a[1].s)}
			case kindNumbers:
				return value{b: slices.Contains(a[0].numbers, a[1].n)}
			}
			return value{b: slices.Contains(a[0].texts, a[1].s)}
		}, `contains(hive.labels, "quiet")`},
	}
}

// compiler checks a condition. Its mistakes go to fail.
type compiler struct {
	attributes map[string]attribute
	calls      map[string]call
	fail       func(at hcl.Range, format string, args ...any)
}

func newCompiler(fail func(at hcl.Range, format string, args ...any)) *compiler {
	return &compiler{attributes: attributes(), calls: calls(), fail: fail}
}

// condition compiles an expression that must be true or false; nil after a mistake.
func (c *compiler) condition(e hclsyntax.Expression) *node {
	n := c.compile(e)
	if n != nil && n.kind != kindBool {
		c.fail(e.Range(), "A condition is true or false, and this is %s; compare it with something, for example device.memory >= gib(8)", n.kind)
		return nil
	}
	return n
}

func (c *compiler) compile(e hclsyntax.Expression) *node {
	switch e := e.(type) {
	case *hclsyntax.ParenthesesExpr:
		return c.compile(e.Expression)
	case *hclsyntax.LiteralValueExpr:
		return c.constant(e)
	case *hclsyntax.TemplateExpr:
		return c.text(e)
	case *hclsyntax.TemplateWrapExpr:
		c.filled(e)
		return nil
	case *hclsyntax.ScopeTraversalExpr:
		return c.traversal(e)
	case *hclsyntax.UnaryOpExpr:
		return c.unary(e)
	case *hclsyntax.BinaryOpExpr:
		return c.binary(e)
	case *hclsyntax.ConditionalExpr:
		return c.conditional(e)
	case *hclsyntax.TupleConsExpr:
		return c.tuple(e)
	case *hclsyntax.FunctionCallExpr:
		return c.call(e)
	}
	c.fail(e.Range(), "This cannot stand in a condition on a device: it may have operators, comparisons, lists, the functions %s, and the attributes of device and hive", c.functions())
	return nil
}

func nothing(*PlaceDevice) []string { return nil }

func fixed(k kind, v value) *node {
	return &node{kind: k, eval: func(*PlaceDevice) value { return v }, why: nothing}
}

func (c *compiler) constant(e *hclsyntax.LiteralValueExpr) *node {
	switch {
	case !e.Val.IsKnown(): // what did not parse, which is told already
	case e.Val.IsNull():
		c.fail(e.Range(), "A null cannot stand in a condition on a device; a text that is not known is \"\", and a number 0")
	case e.Val.Type() == cty.Bool:
		return fixed(kindBool, value{b: e.Val.True()})
	case e.Val.Type() == cty.Number:
		if n, _ := e.Val.AsBigFloat().Float64(); !math.IsInf(n, 0) {
			return fixed(kindNumber, value{n: n})
		}
		c.fail(e.Range(), "The number is too large")
	}
	return nil
}

func (c *compiler) text(e *hclsyntax.TemplateExpr) *node {
	s := ""
	switch {
	case len(e.Parts) == 0:
	case e.IsStringLiteral():
		v, diags := e.Parts[0].Value(nil)
		if diags.HasErrors() || !v.IsKnown() || v.IsNull() || v.Type() != cty.String {
			return nil
		}
		s = v.AsString()
	default:
		c.filled(e)
		return nil
	}
	n := fixed(kindText, value{s: s})
	n.literal = &s
	return n
}

func (c *compiler) filled(e hclsyntax.Expression) {
	c.fail(e.Range(), "A text in a condition on a device stands for itself; ${ } is not filled in there")
}

func (c *compiler) traversal(e *hclsyntax.ScopeTraversalExpr) *node {
	root := e.Traversal.RootName()
	if root != "device" && root != "hive" {
		hint := suggest(root, []string{"device", "hive"})
		if hint == "" {
			hint = fmt.Sprintf(" A text stands in quotes: %q.", root)
		}
		c.fail(e.Range(), "There is no %q in a condition on a device, only device and hive.%s", root, hint)
		return nil
	}
	var names []string
	for name := range c.attributes {
		if rest, ok := strings.CutPrefix(name, root+"."); ok {
			names = append(names, rest)
		}
	}
	slices.Sort(names)
	if len(e.Traversal) < 2 {
		c.fail(e.Range(), "%q has attributes, and one of them is needed: %s", root, strings.Join(names, ", "))
		return nil
	}
	step, ok := e.Traversal[1].(hcl.TraverseAttr)
	if !ok {
		c.fail(e.Range(), "Attributes are written with a dot, for example %s.%s", root, names[0])
		return nil
	}
	name := root + "." + step.Name
	a, ok := c.attributes[name]
	switch {
	case !ok:
		c.fail(e.Range(), "%q has no attribute %q; it has %s.%s", root, step.Name, strings.Join(names, ", "), suggest(step.Name, names))
		return nil
	case len(e.Traversal) > 2 && a.kind == kindTexts:
		c.fail(e.Range(), "The entries of %s have no order; ask with contains(%s, \"…\")", name, name)
		return nil
	case len(e.Traversal) > 2:
		c.fail(e.Range(), "The attribute %s is %s and has nothing inside it", name, a.kind)
		return nil
	}
	return &node{kind: a.kind, eval: a.get, attribute: name, why: func(d *PlaceDevice) []string { return []string{a.describe(name, d)} }}
}

func (c *compiler) tuple(e *hclsyntax.TupleConsExpr) *node {
	var parts []*node
	ok := true
	for _, x := range e.Exprs {
		n := c.compile(x)
		if n != nil && n.kind != kindText && n.kind != kindNumber {
			c.fail(x.Range(), "A list in a condition on a device holds texts or numbers, and this is %s", n.kind)
			n = nil
		}
		if n != nil && len(parts) > 0 && parts[0] != nil && n.kind != parts[0].kind {
			c.fail(x.Range(), "A list holds entries of one kind, and this is %s", n.kind)
			n = nil
		}
		ok = ok && n != nil
		parts = append(parts, n)
	}
	if !ok {
		return nil
	}
	out := &node{kind: kindTexts, why: func(d *PlaceDevice) (all []string) {
		for _, p := range parts {
			all = append(all, p.why(d)...)
		}
		return all
	}}
	if len(parts) > 0 && parts[0].kind == kindNumber {
		out.kind = kindNumbers
	}
	out.eval = func(d *PlaceDevice) (v value) {
		for _, p := range parts {
			x := p.eval(d)
			if p.kind == kindNumber {
				v.numbers = append(v.numbers, x.n)
			} else {
				v.texts = append(v.texts, x.s)
			}
		}
		return v
	}
	return out
}

func (c *compiler) functions() string {
	names := make([]string, 0, len(c.calls))
	for n := range c.calls {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func (c *compiler) call(e *hclsyntax.FunctionCallExpr) *node {
	f, ok := c.calls[e.Name]
	if !ok {
		hint := suggest(e.Name, strings.Split(c.functions(), ", "))
		if e.Name == "env" || e.Name == "file" {
			hint = " The condition is evaluated by every queen, and each of them would find something else there."
		}
		c.fail(e.NameRange, "There is no function %q in a condition on a device; there are %s.%s", e.Name, c.functions(), hint)
		return nil
	}
	if len(e.Args) != len(f.params) || e.ExpandFinal {
		c.fail(e.Range(), "The function %q takes %s, for example %s", e.Name, [...]string{1: "one argument", 2: "two arguments"}[len(f.params)], f.usage)
		return nil
	}
	args, kinds := make([]*node, len(e.Args)), make([]kind, len(e.Args))
	for i, x := range e.Args {
		n := c.compile(x)
		if n == nil {
			return nil
		}
		if !slices.Contains(f.params[i], n.kind) {
			c.fail(x.Range(), "The function %q cannot take %s here; write for example %s", e.Name, n.kind, f.usage)
			return nil
		}
		args[i], kinds[i] = n, n.kind
	}
	if e.Name == "contains" && (kinds[0] == kindNumbers) != (kinds[1] == kindNumber) {
		c.fail(e.Range(), "%s cannot hold %s; write for example %s", kinds[0], kinds[1], f.usage)
		return nil
	}
	return &node{kind: f.result,
		eval: func(d *PlaceDevice) value {
			vs := make([]value, len(args))
			for i, a := range args {
				vs[i] = a.eval(d)
			}
			return f.apply(vs, kinds)
		},
		why: func(d *PlaceDevice) (all []string) {
			for _, a := range args {
				all = append(all, a.why(d)...)
			}
			return all
		}}
}

// oneLine gives the text of an expression without comments and line breaks, spaced as HCL's formatter does it.
func oneLine(src []byte) (string, error) {
	if len(src) > maxExpression {
		return "", fmt.Errorf("a condition has at most %d characters", maxExpression)
	}
	tokens, _ := hclsyntax.LexExpression(src, "", hcl.InitialPos)
	var b strings.Builder
	last := 0
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenNewline, hclsyntax.TokenComment, hclsyntax.TokenEOF:
			continue
		case hclsyntax.TokenOHeredoc:
			return "", fmt.Errorf("a condition holds no text of several lines")
		}
		if b.Len() > 0 && t.Range.Start.Byte > last {
			b.WriteByte(' ')
		}
		b.Write(t.Bytes)
		last = t.Range.End.Byte
	}
	return string(hclwrite.Format([]byte(b.String()))), nil
}
