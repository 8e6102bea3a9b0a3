package host

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// indexHost is a host that has one page.
type indexHost struct{ vendor.Host }

func (indexHost) HTTP(_ context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	if req.URL != "https://models.example.org/index.json" {
		return nil, &vendor.Error{Kind: vendor.KindDenied, Code: "not_granted", Message: "No."}
	}
	return &vendor.HTTPResponse{Status: 200, Body: []byte(`{"models": [{"name": "tiny", "format": "gguf"}]}`)}, nil
}

// TestProcessIsSupervised: the example is a vendor like any other, also after its process was killed.
func TestProcessIsSupervised(t *testing.T) {
	program := filepath.Join(t.TempDir(), "vendor-index")
	cmd := exec.Command("go", "build", "-o", program, "../../examples/plugin-go")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var (
		info vendor.Info
		pids = make(chan int, 8)
	)
	spec := process.Spec{Name: "index", Path: program, Store: filepath.Join(t.TempDir(), "store"), Host: sdk.HostDispatch(indexHost{}), Log: slog.New(slog.DiscardHandler)}
	s := NewSupervisor("index", 0, spec.Log, func(ctx context.Context) (Instance, error) {
		p, err := process.Start(ctx, spec)
		if err != nil {
			return nil, err
		}
		if info, err = Info(ctx, p); err == nil {
			err = Configure(ctx, p, `{"url": "https://models.example.org/index.json"}`)
		}
		if err != nil {
			return nil, errors.Join(err, p.Close())
		}
		pids <- p.PID()
		return p, nil
	})
	defer s.Close()
	if _, err := Info(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	v := Vendor(s, info)
	for range 2 {
		m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: "index:tiny"})
		if err != nil || m.Format != "gguf" {
			t.Fatalf("%+v, %v", m, err)
		}
		if err := syscall.Kill(<-pids, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: "index:tiny"}); err != nil && codeOf(err) != process.CodeExited {
			t.Fatal(err)
		}
	}
	found, err := v.(vendor.Searcher).Search(t.Context(), vendor.SearchRequest{Query: "tiny"})
	if err != nil || len(found) != 1 {
		t.Errorf("%+v, %v", found, err)
	}
}
