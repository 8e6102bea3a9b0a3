// Package wasm runs plugins that are WebAssembly modules, and reads what they say about themselves before they run. A plugin has
// no files, no sockets and no environment; whatever it needs of the world it asks of the host.
//
// A guest that does not give up can be ended only together with the process that runs it, and while it runs it can hold up every
// goroutine of that process. Modules of others are therefore opened in a process of their own, `apiary plugin-host`.
//
// # ABI, version 1
//
// A plugin is a core module for 32-bit memory. It exports
//
//	memory
//	apiary_abi_v1() → i32                 the minor version of the ABI; that it is there says that the module is a plugin
//	apiary_alloc(size) → pointer          memory that the host writes to; 0: there is none
//	apiary_free(pointer)                  called by the host for what alloc and invoke returned
//	apiary_invoke(method, method length, request, request length) → i64 (pointer << 32 | length)
//	_initialize()                         optional; called once, before anything else
//
// and may import
//
//	apiary_v1.call(method, method length, request, request length) → i64    the length of the reply; below zero: -(length) of an error
//	apiary_v1.reply(pointer)                                                 copies that reply or error to a pointer of the guest
//	wasi_snapshot_preview1.*                                                 no sockets; there are no files
//
// Methods are gRPC names, such as /vendor.v1.Vendor/Resolve, and /host.v1.Host/HttpDo for the host. Messages are canonical proto3
// JSON. The host writes the name, and a request that is not empty, into memory of one alloc each. The first byte of what invoke
// returns is 0 before a reply and 1 before an error, which is a plugin.v1.ErrorDetail. The reply to HttpDo leaves the body out;
// the call of /host.v1.Host/HttpBody that follows it, without a request, gives the bytes. An instance runs one call at a time and
// is thrown away after a thousand: nothing but the configuration outlives a call.
package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const (
	// MaxMessage is the most that a request or a reply may have, in bytes; bodies of HTTP answers may have four times as many.
	MaxMessage = 4 << 20

	maxInstances = 4
	maxCalls     = 1000 // of one instance

	// stuckAfter is how long a guest may go on after the end of its call's context before Options.Stuck is called.
	stuckAfter = 500 * time.Millisecond
	// killAfter is the same for Options.KillAfter.
	killAfter = time.Second
)

// Codes of the *vendor.Error that say that a plugin itself is at fault.
const (
	CodeTrap     = "plugin_trap"     // it crashed or ended itself
	CodeProtocol = "plugin_protocol" // it does not keep the ABI
	CodeTooLarge = "plugin_too_large"
)

// Options says what to run and with how much.
type Options struct {
	Module      []byte
	CacheDir    string         // absolute; compiled code is kept there, so only this user may write to it. Empty: compile each time
	MemoryPages uint32         // of each instance, 64 KiB each; 0: DefaultMemoryPages
	Instances   int            // calls at once; 0: 4, which is also the most
	Host        vendor.Invoker // answers what the guest asks of the host
	Log         *slog.Logger   // what the guest prints, and why it crashed
	Stuck       func()         // called when a guest does not end although its call has; the process should then. nil: nothing

	// KillAfter has the process killed after a time, unless it is cancelled, by means that do not need this process to run: a guest
	// that does not end can keep Stuck from being called. It is set for each call with a deadline. nil: nothing.
	KillAfter func(time.Duration) (cancel func())
}

// Module is a plugin that runs. It is a vendor.Invoker, whose methods may be called concurrently.
type Module struct {
	o       Options
	out     *limiter
	cache   wazero.CompilationCache // nil: none
	runtime wazero.Runtime
	code    wazero.CompiledModule
	slots   chan struct{} // one for each call that runs

	running sync.WaitGroup // calls; added to only with mu and before closed

	mu         sync.Mutex // guards the fields below
	idle       []*instance
	config     []byte // the last request of Configure that succeeded
	generation int    // counts those
	closed     bool
}

// Open checks and compiles a module, and starts nothing of it. A module that is no plugin is a *fault.Error of kind Invalid, a
// folder for the cache that others could write to one of kind Denied.
func Open(ctx context.Context, o Options) (*Module, error) {
	if o.MemoryPages == 0 {
		o.MemoryPages = DefaultMemoryPages
	}
	if o.MemoryPages > maxMemoryPages {
		return nil, invalid("memory_limit", "An instance of a plugin can have at most %d MiB of memory, not %d.", maxMemoryPages>>4, o.MemoryPages>>4)
	}
	if o.Instances == 0 {
		o.Instances = maxInstances
	}
	o.Instances = min(max(o.Instances, 1), maxInstances)
	if err := Validate(o.Module, o.MemoryPages); err != nil {
		return nil, err
	}
	m := &Module{o: o, out: newLimiter(o.Log), slots: make(chan struct{}, o.Instances)}
	if err := m.compile(ctx); err != nil {
		return nil, errors.Join(err, m.release(context.WithoutCancel(ctx)))
	}
	m.o.Module = nil
	return m, nil
}

// load makes a runtime and compiles the module in it, with the compiled code of cache where that has it.
func (m *Module) load(ctx context.Context, cache wazero.CompilationCache) error {
	config := wazero.NewRuntimeConfig().WithCoreFeatures(api.CoreFeaturesV2).WithMemoryLimitPages(m.o.MemoryPages).
		WithCloseOnContextDone(false).WithDebugInfoEnabled(false) // checks in every loop cost 5 to 14 times the time, and do not stop every guest
	if cache != nil {
		config = config.WithCompilationCache(cache)
	}
	m.cache, m.runtime = cache, wazero.NewRuntimeWithConfig(ctx, config)
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, m.runtime); err != nil {
		return fmt.Errorf("prepare the functions of WASI: %w", err)
	}
	host := m.runtime.NewHostModuleBuilder(hostModule)
	host.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(hostCall), valueTypes(i32+i32+i32+i32), valueTypes(i64)).Export("call")
	host.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(hostReply), valueTypes(i32), nil).Export("reply")
	if _, err := host.Instantiate(ctx); err != nil {
		return fmt.Errorf("prepare the functions of the host: %w", err)
	}
	code, err := m.runtime.CompileModule(experimental.WithCompilationWorkers(ctx, min(2, runtime.GOMAXPROCS(0))), m.o.Module)
	if err != nil {
		return fault.New(fault.Invalid, "not_wasm", "The module cannot be compiled (%s); its author must build it again.", firstLine(err)) // and not %w: the text is foreign
	}
	m.code = code
	return nil
}

func valueTypes(s string) []api.ValueType { return []api.ValueType(s) }

// release gives back what load took.
func (m *Module) release(ctx context.Context) error {
	var errs []error
	if m.runtime != nil {
		errs = append(errs, m.runtime.Close(ctx))
	}
	if m.cache != nil {
		errs = append(errs, m.cache.Close(ctx))
	}
	m.runtime, m.cache = nil, nil
	return errors.Join(errs...)
}

// Close ends the module. It waits for the calls that run; when ctx ends first, they and the memory of the module stay.
func (m *Module) Close(ctx context.Context) error {
	m.mu.Lock()
	already := m.closed
	m.closed, m.idle = true, nil
	m.mu.Unlock()
	if already {
		return nil
	}
	idle := make(chan struct{})
	go func() { m.running.Wait(); close(idle) }()
	select {
	case <-idle:
		return m.release(ctx)
	case <-ctx.Done():
		return fmt.Errorf("wait for the calls of a plugin: %w", ctx.Err())
	}
}

// Invoke implements vendor.Invoker. It returns when ctx ends, whatever the guest does. Faults of the guest are *vendor.Error with
// one of the codes Code… . request must not be changed until the guest has ended, which may be later.
func (m *Module) Invoke(ctx context.Context, method string, request []byte) ([]byte, error) {
	if len(method)+len(request) > MaxMessage {
		return nil, tooLarge("The request to the plugin has %d bytes; at most %d are allowed.", len(request), MaxMessage)
	}
	if err := m.enter(ctx); err != nil {
		return nil, err
	}
	type result struct {
		reply []byte
		err   error
	}
	ended := make(chan struct{})
	results := make(chan result, 1)
	stop := context.AfterFunc(ctx, func() { m.watch(ended) })
	go func() {
		defer func() { <-m.slots; m.running.Done() }()
		defer close(ended)
		defer stop()
		if deadline, has := ctx.Deadline(); has && m.o.KillAfter != nil {
			defer m.o.KillAfter(time.Until(deadline) + killAfter)()
		}
		reply, err := m.run(ctx, method, request)
		results <- result{reply, err}
	}()
	select {
	case r := <-results:
		return r.reply, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the plugin's answer to %s: %w", method, ctx.Err())
	}
}

// enter waits for a free slot.
func (m *Module) enter(ctx context.Context) error {
	select {
	case m.slots <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("wait for a free instance of the plugin: %w", ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		<-m.slots
		return errors.New("the plugin is closed")
	}
	m.running.Add(1)
	return nil
}

// watch says that the guest is stuck when it does not end soon.
func (m *Module) watch(ended <-chan struct{}) {
	t := time.NewTimer(stuckAfter)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
		if m.o.Stuck != nil {
			m.o.Stuck()
		}
	}
}

// run performs one call on an instance of the pool.
func (m *Module) run(ctx context.Context, method string, request []byte) ([]byte, error) {
	in, err := m.take(ctx, method == vendor.MethodConfigure)
	if err != nil {
		return nil, err
	}
	reply, err := in.invoke(ctx, method, request)
	if method == vendor.MethodConfigure {
		if err == nil {
			m.configured(ctx, in, request)
		} else {
			in.broken = true // half of a configuration may be in it
		}
	}
	m.give(ctx, in)
	return reply, err
}

// take returns an instance with the configuration of the module, or one without any to be configured.
func (m *Module) take(ctx context.Context, bare bool) (*instance, error) {
	m.mu.Lock()
	config, generation := m.config, m.generation
	var in *instance
	if n := len(m.idle); n > 0 && (!bare || generation == 0) {
		in, m.idle = m.idle[n-1], m.idle[:n-1]
	}
	m.mu.Unlock()
	if in != nil {
		return in, nil
	}
	in, err := m.instantiate(ctx)
	if err != nil {
		return nil, err
	}
	if generation > 0 && !bare {
		if _, err := in.invoke(ctx, vendor.MethodConfigure, config); err != nil {
			in.close(ctx)
			return nil, err
		}
		in.generation = generation
	}
	return in, nil
}

// configured records that in took a configuration, which every later instance then gets. Those with an older one end.
func (m *Module) configured(ctx context.Context, in *instance, request []byte) {
	m.mu.Lock()
	stale := m.idle
	m.idle = nil
	m.config = append([]byte(nil), request...)
	m.generation++
	in.generation = m.generation
	m.mu.Unlock()
	for _, old := range stale {
		old.close(ctx)
	}
}

// give puts an instance back into the pool, or ends it where it must not be used again.
func (m *Module) give(ctx context.Context, in *instance) {
	m.mu.Lock()
	keep := !in.broken && in.calls < maxCalls && !m.closed && in.generation == m.generation
	if keep {
		m.idle = append(m.idle, in)
	}
	m.mu.Unlock()
	if !keep {
		in.close(ctx)
	}
}

func tooLarge(format string, args ...any) *vendor.Error {
	return &vendor.Error{Kind: vendor.KindExhausted, Code: CodeTooLarge, Message: fmt.Sprintf(format, args...)}
}

// errorJSON is the form in which errors cross the border of the guest.
func errorJSON(e *vendor.Error) []byte {
	raw, err := json.Marshal(e)
	if err != nil { // strings and a number: it cannot
		return []byte(`{"kind":"internal"}`)
	}
	return raw
}
