package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// file builds GGUF files, also wrong ones.
type file struct{ bytes.Buffer }

func newFile(version uint32, tensors, keys uint64) *file {
	f := &file{}
	f.WriteString("GGUF")
	f.put(version, tensors, keys)
	return f
}

func (f *file) put(vs ...any) *file {
	for _, v := range vs {
		if s, ok := v.(string); ok {
			f.put(uint64(len(s)))
			f.WriteString(s)
			continue
		}
		if err := binary.Write(f, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return f
}

func (f *file) text(key, v string) *file          { return f.put(key, uint32(typeString), v) }
func (f *file) number(key string, v uint32) *file { return f.put(key, uint32(typeUint32), v) }

func (f *file) tensor(name string, typ uint32, offset uint64, dims ...uint64) *file {
	f.put(name, uint32(len(dims)))
	for _, d := range dims {
		f.put(d)
	}
	return f.put(typ, offset)
}

// data pads to the alignment and appends n bytes.
func (f *file) data(n int) *file {
	for f.Len()%32 != 0 {
		f.WriteByte(0)
	}
	f.Write(make([]byte, n))
	return f
}

func read(f *file) (*Info, error) { return Read(bytes.NewReader(f.Bytes()), int64(f.Len())) }

// small is a valid file.
func small() *file {
	return newFile(3, 2, 6).
		text("general.architecture", "llama").text("general.name", "Tiny\x1b[31m").number("general.file_type", 15).
		number("llama.context_length", 2048).text("tokenizer.chat_template", strings.Repeat("x", 4000)).
		put("tokenizer.ggml.tokens", uint32(typeArray), uint32(typeString), uint64(2), "a", "b").
		tensor("a", 12, 0, 256, 2).tensor("b", 0, 288, 4).data(304)
}

func TestRead(t *testing.T) {
	got, err := read(small())
	if err != nil {
		t.Fatal(err)
	}
	want := &Info{
		Version: 3, Architecture: "llama", Name: "Tiny[31m", Quantization: "Q4_K_M", Parameters: 516, Tensors: 2, ContextLength: 2048,
		ChatTemplate: true, ShardCount: 1, HeaderBytes: got.HeaderBytes,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if int64(small().Len()) != got.HeaderBytes+304 {
		t.Errorf("the tensor data starts at %d of %d", got.HeaderBytes, small().Len())
	}
}

func TestCachePerToken(t *testing.T) {
	type sizes map[string]uint32
	llama := sizes{"block_count": 32, "embedding_length": 4096, "attention.head_count": 32, "attention.head_count_kv": 8}
	with := func(base sizes, name string, n uint32) sizes {
		out := maps.Clone(base)
		if out[name] = n; n == 0 {
			delete(out, name)
		}
		return out
	}
	for name, c := range map[string]struct {
		sizes sizes
		lists bool
		want  uint64
	}{
		"grouped heads":             {llama, false, 32 * 8 * 128 * 2 * 2},
		"as many keys as heads":     {with(llama, "attention.head_count_kv", 0), false, 32 * 32 * 128 * 2 * 2},
		"heads of their own length": {with(with(llama, "attention.key_length", 256), "attention.value_length", 64), false, 32 * 8 * (256 + 64) * 2},
		"no attention":              {with(llama, "attention.head_count", 0), false, 0},
		"no layers":                 {with(llama, "block_count", 0), false, 0},
		"other heads in each layer": {with(llama, "attention.head_count_kv", 0), true, 0},
		"absurd":                    {with(llama, "block_count", 1<<31), false, 0},
		"absurd together":           {with(with(llama, "block_count", 1<<16), "attention.key_length", 1<<16), false, 0},
		"fewer numbers than heads":  {with(llama, "embedding_length", 16), false, 0},
	} {
		keys := uint64(len(c.sizes) + 1)
		if c.lists {
			keys++
		}
		f := newFile(3, 0, keys)
		for _, k := range slices.Sorted(maps.Keys(c.sizes)) {
			f.number("llama."+k, c.sizes[k])
		}
		if c.lists {
			f.put("llama.attention.head_count_kv", uint32(typeArray), uint32(typeUint32), uint64(2), uint32(8), uint32(4))
		}
		got, err := read(f.text("general.architecture", "llama"))
		if err != nil || got.CachePerToken != c.want {
			t.Errorf("%s: %+v, %v; want %d", name, got, err, c.want)
		}
	}
}

func TestReadQuantizationFromTensors(t *testing.T) {
	f := newFile(2, 2, 1).text("general.architecture", "llama").tensor("a", 8, 0, 320).tensor("b", 0, 352, 4).data(368)
	got, err := read(f)
	if err != nil || got.Quantization != "Q8_0" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestReadEveryTruncation(t *testing.T) {
	whole := small().Bytes()
	for n := range whole {
		_, err := Read(bytes.NewReader(whole[:n]), int64(n))
		var cut *TruncatedError
		var other *NotGGUFError
		switch {
		case n < 4 && errors.As(err, &other):
		case n >= 4 && errors.As(err, &cut) && cut.Size == int64(n) && cut.Need > cut.Size:
		default:
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestReadRefuses(t *testing.T) {
	arch := func(tensors, keys uint64) *file {
		return newFile(3, tensors, keys).text("general.architecture", "llama")
	}
	for name, f := range map[string]*file{
		"no architecture":     newFile(3, 0, 0),
		"bad architecture":    newFile(3, 0, 1).text("general.architecture", "../x"),
		"duplicate key":       newFile(3, 0, 2).text("general.architecture", "llama").text("general.architecture", "llama"),
		"too many keys":       newFile(3, 0, math.MaxUint64),
		"too many tensors":    newFile(3, math.MaxUint64, 0),
		"key too long":        newFile(3, 0, 1).put(uint64(1 << 40)),
		"string too long":     newFile(3, 0, 1).put("k", uint32(typeString), uint64(math.MaxUint64)),
		"unknown type":        newFile(3, 0, 1).put("k", uint32(99)),
		"nested array":        newFile(3, 0, 1).put("k", uint32(typeArray), uint32(typeArray), uint64(1)),
		"array too long":      newFile(3, 0, 1).put("k", uint32(typeArray), uint32(typeUint64), uint64(math.MaxUint64/8+2)),
		"alignment 0":         arch(0, 2).number("general.alignment", 0),
		"alignment 12":        arch(0, 2).number("general.alignment", 12),
		"alignment text":      arch(0, 2).text("general.alignment", "32"),
		"shard 3 of 2":        arch(0, 3).number("split.no", 2).number("split.count", 2),
		"split.count text":    arch(0, 2).text("split.count", "x"),
		"no dimensions":       arch(1, 1).tensor("a", 0, 0).data(64),
		"five dimensions":     arch(1, 1).tensor("a", 0, 0, 1, 1, 1, 1, 1).data(64),
		"elements overflow":   arch(1, 1).tensor("a", 0, 0, 1<<40, 1<<40).data(64),
		"bytes overflow":      arch(1, 1).tensor("a", 28, 0, 1<<62).data(64),
		"offset overflow":     arch(1, 1).tensor("a", 0, math.MaxUint64-31, 8).data(64),
		"unaligned offset":    arch(1, 1).tensor("a", 0, 8, 4).data(64),
		"partial block":       arch(1, 1).tensor("a", 2, 0, 33).data(64),
		"tensor twice":        arch(2, 1).tensor("a", 0, 0, 4).tensor("a", 0, 32, 4).data(64),
		"overlap":             arch(2, 1).tensor("a", 0, 0, 16).tensor("b", 0, 32, 4).data(64),
		"long name":           arch(1, 1).tensor(strings.Repeat("n", 65), 0, 0, 4).data(64),
		"parameters overflow": arch(2, 1).tensor("a", 99, 0, 1<<62).tensor("b", 99, 32, 1<<62).data(64),
	} {
		if _, err := read(f); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadOutsideTheFile(t *testing.T) {
	for name, f := range map[string]*file{
		"size":         newFile(3, 1, 1).text("general.architecture", "llama").tensor("a", 0, 0, 1000).data(64),
		"offset":       newFile(3, 1, 1).text("general.architecture", "llama").tensor("a", 0, 1<<40, 4).data(64),
		"unknown type": newFile(3, 1, 1).text("general.architecture", "llama").tensor("a", 999, 1<<40, 4).data(64),
	} {
		var cut *TruncatedError
		if _, err := read(f); !errors.As(err, &cut) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReadOtherFormats(t *testing.T) {
	for content, want := range map[string]string{
		"":                          "is empty",
		"Dear all, this is my list": `is not a model: it starts with "Dear all, th", and a GGUF file starts with "GGUF"`,
		"PK\x03\x04rest":            "zip archive",
		"\x1b]0;owned\x07\x1b[2J":   `starts with "\x1b]0;owned", and`,
		"\x00\x01\x02\x03\x04\x05":  `starts with "\x00\x01\x02", and`,
		"\"\\\n\r\u202eabc":         `starts with "\"\\\x0a\x0d", and`,
		"\x80\x02}q\x00":            "pickle",
		"\x40\x00\x00\x00\x00\x00\x00\x00{\"a\":{}}": "safetensors",
		"tjgg\x01":        "old GGJT",
		"<!DOCTYPE html>": "web page",
	} {
		_, err := Read(strings.NewReader(content), int64(len(content)))
		var e *NotGGUFError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) || strings.ContainsFunc(err.Error(), func(r rune) bool { return r < ' ' || r > '~' }) {
			t.Errorf("%q: %v", content, err)
		}
	}
	for version, want := range map[uint32]string{1: "version 1", 4: "version 4", 3 << 24: "big-endian"} {
		_, err := read(newFile(version, 0, 0))
		var e *VersionError
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
			t.Errorf("version %d: %v", version, err)
		}
	}
}

// A hostile file of few bytes must not make the reader allocate or run for long.
func TestReadIsBounded(t *testing.T) {
	// 101 MiB of empty strings: over the limit for headers.
	f := newFile(3, 0, 1).put("k", uint32(typeArray), uint32(typeString), uint64(math.MaxUint64))
	f.Write(make([]byte, 101<<20))
	n := testing.AllocsPerRun(1, func() {
		if _, err := read(f); !errors.Is(err, errHeaderTooBig) {
			t.Errorf("got %v", err)
		}
	})
	if n > 200 {
		t.Errorf("%v allocations", n)
	}
}

func TestReadStories(t *testing.T) {
	got := readPath(t, filepath.Join("..", "..", "vendors", "builtin", "models", "stories260k.gguf"))
	if got.Architecture != "llama" || got.Quantization != "F32" || got.ContextLength != 512 || got.Parameters < 250_000 || got.Parameters > 300_000 || !got.ChatTemplate || got.Tokenizer != "llama" {
		t.Errorf("got %+v", got)
	}
}

func TestReadSmolLM2(t *testing.T) {
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("there is no cache folder")
	}
	path := filepath.Join(cache, "apiary-test", "smol.gguf")
	if _, err := os.Stat(path); err != nil {
		t.Skip("the model is not in the test cache; .ci/test-parts fetches it")
	}
	got := readPath(t, path)
	if got.Architecture != "llama" || got.Quantization != "Q4_1" || got.ContextLength != 8192 || got.Parameters/1e6 != 134 || !got.ChatTemplate || got.Tokenizer != "gpt2" {
		t.Errorf("got %+v", got)
	}
}

func readPath(t *testing.T, path string) *Info {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	info, err := Read(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", info)
	return info
}

func FuzzRead(f *testing.F) {
	f.Add(small().Bytes())
	f.Add(newFile(3, 1, 1).text("general.architecture", "llama").tensor("a", 0, 0, 8).data(64).Bytes())
	f.Add([]byte("PK\x03\x04"))
	f.Fuzz(func(t *testing.T, b []byte) {
		info, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if info != nil {
				t.Error("an error came with a result")
			}
			return
		}
		if info.HeaderBytes < 24 || info.Tensors > 0 && info.HeaderBytes > int64(len(b)) || info.ShardIndex >= info.ShardCount || info.ContextLength < 0 {
			t.Errorf("impossible: %+v", info)
		}
	})
}
