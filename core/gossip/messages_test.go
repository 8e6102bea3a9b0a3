package gossip

import (
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/apiary-dev/apiary/core/contract"
)

// documented fails where docs/network.md does not tell of a message.
func documented(t *testing.T, text string) {
	t.Helper()
	b, err := os.ReadFile("../../docs/network.md")
	if err != nil || !strings.Contains(string(b), text) {
		t.Errorf("docs/network.md does not tell of %q: %v", text, err)
	}
}

// TestClosedUDPAndWrongClock: an agent that only TCP reaches stays a member, and what is wrong with it is said.
func TestClosedUDPAndWrongClock(t *testing.T) {
	a := start(t, 1, nil)
	var closed atomic.Bool
	closed.Store(true)
	b := start(t, 2, func(o *Options) {
		joining(a)(o)
		o.Packets = cuttable{o.Packets, &closed}
	})
	eventually(t, "they know each other", func() bool { return a.state(2) == contract.MemberAlive && b.state(1) == contract.MemberAlive })
	// No answer over UDP brings its clock either, so it is as it is told here: an hour ahead.
	for _, n := range a.list.Members() {
		if strings.HasPrefix(n.Name, nodeID(2)) {
			(*delegate)(a.Gossip).NotifyPingComplete(&memberlist.Node{Name: n.Name}, 0, binary.BigEndian.AppendUint64(nil, uint64(time.Now().Add(time.Hour).UnixMilli())))
		}
	}
	for _, said := range []string{"an agent is reached over TCP and no UDP packet comes from it; let UDP through to the gossip port on both machines",
		"the clocks of two agents differ; set the time on one of them"} {
		eventually(t, "it says: "+said, func() bool { return strings.Contains(a.log.String(), said) })
		documented(t, said)
	}
	for _, m := range a.Members() {
		if !m.Self && (m.SkewMS == nil || *m.SkewMS < 3590000 || *m.SkewMS > 3610000) {
			t.Errorf("its clock is %v", m.SkewMS)
		}
	}
	if a.state(2) != contract.MemberAlive {
		t.Error("it is no member any more")
	}
}

// TestExplain: what an operator can do, for all that goes wrong when an agent is to be joined.
func TestExplain(t *testing.T) {
	loopback, here, there := netip.MustParseAddrPort("127.0.0.1:7834"), netip.MustParseAddrPort("10.0.0.4:7834"), netip.MustParseAddrPort("10.0.0.5:7834")
	for _, c := range []struct {
		err  error
		self netip.AddrPort
		want string
	}{
		{errors.New("1 error: * No installed keys could decrypt: no installed keys could decrypt the message"), here, "its keys are others than those of this agent; gossip.key and secrets/cluster.key must be the same on all machines"},
		{syscall.ECONNREFUSED, here, "nothing listens there; is the agent running, and does its gossip.bind name that address and port?"},
		{errors.New("dial tcp 10.0.0.5:7834: i/o timeout"), here, "there is no answer; let TCP and UDP through to the gossip port on both machines"},
		{context.DeadlineExceeded, here, "there is no answer; let TCP and UDP through to the gossip port on both machines"},
		{errors.New("dial tcp 10.0.0.5:7834: i/o timeout"), loopback, "this agent's gossip.bind is on loopback, which no other machine can reach"},
		{errors.New("connect: no route to host"), here, "there is no way to that address from this machine; look at the network"},
		{errors.New("connect: network is unreachable"), here, "there is no way to that address from this machine; look at the network"},
		{errors.New("unexpected EOF"), here, "it broke off without an answer; its keys may be others than those of this agent, or another program has the port"},
		{errors.New("read: connection reset by peer"), here, "it broke off without an answer; its keys may be others than those of this agent, or another program has the port"},
	} {
		if got := explain(c.err, c.self, there); !strings.HasPrefix(got, c.want) {
			t.Errorf("%v: %q", c.err, got)
		}
		documented(t, c.want)
	}
	for _, said := range []string{"an agent cannot be joined", "gossip that cannot be read is dropped; if it is an agent's, gossip.key or secrets/cluster.key differs there",
		"the name of an agent to join is not known; it is asked for again and again", "an agent is not let in"} {
		documented(t, said)
	}
}
