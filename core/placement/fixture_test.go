package placement

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

const gib = contract.GiB

// trio is a small cluster: a tower with two GPUs, a laptop and a machine in the attic.
func trio() Input {
	hive := func(id, name string, devices ...Device) Hive {
		return Hive{ID: id, Name: name, Liveness: contract.LivenessAlive, BeatAt: 999 * time.Second, Devices: devices, Holds: map[string]bool{}}
	}
	dev := func(id string, total contract.Bytes) Device {
		return Device{ID: id, Kind: strings.TrimRight(id, "0123456789"), MemoryTotal: total, MemoryFree: total, FreeAt: 999 * time.Second, Reserve: gib}
	}
	return Input{Now: 1000 * time.Second, Queens: []string{"q1"}, Hives: []Hive{
		hive("h1", "tower", dev("cuda0", 24*gib), dev("cuda1", 24*gib), dev("cpu0", 64*gib)),
		hive("h2", "laptop", dev("cpu0", 16*gib)),
		hive("h3", "attic", dev("cpu0", 8*gib)),
	}, Models: []Model{
		{ID: "m-smol", Name: "smol", Bytes: gib, Estimate: Estimate{Weights: gib}},
		{ID: "m-big", Name: "big", Variant: "Q6_K", Bytes: 20 * gib, MaxContext: 8192, Estimate: Estimate{Weights: 20 * gib, PerToken: 64 * contract.KiB}},
		{ID: "m-mid", Name: "mid", Bytes: 10 * gib, Estimate: Estimate{Weights: 10 * gib}},
	}}
}

func (in Input) with(ds ...Deployment) Input {
	for i := range ds {
		ds[i].Spec = orElse(ds[i].Spec, "s1")
		ds[i].Model = orElse(ds[i].Model, "m-smol")
	}
	in.Deployments = append(in.Deployments, ds...)
	return in
}

func (in Input) and(ws ...Worker) Input {
	for i := range ws {
		w := &ws[i]
		w.Spec, w.Model, w.State = orElse(w.Spec, "s1"), orElse(w.Model, "m-smol"), State(orElse(string(w.State), string(StateReady)))
		if w.Generation == 0 {
			w.Generation = 1
		}
		if w.ReadyAt == 0 && (w.State == StateReady || w.State == StateDraining) {
			w.ReadyAt = 100 * time.Second
		}
	}
	in.Workers = append(in.Workers, ws...)
	in.seen()
	return in
}

// seen makes what is measured agree with the workers that are ready.
func (in *Input) seen() {
	for i := range in.Hives {
		for j := range in.Hives[i].Devices {
			d := &in.Hives[i].Devices[j]
			d.MemoryFree = d.MemoryTotal
			for _, w := range in.Workers {
				if w.Hive == in.Hives[i].ID && w.Devices[0] == d.ID && w.ReadyAt != 0 && w.State != StateFailed {
					d.MemoryFree -= min(d.MemoryFree, w.Memory)
				}
			}
		}
	}
}

// at is a worker at a place such as "h1/cuda0".
func at(id, deployment string, replica int, place string, memory contract.Bytes) Worker {
	hive, device, _ := strings.Cut(place, "/")
	return Worker{ID: id, Deployment: deployment, Replica: replica, Hive: hive, Devices: []string{device}, Memory: memory}
}

func (a Action) String() string {
	switch a.Kind {
	case Spawn, Surge:
		s := fmt.Sprintf("%s %s %s/%s", a.Kind, a.Key, a.Place.Hive, a.Place.Device)
		if a.Context > 0 {
			s += fmt.Sprintf(" context %d", a.Context)
		}
		if a.Generation > 1 {
			s += fmt.Sprintf(" generation %d", a.Generation)
		}
		if len(a.After) > 0 {
			s += " after " + strings.Join(a.After, ",")
		}
		return s
	}
	s := fmt.Sprintf("%s %s %s", a.Kind, a.WorkerID, a.Code)
	if a.Downtime {
		s += " (downtime)"
	}
	return s
}

// shown is a plan in a few words: its actions, then its shortfalls.
func shown(p Plan) string {
	var out []string
	for _, a := range p.Actions {
		out = append(out, a.String())
	}
	for _, s := range p.Shortfalls {
		out = append(out, fmt.Sprintf("short %s %d %s", s.Deployment, s.Missing, s.Code))
	}
	return strings.Join(out, "\n")
}

func expect(t *testing.T, in Input, want ...string) Plan {
	t.Helper()
	p := Make(in)
	if got := shown(p); got != strings.Join(want, "\n") {
		t.Errorf("planned\n%s\nwant\n%s\nreasons:", got, strings.Join(want, "\n"))
		for _, a := range p.Actions {
			t.Log(a.Reason)
		}
		for _, s := range p.Shortfalls {
			t.Log(s.Reason)
		}
	}
	return p
}

func only(kind string) func(*Hive, *Device) Opinion {
	return func(_ *Hive, d *Device) Opinion {
		if d.Kind != kind {
			return Opinion{Excluded: fmt.Sprintf("excluded by require (config.hcl:63): device.kind is %q", d.Kind)}
		}
		return Opinion{}
	}
}
