package conformance

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

const (
	indexURL = "https://models.example.org/index.json"
	digest   = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)

// plugin is a good vendor, or a good provisioner, which tests make a bad one of.
type plugin struct {
	info   vendor.Info
	schema vendor.Schema
	host   vendor.Host
	url    string
	key    string

	resolve func(ctx context.Context, p *plugin, ref string) (*vendor.Manifest, error)
	change  func(*vendor.Manifest)
	plan    func(*vendor.Plan)
	pin     func(reference *string)
	launch  func(*vendor.LaunchSpec)
	list    func([]vendor.EngineChoice) []vendor.EngineChoice
	search  func([]vendor.SearchResult) []vendor.SearchResult
	refresh func([]vendor.File) []vendor.File
	config  func(values string) error
}

func refuse(kind vendor.Kind, code, message string) *vendor.Error {
	return &vendor.Error{Kind: kind, Code: code, Message: message}
}

func goodSchema() vendor.Schema {
	return vendor.Schema{Attributes: []vendor.Attribute{
		{Name: "url", Type: "string", DefaultJSON: `"` + indexURL + `"`, Description: "URL of the index."},
		{Name: "key", Type: "string", Sensitive: true, DefaultJSON: `""`, Description: "A key."},
	}}
}

func (p *plugin) configure(c vendor.Configuration) error {
	var values struct{ URL, Key string }
	if err := json.Unmarshal(c.Values, &values); err != nil {
		return refuse(vendor.KindInvalid, "bad_config", "The settings cannot be read.")
	}
	if p.config != nil {
		if err := p.config(string(c.Values)); err != nil {
			return err
		}
	}
	if !strings.HasPrefix(values.URL, "https://") {
		e := refuse(vendor.KindInvalid, "bad_config", "The url must begin with https.")
		e.Param = "url"
		return e
	}
	p.host, p.url, p.key = c.Host, values.URL, values.Key
	return nil
}

// fetch gets the index, and tells what went wrong.
func (p *plugin) fetch(ctx context.Context) error {
	resp, err := p.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: p.url})
	if err != nil {
		return err
	}
	var found struct {
		Models map[string]string `json:"models"`
	}
	switch {
	case resp.Status == 404:
		return refuse(vendor.KindNotFound, "no_index", "There is no index.")
	case resp.Status == 401 || resp.Status == 403:
		return refuse(vendor.KindDenied, "denied", "The server refuses.")
	case resp.Status == 429:
		n, _ := strconv.ParseInt(resp.Header["Retry-After"], 10, 64)
		e := refuse(vendor.KindExhausted, "limited", "Try again later.")
		e.RetryAfterMS = n * 1000
		return e
	case resp.Status != 200 || json.Unmarshal(resp.Body, &found) != nil || found.Models["tiny"] == "":
		return refuse(vendor.KindUnavailable, "bad_index", "The index cannot be read.")
	}
	return nil
}

// known reports whether ref is the one thing that there is.
func (p *plugin) known(ref string) error {
	switch ref {
	case p.info.Schemes[0] + ":tiny", p.info.Schemes[0] + ":tiny@1":
		return nil
	}
	return refuse(vendor.KindNotFound, "not_found", "There is no such thing.")
}

type goodVendor struct{ *plugin }

func (p goodVendor) Info() vendor.Info                                         { return p.info }
func (p goodVendor) Supports(ref string) bool                                  { return strings.HasPrefix(ref, p.info.Schemes[0]+":") }
func (p goodVendor) Schema() vendor.Schema                                     { return p.schema }
func (p goodVendor) Configure(_ context.Context, c vendor.Configuration) error { return p.configure(c) }
func (p goodVendor) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	if p.resolve != nil {
		if m, err := p.resolve(ctx, p.plugin, req.Reference); m != nil || err != nil {
			return m, err
		}
	}
	if err := p.known(req.Reference); err != nil {
		return nil, err
	}
	if err := p.fetch(ctx); err != nil {
		return nil, err
	}
	m := &vendor.Manifest{Reference: "good:tiny@1", Format: "gguf", Files: []vendor.File{{Path: "tiny.gguf", Role: vendor.RoleWeights, Size: 3,
		Digests: vendor.Digests{SHA256: digest}, Sources: []vendor.Source{{URL: "https://models.example.org/tiny.gguf"}}}}}
	if p.change != nil {
		p.change(m)
	}
	return m, nil
}
func (p goodVendor) Search(ctx context.Context, req vendor.SearchRequest) ([]vendor.SearchResult, error) {
	found := []vendor.SearchResult{{Reference: "good:tiny", Description: "a small one"}}
	if p.search != nil {
		found = p.search(found)
	}
	return found, nil
}
func (p goodVendor) RefreshSources(ctx context.Context, req vendor.RefreshRequest) ([]vendor.File, error) {
	m, err := p.Resolve(ctx, vendor.ResolveRequest{Reference: req.Reference})
	if err != nil {
		return nil, err
	}
	if p.refresh != nil {
		m.Files = p.refresh(m.Files)
	}
	return m.Files, nil
}

type goodProvisioner struct{ *plugin }

func (p goodProvisioner) Info() vendor.Info        { return p.info }
func (p goodProvisioner) Supports(ref string) bool { return true }
func (p goodProvisioner) Schema() vendor.Schema    { return p.schema }
func (p goodProvisioner) Configure(_ context.Context, c vendor.Configuration) error {
	return p.configure(c)
}
func (p goodProvisioner) Plan(ctx context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	if err := p.known(req.Reference); err != nil {
		return nil, err
	}
	if err := p.fetch(ctx); err != nil {
		return nil, err
	}
	plan := &vendor.Plan{Reference: "good:tiny@1", Name: "tiny", Version: "1", Platform: "linux-x64",
		Files: []vendor.File{{Path: "tiny.tgz", Size: 3, Digests: vendor.Digests{SHA256: digest}, Sources: []vendor.Source{{URL: "https://models.example.org/tiny.tgz"}}}},
		Steps: []vendor.Step{{Extract: &vendor.ExtractStep{File: "tiny.tgz", Into: "."}}, {Run: &vendor.RunStep{Tool: "cmake", Dir: "src"}},
			{Link: &vendor.LinkStep{Name: "lib.so", Match: "lib/*.so"}}, {Expect: &vendor.ExpectStep{Path: "bin/server", Message: "There is no server."}}}}
	if p.plan != nil {
		p.plan(plan)
	}
	return plan, nil
}
func (p goodProvisioner) Pin(ref string, _ vendor.Platform) (string, string, error) {
	if err := p.known(ref); err != nil {
		return "", "", err
	}
	reference := "good:tiny@1"
	if p.pin != nil {
		p.pin(&reference)
	}
	return reference, "linux-x64", nil
}
func (p goodProvisioner) List(_ context.Context, req vendor.ListRequest) ([]vendor.EngineChoice, error) {
	all := []vendor.EngineChoice{{Reference: "good:tiny", Description: "a small one"}}
	if p.list != nil {
		all = p.list(all)
	}
	return all, nil
}
func (p goodProvisioner) Launch(_ context.Context, req vendor.LaunchRequest) (*vendor.LaunchSpec, error) {
	spec := &vendor.LaunchSpec{Path: "bin/server", Args: []string{"--port", "{port}", "--model", req.Model}, Protocol: vendor.ProtocolOpenAI, ReadyPath: "/health"}
	if p.launch != nil {
		p.launch(spec)
	}
	return spec, nil
}

func newPlugin(kind string) *plugin {
	p := &plugin{schema: goodSchema(), info: vendor.Info{Name: "good", Version: "1.0.0", Kind: kind, Schemes: []string{"good"}, Description: "A good one.",
		Requests: vendor.Requests{HTTP: []string{"models.example.org"}, Run: []string{"cmake"}}}}
	p.info.Features = []string{vendor.FeatureSearch, vendor.FeatureRefresh}
	if kind == vendor.KindProvisioner {
		p.info.Features = []string{vendor.FeaturePin, vendor.FeatureList, vendor.FeatureLaunch}
	}
	return p
}

func goodCases() Cases {
	return Cases{
		Bad:     []BadSettings{{Settings: map[string]json.RawMessage{"url": json.RawMessage(`"ftp://x"`)}, Param: "url"}},
		HTTP:    []Answer{{URL: indexURL, JSON: json.RawMessage(`{"models": {"tiny": "1"}}`)}},
		Resolve: []Wanted{{Reference: "good:tiny", Canonical: "good:tiny@1"}},
		Refuse:  []Refused{{Reference: "good:none", Kind: vendor.KindNotFound, Code: "not_found"}},
		Search:  []Query{{Query: "tiny", Results: 1}},
		Faults:  map[string]vendor.Kind{"404": vendor.KindNotFound, "429": vendor.KindExhausted},
	}
}

// open makes a Subject of a plugin, with its calls in the hands of wrap.
func open(p *plugin, wrap func(vendor.Invoker, vendor.Host, *slog.Logger) vendor.Invoker) Subject {
	return Subject{Calls: 40, Open: func(_ context.Context, on vendor.Host, log *slog.Logger) (Instance, error) {
		one := *p
		var inv vendor.Invoker
		if one.info.Kind == vendor.KindProvisioner {
			inv = sdk.Dispatch(goodProvisioner{&one}, on)
		} else {
			inv = sdk.Dispatch(goodVendor{&one}, on)
		}
		if wrap != nil {
			inv = wrap(inv, on, log)
		}
		return testProcess{inv}, nil
	}}
}

// testProcess is an instance whose memory is that of the test.
type testProcess struct{ vendor.Invoker }

func (testProcess) PID() int     { return os.Getpid() }
func (testProcess) Close() error { return nil }

func TestGoodPluginsPass(t *testing.T) {
	for _, kind := range []string{vendor.KindVendor, vendor.KindProvisioner} {
		manifest := &vendor.StaticManifest{Contract: contractOf(kind), Info: newPlugin(kind).info, Schema: goodSchema()}
		subject := open(newPlugin(kind), nil)
		subject.Manifest = manifest
		sum := Run(t.Context(), subject, goodCases(), func(r Result) {
			if r.Outcome != Pass {
				t.Errorf("%s: %s: %s: %s", kind, r.Outcome, r.Name, r.Detail)
			}
		})
		if sum.Contract != contractOf(kind) || sum.Passed < 35 {
			t.Errorf("%+v", sum)
		}
	}
}
