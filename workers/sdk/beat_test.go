package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

const testKey = secret.Secret("0123456789abcdef0123456789abcdef")

// queens is a network of queens: what each answers, and when each heard what.
type queens struct {
	mu     sync.Mutex
	answer map[string]func(ctx context.Context) (int, contract.HeartbeatReply, error) // by host
	heard  map[string][]heard
}

type heard struct {
	at   time.Time
	beat contract.Heartbeat
}

func newQueens() *queens {
	return &queens{answer: map[string]func(context.Context) (int, contract.HeartbeatReply, error){}, heard: map[string][]heard{}}
}

func (q *queens) RoundTrip(r *http.Request) (*http.Response, error) {
	var b contract.Heartbeat
	if err := json.NewDecoder(r.Body).Decode(&b); err != nil {
		return nil, err
	}
	if r.Header.Get("Authorization") != "Bearer "+testKey.Reveal() || r.URL.Path != "/v1/heartbeat" {
		return nil, errors.New("not a beat")
	}
	q.mu.Lock()
	q.heard[r.URL.Host] = append(q.heard[r.URL.Host], heard{time.Now(), b})
	answer := q.answer[r.URL.Host]
	q.mu.Unlock()
	status, reply := http.StatusOK, contract.HeartbeatReply{}
	if answer != nil {
		var err error
		if status, reply, err = answer(r.Context()); err != nil {
			return nil, err
		}
	}
	body, _ := json.Marshal(reply)
	return &http.Response{StatusCode: status, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
}

func (q *queens) of(host string) []heard {
	q.mu.Lock()
	defer q.mu.Unlock()
	return append([]heard(nil), q.heard[host]...)
}

func (q *queens) client() *http.Client { return &http.Client{Transport: q, Timeout: beatTimeout} }

func refusing(context.Context) (int, contract.HeartbeatReply, error) {
	return 0, contract.HeartbeatReply{}, errors.New("connection refused")
}

func hanging(ctx context.Context) (int, contract.HeartbeatReply, error) {
	<-ctx.Done()
	return 0, contract.HeartbeatReply{}, ctx.Err()
}

func telling(urls ...string) func(context.Context) (int, contract.HeartbeatReply, error) {
	return func(context.Context) (int, contract.HeartbeatReply, error) {
		return http.StatusOK, contract.HeartbeatReply{Queens: urls, IntervalMS: 5000}, nil
	}
}

// withBeater runs f in a bubble with a beater that beats to urls.
func withBeater(t *testing.T, q *queens, urls []string, f func(*beater)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := newBeater(q.client(), testKey, func() contract.WorkerInfo { return contract.WorkerInfo{ID: "w"} }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		b.start(ctx, urls)
		f(b)
		cancel()
		b.stop()
	})
}

func TestBeatsKeepTheirInterval(t *testing.T) {
	q := newQueens()
	withBeater(t, q, []string{"http://a"}, func(*beater) { time.Sleep(10 * time.Minute) })
	h := q.of("a")
	if len(h) < 110 || len(h) > 135 {
		t.Errorf("%d beats in 10 min", len(h))
	}
	differ := false
	for i := 1; i < len(h)-1; i++ { // the last one says goodbye
		gap := h[i].at.Sub(h[i-1].at)
		if gap < 4500*time.Millisecond || gap > 5500*time.Millisecond {
			t.Errorf("beat %d comes %v after the one before", i, gap)
		}
		if h[i].beat.Sequence <= h[i-1].beat.Sequence {
			t.Errorf("beat %d has the sequence %d after %d", i, h[i].beat.Sequence, h[i-1].beat.Sequence)
		}
		differ = differ || gap.Round(time.Millisecond) != 5*time.Second
	}
	if !differ {
		t.Error("there is no jitter")
	}
}

func TestBeatAtOnceOnAChangeButNotTooOften(t *testing.T) {
	q := newQueens()
	withBeater(t, q, []string{"http://a"}, func(b *beater) {
		time.Sleep(time.Second)
		start := time.Now()
		for range 100 { // a second of restless change
			b.kick()
			time.Sleep(10 * time.Millisecond)
		}
		h := q.of("a")
		if at := h[1].at.Sub(start); at != 0 {
			t.Errorf("the change was told after %v", at)
		}
		for i := 2; i < len(h); i++ {
			if gap := h[i].at.Sub(h[i-1].at); gap < beatMinGap {
				t.Errorf("two beats are %v apart", gap)
			}
		}
		if len(h) < 5 || len(h) > 6 {
			t.Errorf("%d beats in 2 s", len(h))
		}
		// The last change is told, too.
		time.Sleep(2 * beatMinGap)
		n := len(q.of("a"))
		b.kick()
		time.Sleep(2 * beatMinGap)
		if len(q.of("a")) != n+1 {
			t.Error("the last change was not told")
		}
	})
}

func TestAHangingQueenDelaysNoOther(t *testing.T) {
	q := newQueens()
	q.answer["slow"] = hanging
	withBeater(t, q, []string{"http://slow", "http://a"}, func(b *beater) {
		time.Sleep(time.Minute)
		if n := len(q.of("a")); n < 11 {
			t.Errorf("%d beats in a minute to the queen that answers", n)
		}
		if n := len(q.of("slow")); n < 10 {
			t.Errorf("%d beats in a minute to the queen that hangs", n)
		}
		start := time.Now()
		b.kick()
		time.Sleep(300 * time.Millisecond)
		if last := q.of("a"); last[len(last)-1].at.Sub(start) > beatMinGap {
			t.Error("a change was told late")
		}
	})
}

func TestQueensAreLearntAndForgotten(t *testing.T) {
	q := newQueens()
	q.answer["a"] = telling("http://a/", "HTTP://B:80", "http://b:80", "ftp://c", "http://user:pw@d", "", "http://e?x")
	withBeater(t, q, []string{"http://a"}, func(b *beater) {
		time.Sleep(time.Minute)
		b.mu.Lock()
		known := len(b.queens)
		b.mu.Unlock()
		if n := len(q.of("b:80")); known != 2 || n < 10 {
			t.Errorf("%d queens are known, the learnt one heard %d beats", known, n)
		}
		q.mu.Lock()
		q.answer["a"], q.answer["b:80"] = telling(), refusing
		q.mu.Unlock()
		time.Sleep(queenForget + time.Minute)
		n := len(q.of("b:80"))
		time.Sleep(time.Minute)
		if len(q.of("b:80")) != n {
			t.Error("a learnt queen that is gone is not forgotten")
		}
		q.mu.Lock()
		q.answer["a"] = refusing
		q.mu.Unlock()
		time.Sleep(3 * queenForget)
		n = len(q.of("a"))
		time.Sleep(time.Minute)
		if len(q.of("a")) < n+10 {
			t.Error("a queen of the arguments was forgotten")
		}
	})
}

func TestLearntQueensAreBounded(t *testing.T) {
	q := newQueens()
	var many []string
	for i := range 100 {
		many = append(many, "http://q"+string(rune('a'+i%26))+string(rune('a'+i/26)))
	}
	q.answer["a"] = telling(many...)
	withBeater(t, q, []string{"http://a"}, func(b *beater) {
		time.Sleep(time.Minute)
		b.mu.Lock()
		defer b.mu.Unlock()
		if len(b.queens) != maxQueens {
			t.Errorf("%d queens are known", len(b.queens))
		}
	})
}

func TestAnswersThatAreNoContact(t *testing.T) {
	for name, answer := range map[string]func(context.Context) (int, contract.HeartbeatReply, error){
		"refused": refusing, "hanging": hanging,
		"unauthorized": func(context.Context) (int, contract.HeartbeatReply, error) {
			return http.StatusUnauthorized, contract.HeartbeatReply{}, nil
		},
		"redirected": func(context.Context) (int, contract.HeartbeatReply, error) {
			return http.StatusTemporaryRedirect, contract.HeartbeatReply{}, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := newQueens()
			q.answer["a"] = answer
			withBeater(t, q, []string{"http://a"}, func(b *beater) {
				start := b.lastContact()
				time.Sleep(time.Minute)
				if b.lastContact() != start {
					t.Error("counted as contact")
				}
			})
		})
	}
	q := newQueens()
	withBeater(t, q, []string{"http://a"}, func(b *beater) {
		time.Sleep(time.Minute)
		if time.Since(b.lastContact()) > 6*time.Second {
			t.Error("an answer did not count as contact")
		}
	})
}

func TestGoodbyeIsBounded(t *testing.T) {
	q := newQueens()
	q.answer["slow"] = hanging
	synctest.Test(t, func(t *testing.T) {
		b := newBeater(q.client(), testKey, func() contract.WorkerInfo { return contract.WorkerInfo{ID: "w", Status: contract.StatusStopped} }, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		b.start(ctx, []string{"http://slow", "http://a"})
		time.Sleep(time.Second)
		cancel()
		start := time.Now()
		b.stop()
		if took := time.Since(start); took > stopTimeout {
			t.Errorf("the goodbye took %v", took)
		}
		if h := q.of("a"); h[len(h)-1].beat.Worker.Status != contract.StatusStopped {
			t.Error("no goodbye")
		}
		b.add(context.Background(), "http://late", false)
		synctest.Wait()
		if len(q.of("late")) != 0 {
			t.Error("a queen was learnt after the end")
		}
	})
}

func TestBeatClientKeepsTheSecretToItself(t *testing.T) {
	c := beatClient()
	if c.Timeout == 0 || c.Transport.(*http.Transport).Proxy != nil {
		t.Error("a beat can wait for ever or go through a proxy")
	}
	if c.CheckRedirect(nil, nil) != http.ErrUseLastResponse {
		t.Error("a beat follows redirects")
	}
}
