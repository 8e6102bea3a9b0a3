package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Transports of plugins.
const (
	TransportWASM    = "wasm"
	TransportProcess = "process"
)

// TLSNone is the TLS of a program that speaks plainly, on a socket in a folder of this user alone.
const TLSNone = "none"

// Plugin is a block plugin "NAME".
type Plugin struct {
	Name      string
	Source    string // path, https URL, or a form of go-getter
	Kind      string // "vendor" or "provisioner"; "": as the plugin says
	Version   string // "": any
	SHA256    string // of the file; "": as the lock file says
	Transport string // TransportWASM or TransportProcess; "": by the file
	TLS       string // TLSNone, or "": as the plugin's manifest says, and else mutual TLS
	Enabled   bool
	Grants    Grants

	config later
	at     blockPlace
}

// blockPlace is where a block stands.
type blockPlace struct {
	block *hclsyntax.Block // nil: in no file
	src   []byte           // of the file
	file  string           // as diagnostics call it
}

// Configured reports whether there is a block config.
func (p *Plugin) Configured() bool { return p.config.body != nil }

// Grants is the block plugin.grants: what a plugin may do. Everything else is refused.
type Grants struct {
	HTTP        []string       // hosts, "example.org", "*.example.org", "example.org:8443"
	Private     []string       // those of them that may be on this machine or in a private network, and may speak plain http
	Credentials []string       // names of credential blocks that the core adds to requests
	Run         []string       // tools that the plans of a provisioner may run
	Memory      contract.Bytes // of one WASM instance
}

// later is the body of a block whose options are known only when the plugin that it is for has said what they are.
type later struct {
	body *hclsyntax.Body // nil: there is no such block
	eval *hcl.EvalContext
	src  []byte
	name string // of the file
}

// Bounds of the schema of a plugin.
const (
	maxAttributes  = 500
	maxSchemaDepth = 8
)

var (
	sha256Pattern     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	versionPattern    = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?$`)
	grantPattern      = regexp.MustCompile(`^(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$|^\[[0-9a-f:]+\](:[0-9]{1,5})?$`)
	identifierPattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,63}$`)
	platformPattern   = regexp.MustCompile(`^[a-z0-9]{1,16}(_[a-z0-9]{1,16})?$`)
	toolPattern       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$`)
)

// DefaultPluginMemory is what one instance of a WASM plugin may use.
const DefaultPluginMemory = 64 * contract.MiB

func pluginSchema(p *Plugin) *block {
	return &block{name: "plugin", label: p.Name,
		options: []option{
			text("source", `A file, an https URL or a git:: address is needed, for example "./gitea.wasm".`, &p.Source, nil),
			text("kind", `One of "vendor", "provisioner" is needed, for example "vendor".`, &p.Kind, oneOfTexts(vendor.KindVendor, vendor.KindProvisioner)),
			text("version", `A version is needed, for example "1.2.0".`, &p.Version, pattern(versionPattern, "a version such as 1.2.0")),
			text("sha256", "The SHA-256 of the file in hexadecimal is needed.", &p.SHA256, pattern(sha256Pattern, "a SHA-256 of 64 lower-case hexadecimal digits")),
			text("transport", `One of "wasm", "process" is needed, for example "wasm".`, &p.Transport, oneOfTexts(TransportWASM, TransportProcess)),
			text("tls", `"none" is needed, or no tls at all.`, &p.TLS, oneOfTexts(TLSNone)),
			boolean("enabled", &p.Enabled),
		},
		blocks: []*block{
			grantsSchema(&p.Grants),
			{name: "config", later: &p.config},
		},
	}
}

func grantsSchema(g *Grants) *block {
	return &block{name: "grants", options: []option{
		list("http", `A list of hosts is needed, for example ["example.org", "*.example.org"].`, &g.HTTP, checkGrant),
		list("private", `A list of hosts is needed, for example ["10.0.0.5:8080"].`, &g.Private, checkGrant),
		list("credentials", `A list of names of credentials is needed, for example ["gitea"].`, &g.Credentials, checkName),
		list("run", `A list of tools is needed, for example ["cmake"].`, &g.Run, pattern(toolPattern, "the name of a tool")),
		size("memory", "64MiB", &g.Memory, contract.MiB, 4*contract.GiB),
	}}
}

// CheckGrants says why a block grants cannot hold g.
func CheckGrants(g Grants) error {
	for _, o := range grantsSchema(&g).options {
		if err := o.set(o.get()); err != nil {
			if errors.Is(err, errType) {
				err = errors.New(o.need)
			}
			return fmt.Errorf("%s: %w", o.name, err)
		}
	}
	return nil
}

func pluginGroup(c *Config) *group {
	return &group{
		name:  "plugin",
		check: checkName,
		open: func(label string) (*block, func()) {
			p := Plugin{Name: label, Enabled: true, Grants: Grants{Memory: DefaultPluginMemory}}
			b := pluginSchema(&p)
			return b, func() { c.Plugins = append(c.Plugins, p) }
		},
		each: func() []*block { return bind(c.Plugins, pluginSchema) },
	}
}

func oneOfTexts(values ...string) func(string) error {
	return func(s string) error {
		if !slices.Contains(values, s) {
			return fmt.Errorf("%q is not one of %s.%s", s, quoteAll(values), suggest(s, values))
		}
		return nil
	}
}

func pattern(re *regexp.Regexp, what string) func(string) error {
	return func(s string) error {
		if !re.MatchString(s) {
			return fmt.Errorf("%q is not %s", s, what)
		}
		return nil
	}
}

func checkGrant(s string) error {
	if len(s) > 260 || !grantPattern.MatchString(s) || strings.Contains(s, "..") {
		return fmt.Errorf("%q is not a host; write for example \"example.org\", \"*.example.org\" or \"example.org:8443\"", s)
	}
	return nil
}

// Values evaluates the block config by the schema of the plugin. The result is one JSON object with the defaults filled in. What is
// wrong in the file comes as Diagnostics with its places; an error that is none means that the schema itself is no good.
func (p *Plugin) Values(s vendor.Schema) (json.RawMessage, error) {
	if err := CheckSchema(s); err != nil {
		return nil, fmt.Errorf("the schema of plugin %s is not usable: %w", p.Name, err)
	}
	root := newSettings(s)
	l := p.config
	body := l.body
	if body == nil {
		body = &hclsyntax.Body{}
		if at := p.at; at.block != nil { // what is missing is missing there
			body.SrcRange, l.src, l.name = at.block.TypeRange, at.src, at.file
		}
	}
	d := &decoder{eval: l.eval, src: l.src, name: l.name, root: root.block, at: map[any]hcl.Range{}, failed: map[any]bool{}}
	d.settings(body, root)
	if diags := fromHCL(d.diags, l.src, l.name, body); len(diags) > 0 {
		for i := range diags {
			diags[i].Block = strings.TrimSuffix(fmt.Sprintf("plugin %q.config.%s", p.Name, diags[i].Block), ".")
		}
		return nil, diags
	}
	return json.Marshal(root.values())
}

// Mistake returns a mistake of the block as a Diagnostic, with the place of an option; that of the block, where it has no such option.
func (p *Plugin) Mistake(option, summary, detail string) Diagnostic {
	d := &decoder{}
	if p.at.block == nil {
		return Diagnostic{Summary: summary, Detail: detail}
	}
	at := p.at.block.TypeRange
	if a, ok := p.at.block.Body.Attributes[option]; ok {
		at = a.Expr.Range()
	}
	d.add(summary, at, "%s", detail)
	m := fromHCL(d.diags, p.at.src, p.at.file, nil)[0]
	m.Block = fmt.Sprintf("plugin %q", p.Name)
	return m
}

// PluginWith is a plugin whose block config holds body, for the tests of its settings. What is wrong in body comes as Diagnostics.
func PluginWith(body string) (*Plugin, error) {
	c, diags := parse([]byte("plugin \"test\" {\n  source = \"test\"\n  config {\n"+body+"\n}\n}\n"), "settings", "", func(string) (string, bool) { return "", false })
	if len(diags) > 0 {
		return nil, diags
	}
	return &c.Plugins[0], nil
}

// CheckSchema says why a block config cannot be decoded by s: its names, types, defaults and bounds.
func CheckSchema(s vendor.Schema) error {
	n := 0
	return checkSchema(s, 1, &n)
}

// checkSchema is CheckSchema for a schema at a depth, with n settings before it.
func checkSchema(s vendor.Schema, depth int, n *int) error {
	if depth > maxSchemaDepth {
		return fmt.Errorf("blocks are nested more than %d deep", maxSchemaDepth)
	}
	seen := map[string]bool{}
	take := func(name string) error {
		if *n++; *n > maxAttributes {
			return fmt.Errorf("there are more than %d settings", maxAttributes)
		}
		if !identifierPattern.MatchString(name) || seen[name] {
			return fmt.Errorf("%q is not a name for a setting, or there are two of it", name)
		}
		seen[name] = true
		return nil
	}
	for _, a := range s.Attributes {
		if err := take(a.Name); err != nil {
			return err
		}
		t, err := attributeType(a)
		if err != nil {
			return err
		}
		if a.DefaultJSON != "" {
			if _, err := ctyjson.Unmarshal([]byte(a.DefaultJSON), t); err != nil {
				return fmt.Errorf("the default of %q is not a %s: %w", a.Name, a.Type, err)
			}
		}
	}
	for _, b := range s.Blocks {
		if err := take(b.Name); err != nil {
			return err
		}
		if err := checkSchema(b.Schema, depth+1, n); err != nil {
			return err
		}
	}
	return nil
}

func attributeType(a vendor.Attribute) (cty.Type, error) {
	if len(a.Type) > 1024 || tooDeep([]byte(a.Type), "type") {
		return cty.NilType, fmt.Errorf("the type of %q is too long", a.Name)
	}
	expr, diags := hclsyntax.ParseExpression([]byte(a.Type), a.Name, hcl.InitialPos)
	if diags.HasErrors() {
		return cty.NilType, fmt.Errorf("the type of %q is not one: %s", a.Name, diags[0].Detail)
	}
	t, diags := typeexpr.TypeConstraint(expr)
	if diags.HasErrors() {
		return cty.NilType, fmt.Errorf("the type of %q is not one: %s", a.Name, diags[0].Detail)
	}
	return t, nil
}

// settings is a body that follows the schema of a plugin, while it is decoded.
type settings struct {
	schema vendor.Schema
	block  *block
	set    map[string]*cty.Value
	inner  map[string]*settings            // of single blocks
	many   map[string][]*settings          // of repeated blocks
	named  map[string]map[string]*settings // of blocks with a label
}

// newSettings returns the settings of a schema that was checked.
func newSettings(s vendor.Schema) *settings {
	out := &settings{schema: s, block: &block{}, set: map[string]*cty.Value{}, inner: map[string]*settings{}, many: map[string][]*settings{}, named: map[string]map[string]*settings{}}
	for _, a := range s.Attributes {
		v := new(cty.Value)
		out.set[a.Name] = v
		out.block.options = append(out.block.options, attributeOption(a, v))
	}
	for _, b := range s.Blocks {
		open := func(string) (*block, func()) { return newSettings(b.Schema).block, func() {} }
		switch {
		case b.Label != "":
			out.named[b.Name] = map[string]*settings{}
			out.block.groups = append(out.block.groups, &group{name: b.Name, open: open})
		case b.Many:
			out.block.groups = append(out.block.groups, &group{name: b.Name, plain: true, open: open})
		default:
			inner := newSettings(b.Schema)
			out.inner[b.Name] = inner
			out.block.blocks = append(out.block.blocks, inner.block)
			inner.block.name = b.Name
		}
	}
	return out
}

func attributeOption(a vendor.Attribute, into *cty.Value) option {
	t, _ := attributeType(a)
	need := fmt.Sprintf("A %s is needed.", a.Type)
	if a.Example != "" {
		need = fmt.Sprintf("A %s is needed, for example %s.", a.Type, a.Example)
	}
	return option{name: a.Name, field: into, need: need, set: func(v cty.Value) error {
		v, err := convert.Convert(v, t)
		if err != nil || !v.IsWhollyKnown() {
			return errType
		}
		*into = v
		return nil
	}}
}

// settings decodes body into s.
func (d *decoder) settings(body *hclsyntax.Body, s *settings) {
	d.body(body, s.block, func(g *group, b *hclsyntax.Block) {
		i := slices.IndexFunc(s.schema.Blocks, func(x vendor.Block) bool { return x.Name == g.name })
		want := 1
		if g.plain {
			want = 0
		}
		if len(b.Labels) != want {
			d.add("Wrong number of names", b.TypeRange, "The block %q takes %s", g.name, [...]string{"no name", "one name"}[want])
			return
		}
		inner := newSettings(s.schema.Blocks[i].Schema)
		d.settings(b.Body, inner)
		if g.plain {
			s.many[g.name] = append(s.many[g.name], inner)
			return
		}
		if s.named[g.name][b.Labels[0]] != nil {
			d.add("Duplicate block", b.LabelRanges[0], "There is a %s %q already; give this one another name", g.name, b.Labels[0])
		}
		s.named[g.name][b.Labels[0]] = inner
	})
	d.required(body, s)
}

// required reports what is missing in s and in its single blocks, which body decodes by itself.
func (d *decoder) required(body *hclsyntax.Body, s *settings) {
	at := body.SrcRange
	at.End = at.Start
	for _, a := range s.schema.Attributes {
		if *s.set[a.Name] == cty.NilVal && a.Required && a.DefaultJSON == "" && !d.failed[s.set[a.Name]] {
			d.add("Missing option", at, "The option %q is needed: %s", a.Name, strings.TrimSuffix(a.Description, "."))
		}
	}
	for _, b := range body.Blocks {
		if inner := s.inner[b.Type]; inner != nil {
			d.required(b.Body, inner)
		}
	}
}

// values returns the settings as they go to the plugin.
func (s *settings) values() map[string]any {
	out := map[string]any{}
	for _, a := range s.schema.Attributes {
		v := *s.set[a.Name]
		switch {
		case v != cty.NilVal:
			if raw, err := ctyjson.Marshal(v, v.Type()); err == nil {
				out[a.Name] = json.RawMessage(raw)
			}
		case a.DefaultJSON != "":
			out[a.Name] = json.RawMessage(a.DefaultJSON)
		}
	}
	for name, inner := range s.inner {
		out[name] = inner.values()
	}
	for _, b := range s.schema.Blocks {
		switch {
		case b.Label != "":
			all := map[string]any{}
			for label, inner := range maps.All(s.named[b.Name]) {
				all[label] = inner.values()
			}
			out[b.Name] = all
		case b.Many:
			all := []any{}
			for _, inner := range s.many[b.Name] {
				all = append(all, inner.values())
			}
			out[b.Name] = all
		}
	}
	return out
}

// checkPlugin checks what concerns a plugin as a whole. understood says that a source that is there was read.
func (d *decoder) checkPlugin(p *Plugin, place func(string) hcl.Range, understood bool) {
	if p.Source == "" && understood {
		d.add("Missing option", place("source"), "A plugin needs a source, for example source = \"./%s.wasm\"", p.Name)
	}
	if p.TLS != "" && p.Transport == TransportWASM {
		d.add("Wrong value", place("tls"), "A WASM module has no connection, so it has no tls; leave the option out")
	}
	for _, host := range p.Grants.Private {
		if !slices.Contains(p.Grants.HTTP, host) {
			d.add("Wrong value", place("grants"), "%q is in grants.private, but not in grants.http; it must be in both", host)
		}
	}
}
