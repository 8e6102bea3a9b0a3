package trust

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// ListenerOptions configures a Listener. Zero values mean the defaults named.
type ListenerOptions struct {
	TLS *tls.Config // needed
	// Plain decides who may speak without TLS; nil: who connects from this machine.
	Plain      func(remote net.Addr) bool
	Patience   time.Duration // for the first byte and the handshake together; default 5 s
	MaxPending int           // connections that have not finished it; default 256
	MaxOfOne   int           // of those, from one address of another machine; default 64
	Log        *slog.Logger  // nil: none
}

// Listener accepts TLS and plain connections at one port, which it tells apart by their first byte. Plain ones are for who is on this
// machine; others are told to use https. What Accept returns has finished its handshake: a *tls.Conn, or a connection without TLS.
type Listener struct {
	inner net.Listener
	o     ListenerOptions

	start sync.Once
	wait  sync.WaitGroup
	ready chan accepted
	done  chan struct{} // closed with the listener

	mu      sync.Mutex // guards the fields below
	closed  bool
	pending map[net.Conn]netip.Addr
	from    map[netip.Addr]int
}

type accepted struct {
	c   net.Conn
	err error
}

// maxHandshake bounds how long two of Apiary's processes take to greet each other.
const maxHandshake = 5 * time.Second

// recordHandshake is the first byte of every TLS connection, and of nothing else that is text.
const recordHandshake = 0x16

// NewListener wraps ln, which it owns. It starts nothing before Accept.
func NewListener(ln net.Listener, o ListenerOptions) *Listener {
	o.Patience = cmp.Or(o.Patience, maxHandshake)
	o.MaxPending = cmp.Or(o.MaxPending, 256)
	o.MaxOfOne = cmp.Or(o.MaxOfOne, 64)
	if o.Plain == nil {
		o.Plain = isLoopback
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Listener{inner: ln, o: o, ready: make(chan accepted), done: make(chan struct{}),
		pending: map[net.Conn]netip.Addr{}, from: map[netip.Addr]int{}}
}

func isLoopback(a net.Addr) bool {
	ip, ok := addressOf(a)
	return ok && ip.IsLoopback()
}

func addressOf(a net.Addr) (netip.Addr, bool) {
	if a == nil {
		return netip.Addr{}, false
	}
	ap, err := netip.ParseAddrPort(a.String())
	return ap.Addr().Unmap().WithZone(""), err == nil
}

// Addr is that of the inner listener.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }

// Accept returns the next connection that is ready.
func (l *Listener) Accept() (net.Conn, error) {
	l.start.Do(func() { l.wait.Go(l.run) })
	select {
	case a := <-l.ready:
		return a.c, a.err
	case <-l.done:
		return nil, fmt.Errorf("accept: %w", net.ErrClosed)
	}
}

// Close ends Accept, closes the connections that it has not returned, and waits for what is under way.
func (l *Listener) Close() error {
	err := l.inner.Close()
	l.start.Do(func() {}) // nothing is started any more
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.done)
	}
	for c := range l.pending {
		_ = c.Close()
	}
	l.mu.Unlock()
	l.wait.Wait()
	return err
}

func (l *Listener) run() {
	for {
		c, err := l.inner.Accept()
		if err != nil {
			select {
			case l.ready <- accepted{err: err}:
			case <-l.done:
				return
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue // the server waits before it accepts again
		}
		if !l.enter(c) {
			_ = c.Close()
			continue
		}
		l.wait.Go(func() {
			defer l.leave(c)
			settled, err := l.settle(c)
			if err != nil {
				l.o.Log.Debug("a connection did not get through its handshake", "from", c.RemoteAddr().String(), "error", err.Error())
			}
			if settled == nil {
				_ = c.Close()
				return
			}
			select {
			case l.ready <- accepted{c: settled}:
			case <-l.done:
				_ = settled.Close()
			}
		})
	}
}

// enter counts a connection that begins its handshake, or refuses it because there are too many.
func (l *Listener) enter(c net.Conn) bool {
	ip, known := addressOf(c.RemoteAddr())
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || len(l.pending) >= l.o.MaxPending || known && !ip.IsLoopback() && l.from[ip] >= l.o.MaxOfOne {
		return false
	}
	l.pending[c] = ip
	l.from[ip]++
	return true
}

func (l *Listener) leave(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ip := l.pending[c]
	delete(l.pending, c)
	if l.from[ip]--; l.from[ip] == 0 {
		delete(l.from, ip)
	}
}

// settle finds out what a connection is and brings it to where requests can be read. It returns nil where the connection is over.
func (l *Listener) settle(c net.Conn) (net.Conn, error) {
	if err := c.SetDeadline(time.Now().Add(l.o.Patience)); err != nil {
		return nil, err
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(c, first); err != nil {
		return nil, err
	}
	p := &plainConn{Conn: c, first: first}
	switch {
	case first[0] == recordHandshake:
		s := tls.Server(p, l.o.TLS)
		if err := s.Handshake(); err != nil { // ends at the deadline, and when Close closes c
			return nil, err
		}
		_ = c.SetDeadline(time.Time{}) // fails on a closed connection alone, which its reader notices
		return s, nil
	case l.o.Plain(c.RemoteAddr()):
		_ = c.SetDeadline(time.Time{})
		return p, nil
	}
	useHTTPS(p)
	return nil, nil
}

const httpsOnly = `{"error":{"message":"This agent takes https only, except from its own machine; write https:// in front of its address.",` +
	`"type":"invalid_request_error","code":"https_required","param":null}}` + "\n"

// useHTTPS answers a plain request, which is read only so far that closing does not take the answer away again.
func useHTTPS(c *plainConn) {
	_, err := fmt.Fprintf(c, "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(httpsOnly), httpsOnly)
	if err != nil || c.CloseWrite() != nil || c.SetReadDeadline(time.Now().Add(time.Second)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, c, 64<<10)
}

// plainConn is a connection of which one byte was read.
type plainConn struct {
	net.Conn
	first []byte
}

// Read gives the first byte, then what follows.
func (c *plainConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 && len(p) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// SyscallConn gives the socket to who watches it. What was read ahead is no concern of theirs: they come to it once a request was read.
func (c *plainConn) SyscallConn() (syscall.RawConn, error) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return sc.SyscallConn()
}

// CloseWrite ends what is sent.
func (c *plainConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
