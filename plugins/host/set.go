package host

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// CompileTime is how long the process of a WASM plugin may take to start: the first time it compiles the module.
const CompileTime = time.Minute

// SetOptions say which plugins to use, and with what.
type SetOptions struct {
	Home        string
	Plugins     []config.Plugin
	On          func(vendor string) bool // as in CheckSchemes; nil: all are
	Executable  string                   // this program, which becomes the process of a WASM plugin
	ExecChild   []string                 // launcher of programs, as in process.Spec
	Sandbox     sandbox.Support          // what the kernel can hold plugins to
	Credentials func(name, host string) (secret.Secret, error)
	Log         *slog.Logger
}

// Set is the plugins of a configuration. None of them runs before it is needed.
type Set struct {
	Vendors      []vendor.Vendor
	Provisioners []vendor.Provisioner
	Problems     []error           // of plugins that cannot be used; each names the plugin and says what to do
	LeftOut      map[string]string // by scheme: one sentence about the plugin that would answer for it and cannot be used

	running []*Supervisor
	release func()              // the files on the shelf
	tools   map[string][]string // by scheme: what plans of its provisioner may run
}

// Tools returns the names of the programs that the plans of a provisioner of this set may run; none for another one.
func (s *Set) Tools(p vendor.Provisioner) []string {
	for _, scheme := range p.Info().Schemes {
		return s.tools[scheme]
	}
	return nil
}

// OpenSet makes the plugins of a configuration usable. Of one that is not as it was installed, or whose settings are wrong, it says so in
// Problems, and leaves it out.
func OpenSet(o SetOptions) (*Set, error) {
	s := &Set{LeftOut: map[string]string{}, tools: map[string][]string{}, release: func() {}}
	if !slices.ContainsFunc(o.Plugins, func(p config.Plugin) bool { return p.Enabled }) {
		return s, nil
	}
	shelf, err := OpenShelf(o.Home)
	if err != nil {
		return nil, err
	}
	if err := shelf.Sweep(); err != nil {
		o.Log.Warn("old plugins stay", "error", err)
	}
	if s.release, err = shelf.Use(); err != nil {
		return nil, err
	}
	lock, err := config.ReadLock(o.Home)
	if err != nil {
		s.release()
		return nil, err
	}
	taken := map[string]string{}
	for _, p := range o.Plugins {
		if !p.Enabled {
			continue
		}
		if err := s.add(o, shelf, lock, p, taken); err != nil {
			s.Problems = append(s.Problems, err)
			s.leaveOut(shelf, lock, p, err)
		}
	}
	return s, nil
}

// leaveOut notes for which references a plugin is missing: those of the schemes that it had when it was installed, and of its name.
func (s *Set) leaveOut(shelf *Shelf, lock *config.Lock, p config.Plugin, why error) {
	schemes := []string{p.Name}
	if l, ok := lock.Find(p.Name); ok {
		if k, ok := For(l, runtime.GOOS+"_"+runtime.GOARCH); ok {
			if m, err := shelf.Manifest(k.SHA256); err == nil {
				schemes = append(schemes, m.Info.Schemes...)
			}
		}
	}
	reason := fault.As(why).Message
	if diags, ok := errors.AsType[config.Diagnostics](why); ok && len(diags) > 0 {
		reason = diags[0].Detail
	}
	for _, scheme := range schemes {
		s.LeftOut[scheme] = fmt.Sprintf("The plugin %s, which answers for %q, is left out: %s See `apiary plugin doctor %s`.", p.Name, scheme, strings.TrimSuffix(reason, ".")+".", p.Name)
	}
}

func (s *Set) add(o SetOptions, shelf *Shelf, lock *config.Lock, p config.Plugin, taken map[string]string) error {
	digest, err := Pinned(p, lock, runtime.GOOS+"_"+runtime.GOARCH)
	if err != nil {
		return err
	}
	if err := shelf.Verify(digest); err != nil {
		return fmt.Errorf("plugin %s: %w", p.Name, err)
	}
	m, err := shelf.Manifest(digest)
	if err != nil {
		return fmt.Errorf("plugin %s: %w", p.Name, err)
	}
	if err := CheckManifest(m); err != nil {
		return fmt.Errorf("plugin %s: %w", p.Name, err)
	}
	on := o.On
	if on == nil {
		on = func(string) bool { return true }
	}
	if err := CheckSchemes(m.Info, on); err != nil {
		return err
	}
	values, err := p.Values(m.Schema)
	if err != nil {
		return err
	}
	for _, scheme := range m.Info.Schemes {
		if other, ok := taken[scheme]; ok {
			return fault.New(fault.Conflict, "scheme_taken", "The plugins %s and %s both answer for %q; switch one of them off.", other, p.Name, scheme)
		}
	}
	transport, _, err := Nature(shelf.Path(digest))
	if err != nil {
		return fmt.Errorf("plugin %s: %w", p.Name, err)
	}
	services := NewServices(ServicesOptions{
		Name: p.Name, Grants: Grants{HTTP: p.Grants.HTTP, Private: p.Grants.Private, Credentials: p.Grants.Credentials},
		Credentials: o.Credentials, Store: OpenStore(shelf.StatePath(p.Name)), Log: o.Log,
	})
	spec := process.Spec{
		Name: p.Name, Path: shelf.Path(digest), SHA256: digest, Store: shelf.Programs(), TLS: cmp.Or(p.TLS, m.TLS), ExecChild: o.ExecChild,
		Sandbox: o.Sandbox, Home: o.Home, Host: sdk.HostDispatch(services), Log: o.Log,
	}
	if transport == config.TransportWASM {
		spec.Path, spec.SHA256, spec.TLS = o.Executable, "", ""
		spec.Read, spec.Write = []string{shelf.Path(digest)}, []string{shelf.CacheDir()}
		spec.StartTimeout = CompileTime
		spec.Args = ModuleArgs(shelf.Path(digest), digest, shelf.CacheDir(), p.Grants.Memory)
	}
	running := NewSupervisor(p.Name, 0, o.Log, func(ctx context.Context) (Instance, error) { return start(ctx, spec, m.Info, string(values)) })
	s.running = append(s.running, running)
	for _, scheme := range m.Info.Schemes {
		taken[scheme] = p.Name
		s.tools[scheme] = p.Grants.Run
	}
	answers := &checked{running, p, services.Client()}
	if m.Info.Kind == vendor.KindVendor {
		s.Vendors = append(s.Vendors, Vendor(answers, m.Info))
	} else {
		s.Provisioners = append(s.Provisioners, Provisioner(answers, m.Info))
	}
	return nil
}

// ModuleArgs are the arguments with which Apiary's own program becomes the process of the module at path; cache is a private folder.
func ModuleArgs(path, digest, cache string, memory contract.Bytes) []string {
	return []string{"plugin-host", "--wasm", path, "--sha256", digest, "--cache", cache, "--memory", strconv.FormatInt(int64(memory), 10)}
}

// start runs a plugin, sees that it is the one that was installed, and gives it its settings.
func start(ctx context.Context, spec process.Spec, info vendor.Info, values string) (Instance, error) {
	p, err := process.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	got, err := Info(ctx, p)
	if err == nil && (got.Name != info.Name || got.Version != info.Version || !slices.Equal(got.Schemes, info.Schemes)) {
		err = fault.New(fault.Denied, "plugin_changed", "The plugin %s says that it is %s %s for %q, which is not what was installed; say `apiary plugin update %s`.", spec.Name, got.Name, got.Version, got.Schemes, spec.Name)
	}
	if err == nil {
		err = Configure(ctx, p, values)
	}
	if err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// Question says which program to ask what it is.
type Question struct {
	Path      string
	SHA256    string   // "": whatever it is
	Store     string   // as in process.Spec
	TLS       string   // as in process.Spec
	ExecChild []string // as in process.Spec
	Home      string   // as in process.Spec
	Log       *slog.Logger
}

// Ask runs a program for as long as it takes to say what it is. It gets nothing from the host.
func Ask(ctx context.Context, q Question) (*vendor.StaticManifest, error) {
	p, err := process.Start(ctx, process.Spec{Name: q.Path, Path: q.Path, SHA256: q.SHA256, Store: q.Store, TLS: q.TLS, ExecChild: q.ExecChild, Sandbox: sandbox.Kernel(), Home: q.Home, Host: Nothing(), Log: q.Log})
	if err != nil {
		return nil, err
	}
	defer func() { _ = p.Close() }()
	return Describe(ctx, p)
}

// Nothing is the host of a plugin that is only asked what it is.
func Nothing() vendor.Invoker {
	return sdk.InvokerFunc(func(context.Context, string, []byte) ([]byte, error) {
		return nil, &vendor.Error{Kind: vendor.KindDenied, Code: "not_granted", Message: "The plugin is only asked what it is."}
	})
}

// Describe asks a plugin that runs what it is.
func Describe(ctx context.Context, inv vendor.Invoker) (*vendor.StaticManifest, error) {
	info, err := Info(ctx, inv)
	if err != nil {
		return nil, err
	}
	schema, err := Schema(ctx, inv)
	if err != nil {
		return nil, err
	}
	contract := vendor.ContractVendor
	if info.Kind == vendor.KindProvisioner {
		contract = vendor.ContractProvisioner
	}
	return &vendor.StaticManifest{Contract: contract, Info: info, Schema: schema}, nil
}

// Close ends all plugins.
func (s *Set) Close() {
	for _, r := range s.running {
		r.Close()
	}
	s.release()
}

// checked looks at what a plugin answers before the core acts on it.
type checked struct {
	vendor.Invoker
	plugin config.Plugin
	files  *http.Client // which refuses what they redirect to, where that is not granted
}

// Invoke implements vendor.Invoker.
func (c *checked) Invoke(ctx context.Context, method string, request []byte) ([]byte, error) {
	reply, err := c.Invoker.Invoke(ctx, method, request)
	if err == nil {
		err = CheckAnswer(c.plugin.Name, c.plugin.Grants, method, reply)
	}
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// CheckAnswer holds what a plugin answered against what it was granted: files may come only from where the plugin may go itself, with
// the credentials that it may use, and steps run only the tools that it may run. The error is an *Error of KindDenied.
func CheckAnswer(name string, g config.Grants, method string, reply []byte) error {
	var files []vendor.File
	var steps []vendor.Step
	var err error
	switch method {
	case vendor.MethodResolve:
		files, err = filesOf(reply, func(m *vendor.Manifest) []vendor.File { return m.Files })
	case vendor.MethodRefreshSources:
		files, err = filesOf(reply, func(m *vendor.RefreshResponse) []vendor.File { return m.Files })
	case vendor.MethodPlan:
		files, err = filesOf(reply, func(m *vendor.Plan) []vendor.File {
			steps = m.Steps
			if m.InPlace != "" {
				steps = append(steps, vendor.Step{Run: &vendor.RunStep{Tool: "(a folder in place)"}})
			}
			return m.Files
		})
	}
	if err != nil {
		return err
	}
	for _, f := range files {
		for _, src := range f.Sources {
			if err := checkSource(name, g, src); err != nil {
				return err
			}
		}
	}
	for _, st := range steps {
		if st.Run != nil && !slices.Contains(g.Run, st.Run.Tool) {
			return &vendor.Error{Kind: vendor.KindDenied, Code: "tool_not_granted",
				Message: fmt.Sprintf("The plugin %s wanted to run %q, which was not granted; add it to grants.run of the plugin if it may.", name, short(st.Run.Tool))}
		}
	}
	return nil
}

// filesOf reads a reply as a T and takes the files out of it.
func filesOf[T any](reply []byte, files func(*T) []vendor.File) ([]vendor.File, error) {
	m := new(T)
	if err := json.Unmarshal(reply, m); err != nil {
		return nil, &vendor.Error{Kind: vendor.KindInternal, Code: "bad_reply", Message: "The plugin gave an answer that cannot be read."}
	}
	return files(m), nil
}

func checkSource(name string, g config.Grants, src vendor.Source) error {
	u, err := url.Parse(src.URL)
	if err != nil || u.Scheme != "https" && !(u.Scheme == "http" && Granted(g.Private, u)) || !Granted(g.HTTP, u) {
		where := "an address that is none"
		if err == nil {
			where = redacted(u)
		}
		return &vendor.Error{Kind: vendor.KindDenied, Code: CodeNotGranted,
			Message: fmt.Sprintf("The plugin %s wants a file fetched from %s, which was not granted; add the host to grants.http of the plugin if it may.", name, where)}
	}
	if src.Credential != "" && !slices.Contains(g.Credentials, src.Credential) {
		return &vendor.Error{Kind: vendor.KindDenied, Code: "credential_not_granted",
			Message: fmt.Sprintf("The plugin %s wants the credential %q used, which was not granted; add it to grants.credentials of the plugin if it may.", name, short(src.Credential))}
	}
	return nil
}
