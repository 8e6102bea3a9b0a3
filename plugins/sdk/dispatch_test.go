package sdk

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// index is a small vendor with all that a vendor may have.
type index struct {
	features []string
	resolve  func(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error)
	host     vendor.Host
	values   string
}

func (v *index) Info() vendor.Info {
	return vendor.Info{Name: "index", Version: "1.0.0", Schemes: []string{"index"}, Features: v.features}
}
func (v *index) Supports(ref string) bool { return strings.HasPrefix(ref, "index:") }
func (v *index) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	return v.resolve(ctx, req)
}
func (v *index) Search(_ context.Context, req vendor.SearchRequest) ([]vendor.SearchResult, error) {
	return []vendor.SearchResult{{Reference: "index:" + req.Query, SizeBytes: 1 << 60}}, nil
}
func (v *index) RefreshSources(_ context.Context, req vendor.RefreshRequest) ([]vendor.File, error) {
	return []vendor.File{{Path: req.Paths[0], Size: -1}}, nil
}
func (v *index) Schema() vendor.Schema { return vendor.Schema{Description: "one"} }
func (v *index) Configure(_ context.Context, c vendor.Configuration) error {
	v.host, v.values = c.Host, string(c.Values)
	return nil
}

// engines is a provisioner with all that one may have.
type engines struct{}

func (engines) Info() vendor.Info {
	return vendor.Info{Name: "engines", Kind: vendor.KindProvisioner, Features: []string{vendor.FeatureList, vendor.FeatureLaunch, vendor.FeaturePin}}
}
func (engines) Supports(string) bool { return true }
func (engines) Plan(_ context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	return &vendor.Plan{Reference: req.Reference, Platform: req.Platform.OS}, nil
}
func (engines) List(context.Context, vendor.ListRequest) ([]vendor.EngineChoice, error) {
	return []vendor.EngineChoice{{Reference: "e:1"}}, nil
}
func (engines) Launch(_ context.Context, req vendor.LaunchRequest) (*vendor.LaunchSpec, error) {
	return &vendor.LaunchSpec{Path: req.EngineDir}, nil
}
func (engines) Pin(ref string, p vendor.Platform) (string, string, error) {
	return ref + "@1", p.Arch, nil
}

func all() []string { return []string{vendor.FeatureSearch, vendor.FeatureRefresh} }

func TestDispatchVendor(t *testing.T) {
	v := &index{features: all(), resolve: func(_ context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
		return &vendor.Manifest{Reference: req.Reference + "@" + req.Platform.OS}, nil
	}}
	host := &fakeHost{}
	inv := Dispatch(v, host)
	ctx := t.Context()
	if _, err := Call[vendor.Manifest](ctx, inv, vendor.MethodResolve, vendor.ResolveRequest{}); code(err) != "not_configured" {
		t.Errorf("Resolve before Configure: %v", err)
	}
	if _, err := Call[struct{}](ctx, inv, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: `{"a":1}`}); err != nil {
		t.Fatal(err)
	}
	if v.host != host || v.values != `{"a":1}` {
		t.Errorf("configured with %v, %s", v.host, v.values)
	}
	if _, err := Call[struct{}](ctx, inv, vendor.MethodConfigure, nil); code(err) != "configured_twice" {
		t.Errorf("the second Configure: %v", err)
	}
	info, err := Call[vendor.Info](ctx, inv, vendor.MethodGetInfo, nil)
	if err != nil || info.Kind != vendor.KindVendor || info.ContractMinor != vendor.ContractMinor {
		t.Errorf("GetInfo: %+v, %v", info, err)
	}
	m, err := Call[vendor.Manifest](ctx, inv, vendor.MethodResolve, vendor.ResolveRequest{Reference: "index:a", Platform: vendor.Platform{OS: "linux"}})
	if err != nil || m.Reference != "index:a@linux" {
		t.Errorf("Resolve: %+v, %v", m, err)
	}
	found, err := Call[vendor.SearchResponse](ctx, inv, vendor.MethodSearch, vendor.SearchRequest{Query: "q"})
	if diff := cmp.Diff(&vendor.SearchResponse{Results: []vendor.SearchResult{{Reference: "index:q", SizeBytes: 1 << 60}}}, found); err != nil || diff != "" {
		t.Errorf("Search: %v %s", err, diff)
	}
	files, err := Call[vendor.RefreshResponse](ctx, inv, vendor.MethodRefreshSources, vendor.RefreshRequest{Paths: []string{"p"}})
	if err != nil || len(files.Files) != 1 || files.Files[0].Path != "p" {
		t.Errorf("RefreshSources: %+v, %v", files, err)
	}
	schema, err := Call[vendor.Schema](ctx, inv, vendor.MethodGetSchema, nil)
	if err != nil || schema.Description != "one" {
		t.Errorf("GetSchema: %+v, %v", schema, err)
	}
	for _, name := range []string{vendor.MethodPlan, vendor.MethodList, "/vendor.v1.Vendor/Later", ""} {
		if _, err := inv.Invoke(ctx, name, nil); code(err) != vendor.CodeUnimplemented {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestDispatchProvisioner(t *testing.T) {
	inv := Dispatch(engines{}, nil)
	ctx := t.Context()
	if _, err := Call[vendor.Info](ctx, inv, vendor.MethodGetInfo, nil); err != nil {
		t.Error(err)
	}
	if _, err := Call[struct{}](ctx, inv, vendor.MethodConfigure, nil); err != nil {
		t.Errorf("a plugin without settings is configured with none: %v", err)
	}
	p, err := Call[vendor.Plan](ctx, inv, vendor.MethodPlan, vendor.PlanRequest{Reference: "e:1", Platform: vendor.Platform{OS: "linux"}})
	if err != nil || p.Platform != "linux" {
		t.Errorf("Plan: %+v, %v", p, err)
	}
	l, err := Call[vendor.ListResponse](ctx, inv, vendor.MethodList, nil)
	if err != nil || len(l.Choices) != 1 {
		t.Errorf("List: %+v, %v", l, err)
	}
	s, err := Call[vendor.LaunchSpec](ctx, inv, vendor.MethodLaunch, vendor.LaunchRequest{EngineDir: "/e"})
	if err != nil || s.Path != "/e" {
		t.Errorf("Launch: %+v, %v", s, err)
	}
	pin, err := Call[vendor.PinResponse](ctx, inv, vendor.MethodPin, vendor.PlanRequest{Reference: "e:1", Platform: vendor.Platform{Arch: "arm64"}})
	if err != nil || pin.Reference != "e:1@1" || pin.Platform != "arm64" {
		t.Errorf("Pin: %+v, %v", pin, err)
	}
	if _, err := inv.Invoke(ctx, vendor.MethodResolve, nil); code(err) != vendor.CodeUnimplemented {
		t.Errorf("a provisioner resolves: %v", err)
	}
}

// TestInfoIsChecked: an author learns at once that what Info says and what the type does differ.
func TestInfoIsChecked(t *testing.T) {
	for name, plugin := range map[string]any{
		"names a feature that it lacks": &index{features: append(all(), vendor.FeaturePin)},
		"lacks the name of a feature":   &index{features: all()[:1]},
		"says another kind":             otherKind{engines{}},
		"is no plugin":                  "text",
		"is nothing":                    nil,
	} {
		if _, err := Call[vendor.Info](t.Context(), Dispatch(plugin, nil), vendor.MethodGetInfo, nil); kind(err) != vendor.KindInternal {
			t.Errorf("a plugin that %s: %v", name, err)
		}
	}
}

type otherKind struct{ engines }

func (otherKind) Info() vendor.Info { return vendor.Info{Kind: vendor.KindVendor} }

func TestDispatchErrors(t *testing.T) {
	gated := &vendor.Error{Kind: vendor.KindDenied, Code: "gated", Message: "Ask for it.", RetryAfterMS: 7}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, x := range map[string]struct {
		ctx     context.Context
		resolve func(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error)
		want    error
	}{
		"an error for the user": {t.Context(), func(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
			return nil, errors.Join(errors.New("x"), gated)
		}, gated},
		"any other error": {t.Context(), func(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
			return nil, errors.New("broken")
		}, &vendor.Error{Kind: vendor.KindInternal, Code: "plugin_failed", Message: "broken"}},
		"nothing": {t.Context(), func(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
			return nil, nil
		}, &vendor.Error{Kind: vendor.KindInternal, Code: "bad_reply", Message: "The plugin answered Resolve with neither a result nor an error."}},
		"a panic": {t.Context(), func(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
			panic("no such luck")
		}, &vendor.Error{Kind: vendor.KindInternal, Code: "plugin_panic", Message: "The plugin panicked while it answered Resolve: no such luck."}},
		"a panic of the runtime": {t.Context(), func(_ context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
			return &vendor.Manifest{Reference: req.Platform.Devices[3]}, nil
		}, &vendor.Error{Kind: vendor.KindInternal, Code: "plugin_panic", Message: "The plugin panicked while it answered Resolve: runtime error: index out of range [3] with length 0."}},
		"a call that was ended": {ended, func(ctx context.Context, _ vendor.ResolveRequest) (*vendor.Manifest, error) {
			return nil, ctx.Err()
		}, context.Canceled},
	} {
		host := &fakeHost{}
		inv := Dispatch(&index{resolve: x.resolve}, host)
		if _, err := inv.Invoke(t.Context(), vendor.MethodConfigure, []byte("{}")); err != nil {
			t.Fatal(err)
		}
		_, err := inv.Invoke(x.ctx, vendor.MethodResolve, []byte(`{"later":1}`))
		if want, ok := x.want.(*vendor.Error); ok {
			got, _ := errors.AsType[*vendor.Error](err)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		} else if !errors.Is(err, x.want) {
			t.Errorf("%s: %v", name, err)
		}
		if panicked := strings.Contains(name, "panic"); panicked != strings.Contains(host.logged, "dispatch_test.go") {
			t.Errorf("%s: the log has %q", name, host.logged)
		}
	}
	inv := Dispatch(engines{}, nil)
	if _, err := inv.Invoke(t.Context(), vendor.MethodPlan, []byte("{")); code(err) != "bad_request" {
		t.Errorf("a request that is no JSON: %v", err)
	}
}

func TestHostBothEnds(t *testing.T) {
	fake := &fakeHost{}
	host := HostClient(HostDispatch(fake))
	ctx := t.Context()
	resp, err := host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: "https://a.example/", Body: []byte{0, 255}})
	if diff := cmp.Diff(&vendor.HTTPResponse{Status: 200, Body: []byte{0, 255}, URL: "https://a.example/"}, resp); err != nil || diff != "" {
		t.Errorf("HTTP: %v %s", err, diff)
	}
	if _, err := host.HTTP(ctx, vendor.HTTPRequest{}); code(err) != "not_granted" {
		t.Errorf("HTTP of what is not granted: %v", err)
	}
	if err := host.Set(ctx, "k", []byte("v"), 1<<40); err != nil {
		t.Error(err)
	}
	if v, err := host.Get(ctx, "k"); err != nil || string(v) != "v" {
		t.Errorf("Get: %q, %v", v, err)
	}
	if v, err := host.Get(ctx, "none"); err != nil || v != nil {
		t.Errorf("Get of nothing: %q, %v", v, err)
	}
	host.Log("warn", "it rains", "where", "here")
	if fake.logged != "warn it rains where here" {
		t.Errorf("logged %q", fake.logged)
	}
	if _, err := HostDispatch(fake).Invoke(ctx, vendor.MethodGetInfo, nil); code(err) != vendor.CodeUnimplemented {
		t.Errorf("a host has no GetInfo: %v", err)
	}
}

func TestCallReads(t *testing.T) {
	garbage := InvokerFunc(func(context.Context, string, []byte) ([]byte, error) { return []byte("garbage"), nil })
	if _, err := Call[vendor.Info](t.Context(), garbage, vendor.MethodGetInfo, nil); code(err) != "bad_reply" {
		t.Errorf("an answer that is no JSON: %v", err)
	}
}

type fakeHost struct {
	kept   map[string][]byte
	logged string
}

func (h *fakeHost) HTTP(_ context.Context, req vendor.HTTPRequest) (*vendor.HTTPResponse, error) {
	if req.URL == "" {
		return nil, &vendor.Error{Kind: vendor.KindDenied, Code: "not_granted", Message: "No."}
	}
	return &vendor.HTTPResponse{Status: 200, Body: req.Body, URL: req.URL}, nil
}
func (h *fakeHost) Get(_ context.Context, key string) ([]byte, error) { return h.kept[key], nil }
func (h *fakeHost) Set(_ context.Context, key string, value []byte, _ int64) error {
	h.kept = map[string][]byte{key: value}
	return nil
}
func (h *fakeHost) Log(level, message string, keysAndValues ...string) {
	h.logged = strings.Join(append([]string{level, message}, keysAndValues...), " ")
}

func code(err error) string {
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e.Code
	}
	return ""
}

func kind(err error) vendor.Kind {
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e.Kind
	}
	return ""
}
