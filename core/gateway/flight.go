package gateway

import (
	"context"
	"errors"
	"hash/maphash"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/keys"
	"github.com/apiary-dev/apiary/core/openai"
)

// headRoom is kept free before a request's body in its buffer, so that head and body go to the worker in one write.
const headRoom = 768

// maxModelName bounds the model's name in a request.
const maxModelName = 512

// flight is one request on its way from a client to a worker and back.
type flight struct {
	wake
	g      *Gateway
	w      http.ResponseWriter
	r      *http.Request
	ctx    context.Context
	api    *api
	id     string
	name   string // the model as the client calls it
	stream bool
	ids    []string // models that may serve it
	start  time.Time
	hash   uint64 // of the body, for the poison table

	buf   *[]byte // headRoom bytes, then the body; nil once it is not needed any more
	scan  openai.Body
	infer *translation // the request in the form of /v1/infer, once a worker needed it

	attempt   int // the number of attempts begun
	retrying  bool
	tried     []string // workers that refused it
	committed bool     // the client has the status
	whole     bool     // do not detach any more
	usage     []byte
	out       *httpd.Stream // takes the place of w and r once the answer is detached from net/http
	stopGone  func() bool   // of context.AfterFunc
	use       *keys.Use     // of the caller's API key; nil without one
	revoked   *revocation   // likewise

	// What the attempt under way uses.
	backend    *backend
	direct     bool   // the worker has the OpenAI path itself
	modelName  string // the name the worker wants
	rd         reader
	ans        answer
	firstToken time.Duration

	// Counters that the sweeper reads in the place of clocks.
	received atomic.Uint32 // pieces from the worker that show progress
	sent     atomic.Uint32 // writes to the client
	content  atomic.Bool   // the answer itself has begun, not only comments

	// Guarded by sweeper.mu while the flight is with the sweeper.
	prev, next             *flight
	seenReceived, seenSent uint32
	looked                 bool // signalLook was sent in this silence
	receivedAt, sentAt     time.Time
	workerProgress         uint64
}

// serve answers one request for inference.
func (g *Gateway) serve(w http.ResponseWriter, r *http.Request, a *api) {
	f := &flight{g: g, w: w, r: r, ctx: r.Context(), api: a, start: time.Now()}
	f.id = httpd.RequestID(f.ctx)
	f.sentAt = f.start
	grant, _ := httpd.Caller(f.ctx).(*keys.Grant)
	if grant != nil {
		if err := f.under(grant); err != nil {
			httpd.WriteError(w, r, err)
			return
		}
	}
	f.rd.init(&g.reads, f.piece)
	f.ans.take = f.take
	g.active.Add(1)
	g.metrics.InFlight(1)
	err := f.run()
	if err == errDetach {
		// AfterFunc first: net/http ends the request's context with its handler, which is not the client's doing.
		if f.stopGone() && httpd.Detach(w, r, f.detached) {
			return
		}
		err = f.resume(f.ctx)
	}
	f.end(err)
}

// errDetach is no failure: receive returns it when the rest of a stream can do without net/http.
var errDetach = errors.New("the stream can be detached")

// detached relays the rest of a stream.
func (f *flight) detached(ctx context.Context, out *httpd.Stream) {
	f.w, f.r, f.out = nil, nil, out
	if f.revoked != nil {
		ctx = f.revoked.watch(ctx)
	}
	f.end(f.resume(ctx))
}

// resume goes on with the attempt that receive left with errDetach. ctx is the one that counts from now on.
func (f *flight) resume(ctx context.Context) error {
	f.ctx, f.whole = ctx, true
	f.stopGone = context.AfterFunc(ctx, f.gone)
	_, err := f.settle(f.receive())
	f.g.leave(f)
	return err
}

// end accounts for a request and tells the client what it has not been told.
func (f *flight) end(err error) {
	g := f.g
	defer f.freeBody()
	g.active.Add(-1)
	if f.retrying {
		g.retries.Add(-1)
	}
	g.metrics.InFlight(-1)
	status := fault.HTTPStatus(err)
	tokens := int(f.received.Load()) // about as many as came, where the worker did not get to say
	if f.usage != nil {
		prompt, cached, completion := parseUsage(f.usage)
		g.metrics.Tokens(f.name, prompt, cached, completion)
		tokens = prompt + completion
	}
	if f.use != nil {
		f.use.End(time.Now(), tokens)
		defer f.revoked.over()
	}
	model := f.name
	if f.ids == nil { // a name that nobody knows must not become a label
		model = ""
	}
	g.metrics.Request(model, status, time.Since(f.start))
	if err != nil {
		f.fail(err)
	}
	if f.out != nil {
		_ = f.out.End() // where it fails, nobody is left to be told
	}
}

func (f *flight) run() error {
	g := f.g
	if err := f.readBody(); err != nil {
		return err
	}
	if err := f.inspect(); err != nil {
		return err
	}
	if g.poison.refused(f.hash, f.start) {
		return errPoison()
	}
	t, err := g.dir.Resolve(f.name)
	if err != nil {
		return err
	}
	f.ids = t.ModelIDs
	if f.use != nil && !f.use.Grant().MayAsk(append([]string{f.name}, t.ModelIDs...)...) {
		return f.use.Grant().ErrModel()
	}
	for {
		if err := g.admit(f); err != nil {
			return err
		}
		f.attempt++
		again, err := f.try()
		if err == errDetach {
			return err
		}
		g.leave(f)
		if err == nil || !again || f.ctx.Err() != nil || !f.mayRetry() {
			return err
		}
		g.metrics.Retry()
		f.tried = append(f.tried, f.backend.id)
	}
}

// mayRetry reports whether another attempt is within the bounds: of this request, and of all that are open.
func (f *flight) mayRetry() bool {
	g := f.g
	if f.attempt > g.limits().Retries {
		return false
	}
	if f.retrying {
		return true
	}
	// A request keeps its share of the budget until it ends, so that a storm of refusals cannot pass the same share around.
	budget := max(int64(g.limits().RetryMin), int64(g.limits().RetryShare*float64(g.active.Load())))
	if g.retries.Add(1) > budget {
		g.retries.Add(-1)
		return false
	}
	f.retrying = true
	return true
}

func (f *flight) body() []byte { return (*f.buf)[headRoom:] }

// readBody reads the body into a pooled buffer that grows with what arrives, not with what was announced.
func (f *flight) readBody() error {
	f.buf = f.g.bodies.Get().(*[]byte)
	b := *f.buf
	want := headRoom + 4<<10
	if n := f.r.ContentLength; n >= 0 {
		want = headRoom + int(min(n, 64<<10))
	}
	if cap(b) < want {
		b = make([]byte, 0, want)
	}
	b = b[:headRoom]
	var err error
	for err == nil {
		if len(b) == cap(b) {
			if int64(len(b)-headRoom) == f.r.ContentLength {
				break
			}
			b = append(b, 0)[:len(b)]
		}
		var n int
		n, err = f.r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
	}
	*f.buf = b
	switch {
	case err != nil && err != io.EOF:
		return httpd.BodyError(err)
	case len(b)-headRoom > int(f.g.limits().Body):
		return httpd.BodyError(&http.MaxBytesError{Limit: int64(f.g.limits().Body)})
	}
	return nil
}

// freeBody gives the body's buffer back.
func (f *flight) freeBody() {
	if f.buf != nil {
		f.g.freeBuffer(f.buf)
	}
	f.buf = nil
}

// freeBuffer leaves very large buffers to the garbage collector, or a burst of them would stay.
func (g *Gateway) freeBuffer(b *[]byte) {
	if cap(*b) <= 1<<20 {
		*b = (*b)[:0]
		g.bodies.Put(b)
	}
}

// inspect finds what routing needs in the body.
func (f *flight) inspect() error {
	s, err := openai.Scan(f.body())
	if be, ok := errors.AsType[*openai.BodyError](err); ok {
		code := "invalid_json"
		if be.Param != "" {
			code = "invalid_value"
		}
		e := fault.New(fault.Invalid, code, "The request body %s.", be.Message)
		e.Param = be.Param
		return e
	} else if err != nil {
		return err
	}
	f.scan, f.name = s, s.Model
	f.stream = s.Stream && f.api.name != contract.APIEmbeddings
	if f.name == "" {
		return fault.New(fault.Invalid, "missing_model", `The request body must name a model in the field "model"; GET /v1/models lists them.`).WithParam("model")
	}
	if len(f.name) > maxModelName {
		return fault.New(fault.NotFound, "model_not_found", "The name of the model is longer than %d bytes; GET /v1/models lists the models.", maxModelName).WithParam("model")
	}
	f.hash = maphash.Bytes(f.g.poison.seed, f.body())
	// A token is about four bytes of text.
	f.firstToken = f.g.limits().FirstToken + time.Duration(s.PromptTo-s.PromptFrom)/4*time.Millisecond
	return nil
}

// message writes the head before the body and returns both.
func (f *flight) message() ([]byte, error) {
	path, body, buf := f.api.path, f.body(), *f.buf
	switch {
	case !f.direct:
		if f.infer == nil {
			t, err := f.api.translate(body)
			if err != nil {
				return nil, err
			}
			t.id, t.model = f.id, f.name
			f.infer = t
		}
		path = "/v1/infer"
		body = f.infer.request
		buf = append(make([]byte, headRoom, headRoom+len(body)), body...)
	case f.modelName != "" && f.modelName != f.name:
		buf = openai.SpliceModel(make([]byte, headRoom, headRoom+len(body)+len(f.modelName)), body, f.scan, f.modelName)
		body = buf[headRoom:]
	}
	var room [headRoom]byte
	h := append(room[:0], "POST "...)
	h = append(h, path...)
	h = append(h, f.backend.authority...)
	h = append(h, contract.RequestIDHeader...)
	h = append(h, ": "...)
	h = append(h, f.id...)
	h = append(h, "\r\nContent-Length: "...)
	h = strconv.AppendInt(h, int64(len(body)), 10)
	h = append(h, "\r\n\r\n"...)
	if len(h) > headRoom {
		return nil, errors.New("the head of the request to the worker is too long")
	}
	from := headRoom - len(h)
	copy(buf[from:], h)
	return buf[from:], nil
}

// commit sends the status and the header of a stream.
func (f *flight) commit() {
	if f.committed {
		return
	}
	f.committed = true
	h := f.w.Header()
	h["Content-Type"] = f.g.streamType
	h["Cache-Control"] = f.g.noCache
	f.w.WriteHeader(http.StatusOK)
}

// send writes to the client; an error means that it is gone, or reads too slowly.
func (f *flight) send(b []byte) error {
	if f.out != nil {
		_, _ = f.out.Write(b) // into a buffer
		return nil
	}
	if _, err := f.w.Write(b); err != nil {
		return errClientGone(err)
	}
	return nil
}

func (f *flight) flush() error {
	f.sent.Add(1)
	if f.out != nil {
		if err := f.out.FlushError(); err != nil {
			return errClientGone(err)
		}
		return nil
	}
	if fl, ok := f.w.(interface{ FlushError() error }); ok {
		if err := fl.FlushError(); err != nil {
			return errClientGone(err)
		}
		return nil
	}
	return http.NewResponseController(f.w).Flush()
}

// comfort tells a streaming client that its request is alive.
func (f *flight) comfort() error {
	f.commit()
	if err := f.send([]byte(": waiting\n\n")); err != nil {
		return err
	}
	return f.flush()
}

// Write sends to the client, for writers of events.
func (f *flight) Write(b []byte) (int, error) { return len(b), f.send(b) }

// fail tells the client of an error: with a status where none was sent, else by an event that ends the stream without [DONE].
func (f *flight) fail(err error) {
	if fault.KindOf(err) == fault.Internal {
		f.g.log.Error("request failed", "request_id", f.id, "error", err)
	}
	switch {
	case errors.Is(context.Cause(f.ctx), keys.ErrRevoked):
		err = keys.ErrGone()
	case errors.Is(context.Cause(f.ctx), httpd.ErrDraining):
		err = fault.New(fault.Unavailable, "draining", "The agent is being stopped and the request took longer than it waits; send it again.")
	case f.ctx.Err() != nil:
		panic(http.ErrAbortHandler) // nobody reads; the connection must not look as if it carried a whole answer
	}
	switch {
	case !f.committed:
		httpd.WriteError(f.w, f.r, err)
	default:
		e := fault.Wire(err, f.id)
		ev := openai.NewWriter(f)
		if ev.Data(contract.ErrorBody{Error: e}) == nil {
			_ = f.flush()
		}
	}
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// parseUsage reads the counts of a usage trailer; what is not there is 0.
func parseUsage(b []byte) (prompt, cached, completion int) {
	get := func(field string) int {
		_, v, ok := strings.Cut(string(b), `"`+field+`":`)
		if !ok {
			return 0
		}
		v = strings.TrimLeft(v, " ")
		end := 0
		for end < len(v) && end < 9 && v[end] >= '0' && v[end] <= '9' {
			end++
		}
		n, _ := strconv.Atoi(v[:end])
		return n
	}
	return get("prompt_tokens"), get("cached_tokens"), get("completion_tokens")
}

// Errors of the relay.

func errClientGone(err error) error {
	return &fault.Error{Kind: fault.Interrupted, Code: "client_gone", Message: "The client went away.", Err: err}
}

func errPoison() error {
	return fault.New(fault.Invalid, "poison_request",
		"This request was running both times when a worker died, and is refused for a while; change it, or look at the workers' logs.").WithStatus(http.StatusUnprocessableEntity)
}

// errWorkerLost has the message that clients of several servers know.
func errWorkerLost(cause error) error {
	return &fault.Error{Kind: fault.Unavailable, Code: "worker_lost", Message: "worker lost", Status: http.StatusBadGateway, Err: cause}
}

func errDeleted(id string, cause error) error {
	return &fault.Error{Kind: fault.Unavailable, Code: "worker_lost", Status: http.StatusBadGateway, Err: cause,
		Message: "The worker " + id + " was deleted while it answered; send the request again."}
}

func errBadAnswer(cause error) error {
	return &fault.Error{Kind: fault.Unavailable, Code: "worker_error", Status: http.StatusBadGateway, Err: cause,
		Message: "The worker's answer was not valid and is not passed on; try again, or look at the worker's log."}
}

func errRefused(cause error) error {
	return &fault.Error{Kind: fault.Unavailable, Code: "worker_unreachable", RetryAfter: time.Second, Err: cause,
		Message: "No worker of this model can be reached at the moment; try again shortly."}
}

func errTimeout(content bool) error {
	e := fault.New(fault.Unavailable, "first_token_timeout", "The worker accepted the request and sent nothing in time; try again.")
	if content {
		e = fault.New(fault.Unavailable, "stall_timeout", "The worker stopped sending in the middle of the answer.")
	}
	return e.WithStatus(http.StatusGatewayTimeout)
}
