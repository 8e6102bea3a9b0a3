package httpd_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/httpd"
)

// streaming answers with "head", detaches, and calls rest in the place of the handler.
func streaming(t *testing.T, rest func(ctx context.Context, out *httpd.Stream)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "head ")
		if !httpd.Detach(w, r, rest) {
			t.Error("the answer was not detached")
		}
	}
}

func words(_ context.Context, out *httpd.Stream) {
	for i := range 3 {
		_, _ = fmt.Fprintf(out, "a%d ", i)
		_, _ = fmt.Fprintf(out, "b%d ", i)
		_ = out.FlushError()
	}
	_ = out.End()
}

const get = "GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"

// TestDetachedAnswerAndReuse: the answer is whole, and the same connection serves what follows, detached or not, also when the
// client sent it before the end of the first answer.
func TestDetachedAnswerAndReuse(t *testing.T) {
	var ended atomic.Int32
	h := streaming(t, words)
	addr, _ := serve(t, httpd.Options{IdleTimeout: 5 * time.Second, HeaderTimeout: 100 * time.Millisecond, Routes: []httpd.Route{route("GET /plain", httpd.ClassOpen, ok),
		route("GET /stream", httpd.ClassOpen, func(w http.ResponseWriter, r *http.Request) {
			defer func() { httpd.AtEnd(w, func() { ended.Add(1) }) }()
			h(w, r)
		})}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	in := bufio.NewReader(c)
	read := func(want string) {
		t.Helper()
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		if err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("got %q, %v", b, err)
		}
	}
	const whole = "head a0 b0 a1 b1 a2 b2 "
	for i := range 3 {
		_, _ = io.WriteString(c, get)
		read(whole)
		if i == 1 {
			time.Sleep(300 * time.Millisecond) // longer than a header may take, shorter than a connection may idle
		}
	}
	_, _ = io.WriteString(c, "GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n")
	read(`{"id":"req-`)
	_, _ = io.WriteString(c, get+get+"GET /plain HTTP/1.1\r\nHost: localhost\r\n\r\n")
	read(whole)
	read(whole)
	read(`{"id":"req-`)
	if n := ended.Load(); n != 5 {
		t.Errorf("the end of %d of 5 streams was told", n)
	}
	_, _ = io.WriteString(c, strings.Replace(get, "\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1))
	read(whole)
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection that was to be closed: %v", err)
	}
}

func TestDetachedClientGone(t *testing.T) {
	gone := make(chan time.Time, 1)
	addr, _ := serve(t, httpd.Options{Routes: []httpd.Route{route("GET /stream", httpd.ClassOpen, streaming(t, func(ctx context.Context, out *httpd.Stream) {
		<-ctx.Done() // silent: only the watch can see it
		gone <- time.Now()
	}))}})
	for name, leave := range map[string]func(*net.TCPConn) error{
		"close":      (*net.TCPConn).Close,
		"half close": (*net.TCPConn).CloseWrite,
		"reset":      func(c *net.TCPConn) error { return errors.Join(c.SetLinger(0), c.Close()) },
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, get)
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		if err := leave(c.(*net.TCPConn)); err != nil {
			t.Fatal(err)
		}
		select {
		case <-gone:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: the stream does not hear of it", name)
		}
		_ = c.Close()
	}
}

// TestDetachedBroken: without End, after a panic too, the client sees that the answer is not whole; the server lives on.
func TestDetachedBroken(t *testing.T) {
	for name, rest := range map[string]func(context.Context, *httpd.Stream){
		"no end": func(_ context.Context, out *httpd.Stream) { _, _ = io.WriteString(out, "x"); _ = out.FlushError() },
		"panic":  func(context.Context, *httpd.Stream) { panic("oh no") },
		"abort":  func(context.Context, *httpd.Stream) { panic(http.ErrAbortHandler) },
	} {
		addr, _ := serve(t, httpd.Options{Routes: []httpd.Route{route("GET /stream", httpd.ClassOpen, streaming(t, rest))}})
		for range 2 {
			res, err := http.Get("http://" + addr + "/stream")
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s: got %q, %v", name, b, err)
			}
			_ = res.Body.Close()
		}
	}
}

// TestDetachedDrain: a server that is being stopped waits for streams and tells one that takes too long; connections that only
// wait for another request do not hold it up.
func TestDetachedDrain(t *testing.T) {
	for name, c := range map[string]struct {
		bound time.Duration
		rest  func(context.Context, *httpd.Stream)
		want  string
	}{
		"short": {10 * time.Second, func(ctx context.Context, out *httpd.Stream) {
			time.Sleep(300 * time.Millisecond)
			words(ctx, out)
		}, "b2 "},
		"long": {200 * time.Millisecond, func(ctx context.Context, out *httpd.Stream) {
			<-ctx.Done()
			_, _ = fmt.Fprint(out, errors.Is(context.Cause(ctx), httpd.ErrDraining), " ")
			_ = out.End()
		}, "true "},
		"idle": {10 * time.Second, words, "b2 "},
	} {
		t.Run(name, func(t *testing.T) {
			addr, stop := serve(t, httpd.Options{DrainTimeout: c.bound, Routes: []httpd.Route{route("GET /stream", httpd.ClassOpen, streaming(t, c.rest))}})
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			_, _ = io.WriteString(conn, get)
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
			began := time.Now()
			ended := make(chan time.Duration, 1)
			go func() { _ = stop(); ended <- time.Since(began) }()
			b, err := io.ReadAll(res.Body)
			if err != nil || !strings.HasSuffix(string(b), c.want) {
				t.Errorf("got %q, %v", b, err)
			}
			if d := <-ended; d > 5*time.Second {
				t.Errorf("stopping took %v", d)
			}
		})
	}
}
