// Package llama is the native worker engine: llama.cpp in the worker's process, called without cgo, with continuous batching
// on CPU, CUDA, Vulkan and Metal. It implements sdk.Engine and knows nothing of HTTP, queens or heartbeats.
//
// One goroutine on a locked thread owns the llama.cpp context. Everything it decides (admission, prefix reuse, chunks of
// prefill, preemption) is plain Go over the small backend interface, so that it is tested without a model:
//
//	engine.go   sdk.Engine: load, submit, wait, close        sched.go  the loop: what goes into the next batch
//	library.go  the shared libraries and their devices       cache.go  mirror of the KV cells, prefixes, host copies
//	model.go    one loaded model: vocabulary, context        sample.go greedy and sampled choice of a token
//	backend.go  the loop's calls into llama.cpp              chat.go   the model's chat template
//
// Values from outside are checked before they reach C: llama.cpp aborts the process on what it does not expect.
package llama
