package gateway

import (
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/openai"
)

// translation is a request for a worker that serves only /v1/infer, and the way back.
type translation struct {
	request []byte // a contract.InferRequest
	chat    bool
	usage   bool // the stream ends with a chunk of usage

	id, model string
	created   int64
	begun     bool
}

// chatToInfer translates the body of /v1/chat/completions.
func chatToInfer(body []byte) (*translation, error) {
	var q openai.ChatRequest
	if err := unmarshal(body, &q); err != nil {
		return nil, err
	}
	if len(q.Messages) == 0 {
		return nil, fault.New(fault.Invalid, "invalid_value", `The request needs at least one message in "messages".`).WithParam("messages")
	}
	r := contract.InferRequest{Model: q.Model}
	for _, m := range q.Messages {
		r.Messages = append(r.Messages, contract.Message{Role: m.Role, Content: string(m.Content)})
	}
	return newTranslation(r, q.Sampling, true)
}

// completionToInfer translates the body of /v1/completions.
func completionToInfer(body []byte) (*translation, error) {
	var q openai.CompletionRequest
	if err := unmarshal(body, &q); err != nil {
		return nil, err
	}
	if len(q.Prompt) != 1 {
		return nil, fault.New(fault.Invalid, "invalid_value", `The request needs one text in "prompt".`).WithParam("prompt")
	}
	return newTranslation(contract.InferRequest{Model: q.Model, Prompt: &q.Prompt[0]}, q.Sampling, false)
}

func unmarshal(body []byte, v any) error {
	err := json.Unmarshal(body, v)
	if err == nil {
		return nil
	}
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := strings.TrimPrefix(te.Field, "Sampling.") // embedded, which clients do not see
		return fault.New(fault.Invalid, "invalid_value", "The field %q has the wrong type.", field).WithParam(field)
	}
	if errors.Is(err, openai.ErrUnsupported) {
		return fault.New(fault.Invalid, "unsupported", "The request asks for what this model cannot do: %v.", err)
	}
	return fault.New(fault.Invalid, "invalid_value", "The request body has a field of the wrong form: %v.", err)
}

func newTranslation(r contract.InferRequest, s openai.Sampling, chat bool) (*translation, error) {
	switch {
	case s.N != nil && *s.N != 1:
		return nil, fault.New(fault.Invalid, "invalid_value", "The workers of this model give one answer to a request; n must be 1.").WithParam("n")
	case s.Seed != nil && *s.Seed < 0:
		return nil, fault.New(fault.Invalid, "invalid_value", "The seed must not be negative.").WithParam("seed")
	}
	r.MaxTokens = s.MaxTokens
	if s.MaxCompletionTokens != nil {
		r.MaxTokens = s.MaxCompletionTokens
	}
	r.Temperature, r.TopP, r.TopK, r.MinP, r.RepeatPenalty = s.Temperature, s.TopP, s.TopK, s.MinP, s.RepeatPenalty
	if s.Seed != nil {
		seed := uint64(*s.Seed)
		r.Seed = &seed
	}
	r.Stop, r.Stream = s.Stop, s.Stream
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	return &translation{request: b, chat: chat, usage: s.StreamOptions != nil && s.StreamOptions.IncludeUsage, created: time.Now().Unix()}, nil
}

func openaiUsage(u contract.Usage) *openai.Usage {
	return openai.NewUsage(u.PromptTokens, u.CachedTokens, u.CompletionTokens)
}

// answer translates the answer to a request that does not stream.
func (t *translation) answer(body []byte) ([]byte, error) {
	var r contract.InferResponse
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, bad("it is not an InferResponse")
	}
	if t.chat {
		return json.Marshal(openai.ChatResponse{ID: "chatcmpl-" + t.id, Object: openai.ObjectChat, Created: t.created, Model: t.model,
			Choices: []openai.ChatChoice{{Message: openai.Message{Role: "assistant", Content: openai.Content(r.Text)}, FinishReason: &r.FinishReason}},
			Usage:   openaiUsage(r.Usage)})
	}
	return json.Marshal(openai.CompletionResponse{ID: "cmpl-" + t.id, Object: openai.ObjectCompletion, Created: t.created, Model: t.model,
		Choices: []openai.CompletionChoice{{Text: r.Text, FinishReason: &r.FinishReason}}, Usage: openaiUsage(r.Usage)})
}

// event translates one event of a stream.
func (t *translation) event(a *answer, name string, data []byte) (out []byte, err error) {
	switch name {
	case contract.InferToken:
		var e contract.TokenEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, bad("an event is not a TokenEvent")
		}
		return t.chunk(out, e.Text, nil, nil)
	case contract.InferDone:
		var e contract.DoneEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, bad("an event is not a DoneEvent")
		}
		if out, err = t.chunk(out, "", &e.FinishReason, nil); err != nil {
			return nil, err
		}
		if t.usage {
			if out, err = t.chunk(out, "", nil, openaiUsage(e.Usage)); err != nil {
				return nil, err
			}
		}
		a.over = true
		return append(out, "data: "+openai.Done+"\n\n"...), nil
	case contract.InferError:
		var e contract.ErrorEvent
		if err := json.Unmarshal(data, &e); err != nil {
			return nil, bad("an event is not an ErrorEvent")
		}
		a.over, a.failed = true, true
		return appendEvent(nil, contract.ErrorBody{Error: fault.Wire(fault.New(fault.Kind(e.Kind), "", "%s", e.Message), "")})
	}
	return nil, bad("a stream has an event of an unknown name")
}

// chunk appends the event for a piece of text, for the end, or for the usage.
func (t *translation) chunk(dst []byte, text string, finish *string, usage *openai.Usage) ([]byte, error) {
	if !t.chat {
		c := openai.CompletionResponse{ID: "cmpl-" + t.id, Object: openai.ObjectCompletion, Created: t.created, Model: t.model,
			Choices: []openai.CompletionChoice{}, Usage: usage}
		if usage == nil {
			c.Choices = append(c.Choices, openai.CompletionChoice{Text: text, FinishReason: finish})
		}
		return appendEvent(dst, c)
	}
	c := openai.ChatChunk{ID: "chatcmpl-" + t.id, Object: openai.ObjectChatChunk, Created: t.created, Model: t.model,
		Choices: []openai.ChatDelta{}, Usage: usage}
	if usage == nil {
		var d openai.Delta
		if !t.begun {
			t.begun, d.Role = true, "assistant"
		}
		if finish == nil {
			d.Content = &text
		}
		c.Choices = append(c.Choices, openai.ChatDelta{Delta: d, FinishReason: finish})
	}
	return appendEvent(dst, c)
}

func appendEvent(dst []byte, v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	dst = append(dst, "data: "...)
	dst = append(dst, b...)
	return append(dst, "\n\n"...), nil
}
