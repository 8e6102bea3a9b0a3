//go:build embedllama

// Package bundle carries the executable apiary-llama inside apiary, when it is built with the tag embedllama. It does not
// unpack or start it.
package bundle

import _ "embed"

// apiary-llama is put here by the build, for the same platform.
//
//go:embed apiary-llama
var binary []byte

// Binary returns the executable. It must not be changed.
func Binary() []byte { return binary }
