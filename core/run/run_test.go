package run

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// story records what services do, in order.
type story struct {
	mu    sync.Mutex
	lines []string
}

func (s *story) add(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, line)
}

func (s *story) told() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines)
}

func (s *story) service(name string, stopAfter time.Duration) Service {
	return Service{
		Name:  name,
		Start: func(context.Context) error { s.add("start " + name); return nil },
		Run: func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(stopAfter) // fake time of the bubble
			s.add("stop " + name)
			return nil
		},
	}
}

func group(hurry <-chan struct{}, services ...Service) *Group {
	g := NewGroup(slog.New(slog.DiscardHandler), hurry)
	for _, s := range services {
		g.Add(s)
	}
	return g
}

func TestGroupStartsInOrderAndStopsInReverse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s story
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := group(nil, s.service("a", time.Second), s.service("b", 2*time.Second), s.service("c", 0)).Run(ctx); err != nil {
			t.Fatal(err)
		}
		want := []string{"start a", "start b", "start c", "stop c", "stop b", "stop a"}
		if d := cmp.Diff(want, s.told()); d != "" {
			t.Error(d)
		}
	})
}

func TestGroupStopsEverythingOnTheFirstFailure(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		run  func(ctx context.Context) error
		want string
	}{
		"error":      {func(context.Context) error { time.Sleep(time.Second); return boom }, "bad: boom"},
		"early end":  {func(context.Context) error { return nil }, "bad ended without being told to"},
		"at once":    {func(context.Context) error { return boom }, "bad: boom"},
		"late error": {func(ctx context.Context) error { <-ctx.Done(); return boom }, "stop bad: boom"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var s story
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				err := group(nil, s.service("a", 0), Service{Name: "bad", Run: c.run}, s.service("z", 0)).Run(ctx)
				if err == nil || err.Error() != c.want {
					t.Errorf("error %v, want %q", err, c.want)
				}
				if !strings.Contains(strings.Join(s.told(), ","), "stop a") {
					t.Errorf("a was not stopped: %v", s.told())
				}
			})
		})
	}
}

func TestGroupFailedStartStopsTheEarlierOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s story
		taken := errors.New("port taken")
		bad := Service{Name: "web", Start: func(context.Context) error { return taken }, Run: func(context.Context) error { t.Error("ran"); return nil }}
		err := group(nil, s.service("a", 0), bad, s.service("c", 0)).Run(context.Background())
		if !errors.Is(err, taken) || err.Error() != "start web: port taken" {
			t.Errorf("error %v", err)
		}
		if d := cmp.Diff([]string{"start a", "stop a"}, s.told()); d != "" {
			t.Error(d)
		}
	})
}

func TestGroupLeavesBehindWhatDoesNotStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s story
		stuck := s.service("stuck", time.Hour)
		stuck.StopTimeout = 3 * time.Second
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		begin := time.Now()
		err := group(nil, s.service("a", 0), stuck).Run(ctx)
		if err == nil || !strings.Contains(err.Error(), "stuck did not stop within 3s") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(begin); took != 4*time.Second {
			t.Errorf("took %s", took)
		}
		if d := cmp.Diff([]string{"start a", "start stuck", "stop a"}, s.told()); d != "" {
			t.Error(d)
		}
		time.Sleep(2 * time.Hour) // until what was left behind is gone: a bubble may not end before
	})
}

func TestGroupHurries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s story
		slow := func(name string) Service {
			v := s.service(name, 10*time.Minute)
			v.StopTimeout = 2 * time.Minute
			return v
		}
		hurry := make(chan struct{})
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		time.AfterFunc(11*time.Second, func() { close(hurry) })
		begin := time.Now()
		err := group(hurry, slow("a"), slow("b"), slow("c")).Run(ctx)
		if err == nil || !strings.Contains(err.Error(), "c did not stop in a hurry") {
			t.Errorf("error %v", err)
		}
		if took := time.Since(begin); took != 16*time.Second {
			t.Errorf("stopped after %s, want 16s: 1s of running, 10s of patience, 5s of hurry", took)
		}
		time.Sleep(time.Hour)
	})
}

func TestGroupCancelDuringStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		waits := Service{Name: "waits", Start: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, Run: func(context.Context) error { return nil }}
		if err := group(nil, waits).Run(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestRetry(t *testing.T) {
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		b         Backoff
		succeedAt int
		retryable func(error) bool
		calls     int
		err       error
		min, max  time.Duration
	}{
		"first":         {Backoff{3, time.Second, time.Minute}, 1, nil, 1, nil, 0, 0},
		"third":         {Backoff{5, time.Second, time.Minute}, 3, nil, 3, nil, 2400 * time.Millisecond, 3600 * time.Millisecond},
		"used up":       {Backoff{4, time.Second, 2 * time.Second}, 9, nil, 4, boom, 4 * time.Second, 6 * time.Second},
		"not retryable": {Backoff{4, time.Second, time.Second}, 9, func(error) bool { return false }, 1, boom, 0, 0},
		"no attempts":   {Backoff{}, 9, nil, 1, boom, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				calls, begin := 0, time.Now()
				err := Retry(context.Background(), c.b, c.retryable, func(context.Context) error {
					if calls++; calls >= c.succeedAt {
						return nil
					}
					return boom
				})
				took := time.Since(begin)
				if calls != c.calls || !errors.Is(err, c.err) || took < c.min || took > c.max {
					t.Errorf("%d calls, error %v, %s", calls, err, took)
				}
			})
		})
	}
}

func TestRetryEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		boom := errors.New("boom")
		begin := time.Now()
		err := Retry(ctx, Backoff{Attempts: 100, Min: time.Minute, Max: time.Hour}, nil, func(context.Context) error { return boom })
		if !errors.Is(err, boom) || time.Since(begin) != 5*time.Second {
			t.Errorf("error %v after %s", err, time.Since(begin))
		}
	})
}
