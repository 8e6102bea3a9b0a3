package llama

import (
	"fmt"
	"unsafe"

	"github.com/hybridgroup/yzma/pkg/llama"
)

// backend is what the scheduler needs of llama.cpp. It is used from one goroutine.
type backend interface {
	// decode computes the batch. 0 is success, 1 means that no cells were found and nothing changed, anything else is a failure.
	decode(rows []row) int
	// logits returns the scores of the batch's row i, which must have asked for output; nil when there are none. They are valid
	// until the next decode and may be written to.
	logits(i int) []float32
	// remove forgets the cells of seq from position p0 on; p0 0 forgets them all.
	remove(seq int32, p0 int)
	// share makes the first n cells of src cells of dst too. dst is empty.
	share(src, dst int32, n int)
	// save copies the state of seq out of the cache; nil when that cannot be done.
	save(seq int32) *hostCopy
	// restore fills the empty seq from a copy; false leaves it empty.
	restore(seq int32, c *hostCopy) bool
}

// row is one token of a batch.
type row struct {
	token int32
	pos   int32
	seq   int32
	out   bool // its logits are wanted
}

// maxSequences is the number of sequence ids that llama.cpp knows; a larger one ends the process.
const maxSequences = 256

// native drives a llama.cpp context. Its batch arrays are C memory seen as slices.
type native struct {
	m     *model
	batch llama.Batch
	tok   []int32
	pos   []int32
	nseq  []int32
	seq   []*int32
	out   []int8
}

func newNative(m *model, size int) *native {
	n := &native{m: m, batch: llama.BatchInit(int32(size), 0, 1)}
	n.tok = unsafe.Slice((*int32)(unsafe.Pointer(n.batch.Token)), size)
	n.pos = unsafe.Slice((*int32)(unsafe.Pointer(n.batch.Pos)), size)
	n.nseq = unsafe.Slice(n.batch.NSeqId, size)
	n.seq = unsafe.Slice((**int32)(unsafe.Pointer(n.batch.SeqId)), size)
	n.out = unsafe.Slice(n.batch.Logits, size)
	return n
}

func (n *native) free() {
	_ = llama.BatchFree(n.batch) // has no failure
}

func (n *native) decode(rows []row) int {
	if len(rows) == 0 || len(rows) > len(n.tok) {
		panic(fmt.Sprintf("llama: a batch of %d rows in a context of %d", len(rows), len(n.tok)))
	}
	for i, r := range rows {
		n.tok[i], n.pos[i], n.nseq[i], n.out[i] = r.token, r.pos, 1, 0
		*n.seq[i] = r.seq
		if r.out {
			n.out[i] = 1
		}
	}
	n.batch.NTokens = int32(len(rows))
	rc, err := llama.Decode(n.m.ctx, n.batch)
	if err != nil {
		return -1
	}
	return int(rc)
}

func (n *native) logits(i int) []float32 {
	l, err := llama.GetLogitsIth(n.m.ctx, int32(i), n.m.vocabSize)
	if err != nil {
		return nil
	}
	return l
}

func (n *native) remove(seq int32, p0 int) {
	start := llama.Pos(p0)
	if p0 == 0 {
		start = -1
	}
	// Removing from a unified attention cache cannot fail, and nothing is shared in models with another kind of memory.
	_, _ = llama.MemorySeqRm(n.m.mem, llama.SeqId(seq), start, -1)
}

func (n *native) share(src, dst int32, count int) {
	_ = llama.MemorySeqCp(n.m.mem, llama.SeqId(src), llama.SeqId(dst), 0, llama.Pos(count)) // fails for no memory only
}

func (n *native) save(seq int32) *hostCopy {
	size := llama.StateSeqGetSize(n.m.ctx, llama.SeqId(seq))
	if size == 0 {
		return nil
	}
	c := newHostCopy(int(size))
	if c == nil {
		return nil
	}
	if llama.StateSeqGetData(n.m.ctx, c.data, llama.SeqId(seq)) != size {
		c.free()
		return nil
	}
	return c
}

func (n *native) restore(seq int32, c *hostCopy) bool {
	if llama.StateSeqSetData(n.m.ctx, c.data, llama.SeqId(seq)) != 0 {
		return true
	}
	n.remove(seq, 0)
	return false
}
