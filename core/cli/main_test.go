package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/process"
)

// built is the folder with the executables that the end-to-end tests run: without cgo and with the native worker inside, as
// `make build` makes them.
var built string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "apiary-e2e-")
		if err == nil {
			defer func() { _ = os.RemoveAll(dir) }()
			err = buildAll(dir)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "build the executables for the end-to-end tests:", err)
			return 1
		}
		built = dir
		return m.Run()
	}())
}

// buildAll builds as the Makefile does. The native worker is put in by an overlay, so that nothing is written to the sources.
func buildAll(dir string) error {
	root, err := filepath.Abs("../..")
	if err != nil {
		return err
	}
	native := filepath.Join(dir, "native")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "workers/llama/bundle/apiary-llama"): native}})
	if err != nil {
		return err
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags=-s -w", "-o", native, "./workers/llama/cmd/apiary-llama"},
		{"build", "-trimpath", "-ldflags=-s -w -X main.version=v0.0.0-test", "-tags=embedllama", "-overlay=" + overlayFile, "-o", filepath.Join(dir, "apiary"), "."},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %v: %w\n%s", args, err, out)
		}
	}
	return nil
}

// engineDir is a real engine, fetched by `make test-parts`; "" when there is none.
func engineDir() string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	dir := filepath.Join(cache, "apiary-test", "engine")
	if _, err := os.Stat(filepath.Join(dir, "libllama.so")); err != nil {
		return ""
	}
	return dir
}

// leftovers says what still runs for a data folder: an agent, or workers of its hive.
func leftovers(home string) error {
	locked, err := agent.Locked(home)
	if err != nil {
		return err
	}
	if locked {
		return fmt.Errorf("an agent of %s is left", home)
	}
	return leftoverWorkers(home)
}

// leftoverWorkers says which workers of a data folder's hive still run.
func leftoverWorkers(home string) error {
	id, err := agent.NodeID(home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no agent ever started there
	}
	if err != nil {
		return err
	}
	entries, err := process.Scan(id)
	for deadline := time.Now().Add(2 * time.Second); err == nil && len(entries) > 0 && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond) // one that was just killed may not be collected yet
		entries, err = process.Scan(id)
	}
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%d workers of %s are left: %+v", len(entries), home, entries)
	}
	return err
}

// stopHome ends what runs for a data folder and reports what it could not end.
func stopHome(home string) error {
	cmd := exec.Command(filepath.Join(built, "apiary"), "stop")
	cmd.Env = []string{"APIARY_HOME=" + home, "HOME=" + home, "PATH=/usr/bin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apiary stop: %w\n%s", err, out)
	}
	return leftovers(home)
}
