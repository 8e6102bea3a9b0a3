// Package gossip keeps the agents of a cluster known to each other: who is there, where and in which role, over memberlist with
// every packet and stream encrypted; the beats of hives, point to point to every queen; and the keys of all that. It judges
// nobody: what SWIM calls dead is a suspicion here, and what becomes of a suspect is decided by the age of its beats, elsewhere.
package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/metrics"
	"github.com/apiary-dev/apiary/core/secret"
)

// Options configures a Gossip. Zero durations mean the defaults named.
type Options struct {
	Self Self
	// Listener and Packets are the open TCP and UDP sockets of one address. They are closed when Run ends.
	Listener net.Listener
	Packets  net.PacketConn
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error)
	// Advertise is the IP address and port at which others reach this agent; invalid: where Listener listens.
	Advertise netip.AddrPort
	Join      []string // host:port, dns:host[:port]; asked at the start and again by the rejoin loop
	Keys      *Keyring
	PeersFile string // remembers the members of the last 24 h over a restart; "": nothing is remembered

	Resolve func(ctx context.Context, host string) ([]netip.Addr, error) // nil: the system's resolver
	// Answers reports whether the agent that m describes, and no other one, answers its /healthz now. nil: nobody does.
	Answers func(ctx context.Context, m contract.Member) bool
	Beat    func(ctx context.Context) (contract.HiveBeat, error) // of this agent's hive; nil: it has none
	Heard   func(beat contract.HiveBeat)                         // takes the beats of the hives of other agents; nil: this agent is no queen
	Changed func()                                               // called after each change of Members; must not block; nil: nothing

	Interval time.Duration // of beats, ± 10 %; default 5 s
	Rejoin   time.Duration // between two rounds of the rejoin loop, ± a third; default 15 s
	Settle   time.Duration // how long two agents with one node id may both answer before the newer one ends; default 30 s
	Metrics  *metrics.Metrics
	Log      *slog.Logger

	tune func(*memberlist.Config) // tests make the protocol quicker
}

const (
	leaveBound  = time.Second
	streamBound = 5 * time.Second // for a stream to another agent to be made, and for each exchange on it
	beatGap     = 250 * time.Millisecond
	queueLength = 1024 // beats that wait to be looked at
)

// Gossip is this agent's membership. New, then Run; the other methods may be called from many goroutines at any time.
type Gossip struct {
	o         Options
	log       *slog.Logger
	name      string // <node id>.<start>
	advertise netip.AddrPort
	list      *memberlist.Memberlist // set by Run before anything else can use it
	transport *transport
	queue     chan beat
	kick      chan struct{}
	clash     chan error
	tasks     sync.WaitGroup
	ctx       context.Context // of tasks; ends with Run

	mu      sync.Mutex // guards the fields below
	table   table
	self    Self
	ended   bool // no more tasks
	leaving bool
	settled bool
	seen    map[netip.AddrPort]time.Time // gossip addresses of members that were alive within 24 h
	told    map[string]time.Time         // warnings that were given, by subject
}

// New checks the options and makes a Gossip. It starts nothing.
func New(o Options) (*Gossip, error) {
	if o.Listener == nil || o.Packets == nil || o.Keys == nil {
		return nil, errors.New("gossip needs a listener, a packet socket and keys")
	}
	if err := o.Self.check(); err != nil {
		return nil, fault.New(fault.Invalid, "invalid_member", "This agent cannot join others: %w.", err)
	}
	for d, def := range map[*time.Duration]time.Duration{&o.Interval: 5 * time.Second, &o.Rejoin: 15 * time.Second, &o.Settle: 30 * time.Second} {
		if *d == 0 {
			*d = def
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Resolve == nil {
		o.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if o.Answers == nil {
		o.Answers = func(context.Context, contract.Member) bool { return false }
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	g := &Gossip{o: o, log: o.Log, self: o.Self, name: o.Self.NodeID + "." + o.Self.Start, queue: make(chan beat, queueLength),
		kick: make(chan struct{}, 1), clash: make(chan error, 1), seen: map[netip.AddrPort]time.Time{}, told: map[string]time.Time{}}
	g.advertise = o.Advertise
	if !g.advertise.IsValid() {
		at, err := netip.ParseAddrPort(o.Listener.Addr().String())
		if err != nil || at.Addr().IsUnspecified() {
			return nil, fault.New(fault.Invalid, "no_advertise",
				"gossip.bind is %s, which is no address that other machines can be told; set agent.advertise to this machine's address.", o.Listener.Addr())
		}
		g.advertise = at
	}
	g.advertise = netip.AddrPortFrom(g.advertise.Addr().Unmap(), g.advertise.Port())
	g.table.init(g.name, o.Self, o.Keys.Fingerprints(), g.advertise, time.Now())
	return g, nil
}

// Run takes part until ctx ends; then it tells the others that this agent leaves. It returns a fault of kind Conflict when another
// agent answers under this node's id. It may be called once.
func (g *Gossip) Run(ctx context.Context) error {
	tasks, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g.ctx = tasks
	g.transport = newTransport(g.o.Listener, g.o.Packets, g.o.Dial, g.advertise, g.o.Metrics)
	list, err := memberlist.Create(g.config())
	if err != nil {
		_ = g.transport.Shutdown()
		return fmt.Errorf("start the gossip: %w", err)
	}
	g.list = list
	g.log.Info("gossip started", "name", g.name, "address", g.advertise.String(), "join", len(g.o.Join))
	g.tasks.Go(func() { g.listen(tasks) })
	g.remember()
	joining, cancel := context.WithTimeout(ctx, 2*streamBound)
	g.join(joining, g.targets(joining))
	cancel()
	if err = g.settle(ctx); err == nil {
		g.tasks.Go(func() { g.rejoin(tasks) })
		g.tasks.Go(func() { g.watch(tasks) })
		if g.o.Beat != nil {
			g.tasks.Go(func() { g.beats(tasks) })
		}
		select {
		case <-ctx.Done():
		case err = <-g.clash:
		}
	}
	g.leave()
	g.mu.Lock()
	g.ended = true
	g.mu.Unlock()
	stop()
	g.tasks.Wait()
	return errors.Join(err, list.Shutdown())
}

// config is memberlist's for a local network, with what this package decides.
func (g *Gossip) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.name
	c.Transport = g.transport
	c.AdvertiseAddr, c.AdvertisePort = g.advertise.Addr().String(), int(g.advertise.Port())
	c.BindAddr, c.BindPort = c.AdvertiseAddr, c.AdvertisePort
	c.Keyring = g.o.Keys.ring
	c.TCPTimeout = streamBound
	c.DNSConfigPath = "/dev/null" // names are resolved here
	c.Delegate, c.Events, c.Alive, c.Ping = (*delegate)(g), (*delegate)(g), (*delegate)(g), (*delegate)(g)
	c.Logger = newLogger(g)
	if g.o.tune != nil {
		g.o.tune(c)
	}
	return c
}

// settle decides whether this node may take part: not while another agent answers under its id.
func (g *Gossip) settle(ctx context.Context) error {
	for _, other := range g.doubles() {
		ask, cancel := context.WithTimeout(ctx, streamBound)
		answers := g.o.Answers(ask, other)
		cancel()
		if answers {
			return errDouble(other)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.settled = true
	return nil
}

func errDouble(other contract.Member) error {
	return fault.New(fault.Conflict, "node_id_taken",
		"Another agent, %q at %s, answers under this agent's node id %s: two data folders hold the same node.json. Stop that agent, or remove node.json from this data folder to give this machine an identity of its own.",
		other.Name, address(other), other.ID)
}

// address is where a member is best reached by a person.
func address(m contract.Member) string {
	for _, a := range []string{m.Queen, m.Hive} {
		if a != "" {
			return a
		}
	}
	return m.Address
}

// leave says goodbye, within a bound. First the metadata: by SWIM alone others cannot tell a member that left from one that failed.
func (g *Gossip) leave() {
	g.mu.Lock()
	g.leaving = true
	g.mu.Unlock()
	_ = g.list.UpdateNode(leaveBound)
	if err := g.list.Leave(leaveBound); err != nil {
		g.log.Info("the other agents may not have heard that this one leaves", "error", err.Error())
	}
	g.forget()
}

// Members lists who is known: this agent, the others that are there, and for a while those that were. Ordered by name.
func (g *Gossip) Members() []contract.Member {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.table.list()
}

// Queens are the base URLs of all queens that have not left, this agent's first.
func (g *Gossip) Queens() []string {
	var out []string
	for _, m := range g.Members() {
		switch {
		case m.Queen == "" || m.State == contract.MemberLeft:
		case m.Self:
			out = append([]string{m.Queen}, out...)
		default:
			out = append(out, m.Queen)
		}
	}
	return out
}

// Keys are the gossip keys that this agent accepts, the one in use first.
func (g *Gossip) Keys() []secret.Secret { return g.o.Keys.Keys() }

// Kick has a beat sent at once, or as soon as the last one is 250 ms old.
func (g *Gossip) Kick() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// do runs f in a goroutine that Run waits for, unless Run is about to end.
func (g *Gossip) do(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.ended {
		g.tasks.Go(f)
	}
}

// once reports whether something should be said about a subject now: not more than once in a period.
func (g *Gossip) once(subject string, period time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	if at, ok := g.told[subject]; ok && now.Sub(at) < period {
		return false
	}
	if len(g.told) >= 1024 {
		clear(g.told) // strangers can make subjects
	}
	g.told[subject] = now
	return true
}
