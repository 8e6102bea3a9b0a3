//go:build linux

package wasm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	pb "google.golang.org/protobuf/proto"

	"github.com/apiary-dev/apiary/plugins/sdk/wire"
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

func apiary(t *testing.T) string {
	t.Helper()
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

// child is a plugin host, as the agent starts it.
type child struct {
	vendor.Invoker
	client *plugin.Client
	cmd    *exec.Cmd
	stderr *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// connection is a plugin of go-plugin that gives its connection away.
type connection struct{ plugin.NetRPCUnsupportedPlugin }

func (connection) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return errors.New("not here") }

func (connection) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, c *grpc.ClientConn) (any, error) {
	return c, nil
}

func startChild(args []string, sockets string) (*child, error) {
	c := &child{cmd: exec.Command(args[0], args[1:]...), stderr: new(lockedBuffer)}
	c.cmd.Env = []string{"PLUGIN_UNIX_SOCKET_DIR=" + sockets}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	c.client = plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: wire.Handshake(), VersionedPlugins: map[int]plugin.PluginSet{wire.Version: {wire.Name: connection{}}},
		Cmd: c.cmd, AutoMTLS: true, SkipHostEnv: true, AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		StartTimeout: time.Minute, Logger: hclog.NewNullLogger(), Stderr: c.stderr,
		GRPCDialOptions: []grpc.DialOption{grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(wire.MaxFrame))},
	})
	protocol, err := c.client.Client()
	if err != nil {
		c.end()
		return c, err
	}
	raw, err := protocol.Dispense(wire.Name)
	if err != nil {
		c.end()
		return c, err
	}
	conn := raw.(*grpc.ClientConn)
	c.Invoker = wire.Client(func(ctx context.Context, method string, request, reply pb.Message) error {
		err := conn.Invoke(ctx, method, request, reply)
		if e := wire.Error(method, err); err != nil && e != nil {
			return e
		}
		return err
	})
	return c, nil
}

// end kills the child without asking it.
func (c *child) end() {
	if c.cmd.Process != nil {
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
	}
	c.client.Kill()
}

// hostArgs is the command line of a plugin host for a module.
func hostArgs(t *testing.T, module []byte) []string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "plugin.wasm")
	if err := os.WriteFile(file, module, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{apiary(t), "plugin-host", "--wasm", file, "--sha256", fmt.Sprintf("%x", sha256.Sum256(module)), "--cache", filepath.Join(dir, "cache")}
}

func spawn(t *testing.T, module []byte) *child {
	t.Helper()
	c, err := startChild(hostArgs(t, module), shortDir(t))
	if err != nil {
		t.Fatalf("%v\n%s", err, c.stderr)
	}
	t.Cleanup(c.end)
	return c
}

// shortDir is a folder whose sockets have short names.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
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
			c := spawn(t, module.Bytes())
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			_, err := c.Invoke(ctx, vendor.MethodResolve, []byte(`{"reference":"x:y"}`))
			if took := time.Since(start); status.Code(err) != codes.DeadlineExceeded && !errors.Is(err, context.DeadlineExceeded) || took > 5*time.Second {
				t.Errorf("after %v: %v", took, err)
			}
			gone(t, c.cmd.Process.Pid, 10*time.Second) // a second after the deadline, on a machine with time
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
		code   string // "": the deadline; "gone": the child ends
	}{
		"trap":            {plugin.With("apiary_invoke", wasmtest.Unreachable()...), CodeTrap},
		"recursion":       {plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Local(0), wasmtest.Local(1), wasmtest.Local(2), wasmtest.Local(3), wasmtest.Call(wasmtest.Invoke))...), CodeTrap},
		"allocation bomb": {plugin.With("apiary_invoke", wasmtest.Code(wasmtest.Loop(wasmtest.Code(wasmtest.Const32(16), wasmtest.GrowMemory(), wasmtest.Const32(-1), []byte{0x46}, wasmtest.If(wasmtest.Unreachable()...))...), answerOK())...), CodeTrap},
		"garbage":         {wasmtest.Plugin("\x00garbage"), CodeProtocol},
		"other JSON":      {wasmtest.Plugin("\x00" + `{"files":7}`), "bad_reply"},
		"wrong pointer":   {points(1<<32-1, 8), CodeProtocol},
		"reply of 100 MB": {points(16, 100<<20), CodeTooLarge},
		"alloc past end":  {plugin.With("apiary_alloc", wasmtest.Const32(-4)...), CodeProtocol},
		"flood of stdout": {flood, ""},
		"bomb of a table": {tables, "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			responsive(t)
			c := spawn(t, tt.module.Bytes())
			limit := 30 * time.Second
			if tt.code == "" {
				limit = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			_, err := c.Invoke(ctx, vendor.MethodResolve, []byte(`{"reference":"x:y"}`))
			switch tt.code {
			case "":
				if status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("the error is %v", err)
				}
			case "gone":
				if status.Code(err) != codes.Unavailable {
					t.Errorf("the error is %v", err)
				}
				gone(t, c.cmd.Process.Pid, 10*time.Second)
				return
			default:
				if e := pluginError(t, err); e.Code != tt.code {
					t.Errorf("the error is %+v, want the code %q", e, tt.code)
				}
			}
			if len(c.stderr.String()) > 1<<20 {
				t.Errorf("the log has %d bytes", len(c.stderr.String()))
			}
			if c.client.Exited() {
				t.Errorf("the child ended, although its guest did\n%s", c.stderr)
			}
		})
	}
}

func TestChildRefusesToStart(t *testing.T) {
	plugin := wasmtest.Plugin(ok)
	sockets := plugin
	sockets.Imports = append(slices.Clone(plugin.Imports), wasmtest.Import{Module: "wasi_snapshot_preview1", Name: "sock_accept"})
	good := hostArgs(t, plugin.Bytes())
	changed := slices.Clone(good)
	changed[5] = strings.Repeat("0", 64)
	open := slices.Clone(good)
	open[7] = filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open[7], 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open[7], 0o777); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		args []string
		code int
		says string
	}{
		"wrong ABI":        {hostArgs(t, plugin.Without("apiary_abi_v1").Bytes()), 2, "apiary_abi_v1"},
		"forbidden import": {hostArgs(t, sockets.Bytes()), 2, "sock_accept"},
		"component":        {hostArgs(t, []byte("\x00asm\x0d\x00\x01\x00")), 2, "component"},
		"text":             {hostArgs(t, []byte("#!/bin/sh")), 2, "no WebAssembly module"},
		"changed digest":   {changed, 7, "pinned"},
		"open cache":       {open, 7, "private"},
		"little memory":    {append(slices.Clone(good), "--memory", "65536"), 2, "memory"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := startChild(tt.args, shortDir(t))
			if err == nil {
				c.end()
				t.Fatal("the plugin host started")
			}
			if !strings.Contains(c.stderr.String(), tt.says) || c.cmd.ProcessState.ExitCode() != tt.code {
				t.Errorf("exit code %d, want %d; it says\n%s", c.cmd.ProcessState.ExitCode(), tt.code, c.stderr)
			}
		})
	}
}

// TestChildKeepsCompiledCode looks at what a child leaves for the next one.
func TestChildKeepsCompiledCode(t *testing.T) {
	args := hostArgs(t, readFile(t, filepath.Join("testdata", "shelf-rust.wasm")))
	for range 2 {
		c, err := startChild(args, shortDir(t))
		if err != nil {
			t.Fatalf("%v\n%s", err, c.stderr)
		}
		if _, err := c.Invoke(t.Context(), vendor.MethodGetInfo, nil); err != nil {
			t.Error(err)
		}
		c.end()
	}
	files, err := filepath.Glob(filepath.Join(args[7], "*", "wazero-v1.*", "*"))
	if err != nil || len(files) != 1 {
		t.Errorf("the cache holds %v, %v", files, err)
	}
}

// TestNothingIsLeftWhenTheAgentIsKilled kills an agent whose guest does not end.
func TestNothingIsLeftWhenTheAgentIsKilled(t *testing.T) {
	for _, name := range []string{"infinite loop", "hang in initialize"} {
		t.Run(name, func(t *testing.T) {
			agent := exec.Command(os.Args[0])
			agent.Env = append(os.Environ(), agentEnv+"="+strings.Join(append([]string{shortDir(t)}, hostArgs(t, endless()[name].Bytes())...), "\n"))
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
func beAgent(args []string) int {
	c, err := startChild(args[1:], args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err, c.stderr)
		return 1
	}
	fmt.Println(c.cmd.Process.Pid)
	_, err = c.Invoke(context.Background(), vendor.MethodResolve, []byte(`{"reference":"x:y"}`))
	fmt.Fprintln(os.Stderr, "the call ended:", err)
	return 1
}
