package registry

import (
	"sort"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Worker is one worker in a Snapshot.
type Worker struct {
	Info      contract.WorkerInfo
	Sequence  uint64 // of the last beat
	Liveness  contract.Liveness
	Condition string        // one of contract.Condition…, or empty
	BeatAt    time.Duration // when the last beat came
	ReadyAt   time.Duration // when it first was Ready; 0: never
	Draining  bool
	Failures  int // consecutive failed requests

	EjectedUntil time.Duration        // 0: not ejected
	Weight       float64              // from 0.1 to 1: less than 1 in the 30 s after an ejection (slow start)
	Exit         *contract.WorkerExit // how it ended; nil while it runs
}

// Hive is one hive in a Snapshot.
type Hive struct {
	Beat      contract.HiveBeat
	Inventory *contract.Inventory // nil until it was fetched; never changed once published
	Liveness  contract.Liveness
	BeatAt    time.Duration
}

// Snapshot is an immutable picture of the registry. Nobody may change what its slices and pointers refer to.
type Snapshot struct {
	At      time.Duration
	Workers []Worker // ordered by id
	Hives   []Hive   // ordered by id
	Panic   bool     // the mass-failure brake is on

	serving map[string][]Worker
}

// Serving returns the workers to which requests for modelID may be sent, best first: Ready or Busy, not draining, of our
// contract version. Ejected and suspect workers are among them only while there is no other. It is empty when there is none.
func (s *Snapshot) Serving(modelID string) []Worker { return s.serving[modelID] }

// Worker returns the worker with the id.
func (s *Snapshot) Worker(id string) (Worker, bool) {
	i := sort.Search(len(s.Workers), func(i int) bool { return s.Workers[i].Info.ID >= id })
	if i < len(s.Workers) && s.Workers[i].Info.ID == id {
		return s.Workers[i], true
	}
	return Worker{}, false
}

// Hive returns the hive with the node id.
func (s *Snapshot) Hive(id string) (Hive, bool) {
	i := sort.Search(len(s.Hives), func(i int) bool { return s.Hives[i].Beat.ID >= id })
	if i < len(s.Hives) && s.Hives[i].Beat.ID == id {
		return s.Hives[i], true
	}
	return Hive{}, false
}
