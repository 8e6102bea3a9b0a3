// Package fault gives errors a kind, and holds the one map from kinds to HTTP statuses and exit codes.
// It does not log and does not format for a terminal.
package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Kind classifies an error by what the caller can do about it.
type Kind string

// The kinds, with the HTTP status and the exit code of each.
const (
	Internal    Kind = "internal"    // 500, exit 1: a fault of ours
	Invalid     Kind = "invalid"     // 400, exit 2: the request must change
	NotFound    Kind = "not_found"   // 404, exit 3
	Conflict    Kind = "conflict"    // 409, exit 4: the state must change first
	Unavailable Kind = "unavailable" // 503, exit 5: try again later
	Exhausted   Kind = "exhausted"   // 429, exit 6: a limit is reached
	Denied      Kind = "denied"      // 403, exit 7
	Interrupted Kind = "interrupted" // 499, exit 130: the caller went away
)

// Error is an error with a kind. Message is one full sentence for a person: what happened, to what, what to do next.
type Error struct {
	Kind       Kind
	Code       string // stable, snake_case: "model_not_found"; empty: the kind
	Message    string
	Param      string        // the request field at fault, if one is
	RetryAfter time.Duration // for Unavailable and Exhausted
	Status     int           // HTTP status where the kind's is not the right one (413, 415, 422, 502, …)
	Err        error         // the cause: kept for errors.Is and logs, never shown to callers of inference
}

// New makes an Error of kind with a stable code and a message in the form of fmt.Sprintf. A %w verb wraps a cause.
func New(kind Kind, code, format string, args ...any) *Error {
	e := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Code: code, Message: e.Error(), Err: errors.Unwrap(e)}
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// WithParam returns a copy that names the request field at fault.
func (e *Error) WithParam(p string) *Error { c := *e; c.Param = p; return &c }

// WithRetryAfter returns a copy that says when to try again.
func (e *Error) WithRetryAfter(d time.Duration) *Error { c := *e; c.RetryAfter = d; return &c }

// WithStatus returns a copy with an HTTP status other than the kind's.
func (e *Error) WithStatus(s int) *Error { c := *e; c.Status = s; return &c }

// As returns the first *Error in err's chain. Another error becomes one of kind Internal, a cancelled context one of kind
// Interrupted, and a passed deadline one of kind Unavailable. It returns nil for nil.
func As(err error) *Error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	switch {
	case errors.Is(err, context.Canceled):
		return &Error{Kind: Interrupted, Code: "cancelled", Message: "The request was cancelled.", Err: err}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Kind: Unavailable, Code: "timeout", Message: "The operation took too long and was given up; try again.", Err: err}
	}
	return &Error{Kind: Internal, Code: "internal", Message: err.Error(), Err: err}
}

// KindOf returns the kind of err, Internal for one without a kind, "" for nil.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	return As(err).Kind
}

// HTTPStatus returns the HTTP status of err: 200 for nil.
func HTTPStatus(err error) int {
	if err == nil {
		return http.StatusOK
	}
	e := As(err)
	if e.Status != 0 {
		return e.Status
	}
	switch e.Kind {
	case Invalid:
		return http.StatusBadRequest
	case NotFound:
		return http.StatusNotFound
	case Conflict:
		return http.StatusConflict
	case Unavailable:
		return http.StatusServiceUnavailable
	case Exhausted:
		return http.StatusTooManyRequests
	case Denied:
		return http.StatusForbidden
	case Interrupted:
		return 499 // nginx's "client closed request"
	}
	return http.StatusInternalServerError
}

// ExitCode returns the exit code of the CLI for err: 0 for nil.
func ExitCode(err error) int {
	switch KindOf(err) {
	case "":
		return 0
	case Invalid:
		return 2
	case NotFound:
		return 3
	case Conflict:
		return 4
	case Unavailable:
		return 5
	case Exhausted:
		return 6
	case Denied:
		return 7
	case Interrupted:
		return 130
	}
	return 1
}

// FromStatus returns the kind that an HTTP status of another agent stands for.
func FromStatus(status int) Kind {
	switch {
	case status == http.StatusNotFound:
		return NotFound
	case status == http.StatusConflict:
		return Conflict
	case status == http.StatusTooManyRequests:
		return Exhausted
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return Denied
	case status == http.StatusBadGateway, status == http.StatusServiceUnavailable, status == http.StatusGatewayTimeout:
		return Unavailable
	case status == 499:
		return Interrupted
	case status >= 400 && status < 500:
		return Invalid
	}
	return Internal
}
