package run

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff says how often and how far apart to try.
type Backoff struct {
	Attempts int           // in all, at least 1
	Min      time.Duration // before the second attempt; doubles from there
	Max      time.Duration // of one wait, before jitter
}

// wait returns the time before attempt n, counted from 1 for the second attempt, without jitter.
func (b Backoff) wait(n int) time.Duration {
	d := b.Min
	for i := 1; i < n && d < b.Max; i++ {
		d *= 2
	}
	return min(d, b.Max)
}

// Sleep waits for d, or until ctx ends, whose error it then returns.
func Sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Retry calls op until it returns nil, until retryable (nil: every error) says no, until the attempts are used up or until ctx
// ends. Waits double from Min to Max with ± 20 % of jitter. It returns the last error of op.
func Retry(ctx context.Context, b Backoff, retryable func(error) bool, op func(ctx context.Context) error) error {
	for n := 1; ; n++ {
		err := op(ctx)
		if err == nil || n >= b.Attempts || ctx.Err() != nil || (retryable != nil && !retryable(err)) {
			return err
		}
		d := b.wait(n)
		d += time.Duration((rand.Float64()*0.4 - 0.2) * float64(d))
		if Sleep(ctx, d) != nil {
			return err
		}
	}
}
