package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of what the host does for one plugin.
const (
	requestTimeout = 30 * time.Second
	maxAnswer      = 16 << 20 // bytes
	maxQuestion    = 1 << 20  // bytes of a request's body
	maxHeaders     = 64
	atOnce         = 8 // requests; more wait

	maxLine       = 8 << 10 // bytes
	maxPairs      = 32
	linesASecond  = 200
	droppedNotice = "plugin lines left out"
)

// Grants are what the operator lets a plugin do.
type Grants struct {
	HTTP        []string // hosts: "example.org", "*.example.org" (which is not example.org itself), "example.org:8443"
	Private     []string // those of them that may be in a private network and speak plain http
	Credentials []string // that the host may add to requests
}

// ServicesOptions configure the host of one plugin.
type ServicesOptions struct {
	Name        string // of the plugin, for the log
	Grants      Grants
	Credentials func(name, host string) (secret.Secret, error) // the credential of that name where host is one that it belongs to, else ""
	Store       *Store
	Log         *slog.Logger
}

// Services is the vendor.Host of one plugin: it does what was granted, within bounds.
type Services struct {
	*Store
	o      ServicesOptions
	client *http.Client
	slots  chan struct{}
	now    func() time.Time

	mu      sync.Mutex
	second  time.Time // guarded by mu, like the two below
	lines   int       // written since second
	dropped int       // since second
}

// NewServices returns the host of a plugin.
func NewServices(o ServicesOptions) *Services {
	s := &Services{Store: o.Store, o: o, slots: make(chan struct{}, atOnce), now: time.Now}
	s.client = egress.NewClient(egress.Options{Own: func(u *url.URL) bool { return Granted(o.Grants.Private, u) }, Remedy: "add it to grants.private of the plugin " + o.Name})
	policy := s.client.CheckRedirect
	s.client.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if err := policy(req, via); err != nil {
			return err
		}
		return s.check(req.URL)
	}
	return s
}

// Granted reports whether a list of hosts has the one of u. A name without a port stands for the default ports.
func Granted(hosts []string, u *url.URL) bool {
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return slices.ContainsFunc(hosts, func(h string) bool {
		name, port := h, ""
		if i := strings.LastIndexByte(h, ':'); i > strings.LastIndexByte(h, ']') {
			name, port = h[:i], h[i+1:]
		}
		standard := u.Port() == "" || u.Scheme == "https" && u.Port() == "443" || u.Scheme == "http" && u.Port() == "80"
		if port != u.Port() && (port != "" || !standard) {
			return false
		}
		if suffix, ok := strings.CutPrefix(name, "*"); ok {
			return len(host) > len(suffix) && strings.HasSuffix(host, suffix)
		}
		return host == name
	})
}

// Client is with what the files are fetched that the plugin names: it goes where the plugin may go, also on redirects. Whoever uses it
// checks the first address.
func (s *Services) Client() *http.Client { return s.client }

// CodeNotGranted is the code of the error for a host that a plugin may not ask.
const CodeNotGranted = "host_not_granted"

// check says why a request may not go to u.
func (s *Services) check(u *url.URL) error {
	switch {
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return s.refuse("scheme_refused", "%s wanted to ask %q; a plugin asks over https only.", redacted(u))
	case !Granted(s.o.Grants.HTTP, u):
		return s.refuse(CodeNotGranted, "%s wanted to ask %s, which was not granted; add %q to grants.http of the plugin if it may.", u.Host, u.Host)
	}
	return nil
}

func (s *Services) refuse(code, format string, args ...any) *vendor.Error {
	return &vendor.Error{Kind: vendor.KindDenied, Code: code, Message: fmt.Sprintf(format, append([]any{"Plugin " + s.o.Name}, args...)...)}
}

// redacted is u without what may be secret.
func redacted(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// HTTP implements vendor.Host.
func (s *Services) HTTP(ctx context.Context, in vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := s.request(ctx, in)
	if err != nil {
		return nil, err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	client := *s.client
	if in.Manual {
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, s.failed(req.URL, err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, s.failed(res.Request.URL, err)
	}
	if len(body) > maxAnswer {
		return nil, &vendor.Error{Kind: vendor.KindExhausted, Code: "answer_too_large",
			Message: fmt.Sprintf("%s answered plugin %s with more than %d MiB; the host reads no more of it.", res.Request.URL.Host, s.o.Name, maxAnswer>>20)}
	}
	out := &vendor.HTTPResponse{Status: res.StatusCode, Header: map[string]string{}, Body: body, URL: res.Request.URL.String()}
	for name, values := range res.Header {
		if name != "Set-Cookie" {
			out.Header[name] = strings.Join(values, ", ")
		}
	}
	return out, nil
}

// request makes the request that a plugin asks for, when it may.
func (s *Services) request(ctx context.Context, in vendor.HTTPRequest) (*http.Request, error) {
	invalid := func(format string, args ...any) error {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_request", Message: fmt.Sprintf("Plugin %s made a request that cannot be sent: %s.", s.o.Name, fmt.Sprintf(format, args...))}
	}
	switch in.Method {
	case http.MethodGet, http.MethodHead, http.MethodPost:
	default:
		return nil, invalid("its method is %q; GET, HEAD and POST are possible", in.Method)
	}
	if len(in.Header) > maxHeaders || len(in.Body) > maxQuestion {
		return nil, invalid("it has %d headers and a body of %d bytes; %d and %d are possible", len(in.Header), len(in.Body), maxHeaders, maxQuestion)
	}
	req, err := http.NewRequestWithContext(ctx, in.Method, in.URL, strings.NewReader(string(in.Body)))
	if err != nil {
		return nil, invalid("its address is not one")
	}
	if req.URL.User != nil {
		return nil, invalid("its address holds a password; name a credential instead")
	}
	if err := s.check(req.URL); err != nil {
		return nil, err
	}
	for name, value := range in.Header {
		switch name = http.CanonicalHeaderKey(name); name {
		case "Authorization", "Cookie", "Host", "Connection", "Transfer-Encoding", "Content-Length", "Proxy-Authorization", "Upgrade", "Te", "Trailer":
			return nil, invalid("it sets the header %s, which belongs to the host", name)
		}
		req.Header.Set(name, value)
	}
	if req.Header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "apiary-plugin/"+s.o.Name)
	}
	if in.Credential == "" {
		return req, nil
	}
	if !slices.Contains(s.o.Grants.Credentials, in.Credential) {
		return nil, s.refuse("credential_not_granted", "%s wanted the credential %q, which was not granted; add it to grants.credentials of the plugin if it may use it.", in.Credential)
	}
	value, err := s.o.Credentials(in.Credential, req.URL.Host)
	if err != nil {
		return nil, fmt.Errorf("look up the credential %s: %w", in.Credential, err)
	}
	if value != "" {
		req.Header.Set("Authorization", "Bearer "+value.Reveal())
	}
	return req, nil
}

// failed gives the error of a request that was made.
func (s *Services) failed(u *url.URL, err error) error {
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		kind := vendor.KindUnavailable
		if e.Kind == fault.Denied {
			kind = vendor.KindDenied
		}
		return &vendor.Error{Kind: kind, Code: e.Code, Message: e.Message}
	}
	var inner *url.Error
	if errors.As(err, &inner) { // its text holds the address, with a query that may be secret
		err = inner.Err
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	return &vendor.Error{Kind: vendor.KindUnavailable, Code: "unreachable", Message: fmt.Sprintf("%s could not be asked for plugin %s: %v.", u.Host, s.o.Name, err)}
}

// Log implements vendor.Host. A plugin writes 200 lines a second at most; how many were left out is said.
func (s *Services) Log(level, message string, keysAndValues ...string) {
	ok, dropped := s.mayWrite()
	if dropped > 0 {
		s.o.Log.Warn(droppedNotice, "plugin", s.o.Name, "lines", dropped)
	}
	if !ok {
		return
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	attrs := []any{"plugin", s.o.Name, "text", cut(message)}
	for i := 0; i+1 < min(len(keysAndValues), 2*maxPairs); i += 2 {
		attrs = append(attrs, "plugin."+cut(keysAndValues[i]), cut(keysAndValues[i+1]))
	}
	s.o.Log.Log(context.Background(), l, "plugin says", attrs...)
}

func cut(s string) string {
	if len(s) > maxLine {
		s = s[:maxLine] + "…"
	}
	return strings.ToValidUTF8(s, "?")
}

// mayWrite counts a line, and returns how many were left out in the second that is over.
func (s *Services) mayWrite() (ok bool, dropped int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); now.Sub(s.second) >= time.Second {
		dropped = s.dropped
		s.second, s.lines, s.dropped = now, 0, 0
	}
	if s.lines >= linesASecond {
		s.dropped++
		return false, dropped
	}
	s.lines++
	return true, dropped
}
