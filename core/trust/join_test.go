package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// Who joins believes nothing that it did not ask for.
func TestRepliesThatAreRefused(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	tok := c.token(TokenOrder{Role: RoleQueen})
	a := applicant(t, "bbbbbbbbbbbb", "second", RoleQueen)
	a.IssuerKey = key(t)
	req, err := a.Request(tok, c.clock)
	if err != nil {
		t.Fatal(err)
	}
	good, err := c.issuer.Join(context.Background(), req, far)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Accept(tok, good, c.clock); err != nil {
		t.Fatal(err)
	}
	chainOf := func(n node, k *ecdsa.PrivateKey, at time.Time) string {
		return string(EncodeChain(issue(t, c.root, n, &k.PublicKey, at)...))
	}
	queen := node{id: a.NodeID, name: a.Name, roles: []string{RoleQueen}}
	stranger, err := c.root.issueIssuer("cccccccccccc", &a.IssuerKey.PublicKey, noon)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(r *contract.JoinReply)
		code   string
	}{
		"other CA":   {func(r *contract.JoinReply) { r.CA = string(EncodeChain(other.root.Root())) }, CodeBadReply},
		"no CA":      {func(r *contract.JoinReply) { r.CA = "" }, CodeBadReply},
		"cluster id": {func(r *contract.JoinReply) { r.ClusterID = ClusterID(other.root.Root()) }, CodeBadReply},
		"no chain":   {func(r *contract.JoinReply) { r.Certificate = "" }, CodeBadReply},
		"other key":  {func(r *contract.JoinReply) { r.Certificate = chainOf(queen, key(t), noon) }, CodeBadReply},
		"other node": {func(r *contract.JoinReply) {
			n := queen
			n.id = "cccccccccccc"
			r.Certificate = chainOf(n, a.Key, noon)
		}, CodeBadReply},
		"other name": {func(r *contract.JoinReply) { n := queen; n.name = "x"; r.Certificate = chainOf(n, a.Key, noon) }, CodeBadReply},
		"other role": {func(r *contract.JoinReply) {
			n := queen
			n.roles = []string{RoleHive}
			r.Certificate = chainOf(n, a.Key, noon)
		}, CodeBadReply},
		"from 2038":     {func(r *contract.JoinReply) { r.Certificate = chainOf(queen, a.Key, noon.AddDate(12, 0, 0)) }, CodeClock},
		"no issuer":     {func(r *contract.JoinReply) { r.Issuer = "" }, CodeBadReply},
		"node's":        {func(r *contract.JoinReply) { r.Issuer = r.Certificate }, CodeBadReply},
		"root's":        {func(r *contract.JoinReply) { r.Issuer = r.CA }, CodeBadReply},
		"stranger's":    {func(r *contract.JoinReply) { r.Issuer = string(EncodeChain(stranger)) }, CodeBadReply},
		"cluster key":   {func(r *contract.JoinReply) { r.ClusterKey = "short" }, CodeBadReply},
		"admin key":     {func(r *contract.JoinReply) { r.AdminKey = "short" }, CodeBadReply},
		"no gossip key": {func(r *contract.JoinReply) { r.GossipKeys = nil }, CodeBadReply},
		"gossip key":    {func(r *contract.JoinReply) { r.GossipKeys = []string{"short"} }, CodeBadReply},
		"gossip keys":   {func(r *contract.JoinReply) { r.GossipKeys = slices.Repeat([]string{testGossipKey}, 17) }, CodeBadReply},
		"peer":          {func(r *contract.JoinReply) { r.Peers = []string{"x"} }, CodeBadReply},
		"peers":         {func(r *contract.JoinReply) { r.Peers = slices.Repeat([]string{"10.0.0.5:7834"}, 65) }, CodeBadReply},
	} {
		r := good
		tc.change(&r)
		if _, err := a.Accept(tok, r, c.clock); code(err) != tc.code {
			t.Errorf("%s: the code is %q, want %q: %v", name, code(err), tc.code, err)
		}
	}
	// All of another cluster, which would be good with its own token.
	elsewhere := other.token(TokenOrder{Role: RoleQueen})
	if req, err = a.Request(elsewhere, other.clock); err != nil {
		t.Fatal(err)
	}
	reply, err := other.issuer.Join(context.Background(), req, far)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.Accept(elsewhere, reply, c.clock); err != nil {
		t.Error(err)
	}
	_, err = a.Accept(tok, reply, c.clock)
	want(t, err, CodeBadReply)
	hive := applicant(t, a.NodeID, a.Name, RoleQueen)
	hive.Key = a.Key
	_, err = hive.Accept(tok, good, c.clock) // no issuing certificate was asked for
	want(t, err, CodeBadReply)
	_, err = a.Request(tok, clockAt(noon.Add(-time.Hour)))
	want(t, err, CodeClock)
}

func TestRenewalsThatAreRefused(t *testing.T) {
	c := newCluster(t)
	a := applicant(t, "aaaaaaaaaaaa", "tower")
	j, err := c.join(a, c.token(TokenOrder{}))
	if err != nil {
		t.Fatal(err)
	}
	id := c.identity(a.Key, j.Chain)
	other := key(t)
	for name, chain := range map[string][]*x509.Certificate{
		"other key":     issue(t, c.root, tower, &other.PublicKey, noon),
		"other node":    issue(t, c.root, node{id: "bbbbbbbbbbbb", name: "tower", roles: []string{RoleHive}}, &a.Key.PublicKey, noon),
		"from 1970":     issue(t, c.root, tower, &a.Key.PublicKey, time.Unix(0, 0)),
		"from 2038":     issue(t, c.root, tower, &a.Key.PublicKey, noon.AddDate(12, 0, 0)),
		"other cluster": issue(t, newCluster(t).root, tower, &a.Key.PublicKey, noon),
	} {
		if _, _, err := id.Renewed(contract.RenewReply{Certificate: string(EncodeChain(chain...))}, nil); code(err) != CodeBadReply {
			t.Errorf("%s: %v", name, err)
		}
		if id.Peer().Serial != serialOf(j.Chain[0]) {
			t.Fatalf("%s: the certificate in use is replaced", name)
		}
	}
	if _, _, err := id.Renewed(contract.RenewReply{Certificate: string(EncodeChain(j.Chain...)), Issuer: "x"}, key(t)); code(err) != CodeBadReply {
		t.Error(err)
	}
	if _, _, err := id.Renewed(contract.RenewReply{}, nil); code(err) != CodeBadReply {
		t.Error(err)
	}
}
