package queen

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/placement"
)

// lookAgain is how often it is looked whether an apply is through, beside each change.
const lookAgain = time.Second

// apply makes the list the deployments in force, and follows until they are served, or it is clear that they will not be. When ctx ends
// only the following does.
func (q *Queen) apply(ctx context.Context, n *job.Narrator, list []contract.Deployment) (contract.Applied, error) {
	none := contract.Applied{}
	plan, err := q.planView(ctx, list)
	if err != nil {
		return none, err
	}
	if err := q.book.apply(list); err != nil {
		return none, err
	}
	are := "deployments are"
	if len(list) == 1 {
		are = "deployment is"
	}
	n.Info("apply", "%d %s in force: %d new, %d changed, %d taken back or workers ended", len(list), are, plan.Add, plan.Change, plan.Stop)
	touched := q.putInForce()
	names := map[string]bool{} // also of those that have not changed: their workers may have begun to start only just now
	for _, d := range list {
		names[d.Name] = true
	}
	for _, i := range plan.Items {
		if i.Kind == "deployment" {
			names[i.Name] = true
		}
	}
	err = q.follow(ctx, n, touched, func(name string) bool { return names[name] })
	return contract.Applied{Plan: plan, Deployments: q.deploymentViews()}, err
}

// putInForce has the deployments read again and planned for. It returns the time from which a plan knows of them.
func (q *Queen) putInForce() time.Duration {
	q.readKeys()
	q.readWishes()
	if q.trust != nil {
		q.trust.read()
	}
	q.mu.Lock()
	q.dir.Store(q.index(q.snap.Load()))
	q.wake()
	q.mu.Unlock()
	at := q.now()
	q.deploy.wake()
	return at
}

// follow tells how the deployments that are meant come to what they should be, until they are, or a plan made after a time says why they
// will not.
func (q *Queen) follow(ctx context.Context, n *job.Narrator, since time.Duration, meant func(name string) bool) error {
	t := time.NewTicker(lookAgain)
	defer t.Stop()
	said := map[string]string{}
	for {
		changed := q.Changed()
		news, settled, err := q.standing(since, meant)
		for _, l := range news {
			if said[l.about] != l.text {
				said[l.about] = l.text
				if l.warn {
					n.Warn("place", "%s", l.text)
				} else {
					n.Info("place", "%s", l.text)
				}
			}
		}
		if settled || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// line is something to tell about a deployment.
type line struct {
	about, text string
	warn        bool
}

// standing says how the deployments that are meant stand, and whether that is what they should be. err says why it will not come to that.
func (q *Queen) standing(since time.Duration, meant func(name string) bool) (news []line, settled bool, err error) {
	s, drained, others := q.Snapshot(), q.book.drained(), q.company.pending()
	d := q.deploy
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.planned <= since {
		return nil, false, nil
	}
	busy := map[string]bool{}
	for _, all := range []map[string]pending{others, d.pending} {
		for _, b := range all {
			busy[b.action.Deployment] = true
		}
	}
	ready := map[string]int{}
	for i := range s.Workers {
		k := &s.Workers[i]
		name, _, onDemand := replicaOf(k.Info.SpawnKey)
		if name == "" || onDemand || !meant(name) {
			continue
		}
		w := d.find(name)
		switch st := stateOf(k, d.ending[k.Info.ID]); st {
		case placement.StateReady:
			ready[name]++
			_, spec := readGeneration(k.Info.Generation)
			busy[name] = busy[name] || w == nil || spec != specText(w.spec) || drained[k.Info.HiveID]
		case placement.StateStarting, placement.StateDraining:
			busy[name] = true
		}
	}
	for _, a := range d.plan.Actions {
		busy[a.Deployment] = true
	}
	var stuck []string
	var first *placement.Shortfall
	for i := range d.plan.Shortfalls {
		f := &d.plan.Shortfalls[i]
		if !meant(f.Deployment) {
			continue
		}
		if f.RetryAfter == 0 || f.Code == placement.ShortCrashLoop {
			if first == nil {
				first = f
			}
			stuck = append(stuck, f.Deployment)
		} else {
			busy[f.Deployment] = true
		}
		news = append(news, line{f.Deployment + " " + f.Code, f.Reason, true})
	}
	open := false
	for _, w := range d.wishes {
		if meant(w.Name) {
			news = append(news, line{w.Name, fmt.Sprintf("%s: %d of %s ready", w.Name, ready[w.Name], wantedText(w)), false})
			open = open || (busy[w.Name] || ready[w.Name] < w.Replicas.Min) && !slices.Contains(stuck, w.Name)
		}
	}
	for name := range busy {
		open = open || meant(name) && d.find(name) == nil
	}
	if open {
		return news, false, nil
	}
	if first != nil {
		err = fault.New(fault.Unavailable, first.Code, "%s", first.Reason)
	}
	return news, true, err
}

func wantedText(w *wish) string {
	if w.Replicas.Per == contract.PerGPU {
		return "one on each GPU"
	}
	if w.Replicas.Min == 1 {
		return "1 replica"
	}
	return fmt.Sprintf("%d replicas", w.Replicas.Min)
}

// find is wish. d.mu is held.
func (d *deploying) find(name string) *wish {
	for _, w := range d.wishes {
		if w.Name == name {
			return w
		}
	}
	return nil
}

// drainHive takes a hive out of placement, or back into it. A drain follows until the workers of deployments have moved.
func (q *Queen) drainHive(ctx context.Context, n *job.Narrator, d contract.HiveDrain) (contract.HiveView, error) {
	none := contract.HiveView{}
	v, err := q.getHive(d.HiveID)
	if err != nil {
		return none, err
	}
	if err := q.book.drain(v.ID, !d.Resume); err != nil {
		return none, err
	}
	if d.Resume {
		n.Info("resume", "hive %s takes workers again", v.Name)
		q.putInForce()
		return q.getHive(v.ID)
	}
	n.Info("drain", "hive %s gets nothing new, and the workers of deployments move away from it", v.Name)
	since := q.putInForce()
	here := map[string]bool{}
	var others, asked []string
	for _, w := range q.Snapshot().Workers {
		if w.Info.HiveID != v.ID || w.Exit != nil {
			continue
		}
		switch name, _, onDemand := replicaOf(w.Info.SpawnKey); {
		case onDemand:
			asked = append(asked, w.Info.ID)
		case name != "":
			here[name] = true
		default:
			others = append(others, w.Info.ID)
		}
	}
	switch list := strings.Join(asked, ", "); len(asked) {
	case 0:
	case 1:
		n.Info("drain", "%s was started by requests and ends when nobody uses it", list)
	default:
		n.Info("drain", "%s were started by requests and end when nobody uses them", list)
	}
	switch list := strings.Join(others, ", "); len(others) {
	case 0:
	case 1:
		n.Warn("drain", "%s is of no deployment and stays; `apiary worker delete` ends it", list)
	default:
		n.Warn("drain", "%s are of no deployment and stay; `apiary worker delete` ends one", list)
	}
	if err := q.follow(ctx, n, since, func(name string) bool { return here[name] }); err != nil {
		return none, err
	}
	return q.getHive(v.ID)
}
