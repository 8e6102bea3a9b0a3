package contract

import "encoding/json"

// Record is something that queens share: the newest by Time, Count and Node wins. One that was taken back is kept for 30 days as a
// record without a value, so that it does not come back from a queen that was away.
type Record struct {
	Kind    string          `json:"kind"` // one of the Record constants
	Key     string          `json:"key"`
	Value   json.RawMessage `json:"value,omitempty"`
	Deleted bool            `json:"deleted,omitempty"`
	Time    int64           `json:"time"`  // Unix milliseconds, never before a record that its writer knew
	Count   int64           `json:"count"` // orders what one millisecond saw
	Node    string          `json:"node"`  // node id of the writer
}

// Kinds of records.
const (
	RecordDeployment = "deployment" // Key: its name; Value: a Deployment
	RecordDrain      = "drain"      // Key: a hive's node id; Value: true
	RecordKey        = "key"        // Key: its id; Value: an APIKey
	RecordKeys       = "keys"       // Key: "required"; Value: true, once a key was made
)

// DeploymentView is a deployment as the queen lists it.
type DeploymentView struct {
	Name     string   `json:"name"`
	Model    string   `json:"model"`
	Replicas Replicas `json:"replicas"`
	Ready    int      `json:"ready"`            // workers that take requests
	Starting int      `json:"starting"`         // that load, or are about to be started
	Ending   int      `json:"ending"`           // that finish their requests
	Reason   string   `json:"reason,omitempty"` // why there are fewer than there should be, in one sentence
	Code     string   `json:"code,omitempty"`   // the same as a stable code
}

// PlanRequest is the body of Plan and Apply: all deployments that there shall be.
type PlanRequest struct {
	Operation   string       `json:"operation"`
	Deployments []Deployment `json:"deployments"`
}

// PlanView is the result of Plan: what Apply of the same deployments would change.
type PlanView struct {
	Items  []PlanItem `json:"items"`
	Add    int        `json:"add"`    // deployments that are new
	Change int        `json:"change"` // deployments that are others now
	Stop   int        `json:"stop"`   // deployments that are taken back, and workers that end for other reasons
}

// PlanItem is something that a plan touches: a deployment with what is done for it, or a worker that ends for the sake of others.
type PlanItem struct {
	Kind    string        `json:"kind"`   // "deployment" or "worker"
	Name    string        `json:"name"`   // of the deployment, or the id of the worker
	Action  string        `json:"action"` // ChangeAdd, ChangeModify, ChangeRemove, or ChangeNone for a deployment that stays as it is
	Text    string        `json:"text"`   // what changes, in a few words
	Fields  []FieldChange `json:"fields,omitempty"`
	Steps   []PlanStep    `json:"steps,omitempty"`
	Problem string        `json:"problem,omitempty"` // why a wish stays open, in one sentence
	Code    string        `json:"code,omitempty"`    // of the problem
}

// ChangeNone is the PlanItem.Action of a deployment for which something is done although it is the same.
const ChangeNone = "none"

// PlanStep is one worker that is started or ended for a deployment.
type PlanStep struct {
	Kind     string `json:"kind"` // "spawn", "surge" (beside the one that it follows) or "stop"
	Replica  int    `json:"replica"`
	WorkerID string `json:"worker_id,omitempty"` // that ends
	HiveID   string `json:"hive_id,omitempty"`   // where one is started
	Device   string `json:"device,omitempty"`
	Place    string `json:"place,omitempty"` // for people: "tower/cuda0"
	Need     Bytes  `json:"need,omitempty"`
	Free     Bytes  `json:"free,omitempty"`
	Fetch    Bytes  `json:"fetch,omitempty"` // that are transferred first
	Context  int    `json:"context,omitempty"`
	Downtime bool   `json:"downtime,omitempty"` // nobody serves the deployment until its next worker is ready
	Text     string `json:"text"`               // a few words
	Reason   string `json:"reason"`             // one sentence
}

// Applied is the result of Apply.
type Applied struct {
	Plan        PlanView         `json:"plan"`
	Deployments []DeploymentView `json:"deployments"`
}

// ExplainRequest is the body of Explain.
type ExplainRequest struct {
	Operation string `json:"operation"`
	Model     string `json:"model"` // a name of a model, or of a deployment
}

// Explanation is the result of Explain: where another worker of a model could run, and why not elsewhere.
type Explanation struct {
	Name     string         `json:"name"`
	Variant  string         `json:"variant,omitempty"` // the quantisation
	Context  int            `json:"context,omitempty"` // tokens; 0: the engine's choice
	Need     Bytes          `json:"need"`
	Accuracy float64        `json:"accuracy"` // of Need, as a share
	Places   []PlaceVerdict `json:"places"`
	Smaller  []string       `json:"smaller"` // choices that fit now, where the model itself does not
	Text     string         `json:"text"`    // all of it for people
}

// PlaceVerdict says whether another worker could run on a device.
type PlaceVerdict struct {
	HiveID string   `json:"hive_id"`
	Device string   `json:"device"` // "*" where it is about all of a hive's
	Place  string   `json:"place"`  // for people: "tower/cuda0"
	OK     bool     `json:"ok"`
	Code   string   `json:"code,omitempty"` // why not
	Reason string   `json:"reason"`
	Evicts []string `json:"evicts,omitempty"` // ids of the workers that would have to go
}

// HiveDrain is the body of HiveDrain: a drained hive gets nothing new, and the workers of deployments move away from it.
type HiveDrain struct {
	Operation string `json:"operation"`
	HiveID    string `json:"hive_id"`          // node id or name
	Resume    bool   `json:"resume,omitempty"` // take it back
}
