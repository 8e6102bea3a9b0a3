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
	"github.com/apiary-dev/apiary/core/run"
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
	automatic bool   // nobody asked for this very spawn: failures of the past count, and nothing is fetched
	begun     bool   // the registry has been told
	existing  bool   // the worker is not this spawn's, and is never ended by it
	name      string // of the model, as the request has it
	demand    bool   // a request wants it: it is ended when nobody uses it, or when others need its memory more
	moved     bool   // the hive does not have the model, because none of those that have it takes workers
	from      string // the hive that is asked first for a model that has to be fetched; empty: any

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
	devices := r.spec.Devices
	if err := r.choose(ctx); err != nil {
		return none, err
	}
	if id := r.spec.WorkerID; r.demand && id != "" {
		defer func() { r.q.forget(id, pending{}) }()
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
	if err := r.device(ctx); err != nil {
		return none, err
	}
	found, err := r.inherit(ctx, devices)
	if err != nil {
		return none, err
	}
	var out contract.WorkerSpawned
	if found != nil {
		out = *found
	} else if out, err = r.start(ctx); err != nil {
		return out, err
	}
	if !r.spec.Wait {
		return out, nil
	}
	if err := r.await(ctx, out); err != nil {
		return none, err
	}
	r.n.Info("ready", "worker %s is ready at %s on %s", out.WorkerID, r.spec.Devices[0], r.hive.Beat.Name)
	return out, nil
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
		spec.WorkerID = mintID(r.kind)
	}
	if len(spec.QueenURLs) == 0 {
		spec.QueenURLs = q.queens()
	}
	def := q.settings().Defaults[r.kind.Name]
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
	if r.demand && spec.SpawnKey == "" {
		q.mu.Lock()
		q.demanded[r.slot] = true
		q.mu.Unlock()
	}
	if spec.SpawnKey, spec.Generation, err = q.begin(r.slot, spec, recipe, r.automatic, running); err != nil {
		return contract.WorkerSpawned{}, err
	}
	r.begun = true
	return r.ask(ctx, spec)
}

// ask has the hive start a worker that the registry was told of. What comes of it the registry is told too.
func (r *spawning) ask(ctx context.Context, spec contract.WorkerSpawn) (contract.WorkerSpawned, error) {
	q := r.q
	spec.Peers = q.peers(spec.Model, r.hive, r.from)
	r.n.Info("spawn", "starting worker %s for %s with %s on %s of %s", spec.WorkerID, spec.Model, r.kind.Name, r.slot.Device, r.hive.Beat.Name)
	var out contract.WorkerSpawned
	var err error
	for attempt := 1; ; attempt++ {
		out, err = forward[contract.WorkerSpawned](ctx, r.link, spec, r.n.Forward)
		if err == nil || attempt == spawnAttempts || !lost(err) || run.Sleep(ctx, time.Duration(attempt)*time.Second) != nil {
			break
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			r.undo(ctx, spec.WorkerID, contract.Identity{})
			return out, ctx.Err()
		}
		q.step(registry.SpawnFailed{WorkerID: spec.WorkerID, Slot: r.slot, Reason: fault.As(err).Code, Jitter: jitter()})
		return out, err
	}
	if len(spec.Peers) > 0 {
		r.link.update(ctx) // it has the model now
	}
	if out.Existing && out.WorkerID != spec.WorkerID {
		r.n.Info("spawn", "worker %s with the same key %s is running already", out.WorkerID, spec.SpawnKey)
		q.step(registry.SpawnIs{WorkerID: spec.WorkerID, RunningID: out.WorkerID})
	}
	return out, nil
}

// mintID makes an id for a worker of a kind.
func mintID(k contract.WorkerKind) string {
	var raw [4]byte
	_, _ = rand.Read(raw[:])
	return k.Name + "-" + hex.EncodeToString(raw[:])
}

// lost reports whether err is of the way to a hive, so that the hive may or may not have done what was asked.
func lost(err error) bool {
	return slices.Contains([]string{"agent_unreachable", "stream_lost", "job_lost", "timeout"}, fault.As(err).Code)
}

// begin tells the registry of a worker that is about to be started, and mints its spawn key and generation. running are the
// processes of its hive: some may not have beaten yet. The id of a worker that runs is refused, unless it is the very same spawn.
func (q *Queen) begin(slot registry.Slot, spec, recipe contract.WorkerSpawn, automatic bool, running []contract.Process) (key string, generation int64, err error) {
	s := q.Snapshot()
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	key = spec.SpawnKey
	taken := q.machine.Taken(spec.WorkerID)
	if w, ok := s.Worker(spec.WorkerID); ok && key != "" && w.Info.SpawnKey == key {
		taken = false
	}
	for _, p := range running {
		taken = taken || p.WorkerID == spec.WorkerID && !p.Zombie && (key == "" || p.SpawnKey != key)
	}
	if taken {
		return "", 0, fault.New(fault.Conflict, "worker_exists", "A worker %s runs already; choose another id, or end it first with `apiary worker delete %s`.",
			spec.WorkerID, spec.WorkerID).WithParam("worker_id")
	}
	used := map[string]bool{}
	for i := range s.Workers {
		if w := &s.Workers[i]; w.Exit == nil && w.Liveness != contract.LivenessLost {
			used[w.Info.SpawnKey] = true
		}
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
	prefix := ""
	if automatic && q.demanded[slot] {
		prefix = demandPrefix
	}
	for n := 0; key == ""; n++ {
		if k := prefix + spec.Model + "#" + strconv.Itoa(n); !used[k] {
			key = k
		}
	}
	if prefix == "" {
		generation = max(time.Now().UnixMilli(), q.lastGen+1)
		q.lastGen = generation
	} else { // two queens that start it at once must mean the same, so that the hive has one process for both; and no spec is in it
		generation = 1
	}
	for i := range s.Workers {
		w := &s.Workers[i]
		if w.Info.SpawnKey != key || w.Info.Generation >= contract.MaxGeneration {
			continue // what other workers say of themselves is of no account
		}
		if used[key] { // somebody named it, and means the worker that runs under it
			generation = w.Info.Generation
			break
		}
		generation = max(generation, w.Info.Generation+1)
	}
	q.keys[key] = pendingKey{workerID: spec.WorkerID, at: now}
	q.slots[spec.Model], q.recipes[slot] = slot, recipe
	if q.young() {
		q.own[spec.WorkerID] = true
	}
	q.machine.Step(now, registry.SpawnBegan{Slot: slot, WorkerID: spec.WorkerID, Automatic: automatic})
	q.stale = true
	return key, generation, nil
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
			if w, ok := q.Snapshot().Worker(out.WorkerID); ok && w.ReadyAt != 0 && w.Exit == nil { // it was ready just in time
				return nil
			}
			if !r.existing {
				r.undo(ctx, out.WorkerID, out.Identity)
			}
			return ctx.Err()
		case <-quiet.C:
		case <-end.C:
		}
		if r.existing {
			return fault.New(fault.Unavailable, "start_timeout", "Worker %s, which was running already, did not become ready: it made no progress for %s; `apiary worker logs %s` shows what it did.",
				out.WorkerID, budget.Round(time.Second), out.WorkerID)
		}
		r.undo(ctx, out.WorkerID, out.Identity)
		q.step(registry.SpawnFailed{WorkerID: out.WorkerID, Slot: r.slot, Reason: "start_timeout", Jitter: jitter()})
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
	case v.NoFit:
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
	r.q.noteDeleted(workerID, true)
	r.q.draining(workerID, true) // its end is no crash
	defer r.q.forgetWorker(workerID)
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
