package wasm

import (
	"fmt"
	"slices"
	"strings"
)

const (
	// DefaultMemoryPages is what an instance may have when nothing else is said, in pages of 64 KiB: 64 MiB.
	DefaultMemoryPages = 1024
	// maxMemoryPages is the most that an operator can grant to an instance: 2 GiB.
	maxMemoryPages = 32768
	// maxTable bounds the elements of a table, which are 8 bytes each of the host.
	maxTable = 1 << 20
	// maxEntries and maxFunctions bound what Validate keeps of a hostile module.
	maxEntries, maxFunctions = 100_000, 1_000_000

	hostModule = "apiary_v1"
	wasiModule = "wasi_snapshot_preview1"
)

// signature is the type of a function: the value types of its parameters, ">", those of its results.
type signature string

const i32, i64 = "\x7f", "\x7e"

// abiExports are the functions that a module must export, and hostImports those that it may import from hostModule.
func abiExports() map[string]signature {
	return map[string]signature{
		"apiary_abi_v1": ">" + i32,
		"apiary_alloc":  i32 + ">" + i32,
		"apiary_free":   i32 + ">",
		"apiary_invoke": i32 + i32 + i32 + i32 + ">" + i64,
	}
}

func hostImports() map[string]signature {
	return map[string]signature{
		"call":  i32 + i32 + i32 + i32 + ">" + i64,
		"reply": i32 + ">",
	}
}

// allowedWASI reports whether a module may import a function of WASI. Those that name files are allowed, because Go's standard
// library imports them, and find none; sockets are not.
func allowedWASI(name string) bool {
	switch name {
	case "clock_res_get", "clock_time_get", "environ_get", "environ_sizes_get", "args_get", "args_sizes_get",
		"poll_oneoff", "proc_exit", "random_get", "sched_yield":
		return true
	}
	return strings.HasPrefix(name, "fd_") || strings.HasPrefix(name, "path_")
}

// Validate checks what can be known of a module without compiling it: that it is a core module that keeps the ABI, imports
// nothing but what plugins may import, and begins with no more than memoryPages of memory (0: DefaultMemoryPages). Errors are
// *fault.Error of kind Invalid.
func Validate(module []byte, memoryPages uint32) error {
	if memoryPages == 0 {
		memoryPages = DefaultMemoryPages
	}
	var m outline
	if err := eachSection(module, m.read); err != nil {
		return err
	}
	return m.check(memoryPages)
}

// outline is what a module declares.
type outline struct {
	types     []signature
	imports   []imported
	functions []uint32 // indices into types: first of the imported ones, then of the module's own
	memories  []uint32 // the least size of each, in pages
	tables    []uint32 // the least size of each
	exports   []exported
	last      byte
}

type imported struct {
	module, name string
	kind         byte
	typ          uint32
}

type exported struct {
	name  string
	kind  byte
	index uint32
}

// The kinds of imports and exports.
const (
	kindFunction = 0
	kindMemory   = 2
)

// read takes one section. Each may be there once, and the ones that are read here come in the order of their ids.
func (m *outline) read(s section) error {
	var entry func(*reader) error
	switch s.id {
	case 1:
		entry = m.typeEntry
	case 2:
		entry = m.importEntry
	case 3:
		entry = m.functionEntry
	case 4:
		entry = m.tableEntry
	case 5:
		entry = m.memoryEntry
	case 7:
		entry = m.exportEntry
	default:
		return nil
	}
	if s.id <= m.last {
		return invalid("not_wasm", "The module is damaged: its sections are out of order.")
	}
	m.last = s.id
	r := reader{s.content}
	n, err := r.u32()
	if err != nil {
		return err
	}
	if n > maxEntries && (s.id != 3 || n > maxFunctions) {
		return invalid("module_too_large", "The module has more than %d entries in its section %d; plugins may not.", maxEntries, s.id)
	}
	for range n {
		if err := entry(&r); err != nil {
			return err
		}
	}
	if len(r.rest) > 0 {
		return invalid("not_wasm", "The module is damaged: section %d is longer than what is in it.", s.id)
	}
	return nil
}

func (m *outline) typeEntry(r *reader) error {
	if form, err := r.byte(); err != nil {
		return err
	} else if form != 0x60 {
		return unknownFeature()
	}
	params, err := r.bytes()
	if err != nil {
		return err
	}
	results, err := r.bytes()
	if err != nil {
		return err
	}
	m.types = append(m.types, signature(params)+">"+signature(results))
	return nil
}

func (m *outline) importEntry(r *reader) error {
	module, err := r.bytes()
	if err != nil {
		return err
	}
	name, err := r.bytes()
	if err != nil {
		return err
	}
	i := imported{module: string(module), name: string(name)}
	if i.kind, err = r.byte(); err != nil {
		return err
	}
	if i.kind != kindFunction {
		return invalid("forbidden_import", "The module imports %s, which is no function; plugins may import only functions of Apiary and of WASI.", i)
	}
	if i.typ, err = r.u32(); err != nil {
		return err
	}
	m.imports, m.functions = append(m.imports, i), append(m.functions, i.typ)
	return nil
}

func (i imported) String() string { return fmt.Sprintf("%.64q from %.64q", i.name, i.module) }

func (m *outline) functionEntry(r *reader) error {
	typ, err := r.u32()
	m.functions = append(m.functions, typ)
	return err
}

func (m *outline) tableEntry(r *reader) error {
	if _, err := r.byte(); err != nil { // the type of its elements
		return err
	}
	least, err := limits(r)
	m.tables = append(m.tables, least)
	return err
}

func (m *outline) memoryEntry(r *reader) error {
	least, err := limits(r)
	m.memories = append(m.memories, least)
	return err
}

// limits reads the limits of a table or memory and returns the least size.
func limits(r *reader) (uint32, error) {
	flag, err := r.byte()
	if err != nil {
		return 0, err
	}
	if flag > 1 { // shared or 64-bit memories
		return 0, unknownFeature()
	}
	least, err := r.u32()
	if err == nil && flag == 1 {
		_, err = r.u32()
	}
	return least, err
}

func (m *outline) exportEntry(r *reader) error {
	name, err := r.bytes()
	if err != nil {
		return err
	}
	e := exported{name: string(name)}
	if e.kind, err = r.byte(); err != nil {
		return err
	}
	if e.index, err = r.u32(); err != nil {
		return err
	}
	m.exports = append(m.exports, e)
	return nil
}

func (m *outline) check(memoryPages uint32) error {
	for _, i := range m.imports {
		if err := m.checkImport(i); err != nil {
			return err
		}
	}
	if len(m.memories) != 1 || !slices.Contains(m.exports, exported{"memory", kindMemory, 0}) {
		return invalid("abi_missing", "The module exports no memory under the name \"memory\", which plugins must have; its author must build it as a plugin of Apiary.")
	}
	if m.memories[0] > memoryPages {
		return invalid("memory_limit", "The module begins with %d MiB of memory; %d MiB are granted to it.", m.memories[0]>>4, memoryPages>>4)
	}
	for _, least := range m.tables {
		if least > maxTable {
			return invalid("memory_limit", "The module begins with a table of %d elements; at most %d are allowed.", least, maxTable)
		}
	}
	want := abiExports()
	if slices.ContainsFunc(m.exports, func(e exported) bool { return e.name == "_initialize" }) {
		want["_initialize"] = ">"
	}
	for name, sig := range want {
		i := slices.IndexFunc(m.exports, func(e exported) bool { return e.name == name })
		if i < 0 {
			return invalid("abi_missing", "The module does not export %q, which plugins must have; its author must build it as a plugin of Apiary.", name)
		}
		if got, ok := m.signature(m.exports[i]); !ok || got != sig {
			return invalid("abi_missing", "The module exports %q with other parameters or results than the ABI of plugins says; its author must correct it.", name)
		}
	}
	return nil
}

func (m *outline) checkImport(i imported) error {
	switch i.module {
	case hostModule:
		want, known := hostImports()[i.name]
		if got, ok := m.typeAt(i.typ); known && ok && got == want {
			return nil
		}
	case wasiModule:
		if allowedWASI(i.name) {
			return nil
		}
	}
	return invalid("forbidden_import", "The module imports %s, which plugins may not have; they get \"call\" and \"reply\" from %q, and of WASI no sockets.", i, hostModule)
}

func (m *outline) signature(e exported) (signature, bool) {
	if e.kind != kindFunction || uint64(e.index) >= uint64(len(m.functions)) {
		return "", false
	}
	return m.typeAt(m.functions[e.index])
}

func (m *outline) typeAt(i uint32) (signature, bool) {
	if uint64(i) >= uint64(len(m.types)) {
		return "", false
	}
	return m.types[i], true
}

func unknownFeature() error {
	return invalid("unknown_feature", "The module needs a feature of WebAssembly that plugins do not have, such as shared or 64-bit memory; its author must build it without.")
}
