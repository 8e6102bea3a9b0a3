package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

// The bounds of heartbeats (reliability.md, parameters).
const (
	beatInterval = 5 * time.Second
	beatMinGap   = 250 * time.Millisecond
	beatTimeout  = 3 * time.Second
	beatJitter   = 0.1
	maxQueens    = 16               // queens beaten to; more are not learnt
	queenForget  = 10 * time.Minute // a learnt queen that never answers is dropped after this
	stopTimeout  = 2 * time.Second  // bound on the last beats, all queens together
	maxReply     = 16 << 10
)

// beater tells every known queen how the worker is: at its interval and at once after kick. Each queen has a goroutine of its
// own, so that one that hangs delays no other.
type beater struct {
	client *http.Client
	secret secret.Secret
	info   func() contract.WorkerInfo
	log    *slog.Logger

	wg sync.WaitGroup

	// mu guards the fields below.
	mu      sync.Mutex
	queens  map[string]*queen
	seq     uint64
	contact time.Time // of the last answer of any queen
	closed  bool
}

// queen is one receiver of beats.
type queen struct {
	url   string
	fixed bool          // given as an argument: never forgotten
	kick  chan struct{} // capacity 1
}

// newBeater makes a beater. It starts nothing.
func newBeater(client *http.Client, s secret.Secret, info func() contract.WorkerInfo, log *slog.Logger) *beater {
	return &beater{client: client, secret: s, info: info, log: log, queens: map[string]*queen{}}
}

// beatClient returns an HTTP client with every wait bounded. It follows no redirect and uses no proxy, because each beat
// carries the worker's secret.
func beatClient() *http.Client {
	return &http.Client{
		Timeout:       beatTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            (&net.Dialer{Timeout: beatTimeout}).DialContext,
			TLSHandshakeTimeout:    beatTimeout,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        2 * beatInterval,
			MaxResponseHeaderBytes: maxReply,
		},
	}
}

// queenURL checks and normalises a queen's base URL.
func queenURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("%q is not the base URL of a queen; write for example http://127.0.0.1:7833", s)
	}
	return u.Scheme + "://" + strings.ToLower(u.Host) + strings.TrimRight(u.Path, "/"), nil
}

// start begins to beat to the queens of urls, which are never forgotten. The beats end with ctx.
func (b *beater) start(ctx context.Context, urls []string) {
	b.mu.Lock()
	b.contact = time.Now()
	b.mu.Unlock()
	for _, u := range urls {
		b.add(ctx, u, true)
	}
}

func (b *beater) add(ctx context.Context, raw string, fixed bool) {
	u, err := queenURL(raw)
	if err != nil {
		b.log.Warn("a queen told of a URL that cannot be one", "url", fmt.Sprintf("%.200q", raw))
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.queens[u]; ok || b.closed || ctx.Err() != nil || (!fixed && len(b.queens) >= maxQueens) {
		return
	}
	q := &queen{url: u, fixed: fixed, kick: make(chan struct{}, 1)}
	b.queens[u] = q
	b.wg.Go(func() { b.loop(ctx, q) })
}

// kick makes every queen hear at once, at most once in beatMinGap each.
func (b *beater) kick() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, q := range b.queens {
		select {
		case q.kick <- struct{}{}:
		default:
		}
	}
}

// lastContact returns when a queen last answered, or when the beats started.
func (b *beater) lastContact() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.contact
}

func (b *beater) loop(ctx context.Context, q *queen) {
	interval, heard, reachable := beatInterval, time.Now(), true
	timer := time.NewTimer(0)
	defer timer.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-q.kick:
			if wait := beatMinGap - time.Since(last); wait > 0 && !last.IsZero() {
				timer.Reset(wait)
				select {
				case <-ctx.Done():
					return
				case <-timer.C:
				}
			}
		}
		last = time.Now()
		reply, err := b.send(ctx, q.url)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if reachable {
				b.log.Warn("a queen does not take beats", "queen", q.url, "cause", err.Error())
			}
			reachable = false
			if !q.fixed && time.Since(heard) > queenForget {
				b.mu.Lock()
				delete(b.queens, q.url)
				b.mu.Unlock()
				return
			}
		default:
			if !reachable {
				b.log.Info("a queen takes beats again", "queen", q.url)
			}
			reachable, heard = true, time.Now()
			b.mu.Lock()
			b.contact = heard
			b.mu.Unlock()
			for _, u := range reply.Queens[:min(len(reply.Queens), maxQueens)] {
				b.add(ctx, u, false)
			}
			if reply.IntervalMS > 0 {
				interval = min(max(time.Duration(reply.IntervalMS)*time.Millisecond, time.Second), 30*time.Second)
			}
		}
		next := time.Duration(float64(interval) * (1 - beatJitter + 2*beatJitter*rand.Float64()))
		timer.Reset(max(next-time.Since(last), 0))
	}
}

// send posts one beat.
func (b *beater) send(ctx context.Context, base string) (contract.HeartbeatReply, error) {
	var reply contract.HeartbeatReply
	info := b.info()
	b.mu.Lock()
	b.seq++
	seq := b.seq
	b.mu.Unlock()
	body, err := json.Marshal(contract.Heartbeat{Worker: info, Timestamp: time.Now().UTC(), Sequence: seq})
	if err != nil {
		return reply, fmt.Errorf("encode a beat: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/heartbeat", bytes.NewReader(body))
	if err != nil {
		return reply, fmt.Errorf("make a beat: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+b.secret.Reveal())
	res, err := b.client.Do(req)
	if err != nil {
		return reply, fmt.Errorf("send a beat: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxReply+1))
	switch {
	case err != nil:
		return reply, fmt.Errorf("read the answer to a beat: %w", err)
	case len(data) > maxReply:
		return reply, errors.New("the answer to a beat is too long")
	case res.StatusCode != http.StatusOK:
		return reply, fmt.Errorf("the queen answered a beat with HTTP status %d", res.StatusCode)
	}
	if err := json.Unmarshal(data, &reply); err != nil {
		return reply, fmt.Errorf("decode the answer to a beat: %w", err)
	}
	return reply, nil
}

// stop waits for the loops, whose context the caller has cancelled, and then says how the worker is once more to every queen,
// all at once and within stopTimeout.
func (b *beater) stop() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	b.mu.Lock()
	urls := make([]string, 0, len(b.queens))
	for u := range b.queens {
		urls = append(urls, u)
	}
	b.mu.Unlock()
	var wg sync.WaitGroup
	for _, u := range urls {
		wg.Go(func() {
			if _, err := b.send(ctx, u); err != nil {
				b.log.Info("a queen did not hear that the worker stopped", "queen", u, "cause", err.Error())
			}
		})
	}
	wg.Wait()
}
