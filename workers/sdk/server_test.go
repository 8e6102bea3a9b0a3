package sdk

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
)

// fakeEngine is an engine whose every call is a function of the test.
type fakeEngine struct {
	model    Model
	load     func(context.Context, func(float64)) error
	generate func(context.Context, *Request, func(Token) error) (Result, error)
	embed    func(context.Context, []string) ([][]float32, int, error)
	progress atomic.Uint64
	closed   atomic.Int32
}

func (e *fakeEngine) Load(ctx context.Context, progress func(float64)) (Model, error) {
	m := e.model
	if m.Slots == 0 {
		m = Model{ContextLength: 100, Slots: 2, Capabilities: []string{contract.CapabilityChat, contract.CapabilityCompletion, contract.CapabilityEmbedding}}
	}
	if e.load != nil {
		return m, e.load(ctx, progress)
	}
	return m, nil
}

func (e *fakeEngine) Generate(ctx context.Context, r *Request, sink func(Token) error) (Result, error) {
	return e.generate(ctx, r, sink)
}

func (e *fakeEngine) Embed(ctx context.Context, in []string) ([][]float32, int, error) {
	return e.embed(ctx, in)
}
func (e *fakeEngine) Stats() Stats { return Stats{Progress: e.progress.Load()} }
func (e *fakeEngine) Close() error { e.closed.Add(1); return nil }

// says makes Generate give out pieces and then end with err.
func says(err error, pieces ...string) func(context.Context, *Request, func(Token) error) (Result, error) {
	return func(_ context.Context, _ *Request, sink func(Token) error) (Result, error) {
		res := Result{FinishReason: contract.FinishStop, Usage: contract.Usage{PromptTokens: 3, CachedTokens: 1}}
		for i, p := range pieces {
			res.Usage.CompletionTokens++
			if err := sink(Token{ID: i, Bytes: []byte(p)}); err != nil {
				return res, err
			}
		}
		return res, err
	}
}

type fixture struct {
	t      *testing.T
	url    string
	engine *fakeEngine
	server *Server
	log    *bytes.Buffer
	doc    *apitest.Document
	stop   func()
}

func serve(t *testing.T, e *fakeEngine) *fixture {
	t.Helper()
	f := &fixture{t: t, engine: e, log: &bytes.Buffer{}, doc: apitest.Load(t, "worker-api.yaml")}
	s, err := New(Options{Config: Config{WorkerID: "w-1", Model: "m@1", Device: "cpu0", Address: "127.0.0.1", Drain: 50 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(&lockedWriter{w: f.log}, nil))}, Implementation: "fake", Version: "1", Engine: e, Secret: testKey})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.server, f.url = s, "http://"+ln.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if n := e.closed.Load(); n != 1 {
			t.Errorf("the engine was closed %d times", n)
		}
	})
	t.Cleanup(f.stop)
	if e.load == nil {
		until(t, func() bool { return s.Info().Status != contract.StatusStarting })
	}
	return f
}

// until polls until ok, for at most 5 s.
func until(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for range 5000 {
		if ok() {
			return
		}
		<-tick.C
	}
	t.Fatal("what is waited for never came")
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *lockedWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(b)
}

func (f *fixture) do(ctx context.Context, method, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, f.url+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testKey.Reveal())
	req.Header.Set("Content-Type", "application/json")
	return (&http.Client{Transport: f.doc.Transport(f.t, nil)}).Do(req)
}

// post returns status, body and the usage trailer of an answer that is read to its end.
func (f *fixture) post(path, body string) (int, string, http.Header) {
	f.t.Helper()
	res, err := f.do(f.t.Context(), http.MethodPost, path, body)
	if err != nil {
		f.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	for k, v := range res.Trailer {
		res.Header[k] = v
	}
	return res.StatusCode, string(b), res.Header
}

func wantError(t *testing.T, status, want int, body, code, param string) {
	t.Helper()
	var e contract.ErrorBody
	if err := json.Unmarshal([]byte(body), &e); err != nil || status != want || e.Error.Code != code {
		t.Errorf("answered with %d %s, want %d with the code %s", status, body, want, code)
		return
	}
	if (param == "") != (e.Error.Param == nil) || param != "" && *e.Error.Param != param {
		t.Errorf("the param of %s is not %q", body, param)
	}
}

func TestLoading(t *testing.T) {
	release := make(chan struct{})
	half := make(chan struct{})
	f := serve(t, &fakeEngine{generate: says(nil, "hi"), load: func(_ context.Context, progress func(float64)) error {
		progress(0.5)
		progress(0.25) // progress never goes back
		close(half)
		<-release
		return nil
	}})
	<-half
	status, body, h := f.post("/v1/infer", `{"prompt":"a"}`)
	wantError(t, status, 503, body, "model_loading", "")
	if h.Get("Retry-After") == "" || !strings.Contains(body, "50 %") {
		t.Errorf("no Retry-After or progress: %v %s", h, body)
	}
	if w := f.server.Info(); w.Status != contract.StatusStarting || w.LoadProgress != 0.5 || w.Progress == 0 || w.Port == 0 {
		t.Errorf("while loading: %+v", w)
	}
	close(release)
	until(t, func() bool { return f.server.Info().Status == contract.StatusReady })
	if status, body, _ := f.post("/v1/infer", `{"prompt":"a"}`); status != 200 {
		t.Errorf("after loading: %d %s", status, body)
	}
}

func TestLoadFails(t *testing.T) {
	e := &fakeEngine{load: func(context.Context, func(float64)) error { return errors.New("not a GGUF") }}
	s, err := New(Options{Config: Config{WorkerID: "w", Model: "m", Device: "cpu0", Address: "127.0.0.1"}, Engine: e, Secret: testKey})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), ln); err == nil || !strings.Contains(err.Error(), "not a GGUF") || e.closed.Load() != 1 {
		t.Errorf("Run gave %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	good := Options{Config: Config{WorkerID: "w", Model: "m", Device: "cpu0"}, Engine: &fakeEngine{}, Secret: testKey}
	short, long := good, good
	short.Secret = "short"
	long.Model = strings.Repeat("m", contract.MaxWorkerBeat)
	if _, err := New(short); err == nil {
		t.Error("a short secret was taken")
	}
	if _, err := New(long); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a model whose beats are too large gave %v", err)
	}
}

func TestStreamForms(t *testing.T) {
	f := serve(t, &fakeEngine{generate: says(nil, "Hi \xf0\x9f", "\x90", "\x9d", " STO", "NE", "\n\"x\"")})
	for _, c := range []struct {
		path, body, want string // want: text events, one letter for each event
	}{
		{"/v1/infer", `{"prompt":"a","stream":true,"stop":["STOP"]}`, "token|token|token|token|token|token|done"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"stream":true,"stream_options":{"include_usage":true}}`, "role|Hi |🐝| STO|NE|\n\"x\"|finish stop|usage|[DONE]"},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}],"stream":true,"stop":"NE"}`, "role|Hi |🐝| STO|finish stop|[DONE]"},
		{"/v1/completions", `{"prompt":"a","stream":true,"stop":["ONE"]}`, "Hi |🐝| ST|finish stop|[DONE]"},
		{"/v1/completions", `{"prompt":"a","stream":true,"stream_options":{"include_usage":true},"stop":["\n\"x\"y"]}`, "Hi |🐝| STO|NE|\n\"x\"|finish stop|usage|[DONE]"},
	} {
		status, body, h := f.post(c.path, c.body)
		var got []string
		for _, e := range strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n") {
			name, data, named := strings.Cut(e, "\ndata: ")
			if !named {
				data = strings.TrimPrefix(e, "data: ")
			}
			got = append(got, f.describe(c.path, strings.TrimPrefix(name, "event: "), data, named))
		}
		if status != 200 || strings.Join(got, "|") != c.want {
			t.Errorf("%s %s gave %d %q, want %q", c.path, c.body, status, strings.Join(got, "|"), c.want)
		}
		if u := h.Get(contract.UsageTrailer); !strings.Contains(u, `"prompt_tokens":3,"cached_tokens":1`) {
			t.Errorf("%s: the trailer is %q", c.path, u)
		}
	}
}

// describe checks an event against its schema and says what it carries.
func (f *fixture) describe(path, name, data string, named bool) string {
	if named {
		schema := map[string]string{"token": "TokenEvent", "done": "DoneEvent", "error": "ErrorEvent"}[name]
		f.doc.Value(f.t, schema, []byte(data))
		return name
	}
	if data == "[DONE]" {
		return data
	}
	if strings.Contains(data, `"error"`) {
		f.doc.Value(f.t, "ErrorBody", []byte(data))
		return "error"
	}
	f.doc.Value(f.t, map[bool]string{true: "ChatChunk", false: "CompletionResponse"}[strings.Contains(path, "chat")], []byte(data))
	var c struct {
		Choices []struct {
			Text         string
			Delta        struct{ Role, Content string }
			FinishReason string `json:"finish_reason"`
		}
		Usage *struct{}
	}
	if err := json.Unmarshal([]byte(data), &c); err != nil {
		f.t.Fatal(err)
	}
	switch {
	case c.Usage != nil && len(c.Choices) == 0:
		return "usage"
	case c.Choices[0].FinishReason != "":
		return "finish " + c.Choices[0].FinishReason
	case c.Choices[0].Delta.Role != "":
		return "role"
	}
	return c.Choices[0].Text + c.Choices[0].Delta.Content
}

func TestEngineFailures(t *testing.T) {
	secretText := errors.New("CUDA error at /secret/path: 0xdead")
	for _, c := range []struct {
		name   string
		err    error
		status int
		code   string
	}{
		{"engine error", secretText, 500, "engine_failed"},
		{"too long", &PromptTooLongError{PromptTokens: 120, ContextLength: 100}, 400, "context_length_exceeded"},
		{"too long, wrapped", fmt.Errorf("x: %w", &PromptTooLongError{PromptTokens: 120, ContextLength: 100}), 400, "context_length_exceeded"},
		{"unsupported", ErrUnsupported, 400, "unsupported_value"},
		{"fault", fault.New(fault.Exhausted, "no_cells", "No cells."), 429, "no_cells"},
	} {
		f := serve(t, &fakeEngine{generate: says(c.err)})
		for _, stream := range []string{"false", "true"} {
			status, body, _ := f.post("/v1/completions", `{"prompt":"a","stream":`+stream+`}`)
			param := ""
			if c.status == 400 {
				param = "prompt"
			}
			wantError(t, status, c.status, body, c.code, param)
			if strings.Contains(body, "secret") {
				t.Errorf("engine text is shown: %s", body)
			}
			if c.code == "context_length_exceeded" && (!strings.Contains(body, "120") || !strings.Contains(body, "100")) {
				t.Errorf("the counts are missing: %s", body)
			}
		}
		f.stop()
		if c.err == secretText && !strings.Contains(f.log.String(), "0xdead") {
			t.Error("the cause is not in the log")
		}
	}
	// After the first token only an error event can tell.
	f := serve(t, &fakeEngine{generate: says(secretText, "one", " two")})
	for path, body := range map[string]string{"/v1/infer": `{"prompt":"a","stream":true}`, "/v1/chat/completions": `{"messages":[{"role":"user","content":"a"}],"stream":true}`} {
		status, got, _ := f.post(path, body)
		if status != 200 || strings.Contains(got, "[DONE]") || strings.Contains(got, "done") || strings.Count(got, "failed while it worked") != 1 || strings.Contains(got, "secret") {
			t.Errorf("%s: a failure after two tokens gave %d %q", path, status, got)
		}
	}
}

func TestRuneThatNeverEnds(t *testing.T) {
	f := serve(t, &fakeEngine{generate: says(nil, "a", "\xf0\x9f")})
	if _, body, _ := f.post("/v1/infer", `{"prompt":"a"}`); !strings.Contains(body, `"text":"a`+"\ufffd"+`"`) {
		t.Errorf("got %s", body)
	}
}

func TestHugeTokenIsSplit(t *testing.T) {
	huge := strings.Repeat("é\"", 100_000)
	f := serve(t, &fakeEngine{generate: says(nil, huge)})
	_, body, _ := f.post("/v1/completions", `{"prompt":"a","stream":true}`)
	text := ""
	for _, e := range strings.Split(body, "\n\n") {
		if len(e) > 256<<10 {
			t.Errorf("an event has %d bytes", len(e))
		}
		var c struct{ Choices []struct{ Text string } }
		if json.Unmarshal([]byte(strings.TrimPrefix(e, "data: ")), &c) == nil && len(c.Choices) > 0 {
			text += c.Choices[0].Text
		}
	}
	if text != huge {
		t.Errorf("%d bytes came out of %d", len(text), len(huge))
	}
}

func TestQueueFullAndBusy(t *testing.T) {
	release := make(chan struct{})
	var inside sync.WaitGroup
	const most = 2 + maxWaiting
	inside.Add(most)
	f := serve(t, &fakeEngine{generate: func(ctx context.Context, _ *Request, _ func(Token) error) (Result, error) {
		inside.Done()
		<-release
		return Result{}, nil
	}})
	var all sync.WaitGroup
	for range most {
		all.Go(func() {
			if status, body, _ := f.post("/v1/infer", `{"prompt":"a"}`); status != 200 {
				t.Errorf("%d %s", status, body)
			}
		})
	}
	inside.Wait()
	if s := f.server.Info().Status; s != contract.StatusBusy {
		t.Errorf("the status is %s", s)
	}
	status, body, h := f.post("/v1/infer", `{"prompt":"a"}`)
	wantError(t, status, 429, body, "queue_full", "")
	if h.Get("Retry-After") == "" {
		t.Error("429 without Retry-After")
	}
	close(release)
	all.Wait()
	until(t, func() bool { return f.server.Info().Status == contract.StatusReady })
}

func TestHangUpCancels(t *testing.T) {
	for _, stream := range []bool{false, true} {
		entered, seen := make(chan struct{}), make(chan error, 1)
		f := serve(t, &fakeEngine{generate: func(ctx context.Context, _ *Request, _ func(Token) error) (Result, error) {
			close(entered)
			<-ctx.Done()
			seen <- ctx.Err()
			return Result{}, ctx.Err()
		}})
		ctx, hangUp := context.WithCancel(t.Context())
		go func() { <-entered; hangUp() }()
		if res, err := f.do(ctx, http.MethodPost, "/v1/infer", fmt.Sprintf(`{"prompt":"a","stream":%v}`, stream)); err == nil {
			_ = res.Body.Close()
			t.Error("an answer for a caller who hung up")
		}
		if err := <-seen; !errors.Is(err, context.Canceled) {
			t.Errorf("the engine saw %v", err)
		}
		f.stop()
		if strings.Contains(f.log.String(), "level=ERROR") {
			t.Errorf("a hang-up is logged as a failure: %s", f.log)
		}
	}
}

func TestEmbeddings(t *testing.T) {
	vector := []float32{0.5, -1, 3}
	f := serve(t, &fakeEngine{embed: func(_ context.Context, in []string) ([][]float32, int, error) {
		switch in[0] {
		case "long":
			return nil, 0, &PromptTooLongError{PromptTokens: 101, ContextLength: 100}
		case "none":
			return nil, 0, nil
		}
		return [][]float32{vector, vector}[:len(in)], 5, nil
	}})
	status, body, h := f.post("/v1/embeddings", `{"input":["a","b"],"model":"x"}`)
	if want := `{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,-1,3]},{"object":"embedding","index":1,"embedding":[0.5,-1,3]}],"model":"x","usage":{"prompt_tokens":5,"completion_tokens":0,"total_tokens":5`; status != 200 ||
		!strings.HasPrefix(body, want) || h.Get(contract.UsageTrailer) != `{"prompt_tokens":5,"cached_tokens":0,"completion_tokens":0}` {
		t.Errorf("%d %s %v", status, body, h)
	}
	raw, _ := base64.StdEncoding.DecodeString("AAAAPwAAgL8AAEBA")
	if _, body, _ := f.post("/v1/embeddings", `{"input":"a","encoding_format":"base64"}`); !strings.Contains(body, `"AAAAPwAAgL8AAEBA"`) || len(raw) != 12 || !strings.Contains(body, `"model":"m@1"`) {
		t.Errorf("base64: %s", body)
	}
	status, body, _ = f.post("/v1/embeddings", `{"input":"long"}`)
	wantError(t, status, 400, body, "context_length_exceeded", "input")
	status, body, _ = f.post("/v1/embeddings", `{"input":"none"}`)
	wantError(t, status, 500, body, "engine_failed", "")
}

func TestModelWithoutChatOrEmbeddings(t *testing.T) {
	f := serve(t, &fakeEngine{model: Model{Slots: 1, ContextLength: 10, Capabilities: []string{contract.CapabilityCompletion}}})
	if apis := f.server.Info().APIs; strings.Join(apis, " ") != "infer completions" {
		t.Errorf("apis are %v", apis)
	}
	status, body, _ := f.post("/v1/chat/completions", `{"messages":[{"role":"user","content":"a"}]}`)
	wantError(t, status, 400, body, "unsupported_value", "messages")
	status, body, _ = f.post("/v1/embeddings", `{"input":"a"}`)
	wantError(t, status, 400, body, "unsupported_value", "model")
}
