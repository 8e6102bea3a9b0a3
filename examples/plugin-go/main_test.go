package main

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const testIndex = `{"models": [
	{"name": "tiny", "description": "a small one", "format": "gguf", "license": "mit",
	 "files": [{"path": "tiny.gguf", "url": "https://models.example.org/tiny.gguf", "size": 3, "sha256": "aa"}]},
	{"name": "tiny-2", "description": "its sister", "format": "gguf"}]}`

// server is a host on which one index is granted.
type server struct {
	vendor.Host
	status int
	body   string
}

func (s server) HTTP(_ context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	if req.URL != "https://models.example.org/index.json" {
		return nil, &vendor.Error{Kind: vendor.KindDenied, Code: "not_granted", Message: "No."}
	}
	return &vendor.HTTPResponse{Status: s.status, Body: []byte(s.body)}, nil
}

// configured is the vendor as a host sees it.
func configured(t *testing.T, s server, values string) (vendor.Invoker, error) {
	t.Helper()
	inv := sdk.Dispatch(&indexVendor{}, s)
	if _, err := sdk.Call[vendor.Info](t.Context(), inv, vendor.MethodGetInfo, nil); err != nil {
		t.Fatal(err)
	}
	_, err := sdk.Call[struct{}](t.Context(), inv, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: values})
	return inv, err
}

const goodConfig = `{"url": "https://models.example.org/index.json"}`

func TestResolve(t *testing.T) {
	inv, err := configured(t, server{status: 200, body: testIndex}, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	resolve := func(ref string) (*vendor.Manifest, error) {
		return sdk.Call[vendor.Manifest](t.Context(), inv, vendor.MethodResolve, vendor.ResolveRequest{Reference: ref})
	}
	m, err := resolve("index:tiny")
	if err != nil || !strings.HasPrefix(m.Reference, "index:tiny@") {
		t.Fatalf("%+v, %v", m, err)
	}
	want := []vendor.File{{Path: "tiny.gguf", Role: vendor.RoleWeights, Size: 3, Digests: vendor.Digests{SHA256: "aa"},
		Sources: []vendor.Source{{URL: "https://models.example.org/tiny.gguf", Ranges: true}}}}
	if !reflect.DeepEqual(m.Files, want) {
		t.Errorf("files %+v, want %+v", m.Files, want)
	}
	if again, err := resolve(m.Reference); err != nil || again.Reference != m.Reference {
		t.Errorf("the pinned reference resolves to %+v, %v", again, err)
	}
	for ref, code := range map[string]string{"index:tiny@000000000000": "version_gone", "index:none": "model_not_found"} {
		if _, err := resolve(ref); errorOf(err).Code != code {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, err := resolve("index:tin"); len(errorOf(err).Candidates) != 2 {
		t.Errorf("no candidates: %+v", errorOf(err))
	}
}

func TestSearch(t *testing.T) {
	inv, err := configured(t, server{status: 200, body: testIndex}, goodConfig)
	if err != nil {
		t.Fatal(err)
	}
	for query, want := range map[string]int{"tiny": 2, "sister": 1, "none": 0} {
		found, err := sdk.Call[vendor.SearchResponse](t.Context(), inv, vendor.MethodSearch, vendor.SearchRequest{Query: query, Limit: 5})
		if err != nil || len(found.Results) != want {
			t.Errorf("%s: %+v, %v", query, found, err)
		}
	}
}

func TestBadServersAndSettings(t *testing.T) {
	for name, x := range map[string]struct {
		server server
		values string
		code   string
	}{
		"no index":      {server{status: 404}, goodConfig, "bad_index"},
		"a page":        {server{status: 200, body: "<html>"}, goodConfig, "bad_index"},
		"not granted":   {server{status: 200, body: testIndex}, `{"url": "https://other.example"}`, "not_granted"},
		"no URL":        {server{}, `{"url": "models.example.org"}`, "bad_config"},
		"other setting": {server{}, `{"url": 7}`, "bad_config"},
	} {
		inv, err := configured(t, x.server, x.values)
		if err == nil {
			_, err = sdk.Call[vendor.Manifest](t.Context(), inv, vendor.MethodResolve, vendor.ResolveRequest{Reference: "index:tiny"})
		}
		if errorOf(err).Code != x.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func errorOf(err error) *vendor.Error {
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e
	}
	return &vendor.Error{}
}
