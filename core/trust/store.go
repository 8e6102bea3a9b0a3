package trust

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// Names of the files in the folder of secrets.
const (
	rootKeyFile    = "ca.key"     // of the first agent alone
	rootFile       = "ca.crt"     // what clients outside of the cluster trust
	issuerKeyFile  = "issuer.key" // of a queen that joined
	issuerFile     = "issuer.crt"
	nodeKeyFile    = "node.key"
	nodeFile       = "node.crt" // with the certificates that lead to the root; written last
	retiredKeyFile = "ca.key.old"
)

const secretsFolder = "secrets"

// Store keeps a node's keys and certificates in the folder of secrets of a data folder. Each file is replaced whole. Its user holds
// the lock of the data folder, or writes nothing.
type Store struct{ dir string }

// OpenStore makes the folder of secrets, and refuses one that others could change.
func OpenStore(home string) (*Store, error) {
	if err := folder.Make(home, secretsFolder); err != nil {
		return nil, fmt.Errorf("make the folder of secrets: %w", folder.Full(err, home, "the folder of secrets", 0))
	}
	return &Store{dir: filepath.Join(home, secretsFolder)}, nil
}

// Root is the certificate of the cluster's root; fs.ErrNotExist while there is no cluster.
func (s *Store) Root() (*x509.Certificate, error) {
	text, err := s.read(rootFile, false)
	if err != nil {
		return nil, err
	}
	root, err := ParseRoot(text)
	if err != nil {
		return nil, s.damaged(rootFile, err)
	}
	return root, nil
}

// CreateCluster returns the root of the cluster that this node made, and makes it where there is none. It is for the first agent: a
// node that joined another one's cluster has no root key, which is fs.ErrNotExist.
func (s *Store) CreateCluster() (*Authority, error) {
	if _, err := s.Root(); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return nil, err
		}
		return s.rootAuthority()
	}
	a, err := NewRoot()
	if err != nil {
		return nil, err
	}
	key, err := encodeKey(a.key)
	if err == nil {
		err = s.write(rootKeyFile, key)
	}
	if err == nil {
		err = s.write(rootFile, EncodeChain(a.root)) // from here on there is a cluster
	}
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (s *Store) rootAuthority() (*Authority, error) {
	root, err := s.Root()
	if err != nil {
		return nil, err
	}
	key, err := s.key(rootKeyFile)
	if err != nil {
		return nil, err
	}
	a, err := newAuthority(key, root, root)
	if err != nil {
		return nil, s.damaged(rootKeyFile, err)
	}
	return a, nil
}

// Authority is what this node can issue with: the root's key, or its own with the issuing certificate. A node that cannot issue has
// fs.ErrNotExist.
func (s *Store) Authority() (*Authority, error) {
	a, err := s.rootAuthority()
	if !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	root, err := s.Root()
	if err != nil {
		return nil, err
	}
	text, err := s.read(issuerFile, false)
	if err != nil {
		return nil, err
	}
	chain, err := parseChain(text)
	if err != nil {
		return nil, s.damaged(issuerFile, err)
	}
	key, err := s.key(issuerKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.damaged(issuerFile, fmt.Errorf("its key %s is missing", issuerKeyFile))
	}
	if err != nil {
		return nil, err
	}
	if len(chain) != 1 {
		return nil, s.damaged(issuerFile, errors.New("it has more than one certificate"))
	}
	if a, err = newAuthority(key, chain[0], root); err != nil {
		return nil, s.damaged(issuerFile, fmt.Errorf("with %s: %w", issuerKeyFile, err))
	}
	return a, nil
}

// Identity is who this node is. One that was let in nowhere has fs.ErrNotExist.
func (s *Store) Identity(v *Verifier) (*Identity, error) {
	text, err := s.read(nodeFile, false)
	if err != nil {
		return nil, err
	}
	chain, err := parseChain(text)
	if err != nil {
		return nil, s.damaged(nodeFile, err)
	}
	key, err := s.key(nodeKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.damaged(nodeFile, fmt.Errorf("its key %s is missing", nodeKeyFile))
	}
	if err != nil {
		return nil, err
	}
	id, err := NewIdentity(key, chain, v)
	if err != nil {
		return nil, s.damaged(nodeFile, fmt.Errorf("with %s: %w", nodeKeyFile, err))
	}
	return id, nil
}

// NodeKey is the key of this node, which never leaves it; it is made where there is none.
func (s *Store) NodeKey() (*ecdsa.PrivateKey, error) { return s.loadOrCreate(nodeKeyFile) }

// IssuerKey is the key with which a queen that joins will issue certificates; it is made where there is none.
func (s *Store) IssuerKey() (*ecdsa.PrivateKey, error) { return s.loadOrCreate(issuerKeyFile) }

func (s *Store) loadOrCreate(name string) (*ecdsa.PrivateKey, error) {
	key, err := s.key(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = newKey(); err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	return key, s.write(name, text)
}

// ForgetNodeKey removes the key of this node, so that NodeKey makes another one.
func (s *Store) ForgetNodeKey() error {
	err := os.Remove(filepath.Join(s.dir, nodeKeyFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the node's key: %w", err)
	}
	return nil
}

// SaveNode writes the certificate of this node, at a renewal.
func (s *Store) SaveNode(chain []*x509.Certificate) error {
	return s.write(nodeFile, EncodeChain(chain...))
}

// SaveIssuer writes the issuing certificate of this queen, at a renewal.
func (s *Store) SaveIssuer(cert *x509.Certificate) error {
	return s.write(issuerFile, EncodeChain(cert))
}

// SaveJoined makes this node a member of the cluster that let it in. The key of a root that it had keeps a copy beside it. When it is
// cut off the node belongs to no cluster, and joins again.
func (s *Store) SaveJoined(j Joined) error {
	remove := []string{nodeFile, issuerFile}
	if old, err := s.Root(); err == nil && !old.Equal(j.Root) {
		if err := os.Rename(filepath.Join(s.dir, rootKeyFile), filepath.Join(s.dir, retiredKeyFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("put the key of the former cluster aside: %w", err)
		}
	}
	for _, name := range remove {
		if err := os.Remove(filepath.Join(s.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove what the former cluster gave: %w", err)
		}
	}
	if err := s.write(rootFile, EncodeChain(j.Root)); err != nil {
		return err
	}
	if j.Issuer != nil {
		if err := s.SaveIssuer(j.Issuer); err != nil {
			return err
		}
	}
	return s.SaveNode(j.Chain)
}

func (s *Store) key(name string) (*ecdsa.PrivateKey, error) {
	text, err := s.read(name, true)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(text)
	if err != nil {
		return nil, s.damaged(name, err)
	}
	return key, nil
}

// read reads a file that others may not write, nor, if it is private, read.
func (s *Store) read(name string, private bool) ([]byte, error) {
	path := filepath.Join(s.dir, name)
	f, err := folder.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if _, told := errors.AsType[*fault.Error](err); told {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	switch mode := st.Mode().Perm(); {
	case private && mode&0o077 != 0:
		return nil, fault.New(fault.Conflict, CodeReadable, "The key %s may be read by others; run chmod 600 on it, and have this machine join anew if you do not trust them.", path)
	case mode&0o022 != 0:
		return nil, fault.New(fault.Conflict, CodeReadable, "Others may write to %s; run chmod 600 on it, and have this machine join anew if you do not trust them.", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxPEM+1)) // more is refused by who reads the blocks
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

func (s *Store) damaged(name string, cause error) error {
	path := filepath.Join(s.dir, name)
	if name == rootKeyFile || name == rootFile {
		return fault.New(fault.Conflict, CodeDamaged, "The file %s is damaged (%w); restore it from a copy. Without it this cluster lets nobody in; `apiary join` makes this machine a member of another one.", path, cause)
	}
	return fault.New(fault.Conflict, CodeDamaged, "The file %s is damaged (%w); restore it from a copy, or have this machine join anew with `apiary join` and a token of `apiary token create`.", path, cause)
}

// write publishes a file that its owner alone may read, whole or not at all.
func (s *Store) write(name string, content []byte) error {
	path := filepath.Join(s.dir, name)
	tmp, err := os.CreateTemp(s.dir, "."+name+"-*") // 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", name, folder.Full(err, s.dir, name, int64(len(content))))
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err == nil {
		var d *os.File
		if d, err = os.Open(s.dir); err == nil {
			err = errors.Join(d.Sync(), d.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, folder.Full(err, s.dir, name, int64(len(content))))
	}
	return nil
}
