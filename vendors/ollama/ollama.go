// Package ollama is the vendor of models in registries that speak Ollama's protocol: ollama:[HOST/][NAMESPACE/]MODEL[:TAG]. It
// reads a manifest, which names the parts of a model by their digests, and says which of them are weights, projector, template,
// parameters and licence. The manifest's own digest makes the reference a pinned one.
//
// Of the parts that are no weights nothing is used so far: the worker takes the chat template out of the GGUF file, and sampling
// parameters from the request.
package ollama

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of the references, and the name of the credential that the vendor asks the core to add.
const Scheme = "ollama"

// DefaultRegistry is the registry of references that name none.
const DefaultRegistry = "https://registry.ollama.ai"

// Media types of manifests, and the beginning of those of layers.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	layerPrefix    = "application/vnd.ollama.image."
)

// maxLayers bounds the parts of one model.
const maxLayers = 512

// Settings are the settings of the vendor.
type Settings struct {
	Registry string `json:"registry"` // URL; empty: DefaultRegistry
}

// Vendor resolves ollama:NAME.
type Vendor struct {
	registry *url.URL // without a path
	host     vendor.Host
}

// New returns the vendor, which needs to be configured.
func New() *Vendor { return &Vendor{} }

// Info implements vendor.Vendor.
func (v *Vendor) Info() vendor.Info {
	return vendor.Info{
		Name: "ollama", Version: "1.0.0", Kind: vendor.KindVendor, Schemes: []string{Scheme}, ContractMinor: vendor.ContractMinor,
		Description: "Models in Ollama registries.", Requests: vendor.Requests{HTTP: []string{strings.TrimPrefix(DefaultRegistry, "https://")}, Credentials: []string{Scheme}},
	}
}

// Schema implements vendor.Configurable.
func (v *Vendor) Schema() vendor.Schema {
	return vendor.Schema{
		Description: "Where the models are.",
		Attributes: []vendor.Attribute{{
			Name: "registry", Type: "string", DefaultJSON: `""`, Example: `"http://127.0.0.1:5000"`,
			Description: "URL of the registry for references that name no host. Empty: Ollama's own.",
		}},
	}
}

// Configure implements vendor.Configurable.
func (v *Vendor) Configure(_ context.Context, c vendor.Configuration) error {
	var s Settings
	bad := func(why string) error {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "invalid_registry", Param: "registry", Message: "The registry of the vendor ollama is not an address that can be used: " + why + "; write for example https://ollama.example.org."}
	}
	if err := json.Unmarshal(c.Values, &s); err != nil {
		return bad("the settings are no object with a text `registry`")
	}
	if s.Registry == "" {
		s.Registry = DefaultRegistry
	}
	u, err := url.Parse(strings.TrimRight(s.Registry, "/"))
	switch {
	case err != nil:
		return bad("it is no URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return bad("it must start with https:// or http:// and name a host")
	case u.User != nil || u.Path != "" || u.RawQuery != "" || u.Fragment != "":
		return bad("it must be a host and nothing more")
	}
	u.Host = strings.ToLower(u.Host)
	v.registry, v.host = u, c.Host
	return nil
}

// Supports implements vendor.Vendor.
func (v *Vendor) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// layer is a part of a model.
type layer struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// manifest is what a registry says about a model.
type manifest struct {
	MediaType string            `json:"mediaType"`
	Layers    []layer           `json:"layers"`
	Manifests []json.RawMessage `json:"manifests"` // of an index, which leads to several
}

// question is one resolution.
type question struct {
	v    *Vendor
	ref  reference
	base string // URL up to the model's name
	at   string // host, for messages
}

// Resolve implements vendor.Vendor.
func (v *Vendor) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	ref, err := parse(req.Reference)
	if err != nil {
		return nil, err
	}
	if v.registry == nil {
		return nil, &vendor.Error{Kind: vendor.KindInvalid, Code: "not_configured", Message: "The vendor ollama was not given its settings; report this to the maker of the program that uses it."}
	}
	at := *v.registry
	if ref.host != "" && ref.host != at.Host {
		at = url.URL{Scheme: "https", Host: ref.host} // only what is configured may be asked in the clear
	}
	q := question{v: v, ref: ref, at: at.Host, base: at.String() + "/v2/" + ref.space + "/" + ref.model}
	body, err := q.manifest(ctx)
	if err != nil {
		return nil, err
	}
	files, err := q.files(body)
	if err != nil {
		return nil, err
	}
	// Pinned, a reference must mean the same wherever it is read, so it names the host unless that is everybody's.
	if q.ref.host = at.Host; at.String() == DefaultRegistry {
		q.ref.host = ""
	}
	q.ref.digest = digestOf(body)
	return &vendor.Manifest{Reference: q.ref.String(), Format: "gguf", Files: files, Meta: map[string]string{"manifest": q.ref.digest}}, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// manifest gets the manifest of the tag. A pinned reference whose tag means something else by now is asked for by its digest.
func (q question) manifest(ctx context.Context) ([]byte, error) {
	res, err := q.ask(ctx, q.ref.tag)
	if err != nil {
		return nil, err
	}
	if want := q.ref.digest; want != "" && (res.Status != 200 || digestOf(res.Body) != want) {
		if res, err = q.ask(ctx, want); err != nil {
			return nil, err
		}
		if res.Status == 404 || res.Status == 400 || res.Status == 200 && digestOf(res.Body) != want {
			return nil, &vendor.Error{
				Kind: vendor.KindNotFound, Code: "model_changed", Param: "reference", Candidates: []string{reference{host: q.ref.host, space: q.ref.space, model: q.ref.model, tag: q.ref.tag}.String()},
				Message: "The registry " + q.at + " has " + q.name() + " no more as it was at " + want[:19] + "…; ask for it without the digest to have what is there now.",
			}
		}
	}
	return res.Body, q.check(res)
}

func (q question) ask(ctx context.Context, what string) (*vendor.HTTPResponse, error) {
	return q.v.host.HTTP(ctx, vendor.HTTPRequest{
		Method: "GET", URL: q.base + "/manifests/" + what, Credential: Scheme, Header: map[string]string{"Accept": dockerManifest + ", " + ociManifest},
	})
}

// name is what a person calls the model.
func (q question) name() string {
	s := q.ref.model + ":" + q.ref.tag
	if q.ref.space != "library" {
		s = q.ref.space + "/" + s
	}
	return s
}

// check turns an answer that is no success into an error for people.
func (q question) check(res *vendor.HTTPResponse) error {
	status := strconv.Itoa(res.Status)
	fail := func(kind vendor.Kind, code, message string) *vendor.Error {
		return &vendor.Error{Kind: kind, Code: code, Message: message}
	}
	switch {
	case res.Status == 200:
		return nil
	case res.Status == 404:
		return fail(vendor.KindNotFound, "model_not_found", "The registry "+q.at+" has no model "+q.name()+"; check the name and the tag.")
	case res.Status == 401 || res.Status == 403:
		return fail(vendor.KindDenied, "registry_denied", "The registry "+q.at+" refused to tell of "+q.name()+" (status "+status+"); it is private or does not exist: check the name, or set a token with `apiary credential set ollama`.")
	case res.Status == 429:
		e := fail(vendor.KindExhausted, "rate_limited", "The registry "+q.at+" is asked too often from here; try again later.")
		if n, err := strconv.ParseInt(res.Header["Retry-After"], 10, 32); err == nil && n > 0 {
			e.RetryAfterMS = n * 1000
			e.Message = "The registry " + q.at + " is asked too often from here; try again in " + strconv.FormatInt(n, 10) + " s."
		}
		return e
	case res.Status >= 500:
		return fail(vendor.KindUnavailable, "registry_unavailable", "The registry "+q.at+" answered "+status+" for "+q.name()+"; try again later.")
	}
	return q.garbage("its status is " + status)
}

// garbage says that a registry, or what answers in its place, does not keep to the protocol.
func (q question) garbage(how string) error {
	return &vendor.Error{
		Kind: vendor.KindUnavailable, Code: "registry_garbage",
		Message: "What " + q.at + " answered for " + q.name() + " cannot be used: " + how + "; check that it is the address of an Ollama registry.",
	}
}

// files says what the layers of a manifest are for.
func (q question) files(body []byte) ([]vendor.File, error) {
	var m manifest
	if err := json.Unmarshal(body, &m); err != nil {
		return nil, q.garbage("it is no JSON")
	}
	switch {
	case len(m.Manifests) > 0:
		return nil, q.garbage("it is a list of images for containers, not a model")
	case len(m.Layers) == 0 || len(m.Layers) > maxLayers:
		return nil, q.garbage("it has " + strconv.Itoa(len(m.Layers)) + " layers")
	}
	var files []vendor.File
	models, seen, unknown := 0, map[string]int{}, []string{}
	for _, l := range m.Layers {
		if !goodDigest(l.Digest) || l.Size < 0 {
			return nil, q.garbage("one of its layers has no digest or size")
		}
		kind, ours := strings.CutPrefix(l.MediaType, layerPrefix)
		role, name, ext := "", kind, ".txt"
		switch {
		case !ours:
			unknown = append(unknown, l.MediaType)
			continue
		case kind == "model":
			models++
			role, ext = vendor.RoleWeights, ".gguf"
		case kind == "projector":
			role, ext = vendor.RoleProjector, ".gguf"
		case kind == "template":
			role = vendor.RoleTemplate
		case kind == "params" || kind == "messages":
			role, ext = vendor.RoleConfig, ".json"
		case kind == "system" || kind == "prompt":
			role = vendor.RoleConfig
		case kind == "license":
			role = vendor.RoleLicense
		case kind == "adapter":
			return nil, &vendor.Error{
				Kind: vendor.KindInvalid, Code: "unsupported_model",
				Message: q.name() + " changes its weights with an adapter, which this version of Apiary cannot do; choose the model that it is made from.",
			}
		default:
			unknown = append(unknown, l.MediaType)
			continue
		}
		if seen[kind]++; seen[kind] > 1 {
			name += "-" + strconv.Itoa(seen[kind])
		}
		files = append(files, vendor.File{
			Path: name + ext, Role: role, Size: l.Size, Digests: vendor.Digests{SHA256: strings.TrimPrefix(l.Digest, "sha256:")},
			Sources: []vendor.Source{{URL: q.base + "/blobs/" + l.Digest, Credential: Scheme, Ranges: true}},
		})
	}
	if len(unknown) > 0 {
		q.v.host.Log("debug", "layers that are not used", "model", q.name(), "media_types", strings.Join(unknown, " "))
	}
	if models == 0 {
		return nil, &vendor.Error{
			Kind: vendor.KindInvalid, Code: "unsupported_model",
			Message: q.name() + " has no part with weights in the format GGUF, which is the one that this version of Apiary runs; choose another model or tag.",
		}
	}
	if models > 1 { // engines find the parts of split weights by these names
		n := 0
		for i := range files {
			if files[i].Role == vendor.RoleWeights {
				n++
				files[i].Path = "model-" + five(n) + "-of-" + five(models) + ".gguf"
			}
		}
	}
	return files, nil
}

// five writes a number with at least five digits.
func five(n int) string {
	text := strconv.Itoa(n)
	return strings.Repeat("0", max(0, 5-len(text))) + text
}
