package httpd

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Where Options.Closed says that callers must show something, one address may have maxStrangers connections open on which nothing was shown
// yet that opens a route. When it opens more, those that have had their time to do so are closed, oldest first.
const (
	maxStrangers     = 64
	strangerPatience = time.Second
)

// strangers counts such connections.
type strangers struct {
	mu   sync.Mutex                // guards the field below, and conn.stranger
	from map[netip.Addr]*list.List // of *stranger, oldest first
}

type stranger struct {
	c    *conn
	from netip.Addr
	at   time.Time
}

// admit counts a new connection and returns those that are to be closed for it.
func (s *strangers) admit(c *conn, now time.Time) (close []*conn) {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	from := a.AddrPort().Addr().Unmap()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.from == nil {
		s.from = map[netip.Addr]*list.List{}
	}
	l := s.from[from]
	if l == nil {
		l = list.New()
		s.from[from] = l
	}
	c.stranger = l.PushBack(&stranger{c, from, now})
	for l.Len() > maxStrangers {
		oldest := l.Front().Value.(*stranger)
		if now.Sub(oldest.at) < strangerPatience {
			break
		}
		close = append(close, oldest.c)
		s.drop(oldest.c)
	}
	return close
}

// drop counts a connection no more. s.mu is held.
func (s *strangers) drop(c *conn) {
	if c.stranger == nil {
		return
	}
	from := c.stranger.Value.(*stranger).from
	l := s.from[from]
	l.Remove(c.stranger)
	c.stranger = nil
	if l.Len() == 0 {
		delete(s.from, from)
	}
}

// known counts a connection no more. It may be called at any time, and again.
func (s *strangers) known(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop(c)
}

// connKey is where the context of a request has its connection, on a server with Options.Closed.
type connKey struct{}

// introduced notes that a request has shown what opens its route.
func introduced(ctx context.Context) {
	if c, ok := ctx.Value(connKey{}).(*conn); ok {
		c.l.strangers.known(c)
	}
}
