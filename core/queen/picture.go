package queen

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/device"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

// picture is all that a queen knows that placement depends on. Turning it into an Input reads nothing else.
type picture struct {
	now     time.Duration
	queens  []string
	snap    *registry.Snapshot
	dir     *directory
	wishes  []*wish
	removed []string
	drained map[string]bool     // hives
	pending map[string]pending  // workers that were begun, by their ids
	ending  map[string]bool     // workers that are being ended
	used    map[string]usage    // workers
	fresh   map[string]measured // devices, by hive
	verdict func(registry.Slot) registry.Verdict
	// begun says with which context a worker was started; 0: not known.
	begun    func(workerID string) int
	waiting  map[string]int // requests that wait because nobody serves, by deployment
	pressure map[string]placement.Pressure
	inFlight func(workerID string) int
	reserve  contract.Bytes // of hives that do not say theirs
	idleTTL  time.Duration  // of workers that requests started; 0: for ever
	peaks    []placement.Peak
	params   placement.Params
}

// pending is a worker that was decided on and may not have beaten yet.
type pending struct {
	action   placement.Action
	model    string // Deployment.Model
	engine   string
	spec     string
	onDemand bool
	jobID    string
	fetching bool
	progress float64
}

// usage is when a worker was last seen to work.
type usage struct {
	at       time.Duration
	progress uint64
}

// measured is a hive's list of devices with what was free.
type measured struct {
	devices []contract.Device
	at      time.Duration
}

// modelOf returns the id of what a deployment serves: pinned, or its source while nobody has fetched it.
func (d *directory) modelOf(w *wish) string {
	if strings.HasPrefix(w.Source, echoScheme) {
		return w.Source
	}
	for _, name := range []string{w.Source, w.Model} {
		if ids := d.names[name]; len(ids) > 0 {
			return ids[0]
		}
	}
	return w.Source
}

// input is what placement is asked with.
func (p *picture) input() placement.Input {
	in := placement.Input{Now: p.now, Panic: p.snap.Panic, Queens: p.queens, Removed: p.removed, Peaks: p.peaks, Params: p.params}
	for i := range p.snap.Hives {
		in.Hives = append(in.Hives, p.hive(&p.snap.Hives[i]))
	}
	models := map[string]bool{}
	add := func(id, name string) {
		if !models[id] {
			models[id] = true
			in.Models = append(in.Models, p.model(id, name))
		}
	}
	for _, w := range p.wishes {
		id := p.dir.modelOf(w)
		add(id, w.Model)
		in.Deployments = append(in.Deployments, p.deployment(w, id))
	}
	demanded := map[string]bool{}
	for i := range p.snap.Workers {
		w, onDemand := p.worker(&p.snap.Workers[i])
		add(w.Model, p.nameOf(w.Model))
		if onDemand && !demanded[w.Deployment] {
			demanded[w.Deployment] = true
			in.Deployments = append(in.Deployments, p.demanded(w.Deployment))
		}
		in.Workers = append(in.Workers, w)
	}
	for id, b := range p.pending {
		if _, beats := p.snap.Worker(id); beats {
			continue
		}
		a := b.action
		add(b.model, p.nameOf(b.model))
		if b.onDemand && !demanded[a.Deployment] {
			demanded[a.Deployment] = true
			in.Deployments = append(in.Deployments, p.demanded(a.Deployment))
		}
		in.Workers = append(in.Workers, placement.Worker{ID: id, Deployment: a.Deployment, Replica: a.Replica, Generation: a.Generation, Model: b.model, Engine: b.engine,
			Hive: a.Place.Hive, Devices: []string{a.Place.Device}, Spec: b.spec, Context: a.Context, Slots: a.Slots, State: placement.StateStarting, Memory: a.Need})
	}
	in.Past = p.past(models)
	return in
}

// nameOf is a name for a model as people know it.
func (p *picture) nameOf(id string) string {
	if e := p.dir.model(id); e != nil && len(e.names) > 0 {
		return e.names[0]
	}
	return id
}

func (p *picture) model(id, name string) placement.Model {
	m := placement.Model{ID: id, Name: name}
	e := p.dir.model(id)
	if e == nil || e.model == nil {
		return m
	}
	m.Variant, m.Bytes, m.MaxContext = e.model.Quantization, e.model.SizeBytes, e.model.ContextLength
	m.Estimate = placement.EstimateOf(e.model.SizeBytes, e.model.CachePerToken)
	// Other quantisations of the model that are in a catalog can be offered in its place.
	family, _, _ := strings.Cut(e.source, "@")
	family = familyOf(family)
	for _, o := range p.dir.entries {
		if o.model != nil && o.id != id && o.model.Quantization != "" && o.model.Quantization != m.Variant && familyOf(o.source) == family {
			m.Variants = append(m.Variants, placement.Variant{Name: o.model.Quantization, Estimate: placement.EstimateOf(o.model.SizeBytes, o.model.CachePerToken)})
		}
	}
	return m
}

// familyOf is a reference without what chooses one of several files: hf:ORG/REPO of hf:ORG/REPO:Q4_K_M.
func familyOf(reference string) string {
	scheme, rest, ok := strings.Cut(reference, ":")
	if !ok {
		return reference
	}
	rest, _, _ = strings.Cut(rest, ":")
	rest, _, _ = strings.Cut(rest, "@")
	return scheme + ":" + rest
}

// deployment is a wish as placement reads it.
func (p *picture) deployment(w *wish, model string) placement.Deployment {
	return placement.Deployment{Name: w.Name, Model: model, Worker: w.Worker.Name, Engine: w.Worker.Source, Spec: specText(w.spec),
		Min: w.Replicas.Min, Max: w.Replicas.Max, PerGPU: w.Replicas.Per == contract.PerGPU, Context: w.Context, Slots: w.Slots,
		IdleTTL: time.Duration(w.IdleTTLSeconds) * time.Second, Pinned: len(w.Pin) > 0, Priority: w.Priority, Spread: w.Place.Spread,
		Waiting: p.waiting[w.Name], Pressure: p.pressure[w.Name], Judge: p.opinions(w.judge, w.Worker.Source)}
}

// demanded is the deployment of the workers that requests for a model started. Nothing is ever added to it by a plan: requests do that.
func (p *picture) demanded(model string) placement.Deployment {
	most := 1
	for i := range p.snap.Workers {
		if name, _, onDemand := replicaOf(p.snap.Workers[i].Info.SpawnKey); onDemand && name == model {
			most++
		}
	}
	return placement.Deployment{Name: model, Model: model, Max: most, IdleTTL: p.idleTTL, Waiting: p.waiting[model]}
}

// hive describes a hive with its devices.
func (p *picture) hive(h *registry.Hive) placement.Hive {
	out := placement.Hive{ID: h.Beat.ID, Name: cmp.Or(h.Beat.Name, h.Beat.ID), Liveness: h.Liveness, BeatAt: h.BeatAt, Drained: p.drained[h.Beat.ID], Holds: map[string]bool{}}
	if h.Inventory == nil {
		return out
	}
	out.Labels = h.Inventory.Labels
	for i := range h.Inventory.Models {
		out.Holds[h.Inventory.Models[i].ID] = true
	}
	for _, w := range p.wishes {
		if engineOn(*h, w.Worker.Source) != nil {
			out.Holds[w.Worker.Source] = true
		}
	}
	reserve := p.reserve
	if own := h.Inventory.MemoryReserve; own != nil {
		reserve = *own
	}
	devices := devicesOf(h.Inventory)
	shared := slices.ContainsFunc(devices, func(d contract.Device) bool { return d.Kind == "metal" }) // built into the processor
	var processor placement.Device
	for _, d := range devices {
		v := placement.Device{ID: d.ID, Kind: d.Kind, Name: d.Name, MemoryTotal: d.MemoryTotal}
		switch {
		case d.Kind == "cpu":
			v.MemoryFree, v.FreeAt, v.Reserve, v.Pool = h.Beat.MemoryFree, max(h.BeatAt, 1), reserve, "system"
			if v.MemoryFree == 0 {
				v.FreeAt = 0
			}
			processor = v
		default:
			for _, f := range p.fresh[h.Beat.ID].devices {
				if f.ID == d.ID && f.MemoryTotal > 0 {
					v.MemoryTotal, v.MemoryFree, v.FreeAt = f.MemoryTotal, f.MemoryFree, max(p.fresh[h.Beat.ID].at, 1)
				}
			}
		}
		out.Devices = append(out.Devices, v)
	}
	for i := range out.Devices {
		if v := &out.Devices[i]; shared && v.Kind == "metal" && processor.ID != "" {
			v.MemoryTotal, v.MemoryFree, v.FreeAt, v.Reserve, v.Pool = processor.MemoryTotal, processor.MemoryFree, processor.FreeAt, processor.Reserve, processor.Pool
		}
	}
	return out
}

// devicesOf lists what the system of a hive shows and what its engines find.
func devicesOf(inv *contract.Inventory) []contract.Device {
	var found []contract.Device
	for i := range inv.Engines {
		found = append(found, inv.Engines[i].Devices...)
	}
	if len(found) == 0 {
		return inv.Devices
	}
	return device.Merge(inv.Devices, found)
}

// opinions asks a deployment's rules about devices, and whether the engine runs there.
func (p *picture) opinions(j *config.Judge, engine string) func(*placement.Hive, *placement.Device) placement.Opinion {
	return func(h *placement.Hive, d *placement.Device) placement.Opinion {
		rh, ok := p.snap.Hive(h.ID)
		if !ok || rh.Inventory == nil {
			return placement.Opinion{Excluded: "the hive has not said yet what it has"}
		}
		devices := devicesOf(rh.Inventory)
		i := slices.IndexFunc(devices, func(o contract.Device) bool { return o.ID == d.ID })
		if i < 0 {
			return placement.Opinion{Excluded: "the device is not there any more"}
		}
		found := devices[i]
		found.MemoryTotal, found.MemoryFree = d.MemoryTotal, d.MemoryFree
		if e := engineOn(rh, engine); e != nil && !slices.ContainsFunc(device.Runs(rh.Inventory.Devices, e.Devices), func(o contract.Device) bool { return o.ID == d.ID }) {
			return placement.Opinion{Excluded: fmt.Sprintf("the engine %s does not run on it", e.Name)}
		} else if engine == "" && d.Kind != "cpu" {
			return placement.Opinion{Excluded: "its workers have no engine that runs on it"}
		}
		if j == nil {
			return placement.Opinion{}
		}
		at := config.NewPlaceDevice(h.Name, *rh.Inventory, found)
		if ok, why := j.Allows(at); !ok {
			return placement.Opinion{Excluded: why}
		}
		prefers, _ := j.Prefers(at)
		return placement.Opinion{Prefer: prefers}
	}
}

// worker is a worker of the registry as placement reads it.
func (p *picture) worker(w *registry.Worker) (out placement.Worker, onDemand bool) {
	i := &w.Info
	b, begun := p.pending[i.ID]
	out = placement.Worker{ID: i.ID, Model: i.ModelID, Hive: i.HiveID, Devices: splitDevices(i.Device), Context: i.ContextLength, Slots: i.Slots,
		ReadyAt: w.ReadyAt, LastUsed: p.used[i.ID].at, Busy: max(i.SlotsBusy, p.inFlight(i.ID)-i.QueueDepth), Queue: i.QueueDepth, State: stateOf(w, p.ending[i.ID])}
	out.Deployment, out.Replica, onDemand = replicaOf(i.SpawnKey)
	out.Generation, out.Spec = readGeneration(i.Generation)
	if i.SpawnKey == "" && begun { // it ended before its first beat
		out.Deployment, out.Replica, out.Generation, out.Spec, onDemand = b.action.Deployment, b.action.Replica, b.action.Generation, b.spec, b.onDemand
	}
	if begun {
		out.Memory, out.Engine = b.action.Need, b.engine
	}
	if c := p.begun(i.ID); c > 0 {
		out.Context = c
	}
	for _, d := range p.wishes {
		if d.Name == out.Deployment {
			out.Engine = d.Worker.Source
		}
	}
	onProcessor := !slices.ContainsFunc(out.Devices, func(id string) bool { return !strings.HasPrefix(id, "cpu") })
	if onProcessor && (begun || p.dir.model(i.ModelID) == nil) {
		out.Memory = max(out.Memory, i.MemoryBytes)
	} else if len(out.Devices) == 1 {
		out.Memory = max(out.Memory, i.DeviceMemoryBytes)
	}
	if onDemand && (out.State == placement.StateFailed || out.State == placement.StateLost) {
		out.Deployment, onDemand = "", false // the registry asks for another one
	}
	return out, onDemand
}

func stateOf(w *registry.Worker, ending bool) placement.State {
	switch {
	case w.Exit != nil:
		return placement.StateFailed
	case w.Liveness == contract.LivenessLost:
		return placement.StateLost
	case ending || w.Draining || w.Condition == contract.ConditionUnkillable || w.Info.Status == contract.StatusStopped:
		return placement.StateDraining
	case w.Liveness == contract.LivenessDown:
		return placement.StateDown
	case w.Info.Status == contract.StatusReady || w.Info.Status == contract.StatusBusy:
		return placement.StateReady
	}
	return placement.StateStarting
}

// past is what the registry remembers of workers of the models, where it matters.
func (p *picture) past(models map[string]bool) (out []placement.Past) {
	for i := range p.snap.Hives {
		h := &p.snap.Hives[i]
		if h.Inventory == nil {
			continue
		}
		for _, d := range devicesOf(h.Inventory) {
			for id := range models {
				v := p.verdict(registry.Slot{ModelID: id, HiveID: h.Beat.ID, Device: d.ID})
				if v.Allowed && v.OOMs == 0 {
					continue
				}
				past := placement.Past{Model: id, Place: placement.Place{Hive: h.Beat.ID, Device: d.ID}, Crashed: v.Exit != nil,
					Loop: v.Reason == contract.ConditionCrashLoop, NoFit: v.NoFit, OOMs: v.OOMs, Reason: v.Reason}
				if v.Wait > 0 {
					past.Until = p.now + v.Wait
				}
				if v.Exit != nil {
					past.Context = p.begun(v.Exit.WorkerID)
				}
				out = append(out, past)
			}
		}
	}
	return out
}
