package queen

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/placement"
)

// roomBound is how long a request's worker may wait for others to make room for it, beside the time of their drain.
const roomBound = 30 * time.Second

// chooseByPlan finds the place for a worker that a request wants by the rules of deployments, and has others make room where they must. done
// is false where these rules do not decide: the usual choice does then, and says what is wrong.
func (r *spawning) chooseByPlan(ctx context.Context, modelID string) (done bool, err error) {
	q := r.q
	devices := q.settings().Defaults[r.kind.Name].Devices
	if len(devices) > 1 {
		return false, nil // a plan has one device for a worker
	}
	end := time.NewTimer(q.o.Drain + roomBound)
	defer end.Stop()
	for {
		changed := q.Changed()
		p := q.picture()
		if q.measure(ctx, p) {
			p = q.picture()
		}
		in, name := r.wanted(p, modelID, devices)
		plan := placement.Make(in)
		var spawn *placement.Action
		for i := range plan.Actions {
			switch a := &plan.Actions[i]; {
			case a.Deployment == name && (a.Kind == placement.Spawn || a.Kind == placement.Surge):
				spawn = a
			case a.Kind == placement.Evict && a.For == name:
				r.n.Info("evict", "%s", a.Reason)
				q.end(*a)
			}
		}
		switch {
		case spawn == nil:
			i := slices.IndexFunc(plan.Shortfalls, func(s placement.Shortfall) bool { return s.Deployment == name })
			if i < 0 || plan.Shortfalls[i].Code != placement.ShortDoesNotFit || !measurable(in) {
				return false, nil
			}
			return true, fault.New(fault.Unavailable, placement.ShortDoesNotFit, "%s", plan.Shortfalls[i].Reason)
		case len(spawn.After) == 0:
			if h, ok := p.snap.Hive(spawn.Place.Hive); r.kind.Source != "" && (!ok || engineOn(h, r.kind.Source) == nil) {
				return false, nil // where it runs is known once the engine is there
			}
			return true, r.take(spawn, modelID)
		}
		select {
		case <-changed:
		case <-end.C:
			return true, fault.New(fault.Unavailable, "no_room", "The model %s waits for others to make room, and they have not ended in time; `apiary worker list` shows them.", quoted(r.name))
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

// wanted is the picture with the wish for one worker of the model, and the name of that wish. It goes only where the
// model is already, as long as such a hive takes workers.
func (r *spawning) wanted(p *picture, modelID string, devices []string) (in placement.Input, name string) {
	in = p.input()
	name = orElse(r.name, modelID)
	if slices.ContainsFunc(in.Deployments, func(d placement.Deployment) bool { return d.Name == name }) {
		name = demandPrefix + modelID
	}
	p.ask(&in, name, modelID, name, r.kind)
	d := &in.Deployments[len(in.Deployments)-1]
	judge := d.Judge
	files := false
	if e := p.dir.model(modelID); e != nil && !strings.HasPrefix(modelID, echoScheme) {
		files = slices.ContainsFunc(r.q.open(), func(id string) bool { return slices.Contains(e.hives, id) })
		r.moved = !files
	}
	d.Judge = func(h *placement.Hive, v *placement.Device) placement.Opinion {
		switch {
		case files && !h.Holds[modelID]:
			return placement.Opinion{Excluded: "the model is not there"}
		case len(devices) > 0 && !slices.Contains(devices, v.ID):
			return placement.Opinion{Excluded: fmt.Sprintf("excluded by the worker %q, which runs only on %s", r.kind.Name, strings.Join(devices, ", "))}
		}
		return judge(h, v)
	}
	return in, name
}

// measurable reports whether the memory of some device is known.
func measurable(in placement.Input) bool {
	return slices.ContainsFunc(in.Hives, func(h placement.Hive) bool {
		return slices.ContainsFunc(h.Devices, func(d placement.Device) bool { return d.MemoryTotal > 0 })
	})
}

// take makes the place of a plan that of this spawn, and counts its memory from now on.
func (r *spawning) take(a *placement.Action, modelID string) error {
	q := r.q
	var err error
	if r.link, r.hive, err = q.hive(a.Place.Hive); err != nil {
		return err
	}
	if e := q.dir.Load().model(modelID); e != nil {
		r.model = e.model
	}
	r.from = a.From
	r.spec.HiveID, r.spec.Devices, r.spec.WorkerID = r.hive.Beat.ID, []string{a.Place.Device}, mintID(r.kind)
	if def := q.settings().Defaults[r.kind.Name]; def.Context == 0 && r.model != nil && a.Context > 0 && a.Context < r.model.ContextLength {
		r.spec.Context = a.Context // more does not fit
	}
	r.n.Info("place", "on %s of %s: about %s are needed and %s are free", a.Place.Device, r.hive.Beat.Name, a.Need, max(a.Free, 0))
	counted := *a
	counted.Deployment, counted.Replica, counted.Key = modelID, 0, ""
	q.deploy.mu.Lock()
	q.deploy.pending[r.spec.WorkerID] = pending{action: counted, model: modelID, engine: r.kind.Source, onDemand: true}
	q.deploy.mu.Unlock()
	q.deploy.remember(r.spec.WorkerID, started{context: a.Context, slots: a.Slots, engine: r.kind.Source, reason: "Requests wanted " + orElse(r.name, modelID) + ", and nobody served it."})
	return nil
}
