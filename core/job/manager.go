package job

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Options configures a Manager.
type Options struct {
	NodeID    string        // job ids start with it
	Keep      time.Duration // how long a finished job is kept; default 1 h; one that only looked something up for a minute
	MaxJobs   int           // running and finished; default 1,000
	MaxEvents int           // kept per job; default 1,000
	Log       *slog.Logger
	Ended     func(contract.Job) // called after each job's end, from its goroutine; nil: nobody
}

// readKeep is how long a finished job is kept that only looked something up: for a follower that has to connect again.
const readKeep = time.Minute

// Func does the work of one job. Its result is marshalled to JSON. It must return soon after ctx is cancelled.
type Func func(ctx context.Context, n *Narrator) (any, error)

// Event is one event of a job's stream.
type Event struct {
	Seq  uint64
	Name string          // one of contract.JobEvent…
	Data json.RawMessage // a contract.Narration, JobDoneEvent or FailedEvent; {} for a cancelled job

	progress bool // the first to go when there are too many
}

// FailedEvent is the data of a failed event. It says the kind too, which contract.Error does not, so that exit codes survive the
// way from a hive over a queen to a command line.
type FailedEvent struct {
	Error contract.Error `json:"error"`
	Kind  fault.Kind     `json:"kind"`
}

// Manager runs and keeps jobs. It is safe for concurrent use.
type Manager struct {
	o       Options
	running sync.WaitGroup

	mu     sync.Mutex // guards the fields below
	closed bool
	jobs   map[string]*run
	order  []*run // oldest first
}

// run is one job.
type run struct {
	m      *Manager
	cancel context.CancelCauseFunc

	mu      sync.Mutex // guards the fields below
	job     contract.Job
	ended   time.Time // monotonic
	events  []Event   // ordered by Seq; the terminal one is last
	seq     uint64
	changed chan struct{} // closed at the next event
	last    time.Time     // of the last progress event
	held    *contract.Narration
}

// errCancelled is the cause with which Cancel and Close end a job's context.
var errCancelled = errors.New("the job was cancelled")

// New returns a manager without jobs. It starts nothing.
func New(o Options) *Manager {
	if o.Keep <= 0 {
		o.Keep = time.Hour
	}
	if o.MaxJobs <= 0 {
		o.MaxJobs = 1000
	}
	if o.MaxEvents <= 0 {
		o.MaxEvents = 1000
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{o: o, jobs: map[string]*run{}}
}

// Start runs f as a job, at once and until it returns; what started it may go away. subject is what the operation is about, for
// lists; it may be empty, and what may be secret in it is left out. Start fails with fault.Exhausted while
// MaxJobs jobs are running and with fault.Unavailable after Close.
func (m *Manager) Start(operation, subject string, f Func) (contract.Job, error) {
	var raw [8]byte
	_, _ = rand.Read(raw[:])
	ctx, cancel := context.WithCancelCause(context.Background())
	r := &run{m: m, cancel: cancel, changed: make(chan struct{}),
		job: contract.Job{ID: m.o.NodeID + "-" + hex.EncodeToString(raw[:]), Operation: operation, Subject: shown(subject), State: contract.JobRunning,
			CreatedAt: time.Now().UTC()}}
	if err := m.add(r); err != nil {
		cancel(nil)
		return contract.Job{}, err
	}
	go func() {
		defer m.running.Done()
		defer cancel(nil)
		result, err := m.call(ctx, f, &Narrator{run: r})
		job := r.finish(result, err, errors.Is(context.Cause(ctx), errCancelled))
		m.o.Log.Info("job ended", "job", job.ID, "operation", job.Operation, "state", string(job.State))
		if m.o.Ended != nil {
			m.o.Ended(job)
		}
	}()
	return r.describe(), nil
}

func (m *Manager) add(r *run) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return fault.New(fault.Unavailable, "stopping", "The agent is stopping and takes no new jobs; try again when it runs again.")
	}
	m.expire()
	if len(m.order) >= m.o.MaxJobs {
		i := slices.IndexFunc(m.order, func(r *run) bool { return r.over() && r.looksUp() })
		if i < 0 {
			i = slices.IndexFunc(m.order, (*run).over)
		}
		if i < 0 {
			return fault.New(fault.Exhausted, "too_many_jobs", "%d jobs are running already; wait for one to end or cancel one.", len(m.order)).
				WithRetryAfter(10 * time.Second)
		}
		delete(m.jobs, m.order[i].job.ID)
		m.order = slices.Delete(m.order, i, i+1)
	}
	m.jobs[r.job.ID] = r
	m.order = append(m.order, r)
	m.running.Add(1)
	return nil
}

// call runs f; a panic becomes an error, so that one operation cannot end the agent.
func (m *Manager) call(ctx context.Context, f Func, n *Narrator) (result json.RawMessage, err error) {
	defer func() {
		if p := recover(); p != nil {
			m.o.Log.Error("job panicked", "job", n.run.job.ID, "operation", n.run.job.Operation, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			result, err = nil, fault.New(fault.Internal, "internal", "The operation failed inside Apiary; the agent's log has the cause.")
		}
	}()
	v, err := f(ctx, n)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode the result of %s: %w", n.run.job.Operation, err)
	}
	return b, nil
}

// expire forgets jobs that ended long ago. m.mu is held.
func (m *Manager) expire() {
	now := time.Now()
	m.order = slices.DeleteFunc(m.order, func(r *run) bool {
		keep := m.o.Keep
		if r.looksUp() {
			keep = min(keep, readKeep)
		}
		r.mu.Lock()
		old := !r.ended.IsZero() && now.Sub(r.ended) > keep
		r.mu.Unlock()
		if old {
			delete(m.jobs, r.job.ID)
		}
		return old
	})
}

func (m *Manager) find(id string) (*run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.expire()
	if r := m.jobs[id]; r != nil {
		return r, nil
	}
	return nil, fault.New(fault.NotFound, "job_not_found",
		"There is no such job here; finished jobs are kept for %s at most, and a restart of the agent ends all of them.", short(m.o.Keep))
}

// short writes whole hours and minutes without the zeros that time.Duration prints after them.
func short(d time.Duration) string {
	s := d.String()
	if t := strings.TrimSuffix(s, "m0s"); t != s {
		s = t + "m"
	}
	if t := strings.TrimSuffix(s, "h0m"); t != s {
		s = t + "h"
	}
	return s
}

// Get describes a job, or fails with fault.NotFound.
func (m *Manager) Get(id string) (contract.Job, error) {
	r, err := m.find(id)
	if err != nil {
		return contract.Job{}, err
	}
	return r.describe(), nil
}

// List describes all jobs, the newest first.
func (m *Manager) List() []contract.Job {
	m.mu.Lock()
	m.expire()
	runs := slices.Clone(m.order)
	m.mu.Unlock()
	jobs := make([]contract.Job, 0, len(runs))
	for _, r := range slices.Backward(runs) {
		jobs = append(jobs, r.describe())
	}
	return jobs
}

// Cancel cancels a running job's context and returns; the job ends when its function returns. A job that is over is
// fault.Conflict.
func (m *Manager) Cancel(id string) error {
	r, err := m.find(id)
	if err != nil {
		return err
	}
	if state := r.describe().State; state != contract.JobRunning {
		return fault.New(fault.Conflict, "job_over", "Job %s cannot be cancelled, because it is over: %s.", id, state)
	}
	r.cancel(errCancelled)
	return nil
}

// Follow yields the events of a job after sequence number after, first those that were kept, then each as it comes, and ends
// after the terminal event, or when ctx ends.
func (m *Manager) Follow(ctx context.Context, id string, after uint64) (iter.Seq[Event], error) {
	r, err := m.find(id)
	if err != nil {
		return nil, err
	}
	return func(yield func(Event) bool) {
		for {
			events, changed, over := r.after(after)
			for _, e := range events {
				if !yield(e) {
					return
				}
				after = e.Seq
			}
			if over {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}, nil
}

// Close cancels all jobs and waits for them, at most until ctx ends. Afterwards Start fails.
func (m *Manager) Close(ctx context.Context) error {
	m.mu.Lock()
	m.closed = true
	runs := slices.Clone(m.order)
	m.mu.Unlock()
	for _, r := range runs {
		r.cancel(errCancelled)
	}
	done := make(chan struct{})
	go func() {
		m.running.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for running jobs: %w", ctx.Err())
	}
}

// looksUp reports whether the job changes nothing: it makes room for others first.
func (r *run) looksUp() bool { return contract.IsRead(r.job.Operation) }

func (r *run) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return !r.ended.IsZero()
}

func (r *run) describe() contract.Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.job
}

// after returns the kept events after a sequence number, a channel that closes at the next one, and whether there is no next.
func (r *run) after(seq uint64) ([]Event, <-chan struct{}, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, _ := slices.BinarySearchFunc(r.events, seq+1, func(e Event, s uint64) int {
		switch {
		case e.Seq < s:
			return -1
		case e.Seq > s:
			return 1
		}
		return 0
	})
	return slices.Clone(r.events[i:]), r.changed, !r.ended.IsZero()
}

// finish writes the terminal event.
func (r *run) finish(result json.RawMessage, err error, cancelled bool) contract.Job {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.release()
	now := time.Now()
	at := now.UTC()
	r.job.FinishedAt, r.ended = &at, now
	switch {
	case err == nil:
		r.job.State, r.job.Result = contract.JobDone, result
		r.end(contract.JobEventDone, contract.JobDoneEvent{Result: result})
	case cancelled:
		r.job.State = contract.JobCancelled
		r.end(contract.JobEventCancelled, struct{}{})
	default:
		if fault.KindOf(err) == fault.Internal {
			r.m.o.Log.Error("job failed", "job", r.job.ID, "operation", r.job.Operation, "error", err.Error())
		}
		w := fault.Wire(err, r.job.ID)
		r.job.State, r.job.Error = contract.JobFailed, &w
		r.end(contract.JobEventFailed, FailedEvent{Error: w, Kind: fault.KindOf(err)})
	}
	return r.job
}

// end adds the terminal event. r.mu is held.
func (r *run) end(name string, data any) {
	r.seq++
	r.append(name, data)
}

// append adds an event with the current sequence number and wakes the followers. r.mu is held.
func (r *run) append(name string, data any) {
	b, err := json.Marshal(data)
	if err != nil { // plain structs of strings and numbers: cannot happen
		b = []byte("{}")
	}
	if len(r.events) >= r.m.o.MaxEvents {
		i := max(0, slices.IndexFunc(r.events, func(e Event) bool { return e.progress }))
		r.events = slices.Delete(r.events, i, i+1)
	}
	line, ok := data.(contract.Narration)
	r.events = append(r.events, Event{Seq: r.seq, Name: name, Data: b, progress: ok && line.Progress != nil})
	close(r.changed)
	r.changed = make(chan struct{})
}
