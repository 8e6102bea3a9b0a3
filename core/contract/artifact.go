package contract

import (
	"strings"
	"time"
)

// Model is an entry of a hive's model catalog.
type Model struct {
	ID            string   `json:"id"`         // canonical pinned reference, unique in the catalog
	References    []string `json:"references"` // references as they were asked for that resolved to this model
	Vendor        string   `json:"vendor"`
	Format        string   `json:"format"` // "gguf" or "none" (echo)
	Files         []File   `json:"files"`
	SizeBytes     Bytes    `json:"size_bytes"`
	Architecture  string   `json:"architecture,omitempty"`
	Quantization  string   `json:"quantization,omitempty"`
	Parameters    uint64   `json:"parameters,omitempty"`
	ContextLength int      `json:"context_length,omitempty"`  // tokens the model was trained for
	CachePerToken Bytes    `json:"cache_per_token,omitempty"` // of KV cache, in 16-bit numbers; 0: not known
	Chat          bool     `json:"chat"`                      // it has a chat template
	// Unproved says that nobody published a digest for some file of it: its bytes are those that came first, and the ID holds their digest.
	Unproved bool      `json:"unproved,omitempty"`
	AddedAt  time.Time `json:"added_at"`
}

// File is one file of an artifact in the catalog.
type File struct {
	Path      string `json:"path"` // relative, inside the artifact
	SizeBytes Bytes  `json:"size_bytes"`
	SHA256    string `json:"sha256"`
	Role      string `json:"role,omitempty"` // what it is beside the weights: "projector", "template", …; "": weights
	// InPlace is set for a file that stays where its owner put it (file: references). It is verified by Device, Inode, size and
	// ModTime before each use and hashed again when one of them differs.
	InPlace *InPlace `json:"in_place,omitempty"`
}

// InPlace identifies a file outside the store.
type InPlace struct {
	Path    string    `json:"path"` // absolute
	Device  uint64    `json:"device"`
	Inode   uint64    `json:"inode"`
	ModTime time.Time `json:"mod_time"`
}

// Engine is an entry of a hive's worker catalog: an engine build that passed its self-test.
type Engine struct {
	ID         string    `json:"id"`         // canonical pinned reference, e.g. npm:@node-llama-cpp/linux-x64@3.21.1
	References []string  `json:"references"` // as asked for
	Name       string    `json:"name"`       // "llama.cpp"
	Version    string    `json:"version"`    // of the package
	Build      string    `json:"build,omitempty"`
	Platform   string    `json:"platform"` // "linux-x64", "linux-x64-cuda", …
	Dir        string    `json:"dir"`      // relative to APIARY_HOME/engines
	SizeBytes  Bytes     `json:"size_bytes"`
	SHA256     string    `json:"sha256"`           // of the archive, or of the listing for path:
	SHA512     string    `json:"sha512,omitempty"` // npm's integrity, hex
	Devices    []Device  `json:"devices"`          // as the engine lists them
	Server     bool      `json:"server,omitempty"` // it is a program that serves by itself, and not libraries; no adapter starts one yet
	AddedAt    time.Time `json:"added_at"`
}

// Device is something that can run a model.
type Device struct {
	ID          string `json:"id"`   // "cpu0", "cuda0", "vulkan0", "metal0", "rocm0"
	Kind        string `json:"kind"` // "cpu", "cuda", "vulkan", "metal", "rocm"
	Name        string `json:"name"`
	MemoryTotal Bytes  `json:"memory_total"`
	MemoryFree  Bytes  `json:"memory_free"`
	Cores       int    `json:"cores,omitempty"` // usable by this process, for a CPU
	Driver      string `json:"driver,omitempty"`
	Source      string `json:"source"` // "system" or "engine": who listed it
}

// IsReference reports whether a model can be fetched by a name: scheme:rest, or ORG/REPO, which a vendor may know. Any other
// name is only looked up in the configuration and in catalogs.
func IsReference(name string) bool {
	org, repo, ok := strings.Cut(name, "/")
	return strings.Contains(name, ":") || ok && org != "" && repo != "" && !strings.Contains(repo, "/")
}
