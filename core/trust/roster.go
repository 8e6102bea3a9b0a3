package trust

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Codes of faults about who is in the cluster.
const (
	CodeNodeKnown  = "node_known"  // another machine is in under this node id
	CodeNameTaken  = "name_taken"  // and under this name
	CodeRevokedKey = "revoked_key" // the key was shut out; another one may come in
	CodeNoNode     = "node_not_found"
)

// Roster knows who was let into a cluster, and which keys were shut out of it. Like a Ledger it keeps nothing. Its methods may be called
// from many goroutines.
type Roster struct {
	mu      sync.RWMutex // guards the fields below
	nodes   map[string]contract.NodeRecord
	revoked map[string]contract.RevocationRecord // by key
}

// NewRoster makes an empty roster.
func NewRoster() *Roster {
	return &Roster{nodes: map[string]contract.NodeRecord{}, revoked: map[string]contract.RevocationRecord{}}
}

// Take takes over records of other queens, or those of this one at its start, in any order. A revocation is never taken back.
func (r *Roster) Take(records ...contract.Record) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rec := range records {
		switch rec.Kind {
		case contract.RecordNode:
			var n contract.NodeRecord
			if rec.Deleted {
				delete(r.nodes, rec.Key)
			} else if json.Unmarshal(rec.Value, &n) == nil && nodeIDForm.MatchString(rec.Key) && nameForm.MatchString(n.Name) && hex64Form.MatchString(n.Key) {
				r.nodes[rec.Key] = n
			}
		case contract.RecordRevocation:
			var v contract.RevocationRecord
			if !rec.Deleted && hex64Form.MatchString(rec.Key) && json.Unmarshal(rec.Value, &v) == nil {
				r.revoked[rec.Key] = v
			}
		}
	}
}

// Revoked is the function of that type for this roster.
func (r *Roster) Revoked(key string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, ok := r.revoked[key]
	return ok
}

// Nodes are those that were let in and not shut out, by their ids.
func (r *Roster) Nodes() map[string]contract.NodeRecord {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := maps.Clone(r.nodes)
	maps.DeleteFunc(out, func(_ string, n contract.NodeRecord) bool { return r.out(n) })
	return out
}

// out reports whether a node was shut out. r.mu is held.
func (r *Roster) out(n contract.NodeRecord) bool {
	_, ok := r.revoked[n.Key]
	return ok
}

// Admit enters a node, or refuses it where another one has its id or its name. undo takes the entry back where its record could not be
// published.
func (r *Roster) Admit(nodeID string, n contract.NodeRecord) (rec contract.Record, undo func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out(n) {
		return rec, nil, denied(CodeRevokedKey, "The key of %s was shut out of this cluster, so it needs another one to be let in: remove secrets/node.key from its data folder, and join again.", n.Name)
	}
	old, known := r.nodes[nodeID]
	if known && old.Key != n.Key && !r.out(old) {
		return rec, nil, fault.New(fault.Conflict, CodeNodeKnown, "A machine with the node id %s is in the cluster already, as %s and with another key; remove node.json from the data folder that joins, and it gets an id of its own.", nodeID, old.Name)
	}
	for id, other := range r.nodes {
		if id != nodeID && other.Name == n.Name && !r.out(other) {
			return rec, nil, fault.New(fault.Conflict, CodeNameTaken, "There is a machine called %s in the cluster already (%s); set another agent.name in the configuration.", n.Name, id)
		}
	}
	r.nodes[nodeID] = n
	undo = func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.nodes[nodeID].Key != n.Key || !r.nodes[nodeID].Joined.Equal(n.Joined) {
			return // somebody else has entered it since
		}
		if delete(r.nodes, nodeID); known {
			r.nodes[nodeID] = old
		}
	}
	return record(contract.RecordNode, nodeID, n), undo, nil
}

// Revoke shuts a node out by its name or its id, for ever: all that it has, and all that was issued with its key. What it returns is to be
// published. The same again returns the same again.
func (r *Roster) Revoke(nameOrID string, now time.Time) (nodeID string, records []contract.Record, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var in, out []string
	for id, n := range r.nodes {
		if id == nameOrID || n.Name == nameOrID {
			if r.out(n) {
				out = append(out, id)
			} else {
				in = append(in, id)
			}
		}
	}
	if len(in) == 0 {
		in = out
	}
	slices.Sort(in)
	switch {
	case len(in) == 0:
		return "", nil, fault.New(fault.NotFound, CodeNoNode, "Nobody called %.100q was let into this cluster; `apiary member list` names all.", nameOrID)
	case len(in) > 1:
		return "", nil, fault.New(fault.Conflict, "ambiguous_name", "Several machines are called %s; name one by its id: %s.", nameOrID, strings.Join(in, ", "))
	}
	n := r.nodes[in[0]]
	for _, key := range []string{n.Key, n.IssuerKey} {
		if key != "" {
			v := contract.RevocationRecord{NodeID: in[0], Name: n.Name, At: now}
			if old, ok := r.revoked[key]; ok {
				v = old
			}
			r.revoked[key] = v
			records = append(records, record(contract.RecordRevocation, key, v))
		}
	}
	return in[0], records, nil
}

// RevokeKey shuts out one key, as that of a Clash.
func (r *Roster) RevokeKey(key, nodeID string, now time.Time) contract.Record {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.revoked[key]
	if !ok {
		v = contract.RevocationRecord{NodeID: nodeID, Name: r.nodes[nodeID].Name, At: now}
		r.revoked[key] = v
	}
	return record(contract.RecordRevocation, key, v)
}

// find gives the entry of a node. It is not known where another queen has let it in and its record has not arrived.
func (r *Roster) find(nodeID string) (n contract.NodeRecord, known bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n, known = r.nodes[nodeID]
	return n, known
}
