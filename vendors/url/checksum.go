package url

import (
	"context"
	"net/url"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// digests reads the checksum of a reference: sha256:HEX, sha512:HEX, HEX alone, or file:ADDRESS of a list of checksums.
func (v *Vendor) digests(ctx context.Context, r reference) (vendor.Digests, error) {
	if r.checksum == "" {
		return vendor.Digests{}, nil
	}
	kind, value, ok := strings.Cut(r.checksum, ":")
	if !ok {
		kind, value = "", r.checksum
	}
	if kind == "file" {
		return v.listed(ctx, r, value)
	}
	d, ok := digest(kind, value)
	if !ok {
		return d, invalid("The checksum in the address of " + show(r.target) + " is no SHA-256 or SHA-512; write ?checksum=sha256: and its 64 digits. Shorter ones, such as MD5, prove nothing.")
	}
	return d, nil
}

// digest reads one digest, of a kind that is named or follows from its length.
func digest(kind, value string) (vendor.Digests, bool) {
	value = strings.ToLower(value)
	switch {
	case (kind == "" || kind == "sha256") && isHex(value, 64):
		return vendor.Digests{SHA256: value}, true
	case (kind == "" || kind == "sha512") && isHex(value, 128):
		return vendor.Digests{SHA512: value}, true
	}
	return vendor.Digests{}, false
}

// listed finds the digest of a file in a list of them, as sha256sum writes it, or the same in the BSD way.
func (v *Vendor) listed(ctx context.Context, r reference, at string) (vendor.Digests, error) {
	u, err := url.Parse(at)
	if err == nil && u.Scheme == "" && u.Host == "" {
		u = r.target.ResolveReference(u)
	}
	if err != nil || u.Scheme != SchemeHTTPS && u.Scheme != SchemeHTTP || u.Host == "" || u.User != nil {
		return vendor.Digests{}, invalid("The checksum in the address of " + show(r.target) + " names a list that is no address; write ?checksum=file:https://HOST/PATH/SHA256SUMS.")
	}
	res, err := v.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: u.String(), Credential: Credential})
	if err != nil {
		return vendor.Digests{}, err
	}
	if err := refused(u, res); err != nil {
		return vendor.Digests{}, err
	}
	wanted := r.target.Path[strings.LastIndexByte(r.target.Path, '/')+1:]
	for line := range strings.Lines(string(res.Body)) {
		line = strings.TrimSpace(line)
		if d, ok := digest("", line); ok && len(strings.Fields(string(res.Body))) == 1 {
			return d, nil // a file of its own for each checksum
		}
		var sum, file string
		if head, tail, ok := strings.Cut(line, ") = "); ok { // SHA256 (name) = hex
			_, file, _ = strings.Cut(head, "(")
			sum = tail
		} else if head, tail, ok := strings.Cut(line, " "); ok {
			sum, file = head, strings.TrimLeft(tail, " *")
		}
		if d, ok := digest("", sum); ok && file[strings.LastIndexByte(file, '/')+1:] == wanted {
			return d, nil
		}
	}
	return vendor.Digests{}, &vendor.Error{
		Kind: vendor.KindNotFound, Code: "checksum_not_found", Param: "reference",
		Message: show(u) + " holds no SHA-256 or SHA-512 of " + wanted + "; check the address of the list.",
	}
}
