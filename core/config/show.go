package config

import (
	"encoding/json"
	"io"

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
		showBody(body.AppendNewBlock(inner.name, labels).Body(), inner, notes)
	}
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
