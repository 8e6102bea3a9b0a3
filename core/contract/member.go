package contract

import "time"

// MemberState says how a member of the cluster stands, as one agent sees it. None of them says anything about workers.
type MemberState string

// States of members.
const (
	MemberAlive   MemberState = "alive"
	MemberSuspect MemberState = "suspect" // it does not answer; it may be cut off, and comes back by itself
	MemberLeft    MemberState = "left"    // it said that it leaves
)

// Member is an agent of the cluster as another agent, or itself, sees it through gossip.
type Member struct {
	ID      string      `json:"id"`    // node id
	Start   string      `json:"start"` // of this run of the agent; later starts of a node have greater texts
	Name    string      `json:"name"`  // agent.name
	Roles   []string    `json:"roles"`
	Address string      `json:"address"`         // of its gossip, address:port
	Queen   string      `json:"queen,omitempty"` // base URL
	Hive    string      `json:"hive,omitempty"`  // base URL
	Version string      `json:"version"`
	State   MemberState `json:"state"`
	Since   time.Time   `json:"since"`             // when the state began, by the clock of who lists it
	SkewMS  *int64      `json:"skew_ms,omitempty"` // how far its clock is ahead of that of who lists it; absent while it is not known
	Self    bool        `json:"self,omitempty"`    // it is who lists it
	Records string      `json:"records,omitempty"` // of another queen: whether what it shares is the same as at the queen that lists it, a Records constant; else empty
	Keys    []string    `json:"keys,omitempty"`    // fingerprints of the gossip keys that it accepts, the one that it uses first
}

// How the records that queens share stand between two of them.
const (
	RecordsSame      = "same"
	RecordsDifferent = "different" // one has what the other has not yet, or it cannot be stored there
	RecordsUnheard   = "unheard"   // it does not answer, so it is not known
)

// Actions of a KeyChange. A key is changed in three steps, each at all members: add the new one, use it, remove the old one.
const (
	KeyAdd    = "add"
	KeyUse    = "use"
	KeyRemove = "remove"
)

// KeyChange is the body of MemberKeys: it changes the gossip keys of all members.
type KeyChange struct {
	Operation   string `json:"operation"`
	Action      string `json:"action"`
	Key         string `json:"key,omitempty"`         // KeyAdd: a secret of at least 32 characters
	Fingerprint string `json:"fingerprint,omitempty"` // KeyUse, KeyRemove
}

// Health is the answer of GET /healthz of an agent.
type Health struct {
	Status string `json:"status"`          // "ok"
	NodeID string `json:"node_id"`         // by which two agents with one node id tell that they are two
	Start  string `json:"start,omitempty"` // of this run, as in Member
}
