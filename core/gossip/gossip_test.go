package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

const cluster = secret.Secret("0123456789abcdef0123456789abcdef")

// cuttable is a packet socket that can be cut off.
type cuttable struct {
	net.PacketConn
	cut *atomic.Bool
}

func (c cuttable) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.cut.Load() {
		return len(b), nil
	}
	return c.PacketConn.WriteTo(b, to)
}

func (c cuttable) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.PacketConn.ReadFrom(b)
		if err != nil || !c.cut.Load() {
			return n, from, err
		}
	}
}

type cutListener struct {
	net.Listener
	cut *atomic.Bool
}

func (l cutListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil || !l.cut.Load() {
			return c, err
		}
		_ = c.Close()
	}
}

// agent is a Gossip that runs in a test.
type agent struct {
	*Gossip
	t     *testing.T
	cut   atomic.Bool
	log   *syncBuffer
	stop  context.CancelFunc
	ended chan struct{}
	err   error

	mu    sync.Mutex // guards the field below
	beats map[string]contract.HiveBeat
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func sockets(t *testing.T, at string) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 20 {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		p, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, p
		}
		_ = l.Close()
	}
	t.Fatal("no port that is free for TCP and UDP")
	return nil, nil
}

func nodeID(n int) string { return fmt.Sprintf("%012d", n) }

// start runs an agent with the id and the base URLs of both roles; change adapts its options.
func start(t *testing.T, n int, change func(*Options)) *agent {
	t.Helper()
	a := &agent{t: t, log: &syncBuffer{}, ended: make(chan struct{}), beats: map[string]contract.HiveBeat{}}
	l, p := sockets(t, "127.0.0.1:0")
	keys, err := OpenKeyring(cluster, "", "")
	if err != nil {
		t.Fatal(err)
	}
	hive := fmt.Sprintf("http://127.0.0.1:%d", 20000+n)
	var seq uint64
	o := Options{Self: Self{NodeID: nodeID(n), Start: NewStart(time.Now()), Name: fmt.Sprintf("agent%d", n), Version: "test", Queen: fmt.Sprintf("http://127.0.0.1:%d", 10000+n), Hive: hive},
		Listener: cutListener{l, &a.cut}, Packets: cuttable{p, &a.cut}, Keys: keys,
		Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if a.cut.Load() {
				return nil, errors.New("cut off")
			}
			return (&net.Dialer{}).DialContext(ctx, network, addr)
		},
		Beat: func(context.Context) (contract.HiveBeat, error) {
			seq++
			return contract.HiveBeat{ID: nodeID(n), Name: fmt.Sprintf("agent%d", n), BootID: "boot", Incarnation: 1, Sequence: seq, Address: hive, InventoryDigest: "d"}, nil
		},
		Heard: func(b contract.HiveBeat) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.beats[b.ID] = b
		},
		Interval: 200 * time.Millisecond, Rejoin: 600 * time.Millisecond, Settle: time.Second,
		Log: slog.New(slog.NewTextHandler(a.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
		tune: func(c *memberlist.Config) {
			c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = 200*time.Millisecond, 100*time.Millisecond, 2
			c.GossipInterval, c.PushPullInterval = 50*time.Millisecond, 0
			c.GossipToTheDeadTime = time.Millisecond // so that nothing but the rejoin loop mends a partition
		}}
	if change != nil {
		change(&o)
	}
	if a.Gossip, err = New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	a.stop = cancel
	go func() {
		defer close(a.ended)
		a.err = a.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-a.ended
		if t.Failed() {
			t.Logf("log of agent %d:\n%s", n, a.log)
		}
	})
	return a
}

func (a *agent) at() string { return a.advertise.String() }

func joining(others ...*agent) func(*Options) {
	return func(o *Options) {
		for _, a := range others {
			o.Join = append(o.Join, a.at())
		}
	}
}

// state is how a sees the node n.
func (a *agent) state(n int) contract.MemberState {
	for _, m := range a.Members() {
		if m.ID == nodeID(n) {
			return m.State
		}
	}
	return ""
}

func (a *agent) heard(n int) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.beats[nodeID(n)].Sequence
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 20 s: %s", what)
}

func TestThreeAgentsFormAClusterAndBeat(t *testing.T) {
	a := start(t, 1, nil)
	b := start(t, 2, joining(a))
	c := start(t, 3, joining(a))
	all := []*agent{a, b, c}
	eventually(t, "everybody knows everybody", func() bool {
		for _, x := range all {
			for n := 1; n <= 3; n++ {
				if x.state(n) != contract.MemberAlive {
					return false
				}
			}
		}
		return true
	})
	eventually(t, "every queen hears every other hive, again and again", func() bool {
		for i, x := range all {
			for n := 1; n <= 3; n++ {
				if n != i+1 && x.heard(n) < 3 {
					return false
				}
			}
		}
		return true
	})
	if got := b.Queens(); len(got) != 3 || got[0] != "http://127.0.0.1:10002" {
		t.Errorf("queens = %v, and the agent's own must come first", got)
	}
	m := b.Members()[0]
	if m.Name != "agent1" || !slices.Equal(m.Roles, []string{"queen", "hive"}) || m.Address != a.at() || m.Version != "test" || m.Self || m.Start == "" || len(m.Keys) != 1 {
		t.Errorf("member = %+v", m)
	}
	eventually(t, "the clocks are compared", func() bool {
		m := b.Members()[0]
		return m.SkewMS != nil && *m.SkewMS > -500 && *m.SkewMS < 500
	})
	for _, x := range all {
		if log := x.log.String(); strings.Contains(log, "level=ERROR") || strings.Contains(log, "level=WARN") {
			t.Errorf("a cluster that forms logs:\n%s", log)
		}
	}
}

func TestLeavingAndFailingDiffer(t *testing.T) {
	a := start(t, 1, nil)
	b := start(t, 2, joining(a))
	c := start(t, 3, joining(a))
	eventually(t, "a cluster of three", func() bool {
		return a.state(2) == contract.MemberAlive && a.state(3) == contract.MemberAlive && c.state(2) == contract.MemberAlive
	})
	b.stop()
	<-b.ended
	eventually(t, "who leaves is said to have left", func() bool { return a.state(2) == contract.MemberLeft && c.state(2) == contract.MemberLeft })
	c.cut.Store(true)
	eventually(t, "who falls silent is suspect", func() bool { return a.state(3) == contract.MemberSuspect })
	if q := a.Queens(); !slices.Contains(q, "http://127.0.0.1:10003") || slices.Contains(q, "http://127.0.0.1:10002") {
		t.Errorf("queens = %v: a suspect one is still one, one that left is not", q)
	}
}

func TestPartitionHeals(t *testing.T) {
	a := start(t, 1, nil)
	b := start(t, 2, joining(a))
	eventually(t, "a cluster of two", func() bool { return a.state(2) == contract.MemberAlive && b.state(1) == contract.MemberAlive })
	b.cut.Store(true)
	eventually(t, "both are suspect to each other", func() bool { return a.state(2) == contract.MemberSuspect && b.state(1) == contract.MemberSuspect })
	time.Sleep(500 * time.Millisecond) // memberlist has forgotten
	b.cut.Store(false)
	eventually(t, "the partition heals", func() bool { return a.state(2) == contract.MemberAlive && b.state(1) == contract.MemberAlive })
	before := a.heard(2)
	eventually(t, "beats flow again", func() bool { return a.heard(2) > before+2 })
}

func TestRestartWithAnotherAddress(t *testing.T) {
	answers := func(_ context.Context, m contract.Member) bool { return false } // the first run is gone
	a := start(t, 1, func(o *Options) { o.Answers = answers })
	b := start(t, 2, joining(a))
	eventually(t, "a cluster of two", func() bool { return a.state(2) == contract.MemberAlive })
	b.cut.Store(true) // killed: nobody hears of its end
	again := start(t, 2, func(o *Options) {
		joining(a)(o)
		o.Self.Hive = "http://127.0.0.1:29999"
		o.Beat = func(context.Context) (contract.HiveBeat, error) {
			return contract.HiveBeat{ID: nodeID(2), Incarnation: 2, Sequence: 7, Address: o.Self.Hive}, nil
		}
	})
	eventually(t, "the new run takes the place of the old one", func() bool {
		i := slices.IndexFunc(a.Members(), func(m contract.Member) bool { return m.ID == nodeID(2) })
		m := a.Members()[i]
		return m.Address == again.at() && m.Hive == "http://127.0.0.1:29999" && m.State == contract.MemberAlive && len(a.Members()) == 2
	})
	eventually(t, "its beats count", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.beats[nodeID(2)].Incarnation == 2
	})
}

func TestTwoAgentsWithOneNodeID(t *testing.T) {
	var first atomic.Bool
	first.Store(true)
	answers := func(_ context.Context, m contract.Member) bool {
		return first.Load() && m.Hive == "http://127.0.0.1:20002"
	}
	a := start(t, 1, func(o *Options) { o.Answers = answers })
	b := start(t, 2, func(o *Options) { joining(a)(o); o.Answers = answers })
	eventually(t, "a cluster of two", func() bool { return a.state(2) == contract.MemberAlive && b.state(1) == contract.MemberAlive })
	double := func(o *Options) {
		joining(a)(o)
		o.Answers, o.Self.Hive = answers, "http://127.0.0.1:29999"
		o.Beat = nil
	}
	second := start(t, 2, double)
	select {
	case <-second.ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the second agent with a node id goes on while the first one answers")
	}
	if fault.KindOf(second.err) != fault.Conflict || fault.ExitCode(second.err) != 4 || !strings.Contains(second.err.Error(), "node.json") {
		t.Errorf("the second agent ends with %v", second.err)
	}
	for _, m := range a.Members() {
		if m.ID == nodeID(2) && (m.Hive != "http://127.0.0.1:20002" || m.State != contract.MemberAlive) {
			t.Errorf("the first agent does not count any more: %+v", m)
		}
	}
	first.Store(false)
	b.cut.Store(true)
	third := start(t, 2, double)
	eventually(t, "once the first one is gone the other one takes over", func() bool {
		return slices.ContainsFunc(a.Members(), func(m contract.Member) bool {
			return m.ID == nodeID(2) && m.Address == third.at() && m.State == contract.MemberAlive
		})
	})
}

func TestNewerOfTwoThatMeetLaterEnds(t *testing.T) {
	answers := func(context.Context, contract.Member) bool { return true }
	a := start(t, 1, func(o *Options) { o.Answers = answers })
	b := start(t, 2, func(o *Options) { joining(a)(o); o.Answers = answers })
	time.Sleep(5 * time.Millisecond)
	c := start(t, 2, func(o *Options) { o.Answers = answers }) // on the other side of a partition
	eventually(t, "all have started", func() bool {
		for _, x := range []*agent{a, b, c} {
			x.Gossip.mu.Lock()
			settled := x.settled
			x.Gossip.mu.Unlock()
			if !settled {
				return false
			}
		}
		return b.state(1) == contract.MemberAlive
	})
	if _, err := c.list.Join([]string{a.at()}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.ended:
	case <-b.ended:
		t.Fatal("the older agent ended")
	case <-time.After(20 * time.Second):
		t.Fatal("both go on")
	}
	if fault.KindOf(c.err) != fault.Conflict {
		t.Errorf("the newer agent ends with %v", c.err)
	}
}

func TestOtherKeys(t *testing.T) {
	a := start(t, 1, nil)
	for name, keys := range map[string]func() (*Keyring, error){
		"gossip key":  func() (*Keyring, error) { return OpenKeyring(cluster, NewKey(), "") },
		"cluster key": func() (*Keyring, error) { return OpenKeyring("another cluster key, of 32 characters", "", "") },
	} {
		t.Run(name, func(t *testing.T) {
			b := start(t, 2, func(o *Options) {
				joining(a)(o)
				o.Keys, _ = keys()
			})
			eventually(t, "it says what is wrong", func() bool { return strings.Contains(b.log.String(), "must be the same on all machines") })
			if b.state(1) != "" || a.state(2) != "" {
				t.Error("they know each other in spite of their keys")
			}
		})
	}
	if log := a.log.String(); strings.Count(log, "cannot be read is dropped") != 1 {
		t.Errorf("the other side must say it once a minute:\n%s", log)
	}
}

func TestNobodyThere(t *testing.T) {
	l, p := sockets(t, "127.0.0.1:0")
	at := l.Addr().String()
	_, _ = l.Close(), p.Close()
	a := start(t, 1, func(o *Options) { o.Join = []string{at, "dns:nowhere.invalid"}; o.Resolve = noName })
	eventually(t, "it says that nothing listens", func() bool { return strings.Contains(a.log.String(), "nothing listens there") })
	eventually(t, "it says that the name is not known", func() bool { return strings.Contains(a.log.String(), "dns:nowhere.invalid") })
}

func noName(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }

func TestNamesAreResolvedAgain(t *testing.T) {
	b := start(t, 2, nil)
	var known atomic.Bool
	a := start(t, 1, func(o *Options) {
		o.Join = []string{"dns:hive.lan:" + fmt.Sprint(b.advertise.Port())}
		o.Resolve = func(context.Context, string) ([]netip.Addr, error) {
			if !known.Load() {
				return nil, errors.New("no such host")
			}
			return []netip.Addr{b.advertise.Addr()}, nil
		}
	})
	time.Sleep(300 * time.Millisecond)
	known.Store(true)
	eventually(t, "the name is asked for again", func() bool { return a.state(2) == contract.MemberAlive && b.state(1) == contract.MemberAlive })
}

func TestMembersAreRememberedOverARestart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "members.json")
	b := start(t, 2, nil)
	a := start(t, 1, func(o *Options) { joining(b)(o); o.PeersFile = file })
	eventually(t, "a cluster of two", func() bool { return a.state(2) == contract.MemberAlive })
	a.stop()
	<-a.ended
	again := start(t, 1, func(o *Options) { o.PeersFile = file })
	eventually(t, "nobody needs to be named the second time", func() bool { return again.state(2) == contract.MemberAlive && b.state(1) == contract.MemberAlive })
}

func TestKeyRotation(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys")
	one, two := NewKey(), NewKey()
	var rings []*Keyring
	with := func(others ...*agent) func(*Options) {
		return func(o *Options) {
			joining(others...)(o)
			name := ""
			if len(rings) == 0 {
				name = file
			}
			k, err := OpenKeyring(cluster, one, name)
			if err != nil {
				t.Fatal(err)
			}
			o.Keys, rings = k, append(rings, k)
		}
	}
	a := start(t, 1, with())
	b := start(t, 2, with(a))
	c := start(t, 3, with(a))
	eventually(t, "a cluster of three", func() bool {
		return a.state(2) == contract.MemberAlive && a.state(3) == contract.MemberAlive && b.state(3) == contract.MemberAlive && c.state(2) == contract.MemberAlive
	})
	change := func(c contract.KeyChange) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := a.ChangeKeys(ctx, c); err != nil {
			t.Fatalf("%s: %v", c.Action, err)
		}
	}
	if err := a.ChangeKeys(t.Context(), contract.KeyChange{Action: contract.KeyUse, Fingerprint: Fingerprint(two)}); fault.KindOf(err) != fault.NotFound {
		t.Errorf("use of a key that nobody has: %v", err)
	}
	change(contract.KeyChange{Action: contract.KeyAdd, Key: two.Reveal()})
	if err := a.ChangeKeys(t.Context(), contract.KeyChange{Action: contract.KeyRemove, Fingerprint: Fingerprint(one)}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("removal of the key in use: %v", err)
	}
	change(contract.KeyChange{Action: contract.KeyUse, Fingerprint: Fingerprint(two)})
	change(contract.KeyChange{Action: contract.KeyRemove, Fingerprint: Fingerprint(one)})
	for i, k := range rings {
		if got := k.Fingerprints(); !slices.Equal(got, []string{Fingerprint(two)}) {
			t.Errorf("agent %d has the keys %v", i+1, got)
		}
	}
	before := a.heard(3)
	eventually(t, "beats flow", func() bool { return a.heard(3) > before+2 })
	for _, x := range []*agent{a, b, c} {
		if log := x.log.String(); strings.Contains(log, "suspect") || strings.Contains(log, "cannot be read") {
			t.Errorf("the change of keys was noticed:\n%s", log)
		}
	}
	d := start(t, 4, func(o *Options) {
		joining(a)(o)
		o.Keys, _ = OpenKeyring(cluster, one, "")
	})
	eventually(t, "the old key lets nobody in", func() bool { return strings.Contains(d.log.String(), "must be the same on all machines") })
	if k, err := OpenKeyring(cluster, one, file); err != nil || !slices.Equal(k.Fingerprints(), []string{Fingerprint(two)}) || !k.Retired(one) {
		t.Errorf("after a restart with the old configuration: %v, %v", k, err)
	}
}

func TestForgedBeatsAreDropped(t *testing.T) {
	a := start(t, 1, nil)
	b := start(t, 2, func(o *Options) { joining(a)(o); o.Beat = nil })
	eventually(t, "a cluster of two", func() bool { return b.state(1) == contract.MemberAlive && a.state(2) == contract.MemberAlive })
	for _, forged := range []beat{
		{From: nodeID(9) + ".0000000000000", Beat: contract.HiveBeat{ID: nodeID(9), Address: "http://127.0.0.1:1"}},
		{From: b.name, Beat: contract.HiveBeat{ID: nodeID(9), Address: "http://127.0.0.1:20002"}},
		{From: b.name, Beat: contract.HiveBeat{ID: nodeID(2), Address: "http://127.0.0.1:1"}},
		{From: a.name, Beat: contract.HiveBeat{ID: nodeID(1), Address: "http://127.0.0.1:20001"}},
	} {
		msg, err := encodeMessage(kindBeat, forged)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.list.SendToAddress(memberlist.Address{Addr: a.at()}, msg); err != nil {
			t.Fatal(err)
		}
	}
	good, _ := encodeMessage(kindBeat, beat{From: b.name, Beat: contract.HiveBeat{ID: nodeID(2), Sequence: 5, Address: "http://127.0.0.1:20002"}})
	eventually(t, "the true one arrives", func() bool {
		_ = b.list.SendToAddress(memberlist.Address{Addr: a.at()}, good)
		return a.heard(2) == 5
	})
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.beats) != 1 || a.beats[nodeID(2)].Address != "http://127.0.0.1:20002" {
		t.Errorf("heard %+v", a.beats)
	}
}
