package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/openai"
	"github.com/apiary-dev/apiary/core/registry"
)

const (
	maxErrorBody = 64 << 10 // read of a worker's error
	// linger is how long the end of an answer may take after its last event, before the connection is given up instead.
	linger = time.Second
)

// answer is what one attempt has received.
type answer struct {
	reply
	mode    mode
	body    *[]byte // pooled; modes collect and refuse
	part    []byte  // of an event that has not arrived completely
	line    int     // where in part its last line begins
	seen    int     // how much of part was searched for line ends
	over    bool    // the stream has had its last event
	failed  bool    // that event was an error
	written bool    // something is to be flushed to the client
	touched bool    // the connection has, or had, a deadline
	lingers bool    // the deadline is that of the end of the answer
	err     error   // of relaying a piece
	take    func([]byte) error
}

type mode uint8

const (
	undecided mode = iota
	stream         // events, relayed as they come
	collect        // one JSON text, checked and sent at the end
	refuse         // an error of the worker
)

// try sends f to the worker that admit chose and relays the answer. again says that the worker has certainly not begun with
// it, or was stopped before it sent anything, so that the request may be sent to another one.
func (f *flight) try() (again bool, err error) {
	msg, err := f.message()
	if err != nil {
		return false, err
	}
	l, err := f.g.connect(f.ctx, f.backend)
	if err != nil {
		return f.unreachable(err)
	}
	f.ans = answer{take: f.ans.take}
	a := &f.ans
	f.rd.l = l
	f.signals.Store(0)
	f.content.Store(false)
	f.receivedAt = time.Now()
	f.link.Store(l)
	f.stopGone = context.AfterFunc(f.ctx, f.gone)
	f.g.sweep.add(f)
	if again, err := f.write(l, a, msg); err != nil {
		return f.settle(again, err)
	}
	again, err = f.receive()
	if err == errDetach {
		return false, err
	}
	return f.settle(again, err)
}

// settle ends an attempt: what became of its connection.
func (f *flight) settle(again bool, err error) (bool, error) {
	a, l := &f.ans, f.rd.l
	f.g.sweep.remove(f)
	stopped := f.stopGone() // false: gone runs or has run, and may still touch the connection
	f.link.Store(nil)
	if err == nil && stopped && a.phase == complete && a.reusable {
		if a.touched || f.signals.Load() != 0 {
			_ = l.SetDeadline(time.Time{})
		}
		f.g.keep(f.backend, l)
	} else {
		_ = l.Close() // this is what cancels the request at the worker
	}
	if a.body != nil {
		f.g.freeBuffer(a.body)
	}
	return again, err
}

func (f *flight) gone() { f.signal(signalGone) }

// unreachable reports a worker to which no connection could be made.
func (f *flight) unreachable(err error) (bool, error) {
	if f.ctx.Err() != nil {
		return false, errClientGone(err)
	}
	kind := registry.FailureError
	if errors.Is(err, syscall.ECONNREFUSED) {
		kind = registry.FailureDialRefused
	}
	f.g.failed(f.backend, kind)
	return true, errRefused(err)
}

func (g *Gateway) failed(b *backend, kind registry.FailureKind) {
	b.failing.Store(true)
	g.dir.ReportFailure(b.id, kind)
}

// succeeded tells the directory only of the first success after a failure.
func (g *Gateway) succeeded(b *backend) {
	if b.failing.Load() && b.failing.Swap(false) {
		g.dir.ReportSuccess(b.id)
	}
}

// detachAfter is the number of pieces after which a stream is worth detaching: short ones end sooner than that pays.
const detachAfter = 2

// receive reads and relays the answer. It returns errDetach, once, when a stream has turned out to be a long one.
func (f *flight) receive() (again bool, err error) {
	a, l := &f.ans, f.rd.l
	for {
		err := f.rd.each()
		switch {
		case err == nil:
			if a.err != nil {
				return false, f.broken(a.err)
			}
			if !a.over && a.phase != complete { // piece wants it
				return false, errDetach
			}
		case errors.Is(err, os.ErrDeadlineExceeded):
			bits := f.signals.Swap(0)
			_ = l.SetDeadline(time.Time{})
			a.touched = true
			switch {
			case f.ctx.Err() != nil || bits&signalGone != 0:
				return false, errClientGone(f.ctx.Err())
			case a.over:
				return false, f.finish(a)
			case bits&signalTimeout != 0:
				f.g.failed(f.backend, registry.FailureStall)
				return !f.content.Load(), errTimeout(f.content.Load())
			case bits&signalKeepAlive != 0:
				if err := f.comfort(); err != nil {
					return false, err
				}
			} // a look is what reading on is
			continue
		case a.end(), a.over:
		case cutOff(err) && !f.content.Load() && f.ctx.Err() == nil:
			f.backend.closeIdle(time.Time{}) // they lead to the same machine
			f.g.failed(f.backend, registry.FailureStall)
			return true, errRefused(err)
		default:
			return false, f.lost(err)
		}
		if a.phase == complete {
			return a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable, f.finish(a)
		}
		if err != nil { // the connection ended after the last event
			return false, f.finish(a)
		}
		a.touched, a.lingers = true, true
		_ = l.SetReadDeadline(time.Now().Add(linger))
	}
}

// piece relays what the worker has just sent. It reports whether more is to be read before receive decides.
func (f *flight) piece(b []byte) (more bool) {
	a := &f.ans
	f.received.Add(1)
	rest, err := a.feed(b, a.take)
	if len(rest) > 0 {
		a.reusable = false // it speaks out of turn
	}
	f.rd.release()
	if err == nil && a.written {
		a.written = false
		err = f.flush()
	}
	a.err = err
	if !f.whole && a.mode == stream && f.content.Load() && f.received.Load() >= detachAfter && !a.over {
		f.whole = true
		return false
	}
	return err == nil && a.phase != complete && (!a.over || a.lingers)
}

// write sends the request. Where not all of it was sent the worker cannot have begun with it.
func (f *flight) write(l *link, a *answer, msg []byte) (again bool, err error) {
	for {
		n, err := l.Write(msg)
		if msg = msg[n:]; len(msg) == 0 {
			return false, nil
		}
		if f.ctx.Err() != nil {
			return false, errClientGone(err)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			bits := f.signals.Swap(0)
			_ = l.SetDeadline(time.Time{})
			a.touched = true
			if bits&signalTimeout == 0 {
				if bits&signalKeepAlive != 0 {
					if err := f.comfort(); err != nil {
						return false, err
					}
				}
				continue
			}
		}
		if !l.reused {
			f.g.failed(f.backend, registry.FailureError)
		}
		return true, errRefused(err)
	}
}

// broken turns an error of relaying into the one to report: the client's, or the worker's for an answer that makes no sense.
func (f *flight) broken(err error) error {
	if fault.KindOf(err) == fault.Interrupted {
		return err
	}
	f.g.failed(f.backend, registry.FailureError)
	f.g.log.Warn("worker answered badly", "worker", f.backend.id, "request_id", f.id, "error", err)
	return errBadAnswer(err)
}

// lost judges a connection that ended in the middle: whether the worker died with it, and whether this request is why.
func (f *flight) lost(cause error) error {
	if f.ctx.Err() != nil {
		return errClientGone(cause)
	}
	if f.g.dir.Deleted(f.backend.id) {
		return errDeleted(f.backend.id, cause) // neither its failure nor this request's
	}
	ctx, cancel := context.WithTimeout(f.ctx, f.g.limits().Dial)
	defer cancel()
	c, err := f.g.dial(ctx, "tcp", f.backend.addr)
	switch {
	case err == nil:
		_ = c.Close()
		f.g.failed(f.backend, registry.FailureError)
	case errors.Is(err, syscall.ECONNREFUSED):
		f.g.failed(f.backend, registry.FailureDialRefused)
		if f.g.poison.died(f.hash, workerRun{f.backend.id, f.backend.incarnation}, time.Now()) && !f.committed {
			return errPoison()
		}
	default:
		f.g.failed(f.backend, registry.FailureError)
	}
	return errWorkerLost(cause)
}

// take receives a piece of the answer's body.
func (f *flight) take(b []byte) error {
	a := &f.ans
	if a.mode == undecided {
		if err := f.decide(a); err != nil {
			return err
		}
	}
	limit := int(f.g.limits().Response)
	switch a.mode {
	case stream:
		return f.events(a, b)
	case refuse:
		limit = maxErrorBody
	}
	if a.body == nil {
		a.body = f.g.bodies.Get().(*[]byte)
		*a.body = (*a.body)[:0]
		// What was announced is believed up to a bound; the rest grows with what arrives.
		if n := min(a.length, 1<<20, int64(limit)); n > int64(cap(*a.body)) {
			*a.body = make([]byte, 0, n)
		}
	}
	if len(*a.body)+len(b) > limit {
		if a.mode == refuse {
			return nil
		}
		return bad("the body is larger than the limit")
	}
	*a.body = append(*a.body, b...)
	return nil
}

// decide looks at the head.
func (f *flight) decide(a *answer) error {
	want := typeJSON
	if f.stream {
		want = typeStream
	}
	switch {
	case a.status != http.StatusOK:
		a.mode = refuse
	case a.contentType != want:
		return bad("the type of the body is not " + want)
	case f.stream:
		a.mode = stream
	default:
		a.mode = collect
	}
	return nil
}

// finish ends an answer that has arrived.
func (f *flight) finish(a *answer) error {
	if a.mode == undecided {
		if err := f.decide(a); err != nil {
			return f.broken(err)
		}
	}
	switch a.mode {
	case refuse:
		return f.refusal(a)
	case stream:
		if !a.over {
			return f.broken(bad("the stream ended without its last event"))
		}
		if !a.failed {
			f.g.succeeded(f.backend)
		}
	default:
		var body []byte
		if a.body != nil {
			body = *a.body
		}
		if len(body) == 0 || body[0] != '{' || !openai.Valid(body) {
			return f.broken(bad("the body is not a JSON object"))
		}
		f.g.succeeded(f.backend)
		if !f.direct {
			var err error
			if body, err = f.infer.answer(body); err != nil {
				return f.broken(err)
			}
		}
		h := f.w.Header()
		h["Content-Type"] = f.g.jsonType
		h["Content-Length"] = []string{strconv.Itoa(len(body))}
		f.committed = true
		f.w.WriteHeader(http.StatusOK)
		if err := f.send(body); err != nil {
			return err
		}
	}
	f.usage = a.usage
	return nil
}

// refusal is the error of a worker, with its own words where it speaks OpenAI's form of errors.
func (f *flight) refusal(a *answer) error {
	switch {
	case a.status >= 500:
		f.g.failed(f.backend, registry.FailureError)
	case a.status >= 400:
		f.g.succeeded(f.backend)
	}
	var e contract.ErrorBody
	if a.contentType == typeJSON && a.body != nil {
		_ = json.Unmarshal(*a.body, &e)
	}
	switch {
	case a.status < 400, a.status == http.StatusUnauthorized, a.status == http.StatusForbidden, e.Error.Message == "" || e.Error.Code == "":
		if a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable {
			return errRefused(nil)
		}
		return errBadAnswer(bad("the status is " + strconv.Itoa(a.status)))
	}
	seconds, _ := strconv.Atoi(a.retryAfter)
	return fault.FromWire(a.status, e.Error, time.Duration(min(max(seconds, 0), 3600))*time.Second)
}
