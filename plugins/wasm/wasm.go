// Package wasm runs plugins that are WebAssembly modules.
package wasm
