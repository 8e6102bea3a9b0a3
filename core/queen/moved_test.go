package queen

import (
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

// TestDemandWhereNobodyHoldsTheModel: a request for a model whose only holder takes nothing is served by another hive, which fetches it
// again, as `apiary explain` says; whether or not the engine is there already.
func TestDemandWhereNobodyHoldsTheModel(t *testing.T) {
	for _, engine := range []bool{true, false} {
		one, two := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine(), newFakeHive(t, "h2")
		if engine {
			two.withEngine()
		}
		a := startQueen(t, Options{Models: []Model{{Name: "smol", Source: modelRef}}}, one, two)
		a.until("both are known", func() bool { return a.acquainted() })
		if got := a.run(contract.HiveDrain{Operation: contract.OpHiveDrain, HiveID: "q1"}); got.err != nil {
			t.Fatal(got.err)
		}
		a.until("the other hive serves", func() bool {
			if d := a.Demand("smol"); d.Err != nil {
				t.Fatalf("engine %v: demand %+v", engine, d)
			}
			return len(a.serving(modelID)) == 1
		})
		if len(one.spawned()) != 0 || len(two.spawned()) != 1 {
			t.Errorf("engine %v: %d and %d spawns", engine, len(one.spawned()), len(two.spawned()))
		}
	}
}

// TestDemandSaysWhoHoldsTheModel: where no hive can take the model's worker, callers are told so by the name that they used, although the
// model's own name is one that they are not told.
func TestDemandSaysWhoHoldsTheModel(t *testing.T) {
	const ref = "file:/data/m.gguf"
	for _, other := range []bool{false, true} { // another hive, which does not have the file
		one, two := newFakeHive(t, "q1").withModel(ref+"@0123456789ab", ref).withEngine(), newFakeHive(t, "h2").withEngine()
		two.fail[contract.OpWorkerSpawn] = fault.New(fault.NotFound, codeModelNotFound, "There is no file /data/m.gguf.")
		hives := []*fakeHive{one}
		if other {
			hives = append(hives, two)
		}
		a := startQueen(t, Options{Models: []Model{{Name: "mine", Source: ref}}, Registry: registry.Params{Backoff: []time.Duration{0, time.Hour}}}, hives...)
		a.until("all are known", func() bool { return a.acquainted() })
		if got := a.run(contract.HiveDrain{Operation: contract.OpHiveDrain, HiveID: "q1"}); got.err != nil {
			t.Fatal(got.err)
		}
		var d registry.Demand
		a.until("it failed", func() bool { d = a.Demand("mine"); return d.Err != nil })
		e := fault.As(d.Err)
		if e.Code != "hive_unavailable" || e.Kind != fault.Unavailable || !strings.Contains(e.Message, `No hive that holds the model "mine" answers`) {
			t.Errorf("other %v: %q %q", other, e.Code, e.Message)
		}
	}
}

// TestDrainEndsWhatRequestsStarted: a drain says that a worker which requests started goes, too, and names as staying only those of people.
func TestDrainEndsWhatRequestsStarted(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	a := startQueen(t, Options{Placement: placement.Params{EvictIdle: 100 * time.Millisecond}}, h)
	a.until("requests are served", func() bool { a.Demand(modelRef); return len(a.serving(modelID)) == 1 })
	asked := a.serving(modelID)[0].Info.ID
	if got := a.run(spawnOp("echo:mine")); got.err != nil {
		t.Fatal(got.err)
	}
	mine := a.serving("echo:mine")[0].Info.ID
	got := a.run(contract.HiveDrain{Operation: contract.OpHiveDrain, HiveID: "q1"})
	if got.err != nil {
		t.Fatal(got.err)
	}
	if want := mine + " is of no deployment and stays; `apiary worker delete` ends it"; !strings.Contains(got.text(), want) {
		t.Errorf("it does not say %q:\n%s", want, got.text())
	}
	if want := asked + " was started by requests and ends when nobody uses it"; !strings.Contains(got.text(), want) {
		t.Errorf("it does not say %q:\n%s", want, got.text())
	}
	a.until("the worker that requests started ends", func() bool { return len(a.serving(modelID)) == 0 })
	if len(a.serving("echo:mine")) != 1 {
		t.Error("a person's worker ends")
	}
}
