package contract

// Deployment is a wish for workers of a model, as queens share it: it needs no configuration of the queen that reads it.
type Deployment struct {
	Name     string            `json:"name"`              // unique
	Model    string            `json:"model"`             // as it was written: a name, an alias or a reference
	Source   string            `json:"source"`            // the reference that Model stands for
	Aliases  []string          `json:"aliases,omitempty"` // other names that Source answers to, beside Model
	Worker   WorkerKind        `json:"worker"`
	Devices  []string          `json:"devices,omitempty"` // ids of devices that the worker block is bound to; none: any
	Context  int               `json:"context,omitempty"` // tokens; 0: what fits, up to the model's
	Slots    int               `json:"slots,omitempty"`   // 0: the engine decides
	Threads  int               `json:"threads,omitempty"` // 0: the cores that are free
	Env      map[string]string `json:"env,omitempty"`     // values may be secrets: they go to workers and are not shown
	Args     []string          `json:"args,omitempty"`    // after those of the worker contract
	Priority int               `json:"priority,omitempty"`
	// IdleTTLSeconds is how long a worker above Replicas.Min may be without requests; 0: for ever.
	IdleTTLSeconds int64         `json:"idle_ttl_seconds"`
	Replicas       Replicas      `json:"replicas"`
	Pin            []string      `json:"pin,omitempty"` // HIVE or HIVE/DEVICE, where alone it may run; none: anywhere
	Place          PlacementRule `json:"place"`
}

// Replicas says how many workers a deployment wants: from Min to Max, or one for each of Per.
type Replicas struct {
	Min int    `json:"min"`
	Max int    `json:"max"`
	Per string `json:"per,omitempty"` // PerGPU; then Min and Max are 0
}

// PerGPU is the Replicas.Per of one worker on each accelerator that is allowed.
const PerGPU = "gpu"

// PlacementRule is a deployment's opinion of devices.
type PlacementRule struct {
	Require *Expression `json:"require,omitempty"` // true where it may run; nil: everywhere
	Prefer  *Expression `json:"prefer,omitempty"`  // true where it runs better; nil: nowhere
	Spread  bool        `json:"spread"`            // over hives, instead of filling one device after the other
}

// Expression is a condition on a device, in the language of the configuration.
type Expression struct {
	Text string `json:"text"`         // on one line
	At   string `json:"at,omitempty"` // where it was written, "config.hcl:63", for texts; two expressions that differ in it alone are the same
}
