// Package fakehost is the least that a core offers a plugin, for the tests of vendors: requests go where they want, and are noted.
package fakehost

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Host implements vendor.Host. It keeps nothing and is for one goroutine.
type Host struct {
	Token string   // sent with requests that name a credential, until a redirect leads to another host
	Asked []string // method and path of the requests so far
}

// HTTP implements vendor.Host.
func (h *Host) HTTP(ctx context.Context, in vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	req, err := http.NewRequestWithContext(ctx, in.Method, in.URL, bytes.NewReader(in.Body))
	if err != nil {
		return nil, err
	}
	h.Asked = append(h.Asked, in.Method+" "+req.URL.RequestURI())
	for name, value := range in.Header {
		req.Header.Set(name, value)
	}
	if h.Token != "" && in.Credential != "" {
		req.Header.Set("Authorization", "Bearer "+h.Token)
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

// Get implements vendor.Host.
func (h *Host) Get(context.Context, string) ([]byte, error) { return nil, nil }

// Set implements vendor.Host.
func (h *Host) Set(context.Context, string, []byte, int64) error { return nil }

// Log implements vendor.Host.
func (h *Host) Log(level, message string, keysAndValues ...string) {}
