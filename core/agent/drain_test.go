package agent

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/httpd"
)

// TestDrainLingers: who has a connection open is told to close it before the ports are; without such clients nothing is waited for.
func TestDrainLingers(t *testing.T) {
	for name, c := range map[string]struct {
		before time.Duration // from the last request to the stop; 0: there was none
		want   time.Duration
	}{"nobody asked": {0, 0}, "a request just now": {time.Second, linger}, "the last one long ago": {2 * lately, 0}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := newDrain()
				h := d.counted(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) }), httpd.WriteError)
				ask := func() *http.Response {
					w := httptest.NewRecorder()
					h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/v1/chat/completions", nil))
					return w.Result()
				}
				if c.before > 0 {
					if r := ask(); r.StatusCode != http.StatusOK || r.Header.Get("Connection") != "" {
						t.Errorf("%v", r)
					}
				}
				time.Sleep(c.before)
				ctx, cancel := context.WithCancel(t.Context())
				begin := time.Now()
				done := make(chan time.Duration, 1)
				go func() {
					_ = d.run(ctx, time.Minute)
					done <- time.Since(begin)
				}()
				cancel()
				synctest.Wait()
				if r := ask(); r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Connection") != "close" {
					t.Errorf("while it stops: %v", r)
				}
				if took := <-done; took != c.want {
					t.Errorf("it took %v, not %v", took, c.want)
				}
			})
		})
	}
}
