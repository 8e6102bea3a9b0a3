package queen

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

const echoModel = "echo:chat"

// echoDeployment is a deployment of echo workers, which need no memory.
func echoDeployment(name string, least, most int) contract.Deployment {
	return contract.Deployment{Name: name, Model: echoModel, Source: echoModel, Worker: contract.WorkerKind{Name: "echo", Adapter: "echo"}, IdleTTLSeconds: 900,
		Replicas: contract.Replicas{Min: least, Max: most}, Place: contract.PlacementRule{Spread: true}}
}

// llamaDeployment is one of a model that the fake hives hold.
func llamaDeployment(name string) contract.Deployment {
	return contract.Deployment{Name: name, Model: "smol", Source: modelRef, Worker: contract.WorkerKind{Name: "llama", Adapter: "native", Source: engineRef}, IdleTTLSeconds: 900,
		Replicas: contract.Replicas{Min: 1, Max: 1}, Place: contract.PlacementRule{Spread: true}}
}

func (a *agent) want(list ...contract.Deployment) {
	s := *a.settings()
	s.Deployments = list
	a.Reconfigure(s)
}

// where lists the hives of the workers that serve a model.
func (a *agent) where(model string) (out []string) {
	for _, w := range a.serving(model) {
		out = append(out, w.Info.HiveID)
	}
	slices.Sort(out)
	return out
}

// placing reports whether something that a plan began has not ended.
func (a *agent) placing() bool {
	a.deploy.mu.Lock()
	defer a.deploy.mu.Unlock()
	return len(a.deploy.pending)+len(a.deploy.ending) > 0
}

// TestDeploymentKeepsItsReplicas: replicas are there soon after the start, one on each hive, and one that ends is replaced. What is taken
// back ends. Every worker says why it is where it is.
func TestDeploymentKeepsItsReplicas(t *testing.T) {
	one, two := newFakeHive(t, "q1"), newFakeHive(t, "h2")
	a := startQueen(t, Options{Deployments: []contract.Deployment{echoDeployment("chat", 2, 2)}}, one, two)
	a.until("a replica on each hive", func() bool { return slices.Equal(a.where(echoModel), []string{"h2", "q1"}) })
	for _, spec := range append(one.spawned(), two.spawned()...) {
		if name, _, ok := placement.ParseKey(spec.SpawnKey); !ok || name != "chat" || spec.Generation>>specBits != 1 || spec.Worker.Adapter != "echo" {
			t.Errorf("spawned %+v", spec)
		}
	}
	var list []contract.WorkerView
	a.read(operation{contract.OpWorkerList}, "[]WorkerView", &list)
	for _, w := range list {
		if w.Deployment != "chat" || !strings.Contains(w.Reason, "chat#") || !strings.Contains(w.Reason, "goes to") {
			t.Errorf("worker %+v", w)
		}
	}
	one.workers()[0].crash <- 9
	a.until("the one that ended is replaced", func() bool { return len(one.spawned())+len(two.spawned()) == 3 && len(a.serving(echoModel)) == 2 })
	var st contract.Status
	a.read(operation{contract.OpStatus}, "Status", &st)
	if len(st.Deployments) != 1 || st.Deployments[0].Name != "chat" || st.Deployments[0].Ready != 2 || st.Deployments[0].Reason != "" {
		t.Errorf("deployments %+v", st.Deployments)
	}
	a.want()
	a.until("nobody is left", func() bool { return len(one.workers())+len(two.workers()) == 0 })
	time.Sleep(300 * time.Millisecond)
	if n := len(one.spawned()) + len(two.spawned()); n != 3 {
		t.Errorf("%d spawns", n)
	}
}

// TestDeploymentsSurviveTheQueen: a queen that starts anew finds the workers of the old one and starts no others, and knows what was
// applied.
func TestDeploymentsSurviveTheQueen(t *testing.T) {
	home := t.TempDir()
	h := newFakeHive(t, "q1")
	first := startQueen(t, Options{Home: home, Deployments: []contract.Deployment{echoDeployment("chat", 1, 1)}}, h)
	first.until("it serves, and that is known", func() bool { return len(first.serving(echoModel)) == 1 && !first.placing() })
	first.end()
	w := h.workers()[0]
	second := startQueen(t, Options{Home: home, Deployments: []contract.Deployment{echoDeployment("chat", 1, 1)}, Registry: registry.Params{Grace: 500 * time.Millisecond}}, h)
	w.beatTo(second.base)
	second.until("it serves", func() bool { return len(second.serving(echoModel)) == 1 })
	time.Sleep(time.Second)
	if n := len(h.spawned()); n != 1 {
		t.Errorf("%d spawns", n)
	}
	second.end()
	// What was taken back by others stays so, as long as the configuration does not change.
	b, err := openBook(home, "q1")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.apply(nil); err != nil {
		t.Fatal(err)
	}
	third := startQueen(t, Options{Home: home, Deployments: []contract.Deployment{echoDeployment("chat", 1, 1)}, Registry: registry.Params{Grace: 500 * time.Millisecond}}, h)
	w.beatTo(third.base)
	third.until("it ends", func() bool { return len(h.workers()) == 0 })
}

// TestIdleDeployment: a deployment without a minimum is started by a request, and unloaded when nobody uses it.
func TestIdleDeployment(t *testing.T) {
	h := newFakeHive(t, "q1")
	h.behave = func(w *fakeWorker) { w.loadFor = 50 * time.Millisecond }
	d := echoDeployment("chat", 0, 1)
	d.IdleTTLSeconds = 1
	a := startQueen(t, Options{Deployments: []contract.Deployment{d}}, h)
	a.until("it is known", func() bool { return a.acquainted() })
	time.Sleep(300 * time.Millisecond)
	if n := len(h.spawned()); n != 0 {
		t.Fatalf("%d spawns before anybody asked", n)
	}
	a.until("it serves", func() bool {
		if d := a.Demand(echoModel); d.Err != nil || d.State != registry.DemandStarting {
			t.Errorf("demand %+v", d)
		}
		return len(a.serving(echoModel)) == 1
	})
	a.until("it is unloaded", func() bool { return len(h.workers()) == 0 && len(h.spawned()) == 1 })
}

// TestDeploymentThatCannotBe: a request is told why, and so is who looks at the status.
func TestDeploymentThatCannotBe(t *testing.T) {
	h := newFakeHive(t, "q1")
	d := echoDeployment("chat", 1, 1)
	d.Place.Require = &contract.Expression{Text: `device.kind == "cuda"`, At: "config.hcl:7"}
	a := startQueen(t, Options{Deployments: []contract.Deployment{d}}, h)
	var got registry.Demand
	a.until("it is said", func() bool { got = a.Demand(echoModel); return got.Err != nil })
	if e := fault.As(got.Err); got.State != registry.DemandImpossible || e.Code != placement.ShortExcluded || e.Kind != fault.Unavailable || !strings.Contains(e.Message, "apiary explain chat") {
		t.Errorf("demand %+v %+v", got, e)
	}
	var st contract.Status
	a.read(operation{contract.OpStatus}, "Status", &st)
	if st.Deployments[0].Code != placement.ShortExcluded || st.Deployments[0].Reason == "" {
		t.Errorf("status %+v", st.Deployments)
	}
}

// TestDeploymentFetchesItsModel: a model that no hive has is fetched first; a change of the context is carried out by a successor that
// serves before the old worker ends.
func TestDeploymentFetchesItsModel(t *testing.T) {
	h := newFakeHive(t, "q1").withEngine()
	a := startQueen(t, Options{Deployments: []contract.Deployment{llamaDeployment("chat")}}, h)
	a.until("it serves", func() bool { return len(a.serving(modelID)) == 1 })
	if n := h.did(contract.OpModelDownload); n != 1 {
		t.Errorf("%d downloads", n)
	}
	if got, err := a.Resolve("smol"); err != nil || len(got.ModelIDs) != 1 || got.ModelIDs[0] != modelID {
		t.Errorf("the deployment's name of the model: %v %v", got, err)
	}
	d := llamaDeployment("chat")
	d.Context = 4096
	a.want(d)
	a.until("the successor serves", func() bool { return len(h.spawned()) == 2 && len(a.serving(modelID)) == 2 })
	if s := h.spawned()[1]; s.Context != 4096 || s.SpawnKey != "chat#0" || s.Generation>>specBits != 2 {
		t.Errorf("successor %+v", s)
	}
}

// TestCrashLoopOfADeployment: what keeps ending is not started for ever.
func TestCrashLoopOfADeployment(t *testing.T) {
	h := newFakeHive(t, "q1")
	h.behave = func(w *fakeWorker) { w.loadFor, w.exitCode = 10*time.Millisecond, 3 }
	a := startQueen(t, Options{Deployments: []contract.Deployment{echoDeployment("chat", 1, 1)}}, h)
	var got registry.Demand
	a.until("the crash loop is seen", func() bool {
		got = a.Demand(echoModel)
		return got.Err != nil && fault.As(got.Err).Code == placement.ShortCrashLoop
	})
	time.Sleep(300 * time.Millisecond)
	if n := len(h.spawned()); n != 5 || got.State != registry.DemandImpossible || got.RetryAfter < 14*time.Minute {
		t.Errorf("%d spawns, %+v", n, got)
	}
}

// TestRequestsShareTheMemory: a worker that a request started makes room for that of another model once nobody uses it, and ends by itself
// after a while. What fits nowhere is refused by the numbers.
func TestRequestsShareTheMemory(t *testing.T) {
	const other, huge = "builtin:other", "builtin:huge"
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withModel(other+"@0123456789ab", other).withModel(huge+"@0123456789ab", huge).withEngine()
	h.memory = 10 * contract.GiB
	h.models[0].SizeBytes, h.models[1].SizeBytes, h.models[2].SizeBytes = 6*contract.GiB, 6*contract.GiB, 60*contract.GiB
	a := startQueen(t, Options{IdleTTL: time.Second, Placement: placement.Params{EvictIdle: 100 * time.Millisecond}}, h)
	serve := func(ref string) {
		t.Helper()
		a.until(ref+" is served", func() bool {
			if d := a.Demand(ref); d.Err != nil {
				t.Errorf("demand %+v", d)
			}
			return len(a.serving(ref+"@0123456789ab")) == 1
		})
	}
	serve(modelRef)
	time.Sleep(200 * time.Millisecond) // it is idle for long enough to be evicted, and stays as long as nobody needs its memory
	for _, w := range a.picture().input().Workers {
		if w.Spec != "" {
			t.Errorf("a plan would take it for one of an old generation: %+v", w)
		}
	}
	if len(h.workers()) != 1 {
		t.Error("it ends although nobody needs its memory and its time is not over")
	}
	serve(other)
	if s := h.spawned(); len(s) != 2 || s[1].SpawnKey != "demand:"+other+"@0123456789ab#0" || len(a.serving(modelID)) != 0 {
		t.Errorf("spawned %+v", s)
	}
	a.until("the eviction is a job that ended well", func() bool {
		return slices.ContainsFunc(a.jobs.List(), func(j contract.Job) bool {
			return j.Operation == contract.OpWorkerDelete && j.State == contract.JobDone
		})
	})
	a.until("the other one is unloaded", func() bool { return len(h.workers()) == 0 })
	var d registry.Demand
	a.until("it does not fit", func() bool { d = a.Demand(huge); return d.Err != nil })
	if e := fault.As(d.Err); e.Code != placement.ShortDoesNotFit || !strings.HasPrefix(e.Message, huge+" needs ") || !strings.Contains(e.Message, "apiary explain") {
		t.Errorf("demand %+v", e)
	}
	if n := len(h.spawned()); n != 2 {
		t.Errorf("%d spawns", n)
	}
	if got := a.run(spawnOp(modelRef)); got.err != nil {
		t.Fatal(got.err)
	}
	time.Sleep(1500 * time.Millisecond)
	if len(h.workers()) != 1 {
		t.Error("a person's worker is unloaded")
	}
}

// TestPressure: while requests wait in the gateway there is another replica.
func TestPressure(t *testing.T) {
	h := newFakeHive(t, "q1")
	var queued atomic.Int32
	a := startQueen(t, Options{Deployments: []contract.Deployment{echoDeployment("chat", 1, 2)}, Queued: func() map[string]int { return map[string]int{echoModel: int(queued.Load())} },
		Placement: placement.Params{ScaleUp: 100 * time.Millisecond, Settle: 100 * time.Millisecond, ScaleDown: time.Second}}, h)
	a.until("it serves", func() bool { return len(a.serving(echoModel)) == 1 })
	queued.Store(3)
	a.until("there is another replica", func() bool { return len(a.serving(echoModel)) == 2 })
	queued.Store(0)
	a.until("one is enough again", func() bool { return len(h.workers()) == 1 })
}

func TestGenerations(t *testing.T) {
	for _, g := range []int64{1, 7, 1 << 20} {
		for _, spec := range []uint32{0, 1, 1<<32 - 1} {
			wire := wireGeneration(g, spec)
			if got, text := readGeneration(wire); got != g || text != specText(spec) || wire > contract.MaxGeneration {
				t.Errorf("%d of %x is %d, which reads %d of %s", g, spec, wire, got, text)
			}
		}
	}
	if g, spec := readGeneration(12); g != 12 || spec != "" {
		t.Errorf("a generation of others reads %d %q", g, spec)
	}
	for key, want := range map[string]string{"chat#1": "chat 1 false", "demand:echo:x#0": "echo:x 0 true", "echo:x#0": " 0 false", "mine": " 0 false", "": " 0 false"} {
		name, n, onDemand := replicaOf(key)
		if got := fmt.Sprint(name, " ", n, " ", onDemand); got != want {
			t.Errorf("%s: %s", key, got)
		}
	}
}
