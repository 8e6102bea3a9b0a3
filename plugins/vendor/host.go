package vendor

import (
	"context"
	"io"
)

// Host is what the core offers a plugin while it works. Whatever is not granted is an *Error of KindDenied.
type Host interface {
	// HTTP performs a request for metadata. The host checks the address on every hop and after name resolution, bounds the
	// answer to 16 MiB and the time to 30 s, follows at most five redirects and adds the credential that req names.
	HTTP(ctx context.Context, req HTTPRequest) (*HTTPResponse, error)
	// Get returns what the plugin stored under key, nil when there is nothing or its time has passed.
	Get(ctx context.Context, key string) ([]byte, error)
	// Set stores value under key for ttlSeconds, 0: until it is replaced; an empty value removes it. Keys have at most 256
	// bytes, values 64 KiB, all of them 1 MiB.
	Set(ctx context.Context, key string, value []byte, ttlSeconds int64) error
	// Log writes a line to the agent's log under the plugin's name. Level is "debug", "info", "warn" or "error".
	Log(level, message string, keysAndValues ...string)
}

// HTTPRequest is a request that a plugin asks the host to make.
type HTTPRequest struct {
	Method     string            `json:"method,omitempty"`
	URL        string            `json:"url,omitempty"`
	Header     map[string]string `json:"header,omitempty"` // canonical names; Authorization, Cookie and Host are the core's
	Body       []byte            `json:"body,omitempty"`
	Credential string            `json:"credential,omitempty"`
	Manual     bool              `json:"manual,omitempty"` // answer a redirect as it is, instead of following it
}

// HTTPResponse is its answer, whole.
type HTTPResponse struct {
	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"` // canonical names; several values are joined with ", "
	Body   []byte            `json:"body,omitempty"`
	URL    string            `json:"url,omitempty"` // of the last hop
}

// Opener opens a Source of a scheme that is no network protocol ("builtin"). The reader is closed by the caller.
type Opener interface {
	Open(ctx context.Context, url string) (io.ReadCloser, int64, error)
}
