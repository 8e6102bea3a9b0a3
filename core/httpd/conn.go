package httpd

import (
	"container/list"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// listener closes connections beyond a number at once, and gives writes a deadline.
type listener struct {
	net.Listener
	max          int64
	writeTimeout time.Duration
	open         atomic.Int64
	closed       func() bool // callers need to show something; nil: they need not
	strangers    strangers

	once  sync.Once
	fresh chan accepted // new connections
	again chan *conn    // ones whose stream ended and whose next request has begun to arrive
	done  chan struct{} // closed with the listener
	shut  sync.Once
}

type accepted struct {
	c   net.Conn
	err error
}

func newListener(ln net.Listener, most int, writeTimeout time.Duration) *listener {
	return &listener{Listener: ln, max: int64(most), writeTimeout: writeTimeout,
		fresh: make(chan accepted), again: make(chan *conn), done: make(chan struct{})}
}

// Accept returns a new connection, or one that a stream gave back.
func (l *listener) Accept() (net.Conn, error) {
	l.once.Do(func() { go l.acceptFresh() })
	select {
	case a := <-l.fresh:
		return a.c, a.err
	case c := <-l.again:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and the goroutine behind it.
func (l *listener) Close() error {
	err := l.Listener.Close()
	l.shut.Do(func() { close(l.done) })
	return err
}

// giveBack makes c be served again; it is closed where nobody accepts any more.
func (l *listener) giveBack(c *conn) {
	select {
	case l.again <- c:
	case <-l.done:
		_ = c.Close()
	}
}

func (l *listener) acceptFresh() {
	for {
		c, err := l.acceptOne()
		select {
		case l.fresh <- accepted{c, err}:
			if errors.Is(err, net.ErrClosed) {
				return
			}
		case <-l.done:
			if c != nil {
				_ = c.Close()
			}
			return
		}
	}
}

func (l *listener) acceptOne() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		n := l.open.Add(1)
		if n > l.max+spareConnections {
			l.open.Add(-1)
			_ = c.Close()
			continue
		}
		made := &conn{Conn: c, l: l, spare: n > l.max}
		if l.closed != nil && l.closed() {
			for _, old := range l.strangers.admit(made, time.Now()) {
				_ = old.Close()
			}
		}
		return made, nil
	}
}

// conn is one client's connection. A write that makes no progress for the write timeout fails, and the server then closes
// the connection: a client that stopped reading holds a handler no longer than that.
type conn struct {
	net.Conn
	l      *listener
	closed atomic.Bool
	spare  bool      // beyond the limit: see spareConnections
	ahead  []byte    // read already, before the connection changed hands
	until  time.Time // the write deadline that is set; used by Write alone, which net/http calls from one goroutine at a time

	stranger *list.Element // of strangers, which guards it; nil: it does not count
}

// writePiece is the most that one deadline covers, so that a slow reader of a large answer counts as making progress.
const writePiece = 64 << 10

func (c *conn) Write(p []byte) (int, error) {
	sent := 0
	for {
		// Setting a deadline costs more than reading the clock: one that is new enough is kept, so a stalled write fails after
		// the timeout and at most a sixteenth more.
		now := time.Now()
		if c.until.Sub(now) < c.l.writeTimeout {
			c.until = now.Add(c.l.writeTimeout + c.l.writeTimeout/16)
			if err := c.Conn.SetWriteDeadline(c.until); err != nil {
				return sent, err
			}
		}
		n, err := c.Conn.Write(p[sent:min(len(p), sent+writePiece)])
		if sent += n; err != nil || sent == len(p) {
			return sent, err
		}
	}
}

// spareConnections may be open beyond the limit, for a short time and one request that costs little: health and heartbeats get
// through although clients hold all connections, and others hear that the agent is full instead of a reset.
const (
	spareConnections = 8
	sparePatience    = time.Second
)

// SetReadDeadline is how net/http gives a client time. A spare connection gets less.
func (c *conn) SetReadDeadline(t time.Time) error {
	if c.spare {
		if soon := time.Now().Add(sparePatience); t.IsZero() || t.After(soon) {
			t = soon
		}
	}
	return c.Conn.SetReadDeadline(t)
}

func (c *conn) Read(p []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
			c.ahead = nil
		}
		return n, nil
	}
	return c.Conn.Read(p)
}

// SetDeadline forgets the write deadline that was set: net/http clears both when a connection is taken from it.
func (c *conn) SetDeadline(t time.Time) error {
	c.until = time.Time{}
	return c.Conn.SetDeadline(t)
}

// SetWriteDeadline is called by net/http after each request. Only a deadline from outside is passed on.
func (c *conn) SetWriteDeadline(t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

func (c *conn) Close() error {
	if !c.closed.CompareAndSwap(false, true) {
		return net.ErrClosed
	}
	c.l.open.Add(-1)
	c.l.strangers.known(c)
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer so that the client sees it before the connection closes.
func (c *conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return errors.ErrUnsupported
}
