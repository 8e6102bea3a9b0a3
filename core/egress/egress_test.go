package egress

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
)

func TestPublic(t *testing.T) {
	for s, want := range map[string]bool{
		"1.1.1.1": true, "8.8.8.8": true, "100.63.255.255": true, "100.128.0.0": true, "172.32.0.1": true, "2606:4700::1111": true, "64:ff9b::808:808": true, "2002:808:808::1": true,
		"::ffff:8.8.8.8": true,
		"127.0.0.1":      false, "127.8.9.1": false, "0.0.0.0": false, "10.0.0.1": false, "172.16.0.1": false, "192.168.1.1": false, "169.254.169.254": false, "100.64.0.1": false,
		"224.0.0.1": false, "255.255.255.255": false, "240.0.0.1": false, "192.0.2.1": false, "198.18.0.1": false,
		"::": false, "::1": false, "fe80::1": false, "fe80::1%eth0": false, "fc00::1": false, "fd12::1": false, "fec0::1": false, "ff02::1": false, "2001:db8::1": false, "2001::1": false,
		"::ffff:127.0.0.1": false, "::ffff:10.0.0.1": false, "::127.0.0.1": false, "64:ff9b::7f00:1": false, "64:ff9b::a00:1": false, "2002:7f00:1::1": false, "100::1": false,
	} {
		if got := Public(netip.MustParseAddr(s)); got != want {
			t.Errorf("%s: public %v", s, got)
		}
	}
}

// site is a server that counts what arrives.
type site struct {
	*httptest.Server
	asked, dialled atomic.Int32
	header         atomic.Pointer[http.Header]
}

func newSite(t *testing.T, secure bool, h http.HandlerFunc) *site {
	s := &site{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.header.Store(&r.Header)
		h(w, r)
	}))
	s.Config.ConnState = func(_ net.Conn, c http.ConnState) {
		if c == http.StateNew {
			s.dialled.Add(1)
		}
	}
	s.Config.ErrorLog = nil
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func own(sites ...*site) func(*url.URL) bool {
	return func(u *url.URL) bool {
		for _, s := range sites {
			if s.URL == u.Scheme+"://"+u.Host {
				return true
			}
		}
		return false
	}
}

func to(target string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, target, http.StatusFound) }
}

func ok(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok")) }

func get(t *testing.T, c *http.Client, u string) (string, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", u, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer canary")
	req.Header.Set("Cookie", "canary")
	res, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

func wantCode(t *testing.T, err error, code string) {
	t.Helper()
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != code {
		t.Errorf("got %v, want the code %s", err, code)
	}
}

// S17: what the configuration does not name leads neither to this machine nor into a private network, and not over plain http.
func TestForeignHosts(t *testing.T) {
	inside := newSite(t, true, ok)
	plain := newSite(t, false, ok)
	_, port, _ := net.SplitHostPort(inside.Listener.Addr().String())
	for name, target := range map[string]string{
		"loopback":         inside.URL,
		"its name":         "https://localhost:" + port,
		"a name below":     "https://x.LOCALHOST.:" + port,
		"mapped":           "https://[::ffff:127.0.0.1]:" + port,
		"unspecified":      "https://0.0.0.0:" + port,
		"metadata service": "https://169.254.169.254/latest",
		"private":          "https://10.1.2.3/",
		"plain http":       plain.URL,
		"plain, public":    "http://198.51.100.7/",
	} {
		t.Run(name, func(t *testing.T) {
			front := newSite(t, false, to(target))
			c := NewClient(Options{Own: own(front)})
			for _, u := range []string{target, front.URL} {
				_, err := get(t, c, u)
				wantCode(t, err, CodeRefused)
			}
		})
	}
	if inside.dialled.Load()+plain.dialled.Load() > 0 {
		t.Error("a connection was made")
	}
}

// A name is checked by what it leads to when the connection is made.
func TestNameLeadsInside(t *testing.T) {
	inside := newSite(t, true, ok)
	_, err := dialPublic("allow it")(t.Context(), "tcp", strings.Replace(inside.Listener.Addr().String(), "127.0.0.1", "localhost", 1))
	wantCode(t, err, CodeRefused)
	if err == nil || !strings.Contains(err.Error(), "The host localhost leads to ") {
		t.Errorf("got %v", err)
	}
	if inside.dialled.Load() > 0 {
		t.Error("a connection was made")
	}
}

func TestOwnHosts(t *testing.T) {
	b := newSite(t, false, ok)
	a := newSite(t, false, to(b.URL+"/x?signed"))
	c := NewClient(Options{Own: own(a, b)})
	if got, err := get(t, c, a.URL); err != nil || got != "ok" {
		t.Fatalf("%q, %v", got, err)
	}
	for _, h := range []string{"Authorization", "Cookie", "Referer"} {
		if got := b.header.Load().Get(h); got != "" {
			t.Errorf("another port got %s %q", h, got)
		}
	}
	if got := a.header.Load().Get("Authorization"); got != "Bearer canary" {
		t.Errorf("the host itself got %q", got)
	}
	_, err := get(t, NewClient(Options{Own: own(a)}), a.URL)
	wantCode(t, err, CodeRefused)
	// A credential stays with redirects inside one origin.
	inner := newSite(t, false, nil)
	inner.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			http.Redirect(w, r, "/y", http.StatusFound)
			return
		}
		_, _ = w.Write([]byte(r.Header.Get("Authorization")))
	})
	if got, err := get(t, NewClient(Options{Own: own(inner)}), inner.URL); err != nil || got != "Bearer canary" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestRedirects(t *testing.T) {
	step := func(w http.ResponseWriter, r *http.Request) {
		var n int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &n)
		if n == 0 {
			_, _ = w.Write([]byte("ok"))
			return
		}
		http.Redirect(w, r, fmt.Sprintf("/%d", n-1), http.StatusFound)
	}
	s := newSite(t, false, step)
	c := NewClient(Options{Own: own(s)})
	if got, err := get(t, c, s.URL+"/5"); err != nil || got != "ok" {
		t.Errorf("five: %q, %v", got, err)
	}
	_, err := get(t, c, s.URL+"/6")
	wantCode(t, err, CodeRedirect)
	if err == nil || !strings.Contains(err.Error(), "more than 5 times") {
		t.Errorf("six: %v", err)
	}
	circle := newSite(t, false, to("/"))
	_, err = get(t, NewClient(Options{Own: own(circle)}), circle.URL+"/")
	wantCode(t, err, CodeRedirect)
	if n := circle.asked.Load(); n != 1 || !strings.Contains(err.Error(), "in a circle") {
		t.Errorf("asked %d times, %v", n, err)
	}
	out := newSite(t, false, to("file:///etc/passwd"))
	_, err = get(t, NewClient(Options{Own: own(out)}), out.URL)
	wantCode(t, err, CodeRefused)
}

// A proxy of the environment is used, may be on this machine, and opens no way around the rules.
func TestProxy(t *testing.T) {
	var target atomic.Value
	proxy := newSite(t, false, func(w http.ResponseWriter, r *http.Request) {
		target.Store(r.Method + " " + r.Host)
		w.WriteHeader(503)
	})
	at, _ := url.Parse(proxy.URL)
	c := NewClient(Options{Proxy: http.ProxyURL(at)})
	if _, err := get(t, c, "https://models.example/x"); err == nil || target.Load() != "CONNECT models.example:443" {
		t.Errorf("the proxy saw %v, %v", target.Load(), err)
	}
	n := proxy.asked.Load()
	for _, u := range []string{"https://127.0.0.1/", "https://localhost/", "https://192.168.0.1/", "http://models.example/", strings.Replace(proxy.URL, "http:", "https:", 1)} {
		_, err := get(t, c, u)
		wantCode(t, err, CodeRefused)
	}
	if proxy.asked.Load() != n {
		t.Error("the proxy was asked for what is refused")
	}
}

// script is an inner transport whose answers take time.
type script struct {
	head   time.Duration
	pieces []time.Duration // before each piece of size bytes
	size   int
}

func (s *script) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := wait(req.Context(), s.head); err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(&drip{ctx: req.Context(), script: s})}, nil
}

type drip struct {
	ctx context.Context
	*script
	n int
}

func (d *drip) Read(p []byte) (int, error) {
	if d.n == len(d.pieces) {
		return 0, io.EOF
	}
	d.n++
	if err := wait(d.ctx, d.pieces[d.n-1]); err != nil {
		return 0, err
	}
	return min(d.size, len(p)), nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestStall(t *testing.T) {
	every := func(d time.Duration, n int) (all []time.Duration) {
		for range n {
			all = append(all, d)
		}
		return all
	}
	for name, c := range map[string]struct {
		script  script
		pause   time.Duration // of the reader between reads
		stalled bool
		within  time.Duration
	}{
		"quick":        {script: script{pieces: every(time.Millisecond, 100), size: 1000}, within: time.Second},
		"slow head":    {script: script{head: 29 * time.Second}, within: 29 * time.Second},
		"no head":      {script: script{head: time.Hour}, stalled: true, within: 30 * time.Second},
		"no body":      {script: script{pieces: every(time.Hour, 1), size: 1}, stalled: true, within: 30 * time.Second},
		"drips":        {script: script{pieces: every(time.Second, 1000), size: 1}, stalled: true, within: 30 * time.Second},
		"just enough":  {script: script{pieces: every(time.Second, 100), size: 1100}, within: 100 * time.Second},
		"in gulps":     {script: script{pieces: every(25*time.Second, 10), size: 40_000}, within: 250 * time.Second},
		"a slow owner": {script: script{pieces: every(time.Millisecond, 100), size: 1}, pause: time.Minute, within: 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://models.example", nil)
				res, err := watch(&c.script, req, DefaultIdle)
				if err == nil {
					buf := make([]byte, 64<<10)
					for err == nil {
						_, err = res.Body.Read(buf)
						time.Sleep(c.pause)
					}
					if err == io.EOF {
						err = nil
					}
					_ = res.Body.Close()
				}
				if errors.Is(err, ErrStalled) != c.stalled || !c.stalled && err != nil || time.Since(begin) > c.within {
					t.Errorf("%v after %v", err, time.Since(begin))
				}
			})
		})
	}
}
