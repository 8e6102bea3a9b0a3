package queen

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

// A queen that was just started finds workers that run already. Until they have beaten it knows them from the hives' processes
// only, and it must not start a second worker where one of them would do.

// beats reports whether a worker runs, is heard and will take requests.
func beats(w *registry.Worker) bool {
	return w.Exit == nil && !w.Draining && w.Info.Status != contract.StatusStopped && w.Info.ContractVersion == contract.Version &&
		w.Condition != contract.ConditionUnkillable &&
		w.Liveness != contract.LivenessDown && w.Liveness != contract.LivenessLost
}

// young reports whether workers of a former queen may not have beaten yet, or have only just done so.
func (q *Queen) young() bool {
	grace := q.o.Registry.Grace
	if grace == 0 {
		grace = registry.DefaultParams().Grace
	}
	return q.now() < grace
}

// inherited looks on the hives for a process that fits and that this queen did not start, and waits a little until it has beaten. It
// returns nil when there is none, or none that beats: starting it again by its key finds it.
func (q *Queen) inherited(ctx context.Context, links []*link, fits func(contract.Process) bool) (*contract.Process, error) {
	found := map[string]*contract.Process{}
	for _, l := range links {
		lctx, cancel := context.WithTimeout(ctx, pollTimeout)
		list, err := l.processes(lctx)
		cancel()
		if err != nil {
			continue // the spawn will say what is wrong with the hive
		}
		q.mu.Lock()
		for _, p := range list {
			if !p.Zombie && fits(p) && !q.own[p.WorkerID] {
				found[p.WorkerID] = &p
			}
		}
		q.mu.Unlock()
	}
	if len(found) == 0 {
		return nil, nil
	}
	bound := time.NewTimer(q.o.Interval + q.o.Interval/5 + time.Second) // a beat must come within its interval
	defer bound.Stop()
	for {
		changed := q.Changed()
		s := q.Snapshot()
		for id, p := range found {
			if w, ok := s.Worker(id); ok && w.Info.Identity() == p.Identity {
				if beats(&w) {
					return p, nil
				}
				delete(found, id)
			}
		}
		if len(found) == 0 {
			return nil, nil
		}
		select {
		case <-changed:
		case <-bound.C:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// greet asks the workers that run on a hive for their descriptions, so that their next beats need not be waited for. An answer
// counts as a beat before the first: every beat that they send is newer.
func (q *Queen) greet(ctx context.Context, l *link) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	list, err := l.processes(ctx)
	if err != nil {
		return // their beats will tell
	}
	hiveID, _ := l.known()
	h, ok := q.Snapshot().Hive(hiveID)
	if !ok {
		return
	}
	host := hostOf(h.Beat.Address)
	var all sync.WaitGroup
	var unknown atomic.Int32
	for _, p := range list {
		if _, known := q.Snapshot().Worker(p.WorkerID); known || p.Zombie || !workerID.MatchString(p.WorkerID) {
			continue
		}
		all.Go(func() {
			c := q.workerClient(&registry.Worker{Info: contract.WorkerInfo{Address: host, Port: p.Port}}, secret.ForWorker(q.o.ClusterKey, p.WorkerID))
			defer c.Close()
			var info contract.WorkerInfo
			if c.GetJSON(ctx, "/info", &info) != nil || info.Identity() != p.Identity || info.HiveID != hiveID || info.Port != p.Port {
				unknown.Add(1)
				return
			}
			if checkWorkerBeat(&info) == nil && q.checkAddress(&info, "") == nil {
				q.step(registry.Beat{Heartbeat: contract.Heartbeat{Worker: info}})
			}
		})
	}
	all.Wait()
	if unknown.Load() == 0 {
		l.mu.Lock()
		l.greeted = true
		l.mu.Unlock()
		q.deploy.wake()
	}
}

var mintedID = regexp.MustCompile(`^(.+)-[0-9a-f]{8}$`)

// ofKind reports whether a worker with the id may be of the kind: an id that a queen minted says of which one it is.
func (q *Queen) ofKind(id string, k contract.WorkerKind) bool {
	m := mintedID.FindStringSubmatch(id)
	if m == nil || m[1] == k.Name {
		return true
	}
	return !slices.ContainsFunc(q.settings().Workers, func(o contract.WorkerKind) bool { return o.Name == m[1] })
}

// inherit gives a spawn the worker that a former queen left running, when it is one that the spawn might have started. Who names an
// id or a key has said which worker is meant.
func (r *spawning) inherit(ctx context.Context, devices []string) (*contract.WorkerSpawned, error) {
	q := r.q
	if r.automatic || r.spec.WorkerID != "" || r.spec.SpawnKey != "" || !q.young() {
		return nil, nil
	}
	p, err := q.inherited(ctx, []*link{r.link}, func(p contract.Process) bool {
		return p.Model == r.spec.Model && q.ofKind(p.WorkerID, r.kind) && (len(devices) == 0 || p.Device == strings.Join(devices, ","))
	})
	if p == nil || err != nil {
		return nil, err
	}
	r.n.Info("spawn", "worker %s runs already: it was started before this queen", p.WorkerID)
	r.existing = true
	return &contract.WorkerSpawned{Identity: p.Identity, Port: p.Port, Address: hostOf(r.hive.Beat.Address), HiveID: r.hive.Beat.ID, Existing: true}, nil
}
