package device

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
)

// tree makes files below a new folder.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestParseMeminfo(t *testing.T) {
	total, free, err := parseMeminfo("MemTotal:       2048 kB\nMemFree:          12 kB\nMemAvailable:   1024 kB\n")
	if err != nil || total != 2*contract.MiB || free != contract.MiB {
		t.Errorf("%d, %d, %v", total, free, err)
	}
	for _, bad := range []string{"", "MemTotal: many kB\n", "MemAvailable: 1 kB\n"} {
		if _, _, err := parseMeminfo(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestControlGroups(t *testing.T) {
	v2 := tree(t, map[string]string{
		"cgroup.controllers": "cpu memory", "a/cgroup.controllers": "", "a/b/cgroup.controllers": "",
		"a/memory.max": "1000", "a/memory.current": "700", "a/memory.stat": "anon 5\ninactive_file 300\n", "a/b/memory.max": "max",
		"a/cpu.max": "250000 100000", "a/b/cpu.max": "max 100000",
	})
	v1 := tree(t, map[string]string{
		"memory/cgroup.procs": "", "memory/a/cgroup.procs": "", "memory/memory.limit_in_bytes": "9223372036854771712",
		"memory/a/memory.limit_in_bytes": "500", "memory/a/memory.usage_in_bytes": "600", "memory/a/memory.stat": "total_inactive_file 0\n",
		"cpu/cgroup.procs": "", "cpu/a/cgroup.procs": "", "cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000",
		"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000",
	})
	for name, tc := range map[string]struct {
		root, text  string
		limit, left contract.Bytes
		cores       int
	}{
		"version 2":              {v2, "0::/a/b\n", 1000, 600, 2},
		"version 2, host's path": {v2, "0::/docker/123\n", math.MaxUint64, math.MaxUint64, 0},
		"version 1":              {v1, "5:cpuacct,cpu:/a\n4:memory:/a\n0::/\n", 500, 0, 1},
		"none":                   {t.TempDir(), "0::/a\n", math.MaxUint64, math.MaxUint64, 0},
		"garbage":                {v2, "what\n", math.MaxUint64, math.MaxUint64, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if limit, left := cgroupMemory(tc.root, tc.text); limit != tc.limit || left != tc.left {
				t.Errorf("memory %d, %d; want %d, %d", limit, left, tc.limit, tc.left)
			}
			if cores := cgroupQuota(tc.root, tc.text); cores != tc.cores {
				t.Errorf("%d cores, want %d", cores, tc.cores)
			}
		})
	}
}

func TestParseIdle(t *testing.T) {
	const text = "cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 40 5 6 7 8 100 100\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n"
	idle, total := parseIdle(text, func(cpu int) bool { return cpu == 0 })
	if idle != 45 || total != 72 {
		t.Errorf("idle %d of %d, want 45 of 72", idle, total)
	}
}

func TestNVIDIA(t *testing.T) {
	root := tree(t, map[string]string{
		"good": "#!/bin/sh\necho '0, NVIDIA H200, 143771, 143001, 570.86.15'\necho '1, \"Odd, name\", [N/A], [N/A], 570.86.15'\necho garbage\necho \"-1, x, 1, 1, 1\"\n",
		"bad":  "#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n",
		"slow": "#!/bin/sh\nexec sleep 60\n",
		"env":  "#!/bin/sh\necho \"0, $SECRET_CANARY, 1, 1, 1\"\n",
	})
	t.Setenv("SECRET_CANARY", "leaked")
	want := []contract.Device{
		{ID: "cuda0", Kind: "cuda", Name: "NVIDIA H200", MemoryTotal: 143771 * contract.MiB, MemoryFree: 143001 * contract.MiB, Driver: "570.86.15", Source: "system"},
		{ID: "cuda1", Kind: "cuda", Name: "Odd, name", Driver: "570.86.15", Source: "system"},
	}
	if diff := cmp.Diff(want, querySMI(context.Background(), filepath.Join(root, "good"))); diff != "" {
		t.Error(diff)
	}
	if got := querySMI(context.Background(), filepath.Join(root, "bad")); len(got) != 0 {
		t.Errorf("a tool that fails listed %+v", got)
	}
	if got := querySMI(context.Background(), filepath.Join(root, "env")); len(got) != 1 || got[0].Name != "" {
		t.Errorf("the tool saw our environment: %+v", got)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if got := querySMI(ctx, filepath.Join(root, "slow")); len(got) != 0 {
		t.Errorf("a tool that hangs listed %+v", got)
	}
}

func TestNVIDIAWithoutItsTool(t *testing.T) {
	root := tree(t, map[string]string{
		"version":                       "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu Jan 1\n",
		"gpus/0000:01:00.0/information": "Model: \t\t NVIDIA L4\nIRQ: 5\n",
		"gpus/0000:02:00.0/information": "IRQ: 6\n",
	})
	want := []contract.Device{
		{ID: "cuda0", Kind: "cuda", Name: "NVIDIA L4", Driver: "570.86.15", Source: "system"},
		{ID: "cuda1", Kind: "cuda", Name: "NVIDIA GPU", Driver: "570.86.15", Source: "system"},
	}
	if diff := cmp.Diff(want, nvidiaProc(root)); diff != "" {
		t.Error(diff)
	}
	if got := nvidiaProc(t.TempDir()); len(got) != 0 {
		t.Errorf("no driver listed %+v", got)
	}
}

func TestAMD(t *testing.T) {
	root := tree(t, map[string]string{
		"card10/device/vendor": "0x1002\n", "card10/device/mem_info_vram_total": "1000\n", "card10/device/mem_info_vram_used": "2000\n",
		"card2/device/vendor": "0x1002\n", "card2/device/mem_info_vram_total": "5000\n", "card2/device/mem_info_vram_used": "1000\n", "card2/device/product_name": "Radeon X\n",
		"card3/device/vendor": "0x8086\n", "card3/device/mem_info_vram_total": "5000\n",
	})
	want := []contract.Device{
		{ID: "rocm0", Kind: "rocm", Name: "Radeon X", Driver: "amdgpu", MemoryTotal: 5000, MemoryFree: 4000, Source: "system"},
		{ID: "rocm1", Kind: "rocm", Name: "AMD GPU", Driver: "amdgpu", MemoryTotal: 1000, Source: "system"},
	}
	if diff := cmp.Diff(want, amd(root)); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseSMI(f *testing.F) {
	f.Add([]byte("0, NVIDIA H200, 143771, 143001, 570.86.15\n"))
	f.Add([]byte("\"\n,,,,"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, d := range parseSMI(b) {
			if d.Kind != "cuda" || d.ID == "" {
				t.Errorf("%+v", d)
			}
		}
	})
}
