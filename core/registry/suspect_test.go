package registry

import (
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestSuspectedHive: what others say of a hive makes it suspect until its next beat, never worse, and never an unknown one known.
func TestSuspectedHive(t *testing.T) {
	m := New(Params{}, 0)
	beat := contract.HiveBeat{ID: "h1", BootID: "b", Incarnation: 1, Sequence: 1, Address: "http://127.0.0.1:1"}
	state := func(now time.Duration) contract.Liveness {
		h, _ := m.Snapshot(now).Hive("h1")
		return h.Liveness
	}
	if fx := m.Step(time.Second, HiveSuspected{HiveID: "h1"}); len(fx) != 0 || len(m.Snapshot(time.Second).Hives) != 0 {
		t.Errorf("a hive that nobody knows: %+v", fx)
	}
	m.Step(20*time.Second, HiveBeat{Beat: beat})
	if fx := m.Step(21*time.Second, HiveSuspected{HiveID: "h1"}); len(fx) != 1 || fx[0].To != contract.LivenessSuspect {
		t.Errorf("effects %+v", fx)
	}
	if fx := m.Step(22*time.Second, HiveSuspected{HiveID: "h1"}); len(fx) != 0 {
		t.Errorf("said twice: %+v", fx)
	}
	if m.Step(23*time.Second, Tick{}); state(23*time.Second) != contract.LivenessSuspect {
		t.Errorf("after a tick it is %s", state(23*time.Second))
	}
	beat.Sequence++
	if m.Step(24*time.Second, HiveBeat{Beat: beat}); state(24*time.Second) != contract.LivenessAlive {
		t.Errorf("after a beat it is %s", state(24*time.Second))
	}
	m.Step(25*time.Second, HiveSuspected{HiveID: "h1"})
	for now := 26 * time.Second; now <= 43*time.Second; now += time.Second {
		if m.Step(now, Tick{}); now <= 24*time.Second+17500*time.Millisecond && state(now) != contract.LivenessSuspect {
			t.Errorf("at %s it is %s", now, state(now))
		}
	}
	if state(43*time.Second) != contract.LivenessDown {
		t.Errorf("its silence makes it down, and it is %s", state(43*time.Second))
	}
}
