package queen

import (
	"slices"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	hubRef = "hf:org/repo:Q4_K_M"
	hubID  = "hf:org/repo@0123456789:Q4_K_M"
)

// opens reports whether the ticket of a peer opens the files of the model there and nowhere else.
func opens(t *testing.T, p contract.Peer, model string) {
	t.Helper()
	permits, err := secret.OpenTicket(secret.ForHive(clusterKey, p.HiveID), p.Ticket, time.Now())
	if id, ok := contract.BlobsOfTicket(permits); err != nil || !ok || id != model || p.Model != model {
		t.Errorf("the ticket for %s permits %q, %v", p.HiveID, permits, err)
	}
	if _, err := secret.OpenTicket(secret.ForHive(clusterKey, "other"), p.Ticket, time.Now()); err == nil {
		t.Error("it is one of another hive too")
	}
}

func hiveIDs(peers []contract.Peer) (ids []string) {
	for _, p := range peers {
		ids = append(ids, p.HiveID)
	}
	return ids
}

// TestPeersAreNamed: whoever is to fetch a model that other hives hold is told of them, with tickets; by hand, for a deployment and for a
// model that is downloaded.
func TestPeersAreNamed(t *testing.T) {
	one := newFakeHive(t, "q1").withModel(hubID, hubRef).withModel("hf:org/two@1", "hf:org/two").withModel("builtin:b@1", "builtin:b").withEngine()
	two := newFakeHive(t, "h2").withEngine()
	a := startQueen(t, Options{}, one, two)
	a.until("both hives are known", a.reported)

	if got := a.run(contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: hubRef, HiveID: "h2", Peers: []contract.Peer{{HiveID: "evil"}}}); got.err != nil {
		t.Fatal(got.err)
	}
	two.mu.Lock()
	pull := two.pulls[0]
	two.mu.Unlock()
	if pull.Reference != hubRef || !slices.Equal(hiveIDs(pull.Peers), []string{"q1"}) || pull.Peers[0].URL != one.url || pull.Peers[0].Name != "q1-name" {
		t.Fatalf("it was asked for %+v", pull)
	}
	opens(t, pull.Peers[0], hubID)
	for _, ref := range []contract.ArtifactRef{{Reference: "builtin:b", HiveID: "h2"}, {Reference: "hf:org/new", HiveID: "h2"}, {Reference: hubRef, HiveID: "q1"}} {
		ref.Operation = contract.OpModelDownload
		if got := a.run(ref); got.err != nil {
			t.Fatal(got.err)
		}
	}
	for _, h := range []*fakeHive{one, two} {
		h.mu.Lock()
		for _, p := range h.pulls {
			if p.Reference != hubRef && p.Peers != nil || h == one && p.Peers != nil {
				t.Errorf("%s was given peers for %s: %+v", h.id, p.Reference, p.Peers)
			}
		}
		h.mu.Unlock()
	}

	spec := spawnOp("hf:org/two")
	spec.HiveID = "h2"
	if got := a.run(spec); got.err != nil {
		t.Fatalf("%s\n%s", got.err, got.text())
	}
	if s := two.spawned()[0]; !slices.Equal(hiveIDs(s.Peers), []string{"q1"}) {
		t.Errorf("the spawn names %+v", s.Peers)
	} else {
		opens(t, s.Peers[0], "hf:org/two@1")
	}
	for _, r := range a.recipes {
		if r.Peers != nil {
			t.Error("tickets are kept for a later spawn")
		}
	}
}

// TestPeersOfAPlan: a deployment on two hives has the second fetch from the first.
func TestPeersOfAPlan(t *testing.T) {
	one := newFakeHive(t, "q1").withModel(hubID, hubRef).withEngine()
	two := newFakeHive(t, "h2").withEngine()
	d := llamaDeployment("chat")
	d.Source, d.Model, d.Replicas = hubRef, "hub", contract.Replicas{Min: 2, Max: 2}
	a := startQueen(t, Options{Deployments: []contract.Deployment{d}}, one, two)
	a.until("a replica on each hive", func() bool { return slices.Equal(a.where(hubID), []string{"h2", "q1"}) })
	if s := two.spawned()[0]; !slices.Equal(hiveIDs(s.Peers), []string{"q1"}) {
		t.Errorf("the spawn names %+v", s.Peers)
	}
	if s := one.spawned()[0]; s.Peers != nil {
		t.Errorf("the spawn where the model is names %+v", s.Peers)
	}
}

func TestChoiceOfPeers(t *testing.T) {
	a := startQueen(t, Options{})
	hive := func(id, address string, models ...string) registry.Hive {
		inv := &contract.Inventory{HiveID: id, Digest: id}
		for _, m := range models {
			inv.Models = append(inv.Models, contract.Model{ID: m})
		}
		beat := contract.HiveBeat{ID: id, Name: id, BootID: "b", Incarnation: 1, Sequence: 1, Address: address, InventoryDigest: id}
		a.step(registry.HiveBeat{Beat: beat})
		a.step(registry.HiveInventory{Inventory: inv})
		h, _ := a.Snapshot().Hive(id)
		return h
	}
	to := hive("to", "http://10.0.0.1:7835")
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		hive(id, "http://10.0.0.2:7835", hubID)
	}
	hive("mine", "http://127.0.0.1:7835", hubID)
	hive("without", "http://10.0.0.3:7835", "hf:other@1")
	got := hiveIDs(a.peers(hubID, to, "f"))
	if len(got) != contract.MaxPeers || got[0] != "f" || slices.Contains(got, "mine") || slices.Contains(got, "without") {
		t.Errorf("peers %v", got)
	}
	if again := hiveIDs(a.peers(hubID, to, "f")); !slices.Equal(got, again) {
		t.Errorf("peers %v, then %v", got, again)
	}
	firsts := map[string]bool{}
	for _, id := range []string{"x1", "x2", "x3", "x4", "x5", "x6", "x7", "x8"} {
		firsts[a.peers(hubID, hive(id, "http://10.0.0.4:7835"), "")[0].HiveID] = true
	}
	if len(firsts) < 2 {
		t.Error("all begin with the same hive")
	}
	if got := hiveIDs(a.peers(hubID, hive("local", "http://127.0.0.1:7836"), "mine")); len(got) == 0 || got[0] != "mine" {
		t.Errorf("on one machine the peers are %v", got)
	}
	for _, id := range []string{"file:/models/m.gguf@1", "builtin:x@1", "hf:none"} {
		if got := a.peers(id, to, ""); got != nil {
			t.Errorf("%s has the peers %v", id, got)
		}
	}
}
