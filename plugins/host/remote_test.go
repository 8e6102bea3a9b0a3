package host

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// whole is a vendor and a provisioner with everything; what it says of itself is as the test wants.
type whole struct{ info vendor.Info }

// TestBareReferences: a plugin that says so is asked for ORG/REPO, another one is not.
func TestBareReferences(t *testing.T) {
	with := Vendor(nil, vendor.Info{Schemes: []string{"x"}, Features: []string{vendor.FeatureBare}})
	without := Vendor(nil, vendor.Info{Schemes: []string{"x"}})
	for ref, want := range map[string][2]bool{
		"x:a/b": {true, true}, "org/repo": {true, false}, "org/repo:Q4": {true, false}, "org/repo@v1": {true, false}, "repo": {}, "y:org/repo": {}, "a/b/c": {}, "/org/repo": {},
		"../repo": {}, "org/-repo": {}, "https://a/b": {}, "./m.gguf": {},
	} {
		if got := [2]bool{with.Supports(ref), without.Supports(ref)}; got != want {
			t.Errorf("%s: %v, want %v", ref, got, want)
		}
	}
}

func (w whole) Info() vendor.Info        { return w.info }
func (w whole) Supports(ref string) bool { return true }

type wholeVendor struct{ whole }

func (wholeVendor) Resolve(_ context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	if req.Reference == "a:none" {
		return nil, &vendor.Error{Kind: vendor.KindNotFound, Code: "none", Message: "No.", Candidates: []string{"a:b"}}
	}
	return &vendor.Manifest{Reference: req.Reference, Files: []vendor.File{{Path: "f", Size: 1 << 60}}}, nil
}
func (wholeVendor) Search(_ context.Context, req vendor.SearchRequest) ([]vendor.SearchResult, error) {
	return []vendor.SearchResult{{Reference: req.Query}}, nil
}
func (wholeVendor) RefreshSources(_ context.Context, req vendor.RefreshRequest) ([]vendor.File, error) {
	return []vendor.File{{Path: req.Paths[0]}}, nil
}

type wholeProvisioner struct{ whole }

func (wholeProvisioner) Plan(_ context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	return &vendor.Plan{Reference: req.Reference, Steps: []vendor.Step{{Expect: &vendor.ExpectStep{Path: "p"}}}}, nil
}
func (wholeProvisioner) List(_ context.Context, req vendor.ListRequest) ([]vendor.EngineChoice, error) {
	return []vendor.EngineChoice{{Reference: req.Platform.OS}}, nil
}
func (wholeProvisioner) Launch(_ context.Context, req vendor.LaunchRequest) (*vendor.LaunchSpec, error) {
	return &vendor.LaunchSpec{Path: req.Model}, nil
}
func (wholeProvisioner) Pin(ref string, p vendor.Platform) (string, string, error) {
	if ref == "" {
		return "", "", &vendor.Error{Kind: vendor.KindInvalid, Code: "empty", Message: "No."}
	}
	return ref + "@1", p.Arch, nil
}

func TestVendorBehindAnInvoker(t *testing.T) {
	features := []string{vendor.FeatureSearch, vendor.FeatureRefresh}
	on := sdk.Dispatch(wholeVendor{whole{vendor.Info{Name: "v", Schemes: []string{"a"}, Features: features}}}, nil)
	info, err := Info(t.Context(), on)
	if err != nil {
		t.Fatal(err)
	}
	v := Vendor(on, info)
	if diff := cmp.Diff(info, v.Info()); diff != "" {
		t.Error(diff)
	}
	for ref, want := range map[string]bool{"a:b": true, "b:a": false, "a": false, "": false} {
		if v.Supports(ref) != want {
			t.Errorf("Supports(%q) is %t", ref, !want)
		}
	}
	m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: "a:b"})
	if diff := cmp.Diff(&vendor.Manifest{Reference: "a:b", Files: []vendor.File{{Path: "f", Size: 1 << 60}}}, m); err != nil || diff != "" {
		t.Errorf("Resolve: %v %s", err, diff)
	}
	_, err = v.Resolve(t.Context(), vendor.ResolveRequest{Reference: "a:none"})
	if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != "none" || len(e.Candidates) != 1 {
		t.Errorf("an error: %v", err)
	}
	found, err := v.(vendor.Searcher).Search(t.Context(), vendor.SearchRequest{Query: "q"})
	if err != nil || len(found) != 1 || found[0].Reference != "q" {
		t.Errorf("Search: %+v, %v", found, err)
	}
	files, err := v.(vendor.Refresher).RefreshSources(t.Context(), vendor.RefreshRequest{Paths: []string{"p"}})
	if err != nil || len(files) != 1 || files[0].Path != "p" {
		t.Errorf("RefreshSources: %+v, %v", files, err)
	}
	if s, err := Schema(t.Context(), on); err != nil || len(s.Attributes) != 0 {
		t.Errorf("Schema: %+v, %v", s, err)
	}
	if err := Configure(t.Context(), on, "{}"); err != nil {
		t.Error(err)
	}
}

func TestProvisionerBehindAnInvoker(t *testing.T) {
	features := []string{vendor.FeatureList, vendor.FeatureLaunch, vendor.FeaturePin}
	on := sdk.Dispatch(wholeProvisioner{whole{vendor.Info{Name: "p", Schemes: []string{"e"}, Features: features}}}, nil)
	info, err := Info(t.Context(), on)
	if err != nil {
		t.Fatal(err)
	}
	p := Provisioner(on, info)
	plan, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: "e:1"})
	if err != nil || plan.Steps[0].Expect.Path != "p" || !p.Supports("e:1") {
		t.Errorf("Plan: %+v, %v", plan, err)
	}
	list, err := p.(vendor.Lister).List(t.Context(), vendor.ListRequest{Platform: vendor.Platform{OS: "linux"}})
	if err != nil || len(list) != 1 || list[0].Reference != "linux" {
		t.Errorf("List: %+v, %v", list, err)
	}
	spec, err := p.(vendor.Launcher).Launch(t.Context(), vendor.LaunchRequest{Model: "/m"})
	if err != nil || spec.Path != "/m" {
		t.Errorf("Launch: %+v, %v", spec, err)
	}
	ref, platform, err := p.(vendor.Pinner).Pin("e:1", vendor.Platform{Arch: "arm64"})
	if err != nil || ref != "e:1@1" || platform != "arm64" {
		t.Errorf("Pin: %s, %s, %v", ref, platform, err)
	}
	if _, _, err := p.(vendor.Pinner).Pin("", vendor.Platform{}); err == nil {
		t.Error("an error of Pin is lost")
	}
}

// TestFeaturesAreInterfaces: a plugin has the optional interfaces that its info names, and no others.
func TestFeaturesAreInterfaces(t *testing.T) {
	subsets := func(all ...string) (sets [][]string) {
		for bits := range 1 << len(all) {
			var set []string
			for i, f := range all {
				if bits>>i&1 == 1 {
					set = append(set, f)
				}
			}
			sets = append(sets, set)
		}
		return sets
	}
	for _, features := range subsets(vendor.FeatureSearch, vendor.FeatureRefresh) {
		v := Vendor(nil, vendor.Info{Features: features})
		var got []string
		if _, ok := v.(vendor.Searcher); ok {
			got = append(got, vendor.FeatureSearch)
		}
		if _, ok := v.(vendor.Refresher); ok {
			got = append(got, vendor.FeatureRefresh)
		}
		if diff := cmp.Diff(features, got); diff != "" {
			t.Error(diff)
		}
	}
	for _, features := range subsets(vendor.FeatureList, vendor.FeatureLaunch, vendor.FeaturePin) {
		p := Provisioner(nil, vendor.Info{Features: features})
		var got []string
		if _, ok := p.(vendor.Lister); ok {
			got = append(got, vendor.FeatureList)
		}
		if _, ok := p.(vendor.Launcher); ok {
			got = append(got, vendor.FeatureLaunch)
		}
		if _, ok := p.(vendor.Pinner); ok {
			got = append(got, vendor.FeaturePin)
		}
		if diff := cmp.Diff(features, got); diff != "" {
			t.Error(diff)
		}
	}
}

// TestBadInfo: what a plugin says about itself is foreign.
func TestBadInfo(t *testing.T) {
	good := vendor.Info{Name: "p", Kind: vendor.KindVendor, Schemes: []string{"s"}}
	for name, change := range map[string]func(*vendor.Info){
		"no name":        func(i *vendor.Info) { i.Name = "" },
		"a path as name": func(i *vendor.Info) { i.Name = "../p" },
		"another kind":   func(i *vendor.Info) { i.Kind = "worker" },
		"no scheme":      func(i *vendor.Info) { i.Schemes = nil },
		"bad scheme":     func(i *vendor.Info) { i.Schemes = []string{"s:"} },
		"many schemes":   func(i *vendor.Info) { i.Schemes = make([]string, 17) },
	} {
		info := good
		change(&info)
		raw, err := json.Marshal(info)
		if err != nil {
			t.Fatal(err)
		}
		on := sdk.InvokerFunc(func(context.Context, string, []byte) ([]byte, error) { return raw, nil })
		if _, err := Info(t.Context(), on); codeOf(err) != CodeBadPlugin {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBounds: whatever the caller has time for, a method of a plugin has its own bound.
func TestBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		on := sdk.InvokerFunc(func(ctx context.Context, _ string, _ []byte) ([]byte, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		})
		features := []string{vendor.FeaturePin}
		for want, f := range map[time.Duration]func() error{
			5 * time.Second: func() error { _, err := Info(t.Context(), on); return err },
			30 * time.Second: func() error {
				_, err := Vendor(on, vendor.Info{}).Resolve(t.Context(), vendor.ResolveRequest{})
				return err
			},
			10 * time.Minute: func() error {
				_, err := Provisioner(on, vendor.Info{Features: features}).Plan(t.Context(), vendor.PlanRequest{})
				return err
			},
		} {
			begin := time.Now()
			if err := f(); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != want {
				t.Errorf("%v after %v, not %v", err, time.Since(begin), want)
			}
		}
	})
}
