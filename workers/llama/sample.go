package llama

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// chooser picks the next token from the scores of all tokens, which it may overwrite. history is the prompt and what was
// generated after it.
type chooser interface {
	choose(logits []float32, history []int32) int32
}

// greedy picks the highest score; of equal ones the lowest id, as llama.cpp does.
type greedy struct{}

func (greedy) choose(logits []float32, _ []int32) int32 { return argmax(logits) }

// argmax returns the index of the first of the highest values of v, which is not empty. It keeps four maxima so that the
// comparisons do not wait for each other: this runs for each token of each request.
func argmax(v []float32) int32 {
	n := len(v) &^ 3
	if n == 0 {
		best := 0
		for i, x := range v {
			if x > v[best] {
				best = i
			}
		}
		return int32(best)
	}
	m := [4]float32{v[0], v[1], v[2], v[3]}
	at := [4]int{0, 1, 2, 3}
	m0, m1, m2, m3 := m[0], m[1], m[2], m[3]
	for i := 4; i < n; i += 4 {
		x := v[i : i+4 : i+4]
		if x[0] > m0 {
			m0, at[0] = x[0], i
		}
		if x[1] > m1 {
			m1, at[1] = x[1], i+1
		}
		if x[2] > m2 {
			m2, at[2] = x[2], i+2
		}
		if x[3] > m3 {
			m3, at[3] = x[3], i+3
		}
	}
	m = [4]float32{m0, m1, m2, m3}
	best := 0
	for i := 1; i < 4; i++ {
		if m[i] > m[best] || m[i] == m[best] && at[i] < at[best] {
			best = i
		}
	}
	top, index := m[best], at[best]
	for i := n; i < len(v); i++ {
		if v[i] > top {
			top, index = v[i], i
		}
	}
	return int32(index)
}

// penaltyWindow is the number of last tokens that a repeat penalty looks at, as in llama.cpp.
const penaltyWindow = 64

// negligible is the distance from the highest score at which a token's probability is below 2e-11: below what float32 can add.
const negligible = 25

// sampler picks by chance, after these steps in llama.cpp's order: repeat penalty, top-k, top-p, min-p, temperature. The same
// seed gives the same tokens for the same scores. It is plain Go because that is as fast as the library's chain, needs no
// memory of C, and cannot end the process.
type sampler struct {
	temperature float64
	topP, minP  float64
	topK        int
	penalty     float64
	rng         *rand.Rand
	candidates  []candidate
}

type candidate struct {
	token  int32
	logit  float32
	weight float64
}

// newChooser returns what picks the tokens of a request.
func newChooser(temperature, topP, minP float64, topK int, penalty float64, seed uint64) chooser {
	if penalty <= 0 {
		penalty = 1
	}
	if temperature <= 0 && penalty == 1 {
		return greedy{}
	}
	return &sampler{temperature: temperature, topP: topP, minP: minP, topK: topK, penalty: penalty, rng: rand.New(rand.NewPCG(seed, 0))}
}

func (s *sampler) choose(logits []float32, history []int32) int32 {
	s.penalise(logits, history)
	best := argmax(logits)
	if s.temperature <= 0 {
		return best
	}
	top := logits[best]
	s.gather(logits, top)
	s.cutTopP(top)
	if s.minP > 0 {
		least := top + float32(math.Log(s.minP))
		s.candidates = slices.DeleteFunc(s.candidates, func(c candidate) bool { return c.logit < least })
	}
	sum := 0.0
	for i := range s.candidates {
		c := &s.candidates[i]
		c.weight = math.Exp(float64(c.logit-top) / s.temperature)
		sum += c.weight
	}
	u := s.rng.Float64() * sum
	for _, c := range s.candidates {
		if u -= c.weight; u < 0 {
			return c.token
		}
	}
	return best // rounding, or scores that are not numbers
}

// penalise divides the scores of the last tokens (or multiplies negative ones), once for each distinct token.
func (s *sampler) penalise(logits []float32, history []int32) {
	if s.penalty == 1 {
		return
	}
	window := history[max(0, len(history)-penaltyWindow):]
	p := float32(s.penalty)
	for i, t := range window {
		if int(t) >= len(logits) || slices.Contains(window[:i], t) {
			continue
		}
		if logits[t] > 0 {
			logits[t] /= p
		} else {
			logits[t] *= p
		}
	}
}

// gather fills candidates with the topK best tokens, or with all that are not negligible.
func (s *sampler) gather(logits []float32, top float32) {
	s.candidates = s.candidates[:0]
	// A high temperature lifts unlikely tokens.
	least := top - float32(negligible*max(1, s.temperature))
	if s.topK <= 0 || s.topK >= len(logits) {
		for i, l := range logits {
			if l >= least {
				s.candidates = append(s.candidates, candidate{token: int32(i), logit: l})
			}
		}
		return
	}
	// A heap of the best so far, the worst of them first.
	for i, l := range logits {
		switch {
		case len(s.candidates) < s.topK:
			s.candidates = append(s.candidates, candidate{token: int32(i), logit: l})
			if len(s.candidates) == s.topK {
				for j := s.topK/2 - 1; j >= 0; j-- {
					s.sink(j)
				}
			}
		case l > s.candidates[0].logit:
			s.candidates[0] = candidate{token: int32(i), logit: l}
			s.sink(0)
		}
	}
}

// worse orders candidates: lower score first, of equal ones the higher id.
func worse(a, b candidate) bool {
	return a.logit < b.logit || a.logit == b.logit && a.token > b.token
}

func (s *sampler) sink(i int) {
	h := s.candidates
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && worse(h[c+1], h[c]) {
			c++
		}
		if !worse(h[c], h[i]) {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// cutTopP leaves the fewest best candidates whose probabilities (at temperature 1) add up to topP. It sorts no more of them
// than it must: a vocabulary has a hundred thousand tokens, and a handful hold nearly everything.
func (s *sampler) cutTopP(top float32) {
	if s.topP >= 1 || len(s.candidates) < 2 {
		return
	}
	total := 0.0
	for i := range s.candidates {
		c := &s.candidates[i]
		c.weight = math.Exp(float64(c.logit - top))
		total += c.weight
	}
	for _, depth := range []float32{3, 6, 9, 14, float32(math.Inf(1))} {
		mass, n := 0.0, 0
		for i := range s.candidates {
			if s.candidates[i].logit >= top-depth {
				mass += s.candidates[i].weight
				s.candidates[n], s.candidates[i] = s.candidates[i], s.candidates[n]
				n++
			}
		}
		if mass < s.topP*total && !math.IsInf(float64(depth), 1) {
			continue
		}
		s.candidates = s.candidates[:n]
		break
	}
	slices.SortFunc(s.candidates, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(b.logit, a.logit), cmp.Compare(a.token, b.token))
	})
	sum := 0.0
	for i, c := range s.candidates {
		if sum += c.weight; sum >= s.topP*total {
			s.candidates = s.candidates[:i+1]
			return
		}
	}
}
