// Package contract holds the wire types that Apiary's processes exchange: workers, hives, queens, operations and jobs.
// It uses the standard library only, does no I/O and decides nothing.
//
// The normative description of each HTTP surface is the OpenAPI document beside it (openapi/*.yaml); tests validate
// real requests and responses against those documents. Readers ignore unknown JSON fields, so that versions mix.
package contract

import "embed"

// Version is the major version of the worker contract. A worker that reports another major is listed, not routed to.
const Version = 1

// OpenAPI holds the documents openapi/worker-api.yaml, openapi/hive-api.yaml and openapi/queen-api.yaml.
//
//go:embed openapi/*.yaml
var OpenAPI embed.FS

// Default ports of design section 5. A hive chooses workers' ports from FirstWorkerPort to LastWorkerPort.
const (
	QueenPort       = 7833
	GossipPort      = 7834
	HivePort        = 7835
	FirstWorkerPort = 7855
	LastWorkerPort  = 7999
)

// UsageTrailer is the HTTP trailer in which a worker reports the Usage of a request as JSON, streamed or not, so that
// nobody parses a stream to count its tokens.
const UsageTrailer = "Apiary-Usage"

// RequestIDHeader names the header that carries a request's id from the gateway to the worker and back to the caller.
const RequestIDHeader = "X-Request-Id"
