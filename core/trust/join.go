package trust

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// CodeBadReply is the code of the fault that an answer to a request for a certificate is which gives something else than was asked for.
const CodeBadReply = "bad_certificate_reply"

// Applicant is a node that asks for its certificate.
type Applicant struct {
	NodeID    string
	Name      string
	Roles     []string
	Addresses []string // hosts, without ports
	Version   string
	Key       *ecdsa.PrivateKey
	IssuerKey *ecdsa.PrivateKey // of a queen that is to issue certificates, else nil
}

// Request makes the request with which the applicant uses a token.
func (a Applicant) Request(t Token, clock *Clock) (contract.JoinRequest, error) {
	if err := t.CheckClock(clock.Now()); err != nil {
		return contract.JoinRequest{}, err
	}
	req := contract.JoinRequest{
		Fingerprint: hex.EncodeToString(t.Fingerprint[:]), TokenID: t.ID, Secret: t.Secret.Reveal(),
		NodeID: a.NodeID, Name: a.Name, Roles: a.Roles, Addresses: append([]string{}, a.Addresses...), Version: a.Version, Time: clock.Now(),
	}
	var err error
	if req.CSR, err = newCSR(a.Key); err == nil && a.IssuerKey != nil {
		req.IssuerCSR, err = newCSR(a.IssuerKey)
	}
	return req, err
}

// Joined is what a node has that was let in.
type Joined struct {
	Root       *x509.Certificate
	Chain      []*x509.Certificate // the node's certificate first
	Issuer     *x509.Certificate   // of a queen that issues certificates, else nil
	GossipKeys []secret.Secret     // the one in use first
	ClusterKey secret.Secret
	AdminKey   secret.Secret // of a queen, else empty
	Peers      []string      // gossip addresses, host:port
}

const maxPeers = 64

// Accept checks that a reply gives what was asked for and is of the cluster of the token.
func (a Applicant) Accept(t Token, reply contract.JoinReply, clock *Clock) (Joined, error) {
	j, err := a.accept(t, reply, clock)
	if err == nil || fault.As(err).Code == CodeClock {
		return j, err
	}
	return Joined{}, fault.New(fault.Denied, CodeBadReply, "The queen let this machine in with an answer that cannot be used: %w; make another token with `apiary token create` and join again.", err)
}

func (a Applicant) accept(t Token, reply contract.JoinReply, clock *Clock) (Joined, error) {
	root, err := ParseRoot([]byte(reply.CA))
	if err != nil {
		return Joined{}, fmt.Errorf("its CA: %w", err)
	}
	if Fingerprint(root) != t.Fingerprint || reply.ClusterID != ClusterID(root) {
		return Joined{}, errors.New("its CA is not the one of the token")
	}
	j := Joined{Root: root, ClusterKey: secret.Secret(reply.ClusterKey), AdminKey: secret.Secret(reply.AdminKey)}
	if j.Chain, err = parseChain([]byte(reply.Certificate)); err != nil {
		return Joined{}, fmt.Errorf("its certificate: %w", err)
	}
	v := NewVerifier(root, clock, nil)
	id, err := NewIdentity(a.Key, j.Chain, v)
	if err != nil {
		return Joined{}, fmt.Errorf("its certificate: %w", err)
	}
	want, err := checkRoles(a.Roles)
	if p := id.Peer(); err != nil || p.NodeID != a.NodeID || p.Name != a.Name || !slices.Equal(p.Roles, want) {
		return Joined{}, errors.New("its certificate is of another node, or for other roles")
	}
	if v.inTime(id.Peer(), 0) != nil {
		return Joined{}, clockOff(clock.Now(), reply.Time, "")
	}
	if (a.IssuerKey != nil) != (reply.Issuer != "") {
		return Joined{}, errors.New("it has an issuing certificate that was not asked for, or has none")
	}
	if a.IssuerKey != nil {
		if j.Issuer, err = acceptIssuer(a.IssuerKey, reply.Issuer, root, a.NodeID); err != nil {
			return Joined{}, err
		}
	}
	if !hex64Form.MatchString(reply.ClusterKey) || reply.AdminKey != "" && !hex64Form.MatchString(reply.AdminKey) {
		return Joined{}, errors.New("one of its keys is none")
	}
	if len(reply.GossipKeys) == 0 || len(reply.GossipKeys) > 16 || len(reply.Peers) > maxPeers {
		return Joined{}, errors.New("it has no gossip keys, or too many keys or peers")
	}
	for _, k := range reply.GossipKeys {
		if secret.Check(k) != nil || len(k) > 256 {
			return Joined{}, errors.New("one of its gossip keys is none")
		}
		j.GossipKeys = append(j.GossipKeys, secret.Secret(k))
	}
	for _, p := range reply.Peers {
		if !isAddress(p) {
			return Joined{}, errors.New("one of its peers has no address")
		}
	}
	j.Peers = reply.Peers
	return j, nil
}

// acceptIssuer checks an issuing certificate for key.
func acceptIssuer(key *ecdsa.PrivateKey, text string, root *x509.Certificate, nodeID string) (*x509.Certificate, error) {
	chain, err := parseChain([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("its issuing certificate: %w", err)
	}
	auth, err := newAuthority(key, chain[0], root)
	if err != nil {
		return nil, fmt.Errorf("its issuing certificate: %w", err)
	}
	if len(chain) != 1 || auth.nodeID != nodeID {
		return nil, errors.New("its issuing certificate is of another node")
	}
	return chain[0], nil
}

// Renewed takes the reply to a request to renew: the identity has the next certificate, of which chain is what SaveNode writes. issuerKey
// is nil where no issuing certificate was asked for; issuer is nil where the queen could not renew it.
func (id *Identity) Renewed(reply contract.RenewReply, issuerKey *ecdsa.PrivateKey) (chain []*x509.Certificate, issuer *x509.Certificate, err error) {
	bad := func(err error) error {
		return fault.New(fault.Denied, CodeBadReply, "The queen renewed the certificate of this machine with an answer that cannot be used: %w.", err)
	}
	if chain, err = parseChain([]byte(reply.Certificate)); err != nil {
		return nil, nil, bad(err)
	}
	if reply.Issuer != "" && issuerKey != nil {
		if issuer, err = acceptIssuer(issuerKey, reply.Issuer, id.verifier.root, id.Peer().NodeID); err != nil {
			return nil, nil, bad(err)
		}
	}
	if err := id.Replace(chain); err != nil {
		return nil, nil, bad(err)
	}
	return chain, issuer, nil
}
