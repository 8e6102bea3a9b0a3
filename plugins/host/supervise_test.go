package host

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// fakeRun is a run of a plugin.
type fakeRun struct {
	done   chan struct{}
	once   sync.Once
	closed atomic.Bool
}

func (r *fakeRun) Invoke(ctx context.Context, method string, _ []byte) ([]byte, error) {
	switch method {
	case "crash":
		r.end()
		return nil, errors.New("it ended")
	case "wait":
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-r.done:
			return nil, errors.New("it ended")
		case <-time.After(20 * time.Minute):
		}
	}
	return []byte("{}"), nil
}
func (r *fakeRun) Done() <-chan struct{} { return r.done }
func (r *fakeRun) Err() error            { return errors.New("exit status 2") }
func (r *fakeRun) end()                  { r.once.Do(func() { close(r.done) }) }
func (r *fakeRun) Close() error {
	r.closed.Store(true)
	r.end()
	return nil
}

// fakePlugin starts runs.
type fakePlugin struct {
	runs []*fakeRun
	err  error
	slow time.Duration
}

func (p *fakePlugin) start(ctx context.Context) (Instance, error) {
	select {
	case <-time.After(p.slow):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if p.err != nil {
		p.runs = append(p.runs, nil)
		return nil, p.err
	}
	r := &fakeRun{done: make(chan struct{})}
	p.runs = append(p.runs, r)
	return r, nil
}

func supervise(t *testing.T, f func(t *testing.T, s *Supervisor, p *fakePlugin)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &fakePlugin{}
		s := NewSupervisor("p", 0, slog.New(slog.DiscardHandler), p.start)
		f(t, s, p)
		s.Close()
		synctest.Wait()
		for i, r := range p.runs {
			if r != nil && !r.closed.Load() {
				t.Errorf("run %d is not closed", i)
			}
		}
		if _, err := s.Invoke(t.Context(), "x", nil); codeOf(err) != CodeClosed {
			t.Errorf("a call after Close: %v", err)
		}
	})
}

func codeOf(err error) string {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.Code
	}
	return ""
}

// TestStartedOnce: the first calls start the plugin together, and it goes on for the next.
func TestStartedOnce(t *testing.T) {
	supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
		p.slow = time.Second
		if len(p.runs) != 0 {
			t.Error("started before it is needed")
		}
		var calls sync.WaitGroup
		for range 10 {
			calls.Go(func() {
				if _, err := s.Invoke(t.Context(), "x", nil); err != nil {
					t.Error(err)
				}
			})
		}
		calls.Wait()
		if len(p.runs) != 1 {
			t.Errorf("%d starts", len(p.runs))
		}
	})
}

// TestCallerGoes: one who does not wait for a start does not end it for the others.
func TestCallerGoes(t *testing.T) {
	supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
		p.slow = 5 * time.Second
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Invoke(ctx, "x", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if _, err := s.Invoke(t.Context(), "x", nil); err != nil || len(p.runs) != 1 {
			t.Error(err, len(p.runs))
		}
	})
}

// TestBackOff: after a crash the next start waits, longer each time; the fourth crash in a minute is the last.
func TestBackOff(t *testing.T) {
	supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
		for i, pause := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second} {
			begin := time.Now()
			if _, err := s.Invoke(t.Context(), "crash", nil); err == nil {
				t.Error("a call that crashes the plugin ends well")
			}
			if took := time.Since(begin); took != pause {
				t.Errorf("call %d waited %v", i, took)
			}
			synctest.Wait()
		}
		begin := time.Now()
		_, err := s.Invoke(t.Context(), "x", nil)
		if codeOf(err) != CodeDisabled || !strings.Contains(err.Error(), "crashed 4 times in a minute") || !strings.Contains(err.Error(), "apiary plugin doctor p") {
			t.Errorf("%v", err)
		}
		if cause := errors.Unwrap(err); cause == nil || cause.Error() != "exit status 2" {
			t.Errorf("the reason is %v", cause)
		}
		time.Sleep(time.Hour)
		if _, err := s.Invoke(t.Context(), "x", nil); codeOf(err) != CodeDisabled || time.Since(begin) != time.Hour || len(p.runs) != 4 {
			t.Errorf("%v, %d starts", err, len(p.runs))
		}
	})
}

// TestRareCrashes: a plugin that crashes now and then goes on.
func TestRareCrashes(t *testing.T) {
	supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
		for range 20 {
			if _, err := s.Invoke(t.Context(), "crash", nil); err == nil || codeOf(err) != "" {
				t.Error(err)
			}
			time.Sleep(25 * time.Second)
		}
		if len(p.runs) != 20 {
			t.Errorf("%d starts", len(p.runs))
		}
	})
}

// TestCrashWithoutCalls: what ends while nobody calls it is started again with the next call only.
func TestCrashWithoutCalls(t *testing.T) {
	supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
		if _, err := s.Invoke(t.Context(), "x", nil); err != nil {
			t.Fatal(err)
		}
		p.runs[0].end()
		time.Sleep(30 * time.Second)
		if len(p.runs) != 1 || !p.runs[0].closed.Load() {
			t.Errorf("%d starts; the old run is closed: %t", len(p.runs), p.runs[0].closed.Load())
		}
		if _, err := s.Invoke(t.Context(), "x", nil); err != nil || len(p.runs) != 2 {
			t.Error(err, len(p.runs))
		}
	})
}

// TestStartFails: a start that fails counts as a crash, unless trying again does not mend it.
func TestStartFails(t *testing.T) {
	supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
		for _, lasting := range []error{
			fault.New(fault.Denied, "plugin_digest", "Another file."),
			&vendor.Error{Kind: vendor.KindInvalid, Code: "bad_config", Message: "Bad."},
		} {
			p.err = lasting
			for range 6 {
				if _, err := s.Invoke(t.Context(), "x", nil); !errors.Is(err, lasting) {
					t.Errorf("%v", err)
				}
			}
		}
		p.runs, p.err = nil, fault.New(fault.Unavailable, "plugin_start", "It does not start.")
		for range 3 {
			if _, err := s.Invoke(t.Context(), "x", nil); !errors.Is(err, p.err) {
				t.Errorf("%v", err)
			}
		}
		for range 2 {
			if _, err := s.Invoke(t.Context(), "x", nil); codeOf(err) != CodeDisabled || !errors.Is(err, p.err) {
				t.Errorf("%v", err)
			}
		}
		if len(p.runs) != 4 {
			t.Errorf("%d starts", len(p.runs))
		}
	})
}

// TestIdle: a plugin that nobody calls is stopped, which is no crash, and one that is called is not.
func TestIdle(t *testing.T) {
	supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
		for range 6 { // each call is 20 minutes long, and there are some together
			var calls sync.WaitGroup
			for range 2 {
				calls.Go(func() {
					if _, err := s.Invoke(t.Context(), "wait", nil); err != nil {
						t.Error(err)
					}
				})
			}
			calls.Wait()
			time.Sleep(idleTime - time.Second)
		}
		if len(p.runs) != 1 || p.runs[0].closed.Load() {
			t.Fatalf("%d starts", len(p.runs))
		}
		time.Sleep(2 * time.Second)
		if !p.runs[0].closed.Load() {
			t.Error("it runs and nobody calls it")
		}
		for range 6 {
			if _, err := s.Invoke(t.Context(), "x", nil); err != nil {
				t.Error(err)
			}
			time.Sleep(idleTime + time.Second)
		}
		if len(p.runs) != 7 {
			t.Errorf("%d starts", len(p.runs))
		}
	})
}

// TestCloseWhileBusy: Close ends calls, starts, and the pauses before them.
func TestCloseWhileBusy(t *testing.T) {
	for _, method := range []string{"wait", "crash"} {
		supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
			failed := make(chan error)
			call := func(method string) {
				_, err := s.Invoke(context.Background(), method, nil)
				failed <- err
			}
			if method == "crash" {
				go call("crash")
				<-failed
			}
			begin := time.Now()
			go call("wait")
			synctest.Wait()
			s.Close()
			if err := <-failed; err == nil {
				t.Error("a call ends well after Close")
			}
			if time.Since(begin) != 0 {
				t.Errorf("it took %v", time.Since(begin))
			}
		})
	}
	supervise(t, func(t *testing.T, s *Supervisor, p *fakePlugin) {
		p.slow = time.Minute
		failed := make(chan error)
		go func() {
			_, err := s.Invoke(context.Background(), "x", nil)
			failed <- err
		}()
		synctest.Wait()
		s.Close()
		if err := <-failed; codeOf(err) != CodeClosed {
			t.Errorf("%v", err)
		}
	})
}
