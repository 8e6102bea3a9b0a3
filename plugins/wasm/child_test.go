package wasm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wasm/wasmtest"
)

// agentEnv makes the test's own executable an agent that starts a plugin host, prints its pid and waits to be killed. Its value
// is the command line of the host.
const agentEnv = "APIARY_TEST_PLUGIN_AGENT"

func TestMain(m *testing.M) {
	if line := os.Getenv(agentEnv); line != "" {
		os.Exit(beAgent(strings.Split(line, "\n")))
	}
	code := m.Run()
	if built := executable.dir; built != "" {
		_ = os.RemoveAll(built)
	}
	os.Exit(code)
}

// executable is apiary, built once for all tests that start it.
var executable struct {
	sync.Once
	dir string
	err error
}

func apiary(t testing.TB) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the process of a plugin is looked at through /proc")
	}
	executable.Do(func() {
		if executable.dir, executable.err = os.MkdirTemp("", "apiary-wasm-"); executable.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(executable.dir, "apiary"), "../..")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			executable.err = fmt.Errorf("build apiary: %w\n%s", err, out)
		}
	})
	if executable.err != nil {
		t.Fatal(executable.err)
	}
	return filepath.Join(executable.dir, "apiary")
}

// hostSpec starts a plugin host for a module, as an agent does.
func hostSpec(t testing.TB, module []byte, h vendor.Invoker) process.Spec {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "plugin.wasm")
	if err := os.WriteFile(file, module, 0o600); err != nil {
		t.Fatal(err)
	}
	return process.Spec{
		Name: "guest", Path: apiary(t), Store: filepath.Join(executable.dir, "store"), Host: h, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)), StartTimeout: time.Minute,
		Args: []string{"plugin-host", "--wasm", file, "--sha256", fmt.Sprintf("%x", sha256.Sum256(module)), "--cache", filepath.Join(dir, "cache")},
	}
}

func spawn(t *testing.T, module []byte, h vendor.Invoker) *process.Process {
	t.Helper()
	p, err := process.Start(t.Context(), hostSpec(t, module, h))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// faultCode is the code of an error of the transport.
func faultCode(err error) string {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.Code
	}
	return ""
}

// responsive fails the test when this process could not run a goroutine for a while.
func responsive(t *testing.T) {
	t.Helper()
	var longest atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for last := time.Now(); ; {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
			longest.Store(max(longest.Load(), int64(time.Since(last))))
			last = time.Now()
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		if d := time.Duration(longest.Load()); d > 5*time.Second {
			t.Errorf("this process stood still for %v", d)
		}
	})
}

func gone(t *testing.T, pid int, within time.Duration) {
	t.Helper()
	for end := time.Now().Add(within); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(b, []byte(") Z ")) {
			return
		}
	}
	t.Errorf("process %d is still there after %v", pid, within)
}

// endless are modules that never come back.
func endless() map[string]wasmtest.Module {
	plugin := wasmtest.Plugin(ok)
	// Two calls of itself, one level down, without any loop.
	exponential := wasmtest.Code(wasmtest.Local(0), wasmtest.If(wasmtest.Code(
		wasmtest.Local(0), wasmtest.Const32(1), wasmtest.Sub32(), wasmtest.Call(wasmtest.Extra),
		wasmtest.Local(0), wasmtest.Const32(1), wasmtest.Sub32(), wasmtest.Call(wasmtest.Extra))...))
	loop := wasmtest.Code(wasmtest.Loop(), wasmtest.Unreachable())
	return map[string]wasmtest.Module{
		"infinite loop":          plugin.With("apiary_invoke", loop...),
		"exponential calls":      plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Const32(60), wasmtest.Call(wasmtest.Extra), answerOK())...).And("", wasmtest.Func{Params: []byte{wasmtest.I32}, Body: exponential}),
		"hang in initialize":     plugin.With("_initialize", loop...),
		"hang in alloc":          plugin.With("apiary_alloc", loop...),
		"hang in free":           plugin.With("apiary_free", loop...),
		"loop with much garbage": plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Const32(700), wasmtest.GrowMemory(), wasmtest.Drop(), loop)...),
	}
}

func TestChildOfEndlessGuestEnds(t *testing.T) {
	for name, module := range endless() {
		t.Run(name, func(t *testing.T) {
			responsive(t)
			p := spawn(t, module.Bytes(), nil)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			_, err := p.Invoke(ctx, vendor.MethodResolve, []byte(`{"reference":"x:y"}`))
			if took := time.Since(start); faultCode(err) != process.CodeTime || took > 5*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
			gone(t, p.PID(), 10*time.Second) // a second after the deadline, on a machine with time
		})
	}
}

func TestChildGivesTypedErrors(t *testing.T) {
	plugin := wasmtest.Plugin(ok)
	points := func(at, n int) wasmtest.Module {
		return plugin.With("apiary_invoke", wasmtest.Answer(at, n)...)
	}
	tables := plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Loop(0xd0, 0x70, 0x41, 0x80, 0x80, 0x04, 0xfc, 0x0f, 0, 0x1a), wasmtest.Unreachable())...) // table.grow by 65,536
	tables.Tables = []uint32{1}
	flood := plugin
	flood.Data = map[uint32]string{wasmtest.ReplyAt: ok, 256: "\x00\x00\x01\x00\x00\x10\x00\x00"} // 4 KiB at 64 KiB
	flood = flood.With("apiary_invoke", wasmtest.Code(wasmtest.Loop(wasmtest.Code(wasmtest.Const32(1), wasmtest.Const32(256), wasmtest.Const32(1), wasmtest.Const32(1024), wasmtest.Call(wasmtest.FDWrite), wasmtest.Drop())...), wasmtest.Unreachable())...)
	for name, tt := range map[string]struct {
		module wasmtest.Module
		code   string
	}{
		"trap":            {plugin.With("apiary_invoke", wasmtest.Unreachable()...), CodeTrap},
		"recursion":       {plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Local(0), wasmtest.Local(1), wasmtest.Local(2), wasmtest.Local(3), wasmtest.Call(wasmtest.Invoke))...), CodeTrap},
		"allocation bomb": {plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Loop(wasmtest.Code(wasmtest.Const32(16), wasmtest.GrowMemory(), wasmtest.Const32(-1), []byte{0x46}, wasmtest.If(wasmtest.Unreachable()...))...), answerOK())...), CodeTrap},
		"garbage":         {wasmtest.Plugin("\x00garbage"), CodeProtocol},
		"other JSON":      {wasmtest.Plugin("\x00" + `{"files":7}`), "bad_reply"},
		"wrong pointer":   {points(1<<32-1, 8), CodeProtocol},
		"reply of 100 MB": {points(16, 100<<20), CodeTooLarge},
		"alloc past end":  {plugin.With("apiary_alloc", wasmtest.Const32(-4)...), CodeProtocol},
		"flood of stdout": {flood, process.CodeTime},
		"bomb of a table": {tables, process.CodeExited},
	} {
		t.Run(name, func(t *testing.T) {
			responsive(t)
			p := spawn(t, tt.module.Bytes(), nil)
			limit := 30 * time.Second
			if tt.code == process.CodeTime {
				limit = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := p.Invoke(ctx, vendor.MethodResolve, []byte(`{"reference":"x:y"}`))
			if got := faultCode(err); got != "" && got == tt.code {
				if got == process.CodeExited {
					return
				}
			} else if e := pluginError(t, err); e.Code != tt.code {
				t.Errorf("the error is %+v, want the code %q", e, tt.code)
			}
			select {
			case <-p.Done():
				t.Error("the child ended, although its guest did")
			default:
			}
		})
	}
}

func TestChildRefusesToStart(t *testing.T) {
	plugin := wasmtest.Plugin(ok)
	sockets := plugin
	sockets.Imports = append(slices.Clone(plugin.Imports), wasmtest.Import{Module: "wasi_snapshot_preview1", Name: "sock_accept"})
	good := hostSpec(t, plugin.Bytes(), nil)
	with := func(arg int, value string) process.Spec {
		spec := good
		spec.Args = slices.Clone(good.Args)
		spec.Args[arg] = value
		return spec
	}
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	little := good
	little.Args = append(slices.Clone(good.Args), "--memory", "65536")
	for name, tt := range map[string]struct {
		spec process.Spec
		says string
	}{
		"wrong ABI":        {hostSpec(t, plugin.Without("apiary_abi_v1").Bytes(), nil), "apiary_abi_v1"},
		"forbidden import": {hostSpec(t, sockets.Bytes(), nil), "sock_accept"},
		"component":        {hostSpec(t, []byte("\x00asm\x0d\x00\x01\x00"), nil), "component"},
		"text":             {hostSpec(t, []byte("#!/bin/sh"), nil), "no WebAssembly module"},
		"changed digest":   {with(4, strings.Repeat("0", 64)), "is pinned"},
		"open cache":       {with(6, open), "holds code"},
		"little memory":    {little, "MiB of memory"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := process.Start(t.Context(), tt.spec)
			if err == nil {
				t.Fatal("the plugin host started", p.Close())
			}
			if faultCode(err) != process.CodeStart || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("the error is %v, want %q in it", err, tt.says)
			}
		})
	}
}

// TestChildOfGuest has a guest in Go ask its host through the process, twice: the second process finds compiled code.
func TestChildOfGuest(t *testing.T) {
	spec := hostSpec(t, guests()[0].module(t), shelf(40))
	for range 2 {
		start := time.Now()
		p, err := process.Start(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("ready after %v", time.Since(start))
		if err := configure(t, p, indexURL); err != nil {
			t.Error(err)
		}
		if m, err := resolve(t, p, "shelf:forty"); err != nil || len(m.Files) != 40 {
			t.Errorf("resolve: %+v, %v", m, err)
		}
		_, err = resolve(t, p, "shelf:none")
		if e := pluginError(t, err); e.Code != "model_not_found" || e.Kind != vendor.KindNotFound {
			t.Errorf("an error of the guest: %+v", e)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	files, err := filepath.Glob(filepath.Join(spec.Args[6], "*", "wazero-v1.*", "*"))
	if err != nil || len(files) != 1 {
		t.Errorf("the cache holds %v, %v", files, err)
	}
}

// TestNothingIsLeftWhenTheAgentIsKilled kills an agent whose guest does not end.
func TestNothingIsLeftWhenTheAgentIsKilled(t *testing.T) {
	for _, name := range []string{"infinite loop", "hang in initialize"} {
		t.Run(name, func(t *testing.T) {
			agent := exec.Command(os.Args[0])
			spec := hostSpec(t, endless()[name].Bytes(), nil)
			agent.Env = append(os.Environ(), agentEnv+"="+strings.Join(slices.Concat([]string{spec.Path, spec.Store}, spec.Args), "\n"))
			out, err := agent.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := agent.Start(); err != nil {
				t.Fatal(err)
			}
			line := make([]byte, 64)
			n, err := out.Read(line)
			pid, err2 := strconv.Atoi(strings.TrimSpace(string(line[:n])))
			if err := errors.Join(err, err2); err != nil {
				t.Fatal(err)
			}
			time.Sleep(200 * time.Millisecond) // so that the guest runs
			if err := syscall.Kill(pid, 0); err != nil {
				t.Errorf("the plugin host is gone before the agent: %v", err)
			}
			if err := agent.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = agent.Wait()
			gone(t, pid, 5*time.Second)
		})
	}
}

// beAgent starts a plugin host, prints its pid, and calls it until it is killed.
func beAgent(line []string) int {
	p, err := process.Start(context.Background(), process.Spec{Name: "guest", Path: line[0], Store: line[1], Args: line[2:], Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), StartTimeout: time.Minute})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Println(p.PID())
	_, err = p.Invoke(context.Background(), vendor.MethodResolve, []byte(`{"reference":"x:y"}`))
	fmt.Fprintln(os.Stderr, "the call ended:", err)
	return 1
}
