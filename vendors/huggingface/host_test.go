package huggingface

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/testutil/fakehub"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// host is the least that a core offers.
type host struct {
	token string
	asked []string
}

func (h *host) HTTP(ctx context.Context, in vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	req, err := http.NewRequestWithContext(ctx, in.Method, in.URL, bytes.NewReader(in.Body))
	if err != nil {
		return nil, err
	}
	h.asked = append(h.asked, in.Method+" "+req.URL.RequestURI())
	for name, value := range in.Header {
		req.Header.Set(name, value)
	}
	if h.token != "" && in.Credential == Credential {
		req.Header.Set("Authorization", "Bearer "+h.token)
	}
	client := &http.Client{CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if in.Manual {
			return http.ErrUseLastResponse
		}
		if req.URL.Host != via[0].URL.Host {
			req.Header.Del("Authorization")
		}
		return nil
	}}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	header := map[string]string{}
	for name, values := range res.Header {
		header[name] = strings.Join(values, ", ")
	}
	return &vendor.HTTPResponse{Status: res.StatusCode, Header: header, Body: body, URL: res.Request.URL.String()}, nil
}

func (h *host) Get(context.Context, string) ([]byte, error)        { return nil, nil }
func (h *host) Set(context.Context, string, []byte, int64) error   { return nil }
func (h *host) Log(level, message string, keysAndValues ...string) {}

// configured returns a vendor for a hub.
func configured(t *testing.T, hub *fakehub.Hub, h vendor.Host) *Vendor {
	t.Helper()
	v := New()
	if err := v.Configure(t.Context(), vendor.Configuration{Values: []byte(`{"endpoint":"` + hub.URL + `/"}`), Host: h}); err != nil {
		t.Fatal(err)
	}
	return v
}

func newHub(t *testing.T) *fakehub.Hub {
	hub := fakehub.New()
	t.Cleanup(hub.Close)
	return hub
}

// lfs makes large files whose content is their name.
func lfs(paths ...string) []fakehub.File {
	var out []fakehub.File
	for _, p := range paths {
		out = append(out, fakehub.File{Path: p, Body: []byte("content of " + p), LFS: true})
	}
	return out
}

func resolve(t *testing.T, v *Vendor, ref string) *vendor.Manifest {
	t.Helper()
	m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: ref})
	if err != nil {
		t.Fatalf("%s: %v", ref, err)
	}
	return m
}

// refusal is the error of a reference that must have one for people.
func refusal(t *testing.T, v *Vendor, ref string) *vendor.Error {
	t.Helper()
	m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: ref})
	e, ok := errors.AsType[*vendor.Error](err)
	if !ok {
		t.Fatalf("%s: got %v, %v; want a *vendor.Error", ref, m, err)
	}
	return e
}

func names(m *vendor.Manifest) string {
	var out []string
	for _, f := range m.Files {
		name := f.Path
		if f.Role != vendor.RoleWeights {
			name += "=" + f.Role
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

// circle is a host whose every list goes on with the first page.
type circle struct{ host }

func (c *circle) HTTP(ctx context.Context, in vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	res, err := c.host.HTTP(ctx, in)
	if err == nil && strings.Contains(in.URL, "/tree/") {
		res.Header["Link"] = "<" + in.URL + `>; rel="next"`
	}
	return res, err
}
