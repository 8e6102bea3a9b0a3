package netlab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

const (
	both = `"queen", "hive"`
	hive = `"hive"`
)

// TestMembership is the life of one cluster: a queen and four machines, one of which is a second queen.
func TestMembership(t *testing.T) {
	l := newLab(t)
	t.Parallel()
	q := l.machine(1, both, "")
	second := l.machine(2, both, "")
	var hives []*agent
	for n := 3; n <= 5; n++ {
		hives = append(hives, l.machine(n, hive, ""))
	}
	all := append([]*agent{q, second}, hives...)
	whole := func() bool { return q.alive() == 5 && second.alive() == 5 }
	// A hive that was down and is back within a minute is held suspect for a minute (flap damping), which is up all the same.
	up := func(n int) bool { s := q.hive(n); return s == contract.LivenessAlive || s == contract.LivenessSuspect }
	t.Run("form, whoever starts first", func(t *testing.T) {
		for _, a := range slices.Backward(all) {
			a.start(1)
		}
		took := within(t, 30*time.Second, "both queens know five hives", whole)
		row("cluster/form_5", took.Seconds(), "s", 10, false)
		for _, a := range all {
			if a.logged("level=ERROR") {
				t.Errorf("h%d logs an error", a.n)
			}
		}
	})
	if t.Failed() {
		return
	}
	t.Run("freeze for 10 s", func(t *testing.T) {
		seen := q.watch(func() {
			hives[0].signal(syscall.SIGSTOP)
			time.Sleep(10 * time.Second)
			hives[0].signal(syscall.SIGCONT)
			took := within(t, 15*time.Second, "it is alive again", func() bool { return q.hive(3) == contract.LivenessAlive })
			row("cluster/thaw", took.Seconds(), "s", 6, false)
		})
		for name, states := range seen {
			if slices.Contains(states, contract.LivenessDown) || name != "h3" && len(states) > 1 {
				t.Errorf("%s went through %v", name, states)
			}
		}
	})
	t.Run("kill", func(t *testing.T) {
		seen := q.watch(func() {
			begin := time.Now()
			hives[1].kill()
			within(t, 30*time.Second, "it is down", func() bool { return q.hive(4) == contract.LivenessDown })
			took := time.Since(begin)
			row("cluster/kill_to_down", took.Seconds(), "s", 20, false)
			if took < 10*time.Second {
				t.Errorf("down after %s: nobody may be down by suspicion alone", took)
			}
		})
		for name, states := range seen {
			if name != "h4" && slices.Contains(states, contract.LivenessSuspect) {
				t.Errorf("%s went through %v", name, states)
			}
		}
	})
	t.Run("another address", func(t *testing.T) {
		a := hives[1]
		l.ip(a.ns, "addr del "+a.ip+"/24 dev eth0", "addr add "+subnet+"104/24 dev eth0")
		a.ip = subnet + "104"
		a.configure(hive, "")
		a.start(2)
		took := within(t, 30*time.Second, "the hive is up at its new address", func() bool {
			i := slices.IndexFunc(q.cluster().Hives, func(h contract.HiveView) bool {
				return h.Name == "h4" && strings.Contains(h.Address, subnet+"104") && up(4)
			})
			return i >= 0
		})
		row("cluster/new_address", took.Seconds(), "s", 10, false)
		within(t, 30*time.Second, "there is one member of that name", func() bool {
			n := 0
			for _, m := range q.cluster().Members {
				if m.Name == "h4" && m.State == contract.MemberAlive && strings.HasPrefix(m.Address, a.ip) {
					n++
				}
			}
			return n == 1 && len(q.cluster().Members) == 5
		})
	})
	t.Run("cut and heal", func(t *testing.T) {
		l.ip(hives[2].ns, "link set eth0 down")
		within(t, 40*time.Second, "it is down", func() bool { return q.hive(5) == contract.LivenessDown && q.member(5) == contract.MemberSuspect })
		time.Sleep(15 * time.Second)                                                       // after which memberlist alone would not mend it
		l.ip(hives[2].ns, append([]string{"link set eth0 up"}, hives[2].neighbours...)...) // the kernel forgot them with the link
		took := within(t, 45*time.Second, "it is up, for the gossip too", func() bool {
			return up(5) && q.member(5) == contract.MemberAlive && second.member(5) == contract.MemberAlive
		})
		row("cluster/heal", took.Seconds(), "s", 26, false)
		within(t, 100*time.Second, "all are alive", whole)
	})
	t.Run("no UDP from one side", func(t *testing.T) {
		seen := q.watch(func() {
			q.rules("ip saddr " + hives[0].ip + " udp dport 7834 drop")
			time.Sleep(30 * time.Second)
		})
		q.rules()
		if states := seen["h3"]; slices.Contains(states, contract.LivenessDown) || slices.Contains(states, contract.LivenessLost) {
			t.Errorf("h3 went through %v while its packets were dropped", states)
		}
	})
	t.Run("no TCP from the queen", func(t *testing.T) {
		seen := q.watch(func() {
			hives[0].rules("ip saddr " + q.ip + " meta l4proto tcp drop")
			time.Sleep(25 * time.Second)
		})
		hives[0].rules()
		if states := seen["h3"]; slices.Contains(states, contract.LivenessDown) {
			t.Errorf("h3 went through %v while its beats arrived", states)
		}
	})
	t.Run("30 % loss", func(t *testing.T) {
		for _, a := range all {
			a.rules("numgen random mod 10 < 3 drop")
		}
		seen := q.watch(func() { time.Sleep(time.Minute) })
		for _, a := range all {
			a.rules()
		}
		for name, states := range seen {
			if slices.Contains(states, contract.LivenessDown) || slices.Contains(states, contract.LivenessLost) {
				t.Errorf("%s went through %v", name, states)
			}
		}
		within(t, 90*time.Second, "all are alive", whole)
	})
	t.Run("wrong key", func(t *testing.T) {
		a := l.machine(6, hive, "")
		a.write("gossip.key", strings.Repeat("x", 40)+"\n")
		a.start(1)
		within(t, 30*time.Second, "it says so", func() bool { return a.logged("must be the same on all machines") })
		within(t, 30*time.Second, "the other side says so", func() bool { return q.logged("cannot be read is dropped") })
		if q.hive(6) != "" || q.member(6) != "" {
			t.Error("it got in")
		}
		a.kill()
	})
	t.Run("one node id twice", func(t *testing.T) {
		a := l.machine(7, hive, "")
		b, err := os.ReadFile(filepath.Join(hives[0].home, "node.json"))
		if err != nil {
			t.Fatal(err)
		}
		a.write("node.json", string(b))
		a.start(1)
		within(t, 30*time.Second, "the second one ends", func() bool {
			select {
			case <-a.ended:
				return true
			default:
				return false
			}
		})
		if a.exited != 4 || !a.logged("node.json") {
			t.Errorf("it ended with %d", a.exited)
		}
		if s := q.hive(3); s != contract.LivenessAlive {
			t.Errorf("the first one is %s", s)
		}
		hives[0].kill()
		a.start(1)
		within(t, 40*time.Second, "it takes over once the first one is gone", func() bool { return up(7) })
	})
	t.Run("leave", func(t *testing.T) {
		second.signal(syscall.SIGTERM)
		<-second.ended
		within(t, 10*time.Second, "it has left", func() bool { return q.member(2) == contract.MemberLeft })
		if second.exited != 0 {
			t.Errorf("it ended with %d", second.exited)
		}
	})
}

// TestTraffic measures what 3, 10 and 40 agents send, or with APIARY_TEST_NET_QUICK only the first two, and shorter.
func TestTraffic(t *testing.T) {
	sizes, window := []int{3, 10, 40}, time.Minute
	if os.Getenv("APIARY_TEST_NET_QUICK") != "" {
		sizes, window = sizes[:2], 20*time.Second
	}
	for _, size := range sizes {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			l := newLab(t)
			q := l.machine(1, both, "worker \"still\" {\n  adapter = \"echo\"\n}\n")
			q.start()
			for n := 2; n <= size; n++ {
				l.machine(n, hive, "").start(1)
			}
			within(t, 3*time.Minute, "all hives are alive", func() bool { return q.alive() == size })
			time.Sleep(10 * time.Second)
			before := map[int]float64{}
			for n, a := range l.agents {
				before[n] = a.sent(t)
			}
			time.Sleep(window)
			worst, sum := 0.0, 0.0
			for n, a := range l.agents {
				rate := (a.sent(t) - before[n]) / window.Seconds()
				worst, sum = max(worst, rate), sum+rate
			}
			row(fmt.Sprintf("cluster/bytes_%d_mean", size), sum/float64(size), "B/s", 2000, size < 40)
			row(fmt.Sprintf("cluster/bytes_%d_most", size), worst, "B/s", 2000, size < 40)
			if worst > 2000 && size == 40 {
				t.Errorf("an agent of %d sends %.0f bytes a second", size, worst)
			}
			if q.alive() != size {
				t.Errorf("%d of %d hives are alive", q.alive(), size)
			}
			if size == 40 {
				l.crowded(t, q, window)
			}
		})
	}
}

// crowded is T09: each hive gets three workers, and for a while none of them may be heard late, no machine may send much, and the queen may not
// take much of a core.
func (l *lab) crowded(t *testing.T, q *agent, window time.Duration) {
	const each = 3
	turns := make(chan struct{}, 4)
	var all sync.WaitGroup
	for n := range l.agents {
		for k := range each {
			all.Go(func() {
				turns <- struct{}{}
				defer func() { <-turns }()
				model := fmt.Sprintf("echo:w%d", k)
				if err := q.cli(nil, "worker", "spawn", model, "--worker", "still", "--hive", fmt.Sprintf("h%d", n), "--spawn-key", fmt.Sprintf("%s-h%d", model, n)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	workers := each * len(l.agents)
	within(t, time.Minute, "the queen hears all workers", func() bool { return len(q.serving()) == workers })
	time.Sleep(10 * time.Second)
	used, before, oldest := cpu(q.pid()), map[int]float64{}, int64(0)
	for n, a := range l.agents {
		before[n] = a.sent(t)
	}
	begin := time.Now()
	for time.Since(begin) < window {
		for _, w := range q.cluster().Workers {
			oldest = max(oldest, w.AgeMS)
		}
		time.Sleep(time.Second)
	}
	took := time.Since(begin).Seconds()
	cores, worst := (cpu(q.pid())-used).Seconds()/took, 0.0
	for n, a := range l.agents {
		if n != q.n { // the queen's own machine carries the answers to all beats
			worst = max(worst, (a.sent(t)-before[n])/took)
		}
	}
	row("cluster/workers_120_oldest_beat", float64(oldest)/1000, "s", 7.5, false)
	row("cluster/workers_120_most_sent", worst, "B/s", 2000, false)
	row("cluster/workers_120_queen", cores, "cores", 0.25, false)
	if oldest >= 7500 || worst >= 2000 || cores >= 0.25 {
		t.Errorf("the oldest beat was of %d ms ago, a machine sent %.0f bytes a second, the queen used %.2f cores", oldest, worst, cores)
	}
	if got := len(q.serving()); got != workers {
		t.Errorf("%d of %d workers serve", got, workers)
	}
}

// sent is how many bytes have left the machine, whatever for.
func (a *agent) sent(t *testing.T) float64 {
	t.Helper()
	out, err := a.inside("cat", "/sys/class/net/eth0/statistics/tx_bytes").Output()
	var n float64
	if err == nil {
		_, err = fmt.Sscan(string(out), &n)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}
