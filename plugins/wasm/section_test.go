package wasm

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wasm/wasmtest"
)

func code(err error) string {
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Kind == fault.Invalid {
		return e.Code
	}
	if err != nil {
		return "untyped: " + err.Error()
	}
	return ""
}

func manifest() *vendor.StaticManifest {
	return &vendor.StaticManifest{ABI: 1, Contract: vendor.ContractVendor, Info: vendor.Info{Name: "one", Kind: vendor.KindVendor, Schemes: []string{"one"}, Requests: vendor.Requests{MemoryBytes: 1 << 20}}}
}

func TestManifestComesBack(t *testing.T) {
	plain := wasmtest.Plugin("\x00{}").Bytes()
	if _, err := Manifest(plain); code(err) != "no_manifest" {
		t.Errorf("without a manifest: %v", err)
	}
	first := manifest()
	first.Info.Name = "other"
	with, err := AppendManifest(plain, first)
	if err != nil {
		t.Fatal(err)
	}
	if with, err = AppendManifest(with, manifest()); err != nil {
		t.Fatal(err)
	}
	got, err := Manifest(with)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(manifest(), got); diff != "" {
		t.Errorf("the manifest changed (-want +got):\n%s", diff)
	}
	if !bytes.HasPrefix(with, plain) {
		t.Error("the module itself changed")
	}
	if err := Validate(with, 0); err != nil {
		t.Errorf("with a manifest: %v", err)
	}
}

func TestManifestRefuses(t *testing.T) {
	custom := func(contents ...string) []byte {
		m := wasmtest.Module{NoMemory: true}
		for _, c := range contents {
			m.Customs = append(m.Customs, [2]string{vendor.ManifestSection, c})
		}
		return m.Bytes()
	}
	tests := map[string]struct {
		module []byte
		want   string
	}{
		"empty file":            {nil, "not_wasm"},
		"text":                  {[]byte("hello, world"), "not_wasm"},
		"component":             {[]byte("\x00asm\x0d\x00\x01\x00rest"), "wasm_component"},
		"length past the end":   {[]byte(moduleHeader + "\x00\x7f"), "not_wasm"},
		"length of 4 GiB":       {[]byte(moduleHeader + "\x00\xff\xff\xff\xff\x0f"), "not_wasm"},
		"length of 35 bits":     {[]byte(moduleHeader + "\x00\xff\xff\xff\xff\x7f"), "not_wasm"},
		"length that never end": {[]byte(moduleHeader + "\x00\x80\x80\x80\x80\x80\x80\x80"), "not_wasm"},
		"name past its section": {[]byte(moduleHeader + "\x00\x02\x09a"), "not_wasm"},
		"no name":               {[]byte(moduleHeader + "\x00\x00"), "not_wasm"},
		"two manifests":         {custom(`{"abi":1}`, `{"abi":1}`), "bad_manifest"},
		"too long":              {custom(`{"abi":1}` + strings.Repeat(" ", MaxManifest)), "bad_manifest"},
		"no JSON":               {custom(`{"abi":`), "bad_manifest"},
		"two values":            {custom(`{"abi":1} {}`), "bad_manifest"},
		"empty":                 {custom(``), "bad_manifest"},
		"next ABI":              {custom(`{"abi":2}`), "wrong_abi"},
		"too large":             {append([]byte(moduleHeader), make([]byte, MaxModule)...), "module_too_large"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if _, err := Manifest(tt.module); code(err) != tt.want {
				t.Errorf("Manifest: %v, want the code %q", err, tt.want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	plugin := wasmtest.Plugin("\x00{}")
	importing := func(module, name string, f wasmtest.Func) []byte {
		m := plugin
		m.Imports = append(m.Imports[:2:2], wasmtest.Import{Module: module, Name: name, Func: f})
		return m.Bytes()
	}
	changed := func(f func(*wasmtest.Module)) []byte {
		m := plugin
		f(&m)
		return m.Bytes()
	}
	tests := map[string]struct {
		module []byte
		want   string
	}{
		"plugin":             {plugin.Bytes(), ""},
		"reactor":            {plugin.With("_initialize").Bytes(), ""},
		"no marker":          {plugin.Without("apiary_abi_v1").Bytes(), "abi_missing"},
		"marker of the next": {plugin.Without("apiary_abi_v1").And("apiary_abi_v2", wasmtest.Func{Results: []byte{wasmtest.I32}, Body: wasmtest.Const32(0)}).Bytes(), "abi_missing"},
		"other parameters":   {plugin.Without("apiary_free").And("apiary_free", wasmtest.Func{}).Bytes(), "abi_missing"},
		"initialize(i32)":    {plugin.And("_initialize", wasmtest.Func{Params: []byte{wasmtest.I32}}).Bytes(), "abi_missing"},
		"no memory":          {changed(func(m *wasmtest.Module) { m.NoMemory, m.Data = true, nil }), "abi_missing"},
		"much memory":        {changed(func(m *wasmtest.Module) { m.Pages = 1025 }), "memory_limit"},
		"large table":        {changed(func(m *wasmtest.Module) { m.Tables = []uint32{1 << 27} }), "memory_limit"},
		"socket":             {importing("wasi_snapshot_preview1", "sock_accept", wasmtest.Func{}), "forbidden_import"},
		"file":               {importing("wasi_snapshot_preview1", "path_open", wasmtest.Func{}), ""},
		"env":                {importing("env", "abort", wasmtest.Func{}), "forbidden_import"},
		"unknown of ours":    {importing("apiary_v1", "exec", wasmtest.Func{}), "forbidden_import"},
		"other call":         {importing("apiary_v1", "call", wasmtest.Func{}), "forbidden_import"},
		"imported memory":    {[]byte(moduleHeader + "\x02\x08\x01\x01e\x01m\x02\x00\x01"), "forbidden_import"},
		"shared memory":      {[]byte(moduleHeader + "\x05\x04\x01\x03\x01\x02"), "unknown_feature"},
		"sections swapped":   {[]byte(moduleHeader + "\x05\x03\x01\x00\x01\x03\x01\x00"), "not_wasm"},
		"many types":         {[]byte(moduleHeader + "\x01\x05\xff\xff\xff\xff\x0f"), "module_too_large"},
		"nothing":            {[]byte(moduleHeader), "abi_missing"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := Validate(tt.module, 0); code(err) != tt.want {
				t.Errorf("Validate: %v, want the code %q", err, tt.want)
			}
		})
	}
}

// FuzzStatic feeds foreign bytes to what reads modules before they run.
func FuzzStatic(f *testing.F) {
	m := wasmtest.Plugin("\x00{}")
	m.Tables = []uint32{1}
	with, err := AppendManifest(m.Bytes(), manifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(with)
	f.Add([]byte(moduleHeader + "\x00\x02\x09a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := Validate(b, 0); err != nil && strings.HasPrefix(code(err), "untyped") {
			t.Errorf("Validate: %v", err)
		}
		_, err := Manifest(b)
		if err != nil && strings.HasPrefix(code(err), "untyped") {
			t.Errorf("Manifest: %v", err)
		}
		again, err2 := AppendManifest(b, manifest())
		if err2 != nil {
			return
		}
		if got, err := Manifest(again); err != nil || !cmp.Equal(got, manifest()) {
			t.Errorf("the manifest that was appended is %+v, %v", got, err)
		}
	})
}
