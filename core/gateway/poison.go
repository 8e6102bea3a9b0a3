package gateway

import (
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxPoison bounds the table; the oldest entry makes room.
const maxPoison = 1024

// deaths that make a request poison: one can be chance.
const poisonDeaths = 2

// poisonTable remembers, by a hash of their bodies, which requests were running when workers died.
type poisonTable struct {
	seed maphash.Seed
	keep time.Duration
	n    atomic.Int64 // entries: the table is nearly always empty, and then costs nothing

	mu      sync.Mutex // guards entries
	entries map[uint64]poisonEntry
}

type poisonEntry struct {
	deaths int
	ended  [poisonDeaths]workerRun // the first deaths of them
	at     time.Time               // of the last one
}

// workerRun is one life of a worker: it ends once, however many requests it takes with it.
type workerRun struct {
	id          string
	incarnation int64
}

func (p *poisonTable) init(keep time.Duration) {
	p.seed, p.keep, p.entries = maphash.MakeSeed(), keep, map[uint64]poisonEntry{}
}

// refused reports whether the request has ended too many workers.
func (p *poisonTable) refused(hash uint64, now time.Time) bool {
	if p.n.Load() == 0 {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.entries[hash]
	if ok && now.Sub(e.at) >= p.keep {
		delete(p.entries, hash)
		p.n.Add(-1)
		return false
	}
	return e.deaths >= poisonDeaths
}

// died notes that a worker died while the request was running there, and reports whether that makes it poison. Copies of one
// request that ran there side by side are one death.
func (p *poisonTable) died(hash uint64, w workerRun, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, known := p.entries[hash]
	if now.Sub(e.at) >= p.keep {
		e.deaths = 0
	}
	switch {
	case e.deaths >= poisonDeaths:
	case slices.Contains(e.ended[:e.deaths], w):
		return false
	default:
		e.ended[e.deaths] = w
		e.deaths++
	}
	if !known && len(p.entries) >= maxPoison {
		var oldest uint64
		at := now
		for h, e := range p.entries {
			if !e.at.After(at) {
				oldest, at = h, e.at
			}
		}
		delete(p.entries, oldest)
	}
	e.at = now
	p.entries[hash] = e
	p.n.Store(int64(len(p.entries)))
	return e.deaths >= poisonDeaths
}
