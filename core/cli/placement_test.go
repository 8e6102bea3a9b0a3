package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/device"
)

const scalingNode = `
agent { name = "tower" }
queen {
  listen = "ADDR"
  placement {
    idle_ttl   = "2s"
    scale_up   = "1s"
    settle     = "1s"
    scale_down = "2s"
  }
}
hive { listen = "127.0.0.1:0" }
worker "echo" { adapter = "echo" }
model "once" { source = "echo:once" }
deployment "chat" {
  model = "echo:chat"
  slots = 1
  args  = ["--tps", "20", "--tokens", "20"]
  replicas {
    min = 1
    max = 2
  }
}
`

func chatBody(model string) string {
	return fmt.Sprintf(`{"model":%q,"stream":true,"messages":[{"role":"user","content":"one two three"}]}`, model)
}

// of lists the workers that run of a model.
func (n *node) of(model string) (out []contract.WorkerView) {
	for _, w := range n.alive() {
		if w.ModelID == model && w.Condition == "" {
			out = append(out, w)
		}
	}
	return out
}

// TestScalesAndUnloads: with more requests than slots there is another replica, which goes again when they are over; a worker that a request
// started goes when nobody asks any more; and each time explain says of the device whether another worker could run there.
func TestScalesAndUnloads(t *testing.T) {
	t.Parallel()
	n := newNode(t, scalingNode)
	n.start()
	explained := func() {
		t.Helper()
		var e contract.Explanation
		if n.run(&e, "explain", "chat"); len(e.Places) != 1 || !e.Places[0].OK || !strings.Contains(e.Places[0].Reason, " needed, ") {
			t.Errorf("explained as %+v", e)
		}
	}
	n.until(30*time.Second, "one replica serves", func() bool { return len(n.of("echo:chat")) == 1 })
	explained()
	first := n.of("echo:chat")[0].ID

	ctx, cancel := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for range 6 {
		clients.Go(func() {
			for ctx.Err() == nil {
				_ = n.stream(ctx, chatBody("echo:chat"), func(string) bool { return true })
			}
		})
	}
	defer func() { cancel(); clients.Wait() }()
	n.until(30*time.Second, "two replicas serve", func() bool { return len(n.of("echo:chat")) == 2 })
	for _, w := range n.of("echo:chat") {
		if w.ID != first && !strings.Contains(w.Reason, "requests have queued for") {
			t.Errorf("the second replica is there because %q", w.Reason)
		}
	}
	explained()
	cancel()
	clients.Wait()
	n.until(60*time.Second, "one replica is enough", func() bool { return len(n.of("echo:chat")) == 1 })
	explained()

	if err := n.stream(t.Context(), chatBody("once"), func(string) bool { return true }); err != nil {
		t.Fatal(err)
	}
	n.until(10*time.Second, "a request started a worker", func() bool { return len(n.of("echo:once")) == 1 })
	n.until(60*time.Second, "it is ended when nobody uses it", func() bool { return len(n.of("echo:once")) == 0 })
	if len(n.of("echo:chat")) != 1 {
		t.Error("the deployment has not what it must have any more")
	}
}

const hangingNode = `
agent { name = "tower" }
queen {
  listen = "ADDR"
  watchdog {
    stall  = "2s"
    answer = "1s"
  }
}
hive { listen = "127.0.0.1:0" }
worker "echo" {
  adapter = "echo"
  args    = ["--hang-before-first"]
}
deployment "chat" {
  model = "echo:chat"
  slots = 1
}
`

// TestHungWorkerIsReplaced: a worker that takes requests and gives no token is killed and started again.
func TestHungWorkerIsReplaced(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("processes are looked for in /proc")
	}
	t.Parallel()
	n := newNode(t, hangingNode)
	n.start()
	n.until(30*time.Second, "it serves", func() bool { return len(n.of("echo:chat")) == 1 })
	first := n.of("echo:chat")[0]
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = n.stream(ctx, chatBody("echo:chat"), func(string) bool { return true })
	}()
	n.until(60*time.Second, "another one serves", func() bool {
		w := n.of("echo:chat")
		return len(w) == 1 && w[0].ID != first.ID
	})
	cancel()
	<-done
	n.until(30*time.Second, "its process is gone", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/%d", first.PID))
		return err != nil
	})
}

// TestEvictionByPriority: where two models do not fit, the one with the higher priority runs, with real workers; and the other one when there
// is room again. The models are small ones in files as large as it takes.
func TestEvictionByPriority(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("its models are gigabytes to read")
	}
	engine := engineDir()
	if engine == "" {
		t.Skip("there is no engine; `make test-parts` fetches one")
	}
	total, free, err := device.Memory()
	if err != nil {
		t.Fatal(err)
	}
	// Room for one and a half of them, beside what other programs take and may yet take.
	size := 2*(total-free) + contract.GiB
	if 2*size > free {
		t.Skipf("of %s of memory %s are free, which is too little for this test", total, free)
	}
	reserve := total - size*8/5
	model, err := os.ReadFile("../../vendors/builtin/models/stories260k.gguf")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"low", "high"} {
		f := filepath.Join(dir, name+".gguf")
		if err := errors.Join(os.WriteFile(f, model, 0o600), os.Truncate(f, int64(size))); err != nil {
			t.Fatal(err)
		}
	}
	one := func(name string, priority int) string {
		return fmt.Sprintf("deployment %q {\n  model    = %q\n  context  = 128\n  slots    = 1\n  priority = %d\n}\n", name, name, priority)
	}
	base := fmt.Sprintf(`
agent { name = "tower" }
queen { listen = "ADDR" }
hive {
  listen = "127.0.0.1:0"
  reserve { memory = "%dB" }
}
worker "llama" {
  adapter = "native"
  source  = "path:%s"
}
model "low" { source = "file:%s/low.gguf" }
model "high" { source = "file:%s/high.gguf" }
`, reserve, engine, dir, dir)
	n := newNode(t, base+one("low", 0))
	n.start()
	apply := func(deployments string) {
		t.Helper()
		file := filepath.Join(n.home, "apply.hcl")
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(base, "ADDR", n.addr)+deployments), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = n.command("apply", "--file", file).Run() // which says that one has no room
	}
	running := func() string {
		out := ""
		for _, w := range n.alive() {
			if w.Status == contract.StatusReady && w.Condition == "" {
				out += strings.TrimPrefix(strings.SplitN(filepath.Base(w.ModelID), ".gguf", 2)[0], "file:") + " "
			}
		}
		return strings.TrimSpace(out)
	}
	n.until(3*time.Minute, "low serves", func() bool { return running() == "low" })
	apply(one("low", 0) + one("high", 10))
	n.until(3*time.Minute, "high serves in its place", func() bool { return running() == "high" })
	var e contract.Explanation
	n.run(&e, "explain", "low")
	if len(e.Places) != 1 || e.Places[0].OK || !strings.Contains(e.Places[0].Reason, "free after reserve and high") {
		t.Errorf("explained as %+v", e)
	}
	n.run(&e, "explain", "high")
	if len(e.Places) != 1 || e.Places[0].OK || !strings.Contains(e.Places[0].Reason, "needed") {
		t.Errorf("explained as %+v", e)
	}
	apply(one("low", 0))
	n.until(3*time.Minute, "low serves again", func() bool { return running() == "low" })
}
