package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/toolchain"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/huggingface"
)

// files is how many the repository has.
const files = 40

// newServer describes the repository twice: as an index, for the examples, and as a hub does, for the vendor of one.
func newServer() *httptest.Server {
	digest := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:])
	}
	commit := digest("commit")[:40]
	var index, tree []map[string]any
	for i := range files {
		name := fmt.Sprintf("forty-%05d-of-%05d.gguf", i+1, files)
		index = append(index, map[string]any{"path": name, "size": 4<<30 + i, "sha256": digest(name), "url": "https://models.example.org/forty/" + name})
		tree = append(tree, map[string]any{"type": "file", "path": "forty-Q4_K_M" + name[5:], "size": 4<<30 + i, "oid": digest(name)[:40], "lfs": map[string]any{"oid": digest(name), "size": 4<<30 + i}})
	}
	answers := map[string]any{
		"/index.json":                          map[string]any{"models": []any{map[string]any{"name": "other"}, map[string]any{"name": "forty", "format": "gguf", "files": index}}},
		"/api/models/org/forty/revision/main":  map[string]any{"id": "org/forty", "sha": commit, "gated": false},
		"/api/models/org/forty/tree/" + commit: tree,
	}
	bodies := map[string][]byte{}
	for path, answer := range answers {
		body, err := json.Marshal(answer)
		if err != nil {
			panic(err) // they are constants
		}
		bodies[path] = body
	}
	return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, ok := bodies[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(body)
	}))
}

// targets builds what is measured. A language whose compiler is missing uses the module that the repository has, or says that it is left out.
func targets(ctx context.Context, apiary, dir string, server *httptest.Server) ([]*target, error) {
	at := strings.TrimPrefix(server.URL, "http://")
	grants := host.Grants{HTTP: []string{at}, Private: []string{at}, Credentials: []string{huggingface.Credential}}
	newHost := func() vendor.Host {
		return host.NewServices(host.ServicesOptions{Name: "bench", Grants: grants, Store: host.OpenStore(""), Log: quiet(),
			Credentials: func(string, string) (secret.Secret, error) { return "", nil }})
	}
	hub := func(t *target) *target {
		if t == nil {
			return nil // it could not be built
		}
		t.settings, t.reference, t.host = `{"endpoint":"`+server.URL+`"}`, "hf:org/forty", newHost
		return t
	}
	example := func(t *target, setting, scheme string) *target {
		if t == nil {
			return nil // it could not be built
		}
		t.settings, t.reference, t.host = `{"`+setting+`":"`+server.URL+`/index.json"}`, scheme+":forty", newHost
		return t
	}
	program := func(name, folder string) (*target, error) {
		path := filepath.Join(dir, name)
		sources, err := toolchain.Detect(folder)
		if err != nil {
			return nil, err
		}
		if err := sources.Program(ctx, path, os.Stderr); err != nil {
			return nil, err
		}
		store := filepath.Join(dir, name+"-store")
		return &target{name: name, forget: store, spec: process.Spec{Name: name, Path: path, Store: store, Log: quiet()}}, nil
	}
	module := func(name, folder, prebuilt string) (*target, error) {
		path := filepath.Join(dir, name+".wasm")
		sources, err := toolchain.Detect(folder)
		if err != nil {
			return nil, err
		}
		if sources.Missing() == nil {
			err = sources.Module(ctx, path, os.Stderr)
		} else {
			path = prebuilt
		}
		if err != nil {
			return nil, err
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(raw)
		if path, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		memory := contract.Bytes(16 << 20)
		if sources.Language == toolchain.Go {
			memory = config.DefaultPluginMemory
		}
		cache := filepath.Join(dir, name+"-cache")
		return &target{name: name, forget: cache, spec: process.Spec{Name: name, Path: apiary, Store: filepath.Join(dir, "store"), Log: quiet(), StartTimeout: host.CompileTime,
			Args: host.ModuleArgs(path, hex.EncodeToString(sum[:]), cache, memory)}}, nil
	}
	all := []*target{hub(&target{name: "builtin", built: func(vendor.Host) any { return huggingface.New() }})}
	for _, make := range []func() (*target, error){
		func() (*target, error) {
			t, err := program("process-hub", "vendors/huggingface/plugin")
			return hub(t), err
		},
		func() (*target, error) {
			t, err := module("wasm-hub", "vendors/huggingface/plugin", "")
			return hub(t), err
		},
		func() (*target, error) {
			t, err := program("process", "examples/plugin-go")
			return example(t, "url", "index"), err
		},
		func() (*target, error) {
			t, err := module("wasm-go", "examples/plugin-go", "")
			return example(t, "url", "index"), err
		},
		func() (*target, error) {
			t, err := module("wasm-rust", "examples/plugin-rust", "plugins/wasm/testdata/shelf-rust.wasm")
			return example(t, "index", "shelf"), err
		},
	} {
		t, err := make()
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}
