package sdk

import (
	"context"
	"errors"
	"fmt"

	"github.com/apiary-dev/apiary/core/contract"
)

// Engine is what does the arithmetic inside a worker. The SDK serves the whole worker contract over one: HTTP, beats,
// authentication, parameter checks, chat and completion formats, stop sequences, UTF-8, usage and cancellation.
// Generate and Embed may be called from many goroutines at once; the engine queues and batches as it likes.
type Engine interface {
	// Load makes the model ready. It calls progress with a growing fraction from 0 to 1. It is called once, first.
	Load(ctx context.Context, progress func(fraction float64)) (Model, error)
	// Generate runs one request. It calls sink for each generated token in order, from one goroutine; when sink returns an
	// error, generation stops and Generate returns the result so far with that error. A cancelled ctx ends it within one step.
	Generate(ctx context.Context, req *Request, sink func(Token) error) (Result, error)
	// Embed returns one vector per input and the number of tokens read. ErrUnsupported when the model cannot.
	Embed(ctx context.Context, inputs []string) ([][]float32, int, error)
	// Stats says what the engine is doing now. It is cheap and never blocks on a generation.
	Stats() Stats
	// Close ends running generations, waits for them and frees the engine.
	Close() error
}

// Model is what an engine says of the model it loaded.
type Model struct {
	ContextLength int      // tokens a request may use, prompt and answer together
	Slots         int      // requests that can run at once
	Capabilities  []string // contract.Capability…
}

// Request is a checked request: every field is set and within its limits.
type Request struct {
	ID            string
	Prompt        string             // text to continue; empty when Messages is set
	Messages      []contract.Message // conversation: the engine applies the model's chat template
	ResumeText    string             // appended to the prompt after templating; counted as prompt
	MaxTokens     int                // 0: until the context is full
	Temperature   float64            // 0 is greedy
	TopP          float64            // 1 is off
	TopK          int                // 0 is off
	MinP          float64            // 0 is off
	RepeatPenalty float64            // 1 is off
	Seed          uint64
	IgnoreEOS     bool // go on past the end of text; for benchmarks
	// Prefill is called with growing counts while the prompt is computed; nil: nobody wants to know. The first call, with a
	// total above 0, says that the request left the queue: from then on only its own counts and tokens are its progress.
	Prefill func(done, total int)
}

// Token is one generated token. Bytes may end inside a rune: the SDK joins. Bytes is not kept by the receiver.
type Token struct {
	ID    int
	Bytes []byte
}

// Result is the end of a generation.
type Result struct {
	FinishReason string // contract.FinishStop (end of text) or contract.FinishLength
	Usage        contract.Usage
	Timings      contract.Timings
}

// Stats is a snapshot of an engine.
type Stats struct {
	SlotsBusy    int
	QueueDepth   int
	KVTokensUsed int
	// DeviceMemory is what the engine took of the memory of its accelerators; 0: none, or it does not say.
	DeviceMemory contract.Bytes
	Progress     uint64 // grows on every step of load, prefill and decode
}

// ErrUnsupported is returned by an operation that the model or engine cannot do.
var ErrUnsupported = errors.New("the model does not support this")

// PromptTooLongError says that a prompt does not fit: the SDK answers 400 with both counts. Nothing is ever cut off.
type PromptTooLongError struct {
	PromptTokens  int
	ContextLength int
}

func (e *PromptTooLongError) Error() string {
	return fmt.Sprintf("the prompt has %d tokens and the context length is %d; one token must be left for the answer", e.PromptTokens, e.ContextLength)
}
