package queen

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	syncPath    = "/v1/queens/sync"
	syncGap     = 250 * time.Millisecond // between two messages to a queen
	syncTimeout = 3 * time.Second
	partTimeout = 30 * time.Second // of a part of all records
	leaveBound  = time.Second      // to tell the others that this queen stops
	drainBound  = 2 * time.Second  // for the others to know of a drain
	allAgain    = time.Minute      // between two exchanges of all records that changed nothing
	maxPeers    = 64               // other queens
	maxParts    = 64               // of all records, in one exchange
	peerKept    = 10 * time.Minute // a queen that is no member and is not heard
)

// company is what a queen knows of the other queens, and tells them.
type company struct {
	q       *Queen
	touched chan struct{} // buffered: something may be worth telling
	making  sync.Mutex    // held while a state is made, so that their sequence is that of what they say

	mu       sync.Mutex // guards the fields below
	peers    map[string]*peer
	sequence uint64
	leaving  bool
	drains   map[string]bool // workers that this queen drains
	others   map[string]bool // workers that other queens drain
	wanted   map[string]wanted
}

// wanted is a model that was asked for here and is another queen's to start.
type wanted struct {
	owner string
	at    time.Duration // when it was last asked for
}

// peer is another queen.
type peer struct {
	c    *company
	id   string
	kick chan struct{} // buffered

	mu    sync.Mutex // guards the fields below
	name  string
	base  string // empty: no member says where it is
	api   *client.Client
	alive bool // by gossip
	left  bool
	end   context.CancelFunc
	state contract.QueenState
	said  time.Duration // when the state came
	heard time.Duration // when something last came from it; 0: never
	// failing is set while it does not answer.
	failing bool
	rev     int64  // of the book: what it has been told
	digest  string // of its records
	// settledMine and settledTheirs are the digests that were left after all records were exchanged, at settledAt.
	settledMine, settledTheirs string
	settledAt                  time.Duration
}

func newCompany(q *Queen) *company {
	return &company{q: q, touched: make(chan struct{}, 1), peers: map[string]*peer{}, drains: map[string]bool{}, others: map[string]bool{}, wanted: map[string]wanted{}}
}

// touch has the others told soon of what has changed.
func (c *company) touch() {
	select {
	case c.touched <- struct{}{}:
	default:
	}
}

func (p *peer) touch() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// all lists the other queens, by their node ids.
func (c *company) all() []*peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*peer, 0, len(c.peers))
	for _, p := range c.peers {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b *peer) int { return strings.Compare(a.id, b.id) })
	return out
}

// find returns another queen, and makes it where there is none; nil when there are too many. A member takes the place of one that is none.
func (c *company) find(id string, member bool) *peer {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peers[id]
	if p == nil && len(c.peers) >= maxPeers && member {
		for other, o := range c.peers {
			if o.address() == "" {
				delete(c.peers, other)
				break
			}
		}
	}
	if p == nil && len(c.peers) < maxPeers {
		p = &peer{c: c, id: id, kick: make(chan struct{}, 1)}
		c.peers[id] = p
	}
	return p
}

// run keeps the exchanges with the queens among the members going until ctx ends.
func (c *company) run(ctx context.Context) {
	t := time.NewTicker(tick)
	defer t.Stop()
	var said contract.QueenState
	var saidDigest string
	for {
		changed := c.q.Changed()
		c.meet()
		c.takeDrains()
		if st, digest := gist(c.matters()), c.q.book.digest(); digest != saidDigest || !reflect.DeepEqual(st, said) {
			said, saidDigest = st, digest
			for _, p := range c.all() {
				p.touch()
			}
		}
		gap := time.NewTimer(syncGap)
		select {
		case <-gap.C:
		case <-ctx.Done():
			gap.Stop()
			return
		}
		select {
		case <-changed:
		case <-c.touched:
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// meet starts the exchange with queens that have come, and ends that with those that have gone.
func (c *company) meet() {
	there := map[string]bool{}
	for _, m := range c.q.o.Members() {
		if m.Queen == "" || m.Self || m.ID == c.q.o.NodeID {
			continue
		}
		p := c.find(m.ID, true)
		if p == nil {
			continue
		}
		there[m.ID] = true
		p.meet(m)
	}
	for _, p := range c.all() {
		if there[p.id] {
			continue
		}
		p.mu.Lock()
		p.stop()
		old := c.q.now()-p.heard > peerKept
		p.mu.Unlock()
		if old {
			c.mu.Lock()
			delete(c.peers, p.id)
			c.mu.Unlock()
		}
	}
}

// meet takes in what the gossip says of the queen.
func (p *peer) meet(m contract.Member) {
	p.mu.Lock()
	defer p.mu.Unlock()
	back := m.State == contract.MemberAlive && !p.alive
	p.name, p.alive, p.left = m.Name, m.State == contract.MemberAlive, m.State == contract.MemberLeft
	if p.left {
		p.stop()
		return
	}
	if p.base != m.Queen {
		p.stop()
		p.base = m.Queen
		p.api = client.New(client.Options{Base: m.Queen, Token: secret.ForQueen(p.c.q.o.ClusterKey, p.id), Timeout: partTimeout, Dial: p.c.q.o.Dial})
		ctx, cancel := context.WithCancel(p.c.q.background)
		p.end = cancel
		api := p.api
		if !p.c.q.do(func(context.Context) { p.run(ctx, api) }) {
			cancel()
		}
	}
	if back {
		p.touch()
	}
}

// stop ends the exchange. p.mu is held.
func (p *peer) stop() {
	if p.end != nil {
		p.end()
	}
	p.end, p.base, p.api = nil, "", nil
}

// run exchanges until ctx ends.
func (p *peer) run(ctx context.Context, api *client.Client) {
	defer api.Close()
	for {
		err := p.exchange(ctx, api)
		if ctx.Err() != nil {
			return
		}
		p.note(err)
		interval := p.c.q.o.Interval
		t, gap := time.NewTimer(interval+time.Duration(jitter()*float64(interval)/10)), time.NewTimer(syncGap)
		select {
		case <-gap.C:
			select {
			case <-t.C:
			case <-p.kick:
			case <-ctx.Done():
			}
		case <-ctx.Done():
		}
		t.Stop()
		gap.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// note logs the change from answering to failing and back. A queen that no longer answers, or does again, changes what others may do.
func (p *peer) note(err error) {
	p.mu.Lock()
	was, name := p.failing, p.name
	p.failing = err != nil
	p.mu.Unlock()
	switch log := p.c.q.log; {
	case err != nil && !was:
		log.Warn("a queen does not answer", "queen", name, "node", p.id, "error", err.Error())
	case err == nil && was:
		log.Info("a queen answers again", "queen", name, "node", p.id)
	}
	if was != (err != nil) {
		p.c.q.deploy.wake()
		p.c.q.notify()
	}
}

// exchange tells the queen what has changed and hears how it is there. Where the records still differ then, all are exchanged.
func (p *peer) exchange(ctx context.Context, api *client.Client) error {
	book := p.c.q.book
	p.mu.Lock()
	rev := p.rev
	p.mu.Unlock()
	list, now, _ := book.since(rev)
	out := contract.QueenSync{State: p.c.state(), Digest: book.digest(), Records: list}
	quick, cancel := context.WithTimeout(ctx, syncTimeout)
	in, err := p.ask(quick, api, out)
	cancel()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.rev = now
	p.mu.Unlock()
	mine := book.digest()
	if in.Digest == mine || !p.worthAll(mine, in.Digest) {
		return nil
	}
	after, from, give, take := "", "", true, true
	for part := 0; part < maxParts && (give || take); part++ {
		out := contract.QueenSync{State: p.c.state(), Digest: book.digest(), Records: []contract.Record{}, Pull: take, After: after}
		if give {
			out.Records, from = book.page(from)
			give = from != ""
		}
		if in, err = p.ask(ctx, api, out); err != nil {
			return err
		}
		if take {
			after = in.Next
			take = after != ""
		}
	}
	p.mu.Lock()
	p.settledMine, p.settledTheirs, p.settledAt = book.digest(), in.Digest, p.c.q.now()
	p.mu.Unlock()
	return nil
}

// worthAll reports whether an exchange of all records may help: not where one has just left the same difference.
func (p *peer) worthAll(mine, theirs string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.settledAt == 0 || p.settledMine != mine || p.settledTheirs != theirs || p.c.q.now()-p.settledAt > allAgain
}

// ask makes one exchange and takes in the answer.
func (p *peer) ask(ctx context.Context, api *client.Client, out contract.QueenSync) (contract.QueenSync, error) {
	var in contract.QueenSync
	if err := api.PostJSON(ctx, syncPath, out, &in); err != nil {
		return in, err
	}
	if in.State.NodeID != p.id {
		return in, fmt.Errorf("the queen at %s calls itself %s", p.address(), quoted(in.State.NodeID))
	}
	if err := checkState(in.State); err != nil {
		return in, err
	}
	p.c.hear(p, in, true)
	return in, nil
}

func (p *peer) address() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.base
}

// hear takes in what another queen says: newer records, and its state where that is newer than what was heard before. Of two runs of a
// queen the one that answers is there, and else the one that began later; but only while that is heard, for its clock may have been ahead.
func (c *company) hear(p *peer, in contract.QueenSync, answer bool) {
	changed, refused, err := c.q.book.merge(in.Records)
	if refused != nil {
		c.q.log.Warn("a record of another queen is left out", "queen", p.id, "error", refused.Error())
	}
	if err != nil {
		c.q.log.Error("what another queen shares could not be stored", "error", err.Error())
	}
	p.mu.Lock()
	now := max(c.q.now(), 1)
	first := p.heard == 0
	p.heard, p.digest = now, in.Digest
	st := in.State
	newer := st.Start == p.state.Start && st.Sequence > p.state.Sequence ||
		st.Start != p.state.Start && (answer || st.Start > p.state.Start || now-p.said > c.down())
	matters := false
	if newer {
		matters = first || !reflect.DeepEqual(silent(st), silent(p.state))
		if st.Start != p.state.Start {
			p.rev = 0 // another run may have forgotten
		}
		p.state, p.said = st, now
	}
	p.mu.Unlock()
	if changed {
		c.q.log.Info("records of another queen are in force", "queen", p.id)
		c.q.putInForce()
		c.touch()
	}
	if matters {
		c.takeDrains()
		c.q.deploy.wake()
		c.q.notify()
	}
}

// silent is a state without what changes each time.
func silent(st contract.QueenState) contract.QueenState {
	st.Sequence = 0
	return st
}

// sync answers another queen.
func (q *Queen) sync(w http.ResponseWriter, r *http.Request) {
	var in contract.QueenSync
	if err := httpd.ReadJSON(r, &in); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	if err := checkState(in.State); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	if in.State.NodeID == q.o.NodeID {
		httpd.WriteError(w, r, fault.New(fault.Conflict, "node_id_taken", "The queen that speaks has this queen's own node id; two data folders hold the same node.json."))
		return
	}
	p := q.company.find(in.State.NodeID, false)
	if p == nil {
		httpd.WriteError(w, r, fault.New(fault.Exhausted, "too_many_queens", "This queen knows %d others and takes no more.", maxPeers))
		return
	}
	q.company.hear(p, in, false)
	out := contract.QueenSync{Records: []contract.Record{}}
	if in.Pull {
		out.Records, out.Next = q.book.page(in.After)
	}
	out.State, out.Digest = q.company.state(), q.book.digest()
	httpd.WriteJSON(w, http.StatusOK, out)
}

// peerOnly lets other queens through: they show the secret of this queen, which follows from the cluster's key.
func (q *Queen) peerOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !secret.ForQueen(q.o.ClusterKey, q.o.NodeID).Equal(httpd.Bearer(r)) {
			httpd.WriteError(w, r, unauthorized("The request does not carry the secret that other queens have for this one."))
			return
		}
		next.ServeHTTP(w, r)
	})
}

// down is after which silence a queen no longer counts.
func (c *company) down() time.Duration {
	if d := c.q.o.Registry.Down; d != 0 {
		return d
	}
	return registry.DefaultParams().Down
}

// counts reports whether the queen is there: it has not left, is heard, and answers or is alive by gossip. p.mu is held.
func (p *peer) counts() bool {
	now := p.c.q.now()
	return p.heard != 0 && now-p.heard <= p.c.down() && !p.left && !p.state.Leaving && p.base != "" && (p.alive || !p.failing)
}

// leaves reports whether this queen stops.
func (c *company) leaves() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving
}

// states are those of the queens that are there.
func (c *company) states() []contract.QueenState {
	var out []contract.QueenState
	for _, p := range c.all() {
		p.mu.Lock()
		if p.counts() {
			out = append(out, p.state)
		}
		p.mu.Unlock()
	}
	return out
}

// leave tells the others that this queen stops, within a bound: what it would do next they may do at once.
func (c *company) leave(ctx context.Context) {
	c.mu.Lock()
	c.leaving = true
	c.mu.Unlock()
	c.tellAll(context.WithoutCancel(ctx), leaveBound)
}

// announce tells the queens that are there what has changed, with some records, and waits until they know, within a bound.
func (c *company) announce(ctx context.Context, records ...contract.Record) (others bool) {
	return c.tellAll(ctx, drainBound, records...)
}

// tellAll tells the queens that are there how it is here, with some records, within a bound, and reports whether there are any.
func (c *company) tellAll(ctx context.Context, bound time.Duration, records ...contract.Record) (others bool) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	var all sync.WaitGroup
	for _, p := range c.all() {
		p.mu.Lock()
		api, there := p.api, p.counts()
		p.mu.Unlock()
		if there {
			others = true
			all.Go(func() {
				_, _ = p.ask(ctx, api, contract.QueenSync{State: c.state(), Digest: c.q.book.digest(), Records: append([]contract.Record{}, records...)})
			})
		}
	}
	all.Wait()
	return others
}
