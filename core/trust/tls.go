package trust

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"sync"

	"github.com/apiary-dev/apiary/core/fault"
)

// base is what all connections between Apiary's processes have in common.
func base(clock *Clock) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, Time: clock.Now}
}

// ServerConfig is that of an agent's servers. Clients need no certificate: who calls with an API key has none. Whoever shows one must
// be a node of this cluster that was not shut out; one that has expired gets a connection, so that it can renew itself, and Verifier.Peer
// refuses it for everything else. A renewed certificate of the identity is used for the next handshake.
func ServerConfig(id *Identity, v *Verifier) *tls.Config {
	c := base(v.clock)
	c.ClientAuth = tls.RequestClientCert
	c.ClientCAs = v.roots // only a hint for those who have several certificates
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &id.current.Load().tls, nil }
	c.VerifyConnection = func(cs tls.ConnectionState) error { // also when a session is resumed
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		_, err := v.Renewing(&cs)
		return err
	}
	return c
}

// Expect says who has to answer. The zero value is any node of the cluster.
type Expect struct {
	NodeID string // empty: any
	Roles  []string
}

// ClientConfig is for calls to agents: the server must be a node of this cluster that is as expected and was not shut out. Host names do
// not matter, because a node is known by its id at whatever address. A nil id shows no certificate, as of who has an API key. A connection goes on
// no longer than the certificate that was shown on it, so idle ones are closed when the identity gets the next.
func ClientConfig(id *Identity, v *Verifier, e Expect) *tls.Config {
	c := base(v.clock)
	c.InsecureSkipVerify = true // of host names and of everything else: VerifyConnection does it
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		p, err := v.Peer(&cs, e.Roles...)
		if err == nil && e.NodeID != "" && p.NodeID != e.NodeID {
			err = denied(CodeWrongNode, "The node %s was called, and %s (%s) answered; if the address belongs to another machine now, `apiary member list` shows where it is.", e.NodeID, p.NodeID, p.Name)
		}
		return err
	}
	show(c, id)
	return c
}

// show makes the client of c show the certificate of id that is in use at that time.
func show(c *tls.Config, id *Identity) {
	if id == nil {
		return
	}
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &id.current.Load().tls, nil }
	c.ClientSessionCache = &sessions{id: id, inner: tls.NewLRUClientSessionCache(64)}
}

// sessions forgets the sessions of a former certificate: to resume one would be to show it again.
type sessions struct {
	id *Identity

	mu    sync.Mutex // guards the fields below
	inner tls.ClientSessionCache
	of    *held
}

func (s *sessions) cache() tls.ClientSessionCache {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.id.current.Load(); s.of != now {
		s.of, s.inner = now, tls.NewLRUClientSessionCache(64)
	}
	return s.inner
}

// Get is that of tls.ClientSessionCache.
func (s *sessions) Get(key string) (*tls.ClientSessionState, bool) { return s.cache().Get(key) }

// Put is that of tls.ClientSessionCache.
func (s *sessions) Put(key string, cs *tls.ClientSessionState) { s.cache().Put(key, cs) }

// JoinConfig is for the call with which a node joins: the server must be a queen of the token's cluster, of which nothing but the
// fingerprint of its CA is known.
func JoinConfig(t Token, clock *Clock) *tls.Config {
	c := base(clock)
	c.InsecureSkipVerify = true // VerifyConnection does it
	c.SessionTicketsDisabled = true
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		i := slices.IndexFunc(cs.PeerCertificates, func(c *x509.Certificate) bool { return Fingerprint(c) == t.Fingerprint })
		if i < 0 {
			return denied(CodeWrongCluster, "The machine that answers is not of the cluster of the token; if the token is right, another agent has the address that it names (one of %q).", t.Addresses)
		}
		v := NewVerifier(cs.PeerCertificates[i], clock, nil)
		_, err := v.Peer(&cs, RoleQueen)
		if err == nil {
			return nil
		}
		if code := fault.As(err).Code; code == CodeNotYet || code == CodeExpired {
			if q, qerr := v.peer(&cs); qerr == nil && q.Has(RoleQueen) {
				return clockOff(clock.Now(), t.Made, " when it made the token, and its certificate ends at "+clockText(q.Expires))
			}
		}
		return err
	}
	return c
}
