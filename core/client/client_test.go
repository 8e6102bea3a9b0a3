package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
)

// agent is a real job manager behind HTTP, whose streams can be cut.
type agent struct {
	*httptest.Server
	jobs *job.Manager
	cuts atomic.Int32 // connections to cut after one event
	auth atomic.Value
}

func newAgent(t *testing.T, ops map[string]job.Func) *agent {
	a := &agent{jobs: job.New(job.Options{NodeID: "n"})}
	mux := http.NewServeMux()
	mux.Handle("POST /v1/jobs", a.jobs.SubmitHandler(func(op string, _ json.RawMessage) (job.Func, error) {
		if f := ops[op]; f != nil {
			return f, nil
		}
		return nil, fault.New(fault.Invalid, "unknown_operation", "There is no operation %q.", op)
	}))
	mux.Handle("GET /v1/jobs", a.jobs.ListHandler(nil))
	mux.Handle("GET /v1/jobs/{id}", a.jobs.GetHandler())
	mux.Handle("DELETE /v1/jobs/{id}", a.jobs.CancelHandler())
	stream := a.jobs.StreamHandler()
	mux.HandleFunc("GET /v1/jobs/{id}/stream", func(w http.ResponseWriter, r *http.Request) {
		if a.cuts.Add(-1) >= 0 {
			w = &cutter{ResponseWriter: w}
		}
		stream.ServeHTTP(w, r)
	})
	mux.HandleFunc("/busy", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusTooManyRequests)
		_, _ = io.WriteString(w, `{"error":{"message":"Full.","type":"rate_limit_error","code":"queue_full","param":null}}`)
	})
	mux.HandleFunc("/page", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/busy", http.StatusFound) })
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.auth.Store(r.Header.Get("Authorization"))
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = a.jobs.Close(ctx)
		a.Close()
	})
	return a
}

// cutter ends the connection after the first event.
type cutter struct {
	http.ResponseWriter
	wrote bool
}

func (c *cutter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

func (c *cutter) Write(b []byte) (int, error) {
	if c.wrote && len(b) > 0 {
		panic(http.ErrAbortHandler)
	}
	first, _, found := strings.Cut(string(b), "\n\n")
	if !found {
		return c.ResponseWriter.Write(b)
	}
	c.wrote = true
	_, _ = io.WriteString(c.ResponseWriter, first+"\n\n")
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

type op struct {
	Operation string `json:"operation"`
}

func (a *agent) client(t *testing.T) *Client {
	c := New(Options{Base: a.URL, Token: "a-token"})
	t.Cleanup(c.Close)
	return c
}

func TestRunAndReconnect(t *testing.T) {
	a := newAgent(t, map[string]job.Func{"Count": func(_ context.Context, n *job.Narrator) (any, error) {
		for i := range 5 {
			n.Info("count", "%d", i)
		}
		return []int{1, 2}, nil
	}})
	for _, cuts := range []int32{0, 3} {
		a.cuts.Store(cuts)
		var heard []string
		got, err := Run[[]int](t.Context(), a.client(t), op{"Count"}, func(l contract.Narration) { heard = append(heard, l.Message) })
		if err != nil || len(got) != 2 || strings.Join(heard, "") != "01234" {
			t.Errorf("with %d cuts: %v, %v, heard %v", cuts, got, err, heard)
		}
	}
	if got := a.auth.Load(); got != "Bearer a-token" {
		t.Errorf("authorization %q", got)
	}
}

func TestErrorsKeepKindAndCode(t *testing.T) {
	a := newAgent(t, map[string]job.Func{"Fail": func(context.Context, *job.Narrator) (any, error) {
		return nil, fault.New(fault.Conflict, "device_fenced", "No.")
	}})
	c := a.client(t)
	_, err := c.Do(t.Context(), op{"Fail"}, nil)
	if e := fault.As(err); e.Kind != fault.Conflict || e.Code != "device_fenced" || fault.ExitCode(err) != 4 {
		t.Errorf("a failed job gives %#v", e)
	}
	if _, err := c.Do(t.Context(), op{"Nope"}, nil); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a refused job gives %v", err)
	}
	if e := fault.As(c.GetJSON(t.Context(), "/busy", nil)); e.Kind != fault.Exhausted || e.RetryAfter != 7*time.Second || e.Code != "queue_full" {
		t.Errorf("429 gives %#v", e)
	}
	if _, err := c.Stream(t.Context(), "/busy", op{}); fault.KindOf(err) != fault.Exhausted {
		t.Errorf("a refused stream gives %v", err)
	}
	var v struct{}
	if err := c.GetJSON(t.Context(), "/page", &v); fault.As(err).Code != "bad_answer" {
		t.Errorf("a page gives %v", err)
	}
	if err := c.GetJSON(t.Context(), "/away", nil); err == nil {
		t.Error("a redirect was followed")
	}
	if _, err := c.Job(t.Context(), "none"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("no job gives %v", err)
	}
	if jobs, err := c.Jobs(t.Context(), false); err != nil || len(jobs) != 1 {
		t.Errorf("jobs %v, %v", jobs, err)
	}
}

func TestCancelReachesTheJob(t *testing.T) {
	running, ended := make(chan struct{}), make(chan error, 1)
	a := newAgent(t, map[string]job.Func{"Wait": func(ctx context.Context, _ *job.Narrator) (any, error) {
		close(running)
		<-ctx.Done()
		ended <- ctx.Err()
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-running; cancel() }()
	_, err := a.client(t).Do(ctx, op{"Wait"}, nil)
	if fault.KindOf(err) != fault.Interrupted {
		t.Errorf("error %v", err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the job goes on")
	}
}

// TestCancelTooLate: a job that ended before it heard of the cancel is no reason to complain.
func TestCancelTooLate(t *testing.T) {
	a := newAgent(t, map[string]job.Func{"Quick": func(_ context.Context, n *job.Narrator) (any, error) {
		n.Info("a", "about to end")
		return 1, nil
	}})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := a.client(t).Do(ctx, op{"Quick"}, func(contract.Narration) {
		for a.jobs.List()[0].State == contract.JobRunning {
			time.Sleep(time.Millisecond)
		}
		cancel()
	})
	if e := fault.As(err); e == nil || e.Kind != fault.Interrupted || strings.Contains(e.Message, "could not be told") {
		t.Errorf("error %v", err)
	}
}

func TestLargeResult(t *testing.T) {
	big := strings.Repeat("x", 400<<10)
	a := newAgent(t, map[string]job.Func{"Big": func(context.Context, *job.Narrator) (any, error) { return big, nil }})
	got, err := Run[string](t.Context(), a.client(t), op{"Big"}, nil)
	if err != nil || got != big {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestAgentAway(t *testing.T) {
	a := newAgent(t, nil)
	a.Server.Close()
	err := a.client(t).GetJSON(t.Context(), "/v1/jobs", nil)
	if e := fault.As(err); e.Kind != fault.Unavailable || !strings.Contains(e.Message, a.URL) || strings.Contains(fmt.Sprint(err), "a-token") {
		t.Errorf("error %v", err)
	}
	if err := New(Options{Base: "http://\x00"}).GetJSON(t.Context(), "/", nil); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a bad address gives %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.client(t).GetJSON(ctx, "/v1/jobs", nil); fault.KindOf(err) != fault.Interrupted || !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call gives %v", err)
	}
}
