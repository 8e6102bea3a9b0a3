// Package gguf reads the header of GGUF model files: what the model is, and whether the file can hold what its header says.
// It is made for files from strangers: it reads forward once, keeps little, and every count, length and offset in the file
// is checked before it is used. It reads no weights and loads no model.
//
// The format is described in the ggml project, docs/gguf.md.
package gguf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MaxHeader bounds the header in bytes: metadata, vocabulary and tensor list.
const MaxHeader = 100 << 20

// Limits of a header beyond its size.
const (
	maxKeys       = 1 << 16
	maxTensors    = 1 << 16
	maxKeyLen     = 1<<16 - 1
	maxTensorName = 64 // GGML_MAX_NAME of ggml
	maxDims       = 4  // GGML_MAX_DIMS of ggml
	maxKept       = 512
	maxAlignment  = 1 << 20
)

// Info is what the header of a file says.
type Info struct {
	Version       int    // of the format: 2 or 3
	Type          string // "model", "adapter", "mmproj", "imatrix"; empty in older files, which are models
	Architecture  string // "llama"
	Name          string
	Quantization  string // "Q4_K_M", "F32"; the type of most bytes where the file names none
	Parameters    uint64 // weights in the file; of a split model, in this shard
	Tensors       int
	ContextLength int    // tokens that the model was trained for; 0: not said
	CachePerToken uint64 // bytes of a KV cache of 16-bit numbers for each token; 0: not said, or not the same for all layers
	ChatTemplate  bool   // tokenizer.chat_template is there and not empty
	Tokenizer     string // "llama" (SentencePiece), "gpt2" (BPE), …
	ShardIndex    int    // 0-based; of a model in one file 0
	ShardCount    int    // of a model in one file 1
	HeaderBytes   int64  // where the tensor data starts
}

// NotGGUFError says that a file holds something else. Its text, like that of the other errors of this package, goes on after
// the name of the file.
type NotGGUFError struct {
	Start []byte // the first bytes, at most 12
	Kind  string // "a zip archive", "a Python pickle", …; empty: not known
	Hint  string // what to do with one of that kind; empty: nothing
}

func (e *NotGGUFError) Error() string {
	switch {
	case len(e.Start) == 0:
		return "is empty; copy or download it again"
	case e.Kind == "":
		return fmt.Sprintf(`is not a model: it starts with "%s", and a GGUF file starts with "GGUF"`, shown(e.Start))
	case e.Hint == "":
		return "is not a GGUF model but " + e.Kind + "; give a GGUF file"
	}
	return "is not a GGUF model but " + e.Kind + "; " + e.Hint
}

// maxShown bounds how many characters of a foreign file are shown.
const maxShown = 12

// shown gives bytes in ASCII, with the others escaped, and no more than fit into maxShown characters.
func shown(b []byte) string {
	var out strings.Builder
	for _, c := range b {
		s := string(rune(c))
		switch {
		case c == '"' || c == '\\':
			s = `\` + s
		case c < ' ' || c > '~':
			s = fmt.Sprintf(`\x%02x`, c)
		}
		if out.Len()+len(s) > maxShown {
			break
		}
		out.WriteString(s)
	}
	return out.String()
}

// VersionError says that a file has a version of the format that is not read.
type VersionError struct{ Version uint32 }

func (e *VersionError) Error() string {
	if v := e.Version; v&0xffff == 0 && v != 0 {
		return "is a GGUF file in big-endian byte order, and only little-endian ones can be read; convert it"
	}
	return fmt.Sprintf("is a GGUF file of version %d, and versions 2 and 3 can be read; convert it", e.Version)
}

// TruncatedError says that a file ends before what its header promises.
type TruncatedError struct {
	Size int64 // of the file
	Need int64 // at least
}

func (e *TruncatedError) Error() string {
	return fmt.Sprintf("is cut off: it has %d bytes, and its header promises at least %d; copy or download it again", e.Size, e.Need)
}

// ErrMalformed is wrapped by every error about a header that contradicts the format.
var ErrMalformed = errors.New("has a malformed GGUF header")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w ("+format+"); copy or download it again", append([]any{ErrMalformed}, args...)...)
}

// Read reads the header at the start of r, a file of size bytes. Its errors are *NotGGUFError, *VersionError, *TruncatedError,
// those that wrap ErrMalformed, and those of r.
func Read(r io.ReaderAt, size int64) (*Info, error) {
	var start [maxShown]byte
	n, err := r.ReadAt(start[:min(int64(len(start)), max(size, 0))], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the start of the file: %w", err)
	}
	if head := start[:n]; !bytes.HasPrefix(head, []byte("GGUF")) {
		kind, hint, _ := strings.Cut(sniff(head), "; ")
		return nil, &NotGGUFError{Start: bytes.Clone(head), Kind: kind, Hint: hint}
	}
	d := newDecoder(io.NewSectionReader(r, 0, size), size)
	info, err := d.header()
	if err != nil {
		return nil, d.explain(err)
	}
	return info, nil
}

// sniff names the formats that are most often taken for models, with what to do after a semicolon.
func sniff(b []byte) string {
	for _, f := range []struct{ magic, kind string }{
		{"PK\x03\x04", "a zip archive, perhaps a PyTorch checkpoint, which can run code and is never loaded"},
		{"\x80\x02", "a Python pickle, which can run code and is never loaded"},
		{"\x80\x03", "a Python pickle, which can run code and is never loaded"},
		{"\x80\x04", "a Python pickle, which can run code and is never loaded"},
		{"\x80\x05", "a Python pickle, which can run code and is never loaded"},
		{"7z\xbc\xaf", "a 7z archive"},
		{"\x1f\x8b", "a gzip file"},
		{"\x28\xb5\x2f\xfd", "a zstd file"},
		{"BZh", "a bzip2 file"},
		{"\xfd7zXZ", "an xz file"},
		{"Rar!", "a RAR archive"},
		{"tjgg", "a model in the old GGJT format; convert it to GGUF"},
		{"lmgg", "a model in the old GGML format; convert it to GGUF"},
		{"fmgg", "a model in the old GGMF format; convert it to GGUF"},
		{"version ", "a pointer of Git LFS, not the file itself; run git lfs pull"},
		{"\x7fELF", "a program"},
		{"<!DOCTYP", "a web page"}, {"<!doctyp", "a web page"}, {"<html", "a web page"},
	} {
		if bytes.HasPrefix(b, []byte(f.magic)) {
			return f.kind
		}
	}
	if len(b) > 8 && b[8] == '{' && b[4] == 0 && b[5] == 0 && b[6] == 0 && b[7] == 0 {
		return "a safetensors file, which llama.cpp does not read; convert it to GGUF"
	}
	return ""
}

// quantizationName gives the name of a general.file_type, the enum llama_ftype of llama.cpp; empty: not known.
func quantizationName(ftype uint64) string {
	const guessed = 1024 // flag of llama.cpp: not written in the file but inferred
	names := map[uint64]string{
		0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
		13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S",
		22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS",
		31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
	}
	return names[ftype&^guessed]
}

// tensorType is a storage format of weights: block weights take bytes bytes.
type tensorType struct {
	name         string
	block, bytes uint64
}

// tensorTypeOf describes a type number of ggml. Unknown ones are not an error: a newer llama.cpp may know them.
func tensorTypeOf(t uint32) (tensorType, bool) {
	types := [...]tensorType{
		0: {"F32", 1, 4}, 1: {"F16", 1, 2}, 2: {"Q4_0", 32, 18}, 3: {"Q4_1", 32, 20}, 6: {"Q5_0", 32, 22}, 7: {"Q5_1", 32, 24},
		8: {"Q8_0", 32, 34}, 9: {"Q8_1", 32, 36}, 10: {"Q2_K", 256, 84}, 11: {"Q3_K", 256, 110}, 12: {"Q4_K", 256, 144},
		13: {"Q5_K", 256, 176}, 14: {"Q6_K", 256, 210}, 15: {"Q8_K", 256, 292}, 16: {"IQ2_XXS", 256, 66}, 17: {"IQ2_XS", 256, 74},
		18: {"IQ3_XXS", 256, 98}, 19: {"IQ1_S", 256, 50}, 20: {"IQ4_NL", 32, 18}, 21: {"IQ3_S", 256, 110}, 22: {"IQ2_S", 256, 82},
		23: {"IQ4_XS", 256, 136}, 24: {"I8", 1, 1}, 25: {"I16", 1, 2}, 26: {"I32", 1, 4}, 27: {"I64", 1, 8}, 28: {"F64", 1, 8},
		29: {"IQ1_M", 256, 56}, 30: {"BF16", 1, 2}, 34: {"TQ1_0", 256, 54}, 35: {"TQ2_0", 256, 66}, 39: {"MXFP4", 32, 17},
	}
	if t >= uint32(len(types)) || types[t].block == 0 {
		return tensorType{}, false
	}
	return types[t], true
}

// validArchitecture holds for the names that llama.cpp uses; they become parts of keys and are shown to people.
func validArchitecture(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}
