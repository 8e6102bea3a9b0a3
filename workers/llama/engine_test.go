package llama

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/workers/sdk"
)

func TestGreedyEqualsTheBareLibrary(t *testing.T) {
	prompts := []string{
		"Once upon a time", "Lily and Ben were", "", "The little dog wanted to play with", "\nOne day, a big bear named Tom",
		"Tim had a red ball. He liked to throw it", "Zwölf Boxkämpfer", "1 2 3 4",
	}
	e, _ := start(t, Options{Slots: 8})
	b := openBare(t, stories(t))
	for _, p := range prompts {
		wantText, want := b.generate(t, p, 48)
		text, got, res := answer(t, e, ask(p, 48))
		if diff := cmp.Diff(want, got); diff != "" || text != wantText {
			t.Errorf("%q (-library +worker):\n%s\n%q\n%q", p, diff, wantText, text)
		}
		if res.Usage.CompletionTokens != len(want) {
			t.Errorf("%q: %d tokens counted, want %d", p, res.Usage.CompletionTokens, len(want))
		}
	}
	// The same at once, on top of what the first round left in the cache.
	var wg sync.WaitGroup
	for _, p := range prompts {
		_, want := b.generate(t, p, 48)
		wg.Go(func() {
			_, got, _, err := generate(context.Background(), e, ask(p, 48))
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%q at the same time as others: %v\n%v\n%v", p, err, want, got)
			}
		})
	}
	wg.Wait()
}

func TestSmolLM2Chat(t *testing.T) {
	const question, want = "What is the capital of France? Answer in one sentence.", "The capital of France is Paris."
	e, m := start(t, Options{ModelPath: smol(t), Context: 512, Slots: 2})
	if !slices.Contains(m.Capabilities, contract.CapabilityChat) {
		t.Fatalf("capabilities %v", m.Capabilities)
	}
	text, ids, res := answer(t, e, chat(question, 64))
	if text != want || res.FinishReason != contract.FinishStop {
		t.Errorf("it says %q and ends with %q", text, res.FinishReason)
	}
	// The template written out by hand, and the library driven directly.
	b := openBare(t, smol(t))
	_, direct := b.generate(t, "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n<|im_start|>user\n"+
		question+"<|im_end|>\n<|im_start|>assistant\n", 64)
	if diff := cmp.Diff(direct, ids); diff != "" {
		t.Errorf("(-library +worker):\n%s", diff)
	}
	// The next turn finds the conversation so far.
	r := chat(question, 16)
	r.Messages = append(r.Messages, contract.Message{Role: "assistant", Content: text}, contract.Message{Role: "user", Content: "And of Italy?"})
	_, _, next := answer(t, e, r)
	if least := res.Usage.PromptTokens + res.Usage.CompletionTokens - 1; next.Usage.CachedTokens < least {
		t.Errorf("%d of %d tokens found in the second turn, want at least %d", next.Usage.CachedTokens, next.Usage.PromptTokens, least)
	}
	// Resume continues an answer that was cut.
	r = chat(question, 64)
	r.ResumeText = "The capital of"
	if text, _, _ := answer(t, e, r); text != " France is Paris." {
		t.Errorf("resumed it says %q", text)
	}
}

func TestCachedTokensAreCounted(t *testing.T) {
	e, _ := start(t, Options{})
	_, _, first := answer(t, e, ask("Once upon a time there was a little girl", 8))
	if first.Usage.CachedTokens != 0 {
		t.Errorf("%d cached tokens in an empty cache", first.Usage.CachedTokens)
	}
	_, _, second := answer(t, e, ask("Once upon a time there was a little girl", 8))
	if second.Usage.PromptTokens != first.Usage.PromptTokens || second.Usage.CachedTokens != first.Usage.PromptTokens-1 {
		t.Errorf("the same prompt again: %+v after %+v; all but its last token are there", second.Usage, first.Usage)
	}
}

func TestManyAtOnceAndPreempted(t *testing.T) {
	e, m := start(t, Options{Context: 300, Slots: 6})
	if m.Slots != 6 || m.ContextLength != 300 {
		t.Fatalf("%+v", m)
	}
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			r := ask(fmt.Sprintf("Story %d. Once upon a time", i), 60)
			r.IgnoreEOS = true
			_, ids, res, err := generate(context.Background(), e, r)
			if err != nil || len(ids) != 60 || res.Usage.CompletionTokens != 60 || res.FinishReason != contract.FinishLength {
				t.Errorf("request %d: %d tokens, %+v, %v", i, len(ids), res, err)
			}
			if res.Timings.DecodeMS <= 0 || res.Timings.PrefillMS <= 0 || res.Timings.QueueMS < 0 {
				t.Errorf("timings %+v", res.Timings)
			}
		})
	}
	wg.Wait()
	if s := e.Stats(); s.SlotsBusy != 0 || s.QueueDepth != 0 || s.Progress == 0 {
		t.Errorf("afterwards %+v", s)
	}
}

func TestStopsAtTheContext(t *testing.T) {
	e, m := start(t, Options{Context: 256})
	r := ask("Once upon a time", 0)
	r.IgnoreEOS = true
	_, ids, res := answer(t, e, r)
	if got := res.Usage.PromptTokens + len(ids); got != m.ContextLength || res.FinishReason != contract.FinishLength {
		t.Errorf("it ends after %d tokens of %d with %q", got, m.ContextLength, res.FinishReason)
	}
}

func TestPromptTooLong(t *testing.T) {
	e, m := start(t, Options{Context: 64})
	_, _, _, err := generate(context.Background(), e, ask(strings.Repeat("once upon a time ", 200), 4))
	tooLong, ok := errors.AsType[*sdk.PromptTooLongError](err)
	if !ok || tooLong.ContextLength != m.ContextLength || tooLong.PromptTokens < 800 {
		t.Errorf("%v", err)
	}
	// A prompt of one token less than the context leaves room for one.
	for n := 1; ; n++ {
		p := strings.Repeat(" a", n)
		_, ids, res, err := generate(context.Background(), e, ask(p, 5))
		if err != nil {
			if e, ok := errors.AsType[*sdk.PromptTooLongError](err); !ok || e.PromptTokens != m.ContextLength {
				t.Errorf("the first prompt that does not fit: %v", err)
			}
			break
		}
		if res.Usage.PromptTokens == m.ContextLength-1 && len(ids) > 1 {
			t.Errorf("%d tokens after a prompt of %d in a context of %d", len(ids), res.Usage.PromptTokens, m.ContextLength)
		}
	}
}

func TestCancel(t *testing.T) {
	e, _ := start(t, Options{Slots: 1})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r := ask("Once upon a time", 0)
	r.IgnoreEOS = true
	n, after := 0, 0
	_, err := e.Generate(ctx, r, func(sdk.Token) error {
		if n++; n == 5 {
			cancel()
		}
		if ctx.Err() != nil {
			after++
		}
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled request ends with %v", err)
	}
	// The tokens that had been generated before the cancel was seen may still come.
	if after > 50 {
		t.Errorf("%d tokens after the cancel", after)
	}
	if s := e.Stats(); s.SlotsBusy != 0 {
		t.Errorf("a slot is busy after a cancel: %+v", s)
	}
	full := errors.New("no more, thank you")
	res, err := e.Generate(context.Background(), r, func(sdk.Token) error { return full })
	if !errors.Is(err, full) || res.Usage.PromptTokens == 0 {
		t.Errorf("a sink that refuses: %+v, %v", res, err)
	}
	if _, _, res := answer(t, e, ask("Once upon a time", 4)); res.Usage.CompletionTokens != 4 {
		t.Errorf("the next request: %+v", res)
	}
}

func TestSeeds(t *testing.T) {
	e, _ := start(t, Options{Slots: 4})
	sampled := func(seed uint64) *sdk.Request {
		r := ask("Once upon a time", 40)
		r.Temperature, r.TopP, r.TopK, r.MinP, r.RepeatPenalty, r.Seed = 1.2, 0.95, 60, 0.01, 1.1, seed
		return r
	}
	one, _, _ := answer(t, e, sampled(7))
	again, _, _ := answer(t, e, sampled(7))
	other, _, _ := answer(t, e, sampled(8))
	if one != again {
		t.Errorf("the same seed gives %q and %q", one, again)
	}
	if one == other {
		t.Errorf("two seeds give the same text %q", one)
	}
	greedyText, _, _ := answer(t, e, ask("Once upon a time", 40))
	if one == greedyText {
		t.Error("sampled and greedy text are the same")
	}
}

func TestZeroBytesAndOtherStrangeText(t *testing.T) {
	e, _ := start(t, Options{})
	for _, p := range []string{"\x00", "Once\x00upon a time", "\xff\xfe broken", "<s></s><unk>", strings.Repeat("\x00", 100), "🐝🐝🐝"} {
		if _, _, res := answer(t, e, ask(p, 4)); res.Usage.PromptTokens == 0 {
			t.Errorf("%q: %+v", p, res)
		}
	}
	r := chat("Hello\x00there", 4)
	if _, _, res := answer(t, e, r); res.Usage.PromptTokens == 0 {
		t.Errorf("%+v", res)
	}
}

func TestVeryLongPromptsAreRefusedWithTheirLength(t *testing.T) {
	for name, path := range map[string]string{"stories": stories(t), "smol": smol(t)} {
		t.Run(name, func(t *testing.T) {
			e, m := start(t, Options{ModelPath: path, Context: 256, Slots: 1})
			for _, unit := range []string{"a", "word ", "\n", "é", "1", "\x00", "=-"} {
				for _, size := range []int{20_000, 4 << 20} {
					before := time.Now()
					text := strings.Repeat(unit, size/len(unit))
					_, _, _, err := generate(context.Background(), e, ask(text, 4))
					tooLong, ok := errors.AsType[*sdk.PromptTooLongError](err)
					if !ok || tooLong.PromptTokens <= m.ContextLength {
						t.Fatalf("%d bytes of %q: %v", size, unit, err)
					}
					if d := time.Since(before); d > 5*time.Second {
						t.Errorf("%d bytes of %q took %v to refuse", size, unit, d)
					}
					if size > 1<<20 {
						continue
					}
					exact, err := e.m.tokens(text, true)
					if got, want := tooLong.PromptTokens, len(exact); err != nil || got < want*9/10 || got > want*11/10 {
						t.Errorf("%d bytes of %q: %d tokens reported, it has %d", size, unit, got, want)
					}
				}
			}
		})
	}
}

func TestPrefillIsReported(t *testing.T) {
	e, _ := start(t, Options{})
	r := ask(strings.Repeat("once upon a time ", 60), 2)
	var seen []int
	total := 0
	r.Prefill = func(done, of int) { seen, total = append(seen, done), of }
	_, _, res := answer(t, e, r)
	if total != res.Usage.PromptTokens || len(seen) == 0 || seen[len(seen)-1] != total || !slices.IsSorted(seen) {
		t.Errorf("reported %v of %d; the prompt has %d tokens", seen, total, res.Usage.PromptTokens)
	}
}

func TestQueueIsBounded(t *testing.T) {
	e, _ := start(t, Options{Slots: 1})
	e.counters.waiting.Add(maxQueue) // as many as may wait
	_, _, _, err := generate(context.Background(), e, ask("Once", 1))
	if fault.KindOf(err) != fault.Exhausted {
		t.Errorf("with a full queue: %v", err)
	}
	e.counters.waiting.Add(-maxQueue)
	answer(t, e, ask("Once", 1))
}

func TestCloseEndsRequests(t *testing.T) {
	e, _ := start(t, Options{Slots: 2})
	started := make(chan struct{}, 64)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			r := ask("Once upon a time", 0)
			r.IgnoreEOS = true
			for {
				_, err := e.Generate(context.Background(), r, func(sdk.Token) error {
					select {
					case started <- struct{}{}:
					default:
					}
					return nil
				})
				if err != nil {
					if fault.KindOf(err) != fault.Unavailable {
						t.Errorf("a request ends with %v when the engine closes", err)
					}
					return
				}
			}
		})
	}
	<-started
	if err := e.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if _, _, _, err := generate(context.Background(), e, ask("Once", 1)); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("after Close: %v", err)
	}
}

func TestGenerativeModelsDoNotEmbed(t *testing.T) {
	e, _ := start(t, Options{})
	if _, _, err := e.Embed(context.Background(), []string{"x"}); !errors.Is(err, sdk.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

// TestEmbeddings gives stories260k the metadata of an embedding model (mean pooling).
func TestEmbeddings(t *testing.T) {
	path := withPooling(t, stories(t), 1)
	e, m := start(t, Options{ModelPath: path})
	if diff := cmp.Diff([]string{contract.CapabilityEmbedding}, m.Capabilities); diff != "" {
		t.Error(diff)
	}
	in := []string{"Once upon a time", "The dog ran", "Once upon a time", "Once upon a time there"}
	v, tokens, err := e.Embed(context.Background(), in)
	if err != nil || len(v) != len(in) || tokens < 8 {
		t.Fatalf("%d vectors of %d tokens, %v", len(v), tokens, err)
	}
	dot := func(a, b []float32) (sum float64) {
		for i := range a {
			sum += float64(a[i]) * float64(b[i])
		}
		return sum
	}
	for i := range v {
		if len(v[i]) != 64 || math.Abs(dot(v[i], v[i])-1) > 1e-5 {
			t.Errorf("vector %d: %d numbers, length² %v", i, len(v[i]), dot(v[i], v[i]))
		}
	}
	if !slices.Equal(v[0], v[2]) {
		t.Error("the same text gives two vectors")
	}
	if dot(v[0], v[3]) <= dot(v[0], v[1]) {
		t.Error("a longer form of a text is farther from it than another text")
	}
	if _, _, err := e.Embed(context.Background(), []string{strings.Repeat("word ", 2000)}); err == nil {
		t.Error("a text longer than the context is taken")
	} else if _, ok := errors.AsType[*sdk.PromptTooLongError](err); !ok {
		t.Error(err)
	}
	if _, _, _, err := generate(context.Background(), e, ask("x", 1)); !errors.Is(err, sdk.ErrUnsupported) {
		t.Errorf("an embedding model asked to generate: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, _, err := e.Embed(ctx, in); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled call: %v", err)
	}
}

// withPooling copies a GGUF file with the key llama.pooling_type added.
func withPooling(t *testing.T, path string, kind uint32) string {
	t.Helper()
	in, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const key = "llama.pooling_type"
	var kv []byte
	kv = append(kv, byte(len(key)), 0, 0, 0, 0, 0, 0, 0)
	kv = append(kv, key...)
	kv = append(kv, 4, 0, 0, 0, byte(kind), 0, 0, 0) // a 32-bit unsigned number
	// Tensor data is aligned to 32 bytes; padding in the header keeps its place relative to the end.
	const pad = "general.padding"
	length := len(kv) + 8 + len(pad) + 4 + 8
	fill := (32 - length%32) % 32
	kv = append(kv, byte(len(pad)), 0, 0, 0, 0, 0, 0, 0)
	kv = append(kv, pad...)
	kv = append(kv, 8, 0, 0, 0, byte(fill), 0, 0, 0, 0, 0, 0, 0)
	kv = append(kv, bytes.Repeat([]byte{'x'}, fill)...)
	out := append([]byte(nil), in[:24]...)
	out[16] += 2 // the number of keys
	out = append(out, kv...)
	out = append(out, in[24:]...)
	to := filepath.Join(t.TempDir(), "embed.gguf")
	if err := os.WriteFile(to, out, 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

func TestLoadCanBeCancelled(t *testing.T) {
	lib := library(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	e := New(Options{Library: lib, ModelPath: stories(t), Threads: 1})
	if _, err := e.Load(ctx, func(float64) {}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = e.Close() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("Close blocks after a failed load")
	}
}

func TestUnknownDevice(t *testing.T) {
	e := New(Options{Library: library(t), ModelPath: stories(t), Devices: []string{"cuda7"}, Threads: 1})
	_, err := e.Load(context.Background(), func(float64) {})
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "cpu0") {
		t.Errorf("%v", err)
	}
}
