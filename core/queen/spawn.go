package queen

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/registry"
)

const (
	spawnAttempts = 3                // of a spawn whose answer was lost: the key makes it the same spawn
	undoBound     = 30 * time.Second // to end the worker of a spawn that was given up: a hive kills within 15 s
	keyKept       = 10 * time.Minute
	deviceMargin  = 512 * contract.MiB // beside 1.2 × the model, for its cache and buffers
)

// pendingKey is a spawn key that was given out.
type pendingKey struct {
	workerID string
	at       time.Duration
}

// spawning is one run of WorkerSpawn.
type spawning struct {
	q         *Queen
	n         *job.Narrator
	spec      contract.WorkerSpawn
	automatic bool // nobody asked for this very spawn: failures of the past count, and nothing is fetched
	begun     bool // the registry has been told

	link  *link
	hive  registry.Hive
	kind  contract.WorkerKind
	model *contract.Model // nil: the worker needs no catalog entry
	slot  registry.Slot
}

// run starts a worker and, when the spec says so, waits until it is ready. When ctx is cancelled or the worker does not become
// ready, no process is left.
func (r *spawning) run(ctx context.Context) (contract.WorkerSpawned, error) {
	var none contract.WorkerSpawned
	if err := r.choose(ctx); err != nil {
		return none, err
	}
	if !r.automatic {
		// A request that comes while this job installs or loads waits for this worker instead of having one started.
		if d := r.q.tryAcquire(r.spec.Model, ""); d != nil {
			defer r.q.release(d)
		}
	}
	if err := r.installEngine(ctx); err != nil {
		return none, err
	}
	if err := r.device(); err != nil {
		return none, err
	}
	out, err := r.start(ctx)
	if err != nil || !r.spec.Wait {
		return out, err
	}
	if err := r.await(ctx, out); err != nil {
		return none, err
	}
	r.n.Info("ready", "worker %s is ready at %s on %s", out.WorkerID, r.spec.Devices[0], r.hive.Beat.Name)
	return out, nil
}

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
	if len(t.ModelIDs) == 0 {
		ref := orElse(q.dir.Load().sources[asked], asked)
		if r.automatic {
			return notFound(asked)
		}
		if strings.HasPrefix(ref, echoScheme) || !strings.Contains(ref, ":") {
			return notFound(asked)
		}
		r.n.Info("fetch", "the model %s is not in the catalog and is fetched first", ref)
		m, err := q.download(ctx, contract.ArtifactRef{Reference: ref, HiveID: r.spec.HiveID}, r.n.Forward)
		if err != nil {
			return err
		}
		t.ModelIDs = []string{m.ID}
	}
	id := t.ModelIDs[0]
	if r.kind, err = r.chooseKind(id); err != nil {
		return err
	}
	r.spec.Model, r.spec.Worker = id, r.kind
	if id != asked {
		r.n.Info("resolve", "%s is %s", asked, id)
	}
	return r.chooseHive(id)
}

func (r *spawning) chooseKind(modelID string) (contract.WorkerKind, error) {
	if want := r.spec.Worker; want.Name != "" {
		for _, k := range r.q.o.Workers {
			if k.Name == want.Name {
				return k, nil
			}
		}
		if want.Adapter != "" {
			return want, nil
		}
		return want, fault.New(fault.NotFound, "worker_kind_not_found", "The configuration has no worker block %s.", quoted(want.Name)).WithParam("worker")
	}
	if strings.HasPrefix(modelID, echoScheme) {
		if k, ok := r.q.kindOf("echo"); ok {
			return k, nil
		}
	}
	for _, k := range r.q.o.Workers {
		if k.Adapter != "echo" {
			return k, nil
		}
	}
	return contract.WorkerKind{}, fault.New(fault.Unavailable, "no_worker_kind", "The configuration has no worker block that can serve %s; add one.", quoted(modelID))
}

// chooseHive takes the hive that was asked for, or one that holds the model.
func (r *spawning) chooseHive(modelID string) error {
	e := r.q.dir.Load().model(modelID)
	if e != nil {
		r.model = e.model
	}
	hiveID := r.spec.HiveID
	if hiveID == "" && r.model != nil {
		for _, l := range r.q.alive() {
			if id, _ := l.known(); slices.Contains(e.hives, id) {
				hiveID = id
				break
			}
		}
		if hiveID == "" {
			return fault.New(fault.Unavailable, "hive_unavailable", "No hive that holds the model %s answers; try again when one does.", quoted(modelID))
		}
	}
	var err error
	if r.link, r.hive, err = r.q.chosen(hiveID); err != nil {
		return err
	}
	r.spec.HiveID = r.hive.Beat.ID
	return nil
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
func (r *spawning) engine() *contract.Engine {
	if r.hive.Inventory == nil {
		return nil
	}
	var found *contract.Engine
	for i := range r.hive.Inventory.Engines {
		e := &r.hive.Inventory.Engines[i]
		if (e.ID == r.kind.Source || slices.Contains(e.References, r.kind.Source)) && (found == nil || e.AddedAt.After(found.AddedAt)) {
			found = e
		}
	}
	return found
}

// device chooses where the model runs: where it was asked for, or the engine's first accelerator with room, or the processor.
func (r *spawning) device() error {
	if len(r.spec.Devices) == 0 {
		r.spec.Devices = slices.Clone(r.q.o.Defaults[r.kind.Name].Devices)
	}
	if len(r.spec.Devices) == 0 {
		r.spec.Devices = []string{r.bestDevice()}
	}
	r.slot = registry.Slot{ModelID: r.spec.Model, HiveID: r.hive.Beat.ID, Device: strings.Join(r.spec.Devices, ",")}
	if !r.automatic {
		return nil
	}
	if v := r.q.verdict(r.slot); v.Reason == "does_not_fit" || v.Reason == contract.ConditionCrashLoop && v.Wait > 0 {
		return pastFault(r.spec.Model, r.slot, v)
	}
	return nil
}

func (r *spawning) bestDevice() string {
	const processor = "cpu0"
	e := r.engine()
	if r.kind.Adapter == "echo" || r.model == nil || e == nil {
		return processor
	}
	need := r.model.SizeBytes + r.model.SizeBytes/5 + deviceMargin
	for _, d := range e.Devices {
		if d.Kind == "cpu" || d.Kind == "" {
			continue
		}
		slot := registry.Slot{ModelID: r.spec.Model, HiveID: r.hive.Beat.ID, Device: d.ID}
		switch free := d.MemoryFree; {
		case r.automatic && r.q.verdict(slot).Reason == "does_not_fit":
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

func (q *Queen) verdict(slot registry.Slot) registry.Verdict {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.machine.Verdict(q.now(), slot)
}

// start has the hive start the worker.
func (r *spawning) start(ctx context.Context) (contract.WorkerSpawned, error) {
	q := r.q
	spec := r.spec
	spec.Operation, spec.Wait = contract.OpWorkerSpawn, false
	if spec.WorkerID == "" {
		var raw [4]byte
		_, _ = rand.Read(raw[:])
		spec.WorkerID = r.kind.Name + "-" + hex.EncodeToString(raw[:])
	}
	if len(spec.QueenURLs) == 0 {
		spec.QueenURLs = []string{q.o.URL}
	}
	def := q.o.Defaults[r.kind.Name]
	spec.Context, spec.Slots, spec.Threads = cmp.Or(spec.Context, def.Context), cmp.Or(spec.Slots, def.Slots), cmp.Or(spec.Threads, def.Threads)
	if len(spec.Env) == 0 {
		spec.Env = maps.Clone(def.Env)
	}
	recipe := spec
	recipe.WorkerID, recipe.SpawnKey, recipe.Generation, recipe.QueenURLs = "", "", 0, nil
	running, err := r.link.processes(ctx)
	if err != nil {
		return contract.WorkerSpawned{}, err
	}
	spec.SpawnKey, spec.Generation = q.begin(r.slot, spec, recipe, running)
	r.begun = true
	q.step(registry.SpawnBegan{Slot: r.slot, WorkerID: spec.WorkerID, Automatic: r.automatic})
	r.n.Info("spawn", "starting worker %s for %s with %s on %s of %s", spec.WorkerID, spec.Model, r.kind.Name, r.slot.Device, r.hive.Beat.Name)

	var out contract.WorkerSpawned
	for attempt := 1; ; attempt++ {
		out, err = forward[contract.WorkerSpawned](ctx, r.link, spec, r.n.Forward)
		if err == nil || attempt == spawnAttempts || !lost(err) || !sleep(ctx, time.Duration(attempt)*time.Second) {
			break
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			r.undo(ctx, spec.WorkerID, contract.Identity{})
			return out, ctx.Err()
		}
		q.step(registry.SpawnFailed{WorkerID: spec.WorkerID, Reason: fault.As(err).Code, Jitter: jitter()})
		return out, err
	}
	if out.Existing && out.WorkerID != spec.WorkerID {
		r.n.Info("spawn", "worker %s with the same key %s is running already", out.WorkerID, spec.SpawnKey)
		q.step(registry.SpawnIs{WorkerID: spec.WorkerID, RunningID: out.WorkerID})
	}
	return out, nil
}

// lost reports whether err is of the way to a hive, so that the hive may or may not have done what was asked.
func lost(err error) bool {
	return slices.Contains([]string{"agent_unreachable", "stream_lost", "job_lost", "timeout"}, fault.As(err).Code)
}

// begin mints the spawn key and generation of a worker. running are the processes of its hive: some may not have beaten yet.
func (q *Queen) begin(slot registry.Slot, spec, recipe contract.WorkerSpawn, running []contract.Process) (key string, generation int64) {
	s := q.Snapshot()
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	used := map[string]bool{}
	generation = max(time.Now().UnixMilli(), q.lastGen+1)
	for i := range s.Workers {
		w := &s.Workers[i]
		if w.Exit == nil && w.Liveness != contract.LivenessLost {
			used[w.Info.SpawnKey] = true
		}
		generation = max(generation, w.Info.Generation+1)
	}
	for _, p := range running {
		used[p.SpawnKey] = used[p.SpawnKey] || !p.Zombie
	}
	for k, p := range q.keys {
		_, beats := s.Worker(p.workerID)
		_, ended := q.exits[p.workerID]
		if beats || ended || now-p.at > keyKept {
			delete(q.keys, k)
		} else {
			used[k] = true
		}
	}
	key = spec.SpawnKey
	for i := range s.Workers {
		// A key that somebody names means the worker that runs under it, if one does.
		if w := &s.Workers[i]; key != "" && w.Info.SpawnKey == key && used[key] {
			generation = w.Info.Generation
			break
		}
	}
	for n := 0; key == ""; n++ {
		if k := spec.Model + "#" + strconv.Itoa(n); !used[k] {
			key = k
		}
	}
	q.keys[key] = pendingKey{workerID: spec.WorkerID, at: now}
	q.lastGen, q.slots[spec.Model], q.recipes[slot] = generation, slot, recipe
	return key, generation
}

// await waits for the worker to take requests. Its end fails the job at once; so does the passing of its time, which every
// progress starts anew.
func (r *spawning) await(ctx context.Context, out contract.WorkerSpawned) error {
	q := r.q
	budget := q.o.Ready
	if r.model != nil {
		budget += time.Duration(float64(q.o.ReadyGiB) * float64(r.model.SizeBytes) / float64(contract.GiB))
	}
	end := time.NewTimer(q.o.ReadyMax)
	defer end.Stop()
	quiet := time.NewTimer(budget)
	defer quiet.Stop()
	r.n.Info("load", "loading the model")
	var progress uint64
	var loaded float64
	for {
		changed := q.Changed()
		if x, ok := q.exit(out.WorkerID); ok {
			return r.failed(x)
		}
		if w, ok := q.Snapshot().Worker(out.WorkerID); ok && w.Exit == nil {
			if w.Info.Status == contract.StatusReady || w.Info.Status == contract.StatusBusy {
				return nil
			}
			if w.Info.Progress != progress || w.Info.LoadProgress != loaded {
				progress, loaded = w.Info.Progress, w.Info.LoadProgress
				quiet.Reset(budget)
				r.n.Progress("load", "loading the model", contract.Progress{Done: uint64(100 * loaded), Total: 100, Unit: "percent"})
			}
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
			r.undo(ctx, out.WorkerID, out.Identity)
			return ctx.Err()
		case <-quiet.C:
		case <-end.C:
		}
		q.step(registry.SpawnFailed{WorkerID: out.WorkerID, Reason: "start_timeout", Jitter: jitter()})
		r.undo(ctx, out.WorkerID, out.Identity)
		return fault.New(fault.Unavailable, "start_timeout", "Worker %s did not become ready: it made no progress for %s and was ended; `apiary worker logs %s` shows what it did.",
			out.WorkerID, budget.Round(time.Second), out.WorkerID)
	}
}

// failed narrates the last lines of a worker that ended while it loaded, and says so without them.
func (r *spawning) failed(x contract.WorkerExit) error {
	for _, line := range x.LogTail {
		r.n.Warn("log", "%s", line)
	}
	v := r.q.verdict(r.slot)
	if v.Exit == nil {
		v.Exit = &x
	}
	switch {
	case v.Reason == "does_not_fit":
	case x.OOM:
		v.Reason = contract.ConditionOOM
	default:
		v.Reason = contract.ConditionStartFailed
	}
	return pastFault(r.spec.Model, r.slot, v)
}

// undo ends the worker of a spawn that is given up. It works although ctx is over. Without an identity it looks for the process.
func (r *spawning) undo(ctx context.Context, workerID string, id contract.Identity) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoBound)
	defer cancel()
	r.q.step(registry.Draining{WorkerID: workerID, On: true}) // its end is no crash
	defer r.q.step(registry.Deleted{WorkerID: workerID})
	if id.PID == 0 {
		list, err := r.link.processes(ctx)
		if err != nil {
			return
		}
		for _, p := range list {
			if p.WorkerID == workerID {
				id = p.Identity
			}
		}
		if id.PID == 0 {
			return
		}
	}
	_, err := forward[contract.WorkerDeleted](ctx, r.link, contract.WorkerDelete{Operation: contract.OpWorkerDelete, WorkerID: workerID, Identity: &id}, nil)
	if err != nil {
		r.n.Warn("undo", "worker %s could not be ended: %v", workerID, err)
	}
}

// noteExit keeps how a worker ended, for those who wait for it to become ready.
func (q *Queen) noteExit(x contract.WorkerExit) {
	const kept = 1000
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.exits[x.WorkerID]; !ok {
		q.exitOrder = append(q.exitOrder, x.WorkerID)
		if len(q.exitOrder) > kept {
			delete(q.exits, q.exitOrder[0])
			q.exitOrder = slices.Delete(q.exitOrder, 0, 1)
		}
	}
	q.exits[x.WorkerID] = x
}

func (q *Queen) exit(workerID string) (contract.WorkerExit, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	x, ok := q.exits[workerID]
	return x, ok
}

// forward runs an operation on a hive; say, which may be nil, hears its story.
func forward[T any](ctx context.Context, l *link, op any, say func(contract.Narration)) (T, error) {
	_, api := l.known()
	if api == nil {
		var none T
		return none, errors.New("the hive is not known yet")
	}
	return client.Run[T](ctx, api, op, say)
}

func splitDevices(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}
