package artifact

import (
	"context"
	"sync"

	"github.com/apiary-dev/apiary/core/contract"
)

// flights lets several callers share one run of an operation. Its zero value is ready.
type flights struct {
	mu sync.Mutex
	// mu guards the field below and the callers of each flight.
	running map[string]*flight
}

// flight is one run. It goes on until it ends or its last caller has left.
type flight struct {
	cancel  context.CancelFunc
	done    chan struct{}
	callers map[*caller]struct{}
	last    *event // what a caller that comes late is told first

	value any // set before done is closed
	err   error
}

type event struct {
	action, message string
	progress        *contract.Progress
}

type caller struct{ events chan event }

// share runs f for key unless it runs already, and waits for its end. Every caller gets the reports; a caller whose ctx ends
// leaves, and f's context is cancelled when nobody is left.
func share[T any](ctx context.Context, fs *flights, key string, report Report, f func(context.Context, Report) (T, error)) (T, error) {
	c := &caller{events: make(chan event, 64)}
	fs.mu.Lock()
	fl, ok := fs.running[key]
	if ok && fl.last != nil {
		c.events <- *fl.last
	}
	if !ok {
		run, cancel := context.WithCancel(context.WithoutCancel(ctx))
		fl = &flight{cancel: cancel, done: make(chan struct{}), callers: map[*caller]struct{}{}}
		if fs.running == nil {
			fs.running = map[string]*flight{}
		}
		fs.running[key] = fl
		go func() {
			v, err := f(run, func(action, message string, p *contract.Progress) { fs.tell(fl, event{action, message, p}) })
			fs.mu.Lock()
			fl.value, fl.err = v, err
			if fs.running[key] == fl {
				delete(fs.running, key)
			}
			fs.mu.Unlock()
			cancel()
			close(fl.done)
		}()
	}
	fl.callers[c] = struct{}{}
	fs.mu.Unlock()

	deliver := func(e event) {
		if report != nil {
			report(e.action, e.message, e.progress)
		}
	}
	for {
		select {
		case e := <-c.events:
			deliver(e)
		case <-fl.done:
			for {
				select {
				case e := <-c.events:
					deliver(e)
					continue
				default:
				}
				break
			}
			v, _ := fl.value.(T)
			return v, fl.err
		case <-ctx.Done():
			fs.leave(fl, key, c)
			var zero T
			return zero, ctx.Err()
		}
	}
}

// leave takes a caller off. The last one ends the flight and waits for that, so that nothing works on when all have gone;
// a new caller of the same key starts anew and waits for the old flight's locks.
func (fs *flights) leave(fl *flight, key string, c *caller) {
	fs.mu.Lock()
	delete(fl.callers, c)
	last := len(fl.callers) == 0
	if last && fs.running[key] == fl {
		delete(fs.running, key)
	}
	fs.mu.Unlock()
	if last {
		fl.cancel()
		<-fl.done
	}
}

// tell hands an event to every caller. Progress is dropped for one that is too slow; a sentence waits for nobody either, but
// takes the place of the oldest event.
func (fs *flights) tell(fl *flight, e event) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fl.last = &e
	for c := range fl.callers {
		select {
		case c.events <- e:
			continue
		default:
		}
		if e.progress == nil || e.progress.Done == e.progress.Total {
			select {
			case <-c.events:
			default:
			}
			select {
			case c.events <- e:
			default:
			}
		}
	}
}
