package llama

import (
	"runtime"
	"unsafe"

	"github.com/ebitengine/purego"
	"github.com/hybridgroup/yzma/pkg/llama"
)

// threadpoolParams is the C struct ggml_threadpool_params of Build.
type threadpoolParams struct {
	mask     [512]bool
	nThreads int32
	prio     int32
	poll     uint32
	strict   bool
	paused   bool
	_        [2]byte
}

// Poll is how long, from 0 to 100, an engine's threads spin for the next graph before they sleep. The default of llama.cpp, 50,
// burns a core for 0.16 s after every step; the throughput is the same.
const Poll = 2

// findThreadpool looks up the functions of the CPU backend. Without them llama.cpp makes its own threads.
func (l *Library) findThreadpool(base uintptr) {
	lookup, err := purego.Dlsym(base, "ggml_backend_reg_get_proc_address")
	reg := llama.GGMLBackendRegByName("CPU")
	if err != nil || reg == 0 {
		return
	}
	get := func(name string) uintptr {
		b := append([]byte(name), 0)
		r, _, _ := purego.SyscallN(lookup, uintptr(reg), uintptr(unsafe.Pointer(unsafe.SliceData(b))))
		runtime.KeepAlive(b)
		return r
	}
	l.threadpoolNew, l.threadpoolFree = get("ggml_threadpool_new"), get("ggml_threadpool_free")
}

// Threads are the CPU threads of a context.
type Threads struct {
	lib  *Library
	pool uintptr // 0: llama.cpp makes threads of its own for each step
}

// AttachThreads gives ctx n threads of its own that spin as poll says. Free them after ctx.
func (l *Library) AttachThreads(ctx llama.Context, n, poll int) Threads {
	if l.threadpoolNew == 0 || l.threadpoolFree == 0 {
		return Threads{}
	}
	p := &threadpoolParams{nThreads: int32(n), poll: uint32(poll)}
	pool, _, _ := purego.SyscallN(l.threadpoolNew, uintptr(unsafe.Pointer(p)))
	runtime.KeepAlive(p)
	if pool != 0 {
		llama.AttachThreadpool(ctx, pool, pool)
	}
	return Threads{l, pool}
}

// Free ends the threads.
func (t Threads) Free() {
	if t.pool != 0 {
		purego.SyscallN(t.lib.threadpoolFree, t.pool)
	}
}
