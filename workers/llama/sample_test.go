package llama

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestArgmaxTakesTheFirstOfTheHighest(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		v := rapid.SliceOfN(rapid.Map(rapid.IntRange(-3, 3), func(i int) float32 { return float32(i) }), 1, 70).Draw(r, "scores")
		if got, want := int(argmax(v)), slices.Index(v, slices.Max(v)); got != want {
			t.Fatalf("argmax(%v) = %d, want %d", v, got, want)
		}
	})
	if got := argmax([]float32{float32(math.NaN()), float32(math.NaN())}); got != 0 {
		t.Errorf("of no numbers it takes %d", got)
	}
}

// frequencies draws n tokens from the scores.
func frequencies(s chooser, scores []float32, history []int32, n int) map[int32]float64 {
	out := map[int32]float64{}
	for range n {
		out[s.choose(slices.Clone(scores), history)] += 1 / float64(n)
	}
	return out
}

func TestSamplerChain(t *testing.T) {
	// Probabilities 0.4, 0.3, 0.2, 0.1, in no order.
	scores := make([]float32, 4)
	for i, p := range []float64{0.2, 0.4, 0.1, 0.3} {
		scores[i] = float32(math.Log(p)) + 5
	}
	chain := func(temperature, topP, minP float64, topK int, penalty float64) chooser {
		return newChooser(temperature, topP, minP, topK, penalty, 42)
	}
	for _, c := range []struct {
		name    string
		s       chooser
		history []int32
		want    map[int32]float64
	}{
		{"temperature 1", chain(1, 1, 0, 0, 1), nil, map[int32]float64{0: 0.2, 1: 0.4, 2: 0.1, 3: 0.3}},
		{"temperature 0.5", chain(0.5, 1, 0, 0, 1), nil, map[int32]float64{0: 4. / 30, 1: 16. / 30, 2: 1. / 30, 3: 9. / 30}},
		{"temperature 0", chain(0, 1, 0, 0, 1), nil, map[int32]float64{1: 1}},
		{"top-k 2", chain(1, 1, 0, 2, 1), nil, map[int32]float64{1: 4. / 7, 3: 3. / 7}},
		{"top-k 1", chain(1, 1, 0, 1, 1), nil, map[int32]float64{1: 1}},
		{"top-p 0.6", chain(1, 0.6, 0, 0, 1), nil, map[int32]float64{1: 4. / 7, 3: 3. / 7}},
		{"top-p 0.75", chain(1, 0.75, 0, 0, 1), nil, map[int32]float64{0: 2. / 9, 1: 4. / 9, 3: 3. / 9}},
		{"top-p 0.01", chain(1, 0.01, 0, 0, 1), nil, map[int32]float64{1: 1}},
		{"min-p 0.6", chain(1, 1, 0.6, 0, 1), nil, map[int32]float64{1: 4. / 7, 3: 3. / 7}},
		{"top-k 3 then top-p 0.7", chain(1, 0.7, 0, 3, 1), nil, map[int32]float64{1: 4. / 7, 3: 3. / 7}},
		{"greedy with a penalty", chain(0, 1, 0, 0, 2), []int32{1, 3}, map[int32]float64{0: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := frequencies(c.s, scores, c.history, 20_000)
			for token := range int32(4) {
				if math.Abs(got[token]-c.want[token]) > 0.02 {
					t.Errorf("token %d: %.3f of the draws, want %.3f", token, got[token], c.want[token])
				}
			}
		})
	}
}

func TestPenaltyCountsATokenOnceAndLowersNegativeScores(t *testing.T) {
	s := &sampler{penalty: 2}
	scores := []float32{4, -4, 4, 4}
	history := append([]int32{3}, slices.Repeat([]int32{0, 1, 1, 0}, penaltyWindow/4)...) // 3 is just outside the window
	s.penalise(scores, history)
	if want := []float32{2, -8, 4, 4}; !slices.Equal(scores, want) {
		t.Errorf("%v, want %v", scores, want)
	}
}

// TestTopPAgreesWithSortingEverything compares the shortcut with the definition, on many random scores.
func TestTopPAgreesWithSortingEverything(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		scores := make([]float32, 2000)
		for i := range scores {
			scores[i] = float32(rng.NormFloat64() * (1 + 6*rng.Float64()))
		}
		topP := rng.Float64()
		s := &sampler{temperature: 1, topP: topP, penalty: 1}
		top := scores[argmax(scores)]
		s.gather(scores, top)
		s.cutTopP(top)
		order := slices.Clone(scores)
		slices.SortFunc(order, func(a, b float32) int { return int(math.Copysign(1, float64(b-a))) })
		total, sum, n := 0.0, 0.0, 0
		for _, x := range order {
			total += math.Exp(float64(x - top))
		}
		for n < len(order) && sum < topP*total {
			sum += math.Exp(float64(order[n] - top))
			n++
		}
		if d := len(s.candidates) - n; d < -1 || d > 1 { // the sums differ in the last bits
			t.Fatalf("top-p %.4f leaves %d candidates, want %d", topP, len(s.candidates), n)
		}
	}
}

func TestScoresThatAreNotNumbers(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(-1))
	for _, scores := range [][]float32{{nan, nan, nan}, {inf, inf, inf}, {nan, 1, 2}, {inf, 1, nan}} {
		for _, s := range []chooser{newChooser(1, 0.9, 0.1, 2, 1.1, 1), newChooser(1, 1, 0, 0, 1, 1), newChooser(0, 1, 0, 0, 1, 1)} {
			if got := s.choose(slices.Clone(scores), []int32{0, 2}); got < 0 || int(got) >= len(scores) {
				t.Errorf("of %v it takes %d", scores, got)
			}
		}
	}
}
