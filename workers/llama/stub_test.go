package llama

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// stub is a backend without arithmetic: it keeps what each sequence holds, checks every rule of llama.cpp that would end the
// process, and "predicts" by a function of the whole history. So a wrong cell anywhere changes the text.
type stub struct {
	t        *testing.T
	cells    int
	maxBatch int
	vocab    int
	seqs     map[int32][]cellRef
	nextCell int
	rows     []row
	batches  [][]row
	fail     []int // return codes of the next decodes
	onDecode func(rows []row)
	noSave   bool
	saved    int
	restored int
	clock    time.Time
}

// cellRef is a cell with its token: a shared one is the same number in several sequences.
type cellRef struct {
	cell  int
	token int32
}

func newStub(t *testing.T, cells int) *stub {
	return &stub{t: t, cells: cells, maxBatch: 64, vocab: 97, seqs: map[int32][]cellRef{}, clock: time.Unix(1000, 0)}
}

func (s *stub) now() time.Time { return s.clock }

func (s *stub) used() int {
	set := map[int]bool{}
	for _, list := range s.seqs {
		for _, c := range list {
			set[c.cell] = true
		}
	}
	return len(set)
}

func (s *stub) decode(rows []row) int {
	s.t.Helper()
	if s.onDecode != nil {
		s.onDecode(rows)
	}
	if len(rows) == 0 || len(rows) > s.maxBatch {
		s.t.Fatalf("a batch of %d rows", len(rows))
	}
	if len(s.fail) > 0 {
		rc := s.fail[0]
		s.fail = s.fail[1:]
		if rc != 0 {
			return rc
		}
	}
	if s.used()+len(rows) > s.cells {
		s.t.Fatalf("%d cells used, %d more asked for, %d there are: the mirror is wrong", s.used(), len(rows), s.cells)
	}
	for _, r := range rows {
		if r.seq < 0 || r.seq >= maxSequences {
			s.t.Fatalf("sequence id %d", r.seq)
		}
		if int(r.pos) != len(s.seqs[r.seq]) {
			s.t.Fatalf("sequence %d: position %d after %d tokens", r.seq, r.pos, len(s.seqs[r.seq]))
		}
		s.nextCell++
		s.seqs[r.seq] = append(s.seqs[r.seq], cellRef{s.nextCell, r.token})
		s.clock = s.clock.Add(time.Millisecond)
	}
	s.rows = slices.Clone(rows)
	s.batches = append(s.batches, s.rows)
	return 0
}

// predict is the token that follows a history.
func predict(history []int32, vocab int) int32 {
	h := uint64(1469598103934665603)
	for _, t := range history {
		h = (h ^ uint64(t)) * 1099511628211
	}
	return int32(h % uint64(vocab))
}

func (s *stub) logits(i int) []float32 {
	s.t.Helper()
	r := s.rows[i]
	if !r.out {
		s.t.Fatalf("the logits of row %d were not asked for", i)
	}
	var history []int32
	for _, c := range s.seqs[r.seq][:r.pos+1] {
		history = append(history, c.token)
	}
	out := make([]float32, s.vocab)
	out[predict(history, s.vocab)] = 1
	return out
}

func (s *stub) remove(seq int32, p0 int) {
	if p0 == 0 {
		delete(s.seqs, seq)
		return
	}
	s.seqs[seq] = s.seqs[seq][:min(p0, len(s.seqs[seq]))]
}

func (s *stub) share(src, dst int32, n int) {
	s.t.Helper()
	if len(s.seqs[dst]) != 0 {
		s.t.Fatalf("sequence %d is not empty", dst)
	}
	if len(s.seqs[src]) < n {
		s.t.Fatalf("sequence %d has %d of %d cells to share", src, len(s.seqs[src]), n)
	}
	s.seqs[dst] = slices.Clone(s.seqs[src][:n])
}

func (s *stub) save(seq int32) *hostCopy {
	if s.noSave {
		return nil
	}
	h := newHostCopy(4*len(s.seqs[seq]) + 4)
	for i, c := range s.seqs[seq] {
		copy(h.data[4*i:], fmt.Sprintf("%04d", c.token))
	}
	s.saved++
	return h
}

func (s *stub) restore(seq int32, c *hostCopy) bool {
	for i := range c.tokens {
		var t int32
		if _, err := fmt.Sscanf(string(c.data[4*i:4*i+4]), "%d", &t); err != nil {
			s.t.Fatal(err)
		}
		s.nextCell++
		s.seqs[seq] = append(s.seqs[seq], cellRef{s.nextCell, t})
	}
	if s.used() > s.cells {
		s.t.Fatal("a host copy was restored without room")
	}
	s.restored++
	return true
}

// expected is what a lone request for n tokens gives.
func (s *stub) expected(prompt []int32, n int) []int32 {
	all := slices.Clone(prompt)
	for range n {
		all = append(all, predict(all, s.vocab))
	}
	return all[len(prompt):]
}

// bench is a scheduler over a stub.
type bench struct {
	*scheduler
	stub *stub
	got  map[*task][]int32
}

func newBench(t *testing.T, cells, slots int) *bench {
	st := newStub(t, cells)
	c := newCache(st, cells, slots+retainedSeqs, true, 1<<20)
	t.Cleanup(c.close)
	return &bench{stub: st, got: map[*task][]int32{}, scheduler: &scheduler{b: st, c: c, eog: make([]bool, st.vocab), slots: slots,
		maxBatch: st.maxBatch, now: st.now, counters: &counters{}}}
}

func (b *bench) add(prompt []int32, n int) *task {
	t := newTask(prompt, n, greedy{}, b.now())
	t.ignoreEOS = true
	b.counters.waiting.Add(1)
	b.submit(t)
	return t
}

// stepOnce does one step and checks that the mirror agrees with the cells.
func (b *bench) stepOnce() {
	b.stub.t.Helper()
	b.step()
	if got, want := b.c.used(), b.stub.used(); got != want {
		b.stub.t.Fatalf("the mirror counts %d cells, there are %d", got, want)
	}
	for _, s := range b.c.seqs {
		if len(s.tokens) != len(s.cells) || s.computed > len(s.tokens) {
			b.stub.t.Fatalf("sequence %d: %d tokens, %d cells, %d computed", s.id, len(s.tokens), len(s.cells), s.computed)
		}
	}
}

func (b *bench) run(steps int) {
	b.stub.t.Helper()
	for range steps {
		if b.idle() {
			return
		}
		b.stepOnce()
	}
	b.stub.t.Fatalf("not done after %d steps", steps)
}

func (b *bench) tokens(t *task) []int32 {
	out, _, _ := t.fetch()
	b.got[t] = append(b.got[t], out...)
	return b.got[t]
}

// words makes a prompt: n tokens that differ from those of other seeds.
func words(seed, n int) []int32 {
	out := make([]int32, n)
	for i := range out {
		out[i] = int32((seed*31 + i*7 + i*i%11) % 97)
	}
	return out
}
