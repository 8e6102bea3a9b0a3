//go:build !embedllama

// Package bundle carries the executable apiary-llama inside apiary, when it is built with the tag embedllama. It does not
// unpack or start it.
package bundle

// Binary returns the executable, or nil in a build without it.
func Binary() []byte { return nil }
