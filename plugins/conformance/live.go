package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/plugins/host"
)

// Bounds of the check of memory: how much a process may grow before it counts as growing, in bytes and as a part of what it has.
const (
	growth     = 16 << 20
	growthPart = 4
)

// living are the checks of a plugin over time.
func living() []check {
	return []check{
		{"cancel: a call that is cancelled returns within 2 s", "", checkCancel},
		{"concurrency: calls at once have the same answers", "", checkConcurrency},
		{"memory: many calls leave it where it was", "", checkMemory},
	}
}

func checkCancel(ctx context.Context, s *suite) error {
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	s.host.set(&mode{hang: true})
	calling, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = s.ask(calling, on, s.some()) // that it returns is what counts
	}()
	select {
	case <-s.host.asked:
	case <-done: // it makes no request
	case <-ctx.Done():
		return errors.New("it neither makes a request nor answers")
	}
	cancel()
	timer := time.NewTimer(cancelTime)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		s.host.set(recorded())
		<-done // by its own bound
		return fmt.Errorf("it goes on for more than %v after it was cancelled", cancelTime)
	}
	return s.works(ctx)
}

func checkConcurrency(ctx context.Context, s *suite) error {
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	const callers, calls = 8, 4
	want, wantErr := s.ask(ctx, on, s.some())
	errs := make([]error, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for range calls {
				got, err := s.ask(ctx, on, s.some())
				if err != nil || wantErr != nil {
					errs[i] = sameError(wantErr, err)
				} else {
					errs[i] = same(want, got)
				}
				if errs[i] != nil {
					return
				}
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkMemory(ctx context.Context, s *suite) error {
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	p, ok := on.(interface{ PID() int })
	if !ok {
		return skipError("it has no process of its own")
	}
	if _, err := Resident(p.PID()); err != nil {
		return skipError("the memory of a process is not to be seen on this system")
	}
	for n := 0; ; n++ {
		before, err := s.after(ctx, on, p.PID(), s.Calls/2)
		if err != nil {
			return err
		}
		now, err := s.after(ctx, on, p.PID(), s.Calls/2)
		if err != nil {
			return err
		}
		if now <= before+max(growth, before/growthPart) {
			return nil
		}
		if n == 1 {
			return fmt.Errorf("its process has %d MiB after %d calls, %d MiB more than half of them before, and goes on growing", now>>20, 2*s.Calls, (now-before)>>20)
		}
	}
}

// after makes calls and returns the memory of the process then.
func (s *suite) after(ctx context.Context, on Instance, pid, calls int) (int64, error) {
	for range calls {
		var err error
		if len(s.cases.Resolve) > 0 {
			_, err = s.ask(ctx, on, s.some())
		} else {
			_, err = host.Info(ctx, on)
		}
		if err != nil {
			return 0, fmt.Errorf("of many calls, one fails: %w", err)
		}
	}
	return Resident(pid)
}

// Resident returns the bytes of memory that a process holds. It needs /proc.
func Resident(pid int) (int64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(raw)
	if len(fields) < 2 {
		return 0, errors.New("/proc/statm is not as it should be")
	}
	pages, err := strconv.ParseInt(string(fields[1]), 10, 64)
	return pages * int64(os.Getpagesize()), err
}
