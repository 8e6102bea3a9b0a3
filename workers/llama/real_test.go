package llama

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/workers/sdk"
)

// parts are the real engine and models that tests look for; `make test-parts` fetches them.
func part(t testing.TB, env, name string) string {
	t.Helper()
	path := os.Getenv(env)
	if path == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Skipf("no cache folder (%v); set %s", err, env)
		}
		path = filepath.Join(dir, "apiary-test", name)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("%s is missing; run `make test-parts`, or set %s", path, env)
	}
	return path
}

func engineDir(t testing.TB) string { return part(t, "APIARY_TEST_ENGINE", "engine") }
func smol(t testing.TB) string      { return part(t, "APIARY_TEST_SMOL", "smol.gguf") }

// stories is the model that lies in the repository.
func stories(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "vendors", "builtin", "models", "stories260k.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		return part(t, "APIARY_TEST_STORIES", "stories260k.gguf")
	}
	return path
}

// A process loads the libraries once.
var openOnce sync.Once
var opened *Library
var openError error

func library(t testing.TB) *Library {
	t.Helper()
	dir := engineDir(t)
	openOnce.Do(func() { opened, openError = OpenLibrary(dir, slog.New(slog.DiscardHandler)) })
	if openError != nil {
		t.Fatal(openError)
	}
	return opened
}

// start loads an engine; tests use one thread, because others use the machine too.
func start(t testing.TB, o Options) (*Engine, sdk.Model) {
	t.Helper()
	o.Library = library(t)
	o.Threads = 1
	if o.ModelPath == "" {
		o.ModelPath = stories(t)
	}
	e := New(o)
	m, err := e.Load(context.Background(), func(float64) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e, m
}

// ask is a greedy request.
func ask(prompt string, n int) *sdk.Request {
	return &sdk.Request{Prompt: prompt, MaxTokens: n, TopP: 1, RepeatPenalty: 1}
}

func chat(text string, n int) *sdk.Request {
	r := ask("", n)
	r.Messages = []contract.Message{{Role: "user", Content: text}}
	return r
}

// answer runs a request and returns its text and tokens.
func answer(t testing.TB, e *Engine, r *sdk.Request) (string, []int32, sdk.Result) {
	t.Helper()
	text, ids, res, err := generate(context.Background(), e, r)
	if err != nil {
		t.Fatal(err)
	}
	return text, ids, res
}

func generate(ctx context.Context, e *Engine, r *sdk.Request) (string, []int32, sdk.Result, error) {
	var text strings.Builder
	var ids []int32
	res, err := e.Generate(ctx, r, func(k sdk.Token) error {
		text.Write(k.Bytes)
		ids = append(ids, int32(k.ID))
		return nil
	})
	return text.String(), ids, res, err
}

// bare is the library driven directly, as its own examples do: nothing of this package takes part but the loaded library.
type bare struct {
	model llama.Model
	ctx   llama.Context
	vocab llama.Vocab
}

func openBare(t testing.TB, path string) *bare {
	t.Helper()
	library(t)
	m, err := llama.ModelLoadFromFile(path, llama.ModelDefaultParams())
	if err != nil {
		t.Fatal(err)
	}
	p := llama.ContextDefaultParams()
	p.NCtx, p.NThreads, p.NThreadsBatch = 512, 1, 1
	c, err := llama.InitFromModel(m, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = llama.Free(c); _ = llama.ModelFree(m) })
	return &bare{m, c, llama.ModelGetVocab(m)}
}

// generate continues text greedily with at most n tokens.
func (b *bare) generate(t testing.TB, text string, n int) (string, []int32) {
	t.Helper()
	mem, err := llama.GetMemory(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := llama.MemoryClear(mem, true); err != nil {
		t.Fatal(err)
	}
	sampler := llama.SamplerInitGreedy()
	defer llama.SamplerFree(sampler)
	next := llama.Tokenize(b.vocab, text, true, true)
	var out []int32
	var s strings.Builder
	buf := make([]byte, 256)
	for range n {
		if rc, err := llama.Decode(b.ctx, llama.BatchGetOne(next)); rc != 0 || err != nil {
			t.Fatal(rc, err)
		}
		id := llama.SamplerSample(sampler, b.ctx, -1)
		if llama.VocabIsEOG(b.vocab, id) {
			break
		}
		out = append(out, int32(id))
		s.Write(buf[:max(0, llama.TokenToPiece(b.vocab, id, buf, 0, false))])
		next = []llama.Token{id}
	}
	return s.String(), out
}
