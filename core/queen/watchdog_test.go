package queen

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/registry"
)

// TestWatchdogAtItsDefaults: a worker is asked for a token when it has had work and made no progress for 60 s, and not before.
func TestWatchdogAtItsDefaults(t *testing.T) {
	q, err := New(Options{NodeID: "q", ClusterKey: clusterKey, URL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if q.o.Watchdog.Stall != time.Minute || q.o.Watchdog.Answer != 30*time.Second {
		t.Fatalf("%+v", q.o.Watchdog)
	}
	type story struct {
		w      registry.Worker
		flight int
		// at each second, before the look: beats come every 5 s unless silent
		before func(now time.Duration, w *registry.Worker, d *watchdog)
		silent bool
		until  time.Duration // of the play
		want   []time.Duration
	}
	busy := func() registry.Worker {
		return registry.Worker{Liveness: contract.LivenessAlive, Info: contract.WorkerInfo{ID: "w", Status: contract.StatusReady, Incarnation: 1, SlotsBusy: 1, Progress: 7}}
	}
	idle := busy()
	idle.Info.SlotsBusy = 0
	draining := busy()
	draining.Draining = true
	loading := busy()
	loading.Info.Status = contract.StatusStarting
	s := time.Second
	for name, c := range map[string]story{
		"hangs":                     {w: busy(), until: 100 * s, want: []time.Duration{65 * s}}, // its first beat after a minute
		"is idle":                   {w: idle, until: 300 * s},
		"has a request of ours":     {w: idle, flight: 1, until: 100 * s, want: []time.Duration{65 * s}},
		"is being drained":          {w: draining, until: 300 * s},
		"loads":                     {w: loading, until: 300 * s},
		"does not beat any more":    {w: busy(), until: 300 * s, silent: true},
		"advances now and then":     {w: busy(), until: 300 * s, before: func(now time.Duration, w *registry.Worker, _ *watchdog) { w.Info.Progress = uint64(now / (50 * s)) }},
		"hangs after an idle time":  {w: idle, until: 300 * s, want: []time.Duration{160 * s}, before: func(now time.Duration, w *registry.Worker, _ *watchdog) { w.Info.SlotsBusy = int(now / (100 * s)) }},
		"gave a request up":         {w: busy(), until: 100 * s, want: []time.Duration{65 * s}, before: gaveUp},
		"asked again":               {w: busy(), until: 160 * s, want: []time.Duration{65 * s, 130 * s}, before: func(now time.Duration, _ *registry.Worker, d *watchdog) { answeredAt(d, now, 70*s) }},
		"another run with that id":  {w: busy(), until: 100 * s, want: nil, before: func(now time.Duration, w *registry.Worker, _ *watchdog) { w.Info.Incarnation = 1 + int64(now/(50*s)) }},
		"this process stands still": {w: busy(), until: 100 * s, want: nil, before: func(now time.Duration, _ *registry.Worker, d *watchdog) { pausedAt(d, now, 50*s) }},
	} {
		t.Run(name, func(t *testing.T) {
			d := &watchdog{stall: q.o.Watchdog.Stall, all: map[string]*watched{}}
			var asked []time.Duration
			for now := s; now <= c.until; now += s {
				if c.before != nil {
					c.before(now, &c.w, d)
				}
				if now%(5*s) == 0 && !(c.silent && now > 20*s) {
					c.w.BeatAt = now
				}
				for range d.look(now, &registry.Snapshot{Workers: []registry.Worker{c.w}}, func(string) int { return c.flight }) {
					asked = append(asked, now)
				}
			}
			if len(asked) != len(c.want) {
				t.Fatalf("asked at %v, want %v", asked, c.want)
			}
			for i := range asked {
				if asked[i] != c.want[i] {
					t.Errorf("asked at %v, want %v", asked, c.want)
				}
			}
		})
	}
}

// gaveUp has the gateway give up the only request after a minute: the slot is free then, and the worker hangs all the same.
func gaveUp(now time.Duration, w *registry.Worker, d *watchdog) {
	if now == 61*time.Second {
		d.stalled(w.Info.ID)
		w.Info.SlotsBusy = 0
	}
}

func answeredAt(d *watchdog, now, at time.Duration) {
	if now == at {
		d.answered("w", now)
	}
}

func pausedAt(d *watchdog, now, at time.Duration) {
	if now == at {
		d.looked = now - 10*time.Second
	}
}

// TestWorkerThatHangsIsStartedAgain: also one that ends politely when it is told to.
func TestWorkerThatHangsIsStartedAgain(t *testing.T) {
	h := newFakeHive(t, "q1")
	var n atomic.Int32
	h.behave = func(w *fakeWorker) {
		if n.Add(1) == 1 {
			w.busy = 1 // and nobody listens on its port
		}
	}
	a := startQueen(t, Options{Watchdog: Watchdog{Stall: 200 * time.Millisecond, Answer: 100 * time.Millisecond}, Deployments: []contract.Deployment{echoDeployment("chat", 1, 1)}}, h)
	a.until("another worker serves", func() bool { return len(h.spawned()) == 2 && len(a.serving(echoModel)) == 1 })
	first := h.spawned()[0].WorkerID
	if x, ok := a.exit(first); !ok || x.Signal != 9 {
		t.Errorf("the end of %s counts as %+v", first, x)
	}
	if v := a.verdict(registry.Slot{ModelID: echoModel, HiveID: "q1", Device: "cpu0"}); v.Exit != nil && v.Exit.WorkerID != first {
		t.Errorf("verdict %+v", v)
	}
	if h.did(contract.OpWorkerDelete) != 1 {
		t.Errorf("%d workers were ended", h.did(contract.OpWorkerDelete))
	}
}

// TestWorkerThatGivesATokenIsSpared, however long a request of it lasts.
func TestWorkerThatGivesATokenIsSpared(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req contract.InferRequest
		if err := httpd.ReadJSON(r, &req); err != nil || r.URL.Path != "/v1/infer" || req.MaxTokens == nil || *req.MaxTokens != 1 {
			t.Errorf("asked %s for %+v: %v", r.URL.Path, req, err)
		}
		asked.Add(1)
		httpd.WriteJSON(w, http.StatusOK, contract.InferResponse{Text: "b", FinishReason: contract.FinishLength})
	}))
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	port, _ := strconv.Atoi(u.Port())
	h := newFakeHive(t, "q1")
	h.behave = func(w *fakeWorker) { w.busy, w.port = 1, port }
	a := startQueen(t, Options{Watchdog: Watchdog{Stall: 200 * time.Millisecond, Answer: 5 * time.Second}, Deployments: []contract.Deployment{echoDeployment("chat", 1, 1)}}, h)
	a.until("it was asked twice", func() bool { return asked.Load() >= 2 })
	if h.did(contract.OpWorkerDelete) != 0 || len(h.spawned()) != 1 {
		t.Errorf("%d workers were ended, %d started", h.did(contract.OpWorkerDelete), len(h.spawned()))
	}
}
