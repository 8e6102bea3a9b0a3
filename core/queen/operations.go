package queen

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/core/secret"
)

// handler runs an operation with its decoded body.
type handler func(ctx context.Context, n *job.Narrator) (any, error)

// dispatch turns the body of POST /v1/jobs into the work of a job. A body that cannot be meant is refused before there is a job.
func (q *Queen) dispatch(op string, body json.RawMessage) (job.Func, error) {
	var ref contract.ArtifactRef
	var worker contract.WorkerRef
	var spawn contract.WorkerSpawn
	var search contract.ModelSearch
	var keys contract.KeyChange
	var plan contract.PlanRequest
	var explain contract.ExplainRequest
	var drain contract.HiveDrain
	var into any
	var h handler
	switch op {
	case contract.OpStatus:
		h = func(context.Context, *job.Narrator) (any, error) {
			s := q.Snapshot()
			return contract.Status{NodeID: q.o.NodeID, Name: q.o.Name, Version: q.o.Version, Hives: q.hiveViews(s, true),
				Workers: q.workerViews(s), Models: q.Models(), Members: q.members(), Deployments: q.deploymentViews()}, nil
		}
	case contract.OpWorkerList:
		h = func(context.Context, *job.Narrator) (any, error) { return q.workerViews(q.Snapshot()), nil }
	case contract.OpWorkerGet:
		into, h = &worker, func(context.Context, *job.Narrator) (any, error) { return q.getWorker(worker.WorkerID) }
	case contract.OpWorkerDelete:
		into, h = &worker, func(ctx context.Context, n *job.Narrator) (any, error) {
			return q.deleteWorker(ctx, n, worker.WorkerID, worker.Force)
		}
	case contract.OpWorkerLogs:
		into, h = &worker, func(ctx context.Context, _ *job.Narrator) (any, error) { return q.workerLogs(ctx, worker) }
	case contract.OpWorkerSpawn:
		into, h = &spawn, func(ctx context.Context, n *job.Narrator) (any, error) {
			return (&spawning{q: q, n: n, spec: spawn}).run(ctx)
		}
	case contract.OpHiveList:
		h = func(context.Context, *job.Narrator) (any, error) { return q.hiveViews(q.Snapshot(), true), nil }
	case contract.OpHiveGet:
		into, h = &ref, func(context.Context, *job.Narrator) (any, error) { return q.getHive(ref.HiveID) }
	case contract.OpModelList:
		h = func(context.Context, *job.Narrator) (any, error) { return q.Models(), nil }
	case contract.OpModelGet:
		into, h = &ref, func(context.Context, *job.Narrator) (any, error) { return q.getModel(ref.Reference) }
	case contract.OpModelDownload:
		into, h = &ref, func(ctx context.Context, n *job.Narrator) (any, error) { return q.download(ctx, ref, n.Forward) }
	case contract.OpModelSearch:
		into, h = &search, func(ctx context.Context, n *job.Narrator) (any, error) { return q.search(ctx, search, n.Forward) }
	case contract.OpModelDelete:
		into, h = &ref, func(ctx context.Context, n *job.Narrator) (any, error) { return q.deleteModel(ctx, n, ref) }
	case contract.OpWorkerInstall:
		into, h = &ref, func(ctx context.Context, n *job.Narrator) (any, error) { return q.install(ctx, n, ref) }
	case contract.OpWorkerInstalledList:
		into, h = &ref, func(context.Context, *job.Narrator) (any, error) { return q.engines(ref, false) }
	case contract.OpWorkerInstalledGet:
		into, h = &ref, func(context.Context, *job.Narrator) (any, error) { return q.engines(ref, true) }
	case contract.OpWorkerRemove:
		into, h = &ref, func(ctx context.Context, n *job.Narrator) (any, error) { return q.removeEngine(ctx, n, ref) }
	case contract.OpDeviceList:
		into, h = &ref, func(ctx context.Context, n *job.Narrator) (any, error) { return q.devices(ctx, n, ref.HiveID) }
	case contract.OpProcessList:
		into, h = &ref, func(ctx context.Context, n *job.Narrator) (any, error) { return q.processList(ctx, n, ref.HiveID) }
	case contract.OpMemberList:
		h = func(context.Context, *job.Narrator) (any, error) { return q.members(), nil }
	case contract.OpMemberKeys:
		into, h = &keys, func(ctx context.Context, _ *job.Narrator) (any, error) { return q.changeKeys(ctx, keys) }
	case contract.OpPlan:
		into, h = &plan, func(ctx context.Context, _ *job.Narrator) (any, error) { return q.planView(ctx, plan.Deployments) }
	case contract.OpApply:
		into, h = &plan, func(ctx context.Context, n *job.Narrator) (any, error) { return q.apply(ctx, n, plan.Deployments) }
	case contract.OpExplain:
		into, h = &explain, func(ctx context.Context, _ *job.Narrator) (any, error) { return q.explain(ctx, explain.Model) }
	case contract.OpHiveDrain:
		into, h = &drain, func(ctx context.Context, n *job.Narrator) (any, error) { return q.drainHive(ctx, n, drain) }
	default:
		return nil, fault.New(fault.Invalid, "unknown_operation", "There is no operation %s.", quoted(op)).WithParam("operation")
	}
	if into != nil {
		if err := json.Unmarshal(body, into); err != nil {
			e := fault.New(fault.Invalid, "invalid_operation", "The fields of %s have wrong types.", op)
			if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
				e = fault.New(fault.Invalid, "invalid_operation", "The field %s of %s has the wrong type.", quoted(te.Field), op).WithParam(te.Field)
			}
			return nil, e
		}
	}
	if err := check(op, ref, worker, spawn, search); err != nil {
		return nil, err
	}
	if err := checkPlacing(op, plan, explain, drain); err != nil {
		return nil, err
	}
	return job.Func(h), nil
}

// check refuses bodies that lack what their operation is about.
func check(op string, ref contract.ArtifactRef, worker contract.WorkerRef, spawn contract.WorkerSpawn, search contract.ModelSearch) error {
	missing := func(field string) error {
		return fault.New(fault.Invalid, field+"_missing", "%s needs the field %q.", op, field).WithParam(field)
	}
	switch op {
	case contract.OpModelGet, contract.OpModelDownload, contract.OpModelDelete, contract.OpWorkerInstalledGet, contract.OpWorkerRemove:
		if ref.Reference == "" {
			return missing("reference")
		}
	case contract.OpWorkerGet, contract.OpWorkerDelete, contract.OpWorkerLogs:
		if worker.WorkerID == "" {
			return missing("worker_id")
		}
	case contract.OpWorkerSpawn:
		if spawn.Model == "" {
			return missing("model")
		}
		if spawn.WorkerID != "" && !workerID.MatchString(spawn.WorkerID) {
			return fault.New(fault.Invalid, "invalid_worker_id", "A worker id has lower-case letters, digits, dots, dashes and underscores, at most 64.").WithParam("worker_id")
		}
		for i, d := range spawn.Devices {
			if slices.Contains(spawn.Devices[:i], d) {
				return fault.New(fault.Invalid, "invalid_devices", "The device %s is named twice; a worker has each of its devices once.", quoted(d)).WithParam("devices")
			}
		}
		if spawn.Context < 0 || spawn.Slots < 0 || spawn.Threads < 0 {
			return fault.New(fault.Invalid, "invalid_number", "Context, slots and threads must not be negative.").WithParam("context")
		}
		if spawn.Slots > contract.MaxSlots {
			return fault.New(fault.Invalid, "invalid_slots", "A worker can have at most %d slots, and %d were asked for.", contract.MaxSlots, spawn.Slots).WithParam("slots")
		}
	case contract.OpModelSearch:
		if strings.TrimSpace(search.Query) == "" {
			return missing("query")
		}
	case contract.OpHiveGet:
		if ref.HiveID == "" {
			return missing("hive_id")
		}
	}
	for field, s := range map[string]string{"reference": ref.Reference, "model": spawn.Model, "source": spawn.Worker.Source} {
		if contract.HasHidden(s) {
			return fault.New(fault.Invalid, "invalid_reference", "The reference %s is not allowed: it must not hold control or format characters.", quoted(s)).WithParam(field)
		}
	}
	if len(ref.Reference) > maxReference || len(spawn.Model) > maxReference {
		return fault.New(fault.Invalid, "reference_too_long", "A reference has at most %d characters.", maxReference).WithParam("reference")
	}
	return nil
}

func workerNotFound(id string) error {
	return fault.New(fault.NotFound, "worker_not_found", "No worker %s is known; `apiary worker list` shows those that are.", quoted(id)).WithParam("worker_id")
}

func (q *Queen) getWorker(id string) (contract.WorkerView, error) {
	s := q.Snapshot()
	w, ok := s.Worker(id)
	if !ok {
		return contract.WorkerView{}, workerNotFound(id)
	}
	return q.workerView(s, &w), nil
}

func (q *Queen) getHive(id string) (contract.HiveView, error) {
	s := q.Snapshot()
	for i := range s.Hives {
		if h := &s.Hives[i]; h.Beat.ID == id || h.Beat.Name == id {
			return q.hiveView(h, true), nil
		}
	}
	return contract.HiveView{}, fault.New(fault.NotFound, "hive_not_found", "No hive with the id or name %s is known; `apiary hive list` shows those that are.", quoted(id)).WithParam("hive_id")
}

// getModel finds a model by any of its names.
func (q *Queen) getModel(name string) (contract.ModelView, error) {
	for _, m := range q.Models() {
		if m.ID == name || slices.Contains(m.Names, name) {
			return m, nil
		}
	}
	return contract.ModelView{}, notFound(name)
}

// deleteWorker lets a worker finish its requests, unless it is forced, and has its hive end it. A cancelled ctx gives the worker back to routing, as
// long as the hive was not asked.
func (q *Queen) deleteWorker(ctx context.Context, n *job.Narrator, id string, force bool) (contract.WorkerDeleted, error) {
	none := contract.WorkerDeleted{}
	identity, hiveID, known, err := q.findWorker(ctx, id)
	if err != nil {
		return none, err
	}
	if identity.PID == 0 { // listed, but ended already
		q.step(registry.Deleted{WorkerID: id})
		return contract.WorkerDeleted{WorkerID: id, Outcome: "gone"}, nil
	}
	l, h, err := q.hive(hiveID)
	if fault.KindOf(err) == fault.NotFound { // perhaps it has only not reported yet
		if err := q.awaitSettled(ctx); err != nil {
			return none, err
		}
		l, h, err = q.hive(hiveID)
	}
	stray := known && fault.KindOf(err) == fault.NotFound
	if err != nil && !stray {
		return none, err
	}
	if known {
		q.draining(id, true)
		if q.company.announce(ctx) && !force { // what they have sent on its way arrives
			_ = run.Sleep(ctx, arriving)
		}
		if force {
			n.Info("drain", "the open requests of worker %s are not waited for", id)
		} else if err := q.drain(ctx, n, id); err != nil {
			q.draining(id, false)
			return none, err
		}
	}
	if stray {
		n.Warn("forget", "worker %s belongs to no hive that this queen knows, so nothing is ended: it is taken off the list, and is back when it beats again; end it where it was started", id)
		q.forgetWorker(id)
		return contract.WorkerDeleted{WorkerID: id, Outcome: "forgotten"}, nil
	}
	q.noteDeleted(id, true)
	n.Info("kill", "ending worker %s (pid %d) on %s", id, identity.PID, h.Beat.Name)
	out, err := forward[contract.WorkerDeleted](ctx, l, contract.WorkerDelete{Operation: contract.OpWorkerDelete, WorkerID: id, Identity: &identity, Force: force}, n.Forward)
	if err != nil {
		q.noteDeleted(id, false)
		if fault.As(err).Code == contract.ConditionUnkillable {
			q.step(registry.Unkillable{WorkerID: id})
		} else {
			q.draining(id, false)
		}
		return none, err
	}
	q.forgetWorker(id)
	return out, nil
}

// arriving is how long a request may be on its way to a worker that another queen chose before it knew that the worker is drained.
const arriving = 200 * time.Millisecond

// deletedKept is how long a worker's deletion explains the end of its connections.
const deletedKept = time.Minute

func (q *Queen) noteDeleted(id string, on bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for other, at := range q.deleted {
		if now-at > deletedKept {
			delete(q.deleted, other)
		}
	}
	if delete(q.deleted, id); on {
		q.deleted[id] = now
	}
}

// Deleted reports whether a worker was ended on purpose within the last minute, or is just being ended.
func (q *Queen) Deleted(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	at, ok := q.deleted[id]
	return ok && q.now()-at <= deletedKept || q.company.ends(id)
}

// endSurplus deletes a worker as a person would, so that its story can be followed.
func (q *Queen) endSurplus(id string) {
	_, err := q.runJob(contract.OpWorkerDelete, id, func(string, float64) {}, func(ctx context.Context, n *job.Narrator, _ func(contract.Narration)) (any, error) {
		return q.deleteWorker(ctx, n, id, false)
	})
	if err != nil {
		q.log.Warn("a worker that is not needed any more could not be ended", "worker", id, "error", err.Error())
	}
}

// findWorker returns a worker's identity and hive: from the registry, or for one that does not beat from the hives' processes. The
// identity is empty for a worker that is listed and has ended.
func (q *Queen) findWorker(ctx context.Context, id string) (identity contract.Identity, hiveID string, known bool, err error) {
	if w, ok := q.Snapshot().Worker(id); ok {
		if w.Exit != nil {
			return contract.Identity{}, w.Info.HiveID, true, nil
		}
		return w.Info.Identity(), w.Info.HiveID, true, nil
	}
	for _, l := range q.alive() {
		list, err := l.processes(ctx)
		if err != nil {
			return identity, "", false, err
		}
		for _, p := range list {
			if p.WorkerID == id && !p.Zombie {
				return p.Identity, p.HiveID, false, nil
			}
		}
	}
	return identity, "", false, workerNotFound(id)
}

// drain waits until a worker has no requests any more, or its time is over.
func (q *Queen) drain(ctx context.Context, n *job.Narrator, id string) error {
	end := time.NewTimer(q.o.Drain)
	defer end.Stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for told := false; ; told = true {
		open := q.o.InFlight(id)
		if open == 0 {
			open = q.busy(ctx, id)
		}
		if open == 0 {
			return nil
		}
		if !told {
			n.Info("drain", "waiting up to %s for %d open requests of worker %s", q.o.Drain, open, id)
		}
		select {
		case <-look.C:
		case <-end.C:
			n.Warn("drain", "%d requests of worker %s did not end in time and are broken off", open, id)
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// busy asks a worker how many requests it has: some may have come from another queen. One that does not answer has none that are
// worth waiting for.
func (q *Queen) busy(ctx context.Context, id string) int {
	w, ok := q.Snapshot().Worker(id)
	if !ok {
		return 0
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	c := q.workerClient(&w, secret.ForWorker(q.o.ClusterKey, id))
	defer c.Close()
	var info contract.WorkerInfo
	if c.GetJSON(ctx, "/info", &info) != nil || info.ID != id {
		return 0
	}
	return info.SlotsBusy + info.QueueDepth
}
