package cli

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
)

// serveRaw answers connections with f, which is told how many came before.
func serveRaw(t *testing.T, f func(n int64, c *net.TCPConn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				f(n.Add(1)-1, c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { _ = ln.Close(); wg.Wait() })
	return "http://" + ln.Addr().String()
}

// An agent that was killed a moment ago may still have its connections broken off: that is nobody, and no other program.
func TestLookAtADyingAgent(t *testing.T) {
	request := func(c *net.TCPConn) { _, _ = io.ReadAtLeast(c, make([]byte, 4096), 16) }
	reset := func(_ int64, c *net.TCPConn) { request(c); _ = c.SetLinger(0) }
	healthy := func(c *net.TCPConn) {
		request(c)
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	}
	for name, c := range map[string]struct {
		serve func(int64, *net.TCPConn)
		want  state
	}{
		"resets":          {reset, nobody},
		"resets at once":  {func(_ int64, c *net.TCPConn) { _ = c.SetLinger(0) }, nobody},
		"ends":            {func(_ int64, c *net.TCPConn) { request(c) }, nobody},
		"speaks no HTTP":  {func(_ int64, c *net.TCPConn) { request(c); _, _ = io.WriteString(c, "220 mail.example ESMTP\r\n") }, stranger},
		"breaks off HTTP": {func(_ int64, c *net.TCPConn) { request(c); _, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nConte") }, stranger},
		"is replaced": {func(n int64, c *net.TCPConn) {
			if n < 2 {
				reset(n, c)
				return
			}
			healthy(c)
		}, ready},
	} {
		if got := (target{base: serveRaw(t, c.serve)}).look(t.Context()); got != c.want {
			t.Errorf("%s: %v instead of %v", name, got, c.want)
		}
	}
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	if got := (target{base: other.URL}).look(t.Context()); got != stranger {
		t.Errorf("another HTTP server: %v", got)
	}
}
