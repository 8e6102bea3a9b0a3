package vendor

import "context"

// Invoker calls a plugin, or the host of one, by method name. It is what every transport comes down to.
type Invoker interface {
	// Invoke calls method, a gRPC name such as MethodResolve, with a message in canonical proto3 JSON, and returns the answer in
	// the same form. An error that the other side meant for the user is an *Error; a method that it does not have is an *Error with
	// CodeUnimplemented; any other error is a fault of the transport.
	Invoke(ctx context.Context, method string, request []byte) ([]byte, error)
}

// CodeUnimplemented is the code of the Error for a method that the other side does not have.
const CodeUnimplemented = "unimplemented"

// The methods of plugins.
const (
	MethodGetInfo        = "/plugin.v1.Plugin/GetInfo"        // {} → Info
	MethodGetSchema      = "/plugin.v1.Plugin/GetSchema"      // {} → Schema
	MethodConfigure      = "/plugin.v1.Plugin/Configure"      // ConfigureRequest → {}
	MethodResolve        = "/vendor.v1.Vendor/Resolve"        // ResolveRequest → Manifest
	MethodSearch         = "/vendor.v1.Vendor/Search"         // SearchRequest → SearchResponse
	MethodRefreshSources = "/vendor.v1.Vendor/RefreshSources" // RefreshRequest → RefreshResponse
	MethodPlan           = "/provisioner.v1.Provisioner/Plan" // PlanRequest → Plan
	MethodList           = "/provisioner.v1.Provisioner/List" // ListRequest → ListResponse
	MethodLaunch         = "/provisioner.v1.Provisioner/Launch"
	MethodPin            = "/provisioner.v1.Provisioner/Pin" // PlanRequest → PinResponse
)

// The methods of the host.
const (
	MethodHTTPDo   = "/host.v1.Host/HttpDo"   // HTTPRequest → HTTPResponse; for WASM guests without the body
	MethodHTTPBody = "/host.v1.Host/HttpBody" // WASM guests only: nothing → the bytes of the last answer's body
	MethodKVGet    = "/host.v1.Host/KvGet"    // KVGetRequest → KVGetResponse
	MethodKVSet    = "/host.v1.Host/KvSet"    // KVSetRequest → {}
	MethodLog      = "/host.v1.Host/Log"      // LogRequest → {}
)

// Messages that only the transports see.
type (
	// ConfigureRequest carries Configuration.Values.
	ConfigureRequest struct {
		ConfigJSON string `json:"configJson,omitempty"`
	}
	// SearchResponse carries what Searcher returns.
	SearchResponse struct {
		Results []SearchResult `json:"results,omitempty"`
	}
	// RefreshResponse carries what Refresher returns.
	RefreshResponse struct {
		Files []File `json:"files,omitempty"`
	}
	// ListResponse carries what Lister returns.
	ListResponse struct {
		Choices []EngineChoice `json:"choices,omitempty"`
	}
	// PinResponse carries what Pinner returns.
	PinResponse struct {
		Reference string `json:"reference,omitempty"`
		Platform  string `json:"platform,omitempty"`
	}
	// KVGetRequest carries the argument of Host.Get.
	KVGetRequest struct {
		Key string `json:"key,omitempty"`
	}
	// KVGetResponse carries its result.
	KVGetResponse struct {
		Value []byte `json:"value,omitempty"`
	}
	// KVSetRequest carries the arguments of Host.Set.
	KVSetRequest struct {
		Key        string `json:"key,omitempty"`
		Value      []byte `json:"value,omitempty"`
		TTLSeconds int64  `json:"ttlSeconds,string,omitempty"`
	}
	// LogRequest carries the arguments of Host.Log.
	LogRequest struct {
		Level         string   `json:"level,omitempty"`
		Message       string   `json:"message,omitempty"`
		KeysAndValues []string `json:"keysAndValues,omitempty"`
	}
)
