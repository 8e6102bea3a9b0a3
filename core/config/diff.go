package config

import (
	"bytes"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2/hclwrite"

	"github.com/apiary-dev/apiary/core/contract"
)

// liveOptions are the options that a running agent takes over.
func liveOptions() []string {
	return []string{"agent.log.level", "queen.hives",
		"queen.retry.attempts", "queen.retry.budget", "queen.retry.budget_min", "queen.timeouts.first_token", "queen.timeouts.stall",
		"queen.limits.queue_per_model", "queen.limits.queue_per_key", "queen.limits.queue_wait", "queen.limits.load_wait"}
}

// liveBlocks are the kinds of blocks with a name that a running agent takes over.
func liveBlocks() []string { return []string{"deployment", "model", "worker"} }

const hiddenValue = `"***"`

// Diff lists what differs between two configurations, and whether a running agent must be started again for it: options first, in
// the order of the file, then blocks. Deployments are compared as they take effect, so a change of a model or a worker that one
// names is a change of the deployment too. It reads nothing but its arguments.
func Diff(before, after *Config) []contract.ConfigChange {
	var out []contract.ConfigChange
	a, b := schema(before), schema(after)
	for i := range a.blocks {
		for _, f := range compare(a.blocks[i], b.blocks[i], a.blocks[i].name+".") {
			out = append(out, contract.ConfigChange{Kind: "option", Name: f.Name, Action: contract.ChangeModify,
				Fields: []contract.FieldChange{{Old: f.Old, New: f.New}}, Restart: !slices.Contains(liveOptions(), f.Name)})
		}
	}
	for i, g := range a.groups {
		if g.name == "deployment" {
			out = append(out, DiffDeployments(before.Shared(), after.Shared())...)
			continue
		}
		restart := !slices.Contains(liveBlocks(), g.name)
		for _, c := range compareGroups(g.each(), b.groups[i].each()) {
			c.Kind, c.Restart = g.name, restart
			out = append(out, c)
		}
	}
	return out
}

// compareGroups compares blocks by their names.
func compareGroups(before, after []*block) (out []contract.ConfigChange) {
	label := func(b *block) string { return b.label }
	for _, b := range before {
		now, ok := named(after, b.label, label)
		if !ok {
			out = append(out, contract.ConfigChange{Name: b.label, Action: contract.ChangeRemove})
			continue
		}
		if fields := compare(b, now, ""); len(fields) > 0 {
			out = append(out, contract.ConfigChange{Name: b.label, Action: contract.ChangeModify, Fields: fields})
		}
	}
	for _, b := range after {
		if _, ok := named(before, b.label, label); !ok {
			out = append(out, contract.ConfigChange{Name: b.label, Action: contract.ChangeAdd})
		}
	}
	// The first of several is the one that is taken where nothing else is said.
	if o, n := common(before, after), common(after, before); !slices.Equal(o, n) {
		out = append(out, contract.ConfigChange{Action: contract.ChangeModify, Fields: []contract.FieldChange{{Name: "order", Old: "[" + quoteAll(o) + "]", New: "[" + quoteAll(n) + "]"}}})
	}
	return out
}

// common lists the names of those blocks of a that b has too.
func common(a, b []*block) (out []string) {
	for _, x := range a {
		if _, ok := named(b, x.label, func(b *block) string { return b.label }); ok {
			out = append(out, x.label)
		}
	}
	return out
}

// compare lists the options of two blocks of one kind that differ. prefix stands before their names.
func compare(a, b *block, prefix string) (out []contract.FieldChange) {
	if a.later != nil && b.later != nil {
		if o, n := a.later.expressions(), b.later.expressions(); a.later.source() != b.later.source() {
			f := contract.FieldChange{Name: strings.TrimSuffix(prefix, "."), Old: encode(o), New: encode(n)}
			if f.Old == f.New { // it is in what is not shown
				f.Old, f.New = hiddenValue, hiddenValue
			}
			out = append(out, f)
		}
		return out
	}
	for _, o := range a.options {
		i := slices.IndexFunc(b.options, func(p option) bool { return p.name == o.name })
		if i < 0 {
			continue
		}
		p := b.options[i]
		if m, ok := o.field.(*map[string]string); ok {
			out = append(out, compareSecrets(prefix+o.name+".", *m, *p.field.(*map[string]string))...)
			continue
		}
		f := contract.FieldChange{Name: prefix + o.name, Old: o.text(), New: p.text()}
		switch {
		case o.hidden && !reflect.DeepEqual(o.field, p.field), f.Old != f.New:
			out = append(out, f)
		}
	}
	for i, inner := range a.blocks {
		out = append(out, compare(inner, b.blocks[i], prefix+inner.name+".")...)
	}
	return out
}

// text gives an option's value as a file has it; secrets are ***.
func (o option) text() string {
	if o.expression != nil {
		return string(showCondition(o.expression).Bytes())
	}
	return string(hclwrite.Format(hclwrite.TokensForValue(o.get()).Bytes()))
}

// source is the text of the block.
func (l *later) source() string {
	if l.body == nil {
		return ""
	}
	return string(bytes.TrimSpace(l.body.SrcRange.SliceBytes(l.src)))
}

// DiffDeployments lists what differs between two sets of deployments, by their names, in the order of before and then of after.
// Values of env are ***; where a condition was written makes no difference.
func DiffDeployments(before, after []contract.Deployment) []contract.ConfigChange {
	var out []contract.ConfigChange
	name := func(d contract.Deployment) string { return d.Name }
	for _, b := range before {
		now, ok := named(after, b.Name, name)
		if !ok {
			out = append(out, contract.ConfigChange{Kind: "deployment", Name: b.Name, Action: contract.ChangeRemove})
			continue
		}
		if fields := compareDeployments(b, now); len(fields) > 0 {
			out = append(out, contract.ConfigChange{Kind: "deployment", Name: b.Name, Action: contract.ChangeModify, Fields: fields})
		}
	}
	for _, a := range after {
		if _, ok := named(before, a.Name, name); !ok {
			out = append(out, contract.ConfigChange{Kind: "deployment", Name: a.Name, Action: contract.ChangeAdd})
		}
	}
	return out
}

func compareDeployments(before, after contract.Deployment) (out []contract.FieldChange) {
	a, b := flat(before), flat(after)
	for _, name := range keys(a, b) {
		if a[name] != b[name] {
			out = append(out, contract.FieldChange{Name: name, Old: a[name], New: b[name]})
		}
	}
	return append(out, compareSecrets("env.", before.Env, after.Env)...)
}

// compareSecrets lists the entries that differ, without their values.
func compareSecrets(prefix string, a, b map[string]string) (out []contract.FieldChange) {
	for _, name := range keys(a, b) {
		f := contract.FieldChange{Name: prefix + name}
		old, was := a[name]
		now, is := b[name]
		if was {
			f.Old = hiddenValue
		}
		if is {
			f.New = hiddenValue
		}
		if was != is || old != now {
			out = append(out, f)
		}
	}
	return out
}

// keys lists the keys of both maps in order.
func keys(a, b map[string]string) []string {
	both := maps.Clone(a)
	if both == nil {
		both = map[string]string{}
	}
	maps.Copy(both, b)
	return slices.Sorted(maps.Keys(both))
}

// flat gives the fields of a deployment, but for env, as texts, those of inner objects after a dot.
func flat(d contract.Deployment) map[string]string {
	d.Env = nil
	tree := map[string]any{}
	_ = json.Unmarshal([]byte(encode(d)), &tree)
	out := map[string]string{}
	var walk func(prefix string, v map[string]any)
	walk = func(prefix string, v map[string]any) {
		for name, x := range v {
			inner, ok := x.(map[string]any)
			switch text, isText := inner["text"].(string); {
			case ok && isText && prefix == "place.":
				out[prefix+name] = text
			case ok:
				walk(prefix+name+".", inner)
			default:
				out[prefix+name] = encode(x)
			}
		}
	}
	walk("", tree)
	return out
}

// encode gives a value as JSON. What comes here can always be encoded.
func encode(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	return strings.TrimSpace(b.String())
}
