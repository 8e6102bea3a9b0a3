// Package httpd is the hardened HTTP server of queen, hive and worker: a table of routes, each with a class, a body limit and
// a timeout, and in front of all of them the same checks of Host, Origin, authorization, content type and size. It decides no
// permissions (a function that is passed in does) and knows no route of its own.
package httpd

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Class says who may call a route. Options.Authorize gives the classes their meaning.
type Class string

// The classes of routes.
const (
	ClassOpen      Class = "open"      // anybody; Authorize is not asked
	ClassInference Class = "inference" // callers of the OpenAI API
	ClassAdmin     Class = "admin"     // operators
	ClassWorker    Class = "worker"    // workers, and the queen's calls to one
	ClassHive      Class = "hive"      // hives, and the queen's calls to one
	ClassPeer      Class = "peer"      // hives that a queen gave a ticket for this one
	ClassQueen     Class = "queen"     // other queens
	ClassMetrics   Class = "metrics"   // scrapers
)

// Route is one entry of a server's table.
type Route struct {
	Pattern   string         // of http.ServeMux, with a method: "POST /v1/jobs"
	Class     Class          // required
	BodyLimit contract.Bytes // largest request body; required for POST, PUT and PATCH
	Timeout   time.Duration  // bounds the request's context; 0: a stream, no bound
	Handler   http.Handler
}

// Options configures a Server. Zero values mean the defaults named.
type Options struct {
	Routes []Route
	// Authorize decides whether r may call a route of class. It returns a fault; one of status 401 is answered with a
	// challenge. Nil allows everything. It is called before the body is read.
	Authorize func(class Class, r *http.Request) error
	// Closed reports whether callers need to show something for routes that are not open. While it does, one address may have 64
	// connections on which that has not been shown for a second or more. nil: they need not. It is asked for each connection.
	Closed func() bool
	// Hosts are values of the Host header that are accepted beside loopback names and the address of the connection.
	Hosts          []string
	MaxConnections int // open at once; default 8,192
	Log            *slog.Logger

	// The bounds below have the defaults of reliability.md S8; tests shorten them.
	HeaderTimeout time.Duration // for a request's header; default 5 s
	BodyTimeout   time.Duration // for a whole request with its body; default 30 s
	IdleTimeout   time.Duration // between requests; default 60 s
	WriteTimeout  time.Duration // without progress of a write; default 30 s
	DrainTimeout  time.Duration // for open requests when the server ends; default 120 s
}

const maxHeader = 32 << 10

// ErrDraining is the cause with which the contexts of requests end that are still open when Options.DrainTimeout has passed.
var ErrDraining = errors.New("the server is being stopped")

// farewell is how long handlers have to answer after that.
const farewell = 2 * time.Second

// Server serves a table of routes.
type Server struct {
	opts    Options
	mux     *http.ServeMux
	exact   map[string]*Route // by path and method, for patterns without wildcards
	unknown Class
	methods []string

	// Of Serve, which sets them before it answers anything.
	detached *detachedSet
}

// New checks the table: each route needs a valid pattern with a method, a known class, a handler and, where the method has a
// body, a limit for it. It starts nothing.
func New(o Options) (*Server, error) {
	s := &Server{opts: o, mux: http.NewServeMux(), exact: map[string]*Route{}}
	s.opts.Routes = slices.Clone(o.Routes)
	s.opts.MaxConnections = cmp.Or(o.MaxConnections, 8192)
	s.opts.HeaderTimeout = cmp.Or(o.HeaderTimeout, 5*time.Second)
	s.opts.BodyTimeout = cmp.Or(o.BodyTimeout, 30*time.Second)
	s.opts.IdleTimeout = cmp.Or(o.IdleTimeout, 60*time.Second)
	s.opts.WriteTimeout = cmp.Or(o.WriteTimeout, 30*time.Second)
	s.opts.DrainTimeout = cmp.Or(o.DrainTimeout, 120*time.Second)
	if s.opts.Log == nil {
		s.opts.Log = slog.New(slog.DiscardHandler)
	}
	s.unknown = ClassOpen
	for i := range s.opts.Routes {
		rt := &s.opts.Routes[i]
		if err := s.add(rt); err != nil {
			return nil, fmt.Errorf("route %q: %w", rt.Pattern, err)
		}
		// Who may not call anything must not learn which paths exist; who may call inference may, because OpenAI's clients
		// probe for paths.
		if s.unknown == ClassOpen || rt.Class == ClassInference {
			s.unknown = rt.Class
		}
	}
	s.mux.HandleFunc("/", s.serveUnknown)
	return s, nil
}

func (s *Server) add(rt *Route) (err error) {
	method, p, ok := strings.Cut(rt.Pattern, " ")
	switch {
	case !ok || method == "" || !strings.HasPrefix(p, "/") || p == "/":
		return errors.New(`the pattern needs a method and a path, such as "GET /healthz"`)
	case !slices.Contains([]Class{ClassOpen, ClassInference, ClassAdmin, ClassWorker, ClassHive, ClassPeer, ClassQueen, ClassMetrics}, rt.Class):
		return fmt.Errorf("the class %q does not exist", rt.Class)
	case hasBody(method) && rt.BodyLimit == 0:
		return errors.New("the body limit is missing")
	case rt.Handler == nil:
		return errors.New("the handler is missing")
	}
	defer func() {
		if p := recover(); p != nil { // ServeMux panics about patterns
			err = fmt.Errorf("%v", p)
		}
	}()
	s.mux.Handle(rt.Pattern, handlerFunc(func(w *response, r *http.Request) { s.serveRoute(rt, w, r) }))
	if !strings.ContainsAny(p, "{}") && !strings.HasSuffix(p, "/") {
		s.exact[p+" "+method] = rt
	}
	if !slices.Contains(s.methods, method) {
		s.methods = append(s.methods, method)
	}
	return nil
}

func hasBody(method string) bool {
	return method == http.MethodPost || method == http.MethodPut || method == http.MethodPatch
}

// Routes returns the table, for --dump-routes.
func (s *Server) Routes() []Route { return slices.Clone(s.opts.Routes) }

// Serve answers requests on ln until ctx ends, then refuses new ones, waits for open ones up to Options.DrainTimeout, and
// closes what is left. The contexts of requests do not end with ctx, only with their connection or at that bound. Serve owns
// ln and returns nil after an orderly end.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	srv := &http.Server{
		Handler:                      s,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            s.opts.HeaderTimeout,
		ReadTimeout:                  s.opts.BodyTimeout,
		IdleTimeout:                  s.opts.IdleTimeout,
		MaxHeaderBytes:               maxHeader - 4096, // net/http reads 4 KiB more than it is told
		ErrorLog:                     slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return base },
		Protocols:                    new(http.Protocols),
	}
	srv.Protocols.SetHTTP1(true)
	l := newListener(ln, min(s.opts.MaxConnections, connectionsByFiles()), s.opts.WriteTimeout)
	srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		c := nc.(*conn)
		if l.closed != nil {
			ctx = context.WithValue(ctx, connKey{}, c)
		}
		if c.spare {
			ctx = context.WithValue(ctx, spareKey{}, true)
		}
		switch t := c.Conn.(type) {
		case *tls.Conn:
			cs := t.ConnectionState()
			ctx = context.WithValue(ctx, tlsKey{}, &cs)
		case syscall.Conn:
			ctx = context.WithValue(ctx, socketKey{}, true)
		}
		return ctx
	}
	l.closed = s.opts.Closed
	s.detached = newDetachedSet(base, l)
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		err := s.shutdown(srv, s.opts.DrainTimeout)
		if err != nil { // handlers get a moment to tell their clients
			cancel(ErrDraining)
			err = s.shutdown(srv, farewell)
		}
		if err != nil {
			s.detached.close()
			err = errors.Join(fmt.Errorf("requests were still open after %v", s.opts.DrainTimeout), srv.Close())
		}
		done <- err
	})
	err := srv.Serve(l)
	if stop() || !errors.Is(err, http.ErrServerClosed) {
		return errors.Join(fmt.Errorf("serve %s: %w", ln.Addr(), err), srv.Close())
	}
	return <-done
}

func (s *Server) shutdown(srv *http.Server, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	// A handler that still runs may yet detach its stream, so the streams come last.
	return errors.Join(srv.Shutdown(ctx), s.detached.shutdown(ctx))
}

// ServeHTTP applies the checks and calls the route. Serve uses it; tests may call it directly.
func (s *Server) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := &response{ResponseWriter: rw, s: s, id: requestID(r)}
	rw.Header()[requestIDKey] = []string{w.id}
	r = r.WithContext(&requestContext{Context: r.Context(), id: w.id})
	defer s.recovered(w, r)
	if err := s.checkOrigin(r); err != nil {
		WriteError(w, r, err)
		return
	}
	if rt := s.exact[r.URL.Path+" "+r.Method]; rt != nil && r.URL.RawPath == "" {
		s.serveRoute(rt, w, r)
		return
	}
	// ServeMux would answer an unclean path with a redirect; here such a path is unknown.
	p := r.URL.EscapedPath()
	if clean := path.Clean(p); !strings.HasPrefix(p, "/") || p != clean && (clean == "/" || p != clean+"/") {
		s.serveUnknown(w, r)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) recovered(w *response, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
		s.opts.Log.Error("handler panicked", "request_id", w.id, "method", r.Method, "panic", fmt.Sprintf("%.500q", fmt.Sprint(p)))
		if !w.wrote {
			w.Header().Set("Connection", "close")
			WriteError(w, r, fault.New(fault.Internal, "internal",
				"The request failed inside Apiary; the agent's log has the cause under this request id."))
			return
		}
	}
	// The answer had begun: only a broken connection tells the caller that it is not whole.
	panic(http.ErrAbortHandler)
}

func (s *Server) authorize(class Class, r *http.Request) error {
	if class == ClassOpen || s.opts.Authorize == nil {
		return nil
	}
	return s.opts.Authorize(class, r)
}

// spareKey marks the contexts of requests on spare connections.
type spareKey struct{}

// socketKey marks the contexts of requests whose connection is one of the operating system's.
type socketKey struct{}

// tlsKey has the state of the connection of a request, where it is one of TLS.
type tlsKey struct{}

// TLS is the state of a request's connection, with the certificate that the caller has shown; nil where it came without TLS. The listener
// that is given to Serve has finished its handshake.
func TLS(r *http.Request) *tls.ConnectionState {
	cs, _ := r.Context().Value(tlsKey{}).(*tls.ConnectionState)
	return cs
}

// overloaded refuses what a spare connection is not for.
func overloaded(rt *Route, w *response, r *http.Request) bool {
	if r.Context().Value(spareKey{}) == nil {
		return false
	}
	w.Header().Set("Connection", "close")
	switch rt.Class {
	case ClassOpen, ClassWorker, ClassHive, ClassQueen:
		return false
	}
	WriteError(w, r, fault.New(fault.Unavailable, "too_many_connections",
		"All connections of this agent are in use; try again shortly.").WithRetryAfter(time.Second))
	return true
}

func (s *Server) serveRoute(rt *Route, w *response, r *http.Request) {
	if overloaded(rt, w, r) {
		return
	}
	if err := s.authorize(rt.Class, r); err != nil {
		WriteError(w, r, err)
		return
	}
	switch rt.Class {
	case ClassInference, ClassAdmin, ClassMetrics:
		introduced(r.Context())
	case ClassOpen:
	default: // the handler compares what was shown
		defer func() {
			if !w.failed {
				introduced(r.Context())
			}
		}()
	}
	if hasBody(r.Method) {
		if err := checkBody(rt, r); err != nil {
			w.Header().Set("Connection", "close") // do not read what was refused
			WriteError(w, r, err)
			return
		}
		if r.ContentLength < 0 {
			r.Body = http.MaxBytesReader(w.ResponseWriter, r.Body, int64(rt.BodyLimit))
		}
	} else if r.ContentLength != 0 {
		r.Body = http.MaxBytesReader(w.ResponseWriter, r.Body, int64(rt.BodyLimit))
	}
	if rt.Timeout > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), rt.Timeout)
		defer cancel()
		r = r.WithContext(ctx)
	}
	rt.Handler.ServeHTTP(w, r)
}

func checkBody(rt *Route, r *http.Request) error {
	if !isJSON(r.Header["Content-Type"]) {
		return fault.New(fault.Invalid, "unsupported_media_type",
			"The request needs the header Content-Type: application/json.").WithStatus(http.StatusUnsupportedMediaType)
	}
	if e := r.Header["Content-Encoding"]; len(e) > 0 && !(len(e) == 1 && strings.EqualFold(e[0], "identity")) {
		return fault.New(fault.Invalid, "unsupported_encoding",
			"Request bodies must be sent without a Content-Encoding.").WithStatus(http.StatusUnsupportedMediaType)
	}
	if r.ContentLength > int64(rt.BodyLimit) {
		return tooLarge(int64(rt.BodyLimit))
	}
	return nil
}

func isJSON(v []string) bool {
	if len(v) != 1 {
		return false
	}
	t, _, _ := strings.Cut(v[0], ";")
	return t == "application/json" || strings.EqualFold(strings.TrimSpace(t), "application/json")
}

func tooLarge(limit int64) error {
	return fault.New(fault.Invalid, "body_too_large", "The request body is larger than %s, the limit of this path.",
		contract.Bytes(limit)).WithStatus(http.StatusRequestEntityTooLarge)
}

// serveUnknown answers requests that no route matches, after authorization.
func (s *Server) serveUnknown(w http.ResponseWriter, r *http.Request) {
	if err := s.authorize(s.unknown, r); err != nil {
		WriteError(w, r, err)
		return
	}
	var allow []string
	for _, m := range s.methods {
		probe := &http.Request{Method: m, URL: &url.URL{Path: r.URL.Path, RawPath: r.URL.RawPath}, Host: r.Host}
		if _, pattern := s.mux.Handler(probe); pattern != "" && pattern != "/" {
			allow = append(allow, m)
		}
	}
	if len(allow) > 0 && !slices.Contains(allow, r.Method) {
		slices.Sort(allow)
		w.Header().Set("Allow", strings.Join(allow, ", "))
		WriteError(w, r, fault.New(fault.Invalid, "method_not_allowed",
			"This path does not take the method of the request; it takes %s.", strings.Join(allow, ", ")).WithStatus(http.StatusMethodNotAllowed))
		return
	}
	WriteError(w, r, fault.New(fault.NotFound, "unknown_path", "There is no such path on this agent; OpenAI's paths begin with /v1."))
}
