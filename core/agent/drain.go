package agent

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
)

const (
	// linger is how long an agent that served requests lately goes on refusing new ones after the last one has ended. Clients that hold
	// connections open thus learn by an answer that they have to go elsewhere; one that sends while its connection is being
	// closed cannot tell whether the request was executed.
	linger = 500 * time.Millisecond
	// lately is for how long clients keep connections open.
	lately = time.Minute
)

// drain counts the requests that are being served. Once told to stop it turns readiness off, refuses new ones and waits
// for those that run.
type drain struct {
	mu       sync.Mutex // guards the fields below
	stopping bool
	inFlight int
	last     time.Time     // when a request ended; zero: none did
	idle     chan struct{} // closed when stopping and nothing is in flight
}

func newDrain() *drain { return &drain{idle: make(chan struct{})} }

// counted wraps a handler whose requests are waited for.
func (d *drain) counted(next http.Handler, refuse func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !d.enter() {
			w.Header().Set("Connection", "close")
			refuse(w, r, errDraining())
			return
		}
		defer func() { httpd.AtEnd(w, d.leave) }()
		next.ServeHTTP(w, r)
	})
}

// readiness wraps the handler of /readyz.
func (d *drain) readiness(next http.Handler, refuse func(http.ResponseWriter, *http.Request, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		stopping := d.stopping
		d.mu.Unlock()
		if stopping {
			refuse(w, r, errDraining())
			return
		}
		next.ServeHTTP(w, r)
	})
}

func errDraining() error {
	return fault.New(fault.Unavailable, "draining", "This agent is stopping; send the request to another one, or again when it has started.").WithRetryAfter(drainRetry)
}

func (d *drain) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stopping {
		return false
	}
	d.inFlight++
	return true
}

func (d *drain) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.inFlight--
	d.last = time.Now()
	if d.stopping && d.inFlight == 0 {
		close(d.idle)
	}
}

// run waits for the end of ctx and then drains, until nothing is in flight or limit has passed, and lingers.
func (d *drain) run(ctx context.Context, limit time.Duration) error {
	<-ctx.Done()
	d.mu.Lock()
	d.stopping = true
	if d.inFlight == 0 {
		close(d.idle)
	}
	d.mu.Unlock()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-d.idle:
	case <-timer.C:
		return nil
	}
	d.mu.Lock()
	used := !d.last.IsZero() && time.Since(d.last) < lately
	d.mu.Unlock()
	if used {
		time.Sleep(linger)
	}
	return nil
}
