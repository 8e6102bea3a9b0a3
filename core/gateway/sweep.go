package gateway

import (
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/registry"
)

// sweeper looks at all open requests a few times a second, in the place of timers for each of them: a token then costs a
// counter, not the clock and the timer heap. Its timer runs only while requests or idle connections exist.
type sweeper struct {
	g    *Gateway
	tick time.Duration

	mu     sync.Mutex // guards the fields below and the sweeping fields of flights
	timer  *time.Timer
	armed  bool
	slow   bool // armed with the interval of idle connections
	closed bool
	first  *flight
	n      int
}

const (
	busyTick = 250 * time.Millisecond
	idleTick = 5 * time.Second
)

func (s *sweeper) init(g *Gateway) {
	s.g = g
	// Bounds that tests shorten need a finer look.
	s.tick = min(busyTick, g.limits().Withhold/8, g.limits().KeepAlive/8, g.limits().FirstToken/8, g.limits().Stall/8)
	s.tick = max(s.tick, time.Millisecond)
}

func (s *sweeper) add(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.next = s.first; f.next != nil {
		f.next.prev = f
	}
	s.first, f.prev = f, nil
	s.n++
	s.armLocked()
}

// remove returns only when no sweep can touch f any more.
func (s *sweeper) remove(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.next != nil {
		f.next.prev = f.prev
	}
	if f.prev != nil {
		f.prev.next = f.next
	} else {
		s.first = f.next
	}
	f.prev, f.next = nil, nil
	s.n--
}

func (s *sweeper) arm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.armLocked()
}

// armLocked starts the timer where it does not run, and shortens its interval where requests came to idle connections.
func (s *sweeper) armLocked() {
	if s.closed || s.armed && !(s.slow && s.n > 0) {
		return
	}
	d := s.tick
	if s.slow = s.n == 0; s.slow {
		d = idleTick
	}
	s.armed = true
	if s.timer == nil {
		s.timer = time.AfterFunc(d, s.run)
	} else {
		s.timer.Reset(d)
	}
}

func (s *sweeper) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	if s.timer != nil {
		s.timer.Stop()
	}
}

func (s *sweeper) run() {
	snap := s.g.dir.Snapshot()
	now := time.Now()
	idle := s.g.prune(snap, now.Add(-idleLink))
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := s.first; f != nil; f = f.next {
		f.look(snap, now)
	}
	s.armed = false
	if s.n > 0 || idle > 0 {
		s.armLocked()
	}
}

// prune closes connections that were idle too long and forgets workers that are gone. It returns how many connections are
// left.
func (g *Gateway) prune(snap *registry.Snapshot, t time.Time) int {
	g.mu.Lock()
	backends := make([]*backend, 0, len(g.backends))
	var gone []*backend
	for id, b := range g.backends {
		if w, ok := snap.Worker(id); b.inFlight == 0 && (!ok || w.Info.Incarnation != b.incarnation) {
			delete(g.backends, id)
			gone = append(gone, b)
		} else {
			backends = append(backends, b)
		}
	}
	g.mu.Unlock()
	for _, b := range gone {
		b.closeIdle(time.Time{})
	}
	left := 0
	for _, b := range backends {
		left += b.closeIdle(t)
	}
	return left
}

// look is called by the sweeper for each open request. sweeper.mu is held; it only sets signals.
func (f *flight) look(snap *registry.Snapshot, now time.Time) {
	if n := f.received.Load(); n != f.seenReceived {
		f.seenReceived, f.receivedAt, f.looked = n, now, false
	} else if n > 0 && !f.looked {
		f.looked = true
		f.signal(signalLook)
	}
	if n := f.sent.Load(); n != f.seenSent {
		f.seenSent, f.sentAt = n, now
	}
	if f.stream {
		bound := f.g.limits().KeepAlive
		if f.seenSent == 0 {
			bound = f.g.limits().Withhold - f.g.sweep.tick // the status is due before the bound
		}
		if now.Sub(f.sentAt) >= bound {
			f.sentAt = now
			f.signal(signalKeepAlive)
		}
	}
	bound := f.firstToken
	if f.content.Load() {
		bound = f.g.limits().Stall
	} else if now.Sub(f.receivedAt) > time.Second {
		// Before the first token the worker's beats count as signs of life too: an answer that does not stream has no others.
		if w, ok := snap.Worker(f.backend.id); ok && w.Info.Progress != f.workerProgress {
			f.workerProgress, f.receivedAt = w.Info.Progress, now
		}
	}
	if now.Sub(f.receivedAt) >= bound {
		f.receivedAt = now
		f.signal(signalTimeout)
	}
}
