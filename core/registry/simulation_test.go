package registry

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/apiary-dev/apiary/core/contract"
)

// process is a worker's process in the simulation.
type process struct {
	id      string
	hive    string
	boot    string
	pid     int
	inc     int64
	seq     uint64
	status  contract.WorkerStatus
	version int
	muted   bool // its beats are lost
	late    []Beat
}

func (p *process) beat() Beat {
	p.seq++
	return Beat{Heartbeat: contract.Heartbeat{Sequence: p.seq, Worker: contract.WorkerInfo{ID: p.id, ModelID: "m", Device: "cpu0", HiveID: p.hive,
		Port: 1, Address: "a", Status: p.status, ContractVersion: p.version, Incarnation: p.inc, PID: p.pid, BootID: p.boot, StartTicks: uint64(p.pid)}}}
}

// sim is a little cluster: processes on three hives, of which beats are lost, repeated and reordered, processes crash, hives
// reboot, the queen stands still. After each event the invariants are checked.
type sim struct {
	t     *rapid.T
	rnd   *rand.Rand
	m     *Machine
	twin  *Machine // fed the same events: the machine is deterministic
	now   time.Duration
	epoch int64
	procs map[string]*process
	boots map[string]string
	hseq  map[string]uint64
	hmute map[string]bool
	next  int
	asked map[Slot]bool
	seqs  map[string][2]int64 // worker → the newest (incarnation, sequence) that was in a snapshot
	dead  map[contract.Identity]bool

	surplus []string
}

func simHives() []string { return []string{"h1", "h2", "h3"} }

func newSim(t *rapid.T, seed uint64) *sim {
	s := &sim{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), m: New(Params{}, 0), twin: New(Params{}, 0), procs: map[string]*process{},
		boots: map[string]string{}, hseq: map[string]uint64{}, hmute: map[string]bool{}, asked: map[Slot]bool{}, seqs: map[string][2]int64{},
		dead: map[contract.Identity]bool{}}
	for _, h := range simHives() {
		s.boots[h] = h + "-boot-0"
	}
	return s
}

func (s *sim) step(ev Event) {
	fx := s.m.Step(s.now, ev)
	if twin := s.twin.Step(s.now, ev); !slices.Equal(fx, twin) {
		s.t.Fatalf("the same events had different effects: %v and %v", fx, twin)
	}
	for _, e := range fx {
		switch e.Kind {
		case EffectRespawn:
			if s.asked[e.Slot] {
				s.t.Fatalf("a worker was asked for twice in %v", e.Slot)
			}
			if s.m.panic {
				s.t.Fatal("a worker was replaced while the brake is on")
			}
			s.asked[e.Slot] = true
		case EffectSurplus:
			if w := s.m.workers[e.WorkerID]; w == nil || w.manual || len(s.m.Snapshot(s.now).Serving("m")) < 2 {
				s.t.Fatalf("worker %s is to be drained, and no other serves", e.WorkerID)
			}
			s.surplus = append(s.surplus, e.WorkerID)
		case EffectLiveness, EffectHive:
			if e.To == contract.LivenessLost && s.m.panic {
				s.t.Fatal("something became lost while the brake is on (I6)")
			}
			if (e.To == contract.LivenessDown || e.To == contract.LivenessLost) && s.now < 17500*time.Millisecond {
				s.t.Fatalf("down at %s, within the startup grace", s.now)
			}
		}
	}
	s.check()
}

func (s *sim) check() {
	snap := s.m.Snapshot(s.now)
	if !slices.IsSortedFunc(snap.Workers, func(a, b Worker) int {
		if a.Info.ID < b.Info.ID {
			return -1
		}
		return 1
	}) {
		s.t.Fatal("the workers of a snapshot are not in order, or one is there twice")
	}
	healthy := 0
	for i := range snap.Workers {
		w := &snap.Workers[i]
		if t := tier(w, snap.Panic); t == 0 || t == 1 {
			healthy++
		}
		old := s.seqs[w.Info.ID]
		cur := [2]int64{w.Info.Incarnation, int64(w.Sequence)}
		if w.Exit == nil && (cur[0] < old[0] || cur[0] == old[0] && cur[1] < old[1]) {
			s.t.Fatalf("worker %s went back from beat %v to %v (F23)", w.Info.ID, old, cur)
		}
		s.seqs[w.Info.ID] = cur
		if w.Exit == nil && s.dead[w.Info.Identity()] {
			s.t.Fatalf("worker %s came back from its end", w.Info.ID)
		}
	}
	for _, w := range snap.Serving("m") {
		if w.Exit != nil || w.Draining || !reach(w.Info.Status) || w.Info.ContractVersion != contract.Version {
			s.t.Fatalf("worker %s is routed to: %+v", w.Info.ID, w)
		}
		if w.EjectedUntil != 0 && healthy > 0 {
			s.t.Fatalf("the ejected worker %s is routed to while another exists (I8)", w.Info.ID)
		}
		if !snap.Panic && (w.Liveness == contract.LivenessDown || w.Liveness == contract.LivenessLost) {
			s.t.Fatalf("worker %s is routed to and %s", w.Info.ID, w.Liveness)
		}
	}
	for slot, a := range s.m.slots {
		if a.want < 0 || a.asked != s.asked[slot] {
			s.t.Fatalf("account of %v: want %d, asked %v, asked for %v", slot, a.want, a.asked, s.asked[slot])
		}
	}
	for slot := range s.asked {
		if s.m.slots[slot] == nil {
			delete(s.asked, slot)
		}
	}
}

func (s *sim) pick() *process {
	ids := slices.Sorted(maps.Keys(s.procs))
	if len(ids) == 0 {
		return nil
	}
	return s.procs[ids[s.rnd.IntN(len(ids))]]
}

func (s *sim) spawn(slot Slot, automatic, crashes bool) {
	s.next++
	s.epoch++
	p := &process{id: fmt.Sprintf("w%04d", s.next), hive: slot.HiveID, boot: s.boots[slot.HiveID], pid: s.next, inc: 1000 + s.epoch,
		status: contract.StatusStarting, version: 1}
	delete(s.asked, slot)
	s.step(SpawnBegan{Slot: slot, WorkerID: p.id, Automatic: automatic})
	if crashes {
		s.end(p, Exited{Report: contract.WorkerExit{WorkerID: p.id, Identity: p.identity(), ExitCode: 1}, Jitter: s.jitter()})
		return
	}
	s.procs[p.id] = p
}

func (p *process) identity() contract.Identity {
	return contract.Identity{WorkerID: p.id, BootID: p.boot, PID: p.pid, StartTicks: uint64(p.pid)}
}

func (s *sim) jitter() float64 { return 2*s.rnd.Float64() - 1 }

func (s *sim) end(p *process, ev Event) {
	delete(s.procs, p.id)
	s.step(ev)
	if w := s.m.workers[p.id]; w == nil || w.Exit != nil {
		s.dead[p.identity()] = true
	}
}

// second lets one second pass: beats every five, and a tick.
func (s *sim) second(calm bool) {
	s.now += time.Second
	for _, id := range slices.Sorted(maps.Keys(s.procs)) {
		p := s.procs[id]
		if (s.now/time.Second+time.Duration(p.pid))%5 != 0 {
			continue
		}
		if p.status == contract.StatusStarting {
			p.status = contract.StatusReady
		}
		b := p.beat()
		switch {
		case p.muted && !calm:
		case !calm && s.rnd.IntN(10) == 0:
			p.late = append(p.late, b)
		default:
			s.step(b)
			if !calm && s.rnd.IntN(10) == 0 {
				s.step(b)
			}
		}
		if len(p.late) > 0 && s.rnd.IntN(3) == 0 {
			for _, l := range p.late {
				s.step(l)
			}
			p.late = nil
		}
	}
	for i, h := range simHives() {
		if (s.now/time.Second+time.Duration(i))%5 == 0 && (calm || !s.hmute[h]) {
			s.hseq[h]++
			s.step(HiveBeat{Beat: contract.HiveBeat{ID: h, BootID: s.boots[h], Incarnation: 500 + s.epoch, Sequence: s.hseq[h]}})
		}
	}
	s.step(Tick{})
}

func (s *sim) act() {
	hive := simHives()[s.rnd.IntN(3)]
	slot := Slot{ModelID: "m", HiveID: hive, Device: "cpu0"}
	p := s.pick()
	for _, asked := range slices.SortedFunc(maps.Keys(s.asked), func(a, b Slot) int { return cmpString(a.HiveID, b.HiveID) }) {
		if s.rnd.IntN(5) == 0 {
			delete(s.asked, asked)
			s.step(Release{Slot: asked})
		} else {
			s.spawn(asked, true, s.rnd.IntN(3) == 0)
		}
	}
	for _, id := range s.surplus {
		if q := s.procs[id]; q != nil {
			s.step(Draining{WorkerID: id, On: true})
			s.end(q, Deleted{WorkerID: id})
		}
	}
	s.surplus = nil
	switch n := s.rnd.IntN(24); {
	case n == 0 && len(s.procs) < 8:
		s.spawn(slot, s.rnd.IntN(2) == 0, s.rnd.IntN(4) == 0)
	case n == 1:
		s.hmute[hive] = !s.hmute[hive]
	case n == 2 && s.rnd.IntN(6) == 0: // reboot: its processes end without a word
		s.epoch++
		s.boots[hive] = fmt.Sprintf("%s-boot-%d", hive, s.epoch)
		s.hseq[hive] = 0
		for id, q := range s.procs {
			if q.hive == hive {
				delete(s.procs, id)
			}
		}
	case n == 3 && s.rnd.IntN(4) == 0: // the queen stands still
		s.now += time.Duration(s.rnd.IntN(90)) * time.Second
	case p == nil:
	case n == 4:
		p.muted = !p.muted
	case n == 5:
		s.end(p, Exited{Report: contract.WorkerExit{WorkerID: p.id, Identity: p.identity(), ExitCode: s.rnd.IntN(2), OOM: s.rnd.IntN(8) == 0}, Jitter: s.jitter()})
	case n == 6:
		s.end(p, Gone{WorkerID: p.id, Jitter: s.jitter()})
	case n == 7:
		s.step(Draining{WorkerID: p.id, On: true})
		if s.rnd.IntN(2) == 0 {
			s.end(p, Deleted{WorkerID: p.id})
		} else {
			s.step(Draining{WorkerID: p.id})
		}
	case n == 8:
		p.status = []contract.WorkerStatus{contract.StatusReady, contract.StatusBusy}[s.rnd.IntN(2)]
	case n <= 11:
		s.step(Failure{WorkerID: p.id, Kind: []FailureKind{FailureDialRefused, FailureError, FailureStall}[s.rnd.IntN(3)]})
	case n == 12:
		s.step(Success{WorkerID: p.id})
	case n == 13:
		s.step(Reachable{WorkerID: p.id})
	case n == 14 && p.status == contract.StatusStarting:
		s.end(p, SpawnFailed{WorkerID: p.id, Slot: Slot{ModelID: "m", HiveID: p.hive, Device: "cpu0"}, Reason: "start_timeout", Jitter: s.jitter()})
	}
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func TestSimulation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSim(t, rapid.Uint64().Draw(t, "seed"))
		for range 400 {
			s.act()
			if s.rnd.IntN(3) > 0 {
				s.second(false)
			}
		}
		// I7: when the faults stop, there are as many workers as are wanted, as soon as the back-off allows.
		for _, p := range s.procs {
			p.muted = false
		}
		for range 12 * 60 {
			s.second(true)
			for slot := range maps.Clone(s.asked) {
				s.spawn(slot, true, false)
			}
		}
		for slot, a := range s.m.slots {
			if len(a.live) < a.want && !a.noFit && s.now >= a.loopEnds {
				t.Fatalf("%v: %d workers live and %d are wanted: %+v", slot, len(a.live), a.want, a)
			}
			for id := range a.live {
				if s.procs[id] == nil {
					t.Fatalf("%v: worker %s is counted and does not exist", slot, id)
				}
			}
		}
		if s.m.panic {
			t.Fatal("the brake stays on although every hive beats")
		}
	})
}
