package registry

import (
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Event is something that happened. The types are those of this file.
type Event interface {
	apply(m *Machine, now time.Duration) []Effect
}

// Beat is a worker's heartbeat whose sender was authenticated.
type Beat struct{ Heartbeat contract.Heartbeat }

// HiveBeat is what a hive said of itself.
type HiveBeat struct{ Beat contract.HiveBeat }

// HiveSuspected says that a hive's agent does not answer other agents, or has left them. That alone makes it suspect until its next
// beat, and nothing worse. One that Left said so itself: that it is silent then does not mean that this queen is cut off.
type HiveSuspected struct {
	HiveID string
	Left   bool
}

// HiveRemoved says that a hive does not belong to the cluster any more. It is forgotten, until it beats again; its workers, if there are
// any, go on being judged by their own beats.
type HiveRemoved struct{ HiveID string }

// HiveInventory is a hive's inventory. It is kept as it is and must not change any more.
type HiveInventory struct{ Inventory *contract.Inventory }

// Tick lets time pass. It comes every second; one that is late by more than Params.PauseAfter says that this process stood
// still, and then nobody is judged for the silence of that time.
type Tick struct{}

// Due says that the wait before a restart is over, so that it need not wait for the next tick. See Effect.Delay.
type Due struct{}

// Exited is a hive's report that a worker's process ended. Jitter is from -1 to 1.
type Exited struct {
	Report contract.WorkerExit
	Jitter float64
}

// Gone says that the worker's process was looked for on its hive and is not there. Jitter is from -1 to 1.
type Gone struct {
	WorkerID string
	Jitter   float64
}

// Draining marks a worker that takes no more requests, because it is about to be deleted, or takes the mark away.
type Draining struct {
	WorkerID string
	On       bool
}

// Deleted says that a worker was ended on purpose.
type Deleted struct{ WorkerID string }

// Unkillable says that a worker's process did not end when it was killed.
type Unkillable struct{ WorkerID string }

// Failure is a request to a worker that failed through the worker's fault.
type Failure struct {
	WorkerID string
	Kind     FailureKind
}

// Success is a request to a worker that was answered.
type Success struct{ WorkerID string }

// Reachable says that an ejected worker answered a probe.
type Reachable struct{ WorkerID string }

// SpawnBegan says that a worker is about to be started in a slot. Automatic is false for a person's wish, which forgets earlier
// failures of the slot, and is not repeated when it fails before the worker takes requests. The id must not be Taken.
type SpawnBegan struct {
	Slot      Slot
	WorkerID  string
	Automatic bool
}

// SpawnFailed says that a begun spawn came to nothing without a process that could report its own end. Reason is a stable
// code. Nobody tries again by himself. A worker that runs under the id, or ended under it, is another one and not touched.
// Jitter is from -1 to 1.
type SpawnFailed struct {
	WorkerID string
	Slot     Slot
	Reason   string
	Jitter   float64
}

// SpawnIs says that a begun spawn found the worker already running under another id.
type SpawnIs struct{ WorkerID, RunningID string }

// Release takes back the wish for automatic restarts in a slot.
type Release struct{ Slot Slot }

// EffectKind says what changed.
type EffectKind string

// Kinds of effects. Any of them but EffectDropped means that the snapshot has changed in a way that matters for routing.
const (
	EffectDropped    EffectKind = "beat_dropped"    // old, repeated, or of a worker that has ended
	EffectWorker     EffectKind = "worker_changed"  // appeared, or its status changed
	EffectLiveness   EffectKind = "worker_liveness" // From → To
	EffectRemoved    EffectKind = "worker_removed"
	EffectExited     EffectKind = "worker_exited"
	EffectEjected    EffectKind = "worker_ejected"
	EffectReturned   EffectKind = "worker_returned" // from an ejection
	EffectHive       EffectKind = "hive_liveness"   // From → To; From is empty for a new hive
	EffectRebooted   EffectKind = "hive_rebooted"   // its old workers are void
	EffectInventory  EffectKind = "hive_inventory"
	EffectPanicOn    EffectKind = "panic_on"
	EffectPanicOff   EffectKind = "panic_off"
	EffectPaused     EffectKind = "paused"  // this process stood still
	EffectRespawn    EffectKind = "respawn" // start a worker in Slot now; answer with SpawnBegan or Release
	EffectSurplus    EffectKind = "surplus" // the worker replaced one that was lost and is back: drain and end it
	EffectCrashLoop  EffectKind = "crashloop"
	EffectDoesNotFit EffectKind = "does_not_fit"
)

// Effect is a change that an event made.
type Effect struct {
	Kind     EffectKind
	WorkerID string
	HiveID   string
	From, To contract.Liveness
	Slot     Slot
	Delay    time.Duration // EffectPaused: how long. EffectExited: until a restart is due
	Reason   string        // stable code
}
