package queen

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/device"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/registry"
)

// choose decides on model, kind of worker and hive, and fetches a model that no catalog has.
func (r *spawning) choose(ctx context.Context) error {
	q, asked := r.q, r.spec.Model
	if asked == "" {
		return fault.New(fault.Invalid, "model_missing", "WorkerSpawn needs the name or reference of a model.").WithParam("model")
	}
	if err := q.awaitSettled(ctx); err != nil {
		return err
	}
	t, err := q.Resolve(asked)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	ref, missing := asked, len(t.ModelIDs) == 0
	if missing {
		ref = orElse(q.dir.Load().sources[asked], asked)
		if r.automatic || strings.HasPrefix(ref, echoScheme) || !contract.IsReference(ref) {
			return notFound(asked)
		}
	} else {
		ref = t.ModelIDs[0]
	}
	// What cannot be is refused before anything is fetched for it.
	if r.kind, err = r.chooseKind(ref); err != nil {
		return err
	}
	if err := r.checkMachines(ref); err != nil {
		return err
	}
	if missing {
		r.n.Info("fetch", "the model %s is not in the catalog and is fetched first", ref)
		m, err := q.download(ctx, contract.ArtifactRef{Reference: ref, HiveID: r.spec.HiveID}, r.n.Forward)
		if err != nil {
			return err
		}
		t.ModelIDs = []string{m.ID}
	}
	id := t.ModelIDs[0]
	r.spec.Model, r.spec.Worker = id, r.kind
	if id != asked {
		r.n.Info("resolve", "%s is %s", asked, id)
	}
	if r.demand && r.spec.HiveID == "" && len(r.spec.Devices) == 0 {
		if done, err := r.chooseByPlan(ctx, id); done || err != nil {
			return err
		}
	}
	return r.chooseHive(id)
}

// chooseKind returns the kind of worker that was asked for, or the first one that serves the model.
func (r *spawning) chooseKind(modelID string) (contract.WorkerKind, error) {
	if want := r.spec.Worker; want.Name != "" {
		for _, k := range r.q.settings().Workers {
			if k.Name == want.Name {
				return k, fits(k, modelID)
			}
		}
		if want.Adapter != "" {
			return want, fits(want, modelID)
		}
		return want, fault.New(fault.NotFound, "worker_kind_not_found", "The configuration has no worker block %s; `apiary config show` prints those that it has.", quoted(want.Name)).WithParam("worker")
	}
	if strings.HasPrefix(modelID, echoScheme) {
		if k, ok := r.q.kindOf("echo"); ok {
			return k, nil
		}
	}
	for _, k := range r.q.settings().Workers {
		if k.Adapter != "echo" {
			return k, nil
		}
	}
	return contract.WorkerKind{}, fault.New(fault.Unavailable, "no_worker_kind", "The configuration has no worker block that can serve %s; add one.", quoted(modelID))
}

// fits refuses a model that a kind of worker cannot serve.
func fits(k contract.WorkerKind, modelID string) error {
	switch echo := strings.HasPrefix(modelID, echoScheme); {
	case k.Adapter == "echo" && !echo:
		return fault.New(fault.Invalid, "model_and_worker", "The model %s cannot be served by the worker %s, which only repeats what it is sent under names such as echo:hello; leave out the worker, or name another one.",
			quoted(modelID), quoted(k.Name)).WithParam("worker")
	case k.Adapter != "echo" && echo:
		return fault.New(fault.Invalid, "model_and_worker", "The model %s exists in echo workers only and cannot be served by the worker %s; leave out the worker, or name one with the adapter echo.",
			quoted(modelID), quoted(k.Name)).WithParam("worker")
	}
	return nil
}

// checkMachines refuses devices and threads that none of the hives has on which the worker may come to run. The hive looks again.
func (r *spawning) checkMachines(modelID string) error {
	def := r.q.settings().Defaults[r.kind.Name]
	want, threads := r.spec.Devices, cmp.Or(r.spec.Threads, def.Threads)
	if len(want) == 0 {
		want = def.Devices
	}
	var holders []string
	if e := r.q.dir.Load().model(modelID); e != nil {
		holders = e.hives
	}
	var refused error
	for _, h := range r.q.Snapshot().Hives {
		id := r.spec.HiveID
		if h.Inventory == nil || id != "" && id != h.Beat.ID && id != h.Beat.Name || id == "" && len(holders) > 0 && !slices.Contains(holders, h.Beat.ID) {
			continue
		}
		have, open := h.Inventory.Devices, r.kind.Source != ""
		if e := engineOn(h, r.kind.Source); e != nil {
			have, open = device.Runs(have, e.Devices), false
		}
		refused = device.Check(h.Beat.Name, have, want, open)
		if refused == nil {
			refused = device.CheckThreads(h.Beat.Name, h.Inventory.Devices, threads)
		}
		if refused == nil {
			return nil
		}
	}
	return refused
}

// chooseHive takes the hive that was asked for, or one that holds the model, or, where no such hive takes workers, another one, which fetches
// the model again.
func (r *spawning) chooseHive(modelID string) error {
	e := r.q.dir.Load().model(modelID)
	if e != nil {
		r.model = e.model
	}
	hiveID := r.spec.HiveID
	if hiveID == "" && r.model != nil {
		open := r.q.open()
		if len(open) == 0 {
			return r.unheld(modelID)
		}
		hiveID = open[0]
		i := slices.IndexFunc(open, func(id string) bool { return slices.Contains(e.hives, id) })
		if r.moved = i < 0; !r.moved {
			hiveID = open[i]
		}
	}
	var err error
	if r.link, r.hive, err = r.q.chosen(hiveID); err != nil {
		return err
	}
	r.spec.HiveID = r.hive.Beat.ID
	return nil
}

// unheld is the fault of a model that no hive holds that takes workers.
func (r *spawning) unheld(modelID string) error {
	return fault.New(fault.Unavailable, "hive_unavailable", "No hive that holds the model %s answers, or they are drained; try again when one does, or take one back with `apiary hive resume`.",
		quoted(orElse(r.name, modelID)))
}

// installEngine puts the worker's engine on the hive if it is not there.
func (r *spawning) installEngine(ctx context.Context) error {
	source := r.kind.Source
	if source == "" || r.kind.Adapter == "echo" || r.engine() != nil {
		return nil
	}
	r.n.Info("engine", "the engine %s is not on %s and is installed first", source, r.hive.Beat.Name)
	_, err := forward[contract.Engine](ctx, r.link, contract.ArtifactRef{Operation: contract.OpWorkerInstall, Reference: source}, r.n.Forward)
	if err != nil {
		return err
	}
	r.link.update(ctx)
	if h, ok := r.q.Snapshot().Hive(r.hive.Beat.ID); ok {
		r.hive = h
	}
	return nil
}

// engine returns the newest entry of the hive's worker catalog that serves the worker kind's source.
func (r *spawning) engine() *contract.Engine { return engineOn(r.hive, r.kind.Source) }

func engineOn(h registry.Hive, source string) *contract.Engine {
	if h.Inventory == nil || source == "" {
		return nil
	}
	var found *contract.Engine
	for i := range h.Inventory.Engines {
		e := &h.Inventory.Engines[i]
		if engineIs(source)(*e) && (found == nil || e.AddedAt.After(found.AddedAt)) {
			found = e
		}
	}
	return found
}

// device chooses where the model runs: where it was asked for, or the engine's first accelerator with room, or the processor.
func (r *spawning) device(ctx context.Context) error {
	if len(r.spec.Devices) == 0 {
		r.spec.Devices = slices.Clone(r.q.settings().Defaults[r.kind.Name].Devices)
	}
	if len(r.spec.Devices) == 0 {
		r.spec.Devices = []string{r.bestDevice(ctx)}
	}
	r.slot = registry.Slot{ModelID: r.spec.Model, HiveID: r.hive.Beat.ID, Device: strings.Join(r.spec.Devices, ",")}
	if !r.automatic {
		return nil
	}
	if v := r.q.verdict(r.slot); v.NoFit || v.Reason == contract.ConditionCrashLoop && v.Wait > 0 {
		return pastFault(r.spec.Model, r.slot, v)
	}
	return nil
}

func (r *spawning) bestDevice(ctx context.Context) string {
	const processor = "cpu0"
	e := r.engine()
	if r.kind.Adapter == "echo" || r.model == nil || e == nil {
		return processor
	}
	need := r.model.SizeBytes + r.model.SizeBytes/5 + deviceMargin
	for _, d := range r.accelerators(ctx, e) {
		slot := registry.Slot{ModelID: r.spec.Model, HiveID: r.hive.Beat.ID, Device: d.ID}
		switch free := d.MemoryFree; {
		case r.automatic && r.q.verdict(slot).NoFit:
			r.n.Info("place", "not on %s: earlier workers of this model ran out of memory there", d.ID)
		case free < need:
			r.n.Info("place", "not on %s: about %s are needed and %s are free", d.ID, need, free)
		default:
			r.n.Info("place", "on %s (%s): about %s are needed and %s are free", d.ID, d.Name, need, free)
			return d.ID
		}
	}
	r.n.Info("place", "on %s: the engine lists no accelerator with room for the model", processor)
	return processor
}

// accelerators lists the engine's accelerators with the memory that is free now: the catalog knows what was free when the engine
// was installed.
func (r *spawning) accelerators(ctx context.Context, e *contract.Engine) []contract.Device {
	list := slices.DeleteFunc(slices.Clone(e.Devices), func(d contract.Device) bool { return d.Kind == "cpu" || d.Kind == "" })
	if len(list) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	fresh, err := forward[[]contract.Device](ctx, r.link, operation{contract.OpDeviceList}, nil)
	if err != nil {
		r.n.Warn("place", "the free memory of the devices is not known: %v", err)
	}
	for i := range list {
		for _, d := range fresh {
			if d.ID == list[i].ID {
				list[i].MemoryFree = d.MemoryFree
			}
		}
	}
	return list
}
