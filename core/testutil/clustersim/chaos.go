package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

// chaos lets something go wrong every few seconds, until the given number of steps was made.
func (w *world) chaos(steps int) {
	var act func()
	act = func() {
		if w.steps >= steps {
			w.calm()
			return
		}
		w.misfortune()
		w.after(time.Second+time.Duration(w.rnd.Int64N(int64(20*time.Second))), act)
	}
	w.after(time.Minute, act)
}

// misfortune is one thing that goes wrong, or one that gets better.
func (w *world) misfortune() {
	h, q := w.hives[w.rnd.IntN(len(w.hives))], w.queens[w.rnd.IntN(len(w.queens))]
	soon := func() time.Duration { return time.Second + time.Duration(w.rnd.Int64N(int64(100*time.Second))) }
	procs := w.procs()
	happened := func(what string) { w.count["fault: "+what]++ }
	switch w.rnd.IntN(17) {
	case 0:
		happened("loss")
		w.faults.loss = w.rnd.Float64() * 0.4
		w.faults.repeat = w.rnd.Float64() * 0.2
		w.faults.delay = time.Duration(w.rnd.Int64N(int64(4 * time.Second)))
	case 1:
		w.faults.loss, w.faults.repeat, w.faults.delay = 0, 0, 0
	case 2:
		happened("partition")
		w.faults.side, w.faults.oneWay = map[string]int{}, w.rnd.IntN(3) == 0
		for _, h := range w.hives {
			w.faults.side[h.id] = w.rnd.IntN(2)
		}
		for _, q := range w.queens {
			w.faults.side[q.id] = w.rnd.IntN(2)
		}
		w.after(soon(), func() { w.faults.side = nil })
	case 3:
		happened("queen cut off")
		w.faults.side, w.faults.oneWay = map[string]int{q.id: 1}, false
		w.after(soon(), func() { w.faults.side = nil })
	case 4:
		happened("queen restarts")
		q.up = false
		w.after(soon()/4, func() {
			if !q.up {
				q.start()
			}
		})
	case 5:
		happened("queen stands still")
		q.paused = w.now + soon()/2
	case 6:
		happened("hive reboots")
		h.up = false
		for _, p := range procs {
			if p.hive == h {
				w.end(p, contract.WorkerExit{})
			}
		}
		w.after(soon(), func() {
			if !h.up {
				w.startAgent(h, true)
			}
		})
	case 7:
		happened("hive's agent restarts")
		h.up = false
		w.after(soon()/10, func() {
			if !h.up {
				w.startAgent(h, false)
			}
		})
	case 8:
		happened("hive's agent stands still")
		h.paused = w.now + soon()
	case 9, 10:
		if len(procs) > 0 {
			happened("worker dies")
			w.end(procs[w.rnd.IntN(len(procs))], contract.WorkerExit{Signal: 9})
		}
	case 11:
		if len(procs) > 0 {
			happened("worker stands still")
			procs[w.rnd.IntN(len(procs))].paused = w.now + soon()
		}
	case 12, 13:
		d := &w.deps[w.rnd.IntN(len(w.deps))]
		w.load[d.Name] = w.rnd.IntN(12)
	case 14:
		happened("another program takes memory")
		h.foreign = contract.Bytes(w.rnd.IntN(4)) * contract.GiB
	case 16: // mostly so that a smaller context helps, now and then so that none does
		p := placement.Place{Hive: h.id, Device: "cuda0"}
		if len(w.tight) == 0 {
			happened("workers run out of memory")
			w.tight[p] = engineContext / 2
			if w.rnd.IntN(8) == 0 {
				w.tight[p] = 0
			}
			w.after(soon(), func() { delete(w.tight, p) })
			for _, k := range procs {
				if w.starved(k) && w.now >= k.readyAt {
					w.kill(k)
				}
			}
		}
	case 15:
		d := &w.deps[w.rnd.IntN(len(w.deps))]
		happened("deployment changes")
		w.epoch++
		d.Spec = fmt.Sprint("s", w.epoch)
	}
}

// calm ends every fault.
func (w *world) calm() {
	w.faults = faults{}
	w.load = map[string]int{}
	clear(w.tight)
	for _, h := range w.hives {
		h.paused, h.foreign = 0, 0
		if !h.up {
			w.startAgent(h, false)
		}
	}
	for _, q := range w.queens {
		q.paused = 0
		if !q.up {
			q.start()
		}
	}
	for _, p := range w.procs() {
		p.paused = 0
	}
}

// excused reports whether what is not as it should be may still be so: a queen waits before it starts something again, as the rules want, or holds a
// hive that kept coming and going suspect, or has a worker drained, or one replica after the other is being changed, which each takes its time. old is how
// many workers of old generations ran at the last look.
func (w *world) excused(old int) (yes bool, now int) {
	for _, p := range w.procs() {
		yes = yes || p.ending
		name, _, _ := placement.ParseKey(p.key)
		for _, d := range w.deps {
			if d.Name == name && d.Spec != p.spec {
				now++
			}
		}
	}
	for _, q := range w.queens {
		yes = yes || slices.ContainsFunc(q.plan.Shortfalls, func(s placement.Shortfall) bool { return s.RetryAfter > 0 })
		yes = yes || slices.ContainsFunc(q.m.Snapshot(w.now).Hives, func(h registry.Hive) bool {
			return h.Liveness == contract.LivenessSuspect && w.now-h.BeatAt < 7500*time.Millisecond
		})
	}
	return yes || now < old, now
}

// full reports whether a deployment is short of workers because some were killed for want of memory: where that was, none is started any
// more until somebody changes something.
func (w *world) full(in placement.Input, s placement.Shortfall) bool {
	i := slices.IndexFunc(w.deps, func(d placement.Deployment) bool { return d.Name == s.Deployment })
	return s.Code == placement.ShortDoesNotFit && i >= 0 && slices.ContainsFunc(in.Past, func(p placement.Past) bool {
		return p.Model == w.deps[i].Model && (p.NoFit || p.OOMs > 0)
	})
}

// settled reports what is not as it should be once nothing goes wrong any more: each replica that is wished for runs once, of the wanted
// generation, every queen knows it, and none has anything to do. With idle, workers are gone too that nobody needs any more, which takes as long as
// the queens wait for that, counted from when they saw it.
func (w *world) settled(idle bool) string {
	runs := map[string][]*proc{}
	for _, p := range w.procs() {
		runs[p.key] = append(runs[p.key], p)
	}
	full := map[string]bool{}
	for _, q := range w.queens {
		in := q.input()
		for _, s := range q.plan.Shortfalls {
			full[s.Deployment] = full[s.Deployment] || w.full(in, s)
		}
	}
	for _, d := range w.deps {
		n := 0
		for i := range max(d.Min, d.Max) + 2 {
			list := runs[placement.Key(d.Name, i)]
			if len(list) > 1 {
				return fmt.Sprintf("%s runs %d times", placement.Key(d.Name, i), len(list))
			}
			n += len(list)
			for _, p := range list {
				if p.spec != d.Spec {
					return fmt.Sprintf("%s is of an old generation", placement.Key(d.Name, i))
				}
			}
		}
		if n < d.Min && !full[d.Name] || n > max(d.Max, d.Min, 1) {
			return fmt.Sprintf("%s has %d replicas, of %d to %d", d.Name, n, d.Min, d.Max)
		}
	}
	for _, q := range w.queens {
		in := q.input()
		for i := range in.Deployments {
			in.Deployments[i].Pressure = q.pressure[in.Deployments[i].Name]
		}
		p := placement.Make(in)
		for _, a := range p.Actions {
			if !idle && (a.Code == placement.CodeIdle || a.Code == placement.CodeSlack) {
				continue
			}
			// One that was in use when it failed is wished for, for a while; queens that did not see it used do not know that, and no request waits.
			if i := slices.IndexFunc(w.deps, func(d placement.Deployment) bool { return d.Name == a.Deployment }); a.Code != placement.CodeReplace || w.deps[i].Min > 0 {
				return fmt.Sprintf("%s still wants: %s", q.id, a.Reason)
			}
		}
		for _, s := range p.Shortfalls {
			if !w.full(in, s) {
				return fmt.Sprintf("%s cannot: %s", q.id, s.Reason)
			}
		}
		if slices.ContainsFunc(in.Workers, func(k placement.Worker) bool {
			return k.State != placement.StateReady && k.State != placement.StateFailed && k.State != placement.StateLost
		}) {
			return q.id + " knows workers that are not ready"
		}
		for _, p := range w.procs() {
			if !slices.ContainsFunc(in.Workers, func(k placement.Worker) bool { return k.ID == p.id && k.State == placement.StateReady }) {
				return fmt.Sprintf("%s does not know worker %s", q.id, p.id)
			}
		}
	}
	return ""
}
