package sdk

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/openai"
)

// encoder gives the answer of one request its form. The append functions append whole server-sent events, or nothing.
type encoder interface {
	begin(b []byte) []byte                        // before the first token
	token(b []byte, text string, id int) []byte   // id < 0: text that was held back
	done(b []byte, r Result) []byte               // the end of a generation
	failed(b []byte, err error, id string) []byte // the end of a stream that fails; id is the request's
	whole(text string, r Result) any              // the answer without a stream
}

// appendEvent appends one event whose data is v as JSON. v is always of a type that can be encoded.
func appendEvent(b []byte, name string, v any) []byte {
	if name != "" {
		b = append(append(append(b, "event: "...), name...), '\n')
	}
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	b = append(b, "data: "...)
	b = append(b, data...)
	return append(b, "\n\n"...)
}

// appendString appends s, which is valid UTF-8, as a JSON string.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' && c != 0x7f {
			continue
		}
		b = append(b, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	b = append(b, s[from:]...)
	return append(b, '"')
}

// inferEncoder speaks /v1/infer.
type inferEncoder struct{}

func (inferEncoder) begin(b []byte) []byte { return b }

// token sends an event for every token, also one whose text is held back, so that tokens can be counted.
func (inferEncoder) token(b []byte, text string, id int) []byte {
	b = append(b, "event: token\ndata: {\"text\":"...)
	b = appendString(b, text)
	if id >= 0 {
		b = strconv.AppendInt(append(b, `,"token_id":`...), int64(id), 10)
	}
	return append(b, "}\n\n"...)
}

func (inferEncoder) done(b []byte, r Result) []byte {
	return appendEvent(b, contract.InferDone, contract.DoneEvent{FinishReason: r.FinishReason, Usage: r.Usage, Timings: r.Timings})
}

func (inferEncoder) failed(b []byte, err error, id string) []byte {
	return appendEvent(b, contract.InferError, contract.ErrorEvent{Kind: string(fault.KindOf(err)), Message: fault.Wire(err, id).Message})
}

func (inferEncoder) whole(text string, r Result) any {
	return contract.InferResponse{Text: text, FinishReason: r.FinishReason, Usage: r.Usage, Timings: r.Timings}
}

// openaiEncoder speaks chat and text completions.
type openaiEncoder struct {
	id      string
	model   string
	created int64
	chat    bool
	usage   bool   // stream_options.include_usage
	head    []byte // of an event, up to the text of a token
	tail    string // from there on
}

func newOpenAIEncoder(chat bool, j *job) *openaiEncoder {
	e := &openaiEncoder{model: j.model, created: time.Now().Unix(), chat: chat, usage: j.includeUsage}
	object, prefix := openai.ObjectCompletion, "cmpl-"
	if chat {
		object, prefix = openai.ObjectChatChunk, "chatcmpl-"
	}
	e.id = prefix + strings.TrimPrefix(j.ID, "req-")
	if !j.stream {
		return e
	}
	b := append(make([]byte, 0, 256), `data: {"id":`...)
	b = appendString(b, e.id)
	b = append(append(append(b, `,"object":"`...), object...), `","created":`...)
	b = strconv.AppendInt(b, e.created, 10)
	b = appendString(append(b, `,"model":`...), e.model)
	null := ""
	if e.usage {
		null = `,"usage":null` // as OpenAI does in every chunk but the last
	}
	if chat {
		e.head = append(b, `,"choices":[{"index":0,"delta":{"content":`...)
		e.tail = `},"logprobs":null,"finish_reason":null}]` + null + "}\n\n"
	} else {
		e.head = append(b, `,"choices":[{"index":0,"text":`...)
		e.tail = `,"logprobs":null,"finish_reason":null}]` + null + "}\n\n"
	}
	return e
}

func (e *openaiEncoder) begin(b []byte) []byte {
	if !e.chat {
		return b
	}
	empty := ""
	return e.chunk(b, nil, openai.ChatDelta{Delta: openai.Delta{Role: "assistant", Content: &empty}})
}

func (e *openaiEncoder) chunk(b []byte, usage *openai.Usage, choices ...openai.ChatDelta) []byte {
	if choices == nil {
		choices = []openai.ChatDelta{} // [] and not null
	}
	return appendEvent(b, "", openai.ChatChunk{ID: e.id, Object: openai.ObjectChatChunk, Created: e.created, Model: e.model, Choices: choices, Usage: usage})
}

func (e *openaiEncoder) token(b []byte, text string, _ int) []byte {
	if text == "" {
		return b
	}
	return append(appendString(append(b, e.head...), text), e.tail...)
}

func (e *openaiEncoder) done(b []byte, r Result) []byte {
	usage := openai.NewUsage(r.Usage.PromptTokens, r.Usage.CachedTokens, r.Usage.CompletionTokens)
	if e.chat {
		b = e.chunk(b, nil, openai.ChatDelta{FinishReason: &r.FinishReason})
		if e.usage {
			b = e.chunk(b, usage)
		}
	} else {
		last := openai.CompletionResponse{ID: e.id, Object: openai.ObjectCompletion, Created: e.created, Model: e.model,
			Choices: []openai.CompletionChoice{{FinishReason: &r.FinishReason}}}
		b = appendEvent(b, "", last)
		if e.usage {
			last.Choices, last.Usage = []openai.CompletionChoice{}, usage
			b = appendEvent(b, "", last)
		}
	}
	return append(b, "data: "+openai.Done+"\n\n"...)
}

// failed ends an OpenAI stream: one event with an error, and no [DONE] (F6).
func (e *openaiEncoder) failed(b []byte, err error, id string) []byte {
	return appendEvent(b, "", contract.ErrorBody{Error: fault.Wire(err, id)})
}

func (e *openaiEncoder) whole(text string, r Result) any {
	usage := openai.NewUsage(r.Usage.PromptTokens, r.Usage.CachedTokens, r.Usage.CompletionTokens)
	if e.chat {
		return openai.ChatResponse{ID: e.id, Object: openai.ObjectChat, Created: e.created, Model: e.model, Usage: usage,
			Choices: []openai.ChatChoice{{Message: openai.Message{Role: "assistant", Content: openai.Content(text)}, FinishReason: &r.FinishReason}}}
	}
	return openai.CompletionResponse{ID: e.id, Object: openai.ObjectCompletion, Created: e.created, Model: e.model, Usage: usage,
		Choices: []openai.CompletionChoice{{Text: text, FinishReason: &r.FinishReason}}}
}
