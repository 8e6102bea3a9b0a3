package trust

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"sync/atomic"
	"time"
)

// Identity is who this node is: its key, and the certificate in use, which is replaced while connections go on. Its methods may be
// called from many goroutines.
type Identity struct {
	key      *ecdsa.PrivateKey
	verifier *Verifier
	current  atomic.Pointer[held]
}

// held is a certificate in use.
type held struct {
	peer Peer
	tls  tls.Certificate
}

// NewIdentity checks that the chain is of the key and leads to the verifier's root. It may have expired: then it can renew itself.
func NewIdentity(key *ecdsa.PrivateKey, chain []*x509.Certificate, v *Verifier) (*Identity, error) {
	id := &Identity{key: key, verifier: v}
	h, err := id.hold(chain)
	if err != nil {
		return nil, err
	}
	id.current.Store(h)
	return id, nil
}

func (id *Identity) hold(chain []*x509.Certificate) (*held, error) {
	p, err := id.verifier.chain(chain)
	if err != nil {
		return nil, err
	}
	if !id.key.PublicKey.Equal(p.leaf.PublicKey) {
		return nil, errors.New("the certificate is for another key")
	}
	if last := chain[len(chain)-1]; !last.Equal(id.verifier.root) { // shown to those who know its fingerprint alone
		chain = append(chain[:len(chain):len(chain)], id.verifier.root)
	}
	h := &held{peer: p, tls: tls.Certificate{PrivateKey: id.key, Leaf: p.leaf}}
	for _, c := range chain {
		h.tls.Certificate = append(h.tls.Certificate, c.Raw)
	}
	return h, nil
}

// Peer is this node as others see it.
func (id *Identity) Peer() Peer { return id.current.Load().peer }

// Replace takes a newer certificate for the same node and key into use: connections that are made from now on have it. One that is
// not in time by the clocks of this machine is refused, because an issuer's clock may be wrong.
func (id *Identity) Replace(chain []*x509.Certificate) error {
	h, err := id.hold(chain)
	if err != nil {
		return err
	}
	if err := id.verifier.inTime(h.peer, 0); err != nil {
		return err
	}
	if now := id.Peer(); h.peer.NodeID != now.NodeID {
		return denied(CodeWrongNode, "The certificate is of the node %s, and this is %s.", h.peer.NodeID, now.NodeID)
	}
	id.current.Store(h)
	return nil
}

// RenewIn is how long to wait before the certificate should be renewed: until two thirds of its life, an hour more or less. jitter,
// from 0 to 1 and the same as long as the agent runs, spreads the nodes that joined at once. It is 0 for one that is due, also right
// after a renewal when clocks are wrong, so callers wait between tries.
func (id *Identity) RenewIn(jitter float64) time.Duration {
	p, c := id.Peer(), id.verifier.clock
	life := p.Expires.Sub(p.Issued)
	due := p.Issued.Add(life*2/3 + time.Duration((2*jitter-1)*float64(life/24)))
	wait := time.Duration(-1)
	for _, now := range []time.Time{c.Now(), c.steady()} {
		// A clock by which the certificate is not valid now is not the one to ask when it ends.
		if d := due.Sub(now); within(now, p.from, p.until) == 0 && (wait < 0 || d < wait) {
			wait = max(0, d)
		}
	}
	return max(0, wait)
}

// NewCSR makes the request for the next certificate of this node.
func (id *Identity) NewCSR() (string, error) { return newCSR(id.key) }
