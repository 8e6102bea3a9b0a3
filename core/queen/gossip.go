package queen

import (
	"context"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	maxLinks   = 4096
	maxQueens  = 16 // that a worker beats to
	keysBound  = 30 * time.Second
	silentFrom = 13 // tenths of the interval: so late, a beat has been lost
)

// HeardHive takes the beat of a hive of another agent that came by gossip, from a member that has said where its hive is. The first one
// makes the hive known.
func (q *Queen) HeardHive(beat contract.HiveBeat) {
	if err := checkHiveBeat(beat); err != nil {
		q.o.Metrics.Beat("hive", "refused")
		q.log.Warn("beat refused", "hive", beat.ID, "field", fault.As(err).Param, "error", err.Error())
		return
	}
	l := q.linkTo(beat)
	if l == nil {
		q.o.Metrics.Beat("hive", "refused")
		return
	}
	q.o.Metrics.Beat("hive", "accepted")
	l.mu.Lock()
	l.heardAt, l.seenAt = time.Now(), time.Now()
	ask := l.digest != beat.InventoryDigest
	l.mu.Unlock()
	q.step(registry.HiveBeat{Beat: beat})
	if ask {
		select {
		case l.refresh <- struct{}{}:
		default:
		}
	}
}

// linkTo returns the link to the hive that beats, and makes it where there is none at that address. It is nil when there are too many.
func (q *Queen) linkTo(beat contract.HiveBeat) *link {
	q.mu.Lock()
	defer q.mu.Unlock()
	links := *q.links.Load()
	var moved *link
	for _, l := range links {
		id, _ := l.known()
		switch {
		case id == beat.ID && (l.base == beat.Address || !l.gossip), id == "" && l.base == beat.Address:
			return l
		case id == beat.ID:
			moved = l
		}
	}
	if moved == nil && len(links) >= maxLinks || q.stopped {
		return nil
	}
	l := newLink(q, beat.Address)
	l.gossip, l.id = true, beat.ID
	l.heardAt, l.seenAt = time.Now(), time.Now()
	l.api = client.New(client.Options{Base: l.base, Token: secret.ForHive(q.o.ClusterKey, beat.ID), Dial: q.o.Dial})
	now := append(slices.DeleteFunc(slices.Clone(links), func(o *link) bool { return o == moved }), l)
	q.links.Store(&now)
	if moved != nil {
		moved.end()
		moved.close()
	}
	q.tasks.Go(func() { l.run(q.background) })
	return l
}

// end stops what run does.
func (l *link) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.ended != nil {
		l.ended()
	}
}

// patience is how long nothing needs to be asked: 0 for a hive that is polled.
func (l *link) patience() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.gossip || !l.reported {
		return 0
	}
	if h, ok := l.q.Snapshot().Hive(l.id); ok && h.Beat.InventoryDigest != l.digest {
		return 0
	}
	return l.q.o.Interval*silentFrom/10 - time.Since(l.heardAt)
}

// lost reports whether a hive that the gossip told of has been silent for so long that it need not be asked every second.
func (l *link) lost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gossip && time.Since(l.seenAt) > 12*l.q.o.Interval
}

// forgetLinks drops the links to hives that the registry has forgotten.
func (q *Queen) forgetLinks() {
	limit := q.o.Registry.Forget
	if limit == 0 {
		limit = registry.DefaultParams().Forget
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	links := *q.links.Load()
	now := slices.DeleteFunc(slices.Clone(links), func(l *link) bool {
		l.mu.Lock()
		old := l.gossip && time.Since(l.seenAt) > limit && !slices.Contains(*q.configured.Load(), l.base)
		l.mu.Unlock()
		if old {
			l.end()
			l.close()
		}
		return old
	})
	if len(now) < len(links) {
		q.links.Store(&now)
	}
}

// MembersChanged has the queen look at the members again. It does not block.
func (q *Queen) MembersChanged() {
	q.do(func(context.Context) {
		for _, m := range q.o.Members() {
			if m.Hive == "" || m.Self {
				continue
			}
			suspect, left := m.State != contract.MemberAlive, m.State == contract.MemberLeft
			q.mu.Lock()
			saidLeft, was := q.suspects[m.ID]
			if suspect {
				q.suspects[m.ID] = left
			} else {
				delete(q.suspects, m.ID)
			}
			q.mu.Unlock()
			if suspect && (!was || left && !saidLeft) {
				q.step(registry.HiveSuspected{HiveID: m.ID, Left: left})
			}
		}
		q.notify()
		q.company.touch()
	})
}

// queens are the base URLs of all queens that workers are to beat to, this one first.
func (q *Queen) queens() []string {
	out := []string{q.o.URL}
	for _, m := range q.o.Members() {
		if m.Queen != "" && !m.Self && m.State != contract.MemberLeft && len(out) < maxQueens && !slices.Contains(out, m.Queen) {
			out = append(out, m.Queen)
		}
	}
	return out
}

// changeKeys changes the gossip keys of all members and lists the members then.
func (q *Queen) changeKeys(ctx context.Context, c contract.KeyChange) ([]contract.Member, error) {
	if q.o.ChangeKeys == nil {
		return nil, fault.New(fault.Unavailable, "no_gossip", "This agent takes part in no gossip, so it has no keys to change.")
	}
	ctx, cancel := context.WithTimeout(ctx, keysBound)
	defer cancel()
	if err := q.o.ChangeKeys(ctx, c); err != nil {
		return nil, err
	}
	return q.members(), nil
}
