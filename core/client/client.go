// Package client is the Go client of an agent's HTTP API: jobs and their streams, small JSON calls, and the raw stream of an
// inference request. The CLI uses it towards queens, queens towards hives, hives towards queens. It repeats only what cannot
// have been executed, and it decides nothing.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// Options configures a Client.
type Options struct {
	Base    string        // "http://127.0.0.1:7833"
	Token   secret.Secret // sent as bearer token; empty: none
	Timeout time.Duration // of a call that does not stream; default 30 s
	Dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	// DialTLS connects to a base of https and has finished the handshake when it returns. nil: the machine's own CAs decide.
	DialTLS func(ctx context.Context, network, addr string) (net.Conn, error)
	// Explain may put errors that the agent answered into other words, for a caller that knows more. nil: they stay.
	Explain func(*fault.Error) *fault.Error
}

const (
	defaultTimeout = 30 * time.Second
	dialTimeout    = 5 * time.Second
	maxAnswer      = 32 << 20 // bytes of an answer that is no stream
	dialAttempts   = 3
)

// Client talks to one agent. It may be used from many goroutines. Close frees its idle connections.
type Client struct {
	o    Options
	http *http.Client
}

// New returns a client. It connects to nobody yet.
func New(o Options) *Client {
	o.Base = strings.TrimRight(o.Base, "/")
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return &Client{o: o, http: &http.Client{
		// No proxy: agents talk to each other directly, and a token must not pass through a stranger.
		Transport: &http.Transport{DialContext: o.Dial, DialTLSContext: o.DialTLS, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: 64 << 10, DisableCompression: true},
		// A redirect would carry the token somewhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close frees the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// GetJSON fetches path and decodes the answer into out. Errors are *fault.Error: what the agent answered, or
// fault.Unavailable when it could not be reached.
func (c *Client) GetJSON(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodGet, path, nil, out)
}

// PostJSON posts in as JSON to path and decodes the answer into out, which may be nil. It is sent again only where the agent
// refused the connection.
func (c *Client) PostJSON(ctx context.Context, path string, in, out any) error {
	return c.call(ctx, http.MethodPost, path, in, out)
}

// DeleteJSON deletes path and decodes the answer into out, which may be nil.
func (c *Client) DeleteJSON(ctx context.Context, path string, out any) error {
	return c.call(ctx, http.MethodDelete, path, nil, out)
}

// Stream posts body as JSON to path and returns the answer's body, which the caller closes and which ends with ctx. An answer
// other than 200 is a *fault.Error.
func (c *Client) Stream(ctx context.Context, path string, body any) (io.ReadCloser, error) {
	res, err := c.send(ctx, http.MethodPost, path, body, nil)
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		defer closeBody(res)
		return nil, c.answered(res)
	}
	return res.Body, nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, c.o.Timeout)
	defer cancel()
	res, err := c.send(ctx, method, path, in, nil)
	if err != nil {
		return err
	}
	defer closeBody(res)
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return c.answered(res)
	}
	if out == nil {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return c.unreachable(ctx, err)
	}
	if len(b) > maxAnswer {
		return fault.New(fault.Internal, "answer_too_large", "The agent at %s answered with more than %s.", c.o.Base, contract.Bytes(maxAnswer))
	}
	if err := json.Unmarshal(b, out); err != nil {
		return &fault.Error{Kind: fault.Internal, Code: "bad_answer", Err: err,
			Message: fmt.Sprintf("The agent at %s answered something that is not the expected JSON; is another program listening there?", c.o.Base)}
	}
	return nil
}

// send makes one request. A refused connection is tried again a few times, because an agent that restarts is away for a moment.
func (c *Client) send(ctx context.Context, method, path string, body any, header map[string]string) (*http.Response, error) {
	var payload []byte
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request to %s: %w", path, err)
		}
		payload = b
	}
	for attempt := 1; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, method, c.o.Base+path, bytes.NewReader(payload))
		if err != nil {
			return nil, fault.New(fault.Invalid, "bad_address", "%q is no address of an agent; write for example http://127.0.0.1:7833.", c.o.Base)
		}
		if payload != nil {
			req.Header.Set("Content-Type", "application/json")
		}
		if c.o.Token != "" {
			req.Header.Set("Authorization", "Bearer "+c.o.Token.Reveal())
		}
		for k, v := range header {
			req.Header.Set(k, v)
		}
		res, err := c.http.Do(req)
		if err == nil {
			return res, nil
		}
		if attempt >= dialAttempts || !errors.Is(err, syscall.ECONNREFUSED) || !pause(ctx, attempt) {
			return nil, c.unreachable(ctx, err)
		}
	}
}

// unreachable explains why there is no answer.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if cause := ctx.Err(); errors.Is(cause, context.Canceled) {
		return fault.As(cause)
	}
	e := &fault.Error{Kind: fault.Unavailable, Err: err, RetryAfter: time.Second}
	if refused, ok := errors.AsType[*fault.Error](err); ok { // of a certificate that DialTLS has looked at
		return refused
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Code, e.Message = "agent_unreachable", fmt.Sprintf("No agent answers at %s: the connection was refused. Is it running?", c.o.Base)
	case errors.Is(err, context.DeadlineExceeded):
		e.Code, e.Message = "timeout", fmt.Sprintf("The agent at %s did not answer in time.", c.o.Base)
	default:
		e.Code, e.Message = "agent_unreachable", fmt.Sprintf("The connection to the agent at %s failed; try again.", c.o.Base)
	}
	return e
}

// answered reads the error that an agent answered.
func (c *Client) answered(res *http.Response) error {
	var body contract.ErrorBody
	b, err := io.ReadAll(io.LimitReader(res.Body, 64<<10))
	if err == nil {
		_ = json.Unmarshal(b, &body) // what is not of our shape gets a message of its own
	}
	seconds, _ := strconv.Atoi(res.Header.Get("Retry-After"))
	e := fault.FromWire(res.StatusCode, body.Error, time.Duration(max(0, seconds))*time.Second)
	if c.o.Explain != nil {
		return c.o.Explain(fault.As(e))
	}
	return e
}

func closeBody(res *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be used again
	_ = res.Body.Close()
}
