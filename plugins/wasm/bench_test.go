package wasm

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wasm/wasmtest"
)

// benchGuests runs f for every guest that can be had.
func benchGuests(b *testing.B, f func(b *testing.B, module []byte)) {
	for _, g := range guests() {
		b.Run(g.name, func(b *testing.B) { f(b, g.module(b)) })
	}
}

func quiet(module []byte) Options {
	return Options{Module: module, MemoryPages: DefaultMemoryPages, Log: slog.New(slog.DiscardHandler)}
}

func closeModule(b *testing.B, m *Module) {
	b.Helper()
	if err := m.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkCompile opens a module that was never compiled.
func BenchmarkCompile(b *testing.B) {
	benchGuests(b, func(b *testing.B, module []byte) {
		for b.Loop() {
			m, err := Open(b.Context(), quiet(module))
			if err != nil {
				b.Fatal(err)
			}
			closeModule(b, m)
		}
	})
}

// BenchmarkWarm opens one whose compiled code is in the cache.
func BenchmarkWarm(b *testing.B) {
	benchGuests(b, func(b *testing.B, module []byte) {
		dir := b.TempDir()
		if err := os.Chmod(dir, 0o700); err != nil {
			b.Fatal(err)
		}
		load := func() {
			o := quiet(module)
			o.CacheDir = filepath.Join(dir, "cache")
			if err := checkPrivate(o.CacheDir); err != nil {
				b.Fatal(err)
			}
			m := &Module{o: o, out: newLimiter(o.Log), slots: make(chan struct{}, 1)}
			if err := m.loadCached(b.Context()); err != nil {
				b.Fatal(err)
			}
			closeModule(b, m)
		}
		load()
		for b.Loop() {
			load()
		}
	})
}

// BenchmarkInstantiate makes one more instance.
func BenchmarkInstantiate(b *testing.B) {
	benchGuests(b, func(b *testing.B, module []byte) {
		m, err := Open(b.Context(), quiet(module))
		if err != nil {
			b.Fatal(err)
		}
		defer closeModule(b, m)
		for b.Loop() {
			in, err := m.instantiate(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			in.close(b.Context())
		}
	})
}

// BenchmarkEcho carries a request of a size in and a reply of that size out.
func BenchmarkEcho(b *testing.B) {
	for _, size := range []int{100, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			reply := `"` + strings.Repeat("x", size-2) + `"`
			module := wasmtest.Plugin("\x00" + reply)
			// The reply must not lie where requests are written to.
			module.Data = map[uint32]string{4 << 20: "\x00" + reply}
			module = module.With("apiary_invoke", wasmtest.Answer(4<<20, size+1)...)
			m, err := Open(b.Context(), quiet(module.Bytes()))
			if err != nil {
				b.Fatal(err)
			}
			defer closeModule(b, m)
			request := []byte(reply)
			b.SetBytes(int64(2 * size))
			for b.Loop() {
				if _, err := m.Invoke(b.Context(), vendor.MethodResolve, request); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkResolve resolves a model of 40 files, the answer to the HTTP request at hand.
func BenchmarkResolve(b *testing.B) {
	benchGuests(b, func(b *testing.B, module []byte) {
		o := quiet(module)
		o.Host = shelf(40)
		m, err := Open(b.Context(), o)
		if err != nil {
			b.Fatal(err)
		}
		defer closeModule(b, m)
		if err := configure(b, m, indexURL); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			if got, err := resolve(b, m, "shelf:forty"); err != nil || len(got.Files) != 40 {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkChild does the same through a plugin host, and starts one whose compiled code is in the cache.
func BenchmarkChild(b *testing.B) {
	benchGuests(b, func(b *testing.B, module []byte) {
		spec := hostSpec(b, module, shelf(40))
		start := func() *process.Process {
			p, err := process.Start(b.Context(), spec)
			if err != nil {
				b.Fatal(err)
			}
			if err := configure(b, p, indexURL); err != nil {
				b.Fatal(err)
			}
			return p
		}
		end := func(p *process.Process) {
			if err := p.Close(); err != nil {
				b.Fatal(err)
			}
		}
		end(start())
		b.Run("start", func(b *testing.B) {
			for b.Loop() {
				end(start())
			}
		})
		b.Run("resolve", func(b *testing.B) {
			p := start()
			defer end(p)
			for b.Loop() {
				if got, err := resolve(b, p, "shelf:forty"); err != nil || len(got.Files) != 40 {
					b.Fatal(err)
				}
			}
			b.ReportMetric(residentMB(b, p.PID()), "MB-resident")
		})
	})
}

func residentMB(b *testing.B, pid int) float64 {
	b.Helper()
	for line := range strings.Lines(string(readFile(b, fmt.Sprintf("/proc/%d/status", pid)))) {
		var kB float64
		if _, err := fmt.Sscanf(line, "VmRSS: %f kB", &kB); err == nil {
			return kB / 1024
		}
	}
	return 0
}
