package echo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/openai"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
	"github.com/apiary-dev/apiary/workers/conformance"
	"github.com/apiary-dev/apiary/workers/sdk"
)

// asWorker makes the test binary an echo worker: the tests start themselves as one.
const asWorker = "APIARY_TEST_ECHO"

func TestMain(m *testing.M) {
	if os.Getenv(asWorker) != "" {
		os.Exit(Main(os.Args[1:]))
	}
	os.Exit(m.Run())
}

const key = secret.Secret("0123456789abcdef0123456789abcdef")

// inProcess serves an echo worker with the faults that set made, until the test ends.
func inProcess(t testing.TB, set func(*Faults, *sdk.Config)) string {
	t.Helper()
	impl, f := Implementation()
	cfg := sdk.Config{WorkerID: "echo-1", Model: "echo:test", Device: "cpu0", Address: "127.0.0.1", Drain: time.Second}
	if set != nil {
		set(f, &cfg)
	}
	engine, err := impl.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s, err := sdk.New(sdk.Options{Config: cfg, Implementation: impl.Name, Version: impl.Version, Engine: engine, Secret: key, Middleware: impl.Middleware})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := impl.Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the worker ended with %v", err)
		}
	})
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	url := "http://127.0.0.1:" + port
	wait(t, func() bool { return info(t, url).Status != contract.StatusStarting }, "the end of the load")
	return url
}

func get(t testing.TB, method, url, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key.Reveal())
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

func info(t testing.TB, url string) (w contract.WorkerInfo) {
	t.Helper()
	if err := json.NewDecoder(get(t, http.MethodGet, url+"/info", "").Body).Decode(&w); err != nil {
		t.Fatal(err)
	}
	return w
}

func answerOf(t *testing.T, url, body string) (r contract.InferResponse) {
	t.Helper()
	res := get(t, http.MethodPost, url+"/v1/infer", body)
	b, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s is answered with %d %s, %v", body, res.StatusCode, b, err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// conform runs the suite with every answer checked against the worker's OpenAPI document.
func conform(t *testing.T, url string) {
	t.Helper()
	doc := apitest.Load(t, "worker-api.yaml")
	sum := conformance.Run(t.Context(), conformance.Target{BaseURL: url, Secret: key, Transport: doc.Transport(t, nil), CheckTimeout: 10 * time.Second, LoadTimeout: 10 * time.Second},
		func(r conformance.Result) {
			if r.Outcome != conformance.Pass {
				t.Errorf("%s: %s: %s", r.Outcome, r.Name, r.Detail)
			}
		})
	if sum.Passed < 20 || sum.Failed+sum.Skipped > 0 {
		t.Errorf("the suite ended with %+v", sum)
	}
}

func TestConformance(t *testing.T) {
	conform(t, inProcess(t, func(_ *Faults, c *sdk.Config) { c.Context = 4096 }))
}

func TestConformancePacedWithPrefill(t *testing.T) {
	conform(t, inProcess(t, func(f *Faults, c *sdk.Config) {
		f.TPS, f.Prefill, c.Context, c.Slots = 2000, 5*time.Millisecond, 512, 2
	}))
}

// A suite that passes everything is worth nothing: broken workers must fail.
func TestConformanceFindsFaults(t *testing.T) {
	for name, set := range map[string]func(*Faults, *sdk.Config){
		"status":  func(f *Faults, _ *sdk.Config) { f.HTTPStatus = 500 },
		"garbage": func(f *Faults, _ *sdk.Config) { f.Garbage = "json" },
		"tokens":  func(f *Faults, _ *sdk.Config) { f.Tokens = 0 },
		"cancel":  func(f *Faults, c *sdk.Config) { f.IgnoreCancel, f.Tokens, f.TPS, c.Slots = true, 4000, 1000, 1 },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			failed := map[string]bool{}
			const cancelled = "cancel: a closed connection frees the slot"
			ctx, end := context.WithCancel(t.Context())
			defer end()
			sum := conformance.Run(ctx, conformance.Target{BaseURL: inProcess(t, set), Secret: key, CheckTimeout: 2 * time.Second, Prompt: "a bee"},
				func(r conformance.Result) {
					if failed[r.Name] = r.Outcome == conformance.Fail; r.Name == cancelled {
						end() // the rest would wait for the engine
					}
				})
			if sum.Failed == 0 {
				t.Errorf("the suite found nothing: %+v", sum)
			}
			if name == "cancel" && !failed[cancelled] {
				t.Errorf("an engine that ignores a cancel passed: %v", failed)
			}
		})
	}
	sum := conformance.Run(t.Context(), conformance.Target{BaseURL: inProcess(t, nil), Secret: key + "x"}, func(conformance.Result) {})
	if sum.Failed != 1 {
		t.Errorf("a wrong secret gave %+v", sum)
	}
}

func TestAnswerIsThePrompt(t *testing.T) {
	url := inProcess(t, nil)
	const text = "  two spaces,\n🐝é日本 mixed x🌻y end "
	body, _ := json.Marshal(map[string]any{"prompt": text})
	if r := answerOf(t, url, string(body)); r.Text != text || r.FinishReason != contract.FinishStop || r.Usage.PromptTokens != countTokens(text) {
		t.Errorf("%q was answered with %+v", text, r)
	}
	body, _ = json.Marshal(map[string]any{"messages": []contract.Message{{Role: "system", Content: "be a bee"}, {Role: "user", Content: "buzz twice now"}}, "resume_text": "buzz"})
	if r := answerOf(t, url, string(body)); r.Text != " twice now" {
		t.Errorf("the conversation was answered with %+v", r)
	}
}

func TestTokensJoinToTheText(t *testing.T) {
	for _, s := range []string{"", " ", "a", "a b", "🐝", "x🐝y z", "ééé", strings.Repeat("w", 3*maxToken), "a\n\n\tb"} {
		var all strings.Builder
		n := 0
		for tk := (tokens{text: s}); ; n++ {
			w := tk.next()
			if w == "" {
				break
			}
			if len(w) > maxToken+4 {
				t.Errorf("a token has %d bytes", len(w))
			}
			all.WriteString(w)
		}
		if all.String() != s || n != countTokens(s) {
			t.Errorf("%q came out as %q in %d tokens, counted %d", s, all.String(), n, countTokens(s))
		}
	}
}

func TestTokensFlagAndLimits(t *testing.T) {
	url := inProcess(t, func(f *Faults, c *sdk.Config) { f.Tokens, c.Context = 7, 20 })
	if r := answerOf(t, url, `{"prompt":"a b c"}`); r.Usage.CompletionTokens != 7 || r.Text != "a b ca b ca" || r.FinishReason != contract.FinishStop {
		t.Errorf("--tokens 7 gave %+v", r)
	}
	if r := answerOf(t, url, `{"prompt":"a b c","max_tokens":2}`); r.Usage.CompletionTokens != 2 || r.FinishReason != contract.FinishLength {
		t.Errorf("max_tokens 2 gave %+v", r)
	}
	if r := answerOf(t, url, `{"prompt":"1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"}`); r.Usage.CompletionTokens != 5 || r.FinishReason != contract.FinishLength {
		t.Errorf("a context of 20 tokens gave %+v", r)
	}
}

func TestHTTPFaults(t *testing.T) {
	t.Run("headers", func(t *testing.T) {
		url := inProcess(t, func(f *Faults, _ *sdk.Config) { f.EchoHeaders = true })
		if r := answerOf(t, url, `{"prompt":"x"}`); !strings.Contains(r.Text, `"Content-Type":["application/json"]`) {
			t.Errorf("got %q", r.Text)
		}
	})
	t.Run("body", func(t *testing.T) {
		url := inProcess(t, func(f *Faults, _ *sdk.Config) { f.EchoBody = true })
		if r := answerOf(t, url, `{"prompt":"x", "z":1}`); r.Text != `{"prompt":"x", "z":1}` {
			t.Errorf("got %q", r.Text)
		}
	})
	t.Run("env", func(t *testing.T) {
		t.Setenv("APIARY_TEST_CANARY", "seen")
		url := inProcess(t, func(f *Faults, _ *sdk.Config) { f.EchoEnv = true })
		if r := answerOf(t, url, `{"prompt":"x"}`); !strings.Contains(r.Text, "APIARY_TEST_CANARY=seen") {
			t.Errorf("got %q", r.Text)
		}
	})
	t.Run("status", func(t *testing.T) {
		url := inProcess(t, func(f *Faults, _ *sdk.Config) { f.HTTPStatus = 503 })
		if res := get(t, http.MethodPost, url+"/v1/infer", `{"prompt":"x"}`); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
			t.Errorf("answered with %d, %v", res.StatusCode, res.Header)
		}
	})
	t.Run("garbage", func(t *testing.T) {
		for _, g := range garbageTable() {
			if !isGarbage(g.kind) || !strings.Contains(garbageKinds(), g.kind) {
				t.Errorf("%s is not listed", g.kind)
			}
		}
		url := inProcess(t, func(f *Faults, _ *sdk.Config) { f.Garbage = "true" })
		var kinds []string
		for range garbageTable() {
			c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = fmt.Fprintf(c, "POST /v1/infer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", key.Reveal())
			b, err := io.ReadAll(c)
			_ = c.Close()
			if err != nil || len(b) == 0 {
				t.Errorf("garbage %d: %d bytes, %v", len(kinds), len(b), err)
			}
			kinds = append(kinds, strconv.Itoa(len(b)))
		}
		if strings.Join(kinds, " ") == strings.Repeat(kinds[0]+" ", len(kinds)) {
			t.Error("all garbage is the same")
		}
	})
}

func TestHangsAndCancels(t *testing.T) {
	history := filepath.Join(t.TempDir(), "history")
	url := inProcess(t, func(f *Faults, _ *sdk.Config) { f.HangAfterTokens, f.History = 2, history })
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/infer", strings.NewReader(`{"prompt":"a b c d","stream":true}`))
	req.Header.Set("Authorization", "Bearer "+key.Reveal())
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", "mine")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	r := openai.NewReader(res.Body)
	for range 2 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	_ = res.Body.Close()
	wait(t, func() bool { return info(t, url).SlotsBusy == 0 }, "the slot is free")
	wait(t, func() bool { b, _ := os.ReadFile(history); return bytes.Contains(b, []byte(`"cancel"`)) }, "the history knows the cancel")
	var got []string
	for _, e := range readHistory(t, history) {
		got = append(got, fmt.Sprintf("%s %s %s %d", e.Worker, e.Request, e.Event, e.N))
	}
	want := "echo-1 mine start 0|echo-1 mine token 1|echo-1 mine token 2|echo-1 mine cancel 2"
	if strings.Join(got, "|") != want {
		t.Errorf("history %q, want %q", got, want)
	}
}

func readHistory(t *testing.T, path string) (events []event) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// wait polls until ok, for at most 5 s.
func wait(t testing.TB, ok func() bool, what string) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatalf("never came: %s", what)
}
