package contract

// Liveness is the queen's judgement of a worker or hive by the age of its last beat.
type Liveness string

// Ages: stale after 7.5 s, suspect after 12.5 s, down after 17.5 s, lost after 60 s; forgotten after 24 h.
const (
	LivenessAlive   Liveness = "alive"
	LivenessStale   Liveness = "stale"
	LivenessSuspect Liveness = "suspect"
	LivenessDown    Liveness = "down"
	LivenessLost    Liveness = "lost"
)

// Conditions that the queen adds to a worker.
const (
	ConditionDraining    = "draining"
	ConditionOOM         = "oom"
	ConditionStartFailed = "start_failed"
	ConditionCrashLoop   = "crashloop"
	ConditionUnkillable  = "unkillable"
	ConditionOutlier     = "outlier"
)

// WorkerView is a worker as the queen lists it.
type WorkerView struct {
	WorkerInfo
	HiveName  string   `json:"hive_name,omitempty"` // of the hive HiveID; empty for one that is not known
	Liveness  Liveness `json:"liveness"`
	Condition string   `json:"condition,omitempty"`
	AgeMS     int64    `json:"age_ms"`    // since the last beat
	InFlight  int      `json:"in_flight"` // requests that this queen has open there

	Deployment string `json:"deployment,omitempty"` // whose replica it is; empty: a person or a request started it
	Replica    int    `json:"replica,omitempty"`    // its number, from 0
	Reason     string `json:"reason,omitempty"`     // why it was started where it is, or why it ends: one sentence; empty: not known
}

// HiveView is a hive as the queen lists it.
type HiveView struct {
	HiveBeat
	Liveness   Liveness `json:"liveness"`
	AgeMS      int64    `json:"age_ms"`
	Drained    bool     `json:"drained,omitempty"` // it gets nothing new
	DeviceList []Device `json:"device_list,omitempty"`

	Protection *Protection `json:"protection,omitempty"` // of the workers and plugins that it starts; nil: not known
}

// ModelView is a model as the queen lists it: by the names it answers to.
type ModelView struct {
	ID      string   `json:"id,omitempty"` // pinned; empty for a configured model that is not fetched
	Names   []string `json:"names"`        // configured name, aliases, references
	Source  string   `json:"source"`
	Hives   []string `json:"hives"`   // node ids that hold it
	Workers []string `json:"workers"` // that serve it now
	Model   *Model   `json:"model,omitempty"`
}

// Status is the result of the Status operation.
type Status struct {
	NodeID  string       `json:"node_id"`
	Name    string       `json:"name"`
	Version string       `json:"version"`
	Hives   []HiveView   `json:"hives"`
	Workers []WorkerView `json:"workers"`
	Models  []ModelView  `json:"models"`
	Members []Member     `json:"members"`

	Deployments []DeploymentView `json:"deployments"`
}

// ClusterView is the answer of GET /admin/cluster.
type ClusterView struct {
	NodeID  string       `json:"node_id"`
	Hives   []HiveView   `json:"hives"`
	Workers []WorkerView `json:"workers"`
	Members []Member     `json:"members"`
}
