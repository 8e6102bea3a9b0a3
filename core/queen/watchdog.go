package queen

import (
	"context"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

// Watchdog bounds how long a worker may have work and make no progress. Zero values mean the defaults named.
type Watchdog struct {
	Stall  time.Duration // without progress of any of its requests, before it is asked for one token; default 60 s
	Answer time.Duration // for that token; default 30 s. Who fails twice is killed and started again
}

const (
	canaries     = 2
	watchPause   = 3 * tick         // a look that is later says that this process stood still, and nobody is judged for that time
	watchAgain   = 10 * time.Second // after a hung worker could not be ended
	canaryPrompt = "a"
)

// watchdog decides whom to ask for a token. It has no clock and does nothing itself.
type watchdog struct {
	stall  time.Duration
	looked time.Duration
	all    map[string]*watched
}

// watched is what is known of a worker's progress.
type watched struct {
	incarnation int64
	progress    uint64
	since       time.Duration // its progress is the same since then, while it has work
	stalled     bool          // a request to it was given up for want of tokens
	asked       bool          // canaries are under way
}

// look returns the workers that have had work and made no progress for too long, by what they said themselves: their progress is that of
// all their requests, whichever queen sent them. Silent ones are judged by their silence instead. They count as asked until answered is called.
func (d *watchdog) look(now time.Duration, s *registry.Snapshot, inFlight func(workerID string) int) (ask []registry.Worker) {
	late := d.looked != 0 && now-d.looked > watchPause
	d.looked = now
	for i := range s.Workers {
		w := &s.Workers[i]
		x := d.all[w.Info.ID]
		if w.Exit != nil || w.Draining || w.Liveness != contract.LivenessAlive || w.Info.Status != contract.StatusReady && w.Info.Status != contract.StatusBusy {
			if x != nil && !x.asked {
				delete(d.all, w.Info.ID)
			}
			continue
		}
		if x == nil {
			x = &watched{}
			d.all[w.Info.ID] = x
		}
		if x.asked {
			continue
		}
		if advanced := x.incarnation != w.Info.Incarnation || x.progress != w.Info.Progress; advanced || late {
			x.incarnation, x.progress, x.since, x.stalled = w.Info.Incarnation, w.Info.Progress, now, x.stalled && !advanced
		}
		if !x.stalled && w.Info.SlotsBusy == 0 && w.Info.QueueDepth == 0 && inFlight(w.Info.ID) == 0 {
			x.since = now
		}
		// Its last beat says so, not only the lack of one.
		if w.BeatAt-x.since >= d.stall {
			x.asked = true
			ask = append(ask, *w)
		}
	}
	for id := range d.all {
		if _, ok := s.Worker(id); !ok {
			delete(d.all, id)
		}
	}
	return ask
}

// stalled notes that a request to a worker was given up for want of tokens: the worker may have no work any more, and is asked all the same.
func (d *watchdog) stalled(workerID string) {
	if x := d.all[workerID]; x != nil {
		x.stalled = true
	}
}

// answered ends the asking. The clock begins anew at the time given.
func (d *watchdog) answered(workerID string, at time.Duration) {
	if x := d.all[workerID]; x != nil {
		x.asked, x.stalled, x.since = false, false, at
	}
}

// watch has the workers asked that seem to hang. Each queen does so by itself: a worker is asked by two at once at worst, and a kill names
// the process.
func (q *Queen) watch() {
	s := q.Snapshot()
	q.mu.Lock()
	ask := q.watchdog.look(q.now(), s, q.o.InFlight)
	q.mu.Unlock()
	for _, w := range ask {
		again := func(wait time.Duration) {
			q.mu.Lock()
			q.watchdog.answered(w.Info.ID, q.now()+wait-q.o.Watchdog.Stall)
			q.mu.Unlock()
		}
		if !q.do(func(ctx context.Context) {
			if q.answers(ctx, &w) {
				again(q.o.Watchdog.Stall)
				return
			}
			if err := q.restart(ctx, &w); err != nil && ctx.Err() == nil {
				q.log.Error("a worker that hangs could not be ended", "worker", w.Info.ID, "error", err.Error())
				again(watchAgain)
				return
			}
			again(q.o.Watchdog.Stall)
		}) {
			again(q.o.Watchdog.Stall)
		}
	}
}

// answers reports whether a worker gives a token, or makes progress in the meantime. A refusal that names the request is an answer too: a
// model that only embeds has no tokens to give.
func (q *Queen) answers(ctx context.Context, w *registry.Worker) bool {
	prompt, tokens := canaryPrompt, 1
	for n := range canaries {
		q.log.Warn("worker makes no progress and is asked for a token", "worker", w.Info.ID, "attempt", n+1, "busy", w.Info.SlotsBusy, "stalled_for", q.o.Watchdog.Stall)
		q.o.Metrics.Event("canary")
		actx, cancel := context.WithTimeout(ctx, q.o.Watchdog.Answer)
		c := q.workerClient(w, secret.ForWorker(q.o.ClusterKey, w.Info.ID))
		var out contract.InferResponse
		err := c.PostJSON(actx, "/v1/infer", contract.InferRequest{Model: w.Info.ModelID, Prompt: &prompt, MaxTokens: &tokens}, &out)
		// What fails at once is not asked again at once.
		if now, ok := q.Snapshot().Worker(w.Info.ID); err != nil && ok && now.Info.Incarnation == w.Info.Incarnation && now.Info.Progress == w.Info.Progress && n+1 < canaries {
			<-actx.Done()
		}
		cancel()
		c.Close()
		now, ok := q.Snapshot().Worker(w.Info.ID)
		switch kind := fault.KindOf(err); {
		case err == nil, kind == fault.Invalid || kind == fault.NotFound || kind == fault.Denied, ctx.Err() != nil:
			return true
		case !ok || now.Exit != nil || now.Draining || now.Info.Incarnation != w.Info.Incarnation || now.Info.Progress != w.Info.Progress:
			return true // it goes on, or has ended
		}
	}
	return false
}

// restart kills a worker that hangs. That counts as a crash, so that it is started again by the rules for those.
func (q *Queen) restart(ctx context.Context, w *registry.Worker) error {
	id, identity := w.Info.ID, w.Info.Identity()
	l, h, err := q.hive(w.Info.HiveID)
	if err != nil {
		return err
	}
	q.mu.Lock()
	q.hung[id] = identity
	q.mu.Unlock()
	q.o.Metrics.Event("hung")
	_, err = q.runJob(contract.OpWorkerDelete, id, func(string, float64) {}, func(ctx context.Context, n *job.Narrator, _ func(contract.Narration)) (any, error) {
		n.Warn("watchdog", "worker %s on %s has work, made no progress for %s and did not answer %d times within %s: it is ended and started again", id, h.Beat.Name,
			q.o.Watchdog.Stall, canaries, q.o.Watchdog.Answer)
		return forward[contract.WorkerDeleted](ctx, l, contract.WorkerDelete{Operation: contract.OpWorkerDelete, WorkerID: id, Identity: &identity, Force: true}, n.Forward)
	})
	if fault.KindOf(err) == fault.Unavailable && fault.As(err).Code == contract.ConditionUnkillable {
		q.step(registry.Unkillable{WorkerID: id})
	}
	if err != nil {
		return err
	}
	x := contract.WorkerExit{WorkerID: id, Identity: identity, Signal: 9}
	q.noteExit(x)
	q.step(registry.Exited{Report: x, Jitter: jitter()}) // where the hive's report comes first, this one changes nothing
	q.mu.Lock()
	delete(q.hung, id)
	q.mu.Unlock()
	return nil
}

// crashed is a report of an exit in which the end of a worker that hung is no clean one, however it ended: else it would not be missed.
func (q *Queen) crashed(x contract.WorkerExit) contract.WorkerExit {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.hung[x.WorkerID] == x.Identity && x.Identity.PID != 0 && x.ExitCode == 0 && x.Signal == 0 {
		x.Signal = 9
	}
	return x
}
