package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

// crowd is the load: workers that beat and do nothing else.
type crowd struct {
	addr    string
	members []*member
	beats   atomic.Int64

	mu     sync.Mutex // guards the fields below
	failed error      // the first failure
}

// member is one worker.
type member struct {
	info contract.WorkerInfo
	head string // of its requests, up to the length of the body
	seq  uint64
}

func newCrowd(q *queen, n int) (*crowd, error) {
	c := &crowd{addr: q.addr}
	now := time.Now()
	for i := range n {
		id := fmt.Sprintf("bench-%06d", i)
		m := &member{info: contract.WorkerInfo{
			ID: id, ModelID: fmt.Sprintf("echo:model-%d", i%100), Device: "cpu0", Port: 1024 + i%60_000, Status: contract.StatusReady, Implementation: "echo", Version: "1",
			ContractVersion: contract.Version, Incarnation: now.UnixNano(), HiveID: fmt.Sprintf("hive-%04d", i/10), Address: "127.0.0.1", PID: 1000 + i,
			BootID: "00000000-0000-0000-0000-000000000000", StartTicks: uint64(1000 + i), StartedAt: now, SpawnKey: fmt.Sprintf("d%04d#%d", i/10, i%10), Generation: 1,
			APIs:         []string{contract.APIInfer, contract.APIChat, contract.APICompletions, contract.APIEmbeddings},
			Capabilities: []string{contract.CapabilityChat, contract.CapabilityCompletion, contract.CapabilityEmbedding}, ContextLength: 8192, Slots: 4, MemoryBytes: contract.GiB, LoadProgress: 1,
		}}
		// As Go's client writes it, which workers/sdk uses.
		m.head = fmt.Sprintf("POST /v1/heartbeat HTTP/1.1\r\nHost: %s\r\nUser-Agent: Go-http-client/1.1\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\nContent-Length: ",
			q.addr, secret.ForWorker(q.cluster, id).Reveal())
		c.members = append(c.members, m)
	}
	return c, nil
}

// start begins the beats, over so many connections, which end with the function that is returned; it waits for them.
func (c *crowd) start(ctx context.Context, connections int) (*atomic.Int64, func()) {
	ctx, cancel := context.WithCancel(ctx)
	lines := make([]*line, min(connections, len(c.members)))
	for i := range lines {
		lines[i] = &line{addr: c.addr}
	}
	var wg sync.WaitGroup
	for i, m := range c.members {
		// Evenly over one interval, as workers are that were not started together.
		first := interval * time.Duration(i) / time.Duration(len(c.members))
		wg.Go(func() {
			if err := c.live(ctx, m, lines[i%len(lines)], first); err != nil && ctx.Err() == nil {
				c.mu.Lock()
				defer c.mu.Unlock()
				if c.failed == nil {
					c.failed = fmt.Errorf("worker %s: %w", m.info.ID, err)
				}
			}
		})
	}
	return &c.beats, func() {
		cancel()
		wg.Wait()
		for _, l := range lines {
			l.close()
		}
	}
}

func (c *crowd) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failed
}

// live beats until ctx ends.
func (c *crowd) live(ctx context.Context, m *member, l *line, wait time.Duration) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		begun := time.Now()
		if err := l.beat(ctx, m); err != nil {
			return err
		}
		c.beats.Add(1)
		timer.Reset(time.Duration(float64(interval)*(0.9+0.2*rand.Float64())) - time.Since(begun))
	}
}

// line is a connection that stays open.
type line struct {
	addr string

	mu   sync.Mutex // guards the fields below; held while a beat is on its way
	conn net.Conn
	in   *bufio.Reader
}

func (l *line) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		_ = l.conn.Close()
	}
}

// beat sends one beat of m and reads the answer.
func (l *line) beat(ctx context.Context, m *member) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == nil {
		conn, err := (&net.Dialer{Timeout: interval}).DialContext(ctx, "tcp", l.addr)
		if err != nil {
			return err
		}
		l.conn, l.in = conn, bufio.NewReaderSize(conn, 1024)
	}
	m.seq++
	m.info.Progress++
	body, err := json.Marshal(contract.Heartbeat{Worker: m.info, Timestamp: time.Now().UTC(), Sequence: m.seq})
	if err != nil {
		return err
	}
	_ = l.conn.SetDeadline(time.Now().Add(interval))
	if _, err := l.conn.Write(slices.Concat([]byte(m.head), fmt.Appendf(nil, "%d\r\n\r\n", len(body)), body)); err != nil {
		return err
	}
	res, err := http.ReadResponse(l.in, nil)
	if err != nil {
		return err
	}
	answer, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("a beat is answered with %s: %s", res.Status, answer)
	case res.Close:
		return errors.New("the queen closes a connection that could stay open")
	}
	return nil
}
