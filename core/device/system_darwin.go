package device

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
)

// memory returns the machine's. What is free is estimated as the free and the speculative pages.
func memory() (total, free contract.Bytes, err error) {
	size, err := unix.SysctlUint64("hw.memsize")
	if err != nil {
		return 0, 0, err
	}
	page, err := unix.SysctlUint32("hw.pagesize")
	if err != nil {
		return contract.Bytes(size), 0, nil
	}
	pages, _ := unix.SysctlUint32("vm.page_free_count")
	more, _ := unix.SysctlUint32("vm.page_speculative_count")
	return contract.Bytes(size), contract.Bytes(page) * contract.Bytes(uint64(pages)+uint64(more)), nil
}

func cpuName() string {
	name, err := unix.Sysctl("machdep.cpu.brand_string")
	if err != nil {
		return "CPU"
	}
	return name
}

// accelerators returns the GPU of an Apple chip, which shares the machine's memory. An Intel Mac has none that counts.
func accelerators(context.Context) []contract.Device {
	if arm, err := unix.SysctlUint32("hw.optional.arm64"); err != nil || arm == 0 {
		return nil
	}
	total, free, err := memory()
	if err != nil {
		return nil
	}
	return []contract.Device{{ID: "metal0", Kind: "metal", Name: cpuName() + " GPU", MemoryTotal: total, MemoryFree: free, Source: sourceSystem}}
}

func cpuQuota() int { return 0 }

func idleCores(time.Duration) (int, bool) { return 0, false }
