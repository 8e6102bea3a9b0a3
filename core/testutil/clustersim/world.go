package main

import (
	"cmp"
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
)

// world is a cluster on a virtual clock: hives with their processes, queens, and a network that loses, delays, repeats and cuts.
// Everything that happens is a step, and everything follows from the seed.
type world struct {
	rnd    *rand.Rand
	now    time.Duration
	steps  int
	queue  events
	order  uint64
	hives  []*hive
	queens []*queen
	deps   []placement.Deployment
	models []placement.Model
	load   map[string]int // requests that are open, by deployment
	epoch  int64          // of starts: processes, agents, boots
	faults faults
	bad    map[string]bool         // models whose workers end while they load
	tight  map[placement.Place]int // devices on which workers are killed for want of memory: those with a context above it
	failed error
	count  map[string]int // what happened, for the report
}

// faults is what goes wrong at the moment.
type faults struct {
	loss, repeat float64
	delay        time.Duration
	side         map[string]int // partition: nodes on different sides do not hear each other; nil: none
	oneWay       bool           // only from side 1 to side 0 nothing arrives
}

// hive is a machine with an agent and the processes that it started.
type hive struct {
	id      string
	boot    int64
	inc     int64
	seq     uint64
	up      bool
	paused  time.Duration // the agent stands still until then
	devices []placement.Device
	foreign contract.Bytes // what other programs use of each
	procs   map[string]*proc
}

// proc is a worker's process.
type proc struct {
	id, key string
	spec    string
	model   string
	hive    *hive
	gen     int64
	pid     int
	inc     int64
	seq     uint64
	device  string
	memory  contract.Bytes
	context int           // 0: the engine's choice
	readyAt time.Duration // when it is loaded
	paused  time.Duration
	ending  bool // it was told to end
	used    time.Duration
	busy    int
}

type event struct {
	at    time.Duration
	order uint64
	run   func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

func (w *world) after(d time.Duration, run func()) {
	w.order++
	heap.Push(&w.queue, event{w.now + d, w.order, run})
}

// every runs something again and again, with a little jitter.
func (w *world) every(d time.Duration, alive func() bool, run func()) {
	var again func()
	again = func() {
		if alive() {
			run()
			w.after(d-d/10+time.Duration(w.rnd.Int64N(int64(d/5))), again)
		}
	}
	w.after(time.Duration(w.rnd.Int64N(int64(d))), again)
}

// send carries a message between two nodes, perhaps late, more than once, or not at all.
func (w *world) send(from, to string, deliver func()) {
	for range 2 {
		if w.faults.loss > 0 && w.rnd.Float64() < w.faults.loss {
			w.count["lost messages"]++
		} else {
			d := time.Millisecond + time.Duration(w.rnd.Int64N(int64(5*time.Millisecond)))
			if w.faults.delay > 0 {
				d += time.Duration(w.rnd.Int64N(int64(w.faults.delay)))
			}
			w.after(d, func() {
				if !w.cut(from, to) {
					deliver()
				}
			})
		}
		if w.faults.repeat == 0 || w.rnd.Float64() >= w.faults.repeat {
			return
		}
		w.count["repeated messages"]++
	}
}

func (w *world) cut(from, to string) bool {
	s := w.faults.side
	if s == nil || s[from] == s[to] {
		return false
	}
	return !w.faults.oneWay || s[from] == 1
}

func (w *world) fail(format string, args ...any) {
	if w.failed == nil {
		w.failed = fmt.Errorf("at %s, step %d: "+format, append([]any{w.now, w.steps}, args...)...)
	}
}

// newWorld makes a cluster of so many hives and queens.
func newWorld(seed uint64, hives, queens int, deps []placement.Deployment) *world {
	w := &world{rnd: rand.New(rand.NewPCG(seed, 7)), deps: deps, load: map[string]int{}, bad: map[string]bool{}, tight: map[placement.Place]int{}, count: map[string]int{}}
	models := map[string]bool{}
	for _, d := range deps {
		if !models[d.Model] {
			models[d.Model] = true
			w.models = append(w.models, placement.Model{ID: d.Model, Name: d.Model, Bytes: contract.GiB, Estimate: placement.Estimate{Weights: 4 * contract.GiB}})
		}
	}
	for i := range hives {
		h := &hive{id: fmt.Sprintf("hive-%04d", i), up: true, procs: map[string]*proc{}}
		for _, kind := range []string{"cpu", "cuda"} {
			h.devices = append(h.devices, placement.Device{ID: kind + "0", Kind: kind, MemoryTotal: 10 * contract.GiB, Reserve: contract.GiB})
		}
		w.hives = append(w.hives, h)
		w.startAgent(h, true)
	}
	for i := range queens {
		q := &queen{w: w, id: fmt.Sprintf("queen-%d", i)}
		w.queens = append(w.queens, q)
		q.start()
	}
	return w
}

// startAgent starts a hive's agent, after a boot or without one.
func (w *world) startAgent(h *hive, boot bool) {
	w.epoch++
	h.inc, h.seq, h.up = w.epoch, 0, true
	if boot {
		h.boot = w.epoch
	}
	inc := h.inc
	w.every(5*time.Second, func() bool { return h.up && h.inc == inc }, func() {
		if w.now < h.paused {
			return
		}
		h.seq++
		b := contract.HiveBeat{ID: h.id, Name: h.id, BootID: fmt.Sprint(h.boot), Incarnation: h.inc, Sequence: h.seq, Devices: len(h.devices)}
		devices := slices.Clone(h.devices)
		for i := range devices {
			d := &devices[i]
			d.MemoryFree = d.MemoryTotal - h.foreign
			for _, p := range h.procs {
				if p.device == d.ID && w.now >= p.readyAt {
					d.MemoryFree -= p.memory
				}
			}
		}
		for _, q := range w.queens {
			w.send(h.id, q.id, func() { q.hiveBeat(b, devices) })
		}
	})
}

// spawn is the hive's answer to WorkerSpawn: the process that has the key already, a refusal, or a new one.
func (h *hive) spawn(w *world, a placement.Action, id, spec, model string) (runs string, err string) {
	var found *proc
	for _, pid := range slices.Sorted(maps.Keys(h.procs)) {
		if p := h.procs[pid]; p.key == a.Key && (found == nil || p.gen > found.gen) {
			found = p
		}
	}
	switch {
	case found != nil && found.gen > a.Generation:
		return "", "stale_generation"
	case found != nil && found.gen == a.Generation:
		return found.id, ""
	}
	used := a.Need + h.foreign
	var total contract.Bytes
	for _, d := range h.devices {
		if d.ID == a.Place.Device {
			total = d.MemoryTotal - d.Reserve
		}
	}
	for _, p := range h.procs {
		if p.device == a.Place.Device {
			used += p.memory
		}
	}
	if used > total {
		w.count["refused for memory"]++
		return "", "does_not_fit"
	}
	w.epoch++
	p := &proc{id: id, key: a.Key, spec: spec, model: model, hive: h, gen: a.Generation, pid: int(w.epoch), inc: w.epoch, device: a.Place.Device, memory: a.Need, context: a.Context,
		readyAt: w.now + time.Second + time.Duration(w.rnd.Int64N(int64(8*time.Second)))}
	for _, o := range h.procs {
		if o.key == p.key && o.gen == p.gen {
			w.fail("%s has two processes of %s, generation %d (I1)", h.id, p.key, p.gen)
		}
	}
	h.procs[id] = p
	w.count["processes started"]++
	w.beatOf(p)
	return id, ""
}

// beatOf makes a process beat.
func (w *world) beatOf(p *proc) {
	beat := func() {
		if w.now < p.paused {
			return
		}
		p.seq++
		info := contract.WorkerInfo{ID: p.id, ModelID: p.model, Device: p.device, Port: 1, Status: contract.StatusStarting, ContractVersion: contract.Version, Incarnation: p.inc, HiveID: p.hive.id,
			PID: p.pid, BootID: fmt.Sprint(p.hive.boot), StartTicks: uint64(p.pid), SpawnKey: p.key, Generation: p.gen, Slots: 4, SlotsBusy: p.busy, MemoryBytes: p.memory}
		if w.now >= p.readyAt {
			info.Status = contract.StatusReady
		}
		hb := contract.Heartbeat{Worker: info, Sequence: p.seq}
		for _, q := range w.queens {
			w.send(p.hive.id, q.id, func() { q.beat(hb, p.spec) })
		}
	}
	alive := func() bool { return p.hive.procs[p.id] == p }
	w.after(0, func() {
		if alive() {
			beat()
		}
	})
	w.after(p.readyAt-w.now, func() {
		if alive() {
			if w.bad[p.model] {
				w.end(p, contract.WorkerExit{ExitCode: 3})
				return
			}
			if w.starved(p) {
				w.kill(p)
				return
			}
			beat() // at once on a change
		}
	})
	w.every(5*time.Second, alive, beat)
}

// kill is the hive's answer to WorkerDelete: it ends a process whose identity is the one that the queen knows.
func (h *hive) kill(w *world, id contract.Identity) {
	p := h.procs[id.WorkerID]
	if p == nil || p.pid != id.PID || fmt.Sprint(h.boot) != id.BootID {
		return
	}
	w.end(p, contract.WorkerExit{})
	w.count["processes ended"]++
}

// end ends a process; its hive tells the queens.
func (w *world) end(p *proc, x contract.WorkerExit) {
	delete(p.hive.procs, p.id)
	if !p.hive.up {
		return
	}
	x.WorkerID, x.Identity = p.id, contract.Identity{WorkerID: p.id, BootID: fmt.Sprint(p.hive.boot), PID: p.pid, StartTicks: uint64(p.pid)}
	for _, q := range w.queens {
		w.send(p.hive.id, q.id, func() { q.exited(x) })
	}
}

// engineContext is what an engine chooses where it is not told.
const engineContext = 8192

// starved reports whether a process takes more memory than its device has left.
func (w *world) starved(p *proc) bool {
	limit, ok := w.tight[placement.Place{Hive: p.hive.id, Device: p.device}]
	return ok && cmp.Or(p.context, engineContext) > limit
}

// kill ends a process for want of memory.
func (w *world) kill(p *proc) {
	w.count["killed for memory"]++
	w.end(p, contract.WorkerExit{Signal: 9, OOM: true})
}

// procs returns all processes, ordered.
func (w *world) procs() []*proc {
	var out []*proc
	for _, h := range w.hives {
		out = append(out, slices.Collect(maps.Values(h.procs))...)
	}
	slices.SortFunc(out, func(a, b *proc) int { return cmp.Compare(a.pid, b.pid) })
	return out
}

// serve shares the open requests among the processes that are ready.
func (w *world) serve() {
	ready := map[string][]*proc{}
	for _, p := range w.procs() {
		p.busy = 0
		if w.now >= p.readyAt && w.now >= p.paused && !p.ending {
			name, _, _ := placement.ParseKey(p.key)
			ready[name] = append(ready[name], p)
		}
	}
	for _, d := range w.deps {
		list := ready[d.Name]
		for i := range min(w.load[d.Name], 4*len(list)) {
			p := list[i%len(list)]
			p.busy++
			p.used = w.now
		}
	}
}

// waiting is how many requests of a deployment find no slot.
func (w *world) waiting(name string) int {
	busy := 0
	for _, h := range w.hives {
		for _, p := range h.procs {
			if n, _, _ := placement.ParseKey(p.key); n == name {
				busy += p.busy
			}
		}
	}
	return max(0, w.load[name]-busy)
}

// run makes steps until so many were made, or until a time.
func (w *world) run(steps int, until time.Duration, check func()) {
	for n := 0; n < steps && len(w.queue) > 0 && w.failed == nil; n++ {
		if until > 0 && w.queue[0].at > until {
			w.now = until
			return
		}
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.run()
		w.steps++
		if check != nil {
			check()
		}
	}
}
