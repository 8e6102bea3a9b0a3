// Clustersim plays a whole cluster on a virtual clock, with the registry and the placement of real queens as they are: hives, their
// processes, several queens, and a network that loses, repeats, delays and cuts. Its tests let everything go wrong and check what must
// hold all the same. As a command it measures what a queen's decisions cost at a size that no test machine has.
//
//	go run ./core/testutil/clustersim [-hives 1000] [-workers 10000] [-quick]
//
// It prints one row a measurement: name, ours, other, ratio, goal, and info, as there is nobody to compare with. What is measured is
// processor time.
package main

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

func main() {
	hives := flag.Int("hives", 1000, "hives, each with a processor and a GPU")
	workers := flag.Int("workers", 10_000, "workers, spread over them")
	quick := flag.Bool("quick", false, "fewer rounds")
	flag.Parse()
	if *hives < 1 || *workers < *hives || *workers%*hives != 0 {
		fmt.Fprintln(os.Stderr, "clustersim: give at least one hive and a whole number of workers for each")
		os.Exit(2)
	}
	rounds := 25
	if *quick {
		rounds = 7
	}
	if err := measure(*hives, *workers, rounds); err != nil {
		fmt.Fprintln(os.Stderr, "clustersim:", err)
		os.Exit(1)
	}
}

// perReplica is how many replicas each deployment of the large cluster has.
const perReplica = 10

// measure plays a large cluster and prints what its queen's decisions cost.
func measure(hives, workers, rounds int) error {
	c := newCrowd(hives, workers)
	size := fmt.Sprintf("%d-workers", workers)
	row := func(name string, d time.Duration, n int, unit string) float64 {
		v := float64(d.Nanoseconds()) / float64(n)
		shown := v
		if unit == "ms" {
			shown /= 1e6
		}
		fmt.Printf("cluster/%s/%s %.1f-%s - - - info\n", name, size, shown, unit)
		return v
	}

	beat := c.time(rounds, func() {
		for _, p := range c.beats {
			c.beat(p)
		}
	})
	hive := c.time(rounds, c.hiveBeats)
	tick := c.time(rounds, func() { c.q.m.Step(c.w.now, registry.Tick{}) })
	row("worker-beat", beat, workers, "ns")
	row("hive-beat", hive, hives, "ns")
	row("tick", tick, 1, "ms")
	fmt.Printf("cluster/registry-cpu/%s %.4f-cores - - - info\n", size, (beat+hive).Seconds()/5+tick.Seconds())

	var in placement.Input
	row("picture", c.time(rounds, func() { in = c.q.input() }), 1, "ms")
	var p placement.Plan
	row("decision-nothing-to-do", c.time(rounds, func() { p = placement.Make(in) }), 1, "ms")
	if len(p.Actions) > 0 || len(p.Shortfalls) > 0 {
		return fmt.Errorf("a cluster in which all is well wants %d actions and has %d shortfalls", len(p.Actions), len(p.Shortfalls))
	}

	// One hive with all its workers is gone.
	broken := in
	broken.Hives, broken.Workers = slices.Clone(in.Hives), slices.Clone(in.Workers)
	broken.Hives[0].Liveness = contract.LivenessLost
	for i := range broken.Workers {
		if k := &broken.Workers[i]; k.Hive == broken.Hives[0].ID {
			k.State = placement.StateLost
		}
	}
	took := c.time(rounds, func() { p = placement.Make(broken) })
	lost := workers / hives
	if len(p.Actions) != lost || len(p.Shortfalls) > 0 {
		return fmt.Errorf("a lost hive with %d workers leads to %d actions and %d shortfalls", lost, len(p.Actions), len(p.Shortfalls))
	}
	row("decision-hive-lost", took, 1, "ms")
	row("decision-hive-lost-each", took, lost, "ns")
	row("explain", c.time(rounds, func() { placement.Explain(in, in.Deployments[0].Name) }), 1, "ms")
	row("owner-of-3-queens", c.time(rounds, func() {
		for i := range in.Workers {
			placement.Owner(placement.Key(in.Workers[i].Deployment, in.Workers[i].Replica), []string{"queen-0", "queen-1", "queen-2"})
		}
	}), len(in.Workers), "ns")
	return nil
}

// crowd is a large cluster in which all is well.
type crowd struct {
	w     *world
	q     *queen
	beats []*contract.Heartbeat
	hb    []contract.HiveBeat
}

func newCrowd(hives, workers int) *crowd {
	var deps []placement.Deployment
	for i := 0; i*perReplica < workers; i++ {
		deps = append(deps, placement.Deployment{Name: fmt.Sprintf("d%05d", i), Model: fmt.Sprintf("m%03d", i%100), Spec: "s", Min: min(perReplica, workers-i*perReplica), Spread: i%2 == 0,
			Judge: func(h *placement.Hive, d *placement.Device) placement.Opinion {
				return placement.Opinion{Prefer: d.Kind == "cuda"}
			}})
	}
	w := newWorld(1, hives, 0, deps)
	q := &queen{w: w, id: "queen-0"}
	w.queens = append(w.queens, q)
	q.start()
	c := &crowd{w: w, q: q}
	for _, h := range w.hives {
		for i := range h.devices { // with room for half as many again
			h.devices[i].MemoryTotal = contract.Bytes(workers/hives)*6*contract.GiB + h.devices[i].Reserve
		}
		c.hb = append(c.hb, contract.HiveBeat{ID: h.id, Name: h.id, BootID: "b", Incarnation: 1, Devices: 2})
	}
	c.hiveBeats()
	for i := range workers {
		h := w.hives[i%hives]
		id := fmt.Sprintf("w%06d", i)
		q.specs[id] = "s"
		d := deps[i/perReplica]
		c.beats = append(c.beats, &contract.Heartbeat{Worker: contract.WorkerInfo{ID: id, ModelID: d.Model, Device: "cuda0", Port: 1, Status: contract.StatusReady,
			ContractVersion: contract.Version, Incarnation: 1, HiveID: h.id, PID: i + 1, BootID: "b", StartTicks: uint64(i + 1), SpawnKey: placement.Key(d.Name, i%perReplica), Generation: 1,
			Slots: 4, MemoryBytes: 4 * contract.GiB}})
	}
	for _, b := range c.beats {
		c.beat(b)
	}
	return c
}

func (c *crowd) beat(b *contract.Heartbeat) {
	b.Sequence++
	c.q.m.Step(c.w.now, registry.Beat{Heartbeat: *b})
}

func (c *crowd) hiveBeats() {
	for i := range c.hb {
		c.hb[i].Sequence++
		c.q.devices[c.hb[i].ID] = c.w.hives[i].devices
		c.q.m.Step(c.w.now, registry.HiveBeat{Beat: c.hb[i]})
	}
}

// time is the median processor time of so many runs: what else the machine does has little to do with it.
func (c *crowd) time(rounds int, run func()) time.Duration {
	all := make([]time.Duration, rounds)
	for i := range all {
		c.w.now += time.Millisecond
		begun := cpuTime()
		run()
		all[i] = cpuTime() - begun
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// cpuTime is the processor time that this process has used, its collector's included.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
