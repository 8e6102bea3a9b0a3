package contract

import "time"

// Classes of API keys.
const (
	KeyInference = "inference" // may use the OpenAI API
	KeyMetrics   = "metrics"   // may read /metrics
	KeyAdmin     = "admin"     // may do all that the command line can
)

// APIKey is an API key as queens store and share it: everything but the key itself.
type APIKey struct {
	ID      string    `json:"id"` // 8 characters, which the key itself shows too
	Name    string    `json:"name"`
	Class   string    `json:"class"`          // one of the Key constants
	Hash    string    `json:"hash,omitempty"` // SHA-256 of the key, in hex; never in answers
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	KeyLimits
}

// KeyLimits is how much one key may do on each queen. A zero is no limit of the key's own.
type KeyLimits struct {
	Models          []string `json:"models,omitempty"`            // names or references that it may ask for; empty: all
	Concurrency     int      `json:"concurrency,omitempty"`       // requests at once, those that wait included
	TokensPerMinute int      `json:"tokens_per_minute,omitempty"` // of prompts and answers together
	Queue           int      `json:"queue,omitempty"`             // requests that wait for one model; 0: queue_per_key of the configuration
}

// NewKey asks for a key: POST /admin/keys.
type NewKey struct {
	Name       string `json:"name"`
	Class      string `json:"class,omitempty"`       // default: inference
	TTLSeconds int64  `json:"ttl_seconds,omitempty"` // 0: it does not expire
	KeyLimits
}

// MadeKey is a key that was just made, and the only answer that ever holds it.
type MadeKey struct {
	Key string `json:"key"`
	APIKey
}
