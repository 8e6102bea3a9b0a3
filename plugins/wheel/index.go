// Package wheel reads what a Python package registry says about a project in the JSON form of its simple index (PEP 503, 691 and
// 700; the older HTML form is refused), and chooses a wheel: for the vendor of models and for the provisioner of engines that are
// published in wheels. It looks into no wheel and runs nothing of one.
package wheel

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Media is the form of answers that is asked for.
const Media = "application/vnd.pypi.simple.v1+json"

// maxListed bounds how many versions an error lists.
const maxListed = 8

// Settings are the settings of a plugin that uses an index.
type Settings struct {
	Registry string `json:"registry"` // URL of the simple index
}

// Schema describes them.
func Schema() vendor.Schema {
	return vendor.Schema{
		Description: "Where the packages are.",
		Attributes: []vendor.Attribute{{
			Name: "registry", Type: "string", Required: true, Example: `"https://pypi.example.org/simple"`,
			Description: "URL of the registry's simple index, as pip's index-url has it.",
		}},
	}
}

// Index is the simple index of a registry.
type Index struct {
	plugin   string   // in messages: "vendor pypi"
	missing  string   // code of the error for a package that there is not
	registry *url.URL // without a slash at the end
	host     vendor.Host
}

// Open returns the index that the settings name, for a plugin that messages call plugin: "vendor pypi". A package that there is not
// has an error of the code missing.
func Open(plugin, missing string, c vendor.Configuration) (*Index, error) {
	var values Settings
	bad := func(why string) error {
		return &vendor.Error{Kind: vendor.KindInvalid, Code: "invalid_registry", Param: "registry", Message: "The registry of the " + plugin + " is not an address that can be used: " + why + "; write for example https://pypi.example.org/simple."}
	}
	if err := json.Unmarshal(c.Values, &values); err != nil {
		return nil, bad("the settings are no object with a text `registry`")
	}
	u, err := url.Parse(strings.TrimRight(values.Registry, "/"))
	switch {
	case err != nil:
		return nil, bad("it is no URL")
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return nil, bad("it must start with https:// or http:// and name a host")
	case u.User != nil:
		return nil, bad("it must not hold a password, which belongs into a credential")
	case u.RawQuery != "" || u.Fragment != "":
		return nil, bad("it must end with its path")
	}
	return &Index{plugin, missing, u, c.Host}, nil
}

// File is a file of a project, as the registry lists it.
type File struct {
	Filename string            `json:"filename"`
	URL      string            `json:"url"`
	Hashes   map[string]string `json:"hashes"`
	Size     *int64            `json:"size"`
	Yanked   json.RawMessage   `json:"yanked"` // false, true, or the reason
}

// yanked reports whether the publisher has withdrawn the file, and why.
func (f File) yanked() (reason string, yes bool) {
	raw := string(bytes.TrimSpace(f.Yanked))
	if json.Unmarshal(f.Yanked, &reason) == nil && raw != "null" {
		return reason, true
	}
	return "", raw == "true"
}

// Project is the registry's answer.
type Project struct {
	Meta struct {
		Version string `json:"api-version"`
	} `json:"meta"`
	Files []File `json:"files"`

	base *url.URL // the address of the answer
}

// garbage says that the registry, or what answers in its place, does not keep to the protocol.
func (x *Index) garbage(name, how string) error {
	return &vendor.Error{
		Kind: vendor.KindUnavailable, Code: "registry_garbage",
		Message: "What the package registry " + x.registry.Host + " answered for " + name + " cannot be used: " + how + "; check that its address is that of a simple index, or use another registry.",
	}
}

// Project asks for the list of files of a project, by its normalised name.
func (x *Index) Project(ctx context.Context, name string) (*Project, error) {
	if x == nil {
		return nil, &vendor.Error{Kind: vendor.KindInvalid, Code: "no_registry", Message: "No Python package registry is configured; set `registry` in the settings of what is asked."}
	}
	res, err := x.host.HTTP(ctx, vendor.HTTPRequest{
		Method: "GET", URL: x.registry.String() + "/" + name + "/", Credential: Scheme, Header: map[string]string{"Accept": Media},
	})
	if err != nil {
		return nil, err
	}
	fail := func(kind vendor.Kind, code, message string) error {
		return &vendor.Error{Kind: kind, Code: code, Message: message}
	}
	registry := "The package registry " + x.registry.Host
	status := strconv.Itoa(res.Status)
	switch {
	case res.Status == 404 || res.Status == 410:
		return nil, fail(vendor.KindNotFound, x.missing, registry+" does not know a package "+name+"; check the name.")
	case res.Status == 401 || res.Status == 403:
		return nil, fail(vendor.KindDenied, "registry_denied", registry+" refused to tell of "+name+" (status "+status+"); put user name and password into pip's index-url, or set a credential \"pypi\".")
	case res.Status == 429 || res.Status >= 500:
		return nil, fail(vendor.KindUnavailable, "registry_unavailable", registry+" answered "+status+" for "+name+"; try again later.")
	case res.Status != 200:
		return nil, x.garbage(name, "its status is "+status)
	}
	if kind, _, _ := strings.Cut(strings.ToLower(res.Header["Content-Type"]), ";"); strings.Contains(kind, "html") {
		return nil, fail(vendor.KindUnavailable, "registry_too_old", registry+" answers in the old HTML form only, and Apiary needs the JSON form (PEP 691), for the digests and sizes; update the registry or use another one.")
	}
	var p Project
	if err := json.Unmarshal(res.Body, &p); err != nil {
		return nil, x.garbage(name, "it is no JSON")
	}
	if major, _, _ := strings.Cut(p.Meta.Version, "."); major != "1" {
		return nil, x.garbage(name, "its version is "+Quote(p.Meta.Version)+" and not 1.x")
	}
	if p.base, err = url.Parse(res.URL); err != nil || p.base.Host == "" {
		p.base = x.registry.JoinPath(name, "/")
	}
	return &p, nil
}

// Pick finds the version that ref asks for, or the newest that is neither a preview nor withdrawn, writes it into ref, and
// returns its wheels.
func (p *Project) Pick(ref *Reference) ([]Wheel, error) {
	var all, usable []Wheel
	for _, f := range p.Files {
		if w, ok := parseWheel(f, ref.Name); ok {
			all = append(all, w)
			if _, gone := f.yanked(); !gone {
				usable = append(usable, w)
			}
		}
	}
	newestFirst := func(a, b Wheel) int { return b.Version.Compare(a.Version) }
	slices.SortStableFunc(all, newestFirst)
	slices.SortStableFunc(usable, newestFirst)
	fail := func(code, message string) error {
		return &vendor.Error{Kind: vendor.KindNotFound, Code: code, Param: "reference", Message: message, Candidates: candidates(*ref, usable)}
	}
	if len(all) == 0 {
		return nil, fail("no_wheel", "The package "+ref.Name+" has no wheel, and Apiary builds nothing from the source of a package; choose another one.")
	}
	wanted, exact := ParseVersion(ref.Version)
	if !exact {
		i := slices.IndexFunc(usable, func(w Wheel) bool { return !w.Version.Preview() })
		switch {
		case len(usable) == 0:
			return nil, fail("yanked", "All versions of "+ref.Name+" have been withdrawn by their publisher"+because(all[0])+"; choose another package.")
		case i < 0:
			return nil, fail("only_previews", "All versions of "+ref.Name+" are previews; name one of them: "+versions(usable)+".")
		}
		wanted = usable[i].Version
	}
	other := func(w Wheel) bool { return w.Version.Compare(wanted) != 0 }
	found := slices.DeleteFunc(slices.Clone(usable), other)
	if len(found) == 0 {
		if gone := slices.DeleteFunc(slices.Clone(all), other); len(gone) > 0 {
			return nil, fail("yanked", "Version "+ref.Version+" of "+ref.Name+" has been withdrawn by its publisher"+because(gone[0])+"; choose one of "+versions(usable)+".")
		}
		return nil, fail("version_not_found", "The package "+ref.Name+" has no wheel of version "+ref.Version+"; there are "+versions(usable)+".")
	}
	ref.Version = found[0].Version.Text
	return found, nil
}

// because gives the reason for a withdrawal.
func because(w Wheel) string {
	if reason, _ := w.yanked(); reason != "" {
		return " (" + Quote(reason) + ")"
	}
	return ""
}

// versions lists a few versions of wheels that are in order.
func versions(wheels []Wheel) string {
	var list []string
	for _, w := range wheels {
		if text := w.Version.Text; len(list) == 0 || list[len(list)-1] != text {
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
func candidates(ref Reference, wheels []Wheel) []string {
	var out []string
	for _, w := range wheels {
		ref.Version = w.Version.Text
		if s := ref.String(); len(out) < maxListed && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Listed names a few Wheels.
func Listed(wheels []Wheel) string {
	var names []string
	for _, w := range wheels[:min(len(wheels), maxListed)] {
		names = append(names, Quote(w.Filename))
	}
	return strings.Join(names, ", ")
}

// Digest returns the sha256 that the registry gives for a wheel.
func Digest(w *Wheel) (string, error) {
	sha := strings.ToLower(w.Hashes["sha256"])
	if len(sha) != 64 || strings.Trim(sha, "0123456789abcdef") != "" {
		return "", &vendor.Error{Kind: vendor.KindDenied, Code: "no_digest", Message: "The registry gives no sha256 for " + Quote(w.Filename) + ", so what it sends cannot be proved to be the package; use another registry."}
	}
	return sha, nil
}

// Sources says where a wheel can be had. Registries that mirror another one often name that one's host in their answers, and
// it may be out of reach: then the same path on the configured registry comes first. The digest decides in either case.
func (x *Index) Sources(p *Project, w *Wheel) ([]vendor.Source, error) {
	at, err := p.base.Parse(w.URL)
	if err != nil || w.URL == "" || at.Host == "" || at.User != nil || at.Scheme != "https" && at.Scheme != "http" {
		return nil, x.garbage(Quote(w.Filename), "it gives no usable address for the file")
	}
	at.Fragment, at.RawFragment = "", ""
	given := vendor.Source{URL: at.String(), Credential: Scheme, Ranges: true}
	if strings.EqualFold(at.Host, x.registry.Host) {
		if at.Scheme != "https" && at.Scheme != x.registry.Scheme {
			return nil, x.garbage(Quote(w.Filename), "it names a file that is not sent over https")
		}
		return []vendor.Source{given}, nil
	}
	mirror := *at
	mirror.Scheme, mirror.Host, mirror.RawQuery = x.registry.Scheme, x.registry.Host, ""
	sources := []vendor.Source{{URL: mirror.String(), Credential: Scheme, Ranges: true}}
	if at.Scheme == "https" {
		sources = append(sources, given)
	}
	return sources, nil
}
