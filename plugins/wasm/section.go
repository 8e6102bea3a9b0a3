package wasm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const (
	// MaxModule is the most that a module may have, in bytes.
	MaxModule = 32 << 20
	// MaxManifest is the most that its static manifest may have, in bytes.
	MaxManifest = 256 << 10
)

const (
	moduleHeader    = "\x00asm\x01\x00\x00\x00"
	componentHeader = "\x00asm\x0d\x00\x01\x00"
)

// Manifest returns what a module says about itself, without compiling or running anything of it. A module without a manifest is
// a *fault.Error of kind Invalid with the code "no_manifest".
func Manifest(module []byte) (*vendor.StaticManifest, error) {
	var raw []byte
	found := false
	err := eachSection(module, func(s section) error {
		if s.name != vendor.ManifestSection {
			return nil
		}
		if found {
			return invalid("bad_manifest", "The module has two sections %q; build it again with one.", vendor.ManifestSection)
		}
		if len(s.content) > MaxManifest {
			return invalid("bad_manifest", "The manifest of the module has %d bytes; at most %d are allowed.", len(s.content), MaxManifest)
		}
		found, raw = true, s.content
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, invalid("no_manifest", "The module has no section %q, so it says nothing about itself; its author must add one.", vendor.ManifestSection)
	}
	m := new(vendor.StaticManifest)
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, invalid("bad_manifest", "The manifest of the module cannot be read: %w.", err)
	}
	if m.ABI != 1 {
		return nil, invalid("wrong_abi", "The module was made for version %d of the ABI of Apiary's plugins; this Apiary has version 1, so a newer one or another build of the module is needed.", m.ABI)
	}
	return m, nil
}

// AppendManifest returns a copy of module with m as its static manifest, in place of one that it had. It does not check the
// module; it fails when the sections cannot be read, or m has more than MaxManifest bytes.
func AppendManifest(module []byte, m *vendor.StaticManifest) ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write the manifest: %w", err)
	}
	if len(raw) > MaxManifest {
		return nil, invalid("bad_manifest", "The manifest has %d bytes; at most %d are allowed.", len(raw), MaxManifest)
	}
	out := append(make([]byte, 0, len(module)+len(raw)+64), moduleHeader...)
	err = eachSection(module, func(s section) error {
		if s.name != vendor.ManifestSection {
			out = append(out, s.whole...)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	content := binary.AppendUvarint(nil, uint64(len(vendor.ManifestSection)))
	content = append(append(content, vendor.ManifestSection...), raw...)
	out = binary.AppendUvarint(append(out, 0), uint64(len(content)))
	return append(out, content...), nil
}

// section is one section of a module.
type section struct {
	id      byte
	name    string // of a custom section (id 0)
	content []byte // of a custom section without its name
	whole   []byte // with id and length
}

// eachSection calls f for every section of a core module, in order, and stops at its first error.
func eachSection(module []byte, f func(section) error) error {
	switch {
	case len(module) > MaxModule:
		return invalid("module_too_large", "The module has more than %d MiB, which is the most a plugin may have; build it without debug information.", MaxModule>>20)
	case bytes.HasPrefix(module, []byte(componentHeader)):
		return invalid("wasm_component", "The file is a WebAssembly component; Apiary's plugins are core modules, so build it for wasm32-unknown-unknown or as a reactor of wasip1.")
	case !bytes.HasPrefix(module, []byte(moduleHeader)):
		return invalid("not_wasm", "The file is no WebAssembly module.")
	}
	r := reader{module[len(moduleHeader):]}
	for len(r.rest) > 0 {
		start := r.rest
		id, err := r.byte()
		if err != nil {
			return err
		}
		content, err := r.bytes()
		if err != nil {
			return err
		}
		s := section{id: id, content: content, whole: start[:len(start)-len(r.rest)]}
		if id == 0 {
			in := reader{content}
			name, err := in.bytes()
			if err != nil {
				return err
			}
			s.name, s.content = string(name), in.rest
		}
		if err := f(s); err != nil {
			return err
		}
	}
	return nil
}

// reader reads the encodings of WebAssembly's binary format. What it returns are parts of its input.
type reader struct{ rest []byte }

func (r *reader) byte() (byte, error) {
	if len(r.rest) == 0 {
		return 0, truncated()
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b, nil
}

// u32 reads an unsigned LEB128 number of at most five bytes.
func (r *reader) u32() (uint32, error) {
	var v uint64
	for shift := 0; shift < 35; shift += 7 {
		b, err := r.byte()
		if err != nil {
			return 0, err
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 {
			if v > math.MaxUint32 {
				break
			}
			return uint32(v), nil
		}
	}
	return 0, invalid("not_wasm", "The module is damaged: a number in it has too many bits.")
}

// bytes reads a length and as many bytes.
func (r *reader) bytes() ([]byte, error) {
	n, err := r.u32()
	if err != nil {
		return nil, err
	}
	if uint64(n) > uint64(len(r.rest)) {
		return nil, truncated()
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b, nil
}

func truncated() error {
	return invalid("not_wasm", "The module is damaged: it ends too early; fetch or build it again.")
}

func invalid(code, format string, args ...any) *fault.Error {
	return fault.New(fault.Invalid, code, format, args...)
}
