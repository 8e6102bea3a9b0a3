package gossip

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/apiary-dev/apiary/core/run"
)

// beats sends this agent's hive beat to every queen: at the interval, and at once after Kick.
func (g *Gossip) beats(ctx context.Context) {
	for {
		began := time.Now()
		if err := g.beat(ctx); err != nil && ctx.Err() == nil && g.once("beat", time.Minute) {
			g.log.Warn("the queens are not told how this hive is", "error", err.Error())
		}
		next := time.NewTimer(g.o.Interval + time.Duration((2*rand.Float64()-1)*float64(g.o.Interval)/10) - time.Since(began))
		select {
		case <-ctx.Done():
			next.Stop()
			return
		case <-next.C:
		case <-g.kick:
			next.Stop()
			if run.Sleep(ctx, beatGap-time.Since(began)) != nil {
				return
			}
		}
	}
}

func (g *Gossip) beat(ctx context.Context) error {
	g.mu.Lock()
	var queens []memberlist.Address
	for _, e := range g.table.entries {
		// SWIM's dead are told too: it may be the only one who thinks so.
		if n := e.current; n.name != g.name && n.meta.Queen != "" && !n.meta.Leaving && (n.alive || time.Since(n.since) < kept) {
			queens = append(queens, memberlist.Address{Addr: n.at.String(), Name: n.name})
		}
	}
	g.mu.Unlock()
	if len(queens) == 0 {
		return nil
	}
	b, err := g.o.Beat(ctx)
	if err != nil {
		return err
	}
	msg, err := encodeMessage(kindBeat, beat{From: g.name, Beat: b})
	if err != nil {
		return err
	}
	for _, q := range queens {
		if err := g.list.SendToAddress(q, msg); err != nil {
			g.log.Debug("beat not sent", "queen", q.Addr, "error", err.Error())
		}
	}
	return nil
}

// listen looks at the beats that came, one after the other.
func (g *Gossip) listen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case b := <-g.queue:
			g.hear(b)
		}
	}
}

// hear takes a beat of a member that counts, about the hive that it said it has.
func (g *Gossip) hear(b beat) {
	if g.o.Heard == nil {
		g.o.Metrics.GossipDropped("no_queen")
		return
	}
	g.mu.Lock()
	n := g.table.nodes[b.From]
	counts := n != nil && n.name != g.name && g.table.entries[n.id].current == n && n.meta.Hive != ""
	fits := counts && n.meta.Hive == b.Beat.Address
	g.mu.Unlock()
	switch {
	case !counts:
		g.o.Metrics.GossipDropped("stranger")
	case !fits:
		g.o.Metrics.GossipDropped("other_address")
	default:
		g.o.Heard(b.Beat)
	}
}
