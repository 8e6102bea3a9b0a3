package conformance

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/openai"
)

func openaiChecks() []check {
	return []check{
		{"chat: JSON answer", func(ctx context.Context, p *probe) error { return checkAnswer(ctx, p, true) }},
		{"chat: stream", func(ctx context.Context, p *probe) error { return checkStream(ctx, p, true) }},
		{"chat: refusals name the field", checkChatRefusals},
		{"completions: JSON answer", func(ctx context.Context, p *probe) error { return checkAnswer(ctx, p, false) }},
		{"completions: stream", func(ctx context.Context, p *probe) error { return checkStream(ctx, p, false) }},
		{"embeddings: floats, base64 and lists", checkEmbeddings},
	}
}

// surface returns the path of chat or text completions and a greedy request, or skips.
func (p *probe) surface(ctx context.Context, chat bool) (string, map[string]any, error) {
	w, err := p.info(ctx)
	if err != nil {
		return "", nil, err
	}
	api, path := contract.APICompletions, "/v1/completions"
	body := with(p.greedy(answerTokens), "model", "any-name")
	if chat {
		api, path = contract.APIChat, "/v1/chat/completions"
		delete(body, "prompt")
		body["messages"] = []contract.Message{{Role: "user", Content: p.Prompt}}
	}
	if !slices.Contains(w.APIs, api) {
		return "", nil, skipError("the worker does not list " + api)
	}
	return path, body, nil
}

// piece is what answers and chunks of both surfaces have in common.
type piece struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	Model   string `json:"model"`
	Choices []struct {
		Index        int           `json:"index"`
		Text         string        `json:"text"`
		Message      *openai.Delta `json:"message"`
		Delta        *openai.Delta `json:"delta"`
		FinishReason *string       `json:"finish_reason"`
	} `json:"choices"`
	Usage *openai.Usage `json:"usage"`
}

func (c *piece) check(object string) error {
	if c.ID == "" || c.Object != object || c.Created <= 0 || c.Model != "any-name" {
		return fmt.Errorf("id, object, created or model is wrong: %q, %q (not %q), %d, %q", c.ID, c.Object, object, c.Created, c.Model)
	}
	return nil
}

// text of the only choice.
func (c *piece) text() string {
	ch := c.Choices[0]
	for _, d := range []*openai.Delta{ch.Message, ch.Delta} {
		if d != nil && d.Content != nil {
			return *d.Content
		}
	}
	return ch.Text
}

func workerUsage(u *openai.Usage) contract.Usage {
	w := contract.Usage{PromptTokens: u.PromptTokens, CompletionTokens: u.CompletionTokens}
	if u.PromptTokensDetails != nil {
		w.CachedTokens = u.PromptTokensDetails.CachedTokens
	}
	return w
}

func (p *probe) answer(ctx context.Context, path string, body any, object string) (*piece, error) {
	var c piece
	res, err := p.call(ctx, path, body, &c)
	if err != nil {
		return nil, err
	}
	if err := c.check(object); err != nil {
		return nil, err
	}
	if len(c.Choices) != 1 || c.Choices[0].FinishReason == nil || c.Usage == nil {
		return nil, fmt.Errorf("the answer has no single finished choice with usage: %s", clip(res.body))
	}
	if u := c.Usage; u.TotalTokens != u.PromptTokens+u.CompletionTokens || u.PromptTokens < 1 {
		return nil, fmt.Errorf("the counts of usage cannot be: %+v", *u)
	}
	return &c, trailer(res.trailer, workerUsage(c.Usage))
}

func checkAnswer(ctx context.Context, p *probe, chat bool) error {
	path, body, err := p.surface(ctx, chat)
	if err != nil {
		return err
	}
	object := openai.ObjectCompletion
	if chat {
		object = openai.ObjectChat
	}
	c, err := p.answer(ctx, path, body, object)
	if err != nil {
		return err
	}
	if chat && (c.Choices[0].Message == nil || c.Choices[0].Message.Role != "assistant") {
		return errors.New("the message is not the assistant's")
	}
	if c.Usage.CompletionTokens < 1 || c.Usage.CompletionTokens > answerTokens {
		return fmt.Errorf("max_tokens %d gave %d tokens", answerTokens, c.Usage.CompletionTokens)
	}
	// The other forms of the same request mean the same.
	whole := c.text()
	delete(body, "max_tokens")
	body["max_completion_tokens"], body["stop"], body["n"] = answerTokens, "\x01never", 1
	if chat {
		body["messages"] = []map[string]any{{"role": "user", "content": []map[string]string{{"type": "text", "text": p.Prompt}}}}
	} else {
		body["prompt"] = []string{p.Prompt}
	}
	c, err = p.answer(ctx, path, body, object)
	if err == nil && c.text() != whole {
		err = fmt.Errorf("the same request in another form gave %q, not %q", c.text(), whole)
	}
	return err
}

func checkStream(ctx context.Context, p *probe, chat bool) error {
	path, body, err := p.surface(ctx, chat)
	if err != nil {
		return err
	}
	answerObject, object := openai.ObjectCompletion, openai.ObjectCompletion
	if chat {
		answerObject, object = openai.ObjectChat, openai.ObjectChatChunk
	}
	want, err := p.answer(ctx, path, body, answerObject)
	if err != nil {
		return err
	}
	for _, include := range []bool{false, true} {
		body["stream"] = true
		delete(body, "stream_options")
		if include {
			body["stream_options"] = map[string]bool{"include_usage": true}
		}
		events, tr, err := p.stream(ctx, path, body)
		if err != nil {
			return err
		}
		if len(events) < 2 || string(events[len(events)-1].data) != openai.Done {
			return errors.New("the stream does not end with [DONE]")
		}
		if err := followStream(events[:len(events)-1], object, include, want, tr); err != nil {
			return fmt.Errorf("include_usage %v: %w", include, err)
		}
	}
	return nil
}

// followStream checks the chunks before [DONE] against the answer without a stream.
func followStream(events []event, object string, include bool, want *piece, tr http.Header) error {
	var text, id string
	finished, usages := 0, 0
	for i, e := range events {
		var c piece
		if err := json.Unmarshal(e.data, &c); err != nil || e.name != "" {
			return fmt.Errorf("event %d (%q) is not a chunk: %s", i, e.name, clip(e.data))
		}
		if err := c.check(object); err != nil {
			return fmt.Errorf("chunk %d: %w", i, err)
		}
		if id == "" {
			id = c.ID
		}
		if c.ID != id {
			return errors.New("the id changes within the stream")
		}
		if c.Usage != nil {
			usages++
			if got, all := workerUsage(c.Usage), workerUsage(want.Usage); got.CompletionTokens != all.CompletionTokens || len(c.Choices) != 0 {
				return fmt.Errorf("the last chunk counts %+v with %d choices; JSON counted %+v", got, len(c.Choices), all)
			}
			if err := trailer(tr, workerUsage(c.Usage)); err != nil {
				return err
			}
			continue
		}
		if len(c.Choices) != 1 {
			return fmt.Errorf("chunk %d has %d choices", i, len(c.Choices))
		}
		if finished > 0 && c.text() != "" {
			return errors.New("text follows the finish reason")
		}
		text += c.text()
		if f := c.Choices[0].FinishReason; f != nil {
			finished++
			if *f != *want.Choices[0].FinishReason {
				return fmt.Errorf("the finish reason is %s and JSON said %s", *f, *want.Choices[0].FinishReason)
			}
		}
		if i == 0 && object == openai.ObjectChatChunk && (c.Choices[0].Delta == nil || c.Choices[0].Delta.Role != "assistant") {
			return errors.New("the first chunk does not name the role")
		}
	}
	if wantUsages := map[bool]int{true: 1}[include]; finished != 1 || usages != wantUsages || text != want.text() {
		return fmt.Errorf("%d finish reasons, %d usages (expected 1 and %d), text %q, JSON gave %q", finished, usages, wantUsages, text, want.text())
	}
	if tr.Get(contract.UsageTrailer) == "" {
		return errors.New("the trailer " + contract.UsageTrailer + " is missing")
	}
	return nil
}

func checkChatRefusals(ctx context.Context, p *probe) error {
	path, _, err := p.surface(ctx, true)
	if err != nil {
		return err
	}
	image := []map[string]any{{"role": "user", "content": []map[string]any{
		{"type": "image_url", "image_url": map[string]string{"url": "http://127.0.0.1:9/never-fetched.png"}}}}}
	for _, c := range []struct {
		field string
		value any
	}{
		{"n", 1_000_000_000}, {"max_tokens", -1}, {"max_completion_tokens", -1}, {"temperature", 3}, {"top_p", 2}, {"messages", image}, {"messages", []int{}},
		{"stop", 5}, {"stop", slices.Repeat([]string{"x"}, contract.MaxStop+1)}, {"logit_bias", map[string]int{"1": 100}},
	} {
		_, body, err := p.surface(ctx, true)
		if err != nil {
			return err
		}
		body[c.field] = c.value
		res, err := p.post(ctx, path, body)
		if err != nil {
			return err
		}
		if err := refused(res, http.StatusBadRequest, "", c.field); err != nil {
			return fmt.Errorf("%s with a wrong value: %w", c.field, err)
		}
	}
	return nil
}

func checkEmbeddings(ctx context.Context, p *probe) error {
	w, err := p.info(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(w.APIs, contract.APIEmbeddings) {
		return skipError("the worker does not list " + contract.APIEmbeddings)
	}
	type answer[V any] struct {
		Object string `json:"object"`
		Data   []struct {
			Object    string `json:"object"`
			Index     int    `json:"index"`
			Embedding V      `json:"embedding"`
		} `json:"data"`
		Usage openai.Usage `json:"usage"`
	}
	var floats answer[[]float32]
	inputs := []string{"The bee sees the sea.", "A tall tree."}
	res, err := p.call(ctx, "/v1/embeddings", map[string]any{"model": "m", "input": inputs}, &floats)
	if err != nil {
		return err
	}
	if floats.Object != openai.ObjectList || len(floats.Data) != 2 || floats.Data[1].Index != 1 || len(floats.Data[0].Embedding) == 0 || floats.Usage.PromptTokens < 2 {
		return fmt.Errorf("two inputs are not answered with a list of two vectors and usage: %s", clip(res.body))
	}
	if err := trailer(res.trailer, contract.Usage{PromptTokens: floats.Usage.PromptTokens}); err != nil {
		return err
	}
	var packed answer[string]
	if _, err := p.call(ctx, "/v1/embeddings", map[string]any{"model": "m", "input": inputs[0], "encoding_format": "base64"}, &packed); err != nil {
		return err
	}
	if len(packed.Data) != 1 {
		return fmt.Errorf("one input is answered with %d vectors", len(packed.Data))
	}
	raw, err := base64.StdEncoding.DecodeString(packed.Data[0].Embedding)
	want := floats.Data[0].Embedding
	if err != nil || len(raw) != 4*len(want) {
		return fmt.Errorf("the base64 vector has %d bytes and the other %d numbers: %w", len(raw), len(want), errors.Join(err))
	}
	for i, v := range want {
		if got := math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:])); math.Abs(float64(got-v)) > 1e-3 {
			return fmt.Errorf("number %d is %g in base64 and %g as a float", i, got, v)
		}
	}
	for _, bad := range []string{`{"input":[]}`, `{"input":7}`, `{"input":"a","encoding_format":"morse"}`} {
		res, err := p.post(ctx, "/v1/embeddings", bad)
		if err != nil {
			return err
		}
		field := "input"
		if strings.Contains(bad, "morse") {
			field = "encoding_format"
		}
		if err := refused(res, http.StatusBadRequest, "", field); err != nil {
			return fmt.Errorf("%s: %w", bad, err)
		}
	}
	return nil
}
