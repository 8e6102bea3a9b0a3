package netlab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// nextRelease is the version of the program of a later release.
const nextRelease = "v99.0.0-next"

// nextProgram builds a later release: all that is said over a wire has a field more, which this one does not know, and the version is
// higher. The sources are changed by an overlay.
func (l *lab) nextProgram() string {
	t := l.t
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..", "..")
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for _, pattern := range []string{"core/contract/*.go", "core/gossip/me*.go"} { // of the latter metadata and messages
		dir := filepath.Dir(pattern)
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil || len(files) == 0 {
			t.Skipf("skipped: the sources are not where this test was built: %v", err)
		}
		first := true
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			changed, n := withMore(t, f, b)
			if n == 0 {
				continue
			}
			if first {
				first = false
				changed = append(changed, "\n// later is what a later release says beside what this one knows.\ntype later struct{}\n\nfunc (later) MarshalJSON() ([]byte, error) { return []byte(`{\"x\":[1]}`), nil }\n\nfunc (*later) UnmarshalJSON([]byte) error { return nil }\n"...)
			}
			to := filepath.Join(l.dir, strings.ReplaceAll(dir, "/", "-")+"-"+filepath.Base(f))
			if err := os.WriteFile(to, changed, 0o600); err != nil {
				t.Fatal(err)
			}
			overlay.Replace[f] = to
		}
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list, program := filepath.Join(l.dir, "overlay.json"), filepath.Join(l.dir, "apiary-next")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-overlay", list, "-ldflags", "-X main.version="+nextRelease, "-o", program, ".")
	cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the later release: %v\n%s", err, out)
	}
	return program
}

// withMore adds a field to each struct of a source file that goes over a wire, and says to how many. What the workers of a deployment are
// started with is left as it is: a difference there is one that they are replaced for.
func withMore(t *testing.T, name string, source []byte) ([]byte, int) {
	t.Helper()
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, name, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var ends []int
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok {
			continue
		}
		for _, s := range g.Specs {
			ts, ok := s.(*ast.TypeSpec)
			if !ok || slices.Contains([]string{"WorkerKind", "Identity"}, ts.Name.Name) {
				continue
			}
			st, ok := ts.Type.(*ast.StructType)
			if !ok || !slices.ContainsFunc(st.Fields.List, func(f *ast.Field) bool { return f.Tag != nil && strings.Contains(f.Tag.Value, "json:") }) {
				continue
			}
			ends = append(ends, set.Position(st.Fields.Closing).Offset)
		}
	}
	for _, at := range slices.Backward(ends) {
		source = slices.Concat(source[:at], []byte("\tLater later `json:\"later_field\"`\n"), source[at:])
	}
	return source, len(ends)
}

// api is a client of the agent of a queen, from inside this machine.
func (a *agent) api() *http.Client {
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: a.dial, MaxIdleConnsPerHost: 8}}
}

// complete sends a request to a queen and returns the text of the answer's body.
func complete(ctx context.Context, c *http.Client, queen *agent, model string, stream bool) (status int, body string, err error) {
	text := fmt.Sprintf(`{"model":%q,"stream":%v,"messages":[{"role":"user","content":"one two three"}]}`, model, stream)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://%s:7833/v1/chat/completions", queen.ip), strings.NewReader(text))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), err
}

// load is 20 requests a second, each to the next queen in turn. One that says that it is going away, or where nobody listens, is left for
// another one, as load balancers and clients do.
type load struct {
	stop   func()
	mu     sync.Mutex // guards the fields below
	sent   int
	passed int // to another queen
	failed []string
}

func (l *lab) load(from *agent, queens ...*agent) *load {
	ctx, cancel := context.WithCancel(context.Background())
	r := &load{}
	var all sync.WaitGroup
	enough, done := make(chan struct{}), make(chan struct{})
	client := from.api()
	one := func(n int) {
		var said []string
		for i := range queens {
			q := queens[(n+i)%len(queens)]
			status, body, err := complete(ctx, client, q, "echo:quick", false)
			if err == nil && status == http.StatusOK && strings.Contains(body, "three") {
				r.mu.Lock()
				r.sent++
				r.mu.Unlock()
				return
			}
			said = append(said, fmt.Sprintf("%s h%d: %d %v %s", time.Now().Format("15:04:05.000"), q.n, status, err, body))
			// A listener that is closed resets what it has not accepted yet: refused as well, before anything was sent.
			op, ok := errors.AsType[*net.OpError](err)
			refused := ok && op.Op == "dial" && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET))
			if !refused && !(status == http.StatusServiceUnavailable && strings.Contains(body, `"draining"`)) {
				break
			}
			r.mu.Lock()
			r.passed++
			r.mu.Unlock()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.failed = append(r.failed, strings.Join(said, "; "))
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
	r.stop = func() {
		r.mu.Lock()
		n := r.sent
		r.mu.Unlock()
		within(l.t, 10*time.Second, "requests go on to the end", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.sent > n })
		close(enough)
		<-done
		all.Wait()
		cancel()
	}
	return r
}

// told runs a command with the agent's data folder.
func (a *agent) told(args ...string) string {
	a.lab.t.Helper()
	cmd := a.inside(append([]string{a.lab.binary}, args...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		a.lab.t.Fatalf("apiary %s on h%d: %v\n%s%s", strings.Join(args, " "), a.n, err, out, &said)
	}
	return strings.TrimSpace(string(out))
}

func (a *agent) nodeID() string {
	b, err := os.ReadFile(filepath.Join(a.home, "node.json"))
	var v struct{ ID string }
	if err != nil || json.Unmarshal(b, &v) != nil {
		a.lab.t.Fatalf("h%d has no node id: %v", a.n, err)
	}
	return v.ID
}

const echoBlocks = `
worker "quick" {
  adapter = "echo"
}
worker "slow" {
  adapter = "echo"
  args    = ["--tps", "20", "--tokens", "200"]
}
`

// pids are the processes of the workers that a queen hears, by their ids.
func (a *agent) pids() map[string]int {
	out := map[string]int{}
	for _, w := range a.cluster().Workers {
		if w.Liveness == contract.LivenessAlive && w.Status != contract.StatusStopped {
			out[w.ID] = w.PID
		}
	}
	return out
}

// isReady is what /readyz says; 0: nobody answers.
func (a *agent) isReady(port int) int {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DialContext: a.dial, DisableKeepAlives: true}}
	res, err := client.Get(fmt.Sprintf("http://%s:%d/readyz", a.ip, port))
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// leave ends the agent with SIGTERM and wants it to end well within a bound.
func (a *agent) leave(bound time.Duration) time.Duration {
	t := a.lab.t
	t.Helper()
	begin := time.Now()
	a.signal(syscall.SIGTERM)
	select {
	case <-a.ended:
	case <-time.After(bound):
		t.Fatalf("h%d does not end within %v", a.n, bound)
	}
	if a.exited != 0 {
		t.Errorf("h%d ended with %d", a.n, a.exited)
	}
	return time.Since(begin)
}

// TestRollingUpgrade replaces the agents of two releases one by one, up and down again, under load: no request fails and no worker is started anew.
func TestRollingUpgrade(t *testing.T) {
	l := newLab(t)
	next := l.nextProgram()
	one, two, three := l.machine(1, both, echoBlocks), l.machine(2, both, echoBlocks), l.machine(3, hive, echoBlocks)
	all := []*agent{one, two, three}
	for _, a := range all {
		a.start(1, 2)
	}
	queens := []*agent{one, two}
	within(t, 30*time.Second, "both queens know three hives and are ready", func() bool {
		return one.alive() == 3 && two.alive() == 3 && one.isReady(7833) == 200 && two.isReady(7833) == 200
	})
	for _, a := range all {
		one.told("worker", "spawn", "echo:quick", "--worker", "quick", "--slots", "16", "--hive", a.nodeID(), "--spawn-key", fmt.Sprintf("h%d", a.n))
	}
	within(t, 30*time.Second, "both hear three workers", func() bool { return len(one.pids()) == 3 && len(two.pids()) == 3 })
	was := one.pids()
	for _, release := range []string{nextRelease, ""} {
		r := l.load(three, queens...)
		for _, a := range all {
			a.leave(time.Minute)
			a.binary = ""
			if release != "" {
				a.binary = next
			}
			begin := time.Now()
			a.start(1, 2)
			port := 7833
			if a == three {
				port = 7835
			}
			within(t, 30*time.Second, "it is ready", func() bool { return a.isReady(port) == 200 })
			for _, q := range queens {
				within(t, 30*time.Second, fmt.Sprintf("h%d hears h%d in its new release and three workers", q.n, a.n), func() bool {
					v := q.cluster()
					i := slices.IndexFunc(v.Hives, func(h contract.HiveView) bool { return h.ID == a.nodeID() })
					return i >= 0 && v.Hives[i].Liveness != contract.LivenessDown && (v.Hives[i].Version == nextRelease) == (release != "") && len(q.pids()) == 3
				})
			}
			var said string
			if err := one.get(7833, "/admin/cluster", &said); release != "" && (err != nil || !strings.Contains(said, `"later_field"`)) {
				t.Errorf("the later release does not say more: %v", err)
			}
			row(fmt.Sprintf("cluster/upgrade_h%d_to_%s", a.n, map[bool]string{true: "next", false: "this"}[release != ""]), time.Since(begin).Seconds(), "s", 20, false)
			time.Sleep(2 * time.Second) // what was learnt late shows
		}
		r.stop()
		if len(r.failed) > 0 || r.sent < 100 {
			t.Errorf("%d of %d requests failed, %d went to another queen; the first ones:\n%s", len(r.failed), r.sent+len(r.failed), r.passed, strings.Join(r.failed[:min(5, len(r.failed))], "\n"))
		}
		t.Logf("%d requests, %d of them passed on", r.sent, r.passed)
	}
	for _, q := range queens {
		if now := q.pids(); !maps.Equal(now, was) {
			t.Errorf("h%d hears other workers: %v, and before %v", q.n, now, was)
		}
	}
	for _, a := range all {
		if a.logged("level=ERROR") {
			t.Errorf("h%d logs an error", a.n)
		}
	}
}

// TestDrainOfQueen (T72): a queen that is told to end finishes 20 streams that run through it; meanwhile it is not ready and takes nothing new,
// and the other queen answers everything.
func TestDrainOfQueen(t *testing.T) {
	l := newLab(t)
	one, two := l.machine(1, both, echoBlocks), l.machine(2, both, echoBlocks)
	one.start()
	two.start(1)
	within(t, 30*time.Second, "both are ready and know two hives", func() bool {
		return one.alive() == 2 && two.alive() == 2 && one.isReady(7833) == 200 && two.isReady(7833) == 200
	})
	for _, a := range []*agent{one, two} {
		one.told("worker", "spawn", "echo:quick", "--worker", "quick", "--slots", "16", "--hive", a.nodeID(), "--spawn-key", fmt.Sprintf("q%d", a.n))
		one.told("worker", "spawn", "echo:slow", "--worker", "slow", "--slots", "16", "--hive", a.nodeID(), "--spawn-key", fmt.Sprintf("s%d", a.n))
	}
	within(t, 30*time.Second, "both hear four workers", func() bool { return len(one.pids()) == 4 && len(two.pids()) == 4 })
	was := two.pids()
	var streams sync.WaitGroup
	var mu sync.Mutex
	var broken []string
	client := two.api()
	begun := make(chan struct{}, 20)
	for range 20 {
		streams.Go(func() {
			tokens, text, err := follow(client, one, func() { begun <- struct{}{} })
			mu.Lock()
			defer mu.Unlock()
			if err != nil || tokens != 200 || !strings.Contains(text, "[DONE]") || strings.Contains(text, `"error"`) {
				broken = append(broken, fmt.Sprintf("%d tokens, %v: %s", tokens, err, text[max(0, len(text)-300):]))
			}
		})
	}
	for range 20 {
		<-begun
	}
	r := l.load(two, two)
	begin := time.Now()
	one.signal(syscall.SIGTERM)
	within(t, 5*time.Second, "it is not ready", func() bool {
		return one.isReady(7833) == http.StatusServiceUnavailable && one.isReady(7835) == http.StatusServiceUnavailable
	})
	if status, body, err := complete(t.Context(), client, one, "echo:quick", false); status != http.StatusServiceUnavailable || !strings.Contains(body, `"draining"`) {
		t.Errorf("a new request gets %d %s %v", status, body, err)
	}
	streams.Wait()
	select {
	case <-one.ended:
	case <-time.After(125 * time.Second):
		t.Fatal("it does not end")
	}
	row("cluster/drain_20_streams", time.Since(begin).Seconds(), "s", 125, false)
	if one.exited != 0 || one.isReady(7833) != 0 {
		t.Errorf("it ended with %d", one.exited)
	}
	r.stop()
	if len(broken) > 0 {
		t.Errorf("%d streams broke:\n%s", len(broken), strings.Join(broken, "\n"))
	}
	if len(r.failed) > 0 || r.sent < 20 {
		t.Errorf("%d of %d requests failed at the other queen: %s", len(r.failed), r.sent+len(r.failed), strings.Join(r.failed[:min(3, len(r.failed))], "\n"))
	}
	for id, pid := range two.pids() {
		if was[id] != pid {
			t.Errorf("worker %s was %d and is %d", id, was[id], pid)
		}
	}
	if len(two.pids()) != 4 {
		t.Errorf("%d workers of 4", len(two.pids()))
	}
}

// follow reads a stream of echo:slow to its end. first is called at the first token.
func follow(client *http.Client, queen *agent, first func()) (tokens int, text string, err error) {
	body := `{"model":"echo:slow","stream":true,"messages":[{"role":"user","content":"one two three"}]}`
	res, err := client.Post(fmt.Sprintf("http://%s:7833/v1/chat/completions", queen.ip), "application/json", strings.NewReader(body))
	var all strings.Builder
	once := sync.OnceFunc(first)
	defer once()
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = res.Body.Close() }()
	s := bufio.NewScanner(res.Body)
	for s.Scan() {
		line := s.Text()
		all.WriteString(line + "\n")
		if strings.Contains(line, `"content":"`) && !strings.Contains(line, `"content":""`) {
			tokens++
			once()
		}
	}
	return tokens, all.String(), s.Err()
}

// TestHiveKilledWhileStreaming (T16): the stream goes on, the next agent knows the worker, and can end it.
func TestHiveKilledWhileStreaming(t *testing.T) {
	l := newLab(t)
	q, h := l.machine(1, `"queen"`, echoBlocks), l.machine(2, hive, echoBlocks)
	q.start()
	h.start(1)
	within(t, 30*time.Second, "the queen knows the hive", func() bool { return q.alive() == 1 && q.isReady(7833) == 200 })
	id := q.told("worker", "spawn", "echo:slow", "--worker", "slow", "--hive", h.nodeID())
	was := q.pids()[id]
	first, done := make(chan struct{}), make(chan struct{})
	var tokens int
	var text string
	var err error
	go func() {
		defer close(done)
		tokens, text, err = follow(q.api(), q, func() { close(first) })
	}()
	<-first
	h.kill()
	time.Sleep(3 * time.Second)
	h.start(1)
	<-done
	if err != nil || tokens != 200 || strings.Count(text, "[DONE]") != 1 {
		t.Errorf("%d tokens, %v: %s", tokens, err, text[max(0, len(text)-300):])
	}
	within(t, 30*time.Second, "the hive is there again", func() bool { return q.alive() == 1 && h.isReady(7835) == 200 })
	if now := q.pids(); len(now) != 1 || now[id] != was || was == 0 {
		t.Errorf("the workers are %v; it was %s with %d", now, id, was)
	}
	q.told("worker", "delete", id)
	within(t, 10*time.Second, "the worker has ended", func() bool {
		_, err := os.Stat("/proc/" + strconv.Itoa(was))
		return os.IsNotExist(err)
	})
}
