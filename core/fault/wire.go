package fault

import (
	"net/http"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Wire turns err into the error object of an HTTP answer. The message of an error without a kind of its own is replaced,
// because it may hold paths, addresses or engine text; the caller logs the original under the request id.
func Wire(err error, requestID string) contract.Error {
	e := As(err)
	w := contract.Error{Message: e.Message, Code: e.Code, RequestID: requestID}
	if w.Code == "" {
		w.Code = string(e.Kind)
	}
	if e.Param != "" {
		w.Param = &e.Param
	}
	if e.Kind == Internal && e.Err != nil && e.Message == e.Err.Error() {
		w.Message = "The request failed inside Apiary; the agent's log has the cause under this request id."
	}
	switch {
	case e.Status == http.StatusUnauthorized:
		w.Type = "authentication_error"
	case e.Kind == Denied:
		w.Type = "permission_error"
	case e.Kind == Exhausted:
		w.Type = "rate_limit_error"
	case e.Kind == Internal, e.Kind == Unavailable, e.Kind == Interrupted:
		w.Type = "server_error"
	default:
		w.Type = "invalid_request_error"
	}
	return w
}

// FromWire is the reverse: the error that another agent answered with an HTTP status. retryAfter is 0 when it said none.
func FromWire(status int, w contract.Error, retryAfter time.Duration) *Error {
	e := &Error{Kind: FromStatus(status), Code: w.Code, Message: w.Message, RetryAfter: retryAfter, Status: status}
	if w.Param != nil {
		e.Param = *w.Param
	}
	if e.Message == "" {
		e.Message = "The agent answered " + http.StatusText(status) + " without saying why."
	}
	return e
}
