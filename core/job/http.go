package job

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

const (
	maxBody      = 1 << 20
	commentEvery = 10 * time.Second
	writeWithin  = 30 * time.Second // of one write to a follower
)

// SubmitHandler serves POST /v1/jobs. dispatch turns an operation and its whole body into the function to run; its errors are
// answered and no job is made.
func (m *Manager) SubmitHandler(dispatch func(op string, body json.RawMessage) (Func, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			status := http.StatusBadRequest
			if _, large := errors.AsType[*http.MaxBytesError](err); large {
				status = http.StatusRequestEntityTooLarge
			}
			writeError(w, fault.New(fault.Invalid, "bad_body", "The request body could not be read, or is larger than an operation may be.").WithStatus(status))
			return
		}
		var head struct {
			Operation string `json:"operation"`
			subject
		}
		if err := json.Unmarshal(body, &head); err != nil {
			writeError(w, fault.New(fault.Invalid, "invalid_json", `The body of a job must be a JSON object with "operation" and the operation's fields.`))
			return
		}
		if twice := duplicate(body); twice != "" {
			writeError(w, fault.New(fault.Invalid, "duplicate_field", "The field %.64q stands twice in the body of a job; say which one is meant.", twice).WithParam(twice))
			return
		}
		if head.Operation == "" {
			writeError(w, fault.New(fault.Invalid, "operation_missing", `The field "operation" is missing.`).WithParam("operation"))
			return
		}
		f, err := dispatch(head.Operation, body)
		if err != nil {
			writeError(w, err)
			return
		}
		job, err := m.Start(head.Operation, head.about(), f)
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusAccepted, contract.JobAccepted{JobID: job.ID, StreamURL: "/v1/jobs/" + job.ID + "/stream"})
	})
}

// duplicate returns the name of a field that an object has twice, also in another case of letters, because readers differ in which
// of them counts; "" where it has none. body is a JSON object.
func duplicate(body []byte) string {
	d := json.NewDecoder(bytes.NewReader(body))
	seen := map[string]bool{}
	if _, err := d.Token(); err != nil {
		return ""
	}
	for d.More() {
		t, err := d.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return ""
		}
		folded := strings.ToLower(strings.ToUpper(key)) // as encoding/json folds, which takes ſ for s
		if seen[folded] {
			return key
		}
		seen[folded] = true
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return ""
		}
	}
	return ""
}

// subject is the fields of operations that say what they are about. Their types are checked by who dispatches.
type subject struct {
	Model     any `json:"model"`
	WorkerID  any `json:"worker_id"`
	Reference any `json:"reference"`
	HiveID    any `json:"hive_id"`
}

func (s subject) about() string {
	for _, v := range []any{s.Model, s.WorkerID, s.Reference, s.HiveID} {
		if text, _ := v.(string); text != "" {
			return text
		}
	}
	return ""
}

// maxSubject bounds a job's subject, in bytes.
const maxSubject = 200

// shown is a subject as lists show it: without what URLs may carry of secrets, on one line, shortened.
func shown(s string) string {
	if before, rest, ok := strings.Cut(s, "://"); ok {
		host, path, slash := strings.Cut(rest, "/")
		if i := strings.LastIndexByte(host, '@'); i >= 0 {
			host = host[i+1:]
		}
		s = before + "://" + host
		if slash {
			s += "/" + path
		}
		s, _, _ = strings.Cut(s, "?")
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, s)
	if len(s) <= maxSubject {
		return s
	}
	const more = "…"
	cut := maxSubject - len(more)
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + more
}

// ListHandler serves GET /v1/jobs: an array of contract.Job, the newest first. Jobs that only looked something up and are over
// are in it with ?all=true only: every command makes some. others, which may be nil, has jobs of other managers to list as well.
func (m *Manager) ListHandler(others func(ctx context.Context, all bool) []contract.Job) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		jobs := m.List()
		if others != nil {
			jobs = append(jobs, others(r.Context(), r.URL.Query().Get("all") == "true")...)
			slices.SortStableFunc(jobs, func(a, b contract.Job) int { return b.CreatedAt.Compare(a.CreatedAt) })
		}
		switch all := r.URL.Query().Get("all"); all {
		case "true":
		case "", "false":
			jobs = slices.DeleteFunc(jobs, func(j contract.Job) bool { return j.State != contract.JobRunning && contract.IsRead(j.Operation) })
		default:
			writeError(w, fault.New(fault.Invalid, "bad_query", "The query parameter \"all\" is true or false, not %q.", all).WithParam("all"))
			return
		}
		writeJSON(w, http.StatusOK, jobs)
	})
}

// GetHandler serves GET /v1/jobs/{id}: a contract.Job.
func (m *Manager) GetHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		job, err := m.Get(r.PathValue("id"))
		if err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusOK, job)
	})
}

// CancelHandler serves DELETE /v1/jobs/{id}. It answers 202 with the job as it stands: the job ends when its work has stopped,
// which its stream tells. A job that is over is 409.
func (m *Manager) CancelHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		err := m.Cancel(id)
		job, err2 := m.Get(id)
		if err = errors.Join(err, err2); err != nil {
			writeError(w, err)
			return
		}
		writeJSON(w, http.StatusAccepted, job)
	})
}

// StreamHandler serves GET /v1/jobs/{id}/stream: server-sent events from the start, or after Last-Event-ID, to the terminal
// event, with a comment every 10 s of silence. Who has seen the terminal event already gets 204, which tells an EventSource to stop.
func (m *Manager) StreamHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var after uint64
		if v := r.Header.Get("Last-Event-ID"); v != "" {
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				writeError(w, fault.New(fault.Invalid, "bad_last_event_id", "Last-Event-ID must be a sequence number of this stream."))
				return
			}
			after = n
		}
		run, err := m.find(r.PathValue("id"))
		if err != nil {
			writeError(w, err)
			return
		}
		if events, _, over := run.after(after); over && len(events) == 0 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-store")
		h.Set("X-Content-Type-Options", "nosniff")
		w.WriteHeader(http.StatusOK)
		stream(r.Context(), w, run, after)
	})
}

// stream writes events until the terminal one, the end of ctx or an error of the connection.
func stream(ctx context.Context, w http.ResponseWriter, run *run, after uint64) {
	out := http.NewResponseController(w)
	quiet := time.NewTicker(commentEvery)
	defer quiet.Stop()
	var buf []byte
	for {
		events, changed, over := run.after(after)
		buf = buf[:0]
		for _, e := range events {
			buf = append(buf, "id: "...)
			buf = strconv.AppendUint(buf, e.Seq, 10)
			buf = append(buf, "\nevent: "...)
			buf = append(buf, e.Name...)
			buf = append(buf, "\ndata: "...)
			buf = append(buf, e.Data...)
			buf = append(buf, "\n\n"...)
			after = e.Seq
		}
		if !write(out, w, buf) || over {
			return
		}
		quiet.Reset(commentEvery)
		select {
		case <-changed:
		case <-quiet.C:
			if !write(out, w, []byte(": still running\n\n")) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func write(out *http.ResponseController, w http.ResponseWriter, b []byte) bool {
	// A server without deadlines (a test's recorder) is no reason to stop.
	_ = out.SetWriteDeadline(time.Now().Add(writeWithin))
	if _, err := w.Write(b); err != nil {
		return false
	}
	err := out.Flush()
	return err == nil || errors.Is(err, errors.ErrUnsupported)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

// writeError answers as core/httpd does, which is of this package's layer and so not at hand.
func writeError(w http.ResponseWriter, err error) {
	e := fault.As(err)
	if e.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.RetryAfter.Seconds()))))
	}
	writeJSON(w, fault.HTTPStatus(err), contract.ErrorBody{Error: fault.Wire(err, w.Header().Get(contract.RequestIDHeader))})
}
