// Package npm is the provisioner of engine builds that are published as npm packages, such as the llama.cpp builds of
// node-llama-cpp: npm:@node-llama-cpp/{platform}@3.21.1. It chooses the package for the machine, asks the configured registry
// for its tarball and integrity, and says how to unpack it. It fetches no tarball and runs no package code.
package npm

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of the references, and the name of the credential that the provisioner asks the core to add.
const Scheme = "npm"

// Bounds of one package.
const (
	maxEntries  = 10_000
	maxUnpacked = 4 << 30
	maxDocument = 8 << 20 // of an answer of the registry
)

// Settings are the settings of the provisioner.
type Settings struct {
	Registry string            `json:"registry,omitempty"` // URL of the registry
	Scopes   map[string]string `json:"scopes,omitempty"`   // by "@scope": URL of the registry of its packages
}

// Provisioner plans engines from npm packages.
type Provisioner struct {
	settings Settings
	host     vendor.Host
}

// New returns the provisioner, which needs to be configured.
func New() *Provisioner { return &Provisioner{} }

// Info implements vendor.Provisioner.
func (p *Provisioner) Info() vendor.Info {
	return vendor.Info{Name: "npm", Version: "1.0.0", Kind: vendor.KindProvisioner, Features: []string{vendor.FeaturePin}, Schemes: []string{Scheme}, Requests: vendor.Requests{Credentials: []string{Scheme}}, Description: "Engine builds published as npm packages."}
}

// Schema implements vendor.Configurable.
func (p *Provisioner) Schema() vendor.Schema {
	return vendor.Schema{
		Description: "Where the packages are.",
		Attributes: []vendor.Attribute{
			{Name: "registry", Type: "string", Example: `"https://npm.example.org"`, Description: "URL of the package registry."},
			{Name: "scopes", Type: "map(string)", Example: `{ "@acme" = "https://npm.acme.example.org" }`, Description: "URLs of the registries of scopes that have one of their own."},
		},
	}
}

// Configure implements vendor.Configurable.
func (p *Provisioner) Configure(_ context.Context, c vendor.Configuration) error {
	bad := func(param, why string) error {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "invalid_registry", Param: param, Message: "A registry of the provisioner npm cannot be used: " + why + "; write for example https://npm.example.org."}
	}
	var s Settings
	if len(c.Values) > 0 && json.Unmarshal(c.Values, &s) != nil {
		return bad("registry", "the settings are no object with a text `registry` and an object `scopes`")
	}
	check := func(param, raw string) (string, error) {
		raw = strings.TrimRight(raw, "/")
		u, err := url.Parse(raw)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
			return "", bad(param, "it is not a URL of https:// or http:// with a host and a path alone")
		}
		return raw, nil
	}
	var err error
	if s.Registry != "" {
		if s.Registry, err = check("registry", s.Registry); err != nil {
			return err
		}
	}
	for scope, raw := range s.Scopes {
		if s.Scopes[scope], err = check("scopes", raw); err != nil {
			return err
		}
	}
	p.settings, p.host = s, c.Host
	return nil
}

// registry returns the address of the registry for a scope.
func (p *Provisioner) registry(scope string) (string, error) {
	if r, ok := p.settings.Scopes[scope]; ok && scope != "" {
		return r, nil
	}
	if p.settings.Registry == "" {
		return "", &vendor.Error{Kind: vendor.KindInvalid, Code: "no_registry", Message: "No package registry is configured and npm could not be asked; install npm, set NPM_CONFIG_REGISTRY, or set `registry` in the block provisioner \"npm\" of config.hcl."}
	}
	return p.settings.Registry, nil
}

// Supports implements vendor.Provisioner.
func (p *Provisioner) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// Pin implements vendor.Pinner.
func (p *Provisioner) Pin(ref string, on vendor.Platform) (reference, platform string, err error) {
	pkg, err := parse(ref, on)
	if err != nil {
		return "", "", err
	}
	return pkg.reference(), pkg.platform, nil
}

// dist is the part of a version's metadata that is used.
type dist struct {
	Tarball      string `json:"tarball"`
	Integrity    string `json:"integrity"`
	UnpackedSize int64  `json:"unpackedSize"`
}

// document is the description of one version of a package.
type document struct {
	Version string `json:"version"`
	Dist    dist   `json:"dist"`
}

// packument is the description of all versions, in the registry's abbreviated form.
type packument struct {
	Versions map[string]document `json:"versions"`
}

// Plan implements vendor.Provisioner.
func (p *Provisioner) Plan(ctx context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	pkg, err := parse(req.Reference, req.Platform)
	if err != nil {
		return nil, err
	}
	registry, err := p.registry(pkg.scope)
	if err != nil {
		return nil, err
	}
	v, err := p.metadata(ctx, registry, pkg)
	if err != nil {
		return nil, err
	}
	sha512, err := parseIntegrity(v.Integrity)
	if err != nil {
		return nil, failed(vendor.KindDenied, "no_integrity", "The registry gives no usable sha512 integrity for %s %s, so what it sends cannot be proved to be the package; use another registry or version: %w", pkg.name(), pkg.version, err)
	}
	sources, err := tarballSources(registry, pkg, v.Tarball)
	if err != nil {
		return nil, err
	}
	extract := &vendor.ExtractStep{
		File: "package.tgz", Prefix: "package/bins/" + pkg.platform + "/", Into: ".", MaxBytes: maxUnpacked, MaxEntries: maxEntries,
	}
	if n := v.UnpackedSize; n > 0 && n < maxUnpacked {
		extract.MaxBytes = n
	}
	plan := &vendor.Plan{
		Reference: pkg.reference(), Name: "llama.cpp", Version: pkg.version, Platform: pkg.platform,
		Files: []vendor.File{{
			Path: extract.File, Role: "archive", Size: -1, Digests: vendor.Digests{SHA512: sha512}, Sources: sources,
		}},
		Steps: []vendor.Step{{Extract: extract}},
	}
	suffix := ".so"
	if strings.HasPrefix(pkg.platform, "mac-") {
		suffix = ".dylib"
	}
	for _, lib := range []string{"libllama", "libggml"} {
		// The files carry the version of llama.cpp in their names; the loader of the native worker wants the plain ones.
		plan.Steps = append(plan.Steps,
			vendor.Step{Link: &vendor.LinkStep{Name: lib + suffix, Match: lib + ".v*" + suffix}},
			vendor.Step{Expect: &vendor.ExpectStep{Path: lib + suffix, Message: "The package " + pkg.name() + " holds no " + lib + suffix + ", so it is no llama.cpp build for " + pkg.platform + "."}})
	}
	return plan, nil
}

// metadata asks the registry for the version: for it alone, or, where the registry has no such answer, for all of them.
func (p *Provisioner) metadata(ctx context.Context, registry string, pkg pkgRef) (dist, error) {
	at := registry + "/" + strings.ReplaceAll(pkg.name(), "/", "%2f")
	var one document
	found, err := p.ask(ctx, at+"/"+pkg.version, "application/json", pkg, &one)
	if err != nil {
		return dist{}, err
	}
	if found && one.Version == pkg.version {
		return one.Dist, nil
	}
	var all packument
	found, err = p.ask(ctx, at, "application/vnd.npm.install-v1+json; q=1.0, application/json; q=0.8", pkg, &all)
	if err != nil {
		return dist{}, err
	}
	if !found {
		return dist{}, failed(vendor.KindNotFound, "engine_not_found", "The package registry does not know %s; check the reference, or whether there is a build for %s.", pkg.name(), pkg.platform)
	}
	v, ok := all.Versions[pkg.version]
	if !ok {
		return dist{}, failed(vendor.KindNotFound, "engine_not_found", "The package registry has no version %s of %s; choose one of those that it lists.", pkg.version, pkg.name())
	}
	return v.Dist, nil
}

// ask gets a description into v; found is false where the registry has none at that address.
func (p *Provisioner) ask(ctx context.Context, url, accept string, pkg pkgRef, v any) (found bool, err error) {
	res, err := p.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: url, Credential: Scheme, Header: map[string]string{"Accept": accept}})
	if err != nil {
		return false, fmt.Errorf("ask the package registry for %s: %w", pkg.name(), err)
	}
	switch {
	case res.Status == 404 || res.Status == 405:
		return false, nil
	case res.Status == 401 || res.Status == 403:
		return false, failed(vendor.KindDenied, "registry_denied", "The package registry refused %s with status %d; put a token for it into your .npmrc.", pkg.name(), res.Status)
	case res.Status == 429 || res.Status >= 500:
		return false, failed(vendor.KindUnavailable, "registry_unavailable", "The package registry answered %d for %s; try again later.", res.Status, pkg.name())
	case res.Status != 200:
		return false, failed(vendor.KindUnavailable, "registry_unavailable", "The package registry answered %d for %s; check that the configured address is a registry.", res.Status, pkg.name())
	case len(res.Body) > maxDocument:
		return false, failed(vendor.KindExhausted, "answer_too_large", "What the package registry answered for %s has more than %d MiB, which no description of a package has; check that the configured address is a registry.", pkg.name(), maxDocument>>20)
	}
	if err := json.Unmarshal(res.Body, v); err != nil {
		return false, failed(vendor.KindUnavailable, "registry_garbage", "What the package registry answered for %s is not the description of a package (%v); check that the configured address is a registry.", pkg.name(), err)
	}
	return true, nil
}

// parseIntegrity takes the sha512 out of a subresource integrity string and returns it in hex.
func parseIntegrity(s string) (string, error) {
	for part := range strings.FieldsSeq(s) {
		b64, ok := strings.CutPrefix(part, "sha512-")
		if !ok {
			continue // sha1 and others prove nothing today
		}
		b64, _, _ = strings.Cut(b64, "?") // options
		raw, err := base64.StdEncoding.DecodeString(b64)
		if err != nil || len(raw) != 64 {
			return "", fmt.Errorf("%q is not a sha512 digest", part[:min(len(part), 100)])
		}
		return hex.EncodeToString(raw), nil
	}
	return "", fmt.Errorf("there is no sha512 in %q", s[:min(len(s), 100)])
}

// tarballSources says where the tarball can be had. Registries that mirror another one often name that one's host in their
// answers, and it may be out of reach: then the usual place on the configured registry comes first. The digest decides in
// either case. The user's token belongs to the configured registry, and the core sends it to no other host.
func tarballSources(registry string, pkg pkgRef, tarball string) ([]vendor.Source, error) {
	conf, err := url.Parse(registry)
	if err != nil {
		return nil, fmt.Errorf("parse the address of the registry: %w", err)
	}
	at, err := conf.Parse(tarball)
	if err != nil || tarball == "" || at.Host == "" || at.User != nil || (at.Scheme != "https" && at.Scheme != "http") {
		return nil, failed(vendor.KindUnavailable, "registry_garbage", "The package registry gives no usable address for the tarball of %s %s; check that the configured address is a registry.", pkg.name(), pkg.version)
	}
	given := vendor.Source{URL: at.String(), Credential: Scheme, Ranges: true}
	if sameHost(conf, at) {
		return []vendor.Source{given}, nil
	}
	_, base, ok := strings.Cut(pkg.name(), "/")
	if !ok {
		base = pkg.name()
	}
	sources := []vendor.Source{{URL: registry + "/" + pkg.name() + "/-/" + base + "-" + pkg.version + ".tgz", Credential: Scheme, Ranges: true}}
	if at.Scheme == "https" {
		sources = append(sources, given)
	}
	return sources, nil
}

// failed is an error that the user should read. A %w verb is written as the text of its error.
func failed(kind vendor.Kind, code, format string, args ...any) error {
	return &vendor.Error{Kind: kind, Code: code, Message: fmt.Errorf(format, args...).Error()}
}

// sameHost reports whether at is of the configured host and no less safe.
func sameHost(conf, at *url.URL) bool {
	return strings.EqualFold(at.Host, conf.Host) && (at.Scheme == conf.Scheme || at.Scheme == "https")
}
