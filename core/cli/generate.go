package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/openai"
)

// leastForRate is how many tokens an answer has at least whose rate says something.
const leastForRate = 16

// answer is what a request gave, with its times as the client saw them.
type answer struct {
	Text         string        `json:"text"`
	FinishReason string        `json:"finish_reason"`
	Usage        *openai.Usage `json:"usage,omitempty"`
	FirstMS      float64       `json:"first_ms"`
	TokensPerS   float64       `json:"tokens_per_s,omitempty"` // 0: too few tokens to say
	Model        string        `json:"model"`
}

// chunk is what chat and text completion streams have in common, and the error event that ends a broken one.
type chunk struct {
	Choices []struct {
		Text         string       `json:"text"`
		Delta        openai.Delta `json:"delta"`
		FinishReason *string      `json:"finish_reason"`
	} `json:"choices"`
	Usage *openai.Usage   `json:"usage"`
	Error *contract.Error `json:"error"`
}

// complete streams a text completion.
func (c *conn) complete(ctx context.Context, model, prompt string, s openai.Sampling, emit func(string) error) (answer, error) {
	s.Stream, s.StreamOptions = true, &openai.StreamOptions{IncludeUsage: true}
	return c.generate(ctx, "/v1/completions", openai.CompletionRequest{Model: model, Prompt: openai.Strings{prompt}, Sampling: s}, model, emit)
}

// chat streams a chat completion.
func (c *conn) chat(ctx context.Context, model string, turns []openai.Message, s openai.Sampling, emit func(string) error) (answer, error) {
	s.Stream, s.StreamOptions = true, &openai.StreamOptions{IncludeUsage: true}
	return c.generate(ctx, "/v1/chat/completions", openai.ChatRequest{Model: model, Messages: turns, Sampling: s}, model, emit)
}

func (c *conn) generate(ctx context.Context, path string, request any, model string, emit func(string) error) (answer, error) {
	a := answer{Model: model}
	began := time.Now()
	body, err := c.Stream(ctx, path, request)
	if err != nil {
		return a, advised(err)
	}
	defer func() { _ = body.Close() }()
	var text strings.Builder
	var first, last time.Time
	pieces := 0
	for events := openai.NewReader(body); ; {
		e, err := events.Next()
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return a, fault.New(fault.Unavailable, "stream_cut", "The agent ended the stream before the answer was complete; try again.")
		case err != nil:
			return a, fmt.Errorf("read the answer: %w", err)
		case string(e.Data) == openai.Done:
			a.Text = text.String()
			a.measure(began, first, last, pieces)
			return a, nil
		}
		var ch chunk
		if err := json.Unmarshal(e.Data, &ch); err != nil {
			return a, fmt.Errorf("read the answer: %w", err)
		}
		if ch.Error != nil {
			return a, advised(fault.FromWire(http.StatusServiceUnavailable, *ch.Error, 0))
		}
		if ch.Usage != nil {
			a.Usage = ch.Usage
		}
		for _, choice := range ch.Choices {
			piece := choice.Text
			if choice.Delta.Content != nil {
				piece += *choice.Delta.Content
			}
			if choice.FinishReason != nil {
				a.FinishReason = *choice.FinishReason
			}
			if piece == "" {
				continue
			}
			last = time.Now()
			if pieces++; pieces == 1 {
				first = last
			}
			text.WriteString(piece)
			if err := emit(piece); err != nil {
				return a, err
			}
		}
	}
}

// advised adds to the two words of a lost worker, which every client of the API gets, what a person can do.
func advised(err error) error {
	e := fault.As(err)
	if e.Code != "worker_lost" || e.Message != "worker lost" {
		return err
	}
	out := *e
	out.Message = "The worker ended while it answered; send the request again. `apiary worker logs ID` shows the last lines of one that ended, and `apiary worker list` the ids."
	return &out
}

func (a *answer) measure(began, first, last time.Time, pieces int) {
	if pieces == 0 {
		return
	}
	a.FirstMS = float64(first.Sub(began).Microseconds()) / 1000
	n := pieces
	if a.Usage != nil {
		n = a.Usage.CompletionTokens
	}
	if d := last.Sub(first); n >= leastForRate && d > 0 {
		a.TokensPerS = float64(n-1) / d.Seconds()
	}
}

// summary is the line of figures under an answer.
func (a answer) summary() string {
	n := 0
	if a.Usage != nil {
		n = a.Usage.CompletionTokens
	}
	s := fmt.Sprintf("%s tokens · first after %.0f ms", thousands(n), a.FirstMS)
	if a.TokensPerS > 0 {
		s += fmt.Sprintf(" · %s tokens/s", thousands(int(a.TokensPerS+0.5)))
	}
	return s
}

// emitter writes pieces of an answer as they come. On a terminal control characters are dropped: a model may have learnt
// escape sequences.
func (a *app) emitter() func(string) error {
	safe := isTerminal(a.out)
	return func(piece string) error {
		if safe {
			piece = strings.Map(func(r rune) rune {
				if (r < ' ' && r != '\n' && r != '\t') || (r >= 0x7f && r < 0xa0) {
					return -1
				}
				return r
			}, piece)
		}
		_, err := io.WriteString(a.out, piece)
		return err
	}
}

// me is how this program was called, for hints that can be copied.
func me() string {
	name := os.Args[0]
	if !strings.Contains(name, "/") {
		return name
	}
	if found, err := exec.LookPath(filepath.Base(name)); err == nil && found == name {
		return filepath.Base(name)
	}
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, name); err == nil && filepath.IsAbs(name) && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return name
}
