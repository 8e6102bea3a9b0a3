package contract

import "time"

// JoinRequest asks a queen for a certificate, by a token. It is sent over TLS to a queen whose cluster has been checked against the
// token's fingerprint, and never logged.
type JoinRequest struct {
	Fingerprint string    `json:"fingerprint"`          // of the cluster's CA certificate, SHA-256 in hex, as the token has it
	TokenID     string    `json:"token_id"`             // 16 hex digits
	Secret      string    `json:"secret"`               // of the token, 64 hex digits
	NodeID      string    `json:"node_id"`              // of the agent that joins
	Name        string    `json:"name"`                 // agent.name
	Roles       []string  `json:"roles"`                // "hive", "queen"
	Addresses   []string  `json:"addresses"`            // hosts, without ports, at which it can be reached
	CSR         string    `json:"csr"`                  // PEM, for the node's own key, P-256
	IssuerCSR   string    `json:"issuer_csr,omitempty"` // a queen's: PEM, for the key with which it will issue certificates
	Version     string    `json:"version"`              // of the agent
	Time        time.Time `json:"time"`                 // by the clock of who joins
}

// JoinReply is what lets an agent in. It holds the cluster's secrets and is never logged.
type JoinReply struct {
	ClusterID   string    `json:"cluster_id"`
	CA          string    `json:"ca"`                  // PEM, the CA certificate
	Certificate string    `json:"certificate"`         // PEM, the node's certificate and those between it and the CA's
	Issuer      string    `json:"issuer,omitempty"`    // PEM, the issuing certificate for IssuerCSR
	GossipKeys  []string  `json:"gossip_keys"`         // the one in use first
	ClusterKey  string    `json:"cluster_key"`         // 64 hex digits
	AdminKey    string    `json:"admin_key,omitempty"` // for queens alone
	Peers       []string  `json:"peers"`               // gossip addresses
	Time        time.Time `json:"time"`                // by the clock of the queen
}

// RenewRequest asks for the next certificate, over a connection with the present one, which may have expired within the last
// 30 days. Name and roles are those of the present one; the key stays.
type RenewRequest struct {
	Addresses []string  `json:"addresses"` // as in JoinRequest
	CSR       string    `json:"csr"`       // PEM, for the key of the present certificate
	IssuerCSR string    `json:"issuer_csr,omitempty"`
	Time      time.Time `json:"time"` // by the clock of who asks
}

// RenewReply has the next certificate.
type RenewReply struct {
	Certificate string    `json:"certificate"` // as in JoinReply
	Issuer      string    `json:"issuer,omitempty"`
	Time        time.Time `json:"time"` // by the clock of the queen
}

// Kinds of records about trust. What they say only ever grows: a token that was used stays so, and a revocation is not taken back.
const (
	RecordToken      = "join_token" // Key: the token's id; Value: a TokenRecord
	RecordNode       = "node"       // Key: node id; Value: a NodeRecord
	RecordRevocation = "revocation" // Key: SHA-256 of a public key, in hex; Value: a RevocationRecord
)

// TokenRecord is what queens keep of a join token: not enough to use it.
type TokenRecord struct {
	Hash    string    `json:"hash"` // SHA-256 of the secret, in hex
	Role    string    `json:"role"`
	Name    string    `json:"name,omitempty"` // who alone may use it; empty: whoever has it
	Expires time.Time `json:"expires"`
	UsedBy  string    `json:"used_by,omitempty"`  // node id
	UsedKey string    `json:"used_key,omitempty"` // SHA-256 of the public key that was certified, in hex
	UsedAt  time.Time `json:"used_at,omitzero"`
}

// NodeRecord is an agent that was let in.
type NodeRecord struct {
	Name      string    `json:"name"`
	Roles     []string  `json:"roles"`
	Key       string    `json:"key"`                  // SHA-256 of its public key, in hex
	IssuerKey string    `json:"issuer_key,omitempty"` // of the key that it issues certificates with
	Joined    time.Time `json:"joined"`
}

// RevocationRecord shuts out a key: certificates for it, and issued with it, are void for ever, however late they were made.
type RevocationRecord struct {
	NodeID string    `json:"node_id"`
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
}

// NewToken asks for a join token: POST /admin/tokens.
type NewToken struct {
	Role       string `json:"role,omitempty"`        // "hive" or "queen"; default: hive
	Name       string `json:"name,omitempty"`        // of the agent that alone may use it; empty: any
	TTLSeconds int64  `json:"ttl_seconds,omitempty"` // default: 900
}

// MadeToken is a join token that was just made, and the only answer that ever holds it.
type MadeToken struct {
	Token     string    `json:"token"`
	ID        string    `json:"id"`
	Role      string    `json:"role"`
	Name      string    `json:"name,omitempty"`
	Expires   time.Time `json:"expires"`
	Addresses []string  `json:"addresses"` // host:port of queens that take it
	Cluster   string    `json:"cluster_id"`
}
