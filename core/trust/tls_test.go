package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// greet has a client and a server greet each other over loopback, and exchanges a byte each way, so that both know that the
// other is content.
func greet(t testing.TB, client, server *tls.Config) (cs, ss tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	done := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			done <- err
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		s := tls.Server(c, server)
		if err := s.Handshake(); err != nil {
			done <- err
			return
		}
		ss = s.ConnectionState()
		_, err = io.ReadFull(s, make([]byte, 1))
		if err == nil {
			_, err = s.Write([]byte{2})
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	_ = raw.SetDeadline(time.Now().Add(20 * time.Second))
	if client.ServerName == "" {
		client = client.Clone()
		client.ServerName = "node"
	}
	c := tls.Client(raw, client)
	clientErr = c.Handshake()
	if clientErr == nil {
		if _, clientErr = c.Write([]byte{1}); clientErr == nil {
			_, clientErr = io.ReadFull(c, make([]byte, 1))
		}
		cs = c.ConnectionState()
	}
	_ = raw.Close()
	serverErr = <-done // after which ss is there
	return cs, ss, clientErr, serverErr
}

func TestAgentsGreet(t *testing.T) {
	c := newCluster(t)
	hive, queen := c.member("aaaaaaaaaaaa", "tower", RoleHive), c.member("bbbbbbbbbbbb", "second", RoleQueen)
	cs, ss, err, serr := greet(t, ClientConfig(queen, c.verifier, Expect{NodeID: "aaaaaaaaaaaa", Roles: []string{RoleHive}}), ServerConfig(hive, c.verifier))
	if err != nil || serr != nil {
		t.Fatal(err, serr)
	}
	if cs.Version != tls.VersionTLS13 || cs.NegotiatedProtocol != "http/1.1" {
		t.Errorf("they speak %x %s", cs.Version, cs.NegotiatedProtocol)
	}
	if p, err := c.verifier.Peer(&ss, RoleQueen); err != nil || p.NodeID != "bbbbbbbbbbbb" {
		t.Errorf("the hive sees %+v, %v", p, err)
	}
	if p, err := c.verifier.Peer(&cs, RoleHive); err != nil || p.NodeID != "aaaaaaaaaaaa" {
		t.Errorf("the queen sees %+v, %v", p, err)
	}
	// On the connection that is open: shut out, its next request is refused.
	if _, _, err := c.roster.Revoke("second", noon); err != nil {
		t.Fatal(err)
	}
	_, err = c.verifier.Peer(&ss, RoleQueen)
	want(t, err, CodeRevoked)
}

func TestHandshakesThatAreRefused(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	hive, queen := c.member("aaaaaaaaaaaa", "tower", RoleHive), c.member("bbbbbbbbbbbb", "second", RoleQueen)
	stranger := other.member("bbbbbbbbbbbb", "second", RoleQueen)
	out := c.member("cccccccccccc", "out", RoleHive, RoleQueen)
	if _, _, err := c.roster.Revoke("out", noon); err != nil {
		t.Fatal(err)
	}
	old, k := c.member("dddddddddddd", "old", RoleQueen), key(t)
	ancient := c.identity(k, issue(t, c.root, node{id: "eeeeeeeeeeee", name: "ancient", roles: []string{RoleQueen}}, &k.PublicKey, noon.Add(-RenewGrace-25*time.Hour)))
	k2 := key(t)
	over := c.identity(k2, issue(t, c.root, node{id: "dddddddddddd", name: "old", roles: []string{RoleQueen}}, &k2.PublicKey, noon.Add(-25*time.Hour)))
	tls12 := ClientConfig(queen, c.verifier, Expect{})
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	// One who shows somebody else's certificate has not got the key of it.
	stolen := ClientConfig(queen, c.verifier, Expect{})
	stolen.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		x := old.current.Load().tls
		x.PrivateKey = key(t)
		return &x, nil
	}
	for name, tc := range map[string]struct {
		client, server *tls.Config
		by, code       string // who refuses
	}{
		"good":             {ClientConfig(queen, c.verifier, Expect{NodeID: "aaaaaaaaaaaa"}), ServerConfig(hive, c.verifier), "", ""},
		"no certificate":   {ClientConfig(nil, c.verifier, Expect{}), ServerConfig(hive, c.verifier), "", ""}, // the routes decide
		"other node":       {ClientConfig(queen, c.verifier, Expect{NodeID: "bbbbbbbbbbbb"}), ServerConfig(hive, c.verifier), "client", CodeWrongNode},
		"other role":       {ClientConfig(queen, c.verifier, Expect{Roles: []string{RoleQueen}}), ServerConfig(hive, c.verifier), "client", CodeWrongRole},
		"server elsewhere": {ClientConfig(queen, c.verifier, Expect{}), ServerConfig(stranger, other.verifier), "client", CodeWrongCluster},
		"client elsewhere": {ClientConfig(stranger, c.verifier, Expect{}), ServerConfig(hive, c.verifier), "server", CodeWrongCluster},
		"server is out":    {ClientConfig(queen, c.verifier, Expect{}), ServerConfig(out, c.verifier), "client", CodeRevoked},
		"client is out":    {ClientConfig(out, c.verifier, Expect{}), ServerConfig(hive, c.verifier), "server", CodeRevoked},
		"client is old":    {ClientConfig(over, c.verifier, Expect{}), ServerConfig(hive, c.verifier), "", ""}, // to renew
		"client is older":  {ClientConfig(ancient, c.verifier, Expect{}), ServerConfig(hive, c.verifier), "server", CodeExpired},
		"server is old":    {ClientConfig(queen, c.verifier, Expect{}), ServerConfig(over, c.verifier), "client", CodeExpired},
		"TLS 1.2":          {tls12, ServerConfig(hive, c.verifier), "server", "?"},
		"stolen":           {stolen, ServerConfig(hive, c.verifier), "server", "?"},
	} {
		_, ss, err, serr := greet(t, tc.client, tc.server)
		switch tc.by {
		case "":
			if err != nil || serr != nil {
				t.Errorf("%s: %v, %v", name, err, serr)
			}
			if name == "client is old" {
				_, err := c.verifier.Peer(&ss)
				want(t, err, CodeExpired)
				if _, err := c.verifier.Renewing(&ss); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if name == "no certificate" {
				_, err := c.verifier.Peer(&ss)
				want(t, err, CodeNoCertificate)
			}
		case "client":
			if code(err) != tc.code || serr == nil {
				t.Errorf("%s: the client says %v, the server %v", name, err, serr)
			}
		case "server":
			if serr == nil || tc.code != "?" && code(serr) != tc.code || err == nil {
				t.Errorf("%s: the server says %v, the client %v", name, serr, err)
			}
		}
	}
}

// A server that lies about its own certificate's key, or shows another node's, gets nowhere.
func TestServerWithoutTheKey(t *testing.T) {
	c := newCluster(t)
	hive, queen := c.member("aaaaaaaaaaaa", "tower", RoleHive), c.member("bbbbbbbbbbbb", "second", RoleQueen)
	s := ServerConfig(hive, c.verifier)
	s.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		x := hive.current.Load().tls
		x.PrivateKey = key(t)
		return &x, nil
	}
	if _, _, err, _ := greet(t, ClientConfig(queen, c.verifier, Expect{}), s); err == nil {
		t.Error("the client believes it")
	}
}

// Renewed certificates are used for the next handshake, at both ends, and a session of a former one is not resumed.
func TestRenewedWithoutRestart(t *testing.T) {
	c := newCluster(t)
	hive, queen := c.member("aaaaaaaaaaaa", "tower", RoleHive), c.member("bbbbbbbbbbbb", "second", RoleQueen)
	client, server := ClientConfig(queen, c.verifier, Expect{}), ServerConfig(hive, c.verifier)
	client.ServerName = "node"
	again := func() (tls.ConnectionState, tls.ConnectionState) {
		t.Helper()
		cs, ss, err, serr := greet(t, client, server)
		if err != nil || serr != nil {
			t.Fatal(err, serr)
		}
		return cs, ss
	}
	again()
	cs, ss := again()
	if !cs.DidResume || !ss.DidResume || len(ss.PeerCertificates) == 0 {
		t.Errorf("the session is not resumed: %v", cs.DidResume)
	}
	if p, err := c.verifier.Peer(&ss); err != nil || p.NodeID != "bbbbbbbbbbbb" {
		t.Errorf("a resumed session is of %+v, %v", p, err)
	}
	for _, id := range []*Identity{queen, hive} {
		p := id.Peer()
		chain := issue(t, c.root, node{id: p.NodeID, name: p.Name, roles: p.Roles}, &id.key.PublicKey, noon.Add(time.Minute))
		if err := id.Replace(chain); err != nil {
			t.Fatal(err)
		}
	}
	cs, ss = again()
	if cs.DidResume || serialOf(ss.PeerCertificates[0]) != queen.Peer().Serial || serialOf(cs.PeerCertificates[0]) != hive.Peer().Serial {
		t.Error("a former certificate is shown")
	}
	// Revoked, it is not let back in by its session either.
	if cs, _ := again(); !cs.DidResume {
		t.Fatal("the session is not resumed")
	}
	if _, _, err := c.roster.Revoke("second", noon); err != nil {
		t.Fatal(err)
	}
	if _, _, _, serr := greet(t, client, server); code(serr) != CodeRevoked {
		t.Errorf("the server says %v", serr)
	}
}

// Clocks that are set while agents run, at either end, end nothing, for new connections and for those that resume a session.
func TestHandshakesWhenClocksJump(t *testing.T) {
	c := newCluster(t)
	hive, queen := c.member("aaaaaaaaaaaa", "tower", RoleHive), c.member("bbbbbbbbbbbb", "second", RoleQueen)
	still := NewVerifier(c.root.Root(), clockAt(noon), c.roster.Revoked)
	for _, end := range []struct{ client, server *Verifier }{{c.verifier, still}, {still, c.verifier}} {
		c.hand.set(noon)
		client, server := ClientConfig(queen, end.client, Expect{}), ServerConfig(hive, end.server)
		client.ServerName = "node"
		for _, to := range []time.Time{noon, noon.Add(time.Hour), noon.Add(-time.Hour), time.Unix(0, 0), time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC), noon} {
			c.hand.set(to)
			for range 2 {
				_, ss, err, serr := greet(t, client, server)
				if err != nil || serr != nil {
					t.Errorf("at %v: %v, %v", to, err, serr)
				}
				if _, err := end.server.Peer(&ss, RoleQueen); err != nil {
					t.Error(err)
				}
			}
		}
	}
}

func TestJoinGreeting(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	tok := c.token(TokenOrder{})
	tok.Made = noon
	hive, queen := c.member("aaaaaaaaaaaa", "tower", RoleHive), c.member("bbbbbbbbbbbb", "second", RoleQueen)
	_, issuing := c.queenWithIssuer("cccccccccccc", "third")
	k := key(t)
	chain := issue(t, issuing, node{id: "dddddddddddd", name: "fourth", roles: []string{RoleQueen}}, &k.PublicKey, noon)
	below := c.identity(k, chain)
	bare := c.identity(k, chain[:2]) // its file has lost the root
	stranger := other.member("bbbbbbbbbbbb", "second", RoleQueen)
	// A stranger who shows the right root beside his own certificate.
	mixed := ServerConfig(stranger, other.verifier)
	mixed.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		x := stranger.current.Load().tls
		x.Certificate = [][]byte{x.Certificate[0], c.root.Root().Raw}
		return &x, nil
	}
	for name, tc := range map[string]struct {
		clock  *Clock
		server *tls.Config
		code   string
	}{
		"queen":            {c.clock, ServerConfig(queen, c.verifier), ""},
		"queen of a queen": {c.clock, ServerConfig(below, c.verifier), ""},
		"no root in file":  {c.clock, ServerConfig(bare, c.verifier), ""},
		"hive":             {c.clock, ServerConfig(hive, c.verifier), CodeWrongRole},
		"stranger":         {c.clock, ServerConfig(stranger, other.verifier), CodeWrongCluster},
		"mixed":            {c.clock, mixed, CodeBad},
		"clock behind":     {clockAt(noon.Add(-time.Hour)), ServerConfig(queen, c.verifier), CodeClock},
		"clock ahead":      {clockAt(noon.Add(time.Hour)), ServerConfig(queen, c.verifier), ""}, // the queen will say so
		"clock in 1970":    {clockAt(time.Unix(0, 0)), ServerConfig(queen, c.verifier), CodeClock},
		"clock in 2038":    {clockAt(time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC)), ServerConfig(queen, c.verifier), CodeClock},
	} {
		if _, _, err, _ := greet(t, JoinConfig(tok, tc.clock), tc.server); code(err) != tc.code {
			t.Errorf("%s: the code is %q, want %q: %v", name, code(err), tc.code, err)
		} else {
			want(t, err, tc.code)
		}
	}
}

// Clients outside of the cluster verify a queen with the CA's certificate and its host name.
func TestStandardClient(t *testing.T) {
	c := newCluster(t)
	k := key(t)
	chain, _, err := c.root.IssueOwn(k, "aaaaaaaaaaaa", "tower", []string{RoleQueen}, []string{"tower.lan"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(c.root.Root())
	server := ServerConfig(c.identity(k, chain), c.verifier)
	for host, good := range map[string]bool{"tower.lan": true, "localhost": true, "127.0.0.1": true, "other.lan": false} {
		_, _, err, _ := greet(t, &tls.Config{RootCAs: pool, ServerName: host, Time: c.clock.Now}, server)
		if (err == nil) != good {
			t.Errorf("%s: %v", host, err)
		}
		if _, bad := errors.AsType[x509.HostnameError](err); !good && !bad {
			t.Errorf("%s: %v", host, err)
		}
	}
}
