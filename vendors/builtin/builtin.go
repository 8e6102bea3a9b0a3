// Package builtin is the vendor of models that travel inside the executable, so that Apiary has something to run before it
// has fetched anything. It knows no other models and does no I/O.
package builtin

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of builtin references and of the URLs of their files.
const Scheme = "builtin"

// files holds the models; models/LICENSE.txt says where they come from.
//
//go:embed models/*.gguf
var files embed.FS

// Vendor resolves builtin:NAME and opens what it resolved to.
type Vendor struct{ models fs.FS }

// New returns the vendor of the models in this executable.
func New() *Vendor {
	sub, err := fs.Sub(files, "models")
	if err != nil {
		panic(err) // the name is a constant and valid
	}
	return &Vendor{models: sub}
}

// Info implements vendor.Vendor.
func (v *Vendor) Info() vendor.Info {
	return vendor.Info{Name: "builtin", Version: "1.0.0", Kind: vendor.KindVendor, Schemes: []string{Scheme}, Description: "Models inside the apiary executable."}
}

// Supports implements vendor.Vendor.
func (v *Vendor) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// Resolve implements vendor.Vendor. The canonical reference is builtin:NAME@<first 12 hex of the SHA-256>; that form may be
// asked for too, and is not found when this executable carries other bytes under the name.
func (v *Vendor) Resolve(_ context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	name, pin, pinned := strings.Cut(strings.TrimPrefix(req.Reference, Scheme+":"), "@")
	body, err := v.read(name)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	digest := hex.EncodeToString(sum[:])
	if pinned && pin != digest[:12] {
		return nil, notFound("This version of Apiary carries " + Scheme + ":" + name + "@" + digest[:12] + ", not " + req.Reference + "; ask for " + Scheme + ":" + name + " to have it.")
	}
	return &vendor.Manifest{
		Reference: Scheme + ":" + name + "@" + digest[:12],
		Format:    "gguf",
		Files: []vendor.File{{
			Path: name + ".gguf", Role: "weights", Size: int64(len(body)),
			Digests: vendor.Digests{SHA256: digest},
			Sources: []vendor.Source{{URL: Scheme + ":" + name}},
		}},
	}, nil
}

// Open implements vendor.Opener for the URLs of Resolve.
func (v *Vendor) Open(_ context.Context, url string) (io.ReadCloser, int64, error) {
	body, err := v.read(strings.TrimPrefix(url, Scheme+":"))
	if err != nil {
		return nil, 0, err
	}
	return io.NopCloser(strings.NewReader(string(body))), int64(len(body)), nil
}

func (v *Vendor) read(name string) ([]byte, error) {
	body, err := fs.ReadFile(v.models, name+".gguf")
	if err != nil {
		return nil, notFound("There is no builtin model " + strconv.Quote(name) + "; there is " + strings.Join(v.names(), ", ") + ".")
	}
	return body, nil
}

func notFound(message string) error {
	return &vendor.Error{Kind: vendor.KindNotFound, Code: "model_not_found", Message: message}
}

// names lists the references of all models.
func (v *Vendor) names() []string {
	entries, err := fs.Glob(v.models, "*.gguf")
	if err != nil {
		return nil // only for a malformed pattern
	}
	for i, e := range entries {
		entries[i] = Scheme + ":" + strings.TrimSuffix(e, ".gguf")
	}
	return entries
}
