package openai

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// ErrUnsupported is what errors.Is finds in errors about well-formed requests that ask for something Apiary does not do, such as images.
var ErrUnsupported = errors.New("not supported")

// unsupported is a text that says itself what is not supported, as an ErrUnsupported.
type unsupported string

func (u unsupported) Error() string { return string(u) }

func (u unsupported) Is(target error) bool { return target == ErrUnsupported }

// Content is the text of a message. It is read from a string, from null, or from an array of {"type":"text","text":…}
// parts, whose texts are joined. A part of another type is an error that is ErrUnsupported; its reference is not fetched.
type Content string

// UnmarshalJSON reads the forms that Content describes.
func (c *Content) UnmarshalJSON(b []byte) error {
	s, err := flatten(b, "content")
	*c = Content(s)
	return err
}

func flatten(b []byte, what string) (string, error) {
	var s string
	switch b = bytes.TrimSpace(b); {
	case len(b) == 0 || string(b) == "null":
		return "", nil
	case b[0] == '"':
		err := json.Unmarshal(b, &s)
		return s, err
	case b[0] != '[':
		return "", fmt.Errorf("%s must be a string or an array of text parts", what)
	}
	var parts []struct {
		Type string  `json:"type"`
		Text *string `json:"text"`
	}
	if err := json.Unmarshal(b, &parts); err != nil {
		return "", fmt.Errorf("%s must be a string or an array of text parts: %w", what, err)
	}
	var t strings.Builder
	for i, p := range parts {
		switch {
		case p.Type != "text":
			return "", unsupported(fmt.Sprintf("%s part %d has the type %q, and only text is supported", what, i, p.Type))
		case p.Text == nil:
			return "", fmt.Errorf("%s part %d has no text", what, i)
		}
		t.WriteString(*p.Text)
	}
	return t.String(), nil
}

// Strings is a list that may be written as one string: stop, and the input of embeddings.
type Strings []string

// UnmarshalJSON reads a string, an array of strings or null. Arrays of token ids are an error that is ErrUnsupported.
func (l *Strings) UnmarshalJSON(b []byte) error {
	switch b = bytes.TrimSpace(b); {
	case len(b) == 0 || string(b) == "null":
		*l = nil
		return nil
	case b[0] == '"':
		var s string
		err := json.Unmarshal(b, &s)
		*l = Strings{s}
		return err
	case b[0] != '[':
		return errors.New("a string or an array of strings is expected")
	}
	var v []string
	if err := json.Unmarshal(b, &v); err != nil {
		var n []any
		if json.Unmarshal(b, &n) == nil && len(n) > 0 {
			return unsupported("an array of strings is expected, and token ids are not supported")
		}
		return fmt.Errorf("a string or an array of strings is expected: %w", err)
	}
	*l = v
	return nil
}

// Message is one turn of a conversation in a request or an answer.
type Message struct {
	Role    string  `json:"role"`
	Content Content `json:"content"`
	Name    string  `json:"name,omitempty"`
}

// StreamOptions says what a stream carries beside tokens.
type StreamOptions struct {
	IncludeUsage bool `json:"include_usage,omitempty"`
}

// Sampling holds the parameters that chat and text completions share. A nil pointer means that the request did not say.
// TopK, MinP, RepeatPenalty and IgnoreEOS are extensions that servers of this field have in common.
type Sampling struct {
	MaxTokens           *int            `json:"max_tokens,omitempty"`
	MaxCompletionTokens *int            `json:"max_completion_tokens,omitempty"`
	Temperature         *float64        `json:"temperature,omitempty"`
	TopP                *float64        `json:"top_p,omitempty"`
	TopK                *int            `json:"top_k,omitempty"`
	MinP                *float64        `json:"min_p,omitempty"`
	RepeatPenalty       *float64        `json:"repeat_penalty,omitempty"`
	Seed                *int64          `json:"seed,omitempty"`
	Stop                Strings         `json:"stop,omitempty"`
	N                   *int            `json:"n,omitempty"`
	LogitBias           json.RawMessage `json:"logit_bias,omitempty"`
	IgnoreEOS           bool            `json:"ignore_eos,omitempty"`
	Stream              bool            `json:"stream,omitempty"`
	StreamOptions       *StreamOptions  `json:"stream_options,omitempty"`
}

// ChatRequest is the body of POST /v1/chat/completions.
type ChatRequest struct {
	Model    string    `json:"model"`
	Messages []Message `json:"messages"`
	Sampling
}

// CompletionRequest is the body of POST /v1/completions. Prompt holds one element: several prompts in one request are the
// worker's to refuse.
type CompletionRequest struct {
	Model  string  `json:"model"`
	Prompt Strings `json:"prompt"`
	Sampling
}

// EmbeddingRequest is the body of POST /v1/embeddings.
type EmbeddingRequest struct {
	Model          string  `json:"model"`
	Input          Strings `json:"input"`
	EncodingFormat string  `json:"encoding_format,omitempty"` // "float" (default) or "base64"
	Dimensions     *int    `json:"dimensions,omitempty"`
}

// Usage counts the tokens of a request.
type Usage struct {
	PromptTokens        int            `json:"prompt_tokens"`
	CompletionTokens    int            `json:"completion_tokens"`
	TotalTokens         int            `json:"total_tokens"`
	PromptTokensDetails *PromptDetails `json:"prompt_tokens_details,omitempty"`
}

// PromptDetails says how much of a prompt was not computed again.
type PromptDetails struct {
	CachedTokens int `json:"cached_tokens"`
}

// NewUsage makes the OpenAI form of a worker's counts.
func NewUsage(prompt, cached, completion int) *Usage {
	return &Usage{PromptTokens: prompt, CompletionTokens: completion, TotalTokens: prompt + completion,
		PromptTokensDetails: &PromptDetails{CachedTokens: cached}}
}

// Values of the object field.
const (
	ObjectChat       = "chat.completion"
	ObjectChatChunk  = "chat.completion.chunk"
	ObjectCompletion = "text_completion"
	ObjectList       = "list"
	ObjectModel      = "model"
	ObjectEmbedding  = "embedding"
)

// ChatResponse is the answer to a ChatRequest that does not stream.
type ChatResponse struct {
	ID      string       `json:"id"`
	Object  string       `json:"object"` // ObjectChat
	Created int64        `json:"created"`
	Model   string       `json:"model"`
	Choices []ChatChoice `json:"choices"`
	Usage   *Usage       `json:"usage,omitempty"`
}

// ChatChoice is one answer of a ChatResponse.
type ChatChoice struct {
	Index        int     `json:"index"`
	Message      Message `json:"message"`
	FinishReason *string `json:"finish_reason"`
}

// ChatChunk is the data of one event of a streamed chat completion. The chunk that carries Usage has no choices.
type ChatChunk struct {
	ID      string      `json:"id"`
	Object  string      `json:"object"` // ObjectChatChunk
	Created int64       `json:"created"`
	Model   string      `json:"model"`
	Choices []ChatDelta `json:"choices"`
	Usage   *Usage      `json:"usage,omitempty"`
}

// ChatDelta is what a ChatChunk adds.
type ChatDelta struct {
	Index        int     `json:"index"`
	Delta        Delta   `json:"delta"`
	FinishReason *string `json:"finish_reason"`
}

// Delta is the added part of a message.
type Delta struct {
	Role    string  `json:"role,omitempty"`
	Content *string `json:"content,omitempty"`
}

// CompletionResponse is the answer to a CompletionRequest, and the data of each event where it streams.
type CompletionResponse struct {
	ID      string             `json:"id"`
	Object  string             `json:"object"` // ObjectCompletion
	Created int64              `json:"created"`
	Model   string             `json:"model"`
	Choices []CompletionChoice `json:"choices"`
	Usage   *Usage             `json:"usage,omitempty"`
}

// CompletionChoice is one text of a CompletionResponse.
type CompletionChoice struct {
	Index        int     `json:"index"`
	Text         string  `json:"text"`
	FinishReason *string `json:"finish_reason"`
	Logprobs     *string `json:"logprobs"` // always null: clients expect the field
}

// EmbeddingResponse is the answer to an EmbeddingRequest.
type EmbeddingResponse struct {
	Object string      `json:"object"` // ObjectList
	Data   []Embedding `json:"data"`
	Model  string      `json:"model"`
	Usage  *Usage      `json:"usage"`
}

// Embedding is the vector of one input. Embedding holds []float32, or a base64 string of little-endian floats where the
// request asked for that.
type Embedding struct {
	Object    string `json:"object"` // ObjectEmbedding
	Index     int    `json:"index"`
	Embedding any    `json:"embedding"`
}

// Model is an entry of GET /v1/models.
type Model struct {
	ID      string `json:"id"`
	Object  string `json:"object"` // ObjectModel
	Created int64  `json:"created"`
	OwnedBy string `json:"owned_by"`
}

// ModelList is the answer of GET /v1/models.
type ModelList struct {
	Object string  `json:"object"` // ObjectList
	Data   []Model `json:"data"`
}
