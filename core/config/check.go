package config

import (
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// identities remembers where names were given.
type identities struct {
	blocks map[[2]string]hcl.Range
	models map[string]hcl.Range // names and aliases of models, which share one space
	later  []func()             // checks that need everything to be read
}

// first records a block of that kind and label, or returns where it was given before.
func (n *identities) first(kind, label string, at hcl.Range) (hcl.Range, bool) {
	key := [2]string{kind, label}
	if before, ok := n.blocks[key]; ok {
		return before, false
	}
	if n.blocks == nil {
		n.blocks = map[[2]string]hcl.Range{}
	}
	n.blocks[key] = at
	return hcl.Range{}, true
}

// checkElement checks the element that was just decoded as a whole.
func (d *decoder) checkElement(c *Config, g *group, b *hclsyntax.Block, bound *block, names *identities) {
	at := b.TypeRange
	place := func(option string) hcl.Range {
		if a, ok := b.Body.Attributes[option]; ok {
			return a.Expr.Range()
		}
		return at
	}
	// empty says how an option without a value came about: it is missing, or it is there with an empty one. One that was
	// refused was told already.
	empty := func(option string) (missing, blank bool) {
		if d.broken || d.refused(bound, option) {
			return false, false
		}
		_, written := b.Body.Attributes[option]
		return !written || !d.set(bound, option), written && d.set(bound, option)
	}
	// lack says that an option is missing, and which variable would have given it.
	lack := func(option, text string) {
		if name := d.unset(b.Body.Attributes[option]); name != "" {
			text = "The environment variable " + name + " is not set, and " + strings.ToLower(text[:1]) + text[1:]
		}
		d.add("Missing option", place(option), "%s", text)
	}
	switch g.name {
	case "model":
		m := &c.Models[len(c.Models)-1]
		if m.Source == "" {
			if missing, blank := empty("source"); missing || blank {
				lack("source", "A model needs a source, for example source = \"builtin:stories260k\"")
			}
		}
		m.Source = absoluteReference(m.Source, c.Path)
		for i, n := range append([]string{m.Name}, m.Aliases...) {
			where := at
			if i > 0 {
				where = place("aliases")
			}
			if before, ok := names.models[n]; ok && n != "" && (i > 0 || before.Start.Line != at.Start.Line) {
				if a := b.Body.Attributes["aliases"]; i > 0 && isForeign(a.Expr) {
					d.add("Duplicate name", where, "An alias is the name or an alias of a model already, on line %d. %s", before.Start.Line, hidden)
				} else if i > 0 || !d.duplicated(where) {
					d.add("Duplicate name", where, "%q is the name or an alias of a model already, on line %d; a client would not know which one it gets", n, before.Start.Line)
				}
				continue
			}
			names.models[n] = where
		}
	case "worker":
		w := &c.Workers[len(c.Workers)-1]
		if w.Adapter == "" {
			if missing, blank := empty("adapter"); missing || blank {
				lack("adapter", "A worker needs an adapter, for example adapter = \"native\"")
			}
		}
		if w.Adapter == AdapterNative && w.Source == "" {
			if _, blank := empty("source"); blank {
				d.add("Wrong value", place("source"), "A native worker needs an engine, for example source = %q", defaultEngine)
			}
			w.Source = defaultEngine
		}
		if w.Adapter == AdapterEcho {
			if w.Source != "" && d.set(bound, "source") {
				d.add("Wrong value", place("source"), "An echo worker has no engine; leave source out")
			}
			w.Source = ""
		}
		if scheme, _, _ := strings.Cut(w.Source, ":"); w.Adapter == AdapterNative && (scheme == "pypi" || scheme == "github") {
			d.add("Wrong value", place("source"), "Engines of %s: are server programs, and a native worker runs llama.cpp's libraries; give it an engine of npm: or path:, for example source = %q", scheme, defaultEngine)
		}
		w.Source = absoluteReference(w.Source, c.Path)
		if file, ok := strings.CutPrefix(w.Source, "recipe:"); ok && w.Adapter == AdapterNative && isServerRecipe(file) {
			d.add("Wrong value", place("source"), "This recipe makes a server program, and a native worker runs llama.cpp's libraries; give it an engine of npm: or path:, or a recipe without a block launch")
		}
	case "deployment":
		names.later = append(names.later, d.checkDeployment(c, bound, place, lack, empty))
	case "plugin":
		p := &c.Plugins[len(c.Plugins)-1]
		p.at = blockPlace{b, d.src, d.name}
		d.checkPlugin(p, place, !d.broken && !d.refused(bound, "source"))
	case credentialBlock:
		k := &c.Credentials[len(c.Credentials)-1]
		if _, written := b.Body.Attributes["value"]; !written && !d.broken {
			d.add("Missing option", at, "A credential needs a value, for example value = env(\"REGISTRY_TOKEN\"); an unset variable leaves the credential out")
		}
		if len(k.Hosts) == 0 {
			if missing, blank := empty("hosts"); missing || blank {
				lack("hosts", "A credential needs the hosts that it may be sent to, for example hosts = [\"npm.example.org\"]")
			}
		}
	}
}

// set reports whether the file gives an option of b a value that was accepted and is not null.
func (d *decoder) set(b *block, name string) bool {
	_, ok := d.at[b.field(name)]
	return ok
}

// refused reports whether the file gives an option of b a value that was refused.
func (d *decoder) refused(b *block, name string) bool { return d.failed[b.field(name)] }

// field returns the pointer to the field of an option of b.
func (b *block) field(name string) any {
	for _, o := range b.options {
		if o.name == name {
			return o.field
		}
	}
	return nil
}

// duplicated reports whether a duplicate block was reported on that line, so that one mistake is one message.
func (d *decoder) duplicated(at hcl.Range) bool {
	for _, m := range d.diags {
		if m.Summary == "Duplicate block" && m.Subject.Start.Line == at.Start.Line {
			return true
		}
	}
	return false
}

// absoluteReference makes the path of a file:, path: or recipe: reference absolute, beginning at the folder of the configuration, because an
// agent runs in another folder than the one who wrote it.
func absoluteReference(ref, configPath string) string {
	scheme, rest, _ := strings.Cut(ref, ":")
	if scheme != "file" && scheme != "path" && scheme != "recipe" || filepath.IsAbs(rest) || strings.HasPrefix(rest, "//") || configPath == "" {
		return ref
	}
	abs, err := filepath.Abs(filepath.Join(filepath.Dir(configPath), rest))
	if err != nil {
		return ref
	}
	return scheme + ":" + abs
}

// check holds the rules about several options at once. They are told at the one that the file sets, the later where it sets
// more; defaults agree with each other.
func (d *decoder) check(c *Config) {
	det := &c.Queen.Detection
	ages := []struct {
		name string
		p    *time.Duration
	}{{"stale", &det.Stale}, {"suspect", &det.Suspect}, {"down", &det.Down}, {"lost", &det.Lost}, {"forget", &det.Forget}}
	for i := 1; i < len(ages); i++ {
		if *ages[i].p <= *ages[i-1].p {
			d.add("Wrong value", d.place(ages[i].p, ages[i-1].p), "%q (%s) must be more than %q (%s)",
				ages[i].name, formatDuration(*ages[i].p), ages[i-1].name, formatDuration(*ages[i-1].p))
		}
	}
	if det.Stale <= c.Queen.Heartbeat.Interval {
		d.add("Wrong value", d.place(&det.Stale, &c.Queen.Heartbeat.Interval), "The age \"stale\" (%s) must be more than heartbeat.interval (%s), or every worker would be stale between two beats",
			formatDuration(det.Stale), formatDuration(c.Queen.Heartbeat.Interval))
	}
	if c.Queen.Outlier.MaxEjection < c.Queen.Outlier.Ejection {
		d.add("Wrong value", d.place(&c.Queen.Outlier.MaxEjection, &c.Queen.Outlier.Ejection), "\"max_ejection\" must not be less than \"ejection\"")
	}
	if c.Hive.Spawn.ReadyMax < c.Hive.Spawn.Ready {
		d.add("Wrong value", d.place(&c.Hive.Spawn.ReadyMax, &c.Hive.Spawn.Ready), "\"ready_max\" must not be less than \"ready\"")
	}
	if len(c.Agent.Roles) == 0 {
		d.add("Wrong value", d.place(&c.Agent.Roles), "An agent needs a role, for example [\"queen\", \"hive\"]")
	}
	if c.Queen.Listen == "" {
		d.add("Wrong value", d.place(&c.Queen.Listen), "A queen needs an address to listen on, for example \"127.0.0.1:7833\"")
	}
	if c.Hive.Listen == "" {
		d.add("Wrong value", d.place(&c.Hive.Listen), "A hive needs an address to listen on, for example \"127.0.0.1:7835\"")
	}
	if c.Queen.Listen != "" && c.Queen.Listen == c.Hive.Listen && !strings.HasSuffix(c.Queen.Listen, ":0") {
		d.add("Wrong value", d.place(&c.Hive.Listen, &c.Queen.Listen), "The queen and the hive both listen on %s; give one of them another port", c.Hive.Listen)
	}
	if c.Gossip.Bind == "" {
		d.add("Wrong value", d.place(&c.Gossip.Bind), "The gossip needs an address to listen on, for example \"127.0.0.1:7834\"")
	}
	for _, l := range []struct {
		role string
		p    *string
	}{{RoleQueen, &c.Queen.Listen}, {RoleHive, &c.Hive.Listen}} {
		if *l.p == c.Gossip.Bind && *l.p != "" && !strings.HasSuffix(*l.p, ":0") && c.Agent.Has(l.role) {
			d.add("Wrong value", d.place(&c.Gossip.Bind, l.p), "The gossip and the %s both listen on %s; give one of them another port", l.role, *l.p)
		}
		_, port, err := net.SplitHostPort(*l.p)
		if err != nil || !c.Agent.Has(l.role) {
			continue
		}
		if n, err := parsePort(port); err == nil && n >= c.Hive.WorkerPorts[0] && n <= c.Hive.WorkerPorts[1] {
			d.add("Wrong value", d.place(&c.Hive.WorkerPorts, l.p), "The %s listens on port %d, which is one of the worker_ports %d-%d; a worker could take it, so keep them apart",
				l.role, n, c.Hive.WorkerPorts[0], c.Hive.WorkerPorts[1])
		}
	}
	for i, h := range c.Queen.Hives {
		if u, err := url.Parse(h); err == nil {
			c.Queen.Hives[i] = u.Scheme + "://" + u.Host
		}
	}
}

// place returns where the file sets the first of fields that it sets.
func (d *decoder) place(fields ...any) hcl.Range {
	for _, f := range fields {
		if r, ok := d.at[f]; ok {
			return r
		}
	}
	return hcl.Range{Start: hcl.InitialPos, End: hcl.InitialPos}
}
