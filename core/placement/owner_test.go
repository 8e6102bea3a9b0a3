package placement

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestKey(t *testing.T) {
	for _, c := range []struct {
		key        string
		deployment string
		replica    int
		ok         bool
	}{{"chat#0", "chat", 0, true}, {"a#b#12", "a#b", 12, true}, {"hf:org/m@1#3", "hf:org/m@1", 3, true}, {"#1", "", 0, false}, {"chat", "", 0, false},
		{"chat#", "", 0, false}, {"chat#-1", "", 0, false}, {"chat#01", "", 0, false}, {"chat#+1", "", 0, false}} {
		d, n, ok := ParseKey(c.key)
		if d != c.deployment || n != c.replica || ok != c.ok {
			t.Errorf("%s is %q %d %v", c.key, d, n, ok)
		}
		if ok && Key(d, n) != c.key {
			t.Errorf("%s is made again as %s", c.key, Key(d, n))
		}
	}
}

func queens(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("01J%08d", i)
	}
	return out
}

func TestOwnersAreBalanced(t *testing.T) {
	const keys = 10_000
	for _, n := range []int{2, 3, 5, 8} {
		count := map[string]int{}
		for i := range keys {
			count[Owner(Key(fmt.Sprintf("model-%d", i/4), i%4), queens(n))]++
		}
		for q, c := range count {
			if mean := keys / n; c < mean*9/10 || c > mean*11/10 {
				t.Errorf("queen %s of %d owns %d of %d keys", q, n, c, keys)
			}
		}
		if len(count) != n {
			t.Errorf("%d of %d queens own something", len(count), n)
		}
	}
}

// TestOwnersHardlyMove: when a queen goes, only its keys change hands, and come back with it; the order of the queens does not matter.
func TestOwnersHardlyMove(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		all := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9]{1,12}`), 1, 8, rapid.ID).Draw(t, "queens")
		key := rapid.StringMatching(`[a-z/:]{1,20}#[0-9]`).Draw(t, "key")
		owner := Owner(key, all)
		if got := Owner(key, rapid.Permutation(all).Draw(t, "other order")); got != owner {
			t.Fatalf("%s belongs to %s or %s", key, owner, got)
		}
		left := rapid.SampledFrom(all).Draw(t, "leaves")
		rest := slices.DeleteFunc(slices.Clone(all), func(q string) bool { return q == left })
		if got := Owner(key, rest); owner != left && got != owner {
			t.Fatalf("%s went from %s to %s when %s left", key, owner, got, left)
		}
	})
	if Owner("chat#0", nil) != "" {
		t.Error("without queens nobody owns anything")
	}
}
