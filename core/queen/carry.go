package queen

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/run"
)

// endAgain is the wait after a worker could not be ended.
const endAgain = 10 * time.Second

// measure asks the hives that have accelerators what is free on them, where that was last asked a while ago. It reports whether it
// learnt something.
func (q *Queen) measure(ctx context.Context, p *picture) bool {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	var all sync.WaitGroup
	learnt := make(chan struct{}, len(p.snap.Hives))
	for i := range p.snap.Hives {
		h := &p.snap.Hives[i]
		if at := p.fresh[h.Beat.ID].at; h.Inventory == nil || at != 0 && p.now-at < measureGap ||
			!slices.ContainsFunc(devicesOf(h.Inventory), func(d contract.Device) bool { return d.Kind != "cpu" && d.Kind != "metal" }) {
			continue
		}
		l, _, err := q.hive(h.Beat.ID)
		if err != nil {
			continue
		}
		all.Go(func() {
			devices, err := forward[[]contract.Device](ctx, l, operation{contract.OpDeviceList}, nil)
			if err != nil {
				return // what was known before has to do
			}
			q.deploy.mu.Lock()
			q.deploy.fresh[h.Beat.ID] = measured{devices, q.now()}
			q.deploy.mu.Unlock()
			learnt <- struct{}{}
		})
	}
	all.Wait()
	return len(learnt) > 0
}

// carryOut begins an action. What takes long goes on by itself, as a job. It reports whether that is the start of a worker.
func (q *Queen) carryOut(p *picture, a placement.Action) (starts bool) {
	if a.Kind == placement.Stop || a.Kind == placement.Evict {
		if a.For == "" || q.deploy.wish(a.For) != nil {
			q.end(a)
		}
		return false
	}
	w := q.deploy.wish(a.Deployment)
	if w == nil { // requests add to those
		return false
	}
	model := p.dir.modelOf(w)
	b := pending{action: a, model: model, engine: w.Worker.Source, spec: specText(w.spec)}
	b.fetching = p.dir.model(model) == nil && !strings.HasPrefix(model, echoScheme)
	id := mintID(w.Worker)
	elsewhere := false
	for _, o := range q.company.pending() {
		elsewhere = elsewhere || o.fetching && o.model == model
	}
	q.deploy.mu.Lock()
	if b.fetching {
		if q.deploy.fetching[model] || elsewhere {
			q.deploy.mu.Unlock()
			return false
		}
		q.deploy.fetching[model] = true
	}
	q.deploy.pending[id] = b
	q.deploy.slots[b.slot()] = true
	q.deploy.mu.Unlock()
	q.log.Info("plan: "+string(a.Kind), "deployment", a.Deployment, "replica", a.Replica, "code", a.Code, "hive", a.Place.Hive, "device", a.Place.Device, "reason", a.Reason)
	work := func(ctx context.Context) { q.fetchFor(ctx, id, b, w) }
	if !b.fetching {
		q.deploy.remember(id, started{context: a.Context, slots: a.Slots, engine: w.Worker.Source, reason: a.Reason})
		q.step(registry.SpawnBegan{Slot: b.slot(), WorkerID: id, Automatic: true})
		work = func(ctx context.Context) { q.spawnFor(ctx, id, b, w) }
	}
	if !q.do(func(ctx context.Context) {
		work(ctx)
		q.forget(id, b)
	}) {
		q.forget(id, b)
	}
	return !b.fetching
}

func (b *pending) slot() registry.Slot {
	return registry.Slot{ModelID: b.model, HiveID: b.action.Place.Hive, Device: b.action.Place.Device}
}

// forget ends the account of something that was begun.
func (q *Queen) forget(id string, b pending) {
	q.deploy.mu.Lock()
	delete(q.deploy.pending, id)
	if b.fetching {
		delete(q.deploy.fetching, b.model)
	}
	q.deploy.mu.Unlock()
	q.deploy.wake()
	q.notify()
}

// told keeps the job of something that was begun, and how far it is.
func (q *Queen) told(id string) func(jobID string, progress float64) {
	return func(jobID string, progress float64) {
		q.deploy.mu.Lock()
		if b, ok := q.deploy.pending[id]; ok {
			b.jobID, b.progress = jobID, progress
			q.deploy.pending[id] = b
		}
		q.deploy.mu.Unlock()
		q.notify()
	}
}

// fetchFor brings a model that no hive has, so that the next plan knows how large it is.
func (q *Queen) fetchFor(ctx context.Context, id string, b pending, w *wish) {
	_, err := q.runJob(contract.OpModelDownload, w.Source, q.told(id), func(ctx context.Context, _ *job.Narrator, say func(contract.Narration)) (any, error) {
		return q.download(ctx, contract.ArtifactRef{Reference: w.Source, HiveID: b.action.Place.Hive}, say)
	})
	if err != nil && ctx.Err() == nil {
		q.log.Warn("a model of a deployment could not be fetched", "deployment", w.Name, "model", w.Source, "error", err.Error())
		q.step(registry.SpawnFailed{WorkerID: id, Slot: b.slot(), Reason: fault.As(err).Code, Jitter: jitter()})
	}
}

// spawnFor has a worker of a deployment started and waits until it serves or has failed.
func (q *Queen) spawnFor(ctx context.Context, id string, b pending, w *wish) {
	_, err := q.runJob(contract.OpWorkerSpawn, b.action.Key, q.told(id), func(ctx context.Context, n *job.Narrator, _ func(contract.Narration)) (any, error) {
		n.Info("place", "%s", b.action.Reason)
		return q.spawnPlanned(ctx, n, id, b, w)
	})
	if err != nil && ctx.Err() == nil {
		q.log.Warn("a worker of a deployment did not start", "deployment", w.Name, "worker", id, "error", err.Error())
	}
}

func (q *Queen) spawnPlanned(ctx context.Context, n *job.Narrator, id string, b pending, w *wish) (contract.WorkerSpawned, error) {
	a := b.action
	r := &spawning{q: q, n: n, automatic: true, begun: true, kind: w.Worker, slot: b.slot(), from: a.From, spec: contract.WorkerSpawn{Model: b.model, Devices: []string{a.Place.Device}}}
	refused := func(err error) (contract.WorkerSpawned, error) {
		q.step(registry.SpawnFailed{WorkerID: id, Slot: r.slot, Reason: fault.As(err).Code, Jitter: jitter()})
		return contract.WorkerSpawned{}, err
	}
	var err error
	if r.link, r.hive, err = q.hive(a.Place.Hive); err != nil {
		return refused(err)
	}
	if e := q.dir.Load().model(b.model); e != nil {
		r.model = e.model
	}
	spec := contract.WorkerSpawn{Operation: contract.OpWorkerSpawn, WorkerID: id, Model: b.model, Worker: w.Worker, Devices: []string{a.Place.Device},
		Context: a.Context, Slots: a.Slots, Threads: w.Threads, Env: maps.Clone(w.Env), Args: slices.Clone(w.Args), SpawnKey: a.Key,
		Generation: wireGeneration(a.Generation, w.spec), QueenURLs: q.queens()}
	q.mu.Lock()
	q.slots[b.model] = r.slot
	if q.young() {
		q.own[id] = true
	}
	q.mu.Unlock()
	out, err := r.ask(ctx, spec)
	if err != nil {
		return out, err
	}
	if a.Fetch > 0 || engineOn(r.hive, w.Worker.Source) == nil && w.Worker.Source != "" {
		r.link.update(ctx) // it has more now
	}
	if out.Existing && out.WorkerID != id {
		r.existing = true
		q.deploy.remember(out.WorkerID, started{context: a.Context, slots: a.Slots, engine: w.Worker.Source, reason: a.Reason})
		if k, ok := q.Snapshot().Worker(out.WorkerID); ok && (k.Liveness == contract.LivenessDown || k.Liveness == contract.LivenessLost) {
			return refused(fault.New(fault.Unavailable, "silent", "Worker %s runs on %s and is not heard; `apiary worker logs %s` shows what it does.", out.WorkerID, r.hive.Beat.Name, out.WorkerID))
		}
	}
	if err := r.await(ctx, out); err != nil {
		return out, err
	}
	n.Info("ready", "worker %s is ready at %s on %s", out.WorkerID, a.Place.Device, r.hive.Beat.Name)
	return out, nil
}

// end drains a worker and has it ended, as a job.
func (q *Queen) end(a placement.Action) {
	q.deploy.mu.Lock()
	if q.deploy.ending[a.WorkerID] {
		q.deploy.mu.Unlock()
		return
	}
	q.deploy.ending[a.WorkerID] = true
	how := q.deploy.started[a.WorkerID]
	q.deploy.mu.Unlock()
	ends := how
	ends.reason = a.Reason
	q.deploy.remember(a.WorkerID, ends)
	q.log.Info("plan: "+string(a.Kind), "deployment", a.Deployment, "worker", a.WorkerID, "code", a.Code, "reason", a.Reason)
	over := func() {
		q.deploy.mu.Lock()
		delete(q.deploy.ending, a.WorkerID)
		q.deploy.mu.Unlock()
		q.deploy.wake()
	}
	if !q.do(func(ctx context.Context) {
		defer over()
		_, err := q.runJob(contract.OpWorkerDelete, a.WorkerID, func(string, float64) {}, func(ctx context.Context, n *job.Narrator, _ func(contract.Narration)) (any, error) {
			n.Info("place", "%s", a.Reason)
			return q.deleteWorker(ctx, n, a.WorkerID, false)
		})
		if err != nil && fault.KindOf(err) != fault.NotFound {
			q.log.Warn("a worker could not be ended and is tried again", "worker", a.WorkerID, "error", err.Error())
			q.deploy.remember(a.WorkerID, how)
			_ = run.Sleep(ctx, endAgain)
		}
	}) {
		over()
	}
}

// demandOf answers a request that found no worker of a deployment's model: the next plan knows of it.
func (q *Queen) demandOf(w *wish, name, key string) registry.Demand {
	s, all := q.Snapshot(), q.company.pending()
	d := q.deploy
	d.mu.Lock()
	defer d.mu.Unlock()
	now := q.now()
	if at, ok := d.asked[w.Name]; !ok || now-at > time.Second {
		d.asked[w.Name] = now
		d.wake()
		q.company.touch()
	}
	maps.Copy(all, d.pending)
	asked := d.asked[w.Name]
	for id, b := range all {
		if b.action.Deployment != w.Name {
			continue
		}
		out := registry.Demand{State: registry.DemandStarting, JobID: b.jobID, Progress: b.progress, RetryAfter: retryLoad}
		if b.fetching {
			out.State = registry.DemandFetching
		}
		if k, ok := s.Worker(id); ok && k.Exit == nil {
			out.Progress = max(out.Progress, k.Info.LoadProgress)
		}
		return out
	}
	for i := range s.Workers {
		if k := &s.Workers[i]; k.Info.ModelID == key && beats(k) && k.Info.Status == contract.StatusStarting {
			return registry.Demand{State: registry.DemandStarting, Progress: k.Info.LoadProgress, RetryAfter: retryLoad}
		}
	}
	if d.planned > asked {
		for _, f := range d.plan.Shortfalls {
			if f.Deployment == w.Name {
				err := fault.New(fault.Unavailable, f.Code, "%s", f.Reason)
				out := registry.Demand{State: registry.DemandFailed, Err: forCaller(err, name), RetryAfter: max(retryLoad, f.RetryAfter)}
				if f.RetryAfter == 0 || f.Code == placement.ShortCrashLoop {
					out.State = registry.DemandImpossible
				}
				return out
			}
		}
	}
	return registry.Demand{State: registry.DemandStarting, RetryAfter: retrySoon}
}

// deploymentViews lists the deployments in force and how they stand.
func (q *Queen) deploymentViews() []contract.DeploymentView {
	s, all := q.Snapshot(), q.company.pending()
	d := q.deploy
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.Copy(all, d.pending)
	out := make([]contract.DeploymentView, 0, len(d.wishes))
	for _, w := range d.wishes {
		v := contract.DeploymentView{Name: w.Name, Model: w.Model, Replicas: w.Replicas}
		for i := range s.Workers {
			k := &s.Workers[i]
			if name, _, onDemand := replicaOf(k.Info.SpawnKey); name != w.Name || onDemand {
				continue
			}
			switch stateOf(k, d.ending[k.Info.ID]) {
			case placement.StateReady:
				v.Ready++
			case placement.StateStarting:
				v.Starting++
			case placement.StateDraining:
				v.Ending++
			}
		}
		for id, b := range all {
			if _, beats := s.Worker(id); !beats && b.action.Deployment == w.Name {
				v.Starting++
			}
		}
		for _, f := range d.plan.Shortfalls {
			if f.Deployment == w.Name {
				v.Reason, v.Code = f.Reason, f.Code
			}
		}
		out = append(out, v)
	}
	return out
}
