package host

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestGranted(t *testing.T) {
	hosts := []string{"example.org", "*.cdn.example.org", "other.example:8443", "[::1]:9000", "10.0.0.5:3000"}
	for address, want := range map[string]bool{
		"https://example.org/x": true, "https://EXAMPLE.org./": true, "https://example.org:443": true, "https://example.org:444": false,
		"https://a.cdn.example.org": true, "https://cdn.example.org": false, "https://evilcdn.example.org": false, "https://a.b.cdn.example.org": true,
		"https://sub.example.org": false, "https://example.org.evil.test": false, "https://other.example:8443": true, "https://other.example": false,
		"http://[::1]:9000/": true, "http://10.0.0.5:3000": true, "http://10.0.0.5": false, "https://user@evil.test/@example.org": false,
	} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		if Granted(hosts, u) != want {
			t.Errorf("%s: %t", address, !want)
		}
	}
}

// services returns the host of a plugin that may ask the servers.
func services(t *testing.T, log *bytes.Buffer, servers ...*httptest.Server) *Services {
	t.Helper()
	o := ServicesOptions{Name: "p", Store: OpenStore(""), Log: slog.New(slog.NewTextHandler(log, nil))}
	for _, s := range servers {
		o.Grants.HTTP = append(o.Grants.HTTP, s.Listener.Addr().String())
	}
	o.Grants.Private = o.Grants.HTTP
	o.Grants.Credentials = []string{"token"}
	o.Credentials = func(name, host string) (secret.Secret, error) {
		if name == "token" && host == servers[0].Listener.Addr().String() {
			return "s3cret", nil
		}
		return "", nil
	}
	return NewServices(o)
}

func TestServicesHTTP(t *testing.T) {
	seen := make(chan http.Header, 10)
	forbidden := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a host that was not granted was asked") }))
	defer forbidden.Close()
	second := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		_, _ = w.Write([]byte("second"))
	}))
	defer second.Close()
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen <- r.Header.Clone()
		switch r.URL.Path {
		case "/out":
			http.Redirect(w, r, forbidden.URL+"/x?sig=1", http.StatusFound)
		case "/over":
			http.Redirect(w, r, second.URL, http.StatusFound)
		case "/large":
			_, _ = w.Write(make([]byte, maxAnswer+1))
		default:
			w.Header().Set("Set-Cookie", "a=b")
			w.Header().Add("Link", "<1>")
			w.Header().Add("Link", "<2>")
			_, _ = w.Write([]byte("first"))
		}
	}))
	defer first.Close()
	s := services(t, new(bytes.Buffer), first, second)
	get := func(in vendor.HTTPRequest) (*vendor.HTTPResponse, string) {
		if in.Method == "" {
			in.Method = "GET"
		}
		res, err := s.HTTP(t.Context(), in)
		if err == nil {
			return res, ""
		}
		e, ok := errors.AsType[*vendor.Error](err)
		if !ok {
			t.Fatalf("%v", err)
		}
		if strings.Contains(e.Message, "sig=") || !strings.HasSuffix(e.Message, ".") {
			t.Errorf("%q", e.Message)
		}
		return nil, e.Code
	}

	res, _ := get(vendor.HTTPRequest{URL: first.URL + "/a?b=c", Credential: "token", Header: map[string]string{"accept": "x"}})
	if h := <-seen; h.Get("Authorization") != "Bearer s3cret" || h.Get("Accept") != "x" || h.Get("User-Agent") != "apiary-plugin/p" {
		t.Errorf("asked with %v", h)
	}
	if string(res.Body) != "first" || res.Status != 200 || res.Header["Link"] != "<1>, <2>" || res.Header["Set-Cookie"] != "" || res.URL != first.URL+"/a?b=c" {
		t.Errorf("%+v", res)
	}
	res, _ = get(vendor.HTTPRequest{URL: first.URL + "/over", Credential: "token"})
	<-seen
	if h := <-seen; string(res.Body) != "second" || h.Get("Authorization") != "" {
		t.Errorf("after a redirect %+v, asked with %v", res, h)
	}
	res, _ = get(vendor.HTTPRequest{URL: first.URL + "/out", Manual: true})
	if <-seen; res.Status != 302 || !strings.HasPrefix(res.Header["Location"], forbidden.URL) {
		t.Errorf("%+v", res)
	}
	for _, x := range []struct {
		code string
		in   vendor.HTTPRequest
	}{
		{"host_not_granted", vendor.HTTPRequest{URL: forbidden.URL}},
		{"host_not_granted", vendor.HTTPRequest{URL: first.URL + "/out"}},
		{"host_not_granted", vendor.HTTPRequest{URL: "https://127.0.0.1/"}},
		{"scheme_refused", vendor.HTTPRequest{URL: "file:///etc/passwd"}},
		{"answer_too_large", vendor.HTTPRequest{URL: first.URL + "/large"}},
		{"credential_not_granted", vendor.HTTPRequest{URL: first.URL, Credential: "other"}},
		{"bad_request", vendor.HTTPRequest{URL: first.URL, Method: "DELETE"}},
		{"bad_request", vendor.HTTPRequest{URL: "http://a:b@" + first.Listener.Addr().String()}},
		{"bad_request", vendor.HTTPRequest{URL: first.URL, Header: map[string]string{"authorization": "Bearer forged"}}},
		{"bad_request", vendor.HTTPRequest{URL: "http://%zz"}},
	} {
		if _, code := get(x.in); code != x.code {
			t.Errorf("%+v: %s", x.in, code)
		}
		for len(seen) > 0 {
			<-seen
		}
	}
}

// TestServicesPublicOnly: a name that was granted, but not as private, must not lead into this machine.
func TestServicesPublicOnly(t *testing.T) {
	server := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") }))
	defer server.Close()
	s := services(t, new(bytes.Buffer), server)
	s.o.Grants.Private = nil
	s = NewServices(s.o)
	_, err := s.HTTP(t.Context(), vendor.HTTPRequest{Method: "GET", URL: server.URL})
	if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Kind != vendor.KindDenied {
		t.Errorf("%v", err)
	}
}

func TestServicesLog(t *testing.T) {
	var out bytes.Buffer
	s := services(t, &out, httptest.NewUnstartedServer(nil))
	now := time.Unix(0, 0)
	s.now = func() time.Time { return now }
	s.Log("warn", "one\nlevel=ERROR msg=forged", "key", "value", "odd")
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "level=WARN") || !strings.Contains(got, "plugin.key=value") {
		t.Errorf("%s", got)
	}
	out.Reset()
	for range 3 * linesASecond {
		s.Log("info", strings.Repeat("x", 2*maxLine))
	}
	if n := strings.Count(out.String(), "\n"); n != linesASecond-1 || out.Len() > linesASecond*(maxLine+200) {
		t.Errorf("%d lines, %d bytes", n, out.Len())
	}
	now = now.Add(time.Second)
	out.Reset()
	s.Log("info", "later")
	if got := out.String(); !strings.Contains(got, "lines=401") || !strings.Contains(got, "later") {
		t.Errorf("%s", got)
	}
}

// TestPrivateNeedsAGrant: what is granted and private is refused with the words that help for a plugin.
func TestPrivateNeedsAGrant(t *testing.T) {
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a private host was asked") }))
	defer inside.Close()
	host := inside.Listener.Addr().String()
	s := NewServices(ServicesOptions{Name: "p", Grants: Grants{HTTP: []string{host}}, Store: OpenStore(""), Log: slog.New(slog.DiscardHandler)})
	for _, scheme := range []string{"http", "https"} {
		_, err := s.HTTP(t.Context(), vendor.HTTPRequest{Method: "GET", URL: scheme + "://" + host})
		if kindOf(err) != vendor.KindDenied || !strings.Contains(err.Error(), "add it to grants.private of the plugin p") {
			t.Errorf("%s: %v", scheme, err)
		}
	}
}

func kindOf(err error) vendor.Kind {
	e, _ := errors.AsType[*vendor.Error](err)
	if e == nil {
		return ""
	}
	return e.Kind
}
