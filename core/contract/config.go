package contract

// ConfigChange is something that differs between two configurations.
type ConfigChange struct {
	// Kind is "option", or the kind of a block with a name: "deployment", "model", "worker", "vendor", "provisioner", "plugin",
	// "credential".
	Kind   string        `json:"kind"`
	Name   string        `json:"name,omitempty"` // of the block, or the path of the option, as in queen.limits.load_wait; empty: all of that kind
	Action string        `json:"action"`         // ChangeAdd, ChangeModify or ChangeRemove
	Fields []FieldChange `json:"fields,omitempty"`
	// Restart says that a running agent goes on with the old one until it is started again.
	Restart bool `json:"restart"`
}

// Values of ConfigChange.Action.
const (
	ChangeAdd    = "add"
	ChangeModify = "change"
	ChangeRemove = "remove"
)

// FieldChange is an option that has another value. Old and New are as in a configuration file; secrets are "***".
type FieldChange struct {
	Name string `json:"name,omitempty"` // inside the block; empty for a ConfigChange of the kind "option"
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// ConfigReloaded is the answer of POST /admin/reload: what the agent found in its configuration.
type ConfigReloaded struct {
	Path    string         `json:"path"` // of the file; empty: the built-in one
	Changes []ConfigChange `json:"changes"`
}
