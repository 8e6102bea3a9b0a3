package trust

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"sync"
	"time"
)

// Peer is a node as its certificate names it.
type Peer struct {
	NodeID  string
	Name    string   // agent.name when the certificate was issued; only NodeID and Roles decide anything
	Roles   []string // sorted; not to be changed
	Key     string   // SHA-256 of its public key in hex
	Serial  string   // of the certificate, in hex
	Issued  time.Time
	Expires time.Time

	issuerKey   string    // as Key, of the issuing certificate; empty: it is the root's
	from, until time.Time // in which the whole chain is valid
	leaf        *x509.Certificate
}

// Has reports whether the peer has one of the roles.
func (p Peer) Has(roles ...string) bool {
	return slices.ContainsFunc(roles, func(r string) bool { return slices.Contains(p.Roles, r) })
}

// Revoked reports whether a key was shut out: SHA-256 of the public key in hex. It is asked for the key of each certificate of a chain but
// the root's, at every handshake and at every check of a live connection, so it must be quick and may be called from many goroutines.
type Revoked func(key string) bool

// Verifier verifies certificates of one cluster. Its methods may be called from many goroutines.
type Verifier struct {
	root    *x509.Certificate
	cluster string
	roots   *x509.CertPool
	clock   *Clock
	revoked Revoked

	mu   sync.Mutex // guards the field below
	seen map[[32]byte]Peer
}

// maxSeen bounds how many chains are remembered as verified.
const maxSeen = 4096

// NewVerifier makes a verifier. A nil revoked revokes nothing.
func NewVerifier(root *x509.Certificate, clock *Clock, revoked Revoked) *Verifier {
	v := &Verifier{root: root, cluster: ClusterID(root), roots: x509.NewCertPool(), clock: clock, revoked: revoked, seen: map[[32]byte]Peer{}}
	v.roots.AddCert(root)
	return v
}

// Cluster is the id of the cluster.
func (v *Verifier) Cluster() string { return v.cluster }

// Peer tells whose connection this is and whether it may go on, with one of the roles where some are given. It is cheap enough for
// every request. A connection without a certificate is refused with the code no_certificate and the status 401.
func (v *Verifier) Peer(cs *tls.ConnectionState, roles ...string) (Peer, error) {
	p, err := v.peer(cs)
	if err == nil {
		err = v.inTime(p, 0)
	}
	if err != nil {
		return Peer{}, err
	}
	if len(roles) > 0 && !p.Has(roles...) {
		return Peer{}, denied(CodeWrongRole, "The node %s is no %s, and only that may do this.", p.Name, roles[0])
	}
	return p, nil
}

// Renewing is Peer for the one thing that a certificate may do for RenewGrace after its end: get its successor.
func (v *Verifier) Renewing(cs *tls.ConnectionState) (Peer, error) {
	p, err := v.peer(cs)
	if err == nil {
		err = v.inTime(p, RenewGrace)
	}
	if err != nil {
		return Peer{}, err
	}
	return p, nil
}

// peer is Peer without a look at the clock.
func (v *Verifier) peer(cs *tls.ConnectionState) (Peer, error) {
	if cs == nil || len(cs.PeerCertificates) == 0 {
		return Peer{}, denied(CodeNoCertificate, "This needs a connection with a certificate of this cluster; `apiary join` gets one.").WithStatus(401)
	}
	p, err := v.chain(cs.PeerCertificates)
	if err != nil {
		return Peer{}, err
	}
	return p, v.unrevoked(p)
}

// chain verifies everything about certificates that does not change: whose they are, that they lead to the root, and what they may be
// used for. The first is the node's; the root's may be among them. What was verified once is looked up.
func (v *Verifier) chain(certs []*x509.Certificate) (Peer, error) {
	if len(certs) == 0 || len(certs) > maxChain {
		return Peer{}, denied(CodeBad, "The other side has shown %d certificates; a node has one to three.", len(certs))
	}
	h := sha256.New()
	for _, c := range certs {
		_, _ = h.Write(c.Raw) // DER says its own length
	}
	id := [32]byte(h.Sum(nil))
	v.mu.Lock()
	p, known := v.seen[id]
	v.mu.Unlock()
	if known {
		return p, nil
	}
	p, err := v.verify(certs)
	if err != nil {
		return Peer{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.seen) >= maxSeen {
		clear(v.seen) // they are verified again
	}
	v.seen[id] = p
	return p, nil
}

func (v *Verifier) verify(certs []*x509.Certificate) (Peer, error) {
	leaf := certs[0]
	p := Peer{leaf: leaf, Name: leaf.Subject.CommonName, Key: keyHash(leaf), Serial: serialOf(leaf), Issued: issuedAt(leaf), Expires: leaf.NotAfter}
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || !nameForm.MatchString(p.Name) {
		return p, denied(CodeBad, "The certificate is not one of a node of Apiary.")
	}
	// The root that is shown decides which refusal helps; it decides nothing else.
	if last := certs[len(certs)-1]; last.IsCA && len(last.URIs) == 0 && !last.Equal(v.root) {
		return p, denied(CodeWrongCluster, "The certificate is of another cluster (%s, this one is %s).", ClusterID(last), v.cluster)
	}
	p.from, p.until = leaf.NotBefore, leaf.NotAfter
	between := x509.NewCertPool()
	for _, c := range certs {
		if err := checkKey(c.PublicKey); err != nil {
			return p, denied(CodeBad, "A certificate is not one of Apiary: %w.", err)
		}
		if c.Equal(v.root) || c.Equal(leaf) {
			continue
		}
		between.AddCert(c)
		// One date inside all of them is what the library is asked about; the clocks are looked at apart.
		if p.from.Before(c.NotBefore) {
			p.from = c.NotBefore
		}
		p.until = earlier(p.until, c.NotAfter)
	}
	if p.until.Before(p.from) {
		return p, denied(CodeBad, "The certificate is older than that of its issuer.")
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: v.roots, Intermediates: between, CurrentTime: p.from,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, // verified below: both are there
	})
	if err != nil || len(chains) == 0 {
		return p, denied(CodeBad, "The certificate does not lead to the CA of this cluster.")
	}
	if !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}) {
		return p, denied(CodeBad, "The certificate is not for both ends of a connection.")
	}
	if p.NodeID, p.Roles, err = identityOf(leaf, v.cluster); err != nil {
		return p, err
	}
	if chain := chains[0]; len(chain) == maxChain {
		issuer := chain[1]
		p.issuerKey = keyHash(issuer)
		if _, _, err = identityOf(issuer, v.cluster); err != nil {
			return p, err
		}
	}
	return p, nil
}

// unrevoked refuses a node that was shut out, and those that it issued certificates to.
func (v *Verifier) unrevoked(p Peer) error {
	if v.revoked == nil {
		return nil
	}
	if v.revoked(p.Key) {
		return denied(CodeRevoked, "The node %s was shut out of this cluster; a new token of `apiary token create` lets it in again.", p.Name)
	}
	if p.issuerKey != "" && v.revoked(p.issuerKey) {
		return denied(CodeRevoked, "The queen that let %s in was shut out of this cluster; a new token of `apiary token create` lets it in again.", p.Name)
	}
	return nil
}

// inTime looks at the clocks. grace is how long after its end a certificate may still be used.
func (v *Verifier) inTime(p Peer, grace time.Duration) error {
	switch v.clock.within(p.from, p.until.Add(grace)) {
	case -1:
		return denied(CodeNotYet, "The certificate of %s is valid from %s on, and the clock here says %s; set the clock that is wrong.", p.Name, clockText(p.from), clockText(v.clock.Now()))
	case 1:
		if grace > 0 {
			return denied(CodeExpired, "The certificate of %s has expired at %s and cannot be renewed any more, and the clock here says %s; a new token of `apiary token create` lets it in again.", p.Name, clockText(p.until), clockText(v.clock.Now()))
		}
		return denied(CodeExpired, "The certificate of %s has expired at %s, and the clock here says %s; it renews itself when a queen can be reached.", p.Name, clockText(p.until), clockText(v.clock.Now()))
	}
	return nil
}

func serialOf(c *x509.Certificate) string { return hex.EncodeToString(c.SerialNumber.Bytes()) }
