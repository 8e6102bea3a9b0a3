// Package egress makes the HTTP clients with which Apiary asks other people's servers, and decides where those may lead.
// Origins that the user's configuration names may be anything. All others, which come from answers, redirects and plugins,
// must be https and lead to public addresses; that is checked when a connection is made, after the name was resolved, so
// that a name cannot mean one address for the check and another for the connection. It keeps no credentials and retries
// nothing.
//
// Where the environment names a proxy, that one resolves names and decides; what can still be seen here, addresses written
// as such and names of this machine, is refused all the same.
package egress

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
)

// Bounds of every client.
const (
	MaxRedirects = 5
	DefaultIdle  = 30 * time.Second

	dialTimeout  = 10 * time.Second
	maxHead      = 256 << 10
	slowestBytes = 1 << 10 // a second; what brings less is as good as nothing
)

// Codes of the faults that a client's requests fail with for reasons that trying again does not change.
const (
	CodeRefused  = "source_refused"   // fault.Denied: the policy does not allow the address
	CodeRedirect = "source_redirects" // fault.Unavailable: too many redirects, or a circle of them
)

// ErrStalled is wrapped by the error of a request, or of reading its body, that brought too little for Options.Idle.
var ErrStalled = errors.New("nothing arrives")

// Options say where a client may go.
type Options struct {
	// Own reports whether the user's configuration names the origin of u: its scheme and host. Nil: it names none.
	Own func(u *url.URL) bool
	// Proxy gives the proxy for a request; nil: that of the environment (HTTPS_PROXY, NO_PROXY, …).
	Proxy func(*http.Request) (*url.URL, error)
	// Dial connects to own origins and to proxies. Nil: a plain dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Idle bounds the wait for the head of an answer, and the time in which a body must bring 1 KiB for each of its
	// seconds. Only waiting for the other side counts. 0: DefaultIdle.
	Idle time.Duration
	// Remedy says what makes a server of one's own be asked all the same; "": "add it to hive.mirrors".
	Remedy string
}

// NewClient returns a client with the policy. Its errors wrap a *fault.Error with one of the codes of this package where
// trying again is of no use. It has no bound for a whole request, since a body may take hours.
func NewClient(o Options) *http.Client {
	if o.Own == nil {
		o.Own = func(*url.URL) bool { return false }
	}
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	if o.Idle <= 0 {
		o.Idle = DefaultIdle
	}
	if o.Remedy == "" {
		o.Remedy = "add it to hive.mirrors"
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	t := &transport{o: o, own: newTransport(o.Dial, nil), proxied: newTransport(o.Dial, o.Proxy), others: newTransport(dialPublic(o.Remedy), nil)}
	return &http.Client{Transport: t, CheckRedirect: checkRedirect}
}

func newTransport(dial func(ctx context.Context, network, address string) (net.Conn, error), proxy func(*http.Request) (*url.URL, error)) http.RoundTripper {
	return &http.Transport{
		Proxy: proxy, DialContext: dial, TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 2,
		ReadBufferSize: 256 << 10, MaxResponseHeaderBytes: maxHead,
		DisableCompression: true, // what is counted and hashed are the bytes that were sent
	}
}

// transport applies the policy to every request, also to those that a redirect leads to. Connections to own origins, to
// others and to the proxy are kept apart, so that none is used under another rule than the one it was made with.
type transport struct {
	o                    Options
	own, others, proxied http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(req *http.Request) (*http.Response, error) {
	next := t.own
	if !t.o.Own(req.URL) {
		if err := checkURL(req.URL, t.o.Remedy); err != nil {
			return nil, err
		}
		next = t.others
	}
	proxy, err := t.o.Proxy(req)
	if err != nil {
		return nil, err
	}
	if proxy != nil {
		next = t.proxied
	}
	return watch(next, req, t.o.Idle)
}

// checkURL says why an origin that is not the user's own may not be asked.
func checkURL(u *url.URL, remedy string) error {
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if host == "" {
		return refused("The address %q was not asked: it names no host, and only https is used with hosts that the configuration does not name.", u.Redacted())
	}
	if u.Scheme != "https" {
		return refused("The host %s was not asked over %q: only https is used with hosts that the configuration does not name; if it is a server of your own, %s.", host, u.Scheme, remedy)
	}
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return refusedAddress(host, "this machine", remedy)
	}
	if ip, err := netip.ParseAddr(host); err == nil && !Public(ip) {
		return refusedAddress(host, "", remedy)
	}
	return nil
}

func refused(format string, args ...any) error {
	return fault.New(fault.Denied, CodeRefused, format, args...)
}

// refusedAddress says that host leads to an address that is not public.
func refusedAddress(host, to, remedy string) error {
	if to != "" {
		host += " leads to " + to + ", which"
	}
	return refused("The host %s is not a public address: only hosts that the configuration names may be on this machine or in a private network; if it is a server of your own, %s.", host, remedy)
}

// dialPublic returns what connects to public addresses only.
func dialPublic(remedy string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		d := &net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second, ControlContext: func(_ context.Context, _, resolved string, _ syscall.RawConn) error {
			if ap, err := netip.ParseAddrPort(resolved); err != nil || !Public(ap.Addr()) {
				return refusedAddress(host, ap.Addr().String(), remedy)
			}
			return nil
		}}
		return d.DialContext(ctx, network, address)
	}
}

// Public reports whether an address is one of the public internet: not of this machine, a private or local network, a group,
// a translation of one of those, or set aside for other purposes (RFC 6890).
func Public(ip netip.Addr) bool {
	ip = ip.Unmap().WithZone("")
	if ip.Is4() {
		return !slices.ContainsFunc(special4(), func(p netip.Prefix) bool { return p.Contains(ip) })
	}
	b := ip.As16()
	switch {
	case prefix("64:ff9b::/96").Contains(ip): // NAT64: the last 32 bits are the address that is meant
		return Public(netip.AddrFrom4([4]byte(b[12:])))
	case prefix("2002::/16").Contains(ip): // 6to4: bits 16 to 47
		return Public(netip.AddrFrom4([4]byte(b[2:6])))
	case prefix("2001::/23").Contains(ip), prefix("2001:db8::/32").Contains(ip), prefix("3fff::/20").Contains(ip):
		return false
	}
	return prefix("2000::/3").Contains(ip)
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// special4 lists the IPv4 networks that are not public.
func special4() []netip.Prefix {
	return []netip.Prefix{
		prefix("0.0.0.0/8"), prefix("10.0.0.0/8"), prefix("100.64.0.0/10"), prefix("127.0.0.0/8"), prefix("169.254.0.0/16"), prefix("172.16.0.0/12"),
		prefix("192.0.0.0/24"), prefix("192.0.2.0/24"), prefix("192.88.99.0/24"), prefix("192.168.0.0/16"), prefix("198.18.0.0/15"),
		prefix("198.51.100.0/24"), prefix("203.0.113.0/24"), prefix("224.0.0.0/3"),
	}
}

// checkRedirect bounds redirects and lets a credential go nowhere but where it was meant for: Go itself would also send it
// to another port of the same host and to sub-domains. Where a redirect leads is checked when it is followed.
func checkRedirect(req *http.Request, via []*http.Request) error {
	first, last := via[0].URL, via[len(via)-1].URL
	if slices.ContainsFunc(via, func(r *http.Request) bool { return r.URL.String() == req.URL.String() }) {
		return fault.New(fault.Unavailable, CodeRedirect, "%s redirects in a circle; check that the configured address is right.", last.Host)
	}
	if len(via) > MaxRedirects {
		return fault.New(fault.Unavailable, CodeRedirect, "%s redirects more than %d times; check that the configured address is right.", first.Host, MaxRedirects)
	}
	if req.URL.Scheme != first.Scheme || req.URL.Host != first.Host {
		for _, h := range []string{"Authorization", "Cookie", "Proxy-Authorization"} {
			req.Header.Del(h)
		}
	}
	req.Header.Del("Referer") // it may hold a signed query
	return nil
}
