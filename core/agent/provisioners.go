package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"

	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/workers/provision/github"
	"github.com/apiary-dev/apiary/workers/provision/npm"
	"github.com/apiary-dev/apiary/workers/provision/path"
	"github.com/apiary-dev/apiary/workers/provision/pypi"
	"github.com/apiary-dev/apiary/workers/provision/recipe"
)

// provisioners returns the provisioners of this build, with the hosts that host makes for them.
func provisioners(r *reach, recipes *recipe.Provisioner, host func(name string) vendor.Host) ([]vendor.Provisioner, error) {
	packages, wheels, releases := npm.New(), pypi.New(), github.New()
	values, err := json.Marshal(github.Settings{Endpoint: r.github})
	if err == nil {
		err = releases.Configure(context.Background(), vendor.Configuration{Values: values, Host: host("github")})
	}
	if err != nil {
		return nil, fmt.Errorf("configure the provisioner github: %w", err)
	}
	return []vendor.Provisioner{
		&npmEngines{Provisioner: packages, settled: settled{plugin: packages, host: host("npm"), find: func(ctx context.Context) (any, error) {
			base, scopes, err := r.registry.Addresses(ctx)
			return npm.Settings{Registry: base, Scopes: scopes}, err
		}}},
		&pypiEngines{Provisioner: wheels, settled: settled{plugin: wheels, host: host("pypi"), find: func(ctx context.Context) (any, error) {
			registry, err := cmp.Or(r.wheels, r.index).URL(ctx)
			return pypi.Settings{Registry: registry}, err
		}}},
		path.New(),
		recipes,
		releases,
	}, nil
}

// npmEngines is the provisioner of npm packages, which gets its settings late.
type npmEngines struct {
	*npm.Provisioner
	settled
}

// Plan implements vendor.Provisioner.
func (p *npmEngines) Plan(ctx context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	if err := p.prepare(ctx); err != nil {
		return nil, err
	}
	return p.Provisioner.Plan(ctx, req)
}

// pypiEngines is the provisioner of Python packages, likewise.
type pypiEngines struct {
	*pypi.Provisioner
	settled
}

// Plan implements vendor.Provisioner.
func (p *pypiEngines) Plan(ctx context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	if err := p.prepare(ctx); err != nil {
		return nil, err
	}
	return p.Provisioner.Plan(ctx, req)
}
