package config

import (
	"encoding/json"
	"io"
	"maps"
	"regexp"
	"slices"

	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	ctyjson "github.com/zclconf/go-cty/cty/json"
)

// Show writes the effective configuration as HCL that Load reads; secrets are ***. A comment stands above what comes from
// neither the file nor the defaults.
func (c *Config) Show(w io.Writer) error {
	notes := map[any]string{}
	if c.AddrFrom != "" {
		notes[&c.Queen.Listen] = "from " + c.AddrFrom
		if !c.Gossip.BindSet {
			notes[&c.Gossip.Bind] = "a free port, because " + c.AddrFrom + " is given and the file does not set gossip.bind"
		}
		if !c.Hive.ListenSet {
			notes[&c.Hive.Listen] = "a free port, because " + c.AddrFrom + " is given and the file does not set hive.listen"
			if !c.Queen.HivesSet && c.Agent.Has(RoleHive) {
				notes[&c.Queen.Hives] = "and the hive of this agent, at its free port"
			}
		}
	}
	for i := range c.Vendors {
		v := &c.Vendors[i]
		for option, field := range map[string]any{"endpoint": &v.Endpoint, "credential": &v.Credential, "offline": &v.Offline} {
			if name := v.From[option]; name != "" {
				notes[field] = "from " + name
			}
		}
	}
	if name := c.Provisioner.GitHub.From["credential"]; name != "" {
		notes[&c.Provisioner.GitHub.Credential] = "from " + name
	}
	f := hclwrite.NewEmptyFile()
	showBody(f.Body(), schema(c), notes)
	_, err := w.Write(hclwrite.Format(f.Bytes()))
	return err
}

func showBody(body *hclwrite.Body, b *block, notes map[any]string) {
	for _, o := range b.options {
		if note := notes[o.field]; note != "" {
			body.AppendUnstructuredTokens(hclwrite.Tokens{{Type: hclsyntax.TokenComment, Bytes: []byte("# " + note + "\n")}})
		}
		if o.expression != nil {
			body.SetAttributeRaw(o.name, showCondition(o.expression))
			continue
		}
		body.SetAttributeValue(o.name, o.get())
	}
	for _, inner := range b.all() {
		if b.name == "" && len(body.Blocks()) > 0 {
			body.AppendNewline()
		}
		var labels []string
		if inner.label != "" {
			labels = []string{inner.label}
		}
		if inner.later != nil {
			inner.later.show(body)
			continue
		}
		showBody(body.AppendNewBlock(inner.name, labels).Body(), inner, notes)
	}
}

// sensitiveName are names of settings whose text is not shown. Whether a setting is sensitive says only the plugin, which may not be
// at hand.
var sensitiveName = regexp.MustCompile(`(?i)token|secret|passw|key|auth|credential`)

// show writes the body as the file has it.
func (l *later) show(body *hclwrite.Body) {
	if l.body == nil {
		return
	}
	out := hclwrite.NewEmptyFile()
	l.write(out.Body(), l.body)
	body.AppendNewBlock("config", nil).Body().AppendUnstructuredTokens(out.BuildTokens(nil))
}

func (l *later) write(out *hclwrite.Body, body *hclsyntax.Body) {
	for _, name := range slices.Sorted(maps.Keys(body.Attributes)) {
		out.SetAttributeRaw(name, hclwrite.Tokens{{Type: hclsyntax.TokenIdent, Bytes: []byte(l.text(body.Attributes[name]))}})
	}
	for _, b := range body.Blocks {
		l.write(out.AppendNewBlock(b.Type, b.Labels).Body(), b.Body)
	}
}

// text returns the expression of an attribute as it is written.
func (l *later) text(a *hclsyntax.Attribute) string {
	switch a.Expr.(type) {
	case *hclsyntax.FunctionCallExpr, *hclsyntax.ScopeTraversalExpr:
	default:
		if sensitiveName.MatchString(a.Name) {
			return `"***"`
		}
	}
	return string(a.Expr.Range().SliceBytes(l.src))
}

// expressions returns the attributes as they are written, blocks as lists.
func (l *later) expressions() map[string]any {
	if l.body == nil {
		return map[string]any{}
	}
	return l.tree(l.body)
}

func (l *later) tree(body *hclsyntax.Body) map[string]any {
	out := map[string]any{}
	for name, a := range body.Attributes {
		out[name] = l.text(a)
	}
	for _, b := range body.Blocks {
		t := l.tree(b.Body)
		if len(b.Labels) > 0 {
			t["name"] = b.Labels[0]
		}
		list, _ := out[b.Type].([]any)
		out[b.Type] = append(list, t)
	}
	return out
}

// all returns the blocks in b, those with a label last.
func (b *block) all() []*block {
	out := append([]*block(nil), b.blocks...)
	for _, g := range b.groups {
		out = append(out, g.each()...)
	}
	return out
}

// ShowJSON writes it as one JSON object; secrets are ***. Blocks with a label are lists of objects in which the label is "name".
func (c *Config) ShowJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	tree, err := jsonBody(schema(c))
	if err != nil {
		return err
	}
	return e.Encode(tree)
}

func jsonBody(b *block) (map[string]any, error) {
	out := map[string]any{}
	for _, o := range b.options {
		v := o.get()
		raw, err := ctyjson.Marshal(v, v.Type())
		if err != nil {
			return nil, err
		}
		out[o.name] = json.RawMessage(raw)
	}
	if b.label != "" {
		out["name"] = b.label
	}
	for _, g := range b.groups {
		out[g.name] = []any{}
	}
	for _, inner := range b.all() {
		if inner.later != nil {
			out[inner.name] = inner.later.expressions()
			continue
		}
		tree, err := jsonBody(inner)
		if err != nil {
			return nil, err
		}
		if inner.label == "" {
			out[inner.name] = tree
			continue
		}
		out[inner.name] = append(out[inner.name].([]any), tree)
	}
	return out, nil
}
