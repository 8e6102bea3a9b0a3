package agent

import (
	"errors"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/secret"
)

// guard decides who may call what, while there are no API keys and no certificates: inference is open and its
// Authorization header is ignored; operators show the admin key; hives are called with the secret derived for them.
type guard struct {
	admin    secret.Secret
	hive     secret.Secret // for calls to this node's hive
	loopback bool          // only this machine can connect
}

// queen authorizes calls to the queen's server. Workers and hives show a secret that depends on who they say they are, so
// the queen itself compares it, once it has read the body; here it only has to be there.
func (g guard) queen(class httpd.Class, r *http.Request) error {
	token := httpd.Bearer(r)
	switch class {
	case httpd.ClassOpen, httpd.ClassInference:
		return nil
	case httpd.ClassMetrics:
		if g.loopback || g.admin.Equal(token) {
			return nil
		}
	case httpd.ClassAdmin:
		if g.admin.Equal(token) {
			return nil
		}
	case httpd.ClassWorker, httpd.ClassHive:
		if token != "" {
			return nil
		}
	}
	return unauthorized(token)
}

// hiveServer authorizes calls to the hive's server.
func (g guard) hiveServer(class httpd.Class, r *http.Request) error {
	token := httpd.Bearer(r)
	switch class {
	case httpd.ClassOpen:
		return nil
	case httpd.ClassMetrics:
		if g.loopback || g.admin.Equal(token) {
			return nil
		}
	case httpd.ClassAdmin:
		if g.admin.Equal(token) {
			return nil
		}
	case httpd.ClassHive:
		if g.hive.Equal(token) {
			return nil
		}
	case httpd.ClassPeer: // what the ticket opens, the hive looks at
		_, err := secret.OpenTicket(g.hive, token, time.Now())
		if errors.Is(err, secret.ErrTicketExpired) {
			return fault.New(fault.Denied, "ticket_expired", "The ticket of the request has expired; have the queen give another one, and compare the clocks of the machines.").WithStatus(http.StatusUnauthorized)
		}
		if err == nil {
			return nil
		}
	}
	return unauthorized(token)
}

func unauthorized(token string) error {
	e := fault.New(fault.Denied, "invalid_token", "The bearer token of the request is not valid here.")
	if token == "" {
		e = fault.New(fault.Denied, "missing_token", "This request needs a bearer token in its Authorization header.")
	}
	return e.WithStatus(http.StatusUnauthorized)
}

// profiling is /debug/pprof for operators.
func profiling() []httpd.Route {
	route := func(pattern string, timeout time.Duration, h http.HandlerFunc) httpd.Route {
		return httpd.Route{Pattern: pattern, Class: httpd.ClassAdmin, Timeout: timeout, Handler: h}
	}
	return []httpd.Route{
		route("GET /debug/pprof/", 30*time.Second, pprof.Index),
		route("GET /debug/pprof/profile", 0, pprof.Profile), // takes as long as the caller asks
		route("GET /debug/pprof/trace", 0, pprof.Trace),
		route("GET /debug/pprof/cmdline", 30*time.Second, pprof.Cmdline),
		route("GET /debug/pprof/symbol", 30*time.Second, pprof.Symbol),
	}
}
