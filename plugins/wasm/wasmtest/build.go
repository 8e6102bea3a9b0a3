// Package wasmtest builds WebAssembly modules for tests: small plugins by hand, most of them hostile, and the real ones that were
// built from examples. It is never part of the product.
package wasmtest

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// Value types.
const (
	I32 byte = 0x7f
	I64 byte = 0x7e
)

// Func is a function, or the type of an imported one.
type Func struct {
	Params, Results []byte
	Locals          int    // of type i32
	Body            []byte // without the final end
}

// Import is a function that a module imports.
type Import struct {
	Module, Name string
	Func
}

// Export is a function that a module exports. Functions are numbered from the imported ones on, in order.
type Export struct {
	Name string
	Func
}

// Module is what Bytes writes.
type Module struct {
	Imports  []Import
	Exports  []Export
	Pages    uint32 // of memory, exported as "memory"
	NoMemory bool   // leave it out
	Tables   []uint32
	Globals  int               // mutable ones of type i32, zero at first
	Data     map[uint32]string // by address
	Customs  [][2]string       // name and content
}

// Bytes returns the module in the binary format.
func (m Module) Bytes() []byte {
	var types, imports, functions, exports, code [][]byte
	typeOf := func(f Func) []byte {
		t := slices.Concat([]byte{0x60}, vec(f.Params), vec(f.Results))
		i := slices.IndexFunc(types, func(have []byte) bool { return bytes.Equal(have, t) })
		if i < 0 {
			i, types = len(types), append(types, t)
		}
		return uleb(uint64(i))
	}
	for _, i := range m.Imports {
		imports = append(imports, slices.Concat(vec([]byte(i.Module)), vec([]byte(i.Name)), []byte{0}, typeOf(i.Func)))
	}
	for n, e := range m.Exports {
		functions = append(functions, typeOf(e.Func))
		if e.Name != "" {
			exports = append(exports, slices.Concat(vec([]byte(e.Name)), []byte{0}, uleb(uint64(len(m.Imports)+n))))
		}
		locals := []byte{0}
		if e.Locals > 0 {
			locals = slices.Concat([]byte{1}, uleb(uint64(e.Locals)), []byte{I32})
		}
		code = append(code, vec(slices.Concat(locals, e.Body, []byte{0x0b})))
	}
	var memories, tables, globals, data [][]byte
	if !m.NoMemory {
		memories = append(memories, slices.Concat([]byte{0}, uleb(uint64(m.Pages))))
		exports = append(exports, slices.Concat(vec([]byte("memory")), []byte{2, 0}))
	}
	for _, least := range m.Tables {
		tables = append(tables, slices.Concat([]byte{0x70, 0}, uleb(uint64(least))))
	}
	for range m.Globals {
		globals = append(globals, []byte{I32, 1, 0x41, 0, 0x0b})
	}
	for at, s := range m.Data {
		data = append(data, slices.Concat([]byte{0}, Const32(int32(at)), []byte{0x0b}, vec([]byte(s))))
	}
	out := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range []struct {
		id      byte
		entries [][]byte
	}{{1, types}, {2, imports}, {3, functions}, {4, tables}, {5, memories}, {6, globals}, {7, exports}, {10, code}, {11, data}} {
		if len(s.entries) > 0 {
			out = append(append(out, s.id), vec(slices.Concat(uleb(uint64(len(s.entries))), slices.Concat(s.entries...)))...)
		}
	}
	for _, c := range m.Customs {
		out = append(append(out, 0), vec(slices.Concat(vec([]byte(c[0])), []byte(c[1])))...)
	}
	return out
}

func vec(b []byte) []byte { return append(uleb(uint64(len(b))), b...) }

func uleb(v uint64) []byte { return binary.AppendUvarint(nil, v) }

func sleb(v int64) []byte {
	var out []byte
	for {
		b := byte(v & 0x7f)
		v >>= 7
		if v == 0 && b&0x40 == 0 || v == -1 && b&0x40 != 0 {
			return append(out, b)
		}
		out = append(out, b|0x80)
	}
}

// Const32 puts a number on the stack.
func Const32(v int32) []byte { return append([]byte{0x41}, sleb(int64(v))...) }

// Const64 puts a number on the stack.
func Const64(v int64) []byte { return append([]byte{0x42}, sleb(v)...) }

// Local puts a parameter or local on the stack.
func Local(n int) []byte { return append([]byte{0x20}, uleb(uint64(n))...) }

// SetLocal takes one from the stack.
func SetLocal(n int) []byte { return append([]byte{0x21}, uleb(uint64(n))...) }

// Call calls a function.
func Call(n int) []byte { return append([]byte{0x10}, uleb(uint64(n))...) }

// Loop repeats body for ever, unless it leaves.
func Loop(body ...byte) []byte { return slices.Concat([]byte{0x03, 0x40}, body, []byte{0x0c, 0, 0x0b}) }

// Code joins instructions.
func Code(parts ...[]byte) []byte { return slices.Concat(parts...) }

// Instructions without operands, and some with fixed ones.
func Unreachable() []byte { return []byte{0x00} }

// Drop throws the top of the stack away.
func Drop() []byte { return []byte{0x1a} }

// GrowMemory takes a number of pages and puts the old size, or -1.
func GrowMemory() []byte { return []byte{0x40, 0} }

// Sub32 subtracts.
func Sub32() []byte { return []byte{0x6b} }

// Load32 reads memory at the address on the stack.
func Load32() []byte { return []byte{0x28, 2, 0} }

// Store32 writes memory: address, value.
func Store32() []byte { return []byte{0x36, 2, 0} }

// If runs body when the top of the stack is not zero.
func If(body ...byte) []byte { return slices.Concat([]byte{0x04, 0x40}, body, []byte{0x0b}) }

// Return leaves the function.
func Return() []byte { return []byte{0x0f} }
