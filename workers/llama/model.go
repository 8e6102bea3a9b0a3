package llama

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"github.com/ebitengine/purego"
	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/gguf"
)

// Sizes where the caller leaves them to the engine.
const (
	defaultContext  = 8192  // tokens of one request
	defaultCells    = 16384 // tokens of all requests
	defaultSlots    = 4     // on a processor, where more at once gain little
	defaultGPUSlots = 16
	batchSize       = 512
	// retainedSeqs are sequence ids beside those of the slots, for ended requests whose prefix may be used again.
	retainedSeqs = 16
)

// model is one loaded model with its context.
type model struct {
	lib   *Library
	model llama.Model
	ctx   llama.Context
	vocab llama.Vocab
	mem   llama.Memory
	pool  Threads

	vocabSize int
	embedding int // length of a vector
	pooling   llama.PoolingType
	pieces    [][]byte // text of each token
	eog       []bool
	addBOS    bool
	longest   int           // bytes of text that one token can stand for; 0: unknown
	template  *chatTemplate // nil: none

	context int // tokens of one request
	cells   int
	slots   int
	batch   int
	seqs    int
	sharing bool // its memory can be cut and shared by position
}

// checkFile reads the headers of the model's files before C does, and returns their total size.
func checkFile(path string) (contract.Bytes, error) {
	total, err := checkShard(path)
	if err != nil || total.shards <= 1 {
		return total.size, err
	}
	const pattern = "-%05d-of-%05d.gguf"
	prefix, ok := strings.CutSuffix(path, fmt.Sprintf(pattern, 1, total.shards))
	if !ok {
		return 0, modelFault("The model file %s is one of %d and is not named as the first of them (…%s); give the first one.", path, total.shards, fmt.Sprintf(pattern, 1, total.shards))
	}
	for i := 2; i <= total.shards; i++ {
		s, err := checkShard(prefix + fmt.Sprintf(pattern, i, total.shards))
		if err != nil {
			return 0, err
		}
		total.size += s.size
	}
	return total.size, nil
}

type shard struct {
	size   contract.Bytes
	shards int
}

func checkShard(path string) (shard, error) {
	if strings.ContainsRune(path, 0) {
		return shard{}, modelFault("The model file's name has a zero byte in it; choose another file.")
	}
	f, err := os.Open(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return shard{}, fault.New(fault.NotFound, "model_file_missing", "The model file %s does not exist; fetch the model again with 'apiary model pull'.", path)
		}
		return shard{}, modelFault("The model file %s cannot be read: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return shard{}, modelFault("The model file %s cannot be read: %w", path, err)
	}
	if !st.Mode().IsRegular() {
		return shard{}, modelFault("The model file %s is not a regular file; give a GGUF file.", path)
	}
	info, err := gguf.Read(f, st.Size())
	if err != nil {
		return shard{}, modelFault("The model file %s cannot be used: %w; fetch the model again.", path, err)
	}
	if info.Type != "" && info.Type != "model" {
		return shard{}, modelFault("The model file %s is of type %q, which is not a model; give a model file.", path, info.Type)
	}
	return shard{contract.Bytes(st.Size()), info.ShardCount}, nil
}

func modelFault(format string, args ...any) *fault.Error {
	return fault.New(fault.Invalid, "model_unusable", format, args...)
}

// sizes are the caller's wishes; 0 leaves a choice to the engine.
type sizes struct{ context, slots, threads int }

// loadModel loads the model file and makes its context.
func loadModel(ctx context.Context, lib *Library, path string, devices []string, want sizes, progress func(float64)) (*model, error) {
	if _, err := checkFile(path); err != nil {
		return nil, err
	}
	accelerators, err := lib.pick(devices)
	if err != nil {
		return nil, err
	}
	p := llama.ModelDefaultParams()
	p.NGpuLayers = 0
	if len(accelerators) > 0 {
		p.NGpuLayers = 999 // all
	}
	list := append(accelerators, 0) // a list without devices keeps the model off all of them
	if err := p.SetDevices(list); err != nil {
		return nil, fmt.Errorf("choose devices: %w", err)
	}
	p.SetProgressCallback(func(f float32, _ uintptr) uint8 {
		progress(0.95 * float64(f))
		if ctx.Err() != nil {
			return 0
		}
		return 1
	})
	lib.log.errors()
	m := &model{lib: lib}
	m.model, err = llama.ModelLoadFromFile(path, p)
	runtime.KeepAlive(list)
	if ctx.Err() != nil {
		m.close()
		return nil, fmt.Errorf("load the model: %w", ctx.Err())
	}
	if err != nil {
		return nil, modelFault("The engine cannot load the model file %s: %s.", path, firstOf(lib.log.errors(), err.Error()))
	}
	if err := m.describe(path); err != nil {
		m.close()
		return nil, err
	}
	if err := m.makeContext(path, len(accelerators) > 0, want); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// describe reads what the model is and its vocabulary.
func (m *model) describe(path string) error {
	m.vocab = llama.ModelGetVocab(m.model)
	m.vocabSize = int(llama.VocabNTokens(m.vocab))
	m.embedding = int(llama.ModelNEmbdOut(m.model))
	switch {
	case llama.ModelIsDiffusion(m.model):
		return modelFault("The model in %s writes by diffusion, which this worker does not do; use another model.", path)
	case llama.ModelHasEncoder(m.model) && llama.ModelHasDecoder(m.model):
		return modelFault("The model in %s has an encoder and a decoder, which this worker does not run; use another model.", path)
	case m.vocabSize <= 0 || m.embedding <= 0:
		return modelFault("The model in %s has no vocabulary; use another model.", path)
	}
	m.pooling = llama.PoolingTypeNone
	arch, _ := llama.ModelMetaValStr(m.model, "general.architecture")
	if v, ok := llama.ModelMetaValStr(m.model, arch+".pooling_type"); ok {
		n, err := strconv.Atoi(v)
		if err != nil {
			return modelFault("The model in %s has the pooling type %q, which is not a number; use another model.", path, v)
		}
		m.pooling = llama.PoolingType(n)
	} else if causal, ok := llama.ModelMetaValStr(m.model, arch+".attention.causal"); ok && causal == "false" || llama.ModelHasEncoder(m.model) {
		m.pooling = llama.PoolingTypeMean
	}
	switch m.pooling {
	case llama.PoolingTypeNone, llama.PoolingTypeMean, llama.PoolingTypeCLS, llama.PoolingTypeLast:
	default:
		return modelFault("The model in %s ranks texts, which this worker does not do; use another model.", path)
	}
	m.addBOS = llama.VocabGetAddBOS(m.vocab)
	m.sharing = !llama.ModelIsRecurrent(m.model) && !llama.ModelIsHybrid(m.model)
	m.pieces, m.eog = make([][]byte, m.vocabSize), make([]bool, m.vocabSize)
	buf := make([]byte, 256)
	for i := range m.pieces {
		n := llama.TokenToPiece(m.vocab, llama.Token(i), buf, 0, false)
		if n < 0 {
			buf = make([]byte, -n)
			n = llama.TokenToPiece(m.vocab, llama.Token(i), buf, 0, false)
		}
		if n > 0 && int(n) <= len(buf) {
			m.pieces[i] = append([]byte(nil), buf[:n]...)
		}
		m.longest = max(m.longest, len(m.pieces[i]), len(llama.VocabGetText(m.vocab, llama.Token(i))))
		m.eog[i] = llama.VocabIsEOG(m.vocab, llama.Token(i))
	}
	if t := llama.GetVocabType(m.vocab); t != llama.VocabTypeSPM && t != llama.VocabTypeBPE {
		m.longest = 0 // the others drop some of the text
	}
	text := llama.ModelChatTemplate(m.model, "")
	if text == "" || m.embeds() {
		return nil
	}
	var err error
	m.template, err = newChatTemplate(text, m.tokenText(llama.VocabBOS(m.vocab)), m.tokenText(llama.VocabEOS(m.vocab)))
	if err != nil {
		m.lib.log.log.Warn("the model's chat template cannot be used, so the model has no chat", "cause", err)
	}
	return nil
}

// embeds reports whether the model is made for embeddings. A generative model is not made into one: vectors averaged from a
// model that was never trained for it look right and find the wrong texts.
func (m *model) embeds() bool { return m.pooling != llama.PoolingTypeNone }

func (m *model) tokenText(t llama.Token) string {
	if t < 0 || int(t) >= m.vocabSize {
		return ""
	}
	return llama.VocabGetText(m.vocab, t)
}

// makeContext chooses the sizes and makes the context; when memory does not suffice, with fewer cells.
func (m *model) makeContext(path string, gpu bool, want sizes) error {
	trained := int(llama.ModelNCtxTrain(m.model))
	if trained <= 0 {
		trained = defaultContext
	}
	m.context = want.context
	if m.context == 0 {
		m.context = defaultContext
	}
	m.context = min(m.context, trained)
	m.slots = want.slots
	if m.slots == 0 {
		m.slots = defaultSlots
		if gpu {
			m.slots = defaultGPUSlots
		}
	}
	m.slots = max(1, min(m.slots, maxSequences-retainedSeqs))
	m.cells = max(m.context, min(m.context*m.slots, max(defaultCells, want.context*m.slots)))
	if !gpu {
		m.cells = max(m.context, min(m.cells, m.cellsThatFit()))
	}
	m.batch, m.seqs = batchSize, m.slots+retainedSeqs
	if !m.sharing {
		m.seqs = m.slots
	}
	if m.embeds() {
		m.batch = m.context // the attention of an encoder sees a text at once
		m.cells, m.seqs = m.context, 1
	}
	for {
		p := llama.ContextDefaultParams()
		p.NCtx, p.NBatch, p.NUbatch, p.NSeqMax = uint32(m.cells), uint32(m.batch), uint32(m.batch), uint32(m.seqs)
		p.NThreads, p.NThreadsBatch = int32(want.threads), int32(want.threads)
		p.KVUnified, p.NoPerf = 1, 1
		if m.embeds() {
			p.Embeddings, p.PoolingType = 1, m.pooling
		} else {
			p.NOutputsMax = uint32(max(m.seqs, m.slots)) // fewer than sequences ends the process
		}
		var err error
		m.ctx, err = llama.InitFromModel(m.model, p)
		if err == nil {
			break
		}
		if m.cells == m.context {
			return fault.New(fault.Exhausted, "no_memory", "There is not enough memory for a context of %d tokens of the model in %s (%s); ask for a smaller context.",
				m.context, path, firstOf(m.lib.log.errors(), err.Error()))
		}
		m.cells = max(m.context, m.cells/2)
	}
	m.cells = int(llama.NCtx(m.ctx)) // it is rounded up
	m.pool = m.lib.AttachThreads(m.ctx, want.threads, Poll)
	var err error
	if m.mem, err = llama.GetMemory(m.ctx); err != nil {
		return fmt.Errorf("find the memory of the context: %w", err)
	}
	return nil
}

// cellsThatFit returns how many KV cells (two 16-bit vectors for each layer) fit in half of the free memory.
func (m *model) cellsThatFit() int {
	free := freeMemory()
	heads := max(1, int(llama.ModelNHead(m.model)))
	cell := 2 * 2 * int(llama.ModelNLayer(m.model)) * int(llama.ModelNHeadKV(m.model)) * int(llama.ModelNEmbd(m.model)) / heads
	if free == 0 || cell <= 0 {
		return defaultCells
	}
	return int(free/2) / cell
}

// tokens turns text into token ids. Text may hold any bytes, zero bytes too: it is passed with its length.
func (m *model) tokens(text string, special bool) ([]int32, error) {
	b := append([]byte(text), 0)
	out := make([]int32, len(text)/3+16)
	for range 2 {
		r, _, _ := purego.SyscallN(m.lib.tokenize, uintptr(m.vocab), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(text)),
			uintptr(unsafe.Pointer(unsafe.SliceData(out))), uintptr(len(out)), boolArg(special), 1)
		runtime.KeepAlive(b)
		n := int(int32(r))
		if n >= 0 {
			return out[:min(n, len(out))], nil
		}
		if n == -1<<31 || -n > 4*len(text)+64 {
			break
		}
		out = make([]int32, -n)
	}
	return nil, fault.New(fault.Invalid, "prompt_not_tokenized", "The prompt could not be split into tokens; shorten it.")
}

// estimate returns about how many tokens a text has that is known not to fit. The tokenizers take time that grows with the
// square of some texts, so it looks at pieces, and at no more of them than it needs to.
func (m *model) estimate(text string) int {
	const piece, most = 8 << 10, 256 << 10
	seen, count := 0, 0
	for seen < min(len(text), most) {
		end := min(seen+piece, len(text))
		tokens, err := m.tokens(text[seen:end], false)
		if err != nil {
			break
		}
		seen, count = end, count+len(tokens)
	}
	if seen > 0 {
		count = int(float64(count) * float64(len(text)) / float64(seen))
	}
	return max(count, m.context+1)
}

func boolArg(b bool) uintptr {
	if b {
		return 1
	}
	return 0
}

func (m *model) close() {
	if m.ctx != 0 {
		_ = llama.Free(m.ctx) // fails for no context only
	}
	m.pool.Free()
	if m.model != 0 {
		_ = llama.ModelFree(m.model) // fails for no model only
	}
	m.ctx, m.pool, m.model = 0, Threads{}, 0
}
