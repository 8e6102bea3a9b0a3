package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

var far = netip.MustParseAddr("10.0.0.9")

func TestJoin(t *testing.T) {
	c := newCluster(t)
	a := applicant(t, "aaaaaaaaaaaa", "tower")
	a.Addresses = []string{"10.0.0.9", "10.0.0.1", "queen.lan"}
	tok := c.token(TokenOrder{Name: "tower"})
	j, err := c.join(a, tok)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.verifier.Peer(state(j.Chain...), RoleHive)
	if err != nil || p.NodeID != "aaaaaaaaaaaa" || p.Name != "tower" || p.Has(RoleQueen) {
		t.Errorf("the node is %+v, %v", p, err)
	}
	if j.ClusterKey.Reveal() != hex64("c") || j.AdminKey != "" || j.GossipKeys[0].Reveal() != testGossipKey || j.Peers[0] != "10.0.0.5:7834" || j.Issuer != nil {
		t.Errorf("it was given %+v", j)
	}
	// A hive has no names, and no address but the one that it came from.
	if leaf := j.Chain[0]; len(leaf.DNSNames) > 0 || len(leaf.IPAddresses) != 1 || !leaf.IPAddresses[0].Equal(net.IPv4(10, 0, 0, 9)) {
		t.Errorf("the certificate is for %v and %v", leaf.DNSNames, leaf.IPAddresses)
	}
	var kinds []string
	for _, r := range c.published {
		kinds = append(kinds, r.Kind)
		if strings.Contains(string(r.Value), tok.Secret.Reveal()) {
			t.Error("a record has the secret of the token")
		}
	}
	if !slices.Equal(kinds, []string{contract.RecordToken, contract.RecordNode}) {
		t.Errorf("%v was published", kinds)
	}
}

func TestJoinOfQueen(t *testing.T) {
	c := newCluster(t)
	a := applicant(t, "bbbbbbbbbbbb", "second", RoleQueen, RoleHive)
	a.Addresses, a.IssuerKey = []string{"10.0.0.6", "second.lan"}, key(t)
	j, err := c.join(a, c.token(TokenOrder{Role: RoleQueen}))
	if err != nil {
		t.Fatal(err)
	}
	if j.AdminKey.Reveal() != hex64("a") || !slices.Contains(j.Chain[0].DNSNames, "second.lan") || !slices.Contains(j.Chain[0].DNSNames, "localhost") {
		t.Errorf("a queen is given %v", j.Chain[0].DNSNames)
	}
	auth, err := newAuthority(a.IssuerKey, j.Issuer, j.Root)
	if err != nil {
		t.Fatal(err)
	}
	// It lets others in, but no issuers, and does not burn the token of one that asks.
	first := c.issuer
	c.issuer = c.issuerOf(auth)
	if _, err := c.join(applicant(t, "cccccccccccc", "third"), c.token(TokenOrder{})); err != nil {
		t.Fatal(err)
	}
	q := applicant(t, "dddddddddddd", "fourth", RoleQueen)
	q.IssuerKey = key(t)
	tok := c.token(TokenOrder{Role: RoleQueen})
	_, err = c.join(q, tok)
	want(t, err, CodeRootElsewhere)
	c.issuer = first
	if _, err := c.join(q, tok); err != nil {
		t.Fatal(err)
	}
	h := applicant(t, "eeeeeeeeeeee", "fifth")
	h.IssuerKey = key(t)
	_, err = c.join(h, c.token(TokenOrder{Role: RoleQueen}))
	want(t, err, CodeWrongRole)
	same := applicant(t, "ffffffffffff", "sixth", RoleQueen)
	same.IssuerKey = same.Key
	_, err = c.join(same, c.token(TokenOrder{Role: RoleQueen}))
	want(t, err, CodeBadCSR)
}

// Each refusal has its own code, and the token of who was refused for another reason than itself lets him in afterwards.
func TestJoinRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		order  TokenOrder
		change func(c *cluster, req *contract.JoinRequest)
		code   string
		says   []string
	}{
		"nothing wrong": {change: func(*cluster, *contract.JoinRequest) {}},
		"used": {change: func(c *cluster, req *contract.JoinRequest) {
			other := *req
			other.NodeID, other.Name, other.CSR = "cccccccccccc", "thief", csrOf(t, key(t))
			if _, err := c.issuer.Join(context.Background(), other, far); err != nil {
				t.Fatal(err)
			}
		}, code: CodeTokenUsed, says: []string{"2026-11-29 12:00:00"}},
		"expired": {change: func(c *cluster, req *contract.JoinRequest) {
			c.hand.move(DefaultTokenTTL + Leeway + time.Second)
			req.Time = c.hand.now()
		}, code: CodeTokenExpired, says: []string{"2026-11-29 12:15:00", "2026-11-29 12:20:01"}},
		"expired within the leeway": {change: func(c *cluster, req *contract.JoinRequest) {
			c.hand.move(DefaultTokenTTL + Leeway)
			req.Time = c.hand.now()
		}},
		"wrong name":       {order: TokenOrder{Name: "attic"}, change: func(*cluster, *contract.JoinRequest) {}, code: CodeWrongName, says: []string{"attic", "tower"}},
		"a queen":          {change: func(_ *cluster, req *contract.JoinRequest) { req.Roles = []string{RoleHive, RoleQueen} }, code: CodeWrongRole},
		"wrong cluster":    {change: func(_ *cluster, req *contract.JoinRequest) { req.Fingerprint = hex64("0") }, code: CodeWrongCluster},
		"unknown token":    {change: func(_ *cluster, req *contract.JoinRequest) { req.TokenID = "0000000000000000" }, code: CodeTokenUnknown},
		"wrong secret":     {change: func(_ *cluster, req *contract.JoinRequest) { req.Secret = hex64("0") }, code: CodeTokenUnknown},
		"no token, no csr": {change: func(_ *cluster, req *contract.JoinRequest) { req.Secret, req.CSR = hex64("0"), "" }, code: CodeTokenUnknown},
		"no secret":        {change: func(_ *cluster, req *contract.JoinRequest) { req.Secret = "" }, code: CodeTokenUnknown},
		"nothing of it":    {change: func(_ *cluster, req *contract.JoinRequest) { req.TokenID, req.Secret = "", "" }, code: CodeTokenUnknown},
		"clock ahead":      {change: func(_ *cluster, req *contract.JoinRequest) { req.Time = noon.Add(time.Hour) }, code: CodeClock, says: []string{"2026-11-29 13:00:00", "2026-11-29 12:00:00"}},
		"clock behind":     {change: func(_ *cluster, req *contract.JoinRequest) { req.Time = noon.Add(-time.Hour) }, code: CodeClock, says: []string{"2026-11-29 11:00:00"}},
		"clock a bit off":  {change: func(_ *cluster, req *contract.JoinRequest) { req.Time = noon.Add(-Leeway) }},
		"clock in 1970":    {change: func(_ *cluster, req *contract.JoinRequest) { req.Time = time.Unix(0, 0) }, code: CodeClock},
		"clock in 2038":    {change: func(_ *cluster, req *contract.JoinRequest) { req.Time = time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC) }, code: CodeClock},
		"no clock":         {change: func(_ *cluster, req *contract.JoinRequest) { req.Time = time.Time{} }, code: CodeClock},
		"queen's clock":    {change: func(c *cluster, _ *contract.JoinRequest) { c.hand.move(-time.Hour) }, code: CodeClock},
		"no roles":         {change: func(_ *cluster, req *contract.JoinRequest) { req.Roles = nil }, code: CodeBadJoin},
		"admin":            {change: func(_ *cluster, req *contract.JoinRequest) { req.Roles = []string{"admin"} }, code: CodeBadJoin},
		"a role twice":     {change: func(_ *cluster, req *contract.JoinRequest) { req.Roles = []string{RoleHive, RoleHive} }, code: CodeBadJoin},
		"node id":          {change: func(_ *cluster, req *contract.JoinRequest) { req.NodeID = "aaaaaaaaaaaa/../x" }, code: CodeBadJoin},
		"name":             {change: func(_ *cluster, req *contract.JoinRequest) { req.Name = "a\nb" }, code: CodeBadJoin},
		"address":          {change: func(_ *cluster, req *contract.JoinRequest) { req.Addresses = []string{"0.0.0.0"} }, code: CodeBadJoin},
		"many addresses":   {change: func(_ *cluster, req *contract.JoinRequest) { req.Addresses = make([]string, 17) }, code: CodeBadJoin},
		"no csr":           {change: func(_ *cluster, req *contract.JoinRequest) { req.CSR = "" }, code: CodeBadCSR},
		"issuer csr":       {change: func(_ *cluster, req *contract.JoinRequest) { req.IssuerCSR = "x" }, code: CodeBadCSR},
		"issuer of a hive": {change: func(_ *cluster, req *contract.JoinRequest) { req.IssuerCSR = csrOf(t, key(t)) }, code: CodeWrongRole},
	} {
		c := newCluster(t)
		tok := c.token(tc.order)
		a := applicant(t, "aaaaaaaaaaaa", "tower")
		req, err := a.Request(tok, c.clock)
		if err != nil {
			t.Fatal(err)
		}
		good := req
		tc.change(c, &req)
		_, err = c.issuer.Join(context.Background(), req, far)
		if code(err) != tc.code {
			t.Errorf("%s: the code is %q, want %q: %v", name, code(err), tc.code, err)
			continue
		}
		want(t, err, tc.code)
		for _, s := range tc.says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%s: the message does not say %s: %v", name, s, err)
			}
		}
		if err == nil || tc.code == CodeTokenUsed || tc.code == CodeTokenExpired {
			continue
		}
		c.hand.set(noon)
		if good.Name = "tower"; tc.order.Name != "" {
			good.Name = tc.order.Name
		}
		if _, err := c.issuer.Join(context.Background(), good, far); err != nil {
			t.Errorf("%s: the token is burnt: %v", name, err)
		}
	}
}

func csrOf(t testing.TB, k *ecdsa.PrivateKey) string {
	t.Helper()
	s, err := newCSR(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCSRsThatAreRefused(t *testing.T) {
	make := func(tmpl *x509.CertificateRequest, k any) string {
		der, err := x509.CreateCertificateRequest(rand.Reader, tmpl, k)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: typeRequest, Bytes: der}))
	}
	k := key(t)
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	good := csrOf(t, k)
	if _, err := parseCSR(good); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(good))
	broken := slices.Clone(block.Bytes)
	broken[len(broken)-1] ^= 1 // of the signature
	for name, bad := range map[string]string{
		"rsa": make(&x509.CertificateRequest{}, rsaKey), "p384": make(&x509.CertificateRequest{}, p384), "ed25519": make(&x509.CertificateRequest{}, ed),
		"sha512":    make(&x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA512}, k),
		"subject":   make(&x509.CertificateRequest{Subject: pkix.Name{CommonName: "queen"}}, k),
		"names":     make(&x509.CertificateRequest{DNSNames: []string{"queen.lan"}}, k),
		"extension": make(&x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}}}}, k),
		"twice":     good + good, "certificate": strings.ReplaceAll(good, "CERTIFICATE REQUEST", "CERTIFICATE"), "half": good[:len(good)/2], "empty": "", "text": "hello",
		"before": "x" + good, "large": good + strings.Repeat("\n", maxPEM),
		"signature": string(pem.EncodeToMemory(&pem.Block{Type: typeRequest, Bytes: broken})),
		"trailing":  string(pem.EncodeToMemory(&pem.Block{Type: typeRequest, Bytes: append(slices.Clone(block.Bytes), 0)})),
	} {
		if _, err := parseCSR(bad); err == nil {
			t.Errorf("%s: the request is taken", name)
		}
	}
}

// One token lets one in, whoever asks at the same time; who asks again with the same key has lost the answer.
func TestOneTokenManyMachines(t *testing.T) {
	c := newCluster(t)
	tok := c.token(TokenOrder{})
	var in, used atomic.Int64
	var wg sync.WaitGroup
	for i := range 40 {
		a := applicant(t, fmt.Sprintf("%012d", i), fmt.Sprintf("m%d", i))
		wg.Go(func() {
			switch _, err := c.join(a, tok); code(err) {
			case "":
				in.Add(1)
				if _, err := c.join(a, tok); err != nil {
					t.Errorf("the answer cannot be had again: %v", err)
				}
			case CodeTokenUsed:
				used.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if in.Load() != 1 || used.Load() != 39 {
		t.Errorf("%d are in and %d were refused", in.Load(), used.Load())
	}
}

func TestManyJoinAtOnce(t *testing.T) {
	c := newCluster(t)
	var wg sync.WaitGroup
	for i := range 40 {
		a, tok := applicant(t, fmt.Sprintf("%012d", i), fmt.Sprintf("m%d", i)), c.token(TokenOrder{})
		wg.Go(func() {
			j, err := c.join(a, tok)
			if err != nil {
				t.Error(err)
				return
			}
			if p, err := c.verifier.Peer(state(j.Chain...)); err != nil || p.NodeID != a.NodeID {
				t.Error(p, err)
			}
		})
	}
	wg.Wait()
	if n := len(c.roster.Nodes()); n != 40 {
		t.Errorf("%d are in", n)
	}
}

// Nobody is let in whom the other queens would not hear of, and the token stays good.
func TestJoinThatCannotBePublished(t *testing.T) {
	c := newCluster(t)
	a, tok := applicant(t, "aaaaaaaaaaaa", "tower"), c.token(TokenOrder{})
	c.refuse = errors.New("the disk is full")
	if _, err := c.join(a, tok); err == nil || len(c.roster.Nodes()) > 0 {
		t.Errorf("%v, %v", c.roster.Nodes(), err)
	}
	c.refuse = nil
	if _, err := c.join(applicant(t, "bbbbbbbbbbbb", "other"), tok); err != nil {
		t.Error(err)
	}
}

func TestNodeIDsAndNamesAreTaken(t *testing.T) {
	c := newCluster(t)
	first := applicant(t, "aaaaaaaaaaaa", "tower")
	if _, err := c.join(first, c.token(TokenOrder{})); err != nil {
		t.Fatal(err)
	}
	_, err := c.join(applicant(t, "aaaaaaaaaaaa", "tower"), c.token(TokenOrder{}))
	want(t, err, CodeNodeKnown)
	tok := c.token(TokenOrder{})
	_, err = c.join(applicant(t, "bbbbbbbbbbbb", "tower"), tok)
	want(t, err, CodeNameTaken)
	if _, err := c.join(applicant(t, "bbbbbbbbbbbb", "attic"), tok); err != nil { // the token was not burnt
		t.Error(err)
	}
	// The machine itself may join again, as a queen too and under another name.
	first.Roles, first.Name = []string{RoleHive, RoleQueen}, "tower2"
	if _, err := c.join(first, c.token(TokenOrder{Role: RoleQueen})); err != nil {
		t.Error(err)
	}
	// Shut out, it comes back with another key alone.
	if _, _, err := c.roster.Revoke("tower2", noon); err != nil {
		t.Fatal(err)
	}
	_, err = c.join(first, c.token(TokenOrder{Role: RoleQueen}))
	want(t, err, CodeRevokedKey)
	first.Key = key(t)
	j, err := c.join(first, c.token(TokenOrder{Role: RoleQueen}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.verifier.Peer(state(j.Chain...)); err != nil {
		t.Error(err)
	}
	if _, err := c.join(applicant(t, "cccccccccccc", "tower"), c.token(TokenOrder{})); err != nil { // the name is free
		t.Error(err)
	}
}

func TestRenew(t *testing.T) {
	c := newCluster(t)
	a := applicant(t, "aaaaaaaaaaaa", "tower")
	j, err := c.join(a, c.token(TokenOrder{}))
	if err != nil {
		t.Fatal(err)
	}
	id := c.identity(a.Key, j.Chain)
	c.hand.move(NodeLife + 24*time.Hour) // every queen was away for a day
	c.verifier.clock = NewClock(c.hand.now)
	c.issuer.o.Clock = c.verifier.clock
	p, err := c.verifier.Renewing(state(j.Chain...))
	if err != nil {
		t.Fatal(err)
	}
	csr, err := id.NewCSR()
	if err != nil {
		t.Fatal(err)
	}
	reply, err := c.issuer.Renew(p, contract.RenewRequest{CSR: csr, Addresses: []string{"10.0.0.9", "10.0.0.1", "10.0.0.77"}, Time: c.hand.now()}, netip.MustParseAddr("::ffff:10.0.0.77"))
	if err != nil {
		t.Fatal(err)
	}
	chain, issuer, err := id.Renewed(reply, nil)
	if err != nil || issuer != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(chain[0].IPAddresses); got != "[10.0.0.9 10.0.0.77]" {
		t.Errorf("the certificate is for %s: the address that was seen before and the one that is seen now", got)
	}
	q, err := c.verifier.Peer(state(chain...))
	if err != nil || q.NodeID != p.NodeID || q.Name != p.Name || !slices.Equal(q.Roles, p.Roles) || q.Key != p.Key || !id.Peer().Expires.Equal(c.hand.now().Add(NodeLife)) {
		t.Errorf("%+v, %v", q, err)
	}

	_, err = c.issuer.Renew(p, contract.RenewRequest{CSR: csrOf(t, key(t))}, far)
	want(t, err, CodeKeyChanged)
	_, err = c.issuer.Renew(p, contract.RenewRequest{CSR: "x"}, far)
	want(t, err, CodeBadCSR)
	_, err = c.issuer.Renew(p, contract.RenewRequest{CSR: csr, Addresses: []string{"::"}}, far)
	want(t, err, CodeBadJoin)
	// A hive asks for an issuing certificate in vain.
	if reply, err := c.issuer.Renew(p, contract.RenewRequest{CSR: csr, IssuerCSR: csrOf(t, key(t))}, far); err != nil || reply.Issuer != "" {
		t.Error(err)
	}
	// A role that was taken away goes, and is not got back.
	both := p
	both.Roles = []string{RoleHive, RoleQueen}
	reply, err = c.issuer.Renew(both, contract.RenewRequest{CSR: csr}, far)
	if err != nil {
		t.Fatal(err)
	}
	if chain, err = parseChain([]byte(reply.Certificate)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.verifier.Peer(state(chain...), RoleQueen); code(err) != CodeWrongRole {
		t.Errorf("a role comes back: %v", err)
	}
	both.Roles = []string{RoleQueen}
	_, err = c.issuer.Renew(both, contract.RenewRequest{CSR: csr}, far)
	want(t, err, CodeWrongRole)
	// A queen that has not heard of the node believes the certificate.
	c.issuer.o.Roster = NewRoster()
	if _, err := c.issuer.Renew(p, contract.RenewRequest{CSR: csr}, far); err != nil {
		t.Error(err)
	}
	// One that has heard that the node joined with another key does not.
	c.issuer.o.Roster.Take(record(contract.RecordNode, p.NodeID, contract.NodeRecord{Name: "tower", Roles: p.Roles, Key: hex64("1")}))
	_, err = c.issuer.Renew(p, contract.RenewRequest{CSR: csr}, far)
	want(t, err, CodeSuperseded)
}

func TestRenewOfIssuer(t *testing.T) {
	c := newCluster(t)
	a := applicant(t, "bbbbbbbbbbbb", "second", RoleQueen)
	a.IssuerKey = key(t)
	j, err := c.join(a, c.token(TokenOrder{Role: RoleQueen}))
	if err != nil {
		t.Fatal(err)
	}
	id := c.identity(a.Key, j.Chain)
	csr, issuerCSR := csrOf(t, a.Key), csrOf(t, a.IssuerKey)
	c.hand.move(2 * time.Minute)
	reply, err := c.issuer.Renew(id.Peer(), contract.RenewRequest{CSR: csr, IssuerCSR: issuerCSR}, far)
	if err != nil {
		t.Fatal(err)
	}
	_, issuer, err := id.Renewed(reply, a.IssuerKey)
	if err != nil || !issuer.NotAfter.After(j.Issuer.NotAfter) {
		t.Errorf("%v", err)
	}
	auth, err := newAuthority(a.IssuerKey, issuer, c.root.Root())
	if err != nil {
		t.Fatal(err)
	}
	c.issuer.SetAuthority(auth) // which is not the root: the node's certificate is renewed all the same
	if reply, err = c.issuer.Renew(id.Peer(), contract.RenewRequest{CSR: csr, IssuerCSR: issuerCSR}, far); err != nil || reply.Issuer != "" {
		t.Error(err)
	}
	c.issuer.SetAuthority(c.root)
	_, err = c.issuer.Renew(id.Peer(), contract.RenewRequest{CSR: csr, IssuerCSR: csrOf(t, key(t))}, far)
	want(t, err, CodeKeyChanged)
	_, err = c.issuer.Renew(id.Peer(), contract.RenewRequest{CSR: csr, IssuerCSR: "x"}, far)
	want(t, err, CodeBadCSR)
	// A revoked issuing key makes no come-back, under whatever name.
	if _, _, err := c.roster.Revoke("bbbbbbbbbbbb", noon); err != nil {
		t.Fatal(err)
	}
	_, err = c.issuer.Renew(id.Peer(), contract.RenewRequest{CSR: csr, IssuerCSR: issuerCSR}, far)
	want(t, err, CodeKeyChanged)
	again := applicant(t, "cccccccccccc", "third", RoleQueen)
	again.IssuerKey = a.IssuerKey
	_, err = c.join(again, c.token(TokenOrder{Role: RoleQueen}))
	want(t, err, CodeRevokedKey)
}
