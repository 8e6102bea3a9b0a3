package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	bodyLimit   = 10 * contract.MiB // S8
	maxWaiting  = 64                // requests that wait for a slot; more are refused with 429
	endTimeout  = 5 * time.Second   // bound on each last step: cancelled requests, load, engine, connections
	logMax      = 10 * contract.MiB
	logKeep     = 3
	logInterval = 500 * time.Millisecond
)

// Options make a Server.
type Options struct {
	Config
	Implementation string // WorkerInfo.Implementation
	Version        string // WorkerInfo.Version
	Engine         Engine // owned by the server: Run closes it
	Secret         secret.Secret
	Beats          *http.Client                    // for heartbeats; nil: one with bounds on every wait
	Middleware     func(http.Handler) http.Handler // around the inference handlers, behind authentication; nil: none
}

// Server is a worker: the worker contract over one engine.
type Server struct {
	o        Options
	http     *httpd.Server
	beats    *beater
	identity contract.Identity
	protects contract.Protection
	started  time.Time
	hurry    chan struct{} // closed by a second signal: the drain is short

	requests context.Context // the parent of every request that the engine works on
	abort    context.CancelCauseFunc

	// mu guards the fields below.
	mu       sync.Mutex
	model    *Model // nil while it loads
	fraction float64
	steps    uint64 // of the load
	open     int    // requests with the engine
	stopping bool
	idle     chan struct{} // closed when stopping and open is 0
	reported contract.WorkerStatus
}

// New makes a Server. It starts nothing. Options.Secret, WorkerID, Model and Engine are required.
func New(o Options) (*Server, error) {
	if err := secret.Check(o.Secret.Reveal()); err != nil {
		return nil, fmt.Errorf("the worker's secret: %w", err)
	}
	if o.Beats == nil {
		o.Beats = beatClient()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, started: time.Now(), hurry: make(chan struct{}), idle: make(chan struct{}), reported: contract.StatusStarting}
	var err error
	if s.identity, err = process.Self(o.WorkerID); err != nil {
		// Elsewhere than on Linux a worker has no identity to be killed by, but it serves.
		s.identity = contract.Identity{WorkerID: o.WorkerID, PID: os.Getpid()}
	}
	s.protects = process.Protection(os.Getpid(), o.Landlock)
	s.requests, s.abort = context.WithCancelCause(context.Background())
	s.beats = newBeater(o.Beats, o.Secret, s.Info, o.Log)
	s.http, err = httpd.New(httpd.Options{Routes: s.routes(), Authorize: s.authorize, Hosts: []string{o.Address}, DrainTimeout: endTimeout, Log: o.Log})
	if err != nil {
		return nil, fmt.Errorf("build the worker's routes: %w", err)
	}
	if err := s.checkBeat(); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Server) routes() []httpd.Route {
	infer := func(h http.HandlerFunc) http.Handler {
		if s.o.Middleware != nil {
			return s.o.Middleware(h)
		}
		return h
	}
	post := func(path string, h http.HandlerFunc) httpd.Route {
		return httpd.Route{Pattern: "POST " + path, Class: httpd.ClassWorker, BodyLimit: bodyLimit, Handler: infer(h)}
	}
	return []httpd.Route{
		{Pattern: "GET /health", Class: httpd.ClassOpen, Timeout: endTimeout, Handler: http.HandlerFunc(s.healthHandler)},
		{Pattern: "GET /info", Class: httpd.ClassWorker, Timeout: endTimeout, Handler: http.HandlerFunc(s.infoHandler)},
		post("/v1/infer", s.inferHandler),
		post("/v1/chat/completions", s.chatHandler),
		post("/v1/completions", s.completionHandler),
		post("/v1/embeddings", s.embeddingHandler),
	}
}

func (s *Server) authorize(_ httpd.Class, r *http.Request) error {
	if s.o.Secret.Equal(httpd.Bearer(r)) {
		return nil
	}
	return fault.New(fault.Denied, "unauthorized", "The worker takes requests with its own secret only; send the request to the queen.").
		WithStatus(http.StatusUnauthorized)
}

func (s *Server) healthHandler(w http.ResponseWriter, _ *http.Request) {
	httpd.WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
}

func (s *Server) infoHandler(w http.ResponseWriter, _ *http.Request) {
	httpd.WriteJSON(w, http.StatusOK, s.Info())
}

// admit lets a request through to the engine, or says why not. The context that it returns ends with ctx and when the worker
// gives up at the end of its drain; release must be called when the engine is done with the request.
func (s *Server) admit(ctx context.Context, capability, param string) (context.Context, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.stopping:
		return nil, nil, fault.New(fault.Unavailable, codeDraining, "The worker is stopping and takes no new requests; send it to another.").
			WithRetryAfter(time.Second)
	case s.model == nil:
		return nil, nil, fault.New(fault.Unavailable, codeLoading, "The model is still being loaded (%.0f %% done); try again in a moment.", 100*s.fraction).
			WithRetryAfter(s.loadLeft())
	case !has(s.model.Capabilities, capability):
		return nil, nil, unsupported(param, "The model that this worker serves is not made for %s.", purpose(capability))
	case s.open >= s.model.Slots+maxWaiting:
		return nil, nil, fault.New(fault.Exhausted, codeQueueFull, "The worker has %d requests at work or waiting, as many as it takes; try again.", s.open).
			WithRetryAfter(time.Second)
	}
	s.open++
	s.noteStatus()
	ctx, cancel := context.WithCancelCause(ctx)
	unhook := context.AfterFunc(s.requests, func() { cancel(context.Cause(s.requests)) })
	return ctx, func() {
		unhook()
		cancel(nil)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.open--
		s.noteStatus()
		if s.stopping && s.open == 0 {
			close(s.idle)
		}
	}, nil
}

// loadLeft guesses from the progress so far how long the load still takes, from 1 s to 1 min. It is called with mu held.
func (s *Server) loadLeft() time.Duration {
	if s.fraction <= 0 {
		return 5 * time.Second
	}
	left := time.Duration(float64(time.Since(s.started)) * (1 - s.fraction) / s.fraction)
	return min(max(left, time.Second), time.Minute)
}

// noteStatus makes the queens hear of a change of status at once. It is called with mu held.
func (s *Server) noteStatus() {
	if now := s.status(s.o.Engine.Stats()); now != s.reported {
		s.reported = now
		s.beats.kick()
	}
}

// Run serves on ln, loads the model and beats, until ctx ends, the orphan lease runs out or the load fails. After the first two
// it refuses new requests, lets open ones end within Config.Drain, says Stopped to every queen, closes the engine and returns
// nil; a load that fails is an error. It owns ln. It may be called once.
func (s *Server) Run(ctx context.Context, ln net.Listener) error {
	serveCtx, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	beatCtx, stopBeats := context.WithCancel(serveCtx)
	loadCtx, stopLoad := context.WithCancel(serveCtx)
	defer stopServing()
	if a, ok := ln.Addr().(*net.TCPAddr); ok {
		s.mu.Lock()
		s.o.Port = a.Port
		s.mu.Unlock()
	}
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(serveCtx, ln) }()
	s.beats.start(beatCtx, s.o.QueenURLs)
	loaded := make(chan error, 1)
	go func() { loaded <- s.load(loadCtx) }()

	err := s.wait(ctx, served, loaded)

	s.mu.Lock()
	s.stopping = true
	if s.open == 0 {
		close(s.idle)
	}
	s.noteStatus()
	s.mu.Unlock()
	s.drain()
	stopLoad()
	stopBeats()
	s.beats.stop()
	stopServing()
	ends := []func(){func() {
		if e := <-served; e != nil && err == nil {
			s.o.Log.Warn("the server did not end in order", "cause", e)
		}
	}, func() {
		if e := s.o.Engine.Close(); e != nil {
			s.o.Log.Warn("the engine did not close in order", "cause", e)
		}
	}}
	for _, end := range ends {
		done := make(chan struct{})
		go func() { defer close(done); end() }()
		select {
		case <-done:
		case <-time.After(2 * endTimeout):
			s.o.Log.Warn("a part of the worker did not end in time and is left behind")
		}
	}
	return err
}

// load makes the engine ready.
func (s *Server) load(ctx context.Context) error {
	m, err := s.o.Engine.Load(ctx, func(f float64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if f > s.fraction && f <= 1 { // NaN is neither
			s.fraction = f
			s.steps++
		}
	})
	if err != nil {
		return fmt.Errorf("load the model: %w", err)
	}
	if m.Slots < 1 {
		m.Slots = 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.model, s.fraction = &m, 1
	s.steps++
	s.noteStatus()
	s.o.Log.Info("the model is loaded", "slots", m.Slots, "context_length", m.ContextLength, "after", time.Since(s.started).Round(time.Millisecond))
	return nil
}

// wait blocks while the worker has a reason to live. It takes from served and loaded only what ends the worker; it puts the end
// of served back.
func (s *Server) wait(ctx context.Context, served, loaded chan error) error {
	lease := time.NewTicker(leaseEvery(s.o.OrphanTTL))
	defer lease.Stop()
	rotate := time.NewTicker(logInterval)
	defer rotate.Stop()
	for {
		select {
		case <-ctx.Done():
			s.o.Log.Info("the worker is told to stop")
			return nil
		case err := <-loaded:
			if err != nil {
				return err
			}
		case err := <-served:
			served <- nil
			return errors.Join(errors.New("the worker's server ended by itself"), err)
		case <-lease.C:
			if s.orphaned() {
				s.o.Log.Warn("no queen answered for too long and nothing is at work: the worker ends itself", "orphan_ttl", s.o.OrphanTTL)
				return nil
			}
		case <-rotate.C:
			if s.o.LogPath == "" {
				continue
			}
			if err := process.Rotate(s.o.LogPath, logMax, logKeep); err != nil {
				s.o.Log.Warn("the log could not be rotated", "cause", err)
			}
		}
	}
}

func leaseEvery(ttl time.Duration) time.Duration {
	return min(max(ttl/10, 100*time.Millisecond), 5*time.Second)
}

// orphaned reports whether the lease of the queens has run out: none answered for the orphan TTL, and no request is open.
// A worker that was told of no queen has no lease.
func (s *Server) orphaned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.o.OrphanTTL > 0 && len(s.o.QueenURLs) > 0 && s.open == 0 && time.Since(s.beats.lastContact()) > s.o.OrphanTTL
}

// drain waits for the open requests, ends those that take too long, and waits a little for these.
func (s *Server) drain() {
	bound := time.NewTimer(s.o.Drain)
	defer bound.Stop()
	hurry := s.hurry
	for {
		select {
		case <-s.idle:
			return
		case <-hurry:
			hurry = nil
			bound.Reset(min(endTimeout, s.o.Drain))
			continue
		case <-bound.C:
		}
		break
	}
	s.abort(errDraining)
	select {
	case <-s.idle:
	case <-time.After(endTimeout):
		s.o.Log.Warn("the engine still works on requests that were cancelled")
	}
}

func has(list []string, v string) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

func purpose(capability string) string {
	switch capability {
	case contract.CapabilityChat:
		return "conversations: it has no chat template; send a prompt instead"
	case contract.CapabilityEmbedding:
		return "embeddings"
	}
	return "continuing text"
}
