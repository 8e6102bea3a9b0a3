package sdk

import (
	"context"
	"net"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// A stream says that it advances, and is silent when it hangs, however busy the engine is.
func TestProgressComments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := httptest.NewRecorder()
		st := newStream(w)
		var engine atomic.Uint64
		comments := func() string {
			st.mu.Lock()
			defer st.mu.Unlock()
			s := w.Body.String()
			w.Body.Reset()
			return strings.ReplaceAll(strings.TrimSuffix(s, "\n\n"), "\n\n", "|")
		}
		expect := func(d time.Duration, want, when string) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if got := comments(); got != want {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		st.watch(engine.Load)
		time.Sleep(time.Millisecond)
		expect(3*progressEvery, "", "a queue that stands still")
		engine.Add(1)
		expect(progressEvery, ": progress 0/0", "the queue advances")
		st.prefillTotal.Store(100)
		st.prefilled.Store(10)
		expect(progressEvery, ": progress 10/100", "prefill begins")
		st.prefilled.Store(60)
		engine.Add(1)
		expect(progressEvery, ": progress 60/100", "prefill advances")
		engine.Add(10)
		expect(3*progressEvery, "", "the request hangs while the engine is busy")
		st.tokens.Add(1) // held back: nothing was written
		expect(progressEvery, ": progress 61/100", "decode advances unseen")
		st.tokens.Add(1)
		if err := st.write(func(b []byte) []byte { return append(b, "data: x\n\n"...) }); err != nil {
			t.Fatal(err)
		}
		expect(progressEvery, "data: x", "a token was written")
		if !st.end() {
			t.Error("the stream has not begun")
		}
		st.prefilled.Store(99)
		expect(2*progressEvery, "", "after the end")
		if ct := w.Header().Get("Content-Type"); ct != "text/event-stream" || w.Code != 200 {
			t.Errorf("%d %s", w.Code, ct)
		}
	})
}

// pipeListener is a listener without a network, for bubbles.
type pipeListener struct{ closed chan struct{} }

func (l pipeListener) Accept() (net.Conn, error) { <-l.closed; return nil, net.ErrClosed }
func (l pipeListener) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}
func (l pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func TestOrphanLease(t *testing.T) {
	for _, c := range []struct {
		name   string
		ttl    time.Duration
		queens []string
		answer func(context.Context) (int, contract.HeartbeatReply, error)
		open   time.Duration // a request of this length is open
		want   time.Duration // of life; 0: for ever
	}{
		{"no queen answers", 10 * time.Minute, []string{"http://a"}, refusing, 0, 10 * time.Minute},
		{"a request is open", 10 * time.Minute, []string{"http://a"}, refusing, 30 * time.Minute, 30 * time.Minute},
		{"the queen answers", 10 * time.Minute, []string{"http://a"}, telling(), 0, 0},
		{"no lease", 0, []string{"http://a"}, refusing, 0, 0},
		{"told of no queen", 10 * time.Minute, nil, nil, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := newQueens()
				q.answer["a"] = c.answer
				e := &fakeEngine{}
				s, err := New(Options{Config: Config{WorkerID: "w", Model: "m", Device: "cpu0", OrphanTTL: c.ttl, QueenURLs: c.queens}, Engine: e, Secret: testKey, Beats: q.client()})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				start, lived := time.Now(), make(chan time.Duration, 1)
				go func() {
					if err := s.Run(ctx, pipeListener{make(chan struct{})}); err != nil {
						t.Errorf("Run: %v", err)
					}
					lived <- time.Since(start)
				}()
				synctest.Wait()
				if c.open > 0 {
					_, release, err := s.admit(t.Context(), contract.CapabilityChat, "")
					if err != nil {
						t.Fatal(err)
					}
					time.Sleep(c.open)
					release()
				}
				time.Sleep(2 * time.Hour)
				select {
				case d := <-lived:
					if c.want == 0 || d < c.want || d > c.want+time.Minute {
						t.Errorf("the worker lived %v, want %v", d, c.want)
					}
				default:
					if c.want != 0 {
						t.Error("the worker still lives")
					}
				}
				cancel()
				synctest.Wait()
			})
		})
	}
}

func TestDrain(t *testing.T) {
	for _, c := range []struct {
		name  string
		hurry bool          // a second signal after a second
		takes time.Duration // what the open request takes when it is not ended
		want  time.Duration // until the worker has ended
		cause error         // with which the request was ended
	}{
		{"the request ends in time", false, 30 * time.Second, 30 * time.Second, nil},
		{"the request takes too long", false, time.Hour, 2 * time.Minute, errDraining},
		{"a second signal", true, time.Hour, time.Second + endTimeout, errDraining},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &fakeEngine{}
				s, err := New(Options{Config: Config{WorkerID: "w", Model: "m", Device: "cpu0", Drain: 2 * time.Minute}, Engine: e, Secret: testKey})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- s.Run(ctx, pipeListener{make(chan struct{})}) }()
				synctest.Wait()
				work, release, err := s.admit(t.Context(), contract.CapabilityChat, "")
				if err != nil {
					t.Fatal(err)
				}
				ended := make(chan error, 1)
				go func() {
					select {
					case <-work.Done():
						ended <- context.Cause(work)
					case <-time.After(c.takes):
						ended <- nil
					}
					release()
				}()
				start := time.Now()
				cancel()
				if c.hurry {
					time.Sleep(time.Second)
					close(s.hurry)
				}
				synctest.Wait()
				if st := s.Info().Status; st != contract.StatusStopped {
					t.Errorf("the status is %s while it drains", st)
				}
				if _, _, err := s.admit(t.Context(), contract.CapabilityChat, ""); fault.As(err) == nil || fault.As(err).Code != codeDraining {
					t.Errorf("a new request while it drains gave %v", err)
				}
				if err := <-done; err != nil || time.Since(start) != c.want {
					t.Errorf("ended after %v with %v, want %v", time.Since(start), err, c.want)
				}
				if cause := <-ended; cause != c.cause {
					t.Errorf("the request ended with %v", cause)
				}
				if e.closed.Load() != 1 {
					t.Error("the engine was not closed")
				}
			})
		})
	}
}
