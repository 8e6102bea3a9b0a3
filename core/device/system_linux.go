package device

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
)

// memory returns the machine's, or the control group's where that is less.
func memory() (total, free contract.Bytes, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	total, free, err = parseMeminfo(string(b))
	if err != nil {
		return 0, 0, err
	}
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return total, free, nil // no control groups: no limit
	}
	limit, left := cgroupMemory("/sys/fs/cgroup", string(self))
	return min(total, limit), min(free, left), nil
}

func parseMeminfo(s string) (total, free contract.Bytes, err error) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "MemTotal:" && f[0] != "MemAvailable:" {
			continue
		}
		kib, perr := strconv.ParseUint(f[1], 10, 64)
		if perr != nil {
			return 0, 0, fmt.Errorf("read /proc/meminfo: %w", perr)
		}
		if f[0] == "MemTotal:" {
			total = contract.Bytes(kib) * contract.KiB
		} else {
			free = contract.Bytes(kib) * contract.KiB
		}
	}
	if total == 0 {
		return 0, 0, errors.New("read /proc/meminfo: it names no total")
	}
	return total, free, nil
}

// cgroupPath finds the folder below root of the group that has controller, in the text of /proc/self/cgroup. Where the groups of
// the host are not visible, as in a container, the root of the mount is ours.
func cgroupPath(root, cgroups, controller string) (path string, v2 bool) {
	for line := range strings.Lines(cgroups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		base := ""
		switch {
		case strings.Contains(","+f[1]+",", ","+controller+","):
			base, v2 = filepath.Join(root, controller), false
		case f[0] == "0" && f[1] == "":
			base, v2 = root, true
		default:
			continue
		}
		marker := map[bool]string{true: "cgroup.controllers", false: "cgroup.procs"}[v2]
		for _, dir := range []string{filepath.Join(base, f[2]), base} {
			if _, err := os.Stat(filepath.Join(dir, marker)); err == nil {
				return dir, v2
			}
		}
	}
	return "", false
}

// cgroupMemory returns the least limit of the group and its parents, and what is left below it. Pages of files count as
// left: the kernel drops them when memory is wanted.
func cgroupMemory(root, cgroups string) (limit, left contract.Bytes) {
	limit, left = math.MaxUint64, math.MaxUint64
	dir, v2 := cgroupPath(root, cgroups, "memory")
	if dir == "" {
		return limit, left
	}
	names := [3]string{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"}
	if v2 {
		names = [3]string{"memory.max", "memory.current", "inactive_file"}
	}
	for ; strings.HasPrefix(dir, root) && dir != filepath.Dir(root); dir = filepath.Dir(dir) {
		l, ok := readNumber(filepath.Join(dir, names[0]))
		if !ok {
			continue // "max", or the root
		}
		used, _ := readNumber(filepath.Join(dir, names[1]))
		used -= min(used, statLine(filepath.Join(dir, "memory.stat"), names[2]))
		limit = min(limit, contract.Bytes(l))
		left = min(left, contract.Bytes(l-min(l, used)))
	}
	return limit, left
}

func readNumber(path string) (uint64, bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}

func statLine(path, name string) uint64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}

// cpuQuota returns the whole cores that the control group grants, 0 for no limit.
func cpuQuota() int {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0
	}
	return cgroupQuota("/sys/fs/cgroup", string(b))
}

func cgroupQuota(root, cgroups string) int {
	dir, v2 := cgroupPath(root, cgroups, "cpu")
	if dir == "" {
		return 0
	}
	least := 0.0
	for ; strings.HasPrefix(dir, root) && dir != filepath.Dir(root); dir = filepath.Dir(dir) {
		quota, period := 0.0, 0.0
		if v2 {
			b, _ := os.ReadFile(filepath.Join(dir, "cpu.max"))
			if f := strings.Fields(string(b)); len(f) == 2 {
				quota, _ = strconv.ParseFloat(f[0], 64) // "max" is no number: no limit
				period, _ = strconv.ParseFloat(f[1], 64)
			}
		} else {
			q, _ := readNumber(filepath.Join(dir, "cpu.cfs_quota_us")) // -1 is no number: no limit
			p, _ := readNumber(filepath.Join(dir, "cpu.cfs_period_us"))
			quota, period = float64(q), float64(p)
		}
		if quota > 0 && period > 0 && (least == 0 || quota/period < least) {
			least = quota / period
		}
	}
	if least == 0 {
		return 0
	}
	return max(1, int(least))
}

// idleCores returns how many of the cores that this process may use had nothing to do during d.
func idleCores(d time.Duration) (int, bool) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return 0, false
	}
	read := func() (idle, total uint64) {
		b, err := os.ReadFile("/proc/stat")
		if err != nil {
			return 0, 0
		}
		return parseIdle(string(b), allowed.IsSet)
	}
	idle0, total0 := read()
	<-time.After(d)
	idle1, total1 := read()
	if total1 <= total0 || idle1 < idle0 {
		return 0, false
	}
	share := float64(idle1-idle0) / float64(total1-total0)
	return int(math.Round(share * float64(allowed.Count()))), true
}

// parseIdle adds up the ticks of the allowed cores in the text of /proc/stat.
func parseIdle(s string, allowed func(cpu int) bool) (idle, total uint64) {
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 6 || !strings.HasPrefix(f[0], "cpu") {
			continue
		}
		cpu, err := strconv.Atoi(f[0][3:])
		if err != nil || !allowed(cpu) { // the first line, "cpu", is the sum of all
			continue
		}
		for i, v := range f[1:min(len(f), 9)] { // guest time is part of user time
			n, _ := strconv.ParseUint(v, 10, 64)
			total += n
			if i == 3 || i == 4 { // idle, and waiting for I/O
				idle += n
			}
		}
	}
	return idle, total
}

func cpuName() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				return strings.Join(strings.Fields(v), " ")
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		return "CPU " + unix.ByteSliceToString(u.Machine[:])
	}
	return "CPU"
}

func accelerators(ctx context.Context) []contract.Device {
	return append(nvidia(ctx), amd("/sys/class/drm")...)
}
