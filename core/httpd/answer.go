package httpd

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

const requestIDKey = contract.RequestIDHeader // in canonical form already

// response notes whether an answer has begun.
type response struct {
	http.ResponseWriter
	s      *Server // nil where the answer is not a server's
	id     string
	wrote  bool
	failed bool
	stream *Stream // once it was detached
}

// Unwrap serves http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *response) WriteHeader(status int) {
	w.wrote = w.wrote || status >= 200
	w.failed = status >= 400
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	w.wrote = true
	return w.ResponseWriter.Write(p)
}

// Flush sends what is buffered to the client.
func (w *response) Flush() { _ = w.FlushError() }

// FlushError sends what is buffered to the client and returns the error of the connection.
func (w *response) FlushError() error {
	w.wrote = true
	if f, ok := w.ResponseWriter.(interface{ FlushError() error }); ok {
		return f.FlushError()
	}
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
		return nil
	}
	return errors.ErrUnsupported
}

type handlerFunc func(w *response, r *http.Request)

func (f handlerFunc) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rw, ok := w.(*response)
	if !ok {
		rw = &response{ResponseWriter: w}
	}
	f(rw, r)
}

// requestID takes over the caller's id where it is harmless to log and to send back, and makes one otherwise.
func requestID(r *http.Request) string {
	if v := r.Header[requestIDKey]; len(v) == 1 && validID(v[0]) {
		return v[0]
	}
	var raw [12]byte
	var text [28]byte
	_, _ = rand.Read(raw[:])
	copy(text[:], "req-")
	hex.Encode(text[4:], raw[:])
	return string(text[:])
}

func validID(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

// WriteJSON answers with v as JSON. A v that cannot be encoded is a fault of the program and panics.
func WriteJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	b = append(b, '\n')
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// WriteError answers with err in OpenAI's shape: the status of its kind, Retry-After in whole seconds where it says when to
// come back, and the request's id.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	e := fault.As(err)
	status := fault.HTTPStatus(err)
	h := w.Header()
	if e.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	} else if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		h.Set("Retry-After", strconv.Itoa(int(defaultRetryAfter/time.Second)))
	}
	if status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", "Bearer")
	}
	WriteJSON(w, status, contract.ErrorBody{Error: fault.Wire(err, RequestID(r.Context()))})
}

const defaultRetryAfter = 5 * time.Second

// ReadJSON decodes the request's body, which must be one JSON value, into v. Errors are faults: 413 for a body over the
// route's limit, 400 for anything that is not such a value.
func ReadJSON(r *http.Request, v any) error {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return BodyError(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		e := fault.New(fault.Invalid, "invalid_json", "The request body is not the JSON that this path takes.")
		if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
			e = fault.New(fault.Invalid, "invalid_value", "The field %q has the wrong type.", te.Field).WithParam(te.Field)
		}
		e.Err = err
		return e
	}
	return nil
}

// BodyError turns an error of reading a request's body into a fault: 413 for a body over the route's limit, else 400.
func BodyError(err error) error {
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(e.Limit)
	}
	return &fault.Error{Kind: fault.Invalid, Code: "incomplete_body", Message: "The request body did not arrive completely.", Err: err}
}
