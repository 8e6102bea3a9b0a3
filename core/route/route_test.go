package route_test

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/apiary-dev/apiary/core/route"
)

func TestPick(t *testing.T) {
	for _, tc := range []struct {
		name   string
		cands  []route.Candidate
		spread uint64
		want   int
		reason string
	}{
		{"none", nil, 0, -1, route.ReasonNone},
		{"one", []route.Candidate{{Slots: 1}}, 7, 0, route.ReasonOnly},
		{"full", []route.Candidate{{Slots: 2, InFlight: 2}, {InFlight: 1}}, 0, -1, route.ReasonFull},
		{"tried", []route.Candidate{{Slots: 2, Excluded: true}, {Slots: 1, InFlight: 1}}, 0, -1, route.ReasonTried},
		{"share of slots counts, not number", []route.Candidate{{Slots: 2, InFlight: 1}, {Slots: 8, InFlight: 3}}, 0, 1, route.ReasonLeastBusy},
		{"queue inside the worker counts", []route.Candidate{{Slots: 4, Queue: 3}, {Slots: 4, InFlight: 1}}, 0, 1, route.ReasonLeastBusy},
		{"slow start", []route.Candidate{{Slots: 4, Weight: 0.1}, {Slots: 4, InFlight: 3, Weight: 1}}, 1, 1, route.ReasonLeastBusy},
		{"slow start, others idle", []route.Candidate{{Slots: 4, Weight: 1}, {Slots: 4, Weight: 0.1}}, 19, 0, route.ReasonLeastBusy},
		{"slow start, its turn", []route.Candidate{{Slots: 4, Weight: 1}, {Slots: 4, Weight: 0.1}}, 20, 1, route.ReasonLeastBusy},
		{"slow start, its turn, busier", []route.Candidate{{Slots: 4, Weight: 1}, {Slots: 4, InFlight: 1, Weight: 0.1}}, 20, 0, route.ReasonLeastBusy},
		{"tie, first", []route.Candidate{{Slots: 1}, {Slots: 1, InFlight: 1}, {Slots: 1}}, 4, 0, route.ReasonLeastBusy},
		{"tie, second skips the full one", []route.Candidate{{Slots: 1}, {Slots: 1, InFlight: 1}, {Slots: 1}}, 5, 2, route.ReasonLeastBusy},
	} {
		if got, reason := route.Pick(tc.cands, route.Request{Spread: tc.spread}); got != tc.want || reason != tc.reason {
			t.Errorf("%s: got %d (%s), want %d (%s)", tc.name, got, reason, tc.want, tc.reason)
		}
	}
}

// What Pick returns can take the request and nothing else that can is less busy; with equal workers it takes turns.
func TestPickProperties(t *testing.T) {
	share := func(c route.Candidate, spread uint64) float64 {
		slots, busy := float64(max(c.Slots, 1)), float64(c.InFlight+c.Queue+1)
		switch turn := map[float64]uint64{0.1: 10, 0.5: 2}[c.Weight]; {
		case turn > 0 && spread%turn == 0:
			return (busy - 0.5) / slots
		case turn > 0:
			return busy / (slots * c.Weight)
		}
		return busy / slots
	}
	rapid.Check(t, func(t *rapid.T) {
		cands := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) route.Candidate {
			return route.Candidate{Slots: rapid.IntRange(0, 4).Draw(t, "slots"), InFlight: rapid.IntRange(0, 5).Draw(t, "inflight"),
				Queue: rapid.IntRange(0, 2).Draw(t, "queue"), Weight: rapid.SampledFrom([]float64{0, 0.1, 0.5, 1}).Draw(t, "weight"),
				Excluded: rapid.Bool().Draw(t, "excluded")}
		}), 0, 12).Draw(t, "candidates")
		usable := func(c route.Candidate) bool { return !c.Excluded && c.InFlight < max(c.Slots, 1) }
		spread := rapid.Uint64().Draw(t, "spread")
		got, reason := route.Pick(cands, route.Request{Spread: spread})
		if reason == "" {
			t.Fatal("no reason")
		}
		for _, c := range cands {
			if usable(c) && (got < 0 || share(c, spread) < share(cands[got], spread)) {
				t.Fatalf("picked %d although %+v is better", got, c)
			}
		}
		if got >= 0 && !usable(cands[got]) {
			t.Fatalf("picked %+v, which cannot take it", cands[got])
		}
	})
	seen := map[int]int{}
	equal := make([]route.Candidate, 5)
	for i := range 50 {
		k, _ := route.Pick(equal, route.Request{Spread: uint64(i)})
		seen[k]++
	}
	for k := range equal {
		if seen[k] != 10 {
			t.Errorf("worker %d of 5 equal ones got %d of 50 requests", k, seen[k])
		}
	}
}

func BenchmarkPick1000(b *testing.B) {
	cands := make([]route.Candidate, 1000)
	for i := range cands {
		cands[i] = route.Candidate{Slots: 8, InFlight: i % 7, Weight: 1}
	}
	b.ReportAllocs()
	for i := range b.N {
		route.Pick(cands, route.Request{Spread: uint64(i)})
	}
}
