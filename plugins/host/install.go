package host

import (
	"context"
	"fmt"
	"os"
	"regexp"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wasm"
)

// Candidate is a file that may become a plugin: it is on the shelf and said what it is.
type Candidate struct {
	Digest    string           // SHA-256
	Size      int64            // bytes
	Transport string           // config.TransportWASM or config.TransportProcess
	Platform  string           // of the lock file's package
	Others    []config.Package // the same plugin for other platforms
	Manifest  vendor.StaticManifest
}

// Asker runs a program for as long as it takes to say what it is.
type Asker func(ctx context.Context, path, digest string) (*vendor.StaticManifest, error)

// Bounds of what a plugin says about itself.
const (
	maxSchemes  = 8
	maxRequests = 64
	maxSentence = 500 // bytes of a description
)

var (
	namePattern    = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	versionPattern = regexp.MustCompile(`^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}([-+][0-9A-Za-z.+-]{1,64})?$`)
	schemePattern  = regexp.MustCompile(`^[a-z][a-z0-9+-]{0,31}$`)
)

// reserved are the schemes that are Apiary's own, each with the built-in vendor that a vendor plugin may answer for in its place where
// the configuration has that switched off; "" where none may.
func reserved() map[string]string {
	return map[string]string{
		"builtin": "", "echo": "", "file": "", "git": "", "github": "", "npm": "", "path": "", "recipe": "",
		"hf": config.VendorHub, "ollama": config.VendorOllama, "pypi": config.VendorPyPI, "http": config.VendorURL, "https": config.VendorURL, "url": config.VendorURL,
	}
}

// CheckSchemes says why a plugin may not answer for its schemes beside what is built in and on; on reports whether a built-in vendor is.
func CheckSchemes(i vendor.Info, on func(vendor string) bool) error {
	for _, scheme := range i.Schemes {
		own, ok := reserved()[scheme]
		switch {
		case !ok, own != "" && i.Kind == vendor.KindVendor && !on(own):
		case own != "" && i.Kind == vendor.KindVendor:
			return fault.New(fault.Conflict, "scheme_taken", "The plugin %s answers for %q, as Apiary's own vendor does; write vendor %q { enabled = false } into the configuration to have the plugin answer instead.", i.Name, scheme, own)
		default:
			return fault.New(fault.Conflict, "scheme_taken", "The plugin %s answers for %q, which is Apiary's own; ask its author.", i.Name, scheme)
		}
	}
	return nil
}

// CheckName says why a new plugin cannot have a name, which is also that of its scheme.
func CheckName(name string) error {
	switch {
	case !namePattern.MatchString(name) || !schemePattern.MatchString(name):
		return fault.New(fault.Invalid, "bad_name", "%q is not a name for a plugin; a name begins with a lower-case letter and has at most 32 lower-case letters, digits and dashes, for example gitea.", short(name))
	case isReserved(name):
		return fault.New(fault.Invalid, "bad_name", "References that begin with %s: are Apiary's own; choose another name for the plugin.", name)
	}
	return nil
}

func isReserved(scheme string) bool {
	_, ok := reserved()[scheme]
	return ok
}

// Inspect says what the file at path is, without running it. Of a program it knows the platform only.
func Inspect(path string) (*Candidate, error) { return inspect(path, path) }

// inspect is Inspect for a file that messages call name.
func inspect(path, name string) (*Candidate, error) {
	transport, platform, err := nature(path, name)
	if err != nil {
		return nil, err
	}
	c := &Candidate{Transport: transport, Platform: platform}
	if transport != config.TransportWASM {
		return c, nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the plugin: %w", err)
	}
	if st.Size() > MaxModule {
		return nil, fault.New(fault.Invalid, "plugin_too_large", "The module %s has %s; a plugin has at most %d MiB.", name, contract.Bytes(st.Size()), MaxModule>>20)
	}
	module, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the plugin: %w", err)
	}
	m, err := wasm.Manifest(module)
	if err != nil {
		return nil, err
	}
	pages := uint32(wasm.DefaultMemoryPages)
	if m.Info.Requests.MemoryBytes > 0 {
		pages = uint32(min(m.Info.Requests.MemoryBytes>>16, 1<<16))
	}
	if err := wasm.Validate(module, pages); err != nil {
		return nil, err
	}
	c.Manifest = *m
	return c, CheckManifest(m)
}

// Take puts the file at path onto the shelf and learns what it is. A WASM module says so without being run. A program has to be run: confirm
// is asked before, and ask does it.
func (s *Shelf) Take(ctx context.Context, path string, confirm func(path string) error, ask Asker) (*Candidate, error) {
	r, err := openRegular(path, path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	digest, size, err := s.Put(ctx, r)
	if err != nil {
		return nil, err
	}
	c, err := inspect(s.Path(digest), path)
	if err != nil {
		return nil, err
	}
	c.Digest, c.Size = digest, size
	if c.Transport == config.TransportProcess {
		if err := confirm(s.Path(digest)); err != nil {
			return nil, err
		}
		m, err := ask(ctx, s.Path(digest), digest)
		if err != nil {
			return nil, err
		}
		if err := CheckManifest(m); err != nil {
			return nil, err
		}
		c.Manifest = *m
	}
	return c, s.SetManifest(digest, c.Manifest)
}

// Wanted says why a plugin that its source gives now is not what its block in the configuration wants.
func (c *Candidate) Wanted(p config.Plugin) error {
	i := c.Manifest.Info
	if err := WantedFile(p, c.Digest); err != nil {
		return err
	}
	switch {
	case p.Version != "" && p.Version != i.Version:
		return fault.New(fault.Conflict, "plugin_version", "The configuration wants version %s of the plugin %s, and %s gives %s; change version in its block, or name a source that has it.", p.Version, p.Name, p.Source, i.Version)
	case p.Kind != "" && p.Kind != i.Kind:
		return fault.New(fault.Conflict, "plugin_kind", "The configuration says that the plugin %s is a %s, and %s gives a %s; change kind in its block, or leave it out.", p.Name, p.Kind, p.Source, i.Kind)
	}
	return nil
}

// WantedFile is Wanted for what is known before the plugin says what it is.
func WantedFile(p config.Plugin, digest string) error {
	if p.SHA256 == "" || p.SHA256 == digest {
		return nil
	}
	return fault.New(fault.Conflict, "plugin_sha256", "The configuration wants the plugin %s with the sha256 %s…, and %s gives %s…; change sha256 in its block if that is meant.", p.Name, p.SHA256[:12], p.Source, digest[:12])
}

// CheckManifest says why a plugin cannot be used as it describes itself, wherever it is used.
func CheckManifest(m *vendor.StaticManifest) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "bad_manifest", "The plugin cannot be used: %s; ask its author.", fmt.Sprintf(format, args...))
	}
	i := m.Info
	contracts := map[string]string{vendor.KindVendor: vendor.ContractVendor, vendor.KindProvisioner: vendor.ContractProvisioner}
	switch {
	case !namePattern.MatchString(i.Name):
		return bad("its name is %q, and a name has 1 to 63 lower-case letters, digits and dashes", short(i.Name))
	case !versionPattern.MatchString(i.Version):
		return bad("its version is %q, and a version is such as 1.2.0", short(i.Version))
	case contracts[i.Kind] == "":
		return bad("its kind is %q, and a plugin is a vendor or a provisioner", short(i.Kind))
	case m.Contract != contracts[i.Kind]:
		return bad("it keeps the contract %q, and this version of Apiary knows %s for a %s", short(m.Contract), contracts[i.Kind], i.Kind)
	case len(i.Schemes) == 0 || len(i.Schemes) > maxSchemes:
		return bad("it answers for %d schemes, and 1 to %d are possible", len(i.Schemes), maxSchemes)
	case m.TLS != "" && m.TLS != config.TLSNone:
		return bad("its tls is %q, and it is \"none\" or left out", short(m.TLS))
	case len(i.Description) > maxSentence || len(i.Requests.HTTP)+len(i.Requests.Credentials)+len(i.Requests.Run) > maxRequests:
		return bad("it says or asks for too much")
	}
	for _, scheme := range i.Schemes {
		if !schemePattern.MatchString(scheme) {
			return bad("%q is not a scheme", short(scheme))
		}
	}
	if i.Requests.MemoryBytes < 0 {
		return bad("it asks for %d bytes of memory", i.Requests.MemoryBytes)
	}
	if err := config.CheckGrants((&Candidate{Manifest: *m}).Asked()); err != nil {
		return bad("what it asks for is not possible: %v", err)
	}
	if err := config.CheckSchema(m.Schema); err != nil {
		return bad("its settings are not usable: %v", err)
	}
	return nil
}

// short bounds a foreign text in a message.
func short(s string) string {
	if len(s) > 40 {
		s = s[:40] + "…"
	}
	return s
}

// Asked returns the grants that the plugin asks for.
func (c *Candidate) Asked() config.Grants {
	r := c.Manifest.Info.Requests
	g := config.Grants{HTTP: r.HTTP, Credentials: r.Credentials, Run: r.Run, Memory: contract.Bytes(r.MemoryBytes)}
	if g.Memory == 0 {
		g.Memory = config.DefaultPluginMemory
	}
	return g
}

// Locked returns the entry of the lock file for the plugin, with what it was granted.
func (c *Candidate) Locked(name, source string, grants config.Grants) config.LockedPlugin {
	i := c.Manifest.Info
	return config.LockedPlugin{
		Name: name, Source: source, Version: i.Version, Kind: i.Kind, Contract: c.Manifest.Contract, Grants: grants,
		Packages: append([]config.Package{{Platform: c.Platform, Size: contract.Bytes(c.Size), SHA256: c.Digest}}, c.Others...),
	}
}

// For is the package of a plugin that runs on a platform: the module, or the program for it.
func For(p *config.LockedPlugin, platform string) (*config.Package, bool) {
	if k, ok := p.Package(config.PlatformWASM); ok {
		return k, true
	}
	return p.Package(platform)
}

// Pinned finds the file of a plugin of the configuration that may run here: the digest of the block, or else that of the lock
// file for this platform. The digests, and the grants, may not differ from what was agreed to when it was installed.
func Pinned(p config.Plugin, l *config.Lock, platform string) (digest string, err error) {
	locked, ok := l.Find(p.Name)
	if !ok {
		return "", fault.New(fault.Invalid, "plugin_not_installed", "The plugin %s is in the configuration, but not in the lock file; say `apiary plugin install %s`.", p.Name, p.Source)
	}
	if locked.Pending {
		return "", fault.New(fault.Conflict, "plugin_pending", "The installation of the plugin %s was not finished; say `apiary plugin update %s`.", p.Name, p.Name)
	}
	if locked.Source != p.Source {
		return "", fault.New(fault.Denied, "plugin_changed", "The plugin %s comes from %s in the configuration, and from %s in the lock file; say `apiary plugin update %s` if that is meant.", p.Name, p.Source, locked.Source, p.Name)
	}
	if p.Version != "" && p.Version != locked.Version {
		return "", fault.New(fault.Invalid, "plugin_version", "The configuration wants version %s of the plugin %s, and %s is installed; say `apiary plugin update %s` if its source gives that version, or change version in its block.", p.Version, p.Name, locked.Version, p.Name)
	}
	if p.Kind != "" && p.Kind != locked.Kind {
		return "", fault.New(fault.Invalid, "plugin_kind", "The configuration says that the plugin %s is a %s; it is a %s: change kind in its block, or leave it out.", p.Name, p.Kind, locked.Kind)
	}
	k, ok := For(locked, platform)
	switch {
	case !ok:
		return "", fault.New(fault.Invalid, "wrong_platform", "The plugin %s is not installed for %s; say `apiary plugin install %s` on such a machine.", p.Name, platform, p.Source)
	case p.SHA256 != "" && p.SHA256 != k.SHA256:
		return "", fault.New(fault.Denied, "plugin_changed", "The configuration pins the plugin %s to %s…, and the lock file to %s…; say `apiary plugin update %s` if its source gives that file, or change sha256 in its block.", p.Name, p.SHA256[:12], k.SHA256[:12], p.Name)
	case p.Transport != "" && (p.Transport == config.TransportWASM) != (k.Platform == config.PlatformWASM):
		return "", fault.New(fault.Invalid, "plugin_transport", "The configuration says transport = %q for the plugin %s, which is installed as the other one; say `apiary plugin update %s`, or leave transport out.", p.Transport, p.Name, p.Name)
	}
	return k.SHA256, nil
}
