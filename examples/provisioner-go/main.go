// Provisioner-go is a worker provisioner to start from: it resolves "forge:NAME" to the plan that installs the engine which a JSON index
// on some server lists under that name. The same source is a program and a WASM module.
package main

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func init() { sdk.Register(&provisioner{}) }

func main() { sdk.Main() }

const scheme = "forge:"

// provisioner is one type with the methods of vendor.Provisioner and vendor.Configurable.
type provisioner struct {
	url  string
	host vendor.Host
}

// list is what the server answers with.
type list struct {
	Engines []struct {
		Name    string  `json:"name"`
		Version string  `json:"version"`
		Builds  []build `json:"builds"`
	} `json:"engines"`
}

// build is an archive for one platform.
type build struct {
	Platform string `json:"platform"` // "linux-amd64"
	URL      string `json:"url"`      // of a .tar.gz or .zip file
	Size     int64  `json:"size"`
	SHA256   string `json:"sha256"`
	Expect   string `json:"expect"` // a file that the engine has when it is whole
}

// Info implements vendor.Provisioner.
func (*provisioner) Info() vendor.Info {
	return vendor.Info{
		Name: "forge", Version: "1.0.0", Kind: vendor.KindProvisioner, Schemes: []string{"forge"},
		Description: "Engines that a JSON index on a server of yours lists.",
		Requests:    vendor.Requests{HTTP: []string{"engines.example.org"}},
	}
}

// Supports implements vendor.Provisioner.
func (*provisioner) Supports(ref string) bool { return strings.HasPrefix(ref, scheme) }

// Schema implements vendor.Configurable.
func (*provisioner) Schema() vendor.Schema {
	return vendor.Schema{Description: "Where the index is.", Attributes: []vendor.Attribute{
		{Name: "url", Type: "string", DefaultJSON: `"https://engines.example.org/index.json"`, Description: "URL of the index.", Example: "https://engines.example.org/index.json"},
	}}
}

// Configure implements vendor.Configurable.
func (p *provisioner) Configure(_ context.Context, c vendor.Configuration) error {
	var values struct {
		URL string `json:"url"`
	}
	if err := json.Unmarshal(c.Values, &values); err != nil || !strings.HasPrefix(values.URL, "https://") && !strings.HasPrefix(values.URL, "http://") {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_config", Param: "url", Message: "The url of the plugin forge must begin with https:// or http://."}
	}
	p.url, p.host = values.URL, c.Host
	return nil
}

// Plan implements vendor.Provisioner. It says what to fetch and how to unpack it; the agent does both.
func (p *provisioner) Plan(ctx context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	name, version, pinned := strings.Cut(strings.TrimPrefix(req.Reference, scheme), "@")
	platform := req.Platform.OS + "-" + req.Platform.Arch
	l, err := p.fetch(ctx)
	if err != nil {
		return nil, err
	}
	found := false
	for _, e := range l.Engines {
		if e.Name != name || pinned && e.Version != version {
			continue
		}
		found = true
		for _, b := range e.Builds {
			if b.Platform != platform {
				continue
			}
			archive := b.URL[strings.LastIndexByte(b.URL, '/')+1:]
			return &vendor.Plan{
				Reference: scheme + name + "@" + e.Version, Name: name, Version: e.Version, Platform: platform,
				Files: []vendor.File{{Path: archive, Role: vendor.RoleArchive, Size: b.Size, Digests: vendor.Digests{SHA256: b.SHA256},
					Sources: []vendor.Source{{URL: b.URL, Ranges: true}}}},
				Steps: []vendor.Step{
					{Extract: &vendor.ExtractStep{File: archive, Into: ".", MaxBytes: 1 << 30, MaxEntries: 10_000}},
					{Expect: &vendor.ExpectStep{Path: b.Expect, Message: "The archive of " + name + " has no " + b.Expect + "; tell whoever keeps the index."}},
				},
			}, nil
		}
	}
	if found {
		return nil, &vendor.Error{Kind: vendor.KindNotFound, Code: "no_build", Message: "The index has no build of " + name + " for " + platform + "; choose another engine."}
	}
	return nil, &vendor.Error{Kind: vendor.KindNotFound, Code: "engine_not_found", Message: "The index has no engine " + name + "; check its name."}
}

// fetch gets the index. The host makes the request, and refuses servers that were not granted.
func (p *provisioner) fetch(ctx context.Context) (*list, error) {
	resp, err := p.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: p.url, Header: map[string]string{"Accept": "application/json"}})
	if err != nil {
		return nil, err
	}
	l := &list{}
	if resp.Status != 200 || json.Unmarshal(resp.Body, l) != nil {
		return nil, &vendor.Error{Kind: vendor.KindUnavailable, Code: "bad_index", Param: "url", Message: "No index of engines is at " + p.url + "; check the url of the plugin forge."}
	}
	return l, nil
}
