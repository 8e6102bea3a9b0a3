package llama

// cache is a mirror of the KV cells of a unified cache: llama.cpp does not say how many are used, and a batch that finds none
// fails. It hands out sequences, shares prefixes between them, keeps finished ones for later prompts, and copies to host
// memory what no longer fits. It calls the backend for every change, and makes none that the backend does not.
type cache struct {
	b         backend
	refs      []uint16 // of each cell: the sequences that hold it
	freeCells []int32
	freeSeqs  []int32
	seqs      []*sequence // running and retained
	clock     uint64
	sharing   bool // false for models whose memory cannot be cut or shared by position

	host      []*hostCopy
	hostBytes int
	hostMax   int
}

// sequence is one llama.cpp sequence: position i holds tokens[i] in cells[i].
type sequence struct {
	id       int32
	tokens   []int32
	cells    []int32
	computed int  // positions really in the KV cache; those of the batch being built are not
	active   bool // belongs to a request; else retained
	used     uint64
}

// minHostTokens is the length from which a sequence is worth copying to host memory, and hostMargin how many tokens more a
// copy must hold than the KV cache to be worth restoring.
const minHostTokens, hostMargin = 16, 8

func newCache(b backend, cells, seqs int, sharing bool, hostMax int) *cache {
	c := &cache{b: b, refs: make([]uint16, cells), sharing: sharing, hostMax: hostMax}
	for i := cells - 1; i >= 0; i-- {
		c.freeCells = append(c.freeCells, int32(i))
	}
	for i := seqs - 1; i >= 0; i-- {
		c.freeSeqs = append(c.freeSeqs, int32(i))
	}
	return c
}

// used returns the number of cells that hold something.
func (c *cache) used() int { return len(c.refs) - len(c.freeCells) }

// own returns the number of cells that s alone holds.
func (c *cache) own(s *sequence) int {
	n := 0
	for _, i := range s.cells {
		if c.refs[i] == 1 {
			n++
		}
	}
	return n
}

// commonPrefix returns the length of the longest prefix that a and b share.
func commonPrefix(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// match returns the sequence or the host copy that holds the longest prefix of prompt, and its length. The last token of a
// prompt is always computed, because its logits are needed. A host copy must be longer by a margin to be worth its copying.
func (c *cache) match(prompt []int32) (*sequence, *hostCopy, int) {
	if !c.sharing {
		return nil, nil, 0
	}
	var best *sequence
	var copied *hostCopy
	n := 0
	for _, s := range c.seqs {
		if k := min(commonPrefix(s.tokens[:s.computed], prompt), len(prompt)-1); k > n {
			best, n = s, k
		}
	}
	for _, h := range c.host {
		if k := min(commonPrefix(h.tokens, prompt), len(prompt)-1); k > n+hostMargin {
			best, copied, n = nil, h, k
		}
	}
	return best, copied, n
}

// open gives prompt a sequence that already holds the longest known prefix, and makes room for the rest and spare cells
// more. It returns nil when there is no room now: then a running request must end first.
func (c *cache) open(prompt []int32, spare int) (*sequence, int) {
	best, copied, n := c.match(prompt)
	c.clock++
	if copied != nil {
		copied.used = c.clock // not the one that goes when evicting fills the host memory
	}
	for {
		need := len(prompt) - n + spare
		if copied != nil {
			need = max(len(prompt), len(copied.tokens)) + spare
		}
		if len(c.freeSeqs) > 0 && len(c.freeCells) >= need {
			break
		}
		if c.evict(need-len(c.freeCells), best) {
			continue
		}
		// Only the match itself, or the size of the host copy, may still be in the way.
		if copied != nil {
			copied, n = nil, 0
			continue
		}
		if best == nil || best.active {
			return nil, 0
		}
		best.shrinkTo(c, n)
		if len(c.freeSeqs) > 0 && len(c.freeCells) >= len(prompt)-n+spare {
			break
		}
		best, n = nil, 0
	}
	s := &sequence{id: c.freeSeqs[len(c.freeSeqs)-1], active: true}
	c.freeSeqs = c.freeSeqs[:len(c.freeSeqs)-1]
	c.seqs = append(c.seqs, s)
	switch {
	case copied != nil:
		if !c.b.restore(s.id, copied) {
			c.dropHost(copied)
			return s, 0
		}
		c.b.remove(s.id, n)
		for _, t := range copied.tokens[:n] {
			c.add(s, t)
		}
	case best != nil && n > 0:
		best.used = c.clock
		c.b.share(best.id, s.id, n)
		s.tokens = append(s.tokens, best.tokens[:n]...)
		s.cells = append(s.cells, best.cells[:n]...)
		for _, i := range s.cells {
			c.refs[i]++
		}
	}
	s.computed = len(s.tokens)
	return s, s.computed
}

// add appends one token to s, in a free cell that the caller made sure of.
func (c *cache) add(s *sequence, token int32) {
	i := c.freeCells[len(c.freeCells)-1]
	c.freeCells = c.freeCells[:len(c.freeCells)-1]
	c.refs[i] = 1
	s.tokens = append(s.tokens, token)
	s.cells = append(s.cells, i)
}

// shrinkTo forgets what s holds from position n on.
func (s *sequence) shrinkTo(c *cache, n int) {
	if n >= len(s.tokens) {
		return
	}
	c.b.remove(s.id, n)
	for _, i := range s.cells[n:] {
		if c.refs[i]--; c.refs[i] == 0 {
			c.freeCells = append(c.freeCells, i)
		}
	}
	s.tokens, s.cells, s.computed = s.tokens[:n], s.cells[:n], min(s.computed, n)
}

// rollback forgets the tokens of s that were put into a batch which was not computed. Their cells exist in the mirror only.
func (c *cache) rollback(s *sequence) {
	for _, i := range s.cells[s.computed:] {
		if c.refs[i]--; c.refs[i] == 0 {
			c.freeCells = append(c.freeCells, i)
		}
	}
	s.tokens, s.cells = s.tokens[:s.computed], s.cells[:s.computed]
}

// release forgets s altogether.
func (c *cache) release(s *sequence) {
	c.b.remove(s.id, 0)
	for _, i := range s.cells {
		if c.refs[i]--; c.refs[i] == 0 {
			c.freeCells = append(c.freeCells, i)
		}
	}
	s.tokens, s.cells, s.computed = nil, nil, 0
	c.freeSeqs = append(c.freeSeqs, s.id)
	for i, x := range c.seqs {
		if x == s {
			last := len(c.seqs) - 1
			c.seqs[i] = c.seqs[last]
			c.seqs[last] = nil
			c.seqs = c.seqs[:last]
			break
		}
	}
}

// retain keeps the sequence of an ended request for later prompts. Of two retained ones of which one covers the other, the
// longer stays.
func (c *cache) retain(s *sequence) {
	s.active = false
	c.clock++
	s.used = c.clock
	if !c.sharing || s.computed < 2 {
		c.release(s)
		return
	}
	c.rollback(s)
	for i := 0; i < len(c.seqs); i++ {
		x := c.seqs[i]
		if x == s || x.active {
			continue
		}
		switch commonPrefix(x.tokens, s.tokens) {
		case len(x.tokens):
			c.release(x)
			i--
		case len(s.tokens):
			x.used = s.used
			c.release(s)
			return
		}
	}
}

// evict makes room by giving up the least recently used retained sequence other than keep. It returns false when nothing is
// left to give up.
func (c *cache) evict(want int, keep *sequence) bool {
	var v *sequence
	for _, s := range c.seqs {
		if !s.active && s != keep && (v == nil || s.used < v.used) {
			v = s
		}
	}
	if v != nil {
		c.giveUp(v, want)
	}
	return v != nil
}

// giveUp takes s out of the KV cache, with a copy in host memory where that is possible. Where it is not, and only want cells
// are needed, it cuts off the tail and leaves the rest.
func (c *cache) giveUp(s *sequence, want int) {
	if !c.toHost(s) && want > 0 && want < len(s.tokens)-minHostTokens && len(c.freeSeqs) > 0 {
		s.shrinkTo(c, len(s.tokens)-want)
		return
	}
	c.release(s)
}

// limitRetained gives up retained sequences until they hold at most n cells that no request uses: attention runs over all
// cells up to the highest used one, so what is retained slows every step.
func (c *cache) limitRetained(n int) {
	for {
		var oldest *sequence
		over := -n
		for _, s := range c.seqs {
			own := 0
			if !s.active {
				own = c.own(s)
			}
			over += own
			if own > 0 && (oldest == nil || s.used < oldest.used) {
				oldest = s
			}
		}
		if over <= 0 || oldest == nil {
			return
		}
		c.giveUp(oldest, over)
	}
}

// toHost copies s to host memory. It returns whether its tokens are there afterwards.
func (c *cache) toHost(s *sequence) bool {
	if c.hostMax == 0 || s.computed < minHostTokens {
		return false
	}
	for _, h := range c.host {
		if commonPrefix(h.tokens, s.tokens) == len(s.tokens) {
			h.used = max(h.used, s.used)
			return true
		}
	}
	h := c.b.save(s.id)
	if h == nil {
		return false
	}
	h.tokens = append([]int32(nil), s.tokens[:s.computed]...)
	h.used = s.used
	for i := 0; i < len(c.host); i++ {
		if old := c.host[i]; commonPrefix(old.tokens, h.tokens) == len(old.tokens) {
			c.dropHost(old)
			i--
		}
	}
	c.host = append(c.host, h)
	c.hostBytes += len(h.data)
	for c.hostBytes > c.hostMax {
		oldest := c.host[0]
		for _, x := range c.host {
			if x.used < oldest.used {
				oldest = x
			}
		}
		c.dropHost(oldest)
		if oldest == h {
			return false
		}
	}
	return true
}

func (c *cache) dropHost(h *hostCopy) {
	for i, x := range c.host {
		if x == h {
			c.hostBytes -= len(h.data)
			h.free()
			c.host = append(c.host[:i], c.host[i+1:]...)
			return
		}
	}
}

// close frees the host copies.
func (c *cache) close() {
	for len(c.host) > 0 {
		c.dropHost(c.host[len(c.host)-1])
	}
}
