package vendor

import (
	"context"
	"encoding/json"
)

// ContractMinor counts the additions to the contract since its major version began. A plugin says which it was built for.
const ContractMinor = 0

// Kinds of plugins, with the contract each keeps.
const (
	KindVendor      = "vendor"
	KindProvisioner = "provisioner"

	ContractVendor      = "vendor.v1"
	ContractProvisioner = "provisioner.v1"
)

// Features are optional parts of the contract that a plugin has.
const (
	FeatureSearch  = "search"
	FeatureRefresh = "refresh"
	FeatureList    = "list"
	FeatureLaunch  = "launch"
	FeaturePin     = "pin"
	FeatureBare    = "bare" // a vendor that takes references without a scheme too, in the form ORG/REPO; it needs no method
)

// Info describes a plugin. It does not change while the plugin runs.
type Info struct {
	Name          string   `json:"name,omitempty"`     // "huggingface"; lower-case letters, digits and dashes
	Version       string   `json:"version,omitempty"`  // semantic version of the plugin
	Kind          string   `json:"kind,omitempty"`     // KindVendor or KindProvisioner
	Schemes       []string `json:"schemes,omitempty"`  // reference schemes it answers for, "hf"
	Features      []string `json:"features,omitempty"` // see the constants Feature…
	Description   string   `json:"description,omitempty"`
	Requests      Requests `json:"requests,omitzero"`
	ContractMinor uint32   `json:"contractMinor,omitempty"`
}

// Requests are the capabilities that a plugin asks for. It gets those that the operator grants.
type Requests struct {
	HTTP        []string `json:"http,omitempty"`               // hosts, "example.org" or "*.example.org", and host:port
	Credentials []string `json:"credentials,omitempty"`        // names of credentials that the core is to add
	MemoryBytes int64    `json:"memoryBytes,string,omitempty"` // of one WASM instance; 0: the default
	Run         []string `json:"run,omitempty"`                // tools that plans of a provisioner run
}

// Configurable is a plugin that has settings or uses the host. Configure is called once, before any other method but Info
// and Schema.
type Configurable interface {
	// Schema describes the settings. It is pure.
	Schema() Schema
	// Configure takes the settings. A setting that is wrong is an *Error of KindInvalid whose Param names the attribute.
	Configure(ctx context.Context, c Configuration) error
}

// Configuration is what a plugin starts with.
type Configuration struct {
	Values json.RawMessage // one object that follows the schema, defaults filled in
	Host   Host
}

// Schema describes the settings of a plugin: it decodes the block config of the HCL, and documents it.
type Schema struct {
	Description string      `json:"description,omitempty"`
	Attributes  []Attribute `json:"attributes,omitempty"`
	Blocks      []Block     `json:"blocks,omitempty"`
}

// Attribute is one setting.
type Attribute struct {
	Name        string `json:"name,omitempty"`
	Type        string `json:"type,omitempty"` // an HCL type: "string", "number", "bool", "list(string)", "map(string)", "object({a=number})"
	Required    bool   `json:"required,omitempty"`
	DefaultJSON string `json:"defaultJson,omitempty"` // data, never evaluated
	Sensitive   bool   `json:"sensitive,omitempty"`   // shown as ***
	Description string `json:"description,omitempty"` // with the unit
	Example     string `json:"example,omitempty"`
}

// Block is a nested block.
type Block struct {
	Name   string `json:"name,omitempty"`
	Many   bool   `json:"many,omitempty"`  // any number of them, as a list; otherwise at most one
	Label  string `json:"label,omitempty"` // the name of its one label; then the value is a map by label
	Schema Schema `json:"schema,omitzero"`
}

// StaticManifest is what a plugin says about itself without being run: the custom section ManifestSection of a WASM module,
// or the file manifest.json beside a program that has its name.
type StaticManifest struct {
	ABI      uint32 `json:"abi,omitempty"`      // 1 for WASM modules
	Contract string `json:"contract,omitempty"` // ContractVendor or ContractProvisioner
	TLS      string `json:"tls,omitempty"`      // of a program: "none" when it speaks plainly, on a socket in the folder that it is given
	Info     Info   `json:"info,omitzero"`
	Schema   Schema `json:"schema,omitzero"`
}

// ManifestSection is the name of the custom section of a WASM module that holds a StaticManifest as JSON.
const ManifestSection = "apiary.manifest"
