// Package route picks the worker for a request: a pure function of the candidates and the request, with the reason for its
// choice. It holds no state, does no I/O and knows neither clock nor chance; what spreads equal choices comes from the caller.
//
// The rule is least busy: the worker with the smallest share of its slots in use, counting this request.
package route

import "math"

// Candidate is one worker that could serve a request.
type Candidate struct {
	Slots    int     // requests it runs at once; less than 1 counts as 1
	InFlight int     // requests that the caller has open there
	Queue    int     // requests that wait inside the worker, as it said last
	Weight   float64 // share of a full load it should get, above 0 and up to 1; 0 counts as 1
	Excluded bool    // already tried for this request
}

func (c *Candidate) slots() int { return max(c.Slots, 1) }

func (c *Candidate) full() bool { return c.InFlight >= c.slots() }

// load is the share of the worker's slots in use once it has this request. A worker that gets less than a full load counts as busier
// than it is, but for one request in as many as its weight says (at 0.1 the tenth), which it gets rather than an equal one: otherwise it
// would get nothing for as long as others are idle.
func (c *Candidate) load(spread uint64) float64 {
	w, busy := c.Weight, float64(c.InFlight+c.Queue+1)
	switch {
	case w <= 0 || w >= 1:
		w = 1
	case spread%uint64(min(math.Ceil(1/w), 1000)) == 0:
		w, busy = 1, busy-0.5
	}
	return busy / (float64(c.slots()) * w)
}

// Request is what a choice depends on beside the candidates.
type Request struct {
	// Spread chooses among equally good candidates: callers count it up, so that idle workers take turns.
	Spread uint64
}

// Reasons that Pick gives.
const (
	ReasonLeastBusy = "least busy"
	ReasonOnly      = "the only free worker"
	ReasonNone      = "no worker serves the model"
	ReasonFull      = "every worker is full"
	ReasonTried     = "every free worker was tried"
)

// Pick returns the index of the candidate to send the request to, or -1 where none can take it now, and why.
func Pick(cands []Candidate, req Request) (index int, reason string) {
	if len(cands) == 0 {
		return -1, ReasonNone
	}
	best, free, ties, tried := -1, 0, uint64(0), false
	var least float64
	for i := range cands {
		c := &cands[i]
		if c.full() {
			continue
		}
		if c.Excluded {
			tried = true
			continue
		}
		free++
		switch l := c.load(req.Spread); {
		case best < 0 || l < least:
			best, least, ties = i, l, 1
		case l == least:
			ties++
		}
	}
	switch {
	case best < 0 && tried:
		return -1, ReasonTried
	case best < 0:
		return -1, ReasonFull
	case free == 1:
		return best, ReasonOnly
	}
	// Of the equally good ones take number Spread mod ties, counted from the first.
	for skip := req.Spread % ties; skip > 0; skip-- {
		for best++; cands[best].Excluded || cands[best].full() || cands[best].load(req.Spread) != least; best++ {
		}
	}
	return best, ReasonLeastBusy
}
