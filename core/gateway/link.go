package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/registry"
)

const (
	readSize = 16 << 10
	// idleLink is shorter than what our own workers keep an idle connection for, so that they never close one that is about
	// to be used.
	idleLink = 30 * time.Second
	maxIdle  = 512 // connections kept for each worker
	// unheard is how long a worker's machine may acknowledge nothing that was sent to it, which its system does at once: less than what it
	// takes to be down, and enough for six repetitions of a packet that is lost.
	unheard = 15 * time.Second
)

// backend is one run of one worker, with the connections to it that are idle.
type backend struct {
	id          string
	incarnation int64
	addr        string
	authority   string // the header lines that are the same in all requests to it

	failing atomic.Bool // the last request to it failed

	inFlight int // guarded by Gateway.mu

	mu   sync.Mutex // guards the fields below
	idle []*link    // last used last
}

// backendOf returns the backend of a worker, a new one where the worker has been started again. Gateway.mu is held.
func (g *Gateway) backendOf(w *registry.Worker) *backend {
	info := &w.Info
	b := g.backends[info.ID]
	if b != nil && b.incarnation == info.Incarnation {
		return b
	}
	b = &backend{id: info.ID, incarnation: info.Incarnation, addr: net.JoinHostPort(info.Address, strconv.Itoa(info.Port))}
	b.authority = " HTTP/1.1\r\nHost: " + b.addr + "\r\nContent-Type: application/json\r\n"
	if s := g.secret(info.ID); s != "" {
		b.authority += "Authorization: Bearer " + s.Reveal() + "\r\n"
	}
	g.backends[info.ID] = b
	return b
}

// link is one connection to a worker.
type link struct {
	net.Conn
	raw       syscall.RawConn // nil where the connection is not a socket
	idleSince time.Time
	reused    bool
}

// connect returns an idle connection on which the worker has neither sent nor closed anything, or a new one.
func (g *Gateway) connect(ctx context.Context, b *backend) (*link, error) {
	for {
		b.mu.Lock()
		n := len(b.idle)
		if n == 0 {
			b.mu.Unlock()
			break
		}
		l := b.idle[n-1]
		b.idle[n-1] = nil
		b.idle = b.idle[:n-1]
		b.mu.Unlock()
		if l.quiet() {
			l.reused = true
			return l, nil
		}
		_ = l.Close()
	}
	c, err := g.dialWorker(ctx, b.addr)
	if err != nil {
		return nil, err
	}
	l := &link{Conn: c}
	if sc, ok := c.(syscall.Conn); ok {
		if l.raw, _ = sc.SyscallConn(); l.raw != nil {
			giveUp(l.raw)
		}
	}
	return l, nil
}

// cutOff reports whether a connection ended because the other machine is not there any more. What the machine had of a request is lost with
// it, or its worker ends it when it learns that the connection is gone.
func cutOff(err error) bool {
	return errors.Is(err, syscall.ETIMEDOUT) || errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH)
}

// keep puts a connection whose answer was complete back for the next request.
func (g *Gateway) keep(b *backend, l *link) {
	l.idleSince = time.Now()
	b.mu.Lock()
	if len(b.idle) < maxIdle {
		b.idle = append(b.idle, l)
		l = nil
	}
	b.mu.Unlock()
	if l != nil {
		_ = l.Close()
	}
	g.sweep.arm()
}

// closeIdle closes connections that are idle since before t, all of them for the zero time, and returns how many are left.
func (b *backend) closeIdle(t time.Time) int {
	b.mu.Lock()
	n := 0
	for n < len(b.idle) && (t.IsZero() || b.idle[n].idleSince.Before(t)) {
		n++
	}
	var old []*link
	if n > 0 {
		old = b.idle[:n:n]
		b.idle = append([]*link(nil), b.idle[n:]...)
	}
	left := len(b.idle)
	b.mu.Unlock()
	for _, l := range old {
		_ = l.Close()
	}
	return left
}

// quiet reports whether an idle connection is still open and has nothing to read, without waiting.
func (l *link) quiet() bool {
	if l.raw == nil {
		var one [1]byte
		_ = l.SetReadDeadline(past)
		_, err := l.Read(one[:])
		_ = l.SetReadDeadline(time.Time{})
		return errors.Is(err, os.ErrDeadlineExceeded)
	}
	quiet := false
	err := l.raw.Read(func(fd uintptr) bool {
		var one [1]byte
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = n <= 0 && (err == syscall.EAGAIN || err == syscall.EWOULDBLOCK)
		return true
	})
	return err == nil && quiet
}

// reader reads from a link into buffers that are held only while they have something in them: a stream between two tokens
// has none.
type reader struct {
	pool   *sync.Pool
	l      *link
	handle func(b []byte) (more bool)
	buf    *[]byte
	err    error
	try    func(fd uintptr) bool
}

func (r *reader) init(pool *sync.Pool, handle func([]byte) bool) {
	r.pool, r.handle = pool, handle
	r.try = r.tryRead
}

// each hands pieces to handle as they arrive, until it wants no more; then each returns nil. A piece is valid until handle
// returns or calls release. At the end of the connection each returns io.EOF.
func (r *reader) each() error {
	defer r.release()
	if r.l.raw == nil {
		for {
			r.buf = r.pool.Get().(*[]byte)
			n, err := r.l.Read(*r.buf)
			if n > 0 && !r.handle((*r.buf)[:n]) {
				return nil
			}
			if err != nil {
				return err
			}
			r.release()
		}
	}
	r.err = nil
	if err := r.l.raw.Read(r.try); err != nil {
		return err
	}
	return r.err
}

// tryRead reads until nothing is there and then returns false to wait. A piece that does not fill the buffer is taken for the
// last one without asking again, which spares a system call for each token: later bytes wake the reader. Only an end of the
// connection that arrived together with that piece does not, so the sweeper wakes who has waited for a while (signalLook).
func (r *reader) tryRead(fd uintptr) bool {
	for {
		if r.buf == nil {
			r.buf = r.pool.Get().(*[]byte)
		}
		size := len(*r.buf)
		n, err := syscall.Read(int(fd), *r.buf)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			r.release()
			return false
		case err != nil:
			r.err = os.NewSyscallError("read", err)
			return true
		case n == 0:
			r.err = io.EOF
			return true
		case !r.handle((*r.buf)[:n]):
			return true
		case n < size:
			r.release()
			return false
		}
	}
}

func (r *reader) release() {
	if r.buf != nil {
		r.pool.Put(r.buf)
		r.buf = nil
	}
}

// past is a deadline that has passed: setting it wakes whoever waits on a connection.
var past = time.Unix(1, 0)

// signals are reasons to wake a request that waits for its worker.
const (
	signalGone      uint32 = 1 << iota // the client went away
	signalKeepAlive                    // the client has heard nothing for a while
	signalTimeout                      // the worker has sent nothing for too long
	signalLook                         // the worker has been silent for a moment: see whether the connection ended
)

// wake is how others reach a request that waits on its connection: they set a bit and then a deadline that has passed. They
// never close the connection, which would wait for the reader, and never write to the client.
type wake struct {
	signals atomic.Uint32
	link    atomic.Pointer[link]
}

func (w *wake) signal(bit uint32) {
	w.signals.Or(bit)
	if l := w.link.Load(); l != nil {
		_ = l.SetDeadline(past)
	}
}
