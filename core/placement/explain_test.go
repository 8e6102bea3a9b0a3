package placement

import (
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

func TestExplain(t *testing.T) {
	in := trio().with(Deployment{Name: "big", Model: "m-big", Slots: 4, Context: 8192, Judge: only("cuda")}, Deployment{Name: "chat", Min: 1}, Deployment{Name: "embed"}).
		and(at("c", "chat", 0, "h1/cuda0", 4*gib), Worker{ID: "e", Deployment: "embed", Hive: "h1", Devices: []string{"cuda1"}, Memory: 6 * gib, LastUsed: 820 * time.Second})
	in.Models[1].Variants = []Variant{{Name: "Q2_K", Estimate: Estimate{Weights: 8 * gib, PerToken: 64 * contract.KiB}}, {Name: "Q4_K_M", Estimate: Estimate{Weights: 13 * gib, PerToken: 64 * contract.KiB}}}
	in.Hives[2].Liveness, in.Hives[2].BeatAt = contract.LivenessSuspect, 979*time.Second
	e, ok := Explain(in, "big")
	const want = `big (Q6_K, 22.0 GiB with 8,192 tokens of context, estimate ± 20 %)
  attic/*      no   hive attic is suspect: no beat for 21s
  laptop/cpu0  no   excluded by require (config.hcl:63): device.kind is "cpu"
  tower/cpu0   no   excluded by require (config.hcl:63): device.kind is "cpu"
  tower/cuda0  no   22.0 GiB needed, 19.0 GiB free after reserve and chat
  tower/cuda1  yes  would evict embed (idle 3m, priority 0); fetches 20.0 GiB
Smaller choices that fit now: Q4_K_M (15.0 GiB) on tower/cuda1.
`
	if got := e.Text(); !ok || got != want {
		t.Errorf("explained as\n%swant\n%s", got, want)
	}
	if len(e.Places[4].Evicts) != 1 || e.Places[4].Evicts[0] != "e" {
		t.Errorf("evicts %v", e.Places[4].Evicts)
	}

	in.Models[1].Variants, in.Models[1].Estimate.Weights = nil, 16*gib
	in.Deployments[0].Context = 32768
	in.Peaks = []Peak{{Model: "m-big", Context: 32768, Slots: 4, Place: Place{"h1", "cuda0"}, Bytes: 26 * gib}}
	e, _ = Explain(in, "big")
	const smaller = `big (Q6_K, 26.0 GiB with 32,768 tokens of context, estimate ± 10 %)
  attic/*      no   hive attic is suspect: no beat for 21s
  laptop/cpu0  no   excluded by require (config.hcl:63): device.kind is "cpu"
  tower/cpu0   no   excluded by require (config.hcl:63): device.kind is "cpu"
  tower/cuda0  no   27.0 GiB needed, 19.0 GiB free after reserve and chat
  tower/cuda1  no   26.0 GiB needed, 17.0 GiB free after reserve and embed
Smaller choices that fit now: context 4,096 on tower/cuda0.
`
	if got := e.Text(); got != smaller {
		t.Errorf("explained as\n%swant\n%s", got, smaller)
	}
}

func TestExplainEveryReason(t *testing.T) {
	in := trio().with(Deployment{Name: "smol", PerGPU: true}).and(at("w", "smol", 0, "h1/cuda0", gib))
	in.Hives[0].Devices[1].Fenced = "a process that cannot be killed holds it"
	in.Hives[1].Drained = true
	e, _ := Explain(in, "smol")
	const want = `smol (1.0 GiB, estimate ± 20 %)
  attic/cpu0   no   there is one replica on each accelerator, and this is a processor
  laptop/*     no   hive laptop is drained
  tower/cpu0   no   there is one replica on each accelerator, and this is a processor
  tower/cuda0  no   there is one replica on each accelerator, and this has its own
  tower/cuda1  no   the device is fenced: a process that cannot be killed holds it
`
	if got := e.Text(); got != want {
		t.Errorf("explained as\n%swant\n%s", got, want)
	}
	in = trio().and(at("v", "", 0, "h3/cpu0", 5*gib))
	in.Workers[0].State = StateDraining
	in.Hives[1].Devices[0].MemoryTotal = 0
	in.Past = []Past{{Model: "m-mid", Place: Place{"h1", "cuda0"}, OOMs: 3, Context: 4096}, {Model: "m-mid", Place: Place{"h1", "cuda1"}, Until: 1100 * time.Second, Loop: true, Reason: "crashed"},
		{Model: "m-mid", Place: Place{"h1", "cpu0"}, Until: 1010 * time.Second, Reason: "start_failed"}}
	e, _ = Explain(in, "mid") // a model without a deployment
	const past = `mid (10.0 GiB, estimate ± 20 %)
  attic/cpu0   no   10.0 GiB needed, 2.0 GiB free after reserve and v
  laptop/cpu0  no   the memory of the device is not known
  tower/cpu0   no   its last worker there failed (start_failed) and is started again in 10s
  tower/cuda0  no   its workers were killed there for want of memory, last with a context of 4,096 tokens
  tower/cuda1  no   its workers keep ending there (crashed); none is started by itself for another 1m40s
`
	if got := e.Text(); got != past {
		t.Errorf("explained as\n%swant\n%s", got, past)
	}
	in.Past = nil
	e, _ = Explain(in, "smol")
	if got := e.Places[0].Reason; got != "1.0 GiB needed, 2.0 GiB free; fetches 1.0 GiB" {
		t.Error(got)
	}
	if _, ok := Explain(in, "nobody"); ok {
		t.Error("explains what is not there")
	}
	if e, ok := Explain(Input{Models: in.Models}, "smol"); !ok || e.Text() != "smol\n  no hive is known\n" {
		t.Errorf("without hives: %q", e.Text())
	}
}

// TestReasons: each reason is one sentence that says what happens, to what and why.
func TestReasons(t *testing.T) {
	idle := Deployment{Name: "old", IdleTTL: time.Minute}
	in := trio().with(Deployment{Name: "chat", Min: 1, Max: 3, Pressure: Pressure{QueuedSince: 970 * time.Second}}, Deployment{Name: "mid", Model: "m-mid", Waiting: 3, Priority: 2, Judge: only("cuda")},
		idle, Deployment{Name: "new", Spec: "s2", Min: 1}).
		and(at("c", "chat", 0, "h1/cuda0", 20*gib), at("o", "old", 0, "h3/cpu0", gib), at("n", "new", 0, "h2/cpu0", gib), at("x", "spare", 0, "h1/cuda1", 21*gib),
			at("gone", "gone", 0, "h2/cpu0", gib))
	in.Deployments = append(in.Deployments, Deployment{Name: "spare", Model: "m-smol", Spec: "s1"})
	in.Removed = []string{"gone"}
	in.Hives[2].Holds["m-mid"] = true
	got := ""
	p := Make(in)
	for _, a := range p.Actions {
		got += a.Reason + "\n"
	}
	for _, s := range p.Shortfalls {
		got += s.Reason + "\n"
	}
	const want = `Worker gone ends: the deployment gone was removed.
Worker o is unloaded: nobody used old for 15m.
Worker x of spare is evicted to make room for mid on tower/cuda1: it has been idle for 15m and its priority is 0, that of mid 2.
new#0 goes to tower/cuda0 because the deployment changed: it needs 1.0 GiB of 3.0 GiB free, and 1.0 GiB are fetched from the model's origin.
chat#1 goes to tower/cuda0 because requests have queued for 30s: it needs 1.0 GiB of 2.0 GiB free, and 1.0 GiB are fetched from the model's origin.
mid#0 goes to tower/cuda1 because requests wait for it: it needs 10.0 GiB of 23.0 GiB free, and 10.0 GiB are fetched from attic, once x has ended.
`
	if got != want {
		t.Errorf("reasons\n%swant\n%s", got, want)
	}
}
