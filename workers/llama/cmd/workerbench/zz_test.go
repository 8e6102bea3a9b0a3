package main

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/workers/llama"
	"github.com/apiary-dev/apiary/workers/sdk"
)

func TestInproc(t *testing.T) {
	o, _ := parse([]string{"-threads", "2"}, os.Stderr)
	lib, err := llama.OpenLibrary(o.engine, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(os.Getenv("N"))
	loop, err := openLoop(lib, o.model, 2, n*192, n)
	if err != nil {
		t.Fatal(err)
	}
	e := llama.New(llama.Options{Library: lib, ModelPath: o.model, Threads: 2, Slots: n, Context: 192})
	if _, err := e.Load(context.Background(), func(float64) {}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	var a, b []float64
	for round := range 8 {
		prompts := make([]string, n)
		for i := range prompts {
			prompts[i] = words(rng, 16)
		}
		start := time.Now()
		var wg sync.WaitGroup
		for _, p := range prompts {
			wg.Go(func() {
				_, err := e.Generate(context.Background(), &sdk.Request{Prompt: p, MaxTokens: 64, TopP: 1, RepeatPenalty: 1, IgnoreEOS: true}, func(sdk.Token) error { return nil })
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		x := float64(n*64) / time.Since(start).Seconds()
		time.Sleep(400 * time.Millisecond)
		y, err := loop.round(prompts, 64)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(400 * time.Millisecond)
		if round > 0 {
			a, b = append(a, x), append(b, y)
		}
	}
	fmt.Printf("c%d inproc %.1f bare %.1f ratio %.3f\n", n, median(a), median(b), median(a)/median(b))
}
