package npm

import (
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// placeholder is replaced in a reference by the name of the platform.
const placeholder = "{platform}"

// pkgRef is one exact version of a package, for one platform.
type pkgRef struct {
	scope    string // "@node-llama-cpp", empty for a package without a scope
	base     string
	version  string
	platform string // "linux-x64-cuda"; the name of the folder below package/bins
}

func (p pkgRef) name() string {
	if p.scope == "" {
		return p.base
	}
	return p.scope + "/" + p.base
}

func (p pkgRef) reference() string { return Scheme + ":" + p.name() + "@" + p.version }

// parse reads npm:[@scope/]name@version and fills in the platform.
func parse(ref string, on vendor.Platform) (pkgRef, error) {
	rest := strings.TrimPrefix(ref, Scheme+":")
	if strings.Contains(rest, placeholder) {
		name, err := platformFor(on)
		if err != nil {
			return pkgRef{}, err
		}
		rest = strings.ReplaceAll(rest, placeholder, name)
	}
	i := strings.LastIndexByte(rest, '@')
	if i <= 0 {
		return pkgRef{}, failed(vendor.KindInvalid, "invalid_reference", "%q names no version; write npm:package@1.2.3.", ref)
	}
	p := pkgRef{base: rest[:i], version: rest[i+1:]}
	if strings.HasPrefix(p.base, "@") {
		var ok bool
		if p.scope, p.base, ok = strings.Cut(p.base, "/"); !ok || !validSegment(p.scope[1:]) {
			return pkgRef{}, failed(vendor.KindInvalid, "invalid_reference", "%q is not the name of an npm package; write npm:@scope/package@1.2.3.", ref)
		}
	}
	if !validSegment(p.base) {
		return pkgRef{}, failed(vendor.KindInvalid, "invalid_reference", "%q is not the name of an npm package; write npm:@scope/package@1.2.3.", ref)
	}
	if !exactVersion(p.version) {
		return pkgRef{}, failed(vendor.KindInvalid, "invalid_reference", "%q asks for the version %q, but an engine needs an exact one such as 3.21.1: a range or a tag would mean another build tomorrow.", ref, p.version)
	}
	p.platform = p.base
	return p, nil
}

// validSegment applies the rule for names that become parts of paths: ^[a-z0-9][a-z0-9._-]{0,63}$ without "..".
func validSegment(s string) bool {
	const first = "abcdefghijklmnopqrstuvwxyz0123456789"
	return s != "" && len(s) <= 64 && strings.IndexByte(first, s[0]) >= 0 && strings.Trim(s, first+"._-") == "" && !strings.Contains(s, "..")
}

// exactVersion reports whether v is a semantic version: three numbers, and perhaps a pre-release.
func exactVersion(v string) bool {
	core, pre, hasPre := strings.Cut(v, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 || len(v) > 64 || hasPre && (!validSegment(pre) || strings.HasSuffix(pre, ".")) {
		return false
	}
	for _, p := range parts {
		if p == "" || strings.Trim(p, "0123456789") != "" {
			return false
		}
	}
	return true
}

// platformFor names the build for a machine: the fastest back end that one of its devices can use, CUDA before Vulkan
// before the CPU.
func platformFor(on vendor.Platform) (string, error) {
	has := func(kinds ...string) bool {
		return slices.ContainsFunc(kinds, func(k string) bool { return slices.Contains(on.Devices, k) })
	}
	switch on.OS + "/" + on.Arch {
	case "linux/amd64":
		switch {
		case has("cuda"):
			return "linux-x64-cuda", nil
		case has("vulkan", "rocm"):
			return "linux-x64-vulkan", nil // AMD's cards have a Vulkan driver
		}
		return "linux-x64", nil
	case "linux/arm64":
		return "linux-arm64", nil
	case "darwin/arm64":
		return "mac-arm64-metal", nil
	case "darwin/amd64":
		return "mac-x64", nil
	}
	return "", failed(vendor.KindInvalid, "no_build", "There is no engine build for %s on %s; use path: with a build of your own.", on.OS, on.Arch)
}
