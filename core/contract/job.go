package contract

import (
	"encoding/json"
	"time"
)

// Operations of POST /v1/jobs. The body is a JSON object with "operation" and the operation's fields.
const (
	OpStatus              = "Status"
	OpWorkerList          = "WorkerList"
	OpWorkerGet           = "WorkerGet"
	OpWorkerDelete        = "WorkerDelete"
	OpWorkerSpawn         = "WorkerSpawn"
	OpWorkerLogs          = "WorkerLogs"
	OpWorkerInstall       = "WorkerInstall" // an engine into the worker catalog
	OpWorkerInstalledList = "WorkerInstalledList"
	OpWorkerInstalledGet  = "WorkerInstalledGet"
	OpWorkerRemove        = "WorkerRemove"
	OpHiveList            = "HiveList"
	OpHiveGet             = "HiveGet"
	OpModelList           = "ModelList"
	OpModelGet            = "ModelGet"
	OpModelDownload       = "ModelDownload"
	OpModelDelete         = "ModelDelete"
	OpModelSearch         = "ModelSearch"
	OpDeviceList          = "DeviceList"
	OpProcessList         = "ProcessList"
	OpMemberList          = "MemberList"
	OpMemberKeys          = "MemberKeys" // changes the gossip keys of all members
	OpPlan                = "Plan"
	OpApply               = "Apply"
	OpExplain             = "Explain"
	OpHiveDrain           = "HiveDrain"
)

// IsRead reports whether an operation only looks something up.
func IsRead(operation string) bool {
	switch operation {
	case OpStatus, OpWorkerList, OpWorkerGet, OpWorkerLogs, OpWorkerInstalledList, OpWorkerInstalledGet, OpHiveList, OpHiveGet,
		OpModelList, OpModelGet, OpModelSearch, OpDeviceList, OpProcessList, OpMemberList, OpPlan, OpExplain:
		return true
	}
	return false
}

// JobAccepted is the answer to POST /v1/jobs (202).
type JobAccepted struct {
	JobID     string `json:"job_id"`
	StreamURL string `json:"stream_url"` // path on the same agent
}

// JobState is where a job stands. Every state but JobRunning is final.
type JobState string

// States of a job.
const (
	JobRunning   JobState = "running"
	JobDone      JobState = "done"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

// Job describes one run of an operation. Its id starts with the node id of the agent that runs it.
type Job struct {
	ID         string          `json:"id"`
	Operation  string          `json:"operation"`
	Subject    string          `json:"subject,omitempty"` // what it is about: a model, worker, engine or hive; shortened, without secrets
	State      JobState        `json:"state"`
	CreatedAt  time.Time       `json:"created_at"`
	FinishedAt *time.Time      `json:"finished_at,omitempty"`
	Result     json.RawMessage `json:"result,omitempty"`
	Error      *Error          `json:"error,omitempty"`
}

// SSE event names of GET /v1/jobs/{id}/stream. The SSE id is the sequence number. Exactly one of JobEventDone,
// JobEventFailed and JobEventCancelled ends a stream.
const (
	JobEventNarration = "narration"
	JobEventDone      = "done"
	JobEventFailed    = "failed"
	JobEventCancelled = "cancelled"
)

// Narration is one line of a job's story.
type Narration struct {
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	Level    string    `json:"level"`  // "info", "warn", "error"
	Action   string    `json:"action"` // short and stable: "resolve", "download", "verify", "spawn", "load", …
	Message  string    `json:"message"`
	Progress *Progress `json:"progress,omitempty"`
}

// ActionPresent is the action of the narration that says that what was to be fetched or installed is there already.
const ActionPresent = "present"

// Progress says how far an action is. Total is 0 while it is not known.
type Progress struct {
	Done  uint64 `json:"done"`
	Total uint64 `json:"total"`
	Unit  string `json:"unit"` // "bytes", "files", "percent"
}

// JobDoneEvent is the data of a JobEventDone event.
type JobDoneEvent struct {
	Result json.RawMessage `json:"result"`
}

// JobFailedEvent is the data of a JobEventFailed event.
type JobFailedEvent struct {
	Error Error `json:"error"`
}

// WorkerKind says what a worker runs and where its engine comes from.
type WorkerKind struct {
	Name    string `json:"name"`             // of the worker block, "llama"
	Adapter string `json:"adapter"`          // "native", "echo"
	Source  string `json:"source,omitempty"` // engine reference; empty for echo
}

// WorkerSpawn starts a worker. To a queen only Model is needed: it fills in the rest from its configuration. To a hive it is
// self-contained: a hive needs no worker blocks.
type WorkerSpawn struct {
	Operation  string            `json:"operation"`
	HiveID     string            `json:"hive_id,omitempty"`   // queen only: where; default: the queen decides
	WorkerID   string            `json:"worker_id,omitempty"` // minted by the queen: <worker>-<8 hex>
	Model      string            `json:"model"`               // pinned towards a hive
	Worker     WorkerKind        `json:"worker"`
	Devices    []string          `json:"devices,omitempty"` // default: cpu0
	Context    int               `json:"context,omitempty"` // tokens; default: what fits, up to the model's
	Slots      int               `json:"slots,omitempty"`   // at most MaxSlots; default: the engine decides
	Threads    int               `json:"threads,omitempty"` // at most the hive's cores; default: the free ones
	Env        map[string]string `json:"env,omitempty"`
	Args       []string          `json:"args,omitempty"` // extra arguments, after ours
	SpawnKey   string            `json:"spawn_key,omitempty"`
	Generation int64             `json:"generation,omitempty"` // at most MaxGeneration
	QueenURLs  []string          `json:"queen_urls,omitempty"`
	Wait       bool              `json:"wait,omitempty"`  // queen only: the job ends when the worker is Ready
	Peers      []Peer            `json:"peers,omitempty"` // to a hive only: where to fetch the model before its origin, at most MaxPeers
}

// MaxSlots is the number of requests that a worker may be asked to run at once: as many as llama.cpp can tell apart, beside the
// prefixes that the native worker keeps.
const MaxSlots = 240

// MaxGeneration is the highest generation of a spawn key: beyond it JSON readers that keep numbers as floats lose count.
const MaxGeneration = 1<<53 - 1

// WorkerSpawned is the result of WorkerSpawn.
type WorkerSpawned struct {
	Identity
	Port     int    `json:"port"`
	Address  string `json:"address"`
	HiveID   string `json:"hive_id"`
	Existing bool   `json:"existing"` // the spawn key was already running
}

// WorkerDelete ends a worker. To a queen only WorkerID is needed; to a hive the whole identity is.
type WorkerDelete struct {
	Operation string    `json:"operation"`
	WorkerID  string    `json:"worker_id"`
	Identity  *Identity `json:"identity,omitempty"`
	Force     bool      `json:"force,omitempty"` // do not wait for the worker's requests
}

// WorkerDeleted is the result of WorkerDelete.
type WorkerDeleted struct {
	WorkerID string `json:"worker_id"`
	Outcome  string `json:"outcome"` // "terminated", "killed", "gone" (no such process any more), "forgotten" (of no known hive: only the queen's entry is removed)
}

// WorkerRef is the body of WorkerGet, WorkerLogs and, to a queen, WorkerDelete.
type WorkerRef struct {
	Operation string `json:"operation"`
	WorkerID  string `json:"worker_id"`
	HiveID    string `json:"hive_id,omitempty"` // WorkerLogs: where, for a worker that is gone
	Lines     int    `json:"lines,omitempty"`   // WorkerLogs: last lines, default 100, at most 10,000
	Force     bool   `json:"force,omitempty"`   // WorkerDelete: do not wait for the worker's requests
}

// WorkerLogLines is the result of WorkerLogs.
type WorkerLogLines struct {
	WorkerID string   `json:"worker_id"`
	Lines    []string `json:"lines"`
}

// ArtifactRef is the body of ModelGet, ModelDownload, ModelDelete, WorkerInstall, WorkerInstalledGet and WorkerRemove.
type ArtifactRef struct {
	Operation string `json:"operation"`
	Reference string `json:"reference"`
	HiveID    string `json:"hive_id,omitempty"` // default: every hive for reads and deletes, the local one for fetches
	Peers     []Peer `json:"peers,omitempty"`   // ModelDownload to a hive only: where to fetch the model before its origin, at most MaxPeers
}

// Bounds of ModelSearch.
const (
	MaxSearchQuery   = 256 // bytes
	MaxSearchResults = 100
)

// ModelSearch looks for models where the vendors of a hive have theirs.
type ModelSearch struct {
	Operation string `json:"operation"`
	Query     string `json:"query"`
	Vendor    string `json:"vendor,omitempty"`  // a vendor's name, or a scheme of it; default: all that can search
	Limit     int    `json:"limit,omitempty"`   // most results; default 20, at most MaxSearchResults
	HiveID    string `json:"hive_id,omitempty"` // queen only: whose vendors; default: the local hive's
}

// ModelsFound is the result of ModelSearch: what was found, and the vendors that could not tell.
type ModelsFound struct {
	Models []ModelFound   `json:"models"`
	Failed []VendorFailed `json:"failed"`
}

// ModelFound is one model that a search found, with the reference to fetch it by.
type ModelFound struct {
	Vendor      string `json:"vendor"`
	Reference   string `json:"reference"`
	Description string `json:"description,omitempty"` // one line
	SizeBytes   Bytes  `json:"size_bytes,omitempty"`  // 0: not known
}

// VendorFailed is a vendor that could not be asked, with the reason.
type VendorFailed struct {
	Vendor string `json:"vendor"`
	Error  Error  `json:"error"`
}

// WorkerExit is the body of POST {queen}/v1/worker-exits, with which a hive reports the end of a child.
type WorkerExit struct {
	WorkerID string   `json:"worker_id"`
	Identity Identity `json:"identity"`
	ExitCode int      `json:"exit_code"` // -1 when a signal ended it
	Signal   int      `json:"signal"`
	OOM      bool     `json:"oom"`
	LogTail  []string `json:"log_tail"` // at most 20 sanitised lines
}

// Process is an entry of ProcessList: a worker's process as the operating system shows it.
type Process struct {
	Identity
	HiveID   string `json:"hive_id"`
	SpawnKey string `json:"spawn_key,omitempty"`
	Model    string `json:"model"`
	Device   string `json:"device"`
	Port     int    `json:"port"`
	Zombie   bool   `json:"zombie,omitempty"`

	Protection Protection `json:"protection,omitzero"`
}
