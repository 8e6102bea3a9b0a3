package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"runtime/debug"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// handler answers one method.
type handler func(ctx context.Context, request []byte) (any, error)

// Dispatch serves plugin, a vendor.Vendor or a vendor.Provisioner with the optional interfaces that it has, by method name.
// The plugin gets host with its configuration. A method that it does not have is an *Error with CodeUnimplemented; a panic, and an error that is no
// *vendor.Error, become one of KindInternal. GetInfo fails when the features that the plugin names are not those it has.
func Dispatch(plugin any, host vendor.Host) vendor.Invoker {
	d := &dispatcher{who: "plugin", plugin: plugin, host: host}
	d.methods = map[string]handler{
		vendor.MethodGetInfo:   func(context.Context, []byte) (any, error) { return d.info() },
		vendor.MethodGetSchema: func(context.Context, []byte) (any, error) { return d.schema(), nil },
	}
	d.methods[vendor.MethodConfigure] = d.configure
	switch p := plugin.(type) {
	case vendor.Vendor:
		d.kind = vendor.KindVendor
		d.methods[vendor.MethodResolve] = method(p.Resolve)
	case vendor.Provisioner:
		d.kind = vendor.KindProvisioner
		d.methods[vendor.MethodPlan] = method(p.Plan)
	}
	d.optional()
	return d
}

type dispatcher struct {
	who        string // "plugin" or "host", for its errors
	plugin     any
	host       vendor.Host
	kind       string
	features   []string
	methods    map[string]handler
	configured atomic.Bool
}

// optional adds the methods of the interfaces that a plugin of this kind may have.
func (d *dispatcher) optional() {
	add := func(feature, name string, h handler) {
		d.features = append(d.features, feature)
		d.methods[name] = h
	}
	if d.kind == vendor.KindVendor {
		if p, ok := d.plugin.(vendor.Searcher); ok {
			add(vendor.FeatureSearch, vendor.MethodSearch, method(func(ctx context.Context, req vendor.SearchRequest) (*vendor.SearchResponse, error) {
				results, err := p.Search(ctx, req)
				return &vendor.SearchResponse{Results: results}, err
			}))
		}
		if p, ok := d.plugin.(vendor.Refresher); ok {
			add(vendor.FeatureRefresh, vendor.MethodRefreshSources, method(func(ctx context.Context, req vendor.RefreshRequest) (*vendor.RefreshResponse, error) {
				files, err := p.RefreshSources(ctx, req)
				return &vendor.RefreshResponse{Files: files}, err
			}))
		}
	}
	if d.kind == vendor.KindProvisioner {
		if p, ok := d.plugin.(vendor.Lister); ok {
			add(vendor.FeatureList, vendor.MethodList, method(func(ctx context.Context, req vendor.ListRequest) (*vendor.ListResponse, error) {
				choices, err := p.List(ctx, req)
				return &vendor.ListResponse{Choices: choices}, err
			}))
		}
		if p, ok := d.plugin.(vendor.Launcher); ok {
			add(vendor.FeatureLaunch, vendor.MethodLaunch, method(p.Launch))
		}
		if p, ok := d.plugin.(vendor.Pinner); ok {
			add(vendor.FeaturePin, vendor.MethodPin, method(func(_ context.Context, req vendor.PlanRequest) (*vendor.PinResponse, error) {
				reference, platform, err := p.Pin(req.Reference, req.Platform)
				return &vendor.PinResponse{Reference: reference, Platform: platform}, err
			}))
		}
	}
}

// Invoke implements vendor.Invoker.
func (d *dispatcher) Invoke(ctx context.Context, name string, request []byte) (reply []byte, err error) {
	h, ok := d.methods[name]
	if !ok {
		return nil, unimplemented(name)
	}
	defer func() {
		if v := recover(); v != nil {
			text := panicText(v)
			if d.host != nil {
				d.host.Log("error", "the plugin panicked", "method", name, "panic", text, "stack", string(debug.Stack()))
			}
			reply, err = nil, internal(d.who+"_panic", "The "+d.who+" panicked while it answered "+short(name)+": "+text+".")
		}
	}()
	switch name {
	case vendor.MethodGetInfo, vendor.MethodGetSchema, vendor.MethodConfigure:
	default:
		if _, ok := d.plugin.(vendor.Configurable); ok && !d.configured.Load() {
			return nil, internal("not_configured", "The plugin was asked for "+short(name)+" before it was configured.")
		}
	}
	answer, err := h(ctx, request)
	if err != nil {
		return nil, d.userError(ctx, err)
	}
	if reply, err = json.Marshal(answer); err != nil {
		return nil, internal("bad_reply", "The answer of "+short(name)+" cannot be written: "+err.Error()+".")
	}
	if string(reply) == "null" {
		return nil, internal("bad_reply", "The "+d.who+" answered "+short(name)+" with neither a result nor an error.")
	}
	return reply, nil
}

func (d *dispatcher) info() (*vendor.Info, error) {
	p, ok := d.plugin.(interface{ Info() vendor.Info })
	if !ok || d.kind == "" {
		return nil, internal("bad_plugin", "What was registered is neither a Vendor nor a Provisioner.")
	}
	info := p.Info()
	if info.Kind == "" {
		info.Kind = d.kind
	}
	if info.Kind != d.kind {
		return nil, internal("bad_info", "Info of the plugin "+info.Name+" says that it is a "+info.Kind+", and its methods are those of a "+d.kind+".")
	}
	for _, f := range info.Features {
		if f == vendor.FeatureBare && d.kind == vendor.KindVendor {
			continue
		}
		if !slices.Contains(d.features, f) {
			return nil, internal("bad_info", "Info of the plugin "+info.Name+" names the feature "+f+", and it lacks the method of that feature.")
		}
	}
	for _, f := range d.features {
		if !slices.Contains(info.Features, f) {
			return nil, internal("bad_info", "The plugin "+info.Name+" has the method of the feature "+f+", which its Info does not name.")
		}
	}
	info.ContractMinor = vendor.ContractMinor
	return &info, nil
}

func (d *dispatcher) schema() *vendor.Schema {
	schema := vendor.Schema{}
	if p, ok := d.plugin.(vendor.Configurable); ok {
		schema = p.Schema()
	}
	return &schema
}

func (d *dispatcher) configure(ctx context.Context, request []byte) (any, error) {
	p, ok := d.plugin.(vendor.Configurable)
	if !ok {
		return struct{}{}, nil
	}
	var req vendor.ConfigureRequest
	if err := json.Unmarshal(request, &req); err != nil {
		return nil, internal("bad_request", "The request of Configure cannot be read: "+err.Error()+".")
	}
	if req.ConfigJSON == "" {
		req.ConfigJSON = "{}"
	}
	if d.configured.Load() {
		return nil, internal("configured_twice", "The plugin was configured already.")
	}
	if err := p.Configure(ctx, vendor.Configuration{Values: json.RawMessage(req.ConfigJSON), Host: d.host}); err != nil {
		return nil, err
	}
	d.configured.Store(true)
	return struct{}{}, nil
}

// method makes a handler of a function of the contract.
func method[Request, Reply any](f func(context.Context, Request) (*Reply, error)) handler {
	return func(ctx context.Context, raw []byte) (any, error) {
		var req Request
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &req); err != nil {
				return nil, internal("bad_request", "The request cannot be read: "+err.Error()+".")
			}
		}
		return f(ctx, req)
	}
}

// userError is what the other side sees of err. The end of ctx stays what it is.
func (d *dispatcher) userError(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e
	}
	if ended := ctx.Err(); ended != nil && errors.Is(err, ended) {
		return err
	}
	return internal(d.who+"_failed", err.Error())
}

func panicText(v any) string {
	switch v := v.(type) {
	case error:
		return v.Error()
	case string:
		return v
	}
	return "a value that is no text"
}

// short is the method without its service.
func short(method string) string { return method[strings.LastIndexByte(method, '/')+1:] }
