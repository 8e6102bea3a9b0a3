package device

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
)

func TestListDescribesThisMachine(t *testing.T) {
	list, err := List(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	cpu := list[0]
	if cpu.ID != "cpu0" || cpu.Kind != "cpu" || cpu.Name == "" || cpu.Cores < 1 || cpu.MemoryTotal == 0 || cpu.MemoryFree == 0 ||
		cpu.MemoryFree > cpu.MemoryTotal || cpu.Source != "system" {
		t.Errorf("the processor is %+v", cpu)
	}
	for _, d := range list[1:] {
		if d.Kind == "cpu" || d.ID == "" || d.Source != "system" {
			t.Errorf("an accelerator is %+v", d)
		}
	}
	if n := FreeCores(); n < 1 || n > cpu.Cores {
		t.Errorf("%d of %d cores are free", n, cpu.Cores)
	}
	if total, free, err := Memory(); err != nil || total != cpu.MemoryTotal || free == 0 {
		t.Errorf("memory %d, %d, %v", total, free, err)
	}
}

func TestDisk(t *testing.T) {
	if free, err := Disk(t.TempDir()); err != nil || free == 0 {
		t.Errorf("free %d, %v", free, err)
	}
	if _, err := Disk("/no/such/folder"); err == nil {
		t.Error("a missing folder has free space")
	}
}

func TestMerge(t *testing.T) {
	device := func(id, kind, name, driver, source string, total, free contract.Bytes) contract.Device {
		return contract.Device{ID: id, Kind: kind, Name: name, Driver: driver, Source: source, MemoryTotal: total, MemoryFree: free}
	}
	cpu := device("cpu0", "cpu", "CPU", "", "system", 100, 50)
	cuda := device("cuda0", "cuda", "GPU", "570", "system", 200, 150)
	for name, tc := range map[string]struct{ system, engine, want []contract.Device }{
		"no engine":               {[]contract.Device{cuda, cpu}, nil, []contract.Device{cpu, cuda}},
		"an engine without a GPU": {[]contract.Device{cpu, cuda}, []contract.Device{device("cpu0", "cpu", "other", "", "engine", 1, 1)}, []contract.Device{device("cpu0", "cpu", "CPU", "", "engine", 100, 50), cuda}},
		"the engine knows another GPU": {[]contract.Device{cpu, cuda}, []contract.Device{device("vulkan0", "vulkan", "V", "", "engine", 9, 8)},
			[]contract.Device{cpu, device("vulkan0", "vulkan", "V", "", "engine", 9, 8)}},
		"both know it": {[]contract.Device{cpu, cuda}, []contract.Device{device("cuda0", "cuda", "", "", "", 190, 10)},
			[]contract.Device{cpu, device("cuda0", "cuda", "GPU", "570", "engine", 190, 150)}},
		"two engines, in order": {[]contract.Device{cpu},
			[]contract.Device{device("vulkan0", "vulkan", "V", "", "", 1, 1), device("cuda10", "cuda", "C", "", "", 1, 1), device("cuda2", "cuda", "C", "", "", 1, 1), device("cuda2", "cuda", "again", "", "", 1, 1)},
			[]contract.Device{cpu, device("cuda2", "cuda", "C", "", "engine", 1, 1), device("cuda10", "cuda", "C", "", "engine", 1, 1), device("vulkan0", "vulkan", "V", "", "engine", 1, 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Merge(tc.system, tc.engine)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
