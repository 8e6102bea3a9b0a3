package sdk

import (
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/openai"
)

// Limits on what a request may hold beside the size of its body (T44).
const (
	maxMessages    = 10_000
	maxStopBytes   = 4 << 10 // of one stop sequence
	maxInputs      = 2048    // of one embeddings request, as OpenAI has it
	maxTemperature = 2
	maxPenalty     = 10
)

// Stable codes of refusals.
const (
	codeInvalid     = "invalid_value"
	codeUnsupported = "unsupported_value"
	codeTooLong     = "context_length_exceeded"
	codeLoading     = "model_loading"
	codeQueueFull   = "queue_full"
	codeDraining    = "draining"
	codeEngine      = "engine_failed"
)

// invalid is a refusal that names the field at fault.
func invalid(param, format string, args ...any) *fault.Error {
	return fault.New(fault.Invalid, codeInvalid, format, args...).WithParam(param)
}

// unsupported is a refusal of something well-formed that this worker does not do.
func unsupported(param, format string, args ...any) *fault.Error {
	return fault.New(fault.Invalid, codeUnsupported, format, args...).WithParam(param)
}

// job is a checked request with what only the SDK needs of it.
type job struct {
	Request
	stops        []string
	stream       bool
	includeUsage bool   // OpenAI's stream_options
	model        string // as the caller named it
	promptParam  string // the field that holds the prompt, for refusals
}

// decode reads a body of one JSON value into v. A value of a wrong type is a refusal that names its field.
func decode(r *http.Request, v any) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return httpd.BodyError(err)
	}
	if err := json.Unmarshal(body, v); err != nil {
		return decodeFault(err)
	}
	return nil
}

func decodeFault(err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && e.Field != "" {
		field := e.Field
		if i := strings.LastIndexByte(field, '.'); i >= 0 && !strings.HasPrefix(field, "messages.") {
			field = field[i+1:] // drops the names of embedded structs
		}
		return invalid(field, "The field %s has the wrong type (%s); the API's description says which it takes.", field, e.Value)
	}
	if errors.Is(err, openai.ErrUnsupported) {
		// Content is the only foreign decoder that runs in place; parts other than text are refused and never fetched.
		return unsupported("messages", "A message cannot be taken: %w.", err)
	}
	return fault.New(fault.Invalid, "invalid_json", "The request body is not the JSON object that is expected: %w.", err)
}

// sampling is what the request forms have in common; nil pointers are absent fields.
type sampling struct {
	maxTokens           *int
	maxTokensField      string // the name under which the caller gave it
	temperature, topP   *float64
	topK                *int
	minP, repeatPenalty *float64
	seed                *uint64
	stop                []string
	ignoreEOS           bool
}

// apply checks s and fills in req and the stop sequences of j. Absent parameters get OpenAI's defaults, other samplers are off.
func (j *job) apply(s sampling) error {
	j.Temperature, j.TopP, j.RepeatPenalty, j.Seed, j.IgnoreEOS = 1, 1, 1, rand.Uint64(), s.ignoreEOS
	if v := s.maxTokens; v != nil {
		if *v < 1 {
			return invalid(s.maxTokensField, "%s is %d and must be at least 1; leave it out for as much as fits.", s.maxTokensField, *v)
		}
		j.MaxTokens = *v
	}
	for _, f := range []struct {
		name     string
		v        *float64
		to       *float64
		ok       func(float64) bool
		interval string
	}{
		{"temperature", s.temperature, &j.Temperature, func(v float64) bool { return v >= 0 && v <= maxTemperature }, "from 0 to 2"},
		{"top_p", s.topP, &j.TopP, func(v float64) bool { return v > 0 && v <= 1 }, "more than 0 and at most 1"},
		{"min_p", s.minP, &j.MinP, func(v float64) bool { return v >= 0 && v < 1 }, "at least 0 and less than 1"},
		{"repeat_penalty", s.repeatPenalty, &j.RepeatPenalty, func(v float64) bool { return v > 0 && v <= maxPenalty }, "more than 0 and at most 10"},
	} {
		if f.v == nil {
			continue
		}
		if !f.ok(*f.v) {
			return invalid(f.name, "%s is %g and must be %s.", f.name, *f.v, f.interval)
		}
		*f.to = *f.v
	}
	if v := s.topK; v != nil {
		if *v < 0 {
			return invalid("top_k", "top_k is %d and must not be negative; 0 switches it off.", *v)
		}
		j.TopK = *v
	}
	if s.seed != nil {
		j.Seed = *s.seed
	}
	if len(s.stop) > contract.MaxStop {
		return invalid("stop", "stop has %d sequences and at most %d are allowed.", len(s.stop), contract.MaxStop)
	}
	for _, w := range s.stop {
		if w == "" || len(w) > maxStopBytes {
			return invalid("stop", "A stop sequence has %d bytes; each must have from 1 to %d.", len(w), maxStopBytes)
		}
	}
	j.stops = s.stop
	return nil
}

// conversation checks messages and maps OpenAI's role developer, which older templates do not know, to system.
func (j *job) conversation(messages []contract.Message) error {
	if len(messages) == 0 {
		return invalid("messages", "messages is empty; at least one message is needed.")
	}
	if len(messages) > maxMessages {
		return invalid("messages", "messages has %d entries and at most %d are allowed.", len(messages), maxMessages)
	}
	for i := range messages {
		switch messages[i].Role {
		case "system", "user", "assistant":
		case "developer":
			messages[i].Role = "system"
		default:
			return unsupported("messages", "Message %d has the role %.40q; this worker takes system, developer, user and assistant.", i, messages[i].Role)
		}
	}
	j.Messages, j.promptParam = messages, "messages"
	return nil
}

// inferJob checks the body of POST /v1/infer.
func inferJob(b *contract.InferRequest) (*job, error) {
	j := &job{stream: b.Stream, model: b.Model}
	j.ResumeText = b.ResumeText
	switch {
	case b.Prompt != nil && b.Messages != nil:
		return nil, invalid("prompt", "The request has both prompt and messages; send one of them.")
	case b.Messages != nil:
		if err := j.conversation(b.Messages); err != nil {
			return nil, err
		}
	case b.Prompt != nil:
		j.Prompt, j.promptParam = *b.Prompt, "prompt"
	default:
		return nil, invalid("prompt", "The request has neither prompt nor messages; send one of them.")
	}
	return j, j.apply(sampling{maxTokens: b.MaxTokens, maxTokensField: "max_tokens", temperature: b.Temperature, topP: b.TopP, topK: b.TopK,
		minP: b.MinP, repeatPenalty: b.RepeatPenalty, seed: b.Seed, stop: b.Stop})
}

// refused are fields of OpenAI's API that change what an answer is. A value other than the neutral one is refused, because to
// ignore it would give a wrong answer without a word. Fields that are not named anywhere are ignored.
type refused struct {
	Tools          []json.RawMessage `json:"tools"`
	Functions      []json.RawMessage `json:"functions"`
	ToolChoice     json.RawMessage   `json:"tool_choice"`
	ResponseFormat *struct {
		Type string `json:"type"`
	} `json:"response_format"`
	Modalities       []string           `json:"modalities"`
	Logprobs         json.RawMessage    `json:"logprobs"` // a bool in chat, a number in completions
	TopLogprobs      *int               `json:"top_logprobs"`
	PresencePenalty  *float64           `json:"presence_penalty"`
	FrequencyPenalty *float64           `json:"frequency_penalty"`
	BestOf           *int               `json:"best_of"`
	Echo             bool               `json:"echo"`
	Suffix           *string            `json:"suffix"`
	LogitBias        map[string]float64 `json:"-"`
	Stop             json.RawMessage    `json:"-"` // decoded apart, so that a refusal can name it
}

func (b *refused) check(n *int) error {
	for _, f := range []struct {
		name string
		bad  bool
	}{
		{"tools", len(b.Tools) > 0 && string(b.ToolChoice) != `"none"`},
		{"functions", len(b.Functions) > 0},
		{"response_format", b.ResponseFormat != nil && b.ResponseFormat.Type != "text" && b.ResponseFormat.Type != ""},
		{"modalities", len(b.Modalities) > 1 || len(b.Modalities) == 1 && b.Modalities[0] != "text"},
		{"logprobs", len(b.Logprobs) > 0 && string(b.Logprobs) != "null" && string(b.Logprobs) != "false"},
		{"top_logprobs", b.TopLogprobs != nil && *b.TopLogprobs != 0},
		{"presence_penalty", b.PresencePenalty != nil && *b.PresencePenalty != 0},
		{"frequency_penalty", b.FrequencyPenalty != nil && *b.FrequencyPenalty != 0},
		{"logit_bias", len(b.LogitBias) > 0},
		{"echo", b.Echo},
		{"suffix", b.Suffix != nil && *b.Suffix != ""},
	} {
		if f.bad {
			return unsupported(f.name, "This worker cannot do what the field %s asks for; leave it out.", f.name)
		}
	}
	for _, f := range []struct {
		name string
		v    *int
	}{{"n", n}, {"best_of", b.BestOf}} {
		if f.v != nil && *f.v != 1 {
			return unsupported(f.name, "%s is %d and only 1 is supported; send one request for each answer.", f.name, *f.v)
		}
	}
	return nil
}

// stringList reads a field that is a string or an array of strings.
func stringList(name string, raw json.RawMessage) ([]string, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	var l openai.Strings
	if err := json.Unmarshal(raw, &l); err != nil {
		if errors.Is(err, openai.ErrUnsupported) {
			return nil, unsupported(name, "The field %s cannot be taken: %w.", name, err)
		}
		return nil, invalid(name, "The field %s has a wrong form: %w.", name, err)
	}
	return l, nil
}

// The bodies below take over OpenAI's types; a field declared here again hides the one inside.
type chatBody struct {
	openai.ChatRequest
	refused
	LogitBias map[string]float64 `json:"logit_bias"`
	Stop      json.RawMessage    `json:"stop"`
}

type completionBody struct {
	openai.CompletionRequest
	refused
	LogitBias map[string]float64 `json:"logit_bias"`
	Stop      json.RawMessage    `json:"stop"`
	Prompt    json.RawMessage    `json:"prompt"`
}

// openAI checks what chat and text completions share.
func (j *job) openAI(model string, s *openai.Sampling, rest *refused) error {
	j.model, j.stream = model, s.Stream
	if s.StreamOptions != nil {
		if !s.Stream {
			return invalid("stream_options", "stream_options is only allowed together with stream.")
		}
		j.includeUsage = s.StreamOptions.IncludeUsage
	}
	if err := rest.check(s.N); err != nil {
		return err
	}
	stop, err := stringList("stop", rest.Stop)
	if err != nil {
		return err
	}
	p := sampling{maxTokens: s.MaxTokens, maxTokensField: "max_tokens", temperature: s.Temperature, topP: s.TopP, topK: s.TopK,
		minP: s.MinP, repeatPenalty: s.RepeatPenalty, stop: stop, ignoreEOS: s.IgnoreEOS}
	if s.MaxCompletionTokens != nil {
		p.maxTokens, p.maxTokensField = s.MaxCompletionTokens, "max_completion_tokens"
	}
	if s.Seed != nil {
		seed := uint64(*s.Seed) // a negative seed is as good as another
		p.seed = &seed
	}
	return j.apply(p)
}

func chatJob(b *chatBody) (*job, error) {
	b.refused.LogitBias, b.refused.Stop = b.LogitBias, b.Stop
	messages := make([]contract.Message, len(b.Messages))
	for i, m := range b.Messages {
		messages[i] = contract.Message{Role: m.Role, Content: string(m.Content)}
	}
	j := new(job)
	if err := j.conversation(messages); err != nil {
		return nil, err
	}
	return j, j.openAI(b.Model, &b.Sampling, &b.refused)
}

func completionJob(b *completionBody) (*job, error) {
	b.refused.LogitBias, b.refused.Stop = b.LogitBias, b.Stop
	prompts, err := stringList("prompt", b.Prompt)
	switch {
	case err != nil:
		return nil, err
	case len(prompts) == 0:
		return nil, invalid("prompt", "The request has no prompt; send a string.")
	case len(prompts) > 1:
		return nil, unsupported("prompt", "prompt has %d entries and only one is supported; send one request for each.", len(prompts))
	}
	j := &job{promptParam: "prompt"}
	j.Prompt = prompts[0]
	return j, j.openAI(b.Model, &b.Sampling, &b.refused)
}

type embeddingBody struct {
	openai.EmbeddingRequest
	Input json.RawMessage `json:"input"`
}

// embeddingInputs checks the body of POST /v1/embeddings.
func embeddingInputs(b *embeddingBody) ([]string, error) {
	inputs, err := stringList("input", b.Input)
	switch {
	case err != nil:
		return nil, err
	case len(inputs) == 0:
		return nil, invalid("input", "The request has no input; send a string or an array of strings.")
	case len(inputs) > maxInputs:
		return nil, invalid("input", "input has %d entries and at most %d are allowed.", len(inputs), maxInputs)
	case b.Dimensions != nil:
		return nil, unsupported("dimensions", "This worker cannot shorten vectors; leave dimensions out.")
	case b.EncodingFormat != "" && b.EncodingFormat != "float" && b.EncodingFormat != "base64":
		return nil, invalid("encoding_format", "encoding_format is %.40q and must be float or base64.", b.EncodingFormat)
	}
	for i, s := range inputs {
		if s == "" {
			return nil, invalid("input", "Input %d is empty; each must have text.", i)
		}
	}
	return inputs, nil
}
