package contract

import "cmp"

// QueenSync is the body and the answer of POST /v1/queens/sync, with which two queens tell each other what they know. Who asks is told the
// same of the one that answers, so that one way between them is enough.
type QueenSync struct {
	State  QueenState `json:"state"`
	Digest string     `json:"digest"` // of all records of the sender; of the answer: after it has taken those of the request
	// Records are some of the sender's: those that have changed, or where Pull is set the next part of all.
	Records []Record `json:"records"`
	// Pull asks for the records of the other queen that follow After, an empty one for the first. Next, in the answer, is the After of
	// the next request, and empty when there are no more.
	Pull  bool   `json:"pull,omitempty"`
	After string `json:"after,omitempty"`
	Next  string `json:"next,omitempty"`
}

// MaxQueenSync bounds a QueenSync, and MaxRecords what a part of the records in it may be together.
const (
	MaxQueenSync = 8 * MiB
	MaxRecords   = 1 * MiB
)

// QueenState is what a queen lets others know of its work. All of it is said each time: what is missing is not so any more.
type QueenState struct {
	NodeID   string `json:"node_id"`
	Start    string `json:"start"`    // of this run of the agent, as in Member
	Sequence uint64 `json:"sequence"` // of this run; an older state than one that was heard is of no account
	// Acquainted is set when the queen has learnt what runs, so that it takes part in deciding what is to run.
	Acquainted bool `json:"acquainted,omitempty"`
	// Leaving is set by a queen that stops: it carries out nothing any more.
	Leaving  bool              `json:"leaving,omitempty"`
	Waiting  map[string]int    `json:"waiting,omitempty"`  // requests that wait because nobody serves, by deployment
	Queued   map[string]int    `json:"queued,omitempty"`   // requests that wait in the gateway, by the id or name of their model
	Draining []string          `json:"draining,omitempty"` // workers that are being ended, or were within the last minute
	Pending  []PendingSpawn    `json:"pending,omitempty"`  // workers that were decided on and may not beat yet
	Wanted   map[string]string `json:"wanted,omitempty"`   // names of models that requests want, and which queen is to start each
	Wishes   []DemandState     `json:"wishes,omitempty"`   // how what others have said they want stands
	Tended   []TendedSlot      `json:"tended,omitempty"`   // where this queen started workers that it starts again when they end
}

// PendingSpawn is a worker that a queen has decided on, so that no other queen plans it too.
type PendingSpawn struct {
	WorkerID   string  `json:"worker_id"`
	Deployment string  `json:"deployment"` // of one that a request wants: its model's id
	OnDemand   bool    `json:"on_demand,omitempty"`
	Replica    int     `json:"replica"`
	Generation int64   `json:"generation"` // as placement counts it
	Spec       string  `json:"spec,omitempty"`
	Model      string  `json:"model"`
	Engine     string  `json:"engine,omitempty"`
	HiveID     string  `json:"hive_id"`
	Device     string  `json:"device"`
	Context    int     `json:"context,omitempty"`
	Slots      int     `json:"slots,omitempty"`
	Need       Bytes   `json:"need,omitempty"`
	JobID      string  `json:"job_id,omitempty"`
	Fetching   bool    `json:"fetching,omitempty"` // its model is fetched first
	Progress   float64 `json:"progress,omitempty"` // from 0 to 1
}

// DemandState says how the start of a worker stands that another queen has asked for.
type DemandState struct {
	Name         string  `json:"name"` // as it was asked for
	State        string  `json:"state"`
	JobID        string  `json:"job_id,omitempty"`
	Progress     float64 `json:"progress,omitempty"` // from 0 to 1
	RetryAfterMS int64   `json:"retry_after_ms,omitempty"`
	Status       int     `json:"status,omitempty"` // HTTP status of Error
	Error        *Error  `json:"error,omitempty"`  // why there will be none now
}

// TendedSlot is where workers of a model run.
type TendedSlot struct {
	Model  string `json:"model"`
	HiveID string `json:"hive_id"`
	Device string `json:"device"`
}

// Compare orders records of the same kind and key by when they were made: the greater one counts.
func (r Record) Compare(o Record) int {
	return cmp.Or(cmp.Compare(r.Time, o.Time), cmp.Compare(r.Count, o.Count), cmp.Compare(r.Node, o.Node))
}

// Size is about how many bytes a record takes in JSON.
func (r Record) Size() int { return len(r.Kind) + len(r.Key) + len(r.Value) + len(r.Node) + 128 }
