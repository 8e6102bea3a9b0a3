package metrics

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestMetrics(t *testing.T) {
	m := New()
	m.Request("smol", 503, 2*time.Second)
	m.Request("smol", -1, time.Second)
	m.Tokens("smol", 3, 0, 5)
	m.Retry()
	m.InFlight(2)
	m.InFlight(-1)
	m.Beat("worker", "dropped")
	m.Members(map[string]int{"alive": 2}, map[string]int{"lost": 1})
	m.Event("respawn")
	m.Job("WorkerSpawn", "done")
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	got := w.Body.String()
	for _, line := range []string{
		`apiary_requests_total{code="5xx",model="smol"} 1`, `apiary_requests_total{code="other",model="smol"} 1`,
		`apiary_request_duration_seconds_sum{model="smol"} 3`, `apiary_tokens_total{kind="completion",model="smol"} 5`,
		`apiary_request_retries_total 1`, `apiary_requests_in_flight 1`, `apiary_beats_total{outcome="dropped",sender="worker"} 1`,
		`apiary_workers{liveness="alive"} 2`, `apiary_workers{liveness="down"} 0`, `apiary_hives{liveness="lost"} 1`,
		`apiary_registry_events_total{kind="respawn"} 1`, `apiary_jobs_total{operation="WorkerSpawn",state="done"} 1`, "go_goroutines",
	} {
		if !strings.Contains(got, line+"\n") && !strings.Contains(got, "\n"+line+" ") {
			t.Errorf("%q is missing", line)
		}
	}
	if strings.Contains(got, `kind="cached"`) {
		t.Error("a count of zero made a series")
	}
	var none *Metrics // counts nothing and does not panic
	none.Request("m", 200, 0)
	none.Tokens("m", 1, 1, 1)
	none.Retry()
	none.InFlight(1)
	none.Beat("hive", "accepted")
	none.Members(nil, nil)
	none.Event("x")
	none.Job("x", "done")
	if w := httptest.NewRecorder(); true {
		none.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		if w.Code != 404 {
			t.Errorf("status %d without metrics", w.Code)
		}
	}
}
