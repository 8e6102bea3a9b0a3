package gossip

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls, mostly with a lock of its own held: nothing here blocks or calls back.
type delegate Gossip

func (d *delegate) gossip() *Gossip { return (*Gossip)(d) }

// NodeMeta is what this agent tells of itself.
func (d *delegate) NodeMeta(int) []byte {
	g := d.gossip()
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.self.meta(g.leaving, g.o.Keys.Fingerprints()).encode()
}

// GetBroadcasts, LocalState and MergeRemoteState have nothing to give and take nothing: beats go point to point.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is empty.
func (d *delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState ignores what a newer agent may send.
func (d *delegate) MergeRemoteState([]byte, bool) {}

// NotifyMsg takes a message of another agent.
func (d *delegate) NotifyMsg(b []byte) {
	g := d.gossip()
	m, err := decodeMessage(b)
	switch {
	case errors.Is(err, errUnknownMessage):
		g.o.Metrics.GossipDropped("unknown_message")
		return
	case err != nil:
		g.o.Metrics.GossipDropped("bad_message")
		g.log.Debug("gossip message refused", "error", err.Error())
		return
	}
	switch m := m.(type) {
	case beat:
		select {
		case g.queue <- m:
		default:
			g.o.Metrics.GossipDropped("queue_full")
		}
	case keyOrder:
		g.do(func() { g.obey(m) })
	}
}

// NotifyAlive refuses members that cannot be.
func (d *delegate) NotifyAlive(peer *memberlist.Node) error {
	g := d.gossip()
	_, err := parse(peer)
	if err == nil && peer.Name != g.name {
		g.mu.Lock()
		full := len(g.table.nodes) >= maxMembers && g.table.nodes[peer.Name] == nil
		g.mu.Unlock()
		if full {
			err = errors.New("there are too many members already")
		}
	}
	if err != nil {
		g.o.Metrics.GossipDropped("bad_member")
		if g.once("member "+peer.Addr.String(), time.Minute) {
			g.log.Warn("an agent is not let in", "at", peer.Addr.String(), "port", peer.Port, "because", err.Error())
		}
		return err
	}
	return nil
}

func parse(peer *memberlist.Node) (*node, error) {
	id, start, err := splitName(peer.Name)
	if err != nil {
		return nil, err
	}
	addr, ok := netip.AddrFromSlice(peer.Addr)
	if !ok || peer.Port == 0 {
		return nil, errors.New("it has no address that can be connected to")
	}
	m, err := decodeMeta(peer.Meta)
	if err == nil {
		err = m.checkPlace(addr)
	}
	if err != nil {
		return nil, err
	}
	return &node{name: peer.Name, id: id, start: start, meta: m, at: netip.AddrPortFrom(addr.Unmap(), peer.Port), alive: true, since: time.Now()}, nil
}

// NotifyJoin notes a member that is there, or there again.
func (d *delegate) NotifyJoin(peer *memberlist.Node) { d.gossip().there(peer) }

// NotifyUpdate notes that a member tells something else of itself.
func (d *delegate) NotifyUpdate(peer *memberlist.Node) { d.gossip().there(peer) }

func (g *Gossip) there(peer *memberlist.Node) {
	n, err := parse(peer)
	if err != nil {
		return // NotifyAlive has told
	}
	g.mu.Lock()
	known := g.table.nodes[n.name] != nil && g.table.nodes[n.name].alive
	blocked, changed := g.table.there(n)
	current := g.table.entries[n.id].current.name
	if n.name != g.name && !n.meta.Leaving {
		g.seenAt(n.at)
	}
	again := changed && !known
	g.mu.Unlock()
	if blocked && again {
		g.do(func() { g.contest(g.ctx, current, n.name) })
		return
	}
	if n.name == g.name || !changed {
		return
	}
	switch {
	case n.meta.Leaving:
		g.log.Info("an agent is leaving", "agent", n.meta.Name, "node", n.id)
	case again:
		g.log.Info("an agent is there", "agent", n.meta.Name, "node", n.id, "at", n.at.String(), "version", n.meta.Release)
		g.Kick() // a queen that has just come has heard of nobody yet
	}
	g.o.Changed()
}

// NotifyLeave notes a member that left, or that SWIM gives up.
func (d *delegate) NotifyLeave(peer *memberlist.Node) {
	g := d.gossip()
	if peer.Name == g.name {
		return
	}
	g.mu.Lock()
	changed := g.table.gone(peer.Name, time.Now())
	n, left := g.table.nodes[peer.Name], false
	if n != nil {
		left = n.meta.Leaving
	}
	g.mu.Unlock()
	if !changed {
		return
	}
	if left {
		g.log.Info("an agent has left", "member", peer.Name)
	} else {
		g.log.Warn("an agent does not answer and is suspect", "member", peer.Name)
	}
	g.o.Changed()
}

// AckPayload is this machine's clock, for those who probe it.
func (d *delegate) AckPayload() []byte {
	return binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixMilli()))
}

// NotifyPingComplete compares clocks.
func (d *delegate) NotifyPingComplete(other *memberlist.Node, rtt time.Duration, payload []byte) {
	if len(payload) != 8 || rtt < 0 || rtt > time.Second {
		return // from a slow answer nothing can be told
	}
	theirs := time.UnixMilli(int64(binary.BigEndian.Uint64(payload)))
	skew := theirs.Sub(time.Now().Add(-rtt / 2))
	g := d.gossip()
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.table.nodes[other.Name]; n != nil {
		n.skew, n.measured = skew, true
	}
}
