package main

import (
	"context"
	"errors"
	"testing"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// server is a host on which one index is granted.
type server struct{ vendor.Host }

func (server) HTTP(context.Context, vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	return &vendor.HTTPResponse{Status: 200, Body: []byte(`{"engines": [{"name": "tiny", "version": "1.2.0", "builds": [
		{"platform": "linux-amd64", "url": "https://engines.example.org/tiny.tar.gz", "size": 3, "sha256": "aa", "expect": "bin/tiny"}]}]}`)}, nil
}

func TestPlan(t *testing.T) {
	inv := sdk.Dispatch(&provisioner{}, server{})
	if _, err := sdk.Call[struct{}](t.Context(), inv, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: `{"url": "https://engines.example.org/index.json"}`}); err != nil {
		t.Fatal(err)
	}
	for ref, code := range map[string]string{"forge:tiny": "", "forge:tiny@1.2.0": "", "forge:tiny@9": "engine_not_found", "forge:none": "engine_not_found"} {
		plan, err := sdk.Call[vendor.Plan](t.Context(), inv, vendor.MethodPlan, vendor.PlanRequest{Reference: ref, Platform: vendor.Platform{OS: "linux", Arch: "amd64"}})
		e, _ := errors.AsType[*vendor.Error](err)
		if code != "" && (e == nil || e.Code != code) || code == "" && (err != nil || plan.Reference != "forge:tiny@1.2.0" || len(plan.Files) != 1 || len(plan.Steps) != 2) {
			t.Errorf("%s: %+v, %v", ref, plan, err)
		}
	}
	_, err := sdk.Call[vendor.Plan](t.Context(), inv, vendor.MethodPlan, vendor.PlanRequest{Reference: "forge:tiny", Platform: vendor.Platform{OS: "plan9", Arch: "mips"}})
	if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != "no_build" {
		t.Errorf("another platform: %v", err)
	}
}
