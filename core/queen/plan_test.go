package queen

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/registry"
)

func planOp(op string, list ...contract.Deployment) contract.PlanRequest {
	return contract.PlanRequest{Operation: op, Deployments: append([]contract.Deployment{}, list...)}
}

func items(p contract.PlanView) string {
	var b strings.Builder
	for _, i := range p.Items {
		fmt.Fprintf(&b, "%s %s %s: %s\n", i.Action, i.Kind, i.Name, i.Text)
		for _, s := range i.Steps {
			fmt.Fprintf(&b, "  %s %d %s %s\n", s.Kind, s.Replica, s.Place, s.Text)
		}
		if i.Problem != "" {
			fmt.Fprintf(&b, "  %s: %s\n", i.Code, i.Problem)
		}
	}
	return b.String()
}

// TestPlanAndApply: a plan says what an apply does, and does nothing; an apply ends when what it is about is served.
func TestPlanAndApply(t *testing.T) {
	one, two := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine(), newFakeHive(t, "h2")
	a := startQueen(t, Options{}, one, two)
	a.until("both are known", func() bool { return a.acquainted() })
	var p contract.PlanView
	d := llamaDeployment("smol")
	a.read(planOp(contract.OpPlan, echoDeployment("chat", 2, 2), d), "PlanView", &p)
	want := `add deployment chat: 2 replicas of echo:chat with echo
  spawn 0 h2-name/cpu0 needs no memory worth mentioning
  spawn 1 q1-name/cpu0 needs no memory worth mentioning
add deployment smol: 1 replica of smol (1.0 MiB) with llama
  spawn 0 q1-name/cpu0 fits 513.2 MiB of 8.0 GiB free · weights already there
`
	if got := items(p); got != want || p.Add != 2 || p.Change+p.Stop != 0 {
		t.Errorf("plan\n%s%+v", got, p)
	}
	if n := len(one.spawned()) + len(two.spawned()); n != 0 {
		t.Errorf("a plan starts %d workers", n)
	}
	var done contract.Applied
	a.read(planOp(contract.OpApply, echoDeployment("chat", 2, 2), d), "Applied", &done)
	if items(done.Plan) != want || len(a.serving(echoModel)) != 2 || len(a.serving(modelID)) != 1 || len(done.Deployments) != 2 || done.Deployments[0].Ready != 2 {
		t.Errorf("applied %+v", done)
	}
	a.read(planOp(contract.OpPlan, echoDeployment("chat", 2, 2), d), "PlanView", &p)
	if len(p.Items) != 0 {
		t.Errorf("after the apply the plan is\n%s", items(p))
	}
	d.Context = 2048
	a.read(planOp(contract.OpPlan, echoDeployment("chat", 1, 1), d), "PlanView", &p)
	if got := items(p); p.Change != 2 || !strings.Contains(got, "change deployment smol: context none → 2048: surge 1 on h2-name/cpu0, warm, shift, drain the old one (≤ 2m); no downtime") ||
		!strings.Contains(got, "replicas.min 2 → 1: no downtime") || !strings.Contains(got, "is drained and ends") {
		t.Errorf("a change\n%s", got)
	}
	a.read(planOp(contract.OpApply), "Applied", &done)
	if n := len(one.workers()) + len(two.workers()); n != 0 || done.Plan.Stop != 2 || len(done.Deployments) != 0 {
		t.Errorf("%d workers are left, %+v", n, done)
	}
	// What cannot be is said, and the rest is done.
	bad := echoDeployment("far", 1, 1)
	bad.Pin = []string{"moon"}
	got := a.run(planOp(contract.OpApply, bad, echoDeployment("chat", 1, 1)))
	if got.err == nil || got.err.Code != placement.ShortExcluded || got.err.Kind != fault.Unavailable || len(a.serving(echoModel)) != 1 {
		t.Errorf("%+v\n%s", got.err, got.text())
	}
	for _, wrong := range []contract.PlanRequest{{Operation: contract.OpPlan}, planOp(contract.OpPlan, contract.Deployment{Name: "x"}), planOp(contract.OpApply, d, d)} {
		if res, err := send(a.http, "POST", a.base+"/v1/jobs", "", wrong); err == nil {
			if res.StatusCode != 400 {
				t.Errorf("%+v: %d", wrong, res.StatusCode)
			}
			_ = res.Body.Close()
		}
	}
}

func TestExplain(t *testing.T) {
	h := newFakeHive(t, "q1").withModel(modelID, modelRef).withEngine()
	d := llamaDeployment("big")
	d.Place.Require = &contract.Expression{Text: `device.memory >= gib(100)`, At: "config.hcl:63"}
	a := startQueen(t, Options{Models: []Model{{Name: "later", Source: "builtin:later"}}}, h)
	a.until("it is known", func() bool { return a.acquainted() })
	var e contract.Explanation
	op := contract.ExplainRequest{Operation: contract.OpExplain, Model: modelRef}
	a.read(op, "Explanation", &e)
	if len(e.Places) != 1 || !e.Places[0].OK || e.Places[0].Place != "q1-name/cpu0" || e.Need == 0 || !strings.HasPrefix(e.Text, modelRef+" (") {
		t.Errorf("%+v", e)
	}
	a.want(d)
	for _, name := range []string{"big", "smol", modelRef} {
		op.Model = name
		a.read(op, "Explanation", &e)
		if len(e.Places) != 1 || e.Places[0].OK || e.Places[0].Code != "excluded" || !strings.Contains(e.Places[0].Reason, "config.hcl:63") || e.Name != name {
			t.Errorf("%s: %+v", name, e)
		}
	}
	for name, code := range map[string]string{"later": "model_not_fetched", "nothing": codeModelNotFound} {
		op.Model = name
		if got := a.run(op); got.err == nil || got.err.Code != code {
			t.Errorf("%s: %+v", name, got.err)
		}
	}
}

// TestHiveDrain: the workers of deployments move from a drained hive, and nothing new comes there, until it is taken back.
func TestHiveDrain(t *testing.T) {
	one, two := newFakeHive(t, "q1"), newFakeHive(t, "h2")
	d := echoDeployment("chat", 1, 1)
	a := startQueen(t, Options{Deployments: []contract.Deployment{d}, Home: t.TempDir(), Placement: placement.Params{Warm: 500 * time.Millisecond}}, one, two)
	a.until("it serves", func() bool { return len(a.serving(echoModel)) == 1 && !a.placing() })
	from, to := one, two
	if len(two.workers()) == 1 {
		from, to = two, one
	}
	id := a.submit(contract.HiveDrain{Operation: contract.OpHiveDrain, HiveID: from.id + "-name"})
	a.until("the successor serves elsewhere", func() bool { return len(to.workers()) == 1 && len(a.serving(echoModel)) == 2 })
	var hives []contract.HiveView
	a.read(operation{contract.OpHiveList}, "[]HiveView", &hives)
	for _, h := range hives {
		if h.Drained != (h.ID == from.id) {
			t.Errorf("%s: drained %v", h.ID, h.Drained)
		}
	}
	if got := a.follow(id); got.err != nil || len(from.workers()) != 0 {
		t.Errorf("%v, %d workers left\n%s", got.err, len(from.workers()), got.text())
	}
	if got := a.run(spawnOp("echo:other")); got.err != nil || len(from.workers()) != 0 {
		t.Errorf("a spawn goes to the drained hive: %v", got.err)
	}
	var v contract.HiveView
	a.read(contract.HiveDrain{Operation: contract.OpHiveDrain, HiveID: from.id, Resume: true}, "HiveView", &v)
	if v.Drained || a.book.drained()[from.id] {
		t.Errorf("%+v", v)
	}
	if got := a.run(contract.HiveDrain{Operation: contract.OpHiveDrain, HiveID: "moon"}); got.err == nil || got.err.Code != "hive_not_found" {
		t.Errorf("%+v", got.err)
	}
}

// TestBook: the file is read as it was written, and the newest record wins.
func TestBook(t *testing.T) {
	home := t.TempDir()
	b, err := openBook(home, "q1")
	if err != nil {
		t.Fatal(err)
	}
	d := echoDeployment("chat", 1, 1)
	if err := b.configure([]contract.Deployment{d}); err != nil {
		t.Fatal(err)
	}
	d.Context = 7
	if err := b.apply([]contract.Deployment{d}); err != nil {
		t.Fatal(err)
	}
	d.Context = 0
	b, err = openBook(home, "q1")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.configure([]contract.Deployment{d}); err != nil { // the same as before: what was applied is newer
		t.Fatal(err)
	}
	if got := b.deployments(); len(got) != 1 || got[0].Context != 7 {
		t.Errorf("%+v", got)
	}
	d.Slots = 2
	if err := b.configure([]contract.Deployment{d}); err != nil {
		t.Fatal(err)
	}
	if got := b.deployments(); len(got) != 1 || got[0].Context != 0 || got[0].Slots != 2 {
		t.Errorf("%+v", got)
	}
	if err := b.configure(nil); err != nil {
		t.Fatal(err)
	}
	if got := b.removed(); len(b.deployments()) != 0 || len(got) != 1 || got[0] != "chat" {
		t.Errorf("%+v", got)
	}
	last := b.records[recordKey{contract.RecordDeployment, "chat"}]
	raw, _ := json.Marshal(last)
	if last.Time == 0 || last.Node != "q1" || !last.Deleted || strings.Contains(string(raw), "value") {
		t.Errorf("%s", raw)
	}
}

// TestPeaks: what workers took of memory is kept and known to the next queen.
func TestPeaks(t *testing.T) {
	home := t.TempDir()
	if _, err := openBook(home, "q1"); err != nil {
		t.Fatal(err)
	}
	p, err := openPeaks(home)
	if err != nil {
		t.Fatal(err)
	}
	w := registry.Worker{Info: contract.WorkerInfo{ModelID: modelID, HiveID: "q1", Device: "cpu0", MemoryBytes: 5}}
	for _, bytes := range []contract.Bytes{7, 3} {
		w.Info.MemoryBytes = bytes
		p.note(&w, engineRef, 4096, 2)
	}
	w.Info.Device = "cuda0" // where its resident memory says nothing
	p.note(&w, engineRef, 4096, 2)
	w.Info.Device, w.Info.DeviceMemoryBytes = "cuda1", 9
	p.note(&w, engineRef, 4096, 2)
	w.Info.Device = "cuda0,cuda1"
	p.note(&w, engineRef, 4096, 2)
	if err := p.save(1); err != nil {
		t.Fatal(err)
	}
	p, err = openPeaks(home)
	want := placement.Peak{Model: modelID, Engine: engineRef, Context: 4096, Slots: 2, Place: placement.Place{Hive: "q1", Device: "cpu0"}, Bytes: 7}
	gpu := want
	gpu.Place.Device, gpu.Bytes = "cuda1", 9
	if got := p.list(); err != nil || len(got) != 2 || !slices.Contains(got, want) || !slices.Contains(got, gpu) {
		t.Errorf("%+v, %v", got, err)
	}
}
