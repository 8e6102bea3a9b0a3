package queen

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/metrics"
	"github.com/apiary-dev/apiary/core/openai"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
)

// agent is a queen behind the real server.
type agent struct {
	*Queen
	t    *testing.T
	base string
	doc  *apitest.Document
	http *http.Client
	end  func()
}

func startQueen(t *testing.T, o Options, hives ...*fakeHive) *agent {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.NodeID, o.Name, o.Version, o.ClusterKey = cmp.Or(o.NodeID, "q1"), "queen", "test", clusterKey
	o.URL = "http://" + ln.Addr().String()
	o.Interval, o.Metrics = cmp.Or(o.Interval, 200*time.Millisecond), metrics.New()
	o.Workers = []contract.WorkerKind{{Name: "echo", Adapter: "echo"}, {Name: "llama", Adapter: "native", Source: engineRef}}
	if len(o.Registry.Backoff) == 0 {
		o.Registry.Backoff = []time.Duration{0, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond}
	}
	for _, h := range hives {
		o.Hives = append(o.Hives, h.url)
	}
	q, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	srv, err := httpd.New(httpd.Options{Routes: q.Routes(), DrainTimeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = q.Run(ctx) })
	running.Go(func() { _ = srv.Serve(ctx, ln) })
	a := &agent{Queen: q, t: t, base: o.URL, doc: apitest.Load(t, "queen-api.yaml")}
	a.http = &http.Client{Transport: a.doc.Transport(t, nil), Timeout: 30 * time.Second}
	a.end = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(a.end)
	return a
}

// outcome is how a job ended.
type outcome struct {
	result json.RawMessage
	err    *fault.Error
	state  string
	story  []contract.Narration
}

func (o outcome) text() string {
	var b strings.Builder
	for _, n := range o.story {
		fmt.Fprintf(&b, "%s: %s\n", n.Action, n.Message)
	}
	return b.String()
}

func (a *agent) submit(op any) string {
	a.t.Helper()
	res, err := send(a.http, "POST", a.base+"/v1/jobs", "", op)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var acc contract.JobAccepted
	if err := json.NewDecoder(res.Body).Decode(&acc); err != nil || res.StatusCode != http.StatusAccepted {
		a.t.Fatalf("submit %+v: %d, %v", op, res.StatusCode, err)
	}
	return acc.JobID
}

func (a *agent) follow(id string) outcome {
	a.t.Helper()
	res, err := send(a.http, "GET", a.base+"/v1/jobs/"+id+"/stream", "", nil)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	var out outcome
	for r := openai.NewReader(res.Body); ; {
		e, err := r.Next()
		if err != nil {
			if err != io.EOF || out.state == "" {
				a.t.Fatalf("stream of %s: %v", id, err)
			}
			return out
		}
		if out.state != "" {
			a.t.Errorf("event %s after the terminal one", e.Name)
		}
		switch e.Name {
		case contract.JobEventNarration:
			a.doc.Value(a.t, "Narration", e.Data)
			var n contract.Narration
			_ = json.Unmarshal(e.Data, &n)
			out.story = append(out.story, n)
		case contract.JobEventDone:
			a.doc.Value(a.t, "JobDoneEvent", e.Data)
			var d contract.JobDoneEvent
			_ = json.Unmarshal(e.Data, &d)
			out.state, out.result = e.Name, d.Result
		case contract.JobEventFailed:
			a.doc.Value(a.t, "JobFailedEvent", e.Data)
			var f job.FailedEvent
			_ = json.Unmarshal(e.Data, &f)
			out.state, out.err = e.Name, &fault.Error{Kind: f.Kind, Code: f.Error.Code, Message: f.Error.Message}
		default:
			out.state = e.Name
		}
	}
}

func (a *agent) run(op any) outcome {
	a.t.Helper()
	return a.follow(a.submit(op))
}

// read runs an operation that must succeed, checks its result against a schema ("[]X": an array of X) and decodes it into out.
func (a *agent) read(op any, schema string, out any) {
	a.t.Helper()
	got := a.run(op)
	if got.err != nil {
		a.t.Fatalf("%+v failed: %s", op, got.err)
	}
	if item, ok := strings.CutPrefix(schema, "[]"); ok {
		var list []json.RawMessage
		if err := json.Unmarshal(got.result, &list); err != nil || list == nil {
			a.t.Fatalf("%+v: %s is no array", op, got.result)
		}
		for _, v := range list {
			a.doc.Value(a.t, item, v)
		}
	} else {
		a.doc.Value(a.t, schema, got.result)
	}
	if err := json.Unmarshal(got.result, out); err != nil {
		a.t.Fatal(err)
	}
}

// until waits for a condition that a change makes true.
func (a *agent) until(what string, ok func() bool) {
	a.t.Helper()
	end := time.NewTimer(10 * time.Second)
	defer end.Stop()
	for {
		changed := a.Changed()
		if ok() {
			return
		}
		select {
		case <-changed:
		case <-end.C:
			a.t.Fatalf("never happened: %s", what)
		}
	}
}

func (a *agent) serving(model string) []registry.Worker { return a.Snapshot().Serving(model) }
