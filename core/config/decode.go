package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// decoder stores what a file says in a Config and collects what is wrong with it.
type decoder struct {
	diags  hcl.Diagnostics
	eval   *hcl.EvalContext
	root   *block
	src    []byte            // of the file
	name   string            // as diagnostics call it
	broken bool              // the file does not parse, so something that seems missing may be what was not understood
	at     map[any]hcl.Range // by pointer to a field: where the file sets it
	failed map[any]bool      // by pointer to a field: the file has a value for it that was refused
}

// parse reads the text of a configuration. name is how diagnostics call it; path is "" for the embedded one.
func parse(src []byte, name, path string, env func(string) (string, bool)) (*Config, Diagnostics) {
	if tooDeep(src, name) {
		return nil, Diagnostics{{Summary: "Too deep", Detail: "Brackets, quotes or signs are nested more than 64 deep in " + name + "."}}
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	c := defaults()
	c.Path = path
	d := &decoder{diags: diags, src: src, name: name, broken: diags.HasErrors(), eval: evalContext(path, env), root: schema(c), at: map[any]hcl.Range{}, failed: map[any]bool{}}
	var body *hclsyntax.Body
	if file != nil {
		body, _ = file.Body.(*hclsyntax.Body)
	}
	if body != nil {
		c.foreign = slices.ContainsFunc(body.Blocks, func(b *hclsyntax.Block) bool { return b.Type == "plugin" })
		names := &identities{models: map[string]hcl.Range{}}
		d.body(body, d.root, func(g *group, b *hclsyntax.Block) { d.element(c, g, b, names) })
		c.Workers = complete(c.Workers, builtinWorkers(), workerName)
		c.Vendors = complete(c.Vendors, builtinVendors(), vendorName)
		c.Credentials = slices.DeleteFunc(c.Credentials, func(k Credential) bool { return k.Value == "" })
		for _, check := range names.later {
			if len(d.diags) > 2*maxMistakes {
				break // to look for more would take long, and they are not told
			}
			check()
		}
		d.check(c)
		if len(d.diags) == 0 {
			d.checkShared(c)
		}
		if path != "" {
			_, c.Agent.RolesSet = d.at[&c.Agent.Roles]
			_, c.Hive.ListenSet = d.at[&c.Hive.Listen]
			_, c.Gossip.BindSet = d.at[&c.Gossip.Bind]
			_, c.Queen.HivesSet = d.at[&c.Queen.Hives]
		}
	}
	if out := fromHCL(d.diags, src, name, body); len(out) > 0 {
		return nil, out
	}
	return c, nil
}

// tooDeep reports whether the text nests deeper than anybody writes. HCL's parser and evaluator recurse once a level, so without
// this a hostile file would overflow the stack, which ends the process.
func tooDeep(src []byte, name string) bool {
	const limit = 64
	tokens, _ := hclsyntax.LexConfig(src, name, hcl.InitialPos)
	depth, run := 0, 0
	for _, t := range tokens {
		switch t.Type {
		case hclsyntax.TokenOBrace, hclsyntax.TokenOBrack, hclsyntax.TokenOParen, hclsyntax.TokenOQuote, hclsyntax.TokenOHeredoc,
			hclsyntax.TokenTemplateInterp, hclsyntax.TokenTemplateControl:
			depth++
		case hclsyntax.TokenCBrace, hclsyntax.TokenCBrack, hclsyntax.TokenCParen, hclsyntax.TokenCQuote, hclsyntax.TokenCHeredoc,
			hclsyntax.TokenTemplateSeqEnd:
			depth = max(0, depth-1)
		}
		switch t.Type {
		case hclsyntax.TokenBang, hclsyntax.TokenMinus, hclsyntax.TokenQuestion, hclsyntax.TokenColon, hclsyntax.TokenPlus, hclsyntax.TokenStar,
			hclsyntax.TokenSlash, hclsyntax.TokenPercent, hclsyntax.TokenAnd, hclsyntax.TokenOr, hclsyntax.TokenEqualOp, hclsyntax.TokenNotEqual,
			hclsyntax.TokenLessThan, hclsyntax.TokenLessThanEq, hclsyntax.TokenGreaterThan, hclsyntax.TokenGreaterThanEq:
			run++ // operators of one expression recurse too
		case hclsyntax.TokenNewline:
			run = 0
		}
		if depth > limit || run > limit {
			return true
		}
	}
	return false
}

func (d *decoder) add(summary string, at hcl.Range, format string, args ...any) {
	detail := fmt.Sprintf(format, args...)
	if !strings.HasSuffix(detail, ".") && !strings.HasSuffix(detail, "?") {
		detail += "."
	}
	detail = strings.ToUpper(detail[:1]) + detail[1:]
	d.diags = append(d.diags, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: summary, Detail: detail, Subject: &at})
}

// body decodes one body into b. Blocks with labels go to labelled.
func (d *decoder) body(body *hclsyntax.Body, b *block, labelled func(*group, *hclsyntax.Block)) {
	if b.later != nil {
		*b.later = later{body: body, eval: d.eval, src: d.src, name: d.name}
		return
	}
	for name, a := range body.Attributes {
		i := slices.IndexFunc(b.options, func(o option) bool { return o.name == name })
		if i < 0 {
			d.unknownOption(name, a.NameRange, b)
			continue
		}
		d.option(a, b.options[i])
	}
	seen := map[string]hcl.Range{}
	for _, inner := range body.Blocks {
		if i := slices.IndexFunc(b.groups, func(g *group) bool { return g.name == inner.Type }); i >= 0 {
			labelled(b.groups[i], inner)
			continue
		}
		i := slices.IndexFunc(b.blocks, func(s *block) bool { return s.name == inner.Type })
		if i < 0 {
			d.unknownBlock(inner, b)
			continue
		}
		if len(inner.Labels) > 0 {
			d.add("Unexpected name", inner.LabelRanges[0], "The block %q takes no name; write %s { … }", inner.Type, inner.Type)
		}
		if first, ok := seen[inner.Type]; ok {
			d.add("Duplicate block", inner.TypeRange, "There is a block %q already, on line %d; put everything into one", inner.Type, first.Start.Line)
		} else {
			seen[inner.Type] = inner.TypeRange
		}
		d.body(inner.Body, b.blocks[i], labelled)
	}
}

// option evaluates an attribute and stores it. null is as if it were not there.
func (d *decoder) option(a *hclsyntax.Attribute, o option) {
	if o.expression != nil {
		d.condition(a, o)
		return
	}
	if why, at := costly(a.Expr); why != "" {
		d.add("Wrong value", at, "%s", why)
		d.failed[o.field] = true
		return
	}
	v, diags := a.Expr.Value(d.eval)
	foreign := isForeign(a.Expr)
	if diags.HasErrors() {
		for _, m := range diags {
			if foreign && !literalCall(m) {
				m.Detail = hidden
			}
		}
		d.diags = append(d.diags, diags...)
		d.failed[o.field] = true
		return
	}
	if v.IsNull() {
		return
	}
	err := errType
	if v.IsWhollyKnown() && !v.ContainsMarked() {
		err = o.set(v)
	}
	switch {
	case err == nil:
		d.at[o.field] = a.Expr.Range()
		return
	case errors.Is(err, errType):
		d.add("Wrong type", a.Expr.Range(), "%s", o.need)
	case foreign && o.tells:
		d.add("Wrong value", a.Expr.Range(), "%s %s", o.need, hidden)
	default:
		d.add("Wrong value", a.Expr.Range(), "%s", err)
	}
	d.failed[o.field] = true
}

func (d *decoder) unknownOption(name string, at hcl.Range, b *block) {
	if b.has(name) {
		label := ""
		if slices.ContainsFunc(b.groups, func(g *group) bool { return g.name == name }) {
			label = ` "NAME"`
		}
		d.add("Unknown option", at, "%q is a block; write %s%s { … } without an equals sign", name, name, label)
		return
	}
	d.add("Unknown option", at, "There is no option %q here.%s", name, d.hint(name, b))
}

func (d *decoder) unknownBlock(inner *hclsyntax.Block, b *block) {
	if slices.ContainsFunc(b.options, func(o option) bool { return o.name == inner.Type }) {
		d.add("Unknown option", inner.TypeRange, "%q is an option, not a block; write %s = …", inner.Type, inner.Type)
		return
	}
	d.add("Unknown option", inner.TypeRange, "There is no block %q here.%s", inner.Type, d.hint(inner.Type, b))
}

// hint suggests a name of b that is close to name, or else says where name belongs.
func (d *decoder) hint(name string, b *block) string {
	for _, inner := range b.blocks {
		if slices.Contains(inner.names(), name) {
			return fmt.Sprintf(" It belongs in the block %q.", inner.name)
		}
	}
	if s := suggest(name, b.names()); s != "" {
		return s
	}
	if places := d.root.places(name, ""); len(places) > 0 && len(places) <= 3 {
		return fmt.Sprintf(" It belongs in %s.", strings.Join(places, " or "))
	}
	return ""
}

// names lists everything that may stand in b.
func (b *block) names() []string {
	var out []string
	for _, o := range b.options {
		out = append(out, o.name)
	}
	for _, s := range b.blocks {
		out = append(out, s.name)
	}
	for _, g := range b.groups {
		out = append(out, g.name)
	}
	return out
}

// has reports whether name is a block of b.
func (b *block) has(name string) bool {
	return slices.ContainsFunc(b.blocks, func(s *block) bool { return s.name == name }) ||
		slices.ContainsFunc(b.groups, func(g *group) bool { return g.name == name })
}

// places lists the blocks below b in which name may stand.
func (b *block) places(name, path string) []string {
	var out []string
	for _, s := range b.blocks {
		p := strings.TrimPrefix(path+"."+s.name, ".")
		if slices.Contains(s.names(), name) {
			out = append(out, p)
		}
		out = append(out, s.places(name, p)...)
	}
	for _, g := range b.groups {
		s, _ := g.open("name")
		if slices.Contains(s.names(), name) {
			out = append(out, g.name)
		}
		out = append(out, s.places(name, g.name)...)
	}
	return out
}

// element decodes a block with a label.
func (d *decoder) element(c *Config, g *group, b *hclsyntax.Block, names *identities) {
	label := ""
	switch {
	case len(b.Labels) == 0:
		d.add("Missing name", b.TypeRange, "The block %q needs a name; write %s \"NAME\" { … }", g.name, g.name)
	case len(b.Labels) > 1:
		d.add("Unexpected name", b.LabelRanges[1], "The block %q takes one name", g.name)
	default:
		label = b.Labels[0]
		if err := g.check(label); err != nil {
			d.add("Wrong name", b.LabelRanges[0], "%s", err)
		}
		if first, ok := names.first(g.name, label, b.TypeRange); !ok {
			d.add("Duplicate block", b.LabelRanges[0], "There is a %s %q already, on line %d; give this one another name", g.name, label, first.Start.Line)
		}
	}
	bound, done := g.open(label)
	d.body(b.Body, bound, func(*group, *hclsyntax.Block) {})
	done()
	d.checkElement(c, g, b, bound, names)
}
