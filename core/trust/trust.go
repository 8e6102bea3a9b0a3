// Package trust decides who is who in a cluster: its certificates, the tokens that let agents in, and what is accepted of a
// connection. It makes CAs, node certificates and join tokens, verifies them, keeps a node's own in its data folder, and builds the
// TLS configurations of all connections between Apiary's processes. It opens no connection and knows no route: core/agent wires it.
//
// The first agent of a cluster makes the root, whose key stays on its machine. A queen that joins gets an issuing certificate for
// a key of its own, and every node a certificate for 24 hours, which names it by URIs alone:
//
//	apiary://<cluster id>/<role>/<node id>
//
// one for each role. The cluster id follows from the fingerprint of the root.
package trust

import (
	"time"

	"github.com/apiary-dev/apiary/core/fault"
)

// Lifetimes and tolerances.
const (
	NodeLife   = 24 * time.Hour
	IssuerLife = 5 * 365 * 24 * time.Hour
	// Leeway is how much clocks may differ.
	Leeway = 5 * time.Minute
	// RenewGrace is how long after its end a certificate that is not revoked still renews itself.
	RenewGrace = 30 * 24 * time.Hour
)

// Codes of faults about certificates.
const (
	CodeNoCertificate = "no_certificate"         // a connection without one
	CodeBad           = "bad_certificate"        // not a chain of this kind
	CodeWrongCluster  = "wrong_cluster"          // of another cluster
	CodeExpired       = "certificate_expired"    // over, or over for longer than RenewGrace
	CodeNotYet        = "certificate_not_yet"    // from the future: a clock is wrong
	CodeRevoked       = "certificate_revoked"    // its node, or who issued it, was shut out
	CodeWrongRole     = "wrong_role"             // of a node that may not do this, or a token for another role
	CodeWrongNode     = "wrong_node"             // of another node than the one that was called
	CodeDamaged       = "damaged_identity_file"  // a file of the data folder
	CodeReadable      = "readable_identity_file" // a key that others may read
	CodeClock         = "clock_off"              // clocks differ by more than Leeway
)

func denied(code, format string, args ...any) *fault.Error {
	return fault.New(fault.Denied, code, format, args...)
}

// clockText is how clocks are told to people.
func clockText(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
