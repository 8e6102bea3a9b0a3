package trust

import (
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// noon is when tests take place.
var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// hand is a wall clock that tests set.
type hand struct {
	mu sync.Mutex
	at time.Time
}

func (h *hand) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at
}

func (h *hand) set(t time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.at = t
}

func (h *hand) move(d time.Duration) { h.set(h.now().Add(d)) }

// clockAt is a clock that always said t.
func clockAt(t time.Time) *Clock { return NewClock(func() time.Time { return t }) }

// cluster is one with a root, as its first agent has it.
type cluster struct {
	t         testing.TB
	hand      *hand
	clock     *Clock
	root      *Authority
	ledger    *Ledger
	roster    *Roster
	issuer    *Issuer
	verifier  *Verifier
	mu        sync.Mutex // guards the fields below
	published []contract.Record
	refuse    error // of Publish
}

const testGossipKey = "gossip-key-gossip-key-gossip-key-0123"

func newCluster(t testing.TB) *cluster {
	t.Helper()
	root, err := NewRoot()
	if err != nil {
		t.Fatal(err)
	}
	h := &hand{at: noon}
	c := &cluster{t: t, hand: h, clock: NewClock(h.now), root: root, roster: NewRoster()}
	c.ledger = NewLedger(c.clock)
	c.verifier = NewVerifier(root.Root(), c.clock, c.roster.Revoked)
	c.issuer = c.issuerOf(root)
	return c
}

func (c *cluster) issuerOf(a *Authority) *Issuer {
	return NewIssuer(IssuerOptions{
		Authority: a, Ledger: c.ledger, Roster: c.roster, Clock: c.clock,
		Publish: func(_ context.Context, records ...contract.Record) error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.refuse != nil {
				return c.refuse
			}
			c.published = append(c.published, records...)
			return nil
		},
		Welcome: func([]string) (Welcome, error) {
			return Welcome{GossipKeys: []secret.Secret{testGossipKey}, ClusterKey: secret.Secret(hex64("c")), AdminKey: secret.Secret(hex64("a")), Peers: []string{"10.0.0.5:7834"}}, nil
		},
	})
}

func hex64(digit string) string {
	out := ""
	for len(out) < 64 {
		out += digit
	}
	return out
}

func (c *cluster) token(o TokenOrder) Token {
	c.t.Helper()
	o.Fingerprint = Fingerprint(c.root.Root())
	if o.Addresses == nil {
		o.Addresses = []string{"10.0.0.5:7833"}
	}
	if o.Role == "" {
		o.Role = RoleHive
	}
	t, _, err := c.ledger.Make(o)
	if err != nil {
		c.t.Fatal(err)
	}
	return t
}

func key(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	k, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// applicant is a machine that wants to join.
func applicant(t testing.TB, id, name string, roles ...string) Applicant {
	t.Helper()
	if len(roles) == 0 {
		roles = []string{RoleHive}
	}
	return Applicant{NodeID: id, Name: name, Roles: roles, Addresses: []string{"10.0.0.9"}, Version: "test", Key: key(t)}
}

// join has a join with a token, and both ends check each other.
func (c *cluster) join(a Applicant, tok Token) (Joined, error) {
	c.t.Helper()
	req, err := a.Request(tok, c.clock)
	if err != nil {
		return Joined{}, err
	}
	reply, err := c.issuer.Join(context.Background(), req, netip.MustParseAddr("10.0.0.9"))
	if err != nil {
		return Joined{}, err
	}
	return a.Accept(tok, reply, c.clock)
}

// member is a node of the cluster.
func (c *cluster) member(id, name string, roles ...string) *Identity {
	c.t.Helper()
	a := applicant(c.t, id, name, roles...)
	j, err := c.join(a, c.token(TokenOrder{Role: RoleQueen}))
	if err != nil {
		c.t.Fatal(err)
	}
	return c.identity(a.Key, j.Chain)
}

func (c *cluster) identity(key *ecdsa.PrivateKey, chain []*x509.Certificate) *Identity {
	c.t.Helper()
	out, err := NewIdentity(key, chain, c.verifier)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

// queenWithIssuer is a queen that joined and can issue.
func (c *cluster) queenWithIssuer(id, name string) (*Identity, *Authority) {
	c.t.Helper()
	a := applicant(c.t, id, name, RoleQueen)
	a.IssuerKey = key(c.t)
	j, err := c.join(a, c.token(TokenOrder{Role: RoleQueen}))
	if err != nil {
		c.t.Fatal(err)
	}
	auth, err := newAuthority(a.IssuerKey, j.Issuer, j.Root)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.identity(a.Key, j.Chain), auth
}

// code is that of a fault; "" where there is no error.
func code(err error) string {
	if err == nil {
		return ""
	}
	var f *fault.Error
	if !errors.As(err, &f) {
		return "no fault: " + err.Error()
	}
	return f.Code
}

// want reports an error whose code is another one, and one whose text is no sentence.
func want(t testing.TB, err error, wanted string) {
	t.Helper()
	if got := code(err); got != wanted {
		t.Errorf("the code is %q, want %q: %v", got, wanted, err)
	}
	if err != nil && wanted != "" {
		if s := err.Error(); s[0] >= 'a' && s[0] <= 'z' || s[len(s)-1] != '.' {
			t.Errorf("this is no sentence: %s", s)
		}
	}
}

// edited is what a fuzzer made, or, where it made nothing, good with one byte changed: keys are new in each of a fuzzer's processes, so
// that what one was given is of another cluster than what the next one has.
func edited(made, good []byte, at uint16, to byte) []byte {
	if len(made) > 0 {
		return made
	}
	out := append([]byte{}, good...)
	out[int(at)%len(out)] = to
	return out
}
