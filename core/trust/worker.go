package trust

import (
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"time"
)

// NewWorkerCertificate makes the certificate of a worker, for as long as its process lives: it is signed by itself, and known by its
// pin, which the worker tells the queens in its beats. pin is the SHA-256 of its public key in hex.
func NewWorkerCertificate(workerID string) (cert tls.Certificate, pin string, err error) {
	key, err := newKey()
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("make the key of the worker: %w", err)
	}
	c, err := sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "Apiary worker " + workerID},
		NotBefore:             rootFrom, // dates say nothing of a certificate that is pinned
		NotAfter:              rootUntil,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, nil, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, "", err
	}
	return tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key, Leaf: c}, keyHash(c), nil
}

// WorkerServerConfig is that of a worker's server: only queens of the verifier's cluster get a connection.
func WorkerServerConfig(cert tls.Certificate, v *Verifier) *tls.Config {
	c := base(v.clock)
	c.Certificates = []tls.Certificate{cert}
	c.ClientAuth = tls.RequireAnyClientCert
	c.ClientCAs = v.roots
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := v.Peer(&cs, RoleQueen)
		return err
	}
	return c
}

// PinnedConfig is for calls of a queen to a worker: the server must have the key whose hash is pin, and nothing else is asked of it.
func PinnedConfig(id *Identity, clock *Clock, pin string) *tls.Config {
	c := base(clock)
	c.InsecureSkipVerify = true // VerifyConnection compares the key
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return denied(CodeNoCertificate, "The worker has shown no certificate.")
		}
		sum := sha256.Sum256(cs.PeerCertificates[0].RawSubjectPublicKeyInfo)
		if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(sum[:])), []byte(pin)) != 1 {
			return denied(CodeWrongNode, "The worker that answers has another key than the one that it told of in its beats; it may have been replaced by another process.")
		}
		return nil
	}
	show(c, id)
	return c
}

// maxHandshake bounds how long two of Apiary's processes take to greet each other.
const maxHandshake = 5 * time.Second
