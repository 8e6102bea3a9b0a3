package registry

import (
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

const (
	tickEvery    = time.Second
	ejectionKept = 5 * time.Minute // without another one, the next ejection is a first one again
)

func (Tick) apply(m *Machine, now time.Duration) []Effect {
	var fx []Effect
	if late := now - m.ticked - tickEvery; late > m.p.PauseAfter {
		m.shift(now, late)
		fx = append(fx, Effect{Kind: EffectPaused, Delay: late})
	}
	m.ticked = now

	// Hives come first: whether the brake is on decides how workers are judged.
	fx = append(fx, m.brake(now)...)
	for _, id := range sorted(m.hives) {
		h := m.hives[id]
		fx = append(fx, m.judgeHive(now, h)...)
		if now-h.BeatAt > m.p.Forget {
			delete(m.hives, id)
		}
	}
	for _, id := range m.order() {
		w := m.workers[id]
		if w.Exit == nil {
			if l := m.liveness(now, now-w.BeatAt); l != w.Liveness {
				fx = append(fx, Effect{Kind: EffectLiveness, WorkerID: id, HiveID: w.Info.HiveID, From: w.Liveness, To: l})
				w.Liveness = l
				if l == contract.LivenessLost {
					w.lostAt, w.back = now, false
				}
			}
			if a := m.slots[w.slot]; a != nil && w.Liveness == contract.LivenessLost {
				delete(a.live, id)
			}
		}
		if w.EjectedUntil != 0 && now >= w.EjectedUntil {
			fx = append(fx, w.restore(now))
		}
		if w.backAt != 0 && w.EjectedUntil == 0 && now-w.backAt > m.p.SlowStart {
			w.backAt = 0
		}
		if now-w.BeatAt > m.p.Forget {
			fx = append(fx, m.remove(now, id)...)
		}
	}
	for id, sp := range m.spawns {
		if now-sp.at > spawnKept {
			m.giveUp(id)
		}
	}
	for id, at := range m.ended {
		if now-at > m.p.Forget {
			delete(m.ended, id)
		}
	}
	fx = append(fx, m.surplus()...)
	m.pruneSlots(now)
	return append(fx, m.respawn(now)...)
}

// shift moves every age, so that nobody is judged for the time in which this process stood still.
func (m *Machine) shift(now, late time.Duration) {
	move := func(t *time.Duration) { *t = min(*t+late, now) }
	m.started += late
	for _, w := range m.workers {
		move(&w.BeatAt)
	}
	for _, h := range m.hives {
		move(&h.BeatAt)
	}
}

// liveness judges an age.
func (m *Machine) liveness(now, age time.Duration) contract.Liveness {
	grace := now-m.started < m.p.Grace
	switch {
	case age <= m.p.Stale:
		return contract.LivenessAlive
	case age <= m.p.Suspect:
		return contract.LivenessStale
	case age <= m.p.Down || grace:
		return contract.LivenessSuspect
	case age <= m.p.Lost || m.panic:
		return contract.LivenessDown
	}
	return contract.LivenessLost
}

// coarse is whether one is here (0), perhaps (1) or not (2).
func coarse(l contract.Liveness) int {
	switch l {
	case contract.LivenessAlive, contract.LivenessStale:
		return 0
	case contract.LivenessSuspect:
		return 1
	}
	return 2
}

// judgeHive judges a hive by its silence, and holds one suspect that keeps going away and coming back. An absence is one change, however
// bad it gets, and its end is another.
func (m *Machine) judgeHive(now time.Duration, h *hive) []Effect {
	l := m.liveness(now, now-h.BeatAt)
	if h.suspected && coarse(l) == 0 {
		l = contract.LivenessSuspect
	}
	if away := coarse(l) != 0; away != h.away {
		h.away = away
		if now >= h.heldUntil {
			h.changes = append(slices.DeleteFunc(h.changes, func(t time.Duration) bool { return now-t >= m.p.FlapWindow }), now)
			if len(h.changes) >= m.p.FlapChanges {
				h.changes, h.heldUntil = nil, now+m.p.FlapHold
			}
		}
	}
	if now < h.heldUntil && coarse(l) == 0 {
		l = contract.LivenessSuspect
	}
	if l == h.Liveness {
		return nil
	}
	fx := Effect{Kind: EffectHive, HiveID: h.Beat.ID, From: h.Liveness, To: l}
	if now < h.heldUntil {
		fx.Reason = "flapping"
	}
	h.Liveness = l
	return []Effect{fx}
}

// brake decides whether so many hives fell silent at once that this queen is the one that is cut off.
func (m *Machine) brake(now time.Duration) []Effect {
	known, silent, together := 0, 0, 0
	for _, h := range m.hives {
		if h.Liveness == contract.LivenessLost || h.left {
			continue
		}
		known++
		if since := now - h.BeatAt - m.p.Stale; since > 0 {
			silent++
			if since <= m.p.BrakeWindow {
				together++
			}
		}
	}
	most := m.p.BrakeShare * float64(known)
	switch {
	case !m.panic && known >= m.p.BrakeHives && float64(together) > most:
		m.panic = true
		return []Effect{{Kind: EffectPanicOn}}
	case m.panic && float64(silent) <= most:
		m.panic = false
		return []Effect{{Kind: EffectPanicOff}}
	}
	return nil
}

func (e Failure) apply(m *Machine, now time.Duration) []Effect {
	w := m.workers[e.WorkerID]
	if w == nil || w.Exit != nil {
		return nil
	}
	w.Failures++
	refused := e.Kind == FailureDialRefused
	if w.EjectedUntil != 0 || !refused && w.Failures < m.p.OutlierFailures || !m.replaceable(w) {
		return nil
	}
	if w.ejections > 0 && now-w.ejectedAt > ejectionKept+m.p.OutlierMax {
		w.ejections = 0
	}
	w.ejections++
	w.ejectedAt, w.refused, w.Failures = now, refused, 0
	w.EjectedUntil = now + min(time.Duration(w.ejections)*m.p.OutlierBase, m.p.OutlierMax)
	return []Effect{{Kind: EffectEjected, WorkerID: e.WorkerID, HiveID: w.Info.HiveID, Reason: string(e.Kind)}}
}

// replaceable reports whether another worker would take the requests of w, if w were ejected.
func (m *Machine) replaceable(w *worker) bool {
	for _, o := range m.workers {
		if o != w && o.Info.ModelID == w.Info.ModelID {
			if t := tier(&o.Worker, m.panic); t == 0 || t == 1 {
				return true
			}
		}
	}
	return false
}

func (w *worker) restore(now time.Duration) Effect {
	w.EjectedUntil, w.backAt, w.Failures = 0, max(now, 1), 0
	return Effect{Kind: EffectReturned, WorkerID: w.Info.ID, HiveID: w.Info.HiveID}
}

func (e Success) apply(m *Machine, _ time.Duration) []Effect {
	if w := m.workers[e.WorkerID]; w != nil {
		w.Failures = 0
	}
	return nil
}

// A probe ends an ejection by refused dials early, but not before its first period has passed: what refused a moment ago may
// refuse again.
func (e Reachable) apply(m *Machine, now time.Duration) []Effect {
	w := m.workers[e.WorkerID]
	if w == nil || w.EjectedUntil == 0 || !w.refused || now-w.ejectedAt < m.p.OutlierBase {
		return nil
	}
	return []Effect{w.restore(now)}
}

// weight grows from 0.1 to 1 in the time of slow start.
func (m *Machine) weight(now time.Duration, w *worker) float64 {
	if w.backAt == 0 || w.EjectedUntil != 0 || m.p.SlowStart <= 0 {
		return 1
	}
	return min(1, max(0.1, float64(now-w.backAt)/float64(m.p.SlowStart)))
}
