package hive

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/device"
)

// deviceEvery is how often the device list for beats and inventories is made anew. Asking a GPU's tool can take seconds, which a
// beat has not.
const deviceEvery = 30 * time.Second

// devices keeps the system's device list.
type devices struct {
	look func(context.Context) ([]contract.Device, error)
	turn chan struct{} // holds one token while nobody makes the list

	mu   sync.Mutex // mu guards the fields below
	list []contract.Device
	at   time.Time
}

// newest returns a list that is at most age old. One caller at a time makes it.
func (d *devices) newest(ctx context.Context, age time.Duration) ([]contract.Device, error) {
	select {
	case <-d.turn:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { d.turn <- struct{}{} }()
	if list, at := d.known(); list != nil && time.Since(at) < age {
		return list, nil
	}
	list, err := d.look(ctx)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list, d.at = list, time.Now()
	return slices.Clone(list), nil
}

// known returns the last list and when it was made; nil before the first.
func (d *devices) known() ([]contract.Device, time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.list), d.at
}

// merged joins what the system shows with what the installed engines list.
func merged(system []contract.Device, engines []contract.Engine) []contract.Device {
	var listed []contract.Device
	for _, e := range engines {
		listed = append(listed, e.Devices...)
	}
	return device.Merge(system, listed)
}

// inventory is all that the hive holds. Its digest leaves out what changes by itself.
func (h *Hive) inventory(ctx context.Context) (contract.Inventory, error) {
	inv := contract.Inventory{HiveID: h.opts.NodeID, Labels: h.opts.Labels, OS: runtime.GOOS, Arch: runtime.GOARCH, MemoryReserve: &h.opts.ReserveMemory, Protection: h.protection(),
		Models: []contract.Model{}, Engines: []contract.Engine{}}
	models, err := h.opts.Artifacts.Models()
	if err != nil {
		return inv, fmt.Errorf("list models: %w", err)
	}
	engines, err := h.opts.Artifacts.Engines()
	if err != nil {
		return inv, fmt.Errorf("list engines: %w", err)
	}
	inv.Models, inv.Engines = append(inv.Models, models...), append(inv.Engines, engines...)
	system, _ := h.devices.known()
	if system == nil {
		if system, err = h.devices.newest(ctx, deviceEvery); err != nil {
			return inv, err
		}
	}
	inv.Devices = merged(system, engines)
	inv.Digest, err = digest(inv)
	return inv, err
}

func digest(inv contract.Inventory) (string, error) {
	inv.Devices = slices.Clone(inv.Devices)
	for i := range inv.Devices {
		inv.Devices[i].MemoryFree = 0
	}
	b, err := json.Marshal(inv)
	if err != nil {
		return "", fmt.Errorf("encode the inventory: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}

// Beat is the hive's account of itself, of which no two are the same. The text fields are cut so that it never exceeds contract.MaxHiveBeat.
func (h *Hive) Beat(ctx context.Context) (contract.HiveBeat, error) {
	inv, err := h.inventory(ctx)
	if err != nil {
		return contract.HiveBeat{}, err
	}
	_, memory, err := device.Memory()
	if err != nil {
		return contract.HiveBeat{}, err
	}
	disk, err := device.Disk(h.opts.Home)
	if err != nil {
		return contract.HiveBeat{}, err
	}
	return contract.HiveBeat{
		ID: cut(h.opts.NodeID, 64), Name: cut(h.opts.Name, 64), Version: cut(h.opts.Version, 64), BootID: cut(h.boot, 64),
		Incarnation: h.incarnation, Sequence: h.sequence.Add(1), Address: cut(h.opts.Address, 128), InventoryDigest: inv.Digest,
		Devices: len(inv.Devices), Models: len(inv.Models), Engines: len(inv.Engines), MemoryFree: memory, DiskFree: disk,
	}, nil
}

// cut shortens s to at most n bytes without splitting a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}
