package queen

import (
	"slices"
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

// TestSetHives: a hive that is configured while the queen runs is asked from then on, and one that is taken out is forgotten, unless it
// is known by its beats.
func TestSetHives(t *testing.T) {
	h1, h2, h3 := newFakeHive(t, "h1"), newFakeHive(t, "h2").withModel(modelID, modelRef), newFakeHive(t, "h3")
	members := []contract.Member{{ID: "h3", Hive: h3.url, State: contract.MemberAlive}}
	a := startQueen(t, Options{Members: func() []contract.Member { return members }}, h1, h3)
	known := func(want ...string) func() bool {
		return func() bool {
			var ids []string
			for _, h := range a.Snapshot().Hives {
				ids = append(ids, h.Beat.ID)
			}
			slices.Sort(ids)
			return slices.Equal(ids, want)
		}
	}
	a.until("the first ones are known", known("h1", "h3"))
	a.SetHives([]string{h1.url, h3.url, h2.url})
	a.until("the new one is known", known("h1", "h2", "h3"))
	a.until("it is used", func() bool {
		h, _ := a.Snapshot().Hive("h2")
		return h.Inventory != nil && len(h.Inventory.Models) == 1
	})
	a.SetHives([]string{h1.url, h3.url, h2.url}) // changes nothing
	if n := len(*a.links.Load()); n != 3 {
		t.Errorf("there are %d links", n)
	}
	a.SetHives([]string{h1.url})
	a.until("the one is forgotten, and the member stays", known("h1", "h3"))
	if n := len(*a.links.Load()); n != 1 {
		t.Errorf("there are %d links", n)
	}
	a.HeardHive(gossipBeat(h3))
	a.SetHives([]string{h1.url, h3.url}) // known by gossip already
	if n := len(*a.links.Load()); n != 2 {
		t.Errorf("there are %d links", n)
	}
	a.SetHives([]string{h1.url})
	if n := len(*a.links.Load()); n != 2 {
		t.Errorf("a member lost its link: %d", n)
	}
	a.SetHives([]string{h1.url, "nonsense"})
	if n := len(*a.links.Load()); n != 2 {
		t.Errorf("a base URL that is none has a link: %d", n)
	}
}
