package host

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Codes of the errors of a Supervisor.
const (
	CodeDisabled = "plugin_disabled" // it crashed too often
	CodeClosed   = "plugin_closed"   // the agent is stopping
)

// Bounds of restarts.
const (
	maxRestarts   = 3
	restartWindow = time.Minute
	firstBackOff  = time.Second // doubled with every crash in the window
	idleTime      = 10 * time.Minute
	maxStart      = time.Minute // a starter has bounds of its own; this one is for those that forget it
)

// Instance is one run of a plugin, configured and ready.
type Instance interface {
	vendor.Invoker
	// Done is closed when the run has ended, for whatever reason.
	Done() <-chan struct{}
	// Close ends it, and releases what it holds also where it has ended already. It may be called several times.
	Close() error
}

// Supervisor runs a plugin while it is used: it starts it with the first call, starts it again after a crash, later each time,
// stops it when nobody has called it for a while, and gives it up when it crashes more than three times in a minute. A call that
// a crash breaks is not repeated. It is a vendor.Invoker; its methods may be called concurrently.
type Supervisor struct {
	name  string
	start func(ctx context.Context) (Instance, error)
	idle  time.Duration
	log   *slog.Logger

	life context.Context // ends with Close
	end  context.CancelFunc
	work sync.WaitGroup

	mu        sync.Mutex // guards the fields below
	closed    bool
	disabled  error
	current   Instance
	calls     int // in progress on current
	idleTimer *time.Timer
	attempt   *attempt // to start; nil: none
	crashes   []time.Time
	notBefore time.Time // of the next start
}

// attempt is a start that callers wait for.
type attempt struct {
	done chan struct{}
	err  error // set before done is closed
}

// NewSupervisor supervises the plugin name. Start returns an instance that is configured; an error that trying again does not
// mend, of the kinds Invalid, NotFound and Denied, is no crash. An idle time of 0 is ten minutes. Nothing is started yet.
func NewSupervisor(name string, idle time.Duration, log *slog.Logger, start func(ctx context.Context) (Instance, error)) *Supervisor {
	if idle <= 0 {
		idle = idleTime
	}
	s := &Supervisor{name: name, start: start, idle: idle, log: log.With("plugin", name)}
	s.life, s.end = context.WithCancel(context.Background())
	return s
}

// Invoke implements vendor.Invoker. It waits for a start, and for the pause before one, until ctx ends.
func (s *Supervisor) Invoke(ctx context.Context, method string, request []byte) ([]byte, error) {
	on, err := s.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer s.release(on)
	return on.Invoke(ctx, method, request)
}

// Close stops the plugin, and returns when nothing is left of it. Calls in progress fail.
func (s *Supervisor) Close() {
	s.mu.Lock()
	s.closed = true
	s.current = nil // so that its end is no crash
	s.stopIdleTimer()
	s.mu.Unlock()
	s.end()
	s.work.Wait()
}

func (s *Supervisor) acquire(ctx context.Context) (Instance, error) {
	for {
		a, on, err := s.look()
		if err != nil || on != nil {
			return on, err
		}
		select {
		case <-a.done:
			if a.err != nil {
				return nil, a.err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the plugin %s: %w", s.name, ctx.Err())
		}
	}
}

// look returns the instance for a call, or the attempt to wait for.
func (s *Supervisor) look() (*attempt, Instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, s.closedError()
	}
	if s.current != nil {
		select {
		case <-s.current.Done():
			s.crashed(s.current)
		default:
			s.calls++
			s.stopIdleTimer()
			return nil, s.current, nil
		}
	}
	if s.disabled != nil {
		return nil, nil, s.disabled
	}
	if s.attempt == nil {
		a := &attempt{done: make(chan struct{})}
		s.attempt = a
		s.work.Go(func() { s.launch(a) })
	}
	return s.attempt, nil, nil
}

func (s *Supervisor) release(on Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != on {
		return // it ended meanwhile
	}
	s.calls--
	if s.calls == 0 {
		s.idleTimer = time.AfterFunc(s.idle, func() { s.stopIdle(on) })
	}
}

// stopIdle ends an instance that nobody uses.
func (s *Supervisor) stopIdle(on Instance) {
	s.mu.Lock()
	if s.current != on || s.calls > 0 || s.closed {
		s.mu.Unlock()
		return
	}
	s.current = nil // so that its end is no crash
	s.work.Go(func() {
		s.log.Info("plugin stopped: not used", "for", s.idle)
		s.closeInstance(on)
	})
	s.mu.Unlock()
}

// stopIdleTimer is called with mu held.
func (s *Supervisor) stopIdleTimer() {
	if s.idleTimer != nil {
		s.idleTimer.Stop()
		s.idleTimer = nil
	}
}

// launch starts the plugin, not before its pause is over.
func (s *Supervisor) launch(a *attempt) {
	s.mu.Lock()
	pause := time.Until(s.notBefore)
	s.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	var (
		on  Instance
		err error
	)
	select {
	case <-s.life.Done():
		err = s.closedError()
	case <-timer.C:
		ctx, cancel := context.WithTimeout(s.life, maxStart)
		on, err = s.start(ctx)
		cancel()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(a.done)
	s.attempt = nil
	switch {
	case s.closed:
		a.err = s.closedError()
		if on != nil {
			s.work.Go(func() { s.closeInstance(on) })
		}
	case err != nil:
		a.err = err
		if again(err) {
			s.failed(err)
			if s.disabled != nil {
				a.err = s.disabled
			}
		}
	default:
		s.current, s.calls = on, 0
		s.log.Info("plugin started")
		s.idleTimer = time.AfterFunc(s.idle, func() { s.stopIdle(on) })
		s.work.Go(func() { s.watch(on) })
	}
}

// again reports whether what failed may go well another time.
func again(err error) bool {
	switch fault.KindOf(Fault(err)) {
	case fault.Invalid, fault.NotFound, fault.Denied:
		return false
	}
	return true
}

// watch waits for the end of an instance, or of the supervisor, and releases it.
func (s *Supervisor) watch(on Instance) {
	select {
	case <-on.Done():
	case <-s.life.Done():
	}
	s.mu.Lock()
	if s.current == on {
		s.crashed(on)
	}
	s.mu.Unlock()
	s.closeInstance(on)
}

// crashed is called with mu held, once for an instance.
func (s *Supervisor) crashed(on Instance) {
	s.current = nil
	s.stopIdleTimer()
	reason := errors.New("it ended")
	if on, ok := on.(interface{ Err() error }); ok && on.Err() != nil {
		reason = on.Err()
	}
	s.failed(reason)
}

// failed counts a crash, or a start that failed, and sets when the next start may be. It is called with mu held.
func (s *Supervisor) failed(reason error) {
	now := time.Now()
	s.crashes = append(slices.DeleteFunc(s.crashes, func(t time.Time) bool { return now.Sub(t) > restartWindow }), now)
	if n := len(s.crashes); n > maxRestarts {
		e := fault.New(fault.Unavailable, CodeDisabled, "The plugin %s crashed %d times in a minute and is switched off; the agent's log has what it said; `apiary plugin doctor %s` looks for the cause. Mend or remove it, and restart the agent.", s.name, n, s.name)
		e.Err = reason
		s.disabled = e
		s.log.Error("plugin switched off: it crashed too often", "crashes", n, "error", reason)
		return
	}
	pause := firstBackOff << (len(s.crashes) - 1)
	s.notBefore = now.Add(pause)
	s.log.Warn("plugin crashed", "restart_not_before", pause, "error", reason)
}

func (s *Supervisor) closeInstance(on Instance) {
	if err := on.Close(); err != nil {
		s.log.Warn("plugin does not end", "error", err)
	}
}

func (s *Supervisor) closedError() error {
	return fault.New(fault.Unavailable, CodeClosed, "The plugin %s is not called any more: the agent is stopping.", s.name)
}
