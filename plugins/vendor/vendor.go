// Package vendor is the contract of Apiary's plugins: model vendors, which resolve model references to manifests, and
// worker provisioners, which resolve engine references. Plugin authors read this first. It holds plain structs and
// interfaces and moves no bytes: a plugin says what to fetch, the core fetches, verifies and publishes.
package vendor

import (
	"context"
	"io"
	"time"
)

// Info describes a plugin. It does not change while the plugin runs.
type Info struct {
	Name        string   // "huggingface"
	Version     string   // semantic version of the plugin
	Schemes     []string // reference schemes it answers for, "hf"
	Description string   // one sentence
}

// Vendor resolves model references. Methods may be called concurrently; a cancelled context ends a call soon.
type Vendor interface {
	Info() Info
	// Supports reports whether the vendor can resolve ref, without I/O.
	Supports(ref string) bool
	// Resolve says which files make up ref. Errors carry a kind of core/fault: not found, denied, unavailable, invalid.
	Resolve(ctx context.Context, req ResolveRequest) (*Manifest, error)
}

// Searcher is a Vendor that can look for models.
type Searcher interface {
	Search(ctx context.Context, query string, limit int) ([]SearchResult, error)
}

// SearchResult is one model that a search found.
type SearchResult struct {
	Reference   string
	Description string
	SizeBytes   int64 // 0: not known
}

// ResolveRequest asks for one reference.
type ResolveRequest struct {
	Reference string   // scheme:rest
	Platform  Platform // of the hive that asks
}

// Platform is what a choice of files may depend on.
type Platform struct {
	OS      string   // as GOOS
	Arch    string   // as GOARCH
	Devices []string // kinds of devices present, best first: "cuda", "vulkan", "metal", "cpu"
}

// Manifest says which files make up an artifact, pinned so that the same manifest always means the same bytes.
type Manifest struct {
	Reference string // canonical; pinned where the source has immutable names. The core adds a digest where it has not
	Format    string // "gguf", "safetensors", "engine"
	Files     []File
	Meta      map[string]string // informational: license, architecture, …
}

// File is one file of an artifact.
type File struct {
	Path    string // relative, slash-separated, inside the artifact
	Role    string // "weights", "projector", "tokenizer", "config", "archive"
	Size    int64  // bytes; -1: not known before it is fetched
	Digests Digests
	Sources []Source       // tried in order
	Member  *ArchiveMember // set when the file is inside an archive, which Sources then name
}

// Digests are lower-case hex; an empty one is not known. The core always computes SHA-256.
type Digests struct {
	SHA256 string
	SHA512 string
}

// Source is a place to fetch a file from.
type Source struct {
	URL        string // https:, http: (configured mirrors only), file:///absolute/path, builtin:name
	Credential string // name of a credential that the core adds towards the host it belongs to; empty: none
	Ranges     bool   // the server honours Range requests
	Expires    time.Time
}

// ArchiveMember names one file inside an archive whose own digest is pinned.
type ArchiveMember struct {
	Path    string
	Archive Digests
	Size    int64 // of the archive; -1: not known
}

// Provisioner resolves engine references to plans. Methods may be called concurrently.
type Provisioner interface {
	Info() Info
	Supports(ref string) bool
	// Plan says which files and steps install the engine ref on platform.
	Plan(ctx context.Context, req PlanRequest) (*Plan, error)
}

// PlanRequest asks for an engine.
type PlanRequest struct {
	Reference string
	Platform  Platform
}

// Plan is how to install one engine build: files to fetch and steps to take with them, executed by the core without a
// shell, inside a new folder that becomes visible only when all steps and the self-test have passed.
type Plan struct {
	Reference string // canonical and pinned: {platform} filled in, exact version
	Name      string // "llama.cpp"
	Version   string
	Platform  string // "linux-x64-cuda"
	Files     []File
	Steps     []Step
	InPlace   string // path: the engine stays in this absolute folder; Files is empty and Steps only expect
}

// Step is one action. Exactly one field is set.
type Step struct {
	Extract *ExtractStep
	Link    *LinkStep
	Expect  *ExpectStep
}

// ExtractStep unpacks a fetched archive (.tgz, .tar.gz, .zip) below Into, taking the members below Prefix.
type ExtractStep struct {
	File       string // File.Path of the archive
	Prefix     string // "package/bins/linux-x64/": stripped from the names; members outside it are left out
	Into       string // relative; "." is the engine folder
	MaxBytes   int64  // unpacked, in all
	MaxEntries int
}

// LinkStep makes Name a relative symbolic link to Target, both inside the engine folder. Match may be given instead of
// Target: a glob that must match exactly one file.
type LinkStep struct {
	Name   string
	Target string
	Match  string
}

// ExpectStep fails the installation with Message unless Path exists as a regular file.
type ExpectStep struct {
	Path    string
	Message string
}

// Host is what the core offers a plugin while it works.
type Host interface {
	// HTTP performs a request for metadata. The host checks the address, bounds the answer to 64 MiB and the time to 30 s, follows
	// at most five redirects and adds the credential that req names.
	HTTP(ctx context.Context, req HTTPRequest) (*HTTPResponse, error)
	// Log writes a line to the agent's log under the plugin's name. Level is "debug", "info", "warn" or "error".
	Log(level, message string, keysAndValues ...string)
}

// HTTPRequest is a request that a plugin asks the host to make.
type HTTPRequest struct {
	Method     string
	URL        string
	Header     map[string][]string // canonical names
	Credential string
}

// HTTPResponse is its answer, whole.
type HTTPResponse struct {
	Status int
	Header map[string][]string // canonical names
	Body   []byte
}

// Opener opens a Source of a scheme that is no network protocol ("builtin"). The reader is closed by the caller.
type Opener interface {
	Open(ctx context.Context, url string) (io.ReadCloser, int64, error)
}

// Pinner is a Provisioner that can tell, without I/O, to which canonical reference a reference leads on a platform. The
// core asks it before it plans, so that an engine that is installed already needs no network.
type Pinner interface {
	// Pin returns the Reference and the Platform that Plan would give, or an error when ref cannot be planned there.
	Pin(ref string, p Platform) (reference, platform string, err error)
}
