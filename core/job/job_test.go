package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// collect reads a job's events from after to the end.
func collect(t *testing.T, m *Manager, id string, after uint64) []Event {
	t.Helper()
	seq, err := m.Follow(t.Context(), id, after)
	if err != nil {
		t.Fatal(err)
	}
	var out []Event
	for e := range seq {
		out = append(out, e)
	}
	return out
}

func start(t *testing.T, m *Manager, f Func) contract.Job {
	t.Helper()
	j, err := m.Start("Test", "", f)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestStoryAndResult(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{NodeID: "node"})
		j := start(t, m, func(_ context.Context, n *Narrator) (any, error) {
			n.Info("a", "step %d", 1)
			time.Sleep(time.Second)
			n.Warn("b", "careful")
			return map[string]int{"x": 1}, nil
		})
		if !strings.HasPrefix(j.ID, "node-") || j.State != contract.JobRunning {
			t.Errorf("job %+v", j)
		}
		early := make(chan []Event)
		go func() { early <- collect(t, m, j.ID, 0) }()
		events := <-early
		if len(events) != 3 || events[2].Name != contract.JobEventDone || string(events[2].Data) != `{"result":{"x":1}}` {
			t.Fatalf("events %v", events)
		}
		for i, e := range events {
			if e.Seq != uint64(i+1) {
				t.Errorf("event %d has sequence %d", i, e.Seq)
			}
		}
		if late := collect(t, m, j.ID, 1); len(late) != 2 || late[0].Seq != 2 { // a late follower is told the rest
			t.Errorf("late events %v", late)
		}
		got, err := m.Get(j.ID)
		if err != nil || got.State != contract.JobDone || got.FinishedAt == nil || string(got.Result) != `{"x":1}` {
			t.Errorf("job %+v, %v", got, err)
		}
	})
}

func TestFailuresKeepTheirKind(t *testing.T) {
	m := New(Options{NodeID: "n"})
	for _, c := range []struct {
		err  error
		kind fault.Kind
		text string
	}{
		{fault.New(fault.NotFound, "model_not_found", "No such model."), fault.NotFound, "No such model."},
		{errors.New("secret path /x"), fault.Internal, ""},
	} {
		j := start(t, m, func(context.Context, *Narrator) (any, error) { return nil, c.err })
		events := collect(t, m, j.ID, 0)
		var f FailedEvent
		if err := json.Unmarshal(events[0].Data, &f); err != nil || len(events) != 1 || events[0].Name != contract.JobEventFailed {
			t.Fatalf("events %v, %v", events, err)
		}
		if f.Kind != c.kind || strings.Contains(f.Error.Message, "/x") || c.text != "" && f.Error.Message != c.text {
			t.Errorf("failed event %+v", f)
		}
	}
	j := start(t, m, func(context.Context, *Narrator) (any, error) { panic("oops") })
	if events := collect(t, m, j.ID, 0); len(events) != 1 || events[0].Name != contract.JobEventFailed {
		t.Errorf("a panic gave %v", events)
	}
}

func TestCancelIsReal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{NodeID: "n"})
		stopped := false
		j := start(t, m, func(ctx context.Context, _ *Narrator) (any, error) {
			<-ctx.Done()
			time.Sleep(time.Second) // it cleans up before it ends
			stopped = true
			return nil, ctx.Err()
		})
		if err := m.Cancel(j.ID); err != nil {
			t.Fatal(err)
		}
		if got, _ := m.Get(j.ID); got.State != contract.JobRunning {
			t.Errorf("the job is %s before its work has stopped", got.State)
		}
		events := collect(t, m, j.ID, 0)
		if !stopped || len(events) != 1 || events[0].Name != contract.JobEventCancelled {
			t.Errorf("stopped %v, events %v", stopped, events)
		}
		if err := m.Cancel(j.ID); fault.KindOf(err) != fault.Conflict || !strings.Contains(fault.As(err).Message, j.ID) {
			t.Errorf("cancelling a job that is over: %v", err)
		}
		if err := m.Cancel("nope"); fault.KindOf(err) != fault.NotFound {
			t.Errorf("cancelling no job: %v", err)
		}
	})
}

func TestProgressIsThinnedAndTheLastIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{NodeID: "n"})
		j := start(t, m, func(_ context.Context, n *Narrator) (any, error) {
			for i := range 1000 { // 10 s
				n.Progress("download", "fetching", contract.Progress{Done: uint64(i), Total: 5000, Unit: "bytes"})
				time.Sleep(10 * time.Millisecond)
			}
			return nil, nil
		})
		events := collect(t, m, j.ID, 0)
		if n := len(events); n < 90 || n > 110 {
			t.Errorf("%d events in 10 s, want about 100", n)
		}
		var last contract.Narration
		if err := json.Unmarshal(events[len(events)-2].Data, &last); err != nil || last.Progress.Done != 999 {
			t.Errorf("the last progress is %+v, %v", last.Progress, err)
		}
	})
}

func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{NodeID: "n", MaxJobs: 3, MaxEvents: 10, Keep: time.Hour})
		chatty := start(t, m, func(_ context.Context, n *Narrator) (any, error) {
			n.Info("first", "kept before progress is")
			for i := range 50 {
				time.Sleep(time.Second)
				n.Progress("p", "x", contract.Progress{Done: uint64(i)})
			}
			return nil, nil
		})
		time.Sleep(time.Minute)
		events := collect(t, m, chatty.ID, 0)
		if len(events) != 10 || events[0].Seq != 1 || events[9].Name != contract.JobEventDone {
			t.Errorf("%d events, first %d", len(events), events[0].Seq)
		}
		block := func(ctx context.Context, _ *Narrator) (any, error) { <-ctx.Done(); return nil, ctx.Err() }
		for range 2 {
			start(t, m, block)
		}
		start(t, m, block) // takes the place of the finished job
		if _, err := m.Get(chatty.ID); fault.KindOf(err) != fault.NotFound {
			t.Errorf("the oldest finished job is still there: %v", err)
		}
		if _, err := m.Start("Test", "", block); fault.KindOf(err) != fault.Exhausted {
			t.Errorf("a fourth running job: %v", err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Start("Test", "", block); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("a job after Close: %v", err)
		}
		if n := len(m.List()); n != 3 {
			t.Errorf("%d jobs", n)
		}
		time.Sleep(61 * time.Minute)
		if n := len(m.List()); n != 0 {
			t.Errorf("%d jobs an hour after their end", n)
		}
	})
}

// TestReadsMakeRoom wants what is only looked at to be forgotten before what was done.
func TestReadsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{NodeID: "n", MaxJobs: 10})
		run := func(operation string, err error) string {
			j, startErr := m.Start(operation, "", func(context.Context, *Narrator) (any, error) { return 1, err })
			if startErr != nil {
				t.Fatal(startErr)
			}
			synctest.Wait()
			return j.ID
		}
		spawn := run(contract.OpWorkerSpawn, nil)
		for range 50 {
			run(contract.OpWorkerList, nil)
		}
		failed := run(contract.OpWorkerGet, fault.New(fault.NotFound, "worker_not_found", "No such worker."))
		if _, err := m.Get(spawn); err != nil {
			t.Errorf("50 reads pushed out the spawn: %v", err)
		}
		if n := len(m.List()); n != 10 {
			t.Errorf("%d jobs, want 10", n)
		}
		time.Sleep(2 * readKeep)
		if jobs := m.List(); len(jobs) != 1 || jobs[0].ID != spawn {
			t.Errorf("after a while there are %+v, want only the spawn", jobs)
		}
		if _, err := m.Get(failed); fault.KindOf(err) != fault.NotFound {
			t.Errorf("a read that failed is still there: %v", err)
		}
	})
}

func TestListLeavesReadsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{NodeID: "n"})
		h := server(m, nil)
		for operation, err := range map[string]error{contract.OpWorkerSpawn: nil, contract.OpModelList: nil,
			contract.OpWorkerGet: fault.New(fault.NotFound, "worker_not_found", "No such worker.")} {
			if _, err := m.Start(operation, "", func(context.Context, *Narrator) (any, error) { return 1, err }); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		for path, want := range map[string]int{"/v1/jobs": 1, "/v1/jobs?all=false": 1, "/v1/jobs?all=true": 3} {
			var jobs []contract.Job
			w := do(h, "GET", path, "", "")
			if err := json.Unmarshal(w.Body.Bytes(), &jobs); err != nil || len(jobs) != want || want == 1 && jobs[0].Operation != contract.OpWorkerSpawn {
				t.Errorf("%s: %v, %s", path, err, w.Body)
			}
		}
		if w := do(h, "GET", "/v1/jobs?all=some", "", ""); w.Code != 400 {
			t.Errorf("all=some: %d", w.Code)
		}
	})
}

// TestSubject: a list says what each job is about, bounded, and without what a URL may carry of secrets.
func TestSubject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{NodeID: "n"})
		h := server(m, func(string, json.RawMessage) (Func, error) {
			return func(context.Context, *Narrator) (any, error) { return 1, nil }, nil
		})
		long := strings.Repeat("ü", 150)
		for body, want := range map[string]string{
			`{"operation":"WorkerSpawn","model":"builtin:m","worker_id":"w-1"}`:                             "builtin:m",
			`{"operation":"WorkerDelete","worker_id":"w-1"}`:                                                "w-1",
			`{"operation":"ModelDownload","reference":"hf:a/b","hive_id":"h"}`:                              "hf:a/b",
			`{"operation":"HiveGet","hive_id":"h"}`:                                                         "h",
			`{"operation":"Status"}`:                                                                        "",
			`{"operation":"Odd","model":7}`:                                                                 "",
			`{"operation":"ModelDownload","reference":"url:https://u:canary@host/p/m.gguf?token=canary#x"}`: "url:https://host/p/m.gguf",
			`{"operation":"ModelDownload","reference":"url:https://u:canary@host"}`:                         "url:https://host",
			`{"operation":"ModelDownload","reference":"a\u001b[2Jb"}`:                                       "a[2Jb",
			`{"operation":"ModelDownload","reference":"` + long + `"}`:                                      long[:196] + "…",
		} {
			var accepted contract.JobAccepted
			if w := do(h, "POST", "/v1/jobs", body, ""); w.Code != 202 || json.Unmarshal(w.Body.Bytes(), &accepted) != nil {
				t.Errorf("%s: %d %s", body, w.Code, w.Body)
			}
			synctest.Wait()
			if j, err := m.Get(accepted.JobID); err != nil || j.Subject != want || len(j.Subject) > maxSubject {
				t.Errorf("%s: subject %q, want %q (%v)", body, j.Subject, want, err)
			}
		}
	})
}

func server(m *Manager, dispatch func(string, json.RawMessage) (Func, error)) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /v1/jobs", m.SubmitHandler(dispatch))
	mux.Handle("GET /v1/jobs", m.ListHandler(nil))
	mux.Handle("GET /v1/jobs/{id}", m.GetHandler())
	mux.Handle("GET /v1/jobs/{id}/stream", m.StreamHandler())
	mux.Handle("DELETE /v1/jobs/{id}", m.CancelHandler())
	return mux
}

func do(h http.Handler, method, path, body, last string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if last != "" {
		r.Header.Set("Last-Event-ID", last)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestHTTP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{NodeID: "n"})
		h := server(m, func(op string, body json.RawMessage) (Func, error) {
			if op != "Echo" {
				return nil, fault.New(fault.Invalid, "unknown_operation", "There is no operation %q.", op)
			}
			return func(_ context.Context, n *Narrator) (any, error) {
				n.Info("a", "line one\nline two")
				time.Sleep(25 * time.Second)
				return body, nil
			}, nil
		})
		for body, status := range map[string]int{"{": 400, "[]": 400, "{}": 400, `{"operation":"No"}`: 400, strings.Repeat(" ", maxBody+1): 413} {
			if w := do(h, "POST", "/v1/jobs", body, ""); w.Code != status || !strings.Contains(w.Body.String(), `"error":{"message":`) {
				t.Errorf("body %.20q: %d %s", body, w.Code, w.Body)
			}
		}
		w := do(h, "POST", "/v1/jobs", `{"operation":"Echo"}`, "")
		var a contract.JobAccepted
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil || w.Code != 202 || a.StreamURL != "/v1/jobs/"+a.JobID+"/stream" {
			t.Fatalf("%d %s", w.Code, w.Body)
		}
		got := do(h, "GET", a.StreamURL, "", "").Body.String()
		if strings.Count(got, ": still running") != 2 || strings.Count(got, "event: ") != 2 || strings.Count(got, "\nevent: done\n") != 1 ||
			!strings.HasPrefix(got, "id: 1\nevent: narration\ndata: {") || !strings.HasSuffix(got, "data: {\"result\":{\"operation\":\"Echo\"}}\n\n") {
			t.Errorf("stream:\n%s", got)
		}
		if rest := do(h, "GET", a.StreamURL, "", "1").Body.String(); !strings.HasPrefix(rest, "id: 2\nevent: done") {
			t.Errorf("after event 1: %q", rest)
		}
		if w := do(h, "GET", a.StreamURL, "", "2"); w.Code != http.StatusNoContent {
			t.Errorf("after the terminal event: %d", w.Code)
		}
		if w := do(h, "GET", a.StreamURL, "", "x"); w.Code != 400 {
			t.Errorf("a bad Last-Event-ID: %d", w.Code)
		}
		if w := do(h, "GET", "/v1/jobs/none", "", ""); w.Code != 404 || !strings.Contains(w.Body.String(), "job_not_found") {
			t.Errorf("no job: %d %s", w.Code, w.Body)
		}
		if w := do(h, "DELETE", "/v1/jobs/"+a.JobID, "", ""); w.Code != 409 || !strings.Contains(w.Body.String(), `"code":"job_over"`) {
			t.Errorf("cancel of a job that is over: %d %s", w.Code, w.Body)
		}
		w = do(h, "POST", "/v1/jobs", `{"operation":"Echo"}`, "")
		if err := json.Unmarshal(w.Body.Bytes(), &a); err != nil {
			t.Fatal(err)
		}
		if w := do(h, "DELETE", "/v1/jobs/"+a.JobID, "", ""); w.Code != 202 {
			t.Errorf("cancel: %d", w.Code)
		}
		time.Sleep(time.Minute)
		if w := do(h, "GET", "/v1/jobs", "", ""); !strings.HasPrefix(w.Body.String(), fmt.Sprintf(`[{"id":%q`, a.JobID)) {
			t.Errorf("list: %s", w.Body)
		}
	})
}
