package gateway_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/gateway"
	"github.com/apiary-dev/apiary/core/registry"
)

func TestRelayJSON(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: application/json; charset=utf-8\r\nSet-Cookie: a=b\r\nServer: x\r\nTransfer-Encoding: chunked\r\n\r\n" +
			chunked(okJSON[:10], okJSON[10:]) + "0\r\nApiary-Usage: {\"prompt_tokens\":12,\"cached_tokens\":3,\"completion_tokens\":7}\r\n\r\n")
		return true
	})
	h.add(w, 1)
	req, _ := http.NewRequest("POST", "http://"+h.addr+"/v1/chat/completions", strings.NewReader(chat(false)))
	for k, v := range map[string]string{"Content-Type": "application/json", "Authorization": "Bearer client", "Cookie": "c=d", "Idempotency-Key": "k",
		"X-Request-Id": "my-id.1", "Te": "trailers", "X-Forwarded-For": "1.2.3.4"} {
		req.Header.Set(k, v)
	}
	for range 3 {
		req.Body = io.NopCloser(strings.NewReader(chat(false)))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		if res.StatusCode != 200 || string(b) != okJSON || res.Header.Get("Content-Type") != "application/json" ||
			res.Header.Get("X-Request-Id") != "my-id.1" || res.Header.Get("Set-Cookie")+res.Header.Get("Server") != "" {
			t.Fatalf("%d %v %q", res.StatusCode, res.Header, b)
		}
	}
	seen := w.requests()
	if len(seen) != 3 || w.conns != 1 {
		t.Fatalf("%d requests over %d connections", len(seen), w.conns)
	}
	for _, name := range []string{"Cookie", "Idempotency-Key", "Te", "X-Forwarded-For", "Accept-Encoding", "Connection"} {
		if v := seen[0].header(name); v != "" {
			t.Errorf("the worker got %s: %s", name, v)
		}
	}
	if seen[0].header("Authorization") != "Bearer "+workerKy || seen[0].header("X-Request-Id") != "my-id.1" || seen[0].body != chat(false) ||
		seen[0].path != "/v1/chat/completions" {
		t.Errorf("the worker got %+v", seen[0])
	}
	if !cmp.Equal(h.n.tokens, []int{12, 3, 7}) {
		t.Errorf("usage of the trailer: %v", h.n.tokens)
	}
	h.idle("w1")
}

func TestModelNameIsSpliced(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool { c.say(reply(200, "application/json", okJSON)); return true })
	info := h.info(w, 1)
	info.ModelName = "org/Real"
	h.beat(info)
	if res, b := h.chat(false); res.StatusCode != 200 {
		t.Fatal(res.StatusCode, b)
	}
	if got, want := w.requests()[0].body, strings.Replace(chat(false), `"m"`, `"org/Real"`, 1); got != want {
		t.Errorf("the worker got %s", got)
	}
}

// However a worker's bytes are cut, the client sees the same stream (T36).
func TestStreamIsIndependentOfPieces(t *testing.T) {
	want := ": progress 1/2\n\n" + strings.Repeat(chunk, 3) + done
	whole := sseHead + chunked(": progress 1/2\n\n", chunk, chunk[:20], chunk[20:]+chunk+done) + lastChunk
	for _, size := range []int{1, 2, 7, 1000, len(whole)} {
		h := newHub(t, gateway.Limits{})
		w := newStub(t, "w1", func(c *stubConn, r request) bool {
			for s := whole; s != ""; s = s[min(size, len(s)):] {
				c.say(s[:min(size, len(s))])
			}
			return true
		})
		h.add(w, 1)
		res, b := h.chat(true)
		if b != want || res.Header.Get("Content-Type") != "text/event-stream" || len(res.TransferEncoding) != 1 {
			t.Errorf("pieces of %d: %v %q", size, res.Header, b)
		}
	}
}

// The end of a stream that was read to the end of the connection counts where its last event was there.
func TestStreamUntilClose(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + chunk + done)
		return false
	})
	h.add(w, 4)
	for range 2 {
		if res, b := h.chat(true); b != chunk+done {
			t.Errorf("%d %q", res.StatusCode, b)
		}
	}
	if w.conns != 2 {
		t.Errorf("%d connections", w.conns)
	}
}

// lostEvent is the event that ends a stream whose worker died (F6), with the request's id as every error has it.
func lostEvent(requestID string) string {
	return `data: {"error":{"message":"worker lost","type":"server_error","code":"worker_lost","param":null,"request_id":"` + requestID + `"}}` + "\n\n"
}

func TestWorkerDiesMidStream(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	var w *stub
	w = newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say(sseHead + chunked(chunk))
		_ = w.ln.Close()
		return false
	})
	h.add(w, 1)
	if res, b := h.chat(true); res.StatusCode != 200 || res.Header.Get(contract.RequestIDHeader) == "" || b != chunk+lostEvent(res.Header.Get(contract.RequestIDHeader)) {
		t.Errorf("%d %q", res.StatusCode, b)
	}
	if k := h.failed("w1"); !cmp.Equal(k, []registry.FailureKind{registry.FailureDialRefused}) {
		t.Errorf("reported failures: %v", k)
	}
	h.idle("w1")
}

// A worker that somebody ended is not called lost, and its requests did not kill it: they may be sent again.
func TestWorkerDeletedMidStream(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	h.deleted = map[string]bool{"w1": true, "w2": true, "w3": true}
	for _, id := range []string{"w1", "w2", "w3"} {
		var w *stub
		w = newStub(t, id, func(c *stubConn, r request) bool {
			c.say(sseHead + chunked(chunk))
			_ = w.ln.Close()
			return false
		})
		h.add(w, 1)
		res, b := h.chat(true)
		want := strings.Replace(lostEvent(res.Header.Get(contract.RequestIDHeader)), "worker lost", "The worker "+id+" was deleted while it answered; send the request again.", 1)
		if res.StatusCode != 200 || b != chunk+want {
			t.Errorf("%d %q", res.StatusCode, b)
		}
		h.idle(id)
	}
}

func TestWorkerDiesBeforeAnswer(t *testing.T) {
	for _, said := range []string{"", "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"} {
		h := newHub(t, gateway.Limits{})
		w := newStub(t, "w1", func(c *stubConn, r request) bool { c.say(said); return false })
		other := newStub(t, "w2", func(c *stubConn, r request) bool { c.say(said); return false })
		h.add(w, 1)
		h.add(other, 1)
		res, b := h.chat(false)
		if e := errorOf(t, b); res.StatusCode != 502 || e.Code != "worker_lost" || e.RequestID == "" {
			t.Errorf("%d %+v", res.StatusCode, e)
		}
		if n := len(w.requests()) + len(other.requests()); n != 1 {
			t.Errorf("a request that may have run was sent %d times", n)
		}
	}
}

// A connection that the worker closed while it was idle is not used; one that it is about to use is kept.
func TestStaleConnectionIsNotUsed(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	closing := make(chan struct{}, 1)
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say(reply(200, "application/json", okJSON))
		closing <- struct{}{}
		return false
	})
	h.add(w, 1)
	for i := range 20 {
		res, b := h.chat(false)
		if res.StatusCode != 200 {
			t.Fatalf("request %d: %d %s", i, res.StatusCode, b)
		}
		<-closing
		eventually(t, "the worker has closed", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.open) == 0 })
	}
	if n := len(w.requests()); n != 20 {
		t.Errorf("%d requests arrived", n)
	}
}

func TestWorkerErrorsPass(t *testing.T) {
	for _, tc := range []struct {
		name, answer string
		status       int
		code         string
	}{
		{"invalid", reply(400, "application/json", `{"error":{"message":"max_tokens is bad","type":"invalid_request_error","code":"invalid_value","param":"max_tokens"}}`), 400, "invalid_value"},
		{"internal", reply(500, "application/json", `{"error":{"message":"It broke.","type":"server_error","code":"engine_failed","param":null}}`), 500, "engine_failed"},
		{"text of an engine", reply(500, "text/plain", "Traceback /secret/path"), 502, "worker_error"},
		{"secret does not fit", reply(401, "application/json", `{"error":{"message":"no","type":"x","code":"y"}}`), 502, "worker_error"},
		{"redirect", "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1/\r\nContent-Length: 0\r\n\r\n", 502, "worker_error"},
	} {
		h := newHub(t, gateway.Limits{})
		w := newStub(t, "w1", func(c *stubConn, r request) bool { c.say(tc.answer); return true })
		h.add(w, 1)
		for _, stream := range []bool{false, true} {
			res, b := h.chat(stream)
			if e := errorOf(t, b); res.StatusCode != tc.status || e.Code != tc.code || strings.Contains(b, "secret") || e.RequestID == "" {
				t.Errorf("%s: %d %s", tc.name, res.StatusCode, b)
			}
		}
		if len(w.requests()) != 2 {
			t.Errorf("%s: %d attempts for 2 requests", tc.name, len(w.requests()))
		}
	}
}

func TestBadRequests(t *testing.T) {
	h := newHub(t, gateway.Limits{Body: 4 * contract.KiB})
	w := newStub(t, "w1", func(c *stubConn, r request) bool { c.say(reply(200, "application/json", okJSON)); return true })
	h.add(w, 1)
	for _, tc := range []struct {
		body   string
		status int
		code   string
	}{
		{`{"model":"m"`, 400, "invalid_json"},
		{`not json`, 400, "invalid_json"},
		{`{"messages":[]}`, 400, "missing_model"},
		{`{"model":"m","model":"n"}`, 400, "invalid_value"},
		{`{"model":"` + strings.Repeat("x", 600) + `"}`, 404, "model_not_found"},
		{`{"model":"unknown"}`, 404, "model_not_found"},
		{`{"model":"m","x":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}`, 400, "invalid_json"},
		{`{"model":"m","x":"` + strings.Repeat("y", 5000) + `"}`, 413, "body_too_large"},
	} {
		res, b := h.post("/v1/chat/completions", tc.body)
		if e := errorOf(t, b); res.StatusCode != tc.status || e.Code != tc.code {
			t.Errorf("%.40s: %d %s", tc.body, res.StatusCode, b)
		}
	}
	// An endless body without a length is cut off at the limit.
	res, err := http.Post("http://"+h.addr+"/v1/completions", "application/json", io.MultiReader(strings.NewReader(`{"model":"m","x":"`), endless{}))
	if err == nil {
		b, _ := io.ReadAll(res.Body)
		if e := errorOf(t, string(b)); res.StatusCode != 413 || e.Code != "body_too_large" {
			t.Errorf("endless body: %d %s", res.StatusCode, b)
		}
	}
	if n := len(w.requests()); n != 0 {
		t.Errorf("%d bad requests reached the worker", n)
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'y'
	}
	return len(p), nil
}

func TestModels(t *testing.T) {
	h := newHub(t, gateway.Limits{})
	at := time.Unix(1700000000, 0)
	h.models = []contract.ModelView{
		{ID: "builtin:a@1", Names: []string{"small", "gpt"}, Model: &contract.Model{AddedAt: at, Vendor: "builtin"}},
		{ID: "file:/x/y.gguf@2"},
	}
	res, err := http.Get("http://" + h.addr + "/v1/models")
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	for _, want := range []string{`"object":"list"`, `{"id":"small","object":"model","created":1700000000,"owned_by":"builtin"}`, `"id":"gpt"`, `"id":"file:/x/y.gguf@2"`} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	for path, status := range map[string]int{"small": 200, "builtin:a@1": 200, "file:/x/y.gguf@2": 200, "nobody": 404, "m": 200} {
		res, err := http.Get("http://" + h.addr + "/v1/models/" + path)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(res.Body)
		if res.StatusCode != status || status == 200 && !strings.Contains(string(b), `"id":"`+path+`"`) {
			t.Errorf("%s: %d %s", path, res.StatusCode, b)
		}
	}
}
