package hive

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// store is a catalog in memory, with the errors of the real one.
type store struct {
	mu      sync.Mutex // mu guards the fields below
	models  map[string]contract.Model
	engines map[string]contract.Engine
	pulls   int
	blobs   string // folder of files by their digests
}

func missing(code, ref string) error {
	return fault.New(fault.NotFound, code, "%s is not in the catalog; fetch it first.", ref)
}

func (s *store) PullModel(ctx context.Context, ref string, report func(string, string, *contract.Progress), peers ...contract.Peer) (contract.Model, error) {
	if !strings.HasPrefix(ref, "file:") {
		return contract.Model{}, missing("model_not_found", ref)
	}
	report("fetch", "fetching "+ref, &contract.Progress{Done: 1, Total: 2, Unit: "bytes"})
	if err := ctx.Err(); err != nil {
		return contract.Model{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pulls++
	size := contract.Bytes(1000)
	if strings.Contains(ref, "huge") {
		size = 1 << 50
	}
	m := contract.Model{ID: ref, References: []string{ref}, Vendor: "local", Format: "gguf", SizeBytes: size, AddedAt: time.Now(),
		Files: []contract.File{{Path: "m.gguf", SizeBytes: size, SHA256: "00", InPlace: &contract.InPlace{Path: "/models/m.gguf", ModTime: time.Now()}}}}
	s.models[ref] = m
	return m, nil
}

func (s *store) SearchModels(_ context.Context, r contract.ModelSearch) (contract.ModelsFound, error) {
	return contract.ModelsFound{
		Models: []contract.ModelFound{{Vendor: "local", Reference: "file:/" + r.Query, Description: "found", SizeBytes: 1}},
		Failed: []contract.VendorFailed{{Vendor: "other", Error: fault.Wire(missing("none", r.Query), "")}},
	}, nil
}

func (s *store) Models() ([]contract.Model, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.models)), nil
}

func (s *store) Model(ref string) (contract.Model, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, ok := s.models[ref]; ok {
		return m, nil
	}
	return contract.Model{}, missing("model_not_found", ref)
}

func (s *store) RemoveModel(ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.models, ref)
	return nil
}

func (s *store) ModelPath(_ context.Context, m contract.Model) (string, error) {
	return m.Files[0].InPlace.Path, nil
}

func (s *store) InstallEngine(_ context.Context, ref string, devices []contract.Device, report func(string, string, *contract.Progress)) (contract.Engine, error) {
	if len(devices) == 0 || devices[0].ID != "cpu0" {
		return contract.Engine{}, fault.New(fault.Invalid, "no_devices", "No devices were given: %v.", devices)
	}
	report("verify", "verifying "+ref, nil)
	e := contract.Engine{ID: ref, References: []string{ref}, Name: "llama.cpp", Version: "1", Platform: "linux-x64", Dir: "llama.cpp/1", SHA256: "00",
		Devices: []contract.Device{{ID: "cpu0", Kind: "cpu", Name: "CPU", Source: "engine"}, {ID: "vulkan0", Kind: "vulkan", Name: "GPU", Source: "engine"}}, AddedAt: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.engines[ref] = e
	return e, nil
}

func (s *store) Engines() ([]contract.Engine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.engines)), nil
}

func (s *store) IsServer(_ context.Context, ref string) bool {
	return strings.HasPrefix(ref, "server:")
}

func (s *store) Engine(ref string) (contract.Engine, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e, ok := s.engines[ref]; ok {
		return e, nil
	}
	return contract.Engine{}, missing("engine_not_found", ref)
}

func (s *store) RemoveEngine(ref string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.engines, ref)
	return nil
}

func (s *store) EngineDir(e contract.Engine) string {
	if filepath.IsAbs(e.Dir) {
		return e.Dir
	}
	return "/engines/llama.cpp/1"
}
