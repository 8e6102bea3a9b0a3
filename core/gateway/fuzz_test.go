package gateway_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"testing"

	"github.com/apiary-dev/apiary/core/gateway"
)

// FuzzReply: an answer means the same however it is cut, and what passes means the same to net/http.
func FuzzReply(f *testing.F) {
	f.Add([]byte(reply(200, "application/json", okJSON)), 3)
	f.Add([]byte("HTTP/1.1 100 Continue\r\n\r\n"+sseHead+chunked(chunk, done)+"0\r\nApiary-Usage: {}\r\n\r\n"), 1)
	f.Add([]byte("HTTP/1.0 200 OK\r\nRetry-After: 3\r\n\r\nbody"), 5)
	f.Add([]byte("HTTP/1.1 204 No\r\nConnection: close\r\n\r\n"), 2)
	f.Fuzz(func(t *testing.T, b []byte, size int) {
		if size < 1 || size > len(b) {
			return
		}
		status, body, usage, whole, err := gateway.ParseReply(b, len(b))
		s2, b2, u2, w2, err2 := gateway.ParseReply(b, size)
		if (err == nil) != (err2 == nil) || err == nil && (status != s2 || body != b2 || usage != u2 || whole != w2) {
			t.Fatalf("depends on how it is cut: %d %q %v %v, %d %q %v %v", status, body, whole, err, s2, b2, w2, err2)
		}
		if !whole {
			return
		}
		br := bufio.NewReader(bytes.NewReader(b))
		for {
			res, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Fatalf("%q passed and net/http says %v", b, err)
			}
			if res.StatusCode < 200 {
				continue
			}
			got, err := io.ReadAll(res.Body)
			if res.StatusCode != status || err != nil || string(got) != body {
				t.Fatalf("%q means %d %q (%v) to net/http and %d %q to us", b, res.StatusCode, got, err, status, body)
			}
			return
		}
	})
}
