package wasm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wasm/wasmtest"
)

// host answers a plugin's calls with a function.
type host func(ctx context.Context, method string, request []byte) ([]byte, error)

func (h host) Invoke(ctx context.Context, method string, request []byte) ([]byte, error) {
	return h(ctx, method, request)
}

// open opens a module and closes it when the test ends.
func open(t testing.TB, module wasmtest.Module, change ...func(*Options)) *Module {
	t.Helper()
	o := Options{Module: module.Bytes(), Log: slog.New(slog.DiscardHandler)}
	for _, f := range change {
		f(&o)
	}
	m, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m
}

func pluginError(t *testing.T, err error) *vendor.Error {
	t.Helper()
	e, ok := errors.AsType[*vendor.Error](err)
	if !ok {
		t.Fatalf("the error is %v, not a *vendor.Error", err)
	}
	return e
}

const ok = "\x00{}"

// wasi adds one more imported function, which gets the number 3; functions of the module itself then begin at 4.
func wasi(m wasmtest.Module, name string, f wasmtest.Func) wasmtest.Module {
	m.Imports = append(m.Imports[:3:3], wasmtest.Import{Module: "wasi_snapshot_preview1", Name: name, Func: f})
	return m
}

func answerOK() []byte { return wasmtest.Answer(wasmtest.ReplyAt, len(ok)) }

func TestFaultsOfGuests(t *testing.T) {
	plugin := wasmtest.Plugin(ok)
	answers := func(raw string) wasmtest.Module { return wasmtest.Plugin(raw) }
	points := func(at, n int) wasmtest.Module {
		return plugin.With("apiary_invoke", wasmtest.Answer(at, n)...)
	}
	i32 := wasmtest.I32
	tests := map[string]struct {
		module wasmtest.Module
		code   string
	}{
		"unreachable":          {plugin.With("apiary_invoke", wasmtest.Unreachable()...), CodeTrap},
		"trap in alloc":        {plugin.With("apiary_alloc", wasmtest.Unreachable()...), CodeTrap},
		"trap in free":         {plugin.With("apiary_free", wasmtest.Unreachable()...), CodeTrap},
		"trap in initialize":   {plugin.With("_initialize", wasmtest.Unreachable()...), CodeTrap},
		"recursion":            {plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Local(0), wasmtest.Local(1), wasmtest.Local(2), wasmtest.Local(3), wasmtest.Call(wasmtest.Invoke))...), CodeTrap},
		"allocation bomb":      {plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Loop(wasmtest.Code(wasmtest.Const32(16), wasmtest.GrowMemory(), wasmtest.Const32(-1), []byte{0x46}, wasmtest.If(wasmtest.Unreachable()...))...), answerOK())...), CodeTrap},
		"reads past its end":   {plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Const32(-8), wasmtest.Load32(), wasmtest.Drop(), answerOK())...), CodeTrap},
		"exit":                 {wasi(plugin, "proc_exit", wasmtest.Func{Params: []byte{i32}}).With("apiary_invoke", wasmtest.Code(wasmtest.Const32(0), wasmtest.Call(3), answerOK())...), CodeTrap},
		"reply at the end":     {points(128<<16-1, 8), CodeProtocol},
		"reply past the end":   {points(1<<32-1, 8), CodeProtocol},
		"reply of nothing":     {points(wasmtest.ReplyAt, 0), CodeProtocol},
		"reply of 100 MB":      {points(wasmtest.ReplyAt, 100<<20), CodeTooLarge},
		"reply of 4 GiB":       {points(0, 1<<32-1), CodeTooLarge},
		"garbage":              {answers("\x00garbage"), CodeProtocol},
		"half of JSON":         {answers(`` + "\x00" + `{"reference":`), CodeProtocol},
		"no message":           {answers("\x00"), CodeProtocol},
		"unknown status":       {answers("\x02{}"), CodeProtocol},
		"garbage as error":     {answers("\x01garbage"), CodeProtocol},
		"error without text":   {answers("\x01{}"), CodeProtocol},
		"alloc gives nothing":  {plugin.With("apiary_alloc", wasmtest.Const32(0)...), CodeTooLarge},
		"alloc past the end":   {plugin.With("apiary_alloc", wasmtest.Const32(128<<16-4)...), CodeProtocol},
		"alloc of -1":          {plugin.With("apiary_alloc", wasmtest.Const32(-1)...), CodeProtocol},
		"host reply elsewhere": {plugin.With("apiary_invoke", wasmtest.Code(callHost(0, 0, 0, 0), wasmtest.Drop(), wasmtest.Const32(-1), wasmtest.Call(wasmtest.HostReply), answerOK())...), CodeProtocol},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := open(t, tt.module)
			_, err := m.Invoke(t.Context(), vendor.MethodResolve, []byte(`{"reference":"x:y"}`))
			e := pluginError(t, err)
			if e.Code != tt.code || !strings.HasSuffix(e.Message, ".") || strings.Contains(e.Message, "\n") || len(e.Message) > 400 {
				t.Errorf("code %q, message %q; want the code %q", e.Code, e.Message, tt.code)
			}
			if len(m.idle) != 0 {
				t.Error("the instance is kept")
			}
		})
	}
}

func callHost(method, methodLen, request, requestLen int32) []byte {
	return wasmtest.Code(wasmtest.Const32(method), wasmtest.Const32(methodLen), wasmtest.Const32(request), wasmtest.Const32(requestLen), wasmtest.Call(wasmtest.HostCall))
}

func TestErrorOfGuestIsKept(t *testing.T) {
	m := open(t, wasmtest.Plugin("\x01"+`{"kind":"denied","code":"gated","message":"Accept the licence.","helpUrl":"u","retryAfterMs":"7","candidates":["a"]}`))
	for range 3 {
		_, err := m.Invoke(t.Context(), vendor.MethodResolve, nil)
		e := pluginError(t, err)
		if e.Kind != vendor.KindDenied || e.Code != "gated" || e.HelpURL != "u" || e.RetryAfterMS != 7 || len(e.Candidates) != 1 {
			t.Errorf("the error is %+v", e)
		}
	}
	if len(m.idle) != 1 {
		t.Errorf("%d instances are kept; an error is no fault of the instance", len(m.idle))
	}
	e := pluginError(t, func() error {
		_, err := open(t, wasmtest.Plugin("\x01"+`{"kind":"strange","message":"Hm."}`)).Invoke(t.Context(), vendor.MethodResolve, nil)
		return err
	}())
	if e.Kind != vendor.KindInternal {
		t.Errorf("an unknown kind became %q", e.Kind)
	}
}

func TestTooLargeRequest(t *testing.T) {
	_, err := open(t, wasmtest.Plugin(ok)).Invoke(t.Context(), vendor.MethodResolve, make([]byte, MaxMessage+1))
	if e := pluginError(t, err); e.Code != CodeTooLarge {
		t.Errorf("the error is %v", err)
	}
}

// asker is a plugin that calls the host with method and request once, and answers with what the host said.
func asker(method, request string) wasmtest.Module {
	m := wasmtest.Plugin(ok)
	m.Data = map[uint32]string{64: method, 1024: request, 1 << 17: "\x00"}
	// The length of the reply; the reply itself goes behind the status byte.
	length := wasmtest.Code(callHost(64, int32(len(method)), 1024, int32(len(request))), []byte{0xa7}, wasmtest.SetLocal(4))
	negative := wasmtest.If(wasmtest.Code(wasmtest.Const32(1<<17), wasmtest.Const32(1), []byte{0x3a, 0, 0}, wasmtest.Const32(0), wasmtest.Local(4), wasmtest.Sub32(), wasmtest.SetLocal(4))...)
	body := wasmtest.Code(length,
		wasmtest.Const32(1<<17), wasmtest.Const32(0), []byte{0x3a, 0, 0}, // i32.store8
		wasmtest.Local(4), wasmtest.Const32(0), []byte{0x48}, negative, // i32.lt_s
		wasmtest.Const32(1<<17+1), wasmtest.Call(wasmtest.HostReply),
		wasmtest.Local(4), wasmtest.Const32(1), []byte{0x6a, 0xad}, wasmtest.Const64(1<<17<<32), []byte{0x84}) // i32.add, i64.extend_i32_u, i64.or
	m = m.With("apiary_invoke", body...)
	m.Exports[slices.IndexFunc(m.Exports, func(e wasmtest.Export) bool { return e.Name == "apiary_invoke" })].Locals = 1
	return m
}

func TestHostCalls(t *testing.T) {
	answer := func(reply string, err error) func(*Options) {
		return func(o *Options) {
			o.Host = host(func(_ context.Context, method string, request []byte) ([]byte, error) {
				if strings.Contains(string(request), "echo") {
					return []byte(fmt.Sprintf(`{"got":%q}`, method+string(request))), nil
				}
				return []byte(reply), err
			})
		}
	}
	t.Run("message", func(t *testing.T) {
		got, err := open(t, asker(vendor.MethodKVGet, "echo"), answer("", nil)).Invoke(t.Context(), vendor.MethodResolve, nil)
		if want := `{"got":"/host.v1.Host/KvGetecho"}`; err != nil || string(got) != want {
			t.Errorf("got %s, %v, want %s", got, err, want)
		}
	})
	for name, tt := range map[string]struct {
		method, request, reply string
		err                    error
		code                   string
	}{
		"error":        {vendor.MethodKVGet, "{}", "", &vendor.Error{Kind: vendor.KindDenied, Code: "not_granted", Message: "No."}, "not_granted"},
		"fault":        {vendor.MethodKVGet, "{}", "", errors.New("the secret is 42"), "host_failed"},
		"not a host's": {vendor.MethodResolve, "{}", "{}", nil, vendor.CodeUnimplemented},
		"empty name":   {"", "{}", "{}", nil, vendor.CodeUnimplemented},
		"long name":    {vendor.MethodKVGet + strings.Repeat("t", 300), "{}", "{}", nil, CodeTooLarge},
		"large reply":  {vendor.MethodKVGet, "{}", strings.Repeat(" ", MaxMessage+1), nil, CodeTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := open(t, asker(tt.method, tt.request), answer(tt.reply, tt.err)).Invoke(t.Context(), vendor.MethodResolve, nil)
			if e := pluginError(t, err); e.Code != tt.code || strings.Contains(e.Message, "42") {
				t.Errorf("the guest got %+v, want the code %q", e, tt.code)
			}
		})
	}
	t.Run("wrong pointers", func(t *testing.T) {
		for _, call := range [][]byte{callHost(-1, 8, 0, 0), callHost(0, 8, 128<<16-1, 8), callHost(0, 8, 0, -1), callHost(0, -1, 0, 0), callHost(0, 8, -1, 1)} {
			// A call that the host refuses has a negative result; the guest then stops.
			m := wasmtest.Plugin(ok).With("apiary_invoke", wasmtest.Code(call, wasmtest.Const64(0), []byte{0x59}, wasmtest.If(wasmtest.Unreachable()...), answerOK())...)
			if _, err := open(t, m, answer("{}", nil)).Invoke(t.Context(), vendor.MethodResolve, nil); err != nil {
				t.Errorf("the host took a call with a wrong pointer: %v", err)
			}
		}
	})
}

func TestHTTPBodyIsDetached(t *testing.T) {
	var body []byte
	o := func(o *Options) {
		o.Host = host(func(context.Context, string, []byte) ([]byte, error) {
			return json.Marshal(vendor.HTTPResponse{Status: 200, Body: body, URL: "https://example.org/"})
		})
	}
	body = []byte("bytes that are \x00 no text")
	got, err := open(t, asker(vendor.MethodHTTPDo, "{}"), o).Invoke(t.Context(), vendor.MethodResolve, nil)
	if want := `{"status":200,"url":"https://example.org/"}`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	in := &instance{m: &Module{o: Options{Host: host(func(context.Context, string, []byte) ([]byte, error) { return nil, nil })}}}
	raw, err := json.Marshal(vendor.HTTPResponse{Body: body})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.detach(raw); err != nil || !bytes.Equal(in.body, body) {
		t.Errorf("the body is %q, %v", in.body, err)
	}
	if raw, err = json.Marshal(vendor.HTTPResponse{Body: make([]byte, maxBody+1)}); err != nil {
		t.Fatal(err)
	}
	if _, err := in.detach(raw); err == nil || in.body != nil {
		t.Errorf("a body of more than 16 MiB is kept: %v", err)
	}
}

func TestHostCallsAreCounted(t *testing.T) {
	var calls atomic.Int64
	endless := wasmtest.Plugin(ok).With("apiary_invoke", wasmtest.Code(wasmtest.Loop(wasmtest.Code(callHost(64, 19, 0, 0), wasmtest.Const64(0), []byte{0x53}, wasmtest.If(wasmtest.Code(answerOK(), wasmtest.Return())...))...), wasmtest.Unreachable())...)
	endless.Data[64] = vendor.MethodKVGet
	m := open(t, endless, func(o *Options) {
		o.Host = host(func(context.Context, string, []byte) ([]byte, error) { calls.Add(1); return nil, nil })
	})
	for i := range 2 {
		if _, err := m.Invoke(t.Context(), vendor.MethodResolve, nil); err != nil {
			t.Fatal(err)
		}
		if got := calls.Load(); got != int64(i+1)*maxHostCalls {
			t.Errorf("after %d calls the host was called %d times", i+1, got)
		}
	}
	start := wasmtest.Plugin(ok).With("_initialize", wasmtest.Code(callHost(64, 19, 0, 0), wasmtest.Const64(0), []byte{0x59}, wasmtest.If(wasmtest.Unreachable()...))...)
	start.Data[64] = vendor.MethodKVGet
	if _, err := open(t, start).Invoke(t.Context(), vendor.MethodResolve, nil); err != nil {
		t.Errorf("the host was reached before the first call: %v", err)
	}
}

func TestDeadlineEndsWhatWaits(t *testing.T) {
	i32 := wasmtest.I32
	// A subscription to the relative monotonic clock, 1 h.
	sleeper := wasi(wasmtest.Plugin(ok), "poll_oneoff", wasmtest.Func{Params: []byte{i32, i32, i32, i32}, Results: []byte{i32}})
	sub := make([]byte, 48)
	sub[16] = 1
	copy(sub[24:], []byte{0, 0xa0, 0xb8, 0x30, 0x46, 0x03, 0, 0})
	sleeper.Data[256] = string(sub)
	sleeper = sleeper.With("apiary_invoke", wasmtest.Code(wasmtest.Const32(256), wasmtest.Const32(512), wasmtest.Const32(1), wasmtest.Const32(1024), wasmtest.Call(3), wasmtest.Drop(), answerOK())...)
	flood := wasmtest.Plugin(ok)
	flood.Data[256] = "\x00\x00\x01\x00\x00\x00\x40\x00" // 4 MiB at 64 KiB
	flood = flood.With("apiary_invoke", wasmtest.Code(wasmtest.Loop(wasmtest.Code(wasmtest.Const32(2), wasmtest.Const32(256), wasmtest.Const32(1), wasmtest.Const32(1024), wasmtest.Call(wasmtest.FDWrite), wasmtest.Drop())...), wasmtest.Unreachable())...)
	asks := wasmtest.Plugin(ok).With("apiary_invoke", wasmtest.Code(wasmtest.Loop(wasmtest.Code(callHost(64, 19, 0, 0), wasmtest.Drop())...), wasmtest.Unreachable())...)
	asks.Data[64] = vendor.MethodKVGet
	for name, module := range map[string]wasmtest.Module{"sleep": sleeper, "print": flood, "host calls": asks, "host waits": asks} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := open(t, module, func(o *Options) {
				o.Stuck = func() { t.Error("the guest went on") }
				o.Host = host(func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
					if name == "host waits" {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return nil, nil
				})
			})
			for range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
				_, err := m.Invoke(ctx, vendor.MethodResolve, nil)
				cancel()
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the error is %v", err)
				}
			}
		})
	}
}

func TestInstancesAreConfiguredOnceAndReplaced(t *testing.T) {
	// Counts its calls in a global and answers with the count, so that each instance can be told from the others. The request of
	// Configure is its own method name's length, 30, in parameter 1.
	m := wasmtest.Plugin("\x00000")
	m.Globals = 1
	count := []byte{0x23, 0, 0x41, 1, 0x6a, 0x24, 0} // global.get, const 1, add, global.set
	digit := wasmtest.Code(wasmtest.Const32(wasmtest.ReplyAt+1), []byte{0x23, 0}, wasmtest.Const32('0'), []byte{0x6a, 0x3a, 0, 0})
	module := open(t, m.With("apiary_invoke", wasmtest.Code(count, digit, wasmtest.Answer(wasmtest.ReplyAt, 2))...), func(o *Options) { o.Instances = 2 })
	call := func(method, want string) {
		t.Helper()
		got, err := module.Invoke(t.Context(), method, []byte("{}"))
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v, want %s", method, got, err, want)
		}
	}
	call(vendor.MethodGetInfo, "1")
	call(vendor.MethodConfigure, "2") // the same instance: it had no configuration
	call(vendor.MethodResolve, "3")
	call(vendor.MethodConfigure, "1") // a new one
	call(vendor.MethodResolve, "2")
	module.idle[0].broken = true
	module.give(t.Context(), func() *instance { in, _ := module.take(t.Context(), false); return in }())
	call(vendor.MethodResolve, "2") // a new one, configured first
	module.idle[0].calls = maxCalls - 1
	call(vendor.MethodResolve, "3")
	call(vendor.MethodResolve, "2")
}

func TestFailedConfigurationIsNotKept(t *testing.T) {
	m := open(t, wasmtest.Plugin("\x01"+`{"kind":"invalid","param":"endpoint","message":"No."}`))
	if _, err := m.Invoke(t.Context(), vendor.MethodConfigure, nil); pluginError(t, err).Param != "endpoint" {
		t.Errorf("the error is %v", err)
	}
	if len(m.idle) != 0 || m.generation != 0 {
		t.Error("half of a configuration is kept")
	}
}

func TestInstancesAtOnce(t *testing.T) {
	var now, most atomic.Int64
	release := make(chan struct{})
	m := open(t, asker(vendor.MethodKVGet, "{}"), func(o *Options) {
		o.Host = host(func(context.Context, string, []byte) ([]byte, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-release
			return []byte("{}"), nil
		})
	})
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			if _, err := m.Invoke(t.Context(), vendor.MethodResolve, nil); err != nil {
				t.Error(err)
			}
		})
	}
	for now.Load() < maxInstances {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Invoke(ctx, vendor.MethodResolve, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that gave up got %v", err)
	}
	close(release)
	wg.Wait()
	if most.Load() != maxInstances || len(m.idle) > maxInstances {
		t.Errorf("%d calls ran at once, %d instances are kept", most.Load(), len(m.idle))
	}
	if err := m.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := m.Invoke(t.Context(), vendor.MethodResolve, nil); err == nil {
		t.Error("a closed module answers")
	}
}

func TestOutputIsBounded(t *testing.T) {
	var log bytes.Buffer
	now := time.Unix(1, 0)
	l := &limiter{log: slog.New(slog.NewJSONHandler(&log, nil)), now: func() time.Time { return now }}
	o := &output{in: &instance{m: &Module{out: l}, ctx: t.Context()}, stream: "stderr", level: slog.LevelWarn}
	write := func(s string) {
		if n, err := o.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	write("half of a li")
	write("ne\n\n")
	write(strings.Repeat("x", 5000) + "\n")
	for range 1000 {
		write("flood\n")
	}
	now = now.Add(time.Second)
	write("after\n")
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	if len(lines) != linesPerSecond+2 || !strings.Contains(lines[0], `"half of a line"`) || len(lines[1]) > maxLine+200 {
		t.Errorf("%d lines, the first two %s\n%s", len(lines), lines[0], lines[1])
	}
	if !strings.Contains(lines[linesPerSecond], `"lines":802`) || !strings.Contains(lines[linesPerSecond+1], "after") {
		t.Errorf("the last lines are\n%s\n%s", lines[linesPerSecond], lines[linesPerSecond+1])
	}
}

func TestOpenRefuses(t *testing.T) {
	bad := wasmtest.Plugin(ok).With("apiary_invoke") // no result on the stack
	if _, err := Open(t.Context(), Options{Module: bad.Bytes(), Log: slog.New(slog.DiscardHandler)}); code(err) != "not_wasm" {
		t.Errorf("code that is not valid: %v", err)
	}
	if _, err := Open(t.Context(), Options{Module: wasmtest.Plugin(ok).Bytes(), MemoryPages: 1}); code(err) != "memory_limit" {
		t.Errorf("more memory than granted: %v", err)
	}
	if _, err := Open(t.Context(), Options{Module: wasmtest.Plugin(ok).Bytes(), MemoryPages: 1 << 16}); code(err) != "memory_limit" {
		t.Errorf("4 GiB granted: %v", err)
	}
}

func TestCacheMustBePrivate(t *testing.T) {
	try := func(dir string) error {
		m, err := Open(t.Context(), Options{Module: wasmtest.Plugin(ok).Bytes(), CacheDir: dir, Log: slog.New(slog.DiscardHandler)})
		if err == nil {
			err = m.Close(t.Context())
		}
		return err
	}
	base := t.TempDir()
	private := filepath.Join(base, "a", "private")
	if err := try(private); err != nil {
		t.Errorf("a folder that is made: %v", err)
	}
	link := filepath.Join(base, "link")
	if err := os.Symlink(private, link); err != nil {
		t.Fatal(err)
	}
	open := filepath.Join(base, "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o770); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{link, open, file} {
		if err := try(dir); fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: %v", filepath.Base(dir), err)
		}
	}
}

func TestCache(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	load := func(module wasmtest.Module) {
		t.Helper()
		m := &Module{o: Options{Module: module.Bytes(), CacheDir: dir, MemoryPages: 1024, Log: slog.New(slog.DiscardHandler)}, slots: make(chan struct{}, 1)}
		m.out = newLimiter(m.o.Log)
		if err := m.loadCached(t.Context()); err != nil {
			t.Error(err)
			return
		}
		if got, err := m.Invoke(t.Context(), vendor.MethodGetInfo, nil); err != nil || string(got) != "{}" {
			t.Errorf("got %s, %v", got, err)
		}
		if err := m.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { load(wasmtest.Plugin(ok)) })
	}
	wg.Wait()
	files, err := filepath.Glob(filepath.Join(dir, "*", "wazero-*", "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("the cache holds %v, %v", files, err)
	}
	t.Run("damaged", func(t *testing.T) {
		raw, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		raw[len(raw)/2] ^= 0xff
		if err := os.WriteFile(files[0], raw, 0o600); err != nil {
			t.Fatal(err)
		}
		load(wasmtest.Plugin(ok))
		if again, err := os.ReadFile(files[0]); err != nil || bytes.Equal(raw, again) {
			t.Errorf("the damaged code is still there, %v", err)
		}
	})
	t.Run("full", func(t *testing.T) {
		for i := range maxCached + 3 {
			old := filepath.Join(dir, fmt.Sprint("old", i))
			if err := os.Mkdir(old, 0o700); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(-time.Hour - time.Duration(i)*time.Minute)
			if err := os.Chtimes(old, at, at); err != nil {
				t.Fatal(err)
			}
		}
		load(wasmtest.Plugin(ok))
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != maxCached {
			t.Errorf("%d folders are left, %v", len(left), err)
		}
		if _, err := os.Stat(files[0]); err != nil {
			t.Error("what was just used is gone")
		}
	})
}

// FuzzABI has guests give the host any pointers and lengths: the host answers with an error of theirs or a reply, and nothing else.
func FuzzABI(f *testing.F) {
	f.Add(int32(64), int32(19), int32(64), int32(0), int32(1024), int32(wasmtest.RequestAt), uint64(wasmtest.ReplyAt<<32|len(ok)))
	f.Add(int32(-1), int32(-1), int32(1<<30), int32(-1), int32(-4), int32(128<<16-1), uint64(1<<63|100<<20))
	f.Fuzz(func(t *testing.T, method, methodLen, request, requestLen, into, alloc int32, answer uint64) {
		module := wasmtest.Plugin(ok).With("apiary_alloc", wasmtest.Const32(alloc)...)
		module.Data[64] = vendor.MethodHTTPDo
		module = module.With("apiary_invoke", wasmtest.Code(callHost(method, methodLen, request, requestLen), wasmtest.Drop(), wasmtest.Const32(into), wasmtest.Call(wasmtest.HostReply), wasmtest.Const64(int64(answer)))...)
		m := open(t, module, func(o *Options) {
			o.Host = host(func(context.Context, string, []byte) ([]byte, error) { return []byte(`{"status":200}`), nil })
		})
		_, err := m.Invoke(t.Context(), vendor.MethodResolve, []byte(`{"reference":"x:y"}`))
		if e, typed := errors.AsType[*vendor.Error](err); err != nil && (!typed || e.Message == "") {
			t.Errorf("the error is %v", err)
		}
	})
}
