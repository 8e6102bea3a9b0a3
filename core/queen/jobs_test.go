package queen

import (
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// get asks this queen for JSON.
func (a *agent) getJSON(path string, out any) int {
	a.t.Helper()
	res, err := send(a.http, "GET", a.base+path, "", nil)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	if err := json.Unmarshal(b, out); err != nil {
		a.t.Fatalf("%s: %s", path, b)
	}
	return res.StatusCode
}

// TestJobsOfOtherQueens: a job is listed, followed while it runs, and cancelled at any queen; where its queen is away that is said.
func TestJobsOfOtherQueens(t *testing.T) {
	h := newHall(t)
	v := newFakeHive(t, "h1").withEngine()
	v.hold = make(chan struct{})
	a, b := h.start("q1", Options{}, v), h.start("q2", Options{}, v)
	h.together()
	id := a.submit(contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: modelRef})
	var j contract.Job
	if code := b.getJSON("/v1/jobs/"+id, &j); code != 200 || j.ID != id || j.State != contract.JobRunning {
		t.Errorf("at the other queen: %d %+v", code, j)
	}
	var list []contract.Job
	if code := b.getJSON("/v1/jobs", &list); code != 200 || !slices.ContainsFunc(list, func(j contract.Job) bool { return j.ID == id }) {
		t.Errorf("listed at the other queen: %d %+v", code, list)
	}
	// The story comes while the job runs.
	res, err := send(b.http, "GET", b.base+"/v1/jobs/"+id+"/stream", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, 0, 4096)
	for buf := make([]byte, 512); !strings.Contains(string(seen), "fetching"); {
		n, err := res.Body.Read(buf)
		if seen = append(seen, buf[:n]...); err != nil {
			t.Fatalf("%v after %s", err, seen)
		}
	}
	close(v.hold)
	rest, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil || !strings.Contains(string(rest), "event: done") {
		t.Errorf("the end of the story: %v %s", err, rest)
	}
	if got := b.follow(id); got.state != contract.JobEventDone || !strings.Contains(got.text(), "fetching") {
		t.Errorf("followed later: %+v", got)
	}
	v.behave = func(w *fakeWorker) { w.loadFor = 30 * time.Second }
	id = a.submit(spawnOp(modelRef))
	a.until("it loads", func() bool { return len(v.workers()) == 1 })
	res, err = send(b.http, "DELETE", b.base+"/v1/jobs/"+id, "", nil)
	if err != nil || res.StatusCode != 202 {
		t.Fatalf("cancelled at the other queen: %v %v", res, err)
	}
	_ = res.Body.Close()
	if got := b.follow(id); got.state != contract.JobEventCancelled {
		t.Errorf("it ended as %q", got.state)
	}
	h.split(true, []string{"q2"}, []string{"q1"})
	var e contract.ErrorBody
	if code := b.getJSON("/v1/jobs/"+id, &e); code != 503 || e.Error.Code != "queen_away" || !strings.Contains(e.Error.Message, "q1") {
		t.Errorf("a job of a queen that is away: %d %+v", code, e)
	}
	if code := b.getJSON("/v1/jobs/q9-0123456789abcdef", &e); code != 404 {
		t.Errorf("a job of nobody: %d", code)
	}
	if code := b.getJSON("/v1/jobs", &list); code != 200 {
		t.Errorf("the list: %d", code)
	}
	if res, err := send(a.http, "GET", a.base+peerJobs, "", nil); err != nil || res.StatusCode != 401 {
		t.Errorf("another queen's list without its secret: %v %v", res, err)
	}
}
