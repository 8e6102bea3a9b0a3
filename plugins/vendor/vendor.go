// Package vendor is the contract of Apiary's plugins: model vendors, which resolve model references to manifests, and
// worker provisioners, which resolve engine references to plans. Plugin authors read this first. It holds plain structs and
// interfaces and moves no bytes: a plugin says what to fetch, the core fetches, verifies and publishes.
//
// The JSON form of every struct is the canonical proto3 JSON of the message of the same name in plugins/proto, so that a WASM
// guest needs no protobuf: 64-bit integers are strings, and what is empty is left out.
package vendor

import "context"

// Vendor resolves model references. Methods may be called concurrently; a cancelled context ends a call soon.
type Vendor interface {
	// Info describes the plugin. It is pure and never changes while the plugin runs.
	Info() Info
	// Supports reports whether the vendor can resolve ref, without I/O.
	Supports(ref string) bool
	// Resolve says which files make up a reference. What fails for a reason that the user should know is an *Error.
	Resolve(ctx context.Context, req ResolveRequest) (*Manifest, error)
}

// Searcher is a Vendor that can look for models. Its Info has FeatureSearch.
type Searcher interface {
	Search(ctx context.Context, req SearchRequest) ([]SearchResult, error)
}

// Refresher is a Vendor whose sources expire. Its Info has FeatureRefresh. The core asks for new ones, at most three times a
// file, when a source has passed its time or was answered with 401, 403 or 410.
type Refresher interface {
	// RefreshSources returns the files of paths with new sources; their sizes and digests must not change.
	RefreshSources(ctx context.Context, req RefreshRequest) ([]File, error)
}

// SearchRequest asks for models.
type SearchRequest struct {
	Query string `json:"query,omitempty"`
	Limit int32  `json:"limit,omitempty"` // most results wanted
}

// SearchResult is one model that a search found.
type SearchResult struct {
	Reference   string `json:"reference,omitempty"`
	Description string `json:"description,omitempty"` // one line
	SizeBytes   int64  `json:"sizeBytes,string,omitempty"`
}

// ResolveRequest asks for one reference.
type ResolveRequest struct {
	Reference string   `json:"reference,omitempty"` // scheme:rest
	Platform  Platform `json:"platform,omitzero"`   // of the hive that asks
}

// RefreshRequest asks for new sources of some files of a manifest.
type RefreshRequest struct {
	Reference string   `json:"reference,omitempty"` // as the manifest has it
	Paths     []string `json:"paths,omitempty"`
}

// Platform is what a choice of files may depend on.
type Platform struct {
	OS      string   `json:"os,omitempty"`      // as GOOS
	Arch    string   `json:"arch,omitempty"`    // as GOARCH
	Devices []string `json:"devices,omitempty"` // kinds of devices present, best first: "cuda", "vulkan", "metal", "cpu"
}

// Manifest says which files make up an artifact, pinned so that the same manifest always means the same bytes.
type Manifest struct {
	// Reference is canonical and of one of the vendor's schemes, pinned where the source has immutable names; the core adds a digest
	// where it has not. At most 1024 bytes, without control and format characters.
	Reference string            `json:"reference,omitempty"`
	Format    string            `json:"format,omitempty"` // "gguf", "safetensors", "engine"
	Files     []File            `json:"files,omitempty"`
	Meta      map[string]string `json:"meta,omitempty"` // informational: license, architecture, …
}

// Roles of files.
const (
	RoleWeights   = "weights"
	RoleProjector = "projector"
	RoleTokenizer = "tokenizer"
	RoleConfig    = "config"
	RoleTemplate  = "template"
	RoleLicense   = "license"
	RoleArchive   = "archive"
)

// File is one file of an artifact.
type File struct {
	Path    string         `json:"path,omitempty"`        // relative, slash-separated, inside the artifact
	Role    string         `json:"role,omitempty"`        // one of the constants Role…
	Size    int64          `json:"size,string,omitempty"` // bytes; -1: not known before it is fetched
	Digests Digests        `json:"digests,omitzero"`
	Sources []Source       `json:"sources,omitempty"` // tried in order
	Member  *ArchiveMember `json:"member,omitempty"`  // set when the file is inside an archive, which Sources then name
}

// Digests are lower-case hex; an empty one is not known. The core always computes SHA-256.
type Digests struct {
	SHA256      string `json:"sha256,omitempty"`
	SHA512      string `json:"sha512,omitempty"`
	GitBlobSHA1 string `json:"gitBlobSha1,omitempty"` // of "blob", a space, the length, a zero byte and the content, as git names files
}

// Source is a place to fetch a file from.
type Source struct {
	URL           string `json:"url,omitempty"`        // https:, http: (configured mirrors only), file:///absolute/path, builtin:name
	Credential    string `json:"credential,omitempty"` // name of a credential that the core adds towards the host it belongs to; empty: none
	Ranges        bool   `json:"ranges,omitempty"`     // the server honours Range requests
	ExpiresUnixMS int64  `json:"expiresUnixMs,string,omitempty"`
}

// ArchiveMember names one file inside an archive whose own digest is pinned. The archive is a .zip file (a .whl is one) or a
// .tar.gz file. Exactly one of Path and Match is set.
type ArchiveMember struct {
	Path    string  `json:"path,omitempty"` // of the member in the archive
	Archive Digests `json:"archive,omitzero"`
	Size    int64   `json:"size,string,omitempty"` // of the archive; -1: not known
	// Match is a pattern, such as "*.gguf", that the name, without folders, of exactly one member must match: for a vendor that
	// cannot look into the archive. Where several match, the core lists them to the user.
	Match string `json:"match,omitempty"`
}
