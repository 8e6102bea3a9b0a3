package llama

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func TestRequestsDoNotDisturbEachOther(t *testing.T) {
	b := newBench(t, 1024, 4)
	var tasks []*task
	for i := range 9 {
		tasks = append(tasks, b.add(words(i, 5+17*i), 10+i))
	}
	if got := b.counters.waiting.Load(); got != 9 {
		t.Errorf("%d wait before the first step, want 9", got)
	}
	b.run(500)
	for i, k := range tasks {
		if diff := cmp.Diff(b.stub.expected(words(i, 5+17*i), 10+i), b.tokens(k)); diff != "" {
			t.Errorf("request %d (-alone +here):\n%s", i, diff)
		}
		if k.finish != contract.FinishLength || k.err != nil {
			t.Errorf("request %d ended with %q, %v", i, k.finish, k.err)
		}
	}
	if b.counters.waiting.Load() != 0 || b.counters.busy.Load() != 0 {
		t.Errorf("at the end %d wait and %d run", b.counters.waiting.Load(), b.counters.busy.Load())
	}
}

func TestAtMostSlotsRun(t *testing.T) {
	b := newBench(t, 4096, 3)
	for i := range 8 {
		b.add(words(i, 20), 20)
	}
	for !b.idle() {
		b.stepOnce()
		if n := len(b.running) + len(b.prefill); n > 3 {
			t.Fatalf("%d run in 3 slots", n)
		}
	}
}

func TestPrefixOfEndedAndOfRunningRequest(t *testing.T) {
	b := newBench(t, 1024, 4)
	prompt := words(1, 100)
	first := b.add(prompt, 8)
	b.run(100)
	turn := append(slices.Clone(first.all), words(2, 10)...)
	second := b.add(turn, 4)
	b.run(100)
	// Of the first request all but its last token was computed.
	if want := len(first.all) - 1; second.cached != want {
		t.Errorf("%d tokens found of an ended request, want %d", second.cached, want)
	}
	third := b.add(words(3, 60), 50)
	b.stepOnce()
	b.stepOnce()
	b.stepOnce()
	fourth := b.add(append(words(3, 60), words(4, 5)...), 4)
	b.run(200)
	if fourth.cached != 60 {
		t.Errorf("%d tokens found of a running request, want 60", fourth.cached)
	}
	again := b.add(prompt, 3)
	b.run(100)
	if again.cached != len(prompt)-1 {
		t.Errorf("%d tokens found of the same prompt, want all but the last, %d", again.cached, len(prompt)-1)
	}
	for k, want := range map[*task][]int32{second: b.stub.expected(turn, 4), third: b.stub.expected(words(3, 60), 50), again: b.stub.expected(prompt, 3)} {
		if diff := cmp.Diff(want, b.tokens(k)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestColdSharedPrefixIsComputedOnce(t *testing.T) {
	b := newBench(t, 4096, 16)
	system := words(1, 300)
	total := 0
	for i := range 16 {
		p := append(slices.Clone(system), words(100+i, 8)...)
		total += len(p)
		b.add(p, 4)
	}
	b.run(200)
	rows := int(b.counters.computed.Load())
	if most := 300 + 16*8 + 16*4 + 32; rows > most {
		t.Errorf("%d tokens were computed of %d; with one computation of the shared part at most %d are needed", rows, total, most)
	}
}

func TestPreemptionWhenCellsRunOut(t *testing.T) {
	b := newBench(t, 200, 8)
	var tasks []*task
	for i := range 8 {
		tasks = append(tasks, b.add(words(i, 20), 60))
	}
	b.run(5000)
	if b.counters.preempted.Load() == 0 {
		t.Error("640 tokens ran in 200 cells without a preemption")
	}
	for i, k := range tasks {
		if diff := cmp.Diff(b.stub.expected(words(i, 20), 60), b.tokens(k)); diff != "" {
			t.Errorf("request %d (-alone +here):\n%s", i, diff)
		}
	}
	if b.counters.waiting.Load() != 0 {
		t.Errorf("%d wait at the end", b.counters.waiting.Load())
	}
}

func TestCancelInEveryPhase(t *testing.T) {
	for name, steps := range map[string]int{"queued": 0, "prefill": 1, "generating": 12} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 1024, 1)
			if name == "queued" {
				b.add(words(9, 10), 3)
			}
			k := b.add(words(1, 300), 500)
			for range steps {
				b.stepOnce()
			}
			if name == "generating" && k.state != generating || name == "prefill" && k.state != computing {
				t.Fatalf("state %d after %d steps", k.state, steps)
			}
			k.cancelled.Store(true)
			b.stepOnce()
			if !k.done || k.seq != nil {
				t.Error("a cancelled request goes on after a step")
			}
			b.run(100)
			if b.counters.waiting.Load() != 0 || b.counters.busy.Load() != 0 {
				t.Errorf("%d wait and %d run after a cancel", b.counters.waiting.Load(), b.counters.busy.Load())
			}
		})
	}
}

func TestEndOfText(t *testing.T) {
	b := newBench(t, 256, 1)
	prompt := words(1, 10)
	want := b.stub.expected(prompt, 5)
	b.eog[want[3]] = true
	stop := slices.IndexFunc(want, func(x int32) bool { return b.eog[x] })
	k := b.add(prompt, 50)
	k.ignoreEOS = false
	b.run(100)
	if k.finish != contract.FinishStop || k.generated != stop {
		t.Errorf("ended with %q after %d tokens, want stop after %d", k.finish, k.generated, stop)
	}
	if diff := cmp.Diff(want[:stop], b.tokens(k)); stop > 0 && diff != "" {
		t.Error(diff)
	}
	goesOn := b.add(prompt, 5)
	b.run(100)
	if goesOn.generated != 5 || goesOn.finish != contract.FinishLength {
		t.Errorf("with IgnoreEOS it ended with %q after %d tokens", goesOn.finish, goesOn.generated)
	}
}

func TestNoCellsInSpiteOfTheMirror(t *testing.T) {
	b := newBench(t, 1024, 4)
	b.add(words(7, 80), 2)
	b.run(50) // a retained sequence, to be given up
	one, two := b.add(words(1, 10), 6), b.add(words(2, 10), 6)
	b.stepOnce()
	b.stub.fail = []int{1, 0, 1, 1}
	b.run(100)
	for i, k := range []*task{one, two} {
		if diff := cmp.Diff(b.stub.expected(words(i+1, 10), 6), b.tokens(k)); diff != "" {
			t.Error(diff)
		}
	}
}

func TestFailedDecodeEndsItsRequestsOnly(t *testing.T) {
	b := newBench(t, 1024, 2)
	one, two, queued := b.add(words(1, 10), 6), b.add(words(2, 10), 6), b.add(words(3, 10), 6)
	b.stepOnce()
	b.stub.fail = []int{-3}
	b.stepOnce()
	for _, k := range []*task{one, two} {
		f, ok := errors.AsType[*fault.Error](k.err)
		if !k.done || !ok || f.Code != "decode_failed" {
			t.Errorf("done %v, %v", k.done, k.err)
		}
	}
	b.run(100)
	if diff := cmp.Diff(b.stub.expected(words(3, 10), 6), b.tokens(queued)); diff != "" {
		t.Error(diff)
	}
}

func TestChunksKeepStepsShort(t *testing.T) {
	b := newBench(t, 4096, 4)
	b.stub.maxBatch, b.maxBatch = 512, 512
	b.add(words(1, 3), 400)
	b.stepOnce()
	b.add(words(2, 1500), 1)
	biggest := 0
	b.stub.onDecode = func(rows []row) { biggest = max(biggest, len(rows)) }
	b.run(500)
	// A token takes 1 ms here.
	if most := int(stepBeside.Milliseconds()) + 1; biggest > most || biggest < most-40 {
		t.Errorf("the biggest step beside a running request had %d tokens of 1 ms, the bound is %v", biggest, stepBeside)
	}
	biggest = 0
	k := b.add(words(5, 2000), 1)
	var seen []int
	for !b.idle() {
		b.stepOnce()
		_, done, _ := k.fetch()
		seen = append(seen, done)
	}
	if most := int(stepAlone.Milliseconds()); biggest > most || biggest < most-40 {
		t.Errorf("the biggest step alone had %d tokens of 1 ms, the bound is %v", biggest, stepAlone)
	}
	if !slices.IsSorted(seen) || len(slices.Compact(seen)) < 4 {
		t.Errorf("progress of the prompt: %v", seen)
	}
}

func TestHostCopiesBringConversationsBack(t *testing.T) {
	b := newBench(t, 600, 2)
	prompts := [][]int32{words(1, 200), words(2, 200), words(3, 200), words(4, 200)}
	for _, p := range prompts {
		b.add(p, 4)
		b.run(100)
	}
	if b.stub.saved == 0 {
		t.Fatal("nothing was copied to host memory")
	}
	for i, p := range prompts {
		k := b.add(append(slices.Clone(p), words(50+i, 20)...), 4)
		b.run(100)
		if k.cached < 200 {
			t.Errorf("conversation %d: %d tokens found, want 200", i, k.cached)
		}
		if diff := cmp.Diff(b.stub.expected(k.prompt, 4), b.tokens(k)); diff != "" {
			t.Error(diff)
		}
	}
	if b.stub.restored == 0 {
		t.Error("nothing was restored")
	}
	if b.c.hostBytes > b.c.hostMax {
		t.Errorf("%d bytes of host memory, the bound is %d", b.c.hostBytes, b.c.hostMax)
	}
}

func TestHostMemoryIsBounded(t *testing.T) {
	b := newBench(t, 600, 2)
	b.c.hostMax = 2000
	for i := range 20 {
		b.add(words(i, 200), 4)
		b.run(100)
		sum := 0
		for _, h := range b.c.host {
			sum += len(h.data)
		}
		if sum != b.c.hostBytes || sum > b.c.hostMax {
			t.Fatalf("%d bytes in copies, %d counted, %d allowed", sum, b.c.hostBytes, b.c.hostMax)
		}
	}
}

func TestWithoutSharing(t *testing.T) {
	b := newBench(t, 600, 2)
	b.c.sharing = false
	for range 3 {
		k := b.add(words(1, 100), 4)
		b.run(100)
		if k.cached != 0 {
			t.Errorf("%d tokens found in a memory that cannot be shared", k.cached)
		}
	}
	if b.c.used() != 0 {
		t.Errorf("%d cells are kept", b.c.used())
	}
}

// TestRandomLoads runs random requests with random cancels and lets the stub check every batch; each request must get the
// tokens that it gets alone.
func TestRandomLoads(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		cells := rapid.IntRange(64, 700).Draw(r, "cells")
		b := newBench(t, cells, rapid.IntRange(1, 6).Draw(r, "slots"))
		b.stub.noSave = rapid.Bool().Draw(r, "noSave")
		var tasks []*task
		n := rapid.IntRange(1, 14).Draw(r, "requests")
		for len(tasks) < n || !b.idle() {
			if len(tasks) < n && rapid.IntRange(0, 3).Draw(r, "arrives") == 0 {
				most := cells - 2
				p := words(rapid.IntRange(0, 3).Draw(r, "seed"), rapid.IntRange(1, most).Draw(r, "length"))
				if rapid.Bool().Draw(r, "continues") && len(tasks) > 0 {
					if old := tasks[rapid.IntRange(0, len(tasks)-1).Draw(r, "of")].all; len(old) < most-5 {
						p = append(slices.Clone(old), p[:min(len(p), most-len(old))]...)
					}
				}
				tasks = append(tasks, b.add(p, rapid.IntRange(1, min(40, cells-len(p))).Draw(r, "tokens")))
			}
			if len(tasks) > 0 && rapid.IntRange(0, 30).Draw(r, "cancels") == 0 {
				tasks[rapid.IntRange(0, len(tasks)-1).Draw(r, "which")].cancelled.Store(true)
			}
			b.stepOnce()
		}
		for i, k := range tasks {
			got := b.tokens(k)
			if !k.done {
				t.Fatalf("request %d never ended", i)
			}
			if want := b.stub.expected(k.prompt, len(got)); !slices.Equal(got, want) {
				t.Fatalf("request %d: %v, alone %v", i, got, want)
			}
			if !k.cancelled.Load() && len(got) != k.maxTokens {
				t.Fatalf("request %d gave %d of %d tokens (%v)", i, len(got), k.maxTokens, k.err)
			}
		}
		if b.counters.waiting.Load() != 0 || b.counters.busy.Load() != 0 {
			t.Fatalf("%d wait and %d run at the end", b.counters.waiting.Load(), b.counters.busy.Load())
		}
		b.c.close()
	})
}
