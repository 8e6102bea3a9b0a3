package gateway_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/gateway"
	"github.com/apiary-dev/apiary/core/openai"
	"github.com/apiary-dev/apiary/core/registry"
)

// TestEndWithTheLastBytes: a worker that dies as it sends is noticed although the end of its connection wakes nobody who
// waits for more bytes.
func TestEndWithTheLastBytes(t *testing.T) {
	t.Parallel()
	h := newHub(t, gateway.Limits{})
	h.paused = true
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say(sseHead + chunked(chunk))
		time.Sleep(time.Millisecond) // the gateway waits now
		c.say(chunked(chunk))
		return false // closes
	})
	h.add(w, 64)
	var wg sync.WaitGroup
	for range 64 { // the two arrive together in some of them
		wg.Go(func() {
			began := time.Now()
			_, body := h.chat(true)
			if took := time.Since(began); took > 10*time.Second || !strings.Contains(body, "worker_lost") || strings.Contains(body, "[DONE]") {
				t.Errorf("after %v: %s", took, body)
			}
		})
	}
	wg.Wait()
}

// Whatever a worker sends, the client sees valid events or JSON, or an error (T34).
func TestGarbageUpstream(t *testing.T) {
	sse := func(parts ...string) string { return sseHead + chunked(parts...) + lastChunk }
	for name, answer := range map[string]string{
		"invalid JSON in an event":   sse(chunk, "data: {\"a\":\n\n"),
		"array in an event":          sse("data: [1]\n\n"),
		"line without end":           sse(chunk, "data: {\"x\":\""+strings.Repeat("y", 5<<20)),
		"binary":                     sse("\x00\x01\xff\xfe\n\n"),
		"binary, no HTTP":            "\x00\x01\xff\xfe\r\n\r\n",
		"wrong type":                 reply(200, "text/plain", okJSON),
		"HTML":                       reply(200, "text/html", "<html></html>"),
		"HTML called a stream":       sse("<html>\n\n</html>\n\n"),
		"JSON for a stream or not":   reply(200, "application/json", okJSON+"x"),
		"two ends":                   sse(chunk, done, done, chunk),
		"CRLF mix":                   sse(strings.ReplaceAll(chunk, "\n", "\r\n"), strings.ReplaceAll(chunk, "\n", "\r")+chunk, "data: [DONE]\r\n\r\n"),
		"no end":                     sse(chunk),
		"head too long":              "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", 1<<20) + "\r\n\r\n",
		"too many fields":            "HTTP/1.1 200 OK\r\n" + strings.Repeat("a: b\r\n", 1000) + "\r\n",
		"chunk longer than said":     sseHead + "5\r\n" + chunk + "\r\n0\r\n\r\n",
		"chunk size too large":       sseHead + "fffffffffffffffff\r\n" + chunk,
		"chunk size not a number":    sseHead + "-1\r\n" + chunk,
		"bare LF in a chunk size":    sseHead + "1\nx\r\n0\r\n\r\n",
		"endless chunk extension":    sseHead + "1;" + strings.Repeat("x", 1<<20),
		"1xx flood":                  strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 1000),
		"switching protocols":        "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
		"length and coding":          "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n0\r\n\r\n",
		"two lengths":                "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\nContent-Type: application/json\r\n\r\n{}x",
		"gzip":                       "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}",
		"folded field":               "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
		"short of its length":        "HTTP/1.1 200 OK\r\nContent-Length: 500\r\nContent-Type: application/json\r\n\r\n" + okJSON,
		"endless trailers":           sseHead + "0\r\n" + strings.Repeat("a: b\r\n", 1000),
		"204":                        "HTTP/1.1 204 No Content\r\n\r\n",
		"two answers to one request": reply(200, "application/json", okJSON) + reply(200, "application/json", okJSON),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, gateway.Limits{})
			h.paused = true
			w := newStub(t, "w1", func(c *stubConn, r request) bool { c.say(answer); return false })
			h.add(w, 4)
			for _, stream := range []bool{false, true} {
				res, body := h.chat(stream)
				switch {
				case res.StatusCode == 200 && !stream:
					if !json.Valid([]byte(body)) {
						t.Errorf("not JSON: %.200q", body)
					}
				case res.StatusCode == 200:
					checkStream(t, body)
				case res.StatusCode != 502:
					t.Errorf("status %d", res.StatusCode)
				default:
					errorOf(t, body)
				}
			}
			if n := len(w.requests()); n != 2 {
				t.Errorf("2 requests were sent %d times", n)
			}
			h.idle("w1")
		})
	}
}

// checkStream wants events with valid data and, at the end, exactly one of [DONE] and an error.
func checkStream(t *testing.T, body string) {
	t.Helper()
	r := openai.NewReader(strings.NewReader(body))
	ends := 0
	for {
		e, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Errorf("%v in %.300q", err, body)
			return
		}
		var v struct{ Error *contract.Error }
		switch {
		case ends > 0:
			t.Errorf("event after the end: %.300q", body)
		case string(e.Data) == openai.Done:
			ends++
		case json.Unmarshal(e.Data, &v) != nil:
			t.Errorf("invalid data %.100q", e.Data)
		case v.Error != nil:
			ends++
		}
	}
	if ends != 1 {
		t.Errorf("%d ends in %.300q", ends, body)
	}
}

// Two requests in the bytes of one never become two at the worker, nor one that differs from what was checked (T69).
func TestSmuggling(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool { c.say(reply(200, "application/json", okJSON)); return true })
	h.add(w, 8)
	body := chat(false)
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
	inner := "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\nEVIL!"
	for name, raw := range map[string]string{
		"length and coding":       head + fmt.Sprintf("Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n", len(body)+len(inner)) + chunked(body) + lastChunk + inner,
		"coding in disguise":      head + "Transfer-Encoding: xchunked\r\nContent-Length: 4\r\n\r\n" + body,
		"coding twice":            head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + chunked(body) + lastChunk,
		"blank before colon":      head + "Transfer-Encoding : chunked\r\n\r\n" + chunked(body) + lastChunk,
		"bare LF chunk size":      head + "Transfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\n", len(body)) + body + "\n0\n\n",
		"two lengths":             head + fmt.Sprintf("Content-Length: %d\r\nContent-Length: 5\r\n\r\n", len(body)) + body,
		"signed length":           head + fmt.Sprintf("Content-Length: +%d\r\n\r\n", len(body)) + body,
		"line break in a header":  head + "X-Request-Id: a\r\n\tContent-Length: 1\r\nContent-Length: 4\r\n\r\n" + body,
		"line break in the model": head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(`{"model":"m\r\nX: y"}`)) + `{"model":"m\r\nX: y"}`,
	} {
		before := len(w.requests())
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(c, raw)
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		_ = c.Close()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := w.requests()[before:]
		if res.StatusCode < 400 && len(got) != 1 || res.StatusCode >= 400 && len(got) != 0 {
			t.Errorf("%s: status %d and %d requests at the worker", name, res.StatusCode, len(got))
		}
		for _, r := range got {
			if r.body != body || r.path != "/v1/chat/completions" || strings.Contains(r.head, "EVIL") {
				t.Errorf("%s: the worker got %q %q", name, r.head, r.body)
			}
		}
	}
	// A second request behind the first is answered as one of its own.
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	one := head + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body)) + body
	_, _ = io.WriteString(c, one+one)
	br := bufio.NewReader(c)
	for range 2 {
		res, err := http.ReadResponse(br, nil)
		if err != nil || res.StatusCode != 200 {
			t.Fatal(res, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
	}
}

// Requests that a worker has certainly not begun go elsewhere, and run exactly once (T25).
func TestRetries(t *testing.T) {
	for name, script := range map[string]func(*stubConn, request) bool{
		"503": func(c *stubConn, r request) bool { c.say(reply(503, "text/plain", "busy")); return true },
		"429": func(c *stubConn, r request) bool {
			c.say(reply(429, "application/json", `{"error":{"message":"full","type":"x","code":"queue_full"}}`))
			return true
		},
		"refused": nil,
	} {
		h := newHub(t, gateway.Limits{})
		bad := newStub(t, "bad", script)
		if script == nil {
			bad.kill()
		}
		var mu sync.Mutex
		ran := map[string]int{}
		good := newStub(t, "good", func(c *stubConn, r request) bool {
			mu.Lock()
			ran[r.body]++
			mu.Unlock()
			c.say(reply(200, "application/json", okJSON))
			return true
		})
		h.add(bad, 200)
		h.add(good, 200)
		var wg sync.WaitGroup
		next := make(chan int)
		for range 3 {
			wg.Go(func() {
				for i := range next {
					body := fmt.Sprintf(`{"model":"m","n":%d}`, i)
					if res, b := h.post("/v1/completions", body); res.StatusCode != 200 {
						t.Errorf("%s: request %d: %d %s", name, i, res.StatusCode, b)
					}
				}
			})
		}
		for i := range 100 {
			next <- i
		}
		close(next)
		wg.Wait()
		for body, n := range ran {
			if n != 1 {
				t.Errorf("%s: %s ran %d times", name, body, n)
			}
		}
		if len(ran) != 100 || script != nil && h.n.retries == 0 {
			t.Errorf("%s: %d of 100 ran, %d retries", name, len(ran), h.n.retries)
		}
		h.idle("bad", "good")
	}
}

// When all workers fail, attempts stay bounded (T32).
func TestRetryStorm(t *testing.T) {
	for _, status := range []int{500, 503} {
		h := newHub(t, gateway.Limits{})
		h.paused = true
		var attempts atomic.Int64
		script := func(c *stubConn, r request) bool {
			attempts.Add(1)
			c.say(reply(status, "text/plain", "no"))
			return true
		}
		for i := range 4 {
			h.add(newStub(t, fmt.Sprint("w", i), script), 100)
		}
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				res, b := h.chat(false)
				if errorOf(t, b); res.StatusCode < 500 {
					t.Errorf("%d %s", res.StatusCode, b)
				}
			})
		}
		wg.Wait()
		limit := int64(203)
		if status == 503 {
			limit = 200 + 2*(40+3) // the requests in the budget may try twice more
		}
		if n := attempts.Load(); n > limit {
			t.Errorf("status %d: %d attempts for 200 requests", status, n)
		}
	}
}

// A client that goes away frees its worker within a second, whatever it was waiting for (T30).
func TestClientDisconnect(t *testing.T) {
	for name, tc := range map[string]struct {
		said   string
		stream bool
		half   bool
	}{
		"before the first byte": {"", true, false},
		"mid-stream":            {sseHead + chunked(chunk), true, false},
		"half-close":            {sseHead + chunked(chunk), true, true},
		"not streaming":         {"", false, false},
		"answer in the middle":  {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{", false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHub(t, gateway.Limits{})
			arrived := make(chan struct{}, 20)
			cancelled := make(chan struct{}, 20)
			w := newStub(t, "w1", func(c *stubConn, r request) bool {
				c.say(tc.said)
				arrived <- struct{}{}
				c.closed()
				cancelled <- struct{}{}
				return false
			})
			h.add(w, 20)
			var conns []*net.TCPConn
			for range 20 {
				c, err := net.Dial("tcp", h.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = c.Close() }()
				_, _ = fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(chat(tc.stream)), chat(tc.stream))
				<-arrived
				conns = append(conns, c.(*net.TCPConn))
			}
			begun := time.Now()
			for _, c := range conns {
				if tc.half {
					_ = c.CloseWrite()
				} else {
					_ = c.Close()
				}
			}
			for range conns {
				<-cancelled
			}
			if d := time.Since(begun); d > time.Second {
				t.Errorf("cancelled after %v", d)
			}
			h.idle("w1")
			if f := h.failed("w1"); len(f) != 0 {
				t.Errorf("the worker was blamed: %v", f)
			}
		})
	}
}

// A stream that hangs ends with an error event, and hears comments meanwhile (T28).
func TestStall(t *testing.T) {
	h := newHub(t, gateway.Limits{Stall: 400 * time.Millisecond, KeepAlive: 100 * time.Millisecond, Withhold: 100 * time.Millisecond})
	stopped := make(chan struct{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say(sseHead + chunked(strings.Repeat(chunk, 10)))
		c.closed()
		close(stopped)
		return false
	})
	h.add(w, 1)
	begun := time.Now()
	_, b := h.chat(true)
	d := time.Since(begun)
	if !strings.Contains(b, `"code":"stall_timeout"`) || strings.Count(b, ": waiting\n\n") < 2 || strings.Count(b, chunk) != 10 || d < 350*time.Millisecond || d > 2*time.Second {
		t.Errorf("after %v: %q", d, b)
	}
	checkStream(t, b)
	<-stopped
	if f := h.failed("w1"); len(f) != 1 || f[0] != registry.FailureStall {
		t.Errorf("reported: %v", f)
	}
	h.idle("w1")
}

// Progress that the worker reports restarts the clocks: a long prefill is not a hang.
func TestProgressRestartsTheClock(t *testing.T) {
	h := newHub(t, gateway.Limits{FirstToken: 300 * time.Millisecond, Stall: 300 * time.Millisecond})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say(sseHead)
		for i := range 8 {
			c.say(chunked(fmt.Sprintf(": progress %d/8\n\n", i)))
			time.Sleep(100 * time.Millisecond)
		}
		c.say(chunked(chunk, done) + lastChunk)
		return true
	})
	h.add(w, 1)
	if _, b := h.chat(true); !strings.HasSuffix(b, chunk+done) || !strings.Contains(b, ": progress 7/8\n\n") {
		t.Errorf("%q", b)
	}
}

// A worker that accepts and sends nothing is given up before its first byte, and another one answers (F4).
func TestFirstTokenTimeout(t *testing.T) {
	for _, stream := range []bool{false, true} {
		h := newHub(t, gateway.Limits{FirstToken: 200 * time.Millisecond, Withhold: 100 * time.Millisecond})
		hung := make(chan struct{}, 10)
		bad := newStub(t, "w1", func(c *stubConn, r request) bool {
			if stream {
				c.say(sseHead)
			}
			c.closed()
			hung <- struct{}{}
			return false
		})
		good := newStub(t, "w2", func(c *stubConn, r request) bool {
			if stream {
				c.say(sseHead + chunked(chunk, done) + lastChunk)
			} else {
				c.say(reply(200, "application/json", okJSON))
			}
			return true
		})
		h.add(bad, 2)
		h.chat(stream) // the first of two equal workers
		h.add(good, 2)
		<-hung
		res, b := h.chat(stream)
		if res.StatusCode != 200 || !strings.Contains(b, "chat.completion") || strings.Contains(b, "error") {
			t.Errorf("stream %v: %d %q", stream, res.StatusCode, b)
		}
		h.idle("w1", "w2")
	}
}

// A request that was running at two deaths is refused (S: poison).
func TestPoison(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	h.paused = true
	run := func() (*http.Response, string) {
		var w *stub
		w = newStub(t, "w1", func(c *stubConn, r request) bool { _ = w.ln.Close(); return false })
		h.seq = 0
		info := h.info(w, 1)
		info.Incarnation = time.Now().UnixNano()
		h.beat(info)
		return h.chat(false)
	}
	if res, b := run(); res.StatusCode != 502 {
		t.Errorf("first death: %d %s", res.StatusCode, b)
	}
	res, b := run()
	if e := errorOf(t, b); res.StatusCode != 422 || e.Code != "poison_request" {
		t.Errorf("second death: %d %s", res.StatusCode, b)
	}
	w := newStub(t, "w2", func(c *stubConn, r request) bool { c.say(reply(200, "application/json", okJSON)); return true })
	h.add(w, 1)
	if res, b := h.chat(false); res.StatusCode != 422 || len(w.requests()) != 0 {
		t.Errorf("third time: %d %s", res.StatusCode, b)
	}
	if res, b := h.post("/v1/completions", `{"model":"m","prompt":"innocent"}`); res.StatusCode != 200 && res.StatusCode != 502 {
		t.Errorf("another request: %d %s", res.StatusCode, b)
	}
}

// One death is one, however many copies of a request it ended; the second worker that they end makes them poison.
func TestPoisonCountsDeathsNotRequests(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	h.paused = true
	const copies = 3
	run := func(incarnation int64) {
		w := newStub(t, "w1", func(c *stubConn, r request) bool {
			c.say(sseHead + chunked(chunk))
			c.closed()
			return false
		})
		h.seq = 0
		info := h.info(w, copies)
		info.Incarnation = incarnation
		h.beat(info)
		var clients sync.WaitGroup
		for range copies {
			clients.Go(func() {
				if res, b := h.chat(true); res.StatusCode != 200 || !strings.Contains(b, "worker lost") {
					t.Errorf("incarnation %d: %d %q", incarnation, res.StatusCode, b)
				}
			})
		}
		eventually(t, "all copies run", func() bool { return len(w.requests()) == copies })
		w.kill()
		clients.Wait()
	}
	run(1)
	run(2) // the same request is still taken
	w := newStub(t, "w2", func(c *stubConn, r request) bool {
		c.say(sseHead + chunked(chunk, done) + lastChunk)
		return true
	})
	h.add(w, 1)
	res, b := h.chat(true)
	if e := errorOf(t, b); res.StatusCode != 422 || e.Code != "poison_request" || len(w.requests()) != 0 {
		t.Errorf("after two deaths: %d %s", res.StatusCode, b)
	}
}

// A client that does not read is cut off, and costs little memory (F8, T42).
func TestSlowReader(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	cut := make(chan struct{}, 10)
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say(sseHead)
		go func() { c.closed(); cut <- struct{}{} }()
		part := chunked(strings.Repeat(chunk, 100))
		for range 2000 {
			if _, err := io.WriteString(c, part); err != nil {
				break
			}
		}
		<-cut
		return false
	})
	h.add(w, 10)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 10 {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(chat(true)), chat(true))
	}
	eventually(t, "all streams run", func() bool { return h.g.InFlight("w1") == 10 })
	eventually(t, "all streams were cut off", func() bool { return h.g.InFlight("w1") == 0 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 20<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}
