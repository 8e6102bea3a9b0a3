// Package url is the vendor of models that lie somewhere on the web: https://host/path/model.gguf, or the same behind url:,
// with ?checksum=sha256:HEX where the bytes are to be those and no others; or a file of an archive there, in go-getter's form. It asks how long the file is and reads lists of
// checksums; the core fetches the file. It imports nothing but the contract and parts of the standard library that a WASM
// guest can carry.
package url

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Schemes of references. An http address is one that the configuration must name.
const (
	Scheme      = "url"
	SchemeHTTPS = "https"
	SchemeHTTP  = "http"
)

// Credential is the name of the credential that is added towards the hosts that it belongs to.
const Credential = "url"

const (
	maxReference = 4096
	maxShards    = 128
)

// Vendor resolves addresses.
type Vendor struct{ host vendor.Host }

// New returns the vendor. It answers after Configure.
func New() *Vendor { return &Vendor{} }

// Info implements vendor.Vendor.
func (v *Vendor) Info() vendor.Info {
	return vendor.Info{
		Name: "url", Version: "1.0.0", Kind: vendor.KindVendor, Schemes: []string{Scheme, SchemeHTTPS, SchemeHTTP},
		Description: "GGUF files anywhere on the web, with a checksum where there is one.",
		Requests:    vendor.Requests{Credentials: []string{Credential}}, // which hosts, only who grants them knows
	}
}

// Schema implements vendor.Configurable: there are no settings.
func (v *Vendor) Schema() vendor.Schema { return vendor.Schema{} }

// Configure implements vendor.Configurable.
func (v *Vendor) Configure(_ context.Context, c vendor.Configuration) error {
	v.host = c.Host
	return nil
}

// Supports implements vendor.Vendor.
func (v *Vendor) Supports(ref string) bool {
	for _, scheme := range []string{Scheme + ":", SchemeHTTPS + "://", SchemeHTTP + "://"} {
		if strings.HasPrefix(ref, scheme) {
			return true
		}
	}
	return false
}

// reference is an address with what is asked of its bytes.
type reference struct {
	target   *url.URL // without the checksum
	checksum string   // as it was written; "": none
	archive  bool     // the model is inside of what is there
	member   string   // its path in the archive; "": the only one
}

func invalid(why string) error {
	return &vendor.Error{Kind: vendor.KindInvalid, Code: "invalid_reference", Param: "reference", Message: why}
}

// parse reads a reference. What is left of the query is sent as it was written, since it may be signed.
func parse(full string) (reference, error) {
	const example = "write https://HOST/PATH/model.gguf, with ?checksum=sha256:HEX where you know it"
	if len(full) > maxReference {
		return reference{}, invalid("The address of a model is too long; " + example + ".")
	}
	text, plain := strings.CutPrefix(full, Scheme+":")
	if base, ok := cutPin(text); ok && !plain {
		text = base // the core, which wrote the pin, compares it with what it gets
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != SchemeHTTPS && u.Scheme != SchemeHTTP || u.Host == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f }):
		return reference{}, invalid("The reference is no address of a model; " + example + ".")
	case u.User != nil:
		return reference{}, invalid("An address with a name or a password in it is not used, since it would be shown and stored; set them with `apiary credential set url` instead.")
	}
	u.Fragment, u.RawFragment = "", ""
	r := reference{target: u}
	var kept []string
	archive := ""
	for part := range strings.SplitSeq(u.RawQuery, "&") {
		name, value, _ := strings.Cut(part, "=")
		switch name {
		case "checksum":
			if r.checksum, err = url.QueryUnescape(value); err != nil || r.checksum == "" {
				return reference{}, invalid("The checksum in the address of a model cannot be read; write ?checksum=sha256:HEX.")
			}
		case "archive":
			archive = value
		case "":
		default:
			kept = append(kept, part)
		}
	}
	u.RawQuery = strings.Join(kept, "&")
	return r, r.unpack(archive)
}

// cutPin splits address@<12 hex>, as the core writes the names of models whose bytes nobody had promised.
func cutPin(s string) (base string, ok bool) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 || len(s)-i-1 != 12 || !isHex(s[i+1:], 12) || strings.IndexByte(s[i:], '/') >= 0 {
		return s, false
	}
	return s[:i], true
}

func isHex(s string, n int) bool { return len(s) == n && strings.Trim(s, "0123456789abcdef") == "" }

// Resolve implements vendor.Vendor. The canonical reference is the address, with its checksum where one is known; otherwise the
// core adds the beginning of the digest.
func (v *Vendor) Resolve(ctx context.Context, req vendor.ResolveRequest) (*vendor.Manifest, error) {
	r, err := parse(req.Reference)
	if err != nil {
		return nil, err
	}
	if v.host == nil {
		return nil, &vendor.Error{Kind: vendor.KindInternal, Code: "not_configured", Message: "The vendor url was asked before it was configured; report this."}
	}
	digests, err := v.digests(ctx, r)
	if err != nil {
		return nil, err
	}
	m := &vendor.Manifest{Reference: r.canonical(digests), Format: "gguf"}
	targets := []string{r.target.String()}
	if s, ok := parseShard(r.target.Path); ok && s.count > 1 && !r.archive {
		if digests != (vendor.Digests{}) {
			return nil, invalid("A checksum is for one file, and " + show(r.target) + " is one of " + strconv.Itoa(s.count) + "; leave the checksum out.")
		}
		if s.count > maxShards {
			return nil, invalid(show(r.target) + " is one of " + strconv.Itoa(s.count) + " files, which is more than the " + strconv.Itoa(maxShards) + " that are fetched from an address.")
		}
		targets = nil
		for i := 1; i <= s.count; i++ {
			part := *r.target
			part.Path, part.RawPath = s.name(i), ""
			targets = append(targets, part.String())
		}
		first := *r.target
		first.Path, first.RawPath = s.name(1), ""
		m.Reference = first.String()
	}
	for _, target := range targets {
		f, err := v.probe(ctx, target)
		if err != nil {
			return nil, err
		}
		if f.Role = vendor.RoleWeights; r.archive {
			r.pack(&f, digests)
		} else {
			f.Digests = digests
		}
		m.Files = append(m.Files, f)
	}
	return m, nil
}

// canonical is the one form of the address.
func (r reference) canonical(d vendor.Digests) string {
	u := *r.target
	checksum, query := "", u.RawQuery
	if r.archive {
		if r.member != "" {
			u.Path, u.RawPath = u.Path+"//"+r.member, ""
		}
		if !isArchive(r.target.Path) {
			query = strings.TrimPrefix(query+"&archive=zip", "&") // whichever it is, its first bytes say
		}
	}
	switch {
	case d.SHA256 != "":
		checksum = "checksum=sha256:" + d.SHA256
	case d.SHA512 != "":
		checksum = "checksum=sha512:" + d.SHA512
	default:
		return u.String()
	}
	if query != "" {
		checksum = query + "&" + checksum
	}
	u.RawQuery = checksum
	return u.String()
}

// show is an address for messages: without its query, which may be secret.
func show(u *url.URL) string { return u.Host + u.EscapedPath() }

// probe asks how long a file is.
func (v *Vendor) probe(ctx context.Context, target string) (vendor.File, error) {
	u, err := url.Parse(target)
	if err != nil {
		return vendor.File{}, err // it was written by url.URL
	}
	f := vendor.File{Path: name(u), Size: -1, Sources: []vendor.Source{{URL: target, Credential: Credential}}}
	ask := func(method string, header map[string]string) (*vendor.HTTPResponse, error) {
		header["Accept-Encoding"] = "identity"
		return v.host.HTTP(ctx, vendor.HTTPRequest{Method: method, URL: target, Credential: Credential, Header: header})
	}
	res, err := ask("HEAD", map[string]string{})
	if err != nil {
		return f, err
	}
	if res.Status != 200 && res.Status != 401 && res.Status != 404 && res.Status != 410 && res.Status != 429 && res.Status < 500 || res.Status == 501 {
		// Signed addresses are often for GET only, and some servers know no HEAD.
		if res, err = ask("GET", map[string]string{"Range": "bytes=0-0"}); err != nil {
			return f, err
		}
		if _, total, ok := strings.Cut(res.Header["Content-Range"], "/"); ok && res.Status == 206 {
			f.Sources[0].Ranges = true
			if n, err := strconv.ParseInt(total, 10, 64); err == nil && n >= 0 {
				f.Size = n
			}
			return f, page(u, res)
		}
	}
	if err := refused(u, res); err != nil {
		return f, err
	}
	if n, err := strconv.ParseInt(res.Header["Content-Length"], 10, 64); err == nil && n > 0 && (res.Header["Content-Encoding"] == "" || res.Header["Content-Encoding"] == "identity") {
		f.Size = n
	}
	f.Sources[0].Ranges = res.Header["Accept-Ranges"] == "bytes"
	return f, page(u, res)
}

// page refuses what a browser shows.
func page(u *url.URL, res *vendor.HTTPResponse) error {
	if !strings.HasPrefix(res.Header["Content-Type"], "text/html") {
		return nil
	}
	return &vendor.Error{
		Kind: vendor.KindInvalid, Code: "not_a_model", Param: "reference",
		Message: show(u) + " is a web page and no model; give the address of the file itself, which the page's download button has.",
	}
}

// refused turns the answer to a probe into an error for people.
func refused(u *url.URL, res *vendor.HTTPResponse) error {
	e := &vendor.Error{}
	status := " (" + strconv.Itoa(res.Status) + ")"
	switch c := res.Status; {
	case c == 200 || c == 206:
		return nil
	case c == 404 || c == 410:
		e.Kind, e.Code, e.Message = vendor.KindNotFound, "model_not_found", "There is no file at "+show(u)+status+"; check the address."
	case c == 401 || c == 403:
		e.Kind, e.Code, e.Message = vendor.KindDenied, "source_denied", u.Host+" refuses to send "+show(u)+status+"; if it wants a token, set it with `apiary credential set url --host "+u.Host+"`."
	case c == 429:
		e.Kind, e.Code, e.Message = vendor.KindExhausted, "rate_limited", u.Host+" answers no more requests from here for now"+status+"; try again in a few minutes."
		if n, err := strconv.ParseInt(res.Header["Retry-After"], 10, 64); err == nil && n > 0 && n < 86_400 {
			e.RetryAfterMS = n * 1000
		}
	case c >= 500:
		e.Kind, e.Code, e.Message = vendor.KindUnavailable, "source_unavailable", u.Host+" is in trouble"+status+"; try again later."
	default:
		e.Kind, e.Code, e.Message = vendor.KindUnavailable, "source_broken", u.Host+" answered with the status "+strconv.Itoa(c)+" when it was asked for "+show(u)+"; check the address."
	}
	return e
}

// name is what the file is called in the store: what the address calls it, as far as that is a name.
func name(u *url.URL) string {
	base := strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f || strings.ContainsRune(`\/:*?"<>|`, r) {
			return '_'
		}
		return r
	}, u.Path[strings.LastIndexByte(u.Path, '/')+1:])
	base = strings.Trim(base, ". ")
	if len(base) > 200 {
		base = base[len(base)-200:]
	}
	if base == "" {
		return "model.gguf"
	}
	return base
}

// shard is the path of one file of several: stem-00001-of-00003.gguf.
type shard struct {
	stem         string
	index, count int
}

func (s shard) name(i int) string { return s.stem + "-" + five(i) + "-of-" + five(s.count) + ".gguf" }

func five(n int) string {
	text := strconv.Itoa(n)
	return strings.Repeat("0", max(0, 5-len(text))) + text
}

func parseShard(path string) (shard, bool) {
	const tail = len("-00001-of-00003")
	rest, ok := strings.CutSuffix(path, ".gguf")
	if !ok || len(rest) <= tail {
		return shard{}, false
	}
	s := shard{stem: rest[:len(rest)-tail]}
	t := rest[len(s.stem):]
	var err1, err2 error
	s.index, err1 = strconv.Atoi(t[1:6])
	s.count, err2 = strconv.Atoi(t[10:])
	return s, err1 == nil && err2 == nil && s.index >= 1 && s.index <= s.count && s.name(s.index) == path
}
