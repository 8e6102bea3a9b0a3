package pypi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/testutil/fakehost"
	"github.com/apiary-dev/apiary/plugins/llamaserver"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wheel"
)

var linux = vendor.Platform{OS: "linux", Arch: "amd64"}

const digest = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

// registry serves the files of the project x-y-server; the last one has no digest.
func registry(t *testing.T, files ...string) (*Provisioner, *fakehost.Host) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/simple/x-y-server/" {
			http.NotFound(w, r)
			return
		}
		var items []string
		for _, f := range files {
			name, sha, _ := strings.Cut(f, "#")
			items = append(items, fmt.Sprintf(`{"filename":%q,"url":"/files/%s","hashes":{%s},"size":1000}`, name, name, strings.ReplaceAll(`"sha256":"`+digest+`"`, digest, sha+digest[len(sha):])))
		}
		w.Header().Set("Content-Type", wheel.Media)
		_, _ = fmt.Fprintf(w, `{"meta":{"api-version":"1.1"},"name":"x","files":[%s]}`, strings.Join(items, ","))
	}))
	t.Cleanup(srv.Close)
	p, h := New(), &fakehost.Host{}
	values, err := json.Marshal(Settings{Registry: srv.URL + "/simple"})
	if err == nil {
		err = p.Configure(t.Context(), vendor.Configuration{Values: values, Host: h})
	}
	if err != nil {
		t.Fatal(err)
	}
	return p, h
}

func TestPlan(t *testing.T) {
	const file = "x_y_server-1.2.0-py3-none-manylinux_2_35_x86_64.whl"
	p, h := registry(t, file, "x_y_server-1.2.0-py3-none-manylinux_2_35_aarch64.whl", "x_y_server-1.2.0-py3-none-any.whl", "x_y_server-1.0-py3-none-manylinux_2_17_x86_64.whl", "x_y_server-2.0rc1-py3-none-manylinux_2_17_x86_64.whl", "x_y_server-1.2.0.tar.gz")
	plan, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: "pypi:X_Y.server", Platform: linux})
	if err != nil {
		t.Fatal(err)
	}
	f := plan.Files[0]
	if plan.Reference != "pypi:x-y-server@1.2.0" || plan.Name != "x-y-server" || plan.Version != "1.2.0" || plan.Platform != "linux-amd64" || f.Digests.SHA256 != digest || f.Size != 1000 ||
		!strings.HasSuffix(f.Sources[0].URL, "/files/"+file) || f.Sources[0].Credential != Scheme || plan.Steps[0].Extract.File != f.Path || plan.Steps[1].Expect.Path != "x_y_server/bin/llama-server" || !plan.Steps[1].Expect.Executable {
		t.Errorf("got %+v %+v", plan, f)
	}
	spec, err := p.Launch(t.Context(), vendor.LaunchRequest{Reference: plan.Reference, EngineDir: "/e", Model: "/m"})
	if err != nil || spec.Path != plan.Steps[1].Expect.Path || spec.Env["LD_LIBRARY_PATH"] != "/e/x_y_server/bin" {
		t.Errorf("%+v, %v", spec, err)
	}
	// What Pin says is what Plan gives, and needs no registry.
	n := len(h.Asked)
	for ref, want := range map[string]string{"pypi:x-y-server@1.2.0": "pypi:x-y-server@1.2.0", "pypi:x-y-server==1.2": "pypi:x-y-server@1.2", "pypi:x-y-server@1.0/a/b": "pypi:x-y-server@1.0/a/b", "pypi:x-y-server": ""} {
		got, platform, err := p.Pin(ref, linux)
		if err != nil || got != want || platform != "linux-amd64" || len(h.Asked) != n {
			t.Errorf("%s: %q %q %v", ref, got, platform, err)
		}
	}
	for _, ref := range []string{"pypi:x-y-server==1.2", "pypi:x-y-server@1.0/a/b"} {
		pinned, _, _ := p.Pin(ref, linux)
		plan, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: ref, Platform: linux})
		if err != nil || plan.Reference != pinned {
			t.Errorf("%s: %+v, %v", ref, plan, err)
		}
	}
}

func TestErrors(t *testing.T) {
	p, _ := registry(t, "x_y_server-1.0-py3-none-any.whl", "x_y_server-1.0-py3-none-manylinux_2_17_aarch64.whl", "x_y_server-2.0-py3-none-manylinux_2_17_aarch64.whl#nohex")
	arm := vendor.Platform{OS: "linux", Arch: "arm64"}
	for _, c := range []struct {
		ref  string
		on   vendor.Platform
		code string
	}{
		{"pypi:x-y-server@1.0", linux, "no_build"}, {"pypi:x-y-server@3.0", arm, "version_not_found"}, {"pypi:other", arm, "engine_not_found"},
		{"pypi:x-y-server@2.0", arm, "no_digest"}, {"pypi:x-y-server@", arm, "invalid_reference"}, {"pypi:x-y-server@1.0/../x", arm, "invalid_reference"},
	} {
		_, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: c.ref, Platform: c.on})
		if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != c.code || !strings.HasSuffix(e.Message, ".") {
			t.Errorf("%s: %v", c.ref, err)
		}
	}
	var e *vendor.Error
	if _, err := New().Plan(context.Background(), vendor.PlanRequest{Reference: "pypi:x"}); !errors.As(err, &e) || e.Code != "no_registry" {
		t.Errorf("without settings: %v", err)
	}
	for in, want := range map[string]string{"1!2.0+cu12.4": "1-2.0-cu12.4", "1..2": "1-2", "V1": "v1", "-x": "x"} {
		if got := llamaserver.Segment(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}
