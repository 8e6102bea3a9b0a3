package queen

import (
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/placement"
)

// TestSaysOnlyWhatIsHeard: a name that a client or a hive has made up does not make other queens refuse all that this one says.
func TestSaysOnlyWhatIsHeard(t *testing.T) {
	queued := map[string]int{"echo:chat": 2, "a\u0007b": 1, "": 3, strings.Repeat("x", 2000): 1, "much": 1 << 40}
	q, err := New(Options{NodeID: "q1", ClusterKey: clusterKey, URL: "http://127.0.0.1:1", Queued: func() map[string]int { return queued }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.stop)
	for id, model := range map[string]string{"echo-1": "echo:chat", "echo-2": "file:/a\u202eb"} {
		q.deploy.pending[id] = pending{model: model, action: placement.Action{Deployment: "chat", Place: placement.Place{Hive: "h1", Device: "cpu0"}}}
	}
	st := q.company.state()
	if err := checkState(st); err != nil {
		t.Errorf("others refuse it: %v", err)
	}
	if len(st.Queued) != 2 || st.Queued["echo:chat"] != 2 || st.Queued["much"] != maxCount || len(st.Pending) != 1 {
		t.Errorf("it says %+v", st)
	}
}
