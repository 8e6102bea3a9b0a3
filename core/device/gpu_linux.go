package device

import (
	"bytes"
	"context"
	"encoding/csv"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// toolTimeout bounds a call of a vendor's tool.
const toolTimeout = 5 * time.Second

// nvidiaSMI returns where the driver's tool may be. PATH is not asked: what lies there may be anybody's.
func nvidiaSMI() []string {
	return []string{"/usr/bin/nvidia-smi", "/usr/local/bin/nvidia-smi", "/usr/local/nvidia/bin/nvidia-smi", "/opt/bin/nvidia-smi",
		"/run/current-system/sw/bin/nvidia-smi", "/usr/lib/wsl/lib/nvidia-smi"}
}

func nvidia(ctx context.Context) []contract.Device {
	for _, path := range nvidiaSMI() {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return querySMI(ctx, path)
		}
	}
	return nvidiaProc("/proc/driver/nvidia")
}

func querySMI(ctx context.Context, path string) []contract.Device {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "--query-gpu=index,name,memory.total,memory.free,driver_version", "--format=csv,noheader,nounits")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C", "HOME=/nonexistent"}
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &limitedWriter{w: &out, left: 1 << 20}
	if err := cmd.Run(); err != nil {
		return nil // a tool without a working driver fails: no device that could be used
	}
	return parseSMI(out.Bytes())
}

// limitedWriter drops what comes after left bytes.
type limitedWriter struct {
	w    *bytes.Buffer
	left int
}

func (l *limitedWriter) Write(p []byte) (int, error) {
	n := min(len(p), l.left)
	l.w.Write(p[:n])
	l.left -= n
	return len(p), nil
}

// parseSMI reads lines such as "0, NVIDIA H200, 143771, 143001, 570.86.15", memory in MiB. A GPU that shares the machine's memory
// says "[N/A]" for its own.
func parseSMI(b []byte) []contract.Device {
	r := csv.NewReader(bytes.NewReader(b))
	r.FieldsPerRecord, r.TrimLeadingSpace, r.LazyQuotes = -1, true, true
	records, _ := r.ReadAll()
	var out []contract.Device
	for _, f := range records {
		if len(f) != 5 {
			continue
		}
		index, err := strconv.Atoi(strings.TrimSpace(f[0]))
		if err != nil || index < 0 {
			continue
		}
		out = append(out, contract.Device{
			ID: fmt.Sprintf("cuda%d", index), Kind: "cuda", Name: strings.TrimSpace(f[1]),
			MemoryTotal: mib(f[2]), MemoryFree: mib(f[3]), Driver: strings.TrimSpace(f[4]), Source: sourceSystem,
		})
	}
	return out
}

func mib(s string) contract.Bytes {
	n, _ := strconv.ParseUint(strings.TrimSpace(s), 10, 40)
	return contract.Bytes(n) * contract.MiB
}

// nvidiaProc lists the GPUs that the kernel module shows; it does not know their memory.
func nvidiaProc(root string) []contract.Device {
	infos, err := filepath.Glob(filepath.Join(root, "gpus", "*", "information"))
	if err != nil {
		return nil
	}
	slices.Sort(infos)
	driver := ""
	if b, err := os.ReadFile(filepath.Join(root, "version")); err == nil {
		for _, w := range strings.Fields(string(b)) {
			if w[0] >= '0' && w[0] <= '9' && strings.Contains(w, ".") {
				driver = w
				break
			}
		}
	}
	var out []contract.Device
	for i, path := range infos {
		d := contract.Device{ID: fmt.Sprintf("cuda%d", i), Kind: "cuda", Name: "NVIDIA GPU", Driver: driver, Source: sourceSystem}
		if b, err := os.ReadFile(path); err == nil {
			for line := range strings.Lines(string(b)) {
				if v, ok := strings.CutPrefix(line, "Model:"); ok {
					d.Name = strings.TrimSpace(v)
				}
			}
		}
		out = append(out, d)
	}
	return out
}

// amd lists AMD GPUs from the files of their kernel driver. Small memory means a processor with graphics built in, which no
// engine build that we can install uses by itself; it is listed all the same.
func amd(root string) []contract.Device {
	cards, err := filepath.Glob(filepath.Join(root, "card*", "device", "mem_info_vram_total"))
	if err != nil {
		return nil
	}
	slices.SortFunc(cards, func(a, b string) int {
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	var out []contract.Device
	for _, file := range cards {
		dir := filepath.Dir(file)
		if vendor, _ := os.ReadFile(filepath.Join(dir, "vendor")); strings.TrimSpace(string(vendor)) != "0x1002" {
			continue
		}
		total, ok := readNumber(file)
		if !ok {
			continue
		}
		used, _ := readNumber(filepath.Join(dir, "mem_info_vram_used"))
		name := "AMD GPU"
		if b, err := os.ReadFile(filepath.Join(dir, "product_name")); err == nil && strings.TrimSpace(string(b)) != "" {
			name = strings.TrimSpace(string(b))
		}
		out = append(out, contract.Device{
			ID: fmt.Sprintf("rocm%d", len(out)), Kind: "rocm", Name: name, Driver: "amdgpu", Source: sourceSystem,
			MemoryTotal: contract.Bytes(total), MemoryFree: contract.Bytes(total - min(total, used)),
		})
	}
	return out
}
