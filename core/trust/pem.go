package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// maxPEM bounds what is read as certificates, keys and requests.
const maxPEM = 16 << 10

const (
	typeCertificate = "CERTIFICATE"
	typeKey         = "PRIVATE KEY"
	typeRequest     = "CERTIFICATE REQUEST"
)

// maxChain is the longest chain: a node's certificate, its issuer's and the root.
const maxChain = 3

// blocks reads PEM blocks of one type and nothing else beside them.
func blocks(text []byte, kind string, most int) ([][]byte, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("it is larger than %d bytes", maxPEM)
	}
	var out [][]byte
	rest := bytes.TrimSpace(text)
	for len(rest) > 0 {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, errors.New("it has something beside PEM blocks")
		}
		var b *pem.Block
		b, rest = pem.Decode(rest)
		switch {
		case b == nil:
			return nil, errors.New("it ends inside a PEM block, or is none")
		case b.Type != kind || len(b.Headers) > 0:
			return nil, fmt.Errorf("it has a PEM block that is no %s", kind)
		case len(out) == most:
			return nil, errors.New("it has too many PEM blocks")
		}
		out = append(out, b.Bytes)
		rest = bytes.TrimSpace(rest)
	}
	if len(out) == 0 {
		return nil, errors.New("it is empty")
	}
	return out, nil
}

// parseChain reads up to three certificates with keys of the kind that Apiary uses.
func parseChain(text []byte) ([]*x509.Certificate, error) {
	list, err := blocks(text, typeCertificate, maxChain)
	if err != nil {
		return nil, err
	}
	var out []*x509.Certificate
	for _, der := range list {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("it has a certificate that cannot be read: %w", err)
		}
		if err := checkKey(c.PublicKey); err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// ParseRoot reads the certificate of a cluster's root: one, of a CA, signed by itself.
func ParseRoot(text []byte) (*x509.Certificate, error) {
	chain, err := parseChain(text)
	if err != nil {
		return nil, err
	}
	root := chain[0]
	if len(chain) != 1 || !root.IsCA || !root.BasicConstraintsValid || root.CheckSignatureFrom(root) != nil || len(root.URIs) > 0 {
		return nil, errors.New("it is not the certificate of a cluster's root")
	}
	return root, nil
}

// EncodeChain writes certificates as PEM.
func EncodeChain(chain ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range chain {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: typeCertificate, Bytes: c.Raw})...)
	}
	return out
}

// newKey makes a private key of the one kind that Apiary uses.
func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// checkKey refuses public keys of other kinds than newKey's.
func checkKey(pub any) error {
	if k, ok := pub.(*ecdsa.PublicKey); !ok || k.Curve != elliptic.P256() {
		return errors.New("its key is not an ECDSA key of the curve P-256")
	}
	return nil
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: typeKey, Bytes: der}), nil
}

func parseKey(text []byte) (*ecdsa.PrivateKey, error) {
	list, err := blocks(text, typeKey, 1)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(list[0])
	if err != nil {
		return nil, errors.New("its key cannot be read") // the cause would show bytes of it
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || checkKey(&key.PublicKey) != nil {
		return nil, errors.New("its key is not an ECDSA key of the curve P-256")
	}
	return key, nil
}

// newCSR makes the request for a certificate: it proves that its maker has the key, and says nothing else.
func newCSR(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return "", fmt.Errorf("make a certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: typeRequest, Bytes: der})), nil
}

// parseCSR reads a request and returns its key. A name or an extension in it is refused, not ignored: who asks for more than a
// certificate for his key misunderstands something, or hopes that somebody does.
func parseCSR(text string) (*ecdsa.PublicKey, error) {
	list, err := blocks([]byte(text), typeRequest, 1)
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(list[0])
	if err != nil {
		return nil, errors.New("it cannot be read")
	}
	if err := checkKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if len(csr.Extensions) > 0 || len(csr.Subject.Names) > 0 {
		return nil, errors.New("it asks for names or extensions, which Apiary gives by itself")
	}
	if csr.SignatureAlgorithm != x509.ECDSAWithSHA256 || csr.CheckSignature() != nil {
		return nil, errors.New("it is not signed by its own key with SHA-256")
	}
	return csr.PublicKey.(*ecdsa.PublicKey), nil
}
