package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// TestGuest builds a vendor as a module: it is small, because it holds none of what processes need, and keeps the ABI.
func TestGuest(t *testing.T) {
	module := buildGuest(t)
	g := startGuest(t, module)
	ctx := t.Context()
	info, err := Call[vendor.Info](ctx, g, vendor.MethodGetInfo, nil)
	if err != nil || info.Name != "small" || info.Kind != vendor.KindVendor {
		t.Fatalf("GetInfo: %+v, %v", info, err)
	}
	if _, err := Call[struct{}](ctx, g, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: "{}"}); err != nil {
		t.Fatal(err)
	}
	for _, count := range []string{"", "x"} {
		m, err := Call[vendor.Manifest](ctx, g, vendor.MethodResolve, vendor.ResolveRequest{Reference: "small:https://a.example"})
		if err != nil || m.Reference != "from the body" || m.Meta["count"] != count {
			t.Errorf("Resolve: %+v, %v", m, err)
		}
	}
	if g.host.logged != "info asked reference small:https://a.example" {
		t.Errorf("logged %q", g.host.logged)
	}
	if _, err := Call[vendor.Manifest](ctx, g, vendor.MethodResolve, vendor.ResolveRequest{Reference: "small:"}); code(err) != "not_granted" {
		t.Errorf("an error of the host: %v", err)
	}
	if _, err := Call[vendor.Manifest](ctx, g, vendor.MethodResolve, vendor.ResolveRequest{Reference: "small:panic"}); code(err) != "plugin_panic" {
		t.Errorf("a panic: %v", err)
	}
	if _, err := g.Invoke(ctx, vendor.MethodSearch, nil); code(err) != vendor.CodeUnimplemented {
		t.Errorf("a method that it does not have: %v", err)
	}
}

func buildGuest(t *testing.T) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "vendor.wasm")
	env := append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o", file, "./testdata/vendor")
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 4<<20 {
		t.Errorf("the module has %d bytes", len(raw))
	}
	cmd = exec.Command("go", "list", "-deps", "./testdata/vendor")
	cmd.Env = env
	deps, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(deps)) {
		if dep == "regexp" || dep == "net" || dep == "net/http" || strings.HasPrefix(dep, "google.golang.org/") || strings.HasPrefix(dep, "github.com/hashicorp/") {
			t.Errorf("a module would hold %s", dep)
		}
	}
	return raw
}

// module runs a guest as its host does, without the limits.
type module struct {
	api.Module
	t    *testing.T
	host *fakeHost
}

func startGuest(t *testing.T, raw []byte) *module {
	t.Helper()
	g := &module{t: t, host: &fakeHost{}}
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter()) // which starts at once
	t.Cleanup(func() { _ = r.Close(ctx) })
	wasi_snapshot_preview1.MustInstantiate(ctx, r)
	host, last := HostDispatch(g.host), []byte(nil)
	var body []byte
	call := func(ctx context.Context, m api.Module, method, methodLen, request, requestLen uint32) int64 {
		name, _ := m.Memory().Read(method, methodLen)
		raw, _ := m.Memory().Read(request, requestLen)
		if string(name) == vendor.MethodHTTPBody {
			last = body
			return int64(len(last))
		}
		reply, err := host.Invoke(ctx, string(name), append([]byte(nil), raw...))
		if err != nil {
			e, _ := errors.AsType[*vendor.Error](err)
			last, _ = json.Marshal(e)
			return -int64(len(last))
		}
		if string(name) == vendor.MethodHTTPDo {
			body, reply = []byte(`{"reference":"from the body"}`), []byte(`{"status":200}`)
		}
		last = reply
		return int64(len(last))
	}
	reply := func(_ context.Context, m api.Module, into uint32) { m.Memory().Write(into, last) }
	_, err := r.NewHostModuleBuilder("apiary_v1").NewFunctionBuilder().WithFunc(call).Export("call").NewFunctionBuilder().WithFunc(reply).Export("reply").Instantiate(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if g.Module, err = r.InstantiateWithConfig(ctx, raw, wazero.NewModuleConfig().WithStartFunctions("_initialize").WithStderr(os.Stderr)); err != nil {
		t.Fatal(err)
	}
	if v := g.call("apiary_abi_v1"); v != 0 {
		t.Errorf("ABI 1.%d", v)
	}
	return g
}

func (g *module) call(name string, args ...uint64) uint64 {
	g.t.Helper()
	out, err := g.ExportedFunction(name).Call(context.Background(), args...)
	if err != nil {
		g.t.Fatal(err)
	}
	if len(out) == 0 {
		return 0
	}
	return out[0]
}

func (g *module) put(b []byte) uint64 {
	p := g.call("apiary_alloc", uint64(len(b)))
	g.Memory().Write(uint32(p), b)
	return p
}

func (g *module) Invoke(_ context.Context, method string, request []byte) ([]byte, error) {
	m, r := g.put([]byte(method)), g.put(request)
	out := g.call("apiary_invoke", m, uint64(len(method)), r, uint64(len(request)))
	raw, ok := g.Memory().Read(uint32(out>>32), uint32(out))
	if !ok || len(raw) == 0 {
		g.t.Fatalf("the reply is at %d, %d bytes", out>>32, uint32(out))
	}
	raw = append([]byte(nil), raw...)
	for _, p := range []uint64{m, r, out >> 32} {
		g.call("apiary_free", p)
	}
	if raw[0] == 0 {
		return raw[1:], nil
	}
	e := &vendor.Error{}
	if err := json.Unmarshal(raw[1:], e); err != nil {
		g.t.Fatal(err)
	}
	return nil, e
}
