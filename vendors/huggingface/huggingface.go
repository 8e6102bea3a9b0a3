// Package huggingface is the vendor of models on Hugging Face and on mirrors that speak its protocol: hf:org/repo names the
// quantisation that most people want, hf:org/repo:Q8_0 another one, hf:org/repo/file.gguf a file, and @REVISION pins any of
// them. It asks for metadata only, through the host; the core fetches the files and proves them by the digests that the hub
// published. It imports nothing but the contract and parts of the standard library that a WASM guest can carry.
package huggingface

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Credential is the name of the credential that is added to requests to the endpoint.
const Credential = "huggingface"

// DefaultEndpoint is the public hub.
const DefaultEndpoint = "https://huggingface.co"

// maxAsked bounds the files without a published digest for which the hub is asked one by one.
const maxAsked = 16

// Settings are what the vendor can be configured with.
type Settings struct {
	Endpoint string `json:"endpoint"` // base URL; "": DefaultEndpoint
	Offline  bool   `json:"offline"`  // ask nothing: what is in the catalog already is all there is
}

// Vendor resolves hf: references.
type Vendor struct {
	host     vendor.Host
	endpoint string // without a slash at its end
	offline  bool
}

// New returns the vendor. It answers after Configure.
func New() *Vendor { return &Vendor{endpoint: DefaultEndpoint} }

// Info implements vendor.Vendor.
func (v *Vendor) Info() vendor.Info {
	return vendor.Info{
		Name: "huggingface", Version: "1.0.0", Kind: vendor.KindVendor, Schemes: []string{Scheme}, Features: []string{vendor.FeatureSearch},
		Description: "Models on Hugging Face and its mirrors.",
		Requests:    vendor.Requests{HTTP: []string{"huggingface.co", "*.huggingface.co", "*.hf.co"}, Credentials: []string{Credential}},
	}
}

// Schema implements vendor.Configurable.
func (v *Vendor) Schema() vendor.Schema {
	return vendor.Schema{
		Description: "Where the models are asked for.",
		Attributes: []vendor.Attribute{
			{Name: "endpoint", Type: "string", DefaultJSON: `""`, Description: "Base URL of the hub or of a mirror that speaks its protocol; empty: the public hub.", Example: "https://hub.example.org"},
			{Name: "offline", Type: "bool", DefaultJSON: "false", Description: "Ask nothing: only models that were fetched before can be used."},
		},
	}
}

// Configure implements vendor.Configurable.
func (v *Vendor) Configure(_ context.Context, c vendor.Configuration) error {
	var s Settings
	if len(c.Values) > 0 {
		if err := json.Unmarshal(c.Values, &s); err != nil {
			return &vendor.Error{Kind: vendor.KindInvalid, Code: "bad_setting", Message: "The settings of the vendor huggingface cannot be read: " + err.Error() + "."}
		}
	}
	endpoint := strings.TrimRight(s.Endpoint, "/")
	if endpoint == "" {
		endpoint = DefaultEndpoint
	}
	if !goodEndpoint(endpoint) {
		return &vendor.Error{
			Kind: vendor.KindInvalid, Code: "bad_setting", Param: "endpoint",
			Message: "The endpoint of the vendor huggingface is no address of a hub; write for example https://hub.example.org, without a user, a query or a fragment.",
		}
	}
	v.host, v.endpoint, v.offline = c.Host, endpoint, s.Offline
	return nil
}

// Supports implements vendor.Vendor. A reference without a scheme is taken for one when it has exactly the form ORG/REPO, with
// what may follow that.
func (v *Vendor) Supports(ref string) bool {
	if strings.HasPrefix(ref, Scheme+":") {
		return true
	}
	r, err := parse(ref)
	return err == nil && strings.Contains(r.repo, "/") && r.path == ""
}

// repoInfo is the part of a repository's description that is used.
type repoInfo struct {
	ID          string          `json:"id"`
	SHA         string          `json:"sha"`
	Gated       json.RawMessage `json:"gated"` // false, or "auto" or "manual"
	Private     bool            `json:"private"`
	Disabled    bool            `json:"disabled"`
	PipelineTag string          `json:"pipeline_tag"`
	Tags        []string        `json:"tags"`
	GGUF        struct {
		Architecture string `json:"architecture"`
	} `json:"gguf"`
}

func (i repoInfo) isGated() bool {
	return len(i.Gated) > 0 && string(i.Gated) != "false" && string(i.Gated) != "null"
}

// Resolve implements vendor.Vendor. The canonical reference has the commit in the place of the revision and names what was
// chosen, so that it leads to the same files for ever.
func (v *Vendor) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	r, err := parse(req.Reference)
	if err != nil {
		return nil, err
	}
	if err := v.ready(r.String()); err != nil {
		return nil, err
	}
	revision := r.revision
	if revision == "" {
		revision = defaultRevision
	}
	info, err := v.info(ctx, r.repo, revision)
	if err != nil {
		return nil, err
	}
	q := question{v: v, repo: r.repo, revision: revision, commit: info.SHA}
	if checkRepo(info.ID) == "" {
		q.repo = info.ID // it was renamed, or is written differently
	}
	tree, err := q.tree(ctx)
	if err != nil {
		return nil, err
	}
	c, err := choose(tree, r)
	if err != nil {
		return nil, err
	}
	if c.index != "" {
		if err := q.shards(ctx, &c); err != nil {
			return nil, err
		}
	}
	if err := q.complete(ctx, &c, info.isGated()); err != nil {
		return nil, err
	}
	pinned := reference{repo: q.repo, revision: info.SHA, quant: c.quant, path: c.path}
	m := &vendor.Manifest{Reference: pinned.String(), Format: c.format, Meta: info.meta(v.endpoint, q.repo)}
	for _, f := range c.files {
		m.Files = append(m.Files, vendor.File{
			Path: safeName(f.Path), Role: f.role, Size: f.size(), Digests: f.digests(),
			Sources: []vendor.Source{{URL: q.fileURL(f.Path), Credential: Credential, Ranges: true}},
		})
	}
	return m, nil
}

// ready says why nothing can be asked.
func (v *Vendor) ready(what string) error {
	switch {
	case v.host == nil:
		return &vendor.Error{Kind: vendor.KindInternal, Code: "not_configured", Message: "The vendor huggingface was asked before it was configured; report this."}
	case v.offline:
		return &vendor.Error{
			Kind: vendor.KindUnavailable, Code: "offline",
			Message: what + " was not looked up, because the vendor huggingface is offline (HF_HUB_OFFLINE or its setting offline); switch that off, or use a model that `apiary model list` shows.",
		}
	}
	return nil
}

// meta is what a person may want to know.
func (i repoInfo) meta(endpoint, repo string) map[string]string {
	m := map[string]string{"page": endpoint + "/" + repo, "commit": i.SHA}
	for _, tag := range i.Tags {
		if name, ok := strings.CutPrefix(tag, "license:"); ok {
			m["license"] = name
		}
	}
	for key, value := range map[string]string{"task": i.PipelineTag, "architecture": i.GGUF.Architecture} {
		if value != "" {
			m[key] = value
		}
	}
	return m
}

// safeName replaces what a file of an artifact may not be called.
func safeName(path string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f || r == '\\' {
			return '_'
		}
		return r
	}, path)
}

// quote puts s between quotation marks without what a terminal would act on.
func quote(s string) string { return `"` + safeName(s) + `"` }
