package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"

	"github.com/apiary-dev/apiary/core/artifact"
	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/builtin"
	"github.com/apiary-dev/apiary/vendors/huggingface"
	"github.com/apiary-dev/apiary/vendors/local"
	webaddress "github.com/apiary-dev/apiary/vendors/url"
	"github.com/apiary-dev/apiary/workers/provision/npm"
	"github.com/apiary-dev/apiary/workers/provision/path"
)

// openStore opens the artifact store with the vendors and provisioners of this build that the configuration has not
// switched off.
func openStore(o Options, native *nativeExecutable) (*artifact.Store, error) {
	cfg := o.Config
	log := o.Log.With("role", "hive")
	r := newReach(cfg)
	client := egress.NewClient(egress.Options{Own: r.own})
	host := func(name string) vendor.Host {
		return artifact.NewHost(artifact.HostOptions{Name: name, Credentials: r.credential, HTTP: client, Log: log})
	}
	r.registry = npm.New(npm.Options{Registry: cfg.Provisioner.NPM.Registry, Env: npm.SystemEnvironment(), Host: host("npm")})
	inside := builtin.New()
	built := map[string]vendor.Vendor{"builtin": inside, "local": local.New(), config.VendorHub: huggingface.New(), "url": webaddress.New()}
	var vendors []vendor.Vendor
	for _, v := range cfg.Vendors {
		plugin, ok := built[v.Name]
		if !ok || !v.Enabled {
			continue
		}
		if err := configure(plugin, v, host(v.Name)); err != nil {
			return nil, err
		}
		vendors = append(vendors, plugin)
	}
	return artifact.Open(artifact.Options{
		Home: cfg.Home, Vendors: vendors, Provisioners: []vendor.Provisioner{r.registry, path.New()},
		Openers: map[string]vendor.Opener{builtin.Scheme: inside}, Credentials: r.credential,
		Reserve: cfg.Hive.Reserve.Disk, SelfTest: native.selfTest, HTTP: client, Log: log,
	})
}

// configure gives a vendor that wants some its settings.
func configure(plugin vendor.Vendor, v config.Vendor, host vendor.Host) error {
	c, ok := plugin.(vendor.Configurable)
	if !ok {
		return nil
	}
	settings := any(struct{}{})
	if v.Name == config.VendorHub {
		settings = huggingface.Settings{Endpoint: v.Endpoint, Offline: v.Offline}
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

// reach is where the configuration lets requests to other people's servers go, and with which credentials.
type reach struct {
	mirrors    []string // base URLs
	hub        string   // base URL; "": the vendor is switched off
	hubToken   secret.Secret
	registry   *npm.Provisioner
	configured func(name, host string) (secret.Secret, error)
}

func newReach(cfg *config.Config) *reach {
	r := &reach{mirrors: cfg.Hive.Mirrors, configured: cfg.CredentialLookup(config.OpenCredentials(cfg.Home))}
	if hub := cfg.Vendor(config.VendorHub); hub.Enabled {
		r.hub, r.hubToken = cmp.Or(hub.Endpoint, huggingface.DefaultEndpoint), hub.Credential
	}
	return r
}

// own reports whether the configuration names the origin of u: registry, hub and mirrors. What others name is checked.
func (r *reach) own(u *url.URL) bool {
	return r.registry.Own(u) || config.SameOrigin(r.hub, u) || slices.ContainsFunc(r.mirrors, func(m string) bool { return config.SameOrigin(m, u) })
}

// credential gives the token of that name that may be sent to host: the configured one, else what the vendor's block or HF_TOKEN
// holds for the hub, else what the user's npm would send to its registry.
func (r *reach) credential(name, host string) (secret.Secret, error) {
	if s, err := r.configured(name, host); s != "" || err != nil {
		return s, err
	}
	if hub, err := url.Parse(r.hub); err == nil && name == huggingface.Credential && config.SameOrigin(r.hub, &url.URL{Scheme: hub.Scheme, Host: host}) {
		return r.hubToken, nil
	}
	return r.registry.Credential(name, host), nil
}
