package agent

import (
	"errors"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/keys"
	"github.com/apiary-dev/apiary/core/secret"
)

// guard decides who may call what. Until the first API key is made inference is open, and so are metrics where only this machine
// can connect; from then on both need a key. Operators show the admin key or an API key of the class admin, and may do all that
// other keys may. Hives are called with the secret derived for them.
type guard struct {
	admin    secret.Secret
	hive     secret.Secret // for calls to this node's hive
	loopback bool          // only this machine can connect
	keys     *keys.Table
	required func() bool // a key was made at some time; nil: there is no queen that would know
}

// queen authorizes calls to the queen's server. Workers, hives and other queens show a secret that depends on who they say they are, so
// the queen itself compares it, once it has read the body; here it only has to be there.
func (g guard) queen(class httpd.Class, r *http.Request) error {
	switch class {
	case httpd.ClassOpen:
		return nil
	case httpd.ClassInference:
		return g.key(r, !g.closed(), contract.KeyInference)
	case httpd.ClassMetrics:
		return g.key(r, g.loopback && !g.closed(), contract.KeyMetrics)
	case httpd.ClassAdmin:
		return g.key(r, false, contract.KeyAdmin)
	case httpd.ClassWorker, httpd.ClassHive, httpd.ClassQueen:
		if httpd.Bearer(r) != "" {
			return nil
		}
	}
	return unauthorized(httpd.Bearer(r))
}

// closed reports whether callers need keys.
func (g guard) closed() bool { return g.required != nil && g.required() }

// key authorizes a call that needs a key of a class. Where it is open, what is shown is ignored. The admin key is one of any class.
func (g guard) key(r *http.Request, open bool, class string) error {
	shown := httpd.APIKey(r)
	if open || g.admin.Equal(shown) {
		return nil
	}
	grant, err := g.keys.Check(shown, time.Now())
	if err != nil && class == contract.KeyAdmin {
		return unauthorized(shown)
	}
	if err != nil {
		return err
	}
	if c := grant.Class(); c != class && c != contract.KeyAdmin {
		return fault.New(fault.Denied, keys.CodeClass, "The API key %s is of the class %s, and this call needs one of the class %s.", grant.ID(), c, class)
	}
	httpd.SetCaller(r, grant)
	return nil
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
