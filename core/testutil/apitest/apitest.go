// Package apitest checks real HTTP traffic in tests against the OpenAPI documents of core/contract, and the documents against
// the Go types that they describe. It serves nothing and is imported by tests only.
package apitest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/apiary-dev/apiary/core/contract"
)

// Document is a loaded OpenAPI document.
type Document struct {
	name   string
	spec   *openapi3.T
	router routers.Router
}

// errorSchema is the component that every error answer has, also one on a path that the document does not list.
const errorSchema = "ErrorBody"

// Load reads a document of core/contract, for example "worker-api.yaml", and checks that it is valid OpenAPI.
func Load(t testing.TB, name string) *Document {
	t.Helper()
	data, err := contract.OpenAPI.ReadFile("openapi/" + name)
	if err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
	d, err := parse(name, data)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func parse(name string, data []byte) (*Document, error) {
	loader := openapi3.NewLoader()
	spec, err := loader.LoadFromData(data)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", name, err)
	}
	if err := spec.Validate(loader.Context); err != nil {
		return nil, fmt.Errorf("%s is not valid OpenAPI: %w", name, err)
	}
	router, err := gorillamux.NewRouter(spec)
	if err != nil {
		return nil, fmt.Errorf("build the routes of %s: %w", name, err)
	}
	return &Document{name, spec, router}, nil
}

// Transport returns a RoundTripper that sends through next (nil: http.DefaultTransport) and reports to t each request and each
// answer that breaks the document. A request that was refused (400 and more) need not keep to it. A path that the document does not list must be answered with an error of its shape. The
// body of a stream (text/event-stream) is passed through as it comes; check its events with Value.
func (d *Document) Transport(t testing.TB, next http.RoundTripper) http.RoundTripper {
	if next == nil {
		next = http.DefaultTransport
	}
	return transport{d: d, t: t, next: next}
}

type transport struct {
	d    *Document
	t    testing.TB
	next http.RoundTripper
}

// RoundTrip sends r and checks both sides.
func (tr transport) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		if body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		_ = r.Body.Close()
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	check := r.Clone(r.Context())
	check.Body = io.NopCloser(bytes.NewReader(body))
	res, err := tr.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if isStream(res.Header) {
		tr.report(check, tr.d.check(check, res.StatusCode, res.Header, nil))
		return res, nil
	}
	data, err := io.ReadAll(res.Body) // also makes the trailers known
	_ = res.Body.Close()
	res.Body = io.NopCloser(bytes.NewReader(data))
	if err != nil {
		res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(data), failing{err}))
		return res, nil // a broken answer is the caller's to judge
	}
	tr.report(check, tr.d.check(check, res.StatusCode, res.Header, data))
	return res, nil
}

func (tr transport) report(r *http.Request, err error) {
	if err != nil {
		tr.t.Errorf("%s %s breaks %s: %v", r.Method, r.URL.Path, tr.d.name, err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func isStream(h http.Header) bool {
	media, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && media == "text/event-stream"
}

// check validates one request and its answer. A nil body stands for a stream.
func (d *Document) check(r *http.Request, status int, header http.Header, body []byte) error {
	route, params, err := d.router.FindRoute(r)
	if err != nil {
		if status < 400 {
			return fmt.Errorf("the document does not list this, and it was answered with %d", status)
		}
		return d.value(errorSchema, body)
	}
	if body == nil {
		ref := route.Operation.Responses.Status(status)
		if ref == nil || ref.Value.Content.Get("text/event-stream") == nil {
			return fmt.Errorf("the document has no stream with the status %d here", status)
		}
	}
	options := &openapi3filter.Options{
		MultiError: true, IncludeResponseStatus: true, ExcludeResponseBody: body == nil,
		AuthenticationFunc: openapi3filter.NoopAuthenticationFunc,
	}
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route, Options: options}
	if status < 400 {
		if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil {
			return fmt.Errorf("the request: %w", err)
		}
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: status, Header: header, Options: options}
	out.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(r.Context(), out); err != nil {
		return fmt.Errorf("the answer (%d): %w", status, err)
	}
	return nil
}

// Value checks the JSON value data against the named schema of the document's components, for example "TokenEvent".
func (d *Document) Value(t testing.TB, schema string, data []byte) {
	t.Helper()
	if err := d.value(schema, data); err != nil {
		t.Errorf("%s breaks %s: %v", data, d.name, err)
	}
}

func (d *Document) value(schema string, data []byte) error {
	ref := d.spec.Components.Schemas[schema]
	if ref == nil {
		return fmt.Errorf("there is no schema %s", schema)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		return fmt.Errorf("not JSON: %w", err)
	}
	if err := ref.Value.VisitJSON(v, openapi3.MultiErrors()); err != nil {
		return fmt.Errorf("not a %s: %w", schema, err)
	}
	return nil
}
