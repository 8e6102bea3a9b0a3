package registry

import "time"

// Target is what a client's model name stands for: the pinned ids of the models that may serve it, best first. It is empty
// for a model of the configuration that is not fetched yet, and while a queen that has just started does not know all hives:
// then Demand says what happens.
type Target struct {
	ModelIDs []string
}

// States of a Demand.
const (
	DemandStarting   = "starting"   // a worker is being started, or may be about to report
	DemandFetching   = "fetching"   // the model is being downloaded by the job JobID
	DemandFailed     = "failed"     // the last attempt failed; another may be made after RetryAfter
	DemandImpossible = "impossible" // no attempt will be made until somebody changes something
)

// Demand says where the wish for a worker of a model stands.
type Demand struct {
	State      string
	JobID      string        // of the download or spawn, once there is one
	Progress   float64       // 0 to 1, of the download or load
	Err        error         // a *fault.Error, for DemandFailed and DemandImpossible
	RetryAfter time.Duration // when a client should ask again
}

// FailureKind says how a request to a worker failed, for passive ejection.
type FailureKind string

// Kinds of failures. A refused dial ejects a worker at once, the others after several in a row.
const (
	FailureDialRefused FailureKind = "dial_refused"
	FailureError       FailureKind = "error"
	FailureStall       FailureKind = "stall"
)
