package queen

import (
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestManyReplicasStartInTurns: a deployment of many replicas that all fit does not start them all at once, and gets them.
func TestManyReplicasStartInTurns(t *testing.T) {
	h := newFakeHive(t, "q1")
	h.behave = func(w *fakeWorker) { w.loadFor = 200 * time.Millisecond }
	a := startQueen(t, Options{Deployments: []contract.Deployment{echoDeployment("chat", 3*maxBegun, 3*maxBegun)}}, h)
	most := 0
	a.until("all serve", func() bool {
		a.deploy.mu.Lock()
		most = max(most, len(a.deploy.pending))
		a.deploy.mu.Unlock()
		return len(a.serving(echoModel)) == 3*maxBegun
	})
	if most > maxBegun || most < 2 {
		t.Errorf("%d workers were begun at once", most)
	}
	if n := len(h.spawned()); n != 3*maxBegun {
		t.Errorf("%d spawns", n)
	}
}
