package llama

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/apiary-dev/apiary/workers/sdk"
)

// embedder computes vectors, one text after the other. Only the loop's goroutine uses it.
type embedder struct {
	m *model
	n *native
}

// embed returns the vector of a text, of length 1.
func (e *embedder) embed(tokens []int32) ([]float32, error) {
	e.n.remove(0, 0)
	rows := make([]row, len(tokens))
	for i, t := range tokens {
		rows[i] = row{token: t, pos: int32(i), out: true}
	}
	if rc := e.n.decode(rows); rc != 0 {
		return nil, fmt.Errorf("compute an embedding: llama_decode returned %d", rc)
	}
	v, err := llama.GetEmbeddingsSeq(e.m.ctx, 0, int32(e.m.embedding))
	if err != nil || len(v) == 0 {
		return nil, errors.New("compute an embedding: the engine gave no vector")
	}
	return normalise(v), nil
}

// normalise returns a copy of v with length 1; of nothing but zeros a copy.
func normalise(v []float32) []float32 {
	sum := 0.0
	for _, x := range v {
		sum += float64(x) * float64(x)
	}
	out := make([]float32, len(v))
	if sum == 0 {
		return out
	}
	scale := 1 / math.Sqrt(sum)
	for i, x := range v {
		out[i] = float32(float64(x) * scale)
	}
	return out
}

// embedJob is one call of Embed on its way to the loop.
type embedJob struct {
	ctx    context.Context
	inputs [][]int32
	done   chan embedResult // one place
}

type embedResult struct {
	vectors [][]float32
	err     error
}

// run computes the job and answers it. A cancelled job ends between two texts.
func (e *embedder) run(j *embedJob, step func()) {
	out := make([][]float32, 0, len(j.inputs))
	for _, in := range j.inputs {
		if err := j.ctx.Err(); err != nil {
			j.done <- embedResult{err: err}
			return
		}
		v, err := e.embed(in)
		if err != nil {
			j.done <- embedResult{err: err}
			return
		}
		out = append(out, v)
		step()
	}
	j.done <- embedResult{vectors: out}
}

// Embed returns one vector of length 1 for each input and the number of tokens read. A model that is not made for embeddings
// gives sdk.ErrUnsupported.
func (e *Engine) Embed(ctx context.Context, inputs []string) ([][]float32, int, error) {
	m, err := e.use()
	if err != nil {
		return nil, 0, err
	}
	defer e.users.Done()
	if !m.embeds() {
		return nil, 0, sdk.ErrUnsupported
	}
	j := &embedJob{ctx: ctx, done: make(chan embedResult, 1)}
	total := 0
	for _, text := range inputs {
		tokens, err := m.tokens(text, true)
		if err != nil {
			return nil, 0, err
		}
		if len(tokens) == 0 {
			return nil, 0, errEmptyPrompt("input")
		}
		if len(tokens) > m.context {
			return nil, 0, &sdk.PromptTooLongError{PromptTokens: len(tokens), ContextLength: m.context}
		}
		total += len(tokens)
		j.inputs = append(j.inputs, tokens)
	}
	if err := e.enter(); err != nil {
		return nil, 0, err
	}
	select {
	case e.embeds <- j:
	case <-e.stopped:
		e.counters.waiting.Add(-1)
		return nil, 0, errStopping()
	}
	select {
	case r := <-j.done:
		return r.vectors, total, r.err
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	case <-e.stopped:
		select {
		case r := <-j.done:
			return r.vectors, total, r.err
		default:
			return nil, 0, errStopping()
		}
	}
}
