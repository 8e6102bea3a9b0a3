package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

// executable returns an apiary: the one that APIARY_BIN names, else one that is built as `make build` does. The native worker is put in
// by an overlay, so that nothing is written to the sources.
func executable(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("APIARY_BIN"); bin != "" {
		abs, err := filepath.Abs(bin)
		if err != nil {
			t.Fatal(err)
		}
		return abs
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	native, bin, overlayFile := filepath.Join(dir, "native"), filepath.Join(dir, "apiary"), filepath.Join(dir, "overlay.json")
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "workers/llama/bundle/apiary-llama"): native}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"build", "-trimpath", "-ldflags=-s -w", "-o", native, "./workers/llama/cmd/apiary-llama"},
		{"build", "-trimpath", "-ldflags=-s -w", "-tags=embedllama", "-overlay=" + overlayFile, "-o", bin, "."},
	} {
		cmd := exec.Command("go", args...)
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v\n%s", args, err, out)
		}
	}
	return bin
}

// cacheDir is where tests keep what they fetch, shared with `make test-parts`.
func cacheDir(t *testing.T) string {
	t.Helper()
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Skipf("there is no cache folder for the clients: %v", err)
	}
	return filepath.Join(dir, "apiary-test")
}

// agent is a running agent with a data folder and an address of its own.
type agent struct {
	bin, home, addr string
}

// startAgent runs an agent until the end of the test. config is its config.hcl; prepare may put more into its data folder.
func startAgent(t *testing.T, bin, config string, prepare ...func(home string)) *agent {
	t.Helper()
	// Sockets and logs live below it; the test's own temporary folder is removed before workers have ended.
	home, err := os.MkdirTemp("", "apiary-clients-")
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{bin: bin, home: home, addr: freeAddress(t)}
	if err := os.WriteFile(filepath.Join(home, "config.hcl"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, f := range prepare {
		f(home)
	}
	var log bytes.Buffer
	cmd := a.command(context.Background(), "agent")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := a.command(ctx, "stop").CombinedOutput(); err != nil {
			t.Errorf("apiary stop: %v\n%s", err, out)
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Errorf("the agent did not end within 20 s of `apiary stop`")
			<-ended
		}
		if t.Failed() {
			t.Logf("the agent's log:\n%s", log.String())
		}
		if err := os.RemoveAll(home); err != nil {
			t.Error(err)
		}
	})
	a.wait(t, "the agent to be ready", func() bool {
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("the agent ended: %v\n%s", err, log.String())
		default:
		}
		res, err := http.Get("http://" + a.addr + "/readyz")
		if err != nil {
			return false
		}
		_ = res.Body.Close()
		return res.StatusCode == http.StatusOK
	})
	return a
}

func freeAddress(t *testing.T) string {
	t.Helper()
	addr, err := freeport.Address()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// command is an apiary command towards the agent.
func (a *agent) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, a.bin, args...)
	cmd.Env = []string{"APIARY_HOME=" + a.home, "APIARY_ADDR=" + a.addr, "HOME=" + a.home, "PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}
	return cmd
}

// run runs an apiary command that must succeed and returns its standard output.
func (a *agent) run(t *testing.T, args ...string) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := a.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("apiary %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// wait polls until done says so, for at most a minute.
func (a *agent) wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// spawnSlow starts an echo worker for model that sends 20 tokens a second, and returns its process.
func (a *agent) spawnSlow(t *testing.T, model string) int {
	t.Helper()
	key, err := os.ReadFile(filepath.Join(a.home, "secrets", "admin.key"))
	if err != nil {
		t.Fatal(err)
	}
	body := fmt.Sprintf(`{"operation":"WorkerSpawn","model":%q,"worker":{"name":"echo","adapter":"echo"},"args":["--tps","20","--tokens","1200"]}`, model)
	req, err := http.NewRequest(http.MethodPost, "http://"+a.addr+"/v1/jobs", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(key)))
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		t.Fatalf("spawn: %s %s", res.Status, answer)
	}
	pid := 0
	a.wait(t, "the worker of "+model, func() bool {
		var workers []struct {
			ModelID string `json:"model_id"`
			Status  string `json:"status"`
			PID     int    `json:"pid"`
		}
		if err := json.Unmarshal(a.run(t, "worker", "list", "--json"), &workers); err != nil {
			t.Fatal(err)
		}
		for _, w := range workers {
			if w.ModelID == model && w.Status == "Ready" {
				pid = w.PID
			}
		}
		return pid != 0
	})
	return pid
}

// kill ends a worker's process the hard way.
func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill the worker: %v", err)
	}
}
