package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// message is a whole request, head and body.
func (s *setup) message(t *target, worker string, stream bool, promptBytes, maxTokens int) []byte {
	body := fmt.Sprintf(`{"model":%q,"stream":%v,"max_tokens":%d,"messages":[{"role":"user","content":%q}]}`,
		model(worker), stream, maxTokens, strings.Repeat("hello world ", promptBytes/12))
	return fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nContent-Type: application/json\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n%s",
		t.addr[worker], cmp.Or(t.token, s.tokens[worker]), len(body), body)
}

// connection is one keep-alive connection.
type connection struct {
	c net.Conn
	r *bufio.Reader
}

func dial(addr string) (*connection, error) {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return nil, err
	}
	return &connection{c, bufio.NewReaderSize(c, 16<<10)}, nil
}

// ask sends a request and reads the whole answer, which must be a success.
func (c *connection) ask(msg []byte) error {
	_ = c.c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.c.Write(msg); err != nil {
		return err
	}
	res, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 300))
		return fmt.Errorf("%s: %s", res.Status, b)
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// warm asks until a target answers, for at most 15 s.
func (s *setup) warm(ctx context.Context, t *target, worker string) error {
	msg := s.message(t, worker, false, 1<<10, 2)
	var err error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		var c *connection
		if c, err = dial(t.addr[worker]); err != nil {
			continue
		}
		err = c.ask(msg)
		_ = c.c.Close()
		if err == nil {
			return nil
		}
	}
	return errors.Join(ctx.Err(), err)
}

// requests keeps n connections busy for d and returns the latencies of all requests, sorted.
func (s *setup) requests(t *target, n, promptBytes int, d time.Duration) ([]time.Duration, error) {
	msg := s.message(t, fast, false, promptBytes, 16)
	lat := make([][]time.Duration, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	end := time.Now().Add(d)
	for i := range n {
		wg.Go(func() {
			c, err := dial(t.addr[fast])
			if err != nil {
				errs[i] = err
				return
			}
			defer func() { _ = c.c.Close() }()
			for now := time.Now(); now.Before(end); {
				if errs[i] = c.ask(msg); errs[i] != nil {
					return
				}
				after := time.Now()
				lat[i] = append(lat[i], after.Sub(now))
				now = after
			}
		})
	}
	wg.Wait()
	all := slices.Concat(lat...)
	slices.Sort(all)
	return all, errors.Join(errs...)
}

// streams is a number of open streams of paced tokens.
type streams struct {
	conns  []net.Conn
	tokens atomic.Int64
	wg     sync.WaitGroup
	broken atomic.Int64
}

// open opens n streams, evenly spread over one interval between tokens, and waits until each has had its first token.
func (s *setup) open(t *target, n int) (*streams, error) {
	msg := s.message(t, paced, true, 1<<10, 900000)
	st := &streams{}
	first := make(chan error, n)
	for range n {
		c, err := net.DialTimeout("tcp", t.addr[paced], 5*time.Second)
		if err != nil {
			st.close()
			return nil, err
		}
		st.conns = append(st.conns, c)
		if _, err := c.Write(msg); err != nil {
			st.close()
			return nil, err
		}
		st.wg.Go(func() { first <- st.read(c, first) })
		time.Sleep(time.Second / tokensPerSecond / time.Duration(n))
	}
	for range n {
		select {
		case err := <-first:
			if err != nil {
				st.close()
				return nil, err
			}
		case <-time.After(20 * time.Second):
			st.close()
			return nil, errors.New("not every stream had a token within 20 s")
		}
	}
	return st, nil
}

// read counts tokens until the connection is closed. It sends nil to first at the first one.
func (st *streams) read(c net.Conn, first chan<- error) error {
	buf := make([]byte, 8<<10)
	began := false
	for {
		n, err := c.Read(buf)
		if err != nil {
			if !began {
				return err
			}
			if !errors.Is(err, net.ErrClosed) {
				st.broken.Add(1)
			}
			return nil
		}
		if k := bytes.Count(buf[:n], []byte(`"delta"`)); k > 0 {
			st.tokens.Add(int64(k))
			if !began {
				began = true
				first <- nil
			}
		} else if !began && bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 ")) && !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 200")) {
			return fmt.Errorf("%.300s", buf[:n])
		}
	}
}

func (st *streams) close() {
	for _, c := range st.conns {
		_ = c.Close()
	}
	st.wg.Wait()
}
