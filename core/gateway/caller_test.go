package gateway_test

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/gateway"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/keys"
)

// keyHub is a hub whose callers need keys.
type keyHub struct {
	*hub
	table *keys.Table
	all   []contract.APIKey
}

func newKeyHub(t *testing.T, limits gateway.Limits) *keyHub {
	t.Helper()
	k := &keyHub{table: &keys.Table{}}
	k.hub = newHubFor(t, limits, func(_ httpd.Class, r *http.Request) error {
		g, err := k.table.Check(httpd.APIKey(r), time.Now())
		if err == nil {
			httpd.SetCaller(r, g)
		}
		return err
	})
	return k
}

func (k *keyHub) key(name string, l contract.KeyLimits) string {
	k.t.Helper()
	s, made, err := keys.Make(contract.NewKey{Name: name, KeyLimits: l}, time.Now())
	if err != nil {
		k.t.Fatal(err)
	}
	k.all = append(k.all, made)
	k.table.Set(k.all)
	return s.Reveal()
}

// open sends a request under a key and returns the answer as soon as its head is there.
func (k *keyHub) open(key, body string) *http.Response {
	k.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+k.addr+"/v1/chat/completions", strings.NewReader(body))
	if err != nil {
		k.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Authorization", "Bearer "+key)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		k.t.Error(err)
		return &http.Response{Body: http.NoBody}
	}
	return res
}

func (k *keyHub) ask(key, body string) (int, string) {
	k.t.Helper()
	res := k.open(key, body)
	defer func() { _ = res.Body.Close() }()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// A stream under a key that is revoked ends with an error event and without [DONE], and its worker hears of it; another key's goes on.
func TestRevokedStream(t *testing.T) {
	k := newKeyHub(t, gateway.Limits{})
	gone := make(chan struct{}, 2)
	more := make(chan struct{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		c.say(sseHead + chunked(chunk, chunk))
		ended := make(chan struct{})
		go func() { c.closed(); close(ended) }()
		select {
		case <-ended:
			gone <- struct{}{}
		case <-more:
			c.say(chunked(done) + lastChunk)
		}
		return false
	})
	k.add(w, 4)
	one, two := k.key("one", contract.KeyLimits{}), k.key("two", contract.KeyLimits{})
	var bodies [2]string
	var all sync.WaitGroup
	for i, key := range []string{one, two} {
		res := k.open(key, chat(true))
		if res.StatusCode != http.StatusOK {
			t.Fatalf("the stream began with %d", res.StatusCode)
		}
		all.Go(func() {
			b, _ := io.ReadAll(res.Body)
			bodies[i] = string(b)
		})
	}
	eventually(t, "both run", func() bool { return k.g.InFlight("w1") == 2 })
	time.Sleep(50 * time.Millisecond) // so that the streams have left net/http
	k.table.Set(k.all[1:])
	select {
	case <-gone:
	case <-time.After(2 * time.Second):
		t.Fatal("the worker still generates")
	}
	close(more)
	all.Wait()
	if !strings.Contains(bodies[0], keys.CodeRevoked) || strings.Contains(bodies[0], "[DONE]") {
		t.Errorf("the revoked stream ended with %q", bodies[0])
	}
	if !strings.Contains(bodies[1], "[DONE]") || strings.Contains(bodies[1], "error") {
		t.Errorf("the other one ended with %q", bodies[1])
	}
	if code, body := k.ask(one, chat(true)); code != http.StatusUnauthorized || errorOf(t, body).Code != keys.CodeInvalid {
		t.Errorf("a new request: %d %s", code, body)
	}
	k.idle("w1")
}

// Where requests wait, callers take turns, whoever came first with however many; and one may not fill the queue (T40).
func TestTurns(t *testing.T) {
	k := newKeyHub(t, gateway.Limits{QueuePerKey: 4})
	step := make(chan struct{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		<-step
		c.say(reply(200, "application/json", okJSON))
		return true
	})
	k.add(w, 2)
	greedy, modest := k.key("greedy", contract.KeyLimits{}), k.key("modest", contract.KeyLimits{})
	body := func(who string) string {
		return `{"model":"m","user":"` + who + `","messages":[{"role":"user","content":"x"}]}`
	}
	var all sync.WaitGroup
	send := func(key, who string, want int) {
		all.Go(func() {
			if code, answer := k.ask(key, body(who)); code != want {
				t.Errorf("%s got %d: %s", who, code, answer)
			}
		})
	}
	for i := range 6 { // two run, four wait
		send(greedy, "greedy", 200)
		eventually(t, "it has its place", func() bool { return k.g.InFlight("w1")+gateway.Waiting(k.g) == i+1 })
	}
	code, answer := k.ask(greedy, body("greedy"))
	if e := errorOf(t, answer); code != 429 || e.Code != "queue_per_key" || !strings.Contains(e.Message, "queue_per_key") {
		t.Errorf("a seventh one: %d %s", code, answer)
	}
	send(modest, "modest", 200)
	eventually(t, "it waits", func() bool { return gateway.Waiting(k.g) == 5 })
	step <- struct{}{}
	eventually(t, "the next one runs", func() bool { return len(w.requests()) == 3 })
	if got := w.requests()[2].body; !strings.Contains(got, "modest") {
		t.Errorf("next was %s", got)
	}
	close(step)
	all.Wait()
	k.idle("w1")
}

// The limits of a key: requests at once, tokens a minute, models. Each refusal names the limit.
func TestKeyLimits(t *testing.T) {
	k := newKeyHub(t, gateway.Limits{})
	hold := make(chan struct{})
	w := newStub(t, "w1", func(c *stubConn, r request) bool {
		if strings.Contains(r.body, "hold") {
			<-hold
		}
		c.say("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nTrailer: Apiary-Usage\r\n\r\n" + chunked(okJSON) +
			"0\r\nApiary-Usage: {\"prompt_tokens\":70,\"completion_tokens\":50}\r\n\r\n")
		return true
	})
	k.add(w, 4)
	busy := k.key("busy", contract.KeyLimits{Concurrency: 1})
	ended := make(chan int)
	go func() {
		code, _ := k.ask(busy, `{"model":"m","messages":[{"role":"user","content":"hold"}]}`)
		ended <- code
	}()
	eventually(t, "it runs", func() bool { return k.g.InFlight("w1") == 1 })
	if code, body := k.ask(busy, chat(false)); code != 429 || errorOf(t, body).Code != keys.CodeConcurrency {
		t.Errorf("a second one at once: %d %s", code, body)
	}
	close(hold)
	if code := <-ended; code != 200 {
		t.Errorf("the first one: %d", code)
	}
	if code, body := k.ask(busy, chat(false)); code != 200 {
		t.Errorf("after the first one: %d %s", code, body)
	}
	frugal := k.key("frugal", contract.KeyLimits{TokensPerMinute: 100})
	if code, body := k.ask(frugal, chat(false)); code != 200 {
		t.Errorf("the first tokens: %d %s", code, body)
	}
	res := k.open(frugal, chat(true))
	b, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if after := atoi(res.Header.Get("Retry-After")); res.StatusCode != 429 || errorOf(t, string(b)).Code != keys.CodeTokens || after < 10 || after > 14 {
		t.Errorf("120 of 100 tokens are spent: %d, after %d s: %s", res.StatusCode, after, b)
	}
	other := k.key("other", contract.KeyLimits{Models: []string{"another"}})
	if code, body := k.ask(other, chat(false)); code != 403 || errorOf(t, body).Code != keys.CodeModel {
		t.Errorf("a model that the key may not ask for: %d %s", code, body)
	}
	byID := k.key("by id", contract.KeyLimits{Models: []string{"model-1"}})
	if code, body := k.ask(byID, chat(false)); code != 200 {
		t.Errorf("a model by its id: %d %s", code, body)
	}
	if code, body := k.ask("", chat(false)); code != 401 || errorOf(t, body).Code != keys.CodeMissing || errorOf(t, body).Type != "authentication_error" {
		t.Errorf("without a key: %d %s", code, body)
	}
	k.idle("w1")
}
