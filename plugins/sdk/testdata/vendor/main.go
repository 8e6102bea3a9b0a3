// A small vendor, for tests: it resolves what the JSON index of a server lists.
package main

import (
	"context"
	"encoding/json"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func init() { sdk.Register(&small{}) }

func main() { sdk.Main() }

type small struct{ host vendor.Host }

func (*small) Info() vendor.Info {
	return vendor.Info{Name: "small", Version: "1.0.0", Schemes: []string{"small"}, Description: "A vendor for tests."}
}

func (*small) Supports(string) bool { return true }

func (*small) Schema() vendor.Schema { return vendor.Schema{} }

func (v *small) Configure(_ context.Context, c vendor.Configuration) error {
	v.host = c.Host
	return nil
}

func (v *small) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	v.host.Log("info", "asked", "reference", req.Reference)
	if req.Reference == "small:panic" {
		panic("no such luck")
	}
	kept, err := v.host.Get(ctx, "count")
	if err != nil {
		return nil, err
	}
	if err := v.host.Set(ctx, "count", append(kept, 'x'), 60); err != nil {
		return nil, err
	}
	resp, err := v.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: req.Reference[len("small:"):]})
	if err != nil {
		return nil, err
	}
	m := &vendor.Manifest{Meta: map[string]string{"count": string(kept)}}
	if err := json.Unmarshal(resp.Body, m); err != nil {
		return nil, &vendor.Error{Kind: vendor.KindUnavailable, Code: "bad_index", Message: "The index cannot be read."}
	}
	return m, nil
}
