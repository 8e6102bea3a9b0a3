package httpd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// Stream is the rest of a streamed answer that net/http has let go of (Detach). Its connection, goroutine and buffers are
// a third of what net/http holds for as long as a handler runs. It frames what is written in chunks. It is used by one
// goroutine.
type Stream struct {
	s      *Server
	conn   *conn
	raw    syscall.RawConn
	id     string
	cancel context.CancelCauseFunc
	onEnd  []func()
	buf    *[]byte // of what is not flushed; pooled
	keep   bool    // the client wants to use the connection again
	ended  bool    // the answer is whole
}

// headSpace is what the size of a chunk takes before its data.
const headSpace = 10

var errNotDetached = errors.New("the answer stays with net/http")

// Detach takes a streamed answer whose head was sent out of net/http and calls run in a goroutine of its own, which writes the
// rest and must call Stream.End for it to be whole. The handler returns meanwhile; functions of AtEnd run when run has
// returned. ctx takes the place of the request's context: it ends when the client goes away or the server stops, and carries
// the request's id. Where a connection cannot be taken, Detach returns false and nothing has changed; where the client went
// away in that moment, run is called all the same.
func Detach(w http.ResponseWriter, r *http.Request, run func(ctx context.Context, out *Stream)) bool {
	rw, ok := w.(*response)
	if !ok || rw.s == nil || rw.s.detached == nil || !rw.wrote || !r.ProtoAtLeast(1, 1) || rw.Header()["Content-Length"] != nil {
		return false
	}
	if rw.FlushError() != nil {
		return false
	}
	st, err := rw.hijack(r)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithCancelCause(&requestContext{Context: rw.s.detached.base, id: rw.id})
	st.cancel = cancel
	rw.stream = st
	rw.s.detached.add(st)
	go st.serve(ctx, run)
	return true
}

// AtEnd calls f when the answer of w has ended: at once, or after a handler that used Detach, when its stream ends. Wrappers of
// handlers use it in the place of a plain defer.
func AtEnd(w http.ResponseWriter, f func()) {
	if rw, ok := w.(*response); ok && rw.stream != nil {
		if rw.stream.later(f) {
			return
		}
	}
	f()
}

// later registers f for the end of the stream. It returns false when that has passed.
func (st *Stream) later(f func()) bool {
	st.s.detached.mu.Lock()
	defer st.s.detached.mu.Unlock()
	if st.s.detached.all[st] == nil {
		return false
	}
	st.onEnd = append(st.onEnd, f)
	return true
}

func (w *response) hijack(r *http.Request) (*Stream, error) {
	h, ok := w.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, errNotDetached
	}
	// Only a socket can be watched without a goroutine; ask before the connection is taken, which cannot be undone.
	if socket, _ := r.Context().Value(socketKey{}).(bool); !socket {
		return nil, errNotDetached
	}
	nc, rest, err := h.Hijack()
	if err != nil {
		return nil, err
	}
	c := nc.(*conn) // of our listener
	raw, err := c.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	st := &Stream{s: w.s, conn: c, raw: raw, id: w.id, keep: !r.Close}
	if n := rest.Reader.Buffered(); n > 0 { // the client did not wait for the answer before it asked again
		c.ahead, _ = rest.Reader.Peek(n)
		c.ahead = append([]byte(nil), c.ahead...)
	}
	return st, nil
}

func (st *Stream) serve(ctx context.Context, run func(context.Context, *Stream)) {
	defer func() {
		if p := recover(); p != nil {
			st.ended = false
			if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
				st.s.opts.Log.Error("stream panicked", "request_id", st.id, "panic", fmt.Sprintf("%.500q", fmt.Sprint(p)), "stack", string(debug.Stack()))
			}
		}
		st.release()
		st.cancel(nil)
		for _, f := range st.s.detached.remove(st) {
			f()
		}
		st.reuse()
	}()
	run(ctx, st)
}

// Write adds p to the next chunk. It returns the error of the connection only from Flush.
func (st *Stream) Write(p []byte) (int, error) {
	if st.buf == nil {
		st.buf = st.s.detached.bufs.Get().(*[]byte)
		*st.buf = append((*st.buf)[:0], make([]byte, headSpace)...)
	}
	*st.buf = append(*st.buf, p...)
	return len(p), nil
}

// FlushError sends what was written as one chunk, in one write.
func (st *Stream) FlushError() error {
	if st.buf == nil {
		return nil
	}
	defer st.release()
	b := *st.buf
	var size [headSpace]byte
	h := append(strconv.AppendInt(size[:0], int64(len(b)-headSpace), 16), "\r\n"...)
	from := headSpace - len(h)
	copy(b[from:], h)
	b = append(b, "\r\n"...)
	*st.buf = b
	_, err := st.conn.Write(b[from:])
	return err
}

func (st *Stream) release() {
	if st.buf == nil {
		return
	}
	if cap(*st.buf) <= 64<<10 {
		st.s.detached.bufs.Put(st.buf)
	}
	st.buf = nil
}

// End flushes and sends the chunk that ends the answer. Without it the client sees a broken connection.
func (st *Stream) End() error {
	if err := st.FlushError(); err != nil {
		return err
	}
	_, err := st.conn.Write([]byte("0\r\n\r\n"))
	st.ended = err == nil
	return err
}

// reuse waits for the next request on the connection and then hands it back to net/http.
func (st *Stream) reuse() {
	d := st.s.detached
	_ = st.conn.Conn.SetReadDeadline(time.Now().Add(st.s.opts.IdleTimeout)) // before park: shutdown sets another one
	if !st.ended || !st.keep || !d.park(st) {
		_ = st.conn.Close()
		return
	}
	again := len(st.conn.ahead) > 0
	if !again {
		err := st.raw.Read(func(fd uintptr) bool {
			n, err := peek(fd)
			again = n > 0
			return !isAgain(err)
		})
		again = again && err == nil
	}
	if d.unpark(st); !again {
		_ = st.conn.Close()
		return
	}
	_ = st.conn.Conn.SetReadDeadline(time.Time{})
	d.listener.giveBack(st.conn)
}

// gone reports whether the client closed its side, without waiting.
func (st *Stream) gone() bool {
	gone := true
	err := st.raw.Control(func(fd uintptr) {
		n, err := peek(fd)
		gone = n <= 0 && !isAgain(err)
	})
	return err != nil || gone
}

func peek(fd uintptr) (int, error) {
	var one [1]byte
	for {
		n, _, err := syscall.Recvfrom(int(fd), one[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

func isAgain(err error) bool { return err == syscall.EAGAIN || err == syscall.EWOULDBLOCK }

// watchEvery is how often the clients of detached streams are looked at: one that went away is noticed in that time.
const watchEvery = 500 * time.Millisecond

// detachedSet holds the detached streams of a running server.
type detachedSet struct {
	base     context.Context
	listener *listener
	bufs     sync.Pool

	mu      sync.Mutex // guards the fields below
	all     map[*Stream]*Stream
	parked  map[*Stream]bool // waiting for another request
	since   int              // streams detached since tidied
	tidied  time.Time        // when memory was last given back
	closing bool
	empty   chan struct{} // closed when closing and no stream is left
	timer   *time.Timer
	seen    []*Stream // used by look alone
}

func newDetachedSet(base context.Context, l *listener) *detachedSet {
	d := &detachedSet{base: base, listener: l, all: map[*Stream]*Stream{}, parked: map[*Stream]bool{}, empty: make(chan struct{})}
	d.bufs.New = func() any { b := make([]byte, 0, 1<<10); return &b }
	return d
}

func (d *detachedSet) add(st *Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all[st] = st
	d.since++
	if len(d.all) == 1 {
		if d.timer == nil {
			d.timer = time.AfterFunc(watchEvery, d.look)
		} else {
			d.timer.Reset(watchEvery)
		}
	}
}

// look cancels the streams whose clients went away. It runs only while there are streams.
func (d *detachedSet) look() {
	d.mu.Lock()
	d.seen = d.seen[:0]
	for st := range d.all {
		d.seen = append(d.seen, st)
	}
	d.mu.Unlock()
	for i, st := range d.seen {
		if st.gone() {
			st.cancel(context.Canceled)
		}
		d.seen[i] = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.since >= tidyAfter && time.Since(d.tidied) >= tidyEvery {
		d.since, d.tidied = 0, time.Now()
		go debug.FreeOSMemory()
	}
	if len(d.all) > 0 {
		d.timer.Reset(watchEvery)
	}
}

// What net/http held for streams is garbage once they are detached. After many of them it is given back to the machine, whose
// memory is the workers', rather than kept until the heap grows again.
const (
	tidyAfter = 256
	tidyEvery = 10 * time.Second
)

// remove forgets a stream that has ended and returns what is to be called then.
func (d *detachedSet) remove(st *Stream) []func() {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.all, st)
	if d.closing && len(d.all) == 0 {
		close(d.empty)
	}
	return st.onEnd
}

// park notes that a connection waits for another request, unless the server is being stopped.
func (d *detachedSet) park(st *Stream) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closing {
		d.parked[st] = true
	}
	return !d.closing
}

func (d *detachedSet) unpark(st *Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.parked, st)
}

// shutdown ends the connections that wait, and waits until no stream is left or ctx ends.
func (d *detachedSet) shutdown(ctx context.Context) error {
	d.mu.Lock()
	if !d.closing {
		d.closing = true
		if len(d.all) == 0 {
			close(d.empty)
		}
	}
	for st := range d.parked {
		_ = st.conn.Conn.SetReadDeadline(time.Unix(1, 0)) // wakes it; it closes its connection
	}
	d.mu.Unlock()
	select {
	case <-d.empty:
		return nil
	case <-ctx.Done():
		return os.ErrDeadlineExceeded
	}
}

// close breaks off what is left.
func (d *detachedSet) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for st := range d.all {
		_ = st.conn.Close()
	}
}
