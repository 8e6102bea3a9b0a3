package queen

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/registry"
)

// directory is what the names of models stand for. It is made anew when an inventory changes and never changed.
type directory struct {
	names   map[string][]string // name → pinned ids; none for a configured model that is not fetched
	sources map[string]string   // configured name, alias or source → source
	entries []*entry
}

type entry struct {
	id     string // empty: configured and not fetched
	names  []string
	source string
	hives  []string
	model  *contract.Model
}

const echoScheme = "echo:"

var echoName = regexp.MustCompile(`^echo:[a-z0-9][a-z0-9._-]{0,63}$`)

// sameInventories reports whether two snapshots hold the very same inventories.
func sameInventories(a, b *registry.Snapshot) bool {
	return slices.EqualFunc(a.Hives, b.Hives, func(x, y registry.Hive) bool { return x.Inventory == y.Inventory && x.Beat.ID == y.Beat.ID })
}

// index reads names from the configuration and the inventories of a snapshot.
func (q *Queen) index(s *registry.Snapshot) *directory {
	d := &directory{names: map[string][]string{}, sources: map[string]string{}}
	byID := map[string]*entry{}
	for _, h := range s.Hives {
		if h.Inventory == nil {
			continue
		}
		for i := range h.Inventory.Models {
			m := &h.Inventory.Models[i]
			e := byID[m.ID]
			if e == nil {
				e = &entry{id: m.ID, model: m, source: m.ID}
				byID[m.ID] = e
				d.entries = append(d.entries, e)
			}
			e.hives = append(e.hives, h.Beat.ID)
			for _, name := range m.References {
				e.name(name)
				e.source = m.References[0]
			}
		}
	}
	for _, m := range append(slices.Clone(q.settings().Models), q.deploy.models()...) {
		names := append([]string{m.Name}, m.Aliases...)
		found := false
		for _, e := range d.entries {
			if e.id != "" && (e.id == m.Source || slices.Contains(e.names, m.Source)) {
				found, e.source = true, m.Source
				for _, n := range slices.Backward(names) {
					e.names = slices.Insert(slices.DeleteFunc(e.names, func(s string) bool { return s == n }), 0, n)
				}
			}
		}
		if !found {
			e := &entry{source: m.Source}
			if strings.HasPrefix(m.Source, echoScheme) {
				e.id = m.Source
			}
			for _, n := range append(names, m.Source) {
				e.name(n)
			}
			d.entries = append(d.entries, e)
		}
		for _, n := range append(names, m.Source) {
			d.sources[n] = m.Source
		}
	}
	slices.SortStableFunc(d.entries, func(a, b *entry) int { return cmp.Compare(a.id, b.id) })
	for _, e := range d.entries {
		for _, n := range append(slices.Clone(e.names), e.id) {
			if n == "" {
				continue
			}
			ids := d.names[n]
			if e.id != "" && !slices.Contains(ids, e.id) {
				ids = append(ids, e.id)
			}
			d.names[n] = ids
		}
	}
	return d
}

func (e *entry) name(n string) {
	if !slices.Contains(e.names, n) {
		e.names = append(e.names, n)
	}
}

// Resolve returns what a client's model name stands for. A name that is neither in the configuration nor in a catalog nor
// served by a worker is fault.NotFound with the code model_not_found and the command that would fetch it.
func (q *Queen) Resolve(name string) (registry.Target, error) {
	if ids, ok := q.dir.Load().names[name]; ok {
		return registry.Target{ModelIDs: ids}, nil
	}
	s := q.Snapshot()
	if len(s.Serving(name)) > 0 || q.echo(name) {
		return registry.Target{ModelIDs: []string{name}}, nil
	}
	for i := range s.Workers {
		if w := &s.Workers[i]; w.Info.ModelID == name && w.Exit == nil && w.Liveness != contract.LivenessLost {
			return registry.Target{ModelIDs: []string{name}}, nil
		}
	}
	if !q.settled() {
		return registry.Target{}, nil
	}
	return registry.Target{}, notFound(name)
}

// echo reports whether name is a model that an echo worker would serve, and there is such a kind of worker.
func (q *Queen) echo(name string) bool {
	_, ok := q.kindOf("echo")
	return ok && echoName.MatchString(name)
}

func (q *Queen) kindOf(adapter string) (contract.WorkerKind, bool) {
	for _, k := range q.settings().Workers {
		if k.Adapter == adapter {
			return k, true
		}
	}
	return contract.WorkerKind{}, false
}

// notFound says how a name could come to mean something: a reference is fetched, a bare name is only looked up.
func notFound(name string) error {
	if !contract.IsReference(name) || strings.HasPrefix(name, echoScheme) {
		return fault.New(fault.NotFound, codeModelNotFound,
			"The model %s is neither in the configuration nor in the catalog; `apiary model list` shows the names, and `apiary model pull REFERENCE` adds one, such as hf:ORG/REPO or file:PATH.",
			quoted(name)).WithParam("model")
	}
	return fault.New(fault.NotFound, codeModelNotFound, "The model %s is not in the catalog; fetch it first with `apiary model pull %s`.",
		quoted(name), pasteable(name)).WithParam("model")
}

// quoted makes a foreign string safe to print, and short.
func quoted(s string) string {
	if len(s) > 200 {
		s = s[:200] + "…"
	}
	return strconv.Quote(s)
}

var plainReference = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,199}$`)

// pasteable returns a reference that can be pasted into a shell, or the word REF in its place.
func pasteable(ref string) string {
	if plainReference.MatchString(ref) {
		return ref
	}
	return "REF"
}

// Models lists the models by the names they answer to: those of the catalogs and of the configuration, and those that only a
// worker knows.
func (q *Queen) Models() []contract.ModelView {
	s := q.Snapshot()
	serving := map[string][]string{}
	for i := range s.Workers {
		if w := &s.Workers[i]; w.Exit == nil && w.Liveness != contract.LivenessLost && w.Liveness != contract.LivenessDown {
			serving[w.Info.ModelID] = append(serving[w.Info.ModelID], w.Info.ID)
		}
	}
	d := q.dir.Load()
	out := make([]contract.ModelView, 0, len(d.entries)+len(serving))
	for _, e := range d.entries {
		v := contract.ModelView{ID: e.id, Names: names(e), Source: e.source, Hives: append([]string{}, e.hives...), Workers: append([]string{}, serving[e.id]...), Model: e.model}
		delete(serving, e.id)
		out = append(out, v)
	}
	delete(serving, "")
	for _, id := range slices.Sorted(maps.Keys(serving)) {
		out = append(out, contract.ModelView{ID: id, Names: []string{id}, Source: id, Hives: []string{}, Workers: serving[id]})
	}
	return out
}

// names returns every name of an entry, its id last.
func names(e *entry) []string {
	out := append([]string{}, e.names...)
	if e.id != "" && !slices.Contains(out, e.id) {
		out = append(out, e.id)
	}
	return out
}

// model returns a catalog entry by its pinned id.
func (d *directory) model(id string) *entry {
	for _, e := range d.entries {
		if e.id == id && id != "" {
			return e
		}
	}
	return nil
}
