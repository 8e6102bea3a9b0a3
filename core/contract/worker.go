package contract

import "time"

// WorkerStatus is what a worker says of itself. Draining is the queen's business and not a status.
type WorkerStatus string

// The life of a worker: Starting → Ready ⇄ Busy → Stopped. Busy means that no slot is free.
const (
	StatusStarting WorkerStatus = "Starting"
	StatusReady    WorkerStatus = "Ready"
	StatusBusy     WorkerStatus = "Busy"
	StatusStopped  WorkerStatus = "Stopped"
)

// APIs that WorkerInfo.APIs may list. Every worker serves APIInfer; requests for the OpenAI paths of the others are passed
// through unchanged.
const (
	APIInfer       = "infer"            // POST /v1/infer
	APIChat        = "chat.completions" // POST /v1/chat/completions
	APICompletions = "completions"      // POST /v1/completions
	APIEmbeddings  = "embeddings"       // POST /v1/embeddings
)

// Capabilities that WorkerInfo.Capabilities may list.
const (
	CapabilityChat       = "chat"       // the model has a chat template
	CapabilityCompletion = "completion" // the model continues text
	CapabilityEmbedding  = "embedding"  // the model gives embeddings
	CapabilityResume     = "resume"     // InferRequest.ResumeText is honoured
)

// Identity names one run of one process on one boot of one machine. A signal is only ever sent to a process whose
// identity was just verified, because a PID and even a PID with its start time can repeat.
type Identity struct {
	WorkerID   string `json:"worker_id"`
	BootID     string `json:"boot_id"`
	PID        int    `json:"pid"`
	StartTicks uint64 `json:"start_ticks"` // field 22 of /proc/PID/stat
}

// WorkerInfo is a worker's description of itself: the answer of GET /info and the body of its beats.
type WorkerInfo struct {
	ID             string       `json:"id"`
	ModelID        string       `json:"model_id"` // the canonical pinned reference
	Device         string       `json:"device"`   // "cpu0", "cuda0", or several joined by commas
	Port           int          `json:"port"`
	Status         WorkerStatus `json:"status"`
	Implementation string       `json:"implementation"` // "llama-cpp", "echo", …
	Version        string       `json:"version"`        // of the implementation

	ContractVersion int       `json:"contract_version"`
	Incarnation     int64     `json:"incarnation"`          // start time in Unix ns; orders the beats of two runs
	ModelName       string    `json:"model_name,omitempty"` // the name the engine wants in a request, where it differs
	HiveID          string    `json:"hive_id"`
	Address         string    `json:"address"` // host at which the worker listens
	PID             int       `json:"pid"`
	BootID          string    `json:"boot_id"`
	StartTicks      uint64    `json:"start_ticks"`
	StartedAt       time.Time `json:"started_at"`
	SpawnKey        string    `json:"spawn_key,omitempty"`
	Generation      int64     `json:"generation,omitempty"`
	APIs            []string  `json:"apis"`
	Capabilities    []string  `json:"capabilities"`
	ContextLength   int       `json:"context_length"` // tokens one request may use, prompt and answer together
	Slots           int       `json:"slots"`          // requests that can run at once
	SlotsBusy       int       `json:"slots_busy"`
	QueueDepth      int       `json:"queue_depth"` // accepted, waiting for a slot
	KVTokensUsed    int       `json:"kv_tokens_used"`
	MemoryBytes     Bytes     `json:"memory_bytes"` // resident memory of the worker and its engine
	// DeviceMemoryBytes is what the worker and its engine took of the memory of its accelerators; 0: none, or the engine does not say.
	DeviceMemoryBytes Bytes   `json:"device_memory_bytes,omitempty"`
	LoadProgress      float64 `json:"load_progress"` // 0 to 1
	Progress          uint64  `json:"progress"`      // grows whenever load, prefill, decode or queue advances

	Protection *Protection `json:"protection,omitempty"` // of its process; nil: it does not say
}

// Identity returns the identity under which the worker's process can be killed.
func (w WorkerInfo) Identity() Identity {
	return Identity{WorkerID: w.ID, BootID: w.BootID, PID: w.PID, StartTicks: w.StartTicks}
}

// Heartbeat is the body of POST {queen}/v1/heartbeat. It is at most MaxWorkerBeat bytes and carries the worker's secret as
// bearer token. A receiver drops beats that do not advance (worker.incarnation, sequence).
type Heartbeat struct {
	Worker    WorkerInfo `json:"worker"`
	Timestamp time.Time  `json:"timestamp"` // informational: ages are measured by the receiver
	Sequence  uint64     `json:"sequence"`
}

// MaxWorkerBeat bounds the body of a worker's heartbeat.
const MaxWorkerBeat = 2048

// HeartbeatReply is the queen's answer to a beat.
type HeartbeatReply struct {
	Queens     []string `json:"queens"` // base URLs of all queens; the worker beats to every one
	IntervalMS int      `json:"interval_ms"`
	Draining   bool     `json:"draining"`
}

// Message is one turn of a conversation. Content is plain text: workers flatten OpenAI's content parts.
type Message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// InferRequest is the body of POST /v1/infer. Exactly one of Prompt and Messages is set. Absent sampling parameters mean
// OpenAI's defaults (temperature 1, top_p 1) with the other samplers off.
type InferRequest struct {
	Model         string    `json:"model,omitempty"`
	Prompt        *string   `json:"prompt,omitempty"`
	Messages      []Message `json:"messages,omitempty"`
	MaxTokens     *int      `json:"max_tokens,omitempty"`     // default: what fits in the context
	Temperature   *float64  `json:"temperature,omitempty"`    // 0 to 2; 0 is greedy
	TopP          *float64  `json:"top_p,omitempty"`          // 0 < p ≤ 1
	TopK          *int      `json:"top_k,omitempty"`          // 0 is off
	MinP          *float64  `json:"min_p,omitempty"`          // 0 ≤ p < 1; 0 is off
	RepeatPenalty *float64  `json:"repeat_penalty,omitempty"` // 1 is off
	Seed          *uint64   `json:"seed,omitempty"`           // default: random
	Stop          []string  `json:"stop,omitempty"`           // at most MaxStop
	Stream        bool      `json:"stream,omitempty"`
	ResumeText    string    `json:"resume_text,omitempty"` // generated before; continue after it, do not repeat it
}

// MaxStop is the number of stop sequences a request may have (OpenAI allows 4; engines of this field allow more).
const MaxStop = 16

// Finish reasons.
const (
	FinishStop   = "stop"   // end of text or a stop sequence
	FinishLength = "length" // max_tokens or the context was reached
)

// Usage counts the tokens of one request. PromptTokens includes CachedTokens.
type Usage struct {
	PromptTokens     int `json:"prompt_tokens"`
	CachedTokens     int `json:"cached_tokens"` // prompt tokens that were not computed again
	CompletionTokens int `json:"completion_tokens"`
}

// Timings says where a request's time went, in milliseconds.
type Timings struct {
	QueueMS   float64 `json:"queue_ms"`
	PrefillMS float64 `json:"prefill_ms"`
	DecodeMS  float64 `json:"decode_ms"`
}

// InferResponse is the answer to an InferRequest that does not stream.
type InferResponse struct {
	Text         string  `json:"text"`
	FinishReason string  `json:"finish_reason"`
	Usage        Usage   `json:"usage"`
	Timings      Timings `json:"timings"`
}

// SSE event names of a streaming /v1/infer. Exactly one of InferDone and InferError ends a stream.
const (
	InferToken = "token"
	InferDone  = "done"
	InferError = "error"
)

// TokenEvent is the data of an InferToken event. Text is whole UTF-8; a token that ends inside a rune has empty text and the
// next one carries the rune.
type TokenEvent struct {
	Text    string   `json:"text"`
	TokenID *int     `json:"token_id,omitempty"`
	Logprob *float64 `json:"logprob,omitempty"`
}

// DoneEvent is the data of an InferDone event.
type DoneEvent struct {
	FinishReason string  `json:"finish_reason"`
	Usage        Usage   `json:"usage"`
	Timings      Timings `json:"timings"`
}

// ErrorEvent is the data of an InferError event. Kind is one of the kinds of core/fault.
type ErrorEvent struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

// Error is the OpenAI error object. Code is stable; Message is one full sentence for a person.
type Error struct {
	Message   string  `json:"message"`
	Type      string  `json:"type"`
	Code      string  `json:"code"`
	Param     *string `json:"param"`
	RequestID string  `json:"request_id,omitempty"`
}

// ErrorBody is the JSON body of every error answer of every Apiary HTTP surface.
type ErrorBody struct {
	Error Error `json:"error"`
}

// IsReservedArg reports whether an argument, given without its dashes, may not be among the extra ones of a worker: the worker
// contract's, which the hive decides, and those with which engines are made to listen elsewhere, open other files or drop
// their key.
func IsReservedArg(name string) bool {
	switch name {
	case "worker-id", "model", "model-path", "engine-dir", "device", "port", "address", "queen-url", "hive-id", "spawn-key", "generation", "secret-fd",
		"context", "slots", "threads", "landlock",
		"host", "hostname", "listen", "bind", "bind-all", "log", "log-path", "log-file", "api-key", "api-key-file", "secret", "lora", "mmproj", "model-url",
		"hf-repo", "hf-file", "hf-token", "rpc", "config", "path", "slot-save-path", "ssl-key-file", "ssl-cert-file":
		return true
	}
	return false
}
