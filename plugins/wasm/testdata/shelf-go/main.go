// Command shelf-go is a vendor for a JSON index of models, for the tests of plugins/wasm: the same as the ones in examples that are
// written in other languages.
package main

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

type shelf struct {
	host  vendor.Host
	index string
}

func (*shelf) Info() vendor.Info {
	return vendor.Info{
		Name: "shelf-go", Version: "0.1.0", Kind: vendor.KindVendor, Schemes: []string{"shelf"}, Description: "Models of a JSON index",
		Requests: vendor.Requests{HTTP: []string{"models.example.org"}, MemoryBytes: 64 << 20},
	}
}

func (*shelf) Supports(ref string) bool { return strings.HasPrefix(ref, "shelf:") }

func (*shelf) Schema() vendor.Schema {
	return vendor.Schema{Description: "A vendor for a JSON index of models.", Attributes: []vendor.Attribute{
		{Name: "index", Type: "string", Required: true, Description: "URL of the index", Example: "https://models.example.org/index.json"},
	}}
}

func (s *shelf) Configure(_ context.Context, c vendor.Configuration) error {
	var config struct {
		Index string `json:"index"`
	}
	if err := json.Unmarshal(c.Values, &config); err != nil || config.Index == "" {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "no_index", Message: "The setting index must be the URL of an index of models.", Param: "index"}
	}
	s.host, s.index = c.Host, config.Index
	return nil
}

func (s *shelf) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	answer, err := s.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: s.index})
	if err != nil {
		return nil, err
	}
	var index struct {
		Models []struct {
			Name   string `json:"name"`
			Format string `json:"format"`
			Files  []struct {
				Path   string `json:"path"`
				Size   int64  `json:"size"`
				SHA256 string `json:"sha256"`
				URL    string `json:"url"`
			} `json:"files"`
		} `json:"models"`
	}
	if err := json.Unmarshal(answer.Body, &index); err != nil || answer.Status != 200 {
		return nil, &vendor.Error{Kind: vendor.KindUnavailable, Code: "no_index", Message: "The index of models could not be read; check the setting index, or try again later."}
	}
	name := strings.TrimPrefix(req.Reference, "shelf:")
	for _, m := range index.Models {
		if m.Name != name {
			continue
		}
		out := &vendor.Manifest{Reference: req.Reference, Format: m.Format}
		if out.Format == "" {
			out.Format = "gguf"
		}
		for _, f := range m.Files {
			out.Files = append(out.Files, vendor.File{Path: f.Path, Role: vendor.RoleWeights, Size: f.Size, Digests: vendor.Digests{SHA256: f.SHA256}, Sources: []vendor.Source{{URL: f.URL, Ranges: true}}})
		}
		return out, nil
	}
	return nil, &vendor.Error{Kind: vendor.KindNotFound, Code: "model_not_found", Message: "The index has no model " + name + "; check its name."}
}

func init() { sdk.Register(&shelf{}) }

func main() { sdk.Main() }
