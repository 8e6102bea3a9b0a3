package netlab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
)

const (
	subnet      = "10.99.0."
	maxMachines = 40
	moved       = 100 // added to the last byte of a machine that gets another address
)

func hardware(n int) string { return fmt.Sprintf("02:00:00:00:00:%02x", n) }

// lab is a bridge with namespaces on it.
type lab struct {
	t      *testing.T
	binary string
	hub    string
	dir    string
	agents map[int]*agent
}

// agent is one machine: a namespace, a data folder and a process.
type agent struct {
	lab    *lab
	n      int
	ns     string
	home   string
	ip     string
	binary string // the program that start runs; "": that of the lab
	// neighbours are the commands that tell it the others' hardware addresses.
	neighbours []string
	cmd        *exec.Cmd
	log        string
	ended      chan struct{}
	exited     int
}

// newLab makes the bridge, or skips the test where that cannot be.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("APIARY_TEST_NET") == "" {
		t.Skip("skipped: several machines are tested by `make test-net`, as root")
	}
	l := &lab{t: t, binary: os.Getenv("APIARY_TEST_NET"), hub: fmt.Sprintf("apiary%d-%s", os.Getpid(), strings.ReplaceAll(t.Name(), "/", "-")), dir: t.TempDir(), agents: map[int]*agent{}}
	if out, err := exec.Command("ip", "netns", "add", l.hub).CombinedOutput(); err != nil {
		t.Skipf("skipped: no network namespace can be made: %v %s", err, out)
	}
	t.Cleanup(func() {
		for _, a := range l.agents {
			a.clean()
		}
		_ = exec.Command("ip", "netns", "del", l.hub).Run()
	})
	l.ip(l.hub, "link add br0 type bridge", "link set br0 up")
	return l
}

// ip runs lines of ip(8) in a namespace.
func (l *lab) ip(ns string, lines ...string) {
	l.t.Helper()
	c := exec.Command("ip", "-n", ns, "-batch", "-")
	c.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := c.CombinedOutput(); err != nil {
		l.t.Fatalf("ip in %s: %v\n%s\n%s", ns, err, out, strings.Join(lines, "\n"))
	}
}

// machine makes the nth namespace with an address, and a data folder with the keys of the cluster.
func (l *lab) machine(n int, roles, more string) *agent {
	l.t.Helper()
	a := &agent{lab: l, n: n, ns: fmt.Sprintf("%s-%d", l.hub, n), home: filepath.Join(l.dir, strconv.Itoa(n)), ip: subnet + strconv.Itoa(n)}
	if out, err := exec.Command("ip", "netns", "add", a.ns).CombinedOutput(); err != nil {
		l.t.Fatalf("make a namespace: %v %s", err, out)
	}
	l.agents[n] = a
	l.ip(a.ns, fmt.Sprintf("link add eth0 address %s type veth peer name v%d netns %s", hardware(n), n, l.hub), "addr add "+a.ip+"/24 dev eth0", "link set lo up", "link set eth0 up")
	// The kernel's table of neighbours is one for all namespaces, and too small for what 40 machines learn of each other.
	var known []string
	for other := 1; other <= maxMachines; other++ {
		known = append(known, fmt.Sprintf("neigh add %s%d lladdr %s dev eth0 nud permanent", subnet, other, hardware(other)),
			fmt.Sprintf("neigh add %s%d lladdr %s dev eth0 nud permanent", subnet, other+moved, hardware(other)))
	}
	a.neighbours = known
	l.ip(a.ns, known...)
	l.ip(l.hub, fmt.Sprintf("link set v%d master br0 up", n))
	a.configure(roles, more)
	a.write("secrets/cluster.key", strings.Repeat("ab", 32)+"\n")
	a.write("gossip.key", strings.Repeat("k", 40)+"\n")
	a.log = filepath.Join(a.home, "test.log")
	return a
}

func (a *agent) configure(roles, more string) {
	a.write("config.hcl", fmt.Sprintf(`agent {
  name  = "h%d"
  roles = [%s]
  log {
    format = "text"
  }
}
gossip {
  bind = "%s:7834"
  key  = file("gossip.key")
}
queen {
  listen = "%s:7833"
  hives  = []
}
hive {
  listen = "%s:7835"
}
%s`, a.n, roles, a.ip, a.ip, a.ip, more))
}

func (a *agent) write(name, text string) {
	a.lab.t.Helper()
	path := filepath.Join(a.home, name)
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		_ = os.MkdirAll(dir, 0o700)
		_ = os.Chmod(dir, 0o700)
		if dir == a.home {
			break
		}
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		a.lab.t.Fatal(err)
	}
}

// inside is a command in the machine's namespace; it becomes the process itself.
func (a *agent) inside(args ...string) *exec.Cmd {
	c := exec.Command("ip", append([]string{"netns", "exec", a.ns}, args...)...)
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + a.home, "APIARY_HOME=" + a.home, "GOMAXPROCS=1"}
	return c
}

// start runs the agent, which joins others.
func (a *agent) start(join ...int) {
	t := a.lab.t
	t.Helper()
	args := []string{cmp.Or(a.binary, a.lab.binary), "agent", "--insecure-i-know"}
	for _, n := range join {
		args = append(args, "--join", fmt.Sprintf("%s%d:7834", subnet, n))
	}
	f, err := os.OpenFile(a.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	a.cmd = a.inside(args...)
	a.cmd.Stdout, a.cmd.Stderr = f, f
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended, cmd := make(chan struct{}), a.cmd
	a.ended = ended
	go func() {
		defer close(ended)
		_ = cmd.Wait()
		a.exited = cmd.ProcessState.ExitCode()
	}()
}

func (a *agent) signal(s syscall.Signal) { _ = a.cmd.Process.Signal(s) }

// kill ends the agent with SIGKILL, and its workers stay.
func (a *agent) kill() {
	a.signal(syscall.SIGKILL)
	<-a.ended
}

// clean ends everything in the namespace, by its process ids, and the namespace.
func (a *agent) clean() {
	for range 20 {
		out, _ := exec.Command("ip", "netns", "pids", a.ns).Output()
		pids := strings.Fields(string(out))
		for _, p := range pids {
			if pid, err := strconv.Atoi(p); err == nil && pid > 1 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		if len(pids) == 0 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if a.cmd != nil {
		<-a.ended
	}
	_ = exec.Command("ip", "netns", "del", a.ns).Run()
	if a.lab.t.Failed() {
		b, _ := os.ReadFile(a.log)
		a.lab.t.Logf("log of h%d:\n%s", a.n, b[max(0, len(b)-20_000):])
	}
}

func (a *agent) logged(text string) bool {
	b, _ := os.ReadFile(a.log)
	return bytes.Contains(b, []byte(text))
}

// dial makes a connection from inside the namespace.
func (a *agent) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	runtime.LockOSThread() // its thread visits the namespace
	here, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(here) }()
	there, err := unix.Open("/run/netns/"+a.ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Close(there) }()
	if err := unix.Setns(there, unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	c, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, network, addr)
	if unix.Setns(here, unix.CLONE_NEWNET) == nil {
		runtime.UnlockOSThread() // a thread that cannot go back ends with its goroutine
	}
	return c, err
}

// get asks the machine's own agent.
func (a *agent) get(port int, path string, into any) error {
	key, err := os.ReadFile(filepath.Join(a.home, "secrets", "admin.key"))
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DialContext: a.dial, DisableKeepAlives: true}}
	req, _ := http.NewRequest(http.MethodGet, fmt.Sprintf("http://%s:%d%s", a.ip, port, path), nil)
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(key)))
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	if text, ok := into.(*string); ok {
		var b bytes.Buffer
		_, err := b.ReadFrom(res.Body)
		*text = b.String()
		return err
	}
	return json.NewDecoder(res.Body).Decode(into)
}

func (a *agent) cluster() contract.ClusterView {
	var v contract.ClusterView
	if err := a.get(7833, "/admin/cluster", &v); err != nil {
		return contract.ClusterView{}
	}
	return v
}

// hive is how the queen on a judges the hive hN; "" for one that it does not know.
func (a *agent) hive(n int) contract.Liveness {
	for _, h := range a.cluster().Hives {
		if h.Name == fmt.Sprintf("h%d", n) {
			return h.Liveness
		}
	}
	return ""
}

func (a *agent) alive() int {
	n := 0
	for _, h := range a.cluster().Hives {
		if h.Liveness == contract.LivenessAlive {
			n++
		}
	}
	return n
}

// member is how a sees the member hN.
func (a *agent) member(n int) contract.MemberState {
	for _, m := range a.cluster().Members {
		if m.Name == fmt.Sprintf("h%d", n) {
			return m.State
		}
	}
	return ""
}

// within waits for something and returns how long that took.
func within(t *testing.T, bound time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	for time.Since(begin) < bound {
		if ok() {
			return time.Since(begin)
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("not within %s: %s", bound, what)
	return 0
}

// watch collects the states that each hive goes through while f runs.
func (a *agent) watch(f func()) map[string][]contract.Liveness {
	stop, done := make(chan struct{}), make(chan struct{})
	seen := map[string][]contract.Liveness{}
	go func() {
		defer close(done)
		for {
			for _, h := range a.cluster().Hives {
				if !slices.Contains(seen[h.Name], h.Liveness) {
					seen[h.Name] = append(seen[h.Name], h.Liveness)
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(300 * time.Millisecond):
			}
		}
	}()
	f()
	close(stop)
	<-done
	return seen
}

// rules sets the nftables rules of a machine's input; none: all pass.
func (a *agent) rules(lines ...string) {
	t := a.lab.t
	t.Helper()
	c := a.inside("nft", "-f", "-")
	text := "flush ruleset\n"
	if len(lines) > 0 {
		text += "table inet t {\n chain in {\n  type filter hook input priority 0;\n  " + strings.Join(lines, "\n  ") + "\n }\n}\n"
	}
	c.Stdin = strings.NewReader(text)
	if out, err := c.CombinedOutput(); err != nil {
		t.Skipf("skipped: nft cannot set rules here: %v %s", err, out)
	}
}

// row prints a line of the benchmark.
func row(name string, ours float64, unit string, goal float64, info bool) {
	verdict := "met"
	if ours > goal {
		verdict = "missed"
	}
	if info {
		fmt.Printf("%-32s %10.1f %-5s - - - info\n", name, ours, unit)
		return
	}
	fmt.Printf("%-32s %10.1f %-5s - - ≤%.1f %s\n", name, ours, unit, goal, verdict)
}
