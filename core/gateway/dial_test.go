package gateway

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestDialsBesideSlowOnes: a connection whose packets are lost is overtaken by the next one, and none is left open.
func TestDialsBesideSlowOnes(t *testing.T) {
	refused := errors.New("connection refused")
	for _, c := range []struct {
		name  string
		takes []time.Duration // of the attempts; more take for ever
		err   error           // of the first one
		want  time.Duration
	}{
		{"at once", []time.Duration{time.Millisecond}, nil, time.Millisecond},
		{"refused at once", []time.Duration{time.Millisecond}, refused, time.Millisecond},
		{"the first is lost", []time.Duration{time.Second, time.Millisecond}, nil, dialAgain + time.Millisecond},
		{"the first comes after all", []time.Duration{400 * time.Millisecond, time.Second}, nil, 400 * time.Millisecond},
		{"all are lost", nil, nil, 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var begun, open atomic.Int32
				g := &Gateway{}
				g.bounds.Store(&Limits{Dial: 5 * time.Second})
				g.dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
					n, takes := int(begun.Add(1))-1, time.Hour
					if n < len(c.takes) {
						takes = c.takes[n]
					}
					select {
					case <-time.After(takes):
					case <-ctx.Done():
						return nil, ctx.Err()
					}
					if n == 0 && c.err != nil {
						return nil, c.err
					}
					ours, theirs := net.Pipe()
					open.Add(1)
					go func() {
						_, _ = theirs.Read(make([]byte, 1))
						open.Add(-1)
					}()
					return ours, nil
				}
				start := time.Now()
				conn, err := g.dialWorker(t.Context(), "w:1")
				if took := time.Since(start); took != c.want || begun.Load() > dialAttempts {
					t.Errorf("%d attempts took %v, want %v", begun.Load(), took, c.want)
				}
				if wants := c.want < 5*time.Second && c.err == nil; wants != (err == nil) || c.err != nil && !errors.Is(err, c.err) {
					t.Errorf("error %v", err)
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				if conn != nil {
					if open.Load() != 1 {
						t.Errorf("%d connections are open", open.Load())
					}
					_ = conn.Close()
				}
				synctest.Wait()
				if open.Load() != 0 {
					t.Errorf("%d connections are left", open.Load())
				}
			})
		})
	}
}
