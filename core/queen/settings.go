package queen

import (
	"context"
	"slices"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/registry"
)

// Settings are the Options that may change while a queen runs. They are replaced as a whole and never changed.
type Settings struct {
	Models      []Model
	Workers     []contract.WorkerKind
	Defaults    map[string]contract.WorkerSpawn
	Deployments []contract.Deployment
}

func (q *Queen) settings() *Settings { return q.live.Load() }

// Reconfigure takes over other settings. Names of models stand for what the new ones say from then on, and workers that are started
// are started by them; those that run, or whose start has begun, are left alone. It may be called at any time.
func (q *Queen) Reconfigure(s Settings) {
	if err := q.book.configure(s.Deployments); err != nil {
		q.log.Error("deployments could not be stored", "error", err.Error())
	}
	q.readWishes()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.live.Store(&s)
	q.dir.Store(q.index(q.snap.Load()))
	q.wake()
	q.deploy.wake()
}

// SetHives takes over which hives are configured, by the base URLs of their APIs. New ones are asked from then on; those that are taken
// out are forgotten, unless the gossip tells of them. It may be called at any time.
func (q *Queen) SetHives(bases []string) {
	bases = slices.DeleteFunc(slices.Clone(bases), func(b string) bool { return !isBase(b) })
	member := map[string]bool{}
	for _, m := range q.o.Members() {
		member[m.ID] = m.Hive != "" && m.State != contract.MemberLeft
	}
	var out []*link
	q.mu.Lock()
	if q.stopped {
		q.mu.Unlock()
		return
	}
	q.configured.Store(&bases)
	var links []*link
	for _, l := range *q.links.Load() {
		if l.gossip || slices.Contains(bases, l.base) {
			links = append(links, l)
			continue
		}
		if id, _ := l.known(); id != "" && !member[id] {
			out = append(out, l)
		}
		l.end()
		l.close()
	}
	var made []*link
	for _, base := range bases {
		if !slices.ContainsFunc(links, func(l *link) bool { return l.base == base }) {
			l := newLink(q, base)
			links, made = append(links, l), append(made, l)
		}
	}
	q.links.Store(&links)
	for _, l := range made {
		q.tasks.Go(func() { l.run(q.background) })
	}
	q.mu.Unlock()
	for _, l := range out {
		q.do(func(ctx context.Context) {
			select { // until the poll that may be under way is over
			case l.polling <- struct{}{}:
				id, _ := l.known()
				q.step(registry.HiveRemoved{HiveID: id})
				<-l.polling
			case <-ctx.Done():
			}
		})
	}
	q.notify()
}
