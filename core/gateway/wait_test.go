package gateway_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/gateway"
	"github.com/apiary-dev/apiary/core/registry"
)

// One worker with one slot: one request runs, 64 wait in order, the rest is refused at once (T35).
func TestQueue(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	step := make(chan struct{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		<-step
		c.say(reply(200, "application/json", okJSON))
		return true
	})
	h.add(w, 1)
	type result struct {
		res  *http.Response
		body string
	}
	results := make([]chan result, 70)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range results {
		results[i] = make(chan result, 1)
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		context.AfterFunc(ctx, func() { _ = c.Close() })
		body := fmt.Sprintf(`{"model":"m","i":%d}`, i)
		_, _ = fmt.Fprintf(c, "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		go func() {
			res, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				results[i] <- result{}
				return
			}
			b := make([]byte, res.ContentLength)
			_, _ = res.Body.Read(b)
			results[i] <- result{res, string(b)}
		}()
		// Each is in its place before the next one comes.
		eventually(t, "the request has its place", func() bool {
			return gateway.Waiting(h.g) == min(i, 64) && (i != 0 || len(w.requests()) == 1)
		})
		if i >= 65 {
			r := <-results[i]
			if e := errorOf(t, r.body); r.res.StatusCode != 429 || e.Code != "queue_full" || atoi(r.res.Header.Get("Retry-After")) < 1 {
				t.Errorf("request %d: %d %v %s", i, r.res.StatusCode, r.res.Header, r.body)
			}
		}
	}
	for i := range 65 {
		step <- struct{}{}
		if r := <-results[i]; r.res == nil || r.res.StatusCode != 200 {
			t.Fatalf("request %d: %+v", i, r)
		}
		if i < 64 {
			eventually(t, "the next one runs", func() bool { return len(w.requests()) == i+2 })
			if got := w.requests()[i+1].body; got != fmt.Sprintf(`{"model":"m","i":%d}`, i+1) {
				t.Fatalf("number %d to run was %s", i+1, got)
			}
		}
	}
	h.idle("w1")
}

func atoi(s string) int { n, _ := strconv.Atoi(s); return n }

// A waiter that leaves frees its place, and its slot goes to the next one.
func TestWaiterLeaves(t *testing.T) {
	h := newHub(t, gateway.Limits{QueuePerModel: 2})
	step := make(chan struct{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		<-step
		c.say(reply(200, "application/json", okJSON))
		return true
	})
	h.add(w, 1)
	var wg sync.WaitGroup
	send := func(ctx context.Context, want int) {
		wg.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, "POST", "http://"+h.addr+"/v1/chat/completions", strings.NewReader(chat(false)))
			req.Header.Set("Content-Type", "application/json")
			res, err := http.DefaultClient.Do(req)
			if err == nil {
				_ = res.Body.Close()
			}
			if want != 0 && (err != nil || res.StatusCode != want) {
				t.Errorf("want %d: %v %v", want, res, err)
			}
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	send(context.Background(), 200)
	eventually(t, "it runs", func() bool { return len(w.requests()) == 1 })
	send(ctx, 0)
	send(ctx, 0)
	eventually(t, "two wait", func() bool { return gateway.Waiting(h.g) == 2 })
	cancel()
	eventually(t, "both left", func() bool { return gateway.Waiting(h.g) == 0 })
	send(context.Background(), 200)
	eventually(t, "the next one waits", func() bool { return gateway.Waiting(h.g) == 1 })
	step <- struct{}{}
	step <- struct{}{}
	wg.Wait()
	h.idle("w1")
}

// Requests for a model that is being loaded wait a bounded time and then say how far it is; once it is there they run (T37).
func TestColdStart(t *testing.T) {
	h := newHub(t, gateway.Limits{LoadWait: 300 * time.Millisecond})
	h.setDemand(registry.Demand{State: registry.DemandStarting, Progress: 0.4, JobID: "n-1", RetryAfter: 7 * time.Second})
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() {
			begun := time.Now()
			res, b := h.chat(false)
			if e := errorOf(t, b); res.StatusCode != 503 || e.Code != "model_loading" || res.Header.Get("Retry-After") != "7" ||
				!strings.Contains(e.Message, "40 %") || !strings.Contains(e.Message, "n-1") || time.Since(begun) > 2*time.Second {
				t.Errorf("%d %v %s", res.StatusCode, res.Header, b)
			}
		})
	}
	wg.Wait()
	w := newStub(t, "w1", func(c *stubConn, r request) bool { c.say(reply(200, "application/json", okJSON)); return true })
	for range 5 {
		wg.Go(func() {
			if res, b := h.chat(false); res.StatusCode != 200 {
				t.Errorf("%d %s", res.StatusCode, b)
			}
		})
	}
	eventually(t, "all wait", func() bool { return gateway.Waiting(h.g) == 5 })
	h.add(w, 2)
	wg.Wait()
}

// What makes waiting pointless is said at once, also to those who wait already (F3).
func TestDemandFails(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	h.setDemand(registry.Demand{State: registry.DemandFetching, JobID: "n-2", RetryAfter: time.Second})
	if res, b := h.chat(true); res.StatusCode != 503 || errorOf(t, b).Code != "model_not_fetched" || !strings.Contains(b, "n-2") {
		t.Errorf("%d %s", res.StatusCode, b)
	}
	h.setDemand(registry.Demand{State: registry.DemandStarting})
	got := make(chan string, 2)
	for _, stream := range []bool{false, true} {
		go func() {
			res, b := h.chat(stream)
			got <- fmt.Sprint(res.StatusCode, errorOf(t, b).Code, res.Header.Get("Retry-After"))
		}()
	}
	eventually(t, "both wait", func() bool { return gateway.Waiting(h.g) == 2 })
	h.setDemand(registry.Demand{State: registry.DemandFailed, RetryAfter: 90 * time.Second,
		Err: fault.New(fault.Unavailable, "start_failed", "The worker ended with exit code 3 while it loaded the model.")})
	for range 2 {
		if g := <-got; g != "503start_failed90" {
			t.Error(g)
		}
	}
	// Once the stream has its status, the error comes as an event.
	h2 := newHub(t, gateway.Limits{Withhold: 50 * time.Millisecond, KeepAlive: 50 * time.Millisecond, LoadWait: 400 * time.Millisecond})
	h2.setDemand(registry.Demand{State: registry.DemandStarting})
	res, b := h2.chat(true)
	if res.StatusCode != 200 || strings.Count(b, ": waiting\n\n") < 3 || !strings.Contains(b, `"code":"model_loading"`) {
		t.Errorf("%d %q", res.StatusCode, b)
	}
	checkStream(t, b)
}

// A worker that serves only /v1/infer is spoken to in its own words.
func TestTranslation(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		if strings.Contains(r.body, `"stream":true`) {
			c.say(sseHead + chunked(": progress 1/1\n\n", "event: token\ndata: {\"text\":\"Hel\"}\n\n", "event: token\r\ndata: {\"text\":\"lo\"}\r\n\r\n",
				"event: done\ndata: {\"finish_reason\":\"stop\",\"usage\":{\"prompt_tokens\":3,\"cached_tokens\":1,\"completion_tokens\":2}}\n\n") + lastChunk)
		} else {
			c.say(reply(200, "application/json", `{"text":"Hello","finish_reason":"length","usage":{"prompt_tokens":3,"completion_tokens":2}}`))
		}
		return true
	})
	info := h.info(w, 2)
	info.APIs = []string{contract.APIInfer}
	h.beat(info)
	res, b := h.post("/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_completion_tokens":5,"temperature":0,"seed":3,"stop":"x"}`)
	if res.StatusCode != 200 || !strings.Contains(b, `"message":{"role":"assistant","content":"Hello"},"finish_reason":"length"`) || !strings.Contains(b, `"total_tokens":5`) {
		t.Errorf("%d %s", res.StatusCode, b)
	}
	if got := w.requests()[0]; got.path != "/v1/infer" ||
		got.body != `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":5,"temperature":0,"seed":3,"stop":["x"]}` {
		t.Errorf("the worker got %s %s", got.path, got.body)
	}
	_, b = h.post("/v1/chat/completions", `{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"hi"}]}`)
	checkStream(t, b)
	for _, want := range []string{": progress 1/1\n\n", `"delta":{"role":"assistant","content":"Hel"},"finish_reason":null`, `"delta":{"content":"lo"}`,
		`"delta":{},"finish_reason":"stop"`, `"choices":[],"usage":{"prompt_tokens":3`, "data: [DONE]\n\n"} {
		if !strings.Contains(b, want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	if res, b = h.post("/v1/completions", `{"model":"m","prompt":"hi"}`); res.StatusCode != 200 || !strings.Contains(b, `"text":"Hello"`) {
		t.Errorf("%d %s", res.StatusCode, b)
	}
	for body, param := range map[string]string{
		`{"model":"m","messages":[],"n":1}`:                                                                                     "messages",
		`{"model":"m","messages":[{"role":"user","content":"x"}],"n":1000000000}`:                                               "n",
		`{"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":"x"}`:                                             "max_tokens",
		`{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://127.0.0.1:1/"}}]}]}`: "",
	} {
		res, b := h.post("/v1/chat/completions", body)
		e := errorOf(t, b)
		if p := e.Param; res.StatusCode != 400 || param != "" && (p == nil || *p != param) {
			t.Errorf("%s: %d %s", body, res.StatusCode, b)
		}
	}
	if res, b := h.post("/v1/embeddings", `{"model":"m","input":"x"}`); res.StatusCode != 400 || errorOf(t, b).Code != "unsupported_api" {
		t.Errorf("embeddings: %d %s", res.StatusCode, b)
	}
	h.idle("w1")
}

// TestSetLimits: bounds of waiting change while the gateway runs, and the others stay.
func TestSetLimits(t *testing.T) {
	h := newHub(t, gateway.Limits{Body: 1000, QueuePerModel: 1})
	begun, step := make(chan struct{}, 3), make(chan struct{})
	h.add(newStub(t, "w1", func(c *stubConn, r request) bool {
		begun <- struct{}{}
		<-step
		c.say(reply(200, "application/json", okJSON))
		return true
	}), 1)
	var all sync.WaitGroup
	ask := func(want int) func() {
		return func() {
			if res, b := h.chat(false); res.StatusCode != want {
				t.Errorf("%d, want %d: %s", res.StatusCode, want, b)
			}
		}
	}
	all.Go(ask(200))
	<-begun
	all.Go(ask(200))
	eventually(t, "one waits", func() bool { return gateway.Waiting(h.g) == 1 })
	ask(429)()
	h.g.SetLimits(gateway.Limits{Body: 1, QueuePerModel: 2})
	all.Go(ask(200))
	eventually(t, "two wait", func() bool { return gateway.Waiting(h.g) == 2 })
	ask(429)()
	close(step)
	all.Wait()
	h.idle("w1")
}
