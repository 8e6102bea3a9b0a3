package config

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/zclconf/go-cty/cty"

	"github.com/apiary-dev/apiary/core/contract"
)

// Deployment is a block deployment "NAME": workers that should run.
type Deployment struct {
	Name     string
	Model    string // name or alias of a model block, or a reference
	Worker   string // name of a worker block; "": the first one that can serve the model
	Context  int    // tokens; 0: as the worker block says
	Slots    int    // 0: as the worker block says
	IdleTTL  time.Duration
	Pin      []string // HIVE or HIVE/DEVICE; none: anywhere
	Priority int
	Env      map[string]string // beside those of the worker block
	Args     []string          // after those of the worker block
	Replicas Replicas
	Place    Place
}

// Replicas is the block deployment.replicas.
type Replicas struct {
	Min int
	Max int    // 0: as Min, at least 1
	Per string // contract.PerGPU instead of Min and Max
}

// Place is the block deployment.place.
type Place struct {
	Require contract.Expression // Text "": anywhere
	Prefer  contract.Expression // Text "": nowhere
	Spread  bool
}

const (
	maxReplicas = 1000
	maxPriority = 1000
)

func deploymentSchema(p *Deployment) *block {
	return &block{name: "deployment", label: p.Name,
		options: []option{
			text("model", `The name of a model block or a reference is needed, for example "builtin:stories260k".`, &p.Model, nil),
			text("worker", `The name of a worker block is needed, for example "llama".`, &p.Worker, checkName),
			whole("context", "tokens", 8192, &p.Context, 0, 1<<24),
			whole("slots", "slots", 4, &p.Slots, 0, contract.MaxSlots),
			seconds("idle_ttl", &p.IdleTTL, 365*day),
			list("pin", `A list of places is needed, for example ["tower/cuda0"].`, &p.Pin, checkPin),
			whole("priority", "", 10, &p.Priority, -maxPriority, maxPriority),
			secretMap("env", `An object of texts is needed, for example { LANG = "C.UTF-8" }.`, &p.Env, checkEnv),
			ordered("args", `A list of arguments is needed, for example ["--verbose"].`, &p.Args, checkArg),
		},
		blocks: []*block{
			{name: "replicas", options: []option{
				whole("min", "workers", 1, &p.Replicas.Min, 0, maxReplicas),
				whole("max", "workers", 4, &p.Replicas.Max, 0, maxReplicas),
				text("per", `"gpu" is needed, or nothing.`, &p.Replicas.Per, oneOfTexts(contract.PerGPU)),
			}},
			{name: "place", options: []option{
				condition("require", &p.Place.Require),
				condition("prefer", &p.Place.Prefer),
				boolean("spread", &p.Place.Spread),
			}},
		},
	}
}

func deploymentGroup(c *Config) *group {
	return &group{
		name:  "deployment",
		check: checkName,
		open: func(label string) (*block, func()) {
			p := Deployment{Name: label, IdleTTL: 15 * time.Minute, Replicas: Replicas{Min: 1}, Place: Place{Spread: true}}
			return deploymentSchema(&p), func() { c.Deployments = append(c.Deployments, p) }
		},
		each: func() []*block { return bind(c.Deployments, deploymentSchema) },
	}
}

// seconds is a time of whole seconds from 0 to hi, because it travels so.
func seconds(name string, p *time.Duration, hi time.Duration) option {
	o := duration(name, p, 0, hi)
	inner := o.set
	o.set = func(v cty.Value) error {
		before := *p
		if err := inner(v); err != nil {
			return err
		}
		if *p%time.Second != 0 {
			*p = before
			return fmt.Errorf("a time of whole seconds is needed, for example %q", formatDuration(before))
		}
		return nil
	}
	return o
}

// condition is an expression that stays one: it is evaluated for each device. The decoder compiles it.
func condition(name string, p *contract.Expression) option {
	return option{name: name, field: p, expression: p,
		need: `A condition on a device is needed, for example device.kind == "cuda".`,
		get: func() cty.Value {
			if p.Text == "" {
				return cty.NullVal(cty.String)
			}
			return cty.StringVal(p.Text)
		}}
}

// condition checks the expression of an attribute and keeps its text. null is as if it were not there.
func (d *decoder) condition(a *hclsyntax.Attribute, o option) {
	if l, ok := a.Expr.(*hclsyntax.LiteralValueExpr); ok && l.Val.IsNull() {
		return
	}
	at := a.Expr.Range()
	line, err := oneLine(at.SliceBytes(d.src))
	if err == nil && tooDeep([]byte(line), d.name) {
		err = fmt.Errorf("a condition has at most 64 operators")
	}
	if err != nil {
		d.add("Wrong value", at, "%s", err)
		d.failed[o.field] = true
		return
	}
	c := newCompiler(func(at hcl.Range, format string, args ...any) { d.add("Wrong condition", at, format, args...) })
	if c.condition(a.Expr) == nil {
		d.failed[o.field] = true
		return
	}
	*o.expression = contract.Expression{Text: line, At: fmt.Sprintf("%s:%d", filepath.Base(d.name), at.Start.Line)}
	d.at[o.field] = at
}

// showCondition returns the tokens of an expression as it stands in a file.
func showCondition(e *contract.Expression) hclwrite.Tokens {
	text := e.Text
	if text == "" {
		text = "null"
	}
	return hclwrite.Tokens{{Type: hclsyntax.TokenIdent, Bytes: []byte(text)}}
}

// checkDeployment checks a deployment as a whole. What it refers to may stand further down: that is checked by the returned function,
// once everything was read.
func (d *decoder) checkDeployment(c *Config, bound *block, place func(string) hcl.Range, lack func(option, text string), empty func(string) (missing, blank bool)) (later func()) {
	p := &c.Deployments[len(c.Deployments)-1]
	index := len(c.Deployments) - 1
	if p.Model == "" {
		if missing, blank := empty("model"); missing || blank {
			lack("model", "A deployment needs a model, for example model = \"builtin:stories260k\"")
		}
	}
	replicas := bound.blocks[slices.IndexFunc(bound.blocks, func(b *block) bool { return b.name == "replicas" })]
	least, most, per := replicas.field("min"), replicas.field("max"), replicas.field("per")
	_, given := d.at[least]
	if p.Replicas.Per != "" && !given {
		p.Replicas.Min = 0
	}
	switch r := p.Replicas; {
	case r.Per != "" && (r.Min != 0 || r.Max != 0):
		d.add("Wrong value", d.place(per), "One worker on each GPU leaves nothing to count; leave out either per, or min and max")
	case r.Max != 0 && r.Max < r.Min && !d.failed[least] && !d.failed[most]:
		d.add("Wrong value", d.place(most, least), "\"max\" (%d) must not be less than \"min\" (%d)", r.Max, r.Min)
	}
	return func() { d.checkReferences(c, &c.Deployments[index], place) }
}

// checkShared reads what queens will share as they will read it, and asks it for a device. It is called for a file without mistakes.
func (d *decoder) checkShared(c *Config) {
	sample := NewPlaceDevice("tower", contract.Inventory{}, contract.Device{ID: "cuda0", Kind: "cuda", MemoryTotal: contract.GiB})
	for _, p := range c.Shared() {
		j, err := NewJudge(p)
		if err != nil {
			d.add("Wrong condition", d.place(), "%s", err)
			continue
		}
		j.Allows(sample)
		j.Prefers(sample)
	}
}

// checkReferences checks the model and the worker that a deployment names.
func (d *decoder) checkReferences(c *Config, p *Deployment, place func(string) hcl.Range) {
	source, _, known := c.model(p.Model)
	switch {
	case p.Model == "" || known:
	case strings.Contains(p.Model, ":"):
		if err := modelReference(c)(p.Model); err != nil {
			d.add("Wrong value", place("model"), "%s", err)
			source = ""
		}
		p.Model = absoluteReference(p.Model, c.Path)
	default:
		var names []string
		for _, m := range c.Models {
			names = append(append(names, m.Name), m.Aliases...)
		}
		d.add("Unknown model", place("model"), "There is no model %q; name a block model, or write a reference, for example \"builtin:stories260k\".%s", p.Model, suggest(p.Model, names))
		source = ""
	}
	if p.Worker == "" {
		return
	}
	w, ok := named(c.Workers, p.Worker, workerName)
	echo := strings.HasPrefix(source, "echo:")
	switch {
	case !ok:
		var names []string
		for _, w := range c.Workers {
			names = append(names, w.Name)
		}
		d.add("Unknown worker", place("worker"), "There is no worker %q; the workers are %s.%s", p.Worker, quoteAll(names), suggest(p.Worker, names))
	case source != "" && w.Adapter == AdapterEcho && !echo:
		d.add("Wrong value", place("worker"), "The worker %q only repeats what it is sent, under names such as echo:hello; name one that runs models, or leave it out", p.Worker)
	case w.Adapter == AdapterNative && echo:
		d.add("Wrong value", place("worker"), "The model %q exists in echo workers only; name one with the adapter \"echo\", or leave it out", source)
	}
}

// model returns the reference and the other names of a model by one of its names. A name that no block has stands for itself.
func (c *Config) model(name string) (source string, aliases []string, known bool) {
	for _, m := range c.Models {
		names := append([]string{m.Name}, m.Aliases...)
		if i := slices.Index(names, name); i >= 0 {
			return m.Source, slices.Delete(names, i, i+1), true
		}
	}
	return name, nil, false
}

// Shared returns the deployments as queens share them: complete without this configuration.
func (c *Config) Shared() []contract.Deployment {
	out := make([]contract.Deployment, 0, len(c.Deployments))
	for i := range c.Deployments {
		out = append(out, c.deployment(&c.Deployments[i]))
	}
	return out
}

func (c *Config) deployment(p *Deployment) contract.Deployment {
	source, aliases, _ := c.model(p.Model)
	w := c.kindFor(p.Worker, source)
	out := contract.Deployment{
		Name: p.Name, Model: p.Model, Source: source, Aliases: aliases,
		Worker:  contract.WorkerKind{Name: w.Name, Adapter: w.Adapter, Source: w.Source},
		Devices: slices.Clone(w.Devices), Context: w.Context, Slots: w.Slots, Threads: w.Threads,
		Env: maps.Clone(w.Env), Args: slices.Concat(w.Args, p.Args), Priority: p.Priority,
		IdleTTLSeconds: int64(p.IdleTTL / time.Second), Pin: slices.Clone(p.Pin),
		Replicas: contract.Replicas{Min: p.Replicas.Min, Max: max(p.Replicas.Max, p.Replicas.Min), Per: p.Replicas.Per},
		Place:    contract.PlacementRule{Spread: p.Place.Spread},
	}
	if p.Context > 0 {
		out.Context = p.Context
	}
	if p.Slots > 0 {
		out.Slots = p.Slots
	}
	if out.Env == nil {
		out.Env = map[string]string{}
	}
	maps.Copy(out.Env, p.Env)
	if p.Replicas.Per == "" {
		out.Replicas.Max = max(1, out.Replicas.Max)
	}
	if p.Place.Require.Text != "" {
		out.Place.Require = &p.Place.Require
	}
	if p.Place.Prefer.Text != "" {
		out.Place.Prefer = &p.Place.Prefer
	}
	return out
}

// kindFor returns the worker block of that name, or the first one that can serve a model.
func (c *Config) kindFor(name, source string) Worker {
	echo := strings.HasPrefix(source, "echo:")
	for _, w := range c.Workers {
		if w.Name == name || name == "" && (w.Adapter == AdapterEcho) == echo {
			return w
		}
	}
	return Worker{Name: name}
}
