package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// traffic is 20 requests a second through a gateway, each second one of them a stream. All have to come whole.
type traffic struct {
	stop   func()
	mu     sync.Mutex // guards the fields below
	whole  int
	broken []string
}

func newTraffic(addr, model string) *traffic {
	tr := &traffic{}
	enough, done := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	one := func(n int) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		stream := n%2 == 0
		body := fmt.Sprintf(`{"model":%q,"stream":%v,"messages":[{"role":"user","content":"one two three"}]}`, model, stream)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v1/chat/completions", strings.NewReader(body))
		var text []byte
		if err == nil {
			req.Header.Set("Content-Type", "application/json")
			var resp *http.Response
			if resp, err = http.DefaultClient.Do(req); err == nil {
				text, err = io.ReadAll(resp.Body)
				err = errors.Join(err, resp.Body.Close())
				if resp.StatusCode != http.StatusOK {
					err = errors.New(resp.Status)
				}
			}
		}
		if s := string(text); err == nil && (strings.Contains(s, `"error"`) || stream && !strings.HasSuffix(strings.TrimSpace(s), "[DONE]")) {
			err = errors.New("it is not whole")
		}
		tr.mu.Lock()
		defer tr.mu.Unlock()
		if err != nil {
			tr.broken = append(tr.broken, fmt.Sprintf("%s stream=%v: %v %s", time.Now().Format("15:04:05.000"), stream, err, text[max(0, len(text)-300):]))
			return
		}
		tr.whole++
	}
	go func() {
		defer close(done)
		t := time.NewTicker(50 * time.Millisecond)
		defer t.Stop()
		for n := 0; ; n++ {
			select {
			case <-t.C:
				all.Go(func() { one(n) })
			case <-enough:
				return
			}
		}
	}()
	tr.stop = func() {
		close(enough)
		<-done
		all.Wait()
	}
	return tr
}

// rolled is what was seen of the workers of a deployment while it changed.
type rolled struct {
	most     int  // that ran at once and were not draining
	draining bool // an old one was
	least    int  // that were ready at once
	warm     bool // an old one was still ready while a new one was
}

// watchRoll looks at the workers until stop is called.
func watchRoll(n *node, old map[string]bool) (stop func() rolled) {
	r := rolled{least: 99}
	enough, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-enough:
				return
			case <-time.After(100 * time.Millisecond):
			}
			running, fresh, stale := 0, 0, 0
			for _, w := range n.alive() {
				switch {
				case w.Condition == contract.ConditionDraining:
					r.draining = r.draining || old[w.ID]
					continue
				case w.Status == contract.StatusStarting:
				case old[w.ID]:
					stale++
				default:
					fresh++
				}
				running++
			}
			r.most, r.least, r.warm = max(r.most, running), min(r.least, fresh+stale), r.warm || fresh > 0 && stale > 0
		}
	}()
	return func() rolled {
		close(enough)
		<-done
		return r
	}
}

func rollConfig(replicas int, args string) string {
	return fmt.Sprintf(`queen {
  listen = "ADDR"
  placement {
    warm = "1s"
  }
}
hive { listen = "127.0.0.1:0" }
worker "echo" {
  adapter = "echo"
}
deployment "chat" {
  model = "echo:chat"
  slots = 16
  args  = [%s]
  replicas {
    min = %d
    max = %d
  }
}
`, args, replicas, replicas)
}

const steady = `"--tps", "60", "--tokens", "30"` // half a second for each answer

// TestRollingChange: a deployment is changed while it is used, with one replica and with two: a new worker is started beside an old one, serves
// for a while beside it, and the old one ends when its requests have. Nobody notices.
func TestRollingChange(t *testing.T) {
	t.Parallel()
	for _, replicas := range []int{1, 2} {
		t.Run(fmt.Sprint(replicas), func(t *testing.T) {
			t.Parallel()
			n := newNode(t, rollConfig(replicas, steady))
			n.start()
			n.ready()
			n.run(nil, "apply")
			old := map[string]bool{}
			for _, w := range n.alive() {
				old[w.ID] = true
			}
			if len(old) != replicas {
				t.Fatalf("there run %v", old)
			}
			tr := newTraffic(n.addr, "echo:chat")
			seen := watchRoll(n, old)
			next := n.file("next.hcl", rollConfig(replicas, steady+`, "--prefill", "10ms", "--load", "1s"`))
			var plan contract.PlanView
			n.run(&plan, "plan", "--file", next)
			if plan.Change != 1 {
				t.Errorf("the plan is %+v", plan)
			}
			n.run(nil, "apply", "--file", next)
			time.Sleep(500 * time.Millisecond)
			tr.stop()
			r := seen()
			now := map[string]bool{}
			for _, w := range n.alive() {
				now[w.ID] = true
			}
			if len(now) != replicas || slices.ContainsFunc(slices.Collect(maps.Keys(now)), func(id string) bool { return old[id] }) {
				t.Errorf("there run %v, and before %v", now, old)
			}
			if r.most != replicas+1 || !r.draining || !r.warm || r.least < replicas {
				t.Errorf("of %d: %+v", replicas, r)
			}
			if len(tr.broken) > 0 || tr.whole < 50 {
				t.Errorf("%d of %d requests broke:\n%s", len(tr.broken), tr.whole+len(tr.broken), strings.Join(tr.broken[:min(5, len(tr.broken))], "\n"))
			}
		})
	}
}

// TestRollingChangeFails: a version that ends while it loads replaces nothing. The old one serves on, and it is said why.
func TestRollingChangeFails(t *testing.T) {
	t.Parallel()
	n := newNode(t, rollConfig(1, steady))
	n.start()
	n.ready()
	n.run(nil, "apply")
	old := n.alive()
	tr := newTraffic(n.addr, "echo:chat")
	next := n.file("next.hcl", rollConfig(1, steady+`, "--load", "200ms", "--exit-during-load", "3"`))
	apply := n.command("apply", "--file", next)
	var said strings.Builder
	apply.Stdout, apply.Stderr = &said, &said
	if err := apply.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = apply.Wait(); close(ended) }()
	n.until(60*time.Second, "the status says why", func() bool {
		out, err := n.command("status").Output()
		return err == nil && strings.Contains(string(out), "its last worker failed (start_failed)")
	})
	if out, err := n.command("plan", "--file", next).CombinedOutput(); err != nil || !strings.Contains(string(out), "its last worker failed (start_failed)") {
		t.Errorf("the plan does not say why: %v\n%s", err, out)
	}
	if now := n.alive(); len(now) == 0 || !slices.ContainsFunc(now, func(w contract.WorkerView) bool { return w.PID == old[0].PID && w.Condition == "" }) {
		t.Errorf("there run %+v, and before %+v", now, old)
	}
	// Taken back, it is as it was; the worker is the same.
	n.run(nil, "apply")
	if now := n.alive(); len(now) != 1 || now[0].PID != old[0].PID {
		t.Errorf("there run %+v, and before %+v", now, old)
	}
	tr.stop()
	if len(tr.broken) > 0 || tr.whole < 20 {
		t.Errorf("%d of %d requests broke:\n%s", len(tr.broken), tr.whole+len(tr.broken), strings.Join(tr.broken[:min(5, len(tr.broken))], "\n"))
	}
	if code := waitExit(t, apply, ended, 20*time.Second); code != 0 && code != exitOf(fault.Unavailable) {
		t.Errorf("apply ended with %d: %s", code, &said)
	}
	t.Logf("apply said: %s", &said)
}

// file writes a file beside the configuration.
func (n *node) file(name, text string) string {
	n.t.Helper()
	path := filepath.Join(n.home, name)
	if err := os.WriteFile(path, []byte(strings.ReplaceAll(text, "ADDR", n.addr)), 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}
