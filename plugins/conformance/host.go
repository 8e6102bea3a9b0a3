package conformance

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// secret is what no plugin may repeat.
const secret = "canary-5f1d0c7e9b"

// mode is how the host behaves.
type mode struct {
	denied bool                                                                      // nothing is granted
	hang   bool                                                                      // requests get no answer while the mode lasts
	signed bool                                                                      // the address of the last hop holds a secret
	answer func(recorded *vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error) // in place of the recorded answer
	ended  chan struct{}                                                             // closed with the mode
}

// recorded is the mode in which requests have the answers of the cases.
func recorded() *mode { return &mode{} }

// testHost implements vendor.Host.
type testHost struct {
	answers []Answer
	journal *journal

	mu sync.Mutex
	// mu guards the fields below.
	grants   config.Grants
	mode     *mode
	store    map[string][]byte
	requests int
	asked    chan struct{} // gets a value with each request, while there is room
}

func newTestHost(answers []Answer, j *journal) *testHost {
	h := &testHost{answers: answers, journal: j, asked: make(chan struct{}, 1)}
	h.set(recorded())
	return h
}

// set changes the mode, and forgets what the plugin keeps.
func (h *testHost) set(m *mode) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mode != nil {
		close(h.mode.ended)
	}
	m.ended = make(chan struct{})
	h.mode, h.store = m, map[string][]byte{}
	select {
	case <-h.asked:
	default:
	}
}

func (h *testHost) allow(g config.Grants) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.grants = g
}

// count is the number of requests so far.
func (h *testHost) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.requests
}

func denied(code, format string, args ...any) *vendor.Error {
	return &vendor.Error{Kind: vendor.KindDenied, Code: code, Message: fmt.Sprintf(format, args...)}
}

// HTTP implements vendor.Host.
func (h *testHost) HTTP(ctx context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	h.mu.Lock()
	h.requests++
	m, g := h.mode, h.grants
	h.mu.Unlock()
	select {
	case h.asked <- struct{}{}:
	default:
	}
	if m.hang {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-m.ended:
			return nil, &vendor.Error{Kind: vendor.KindUnavailable, Code: "unreachable", Message: "The server did not answer in time; try again later."}
		}
	}
	if err := permit(req, g, m.denied); err != nil {
		return nil, err
	}
	out := h.find(req)
	if m.answer != nil {
		var err *vendor.Error
		if out, err = m.answer(out); err != nil {
			return nil, err
		}
	}
	out.URL = req.URL
	if m.signed {
		out.URL += map[bool]string{false: "?", true: "&"}[strings.Contains(req.URL, "?")] + "signature=" + secret
	}
	if req.Method == http.MethodHead {
		out.Body = nil
	}
	return out, nil
}

// permit refuses what the real host refuses.
func permit(req vendor.HTTPRequest, g config.Grants, all bool) *vendor.Error {
	u, err := url.Parse(req.URL)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http":
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_request", Message: "The plugin made a request that cannot be sent: its address is not one."}
	case !slices.Contains([]string{http.MethodGet, http.MethodHead, http.MethodPost}, req.Method):
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_request", Message: fmt.Sprintf("The plugin made a request that cannot be sent: its method is %q.", req.Method)}
	case all || !host.Granted(g.HTTP, u) || u.Scheme == "http" && !host.Granted(g.Private, u):
		return denied("host_not_granted", "The plugin wanted to ask %s, which was not granted.", u.Host)
	case req.Credential != "" && !slices.Contains(g.Credentials, req.Credential):
		return denied("credential_not_granted", "The plugin wanted a credential that was not granted.")
	}
	for name := range req.Header {
		switch http.CanonicalHeaderKey(name) {
		case "Authorization", "Cookie", "Host":
			return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_request", Message: "The plugin made a request that cannot be sent: it sets the header " + name + "."}
		}
	}
	return nil
}

func (h *testHost) find(req vendor.HTTPRequest) *vendor.HTTPResponse {
	for _, method := range []string{req.Method, map[string]string{http.MethodHead: http.MethodGet}[req.Method]} {
		for _, a := range h.answers {
			if a.URL != req.URL || (a.Method != method && !(a.Method == "" && method == http.MethodGet)) {
				continue
			}
			out := &vendor.HTTPResponse{Status: a.Status, Header: maps.Clone(a.Header), Body: a.body()}
			if out.Status == 0 {
				out.Status = http.StatusOK
			}
			return out
		}
	}
	return &vendor.HTTPResponse{Status: http.StatusNotFound, Body: []byte("not found")}
}

// Get implements vendor.Host.
func (h *testHost) Get(_ context.Context, key string) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mode.denied {
		return nil, denied("not_granted", "The plugin may not keep anything.")
	}
	return h.store[key], nil
}

// Set implements vendor.Host.
func (h *testHost) Set(_ context.Context, key string, value []byte, _ int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mode.denied {
		return denied("not_granted", "The plugin may not keep anything.")
	}
	h.store[key] = value
	return nil
}

// Log implements vendor.Host.
func (h *testHost) Log(level, message string, keysAndValues ...string) {
	h.journal.note(level, message, strings.Join(keysAndValues, " "))
}

// journal is what a plugin said, in lines and in errors, as far as it is looked through.
type journal struct {
	mu   sync.Mutex
	text []byte // guarded by mu
}

// maxJournal bounds what is kept, in bytes.
const maxJournal = 4 << 20

// Write implements io.Writer.
func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.text) < maxJournal {
		j.text = append(j.text, p...)
	}
	return len(p), nil
}

func (j *journal) note(parts ...string) {
	_, _ = j.Write([]byte(strings.Join(parts, " ") + "\n")) // it never fails
}

// line returns the line that holds text, "" where none does.
func (j *journal) line(text string) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	for line := range strings.Lines(string(j.text)) {
		if strings.Contains(line, text) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
