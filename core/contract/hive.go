package contract

// HiveBeat is what a hive says of itself every 5 s: the answer of GET /v1/hive, and a gossip message to every queen. It is at most
// 1,200 bytes, so it carries counts and a digest; who needs more fetches the inventory when the digest changed.
type HiveBeat struct {
	ID              string `json:"id"`   // node id
	Name            string `json:"name"` // agent.name
	Version         string `json:"version"`
	BootID          string `json:"boot_id"`
	Incarnation     int64  `json:"incarnation"`
	Sequence        uint64 `json:"sequence"`
	Address         string `json:"address"` // base URL of the hive API
	InventoryDigest string `json:"inventory_digest"`
	Devices         int    `json:"devices"`
	Models          int    `json:"models"`
	Engines         int    `json:"engines"`
	MemoryFree      Bytes  `json:"memory_free"`
	DiskFree        Bytes  `json:"disk_free"`
}

// MaxHiveBeat bounds a hive's beat.
const MaxHiveBeat = 1200

// Inventory is the answer of GET /v1/inventory on a hive.
type Inventory struct {
	HiveID string   `json:"hive_id"`
	Digest string   `json:"digest"`
	Labels []string `json:"labels,omitempty"` // agent.labels
	OS     string   `json:"os,omitempty"`     // as Go calls it: "linux", "darwin"
	Arch   string   `json:"arch,omitempty"`   // "amd64", "arm64"
	// MemoryReserve is hive.reserve.memory: what workers leave of the machine's memory. nil: the hive does not say.
	MemoryReserve *Bytes   `json:"memory_reserve,omitempty"`
	Devices       []Device `json:"devices"`
	Models        []Model  `json:"models"`
	Engines       []Engine `json:"engines"`

	Protection *Protection `json:"protection,omitempty"` // of what it starts from now on; nil: an older hive does not say
}

// Protection says what the kernel holds a process to.
type Protection struct {
	NoNewPrivs bool   `json:"no_new_privs"`      // nothing that it executes can have more privileges
	Landlock   int    `json:"landlock"`          // version of Landlock's interface by which files and ports are confined; 0: none
	Seccomp    bool   `json:"seccomp,omitempty"` // a filter of system calls, by whoever started the agent
	Reason     string `json:"reason,omitempty"`  // one sentence: why there is no Landlock; of hives only
}
