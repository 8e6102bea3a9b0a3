package artifact

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/core/secret"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of what is asked over the network.
const (
	maxMetadata     = 16 << 20
	metadataTimeout = 30 * time.Second
	metadataTries   = 3
	userAgent       = "apiary"
)

// newRequest makes a request and adds the credential that belongs to the host.
func newRequest(ctx context.Context, method, raw, credential string, creds func(name, host string) (secret.Secret, error)) (*http.Request, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.User != nil || (u.Scheme != "https" && u.Scheme != "http") {
		return nil, fault.New(fault.Invalid, "invalid_source", "An artifact names a source that is no https address; report this to the maker of its plugin.")
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "invalid_source", "An artifact names a source that cannot be asked: %w", err)
	}
	req.Header.Set("User-Agent", userAgent)
	if credential != "" && creds != nil {
		token, err := creds(credential, u.Host)
		if err != nil {
			return nil, err
		}
		if token != "" {
			value := token.Reveal()
			if !strings.HasPrefix(value, "Basic ") { // else it is a whole value: a name and a password
				value = "Bearer " + value
			}
			req.Header.Set("Authorization", value)
		}
	}
	return req, nil
}

const codeUnreachable = "source_unreachable"

// unreachable turns an error of a request into one for people: without the URL, whose query may be a secret. Only one with
// codeUnreachable may pass.
func unreachable(host string, err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return f // of core/egress, which says what is wrong
	}
	if v, ok := errors.AsType[*vendor.Error](err); ok {
		return pluginhost.Fault(v) // of the client of a plugin, which may not go there
	}
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err
	}
	return fault.New(fault.Unavailable, codeUnreachable, "%s could not be reached (%v); check the network and try again.", host, err)
}

// retryAfter reads a Retry-After header: seconds or a date. 0: there is none.
func retryAfter(h http.Header, now time.Time) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.Atoi(v); err == nil && n > 0 && n < 1<<20 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil && at.After(now) {
		return at.Sub(now)
	}
	return 0
}

// retryError is a failure that may pass.
type retryError struct {
	err  error
	wait time.Duration // 0: the usual pause
	most int           // attempts in a row; 0: the usual number
}

func (e *retryError) Error() string { return e.err.Error() }
func (e *retryError) Unwrap() error { return e.err }

// maxExpired bounds how often in a row a source is asked for another address of a file.
const maxExpired = 4

// elsewhere reports whether an answer is not from the host that was asked, but from one that it led to.
func elsewhere(res *http.Response) bool {
	first := res.Request
	for first.Response != nil {
		first = first.Response.Request
	}
	return first.URL.Host != res.Request.URL.Host
}

// HostOptions configure what the core offers a built-in plugin.
type HostOptions struct {
	Name        string                                         // of the plugin, for the log
	Credentials func(name, host string) (secret.Secret, error) // as in Options
	HTTP        *http.Client                                   // as in Options
	Log         *slog.Logger                                   // nil: no log
}

// NewHost returns the host of a built-in vendor or provisioner. It makes metadata requests, bounded in time and size, to
// where its client may go; it is not meant for plugins from elsewhere.
func NewHost(o HostOptions) vendor.Host {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &host{Store: pluginhost.OpenStore(""), opts: o, client: withTokens(cmp.Or(o.HTTP, egress.NewClient(egress.Options{}))), pause: 250 * time.Millisecond}
}

type host struct {
	*pluginhost.Store
	opts   HostOptions
	client *http.Client
	pause  time.Duration
}

// HTTP implements vendor.Host. GET and HEAD are tried again where the connection failed or the server was busy.
func (h *host) HTTP(ctx context.Context, in vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	for try := 1; ; try++ {
		res, err := h.once(ctx, in)
		again := err != nil && fault.As(err).Code == codeUnreachable || err == nil && res.Status >= 502 && res.Status <= 504
		if !again || try == metadataTries || (in.Method != http.MethodGet && in.Method != http.MethodHead) || run.Sleep(ctx, h.pause<<try) != nil {
			return res, err
		}
	}
}

func (h *host) once(ctx context.Context, in vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	req, err := newRequest(ctx, in.Method, in.URL, in.Credential, h.opts.Credentials)
	if err != nil {
		return nil, err
	}
	for name, value := range in.Header {
		if name = http.CanonicalHeaderKey(name); name != "Authorization" && name != "Cookie" && name != "Host" {
			req.Header.Set(name, value)
		}
	}
	client := h.client
	if in.Manual {
		stay := *client
		stay.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		client = &stay
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, unreachable(req.URL.Host, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxMetadata+1))
	if err != nil {
		return nil, unreachable(req.URL.Host, err)
	}
	if len(body) > maxMetadata {
		return nil, fault.New(fault.Exhausted, "answer_too_large", "%s answered a question about an artifact with more than %d MiB; check that the configured address is right.", req.URL.Host, maxMetadata>>20)
	}
	header := make(map[string]string, len(res.Header))
	for name, values := range res.Header {
		header[name] = strings.Join(values, ", ")
	}
	return &vendor.HTTPResponse{Status: res.StatusCode, Header: header, Body: body, URL: res.Request.URL.String()}, nil
}

// Log implements vendor.Host.
func (h *host) Log(level, message string, keysAndValues ...string) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	attrs := []any{"plugin", h.opts.Name, "text", message}
	for _, v := range keysAndValues {
		attrs = append(attrs, v)
	}
	h.opts.Log.Log(context.Background(), l, "plugin says", attrs...)
}
