package netlab

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// replicated is a deployment of echo workers, which need no model.
func replicated(n int) string {
	return fmt.Sprintf(`deployment "chat" {
  model  = "echo:chat"
  worker = "echo"
  replicas {
    min = %d
    max = %d
  }
}
worker "echo" {
  adapter = "echo"
}
`, n, n)
}

// serving lists the workers that the queen on a would send requests to.
func (a *agent) serving() (out []contract.WorkerView) {
	for _, w := range a.cluster().Workers {
		if (w.Status == contract.StatusReady || w.Status == contract.StatusBusy) && w.Liveness == contract.LivenessAlive && w.Condition == "" {
			out = append(out, w)
		}
	}
	return out
}

// processes are the workers by id and process.
func processes(list []contract.WorkerView) (out []string) {
	for _, w := range list {
		out = append(out, fmt.Sprintf("%s %d %s", w.ID, w.PID, w.BootID))
	}
	slices.Sort(out)
	return out
}

// TestQueenKilled (T70): one of two queens is killed and started again under load through the other one. Nothing of that is seen there, no
// worker is started again, and the queen that was killed knows all of them within 6 s.
func TestQueenKilled(t *testing.T) {
	l := newLab(t)
	one, two, three := l.machine(1, both, replicated(6)), l.machine(2, both, replicated(6)), l.machine(3, hive, "")
	for _, a := range []*agent{one, two, three} {
		a.start(1)
	}
	within(t, 90*time.Second, "both queens know six workers", func() bool { return len(one.serving()) == 6 && len(two.serving()) == 6 })
	before := processes(two.serving())
	stop := two.load("echo:chat", 50)
	time.Sleep(3 * time.Second)
	one.kill()
	time.Sleep(8 * time.Second)
	one.start(2)
	took := within(t, 30*time.Second, "the queen that was killed knows all again", func() bool { return len(one.serving()) == 6 })
	row("cluster/queen_restart", took.Seconds(), "s", 6, false)
	if took > 6*time.Second {
		t.Errorf("it took %s", took)
	}
	again := one.load("echo:chat", 10)
	time.Sleep(25 * time.Second) // both plan again meanwhile
	if all := again(); len(failed(all)) > 0 {
		t.Errorf("through the queen that was killed %d of %d requests failed: %+v", len(failed(all)), len(all), failed(all)[0])
	}
	if all := stop(); len(failed(all)) > 0 || len(all) < 1000 {
		t.Errorf("through the other queen %d of %d requests failed: %+v", len(failed(all)), len(all), failed(all)[:min(3, len(failed(all)))])
	}
	for _, a := range []*agent{one, two} {
		if after := processes(a.serving()); !slices.Equal(before, after) {
			t.Errorf("the workers at h%d were\n%v\nand are\n%v", a.n, before, after)
		}
	}
	for _, m := range one.cluster().Members {
		if m.Name == "h2" && m.Records != contract.RecordsSame {
			t.Errorf("the records of h2 are %q", m.Records)
		}
	}
}

// TestQueensSplit: two queens with a hive each cannot hear each other. Each half gets its replica; afterwards the newer one is drained, and no
// request fails for that.
func TestQueensSplit(t *testing.T) {
	l := newLab(t)
	one, two := l.machine(1, both, replicated(1)), l.machine(2, both, replicated(1))
	for _, a := range []*agent{one, two} {
		a.quick()
		a.start(1)
	}
	within(t, 60*time.Second, "both queens know the worker", func() bool { return len(one.serving()) == 1 && len(two.serving()) == 1 })
	old := one.serving()[0]
	time.Sleep(5 * time.Second)
	if n := len(one.cluster().Workers); n != 1 {
		t.Errorf("%d workers", n)
	}
	one.rules("ip saddr " + two.ip + " drop")
	two.rules("ip saddr " + one.ip + " drop")
	within(t, 60*time.Second, "each half has its own", func() bool {
		a, b := one.serving(), two.serving()
		return len(a) == 1 && len(b) == 1 && a[0].ID != b[0].ID
	})
	loads := []func() []answer{one.load("echo:chat", 20), two.load("echo:chat", 20)}
	time.Sleep(2 * time.Second)
	one.rules()
	two.rules()
	took := within(t, 90*time.Second, "one is left at both", func() bool {
		a, b := processes(one.cluster().Workers), processes(two.cluster().Workers)
		return len(a) == 1 && slices.Equal(a, b) && len(one.serving()) == 1 && len(two.serving()) == 1
	})
	row("cluster/split_healed", took.Seconds(), "s", 60, false)
	time.Sleep(3 * time.Second)
	for i, stop := range loads {
		if all := stop(); len(failed(all)) > 0 || len(all) < 50 {
			t.Errorf("through h%d %d of %d requests failed: %+v", i+1, len(failed(all)), len(all), failed(all)[:min(3, len(failed(all)))])
		}
	}
	if why := "which is older, serves chat#0 too"; !one.logged(why) && !two.logged(why) {
		t.Error("no queen says that it drains the newer one")
	}
	for _, a := range []*agent{one, two} {
		if got := a.serving(); len(got) != 1 || got[0].ID != old.ID || got[0].PID != old.PID {
			t.Errorf("at h%d %v is left, and %s was the older one", a.n, processes(got), old.ID)
		}
	}
}

// quick makes the agent judge sooner.
func (a *agent) quick() {
	path := a.home + "/config.hcl"
	out, err := exec.Command("sed", "-i", `s/^queen {$/queen {\n  heartbeat {\n    interval = "1s"\n  }\n  detection {\n    stale = "2s"\n    suspect = "3s"\n    down = "4s"\n    lost = "8s"\n  }/`, path).CombinedOutput()
	if err != nil {
		a.lab.t.Fatalf("%v %s", err, out)
	}
}
