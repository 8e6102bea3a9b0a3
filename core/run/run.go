// Package run starts and stops services in order and retries operations with jitter. It knows no service by name and
// installs no signal handler.
package run

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

// Service is something that runs until it is told to stop.
type Service struct {
	Name string
	// Start, where it is set, gets the service ready before the next one is started: opens listeners, reads state. Its context
	// is the service's own.
	Start func(ctx context.Context) error
	// Run blocks until ctx ends and the service has stopped. Returning before that, with or without an error, stops the group.
	Run func(ctx context.Context) error
	// StopTimeout bounds the time from the end of ctx to the return of Run; DefaultStopTimeout when 0.
	StopTimeout time.Duration
}

// DefaultStopTimeout is the bound of a service that sets none.
const DefaultStopTimeout = 10 * time.Second

// hurryTimeout is what is left for everything once the group is told to hurry (F21: a second SIGTERM).
const hurryTimeout = 5 * time.Second

// Group runs services. The zero value is not usable: make one with NewGroup.
type Group struct {
	log      *slog.Logger
	hurry    <-chan struct{}
	services []Service
}

// NewGroup makes a group. When hurry is closed, what still has to stop gets five seconds altogether; nil never hurries.
func NewGroup(log *slog.Logger, hurry <-chan struct{}) *Group { return &Group{log: log, hurry: hurry} }

// Add appends a service. It must not be called once Run was.
func (g *Group) Add(s Service) {
	if s.StopTimeout <= 0 {
		s.StopTimeout = DefaultStopTimeout
	}
	g.services = append(g.services, s)
}

// started is a service that runs.
type started struct {
	Service
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned; err is set then
	err    error
}

// Run starts the services in the order of Add and blocks. When ctx ends or one of them fails, it stops those that were
// started in reverse order, one after the other, each within its bound; a service that does not stop in time is left behind and
// reported. It returns the first failure, or nil when ctx ended and everything stopped.
func (g *Group) Run(ctx context.Context) error {
	failed := make(chan error, len(g.services)+1)
	var running []*started
	var first error
	for _, s := range g.services {
		st, err := g.start(ctx, s, failed)
		if err != nil {
			first = err
			break
		}
		running = append(running, st)
		// A failure of an earlier service or a signal ends the start of the later ones.
		if ctx.Err() != nil || len(failed) > 0 {
			break
		}
	}
	if first == nil {
		select {
		case first = <-failed:
		case <-ctx.Done():
		}
	}
	if first == nil && len(failed) > 0 {
		first = <-failed // it failed before the stop began
	}
	if err := g.stop(running); first == nil {
		first = err
	}
	return first
}

// start gets s ready and runs it. The service's context is not a child of ctx's cancellation, because the order of stopping is
// the group's.
func (g *Group) start(ctx context.Context, s Service, failed chan<- error) (*started, error) {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	if s.Start != nil {
		// While the service starts, the end of ctx does reach it.
		release := context.AfterFunc(ctx, cancel)
		err := s.Start(own)
		if !release() || err != nil {
			cancel()
		}
		if err != nil {
			return nil, fmt.Errorf("start %s: %w", s.Name, err)
		}
	}
	st := &started{Service: s, cancel: cancel, done: make(chan struct{})}
	g.log.Debug("service started", "service", s.Name)
	go func() {
		defer close(st.done)
		err := s.Run(own)
		if own.Err() != nil {
			st.err = err // it was told to stop: stop reports the error
			return
		}
		if err == nil {
			failed <- fmt.Errorf("%s ended without being told to", s.Name)
			return
		}
		failed <- fmt.Errorf("%s: %w", s.Name, err)
	}()
	return st, nil
}

// stop ends the services, the last one first, and returns the first error of doing so.
func (g *Group) stop(running []*started) error {
	var first error
	hurry := g.hurry
	var deadline <-chan time.Time
	for i := len(running) - 1; i >= 0; i-- {
		s := running[i]
		s.cancel()
		bound := time.NewTimer(s.StopTimeout)
		err := func() error {
			for {
				select {
				case <-s.done:
					if s.err != nil {
						return fmt.Errorf("stop %s: %w", s.Name, s.err)
					}
					return nil
				case <-bound.C:
					return fmt.Errorf("%s did not stop within %s and was left behind", s.Name, s.StopTimeout)
				case <-deadline:
					// Every later wait is over at once too: a fired timer channel would block, a closed one does not.
					over := make(chan time.Time)
					close(over)
					deadline = over
					return fmt.Errorf("%s did not stop in a hurry and was left behind", s.Name)
				case <-hurry:
					hurry = nil
					t := time.NewTimer(hurryTimeout)
					defer t.Stop()
					deadline = t.C
				}
			}
		}()
		bound.Stop()
		if err != nil {
			g.log.Warn("service did not stop cleanly", "service", s.Name, "error", err)
			if first == nil {
				first = err
			}
			continue
		}
		g.log.Debug("service stopped", "service", s.Name)
	}
	return first
}
