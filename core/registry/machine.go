package registry

import (
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Bounds of what strangers can make the registry keep.
const (
	maxWorkers    = 50_000
	maxTombstones = 10_000
)

// Machine is the registry's state. It is not safe for concurrent use. Times given to its methods must not decrease.
type Machine struct {
	p       Params
	started time.Duration
	ticked  time.Duration

	workers map[string]*worker
	hives   map[string]*hive
	ids     []string // of workers, ordered; nil: to be made again
	slots   map[Slot]*account
	spawns  map[string]spawn // workers that were begun and have not beaten yet
	// ended holds the runs that have ended, so that a late beat does not bring them back.
	ended map[contract.Identity]time.Duration
	panic bool
}

type worker struct {
	Worker
	slot      Slot
	begun     bool          // started by this queen
	manual    bool          // … because a person asked for it
	begunAt   time.Duration // when, if it was begun
	lostAt    time.Duration // when it was last lost
	back      bool          // it beats again since, and may have been replaced
	ejections int
	refused   bool          // ejected by a refused dial, so that a probe can end it
	ejectedAt time.Duration // start of the last ejection
	backAt    time.Duration // end of the last ejection: slow start counts from here; 0: none
}

type hive struct {
	Hive
	suspected bool            // by others than this registry, since its last beat
	left      bool            // it said so, since its last beat
	away      bool            // it is not heard, or suspected
	changes   []time.Duration // when it went away or came back, for flap damping
	heldUntil time.Duration
}

// New returns a registry that knows nobody, at the time now. Zero parameters get their defaults.
func New(p Params, now time.Duration) *Machine {
	return &Machine{p: p.withDefaults(), started: now, ticked: now,
		workers: map[string]*worker{}, hives: map[string]*hive{}, slots: map[Slot]*account{}, spawns: map[string]spawn{},
		ended: map[contract.Identity]time.Duration{}}
}

// Step applies an event and returns what it changed, in order.
func (m *Machine) Step(now time.Duration, ev Event) []Effect { return ev.apply(m, now) }

func (e Beat) apply(m *Machine, now time.Duration) []Effect { return m.beat(now, &e.Heartbeat) }

// beat takes hb by reference: copies of a worker's description make stacks grow, thousands of times a second in a large cluster.
func (m *Machine) beat(now time.Duration, hb *contract.Heartbeat) []Effect {
	info := &hb.Worker
	w := m.workers[info.ID]
	if !m.takes(w, hb) {
		return []Effect{{Kind: EffectDropped, WorkerID: info.ID, HiveID: info.HiveID}}
	}
	var fx []Effect
	if w == nil || info.Incarnation != w.Info.Incarnation {
		fx = append(fx, m.appear(now, info)...)
		w = m.workers[info.ID]
	}
	changed := w.Info.Status != info.Status || w.Info.Address != info.Address || w.Info.Port != info.Port
	if reach(w.Info.Status) != reach(info.Status) && reach(info.Status) && w.ReadyAt == 0 {
		w.ReadyAt = max(now, 1)
	}
	w.Info, w.Sequence, w.BeatAt = *info, hb.Sequence, now
	if changed {
		fx = append(fx, Effect{Kind: EffectWorker, WorkerID: info.ID, HiveID: info.HiveID, Reason: string(info.Status)})
	}
	if l := contract.LivenessAlive; w.Liveness != l {
		w.back = w.back || w.Liveness == contract.LivenessLost
		fx = append(fx, Effect{Kind: EffectLiveness, WorkerID: info.ID, HiveID: info.HiveID, From: w.Liveness, To: l})
		w.Liveness = l
	}
	if a := m.slots[w.slot]; a != nil {
		a.live[info.ID] = true
		if reach(info.Status) && w.begun {
			m.settle(w.slot, info.ID)
		}
	}
	return fx
}

// takes reports whether a beat counts, of the worker w where that is known.
func (m *Machine) takes(w *worker, hb *contract.Heartbeat) bool {
	info := &hb.Worker
	if _, over := m.ended[info.Identity()]; over {
		return false
	}
	if h := m.hives[info.HiveID]; h != nil && info.BootID != h.Beat.BootID {
		return false // of an earlier boot, or of one that the hive itself has not told of yet
	}
	if w == nil {
		return len(m.workers) < maxWorkers
	}
	return info.Incarnation > w.Info.Incarnation ||
		info.Incarnation == w.Info.Incarnation && hb.Sequence > w.Sequence && w.Exit == nil && sameRun(info, &w.Info)
}

// sameRun reports whether two beats of one incarnation describe the same process. What a process is does not change.
func sameRun(a, b *contract.WorkerInfo) bool {
	return a.Identity() == b.Identity() && a.HiveID == b.HiveID && a.ModelID == b.ModelID
}

// reach reports whether a worker of that status takes requests.
func reach(s contract.WorkerStatus) bool {
	return s == contract.StatusReady || s == contract.StatusBusy
}

// appear makes the entry of a run of a worker that beats for the first time.
func (m *Machine) appear(now time.Duration, info *contract.WorkerInfo) []Effect {
	w := &worker{Worker: Worker{Liveness: contract.LivenessAlive}}
	w.Info.ID = info.ID
	sp, begun := m.spawns[info.ID]
	w.slot, w.begun, w.manual, w.begunAt = sp.slot, begun, sp.manual, sp.at
	if !begun && info.HiveID != "" { // a worker that somebody started by hand belongs to no hive and is not restarted
		w.slot = Slot{ModelID: info.ModelID, HiveID: info.HiveID, Device: info.Device}
	}
	if old := m.workers[info.ID]; old != nil {
		m.forgetRun(now, old)
		if !begun && old.slot != (Slot{}) { // what it was started for is not for it to say anew
			w.slot, w.begun, w.manual, w.begunAt = old.slot, old.begun, old.manual, old.begunAt
		}
	}
	delete(m.spawns, info.ID)
	m.workers[info.ID], m.ids = w, nil
	if w.slot != (Slot{}) {
		m.adopt(w.slot, info.ID, w.begun)
	}
	return []Effect{{Kind: EffectWorker, WorkerID: info.ID, HiveID: info.HiveID, Reason: "appeared"}}
}

// remove forgets a worker that has ended.
func (m *Machine) remove(now time.Duration, id string) []Effect {
	w := m.workers[id]
	if w == nil {
		return nil
	}
	m.forgetRun(now, w)
	delete(m.workers, id)
	m.ids = nil
	return []Effect{{Kind: EffectRemoved, WorkerID: id, HiveID: w.Info.HiveID}}
}

func (m *Machine) forgetRun(now time.Duration, w *worker) {
	m.bury(now, w.Info.Identity())
	if a := m.slots[w.slot]; a != nil {
		delete(a.live, w.Info.ID)
	}
}

func (m *Machine) bury(now time.Duration, id contract.Identity) {
	if id.PID == 0 {
		return
	}
	if len(m.ended) >= maxTombstones {
		var oldest contract.Identity
		at := time.Duration(1<<63 - 1)
		for k, t := range m.ended {
			if t < at {
				oldest, at = k, t
			}
		}
		delete(m.ended, oldest)
	}
	m.ended[id] = now
}

// reboot makes all workers of other boots of a hive void: their processes cannot exist any more. Only the hive says so, never a
// worker.
func (m *Machine) reboot(now time.Duration, hiveID, bootID string) []Effect {
	fx := []Effect{{Kind: EffectRebooted, HiveID: hiveID}}
	for _, id := range m.order() {
		if w := m.workers[id]; w.Info.HiveID == hiveID && w.Info.BootID != bootID {
			fx = append(fx, m.remove(now, id)...)
		}
	}
	for id, sp := range m.spawns { // begun before the reboot, most likely; one that was not will beat
		if sp.slot.HiveID == hiveID {
			m.giveUp(id)
		}
	}
	return append(fx, m.respawn(now)...)
}

func (e HiveBeat) apply(m *Machine, now time.Duration) []Effect {
	b := e.Beat
	h := m.hives[b.ID]
	if h != nil {
		older := b.Incarnation < h.Beat.Incarnation || b.Incarnation == h.Beat.Incarnation && b.Sequence < h.Beat.Sequence
		// One that was started again with its clock set back is older for as long as it runs. Its former run is silent then.
		if older && now-h.BeatAt <= m.p.Stale {
			return []Effect{{Kind: EffectDropped, HiveID: b.ID}}
		}
	}
	var fx []Effect
	if h == nil {
		h = &hive{Hive: Hive{Beat: b, BeatAt: now}}
		m.hives[b.ID] = h
		for _, id := range m.order() { // workers may have beaten before their hive
			if w := m.workers[id]; w.Info.HiveID == b.ID && w.Info.BootID != b.BootID {
				fx = append(fx, m.remove(now, id)...)
				if a := m.slots[w.slot]; a != nil {
					a.want = min(a.want, len(a.live)) // nothing here asked for it
				}
			}
		}
	} else if b.BootID != h.Beat.BootID {
		fx = m.reboot(now, b.ID, b.BootID)
	}
	h.Beat, h.BeatAt, h.suspected, h.left = b, now, false, false
	return append(fx, m.judgeHive(now, h)...)
}

func (e HiveSuspected) apply(m *Machine, now time.Duration) []Effect {
	h := m.hives[e.HiveID]
	if h == nil {
		return nil
	}
	h.suspected, h.left = true, h.left || e.Left
	return m.judgeHive(now, h)
}

func (e HiveRemoved) apply(m *Machine, _ time.Duration) []Effect {
	h := m.hives[e.HiveID]
	if h == nil {
		return nil
	}
	delete(m.hives, e.HiveID)
	return []Effect{{Kind: EffectHive, HiveID: e.HiveID, From: h.Liveness, To: contract.LivenessLost}}
}

func (e HiveInventory) apply(m *Machine, _ time.Duration) []Effect {
	h := m.hives[e.Inventory.HiveID]
	if h == nil {
		return nil
	}
	h.Inventory = e.Inventory
	return []Effect{{Kind: EffectInventory, HiveID: e.Inventory.HiveID}}
}

func (e Draining) apply(m *Machine, _ time.Duration) []Effect {
	w := m.workers[e.WorkerID]
	if w == nil || w.Draining == e.On {
		return nil
	}
	w.Draining = e.On
	return []Effect{{Kind: EffectWorker, WorkerID: e.WorkerID, HiveID: w.Info.HiveID, Reason: contract.ConditionDraining}}
}

func (e Unkillable) apply(m *Machine, _ time.Duration) []Effect {
	w := m.workers[e.WorkerID]
	if w == nil || w.Condition == contract.ConditionUnkillable {
		return nil
	}
	w.Condition = contract.ConditionUnkillable
	return []Effect{{Kind: EffectWorker, WorkerID: e.WorkerID, HiveID: w.Info.HiveID, Reason: contract.ConditionUnkillable}}
}

// Draining reports whether a worker gets nothing new because it is to end. It is false for one that is not known.
func (m *Machine) Draining(workerID string) bool {
	w := m.workers[workerID]
	return w != nil && w.Draining
}

// order returns the ids of all workers, ordered. It must not be changed, and removals do not change it.
func (m *Machine) order() []string {
	if m.ids == nil {
		m.ids = make([]string, 0, len(m.workers))
		for id := range m.workers {
			m.ids = append(m.ids, id)
		}
		slices.Sort(m.ids)
	}
	return m.ids
}

// Snapshot pictures the registry at the time now.
func (m *Machine) Snapshot(now time.Duration) *Snapshot {
	s := &Snapshot{At: now, Panic: m.panic, Workers: make([]Worker, 0, len(m.workers)), Hives: make([]Hive, 0, len(m.hives))}
	for _, id := range m.order() {
		w := m.workers[id]
		out := w.Worker
		out.Condition, out.Weight = w.condition(), m.weight(now, w)
		s.Workers = append(s.Workers, out)
	}
	for _, h := range m.hives {
		s.Hives = append(s.Hives, h.Hive)
	}
	slices.SortFunc(s.Hives, func(a, b Hive) int { return strings.Compare(a.Beat.ID, b.Beat.ID) })
	s.serving = serving(s.Workers, m.panic)
	return s
}

func (w *worker) condition() string {
	switch {
	case w.Condition != "":
		return w.Condition
	case w.Draining:
		return contract.ConditionDraining
	case w.EjectedUntil != 0:
		return contract.ConditionOutlier
	}
	return ""
}

// tier says how willingly a worker is given requests: 0 gladly, 1 and 2 only while there is nobody of a lower tier, -1 never.
func tier(w *Worker, anyLiveness bool) int {
	switch {
	case !reach(w.Info.Status), w.Draining, w.Exit != nil, w.Info.ContractVersion != contract.Version,
		w.Condition == contract.ConditionUnkillable:
		return -1
	case (w.Liveness == contract.LivenessDown || w.Liveness == contract.LivenessLost) && !anyLiveness:
		return -1
	case w.EjectedUntil != 0:
		return 2
	case w.Liveness == contract.LivenessSuspect && !anyLiveness:
		return 1
	}
	return 0
}

func serving(workers []Worker, anyLiveness bool) map[string][]Worker {
	best := map[string]int{}
	count := map[string]int{}
	tiers := make([]int, len(workers))
	for i := range workers {
		t := tier(&workers[i], anyLiveness)
		tiers[i] = t
		if t < 0 {
			continue
		}
		id := workers[i].Info.ModelID
		if b, ok := best[id]; !ok || t < b {
			best[id], count[id] = t, 1
		} else if t == b {
			count[id]++
		}
	}
	out := make(map[string][]Worker, len(best))
	for i, t := range tiers {
		id := workers[i].Info.ModelID
		if t < 0 || t != best[id] {
			continue
		}
		if out[id] == nil {
			out[id] = make([]Worker, 0, count[id])
		}
		out[id] = append(out[id], workers[i])
	}
	for _, list := range out {
		slices.SortStableFunc(list, func(a, b Worker) int { // heaviest first; ids keep the order among equals
			switch {
			case a.Weight > b.Weight:
				return -1
			case a.Weight < b.Weight:
				return 1
			}
			return 0
		})
	}
	return out
}
