package gossip

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/run"
)

const (
	maxMembers  = 4096             // of strangers' making
	kept        = 24 * time.Hour   // a member that is not there any more
	keptLeft    = time.Hour        // one that said that it leaves
	doubleEvery = 5 * time.Second  // between two looks at two agents with one node id
	maxSkew     = 10 * time.Second // between two clocks, before somebody is told
)

// node is one run of an agent.
type node struct {
	name, id, start string
	meta            metadata
	at              netip.AddrPort
	alive           bool // as SWIM sees it
	since           time.Time
	skew            time.Duration
	measured        bool // skew is known
}

func (n *node) member(self bool) contract.Member {
	m := contract.Member{ID: n.id, Start: n.start, Name: n.meta.Name, Version: n.meta.Release, Queen: n.meta.Queen, Hive: n.meta.Hive, Address: n.at.String(),
		State: contract.MemberAlive, Since: n.since, Self: self, Keys: n.meta.Keys, Roles: []string{}}
	if n.meta.Queen != "" {
		m.Roles = append(m.Roles, "queen")
	}
	if n.meta.Hive != "" {
		m.Roles = append(m.Roles, "hive")
	}
	switch {
	case n.meta.Leaving:
		m.State = contract.MemberLeft
	case !n.alive:
		m.State = contract.MemberSuspect
	}
	if n.measured {
		skew := n.skew.Milliseconds()
		m.SkewMS = &skew
	}
	return m
}

// entry is a node id: the run that counts, and others of the same id that were seen while it is there.
type entry struct {
	current *node
	others  map[string]*node
}

// table is who is known, by node id. It is not safe for concurrent use.
type table struct {
	self    string // own name
	entries map[string]*entry
	nodes   map[string]*node // by name
}

func (t *table) init(name string, s Self, keys []string, at netip.AddrPort, now time.Time) {
	t.self, t.entries, t.nodes = name, map[string]*entry{}, map[string]*node{}
	n := &node{name: name, id: s.NodeID, start: s.Start, meta: s.meta(false, keys), at: at, alive: true, since: now}
	t.entries[s.NodeID] = &entry{current: n, others: map[string]*node{}}
	t.nodes[name] = n
}

// there notes that a member is alive. It reports whether another run of the same node stands in its way.
func (t *table) there(n *node) (blocked, changed bool) {
	if old := t.nodes[n.name]; old != nil {
		changed = !old.alive || old.meta.Leaving != n.meta.Leaving || old.at != n.at || old.meta.Name != n.meta.Name || old.meta.Queen != n.meta.Queen || old.meta.Hive != n.meta.Hive ||
			!slices.Equal(old.meta.Keys, n.meta.Keys)
		if old.alive {
			n.since = old.since
		}
		*old = *n
		n = old
	} else if len(t.nodes) >= maxMembers {
		return false, false
	} else {
		t.nodes[n.name], changed = n, true
	}
	e := t.entries[n.id]
	switch {
	case e == nil:
		t.entries[n.id] = &entry{current: n, others: map[string]*node{}}
	case e.current == n:
	case e.current.name == t.self || e.current.alive && !e.current.meta.Leaving:
		e.others[n.name] = n
		return true, changed
	default:
		t.promote(e, n)
	}
	return false, changed
}

// promote makes n the run that counts. The one before is forgotten.
func (t *table) promote(e *entry, n *node) {
	delete(t.nodes, e.current.name)
	delete(e.others, n.name)
	e.current = n
}

// gone notes that SWIM gives a member up, or that it left.
func (t *table) gone(name string, now time.Time) (changed bool) {
	n := t.nodes[name]
	if n == nil || !n.alive {
		return false
	}
	n.alive, n.since = false, now
	e := t.entries[n.id]
	if e.current != n { // a run that never counted
		delete(e.others, name)
		delete(t.nodes, name)
		return false
	}
	var next *node
	for _, o := range e.others {
		if o.alive && (next == nil || o.start > next.start) {
			next = o
		}
	}
	if next != nil && name != t.self {
		t.promote(e, next)
	}
	return true
}

// replace lets a newer run of a node take the place of the one that counts, which does not answer.
func (t *table) replace(old, newer string) (changed bool) {
	o, n := t.nodes[old], t.nodes[newer]
	if o == nil || n == nil || old == t.self || !n.alive || t.entries[n.id] == nil || t.entries[n.id].current != o {
		return false
	}
	t.promote(t.entries[n.id], n)
	return true
}

// prune forgets who has not been there for long.
func (t *table) prune(now time.Time) (changed bool) {
	for id, e := range t.entries {
		n := e.current
		if n.name == t.self || n.alive {
			continue
		}
		if age := now.Sub(n.since); age > kept || n.meta.Leaving && age > keptLeft {
			delete(t.entries, id)
			delete(t.nodes, n.name)
			for name := range e.others {
				delete(t.nodes, name)
			}
			changed = true
		}
	}
	return changed
}

func (t *table) list() []contract.Member {
	out := make([]contract.Member, 0, len(t.entries))
	for _, e := range t.entries {
		out = append(out, e.current.member(e.current.name == t.self))
	}
	slices.SortFunc(out, func(a, b contract.Member) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// doubles are the other runs of this agent's own node id that are there.
func (g *Gossip) doubles() []contract.Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []contract.Member
	for _, n := range g.table.entries[g.o.Self.NodeID].others {
		if n.alive && !n.meta.Leaving {
			out = append(out, n.member(false))
		}
	}
	return out
}

// contest follows two runs of one node until one of them is out of the way. It is started when the second one appears.
func (g *Gossip) contest(ctx context.Context, current, newcomer string) {
	since := time.Now()
	for {
		g.mu.Lock()
		a, b := g.table.nodes[current], g.table.nodes[newcomer]
		over := a == nil || b == nil || !a.alive || !b.alive || a.meta.Leaving || b.meta.Leaving || g.table.entries[a.id].current != a
		own, settled := current == g.name, g.settled
		var first, second contract.Member
		if !over {
			first, second = a.member(own), b.member(false)
		}
		g.mu.Unlock()
		switch {
		case over:
			return
		case own && settled:
			// While one starts it is for settle to decide. Later, the newer one goes, once the other has had time to.
			if !g.answers(ctx, second) {
				return // memberlist will find out
			}
			if g.once("double "+second.ID, time.Minute) {
				g.log.Error("another agent answers under this agent's node id; stop it, or remove node.json from one of the two data folders",
					"node", second.ID, "agent", second.Name, "at", address(second))
			}
			if first.Start > second.Start && time.Since(since) >= g.o.Settle {
				select {
				case g.clash <- errDouble(second):
				default:
				}
				return
			}
		case !own && second.Start > first.Start && !g.answers(ctx, first):
			g.mu.Lock()
			changed := g.table.replace(current, newcomer)
			g.mu.Unlock()
			if changed {
				g.log.Info("an agent has started again", "agent", second.Name, "node", second.ID, "at", second.Address, "before", first.Address)
				g.o.Changed()
				return
			}
		}
		if run.Sleep(ctx, min(doubleEvery, g.o.Settle/3)) != nil {
			return
		}
	}
}

func (g *Gossip) answers(ctx context.Context, m contract.Member) bool {
	ctx, cancel := context.WithTimeout(ctx, streamBound)
	defer cancel()
	return g.o.Answers(ctx, m)
}

// watch forgets old members, and says what is wrong between this agent and others.
func (g *Gossip) watch(ctx context.Context) {
	for run.Sleep(ctx, g.o.Interval) == nil {
		g.mu.Lock()
		changed := g.table.prune(time.Now())
		var alive []node
		for _, e := range g.table.entries {
			if n := e.current; n.name != g.name && n.alive {
				alive = append(alive, *n)
			}
		}
		g.mu.Unlock()
		if changed {
			g.o.Changed()
		}
		skewed := 0
		for _, n := range alive {
			if n.measured && n.skew.Abs() > maxSkew {
				skewed++
				if g.once("skew "+n.id, time.Hour) {
					g.log.Warn("the clocks of two agents differ; set the time on one of them, for example with a time service",
						"agent", n.meta.Name, "ahead_of_this_one", n.skew.Round(time.Millisecond).String(), "tolerated", maxSkew.String())
				}
			}
			if quiet := 6 * g.o.Interval; time.Since(n.since) > quiet && time.Since(g.transport.lastPacket(n.at)) > quiet && g.once("udp "+n.id, 10*time.Minute) {
				g.log.Warn("an agent is reached over TCP and no UDP packet comes from it; let UDP through to the gossip port on both machines",
					"agent", n.meta.Name, "at", n.at.String(), "this", g.advertise.String())
			}
		}
		g.o.Metrics.GossipMembers(g.states(), skewed)
	}
}

func (g *Gossip) states() map[string]int {
	out := map[string]int{}
	for _, m := range g.Members() {
		out[string(m.State)]++
	}
	return out
}
