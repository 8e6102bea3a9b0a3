package httpd_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
)

// Where callers need keys, connections of one address on which none was shown make room for new ones once they are a second old and more
// than 64; those on which one was shown stay, however many and idle. Where they need none nothing is closed.
func TestStrangers(t *testing.T) {
	var closed atomic.Bool
	closed.Store(true)
	addr, _ := serve(t, httpd.Options{Closed: closed.Load, Routes: []httpd.Route{route("GET /a", httpd.ClassInference, ok), route("GET /open", httpd.ClassOpen, ok)},
		HeaderTimeout: time.Minute, Authorize: func(_ httpd.Class, r *http.Request) error {
			if httpd.Bearer(r) == "good" {
				return nil
			}
			return fault.New(fault.Denied, "no", "No.").WithStatus(http.StatusUnauthorized)
		}})
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ask := func(c net.Conn, path, token string) int {
		t.Helper()
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n\r\n", path, token)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	ended := func(c net.Conn) bool {
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		_, err := c.Read(make([]byte, 1))
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	}
	var friends, silent []net.Conn
	for range 80 { // all of them have shown a key
		c := dial()
		if code := ask(c, "/a", "good"); code != 200 {
			t.Fatalf("with a key: %d", code)
		}
		friends = append(friends, c)
	}
	for i := range 64 { // none of these has, whatever they ask
		c := dial()
		switch i {
		case 0:
			if code := ask(c, "/open", ""); code != 200 {
				t.Errorf("what is open: %d", code)
			}
		case 1:
			if code := ask(c, "/a", "bad"); code != 401 {
				t.Errorf("with a bad key: %d", code)
			}
		}
		silent = append(silent, c)
	}
	time.Sleep(1100 * time.Millisecond)
	for range 10 {
		if code := ask(dial(), "/a", "good"); code != 200 {
			t.Errorf("a new connection: %d", code)
		}
	}
	gone := 0
	for _, c := range silent {
		if ended(c) {
			gone++
		}
	}
	// The connection that asks makes room for itself before it shows its key, and counts no more afterwards.
	if gone < 1 || gone > 10 {
		t.Errorf("%d of the silent connections were closed", gone)
	}
	for i, c := range friends {
		if code := ask(c, "/a", "good"); code != 200 {
			t.Fatalf("connection %d with a key: %d", i, code)
		}
	}
	closed.Store(false)
	var more []net.Conn
	for range 100 {
		more = append(more, dial())
	}
	time.Sleep(1100 * time.Millisecond)
	_ = dial()
	time.Sleep(50 * time.Millisecond)
	for _, c := range more[:5] {
		if ended(c) {
			t.Error("a connection was closed although callers need no keys")
		}
	}
}
