package registry

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
)

const boot = "boot-1"

// world drives a machine in tests.
type world struct {
	t    *testing.T
	m    *Machine
	now  time.Duration
	seqs map[string]uint64
	seen []Effect
}

func newWorld(t *testing.T) *world {
	return &world{t: t, m: New(Params{}, 0), seqs: map[string]uint64{}}
}

func (w *world) step(ev Event) []Effect {
	fx := w.m.Step(w.now, ev)
	w.seen = append(w.seen, fx...)
	return fx
}

// pass lets time pass with a tick every second, and with beats of the named workers and hives every five.
func (w *world) pass(d time.Duration, beating ...string) {
	for end := w.now + d; w.now < end; {
		w.now += time.Second
		if w.now%(5*time.Second) == 0 {
			for _, id := range beating {
				if id[0] == 'h' {
					w.hive(id, boot)
				} else {
					w.beat(id, contract.StatusReady)
				}
			}
		}
		w.step(Tick{})
	}
}

func info(id string, status contract.WorkerStatus) contract.WorkerInfo {
	return contract.WorkerInfo{ID: id, ModelID: "m", Device: "cpu0", HiveID: "h1", Port: 1, Address: "127.0.0.1", Status: status,
		ContractVersion: 1, Incarnation: 100, PID: 7, BootID: boot, StartTicks: 9, Slots: 1}
}

func (w *world) beat(id string, status contract.WorkerStatus) []Effect {
	w.seqs[id]++
	return w.step(Beat{Heartbeat: contract.Heartbeat{Worker: info(id, status), Sequence: w.seqs[id]}})
}

func (w *world) hive(id, bootID string) []Effect {
	w.seqs[id]++
	return w.step(HiveBeat{Beat: contract.HiveBeat{ID: id, BootID: bootID, Incarnation: 50, Sequence: w.seqs[id]}})
}

func (w *world) worker(id string) Worker {
	w.t.Helper()
	out, ok := w.m.Snapshot(w.now).Worker(id)
	if !ok {
		w.t.Fatalf("worker %s is not known", id)
	}
	return out
}

func (w *world) serving() []string {
	var ids []string
	for _, s := range w.m.Snapshot(w.now).Serving("m") {
		ids = append(ids, s.Info.ID)
	}
	return ids
}

func (w *world) exit(id string, code int, oom bool) []Effect {
	i := info(id, "")
	return w.step(Exited{Report: contract.WorkerExit{WorkerID: id, Identity: i.Identity(), ExitCode: code, OOM: oom}})
}

func (w *world) count(kind EffectKind) int {
	n := 0
	for _, e := range w.seen {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

func TestLivenessByAge(t *testing.T) {
	w := newWorld(t)
	w.pass(20 * time.Second) // past the grace
	w.beat("w1", contract.StatusReady)
	for _, c := range []struct {
		age  time.Duration
		want contract.Liveness
		n    int // serving
	}{
		{5 * time.Second, contract.LivenessAlive, 1}, {8 * time.Second, contract.LivenessStale, 1},
		{13 * time.Second, contract.LivenessSuspect, 1}, {18 * time.Second, contract.LivenessDown, 0},
		{59 * time.Second, contract.LivenessDown, 0}, {61 * time.Second, contract.LivenessLost, 0},
	} {
		w.pass(20*time.Second + c.age - w.now)
		if got := w.worker("w1").Liveness; got != c.want {
			t.Errorf("at age %s the worker is %s, want %s", c.age, got, c.want)
		}
		if got := len(w.serving()); got != c.n {
			t.Errorf("at age %s %d workers serve, want %d", c.age, got, c.n)
		}
	}
	w.pass(24 * time.Hour)
	if _, ok := w.m.Snapshot(w.now).Worker("w1"); ok {
		t.Error("a worker that was silent for a day is still known")
	}
}

func TestOldBeatsAreDropped(t *testing.T) {
	w := newWorld(t)
	at := func(inc int64, seq uint64, status contract.WorkerStatus) {
		i := info("w1", status)
		i.Incarnation, i.PID = inc, int(inc)
		w.step(Beat{Heartbeat: contract.Heartbeat{Worker: i, Sequence: seq}})
	}
	at(100, 5, contract.StatusReady)
	at(100, 5, contract.StatusStopped) // again
	at(100, 4, contract.StatusStopped) // reordered
	at(99, 900, contract.StatusStopped)
	if got := w.worker("w1").Info.Status; got != contract.StatusReady || w.count(EffectDropped) != 3 {
		t.Errorf("status %s with %d dropped beats, want Ready with 3", got, w.count(EffectDropped))
	}
	at(101, 1, contract.StatusBusy)
	if got := w.worker("w1").Info.Status; got != contract.StatusBusy {
		t.Errorf("a new incarnation was not taken: %s", got)
	}
	at(100, 6, contract.StatusStopped) // the old run is over for good
	if got := w.worker("w1").Info.Status; got != contract.StatusBusy {
		t.Errorf("a beat of the old run was taken: %s", got)
	}
	if got := w.exit("w1", 1, false); w.worker("w1").Exit != nil {
		t.Errorf("the exit of another process ended the worker: %v", got)
	}
}

func TestLateBeatDoesNotReviveADeletedWorker(t *testing.T) {
	w := newWorld(t)
	w.beat("w1", contract.StatusReady)
	w.step(Draining{WorkerID: "w1", On: true})
	if len(w.serving()) != 0 || w.worker("w1").Condition != contract.ConditionDraining {
		t.Error("a draining worker is routed to")
	}
	w.step(Deleted{WorkerID: "w1"})
	w.exit("w1", 0, false)
	w.beat("w1", contract.StatusReady)
	if _, ok := w.m.Snapshot(w.now).Worker("w1"); ok {
		t.Error("a late beat brought a deleted worker back")
	}
	w.pass(time.Minute)
	if n := w.count(EffectRespawn); n != 0 {
		t.Errorf("a deleted worker was restarted %d times", n)
	}
}

func TestGraceAndPause(t *testing.T) {
	w := newWorld(t)
	w.now = time.Second
	w.beat("w1", contract.StatusReady)
	w.step(Tick{})
	w.now += 40 * time.Second // this process stood still: nobody is judged for it
	fx := w.step(Tick{})
	if len(fx) == 0 || fx[0].Kind != EffectPaused || w.worker("w1").Liveness != contract.LivenessAlive {
		t.Errorf("after a pause: %v, worker %s", fx, w.worker("w1").Liveness)
	}
	w.pass(20 * time.Second)
	if got := w.worker("w1").Liveness; got != contract.LivenessDown {
		t.Errorf("after 20 s of silence without a pause the worker is %s", got)
	}

	g := New(Params{Stale: time.Second, Suspect: 2 * time.Second, Down: 3 * time.Second}, 0)
	g.Step(0, Beat{Heartbeat: contract.Heartbeat{Worker: info("w1", contract.StatusReady), Sequence: 1}})
	for now := time.Second; now < 17*time.Second; now += time.Second {
		g.Step(now, Tick{})
		if got, _ := g.Snapshot(now).Worker("w1"); got.Liveness == contract.LivenessDown {
			t.Fatalf("down at %s, within the startup grace", now)
		}
	}
	g.Step(18*time.Second, Tick{})
	if got, _ := g.Snapshot(0).Worker("w1"); got.Liveness != contract.LivenessDown {
		t.Errorf("after the grace the worker is %s", got.Liveness)
	}
}

func TestFlappingHiveIsHeldSuspect(t *testing.T) {
	w := newWorld(t)
	w.hive("h1", boot)
	w.pass(20*time.Second, "h1")
	state := func() contract.Liveness { h, _ := w.m.Snapshot(w.now).Hive("h1"); return h.Liveness }
	for range 2 { // suspect, up, suspect: three changes
		w.pass(14 * time.Second)
		w.hive("h1", boot)
	}
	held := w.now
	if state() != contract.LivenessSuspect {
		t.Fatalf("a flapping hive is %s", state())
	}
	w.pass(40*time.Second, "h1")
	if state() != contract.LivenessSuspect {
		t.Errorf("%s after the third change the hive is %s", w.now-held, state())
	}
	w.pass(25*time.Second, "h1")
	if state() != contract.LivenessAlive {
		t.Errorf("%s after the third change the hive is %s", w.now-held, state())
	}
}

// TestAHiveThatWasAwayOnce: an absence is one change and its end another, however bad it got in between. Two changes are no flapping.
func TestAHiveThatWasAwayOnce(t *testing.T) {
	for _, away := range []time.Duration{14 * time.Second, 25 * time.Second, 50 * time.Second, 3 * time.Minute} {
		w := newWorld(t)
		w.hive("h1", boot)
		w.pass(20*time.Second, "h1", "w1")
		w.pass(away, "w1")
		w.hive("h1", boot)
		if h, _ := w.m.Snapshot(w.now).Hive("h1"); h.Liveness != contract.LivenessAlive {
			t.Errorf("a hive that was away for %s once and beats again is %s", away, h.Liveness)
		}
	}
}

// TestFlapAndBrakeParameters: other numbers than the defaults are obeyed.
func TestFlapAndBrakeParameters(t *testing.T) {
	w := newWorld(t)
	w.m = New(Params{FlapChanges: 2, FlapWindow: 30 * time.Second, FlapHold: 20 * time.Second}, w.now)
	w.pass(20*time.Second, "h1")
	w.pass(14 * time.Second)
	w.hive("h1", boot)
	state := func() contract.Liveness { h, _ := w.m.Snapshot(w.now).Hive("h1"); return h.Liveness }
	if state() != contract.LivenessSuspect {
		t.Errorf("after two changes, which are flapping here, the hive is %s", state())
	}
	if w.pass(25*time.Second, "h1"); state() != contract.LivenessAlive {
		t.Errorf("25 s later the hive is %s", state())
	}

	for _, c := range []struct {
		p     Params
		brake bool
	}{
		{Params{}, true},                              // two of three
		{Params{BrakeShare: 0.7}, false},              // two of three are not more than 70 %
		{Params{BrakeHives: 4}, false},                // three hives are too few
		{Params{BrakeWindow: time.Nanosecond}, false}, // nothing is together
	} {
		b := newWorld(t)
		b.m = New(c.p, b.now)
		b.pass(20*time.Second, "h1", "h2", "h3")
		b.pass(20*time.Second, "h1")
		if on := b.m.Snapshot(b.now).Panic; on != c.brake {
			t.Errorf("%+v: the brake is on: %v", c.p, on)
		}
	}
}

func TestBrake(t *testing.T) {
	w := newWorld(t)
	w.pass(20*time.Second, "h1", "h2", "h3", "w1")
	w.pass(3*time.Minute, "h1") // h2 and h3 and the worker fall silent together
	s := w.m.Snapshot(w.now)
	if !s.Panic || w.count(EffectPanicOn) != 1 {
		t.Fatal("the brake is off although two of three hives fell silent at once")
	}
	for _, h := range s.Hives {
		if h.Liveness == contract.LivenessLost {
			t.Errorf("hive %s is lost while the brake is on", h.Beat.ID)
		}
	}
	if !slices.Equal(w.serving(), []string{"w1"}) {
		t.Errorf("with the brake on %v serve, want the last known set", w.serving())
	}
	if n := w.count(EffectRespawn); n != 0 {
		t.Errorf("%d workers were replaced while the brake was on", n)
	}
	w.pass(15*time.Second, "h1", "h2", "h3")
	if w.m.Snapshot(w.now).Panic {
		t.Error("the brake stays on although all hives are back")
	}

	one := newWorld(t)
	one.pass(20*time.Second, "h1", "h2", "h3")
	one.pass(2*time.Minute, "h1", "h2")
	if h, _ := one.m.Snapshot(one.now).Hive("h3"); h.Liveness != contract.LivenessLost || one.count(EffectPanicOn) != 0 {
		t.Errorf("one silent hive of three is %s", h.Liveness)
	}
}

// TestHivesThatLeaveAreNoBrake: two machines of three that are stopped together said that they go, so what ran there is replaced on the third.
func TestHivesThatLeaveAreNoBrake(t *testing.T) {
	w := newWorld(t)
	w.pass(20*time.Second, "h1", "h2", "h3")
	w.step(HiveSuspected{HiveID: "h2"}) // it does not answer, and then it is said why
	w.step(HiveSuspected{HiveID: "h2", Left: true})
	w.step(HiveSuspected{HiveID: "h3", Left: true})
	w.pass(2*time.Minute, "h1")
	s := w.m.Snapshot(w.now)
	if s.Panic || w.count(EffectPanicOn) != 0 {
		t.Error("the brake is on although the silent hives have left")
	}
	if h, _ := s.Hive("h3"); h.Liveness != contract.LivenessLost {
		t.Errorf("a hive that left is %s", h.Liveness)
	}
	w.pass(20*time.Second, "h1", "h2", "h3") // they are back, and what they said is over
	w.pass(30*time.Second, "h1")
	if !w.m.Snapshot(w.now).Panic {
		t.Error("the brake is off although two of three hives fell silent without a word")
	}
}

func TestRebootVoidsOldWorkers(t *testing.T) {
	w := newWorld(t)
	w.hive("h1", boot)
	w.beat("w1", contract.StatusReady)
	w.beat("w2", contract.StatusReady)
	fx := w.step(HiveBeat{Beat: contract.HiveBeat{ID: "h1", BootID: "boot-2", Incarnation: 1000, Sequence: 1}})
	if len(w.m.Snapshot(w.now).Workers) != 0 {
		t.Errorf("workers of the old boot are still known: %v", fx)
	}
	w.beat("w1", contract.StatusReady) // a delayed packet of the old boot
	w.hive("h1", boot)
	h, _ := w.m.Snapshot(w.now).Hive("h1")
	if len(w.m.Snapshot(w.now).Workers) != 0 || h.Beat.BootID != "boot-2" {
		t.Errorf("a packet of the old boot was taken: boot %s", h.Beat.BootID)
	}
	// A worker of the new boot may come before its hive: it waits until the hive itself says so.
	n := newWorld(t)
	n.hive("h1", boot)
	n.beat("w1", contract.StatusReady)
	i := info("w2", contract.StatusReady)
	i.BootID, i.Incarnation = "boot-2", 2000
	next := func(seq uint64) { n.step(Beat{Heartbeat: contract.Heartbeat{Worker: i, Sequence: seq}}) }
	next(1)
	if ids := n.serving(); !slices.Equal(ids, []string{"w1"}) {
		t.Errorf("before the hive says that it was started again %v serve", ids)
	}
	n.step(HiveBeat{Beat: contract.HiveBeat{ID: "h1", BootID: "boot-2", Incarnation: 1900, Sequence: 1}})
	next(2)
	if ids := n.serving(); !slices.Equal(ids, []string{"w2"}) {
		t.Errorf("after the hive said so %v serve", ids)
	}
}

// TestWorkerDoesNotSpeakForItsHive: only a hive says under which boot it runs. A worker's beat with another boot id is of no
// consequence, however new it claims to be; before the hive is known it stands, and then the hive decides.
func TestWorkerDoesNotSpeakForItsHive(t *testing.T) {
	foreign := info("w9", contract.StatusReady)
	foreign.BootID, foreign.Incarnation, foreign.PID = "boot-x", 1<<62, 99
	lie := Beat{Heartbeat: contract.Heartbeat{Worker: foreign, Sequence: 1}}

	w := newWorld(t)
	w.hive("h1", boot)
	w.beat("w1", contract.StatusReady)
	if fx := w.step(lie); len(fx) != 1 || fx[0].Kind != EffectDropped {
		t.Errorf("a foreign boot id had the effects %v", fx)
	}
	w.hive("h1", boot)
	w.beat("w1", contract.StatusReady)
	if ids := w.serving(); !slices.Equal(ids, []string{"w1"}) || w.count(EffectRebooted) != 0 {
		t.Errorf("after a beat with a foreign boot id %v serve", ids)
	}

	n := newWorld(t) // the same before the hive is known
	n.beat("w1", contract.StatusReady)
	n.step(lie)
	if ids := n.serving(); !slices.Equal(ids, []string{"w1", "w9"}) {
		t.Errorf("before the hive is known %v serve", ids)
	}
	n.hive("h1", boot)
	n.hive("h1", boot)
	n.beat("w1", contract.StatusReady)
	if h, _ := n.m.Snapshot(n.now).Hive("h1"); !slices.Equal(n.serving(), []string{"w1"}) || h.Beat.BootID != boot {
		t.Errorf("after the hive's own beat %v serve under boot %s", n.serving(), h.Beat.BootID)
	}
}

// TestRunKeepsItsIdentity: what a run of a worker is does not change while it runs.
func TestRunKeepsItsIdentity(t *testing.T) {
	w := newWorld(t)
	w.beat("w1", contract.StatusReady)
	for _, change := range []func(*contract.WorkerInfo){
		func(i *contract.WorkerInfo) { i.PID = 1 }, func(i *contract.WorkerInfo) { i.BootID = "other" },
		func(i *contract.WorkerInfo) { i.StartTicks++ }, func(i *contract.WorkerInfo) { i.HiveID = "h2" },
		func(i *contract.WorkerInfo) { i.ModelID = "other" },
	} {
		i := info("w1", contract.StatusBusy)
		change(&i)
		w.seqs["w1"]++
		fx := w.step(Beat{Heartbeat: contract.Heartbeat{Worker: i, Sequence: w.seqs["w1"]}})
		if len(fx) != 1 || fx[0].Kind != EffectDropped || w.worker("w1").Info.Status != contract.StatusReady {
			t.Errorf("a beat of the same run with another identity had the effects %v", fx)
		}
	}
}

// TestHiveWhoseClockWasSetBack: a hive that was started again under an earlier time is believed when its former run is silent.
func TestHiveWhoseClockWasSetBack(t *testing.T) {
	w := newWorld(t)
	w.hive("h1", boot)
	back := func(seq uint64) []Effect {
		return w.step(HiveBeat{Beat: contract.HiveBeat{ID: "h1", BootID: boot, Incarnation: 10, Sequence: seq}})
	}
	if fx := back(1); len(fx) != 1 || fx[0].Kind != EffectDropped {
		t.Errorf("an older run of a hive that beats had the effects %v", fx)
	}
	w.pass(10 * time.Second)
	back(2)
	if h, _ := w.m.Snapshot(w.now).Hive("h1"); h.Beat.Incarnation != 10 || h.Liveness != contract.LivenessAlive {
		t.Errorf("the hive is %s with the incarnation %d", h.Liveness, h.Beat.Incarnation)
	}
}

func TestOutliers(t *testing.T) {
	w := newWorld(t)
	w.beat("w1", contract.StatusReady)
	w.step(Failure{WorkerID: "w1", Kind: FailureDialRefused})
	if !slices.Equal(w.serving(), []string{"w1"}) || w.worker("w1").Condition != "" {
		t.Error("the last worker was ejected")
	}
	w.beat("w2", contract.StatusReady)
	w.step(Failure{WorkerID: "w1", Kind: FailureDialRefused})
	if !slices.Equal(w.serving(), []string{"w2"}) || w.worker("w1").Condition != contract.ConditionOutlier {
		t.Errorf("after a refused dial %v serve", w.serving())
	}
	if got := w.worker("w1").EjectedUntil - w.now; got != 30*time.Second {
		t.Errorf("the first ejection lasts %s", got)
	}
	w.pass(10*time.Second, "w1", "w2")
	if w.step(Reachable{WorkerID: "w1"}); w.worker("w1").EjectedUntil == 0 {
		t.Error("a probe ended the ejection before its first period")
	}
	w.pass(21*time.Second, "w1", "w2")
	if got := w.worker("w1"); got.EjectedUntil != 0 || got.Weight > 0.2 {
		t.Errorf("after the ejection: until %s, weight %v, want slow start", got.EjectedUntil, got.Weight)
	}
	w.pass(40*time.Second, "w1", "w2")
	if got := w.worker("w1"); got.Weight != 1 {
		t.Errorf("after slow start the weight is %v", got.Weight)
	}
	for i := range 5 {
		if got := w.worker("w1").EjectedUntil; got != 0 {
			t.Errorf("ejected after %d failures", i)
		}
		w.step(Failure{WorkerID: "w1", Kind: FailureError})
	}
	if got := w.worker("w1").EjectedUntil - w.now; got != time.Minute {
		t.Errorf("the second ejection lasts %s", got)
	}
	w.pass(31*time.Second, "w1", "w2")
	w.step(Failure{WorkerID: "w2", Kind: FailureDialRefused})
	if got := w.worker("w2").EjectedUntil; got != 0 {
		t.Error("the only worker that was not ejected was ejected")
	}
	for range 4 {
		w.step(Failure{WorkerID: "w2", Kind: FailureError})
		w.step(Success{WorkerID: "w2"})
	}
	if got := w.worker("w2").Failures; got != 0 {
		t.Errorf("a success left %d failures", got)
	}
}

func TestUnknownContractVersionIsNotRouted(t *testing.T) {
	w := newWorld(t)
	i := info("w1", contract.StatusReady)
	i.ContractVersion = 2
	w.step(Beat{Heartbeat: contract.Heartbeat{Worker: i, Sequence: 1}})
	if len(w.serving()) != 0 || len(w.m.Snapshot(0).Workers) != 1 {
		t.Error("a worker of another contract version must be listed and not routed")
	}
}

func TestSnapshotIsImmutable(t *testing.T) {
	w := newWorld(t)
	w.beat("w1", contract.StatusReady)
	w.hive("h1", boot)
	s := w.m.Snapshot(w.now)
	before := slices.Clone(s.Workers)
	w.beat("w1", contract.StatusBusy)
	w.step(Draining{WorkerID: "w1", On: true})
	w.beat("w0", contract.StatusReady)
	if d := cmp.Diff(before, s.Workers); d != "" {
		t.Errorf("a snapshot changed:\n%s", d)
	}
}

// TestRemovedHive is forgotten at once, its worker goes on by its own beats, and a beat makes it known again.
func TestRemovedHive(t *testing.T) {
	w := newWorld(t)
	w.hive("h1", boot)
	w.beat("w1", contract.StatusReady)
	if fx := w.step(HiveRemoved{HiveID: "h1"}); len(fx) != 1 || fx[0].Kind != EffectHive || fx[0].To != contract.LivenessLost {
		t.Errorf("%+v", fx)
	}
	if _, ok := w.m.Snapshot(w.now).Hive("h1"); ok || len(w.serving()) != 1 {
		t.Errorf("it is known: %v, and %v serve", ok, w.serving())
	}
	if fx := w.step(HiveRemoved{HiveID: "h1"}); len(fx) != 0 {
		t.Errorf("a second time: %+v", fx)
	}
	w.hive("h1", boot)
	if h, ok := w.m.Snapshot(w.now).Hive("h1"); !ok || h.Liveness != contract.LivenessAlive {
		t.Errorf("%+v %v", h, ok)
	}
}
