package gguf

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"hash/maphash"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The types of metadata values.
const (
	typeUint8 = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

// widthOf gives the bytes of a value of fixed size, 0 for strings, arrays and unknown types.
func widthOf(t uint32) uint64 {
	switch t {
	case typeUint8, typeInt8, typeBool:
		return 1
	case typeUint16, typeInt16:
		return 2
	case typeUint32, typeInt32, typeFloat32:
		return 4
	case typeUint64, typeInt64, typeFloat64:
		return 8
	}
	return 0
}

var errHeaderTooBig = malformed("it is larger than %d MiB", MaxHeader>>20)

// decoder reads a header forward.
type decoder struct {
	r    *bufio.Reader
	at   int64 // bytes read
	size int64 // of the file
	need int64 // the file must be this long, as far as it was read
	seed maphash.Seed
	buf  [8]byte
}

func newDecoder(r io.Reader, size int64) *decoder {
	return &decoder{r: bufio.NewReaderSize(r, 64<<10), size: size, seed: maphash.MakeSeed()}
}

// explain turns the end of the file inside the header into a TruncatedError.
func (d *decoder) explain(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &TruncatedError{Size: d.size, Need: max(d.need, d.size+1)}
	}
	return err
}

// take says that n bytes come next, which must fit into the header and into the file.
func (d *decoder) take(n uint64) error {
	if n > MaxHeader || d.at+int64(n) > MaxHeader {
		return errHeaderTooBig
	}
	d.at += int64(n)
	d.need = max(d.need, d.at)
	if d.at > d.size {
		return io.ErrUnexpectedEOF
	}
	return nil
}

func (d *decoder) bytes(n uint64) ([]byte, error) {
	if err := d.take(n); err != nil {
		return nil, err
	}
	b := d.buf[:]
	if n > uint64(len(b)) {
		b = make([]byte, n) // n is small: callers check it
	}
	_, err := io.ReadFull(d.r, b[:n])
	return b[:n], err
}

func (d *decoder) skip(n uint64) error {
	if err := d.take(n); err != nil {
		return err
	}
	_, err := d.r.Discard(int(n))
	return err
}

func (d *decoder) u32() (uint32, error) {
	b, err := d.bytes(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (d *decoder) u64() (uint64, error) {
	b, err := d.bytes(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// text reads a string of at most limit bytes; a longer one is an error.
func (d *decoder) text(limit uint64, what string) (string, error) {
	n, err := d.u64()
	if err != nil {
		return "", err
	}
	if n > limit {
		return "", malformed("%s of %d bytes is longer than %d", what, n, limit)
	}
	b, err := d.bytes(n)
	return string(b), err
}

// skipText passes over a string and returns its length.
func (d *decoder) skipText() (uint64, error) {
	n, err := d.u64()
	if err != nil {
		return 0, err
	}
	return n, d.skip(n)
}

// value is a metadata value that is kept: a number or a short string.
type value struct {
	num  uint64 // unsigned integers and those signed ones that are not negative
	ok   bool   // num is set
	text string // a string's first maxKept bytes
	len  uint64 // of the whole string
}

func (d *decoder) value(t uint32) (v value, err error) {
	switch t {
	case typeString:
		if v.len, err = d.u64(); err != nil {
			return v, err
		}
		if v.len > MaxHeader {
			return v, errHeaderTooBig
		}
		kept := min(v.len, maxKept)
		b, err := d.bytes(kept)
		if err != nil {
			return v, err
		}
		v.text = string(b)
		return v, d.skip(v.len - kept)
	case typeArray:
		return v, d.skipArray()
	}
	w := widthOf(t)
	if w == 0 {
		return v, malformed("a value has the unknown type %d", t)
	}
	b, err := d.bytes(w)
	if err != nil {
		return v, err
	}
	var raw [8]byte
	copy(raw[:], b)
	v.num = binary.LittleEndian.Uint64(raw[:])
	switch t {
	case typeUint8, typeUint16, typeUint32, typeUint64:
		v.ok = true
	case typeInt8, typeInt16, typeInt32, typeInt64:
		v.ok = raw[w-1] < 0x80
	}
	return v, nil
}

func (d *decoder) skipArray() error {
	t, err := d.u32()
	if err != nil {
		return err
	}
	n, err := d.u64()
	if err != nil {
		return err
	}
	if t == typeString {
		for range n { // ends at the latest with the header: a string takes 8 bytes or more
			if _, err := d.skipText(); err != nil {
				return err
			}
		}
		return nil
	}
	w := widthOf(t)
	if w == 0 {
		return malformed("an array has elements of the type %d", t)
	}
	if n > MaxHeader {
		return errHeaderTooBig
	}
	return d.skip(n * w)
}

// header reads everything up to the tensor data.
func (d *decoder) header() (*Info, error) {
	if err := d.skip(4); err != nil { // the magic, which Read has seen
		return nil, err
	}
	version, err := d.u32()
	if err != nil {
		return nil, err
	}
	if version != 2 && version != 3 {
		return nil, &VersionError{Version: version}
	}
	tensors, err := d.u64()
	if err != nil {
		return nil, err
	}
	keys, err := d.u64()
	if err != nil {
		return nil, err
	}
	if tensors > maxTensors || keys > maxKeys {
		return nil, malformed("it announces %d tensors and %d keys", tensors, keys)
	}
	info := &Info{Version: int(version), Tensors: int(tensors), ShardCount: 1}
	alignment, err := d.metadata(keys, info)
	if err != nil {
		return nil, err
	}
	list, err := d.tensors(tensors, info)
	if err != nil {
		return nil, err
	}
	info.HeaderBytes = (d.at + alignment - 1) / alignment * alignment
	if err := d.checkLayout(list, info.HeaderBytes, alignment); err != nil {
		return nil, err
	}
	return info, nil
}

// metadata reads the keys and returns the alignment of the tensor data.
func (d *decoder) metadata(count uint64, info *Info) (int64, error) {
	alignment := int64(32)
	seen := make(map[uint64]struct{})
	sizes := map[string]uint64{} // the architecture may be named after its sizes
	for range count {
		key, err := d.text(maxKeyLen, "a key")
		if err != nil {
			return 0, err
		}
		h := maphash.String(d.seed, key)
		if _, dup := seen[h]; dup {
			return 0, malformed("the key %q comes twice", key[:min(len(key), 64)])
		}
		seen[h] = struct{}{}
		t, err := d.u32()
		if err != nil {
			return 0, err
		}
		v, err := d.value(t)
		if err != nil {
			return 0, err
		}
		if err := keep(info, sizes, &alignment, key, t, v); err != nil {
			return 0, err
		}
	}
	if !validArchitecture(info.Architecture) {
		return 0, malformed("general.architecture is missing or not a name")
	}
	if n := sizes[info.Architecture+".context_length"]; n <= math.MaxInt32 {
		info.ContextLength = int(n)
	}
	info.CachePerToken = cachePerToken(info.Architecture, sizes)
	if info.ShardCount < 1 || info.ShardIndex >= info.ShardCount {
		return 0, malformed("it calls itself shard %d of %d", info.ShardIndex+1, info.ShardCount)
	}
	return alignment, nil
}

// keep stores the values that Info tells.
func keep(info *Info, sizes map[string]uint64, alignment *int64, key string, t uint32, v value) error {
	switch key {
	case "general.architecture":
		info.Architecture = v.text
	case "general.name":
		info.Name = printable(v.text)
	case "general.type":
		info.Type = printable(v.text)
	case "general.file_type":
		if v.ok {
			info.Quantization = quantizationName(v.num)
		}
	case "general.alignment":
		if t != typeUint32 || v.num == 0 || v.num > maxAlignment || v.num&(v.num-1) != 0 {
			return malformed("general.alignment is not a power of two up to %d", maxAlignment)
		}
		*alignment = int64(v.num)
	case "tokenizer.ggml.model":
		info.Tokenizer = printable(v.text)
	case "tokenizer.chat_template":
		info.ChatTemplate = t == typeString && v.len > 0
	case "split.no":
		if !v.ok || v.num > math.MaxUint16 {
			return malformed("split.no is not a number of a shard")
		}
		info.ShardIndex = int(v.num)
	case "split.count":
		if !v.ok || v.num > math.MaxUint16 {
			return malformed("split.count is not a number of shards")
		}
		if v.num > 0 { // 0 is written for models in one file
			info.ShardCount = int(v.num)
		}
	default:
		if isSize(key) && len(sizes) < 128 {
			sizes[key] = v.num
			if !v.ok { // a list, with a number for each layer
				sizes[key] = math.MaxUint64
			}
		}
	}
	return nil
}

// isSize reports whether a key is one of those from which Info tells the context and the cache.
func isSize(key string) bool {
	for _, s := range []string{".context_length", ".block_count", ".embedding_length", ".attention.head_count", ".attention.head_count_kv", ".attention.key_length", ".attention.value_length"} {
		if strings.HasSuffix(key, s) {
			return true
		}
	}
	return false
}

// cachePerToken is what the KV cache takes for a token: a key and a value of 16-bit numbers for each head of each layer. 0: the sizes do
// not say, or differ from layer to layer.
func cachePerToken(arch string, sizes map[string]uint64) uint64 {
	const most = 1 << 16 // of each size: four of them do not overflow
	get := func(name string, other uint64) uint64 {
		n, ok := sizes[arch+name]
		switch {
		case !ok:
			return other
		case n > most:
			return 0
		}
		return n
	}
	layers, heads := get(".block_count", 0), get(".attention.head_count", 0)
	if layers == 0 || heads == 0 {
		return 0
	}
	head := get(".embedding_length", 0) / heads
	kv, key, value := get(".attention.head_count_kv", heads), get(".attention.key_length", head), get(".attention.value_length", head)
	if kv == 0 || key == 0 || value == 0 {
		return 0
	}
	if n := 2 * layers * kv * (key + value); n <= 64<<20 { // ten times what the largest models take
		return n
	}
	return 0
}

// printable makes text from a file fit for a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
}

// span is where a tensor lies in the tensor data.
type span struct{ offset, size uint64 }

// tensors reads the tensor list.
func (d *decoder) tensors(count uint64, info *Info) ([]span, error) {
	spans := make([]span, 0, count)
	seen := make(map[uint64]struct{})
	bytesOf := map[string]uint64{}
	for range count {
		name, err := d.text(maxTensorName, "a tensor's name")
		if err != nil {
			return nil, err
		}
		h := maphash.String(d.seed, name)
		if _, dup := seen[h]; dup {
			return nil, malformed("the tensor %q comes twice", name)
		}
		seen[h] = struct{}{}
		dims, err := d.u32()
		if err != nil {
			return nil, err
		}
		if dims < 1 || dims > maxDims {
			return nil, malformed("the tensor %q has %d dimensions", name, dims)
		}
		elements, first := uint64(1), uint64(0)
		for i := range dims {
			n, err := d.u64()
			if err != nil {
				return nil, err
			}
			if i == 0 {
				first = n
			}
			hi, lo := bits.Mul64(elements, n)
			if hi != 0 || lo > math.MaxInt64 {
				return nil, malformed("the tensor %q has more elements than can be counted", name)
			}
			elements = lo
		}
		number, err := d.u32()
		if err != nil {
			return nil, err
		}
		offset, err := d.u64()
		if err != nil {
			return nil, err
		}
		s := span{offset: offset}
		if t, ok := tensorTypeOf(number); ok {
			if first%t.block != 0 {
				return nil, malformed("the rows of tensor %q are not whole blocks of %s", name, t.name)
			}
			hi, lo := bits.Mul64(elements/t.block, t.bytes)
			if hi != 0 {
				return nil, malformed("the tensor %q has more bytes than can be counted", name)
			}
			s.size = lo
			bytesOf[t.name] += lo
		}
		spans = append(spans, s)
		if info.Parameters > math.MaxInt64-elements {
			return nil, malformed("its tensors have more elements than can be counted")
		}
		info.Parameters += elements
	}
	if info.Quantization == "" {
		most := uint64(0)
		for name, n := range bytesOf {
			if n > most || n == most && name < info.Quantization {
				most, info.Quantization = n, name
			}
		}
	}
	return spans, nil
}

// checkLayout checks that every tensor is aligned, inside the file, and overlaps no other.
func (d *decoder) checkLayout(spans []span, start, alignment int64) error {
	slices.SortFunc(spans, func(a, b span) int {
		return cmp.Or(cmp.Compare(a.offset, b.offset), cmp.Compare(a.size, b.size)) // an empty one lies before its neighbour
	})
	end := uint64(0)
	for _, s := range spans {
		if s.offset%uint64(alignment) != 0 {
			return malformed("a tensor starts at %d, which is no multiple of %d", s.offset, alignment)
		}
		if s.offset < end {
			return malformed("two tensors overlap at %d", s.offset)
		}
		if s.offset > math.MaxInt64 || s.size > math.MaxInt64-uint64(start)-s.offset {
			return malformed("a tensor ends at no possible place")
		}
		end = s.offset + s.size
	}
	if len(spans) > 0 && start+int64(end) > d.size {
		return &TruncatedError{Size: d.size, Need: start + int64(end)}
	}
	return nil
}
