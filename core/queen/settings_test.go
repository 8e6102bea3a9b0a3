package queen

import (
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// TestReconfigure: other names and workers hold at once, and what runs is left alone.
func TestReconfigure(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	a := startQueen(t, Options{Models: []Model{{Name: "before", Source: modelRef}}}, h)
	if got := a.run(spawnOp("before")); got.err != nil {
		t.Fatalf("%s\n%s", got.err, got.text())
	}
	old, changed := a.serving(modelID), a.Changed()
	kinds := append([]contract.WorkerKind{}, a.settings().Workers...)
	a.Reconfigure(Settings{Models: []Model{{Name: "after", Source: modelRef, Aliases: []string{"alias"}}}, Workers: kinds,
		Defaults: map[string]contract.WorkerSpawn{"llama": {Slots: 7}}, Deployments: []contract.Deployment{{Name: "chat"}}})
	select {
	case <-changed:
	default:
		t.Error("nobody is told")
	}
	if _, err := a.Resolve("before"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a name that is gone: %v", err)
	}
	for _, name := range []string{"after", "alias", modelRef} {
		if got, err := a.Resolve(name); err != nil || len(got.ModelIDs) != 1 || got.ModelIDs[0] != modelID {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	if now := a.serving(modelID); len(now) != 1 || len(old) != 1 || now[0].Info.ID != old[0].Info.ID {
		t.Errorf("%d serve it, and %d did", len(now), len(old))
	}
	if got := a.run(spawnOp("after")); got.err != nil {
		t.Fatal(got.err)
	}
	if s := h.spawned(); len(s) != 2 || s[0].Slots != 0 || s[1].Slots != 7 {
		t.Errorf("spawned %+v", s)
	}
}
