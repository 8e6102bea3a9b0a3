// Package path is the provisioner of engines that lie on this machine already: path:/absolute/folder uses the llama.cpp
// libraries of that folder where they are. It copies and changes nothing; the core tests the engine and lists it.
package path

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of the references.
const Scheme = "path"

// Provisioner plans engines of path: references.
type Provisioner struct{}

// New returns the provisioner of local engine folders.
func New() *Provisioner { return &Provisioner{} }

// Info implements vendor.Provisioner.
func (p *Provisioner) Info() vendor.Info {
	return vendor.Info{Name: "path", Version: "1.0.0", Kind: vendor.KindProvisioner, Schemes: []string{Scheme}, Description: "Engine builds in a folder of this machine, used in place."}
}

// Supports implements vendor.Provisioner.
func (p *Provisioner) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// Plan implements vendor.Provisioner.
func (p *Provisioner) Plan(_ context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	dir := strings.TrimPrefix(req.Reference, Scheme+":")
	if strings.ContainsRune(dir, 0) || !filepath.IsAbs(dir) {
		return nil, failed(vendor.KindInvalid, "invalid_reference", "%q is not an absolute path; write path:/folder/of/the/engine.", dir)
	}
	dir = filepath.Clean(dir)
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, failed(vendor.KindNotFound, "engine_not_found", "There is no folder %s; check the path of the engine.", dir)
	case err != nil:
		return nil, failed(vendor.KindDenied, "engine_unreadable", "The folder %s cannot be looked at; check its permissions: %w", dir, err)
	case !st.IsDir():
		return nil, failed(vendor.KindInvalid, "invalid_reference", "%s is not a folder; give the folder that holds the libraries of llama.cpp.", dir)
	}
	suffix := ".so"
	if req.Platform.OS == "darwin" {
		suffix = ".dylib"
	}
	plan := &vendor.Plan{
		Reference: Scheme + ":" + dir, Name: "llama.cpp", Version: "local",
		Platform: req.Platform.OS + "-" + req.Platform.Arch, InPlace: dir,
	}
	for _, lib := range []string{"libllama", "libggml"} {
		plan.Steps = append(plan.Steps, vendor.Step{Expect: &vendor.ExpectStep{
			Path:    lib + suffix,
			Message: "The folder " + dir + " holds no " + lib + suffix + ", so it is no llama.cpp build; give the folder with the shared libraries.",
		}})
	}
	return plan, nil
}

// failed is an error that the user should read.
func failed(kind vendor.Kind, code, format string, args ...any) error {
	return &vendor.Error{Kind: kind, Code: code, Message: fmt.Errorf(format, args...).Error()}
}
