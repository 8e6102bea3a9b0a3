package queen

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

// demands are the wishes for workers of models that nobody serves. Their number is bounded by that of the models in the
// configuration and the catalogs.
type demands struct {
	mu  sync.Mutex // guards all and the demands in it
	all map[string]*demand
}

// demand is the single flight of one model: at most one attempt to get a worker for it runs.
type demand struct {
	running  bool
	state    string
	jobID    string
	progress float64
	forgive  string        // worker whose end an attempt that runs now already knows of
	err      error         // of the last attempt, where the registry has no account of it
	until    time.Duration // no attempt before
	failures int
}

// get returns the demand for a key. d.mu is held.
func (d *demands) get(key string) *demand {
	m := d.all[key]
	if m == nil {
		m = &demand{}
		d.all[key] = m
	}
	return m
}

// runs reports whether an attempt for a key runs.
func (d *demands) runs(key string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.all[key]
	return m != nil && m.running
}

// claim makes a running demand that of a pinned id too, once its model is fetched. It reports false when another attempt for the
// id runs: a request may have seen the fetched model first.
func (d *demands) claim(m *demand, id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if other := d.all[id]; other != nil && other != m && other.running {
		return false
	}
	d.all[id] = m
	return true
}

const (
	retrySoon = time.Second     // for a client whose worker is about to be there
	retryLoad = 2 * time.Second // for a client whose worker loads
)

// Demand makes sure that a worker for the model of that name is being started, and says where that stands. It never blocks and
// may be called as often as one likes: at most one attempt per model runs, and after one that failed the next waits for the
// back-off, during which the failure is answered.
func (q *Queen) Demand(name string) registry.Demand { return q.demand(name, true) }

// demand is Demand. pass is false for a wish that another queen has passed on to this one.
func (q *Queen) demand(name string, pass bool) registry.Demand {
	t, err := q.Resolve(name)
	if err != nil {
		return registry.Demand{State: registry.DemandImpossible, Err: err}
	}
	dir, s := q.dir.Load(), q.Snapshot()
	key := dir.sources[name]
	if len(t.ModelIDs) > 0 {
		key = t.ModelIDs[0]
	}
	if key == "" { // unknown, but not every hive has said yet what it has
		return registry.Demand{State: registry.DemandStarting, RetryAfter: max(retrySoon, q.o.ReadyAfter-q.now())}
	}
	for _, id := range t.ModelIDs {
		if len(s.Serving(id)) > 0 {
			return registry.Demand{State: registry.DemandStarting, Progress: 1, RetryAfter: retrySoon}
		}
	}
	if w := q.wishFor(dir, key); w != nil {
		return q.demandOf(w, name, key)
	}
	if pass && !q.demands.runs(key) {
		if out, ok := q.elsewhere(name, key); ok {
			return out
		}
	}
	q.demands.mu.Lock()
	defer q.demands.mu.Unlock()
	d := q.demands.get(key)
	if len(t.ModelIDs) > 0 {
		if out, final := q.past(d, key, name); final {
			return out
		}
	} else if !d.running && q.now() < d.until {
		return registry.Demand{State: registry.DemandFailed, Err: forCaller(d.err, name), RetryAfter: d.until - q.now()}
	}
	if !d.running {
		for i := range s.Workers { // begun by a former queen, and loading
			if w := &s.Workers[i]; w.Info.ModelID == key && beats(w) && w.Info.Status == contract.StatusStarting {
				return registry.Demand{State: registry.DemandStarting, Progress: w.Info.LoadProgress, RetryAfter: retryLoad}
			}
		}
		d.running, d.state, d.jobID, d.progress, d.err = true, registry.DemandStarting, "", 0, nil
		if !q.do(func(ctx context.Context) { q.fulfil(ctx, d, name, key) }) {
			d.running = false
			return registry.Demand{State: registry.DemandFailed, RetryAfter: retryLoad,
				Err: fault.New(fault.Unavailable, "stopping", "The queen is stopping; try another one or later.")}
		}
	}
	out := registry.Demand{State: d.state, JobID: d.jobID, Progress: d.progress, RetryAfter: retryLoad}
	if d.state == registry.DemandStarting {
		for i := range s.Workers {
			if w := &s.Workers[i]; w.Info.ModelID == key && w.Exit == nil {
				out.Progress = max(out.Progress, w.Info.LoadProgress)
			}
		}
	}
	return out
}

// past answers from what the registry remembers of earlier workers of a model. final is false when a new attempt may be made, or
// runs already. demands.mu is held.
func (q *Queen) past(d *demand, modelID, name string) (out registry.Demand, final bool) {
	q.mu.Lock()
	slot, ok := q.slots[modelID]
	v := registry.Verdict{Allowed: true}
	if ok {
		v = q.machine.Verdict(q.now(), slot)
	}
	q.mu.Unlock()
	switch {
	case v.Exit != nil && d.running && d.forgive == v.Exit.WorkerID:
		return out, false // this attempt began after that end, and may well succeed
	case v.NoFit:
		return registry.Demand{State: registry.DemandImpossible, Err: pastFault(name, slot, v)}, true
	case v.Reason == contract.ConditionCrashLoop && v.Wait > 0:
		return registry.Demand{State: registry.DemandImpossible, Err: pastFault(name, slot, v), RetryAfter: v.Wait}, true
	case v.Exit != nil && (v.Reason == contract.ConditionStartFailed || v.Reason == contract.ConditionOOM):
		// Requests get the cause at once, while a restart is under way too: only a worker that is ready proves it wrong.
		if v.Allowed && !v.Live && !d.running {
			d.forgive = v.Exit.WorkerID
			return out, false
		}
		return registry.Demand{State: registry.DemandFailed, JobID: d.jobID, Err: pastFault(name, slot, v), RetryAfter: max(retryLoad, v.Wait)}, true
	case v.Live && !d.running:
		return registry.Demand{State: registry.DemandStarting, RetryAfter: retryLoad}, true
	case v.Wait > 0 && !d.running:
		err := forCaller(d.err, name)
		if err == nil || v.Exit != nil {
			err = pastFault(name, slot, v)
		}
		return registry.Demand{State: registry.DemandFailed, Err: err, RetryAfter: v.Wait}, true
	case !d.running && q.now() < d.until:
		return registry.Demand{State: registry.DemandFailed, Err: forCaller(d.err, name), RetryAfter: d.until - q.now()}, true
	}
	return out, false
}

// fulfil makes one attempt for a demand: it waits until the queen knows its hives, fetches the model if the configuration names
// it and no catalog has it, and starts a worker.
func (q *Queen) fulfil(ctx context.Context, d *demand, name, key string) {
	err := q.attempt(ctx, d, name, key)
	q.demands.mu.Lock()
	d.running = false
	if err != nil {
		d.failures++
		d.err, d.until = unavailable(err), q.now()+q.backoff(d.failures)
	} else {
		d.err, d.until, d.failures = nil, 0, 0
	}
	q.demands.mu.Unlock()
	q.notify()
}

// backoff is for attempts that failed without a worker's end: the registry's waits, without the first, which is none.
func (q *Queen) backoff(failures int) time.Duration {
	waits := q.o.Registry.Backoff
	if len(waits) == 0 {
		waits = registry.DefaultParams().Backoff
	}
	d := waits[min(failures, len(waits)-1)]
	return d + time.Duration(jitter()*float64(d)/5)
}

// codeModelNotFound is the code of a model that is not there, or whose files are not.
const codeModelNotFound = "model_not_found"

// unavailable turns the failure of an attempt into what a caller of inference is told: later it may work.
func unavailable(err error) error {
	e := *fault.As(err)
	switch e.Kind {
	case fault.Interrupted:
		e = *fault.New(fault.Unavailable, "start_cancelled", "The start of the model's worker was cancelled; try again.")
	case fault.Internal:
		e = *fault.New(fault.Unavailable, "start_failed", "The model's worker could not be started; the agent's log and `apiary job list` say why.")
	default:
		if e.Code != codeModelNotFound { // one whose file is gone is not there for anybody, however it is asked for
			e.Kind = fault.Unavailable
		}
		e.Status = 0
	}
	return &e
}

// private finds what a caller of inference is not told: absolute paths, also in references, and addresses inside a network.
var private = regexp.MustCompile(`(^|[^A-Za-z0-9/._~:-])/|:/[^/]|file:|localhost|[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+|\[[0-9a-fA-F]*:`)

// forCaller is the failure of an attempt in the words for a caller of inference, who knows the model by name: its code, and its
// message where that tells nothing of this machine. The job that failed has the rest, for those who may see jobs.
func forCaller(err error, name string) error {
	if err == nil {
		return nil
	}
	e := *fault.As(err)
	switch {
	case e.Code == codeModelNotFound:
		e.Message = fmt.Sprintf("The model %s is not there any more: its files are gone, or cannot be reached; `apiary job list` says which.", quoted(name))
		e.Param = "model"
	case private.MatchString(e.Message):
		e.Message = fmt.Sprintf("The model %s cannot be served at the moment (%s); `apiary job list` says why.", quoted(name), e.Code)
	}
	return &e
}

func (q *Queen) attempt(ctx context.Context, d *demand, name, key string) error {
	if err := q.awaitSettled(ctx); err != nil {
		return err
	}
	t, err := q.Resolve(name)
	if err != nil {
		return err
	}
	set := func(state string) func(jobID string, progress float64) {
		return func(jobID string, progress float64) {
			q.demands.mu.Lock()
			d.state, d.jobID, d.progress = state, jobID, progress
			q.demands.mu.Unlock()
			q.notify()
		}
	}
	if len(t.ModelIDs) == 0 {
		source := q.dir.Load().sources[name]
		if source == "" {
			return notFound(name)
		}
		_, err := q.runJob(contract.OpModelDownload, source, set(registry.DemandFetching), func(ctx context.Context, n *job.Narrator, say func(contract.Narration)) (any, error) {
			return q.download(ctx, contract.ArtifactRef{Reference: source}, say)
		})
		if err != nil {
			return err
		}
		if t, err = q.Resolve(name); err != nil {
			return err
		}
		if len(t.ModelIDs) == 0 {
			return fault.New(fault.Unavailable, "not_listed", "The model %s was fetched, but the hive does not list it; see its log.", quoted(name))
		}
		if !q.demands.claim(d, t.ModelIDs[0]) {
			return nil
		}
	}
	id := t.ModelIDs[0]
	if p, err := q.inherited(ctx, q.alive(), func(p contract.Process) bool {
		w, known := q.Snapshot().Worker(p.WorkerID)
		return p.Model == id && (!known || beats(&w)) // it may have beaten a moment ago
	}); p != nil || err != nil {
		return err
	}
	s := q.Snapshot()
	if slices.ContainsFunc(s.Workers, func(w registry.Worker) bool { return w.Info.ModelID == id && beats(&w) }) {
		return nil // its first beat came after the demand was made
	}
	r := &spawning{q: q, automatic: true, demand: true, name: name, spec: contract.WorkerSpawn{Model: id, Wait: true}}
	_, err = q.runJob(contract.OpWorkerSpawn, name, set(registry.DemandStarting), func(ctx context.Context, n *job.Narrator, _ func(contract.Narration)) (any, error) {
		r.n = n
		return r.run(ctx)
	})
	if err != nil && r.moved && fault.As(err).Code == codeModelNotFound {
		return r.unheld(id) // its files are at its holders alone, which may come back
	}
	return err
}

// runJob runs f as a job about subject and waits for it. told hears of the job's id and of its progress. say narrates, and tells progress.
func (q *Queen) runJob(op, subject string, told func(jobID string, progress float64),
	f func(ctx context.Context, n *job.Narrator, say func(contract.Narration)) (any, error)) (any, error) {
	type outcome struct {
		v   any
		err error
	}
	started := make(chan string, 1)
	done := make(chan outcome, 1)
	j, err := q.jobs.Start(op, subject, func(ctx context.Context, n *job.Narrator) (any, error) {
		out := outcome{err: fault.New(fault.Internal, "internal", "The operation %s failed inside Apiary; the agent's log has the cause.", op)}
		defer func() { done <- out }() // also when f panics
		id := <-started
		out.v, out.err = f(ctx, n, func(line contract.Narration) {
			n.Forward(line)
			if p := line.Progress; p != nil && p.Total > 0 {
				told(id, float64(p.Done)/float64(p.Total))
			}
		})
		return out.v, out.err
	})
	if err != nil {
		return nil, err
	}
	told(j.ID, 0)
	started <- j.ID
	out := <-done
	return out.v, out.err
}

// awaitSettled waits until every hive has reported, or long enough.
func (q *Queen) awaitSettled(ctx context.Context) error {
	for {
		changed := q.Changed()
		if q.settled() {
			return nil
		}
		t := time.NewTimer(max(0, q.o.ReadyAfter-q.now()))
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
		t.Stop()
	}
}

// respawn starts the worker of a slot again, after attempts for its model that still run have ended.
func (q *Queen) respawn(slot registry.Slot) {
	begun := false
	ok := q.do(func(ctx context.Context) {
		defer func() {
			if !begun {
				q.step(registry.Release{Slot: slot})
			}
		}()
		d := q.acquire(ctx, slot.ModelID)
		if d == nil {
			return
		}
		q.mu.Lock()
		spec := q.recipes[slot]
		if v := q.machine.Verdict(q.now(), slot); v.Exit != nil {
			q.log.Info("worker is started again after its end", "model", slot.ModelID, "exit_code", v.Exit.ExitCode, "signal", v.Exit.Signal)
		}
		q.mu.Unlock()
		spec.Model, spec.HiveID, spec.Devices, spec.Wait = slot.ModelID, slot.HiveID, splitDevices(slot.Device), true
		told := func(jobID string, _ float64) {
			q.demands.mu.Lock()
			d.jobID = jobID
			q.demands.mu.Unlock()
		}
		_, err := q.runJob(contract.OpWorkerSpawn, slot.ModelID, told, func(ctx context.Context, n *job.Narrator, _ func(contract.Narration)) (any, error) {
			r := &spawning{q: q, n: n, automatic: true, spec: spec}
			v, err := r.run(ctx)
			begun = r.begun
			return v, err
		})
		q.release(d)
		if err != nil {
			q.log.Warn("worker could not be started again", "model", slot.ModelID, "error", err.Error())
		}
	})
	if !ok {
		q.step(registry.Release{Slot: slot})
	}
}

// acquire takes the single flight of a model, after the attempt that has it. It returns nil when ctx ends first.
func (q *Queen) acquire(ctx context.Context, modelID string) *demand {
	for {
		changed := q.Changed()
		if d := q.tryAcquire(modelID, ""); d != nil {
			return d
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (q *Queen) tryAcquire(modelID, jobID string) *demand {
	q.demands.mu.Lock()
	defer q.demands.mu.Unlock()
	d := q.demands.get(modelID)
	if d.running {
		return nil
	}
	d.running, d.state, d.jobID, d.progress, d.forgive = true, registry.DemandStarting, jobID, 0, ""
	return d
}

func (q *Queen) release(d *demand) {
	q.demands.mu.Lock()
	d.running = false
	q.demands.mu.Unlock()
	q.notify()
}

// pastFault says why no worker is started, or that the last one failed: the stable cause and the exit code, never engine text.
func pastFault(name string, slot registry.Slot, v registry.Verdict) error {
	how := "without saying why"
	if v.Exit != nil {
		how = ending(*v.Exit)
	}
	var e *fault.Error
	switch {
	case v.NoFit:
		e = fault.New(fault.Unavailable, "does_not_fit", "The model %s does not fit into the memory of %s: its workers were killed for want of memory; choose a smaller one or a shorter context, then start it with `apiary worker spawn`.", quoted(name), slot.Device)
	case v.Reason == placement.ShortDoesNotFit:
		e = fault.New(fault.Unavailable, "does_not_fit", "The memory of %s had no room for the model %s; end something there, or choose a smaller one or a shorter context.", slot.Device, quoted(name))
	case v.Reason == contract.ConditionCrashLoop:
		e = fault.New(fault.Unavailable, "crashloop", "The workers for the model %s keep ending (%s), so none is started by itself for another %s; `apiary worker spawn` tries at once.", quoted(name), how, v.Wait.Round(time.Second))
	case v.Reason == contract.ConditionOOM:
		e = fault.New(fault.Unavailable, "oom", "The worker for the model %s was killed because memory ran out on %s (%s); choose a smaller model or a shorter context.", quoted(name), slot.Device, how)
	case v.Reason == contract.ConditionStartFailed:
		more := "the agent's log says why"
		if v.Exit != nil {
			more = "`apiary worker logs " + v.Exit.WorkerID + "` shows its last lines"
		}
		e = fault.New(fault.Unavailable, "start_failed", "The worker for the model %s ended while it loaded the model (%s); %s.", quoted(name), how, more)
	default:
		e = fault.New(fault.Unavailable, "worker_"+orElse(v.Reason, "lost"), "The last worker for the model %s ended (%s) and is started again soon.", quoted(name), how)
	}
	return e.WithRetryAfter(max(retryLoad, v.Wait))
}

// ending says how a process ended, in words that hold its exit code or signal.
func ending(x contract.WorkerExit) string {
	switch {
	case x.Signal != 0:
		return fmt.Sprintf("signal %d", x.Signal)
	case x.ExitCode < 0:
		return "its process is gone"
	}
	return fmt.Sprintf("exit code %d", x.ExitCode)
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
