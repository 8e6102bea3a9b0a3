package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/openai"
)

// answerTokens is how much of an answer most checks ask for.
const answerTokens = 24

func contractChecks() []check {
	return []check{
		{"info fields", checkInfo},
		{"auth: everything but /health needs the secret", checkAuth},
		{"paths: unknown ones are JSON 404, wrong methods 405", checkPaths},
		{"infer: JSON answer, usage and trailer", checkInfer},
		{"infer: stream with one end, same text as JSON", checkInferStream},
		{"infer: max_tokens", checkMaxTokens},
		{"infer: stop sequences across token borders", checkStop},
		{"infer: UTF-8 is never split", checkUnicode},
		{"infer: conversation", checkMessages},
		{"infer: resume_text", checkResume},
		{"parameters: limits name the field", checkParameters},
		{"parameters: unknown fields are ignored", checkUnknownFields},
		{"bodies: garbage and other media types are refused", checkBodies},
		{"context: a prompt that does not fit is refused with both counts", checkContext},
		{"cancel: a closed connection frees the slot", checkCancel},
		{"concurrency: more requests than slots", checkConcurrency},
	}
}

// greedy is a request whose answer is the same each time.
func (p *probe) greedy(tokens int) map[string]any {
	return map[string]any{"prompt": p.Prompt, "max_tokens": tokens, "temperature": 0, "seed": 1}
}

func with(m map[string]any, kv ...any) map[string]any {
	for i := 0; i < len(kv); i += 2 {
		m[kv[i].(string)] = kv[i+1]
	}
	return m
}

func (p *probe) lists(ctx context.Context, capability string) error {
	w, err := p.info(ctx)
	if err == nil && !slices.Contains(w.Capabilities, capability) {
		return skipError("the worker does not list the capability " + capability)
	}
	return err
}

func checkInfo(ctx context.Context, p *probe) error {
	w, err := p.info(ctx)
	if err != nil {
		return err
	}
	var faults []string
	for _, f := range []struct {
		bad  bool
		what string
	}{
		{w.ID == "", "id is empty"},
		{w.ModelID == "", "model_id is empty"},
		{w.Device == "", "device is empty"},
		{w.Port < 1 || w.Port > 65535, "port is not a port"},
		{w.Implementation == "", "implementation is empty"},
		{w.Version == "", "version is empty"},
		{w.ContractVersion != contract.Version, fmt.Sprintf("contract_version is %d, not %d", w.ContractVersion, contract.Version)},
		{w.Incarnation <= 0, "incarnation is not a start time in ns"},
		{w.PID <= 0, "pid is not a process"},
		{w.StartedAt.IsZero(), "started_at is missing"},
		{!slices.Contains(w.APIs, contract.APIInfer), "apis does not list infer"},
		{len(w.Capabilities) == 0, "capabilities is empty"},
		{w.ContextLength <= 0, "context_length is not positive"},
		{w.Slots <= 0, "slots is not positive"},
		{w.LoadProgress != 1, "load_progress is not 1 though the worker is ready"},
	} {
		if f.bad {
			faults = append(faults, f.what)
		}
	}
	for _, a := range []struct{ api, capability string }{
		{contract.APIChat, contract.CapabilityChat}, {contract.APICompletions, contract.CapabilityCompletion}, {contract.APIEmbeddings, contract.CapabilityEmbedding},
	} {
		if slices.Contains(w.APIs, a.api) && !slices.Contains(w.Capabilities, a.capability) {
			faults = append(faults, "apis lists "+a.api+" and capabilities does not list "+a.capability)
		}
	}
	if len(faults) > 0 {
		return errors.New(strings.Join(faults, "; "))
	}
	return nil
}

func checkAuth(ctx context.Context, p *probe) error {
	wrong := "Bearer " + strings.Repeat("0", len(p.Secret.Reveal()))
	body := []byte(`{"prompt":"a","max_tokens":1}`)
	for _, path := range []string{"GET /info", "POST /v1/infer", "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "GET /v1/no-such-path"} {
		method, path, _ := strings.Cut(path, " ")
		data := body
		if method == http.MethodGet {
			data = nil
		}
		for _, try := range []struct{ path, authorization string }{
			{path, ""}, {path, wrong}, {path, "Basic " + p.Secret.Reveal()}, {path + "?token=" + p.Secret.Reveal(), ""},
		} {
			res, err := p.send(ctx, method, try.path, data, try.authorization)
			if err != nil {
				return err
			}
			if err := refused(res, http.StatusUnauthorized, "", ""); err != nil {
				return fmt.Errorf("%s %s without the right secret: %w", method, path, err)
			}
		}
	}
	return nil
}

func checkPaths(ctx context.Context, p *probe) error {
	for _, c := range []struct {
		method, path string
		status       int
	}{{http.MethodGet, "/v1/no-such-path", http.StatusNotFound}, {http.MethodGet, "/v1/infer", http.StatusMethodNotAllowed}} {
		res, err := p.send(ctx, c.method, c.path, nil, p.bearer())
		if err != nil {
			return err
		}
		if err := refused(res, c.status, "", ""); err != nil {
			return fmt.Errorf("%s %s: %w", c.method, c.path, err)
		}
	}
	return nil
}

func (p *probe) infer(ctx context.Context, body any) (contract.InferResponse, error) {
	var r contract.InferResponse
	res, err := p.call(ctx, "/v1/infer", body, &r)
	if err != nil {
		return r, err
	}
	if r.FinishReason != contract.FinishStop && r.FinishReason != contract.FinishLength {
		return r, fmt.Errorf("finish_reason is %q", r.FinishReason)
	}
	if u := r.Usage; u.PromptTokens < 1 || u.CachedTokens < 0 || u.CachedTokens > u.PromptTokens || u.CompletionTokens < 0 {
		return r, fmt.Errorf("usage cannot be: %+v", u)
	}
	return r, trailer(res.trailer, r.Usage)
}

// inferStream returns a stream's text and what its done event says.
func (p *probe) inferStream(ctx context.Context, body map[string]any) (string, contract.DoneEvent, error) {
	var done contract.DoneEvent
	events, tr, err := p.stream(ctx, "/v1/infer", with(body, "stream", true))
	if err != nil {
		return "", done, err
	}
	var text strings.Builder
	tokens, ends := 0, 0
	for i, e := range events {
		switch e.name {
		case contract.InferToken:
			var t contract.TokenEvent
			if err := json.Unmarshal(e.data, &t); err != nil {
				return "", done, fmt.Errorf("a token event is not JSON: %w", err)
			}
			text.WriteString(t.Text)
			tokens++
		case contract.InferDone:
			ends++
			if err := json.Unmarshal(e.data, &done); err != nil {
				return "", done, fmt.Errorf("the done event is not JSON: %w", err)
			}
		case contract.InferError:
			return "", done, fmt.Errorf("the stream ended with an error: %s", clip(e.data))
		default:
			return "", done, fmt.Errorf("there is no event %q in a stream of /v1/infer", e.name)
		}
		if ends > 0 && i != len(events)-1 {
			return "", done, errors.New("an event follows the done event")
		}
	}
	if ends != 1 {
		return "", done, fmt.Errorf("the stream has %d done events, not 1", ends)
	}
	// An engine may count the token that ends the text, for which there is nothing to send.
	if n := done.Usage.CompletionTokens; n > tokens+1 {
		return "", done, fmt.Errorf("usage counts %d tokens and the stream had %d token events", n, tokens)
	}
	return text.String(), done, trailer(tr, done.Usage)
}

func checkInfer(ctx context.Context, p *probe) error {
	r, err := p.infer(ctx, p.greedy(answerTokens))
	if err == nil && (r.Text == "" || r.Usage.CompletionTokens < 1 || r.Usage.CompletionTokens > answerTokens) {
		err = fmt.Errorf("max_tokens %d gave %d tokens and the text %q", answerTokens, r.Usage.CompletionTokens, r.Text)
	}
	return err
}

func checkInferStream(ctx context.Context, p *probe) error {
	want, err := p.infer(ctx, p.greedy(answerTokens))
	if err != nil {
		return err
	}
	text, done, err := p.inferStream(ctx, p.greedy(answerTokens))
	if err != nil {
		return err
	}
	if text != want.Text || done.FinishReason != want.FinishReason || done.Usage.CompletionTokens != want.Usage.CompletionTokens {
		return fmt.Errorf("the stream gave %q (%s, %d tokens) and JSON %q (%s, %d tokens)", text, done.FinishReason, done.Usage.CompletionTokens,
			want.Text, want.FinishReason, want.Usage.CompletionTokens)
	}
	return nil
}

func checkMaxTokens(ctx context.Context, p *probe) error {
	r, err := p.infer(ctx, p.greedy(1))
	if err == nil && (r.Usage.CompletionTokens != 1 || r.FinishReason != contract.FinishLength) {
		err = fmt.Errorf("max_tokens 1 gave %d tokens and the finish reason %s", r.Usage.CompletionTokens, r.FinishReason)
	}
	return err
}

// checkStop stops the greedy answer at pieces cut out of its middle, which as a rule begin and end inside tokens.
func checkStop(ctx context.Context, p *probe) error {
	whole, err := p.infer(ctx, p.greedy(answerTokens))
	if err != nil {
		return err
	}
	runes := []rune(whole.Text)
	if len(runes) < 8 {
		return skipError(fmt.Sprintf("the answer %q is too short to be stopped inside", whole.Text))
	}
	for _, length := range []int{1, 3, len(runes) / 3} {
		stop := string(runes[len(runes)/2 : len(runes)/2+length])
		want, _, _ := strings.Cut(whole.Text, stop)
		body := func() map[string]any { return with(p.greedy(answerTokens), "stop", []string{"\x01never", stop}) }
		r, err := p.infer(ctx, body())
		if err != nil {
			return err
		}
		text, done, err := p.inferStream(ctx, body())
		if err != nil {
			return err
		}
		if r.Text != want || text != want || r.FinishReason != contract.FinishStop || done.FinishReason != contract.FinishStop {
			return fmt.Errorf("stopped at %q: JSON gave %q (%s) and the stream %q (%s), not %q", stop, r.Text, r.FinishReason, text, done.FinishReason, want)
		}
	}
	// A sequence that only begins is given out in the end.
	text, _, err := p.inferStream(ctx, with(p.greedy(answerTokens), "stop", []string{string(runes[len(runes)-2:]) + "\x01never"}))
	if err == nil && text != whole.Text {
		err = fmt.Errorf("a stop sequence that only began swallowed text: %q instead of %q", text, whole.Text)
	}
	return err
}

func checkUnicode(ctx context.Context, p *probe) error {
	body := func() map[string]any {
		return with(p.greedy(answerTokens), "prompt", "Grüße 🐝🌻 日本語 — naïve café, Ωmega. Grüße 🐝🌻 日本語")
	}
	want, err := p.infer(ctx, body())
	if err != nil {
		return err
	}
	text, _, err := p.inferStream(ctx, body()) // reads raw bytes and wants UTF-8
	if err == nil && text != want.Text {
		err = fmt.Errorf("the stream gave %q and JSON %q", text, want.Text)
	}
	return err
}

func checkMessages(ctx context.Context, p *probe) error {
	if err := p.lists(ctx, contract.CapabilityChat); err != nil {
		return err
	}
	r, err := p.infer(ctx, map[string]any{"messages": []contract.Message{{Role: "system", Content: "Be brief."}, {Role: "user", Content: p.Prompt}}, "max_tokens": 8, "temperature": 0})
	if err == nil && r.Usage.CompletionTokens < 1 {
		err = errors.New("a conversation got no token")
	}
	return err
}

func checkResume(ctx context.Context, p *probe) error {
	if err := p.lists(ctx, contract.CapabilityResume); err != nil {
		return err
	}
	whole, err := p.infer(ctx, p.greedy(answerTokens))
	if err != nil {
		return err
	}
	cut := strings.LastIndexByte(whole.Text[:len(whole.Text)/2], ' ')
	if cut < 1 {
		return skipError("the answer is too short to be resumed")
	}
	r, err := p.infer(ctx, with(p.greedy(4), "resume_text", whole.Text[:cut]))
	switch {
	case err != nil:
		return err
	case r.Usage.PromptTokens <= whole.Usage.PromptTokens:
		return errors.New("resume_text does not count as prompt")
	case r.Usage.CompletionTokens > 4 || strings.HasPrefix(r.Text, whole.Text[:cut]):
		return fmt.Errorf("the answer repeats resume_text: %q", r.Text)
	}
	return nil
}

func checkParameters(ctx context.Context, p *probe) error {
	many := make([]string, 100_000)
	for i := range many {
		many[i] = "x"
	}
	for _, c := range []struct {
		field string
		value any
	}{
		{"max_tokens", -1}, {"max_tokens", 1.5}, {"temperature", -0.1}, {"temperature", 2.5}, {"temperature", "hot"}, {"top_p", 1.5}, {"top_p", -1},
		{"top_k", -5}, {"min_p", 2}, {"repeat_penalty", -1}, {"stop", many}, {"stop", []string{""}}, {"messages", []contract.Message{}},
		{"messages", []contract.Message{{Role: "wizard", Content: "a"}}},
	} {
		body := map[string]any{"prompt": "a", "max_tokens": 1}
		if c.field == "messages" {
			delete(body, "prompt")
		}
		res, err := p.post(ctx, "/v1/infer", with(body, c.field, c.value))
		if err != nil {
			return err
		}
		if err := refused(res, http.StatusBadRequest, "", c.field); err != nil {
			return fmt.Errorf("%s with a wrong value: %w", c.field, err)
		}
	}
	for _, body := range []string{`{"max_tokens":1}`, `{"prompt":"a","messages":[{"role":"user","content":"a"}],"max_tokens":1}`} {
		res, err := p.post(ctx, "/v1/infer", body)
		if err != nil {
			return err
		}
		if err := refused(res, http.StatusBadRequest, "", ""); err != nil {
			return fmt.Errorf("%s: %w", body, err)
		}
	}
	return nil
}

func checkUnknownFields(ctx context.Context, p *probe) error {
	_, err := p.infer(ctx, with(p.greedy(2), "n_discard", -1, "x_unknown", map[string]any{"a": []int{1}}))
	return err
}

func checkBodies(ctx context.Context, p *probe) error {
	for _, body := range []string{"", "{", "[]", "nonsense", `{"prompt":"a"}{"prompt":"b"}`, `{"prompt":"a","temperature":NaN}`,
		`{"prompt":"a","x":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + `}`} {
		res, err := p.post(ctx, "/v1/infer", body)
		if err != nil {
			return err
		}
		if err := refused(res, http.StatusBadRequest, "", ""); err != nil {
			return fmt.Errorf("the body %s: %w", clip([]byte(body)), err)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.BaseURL+"/v1/infer", strings.NewReader("prompt=a"))
	if err != nil {
		return fmt.Errorf("make a request: %w", err)
	}
	req.Header.Set("Authorization", p.bearer())
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := p.client.Do(req)
	if err != nil {
		return fmt.Errorf("post a form: %w", err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnsupportedMediaType {
		return fmt.Errorf("a form is answered with %d, not 415", res.StatusCode)
	}
	return nil
}

var number = regexp.MustCompile(`[0-9]+`)

func checkContext(ctx context.Context, p *probe) error {
	w, err := p.info(ctx)
	if err != nil {
		return err
	}
	if w.ContextLength > 1_000_000 {
		return skipError("the context is larger than a request body may be")
	}
	res, err := p.post(ctx, "/v1/infer", map[string]any{"prompt": strings.Repeat("bee ", w.ContextLength+64), "max_tokens": 1, "stream": true})
	if err != nil {
		return err
	}
	if err := refused(res, http.StatusBadRequest, "context_length_exceeded", "prompt"); err != nil {
		return err
	}
	if n := len(number.FindAll(res.body, -1)); n < 2 || !strings.Contains(string(res.body), fmt.Sprint(w.ContextLength)) {
		return fmt.Errorf("the refusal does not say both counts: %s", clip(res.body))
	}
	return nil
}

func checkCancel(ctx context.Context, p *probe) error {
	before, err := p.info(ctx)
	if err != nil {
		return err
	}
	for range 3 {
		streamCtx, hangUp := context.WithCancel(ctx)
		data, err := encode(with(p.greedy(100_000), "stream", true, "prompt", p.Prompt))
		if err == nil {
			var res *http.Response
			if res, err = p.open(streamCtx, http.MethodPost, "/v1/infer", data, p.bearer()); err == nil {
				_, err = openai.NewReader(res.Body).Next()
				hangUp()
				_ = res.Body.Close()
			}
		}
		hangUp()
		if err != nil {
			return fmt.Errorf("no first event before the hang-up: %w", err)
		}
	}
	return p.await(ctx, 2*time.Second, "the slots of callers who hung up are free", func(w contract.WorkerInfo) bool {
		return w.SlotsBusy <= before.SlotsBusy && w.QueueDepth <= before.QueueDepth
	})
}

func checkConcurrency(ctx context.Context, p *probe) error {
	w, err := p.info(ctx)
	if err != nil {
		return err
	}
	n := min(w.Slots+2, 16)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			r, err := p.infer(ctx, with(p.greedy(8), "prompt", fmt.Sprintf("%s, number %d", p.Prompt, i)))
			if err == nil && r.Usage.CompletionTokens < 1 {
				err = errors.New("no token")
			}
			if err != nil {
				errs[i] = fmt.Errorf("request %d of %d at once: %w", i+1, n, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
