package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"sync"

	"github.com/apiary-dev/apiary/core/artifact"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/npmrc"
	"github.com/apiary-dev/apiary/core/pip"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/tool"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/builtin"
	"github.com/apiary-dev/apiary/vendors/huggingface"
	"github.com/apiary-dev/apiary/vendors/local"
	"github.com/apiary-dev/apiary/vendors/ollama"
	"github.com/apiary-dev/apiary/vendors/pypi"
	webaddress "github.com/apiary-dev/apiary/vendors/url"
	"github.com/apiary-dev/apiary/workers/provision/github"
	"github.com/apiary-dev/apiary/workers/provision/npm"
	"github.com/apiary-dev/apiary/workers/provision/recipe"
)

// openStore opens the artifact store with the vendors and provisioners of this build that the configuration has not
// switched off.
//
// The plugins of the configuration are in the Set, which the caller closes.
func openStore(o Options, native *nativeExecutable, net network) (*artifact.Store, *pluginhost.Set, error) {
	cfg := o.Config
	log := o.Log.With("role", "hive")
	r := newReach(cfg)
	client := egress.NewClient(egress.Options{Own: r.own})
	host := func(name string) vendor.Host {
		return artifact.NewHost(artifact.HostOptions{Name: name, Credentials: r.credential, HTTP: client, Log: log})
	}
	r.registry = npmrc.New(cfg.Provisioner.NPM.Registry, npmrc.SystemEnvironment())
	if own := cfg.Provisioner.PyPI.Registry; own != "" {
		r.wheels = pip.New(own, pip.SystemEnvironment())
	}
	r.index = pip.New(cfg.Vendor(config.VendorPyPI).Registry, pip.SystemEnvironment())
	inside := builtin.New()
	built := map[string]vendor.Vendor{"builtin": inside, "local": local.New(), config.VendorHub: huggingface.New(), config.VendorOllama: ollama.New(), config.VendorURL: webaddress.New()}
	models := pypi.New()
	built[config.VendorPyPI] = &late{Vendor: models, settled: settled{plugin: models, host: host(config.VendorPyPI), find: func(ctx context.Context) (any, error) {
		registry, err := r.index.URL(ctx)
		return pypi.Settings{Registry: registry}, err
	}}}
	var vendors []vendor.Vendor
	for _, v := range cfg.Vendors {
		plugin, ok := built[v.Name]
		if !ok || !v.Enabled {
			continue
		}
		if err := configure(plugin, v, host(v.Name)); err != nil {
			return nil, nil, err
		}
		vendors = append(vendors, plugin)
	}
	plugins, err := pluginhost.OpenSet(pluginhost.SetOptions{
		Home: cfg.Home, Plugins: cfg.Plugins, On: func(vendor string) bool { return cfg.Vendor(vendor).Enabled }, Executable: o.Executable, ExecChild: []string{o.Executable, "exec-child"}, Sandbox: sandbox.Kernel(), Credentials: r.configured, Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	for _, err := range plugins.Problems {
		log.Warn("a plugin is left out", "problem", err)
	}
	recipes := recipe.New(config.ReadRecipe)
	engines, err := provisioners(r, recipes, host)
	if err != nil {
		plugins.Close()
		return nil, nil, err
	}
	tools := func(p vendor.Provisioner) []string {
		if own, ok := p.(*recipe.Provisioner); ok && own == recipes {
			return cfg.Provisioner.Recipe.Tools
		}
		return plugins.Tools(p)
	}
	store, err := artifact.Open(artifact.Options{
		Home: cfg.Home, Vendors: append(vendors, plugins.Vendors...), Provisioners: append(engines, plugins.Provisioners...),
		Openers: map[string]vendor.Opener{builtin.Scheme: inside}, Credentials: r.credential,
		LeftOut: plugins.LeftOut, Reserve: cfg.Hive.Reserve.Disk, SelfTest: native.selfTest, Tools: tools,
		Runner: tool.New([]string{o.Executable, "exec-child"}, sandbox.Kernel(), cfg.Home), HTTP: client, Dial: net.dial, Log: log,
	})
	if err != nil {
		plugins.Close()
		return nil, nil, err
	}
	return store, plugins, nil
}

// configure gives a vendor that wants some its settings.
func configure(plugin vendor.Vendor, v config.Vendor, host vendor.Host) error {
	c, ok := plugin.(vendor.Configurable)
	if !ok {
		return nil
	}
	settings := any(struct{}{})
	switch v.Name {
	case config.VendorHub:
		settings = huggingface.Settings{Endpoint: v.Endpoint, Offline: v.Offline}
	case config.VendorOllama:
		settings = ollama.Settings{Registry: v.Registry}
	}
	values, err := json.Marshal(settings)
	if err == nil {
		err = c.Configure(context.Background(), vendor.Configuration{Values: values, Host: host})
	}
	if err != nil {
		return fmt.Errorf("configure the vendor %s: %w", v.Name, err)
	}
	return nil
}

// late is the vendor of Python packages.
type late struct {
	vendor.Vendor // a *pypi.Vendor
	settled
}

// Resolve implements vendor.Vendor.
func (l *late) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	if err := l.prepare(ctx); err != nil {
		return nil, err
	}
	return l.Vendor.Resolve(ctx, req)
}

// settled gives a plugin its settings when it is first asked, because finding out what pip or npm are configured with may mean to
// run them.
type settled struct {
	plugin vendor.Configurable
	host   vendor.Host
	find   func(ctx context.Context) (settings any, err error) // quick from the second time on

	mu sync.Mutex
	// mu guards the field below. It is not held while the settings are looked for.
	ready bool
}

func (s *settled) prepare(ctx context.Context) error {
	settings, err := s.find(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ready {
		return nil
	}
	values, err := json.Marshal(settings)
	if err == nil {
		err = s.plugin.Configure(ctx, vendor.Configuration{Values: values, Host: s.host})
	}
	s.ready = err == nil
	return err
}

// reach is where the configuration lets requests to other people's servers go, and with which credentials.
type reach struct {
	mirrors    []string // base URLs
	hub        string   // base URL; "": the vendor is switched off
	hubToken   secret.Secret
	github     string // base URL of the API
	gitToken   secret.Secret
	ollama     string // base URL; "": the vendor is switched off
	registry   *npmrc.Registries
	index      *pip.Index
	wheels     *pip.Index // of engines, where it is another one; else nil
	configured func(name, host string) (secret.Secret, error)
}

func newReach(cfg *config.Config) *reach {
	r := &reach{mirrors: cfg.Hive.Mirrors, configured: cfg.CredentialLookup(config.OpenCredentials(cfg.Home))}
	if hub := cfg.Vendor(config.VendorHub); hub.Enabled {
		r.hub, r.hubToken = cmp.Or(hub.Endpoint, huggingface.DefaultEndpoint), hub.Credential
	}
	r.github, r.gitToken = cmp.Or(cfg.Provisioner.GitHub.Endpoint, github.DefaultEndpoint), cfg.Provisioner.GitHub.Credential
	if v := cfg.Vendor(config.VendorOllama); v.Enabled {
		r.ollama = cmp.Or(v.Registry, ollama.DefaultRegistry)
	}
	return r
}

// own reports whether the configuration names the origin of u: registries, hub and mirrors. What others name is checked.
func (r *reach) own(u *url.URL) bool {
	return r.registry.Own(u) || r.index.Own(u) || r.wheels != nil && r.wheels.Own(u) || config.SameOrigin(r.hub, u) || config.SameOrigin(r.github, u) || config.SameOrigin(r.ollama, u) || slices.ContainsFunc(r.mirrors, func(m string) bool { return config.SameOrigin(m, u) })
}

// credential gives the token of that name that may be sent to host: the configured one, else what the vendor's block or HF_TOKEN
// holds for the hub, else what the user's npm and pip would send to their registries.
func (r *reach) credential(name, host string) (secret.Secret, error) {
	if s, err := r.configured(name, host); s != "" || err != nil {
		return s, err
	}
	if hub, err := url.Parse(r.hub); err == nil && name == huggingface.Credential && config.SameOrigin(r.hub, &url.URL{Scheme: hub.Scheme, Host: host}) {
		return r.hubToken, nil
	}
	if name == pypi.Scheme {
		s := r.index.Credential(host)
		if s == "" && r.wheels != nil {
			s = r.wheels.Credential(host)
		}
		return s, nil
	}
	if at, err := url.Parse(r.github); err == nil && name == github.Scheme && config.SameOrigin(r.github, &url.URL{Scheme: at.Scheme, Host: host}) {
		return r.gitToken, nil
	}
	if name == npm.Scheme {
		return r.registry.Credential(host), nil
	}
	return "", nil
}
