package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// Codes of faults about requests for certificates.
const (
	CodeBadCSR        = "bad_csr"
	CodeBadJoin       = "bad_join_request"
	CodeKeyChanged    = "key_changed"    // a renewal is for the key of the present certificate
	CodeSuperseded    = "superseded"     // the node has joined anew with another key since
	CodeRootElsewhere = "root_elsewhere" // only the agent that made the cluster lets queens in that issue certificates
)

// Welcome is what a node is given beside its certificate.
type Welcome struct {
	GossipKeys []secret.Secret // the one in use first
	ClusterKey secret.Secret
	AdminKey   secret.Secret // for queens
	Peers      []string      // gossip addresses
}

// IssuerOptions configures an Issuer. All are needed.
type IssuerOptions struct {
	Authority *Authority
	Ledger    *Ledger
	Roster    *Roster
	Clock     *Clock
	// Publish stores records durably and shares them with the other queens. Nobody is let in before it has returned.
	Publish func(ctx context.Context, records ...contract.Record) error
	// Welcome gives what a node gets that is let in with these roles.
	Welcome func(roles []string) (Welcome, error)
}

// Issuer lets nodes in and renews their certificates. Its methods may be called from many goroutines.
type Issuer struct {
	o         IssuerOptions
	authority atomic.Pointer[Authority]
}

// NewIssuer makes an issuer.
func NewIssuer(o IssuerOptions) *Issuer {
	i := &Issuer{o: o}
	i.authority.Store(o.Authority)
	return i
}

// SetAuthority takes a renewed issuing certificate into use.
func (i *Issuer) SetAuthority(a *Authority) { i.authority.Store(a) }

// Join lets a node in that has a token: it gets a certificate for what the token allows, whatever its request says. from is where its
// connection comes from; the zero value is one that is not known.
func (i *Issuer) Join(ctx context.Context, req contract.JoinRequest, from netip.Addr) (contract.JoinReply, error) {
	a, now := i.authority.Load(), i.o.Clock.Now()
	n, err := i.asked(a, req, from, now)
	if err != nil {
		return contract.JoinReply{}, err
	}
	pub, err := parseCSR(req.CSR)
	if err != nil {
		return contract.JoinReply{}, badCSR("csr", err)
	}
	entry := contract.NodeRecord{Name: n.name, Roles: n.roles, Key: publicHash(pub), Joined: now}
	var issuerPub *ecdsa.PublicKey
	if req.IssuerCSR != "" {
		switch issuerPub, err = parseCSR(req.IssuerCSR); {
		case err != nil:
			return contract.JoinReply{}, badCSR("issuer_csr", err)
		case issuerPub.Equal(pub):
			return contract.JoinReply{}, badCSR("issuer_csr", fmt.Errorf("it is for the key of the node, and an issuer has one of its own"))
		case !slices.Contains(n.roles, RoleQueen):
			return contract.JoinReply{}, denied(CodeWrongRole, "Only a queen issues certificates, and %s joins as a hive.", n.name)
		case !a.IsRoot():
			return contract.JoinReply{}, fault.New(fault.Conflict, CodeRootElsewhere, "This queen cannot let other queens in, because the key of the cluster's CA stays with the agent that made the cluster; make the token there.")
		}
		if entry.IssuerKey = publicHash(issuerPub); i.o.Roster.Revoked(entry.IssuerKey) {
			return contract.JoinReply{}, denied(CodeRevokedKey, "The key with which %s would issue certificates was shut out of this cluster; remove secrets/issuer.key from its data folder, and join again.", n.name)
		}
	}
	claim := Claim{TokenID: req.TokenID, Secret: req.Secret, NodeID: n.id, Name: n.name, Roles: n.roles, Key: entry.Key}
	token, err := i.o.Ledger.Redeem(claim)
	if err != nil {
		return contract.JoinReply{}, err
	}
	reply, err := i.admit(ctx, a, n, entry, pub, issuerPub, token)
	if err != nil {
		i.o.Ledger.Release(claim)
		return contract.JoinReply{}, err
	}
	return reply, nil
}

// asked checks the form of a request, and everything else that can be checked before a key is looked at, in the order in which a person
// would want to hear of it. Who has no token of this cluster hears of clocks and clusters alone.
func (i *Issuer) asked(a *Authority, req contract.JoinRequest, from netip.Addr, now time.Time) (node, error) {
	bad := func(param, format string, args ...any) (node, error) {
		return node{}, fault.New(fault.Invalid, CodeBadJoin, format, args...).WithParam(param)
	}
	roles, err := checkRoles(req.Roles)
	if err != nil {
		return bad("roles", "The request to join cannot be taken: %w.", err)
	}
	if !nodeIDForm.MatchString(req.NodeID) {
		return bad("node_id", "%.100q is not the id of a node.", req.NodeID)
	}
	if !nameForm.MatchString(req.Name) {
		return bad("name", "%.100q cannot be the name of an agent: letters, digits, dots, dashes and underscores, at most 64.", req.Name)
	}
	ips, names, err := parseAddresses(req.Addresses)
	if err != nil {
		return bad("addresses", "The request to join cannot be taken: %w.", err)
	}
	if d := req.Time.Sub(now); d > Leeway || d < -Leeway {
		return node{}, clockOff(req.Time, now, "")
	}
	if f := Fingerprint(a.root); req.Fingerprint != hex.EncodeToString(f[:]) {
		return node{}, denied(CodeWrongCluster, "The token is of another cluster than the one that answers here (%s); join at the address that the token names.", ClusterID(a.root))
	}
	if !i.o.Ledger.knows(req.TokenID, req.Secret) {
		return node{}, unknownToken()
	}
	return certified(node{id: req.NodeID, name: req.Name, roles: roles}, ips, names, nil, from), nil
}

// certified gives a node those of the addresses that it says it has which its certificate may name. Agents know each other by node ids
// alone, so these are for other clients that trust the cluster's CA. They call queens, so a queen gets what it says; a hive, which must
// not pass for a queen, gets no names, and those addresses from which it was seen to come, now or when it got the addresses before.
func certified(n node, ips []netip.Addr, names []string, before []netip.Addr, from netip.Addr) node {
	if !slices.Contains(n.roles, RoleQueen) {
		for _, ip := range ips {
			if ip == from.Unmap() || slices.Contains(before, ip) {
				n.ips = append(n.ips, ip)
			}
		}
		return n
	}
	n.ips, n.names = slices.Clone(ips), slices.Clone(names)
	for _, ip := range []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()} {
		if !slices.Contains(n.ips, ip) {
			n.ips = append(n.ips, ip)
		}
	}
	if !slices.Contains(n.names, "localhost") {
		n.names = append(n.names, "localhost")
	}
	return n
}

// admit makes the certificates of a node that a token lets in, and has it known. It lets in nobody whom the other queens would not hear of.
func (i *Issuer) admit(ctx context.Context, a *Authority, n node, entry contract.NodeRecord, pub, issuerPub *ecdsa.PublicKey, token contract.Record) (contract.JoinReply, error) {
	rec, undo, err := i.o.Roster.Admit(n.id, entry)
	if err != nil {
		return contract.JoinReply{}, err
	}
	reply, err := i.reply(a, n, entry.Joined, pub, issuerPub)
	if err == nil {
		err = i.o.Publish(ctx, token, rec)
	}
	if err != nil {
		undo()
		return contract.JoinReply{}, fmt.Errorf("let %s in: %w", n.name, err)
	}
	return reply, nil
}

func (i *Issuer) reply(a *Authority, n node, now time.Time, pub, issuerPub *ecdsa.PublicKey) (contract.JoinReply, error) {
	chain, err := a.issueNode(n, pub, now)
	if err != nil {
		return contract.JoinReply{}, err
	}
	w, err := i.o.Welcome(n.roles)
	if err != nil {
		return contract.JoinReply{}, err
	}
	reply := contract.JoinReply{
		ClusterID: ClusterID(a.root), CA: string(EncodeChain(a.root)), Certificate: string(EncodeChain(chain...)),
		ClusterKey: w.ClusterKey.Reveal(), Peers: append([]string{}, w.Peers...), GossipKeys: []string{}, Time: now,
	}
	for _, k := range w.GossipKeys {
		reply.GossipKeys = append(reply.GossipKeys, k.Reveal())
	}
	if slices.Contains(n.roles, RoleQueen) {
		reply.AdminKey = w.AdminKey.Reveal()
	}
	if issuerPub != nil {
		cert, err := a.issueIssuer(n.id, issuerPub, now)
		if err != nil {
			return contract.JoinReply{}, err
		}
		reply.Issuer = string(EncodeChain(cert))
	}
	return reply, nil
}

// Renew gives the node of a connection its next certificate: p is what Verifier.Renewing says of the connection, from where it comes
// from. Name and roles are those that it has; a role that was taken away since goes.
func (i *Issuer) Renew(p Peer, req contract.RenewRequest, from netip.Addr) (contract.RenewReply, error) {
	a, now := i.authority.Load(), i.o.Clock.Now()
	pub, err := parseCSR(req.CSR)
	if err != nil {
		return contract.RenewReply{}, badCSR("csr", err)
	}
	if publicHash(pub) != p.Key {
		return contract.RenewReply{}, denied(CodeKeyChanged, "The certificate of %s is renewed for the key that it has; a machine with another key joins with a token of `apiary token create`.", p.Name)
	}
	n := node{id: p.NodeID, name: p.Name, roles: p.Roles}
	entry, known := i.o.Roster.find(p.NodeID)
	if known {
		if entry.Key != p.Key {
			return contract.RenewReply{}, denied(CodeSuperseded, "The node %s has joined anew with another key; the certificate with the former one is not renewed.", p.Name)
		}
		n.name = entry.Name
		n.roles = nil
		for _, r := range p.Roles {
			if slices.Contains(entry.Roles, r) {
				n.roles = append(n.roles, r)
			}
		}
		if len(n.roles) == 0 {
			return contract.RenewReply{}, denied(CodeWrongRole, "The node %s has none of its roles any more; it needs a new token of `apiary token create`.", p.Name)
		}
	}
	ips, names, err := parseAddresses(req.Addresses)
	if err != nil {
		return contract.RenewReply{}, fault.New(fault.Invalid, CodeBadJoin, "The request to renew a certificate cannot be taken: %w.", err).WithParam("addresses")
	}
	var before []netip.Addr
	for _, ip := range p.leaf.IPAddresses {
		if ip, ok := netip.AddrFromSlice(ip); ok {
			before = append(before, ip.Unmap())
		}
	}
	chain, err := a.issueNode(certified(n, ips, names, before, from), pub, now)
	if err != nil {
		return contract.RenewReply{}, err
	}
	reply := contract.RenewReply{Certificate: string(EncodeChain(chain...)), Time: now}
	// An issuing certificate is renewed for the key with which the queen was let in, and by the root alone: of others it is no fault.
	if req.IssuerCSR != "" && a.IsRoot() && slices.Contains(n.roles, RoleQueen) {
		issuerPub, err := parseCSR(req.IssuerCSR)
		if err != nil {
			return contract.RenewReply{}, badCSR("issuer_csr", err)
		}
		if !known || entry.IssuerKey != publicHash(issuerPub) || i.o.Roster.Revoked(entry.IssuerKey) {
			return contract.RenewReply{}, denied(CodeKeyChanged, "The node %s was let in with another issuing key, or none; it joins with a token of `apiary token create --role queen`.", p.Name)
		}
		cert, err := a.issueIssuer(n.id, issuerPub, now)
		if err != nil {
			return contract.RenewReply{}, err
		}
		reply.Issuer = string(EncodeChain(cert))
	}
	return reply, nil
}

// IssueOwn makes a certificate for this node itself, which has the authority: at the start of a cluster, and instead of a renewal. The
// entry is to be admitted and published; it is the one that others check revocations against.
func (a *Authority) IssueOwn(key *ecdsa.PrivateKey, nodeID, name string, roles, addresses []string, now time.Time) ([]*x509.Certificate, contract.NodeRecord, error) {
	sorted, err := checkRoles(roles)
	if err != nil {
		return nil, contract.NodeRecord{}, err
	}
	ips, names, err := parseAddresses(addresses)
	if err == nil && (!nodeIDForm.MatchString(nodeID) || !nameForm.MatchString(name)) {
		err = fmt.Errorf("%.100q cannot be the name of a node, or %.100q its id", name, nodeID)
	}
	if err != nil {
		return nil, contract.NodeRecord{}, err
	}
	chain, err := a.issueNode(certified(node{id: nodeID, name: name, roles: sorted}, ips, names, ips, netip.Addr{}), &key.PublicKey, now)
	if err != nil {
		return nil, contract.NodeRecord{}, err
	}
	entry := contract.NodeRecord{Name: name, Roles: sorted, Key: keyHash(chain[0]), Joined: now}
	if !a.IsRoot() {
		entry.IssuerKey = keyHash(a.cert)
	}
	return chain, entry, nil
}

func badCSR(param string, cause error) error {
	return fault.New(fault.Invalid, CodeBadCSR, "The certificate request cannot be taken: %w.", cause).WithParam(param)
}

// publicHash is keyHash for a key without a certificate.
func publicHash(pub *ecdsa.PublicKey) string {
	der, _ := x509.MarshalPKIXPublicKey(pub) // of a curve that it knows
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}
