// Plugin-go is a model vendor to start from: it resolves "index:NAME" to the files that a JSON index on some server lists
// under that name. The same source is a program and a WASM module; README.md says how to build each.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func init() { sdk.Register(&indexVendor{}) }

func main() { sdk.Main() }

const scheme = "index:"

// indexVendor is one type with the methods of vendor.Vendor, vendor.Searcher and vendor.Configurable. It keeps nothing
// between calls but its settings.
type indexVendor struct {
	url  string
	host vendor.Host
}

// list is what the server answers with.
type list struct {
	Models []model `json:"models"`
}

type model struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Format      string `json:"format"`
	License     string `json:"license"`
	Files       []struct {
		Path   string `json:"path"`
		URL    string `json:"url"`
		Size   int64  `json:"size"`
		SHA256 string `json:"sha256"`
	} `json:"files"`
}

// Info implements vendor.Vendor.
func (*indexVendor) Info() vendor.Info {
	return vendor.Info{
		Name: "index", Version: "1.0.0", Kind: vendor.KindVendor, Schemes: []string{"index"}, Features: []string{vendor.FeatureSearch},
		Description: "Models that a JSON index on a server of yours lists.",
		Requests:    vendor.Requests{HTTP: []string{"models.example.org"}},
	}
}

// Supports implements vendor.Vendor.
func (*indexVendor) Supports(ref string) bool { return strings.HasPrefix(ref, scheme) }

// Schema implements vendor.Configurable.
func (*indexVendor) Schema() vendor.Schema {
	return vendor.Schema{Description: "Where the index is.", Attributes: []vendor.Attribute{
		{Name: "url", Type: "string", DefaultJSON: `"https://models.example.org/index.json"`, Description: "URL of the index.", Example: "https://models.example.org/index.json"},
	}}
}

// Configure implements vendor.Configurable.
func (v *indexVendor) Configure(_ context.Context, c vendor.Configuration) error {
	var values struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(c.Values, &values); err != nil {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_config", Message: "The settings of the plugin index cannot be read: " + err.Error() + "."}
	}
	if !strings.HasPrefix(values.URL, "https://") && !strings.HasPrefix(values.URL, "http://") {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_config", Param: "url", Message: "The url of the plugin index must begin with https:// or http://."}
	}
	v.url, v.host = values.URL, c.Host
	return nil
}

// Resolve implements vendor.Vendor. The reference that it returns names the content, so that it means the same bytes for ever.
func (v *indexVendor) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	name, pin, pinned := strings.Cut(strings.TrimPrefix(req.Reference, scheme), "@")
	l, err := v.fetch(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range l.Models {
		if m.Name != name {
			continue
		}
		have := pinOf(m)
		if pinned && pin != have {
			return nil, &vendor.Error{Kind: vendor.KindNotFound, Code: "version_gone", Candidates: []string{scheme + name + "@" + have},
				Message: "The index has another version of " + name + " now; use " + scheme + name + "@" + have + "."}
		}
		out := &vendor.Manifest{Reference: scheme + name + "@" + have, Format: m.Format, Meta: map[string]string{"license": m.License}}
		for _, f := range m.Files {
			out.Files = append(out.Files, vendor.File{Path: f.Path, Role: vendor.RoleWeights, Size: f.Size, Digests: vendor.Digests{SHA256: f.SHA256},
				Sources: []vendor.Source{{URL: f.URL, Ranges: true}}})
		}
		return out, nil
	}
	e := &vendor.Error{Kind: vendor.KindNotFound, Code: "model_not_found", Message: "The index has no model " + name + "; try `apiary model search`."}
	for _, m := range l.Models {
		if strings.Contains(m.Name, name) || strings.Contains(name, m.Name) {
			e.Candidates = append(e.Candidates, scheme+m.Name)
		}
	}
	return nil, e
}

// Search implements vendor.Searcher.
func (v *indexVendor) Search(ctx context.Context, req vendor.SearchRequest) ([]vendor.SearchResult, error) {
	l, err := v.fetch(ctx)
	if err != nil {
		return nil, err
	}
	var found []vendor.SearchResult
	for _, m := range l.Models {
		if req.Limit > 0 && len(found) == int(req.Limit) {
			break
		}
		if strings.Contains(m.Name+" "+m.Description, req.Query) {
			r := vendor.SearchResult{Reference: scheme + m.Name, Description: m.Description}
			for _, f := range m.Files {
				r.SizeBytes += f.Size
			}
			found = append(found, r)
		}
	}
	return found, nil
}

// fetch gets the index. The host makes the request, and refuses servers that were not granted.
func (v *indexVendor) fetch(ctx context.Context) (*list, error) {
	resp, err := v.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: v.url, Header: map[string]string{"Accept": "application/json"}})
	if err != nil {
		return nil, err
	}
	l := &list{}
	if resp.Status != 200 || json.Unmarshal(resp.Body, l) != nil {
		return nil, &vendor.Error{Kind: vendor.KindUnavailable, Code: "bad_index", Param: "url", Message: "No index of models is at " + v.url + "; check the url of the plugin index."}
	}
	return l, nil
}

// pinOf names the content of m.
func pinOf(m model) string {
	h := sha256.New()
	for _, f := range m.Files {
		h.Write([]byte(f.Path + "\x00" + f.SHA256 + "\x00"))
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}
