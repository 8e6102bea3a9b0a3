package placement

import (
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Place is a device of a hive, by the node id and the device's id.
type Place struct {
	Hive   string
	Device string // "cpu0", "cuda0", …
}

// Device is something that can run a model.
type Device struct {
	ID   string
	Kind string // "cpu", "cuda", …; anything but "cpu" is an accelerator
	Name string
	// MemoryTotal is 0 where it is not known; then only workers that need no memory are placed here.
	MemoryTotal contract.Bytes
	// MemoryFree is what was free at FreeAt, with the workers of that time in it. A FreeAt of 0 says that nobody has measured.
	MemoryFree contract.Bytes
	FreeAt     time.Duration
	Reserve    contract.Bytes // stays free
	// Pool names the memory that the device shares with other devices of its hive, such as a built-in GPU with the processor.
	// Empty: its own. The devices of a pool say the same total, free and reserve.
	Pool   string
	Fenced string // why nothing may be started here, as in "a process that cannot be killed holds it"; empty: it may
}

// Hive is a machine.
type Hive struct {
	ID, Name string
	Labels   []string
	Liveness contract.Liveness
	BeatAt   time.Duration
	Drained  bool // it gets nothing new, and what it has moves away
	Devices  []Device
	// Holds says which models and engines are there, by the ids in Deployment.Model and Deployment.Engine.
	Holds map[string]bool
}

// Estimate says what a worker of a model needs.
type Estimate struct {
	Weights  contract.Bytes // resident once the model is loaded
	PerToken contract.Bytes // of KV cache, for each token of each slot; 0: not known, and the context is the engine's choice
	Fixed    contract.Bytes // buffers of the engine
}

// EstimateOf is the estimate for a model of which only the size of its files is known, and perhaps the KV cache that a token
// takes.
func EstimateOf(files, perToken contract.Bytes) Estimate {
	const buffers = 512 * contract.MiB
	switch {
	case files == 0:
		return Estimate{}
	case perToken == 0: // a fifth more for a cache of unknown size
		return Estimate{Weights: files, Fixed: files/5 + buffers}
	}
	return Estimate{Weights: files, PerToken: perToken, Fixed: files/20 + buffers/2}
}

// Variant is another quantisation of a model, which Explain offers where the model itself does not fit.
type Variant struct {
	Name     string // "Q4_K_M"
	Estimate Estimate
}

// Model is what a deployment serves.
type Model struct {
	ID         string         // pinned, or the reference of one that nobody has fetched yet
	Name       string         // as people know it: "big-coder"
	Variant    string         // its quantisation, for texts; may be empty
	Bytes      contract.Bytes // of its files: what a fetch transfers; one of unknown size is to be resolved first, for 0 fits everywhere
	MaxContext int            // tokens that it was trained for; 0: not known
	Estimate   Estimate
	Variants   []Variant
}

// Peak is the most memory that a worker was seen to take.
type Peak struct {
	Model, Engine  string
	Context, Slots int
	Place          Place
	Bytes          contract.Bytes
}

// Opinion is what a deployment's rules say of a device.
type Opinion struct {
	Excluded string // why it may not run there, as in "excluded by require (config.hcl:63): device.kind is \"cpu\""; empty: it may
	Prefer   bool
}

// Deployment is a wish: so many workers of a model.
type Deployment struct {
	Name   string // unique
	Model  string // Model.ID
	Worker string // the kind of worker
	Engine string // its engine's id, as in Hive.Holds; empty: it needs none
	// Spec identifies what its workers are started with: model, worker, context, slots, env, args, but not where or how many. A
	// worker with another one is of an old generation.
	Spec     string
	Min, Max int  // replicas; a Max below Min or 1 counts as the larger of the two
	PerGPU   bool // one on each accelerator that Judge allows, instead of Min and Max
	Context  int  // tokens a request may use; 0: what fits, up to the model's
	Slots    int  // 0: the engine's default
	IdleTTL  time.Duration
	Pinned   bool // to places, which Judge knows: its workers are not evicted
	Priority int  // higher ones may evict lower ones
	Spread   bool // over hives; else pack them, so that large devices stay free
	// Judge is the deployment's opinion of a device. It must be pure; nil allows every device. Whether a worker may stay where it is
	// is asked with all of the device's memory free, so that none is driven out by what it takes itself.
	Judge func(*Hive, *Device) Opinion

	Waiting  int // requests at all queens that wait because no worker could take them
	Pressure Pressure
}

// State is where a worker stands.
type State string

// States of a worker.
const (
	StateStarting State = "starting" // decided, begun or loading
	StateReady    State = "ready"    // takes requests, or is busy with as many as it can
	StateDown     State = "down"     // silent; it may well be back
	StateLost     State = "lost"     // silent for so long that it is to be replaced; its process may still exist
	StateDraining State = "draining" // being ended
	StateFailed   State = "failed"   // ended by itself, and not started again yet
)

// Worker is a worker as a queen knows it.
type Worker struct {
	ID         string
	Deployment string // empty: a person started it, and nothing here ends it
	Replica    int
	Generation int64
	Model      string
	Engine     string
	Hive       string
	Devices    []string
	Spec       string
	Context    int // what it was started with
	Slots      int
	State      State
	ReadyAt    time.Duration  // when it first took requests
	LastUsed   time.Duration  // 0: never
	Busy       int            // requests in its slots or on their way there
	Queue      int            // requests that wait inside it
	Memory     contract.Bytes // Action.Need, or what it was seen to take; 0: estimated
}

// Past is what earlier workers of a model mean for another one at a place.
type Past struct {
	Model   string
	Place   Place
	Until   time.Duration // none is started before; 0: at once
	Crashed bool          // the last one ended by itself, rather than being refused
	Loop    bool          // it keeps crashing, and Until ends the crash loop
	NoFit   bool          // it was killed for want of memory too often
	OOMs    int           // kills for want of memory in a row
	Context int           // of the last worker that was killed for want of memory
	Reason  string        // stable code of the last failure
}

// Params are the bounds and waits of the rules. The zero value of each field stands for its default, which DefaultParams gives.
type Params struct {
	EvictIdle   time.Duration // 1 m: a worker of the same priority is evicted only when idle for so long
	ScaleUp     time.Duration // 10 s: requests queue so long before a replica is added
	Settle      time.Duration // 30 s: after a worker became ready, before another one is added
	ScaleDown   time.Duration // 5 m: one replica fewer would have done for so long before one goes
	Warm        time.Duration // 10 s: a new generation serves for so long before the old one is drained
	Drain       time.Duration // 2 m: how long a drain may take, for texts
	MinContext  int           // 2,048: no context is made smaller than this
	AutoContext int           // 8,192: where neither the deployment nor the model says
	AutoSlots   int           // 4: for estimates
}

// DefaultParams returns the defaults.
func DefaultParams() Params { return Params{}.withDefaults() }

func (p Params) withDefaults() Params {
	for _, f := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&p.EvictIdle, time.Minute}, {&p.ScaleUp, 10 * time.Second}, {&p.Settle, 30 * time.Second}, {&p.ScaleDown, 5 * time.Minute},
		{&p.Warm, 10 * time.Second}, {&p.Drain, 2 * time.Minute}} {
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	for _, f := range []struct {
		v   *int
		def int
	}{{&p.MinContext, 2048}, {&p.AutoContext, 8192}, {&p.AutoSlots, 4}} {
		if *f.v == 0 {
			*f.v = f.def
		}
	}
	return p
}

// Input is all that a plan depends on. Make and Explain change nothing in it.
type Input struct {
	Now         time.Duration // monotonic, as all times in it
	Panic       bool          // the mass-failure brake is on: nothing is started, moved or ended
	Queens      []string      // node ids of the live queens, the asking one included
	Hives       []Hive
	Models      []Model
	Deployments []Deployment
	// Removed names the deployments that were taken back: their workers end. A worker of a deployment that is neither here nor
	// there is left alone, because this queen may not have heard of its deployment yet.
	Removed []string
	Workers []Worker
	Past    []Past
	Peaks   []Peak
	Params  Params
}
