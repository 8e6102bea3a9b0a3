package process

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/toolchain"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// python builds the example in Python with the virtual environment that `make test-parts` makes.
func python(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	venv := filepath.Join(cache, "apiary-test", "python")
	if _, err := os.Stat(filepath.Join(venv, "ready")); err != nil {
		t.Skip("there is no Python with grpcio in the cache folder: run make test-parts")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("../../examples/plugin-python")); err != nil {
		t.Fatal(err)
	}
	_ = os.RemoveAll(filepath.Join(dir, ".venv"))
	if err := os.Symlink(venv, filepath.Join(dir, ".venv")); err != nil {
		t.Fatal(err)
	}
	s, err := toolchain.Detect(dir)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "shelf-python")
	if err := s.Program(t.Context(), program, os.Stderr); err != nil {
		t.Fatal(err)
	}
	return program
}

// pages is a host with two pages.
type pages struct{ vendor.Host }

func (pages) HTTP(_ context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	switch req.URL {
	case "https://models.example.org/index.json":
		return &vendor.HTTPResponse{Status: 200, Body: []byte(`{"models": [{"name": "tiny", "format": "gguf", "files": [
			{"path": "tiny.gguf", "size": 5000000000, "sha256": "aa", "url": "https://models.example.org/tiny.gguf"}, {"path": "b", "url": "https://b"}]}]}`)}, nil
	case "https://models.example.org/page":
		return &vendor.HTTPResponse{Status: 200, Body: []byte("<html>")}, nil
	}
	return nil, &vendor.Error{Kind: vendor.KindDenied, Code: "not_granted", Message: "No.", Candidates: []string{"a", "b"}, RetryAfterMS: 7}
}

// TestPython: a script that speaks the handshake by itself is a plugin like any other, with its own certificate and without one. What
// runs is the copy that was verified.
func TestPython(t *testing.T) {
	program := python(t)
	for _, tls := range []string{TLSNone, ""} {
		t.Run("tls "+tls, func(t *testing.T) {
			if _, err := exec.LookPath("/usr/bin/openssl"); tls == "" && err != nil {
				t.Skip("there is no openssl, with which the plugin makes its certificate")
			}
			spec := Spec{
				Name: "shelf-python", Path: program, Store: filepath.Join(t.TempDir(), "store"), TLS: tls, Host: sdk.HostDispatch(pages{}),
				Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), StartTimeout: 20 * time.Second,
			}
			p, err := Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := p.Close(); err != nil {
					t.Error(err)
				}
			}()
			testPython(t, p)
			if !p.child.waitExit(0) {
				begin := time.Now()
				if err := p.Close(); err != nil || time.Since(begin) >= graceTime {
					t.Errorf("it did not end when it was asked: %v after %v", err, time.Since(begin))
				}
			}
		})
	}
}

func testPython(t *testing.T, p *Process) {
	info, err := sdk.Call[vendor.Info](t.Context(), p, vendor.MethodGetInfo, nil)
	if err != nil || info.Name != "shelf-python" || len(info.Schemes) != 1 || info.Requests.HTTP[0] != "models.example.org" {
		t.Fatalf("GetInfo: %+v, %v", info, err)
	}
	schema, err := sdk.Call[vendor.Schema](t.Context(), p, vendor.MethodGetSchema, nil)
	if err != nil || len(schema.Attributes) != 1 || !schema.Attributes[0].Required {
		t.Errorf("GetSchema: %+v, %v", schema, err)
	}
	configure := func(index string) error {
		values, err := json.Marshal(map[string]string{"index": index})
		if err != nil {
			t.Fatal(err)
		}
		_, err = sdk.Call[struct{}](t.Context(), p, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: string(values)})
		return err
	}
	resolve := func(ref string) (*vendor.Manifest, error) {
		return sdk.Call[vendor.Manifest](t.Context(), p, vendor.MethodResolve, vendor.ResolveRequest{Reference: ref})
	}
	if e, ok := errors.AsType[*vendor.Error](configure("")); !ok || e.Code != "no_index" || e.Kind != vendor.KindInvalid || e.Param != "index" {
		t.Errorf("no setting: %+v", e)
	}
	for index, want := range map[string]string{"https://models.example.org/page": "no_index", "https://elsewhere.example.org/": "not_granted"} {
		if err := configure(index); err != nil {
			t.Fatal(err)
		}
		_, err := resolve("shelf:tiny")
		e, ok := errors.AsType[*vendor.Error](err)
		if !ok || e.Code != want || want == "not_granted" && (len(e.Candidates) != 2 || e.RetryAfterMS != 7) {
			t.Errorf("%s: %+v, %v", index, e, err)
		}
	}
	if err := configure("https://models.example.org/index.json"); err != nil {
		t.Fatal(err)
	}
	m, err := resolve("shelf:tiny")
	if err != nil || m.Format != "gguf" || len(m.Files) != 2 || m.Files[0].Size != 5_000_000_000 || m.Files[1].Size != -1 || !m.Files[0].Sources[0].Ranges {
		t.Fatalf("Resolve: %+v, %v", m, err)
	}
	if e, ok := errors.AsType[*vendor.Error](func() error { _, err := resolve("shelf:none"); return err }()); !ok || e.Code != "model_not_found" {
		t.Errorf("no model: %+v", e)
	}
	if _, err := sdk.Call[vendor.SearchResponse](t.Context(), p, vendor.MethodSearch, nil); func() bool {
		e, ok := errors.AsType[*vendor.Error](err)
		return !ok || e.Code != vendor.CodeUnimplemented
	}() {
		t.Errorf("a method that it does not have: %v", err)
	}
}
