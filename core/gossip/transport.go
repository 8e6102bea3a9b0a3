package gossip

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/apiary-dev/apiary/core/metrics"
)

const (
	maxPacket  = 64 << 10
	maxStreams = 64 // open at once from others; one more is closed unread
	maxSources = 4096
)

// How memberlist seals what it sends with a key: version 1, a nonce, AES-GCM; on a stream after a type byte and a length. Anything
// else is dropped before memberlist sees it: sealed by a member with the key, version 0 or an empty text would make it panic.
const (
	sealVersion  = 1
	sealedMin    = 1 + 12 + 1 + 16
	sealedStream = 10
	sealedMax    = 20 << 20
)

var errNotGossip = errors.New("what came is no gossip")

// transport carries memberlist over sockets that somebody else opened, and counts what passes. It implements
// memberlist.NodeAwareTransport.
type transport struct {
	listener  net.Listener
	packets   net.PacketConn
	dial      func(ctx context.Context, network, addr string) (net.Conn, error)
	advertise netip.AddrPort
	metrics   *metrics.Metrics

	packetCh chan *memberlist.Packet
	streamCh chan net.Conn
	done     chan struct{}
	once     sync.Once
	tasks    sync.WaitGroup
	streams  atomic.Int32

	mu    sync.Mutex // guards the fields below
	heard map[netip.AddrPort]time.Time
}

func newTransport(l net.Listener, p net.PacketConn, dial func(context.Context, string, string) (net.Conn, error), at netip.AddrPort, m *metrics.Metrics) *transport {
	t := &transport{listener: l, packets: p, dial: dial, advertise: at, metrics: m, packetCh: make(chan *memberlist.Packet), streamCh: make(chan net.Conn),
		done: make(chan struct{}), heard: map[netip.AddrPort]time.Time{}}
	t.tasks.Go(t.accept)
	t.tasks.Go(t.receive)
	return t
}

// FinalAdvertiseAddr is where others reach this agent.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

// WriteTo sends a packet.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	n, err := t.packets.WriteTo(b, net.UDPAddrFromAddrPort(to))
	t.metrics.Gossip("packet", "out", n)
	return time.Now(), err
}

// WriteToAddress sends a packet.
func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	return t.WriteTo(b, a.Addr)
}

// PacketCh gives what receive received.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packetCh }

// DialTimeout makes a stream to another agent.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	c, err := t.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &counted{Conn: c, metrics: t.metrics}, nil
}

// DialAddressTimeout makes a stream to another agent.
func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	return t.DialTimeout(a.Addr, timeout)
}

// StreamCh gives what accept accepted.
func (t *transport) StreamCh() <-chan net.Conn { return t.streamCh }

// Shutdown closes the sockets and waits for the goroutines.
func (t *transport) Shutdown() error {
	t.once.Do(func() { close(t.done) })
	err := errors.Join(t.listener.Close(), t.packets.Close())
	t.tasks.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (t *transport) closed() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *transport) accept() {
	for delay := 5 * time.Millisecond; ; {
		c, err := t.listener.Accept()
		switch {
		case err != nil && (t.closed() || errors.Is(err, net.ErrClosed)):
			return
		case err != nil: // out of descriptors, most likely
			delay = min(2*delay, time.Second)
			select {
			case <-t.done:
			case <-time.After(delay):
			}
			continue
		}
		delay = 5 * time.Millisecond
		if t.streams.Add(1) > maxStreams {
			t.streams.Add(-1)
			_ = c.Close()
			t.metrics.GossipDropped("stream_limit")
			continue
		}
		s := &counted{Conn: c, metrics: t.metrics, closed: func() { t.streams.Add(-1) }}
		select {
		case t.streamCh <- s:
		case <-t.done:
			_ = s.Close()
		}
	}
}

func (t *transport) receive() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.packets.ReadFrom(buf)
		now := time.Now()
		if err != nil {
			if t.closed() || errors.Is(err, net.ErrClosed) {
				return
			}
			select { // an ICMP error of an earlier packet, or worse
			case <-t.done:
			case <-time.After(time.Millisecond):
			}
			continue
		}
		t.metrics.Gossip("packet", "in", n)
		if n < sealedMin || buf[0] != sealVersion {
			t.metrics.GossipDropped("not_gossip")
			continue
		}
		t.note(from, now)
		select {
		case t.packetCh <- &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: now}:
		case <-t.done:
			return
		}
	}
}

// note remembers that packets arrive from an address.
func (t *transport) note(from net.Addr, now time.Time) {
	u, ok := from.(*net.UDPAddr)
	if !ok {
		return
	}
	at := u.AddrPort()
	at = netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.heard) >= maxSources {
		clear(t.heard) // strangers can make sources
	}
	t.heard[at] = now
}

// lastPacket is when a packet came from an address; zero: never.
func (t *transport) lastPacket(at netip.AddrPort) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.heard[at]
}

// counted is a stream whose bytes are counted, and which gives none of another that is not sealed.
type counted struct {
	net.Conn
	metrics *metrics.Metrics
	closed  func()
	once    sync.Once
	checked bool   // the head was read; used by the one reader only
	head    []byte // of it, what is still to be given
}

func (c *counted) Read(b []byte) (int, error) {
	if !c.checked {
		var head [6]byte
		n, err := io.ReadFull(c.Conn, head[:])
		c.metrics.Gossip("stream", "in", n)
		if n == 0 {
			return 0, err
		}
		size := binary.BigEndian.Uint32(head[1:5])
		if err != nil || head[0] != sealedStream || size < sealedMin || size > sealedMax || head[5] != sealVersion {
			c.metrics.GossipDropped("not_gossip")
			return 0, errors.Join(errNotGossip, err)
		}
		c.checked, c.head = true, head[:]
	}
	if len(c.head) > 0 {
		n := copy(b, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	n, err := c.Conn.Read(b)
	c.metrics.Gossip("stream", "in", n)
	return n, err
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.metrics.Gossip("stream", "out", n)
	return n, err
}

func (c *counted) Close() error {
	c.once.Do(func() {
		if c.closed != nil {
			c.closed()
		}
	})
	return c.Conn.Close()
}
