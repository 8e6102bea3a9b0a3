package apitest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
)

// recorder is a testing.TB that keeps what is reported to it.
type recorder struct {
	testing.TB
	lines []string
}

func (r *recorder) Errorf(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}
func (r *recorder) Helper() {}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answer is a server that always answers the same.
func answer(status int, media, body string) roundTrip {
	return func(r *http.Request) (*http.Response, error) {
		if r.Body != nil {
			_, _ = io.Copy(io.Discard, r.Body)
		}
		return &http.Response{StatusCode: status, Header: http.Header{"Content-Type": {media}}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

func TestTransport(t *testing.T) {
	const (
		js    = "application/json"
		done  = `{"text":"a","finish_reason":"stop","usage":{"prompt_tokens":1,"cached_tokens":0,"completion_tokens":1},"timings":{"queue_ms":0,"prefill_ms":0,"decode_ms":0}}`
		fault = `{"error":{"message":"No.","type":"invalid_request_error","code":"no","param":null}}`
	)
	d := Load(t, "worker-api.yaml")
	for _, c := range []struct {
		name, path, body string
		server           roundTrip
		want             string // part of the report; empty: none
	}{
		{"good", "/v1/infer", `{"prompt":"a","unknown":1}`, answer(200, js, done), ""},
		{"bad request taken", "/v1/infer", `{"prompt":1}`, answer(200, js, done), "the request"},
		{"bad request refused", "/v1/infer", `{"prompt":1}`, answer(400, js, fault), ""},
		{"bad answer", "/v1/infer", `{"prompt":"a"}`, answer(200, js, `{"text":1}`), "the answer (200)"},
		{"bad error", "/v1/infer", `{"prompt":"a"}`, answer(500, js, `{"error":"x"}`), "the answer (500)"},
		{"wrong media type", "/v1/infer", `{"prompt":"a"}`, answer(200, "text/html", done), "the answer (200)"},
		{"stream", "/v1/infer", `{"prompt":"a","stream":true}`, answer(200, "text/event-stream", "data: x\n\n"), ""},
		{"stream where none is documented", "/v1/embeddings", `{"input":"a"}`, answer(200, "text/event-stream", "x"), "no stream"},
		{"unknown path refused", "/v1/nothing", `{}`, answer(404, js, fault), ""},
		{"unknown path refused badly", "/v1/nothing", `{}`, answer(404, js, `not found`), "not JSON"},
		{"unknown path served", "/v1/nothing", `{}`, answer(200, js, `{}`), "does not list"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var rec recorder
			req, err := http.NewRequest(http.MethodPost, "http://worker"+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", js)
			res, err := d.Transport(&rec, c.server).RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(res.Body); err != nil || len(b) == 0 {
				t.Errorf("the answer's body did not come through: %q, %v", b, err)
			}
			if got := strings.Join(rec.lines, "\n"); (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("reported %q, want %q", got, c.want)
			}
		})
	}
}

func TestValue(t *testing.T) {
	d := Load(t, "worker-api.yaml")
	for _, c := range []struct {
		schema, data string
		good         bool
	}{
		{"TokenEvent", `{"text":"a","token_id":3}`, true},
		{"TokenEvent", `{"token_id":3}`, false},
		{"TokenEvent", `{"text":`, false},
		{"NoSuchSchema", `{}`, false},
	} {
		var rec recorder
		d.Value(&rec, c.schema, []byte(c.data))
		if (len(rec.lines) == 0) != c.good {
			t.Errorf("%s %s: reported %q", c.schema, c.data, rec.lines)
		}
	}
}

func TestFields(t *testing.T) {
	d := Load(t, "worker-api.yaml")
	d.Fields(t, "Usage", contract.Usage{})
	type embedded struct {
		contract.Usage
		Extra int `json:"extra"`
	}
	type optional struct {
		PromptTokens     int `json:"prompt_tokens"`
		CachedTokens     int `json:"cached_tokens,omitempty"`
		CompletionTokens int `json:"completion_tokens"`
	}
	for _, v := range []any{embedded{}, optional{}} {
		var rec recorder
		d.Fields(&rec, "Usage", v)
		if len(rec.lines) == 0 {
			t.Errorf("%T: reported %q", v, rec.lines)
		}
	}
}

func TestParseRefusesBrokenDocuments(t *testing.T) {
	for _, s := range []string{"", "{", "openapi: 3.0.3\n", "openapi: 3.0.3\ninfo: {title: x, version: \"1\"}\npaths: {/a: {get: {responses: {}}}}\n"} {
		if _, err := parse("x.yaml", []byte(s)); err == nil {
			t.Errorf("%q was taken for a document", s)
		}
	}
}

// The worker document describes exactly the contract's types.
func TestWorkerDocumentIsComplete(t *testing.T) {
	d := Load(t, "worker-api.yaml")
	for schema, v := range map[string]any{
		"WorkerInfo": contract.WorkerInfo{}, "Heartbeat": contract.Heartbeat{}, "HeartbeatReply": contract.HeartbeatReply{},
		"Message": contract.Message{}, "InferRequest": contract.InferRequest{}, "InferResponse": contract.InferResponse{},
		"Usage": contract.Usage{}, "Timings": contract.Timings{}, "TokenEvent": contract.TokenEvent{}, "DoneEvent": contract.DoneEvent{},
		"ErrorEvent": contract.ErrorEvent{}, "Error": contract.Error{}, "ErrorBody": contract.ErrorBody{},
	} {
		d.Fields(t, schema, v)
	}
}
