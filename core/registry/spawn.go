package registry

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Slot is where workers of a model run: failures are counted for it.
type Slot struct {
	ModelID string
	HiveID  string
	Device  string // as in contract.WorkerInfo: several joined by commas
}

// account is what is known of the spawns in a slot.
type account struct {
	want     int             // workers that are to be restarted when they end
	live     map[string]bool // begun or beating
	asked    bool            // a respawn was asked for and neither begun nor released
	failures int             // in a row: index into the back-off
	nextAt   time.Duration   // no automatic spawn before
	crashes  []time.Duration // within the window
	ooms     int
	loopEnds time.Duration // crash loop; 0: none
	noFit    bool
	reason   string               // of the last failure
	last     *contract.WorkerExit // of the last crash
}

// spawn is a worker that was begun and has not beaten yet.
type spawn struct {
	slot   Slot
	at     time.Duration
	manual bool // a person asked for it
}

// spawnKept is how long a worker that was begun may take to beat for the first time, which it does before it loads its model.
const spawnKept = 10 * time.Minute

// giveUp forgets a worker that was begun.
func (m *Machine) giveUp(id string) {
	if a := m.slots[m.spawns[id].slot]; a != nil {
		delete(a.live, id)
	}
	delete(m.spawns, id)
}

// Verdict says what the past of a slot means for another spawn.
type Verdict struct {
	Allowed bool
	Wait    time.Duration        // when not allowed: until a spawn is; 0: not before somebody changes something
	Reason  string               // of the last failure: a contract.Condition…, "crashed", "does_not_fit" or the code of SpawnFailed
	Exit    *contract.WorkerExit // of the last crash; nil: no process was seen to end
	OOMs    int                  // kills for want of memory in a row
	NoFit   bool                 // … too many: none is started before somebody changes something
	Live    bool                 // a worker is starting or running there, or was asked for
}

// Verdict judges automatic spawns in a slot at the time now.
func (m *Machine) Verdict(now time.Duration, slot Slot) Verdict {
	a := m.slots[slot]
	if a == nil {
		return Verdict{Allowed: true}
	}
	v := Verdict{Reason: a.reason, Exit: a.last, OOMs: a.ooms, Live: len(a.live) > 0 || a.asked}
	switch {
	case a.noFit:
		v.Reason, v.NoFit = "does_not_fit", true
	case now < a.loopEnds:
		v.Wait, v.Reason = a.loopEnds-now, contract.ConditionCrashLoop
	case now < a.nextAt:
		v.Wait = a.nextAt - now
	default:
		v.Allowed = true
	}
	return v
}

func (m *Machine) account(slot Slot) *account {
	a := m.slots[slot]
	if a == nil {
		a = &account{live: map[string]bool{}}
		m.slots[slot] = a
	}
	return a
}

// adopt counts a worker that beats for the first time. One that nobody here began (the queen was restarted) is wanted too.
func (m *Machine) adopt(slot Slot, id string, begun bool) {
	a := m.account(slot)
	a.live[id] = true
	if !begun {
		a.want = max(a.want, len(a.live))
	}
}

// settle is called for a worker that takes requests: failed runs of its slot are no longer worth showing.
func (m *Machine) settle(slot Slot, id string) {
	for _, other := range m.order() {
		if w := m.workers[other]; w != nil && other != id && w.slot == slot && w.Exit != nil {
			delete(m.workers, other)
			m.ids = nil
		}
	}
	if a := m.slots[slot]; a != nil {
		a.reason, a.last = "", nil
	}
}

// Taken reports whether a worker of the id runs, or was begun and has not beaten yet.
func (m *Machine) Taken(id string) bool {
	w := m.workers[id]
	_, begun := m.spawns[id]
	return begun || w != nil && w.Exit == nil
}

func (e SpawnBegan) apply(m *Machine, now time.Duration) []Effect {
	a := m.account(e.Slot)
	if m.Taken(e.WorkerID) {
		a.asked = false
		return nil
	}
	if !e.Automatic {
		a.failures, a.nextAt, a.loopEnds, a.crashes, a.ooms, a.noFit = 0, 0, 0, nil, 0, false
		a.reason, a.last = "", nil
	}
	if a.loopEnds != 0 && now >= a.loopEnds {
		a.loopEnds, a.crashes, a.failures = 0, nil, 0
	}
	a.asked = false
	a.live[e.WorkerID] = true
	a.want = max(a.want, len(a.live))
	m.spawns[e.WorkerID] = spawn{slot: e.Slot, at: now, manual: !e.Automatic}
	return nil
}

func (e SpawnIs) apply(m *Machine, now time.Duration) []Effect {
	sp, ok := m.spawns[e.WorkerID]
	slot := sp.slot
	if !ok || e.RunningID == e.WorkerID {
		return nil
	}
	delete(m.spawns, e.WorkerID)
	a := m.account(slot)
	delete(a.live, e.WorkerID)
	a.live[e.RunningID] = true
	if m.workers[e.RunningID] == nil {
		m.spawns[e.RunningID] = sp
	}
	a.want = max(1, min(a.want, len(a.live)))
	return nil
}

func (e SpawnFailed) apply(m *Machine, now time.Duration) []Effect {
	if m.workers[e.WorkerID] != nil {
		return nil
	}
	a := m.account(e.Slot)
	if sp, ok := m.spawns[e.WorkerID]; ok && sp.slot == e.Slot {
		delete(m.spawns, e.WorkerID)
		delete(a.live, e.WorkerID)
	}
	a.want = min(a.want, len(a.live))
	a.reason, a.last = e.Reason, nil
	m.delay(now, a, e.Jitter)
	return nil
}

func (e Release) apply(m *Machine, _ time.Duration) []Effect {
	if a := m.slots[e.Slot]; a != nil {
		a.asked, a.want = false, min(a.want, len(a.live))
	}
	return nil
}

// surplus finds the workers that were started by themselves while another one of their model was lost that is back now, once both
// serve. The older one is kept: clients have their conversations there.
func (m *Machine) surplus() []Effect {
	if m.panic {
		return nil
	}
	var fx []Effect
	for _, id := range m.order() {
		w := m.workers[id]
		if !w.back {
			continue
		}
		coming := false
		var newer *worker
		for _, other := range m.order() {
			o := m.workers[other]
			if o == w || o.Exit != nil || o.Draining || o.Info.ModelID != w.Info.ModelID || !o.begun || o.manual || o.begunAt < w.lostAt {
				continue
			}
			if reach(o.Info.Status) && o.Liveness == contract.LivenessAlive && (newer == nil || o.begunAt > newer.begunAt) {
				newer = o
			}
			coming = coming || o.Info.Status == contract.StatusStarting
		}
		for _, sp := range m.spawns {
			coming = coming || sp.slot.ModelID == w.Info.ModelID && !sp.manual && sp.at >= w.lostAt
		}
		serves := w.Exit == nil && !w.Draining && reach(w.Info.Status) && w.Liveness == contract.LivenessAlive
		switch {
		case newer != nil && serves:
			fx = append(fx, Effect{Kind: EffectSurplus, WorkerID: newer.Info.ID, HiveID: newer.Info.HiveID, Reason: "replaced_one_is_back"})
			w.back = false
		case newer == nil && !coming, w.Exit != nil, w.Draining:
			w.back = false
		}
	}
	return fx
}

// unwant counts a worker that is ended on purpose, before it is taken from the account. One too many was not wanted anyway, nor
// was one that was lost and replaced.
func (a *account) unwant(id string) {
	if a.live[id] && len(a.live) <= a.want {
		a.want--
	}
}

func (e Deleted) apply(m *Machine, now time.Duration) []Effect {
	w := m.workers[e.WorkerID]
	sp, begun := m.spawns[e.WorkerID]
	slot := sp.slot
	if w != nil {
		slot = w.slot
	} else if !begun {
		return nil
	}
	delete(m.spawns, e.WorkerID)
	if a := m.slots[slot]; a != nil && (w == nil || w.Exit == nil) {
		a.unwant(e.WorkerID)
	}
	fx := m.remove(now, e.WorkerID)
	if a := m.slots[slot]; a != nil {
		delete(a.live, e.WorkerID)
		a.want = max(0, min(a.want, len(a.live))) // a restart that was due is not wanted any more
	}
	return fx
}

func (e Gone) apply(m *Machine, now time.Duration) []Effect {
	w := m.workers[e.WorkerID]
	if w == nil || w.Exit != nil {
		return nil
	}
	return Exited{Report: contract.WorkerExit{WorkerID: e.WorkerID, Identity: w.Info.Identity(), ExitCode: -1}, Jitter: e.Jitter}.apply(m, now)
}

func (e Exited) apply(m *Machine, now time.Duration) []Effect {
	r := e.Report
	w := m.workers[r.WorkerID]
	sp, begun := m.spawns[r.WorkerID]
	slot := sp.slot
	if _, known := m.ended[r.Identity]; known && !begun {
		return nil
	}
	if w != nil && w.Info.Identity() != r.Identity {
		m.bury(now, r.Identity) // an earlier run of the same id
		return nil
	}
	if w == nil && !begun {
		m.bury(now, r.Identity)
		return nil
	}
	if w == nil { // it ended before its first beat: listed by what was asked for
		w = &worker{slot: slot, begun: true, manual: sp.manual, Worker: Worker{BeatAt: now, Info: contract.WorkerInfo{ID: r.WorkerID, ModelID: slot.ModelID,
			HiveID: slot.HiveID, Device: slot.Device, PID: r.Identity.PID, BootID: r.Identity.BootID, StartTicks: r.Identity.StartTicks}}}
		m.workers[r.WorkerID], m.ids = w, nil
	}
	delete(m.spawns, r.WorkerID)
	clean := r.ExitCode == 0 && r.Signal == 0
	a := m.slots[w.slot]
	if a != nil && (w.Draining || clean) {
		a.unwant(r.WorkerID)
	}
	m.forgetRun(now, w)
	if w.Draining || clean || a == nil {
		if a != nil {
			a.want = max(0, min(a.want, len(a.live)))
			a.reason, a.last = "exited", &r
			if w.ReadyAt == 0 && !w.Draining {
				// One that ends by itself while it loads has failed, whatever it says.
				a.reason = contract.ConditionStartFailed
				m.delay(now, a, e.Jitter)
			}
		}
		fx := []Effect{{Kind: EffectExited, WorkerID: r.WorkerID, HiveID: w.Info.HiveID, Slot: w.slot, Reason: "exited"}}
		delete(m.workers, r.WorkerID)
		m.ids = nil
		return append(fx, Effect{Kind: EffectRemoved, WorkerID: r.WorkerID, HiveID: w.Info.HiveID})
	}
	return m.crashed(now, w, a, r, e.Jitter)
}

func (Due) apply(m *Machine, now time.Duration) []Effect { return m.respawn(now) }

// crashed keeps the account of a worker that ended by itself.
func (m *Machine) crashed(now time.Duration, w *worker, a *account, r contract.WorkerExit, jitter float64) []Effect {
	if w.ReadyAt != 0 && now-w.ReadyAt >= m.p.HealthyAfter {
		a.failures, a.crashes, a.ooms = 0, nil, 0
	}
	for _, id := range m.order() { // only the last failed run of a slot is worth showing
		if o := m.workers[id]; o != w && o.slot == w.slot && o.Exit != nil {
			delete(m.workers, id)
			m.ids = nil
		}
	}
	w.Exit, w.Liveness, w.EjectedUntil, w.Draining = &r, contract.LivenessDown, 0, false
	w.Info.Status, w.Info.SlotsBusy, w.Info.QueueDepth = contract.StatusStopped, 0, 0
	a.last, a.reason = &r, "crashed"
	switch {
	case r.OOM:
		a.reason = contract.ConditionOOM
		w.Condition = a.reason
		a.ooms++
	case w.ReadyAt == 0:
		a.reason = contract.ConditionStartFailed
		w.Condition = a.reason
	}
	a.crashes = slices.DeleteFunc(append(a.crashes, now), func(t time.Duration) bool { return now-t > m.p.CrashWindow })
	m.delay(now, a, jitter)
	if w.manual && w.ReadyAt == 0 { // who asked for it is told, and tries again or not
		a.want = min(a.want, len(a.live))
	}
	fx := []Effect{{Kind: EffectExited, WorkerID: r.WorkerID, HiveID: w.Info.HiveID, Slot: w.slot, Reason: a.reason, Delay: max(0, a.nextAt-now)}}
	switch {
	case a.ooms > m.p.OOMRestarts:
		a.noFit, a.want = true, len(a.live)
		fx = append(fx, Effect{Kind: EffectDoesNotFit, WorkerID: r.WorkerID, HiveID: w.Info.HiveID, Slot: w.slot})
	case len(a.crashes) >= m.p.CrashLimit:
		a.loopEnds, a.want = now+m.p.CrashLoopWait, len(a.live)
		w.Condition = contract.ConditionCrashLoop
		fx = append(fx, Effect{Kind: EffectCrashLoop, WorkerID: r.WorkerID, HiveID: w.Info.HiveID, Slot: w.slot})
	}
	return append(fx, m.respawn(now)...)
}

// delay sets the earliest time of the next automatic spawn. The jitter stays within the ± 20 % of the reliability contract and
// leans to the early side, so that the fifth start of a crash loop still comes within 75 s with what the starts themselves take.
func (m *Machine) delay(now time.Duration, a *account, jitter float64) {
	d := m.p.Backoff[min(a.failures, len(m.p.Backoff)-1)]
	jitter = max(-1, min(1, jitter))
	share := jitter * 0.02
	if jitter < 0 {
		share = jitter * 0.20
	}
	a.failures++
	a.nextAt = now + d + time.Duration(float64(d)*share)
}

// respawn asks for the workers that are wanted and missing. While the brake is on, nothing is replaced.
func (m *Machine) respawn(now time.Duration) []Effect {
	if m.panic {
		return nil
	}
	var missing []Slot // few, of perhaps thousands
	for slot, a := range m.slots {
		if a.want > len(a.live) && !a.asked && !a.noFit && now >= a.loopEnds && now >= a.nextAt {
			missing = append(missing, slot)
		}
	}
	slices.SortFunc(missing, compareSlots)
	var fx []Effect
	for _, slot := range missing {
		if h := m.hives[slot.HiveID]; h != nil && coarse(h.Liveness) == 2 {
			continue // nobody there to start it; on-demand spawns choose another hive
		}
		m.slots[slot].asked = true
		fx = append(fx, Effect{Kind: EffectRespawn, HiveID: slot.HiveID, Slot: slot})
	}
	return fx
}

// pruneSlots forgets accounts with nothing to remember.
func (m *Machine) pruneSlots(now time.Duration) {
	for slot, a := range m.slots {
		idle := a.want == 0 && len(a.live) == 0 && !a.asked
		if idle && !a.noFit && now >= a.loopEnds && now-a.nextAt > m.p.HealthyAfter {
			delete(m.slots, slot)
		}
	}
}

func compareSlots(a, b Slot) int {
	return cmp.Or(strings.Compare(a.ModelID, b.ModelID), strings.Compare(a.HiveID, b.HiveID), strings.Compare(a.Device, b.Device))
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
