package wasmtest

import "slices"

// Where the modules of this package have things in their memory.
const (
	ReplyAt   = 16      // the reply that Plugin gives
	RequestAt = 1 << 16 // what alloc returns, each time
)

// Numbers of the imported functions of Plugin.
const (
	HostCall  = 0
	HostReply = 1
	FDWrite   = 2
	own       = 3 // the first own one: abi, then alloc, free, invoke
)

// The own functions of Plugin, by number.
const (
	ABI = own + iota
	Alloc
	Free
	Invoke
	Extra // what is appended to Exports
)

// Plugin is a whole plugin that answers every call with reply, status byte included. Tests change a part of it.
func Plugin(reply string) Module {
	return Module{
		Imports: []Import{
			{"apiary_v1", "call", Func{Params: []byte{I32, I32, I32, I32}, Results: []byte{I64}}},
			{"apiary_v1", "reply", Func{Params: []byte{I32}}},
			{"wasi_snapshot_preview1", "fd_write", Func{Params: []byte{I32, I32, I32, I32}, Results: []byte{I32}}},
		},
		Exports: []Export{
			{"apiary_abi_v1", Func{Results: []byte{I32}, Body: Const32(0)}},
			{"apiary_alloc", Func{Params: []byte{I32}, Results: []byte{I32}, Body: Const32(RequestAt)}},
			{"apiary_free", Func{Params: []byte{I32}}},
			{"apiary_invoke", Func{Params: []byte{I32, I32, I32, I32}, Results: []byte{I64}, Body: Answer(ReplyAt, len(reply))}},
		},
		Pages: 128,
		Data:  map[uint32]string{ReplyAt: reply},
	}
}

// Answer puts the result of apiary_invoke on the stack.
func Answer(at, length int) []byte { return Const64(int64(uint64(at)<<32 | uint64(length))) }

// With returns m with another body for an exported function.
func (m Module) With(name string, body ...byte) Module {
	m.Exports = slices.Clone(m.Exports)
	for i := range m.Exports {
		if m.Exports[i].Name == name {
			m.Exports[i].Body = body
			return m
		}
	}
	m.Exports = append(m.Exports, Export{Name: name, Func: Func{Body: body}})
	return m
}

// And returns m with one more function, which has the number Extra when it is the first.
func (m Module) And(name string, f Func) Module {
	m.Exports = append(slices.Clone(m.Exports), Export{name, f})
	return m
}

// Without returns m without an exported function.
func (m Module) Without(name string) Module {
	m.Exports = slices.DeleteFunc(slices.Clone(m.Exports), func(e Export) bool { return e.Name == name })
	return m
}
