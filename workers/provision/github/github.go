// Package github is the provisioner of engines that are published as assets of releases on GitHub, or on a server that speaks its
// protocol: github:OWNER/REPO@TAG/ASSET[//PROGRAM] names a build of llama.cpp's server in an archive. It asks for the release and
// its assets, and says which file to fetch and what its digest is, as the release gives it. It fetches no asset.
package github

import (
	"context"
	"encoding/json"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/plugins/llamaserver"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of the references, and the name of the credential that the provisioner asks the core to add.
const Scheme = "github"

// DefaultEndpoint is the address of the API that is asked where the settings name none.
const DefaultEndpoint = "https://api.github.com"

// Bounds of one release.
const (
	maxPages    = 20 // of 100 assets
	maxUnpacked = 16 << 30
	maxEntries  = 10_000
	maxListed   = 8
)

// Settings are the settings of the provisioner.
type Settings struct {
	Endpoint string `json:"endpoint,omitempty"` // URL of the API; empty: DefaultEndpoint
}

// Provisioner plans engines from assets of releases.
type Provisioner struct {
	endpoint *url.URL
	host     vendor.Host
	now      func() time.Time
}

// New returns the provisioner, which needs to be configured.
func New() *Provisioner { return &Provisioner{now: time.Now} }

// Info implements vendor.Provisioner.
func (p *Provisioner) Info() vendor.Info {
	return vendor.Info{
		Name: "github", Version: "1.0.0", Kind: vendor.KindProvisioner, Schemes: []string{Scheme}, Features: []string{vendor.FeatureLaunch, vendor.FeaturePin},
		ContractMinor: vendor.ContractMinor, Description: "Builds of llama.cpp's server that are assets of releases.", Requests: vendor.Requests{HTTP: []string{"api.github.com", "github.com", "*.githubusercontent.com"}, Credentials: []string{Scheme}},
	}
}

// Schema implements vendor.Configurable.
func (p *Provisioner) Schema() vendor.Schema {
	return vendor.Schema{Description: "Where the releases are.", Attributes: []vendor.Attribute{{
		Name: "endpoint", Type: "string", Example: `"https://github.example.org/api/v3"`, Description: "URL of the API; that of an enterprise server ends in /api/v3.",
	}}}
}

// Configure implements vendor.Configurable.
func (p *Provisioner) Configure(_ context.Context, c vendor.Configuration) error {
	s := Settings{}
	if len(c.Values) > 0 && json.Unmarshal(c.Values, &s) != nil {
		s.Endpoint = ":"
	}
	if s.Endpoint == "" {
		s.Endpoint = DefaultEndpoint
	}
	u, err := url.Parse(strings.TrimRight(s.Endpoint, "/"))
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "invalid_endpoint", Param: "endpoint", Message: "The endpoint of the provisioner github is not a URL of https:// with a host and a path alone; write for example https://github.example.org/api/v3."}
	}
	p.endpoint, p.host = u, c.Host
	return nil
}

// Supports implements vendor.Provisioner.
func (p *Provisioner) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// Pin implements vendor.Pinner.
func (p *Provisioner) Pin(ref string, on vendor.Platform) (reference, platform string, err error) {
	r, err := parse(ref)
	if err != nil {
		return "", "", err
	}
	if r.open() {
		return "", platformName(on), nil // the list of assets says which one it is
	}
	return r.String(), platformName(on), nil
}

func platformName(on vendor.Platform) string { return on.OS + "-" + on.Arch }

// Launch implements vendor.Launcher.
func (p *Provisioner) Launch(_ context.Context, req vendor.LaunchRequest) (*vendor.LaunchSpec, error) {
	r, err := parse(req.Reference)
	if err != nil {
		return nil, err
	}
	return llamaserver.Launch(r.at(), req), nil
}

type asset struct {
	Name     string `json:"name"`
	State    string `json:"state"` // "uploaded"; others are not complete
	Size     int64  `json:"size"`
	Digest   string `json:"digest"` // "sha256:…"; old assets have none
	URL      string `json:"url"`    // of the API: leads to a signed address, also of a private repository's asset
	Download string `json:"browser_download_url"`
}

func failed(kind vendor.Kind, code, message string) *vendor.Error {
	return &vendor.Error{Kind: kind, Code: code, Message: message}
}

// Plan implements vendor.Provisioner.
func (p *Provisioner) Plan(ctx context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	r, err := parse(req.Reference)
	if err != nil {
		return nil, err
	}
	if p.endpoint == nil {
		return nil, failed(vendor.KindInvalid, "not_configured", "The provisioner github was not configured.")
	}
	assets, err := p.assets(ctx, r)
	if err != nil {
		return nil, err
	}
	a, err := r.choose(assets, req.Platform)
	if err != nil {
		return nil, err
	}
	r.asset = a.Name
	sha, err := p.digest(ctx, r, a, assets)
	if err != nil {
		return nil, err
	}
	file := vendor.File{Path: "asset", Role: vendor.RoleArchive, Size: -1, Digests: vendor.Digests{SHA256: sha}, Sources: p.sources(ctx, a)}
	if a.Size > 0 {
		file.Size = a.Size
	}
	if len(file.Sources) == 0 {
		return nil, failed(vendor.KindUnavailable, "bad_answer", "The release "+r.release()+" gives no usable address for "+quote(a.Name)+"; check the endpoint of the provisioner github.")
	}
	plan := &vendor.Plan{
		Reference: r.String(), Name: llamaserver.Segment(r.repo), Version: llamaserver.Segment(r.tag), Platform: platformName(req.Platform), Files: []vendor.File{file},
		Steps: []vendor.Step{{Extract: &vendor.ExtractStep{File: file.Path, Into: ".", MaxBytes: maxUnpacked, MaxEntries: maxEntries}}},
	}
	if r.program == "" {
		plan.Steps = append(plan.Steps, vendor.Step{Link: &vendor.LinkStep{Name: llamaserver.Program, Match: "**/" + llamaserver.Program}})
	}
	plan.Steps = append(plan.Steps, vendor.Step{Expect: &vendor.ExpectStep{Path: r.at(), Executable: true, Message: "The asset " + quote(a.Name) + " holds no program " + r.at() + "; where it has another name, say it: " + Scheme + ":" + r.release() + "/" + r.asset + "//folder/program."}})
	return plan, nil
}

// assets lists the assets of a release, page by page.
func (p *Provisioner) assets(ctx context.Context, r reference) ([]asset, error) {
	repo := p.endpoint.String() + "/repos/" + r.owner + "/" + r.repo + "/releases"
	var release struct {
		ID    int64 `json:"id"`
		Draft bool  `json:"draft"`
	}
	if _, err := p.ask(ctx, repo+"/tags/"+url.PathEscape(r.tag), r, &release); err != nil {
		return nil, err
	}
	var all []asset
	next := repo + "/" + strconv.FormatInt(release.ID, 10) + "/assets?per_page=100"
	for range maxPages {
		var page []asset
		link, err := p.ask(ctx, next, r, &page)
		if err != nil {
			return nil, err
		}
		for _, a := range page {
			if a.State == "" || a.State == "uploaded" {
				all = append(all, a)
			}
		}
		if next = nextPage(link); next == "" {
			return all, nil
		}
		if u, err := url.Parse(next); err != nil || u.Scheme != p.endpoint.Scheme || u.Host != p.endpoint.Host {
			return nil, failed(vendor.KindUnavailable, "bad_answer", "The list of assets of "+r.release()+" goes on at another server than it began; check the endpoint of the provisioner github.")
		}
	}
	return nil, failed(vendor.KindExhausted, "too_many_assets", "The release "+r.release()+" has more than "+strconv.Itoa(100*maxPages)+" assets; choose another one.")
}

// nextPage finds the address of the next page in a Link header.
func nextPage(link string) string {
	for part := range strings.SplitSeq(link, ",") {
		at, rel, ok := strings.Cut(part, ";")
		if at = strings.TrimSpace(at); ok && strings.Contains(rel, `rel="next"`) && strings.HasPrefix(at, "<") && strings.HasSuffix(at, ">") {
			return at[1 : len(at)-1]
		}
	}
	return ""
}

// ask gets an answer of the API into v, and returns its Link header.
func (p *Provisioner) ask(ctx context.Context, at string, r reference, v any) (link string, err error) {
	res, err := p.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: at, Credential: Scheme, Header: map[string]string{"Accept": "application/vnd.github+json", "X-Github-Api-Version": "2022-11-28"}})
	if err != nil {
		return "", err
	}
	server := p.endpoint.Host
	switch {
	case res.Status == 404:
		return "", failed(vendor.KindNotFound, "engine_not_found", server+" knows no release "+r.release()+"; check owner, repository and tag, and for a private repository set a token by `apiary credential set github` or GITHUB_TOKEN.")
	case res.Status == 429 || res.Status == 403 && (res.Header["X-Ratelimit-Remaining"] == "0" || res.Header["Retry-After"] != ""):
		e := failed(vendor.KindExhausted, "rate_limited", server+" answers no more requests of this address for now; wait, or set a token by `apiary credential set github` or GITHUB_TOKEN, which has a higher limit.")
		e.RetryAfterMS = p.retryAfter(res.Header)
		return "", e
	case res.Status == 401 || res.Status == 403:
		return "", failed(vendor.KindDenied, "github_denied", server+" refused to tell of "+r.release()+" (status "+strconv.Itoa(res.Status)+"); check the token of the credential github.")
	case res.Status != 200:
		return "", failed(vendor.KindUnavailable, "github_unavailable", server+" answered "+strconv.Itoa(res.Status)+" for "+r.release()+"; try again later.")
	}
	if err := json.Unmarshal(res.Body, v); err != nil {
		return "", failed(vendor.KindUnavailable, "bad_answer", "What "+server+" answered for "+r.release()+" is no description of a release; check the endpoint of the provisioner github.")
	}
	return res.Header["Link"], nil
}

// retryAfter reads for how long a limit holds.
func (p *Provisioner) retryAfter(header map[string]string) int64 {
	if n, err := strconv.ParseInt(header["Retry-After"], 10, 64); err == nil && n > 0 && n < 1<<20 {
		return n * 1000
	}
	if at, err := strconv.ParseInt(header["X-Ratelimit-Reset"], 10, 64); err == nil {
		if wait := time.Unix(at, 0).Sub(p.now()); wait > 0 && wait < 24*time.Hour {
			return wait.Milliseconds()
		}
	}
	return 60_000
}

// sources says where an asset can be had: at its public address, and at the signed one to which the API leads who may have it.
func (p *Provisioner) sources(ctx context.Context, a *asset) []vendor.Source {
	var out []vendor.Source
	usable := func(raw string) bool {
		u, err := url.Parse(raw)
		return err == nil && u.Host != "" && u.User == nil && (u.Scheme == "https" || u.Scheme == p.endpoint.Scheme)
	}
	if usable(a.Download) {
		out = append(out, vendor.Source{URL: a.Download, Credential: Scheme, Ranges: true})
	}
	if u, err := url.Parse(a.URL); err != nil || u.Scheme != p.endpoint.Scheme || u.Host != p.endpoint.Host {
		return out
	}
	res, err := p.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: a.URL, Credential: Scheme, Manual: true, Header: map[string]string{"Accept": "application/octet-stream"}})
	if err == nil && res.Status >= 301 && res.Status <= 308 && usable(res.Header["Location"]) {
		out = append(out, vendor.Source{URL: res.Header["Location"], Ranges: true})
	}
	return out
}

// digest returns the sha256 of an asset: from its description, or from a list of checksums beside it.
func (p *Provisioner) digest(ctx context.Context, r reference, a *asset, all []asset) (string, error) {
	if sha, ok := strings.CutPrefix(strings.ToLower(a.Digest), "sha256:"); ok && isSHA256(sha) {
		return sha, nil
	}
	for _, list := range all {
		name := strings.ToLower(list.Name)
		alone := name == strings.ToLower(a.Name)+".sha256" || name == strings.ToLower(a.Name)+".sha256sum"
		if !alone && !strings.Contains(name, "sha256sum") && !strings.Contains(name, "checksums") || path.Ext(name) == ".sig" || path.Ext(name) == ".asc" || list.Size > 1<<20 {
			continue
		}
		res, err := p.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: list.Download, Credential: Scheme})
		if err != nil {
			return "", err
		}
		if res.Status != 200 {
			continue
		}
		for line := range strings.Lines(string(res.Body)) {
			fields := strings.Fields(line)
			if len(fields) > 0 && isSHA256(strings.ToLower(fields[0])) && (alone && len(fields) == 1 || len(fields) == 2 && path.Base(strings.TrimPrefix(fields[1], "*")) == a.Name) {
				return strings.ToLower(fields[0]), nil
			}
		}
	}
	return "", failed(vendor.KindDenied, "no_digest", "The release "+r.release()+" gives no sha256 for "+quote(a.Name)+", neither with the asset nor in a list such as SHA256SUMS, so what is fetched cannot be proved to be it; choose a newer release, or write a recipe with the digest that you know.")
}

func isSHA256(s string) bool { return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == "" }
