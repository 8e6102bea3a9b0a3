package queen

import (
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/registry"
)

// TestReserveOfAHive: each hive keeps what its own configuration says, and this queen's counts only for one that does not say.
func TestReserveOfAHive(t *testing.T) {
	p := &picture{reserve: contract.GiB}
	none, much := contract.Bytes(0), 4*contract.GiB
	for _, c := range []struct {
		says *contract.Bytes
		want contract.Bytes
	}{{nil, contract.GiB}, {&none, 0}, {&much, 4 * contract.GiB}} {
		h := p.hive(&registry.Hive{Beat: contract.HiveBeat{ID: "h", MemoryFree: 6 * contract.GiB}, Inventory: &contract.Inventory{HiveID: "h", MemoryReserve: c.says,
			Devices: []contract.Device{{ID: "cpu0", Kind: "cpu", MemoryTotal: 8 * contract.GiB}}}})
		if len(h.Devices) != 1 || h.Devices[0].Reserve != c.want || h.Devices[0].MemoryFree != 6*contract.GiB {
			t.Errorf("%v: %+v", c.says, h.Devices)
		}
	}
}
