package netlab

import (
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestServing is one cluster, of a queen that is no hive and four machines with workers, to which requests go all the while.
func TestServing(t *testing.T) {
	l := newLab(t)
	t.Parallel()
	blocks := l.block("quick") + l.block("slow", "--tps", "8")
	q := l.machine(1, `"queen"`, blocks)
	var hives []*agent // hives[i] is h(i+2)
	for n := 2; n <= 5; n++ {
		hives = append(hives, l.machine(n, hive, blocks))
	}
	whole := func() bool { return q.alive() == 4 }
	// A hive that went away and came back repeatedly is held suspect for a minute (flap damping), which is up all the same.
	up := func(n int) bool { s := q.hive(n); return s == contract.LivenessAlive || s == contract.LivenessSuspect }
	clean := func(t *testing.T, who string, all []answer) {
		t.Helper()
		if len(all) == 0 {
			t.Errorf("%s: no request was sent", who)
		}
		for i, r := range failed(all) {
			if i < 5 {
				t.Errorf("%s: a request of %d fails: %v", who, len(all), r)
			}
		}
	}

	t.Run("T01 all start at once, hives first", func(t *testing.T) {
		for _, a := range slices.Backward(append([]*agent{q}, hives...)) {
			a.start(1)
		}
		row("cluster/form_hives_first", within(t, 30*time.Second, "the queen knows four hives", whole).Seconds(), "s", 10, false)
	})
	t.Run("T01 all start again, the queen first", func(t *testing.T) {
		for _, a := range append([]*agent{q}, hives...) {
			a.kill()
		}
		for _, a := range append([]*agent{q}, hives...) {
			a.start(1)
		}
		row("cluster/form_queen_first", within(t, 30*time.Second, "the queen knows four hives", whole).Seconds(), "s", 10, false)
		for _, a := range append([]*agent{q}, hives...) {
			if a.logged("level=ERROR") {
				t.Errorf("h%d logs an error", a.n)
			}
		}
	})
	if t.Failed() {
		return
	}

	t.Run("T03 a hive's agent stands still, its worker serves", func(t *testing.T) {
		w := q.spawn(t, "echo:still", "quick", 2)
		stop := q.load("echo:still", 5)
		seen := q.watch(func() {
			time.Sleep(2 * time.Second)
			hives[0].signal(syscall.SIGSTOP)
			time.Sleep(10 * time.Second)
			hives[0].signal(syscall.SIGCONT)
			row("cluster/thaw_serving", within(t, 15*time.Second, "it is alive again", func() bool { return q.hive(2) == contract.LivenessAlive }).Seconds(), "s", 6, false)
		})
		clean(t, "while it stood still", stop())
		if s := seen["h2"]; slices.Contains(s, contract.LivenessDown) {
			t.Errorf("it went through %v", s)
		}
		if v, ok := q.worker(w.WorkerID); !ok || v.PID != w.PID || len(q.cluster().Workers) != 1 {
			t.Errorf("the worker was replaced: %+v", q.cluster().Workers)
		}
	})

	t.Run("T07 the queen's TCP does not reach a worker", func(t *testing.T) {
		cut := q.spawn(t, "echo:oneway", "quick", 3)
		q.spawn(t, "echo:oneway", "quick", 4)
		client := q.client()
		hives[1].rules("ip saddr " + q.ip + " meta l4proto tcp drop")
		begin := time.Now()
		var tried []answer
		within(t, 60*time.Second, "a dial has failed and the worker is out", func() bool {
			tried = append(tried, q.ask(client, "echo:oneway"))
			w, _ := q.worker(cut.WorkerID)
			return w.Condition == contract.ConditionOutlier || w.Liveness == contract.LivenessDown
		})
		clean(t, "until it was out", tried)
		row("cluster/cut_worker_out", time.Since(begin).Seconds(), "s", 30, true)
		stop := q.load("echo:oneway", 10)
		time.Sleep(5 * time.Second)
		all := stop()
		clean(t, "while it was out", all)
		if d := slowest(all, 1); d > time.Second {
			t.Errorf("a request took %v: the worker that cannot be reached was tried again while there is another one", d)
		}
		hives[1].rules()
		healed := time.Now()
		stop = q.load("echo:oneway", 5)
		back := within(t, 60*time.Second, "the worker is used again", func() bool {
			return slices.ContainsFunc(l.events("start", healed), func(e event) bool { return e.Worker == cut.WorkerID })
		})
		row("cluster/cut_worker_back", back.Seconds(), "s", 45, false)
		if back > 45*time.Second {
			t.Errorf("used again after %v", back)
		}
		clean(t, "while it came back", stop())
	})

	t.Run("T10 the gossip key changes under requests", func(t *testing.T) {
		q.spawn(t, "echo:keys", "quick", 2)
		within(t, 90*time.Second, "all hives are alive", whole)
		var rows []struct {
			Keys []string `json:"keys"`
		}
		if err := q.cli(&rows, "member", "keys"); err != nil || len(rows) == 0 || len(rows[0].Keys) != 1 {
			t.Fatalf("the keys are %+v, %v", rows, err)
		}
		old := rows[0].Keys[0]
		q.write("new.key", strings.Repeat("n", 40)+"\n")
		stop := q.load("echo:keys", 5)
		seen := q.watch(func() {
			for _, step := range [][]string{{"add", q.home + "/new.key"}, {"use", ""}, {"remove", old}} {
				if step[0] == "use" {
					for _, k := range rows[0].Keys {
						if k != old {
							step[1] = k
						}
					}
				}
				if err := q.cli(&rows, "member", "key", step[0], step[1]); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(6 * time.Second)
			}
		})
		clean(t, "while the key changed", stop())
		for name, states := range seen {
			if len(states) > 1 || len(states) == 1 && states[0] != contract.LivenessAlive {
				t.Errorf("%s went through %v", name, states)
			}
		}
		late := l.machine(6, hive, "") // still has the old key
		before := q.lines("")
		late.start(1)
		within(t, 30*time.Second, "it says so", func() bool { return late.logged("must be the same on all machines") })
		time.Sleep(5 * time.Second)
		if q.hive(6) != "" || q.member(6) != "" {
			t.Error("an agent with the old key got in")
		}
		late.kill()
		if n := late.lines("") + q.lines("") - before; n > 100 {
			t.Errorf("%d lines were logged about an agent with the old key", n)
		}
	})

	t.Run("T13 a worker is killed under requests", func(t *testing.T) {
		q.spawn(t, "echo:kill", "slow", 2)
		victim := q.spawn(t, "echo:kill", "slow", 4)
		within(t, 90*time.Second, "all hives are alive", whole)
		stop := q.load("echo:kill", 20) // of half a second each: several are under way at both
		time.Sleep(5 * time.Second)
		v, _ := q.worker(victim.WorkerID)
		if err := syscall.Kill(victim.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		back := within(t, 30*time.Second, "a worker takes its place", func() bool {
			n := 0
			for _, w := range q.cluster().Workers {
				if w.ModelID == "echo:kill" && w.Status != contract.StatusStopped && w.Liveness == contract.LivenessAlive && w.PID != victim.PID {
					n++
				}
			}
			return n == 2
		})
		time.Sleep(3 * time.Second)
		all := stop()
		row("cluster/killed_worker_back", back.Seconds(), "s", 2.5, false)
		bad := failed(all)
		if len(bad) > v.Slots {
			t.Errorf("%d of %d requests fail, and the worker has %d slots", len(bad), len(all), v.Slots)
		}
		for _, r := range bad {
			if r.status != http.StatusBadGateway || !strings.Contains(r.body, `"worker_lost"`) {
				t.Errorf("a request ends with %v", r)
			}
		}
		if len(bad) == 0 {
			t.Error("nothing was under way, so nothing was tested")
		}
	})

	t.Run("T08 a third of all packets is lost, under requests", func(t *testing.T) {
		for n := 2; n <= 5; n++ {
			q.spawn(t, "echo:loss", "quick", n)
		}
		within(t, 90*time.Second, "all hives are alive", whole)
		stop := q.load("echo:loss", 4)
		time.Sleep(5 * time.Second)
		baseline := slowest(stop(), 0.99)
		for _, a := range hives {
			a.rules("iifname eth0 numgen random mod 10 < 3 drop") // of ten pings three are lost
		}
		var all []answer
		seen := q.watch(func() {
			stop := q.load("echo:loss", 4)
			time.Sleep(time.Minute)
			all = stop()
		})
		for _, a := range hives {
			a.rules()
		}
		clean(t, "with loss", all)
		if len(all) < 200 {
			t.Errorf("only %d requests were sent", len(all))
		}
		p99 := slowest(all, 0.99)
		row("cluster/loss_30_p99", p99.Seconds(), "s", (3*baseline + 2*time.Second).Seconds(), false)
		if p99 > 3*baseline+2*time.Second {
			t.Errorf("99 of 100 requests are answered within %v, and within %v without loss", p99, baseline)
		}
		for name, states := range seen {
			if slices.Contains(states, contract.LivenessDown) || slices.Contains(states, contract.LivenessLost) {
				t.Errorf("%s went through %v", name, states)
			}
		}
		within(t, 90*time.Second, "all hives are alive", whole)
	})

	t.Run("T02 a machine dies with its workers", func(t *testing.T) {
		victim := q.spawn(t, "echo:dies", "quick", 3)
		q.spawn(t, "echo:dies", "quick", 5)
		var with []int
		for _, w := range q.cluster().Workers {
			if w.HiveName == "h3" && alive(w.PID) {
				with = append(with, w.PID)
			}
		}
		if !slices.Contains(with, victim.PID) {
			t.Fatalf("the workers of h3 are %v", with)
		}
		within(t, 90*time.Second, "all hives are alive", whole)
		var refused time.Time
		stop := q.load("echo:dies", 20)
		seen := q.watch(func() {
			time.Sleep(2 * time.Second)
			refused = time.Now()
			hives[1].killAll(with...)
			took := within(t, 30*time.Second, "the hive is down", func() bool { return q.hive(3) == contract.LivenessDown }) + 0
			row("cluster/machine_dies_to_down", took.Seconds(), "s", 20, false)
			if took < 15*time.Second-500*time.Millisecond || took > 20*time.Second+500*time.Millisecond {
				t.Errorf("down after %v, and 17.5 ± 2.5 s are promised", took)
			}
		})
		all := stop()
		late := 0
		for _, r := range all {
			if r.status != http.StatusOK && r.at.Sub(refused) > time.Second {
				late++
				t.Errorf("a request of %v after the machine died ends with %v", r.at.Sub(refused), r)
			}
			if late > 3 {
				break
			}
		}
		for name, states := range seen {
			if name != "h3" && slices.ContainsFunc(states, func(s contract.Liveness) bool { return s != contract.LivenessAlive && s != contract.LivenessStale }) {
				t.Errorf("%s went through %v", name, states)
			}
		}
		hives[1].start(1)
		within(t, 30*time.Second, "the hive is up", func() bool { return up(3) })
	})
}
