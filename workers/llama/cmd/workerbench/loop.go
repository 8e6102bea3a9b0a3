package main

import (
	"errors"
	"fmt"
	"time"

	yzma "github.com/hybridgroup/yzma/pkg/llama"

	"github.com/apiary-dev/apiary/workers/llama"
)

// batchSize is the number of prompt tokens in a batch, as in the worker.
const batchSize = 512

// bareLoop is the library without a worker around it: all prompts in full batches, then a row of each stream in every step,
// and the highest score is the next token.
type bareLoop struct {
	model   yzma.Model
	ctx     yzma.Context
	vocab   yzma.Vocab
	mem     yzma.Memory
	threads llama.Threads
	batch   yzma.Batch
}

func openLoop(lib *llama.Library, path string, threads, cells, streams int) (*bareLoop, error) {
	p := yzma.ModelDefaultParams()
	m, err := yzma.ModelLoadFromFile(path, p)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	c := yzma.ContextDefaultParams()
	c.NCtx, c.NBatch, c.NUbatch, c.NSeqMax = uint32(cells), batchSize, batchSize, uint32(streams)
	c.NThreads, c.NThreadsBatch, c.KVUnified = int32(threads), int32(threads), 1
	ctx, err := yzma.InitFromModel(m, c)
	if err != nil {
		return nil, fmt.Errorf("make a context of %d tokens: %w", cells, err)
	}
	l := &bareLoop{model: m, ctx: ctx, vocab: yzma.ModelGetVocab(m), batch: yzma.BatchInit(batchSize, 0, 1)}
	if l.mem, err = yzma.GetMemory(ctx); err != nil {
		return nil, err
	}
	l.threads = lib.AttachThreads(ctx, threads, 50) // llama.cpp's default
	return l, nil
}

func (l *bareLoop) close() {
	_ = yzma.BatchFree(l.batch)
	_ = yzma.Free(l.ctx)
	l.threads.Free()
	_ = yzma.ModelFree(l.model)
}

// round continues each prompt with n tokens and returns tokens per second.
func (l *bareLoop) round(prompts []string, n int) (float64, error) {
	start := time.Now()
	if err := yzma.MemoryClear(l.mem, true); err != nil {
		return 0, err
	}
	last := make([]yzma.Token, len(prompts))
	length := make([]int, len(prompts))
	var ready []int // streams whose prompt ends in this batch, in the order of their rows
	var index []int32
	size := 0
	flush := func() error {
		if size == 0 {
			return nil
		}
		if rc, err := yzma.Decode(l.ctx, l.batch); rc != 0 || err != nil {
			return fmt.Errorf("decode: %d, %w", rc, err)
		}
		for i, s := range ready {
			t, err := l.best(index[i])
			if err != nil {
				return err
			}
			last[s] = t
		}
		ready, index, size = ready[:0], index[:0], 0
		return l.batch.Clear()
	}
	add := func(t yzma.Token, stream int, out bool) error {
		if err := l.batch.Add(t, yzma.Pos(length[stream]), []yzma.SeqId{yzma.SeqId(stream)}, out); err != nil {
			return err
		}
		length[stream]++
		if out {
			ready, index = append(ready, stream), append(index, int32(size))
		}
		size++
		return nil
	}
	if err := l.batch.Clear(); err != nil {
		return 0, err
	}
	for s, p := range prompts {
		tokens := yzma.Tokenize(l.vocab, p, true, true)
		for i, t := range tokens {
			if err := add(t, s, i == len(tokens)-1); err != nil {
				return 0, err
			}
			if size == batchSize {
				if err := flush(); err != nil {
					return 0, err
				}
			}
		}
	}
	if err := flush(); err != nil {
		return 0, err
	}
	piece := make([]byte, 256)
	for step := 1; step < n; step++ {
		for s := range prompts {
			yzma.TokenToPiece(l.vocab, last[s], piece, 0, false) // who generates text writes it
			if err := add(last[s], s, true); err != nil {
				return 0, err
			}
		}
		if err := flush(); err != nil {
			return 0, err
		}
	}
	return float64(len(prompts)*n) / time.Since(start).Seconds(), nil
}

func (l *bareLoop) best(row int32) (yzma.Token, error) {
	scores, err := yzma.GetLogitsIth(l.ctx, row, int(yzma.VocabNTokens(l.vocab)))
	if err != nil || len(scores) == 0 {
		return 0, errors.New("the library gave no scores")
	}
	at := 0
	for i, v := range scores {
		if v > scores[at] {
			at = i
		}
	}
	return yzma.Token(at), nil
}
