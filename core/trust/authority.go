package trust

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"time"
)

// Authority issues certificates: it is the root of a cluster, or has an issuing certificate of the root. Its methods may be called
// from many goroutines.
type Authority struct {
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate // of key
	root   *x509.Certificate // the same for the root
	nodeID string            // whose issuing certificate it is; empty for the root
}

// The root's dates say nothing: whether a cluster is trusted is decided by who keeps its certificate. They do not depend on the clock of
// the first start, which is wrong on machines that have none of their own.
var (
	rootFrom  = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	rootUntil = time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC)
)

// NewRoot makes the root of a new cluster.
func NewRoot() (*Authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, fmt.Errorf("make the key of the CA: %w", err)
	}
	cert, err := sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "Apiary cluster CA"},
		NotBefore:             rootFrom,
		NotAfter:              rootUntil,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLen:            1,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, nil, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	return &Authority{key: key, cert: cert, root: cert}, nil
}

// newAuthority checks that the parts belong together. For the root cert is root.
func newAuthority(key *ecdsa.PrivateKey, cert, root *x509.Certificate) (*Authority, error) {
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, errors.New("the key is not that of the certificate")
	}
	a := &Authority{key: key, cert: cert, root: root}
	if cert.Equal(root) {
		return a, nil
	}
	if err := cert.CheckSignatureFrom(root); err != nil || !cert.IsCA {
		return nil, errors.New("the issuing certificate is not one of this cluster's CA")
	}
	var err error
	a.nodeID, _, err = identityOf(cert, ClusterID(root))
	return a, err
}

// IsRoot reports whether a can make issuing certificates.
func (a *Authority) IsRoot() bool { return a.cert.Equal(a.root) }

// Root is the certificate of the cluster's root.
func (a *Authority) Root() *x509.Certificate { return a.root }

// Certificate is what a issues with: the root's, or its issuing certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// node is what a node's certificate says.
type node struct {
	id    string
	name  string
	roles []string // of checkRoles
	ips   []netip.Addr
	names []string // of hosts
}

// issueNode makes a certificate for a node's key, valid from issued, and returns it with those that lead to the root, the root's
// included: who has only its fingerprint needs to be shown it.
func (a *Authority) issueNode(n node, pub *ecdsa.PublicKey, issued time.Time) ([]*x509.Certificate, error) {
	cluster := ClusterID(a.root)
	t := &x509.Certificate{
		Subject:               pkix.Name{CommonName: n.name},
		NotBefore:             issued.Add(-Leeway),
		NotAfter:              issued.Add(NodeLife),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:              n.names,
	}
	for _, role := range n.roles {
		t.URIs = append(t.URIs, nodeURI(cluster, role, n.id))
	}
	for _, ip := range n.ips {
		t.IPAddresses = append(t.IPAddresses, net.IP(ip.AsSlice()))
	}
	// A certificate does not outlive its issuer's.
	if t.NotAfter.After(a.cert.NotAfter) {
		t.NotAfter = a.cert.NotAfter
	}
	leaf, err := sign(t, a.cert, pub, a.key)
	if err != nil {
		return nil, err
	}
	if a.IsRoot() {
		return []*x509.Certificate{leaf, a.root}, nil
	}
	return []*x509.Certificate{leaf, a.cert, a.root}, nil
}

// issueIssuer makes an issuing certificate for the key of a queen. Only the root can.
func (a *Authority) issueIssuer(nodeID string, pub *ecdsa.PublicKey, issued time.Time) (*x509.Certificate, error) {
	if !a.IsRoot() {
		return nil, errors.New("only the root of a cluster makes issuing certificates")
	}
	cluster := ClusterID(a.root)
	return sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "Apiary issuer " + nodeID},
		NotBefore:             issued.Add(-Leeway),
		NotAfter:              earlier(issued.Add(IssuerLife), a.cert.NotAfter),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  []*url.URL{nodeURI(cluster, roleIssuer, nodeID)},
		// It issues for nodes of this cluster and for nobody else.
		PermittedDNSDomainsCritical: true, // of all its constraints
		PermittedURIDomains:         []string{cluster},
	}, a.cert, pub, a.key)
}

// issuedAt is when a certificate of issueNode or issueIssuer was made, by the clock of its issuer.
func issuedAt(cert *x509.Certificate) time.Time { return cert.NotBefore.Add(Leeway) }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// sign makes a certificate of a template; a nil parent is one that signs itself.
func sign(t, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	serial := make([]byte, 16)
	_, _ = rand.Read(serial)
	serial[0] = serial[0]&0x7f | 0x40 // positive, and always as long
	t.SerialNumber = new(big.Int).SetBytes(serial)
	t.SignatureAlgorithm = x509.ECDSAWithSHA256
	if parent == nil {
		parent = t
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the certificate that was made: %w", err)
	}
	return cert, nil
}
