package httpd

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
)

// checkOrigin refuses what a web page of somebody else could send: a Host that is a name resolved to this machine by a
// stranger (DNS rebinding), and an Origin that is not this server.
func (s *Server) checkOrigin(r *http.Request) error {
	host := r.Host
	if h, port, err := net.SplitHostPort(host); err == nil && port != "" {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if host != "127.0.0.1" && host != "localhost" && !s.hostAllowed(host, r) {
		return fault.New(fault.Denied, "host_not_allowed",
			"The Host header of the request does not name this agent; use its address, or list the name in the configuration.")
	}
	if origin := r.Header["Origin"]; len(origin) > 0 {
		_, authority, ok := strings.Cut(origin[0], "://")
		if len(origin) > 1 || !ok || authority != r.Host {
			return fault.New(fault.Denied, "origin_not_allowed", "Requests from web pages of other origins are refused.")
		}
	}
	return nil
}

func (s *Server) hostAllowed(host string, r *http.Request) bool {
	if strings.EqualFold(host, "localhost") || slices.ContainsFunc(s.opts.Hosts, func(h string) bool { return strings.EqualFold(h, host) || strings.EqualFold(h, r.Host) }) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if ip = ip.Unmap(); ip.IsLoopback() {
		return true
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if local == nil {
		return false
	}
	own, err := netip.ParseAddrPort(local.String())
	return err == nil && own.Addr().Unmap() == ip
}

// CheckBind refuses to listen where others can connect: addr (host:port) must be on loopback unless insecure is set. setting
// names the option that addr came from.
func CheckBind(addr string, insecure bool, setting string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fault.New(fault.Invalid, "bad_address", "%s = %q is not an address; write host:port, for example 127.0.0.1:7833.", setting, addr)
	}
	if insecure || strings.EqualFold(host, "localhost") {
		return nil
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.Unmap().IsLoopback() {
		return nil
	}
	return fault.New(fault.Invalid, "unsafe_bind",
		"%s = %q can be reached from other machines and HTTP between machines is not encrypted yet; use 127.0.0.1, or start the agent with `apiary agent --insecure-i-know` to listen there all the same.", setting, addr)
}

// Bearer returns the token of the request's Authorization header, or "". Cookies and query values are never looked at.
func Bearer(r *http.Request) string {
	v := r.Header["Authorization"]
	if len(v) != 1 || len(v[0]) < 7 || !strings.EqualFold(v[0][:7], "Bearer ") {
		return ""
	}
	return strings.TrimSpace(v[0][7:])
}

// APIKey returns the API key that a request shows: its bearer token, or else its one x-api-key header; "" where there is none.
func APIKey(r *http.Request) string {
	if t := Bearer(r); t != "" {
		return t
	}
	if v := r.Header["X-Api-Key"]; len(v) == 1 && len(r.Header["Authorization"]) == 0 {
		return strings.TrimSpace(v[0])
	}
	return ""
}

// requestContext carries what belongs to a request with one allocation.
type requestContext struct {
	context.Context
	id     string
	caller any
}

type (
	requestIDType struct{}
	callerType    struct{}
)

func (c *requestContext) Value(key any) any {
	switch key.(type) {
	case requestIDType:
		return c.id
	case callerType:
		return c
	}
	return c.Context.Value(key)
}

// SetCaller notes who calls, for the handler. It is for Options.Authorize.
func SetCaller(r *http.Request, caller any) {
	if c, ok := r.Context().Value(callerType{}).(*requestContext); ok {
		c.caller = caller
	}
}

// Caller returns what Options.Authorize noted of the caller, or nil.
func Caller(ctx context.Context) any {
	if c, ok := ctx.Value(callerType{}).(*requestContext); ok {
		return c.caller
	}
	return nil
}

// RequestID returns the id of the request that ctx belongs to, or "".
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDType{}).(string)
	return id
}
