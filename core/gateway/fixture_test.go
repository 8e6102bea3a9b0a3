package gateway_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/gateway"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	okJSON   = `{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}]}`
	chunk    = `data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"tök😀"}}]}` + "\n\n"
	done     = "data: [DONE]\n\n"
	sseHead  = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
	workerKy = "worker-secret-worker-secret-worker-secret"
)

func reply(status int, typ, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d X\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", status, typ, len(body), body)
}

func chunked(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		fmt.Fprintf(&b, "%x\r\n%s\r\n", len(p), p)
	}
	return b.String()
}

const lastChunk = "0\r\n\r\n"

// request is what a stub worker received.
type request struct {
	head string // with its last CRLF
	path string
	body string
}

func (r request) header(name string) string {
	for l := range strings.SplitSeq(r.head, "\r\n") {
		if k, v, ok := strings.Cut(l, ":"); ok && strings.EqualFold(k, name) {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// stub is a worker made of a raw socket: its script writes any bytes it likes.
type stub struct {
	t      *testing.T
	id     string
	ln     net.Listener
	script func(c *stubConn, r request) (keep bool)

	mu    sync.Mutex
	seen  []request
	conns int
	open  map[net.Conn]bool
	wg    sync.WaitGroup
}

type stubConn struct {
	net.Conn
	r *bufio.Reader
}

func (c *stubConn) say(s string) { _, _ = io.WriteString(c, s) }

// closed waits until the other side ended the connection.
func (c *stubConn) closed() { _, _ = io.Copy(io.Discard, c.r) }

func newStub(t *testing.T, id string, script func(*stubConn, request) bool) *stub {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &stub{t: t, id: id, ln: ln, script: script, open: map[net.Conn]bool{}}
	s.wg.Go(s.accept)
	t.Cleanup(s.kill)
	return s
}

func (s *stub) accept() {
	for {
		c, err := s.ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns++
		s.open[c] = true
		s.mu.Unlock()
		s.wg.Go(func() {
			s.serve(&stubConn{c, bufio.NewReader(c)})
			_ = c.Close()
			s.mu.Lock()
			delete(s.open, c)
			s.mu.Unlock()
		})
	}
}

func (s *stub) serve(c *stubConn) {
	for {
		var r request
		n := 0
		for {
			l, err := c.r.ReadString('\n')
			if err != nil {
				return
			}
			if r.head == "" {
				r.path = strings.Split(l, " ")[1]
			}
			r.head += l
			if k, v, _ := strings.Cut(l, ":"); strings.EqualFold(k, "content-length") {
				n, _ = strconv.Atoi(strings.TrimSpace(v))
			}
			if l == "\r\n" {
				break
			}
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(c.r, b); err != nil {
			return
		}
		r.body = string(b)
		s.mu.Lock()
		s.seen = append(s.seen, r)
		s.mu.Unlock()
		if !s.script(c, r) {
			return
		}
	}
}

// kill ends the worker as a SIGKILL would: its port is closed first.
func (s *stub) kill() {
	_ = s.ln.Close()
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *stub) requests() []request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]request(nil), s.seen...)
}

// directory is the queen of these tests: a real registry, and demands that a test sets.
type directory struct {
	mu       sync.Mutex
	m        *registry.Machine
	now      time.Duration
	snap     *registry.Snapshot
	changed  chan struct{}
	demand   registry.Demand
	demands  int
	failures map[string][]registry.FailureKind
	models   []contract.ModelView
	targets  map[string][]string
	seq      uint64
	paused   bool // failures are recorded and not acted on
	deleted  map[string]bool
}

func newDirectory() *directory {
	d := &directory{m: registry.New(registry.Params{}, 0), now: time.Minute, changed: make(chan struct{}),
		failures: map[string][]registry.FailureKind{}, targets: map[string][]string{"m": {"model-1"}},
		demand: registry.Demand{State: registry.DemandImpossible, Err: fault.New(fault.Unavailable, "no_worker", "There is no worker.")}}
	d.snap = d.m.Snapshot(d.now)
	return d
}

// step applies an event with d.mu held.
func (d *directory) step(e registry.Event) {
	d.now += time.Millisecond
	d.m.Step(d.now, e)
	d.snap = d.m.Snapshot(d.now)
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *directory) beat(info contract.WorkerInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seq++
	d.step(registry.Beat{Heartbeat: contract.Heartbeat{Worker: info, Sequence: d.seq}})
}

func (d *directory) setDemand(v registry.Demand) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.demand = v
	close(d.changed)
	d.changed = make(chan struct{})
}

func (d *directory) Snapshot() *registry.Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.snap
}

func (d *directory) Deleted(id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.deleted[id]
}

func (d *directory) Changed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.changed
}

func (d *directory) Resolve(name string) (registry.Target, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ids, ok := d.targets[name]
	if !ok {
		return registry.Target{}, fault.New(fault.NotFound, "model_not_found", "There is no model %q; run: apiary model pull %s", name, name)
	}
	return registry.Target{ModelIDs: ids}, nil
}

func (d *directory) Demand(string) registry.Demand {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.demands++
	return d.demand
}

func (d *directory) Models() []contract.ModelView { return d.models }

func (d *directory) ReportFailure(id string, kind registry.FailureKind) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failures[id] = append(d.failures[id], kind)
	if !d.paused {
		d.step(registry.Failure{WorkerID: id, Kind: kind})
	}
}

func (d *directory) ReportSuccess(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.step(registry.Success{WorkerID: id})
}

func (d *directory) failed(id string) []registry.FailureKind {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]registry.FailureKind(nil), d.failures[id]...)
}

func (d *directory) info(s *stub, slots int) contract.WorkerInfo {
	a := s.ln.Addr().(*net.TCPAddr)
	return contract.WorkerInfo{ID: s.id, ModelID: "model-1", Status: contract.StatusReady, ContractVersion: contract.Version, Incarnation: 1,
		Address: a.IP.String(), Port: a.Port, Slots: slots, BootID: "boot", PID: 1, HiveID: "hive", LoadProgress: 1,
		APIs: []string{contract.APIInfer, contract.APIChat, contract.APICompletions, contract.APIEmbeddings}}
}

func (d *directory) add(s *stub, slots int) { d.beat(d.info(s, slots)) }

type counts struct {
	mu       sync.Mutex
	statuses []int
	tokens   []int
	retries  int
	inFlight int
}

func (c *counts) Request(_ string, status int, _ time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.statuses = append(c.statuses, status)
}

func (c *counts) Tokens(_ string, p, k, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens = []int{p, k, n}
}

func (c *counts) Retry() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retries++
}

func (c *counts) InFlight(d int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inFlight += d
}

// hub is a gateway behind its real server.
type hub struct {
	*directory
	t    *testing.T
	g    *gateway.Gateway
	addr string
	n    *counts
}

func newHub(t *testing.T, limits gateway.Limits) *hub {
	t.Helper()
	return newHubFor(t, limits, nil)
}

func newHubFor(t *testing.T, limits gateway.Limits, authorize func(httpd.Class, *http.Request) error) *hub {
	t.Helper()
	return newHubWith(t, gateway.Options{Limits: limits}, authorize)
}

func newHubDialing(t *testing.T, limits gateway.Limits, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *hub {
	t.Helper()
	return newHubWith(t, gateway.Options{Limits: limits, Dial: dial}, nil)
}

func newHubWith(t *testing.T, o gateway.Options, authorize func(httpd.Class, *http.Request) error) *hub {
	t.Helper()
	h := &hub{directory: newDirectory(), t: t, n: &counts{}}
	h.g = gateway.New(gateway.Options{Directory: h.directory, Limits: o.Limits, Metrics: h.n, Log: slog.New(slog.DiscardHandler), Dial: o.Dial,
		Secret: func(string) secret.Secret { return workerKy }})
	srv, err := httpd.New(httpd.Options{Routes: h.g.Routes(), Authorize: authorize, WriteTimeout: time.Second, DrainTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("server: %v", err)
		}
		h.g.Close()
		if h.n.inFlight != 0 {
			t.Errorf("%d requests are counted as in flight at the end", h.n.inFlight)
		}
	})
	return h
}

func chat(stream bool) string {
	return fmt.Sprintf(`{"model":"m","stream":%v,"messages":[{"role":"user","content":"hello"}]}`, stream)
}

func (h *hub) post(path, body string) (*http.Response, string) {
	h.t.Helper()
	res, err := http.Post("http://"+h.addr+path, "application/json", strings.NewReader(body))
	if err != nil {
		h.t.Error(err)
		return &http.Response{}, ""
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		h.t.Errorf("read the answer: %v", err)
	}
	return res, string(b)
}

func (h *hub) chat(stream bool) (*http.Response, string) {
	h.t.Helper()
	return h.post("/v1/chat/completions", chat(stream))
}

// errorOf reads the error of an answer, which must be in OpenAI's shape.
func errorOf(t *testing.T, body string) contract.Error {
	t.Helper()
	var e contract.ErrorBody
	if err := json.Unmarshal([]byte(body), &e); err != nil || e.Error.Message == "" || e.Error.Type == "" || e.Error.Code == "" {
		t.Errorf("not an error in OpenAI's shape: %.300q", body)
	}
	return e.Error
}

// idle waits until no worker has a request, which must be soon.
func (h *hub) idle(ids ...string) {
	h.t.Helper()
	eventually(h.t, "in-flight requests end", func() bool {
		for _, id := range ids {
			if h.g.InFlight(id) != 0 {
				return false
			}
		}
		return true
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
