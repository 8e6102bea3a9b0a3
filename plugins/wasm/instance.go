package wasm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// maxErrorDetail bounds an error of a guest, in bytes.
const maxErrorDetail = 64 << 10

// instance is one instance of a module. One call runs in it at a time.
type instance struct {
	m                  *Module
	mod                api.Module
	alloc, free, entry api.Function
	calls, generation  int
	broken             bool // it trapped or broke the ABI, so nothing may run in it any more
	hostCalls          int  // that it may still make in this call
	reply, body        []byte
	stack              [4]uint64
	ctx                context.Context // of the call; for the functions of WASI, which wazero gives none
}

type instanceKey struct{}

// instantiate makes an instance and initializes it.
func (m *Module) instantiate(ctx context.Context) (*instance, error) {
	in := &instance{m: m, ctx: ctx}
	config := wazero.NewModuleConfig().WithName("").WithStartFunctions("_initialize").
		WithEnv("GOMEMLIMIT", strconv.FormatUint(uint64(m.o.MemoryPages)<<16*6/10, 10)). // else Go's collector waits until it is too late
		WithStdout(&output{in: in, stream: "stdout", level: slog.LevelInfo}).WithStderr(&output{in: in, stream: "stderr", level: slog.LevelWarn}).
		WithSysWalltime().WithSysNanotime().WithRandSource(rand.Reader).WithNanosleep(in.sleep)
	mod, err := m.runtime.InstantiateModule(context.WithValue(ctx, instanceKey{}, in), m.code, config)
	if err != nil {
		return nil, in.fault("its initialization", err)
	}
	in.mod, in.alloc, in.free, in.entry = mod, mod.ExportedFunction("apiary_alloc"), mod.ExportedFunction("apiary_free"), mod.ExportedFunction("apiary_invoke")
	return in, nil
}

func (in *instance) close(ctx context.Context) {
	if err := in.mod.Close(context.WithoutCancel(ctx)); err != nil {
		in.m.o.Log.Warn("an instance of a plugin did not close", "error", err)
	}
}

// invoke performs one call.
func (in *instance) invoke(ctx context.Context, method string, request []byte) ([]byte, error) {
	in.ctx, in.hostCalls = ctx, maxHostCalls
	in.calls++
	reply, err := in.exchange(context.WithValue(ctx, instanceKey{}, in), method, request)
	in.ctx, in.hostCalls, in.reply, in.body = context.Background(), 0, nil, nil
	if err != nil {
		in.broken = true
		return nil, err
	}
	if reply[0] == 0 {
		return reply[1:], nil
	}
	e := new(vendor.Error)
	if err := json.Unmarshal(reply[1:], e); err != nil || e.Message == "" && e.Code == "" {
		in.broken = true
		return nil, protocol("The plugin answered %s with an error that cannot be read; report it to its author.", method)
	}
	return nil, known(e)
}

// exchange writes the request into the guest, runs it, and takes a copy of the reply, whose form it checks.
func (in *instance) exchange(ctx context.Context, method string, request []byte) ([]byte, error) {
	name, err := in.write(ctx, method, []byte(method))
	if err != nil {
		return nil, err
	}
	req, err := in.write(ctx, method, request)
	if err != nil {
		return nil, err
	}
	packed, err := in.call(ctx, in.entry, method, uint64(name), uint64(len(method)), uint64(req), uint64(len(request)))
	if err != nil {
		return nil, err
	}
	from, length := uint32(packed>>32), uint32(packed)
	if length > MaxMessage {
		return nil, tooLarge("The plugin's answer to %s has %d bytes; at most %d are allowed.", method, length, MaxMessage)
	}
	view, ok := in.mod.Memory().Read(from, length)
	if !ok || length == 0 {
		return nil, protocol("The plugin's answer to %s is not in its memory; report it to its author.", method)
	}
	reply := bytes.Clone(view)
	switch {
	case reply[0] == 0 && !json.Valid(reply[1:]):
		return nil, protocol("The plugin's answer to %s is not JSON; report it to its author.", method)
	case reply[0] > 1 || reply[0] == 1 && length > maxErrorDetail:
		return nil, protocol("The plugin's answer to %s does not keep the ABI; report it to its author.", method)
	}
	for _, ptr := range [...]uint32{from, req, name} {
		if ptr == 0 {
			continue
		}
		if _, err := in.call(ctx, in.free, method, uint64(ptr)); err != nil {
			return nil, err
		}
	}
	return reply, nil
}

// write puts b into memory that the guest offers, and returns where. Nothing is at 0.
func (in *instance) write(ctx context.Context, method string, b []byte) (uint32, error) {
	if len(b) == 0 {
		return 0, nil
	}
	at, err := in.call(ctx, in.alloc, method, uint64(len(b)))
	if err != nil {
		return 0, err
	}
	ptr := uint32(at)
	if ptr == 0 {
		return 0, &vendor.Error{Kind: vendor.KindExhausted, Code: CodeTooLarge, Message: fmt.Sprintf("The plugin has no memory left for the request %s; grant it more.", method)}
	}
	if !in.mod.Memory().Write(ptr, b) {
		return 0, protocol("The plugin offers memory that it does not have for the request %s; report it to its author.", method)
	}
	return ptr, nil
}

// call runs one function of the guest and returns its result, if it has one.
func (in *instance) call(ctx context.Context, f api.Function, method string, args ...uint64) (uint64, error) {
	copy(in.stack[:], args)
	if err := f.CallWithStack(ctx, in.stack[:]); err != nil {
		return 0, in.fault(method, err)
	}
	return in.stack[0], nil
}

// stopped ends a guest whose call has ended: as a panic it unwinds the guest's stack.
type stopped struct{ error }

func (s stopped) Unwrap() error { return s.error }

// stopIfDone ends the guest when its call has ended.
func (in *instance) stopIfDone() {
	if err := in.ctx.Err(); err != nil {
		panic(stopped{err})
	}
}

// sleep is how the guest waits.
func (in *instance) sleep(ns int64) {
	t := time.NewTimer(time.Duration(max(ns, 0)))
	defer t.Stop()
	select {
	case <-t.C:
	case <-in.ctx.Done():
	}
	in.stopIfDone()
}

// fault makes of the end of a guest the error of its call.
func (in *instance) fault(method string, err error) error {
	in.broken = true
	if ctxErr := in.ctx.Err(); ctxErr != nil {
		return fmt.Errorf("run the plugin for %s: %w", method, ctxErr)
	}
	if exit, ok := errors.AsType[*sys.ExitError](err); ok {
		return &vendor.Error{Kind: vendor.KindInternal, Code: CodeTrap, Message: fmt.Sprintf("The plugin ended itself with the code %d while it worked on %s; report it to its author.", exit.ExitCode(), method)}
	}
	if bad, ok := errors.AsType[*vendor.Error](err); ok {
		return bad
	}
	in.m.out.line(slog.LevelWarn, "plugin trapped", "method", method, "trace", cut(err.Error(), 4<<10))
	return &vendor.Error{Kind: vendor.KindInternal, Code: CodeTrap, Message: fmt.Sprintf("The plugin crashed (%s) while it worked on %s; report it to its author.", firstLine(err), method)}
}

func protocol(format string, args ...any) *vendor.Error {
	return &vendor.Error{Kind: vendor.KindInternal, Code: CodeProtocol, Message: fmt.Sprintf(format, args...)}
}

// known returns e with a kind that the contract has.
func known(e *vendor.Error) *vendor.Error {
	switch e.Kind {
	case vendor.KindInternal, vendor.KindInvalid, vendor.KindNotFound, vendor.KindUnavailable, vendor.KindExhausted, vendor.KindDenied:
	default:
		e.Kind = vendor.KindInternal
	}
	return e
}

// firstLine is the short form of an error of wazero, which goes on with a trace.
func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return cut(strings.TrimPrefix(line, "wasm error: "), 200)
}

// cut returns at most n bytes of s.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
