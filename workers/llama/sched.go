package llama

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

const (
	// stepBeside and stepAlone bound the time of a step with prompt tokens in it, beside running requests (who wait for it) and
	// without. A cancel takes effect between steps.
	stepBeside = 150 * time.Millisecond
	stepAlone  = 500 * time.Millisecond
	// minChunk is the number of prompt tokens in a step that costs little beside a few decode rows.
	minChunk = 32
	// sharedAhead is how many tokens more than already computed a prompt must share with one now being computed, to wait for it.
	sharedAhead = 16
	// retainFloor is the number of retained cells that are left in the KV cache while requests run and no copies can be made.
	retainFloor = 256
)

// scheduler decides what goes into each batch. It is used from one goroutine and blocks in the backend only.
type scheduler struct {
	b        backend
	c        *cache
	eog      []bool // by token: end of generation
	slots    int
	maxBatch int
	now      func() time.Time
	counters *counters

	queue   []*task // waiting, first come first; preempted ones in front
	prefill []*task // their prompt is being computed, in order
	running []*task // one token of each in every step

	order    uint64
	perToken time.Duration // measured cost of a prompt token
	rows     []row
	outs     []output
	batched  []*task // tasks with rows in the batch
}

// output says that the row at index gives the next token of t.
type output struct {
	t     *task
	index int
}

// counters are what other goroutines read of the loop.
type counters struct {
	busy, kvUsed, preempted, computed atomic.Int64
	progress                          atomic.Uint64
	// deviceMemory is what loading took of the memory of accelerators.
	deviceMemory atomic.Uint64
	// busy counts tasks that have a slot, waiting those that were submitted and have none yet.
	waiting atomic.Int64
}

// submit takes over a task.
func (s *scheduler) submit(t *task) {
	s.order++
	t.order = s.order
	s.queue = append(s.queue, t)
}

// idle reports whether there is nothing to do.
func (s *scheduler) idle() bool { return len(s.queue)+len(s.prefill)+len(s.running) == 0 }

// step sweeps what was cancelled, builds a batch, computes it and hands out the tokens.
func (s *scheduler) step() {
	s.sweep()
	s.rows, s.outs, s.batched = s.rows[:0], s.outs[:0], s.batched[:0]
	s.addRunning()
	s.addPrompts()
	s.limitRetained()
	s.publish()
	if len(s.rows) == 0 {
		return
	}
	start := s.now()
	if !s.compute() {
		s.publish()
		return
	}
	if prompts := len(s.rows) - len(s.running); prompts >= minChunk/2 {
		cost := s.now().Sub(start) / time.Duration(len(s.rows))
		if s.perToken == 0 {
			s.perToken = cost
		}
		s.perToken = (3*s.perToken + cost) / 4
	}
	s.handOut()
	s.publish()
}

func (s *scheduler) sweep() {
	swept := func(list []*task) []*task {
		return slices.DeleteFunc(list, func(t *task) bool {
			if !t.cancelled.Load() {
				return false
			}
			s.close(t, "", nil)
			return true
		})
	}
	s.queue, s.prefill, s.running = swept(s.queue), swept(s.prefill), swept(s.running)
}

// limitRetained moves what is retained out of the way of a batch: 300 retained cells beside the 450 of four requests
// cost a tenth of their tokens per second on a processor. With nothing running they cost nothing and stay.
func (s *scheduler) limitRetained() {
	if len(s.rows) == 0 {
		return
	}
	if s.c.hostMax > 0 {
		s.c.limitRetained(0)
		return
	}
	live := 0
	for _, t := range s.batched {
		live += len(t.seq.cells)
	}
	s.c.limitRetained(max(retainFloor, live/4))
}

// addRunning puts one row of each running request into the batch; without cells for all, the youngest request goes back to
// the queue.
func (s *scheduler) addRunning() {
	for len(s.c.freeCells) < len(s.running) {
		if !s.c.evict(len(s.running)-len(s.c.freeCells), nil) && !s.preempt(nil) {
			break
		}
	}
	for _, t := range s.running {
		s.outs = append(s.outs, output{t, len(s.rows)})
		s.addRow(t, t.all[len(t.all)-1], true)
		s.batched = append(s.batched, t)
	}
}

func (s *scheduler) addRow(t *task, token int32, out bool) {
	s.rows = append(s.rows, row{token: token, pos: int32(len(t.seq.tokens)), seq: t.seq.id, out: out})
	s.c.add(t.seq, token)
}

// chunk returns the number of prompt tokens for this step.
func (s *scheduler) chunk() int {
	most := s.maxBatch - len(s.rows)
	bound := stepAlone
	if len(s.rows) > 0 {
		bound = stepBeside
	}
	if s.perToken == 0 {
		return min(most, minChunk)
	}
	return max(min(most, minChunk), min(most, int(bound/s.perToken)-len(s.rows)))
}

// addPrompts fills the batch with prompt tokens: the prompts begun before first, then new ones in the order of arrival.
func (s *scheduler) addPrompts() {
	left := s.chunk()
	for _, t := range s.prefill {
		left -= s.addPrompt(t, left)
	}
	for i := 0; i < len(s.queue) && left > 0 && len(s.running)+len(s.prefill) < s.slots; {
		t := s.queue[i]
		if s.soonShared(t) {
			i++
			continue
		}
		if !s.admit(t) {
			break
		}
		s.queue = slices.Delete(s.queue, i, i+1)
		s.prefill = append(s.prefill, t)
		t.state = computing
		left -= s.addPrompt(t, left)
	}
	// A lone prompt always fits. Of several, all of which wait for cells, the youngest makes room.
	for len(s.rows) == 0 && len(s.prefill) > 0 {
		if s.addPrompt(s.prefill[0], left) == 0 && !s.preempt(s.prefill[0]) {
			break
		}
	}
}

// addPrompt puts up to n tokens of t's prompt into the batch, as far as there are cells, and returns their number.
func (s *scheduler) addPrompt(t *task, n int) int {
	n = min(n, len(t.all)-len(t.seq.tokens))
	for len(s.c.freeCells) < n && s.c.evict(n-len(s.c.freeCells), nil) {
	}
	n = min(n, len(s.c.freeCells))
	if n <= 0 {
		return 0
	}
	for range n {
		at := len(t.seq.tokens)
		last := at == len(t.all)-1
		if last {
			s.outs = append(s.outs, output{t, len(s.rows)})
		}
		s.addRow(t, t.all[at], last)
	}
	s.batched = append(s.batched, t)
	return n
}

// soonShared reports whether a prompt being computed now has much more in common with t than what is computed already.
func (s *scheduler) soonShared(t *task) bool {
	if !s.c.sharing || len(s.prefill) == 0 {
		return false
	}
	_, _, have := s.c.match(t.all)
	for _, p := range s.prefill {
		if commonPrefix(p.all, t.all) > have+sharedAhead {
			return true
		}
	}
	return false
}

// admit gives t a sequence. It returns false when a running request must end first.
func (s *scheduler) admit(t *task) bool {
	spare := 1
	if n := len(s.running) + len(s.prefill); n > 0 {
		spare = 8 * (n + 1) // else the next steps would preempt it again
	}
	for _, p := range s.prefill {
		spare += len(p.all) - len(p.seq.tokens)
	}
	seq, cached := s.c.open(t.all, spare)
	if seq == nil {
		return false
	}
	t.seq = seq
	if t.started.IsZero() {
		t.started = s.now()
		t.cached = cached
	}
	s.counters.waiting.Add(-1)
	s.counters.busy.Add(1)
	return true
}

// preempt takes the cells of the youngest request other than keep and puts it at the head of the queue, from where it goes on
// later. It returns false when there is none.
func (s *scheduler) preempt(keep *task) bool {
	var v *task
	for _, list := range [][]*task{s.running, s.prefill} {
		for _, t := range list {
			if t != keep && (v == nil || t.order > v.order) {
				v = t
			}
		}
	}
	if v == nil || len(s.running)+len(s.prefill) == 1 {
		return false
	}
	v.state = waiting
	s.sortOut()
	s.c.release(v.seq)
	v.seq = nil
	s.queue = slices.Insert(s.queue, 0, v)
	s.counters.waiting.Add(1)
	s.counters.busy.Add(-1)
	s.counters.preempted.Add(1)
	return true
}

// compute decodes the batch. It returns false when that failed and the tasks were put back or ended.
func (s *scheduler) compute() bool {
	rc := s.b.decode(s.rows)
	// 1 is "no cells" and changes nothing. The mirror prevents it; a cache with needs of its own may still want room.
	for rc == 1 && s.c.evict(0, nil) {
		rc = s.b.decode(s.rows)
	}
	if rc == 0 {
		for _, t := range s.batched {
			t.seq.computed = len(t.seq.tokens)
		}
		s.counters.computed.Add(int64(len(s.rows)))
		s.counters.progress.Add(1)
		return true
	}
	if rc == 1 {
		for _, t := range s.batched {
			s.c.rollback(t.seq)
		}
		if s.preempt(s.batched[0]) {
			return false
		}
	}
	// After another failure it is unknown what the cache holds of these sequences: they end.
	err := fault.New(fault.Internal, "decode_failed", "The engine could not compute the next tokens (llama_decode returned %d); send the request again.", rc)
	for _, t := range s.batched {
		s.c.release(t.seq)
		t.seq = nil
		s.close(t, "", err)
	}
	s.sortOut()
	return false
}

// sortOut takes tasks off the lists that their state no longer agrees with.
func (s *scheduler) sortOut() {
	s.prefill = slices.DeleteFunc(s.prefill, func(t *task) bool { return t.state != computing })
	s.running = slices.DeleteFunc(s.running, func(t *task) bool { return t.state != generating })
}

// handOut picks the next token of each finished row and moves prompts that are complete to the running requests.
func (s *scheduler) handOut() {
	for _, t := range s.prefill {
		t.progress(min(len(t.seq.tokens), len(t.prompt)))
	}
	for _, o := range s.outs {
		t := o.t
		finish, err := s.next(t, o.index)
		if t.first.IsZero() {
			t.first = s.now()
		}
		switch {
		case finish != "" || err != nil:
			s.close(t, finish, err)
		case t.state == computing:
			t.state = generating
			s.running = append(s.running, t)
		}
	}
	s.sortOut()
}

// next picks the token that follows row index and hands it to the caller. A finish reason or an error ends the task.
func (s *scheduler) next(t *task, index int) (string, error) {
	logits := s.b.logits(index)
	if len(logits) == 0 {
		return "", fault.New(fault.Internal, "no_logits", "The engine gave no scores for the next token; send the request again.")
	}
	token := t.choose.choose(logits, t.all)
	if s.eog[token] && !t.ignoreEOS {
		return contract.FinishStop, nil
	}
	t.generated++
	t.all = append(t.all, token)
	t.put(token)
	if t.generated >= t.maxTokens {
		return contract.FinishLength, nil
	}
	return "", nil
}

// close ends t and keeps its sequence as a prefix for later prompts. The caller takes it off the lists.
func (s *scheduler) close(t *task, finish string, err error) {
	// Before t.end: who is told that a request has ended must not find it counted any more.
	if t.state == waiting {
		s.counters.waiting.Add(-1)
	} else {
		s.counters.busy.Add(-1)
	}
	t.state = ended
	if t.seq != nil {
		s.c.retain(t.seq)
		t.seq = nil
	}
	t.ended = s.now()
	t.end(finish, err)
}

// failAll ends every task with err.
func (s *scheduler) failAll(err error) {
	for _, list := range [][]*task{s.queue, s.prefill, s.running} {
		for _, t := range list {
			s.close(t, "", err)
		}
	}
	s.queue, s.prefill, s.running = nil, nil, nil
	s.publish()
}

func (s *scheduler) publish() {
	s.counters.kvUsed.Store(int64(s.c.used()))
}
