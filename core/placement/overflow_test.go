package placement

import (
	"math"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestSizesDoNotOverflow: what a lying catalog or an absurd context makes of a size is more than there is anywhere, and not less than nothing.
func TestSizesDoNotOverflow(t *testing.T) {
	for _, e := range []Estimate{
		{Weights: 1 << 30, PerToken: 1 << 50, Fixed: 1}, {Weights: math.MaxUint64, PerToken: 1}, {Weights: 1 << 62, Fixed: 1 << 62, PerToken: 3}, {PerToken: math.MaxUint64},
		EstimateOf(math.MaxUint64, 0), EstimateOf(math.MaxUint64, math.MaxUint64), EstimateOf(1<<63, 0),
	} {
		for _, context := range []int{1, 8192, math.MaxInt64} {
			if n := e.size(context, 4); n < int64(1<<20*contract.GiB) {
				t.Errorf("%+v with a context of %d takes %d bytes", e, context, n)
			}
		}
	}
	if n := (Estimate{Weights: 1 << 30, PerToken: 1 << 10, Fixed: 5}).size(1024, 2); n != 1<<30+5+1<<21 {
		t.Errorf("a size of every day is %d", n)
	}
}
