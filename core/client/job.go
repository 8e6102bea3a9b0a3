package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/openai"
	"github.com/apiary-dev/apiary/core/run"
)

const (
	reconnects    = 6                // in a row without a new event
	silence       = 35 * time.Second // an agent comments every 10 s
	cancelTimeout = 5 * time.Second
)

// Do runs an operation: it submits op, a struct with the field "operation", as a job, tells onNarration (which may be nil) each
// line of its story, and returns its result. A broken stream is taken up where it broke, a few times. When ctx is cancelled, so
// is the job. Errors are *fault.Error: the job's own, or fault.Unavailable when the agent was lost.
func (c *Client) Do(ctx context.Context, op any, onNarration func(contract.Narration)) (json.RawMessage, error) {
	if ctx.Err() != nil {
		return nil, fault.As(ctx.Err())
	}
	job, err := c.submit(ctx, op)
	if err != nil {
		return nil, err
	}
	result, err := c.Follow(ctx, job.JobID, onNarration)
	if ctx.Err() != nil {
		// The wish to cancel has to reach the agent although ctx is over.
		end, done := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
		defer done()
		if cerr := c.Cancel(end, job.JobID); cerr != nil && fault.KindOf(cerr) != fault.NotFound && fault.KindOf(cerr) != fault.Conflict {
			return nil, &fault.Error{Kind: fault.Interrupted, Code: "cancelled", Err: errors.Join(ctx.Err(), cerr),
				Message: fmt.Sprintf("The wait for job %s was ended, but the agent could not be told to cancel it.", job.JobID)}
		}
		return nil, fault.As(ctx.Err())
	}
	return result, err
}

// submit goes on for a little after ctx has ended: a job whose id nobody learns cannot be cancelled.
func (c *Client) submit(ctx context.Context, op any) (contract.JobAccepted, error) {
	sctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	late := time.AfterFunc(time.Hour, cancel)
	defer late.Stop()
	defer context.AfterFunc(ctx, func() { late.Reset(cancelTimeout) })()
	return c.Submit(sctx, op)
}

// Run is Do with the result decoded into a T.
func Run[T any](ctx context.Context, c *Client, op any, onNarration func(contract.Narration)) (T, error) {
	var out T
	result, err := c.Do(ctx, op, onNarration)
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(result, &out); err != nil {
		return out, &fault.Error{Kind: fault.Internal, Code: "bad_answer", Err: err,
			Message: "The agent's result of the operation is not what was expected; do both run the same version?"}
	}
	return out, nil
}

// Submit starts an operation as a job and does not wait for it.
func (c *Client) Submit(ctx context.Context, op any) (contract.JobAccepted, error) {
	var job contract.JobAccepted
	err := c.PostJSON(ctx, "/v1/jobs", op, &job)
	if err == nil && job.JobID == "" {
		err = fault.New(fault.Internal, "bad_answer", "The agent at %s accepted a job without naming it; do both run the same version?", c.o.Base)
	}
	return job, err
}

// Jobs lists the agent's jobs, the newest first. Without all those are left out that looked something up and succeeded.
func (c *Client) Jobs(ctx context.Context, all bool) ([]contract.Job, error) {
	var jobs []contract.Job
	path := "/v1/jobs"
	if all {
		path += "?all=true"
	}
	return jobs, c.GetJSON(ctx, path, &jobs)
}

// Job describes one job.
func (c *Client) Job(ctx context.Context, id string) (contract.Job, error) {
	var job contract.Job
	return job, c.GetJSON(ctx, "/v1/jobs/"+url.PathEscape(id), &job)
}

// Cancel asks the agent to cancel a job, which ends when its work has stopped. A job that is over is fault.Conflict.
func (c *Client) Cancel(ctx context.Context, id string) error {
	return c.call(ctx, http.MethodDelete, "/v1/jobs/"+url.PathEscape(id), nil, nil)
}

// Follow tells onNarration a job's story from its beginning and returns its result, like Do, but never cancels the job.
func (c *Client) Follow(ctx context.Context, id string, onNarration func(contract.Narration)) (json.RawMessage, error) {
	f := follower{c: c, id: id, tell: onNarration}
	for lost := 0; ; {
		before := f.seq
		over, err := f.once(ctx)
		if over {
			return f.result, err
		}
		if ctx.Err() != nil {
			return nil, fault.As(ctx.Err())
		}
		if f.seq != before {
			lost = 0
		}
		if lost++; lost > reconnects || !pause(ctx, lost) {
			if ctx.Err() != nil {
				return nil, fault.As(ctx.Err())
			}
			return nil, &fault.Error{Kind: fault.Unavailable, Code: "stream_lost", Err: err,
				Message: fmt.Sprintf("The agent at %s was lost while job %s ran; see `apiary job follow %s` when it is back.", c.o.Base, id, id)}
		}
	}
}

type follower struct {
	c      *Client
	id     string
	tell   func(contract.Narration)
	seq    uint64
	result json.RawMessage
}

// once reads one connection's worth of the stream. over says that there is no more to come: a terminal event, or a refusal.
func (f *follower) once(ctx context.Context) (over bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	header := map[string]string{"Accept": "text/event-stream"}
	if f.seq > 0 {
		header["Last-Event-ID"] = strconv.FormatUint(f.seq, 10)
	}
	watchdog := time.AfterFunc(silence, cancel)
	defer watchdog.Stop()
	res, err := f.c.send(ctx, http.MethodGet, "/v1/jobs/"+url.PathEscape(f.id)+"/stream", nil, header)
	if err != nil {
		return false, err
	}
	defer func() { _ = res.Body.Close() }()
	switch {
	case res.StatusCode == http.StatusNotFound && f.seq > 0:
		return true, fault.New(fault.Unavailable, "job_lost", "The agent at %s was restarted while job %s ran, which ended the job; start it again.", f.c.o.Base, f.id)
	case res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests:
		return false, f.c.answered(res)
	case res.StatusCode != http.StatusOK:
		return true, f.c.answered(res)
	}
	events := openai.NewReader(res.Body)
	events.OnComment = func([]byte) { watchdog.Reset(silence) }
	for {
		e, err := events.Next()
		if errors.Is(err, openai.ErrEventTooLarge) {
			return f.fetch(ctx)
		}
		if err != nil {
			return false, err
		}
		watchdog.Reset(silence)
		if over, err := f.take(e); over || err != nil {
			return over, err
		}
	}
}

// fetch gets a result that is too large for an event from the job itself.
func (f *follower) fetch(ctx context.Context) (over bool, err error) {
	job, err := f.c.Job(ctx, f.id)
	if err != nil {
		return false, err
	}
	if job.State != contract.JobDone {
		return true, badEvent(openai.ErrEventTooLarge)
	}
	f.result = job.Result
	return true, nil
}

func (f *follower) take(e openai.Event) (over bool, err error) {
	id, err := strconv.ParseUint(e.ID, 10, 64)
	if err != nil {
		return true, badEvent(err)
	}
	if id <= f.seq {
		return false, nil
	}
	switch e.Name {
	case contract.JobEventNarration:
		var line contract.Narration
		if err := json.Unmarshal(e.Data, &line); err != nil {
			return true, badEvent(err)
		}
		f.seq = id
		if f.tell != nil {
			f.tell(line)
		}
		return false, nil
	case contract.JobEventDone:
		var done contract.JobDoneEvent
		if err := json.Unmarshal(e.Data, &done); err != nil {
			return true, badEvent(err)
		}
		f.seq, f.result = id, done.Result
		return true, nil
	case contract.JobEventFailed:
		var failed struct {
			contract.JobFailedEvent
			Kind fault.Kind `json:"kind"`
		}
		if err := json.Unmarshal(e.Data, &failed); err != nil {
			return true, badEvent(err)
		}
		w := fault.FromWire(http.StatusInternalServerError, failed.Error, 0)
		w.Status = 0
		if failed.Kind != "" {
			w.Kind = failed.Kind
		}
		return true, w
	case contract.JobEventCancelled:
		return true, fault.New(fault.Interrupted, "cancelled", "Job %s was cancelled.", f.id)
	}
	return false, nil // an event of a later version
}

func badEvent(err error) error {
	return &fault.Error{Kind: fault.Internal, Code: "bad_answer", Err: err,
		Message: "The agent sent an event that cannot be read; do both run the same version?"}
}

// pause waits before attempt n+1: 0.2, 0.4, … at most 3 s, ± 20 %. It reports false when ctx ended.
func pause(ctx context.Context, n int) bool {
	d := min(200*time.Millisecond<<(n-1), 3*time.Second)
	d = time.Duration(float64(d) * (0.8 + 0.4*rand.Float64()))
	return run.Sleep(ctx, d) == nil
}
