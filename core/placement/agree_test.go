package placement

import "testing"

// TestQueensThatRememberDifferentFailures start the same replica: were it the one that failed, a queen that was there then and one that was not
// would each leave the start to the other.
func TestQueensThatRememberDifferentFailures(t *testing.T) {
	knows := trio().with(Deployment{Name: "chat", Min: 2, Max: 4}).and(Worker{ID: "w0", Deployment: "chat", Replica: 0, Hive: "h1", Devices: []string{"cuda0"}},
		Worker{ID: "w2", Deployment: "chat", Replica: 2, Hive: "h1", Devices: []string{"cuda1"}, State: StateFailed})
	was := trio().with(Deployment{Name: "chat", Min: 2, Max: 4}).and(Worker{ID: "w0", Deployment: "chat", Replica: 0, Hive: "h1", Devices: []string{"cuda0"}})
	a, b := Make(knows), Make(was)
	if len(a.Actions) != 1 || len(b.Actions) != 1 || a.Actions[0].Key != b.Actions[0].Key || a.Actions[0].Key != "chat#1" {
		t.Errorf("%+v\n%+v", a.Actions, b.Actions)
	}
}
