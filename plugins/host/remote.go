package host

import (
	"context"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// How long the methods of a plugin may take.
const (
	pureTime    = 5 * time.Second // GetInfo and GetSchema, of an instance that runs
	resolveTime = 30 * time.Second
	planTime    = 10 * time.Minute
)

// CodeBadPlugin is the code of the error for a plugin that describes itself in a way that the contract does not allow.
const CodeBadPlugin = "bad_plugin"

// Info asks the plugin behind on what it is, and checks the answer.
func Info(ctx context.Context, on vendor.Invoker) (vendor.Info, error) {
	info, err := call[vendor.Info](ctx, pureTime, on, vendor.MethodGetInfo, nil)
	if err != nil {
		return vendor.Info{}, err
	}
	bad := func(what string) (vendor.Info, error) {
		return vendor.Info{}, fault.New(fault.Invalid, CodeBadPlugin, "The plugin %.100q cannot be used: %s; tell its author.", info.Name, what)
	}
	name, scheme := regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`), regexp.MustCompile(`^[a-z][a-z0-9+.-]{0,31}$`)
	switch {
	case !name.MatchString(info.Name):
		return bad("its name is not made of lower-case letters, digits and dashes")
	case info.Kind != vendor.KindVendor && info.Kind != vendor.KindProvisioner:
		return bad("it is neither a vendor nor a provisioner")
	case len(info.Schemes) == 0 || len(info.Schemes) > 16 || slices.ContainsFunc(info.Schemes, func(s string) bool { return !scheme.MatchString(s) }):
		return bad("its schemes are not 1 to 16 names such as \"hf\"")
	}
	return *info, nil
}

// Schema asks the plugin behind on for its settings.
func Schema(ctx context.Context, on vendor.Invoker) (vendor.Schema, error) {
	s, err := call[vendor.Schema](ctx, pureTime, on, vendor.MethodGetSchema, nil)
	if err != nil {
		return vendor.Schema{}, err
	}
	return *s, nil
}

// Configure gives the plugin behind on its settings, one JSON object.
func Configure(ctx context.Context, on vendor.Invoker, values string) error {
	_, err := call[struct{}](ctx, resolveTime, on, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: values})
	return err
}

// Vendor is the vendor behind on, whose Info is info. It has the optional interfaces of the features that info names.
func Vendor(on vendor.Invoker, info vendor.Info) vendor.Vendor {
	r := remote{on, info}
	search, refresh := slices.Contains(info.Features, vendor.FeatureSearch), slices.Contains(info.Features, vendor.FeatureRefresh)
	switch {
	case search && refresh:
		return struct {
			resolver
			searcher
			refresher
		}{resolver{r}, searcher{r}, refresher{r}}
	case search:
		return struct {
			resolver
			searcher
		}{resolver{r}, searcher{r}}
	case refresh:
		return struct {
			resolver
			refresher
		}{resolver{r}, refresher{r}}
	}
	return resolver{r}
}

// Provisioner is the provisioner behind on, whose Info is info. It has the optional interfaces of the features that info names.
func Provisioner(on vendor.Invoker, info vendor.Info) vendor.Provisioner {
	r := remote{on, info}
	p, l, s, n := planner{r}, lister{r}, launcher{r}, pinner{r}
	has := func(feature string) bool { return slices.Contains(info.Features, feature) }
	switch list, launch, pin := has(vendor.FeatureList), has(vendor.FeatureLaunch), has(vendor.FeaturePin); {
	case list && launch && pin:
		return struct {
			planner
			lister
			launcher
			pinner
		}{p, l, s, n}
	case list && launch:
		return struct {
			planner
			lister
			launcher
		}{p, l, s}
	case list && pin:
		return struct {
			planner
			lister
			pinner
		}{p, l, n}
	case launch && pin:
		return struct {
			planner
			launcher
			pinner
		}{p, s, n}
	case list:
		return struct {
			planner
			lister
		}{p, l}
	case launch:
		return struct {
			planner
			launcher
		}{p, s}
	case pin:
		return struct {
			planner
			pinner
		}{p, n}
	}
	return p
}

// call calls a method that may take as long as bound.
func call[Reply any](ctx context.Context, bound time.Duration, on vendor.Invoker, method string, req any) (*Reply, error) {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	return sdk.Call[Reply](ctx, on, method, req)
}

// remote is what all of these have: the schemes decide what is supported, without I/O.
type remote struct {
	on   vendor.Invoker
	info vendor.Info
}

func (r remote) Info() vendor.Info { return r.info }

// FileClient is with what the core fetches the files that the plugin names; nil: with the one that it has.
func (r remote) FileClient() *http.Client {
	if c, ok := r.on.(*checked); ok {
		return c.files
	}
	return nil
}

func (r remote) Supports(ref string) bool {
	scheme, _, found := strings.Cut(ref, ":")
	if found && slices.Contains(r.info.Schemes, scheme) {
		return true
	}
	return slices.Contains(r.info.Features, vendor.FeatureBare) && bare(ref)
}

// bare reports whether ref has the form ORG/REPO, with what may follow that, and no scheme.
func bare(ref string) bool {
	name := regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}([@:].*)?$`)
	return len(ref) <= 2048 && name.MatchString(ref)
}

// The types below have one method each, so that a value has exactly the methods of its plugin.
type (
	resolver  struct{ remote }
	planner   struct{ remote }
	searcher  struct{ r remote }
	refresher struct{ r remote }
	lister    struct{ r remote }
	launcher  struct{ r remote }
	pinner    struct{ r remote }
)

func (v resolver) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	return ask[vendor.Manifest](ctx, resolveTime, v.remote, vendor.MethodResolve, req)
}

func (v searcher) Search(ctx context.Context, req vendor.SearchRequest) ([]vendor.SearchResult, error) {
	reply, err := ask[vendor.SearchResponse](ctx, resolveTime, v.r, vendor.MethodSearch, req)
	if err != nil {
		return nil, err
	}
	return reply.Results, nil
}

func (v refresher) RefreshSources(ctx context.Context, req vendor.RefreshRequest) ([]vendor.File, error) {
	reply, err := ask[vendor.RefreshResponse](ctx, resolveTime, v.r, vendor.MethodRefreshSources, req)
	if err != nil {
		return nil, err
	}
	return reply.Files, nil
}

func (p planner) Plan(ctx context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	return ask[vendor.Plan](ctx, planTime, p.remote, vendor.MethodPlan, req)
}

func (p lister) List(ctx context.Context, req vendor.ListRequest) ([]vendor.EngineChoice, error) {
	reply, err := ask[vendor.ListResponse](ctx, resolveTime, p.r, vendor.MethodList, req)
	if err != nil {
		return nil, err
	}
	return reply.Choices, nil
}

func (p launcher) Launch(ctx context.Context, req vendor.LaunchRequest) (*vendor.LaunchSpec, error) {
	return ask[vendor.LaunchSpec](ctx, resolveTime, p.r, vendor.MethodLaunch, req)
}

func (p pinner) Pin(ref string, platform vendor.Platform) (reference, pinned string, err error) {
	reply, err := ask[vendor.PinResponse](context.Background(), resolveTime, p.r, vendor.MethodPin, vendor.PlanRequest{Reference: ref, Platform: platform})
	if err != nil {
		return "", "", err
	}
	return reply.Reference, reply.Platform, nil
}
