// Package device says what the machine has: processors, memory, GPUs, disk. It looks at the system itself and never loads a
// driver's library; what an engine lists is more trustworthy for accelerators and is merged in by Merge.
package device

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Sources of a device.
const (
	sourceSystem = "system"
	sourceEngine = "engine"
)

// List returns cpu0 and the GPUs that the system shows. It may take some seconds where a vendor's tool is slow; a GPU that
// cannot be asked is left out. The error is about the processor's data only.
func List(ctx context.Context) ([]contract.Device, error) {
	total, free, err := memory()
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	out := []contract.Device{{
		ID: "cpu0", Kind: "cpu", Name: cpuName(), MemoryTotal: total, MemoryFree: free, Cores: usableCores(), Source: sourceSystem,
	}}
	return append(out, accelerators(ctx)...), nil
}

// Merge joins the list of the system with the lists of the installed engines. An engine is the authority on accelerators: once
// one lists any, those that no engine lists are gone, because nothing could run there. Before that the system's are
// shown. The processor is described by the system; once an engine lists one it is the engine's. Free memory of a device that both list is the system's, which is newer.
func Merge(system, engine []contract.Device) []contract.Device {
	bySystem := map[string]contract.Device{}
	for _, d := range system {
		bySystem[d.ID] = d
	}
	out := []contract.Device{}
	seen := map[string]bool{}
	processor := false
	for _, d := range engine {
		if d.Kind == "cpu" || seen[d.ID] {
			processor = processor || d.Kind == "cpu"
			continue
		}
		seen[d.ID] = true
		d.Source = sourceEngine
		if s, ok := bySystem[d.ID]; ok {
			d.MemoryFree = s.MemoryFree
			d.Driver = cmp.Or(d.Driver, s.Driver)
			d.Name = cmp.Or(d.Name, s.Name)
			if d.MemoryTotal == 0 {
				d.MemoryTotal = s.MemoryTotal
			}
		}
		out = append(out, d)
	}
	for _, d := range system {
		if d.Kind == "cpu" || len(seen) == 0 {
			if d.Kind == "cpu" && processor {
				d.Source = sourceEngine
			}
			out = append(out, d)
		}
	}
	slices.SortStableFunc(out, func(a, b contract.Device) int {
		if c := order(a.Kind) - order(b.Kind); c != 0 {
			return c
		}
		if c := len(a.ID) - len(b.ID); c != 0 { // cuda2 before cuda10
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

func order(kind string) int {
	return slices.Index([]string{"cpu", "cuda", "rocm", "vulkan", "metal"}, kind)
}

// Disk returns the bytes that an unprivileged process may still write on the file system of path.
func Disk(path string) (contract.Bytes, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("ask for the free space of %s: %w", path, err)
	}
	return contract.Bytes(st.Bavail) * contract.Bytes(st.Bsize), nil
}

// FreeCores estimates how many cores a new worker can use: those that this process may use and that were idle during the
// last tenth of a second, at least 1. It takes that tenth.
func FreeCores() int {
	usable := usableCores()
	idle, ok := idleCores(100 * time.Millisecond)
	if !ok {
		return usable
	}
	return min(usable, max(1, idle))
}

// usableCores is what the scheduler lets this process use: affinity and the control group's quota.
func usableCores() int {
	cores := runtime.NumCPU() // respects affinity
	if quota := cpuQuota(); quota > 0 {
		cores = min(cores, quota)
	}
	return max(1, cores)
}

// Memory returns the memory of the machine, or of the control group where that is less, and what of it is available to a new
// process. It is cheap.
func Memory() (total, free contract.Bytes, err error) { return memory() }

// CheckThreads refuses more threads than the processor in have, which is what the machine of that name has, has cores: they would
// only wait for each other. The error is a fault.Invalid that names the number of cores.
func CheckThreads(machine string, have []contract.Device, threads int) error {
	i := slices.IndexFunc(have, func(d contract.Device) bool { return d.Kind == "cpu" && d.Cores > 0 })
	if i < 0 || threads <= have[i].Cores {
		return nil
	}
	cores := fmt.Sprintf("%d cores", have[i].Cores)
	if have[i].Cores == 1 {
		cores = "1 core"
	}
	return fault.New(fault.Invalid, "too_many_threads", "The machine %s has %s, and a worker there can have at most that many threads; %d were asked for. Leave the threads out for the cores that are free.",
		machine, cores, threads).WithParam("threads")
}

// Runs returns the devices on which an engine with this list runs models: its own and the processor. An engine without a list
// has said nothing, so all of the system count.
func Runs(system, engine []contract.Device) []contract.Device {
	if len(engine) == 0 {
		return system
	}
	return slices.DeleteFunc(Merge(system, engine), func(d contract.Device) bool { return d.Kind != "cpu" && d.Source != sourceEngine })
}

// Check refuses devices that are not in have, which is what the machine of that name has. With open, a driver that only an
// engine can find may still come, but no processor and no CUDA device. The error is a fault.NotFound that names those there are.
func Check(machine string, have []contract.Device, want []string, open bool) error {
	for _, id := range want {
		known := slices.ContainsFunc(have, func(d contract.Device) bool { return d.ID == id })
		if known || open && !strings.HasPrefix(id, "cpu") && !strings.HasPrefix(id, "cuda") {
			continue
		}
		names := make([]string, 0, len(have))
		for _, d := range have {
			names = append(names, d.ID)
		}
		last := max(0, len(names)-1)
		list := strings.Join(append([]string{strings.Join(names[:last], ", ")}, names[last:]...), " and ")
		return fault.New(fault.NotFound, "device_not_found", "There is no device %.64q on %s: it has %s; `apiary device list` shows them.",
			id, machine, strings.TrimPrefix(list, " and ")).WithParam("devices")
	}
	return nil
}
