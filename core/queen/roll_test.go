package queen

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
)

// TestRollingChange: while a deployment is rolled over somebody always serves it, old workers finish their requests before they end, and
// at most one more than there should be runs beside those.
func TestRollingChange(t *testing.T) {
	one, two := newFakeHive(t, "q1"), newFakeHive(t, "h2")
	for _, h := range []*fakeHive{one, two} {
		h.behave = func(w *fakeWorker) { w.loadFor = 50 * time.Millisecond }
	}
	var open sync.Map // worker → requests
	var ended atomic.Int32
	a := startQueen(t, Options{Deployments: []contract.Deployment{echoDeployment("chat", 2, 2)}, Placement: placement.Params{Warm: 200 * time.Millisecond},
		InFlight: func(id string) int {
			if n, ok := open.Load(id); ok {
				return n.(int)
			}
			return 0
		}}, one, two)
	a.until("both serve", func() bool { return len(a.serving(echoModel)) == 2 && !a.placing() })
	old := map[string]bool{}
	for _, w := range a.serving(echoModel) {
		old[w.Info.ID] = true
		open.Store(w.Info.ID, 1)
	}
	d := echoDeployment("chat", 2, 2)
	d.Args = []string{"--slow"}
	id := a.submit(planOp(contract.OpApply, d))
	a.until("an old one is drained and has a request", func() bool {
		for _, w := range a.Snapshot().Workers {
			if old[w.Info.ID] && w.Draining {
				return true
			}
		}
		return false
	})
	time.Sleep(300 * time.Millisecond)
	there, draining := map[string]bool{}, 0
	for _, h := range []*fakeHive{one, two} {
		for _, w := range h.workers() {
			there[w.spec.WorkerID] = true
		}
	}
	for _, w := range a.Snapshot().Workers {
		if w.Draining {
			draining++
		}
	}
	for w := range old {
		if !there[w] {
			t.Errorf("worker %s ended and has a request", w)
		}
	}
	if n := len(there) - draining; n > 3 {
		t.Errorf("%d workers beside those that are drained", n)
	}
	for w := range old {
		open.Store(w, 0)
	}
	a.until("all are new", func() bool {
		serving := a.serving(echoModel)
		if len(serving) == 0 {
			ended.Add(1)
		}
		for _, w := range serving {
			if old[w.Info.ID] {
				return false
			}
		}
		return len(serving) == 2 && len(one.workers())+len(two.workers()) == 2
	})
	if ended.Load() != 0 {
		t.Error("for a while nobody served")
	}
	if got := a.follow(id); got.err != nil {
		t.Errorf("%s\n%s", got.err, got.text())
	}
	for _, w := range a.serving(echoModel) {
		if _, spec := readGeneration(w.Info.Generation); spec != specText(a.deploy.wish("chat").spec) {
			t.Errorf("worker %s is of another generation", w.Info.ID)
		}
	}
}
