package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// state is a connection whose other side has shown these certificates.
func state(chain ...*x509.Certificate) *tls.ConnectionState {
	return &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: chain}
}

func issue(t testing.TB, a *Authority, n node, pub *ecdsa.PublicKey, at time.Time) []*x509.Certificate {
	t.Helper()
	chain, err := a.issueNode(n, pub, at)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

var tower = node{id: "aaaaaaaaaaaa", name: "tower", roles: []string{RoleHive}}

func TestPeerIsWhoTheCertificateNames(t *testing.T) {
	c := newCluster(t)
	_, issuing := c.queenWithIssuer("bbbbbbbbbbbb", "second")
	for name, a := range map[string]*Authority{"root": c.root, "issuer": issuing} {
		k := key(t)
		chain := issue(t, a, node{id: "aaaaaaaaaaaa", name: "tower", roles: []string{RoleHive, RoleQueen},
			ips: []netip.Addr{netip.MustParseAddr("10.0.0.5")}, names: []string{"tower.lan"}}, &k.PublicKey, noon)
		for _, shown := range [][]*x509.Certificate{chain, chain[:len(chain)-1]} { // the root may be left out
			p, err := c.verifier.Peer(state(shown...), RoleQueen)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if p.NodeID != "aaaaaaaaaaaa" || p.Name != "tower" || !slices.Equal(p.Roles, []string{RoleHive, RoleQueen}) || p.Key != publicHash(&k.PublicKey) || !p.Issued.Equal(noon) || !p.Expires.Equal(noon.Add(NodeLife)) {
				t.Errorf("%s: the peer is %+v", name, p)
			}
		}
		// Clients outside of the cluster verify it as they verify every server.
		roots := x509.NewCertPool()
		roots.AddCert(c.root.Root())
		between := x509.NewCertPool()
		for _, x := range chain[1:] {
			between.AddCert(x)
		}
		for _, host := range []string{"10.0.0.5", "tower.lan"} {
			if _, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: noon, DNSName: host}); err != nil {
				t.Errorf("%s: a client outside of the cluster refuses %s: %v", name, host, err)
			}
		}
	}
}

func TestPeerWithoutCertificate(t *testing.T) {
	c := newCluster(t)
	for _, cs := range []*tls.ConnectionState{nil, {}} {
		_, err := c.verifier.Peer(cs)
		want(t, err, CodeNoCertificate)
		_, err = c.verifier.Renewing(cs)
		want(t, err, CodeNoCertificate)
	}
}

func TestPeerRoles(t *testing.T) {
	c := newCluster(t)
	k := key(t)
	chain := issue(t, c.root, tower, &k.PublicKey, noon)
	_, err := c.verifier.Peer(state(chain...), RoleQueen)
	want(t, err, CodeWrongRole)
	for _, roles := range [][]string{nil, {RoleHive}, {RoleQueen, RoleHive}} {
		if _, err := c.verifier.Peer(state(chain...), roles...); err != nil {
			t.Errorf("a hive is refused where %v may come: %v", roles, err)
		}
	}
}

// Each certificate has one thing wrong, and is made with the right key of the CA: only the check of that thing refuses it.
func TestCertificatesThatAreRefused(t *testing.T) {
	c := newCluster(t)
	cluster := ClusterID(c.root.Root())
	other := newCluster(t)
	leaf := func() *x509.Certificate {
		return &x509.Certificate{
			Subject: pkix.Name{CommonName: "tower"}, NotBefore: noon.Add(-Leeway), NotAfter: noon.Add(NodeLife), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			URIs: []*url.URL{nodeURI(cluster, RoleHive, "aaaaaaaaaaaa")},
		}
	}
	uris := func(list ...string) func(*x509.Certificate) {
		return func(x *x509.Certificate) {
			x.URIs = nil
			for _, s := range list {
				u, err := url.Parse(s)
				if err != nil {
					t.Fatal(err)
				}
				x.URIs = append(x.URIs, u)
			}
		}
	}
	at := "apiary://" + cluster
	for name, tc := range map[string]struct {
		change func(*x509.Certificate)
		code   string
	}{
		"nothing wrong":       {func(*x509.Certificate) {}, ""},
		"no names":            {uris(), CodeBad},
		"three names":         {uris(at+"/hive/aaaaaaaaaaaa", at+"/queen/aaaaaaaaaaaa", at+"/issuer/aaaaaaaaaaaa"), CodeBad},
		"two nodes":           {uris(at+"/hive/aaaaaaaaaaaa", at+"/queen/bbbbbbbbbbbb"), CodeBad},
		"a role twice":        {uris(at+"/hive/aaaaaaaaaaaa", at+"/hive/aaaaaaaaaaaa"), CodeBad},
		"unknown role":        {uris(at + "/admin/aaaaaaaaaaaa"), CodeBad},
		"issuer as a role":    {uris(at + "/issuer/aaaaaaaaaaaa"), CodeBad},
		"other scheme":        {uris("spiffe://" + cluster + "/hive/aaaaaaaaaaaa"), CodeBad},
		"other cluster":       {uris("apiary://" + ClusterID(other.root.Root()) + "/hive/aaaaaaaaaaaa"), CodeWrongCluster},
		"upper case cluster":  {uris("apiary://" + strings.ToUpper(cluster[:31]) + "A/hive/aaaaaaaaaaaa"), CodeBad},
		"port":                {uris("apiary://" + cluster + ":443/hive/aaaaaaaaaaaa"), CodeBad},
		"user":                {uris("apiary://a@" + cluster + "/hive/aaaaaaaaaaaa"), CodeBad},
		"query":               {uris(at + "/hive/aaaaaaaaaaaa?x=/queen/aaaaaaaaaaaa"), CodeBad},
		"fragment":            {uris(at + "/hive/aaaaaaaaaaaa#x"), CodeBad},
		"escaped":             {uris(at + "/hiv%65/aaaaaaaaaaaa"), CodeBad},
		"deeper":              {uris(at + "/hive/aaaaaaaaaaaa/queen"), CodeBad},
		"slash at the end":    {uris(at + "/hive/aaaaaaaaaaaa/"), CodeBad},
		"node id in capitals": {uris(at + "/hive/AAAAAAAAAAAA"), CodeBad},
		"short node id":       {uris(at + "/hive/aaaa"), CodeBad},
		"mail address":        {func(x *x509.Certificate) { x.EmailAddresses = []string{"a@b.c"} }, CodeBad},
		"no name":             {func(x *x509.Certificate) { x.Subject.CommonName = "" }, CodeBad},
		"name with a line":    {func(x *x509.Certificate) { x.Subject.CommonName = "a\nb" }, CodeBad},
		"a CA":                {func(x *x509.Certificate) { x.IsCA = true; x.KeyUsage |= x509.KeyUsageCertSign }, CodeBad},
		"a CA that does not sign": {func(x *x509.Certificate) {
			uris(at + "/issuer/aaaaaaaaaaaa")(x)
			x.IsCA = true
		}, CodeBad},
		"may sign":       {func(x *x509.Certificate) { x.KeyUsage |= x509.KeyUsageCertSign }, CodeBad},
		"server only":    {func(x *x509.Certificate) { x.ExtKeyUsage = x.ExtKeyUsage[:1] }, CodeBad},
		"client only":    {func(x *x509.Certificate) { x.ExtKeyUsage = x.ExtKeyUsage[1:] }, CodeBad},
		"for everything": {func(x *x509.Certificate) { x.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, CodeBad},
		"for code, too":  {func(x *x509.Certificate) { x.ExtKeyUsage = append(x.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }, CodeBad},
		"unknown extension": {func(x *x509.Certificate) {
			x.ExtraExtensions = []pkix.Extension{{Id: []int{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}, CodeBad},
	} {
		x := leaf()
		tc.change(x)
		k := key(t)
		cert, err := sign(x, c.root.cert, &k.PublicKey, c.root.key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err = c.verifier.Peer(state(cert, c.root.Root()))
		if code(err) != tc.code {
			t.Errorf("%s: the code is %q, want %q: %v", name, code(err), tc.code, err)
		}
	}
}

func TestChainsThatAreRefused(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	k := key(t)
	own := issue(t, c.root, tower, &k.PublicKey, noon)
	_, issuing := c.queenWithIssuer("bbbbbbbbbbbb", "second")
	below := issue(t, issuing, tower, &k.PublicKey, noon)

	strange := issue(t, other.root, tower, &k.PublicKey, noon)
	_, err := c.verifier.Peer(state(strange...))
	want(t, err, CodeWrongCluster)
	_, err = c.verifier.Peer(state(strange[0]))
	want(t, err, CodeBad)
	_, err = c.verifier.Peer(state(strange[0], c.root.Root()))
	want(t, err, CodeBad)
	_, err = c.verifier.Peer(state(below[0], c.root.Root())) // without its issuer
	want(t, err, CodeBad)
	_, err = c.verifier.Peer(state(append(slices.Clone(below), own...)...))
	want(t, err, CodeBad)
	for _, ca := range []*x509.Certificate{c.root.Root(), issuing.Certificate()} { // who has a CA is no node
		_, err = c.verifier.Peer(state(ca, c.root.Root()))
		want(t, err, CodeBad)
	}
	if _, err := c.verifier.Peer(state(own...)); err != nil {
		t.Errorf("the good chain is refused: %v", err)
	}

	// A node signs nothing, also not for its own key.
	byLeaf, err := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "x"}, NotBefore: noon, NotAfter: noon.Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: own[0].ExtKeyUsage, URIs: []*url.URL{nodeURI(c.verifier.Cluster(), RoleQueen, "aaaaaaaaaaaa")}}, own[0], &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.verifier.Peer(state(byLeaf, own[0], c.root.Root()))
	want(t, err, CodeBad)

	// An issuer makes no issuers: neither is its certificate one for that, nor is the result accepted.
	if _, err := issuing.issueIssuer("cccccccccccc", &k.PublicKey, noon); err == nil {
		t.Error("an issuer makes an issuing certificate")
	}
	forged := &Authority{key: issuing.key, cert: issuing.cert, root: issuing.cert}
	k3 := key(t)
	third, err := forged.issueIssuer("cccccccccccc", &k3.PublicKey, noon)
	if err != nil {
		t.Fatal(err)
	}
	deep := issue(t, &Authority{key: k3, cert: third, root: c.root.root}, tower, &k.PublicKey, noon)
	_, err = c.verifier.Peer(state(deep[0], third, issuing.cert))
	want(t, err, CodeBad)

	// An issuer issues for its own cluster.
	elsewhere, err := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "x"}, NotBefore: noon, NotAfter: noon.Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: own[0].ExtKeyUsage, URIs: []*url.URL{nodeURI(other.verifier.Cluster(), RoleQueen, "aaaaaaaaaaaa")}}, issuing.cert, &k.PublicKey, issuing.key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.verifier.Peer(state(elsewhere, issuing.cert, c.root.Root()))
	want(t, err, CodeBad)
	// A CA of the root that is nobody's is no issuer.
	nobodys, err := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "x"}, NotBefore: noon, NotAfter: noon.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{nodeURI(c.verifier.Cluster(), RoleQueen, "aaaaaaaaaaaa")}}, c.root.cert, &k3.PublicKey, c.root.key)
	if err != nil {
		t.Fatal(err)
	}
	under := issue(t, &Authority{key: k3, cert: nobodys, root: c.root.root}, tower, &k.PublicKey, noon)
	_, err = c.verifier.Peer(state(under...))
	want(t, err, CodeBad)
}

// What is no root is not taken for one, and a node's certificate does not make an issuer.
func TestAuthorities(t *testing.T) {
	c := newCluster(t)
	if _, err := ParseRoot(EncodeChain(c.root.Root())); err != nil {
		t.Fatal(err)
	}
	k := key(t)
	crossed, err := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "x"}, NotBefore: noon, NotAfter: noon.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, c.root.cert, &k.PublicKey, c.root.key)
	if err != nil {
		t.Fatal(err)
	}
	chain := issue(t, c.root, tower, &k.PublicKey, noon)
	issuing, err := c.root.issueIssuer("bbbbbbbbbbbb", &k.PublicKey, noon)
	if err != nil || !issuing.MaxPathLenZero || issuing.MaxPathLen != 0 {
		t.Fatalf("an issuer can make issuers: %v", err)
	}
	for name, list := range map[string][]*x509.Certificate{"crossed": {crossed}, "node": chain[:1], "chain": chain, "issuer": {issuing}, "two": {c.root.Root(), c.root.Root()}} {
		if _, err := ParseRoot(EncodeChain(list...)); err == nil {
			t.Errorf("%s passes for a root", name)
		}
	}
	if _, err := newAuthority(k, issuing, c.root.Root()); err != nil {
		t.Error(err)
	}
	for name, cert := range map[string]*x509.Certificate{"node": chain[0], "other key": c.root.Root(), "crossed": crossed} {
		if _, err := newAuthority(k, cert, c.root.Root()); err == nil {
			t.Errorf("%s passes for an authority", name)
		}
	}
}

// Keys of other kinds are refused wherever one is read.
func TestOtherKeys(t *testing.T) {
	c := newCluster(t)
	k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	chain := issue(t, c.root, tower, &k.PublicKey, noon)
	_, err = c.verifier.Peer(state(chain...))
	want(t, err, CodeBad)
	if _, err := parseChain(EncodeChain(chain...)); err == nil {
		t.Error("a chain with a key of another kind is read")
	}
}

func TestDates(t *testing.T) {
	c := newCluster(t)
	k := key(t)
	chain := issue(t, c.root, tower, &k.PublicKey, noon)
	end := noon.Add(NodeLife)
	for _, tc := range []struct {
		at             time.Time
		code, renewing string
	}{
		{noon, "", ""},
		{noon.Add(-time.Hour), CodeNotYet, CodeNotYet},
		{noon.Add(time.Hour), "", ""},
		{noon.Add(-2 * Leeway), "", ""}, // a certificate begins Leeway before it is made
		{noon.Add(-2*Leeway - time.Second), CodeNotYet, CodeNotYet},
		{end, "", ""}, {end.Add(Leeway), "", ""},
		{end.Add(Leeway + time.Second), CodeExpired, ""},
		{end.Add(RenewGrace + Leeway), CodeExpired, ""},
		{end.Add(RenewGrace + Leeway + time.Second), CodeExpired, CodeExpired},
		{time.Unix(0, 0), CodeNotYet, CodeNotYet},
		{time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC), CodeExpired, CodeExpired},
	} {
		v := NewVerifier(c.root.Root(), clockAt(tc.at), nil)
		_, err := v.Peer(state(chain...))
		if code(err) != tc.code {
			t.Errorf("at %v: the code is %q, want %q", tc.at, code(err), tc.code)
		}
		if err != nil && !strings.Contains(err.Error(), clockText(tc.at)) {
			t.Errorf("the message does not say the clock: %v", err)
		}
		if _, err := v.Renewing(state(chain...)); code(err) != tc.renewing {
			t.Errorf("at %v: renewing, the code is %q, want %q", tc.at, code(err), tc.renewing)
		}
	}
}

// A clock that is set while a process runs ends nothing, and one that was wrong at its start refuses.
func TestClockJumps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		k := key(t)
		chain := issue(t, c.root, tower, &k.PublicKey, noon)
		for _, to := range []time.Time{noon.Add(time.Hour), noon.Add(-time.Hour), time.Unix(0, 0), time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC)} {
			c.hand.set(to)
			if _, err := c.verifier.Peer(state(chain...)); err != nil {
				t.Errorf("the clock jumped to %v: %v", to, err)
			}
		}
		c.hand.set(time.Unix(0, 0))
		time.Sleep(NodeLife + Leeway + time.Second) // the certificate ends all the same
		_, err := c.verifier.Peer(state(chain...))
		want(t, err, CodeNotYet)
		c.hand.set(noon) // a machine that slept: only the other clock has gone on
		if _, err := c.verifier.Peer(state(chain...)); err != nil {
			t.Error(err)
		}
	})
}

func TestRevoked(t *testing.T) {
	c := newCluster(t)
	_, issuing := c.queenWithIssuer("bbbbbbbbbbbb", "second")
	k, k2 := key(t), key(t)
	own, below := issue(t, c.root, tower, &k.PublicKey, noon), issue(t, issuing, node{id: "cccccccccccc", name: "third", roles: []string{RoleHive}}, &k2.PublicKey, noon)
	check := func(what string, chain []*x509.Certificate, wanted string) {
		t.Helper()
		if _, err := c.verifier.Peer(state(chain...)); code(err) != wanted {
			t.Errorf("%s: the code is %q, want %q", what, code(err), wanted)
		}
		if _, err := c.verifier.Renewing(state(chain...)); code(err) != wanted {
			t.Errorf("%s, renewing: the code is %q, want %q", what, code(err), wanted)
		}
	}
	check("before", own, "")
	check("before", below, "")
	c.roster.RevokeKey(publicHash(&k.PublicKey), tower.id, noon)
	check("revoked", own, CodeRevoked) // although it was verified before
	check("another", below, "")
	later := issue(t, c.root, tower, &k.PublicKey, noon.Add(time.Hour)) // of a queen that has not heard of it
	check("made later", later, CodeRevoked)
	if _, _, err := c.roster.Revoke("second", noon); err != nil {
		t.Fatal(err)
	}
	check("of a revoked queen", below, CodeRevoked)
}

// What an issuer makes does not outlive it.
func TestLeafWithinIssuer(t *testing.T) {
	c := newCluster(t)
	k := key(t)
	cert, err := c.root.issueIssuer("bbbbbbbbbbbb", &k.PublicKey, noon.Add(-IssuerLife+time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	a, err := newAuthority(k, cert, c.root.Root())
	if err != nil {
		t.Fatal(err)
	}
	k2 := key(t)
	chain := issue(t, a, tower, &k2.PublicKey, noon)
	if chain[0].NotAfter.After(cert.NotAfter) {
		t.Errorf("the certificate ends at %v, its issuer's at %v", chain[0].NotAfter, cert.NotAfter)
	}
	p, err := c.verifier.Peer(state(chain...))
	if err != nil || !p.until.Equal(cert.NotAfter) {
		t.Errorf("%v, %v", p.until, err)
	}
	// One that says that it does is over when its issuer's is.
	forged, err := sign(&x509.Certificate{Subject: pkix.Name{CommonName: "x"}, NotBefore: noon, NotAfter: noon.Add(NodeLife), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: chain[0].ExtKeyUsage, URIs: chain[0].URIs}, cert, &k2.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	for at, wanted := range map[time.Duration]string{0: "", 2 * time.Hour: CodeExpired} {
		_, err := NewVerifier(c.root.Root(), clockAt(noon.Add(at)), nil).Peer(state(forged, cert))
		want(t, err, wanted)
	}
}

func TestSerials(t *testing.T) {
	c := newCluster(t)
	k := key(t)
	seen := map[string]bool{}
	for range 100 {
		s := issue(t, c.root, tower, &k.PublicKey, noon)[0].SerialNumber
		if s.Sign() <= 0 || s.BitLen() != 127 || seen[s.String()] {
			t.Fatalf("the serial number is %v", s)
		}
		seen[s.String()] = true
	}
}

func TestSeenIsBounded(t *testing.T) {
	c := newCluster(t)
	k := key(t)
	chain := issue(t, c.root, tower, &k.PublicKey, noon)
	for i := range maxSeen {
		c.verifier.seen[[32]byte(big.NewInt(int64(i)).FillBytes(make([]byte, 32)))] = Peer{}
	}
	if _, err := c.verifier.Peer(state(chain...)); err != nil || len(c.verifier.seen) != 1 {
		t.Errorf("%d chains are remembered, %v", len(c.verifier.seen), err)
	}
	bad := issue(t, newCluster(t).root, tower, &k.PublicKey, noon)
	if _, err := c.verifier.Peer(state(bad...)); err == nil || len(c.verifier.seen) != 1 {
		t.Error("a chain that was refused is remembered")
	}
}

func TestAddresses(t *testing.T) {
	ips, names, err := parseAddresses([]string{"10.0.0.5", "::ffff:10.0.0.5", "fd00::5", "Tower.LAN", "tower.lan"})
	if err != nil || cmp.Diff(ips, []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")}, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })) != "" || !slices.Equal(names, []string{"tower.lan"}) {
		t.Errorf("%v %v %v", ips, names, err)
	}
	for _, bad := range []string{"", "0.0.0.0", "::", "224.0.0.1", "fe80::1%eth0", "10.0.0", "1", "256.1.1.1", "a:1", "a b", "*.lan", "-a", "a-", "a..b", "a.", "http://a", "ä", strings.Repeat("a", 64), strings.Repeat("a.", 130) + "a"} {
		if _, _, err := parseAddresses([]string{bad}); err == nil {
			t.Errorf("%q passes for an address", bad)
		}
	}
	if _, _, err := parseAddresses(make([]string, maxAddresses+1)); err == nil {
		t.Error("too many addresses pass")
	}
}

func FuzzChain(f *testing.F) {
	c := newCluster(f)
	_, issuing := c.queenWithIssuer("bbbbbbbbbbbb", "second")
	k := key(f)
	good := EncodeChain(issue(f, issuing, tower, &k.PublicKey, noon)...)
	f.Add(good, uint16(0), byte(0))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n"), uint16(0), byte(0))
	f.Add([]byte{}, uint16(0), byte('-')) // nothing changes
	f.Add([]byte{}, uint16(300), byte('A'))
	f.Fuzz(func(t *testing.T, text []byte, at uint16, to byte) {
		chain, err := parseChain(edited(text, good, at, to))
		if err != nil {
			return
		}
		if p, err := c.verifier.Peer(state(chain...)); err == nil && (p.NodeID != tower.id || p.Key != publicHash(&k.PublicKey)) {
			t.Fatalf("a node came out of nowhere: %+v", p)
		}
		_, _ = ParseRoot(text)
	})
}
