package queen

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// gossipBeat is the beat that a fake hive would send by gossip.
func gossipBeat(h *fakeHive) contract.HiveBeat {
	digest := h.inventory().Digest
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seq++
	return contract.HiveBeat{ID: h.id, Name: h.id + "-name", BootID: "boot", Incarnation: 1, Sequence: h.seq, Address: h.url, InventoryDigest: digest}
}

func (a *agent) hiveState(id string) contract.Liveness {
	h, _ := a.Snapshot().Hive(id)
	return h.Liveness
}

// TestHiveHeardByGossip: a hive that nobody configured is known from its beats; its inventory is fetched when the digest changes,
// and while beats are missing it is asked.
func TestHiveHeardByGossip(t *testing.T) {
	h := newFakeHive(t, "h1").withModel(modelID, modelRef).withEngine()
	a := startQueen(t, Options{})
	a.HeardHive(gossipBeat(h))
	a.until("its inventory is known", func() bool {
		h, _ := a.Snapshot().Hive("h1")
		return h.Inventory != nil && len(h.Inventory.Models) == 1
	})
	for range 3 {
		a.HeardHive(gossipBeat(h))
	}
	if n := h.asked.Load(); n != 1 {
		t.Errorf("the inventory was asked for %d times and has not changed", n)
	}
	h.withModel("builtin:other@0123456789ab", "builtin:other")
	a.HeardHive(gossipBeat(h))
	a.until("the change is known", func() bool { h, _ := a.Snapshot().Hive("h1"); return len(h.Inventory.Models) == 2 })
	h.mu.Lock()
	seq := h.seq
	h.mu.Unlock()
	a.until("without beats the hive is asked", func() bool { h, _ := a.Snapshot().Hive("h1"); return h.Beat.Sequence > seq })
	if got := a.run(spawnOp(modelRef)); got.err != nil {
		t.Errorf("a spawn on it: %s\n%s", got.err, got.text())
	}
	for name, bad := range map[string]func(*contract.HiveBeat){"no digest": func(b *contract.HiveBeat) { b.InventoryDigest = "" }, "an address that is none": func(b *contract.HiveBeat) { b.Address = "file:///" }} {
		b := gossipBeat(h)
		b.ID = "h2"
		bad(&b)
		if a.HeardHive(b); a.hiveState("h2") != "" {
			t.Errorf("a beat with %s is taken", name)
		}
	}
}

// TestHiveThatMoves: a hive that was started again at another address is called there.
func TestHiveThatMoves(t *testing.T) {
	old, now := newFakeHive(t, "h1"), newFakeHive(t, "h1").withModel(modelID, modelRef)
	a := startQueen(t, Options{})
	a.HeardHive(gossipBeat(old))
	a.until("it is known", func() bool { return a.hiveState("h1") == contract.LivenessAlive })
	b := gossipBeat(now)
	b.Incarnation = 2
	a.HeardHive(b)
	a.until("it is called where it is now", func() bool {
		h, _ := a.Snapshot().Hive("h1")
		return h.Beat.Address == now.url && h.Inventory != nil && len(h.Inventory.Models) == 1
	})
	if n := len(*a.links.Load()); n != 1 {
		t.Errorf("there are %d links", n)
	}
}

// TestMembers: queens are told to workers and hives, and a hive whose member is suspect is suspect until its next beat, once.
func TestMembers(t *testing.T) {
	h := newFakeHive(t, "h1").withModel(modelID, modelRef).withEngine()
	var mu sync.Mutex
	members := []contract.Member{{ID: "q1", Name: "q1", Queen: "http://127.0.0.1:1", Self: true, Roles: []string{"queen"}, State: contract.MemberAlive, Address: "127.0.0.1:2", Start: "0"},
		{ID: "q2", Name: "q2", Queen: "http://127.0.0.1:9", State: contract.MemberAlive, Roles: []string{"queen"}, Address: "127.0.0.1:3", Start: "0"},
		{ID: "q3", Name: "q3", Queen: "http://127.0.0.1:8", State: contract.MemberLeft, Roles: []string{"queen"}, Address: "127.0.0.1:4", Start: "0"},
		{ID: "h1", Name: "h1", Hive: h.url, State: contract.MemberAlive, Roles: []string{"hive"}, Address: "127.0.0.1:5", Start: "0"}}
	list := func() []contract.Member {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(members)
	}
	changed := contract.KeyChange{}
	a := startQueen(t, Options{Members: list, Interval: time.Minute, ChangeKeys: func(_ context.Context, c contract.KeyChange) error {
		changed = c
		return nil
	}})
	a.HeardHive(gossipBeat(h))
	a.until("the hive is known", func() bool { h, _ := a.Snapshot().Hive("h1"); return h.Inventory != nil })
	if got := a.queens(); !slices.Equal(got, []string{a.base, "http://127.0.0.1:9"}) {
		t.Errorf("queens %v", got)
	}
	if got := a.run(spawnOp(modelRef)); got.err != nil || !slices.Equal(h.spawned()[0].QueenURLs, a.queens()) {
		t.Errorf("spawned %+v, %v", h.spawned(), got.err)
	}
	mu.Lock()
	members[3].State = contract.MemberSuspect
	mu.Unlock()
	a.MembersChanged()
	a.until("it is suspect", func() bool { return a.hiveState("h1") == contract.LivenessSuspect })
	a.HeardHive(gossipBeat(h))
	a.until("a beat clears it", func() bool { return a.hiveState("h1") == contract.LivenessAlive })
	a.MembersChanged()
	time.Sleep(100 * time.Millisecond)
	if s := a.hiveState("h1"); s != contract.LivenessAlive {
		t.Errorf("one suspicion counts twice: %s", s)
	}
	for _, op := range []any{struct {
		Operation string `json:"operation"`
	}{contract.OpMemberList}, contract.KeyChange{Operation: contract.OpMemberKeys, Action: contract.KeyUse, Fingerprint: "01234567"}} {
		if got := a.run(op); got.err != nil {
			t.Errorf("%+v: %v", op, got.err)
		}
	}
	if changed.Action != contract.KeyUse {
		t.Errorf("changed %+v", changed)
	}
	alone := startQueen(t, Options{})
	if got := alone.run(contract.KeyChange{Operation: contract.OpMemberKeys, Action: contract.KeyUse, Fingerprint: "01234567"}); got.err == nil || fault.KindOf(got.err) != fault.Unavailable {
		t.Errorf("keys without gossip: %v", got.err)
	}
	if v := fmt.Sprint(alone.queens()); v != "["+alone.base+"]" {
		t.Errorf("a queen alone: %s", v)
	}
}
