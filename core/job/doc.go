// Package job runs operations as jobs: each starts at once, outlives the request that asked for it, narrates what it does,
// can be followed late and cancelled, and ends exactly once. It also serves them over HTTP, the same way on queens and hives.
// It does not know any operation.
package job
