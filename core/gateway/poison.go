package gateway

import (
	"hash/maphash"
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
	at     time.Time // of the last one
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

// died notes that a worker died while the request was running there, and reports whether that makes it poison.
func (p *poisonTable) died(hash uint64, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[hash]
	if now.Sub(e.at) >= p.keep {
		e.deaths = 0
	}
	if _, known := p.entries[hash]; !known && len(p.entries) >= maxPoison {
		var oldest uint64
		at := now
		for h, e := range p.entries {
			if !e.at.After(at) {
				oldest, at = h, e.at
			}
		}
		delete(p.entries, oldest)
	}
	e.deaths++
	e.at = now
	p.entries[hash] = e
	p.n.Store(int64(len(p.entries)))
	return e.deaths >= poisonDeaths
}
