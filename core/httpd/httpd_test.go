package httpd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
)

func ok(w http.ResponseWriter, r *http.Request) {
	httpd.WriteJSON(w, http.StatusOK, map[string]string{"id": httpd.RequestID(r.Context())})
}

func route(pattern string, class httpd.Class, h http.HandlerFunc) httpd.Route {
	return httpd.Route{Pattern: pattern, Class: class, BodyLimit: 1000, Handler: h}
}

// serve runs a server on loopback until the test ends, and returns its address and what ends it earlier.
func serve(t *testing.T, o httpd.Options) (addr string, stop func() error) {
	t.Helper()
	s, err := httpd.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { _ = stop() })
	return ln.Addr().String(), stop
}

func TestTableIsChecked(t *testing.T) {
	h := http.HandlerFunc(ok)
	for name, r := range map[string]httpd.Route{
		"no class":      {Pattern: "GET /a", Handler: h},
		"unknown class": {Pattern: "GET /a", Class: "public", Handler: h},
		"no method":     {Pattern: "/a", Class: httpd.ClassOpen, Handler: h},
		"no path":       {Pattern: "GET", Class: httpd.ClassOpen, Handler: h},
		"no body limit": {Pattern: "POST /a", Class: httpd.ClassOpen, Handler: h},
		"no handler":    {Pattern: "GET /a", Class: httpd.ClassOpen},
		"bad pattern":   {Pattern: "GET /{a}{b}", Class: httpd.ClassOpen, Handler: h},
	} {
		if _, err := httpd.New(httpd.Options{Routes: []httpd.Route{r}}); err == nil {
			t.Errorf("%s: the table is taken", name)
		}
	}
	if _, err := httpd.New(httpd.Options{Routes: []httpd.Route{route("GET /a", httpd.ClassOpen, ok), route("GET /a", httpd.ClassOpen, ok)}}); err == nil {
		t.Error("two routes of the same pattern are taken")
	}
}

// TestAnswers: what each kind of request is answered with, before its handler sees it.
func TestAnswers(t *testing.T) {
	routes := []httpd.Route{
		route("GET /open", httpd.ClassOpen, ok), route("POST /admin", httpd.ClassAdmin, func(w http.ResponseWriter, r *http.Request) {
			var v map[string]any
			if err := httpd.ReadJSON(r, &v); err != nil {
				httpd.WriteError(w, r, err)
				return
			}
			ok(w, r)
		}),
		route("GET /panic", httpd.ClassOpen, func(http.ResponseWriter, *http.Request) { panic("secret text") }),
	}
	addr, _ := serve(t, httpd.Options{Routes: routes, Hosts: []string{"apiary.lan"}, Authorize: func(_ httpd.Class, r *http.Request) error {
		if r.Header.Get("Authorization") != "Bearer key" {
			return fault.New(fault.Denied, "no_key", "A key is needed.").WithStatus(http.StatusUnauthorized)
		}
		return nil
	}})
	for _, c := range []struct {
		name, method, path, body string
		header                   string // "Name: value" lines
		status                   int
		code                     string
	}{
		{"open", "GET", "/open", "", "", 200, ""},
		{"by name", "GET", "/open", "", "Host: localhost", 200, ""},
		{"by configured name", "GET", "/open", "", "Host: apiary.lan:7833", 200, ""},
		{"rebound name", "GET", "/open", "", "Host: evil.example", 403, "host_not_allowed"},
		{"other address", "GET", "/open", "", "Host: 10.1.2.3", 403, "host_not_allowed"},
		{"page of another origin", "GET", "/open", "", "Origin: https://evil.example", 403, "origin_not_allowed"},
		{"opaque origin", "GET", "/open", "", "Origin: null", 403, "origin_not_allowed"},
		{"own origin", "GET", "/open", "", "Origin: http://" + addr, 200, ""},
		{"without key", "POST", "/admin", "{}", "Content-Type: application/json", 401, "no_key"},
		{"unknown path without key", "GET", "/nonesuch", "", "", 401, "no_key"},
		{"unknown path", "GET", "/nonesuch", "", "Authorization: Bearer key", 404, "unknown_path"},
		{"with key", "POST", "/admin", "{}", "Content-Type: application/json; charset=utf-8\nAuthorization: Bearer key", 200, ""},
		{"form", "POST", "/admin", "{}", "Content-Type: text/plain\nAuthorization: Bearer key", 415, "unsupported_media_type"},
		{"no type", "POST", "/admin", "{}", "Authorization: Bearer key", 415, "unsupported_media_type"},
		{"compressed", "POST", "/admin", "{}", "Content-Type: application/json\nContent-Encoding: gzip\nAuthorization: Bearer key", 415, "unsupported_encoding"},
		{"too large", "POST", "/admin", `{"a":"` + strings.Repeat("x", 1000) + `"}`, "Content-Type: application/json\nAuthorization: Bearer key", 413, "body_too_large"},
		{"no JSON", "POST", "/admin", "{", "Content-Type: application/json\nAuthorization: Bearer key", 400, "invalid_json"},
		{"two values", "POST", "/admin", "{}{}", "Content-Type: application/json\nAuthorization: Bearer key", 400, "invalid_json"},
		{"wrong method", "DELETE", "/open", "", "Authorization: Bearer key", 405, "method_not_allowed"},
		{"unclean path", "GET", "/a/../open", "", "Authorization: Bearer key", 404, "unknown_path"},
		{"two slashes", "GET", "//", "", "Authorization: Bearer key", 404, "unknown_path"},
		{"three slashes", "GET", "///", "", "Authorization: Bearer key", 404, "unknown_path"},
		{"panic", "GET", "/panic", "", "", 500, "internal"},
	} {
		var req bytes.Buffer
		host := "Host: " + addr
		for l := range strings.SplitSeq(c.header, "\n") {
			if strings.HasPrefix(l, "Host:") {
				host = l
			}
		}
		fmt.Fprintf(&req, "%s %s HTTP/1.1\r\n%s\r\n", c.method, c.path, host)
		for l := range strings.SplitSeq(c.header, "\n") {
			if l != "" && !strings.HasPrefix(l, "Host:") {
				fmt.Fprintf(&req, "%s\r\n", l)
			}
		}
		fmt.Fprintf(&req, "Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(c.body), c.body)
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(req.Bytes()); err != nil {
			t.Fatal(err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		body, _ := io.ReadAll(res.Body)
		_ = conn.Close()
		var e contract.ErrorBody
		_ = json.Unmarshal(body, &e)
		if res.StatusCode != c.status || e.Error.Code != c.code || res.Header.Get("Content-Type") != "application/json" || res.Header.Get(contract.RequestIDHeader) == "" {
			t.Errorf("%s: %s %v %s", c.name, res.Status, res.Header, body)
		}
		if c.code != "" && (e.Error.RequestID != res.Header.Get(contract.RequestIDHeader) || e.Error.Message == "" || strings.Contains(string(body), "secret text")) {
			t.Errorf("%s: the error is %s", c.name, body)
		}
		if c.status == 401 && res.Header.Get("WWW-Authenticate") == "" || c.status == 405 && res.Header.Get("Allow") == "" {
			t.Errorf("%s: the header is %v", c.name, res.Header)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	addr, _ := serve(t, httpd.Options{Routes: []httpd.Route{route("GET /open", httpd.ClassOpen, ok)}})
	for given, kept := range map[string]bool{"trace-1.a_B": true, "": false, strings.Repeat("x", 65): false, "a b": false, "ä": false} {
		req, _ := http.NewRequest("GET", "http://"+addr+"/open", nil)
		req.Header.Set(contract.RequestIDHeader, given)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var body map[string]string
		_ = json.NewDecoder(res.Body).Decode(&body)
		_ = res.Body.Close()
		if id := res.Header.Get(contract.RequestIDHeader); (id == given) != kept || id == "" || body["id"] != id {
			t.Errorf("the id %q became %q in the header and %q in the handler", given, id, body["id"])
		}
	}
}

// TestSlowHeadersAndBodies (T41): a client that dribbles loses its connection in time, and others do not notice.
func TestSlowHeadersAndBodies(t *testing.T) {
	addr, _ := serve(t, httpd.Options{HeaderTimeout: 200 * time.Millisecond, BodyTimeout: 400 * time.Millisecond,
		Routes: []httpd.Route{route("GET /open", httpd.ClassOpen, ok), route("POST /body", httpd.ClassOpen, func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err != nil {
				httpd.WriteError(w, r, httpd.BodyError(err))
				return
			}
			ok(w, r)
		})}})
	for name, head := range map[string]string{
		"header": "GET /open HTTP/1.1\r\nHost: localhost\r\nX: ",
		"body":   "POST /body HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, head)
		go func() {
			for range 200 {
				if _, err := io.WriteString(c, "x"); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("slow %s: the connection stays open", name)
		}
	}
	res, err := http.Get("http://" + addr + "/open")
	if err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("another request: %v %v", res, err)
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

func TestHeaderSize(t *testing.T) {
	addr, _ := serve(t, httpd.Options{Routes: []httpd.Route{route("GET /open", httpd.ClassOpen, ok)}})
	req, _ := http.NewRequest("GET", "http://"+addr+"/open", nil)
	req.Header.Set("X-Large", strings.Repeat("x", 33<<10))
	if res, err := http.DefaultClient.Do(req); err == nil && res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 33 KiB is answered with %s", res.Status)
	}
}

// TestConnectionLimit (T45): clients that hold all connections keep others from inference, with a sentence, but not health and
// heartbeats; those beyond are refused, and all recovers when they leave.
func TestConnectionLimit(t *testing.T) {
	addr, _ := serve(t, httpd.Options{MaxConnections: 3, Routes: []httpd.Route{route("GET /healthz", httpd.ClassOpen, ok), route("GET /v1/models", httpd.ClassInference, ok)}})
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	get := func(path string) int {
		res, err := client.Get("http://" + addr + path)
		if err != nil {
			return 0
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	var open []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		_, _ = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	if h, m := get("/healthz"), get("/v1/models"); h != http.StatusOK || m != http.StatusServiceUnavailable {
		t.Errorf("while all connections are held: health %d, models %d", h, m)
	}
	for range 40 { // silent ones: the spare connections go too, for a moment
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	refused := 0
	for _, c := range open[3:] {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
			refused++
		}
	}
	if refused != 40 {
		t.Errorf("%d of 40 connections beyond the limit were closed", refused)
	}
	if h := get("/healthz"); h != http.StatusOK {
		t.Errorf("after them: health %d", h)
	}
	for _, c := range open {
		_ = c.Close()
	}
	for end := time.Now().Add(5 * time.Second); get("/v1/models") != http.StatusOK; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the limit does not recover")
		}
	}
}

// TestSlowReader (T42): a write without progress ends.
func TestSlowReader(t *testing.T) {
	ended := make(chan error, 1)
	addr, _ := serve(t, httpd.Options{WriteTimeout: 200 * time.Millisecond, Routes: []httpd.Route{route("GET /large", httpd.ClassOpen, func(w http.ResponseWriter, _ *http.Request) {
		var err error
		for b := make([]byte, 1<<20); err == nil; {
			_, err = w.Write(b)
		}
		ended <- err
	})}})
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, "GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n")
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("the handler still writes")
	}
}

// TestDrain: requests that run are finished; one that takes too long is told why, and then the server ends.
func TestDrain(t *testing.T) {
	begun := make(chan struct{}, 2)
	addr, stop := serve(t, httpd.Options{DrainTimeout: 300 * time.Millisecond, Routes: []httpd.Route{
		route("GET /short", httpd.ClassOpen, func(w http.ResponseWriter, r *http.Request) {
			begun <- struct{}{}
			time.Sleep(100 * time.Millisecond)
			ok(w, r)
		}),
		route("GET /long", httpd.ClassOpen, func(w http.ResponseWriter, r *http.Request) {
			begun <- struct{}{}
			<-r.Context().Done()
			if !errors.Is(context.Cause(r.Context()), httpd.ErrDraining) {
				t.Errorf("the context ended for another reason: %v", context.Cause(r.Context()))
			}
			httpd.WriteError(w, r, fault.New(fault.Unavailable, "draining", "The agent is being stopped."))
		})}})
	status := make(chan string, 2)
	for _, p := range []string{"/short", "/long"} {
		go func() {
			res, err := http.Get("http://" + addr + p)
			if err != nil {
				status <- err.Error()
				return
			}
			status <- p + " " + res.Status
		}()
		<-begun
	}
	_ = stop()
	got := []string{<-status, <-status}
	if got[0] != "/short 200 OK" || got[1] != "/long 503 Service Unavailable" {
		t.Errorf("answers %q", got)
	}
}

func TestCheckBind(t *testing.T) {
	for addr, loopback := range map[string]bool{"127.0.0.1:1": true, "[::1]:1": true, "localhost:1": true, "127.8.9.1:0": true,
		"0.0.0.0:1": false, ":1": false, "[::]:1": false, "192.168.1.2:1": false, "example.org:1": false} {
		err := httpd.CheckBind(addr, false, "queen.listen")
		if (err == nil) != loopback || err != nil && !strings.Contains(err.Error(), "queen.listen") {
			t.Errorf("%s: %v", addr, err)
		}
		if err := httpd.CheckBind(addr, true, "queen.listen"); err != nil {
			t.Errorf("%s, insecure: %v", addr, err)
		}
	}
	if httpd.CheckBind("nonsense", true, "queen.listen") == nil {
		t.Error("an address without a port is taken")
	}
}

func TestPanicsAreLoggedOnce(t *testing.T) {
	var log bytes.Buffer
	s, err := httpd.New(httpd.Options{Log: slog.New(slog.NewTextHandler(&log, nil)), Routes: []httpd.Route{
		route("GET /panic", httpd.ClassOpen, func(http.ResponseWriter, *http.Request) { panic("oh\nno") })}})
	if err != nil {
		t.Fatal(err)
	}
	s.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "http://localhost/panic", nil))
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "oh") {
		t.Errorf("the log is %q", log.String())
	}
}
