package huggingface

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/testutil/fakehost"
	"github.com/apiary-dev/apiary/core/testutil/fakehub"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

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
type circle struct{ fakehost.Host }

func (c *circle) HTTP(ctx context.Context, in vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	res, err := c.Host.HTTP(ctx, in)
	if err == nil && strings.Contains(in.URL, "/tree/") {
		res.Header["Link"] = "<" + in.URL + `>; rel="next"`
	}
	return res, err
}
