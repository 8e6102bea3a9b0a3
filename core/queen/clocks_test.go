package queen

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// TestRecordsUnderOtherNames: a record that does not hold what its key names is of no account, whoever wrote it.
func TestRecordsUnderOtherNames(t *testing.T) {
	b, err := openBook("", "q1")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.apply([]contract.Deployment{echoDeployment("chat", 1, 1)}); err != nil {
		t.Fatal(err)
	}
	value, _ := json.Marshal(echoDeployment("chat", 1, 1))
	for i := range 3 {
		r := contract.Record{Kind: contract.RecordDeployment, Key: fmt.Sprintf("other%d", i), Value: value, Time: time.Now().UnixMilli(), Node: "q2"}
		if changed, _, _ := b.merge([]contract.Record{r}); !changed {
			t.Error("it is not taken")
		}
	}
	if list := b.deployments(); len(list) != 1 {
		t.Errorf("%d deployments", len(list))
	}
	if err := b.apply(nil); err != nil {
		t.Fatal(err)
	}
	if list := b.deployments(); len(list) != 0 {
		t.Errorf("%d deployments after all were taken back", len(list))
	}
}

// TestEndOfRecordTime: what this queen writes is taken by others however late its clock is; where no room is left, that is said.
func TestEndOfRecordTime(t *testing.T) {
	b, err := openBook("", "q1")
	if err != nil {
		t.Fatal(err)
	}
	b.now = func() time.Time { return time.Date(2150, 1, 1, 0, 0, 0, 0, time.UTC) }
	other, err := openBook("", "q2")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := b.apply([]contract.Deployment{echoDeployment("chat", n+1, n+1)}); err != nil {
			t.Fatal(err)
		}
		list, _, _ := b.since(0)
		if changed, refused, _ := other.merge(list); !changed || refused != nil || other.deployments()[0].Replicas.Min != n+1 {
			t.Errorf("records of 2150: %v", refused)
		}
	}
	last := contract.Record{Kind: contract.RecordDrain, Key: "h", Value: json.RawMessage("true"), Time: maxRecordTime - 1, Count: maxRecordCount, Node: "q3"}
	if changed, _, _ := b.merge([]contract.Record{last}); !changed {
		t.Fatal("it is not taken")
	}
	if e := fault.As(b.drain("h2", true)); e == nil || e.Code != "records_at_end" || len(b.drained()) != 1 {
		t.Errorf("a record that nobody would take is written: %v", e)
	}
}

// TestQueenWhoseClockWasAhead: a queen that ran with its clock in the future, and starts again when that was mended, is believed as soon
// as it answers, and without that once the former run is silent.
func TestQueenWhoseClockWasAhead(t *testing.T) {
	q, err := New(Options{NodeID: "q1", ClusterKey: clusterKey, URL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.stop)
	p := q.company.find("q2", true)
	said := func(start string, sequence uint64, leaving bool) contract.QueenSync {
		return contract.QueenSync{State: contract.QueenState{NodeID: "q2", Start: start, Sequence: sequence, Leaving: leaving}}
	}
	leaves := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.state.Leaving
	}
	q.company.hear(p, said("9", 7, true), false)
	q.company.hear(p, said("5", 1, false), false)
	if !leaves() {
		t.Error("a message from a former run, which came late, is believed")
	}
	q.company.hear(p, said("5", 2, false), true)
	if leaves() {
		t.Error("an answer is not believed")
	}
	q.company.hear(p, said("9", 8, true), false)
	if !leaves() {
		t.Error("a later run is not believed")
	}
	q.start = q.start.Add(-q.company.down() - time.Second) // so much time passes
	q.company.hear(p, said("6", 1, false), false)
	if leaves() {
		t.Error("a run is not believed although the former one is silent")
	}
}
