package queen

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/registry"
)

// hiveEngine is an engine with the hive that has it.
type hiveEngine struct {
	HiveID string `json:"hive_id"`
	contract.Engine
}

// hiveDevice is a device with the hive that has it.
type hiveDevice struct {
	HiveID string `json:"hive_id"`
	contract.Device
}

// removed is the result of ModelDelete and WorkerRemove.
type removed struct {
	Reference string   `json:"reference"`
	Hives     []string `json:"hives"` // on which it was removed
}

// download has a hive fetch a model: the one that was named, or the local one. The reference may be a name of the configuration.
func (q *Queen) download(ctx context.Context, ref contract.ArtifactRef, say func(contract.Narration)) (contract.Model, error) {
	l, h, err := q.chosen(ref.HiveID)
	if err != nil {
		return contract.Model{}, err
	}
	ref.Operation, ref.HiveID = contract.OpModelDownload, ""
	ref.Reference = orElse(q.dir.Load().sources[ref.Reference], ref.Reference)
	if !contract.IsReference(ref.Reference) {
		return contract.Model{}, notFound(ref.Reference)
	}
	ref.Peers = nil // only a queen has tickets
	if ids := q.dir.Load().names[ref.Reference]; len(ids) > 0 {
		ref.Peers = q.peers(ids[0], h, "")
	}
	m, err := forward[contract.Model](ctx, l, ref, say)
	if err == nil {
		l.update(ctx)
	}
	return m, err
}

// search has the vendors of a hive look for models: of the one that was named, or of the local one.
func (q *Queen) search(ctx context.Context, s contract.ModelSearch, say func(contract.Narration)) (contract.ModelsFound, error) {
	l, _, err := q.chosen(s.HiveID)
	if err != nil {
		return contract.ModelsFound{}, err
	}
	s.Operation, s.HiveID = contract.OpModelSearch, ""
	return forward[contract.ModelsFound](ctx, l, s, say)
}

// holders returns the hives that have a thing, of the one that is named or of all.
func (q *Queen) holders(hiveID string, has func(*contract.Inventory) bool) ([]*link, error) {
	if hiveID != "" {
		l, h, err := q.hive(hiveID)
		if err != nil || h.Inventory == nil || !has(h.Inventory) {
			return nil, err
		}
		return []*link{l}, nil
	}
	var out []*link
	for _, h := range q.Snapshot().Hives {
		if h.Inventory == nil || !has(h.Inventory) {
			continue
		}
		l, _, err := q.hive(h.Beat.ID)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

// deleteModel removes a model from the catalogs of the hives that have it. A model that a worker serves stays.
func (q *Queen) deleteModel(ctx context.Context, n *job.Narrator, ref contract.ArtifactRef) (removed, error) {
	t, err := q.Resolve(ref.Reference)
	if err != nil {
		return removed{}, err
	}
	out := removed{Reference: ref.Reference, Hives: []string{}}
	for _, id := range t.ModelIDs {
		if err := q.unserved(id, ref.HiveID); err != nil {
			return out, err
		}
		links, err := q.holders(ref.HiveID, func(inv *contract.Inventory) bool {
			return slices.ContainsFunc(inv.Models, func(m contract.Model) bool { return m.ID == id })
		})
		if err != nil {
			return out, err
		}
		op := contract.ArtifactRef{Operation: contract.OpModelDelete, Reference: id}
		if err := q.removeFrom(ctx, n, links, op, &out); err != nil {
			return out, err
		}
		q.mu.Lock()
		slot, ok := q.slots[id]
		delete(q.slots, id)
		q.mu.Unlock()
		if ok {
			q.step(registry.Release{Slot: slot}) // nothing of it is to be started again
		}
	}
	if len(out.Hives) == 0 {
		return out, fault.New(fault.NotFound, codeModelNotFound, "The model %s is not in the catalog; `apiary model list` shows what is.", quoted(ref.Reference)).WithParam("model")
	}
	return out, nil
}

// unserved is an error that names the workers of a hive, or of all, that serve a model.
func (q *Queen) unserved(modelID, hiveID string) error {
	var ids []string
	for _, w := range q.Snapshot().Workers {
		if w.Info.ModelID == modelID && w.Exit == nil && w.Liveness != contract.LivenessLost && (hiveID == "" || w.Info.HiveID == hiveID) {
			ids = append(ids, w.Info.ID)
		}
	}
	switch len(ids) {
	case 0:
		return nil
	case 1:
		return fault.New(fault.Conflict, "model_in_use", "Worker %s serves the model; end it first with `apiary worker delete %s`.", ids[0], ids[0])
	}
	slices.Sort(ids)
	return fault.New(fault.Conflict, "model_in_use", "%d workers serve the model, %s; end each of them first with `apiary worker delete`.", len(ids), strings.Join(ids, ", "))
}

func (q *Queen) removeFrom(ctx context.Context, n *job.Narrator, links []*link, op contract.ArtifactRef, out *removed) error {
	for _, l := range links {
		id, _ := l.known()
		if _, err := forward[any](ctx, l, op, n.Forward); err != nil && fault.KindOf(err) != fault.NotFound {
			return fmt.Errorf("on hive %s: %w", id, err)
		}
		l.update(ctx)
		if !slices.Contains(out.Hives, id) {
			out.Hives = append(out.Hives, id)
		}
	}
	return nil
}

// install puts an engine on a hive: without a reference that of the first kind of worker that has one.
func (q *Queen) install(ctx context.Context, n *job.Narrator, ref contract.ArtifactRef) (contract.Engine, error) {
	for i := 0; ref.Reference == "" && i < len(q.settings().Workers); i++ {
		ref.Reference = q.settings().Workers[i].Source
	}
	if ref.Reference == "" {
		return contract.Engine{}, fault.New(fault.Invalid, "reference_missing", "Name the engine to install: no worker block of the configuration has one.").WithParam("reference")
	}
	l, _, err := q.chosen(ref.HiveID)
	if err != nil {
		return contract.Engine{}, err
	}
	ref.Operation, ref.HiveID = contract.OpWorkerInstall, ""
	e, err := forward[contract.Engine](ctx, l, ref, n.Forward)
	if err == nil {
		l.update(ctx)
	}
	return e, err
}

func engineIs(ref string) func(contract.Engine) bool {
	return func(e contract.Engine) bool { return e.ID == ref || slices.Contains(e.References, ref) }
}

// engines lists the engines of one hive or all; one with the reference when one is asked for.
func (q *Queen) engines(ref contract.ArtifactRef, one bool) (any, error) {
	out := []hiveEngine{}
	if ref.HiveID != "" {
		if _, _, err := q.hive(ref.HiveID); err != nil {
			return nil, err
		}
	}
	for _, h := range q.Snapshot().Hives {
		if h.Inventory == nil || ref.HiveID != "" && h.Beat.ID != ref.HiveID && h.Beat.Name != ref.HiveID {
			continue
		}
		for _, e := range h.Inventory.Engines {
			if !one || engineIs(ref.Reference)(e) {
				out = append(out, hiveEngine{HiveID: h.Beat.ID, Engine: e})
			}
		}
	}
	if !one {
		return out, nil
	}
	if len(out) == 0 {
		return nil, engineNotFound(ref.Reference)
	}
	return out[0], nil
}

func engineNotFound(ref string) error {
	return fault.New(fault.NotFound, "engine_not_found", "The engine %s is on no hive; `apiary engine list` shows those that are.", quoted(ref)).WithParam("reference")
}

// removeEngine removes an engine from the hives that have it.
func (q *Queen) removeEngine(ctx context.Context, n *job.Narrator, ref contract.ArtifactRef) (removed, error) {
	out := removed{Reference: ref.Reference, Hives: []string{}}
	links, err := q.holders(ref.HiveID, func(inv *contract.Inventory) bool {
		return slices.ContainsFunc(inv.Engines, engineIs(ref.Reference))
	})
	if err != nil {
		return out, err
	}
	if len(links) == 0 {
		return out, engineNotFound(ref.Reference)
	}
	err = q.removeFrom(ctx, n, links, contract.ArtifactRef{Operation: contract.OpWorkerRemove, Reference: ref.Reference}, &out)
	return out, err
}

// each runs a read on one hive or on all that answer. One of several that fails is narrated, and its part is missing.
func each[T any](ctx context.Context, q *Queen, n *job.Narrator, hiveID, op string, add func(hiveID string, part []T)) error {
	links := q.alive()
	if hiveID != "" {
		l, _, err := q.hive(hiveID)
		if err != nil {
			return err
		}
		links = []*link{l}
	}
	for _, l := range links {
		id, _ := l.known()
		part, err := forward[[]T](ctx, l, operation{op}, n.Forward)
		switch {
		case err == nil:
			add(id, part)
		case len(links) == 1 || ctx.Err() != nil:
			return err
		default:
			n.Warn("read", "hive %s did not answer: %v", id, err)
		}
	}
	return nil
}

func (q *Queen) devices(ctx context.Context, n *job.Narrator, hiveID string) ([]hiveDevice, error) {
	out := []hiveDevice{}
	err := each(ctx, q, n, hiveID, contract.OpDeviceList, func(id string, part []contract.Device) {
		for _, d := range part {
			out = append(out, hiveDevice{HiveID: id, Device: d})
		}
	})
	return out, err
}

func (q *Queen) processList(ctx context.Context, n *job.Narrator, hiveID string) ([]contract.Process, error) {
	out := []contract.Process{}
	err := each(ctx, q, n, hiveID, contract.OpProcessList, func(id string, part []contract.Process) {
		for _, p := range part {
			p.HiveID = id
			out = append(out, p)
		}
	})
	return out, err
}

// workerLogs reads the last lines of a worker's log from its hive: the one that is named, or the worker's, or for a worker that
// is forgotten the first hive that has its log.
func (q *Queen) workerLogs(ctx context.Context, ref contract.WorkerRef) (contract.WorkerLogLines, error) {
	var links []*link
	hiveID := ref.HiveID
	if w, ok := q.Snapshot().Worker(ref.WorkerID); ok && hiveID == "" {
		hiveID = w.Info.HiveID
	}
	if hiveID != "" {
		l, _, err := q.hive(hiveID)
		if err != nil {
			return contract.WorkerLogLines{}, err
		}
		links = []*link{l}
	} else {
		links = q.alive()
	}
	ref.Operation, ref.HiveID = contract.OpWorkerLogs, ""
	for _, l := range links {
		out, err := forward[contract.WorkerLogLines](ctx, l, ref, nil)
		if err == nil || fault.KindOf(err) != fault.NotFound {
			return out, err
		}
	}
	return contract.WorkerLogLines{}, workerNotFound(ref.WorkerID)
}
