package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/secret"
)

const defaultAddress = "127.0.0.1:7833"

// target is the agent that a command means.
type target struct {
	base  string        // URL
	home  string        // data folder of this user: keys, run file, log
	given string        // the address as --addr or APIARY_ADDR gave it; empty: it was found
	key   secret.Secret // APIARY_KEY; empty: the admin key of the data folder
}

// conn talks to the queen of an agent.
type conn struct {
	target
	*client.Client
}

// target finds the agent: --addr, APIARY_ADDR, the run file of the data folder, then the standard port.
func (a *app) target() (target, error) {
	home, err := a.home()
	if err != nil {
		return target{}, err
	}
	t := target{home: home, given: cmp.Or(a.addr, a.getenv("APIARY_ADDR")), key: secret.Secret(strings.TrimSpace(a.getenv("APIARY_KEY")))}
	if t.given != "" {
		if t.base, err = baseURL(t.given); err == nil && strings.HasSuffix(t.base, ":0") {
			err = badAddress(t.given) // to listen on, but not to talk to
		}
		return t, err
	}
	r, err := agent.ReadRunFile(home)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return t, err
	}
	if r.Queen != "" {
		// The file of an agent that was killed says where it was; the next one of this folder may be elsewhere.
		if locked, err := agent.Locked(home); err == nil && locked {
			t.base = r.Queen
			return t, nil
		}
	}
	t.base = "http://" + defaultAddress
	if cfg, err := a.loadConfig(); err == nil {
		if u, err := baseURL(cfg.Queen.Listen); err == nil {
			t.base = u
		}
	}
	return t, nil
}

// home is the data folder. The configuration is read only where APIARY_HOME does not say it, so that a mistake in it does
// not keep anybody from stopping an agent.
func (a *app) home() (string, error) {
	if h := a.getenv("APIARY_HOME"); h != "" {
		if a.configPath != "" {
			// Not needed, but who named a file wants to hear that it is not there.
			if _, err := os.Stat(a.configPath); errors.Is(err, fs.ErrNotExist) {
				return "", config.Missing(a.configPath)
			}
		}
		if err := folder.CheckHome(h); err != nil {
			return "", err
		}
		return absolute(h)
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return "", err
	}
	return cfg.Home, nil
}

func badAddress(addr string) error {
	return fault.New(fault.Invalid, "bad_address", "%q is not the address of an agent; write host:port or a URL, for example %s.", addr, defaultAddress)
}

// baseURL reads host:port or a URL. An address that means every interface is called at loopback.
func baseURL(addr string) (string, error) {
	bad := badAddress(addr)
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Port() == "" || u.User != nil || u.RawQuery != "" {
		return "", bad
	}
	if n, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || strconv.FormatUint(n, 10) != u.Port() {
		return "", bad
	}
	host := u.Hostname()
	if ip, err := netip.ParseAddr(host); host == "" || err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return u.Scheme + "://" + net.JoinHostPort(host, u.Port()), nil
}

// state is what answers at an address.
type state int

const (
	nobody   state = iota // nothing listens
	stranger              // something that is not an agent
	unready               // an agent that is not ready
	ready
)

// A connection that is broken off without a word may be one of an agent that was killed a moment ago, or is being started again:
// it is looked at again for a second before it counts as nobody.
const (
	moreLooks = 20
	nextLook  = 50 * time.Millisecond
)

// look asks what answers at the target now.
func (t target) look(ctx context.Context) state {
	for more := moreLooks; ; more-- {
		s, mute := t.glance(ctx)
		if !mute || more == 0 {
			return s
		}
		select {
		case <-ctx.Done():
			return s
		case <-time.After(nextLook):
		}
	}
}

// glance is one look. mute says that somebody took the connection and broke it off without an answer.
func (t target) glance(ctx context.Context) (s state, mute bool) {
	health, err := get(ctx, t.base+"/healthz")
	if err != nil {
		var op *net.OpError
		switch {
		case errors.As(err, &op) && op.Op == "dial":
			return nobody, false
		case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF):
			return nobody, true
		}
		return stranger, false
	}
	if health != http.StatusOK {
		return stranger, false
	}
	if code, err := get(ctx, t.base+"/readyz"); err != nil || code != http.StatusOK {
		return unready, false
	}
	return ready, false
}

func get(ctx context.Context, address string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return 0, err
	}
	c := http.Client{
		Transport:     &http.Transport{Proxy: nil, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return resp.StatusCode, resp.Body.Close()
}

// connect returns a client of a running agent, or says how to start one.
func (a *app) connect(ctx context.Context) (*conn, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	switch t.look(ctx) {
	case nobody:
		if r, err := agent.ReadRunFile(t.home); err == nil && r.Queen == "" && t.given == "" {
			if locked, err := agent.Locked(t.home); err == nil && locked {
				return nil, t.hiveAlone()
			}
		}
		return nil, fault.New(fault.Unavailable, "no_agent", "No agent answers at %s; start one with `apiary run` or `apiary agent`, or name another with --addr.", t.base)
	case stranger:
		return nil, t.strange()
	}
	return t.conn()
}

// hiveAlone is the fault of asking a queen where the agent of the data folder is none.
func (t target) hiveAlone() error {
	return fault.New(fault.Conflict, "no_queen", "The agent of %s is a hive alone, and no queen answers at %s; name the address of a queen with --addr or APIARY_ADDR.", t.home, t.base)
}

func (t target) strange() error {
	return fault.New(fault.Conflict, "not_an_agent", "Something that is not an Apiary agent answers at %s; set APIARY_ADDR to another address, or end that program.", t.base)
}

// conn makes a client with APIARY_KEY, or the admin key of the data folder.
func (t target) conn() (*conn, error) {
	if t.key != "" {
		return &conn{t, client.New(client.Options{Base: t.base, Token: t.key, Explain: t.explain})}, nil
	}
	key, err := loadKey(t.home, secret.AdminKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Denied, "no_admin_key",
			"The data folder %s has no admin key, so this command may not manage the agent at %s; set APIARY_HOME to that agent's folder, or APIARY_KEY to an API key of the class admin.", t.home, t.base)
	}
	if err != nil {
		return nil, err
	}
	return &conn{t, client.New(client.Options{Base: t.base, Token: key, Explain: t.explain})}, nil
}

// explain says of an agent that does not take this data folder's key what that means.
func (t target) explain(e *fault.Error) *fault.Error {
	if e.Code != "invalid_token" {
		return e
	}
	if t.key != "" {
		return &fault.Error{Kind: e.Kind, Code: e.Code, Status: e.Status, Err: e,
			Message: fmt.Sprintf("The agent at %s does not take APIARY_KEY; it must be an API key of the class admin that is neither expired nor revoked: `apiary key create NAME --class admin` on the agent's machine makes one.", t.base)}
	}
	return &fault.Error{Kind: e.Kind, Code: e.Code, Status: e.Status, Err: e,
		Message: fmt.Sprintf("The agent at %s belongs to another data folder than %s; set APIARY_HOME to the agent's folder, or APIARY_ADDR to the address of the agent that you mean.", t.base, t.home)}
}

// outdated explains that an agent does not know a name which the configuration has: it has read an older one. operation is what
// the agent refused with err; other errors are returned as they are.
func (a *app) outdated(t target, operation any, err error) error {
	code, name, kind := fault.As(err).Code, "", ""
	switch op := operation.(type) {
	case contract.ArtifactRef:
		name = op.Reference
	case contract.WorkerSpawn:
		name, kind = op.Model, op.Worker.Name
	}
	if code != "model_not_found" && code != "worker_kind_not_found" {
		return err
	}
	if r, rerr := agent.ReadRunFile(t.home); rerr != nil || r.Queen != t.base {
		return err // another folder's agent has another configuration
	}
	cfg, cerr := a.loadConfig()
	if cerr != nil {
		return err
	}
	what := ""
	for _, m := range cfg.Models {
		if code == "model_not_found" && (m.Name == name || slices.Contains(m.Aliases, name)) {
			what = fmt.Sprintf("the model %q", name)
		}
	}
	for _, w := range cfg.Workers {
		if code == "worker_kind_not_found" && w.Name == kind {
			what = fmt.Sprintf("the worker block %q", kind)
		}
	}
	if what == "" {
		return err
	}
	return fault.New(fault.Conflict, "older_configuration", "The agent at %s has an older configuration, which lacks %s; have it read the new one with `apiary config reload` and then give the command again.", t.base, what)
}

func absolute(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fault.New(fault.Invalid, "bad_path", "The path %q cannot be made absolute: %w", path, err)
	}
	return abs, nil
}

func goVersion() string { return runtime.Version() }

func platform() string { return runtime.GOOS + "/" + runtime.GOARCH }
