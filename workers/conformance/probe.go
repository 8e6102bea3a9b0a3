package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/openai"
	"github.com/apiary-dev/apiary/core/run"
)

// maxAnswer bounds an answer that the suite reads.
const maxAnswer = 16 << 20

// probe speaks to the worker under test.
type probe struct {
	Target
	client *http.Client
}

// reply is an answer read to its end.
type reply struct {
	status  int
	header  http.Header
	trailer http.Header
	body    []byte
}

// send makes a request with the given Authorization header and reads the answer.
func (p *probe) send(ctx context.Context, method, path string, body []byte, authorization string) (*reply, error) {
	res, err := p.open(ctx, method, path, body, authorization)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", path, err)
	}
	return &reply{res.StatusCode, res.Header, res.Trailer, data}, nil
}

func (p *probe) open(ctx context.Context, method, path string, body []byte, authorization string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, p.BaseURL+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make a request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	res, err := p.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return res, nil
}

func (p *probe) bearer() string { return "Bearer " + p.Secret.Reveal() }

// post sends body, a value or ready JSON, and reads the answer.
func (p *probe) post(ctx context.Context, path string, body any) (*reply, error) {
	data, err := encode(body)
	if err != nil {
		return nil, err
	}
	return p.send(ctx, http.MethodPost, path, data, p.bearer())
}

func encode(body any) ([]byte, error) {
	if raw, ok := body.(string); ok {
		return []byte(raw), nil
	}
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode a request: %w", err)
	}
	return data, nil
}

// call posts body and decodes an answer of status 200 into v.
func (p *probe) call(ctx context.Context, path string, body, v any) (*reply, error) {
	res, err := p.post(ctx, path, body)
	if err != nil {
		return nil, err
	}
	if res.status != http.StatusOK {
		return nil, fmt.Errorf("POST %s is answered with %d: %s", path, res.status, clip(res.body))
	}
	if ct := res.header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		return nil, fmt.Errorf("POST %s is answered with the content type %q", path, ct)
	}
	if err := json.Unmarshal(res.body, v); err != nil {
		return nil, fmt.Errorf("the answer of %s is not the JSON that is expected: %w", path, err)
	}
	return res, nil
}

func (p *probe) info(ctx context.Context) (contract.WorkerInfo, error) {
	var w contract.WorkerInfo
	res, err := p.send(ctx, http.MethodGet, "/info", nil, p.bearer())
	if err != nil {
		return w, err
	}
	if res.status != http.StatusOK {
		return w, fmt.Errorf("GET /info is answered with %d: %s", res.status, clip(res.body))
	}
	if err := json.Unmarshal(res.body, &w); err != nil {
		return w, fmt.Errorf("the answer of /info is not a WorkerInfo: %w", err)
	}
	return w, nil
}

// await polls /info until ok, for at most d.
func (p *probe) await(ctx context.Context, d time.Duration, what string, ok func(contract.WorkerInfo) bool) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var last contract.WorkerInfo
	for {
		w, err := p.info(ctx)
		if err == nil {
			if last = w; ok(w) {
				return nil
			}
		} else if ctx.Err() == nil {
			return err
		}
		if run.Sleep(ctx, 20*time.Millisecond) != nil {
			return fmt.Errorf("after %v the worker still has the status %s with %d slots busy and %d requests waiting; expected: %s",
				d, last.Status, last.SlotsBusy, last.QueueDepth, what)
		}
	}
}

// event is one event of a stream.
type event struct {
	name string
	data []byte
}

// stream posts body and reads the events of the answer to its end. The raw bytes must be UTF-8.
func (p *probe) stream(ctx context.Context, path string, body any) ([]event, http.Header, error) {
	data, err := encode(body)
	if err != nil {
		return nil, nil, err
	}
	res, err := p.open(ctx, http.MethodPost, path, data, p.bearer())
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if ct := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || !strings.HasPrefix(ct, "text/event-stream") {
		b, _ := io.ReadAll(io.LimitReader(res.Body, 4096))
		return nil, nil, fmt.Errorf("a stream of %s is answered with %d and the content type %q: %s", path, res.StatusCode, ct, clip(b))
	}
	r := openai.NewReader(io.LimitReader(res.Body, maxAnswer))
	var events []event
	for {
		e, err := r.Next()
		if errors.Is(err, io.EOF) {
			return events, res.Trailer, nil
		}
		if err != nil {
			return events, nil, fmt.Errorf("the stream of %s broke after %d events: %w", path, len(events), err)
		}
		if !utf8.Valid(e.Data) {
			return events, nil, fmt.Errorf("event %d of %s is not UTF-8: %q", len(events), path, e.Data)
		}
		events = append(events, event{e.Name, bytes.Clone(e.Data)})
	}
}

// refused wants res to be an error in OpenAI's shape with the status, and with the code and param where these are not empty.
func refused(res *reply, status int, code, param string) error {
	var b contract.ErrorBody
	switch err := json.Unmarshal(res.body, &b); {
	case res.status != status:
		return fmt.Errorf("answered with %d, not %d: %s", res.status, status, clip(res.body))
	case err != nil || b.Error.Message == "" || b.Error.Type == "" || b.Error.Code == "":
		return fmt.Errorf("the error is not an object with message, type and code: %s", clip(res.body))
	case code != "" && b.Error.Code != code:
		return fmt.Errorf("the error's code is %q, not %q", b.Error.Code, code)
	case param != "" && (b.Error.Param == nil || *b.Error.Param != param):
		return fmt.Errorf("the error's param does not name %q: %s", param, clip(res.body))
	}
	return nil
}

// trailer wants the usage trailer to say the same as the answer.
func trailer(h http.Header, want contract.Usage) error {
	var got contract.Usage
	if err := json.Unmarshal([]byte(h.Get(contract.UsageTrailer)), &got); err != nil {
		return fmt.Errorf("the trailer %s is %q, not a usage in JSON", contract.UsageTrailer, h.Get(contract.UsageTrailer))
	}
	if got != want {
		return fmt.Errorf("the trailer %s says %+v and the answer %+v", contract.UsageTrailer, got, want)
	}
	return nil
}

func clip(b []byte) string {
	if len(b) > 300 {
		return fmt.Sprintf("%q…", b[:300])
	}
	return fmt.Sprintf("%q", b)
}
