// Package secret holds secrets so that they do not leak: a string type that prints ***, the key files under
// APIARY_HOME/secrets, and the keys derived from them. It does not decide who may do what.
package secret

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Secret is a string that prints as *** in every format, in JSON and in logs. Reveal gives the value.
type Secret string

const mask = "***"

// Reveal returns the secret itself.
func (s Secret) Reveal() string { return string(s) }

// String, GoString, Format, MarshalJSON, MarshalText and LogValue all hide the value.
func (s Secret) String() string { return mask }

// GoString hides the value under %#v.
func (s Secret) GoString() string { return mask }

// Format hides the value under every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(mask)) }

// MarshalJSON hides the value.
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(mask) }

// MarshalText hides the value.
func (s Secret) MarshalText() ([]byte, error) { return []byte(mask), nil }

// LogValue hides the value in slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(mask) }

// Equal compares in constant time with what a caller presented. An empty secret equals nothing.
func (s Secret) Equal(presented string) bool {
	return s != "" && subtle.ConstantTimeCompare([]byte(s), []byte(presented)) == 1
}

// MinLength is the number of bytes a configured secret needs.
const MinLength = 32

// Check reports why v cannot be a secret: it is empty, blank, or shorter than MinLength.
func Check(v string) error {
	switch {
	case strings.TrimSpace(v) == "":
		return errors.New("a secret must not be empty; leave the option out to have none")
	case len(v) < MinLength:
		return fmt.Errorf("a secret needs at least %d characters; this one has %d", MinLength, len(v))
	}
	return nil
}

// Names of the key files in the secrets folder.
const (
	ClusterKeyFile = "cluster.key"
	AdminKeyFile   = "admin.key"
)

// LoadOrCreate reads the key file dir/name, which holds 32 random bytes in hex, or makes it with mode 0600 in a 0700 folder.
// Two processes that start at once get the same key. A file that others may read, or with other contents, is an error.
func LoadOrCreate(dir, name string) (Secret, error) {
	path := filepath.Join(dir, name)
	if s, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the secrets folder: %w", err)
	}
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	tmp, err := os.CreateTemp(dir, name+".*") // created 0600
	if err != nil {
		return "", fmt.Errorf("make key %s: %w", path, err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.WriteString(hex.EncodeToString(raw) + "\n")
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		// Link fails when another process was first; its key is then the key.
		if err = os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
			err = nil
		}
	}
	if err != nil {
		return "", fmt.Errorf("make key %s: %w", path, err)
	}
	return Load(path)
}

// Load reads a key file made by LoadOrCreate. A missing one is fs.ErrNotExist.
func Load(path string) (Secret, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // opening a FIFO must not wait for a writer
	if err != nil {
		return "", fmt.Errorf("read key: %w", err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read key: %w", err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("key file %s is not a regular file; move it away to have a new one made", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<10))
	if err != nil {
		return "", fmt.Errorf("read key: %w", err)
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("key file %s may be read by others; run chmod 600 on it", path)
	}
	v := strings.TrimSpace(string(b))
	if raw, err := hex.DecodeString(v); err != nil || len(raw) != 32 {
		return "", fmt.Errorf("key file %s is damaged: 64 hexadecimal digits are expected; remove it to have a new one made", path)
	}
	return Secret(v), nil
}

// Derive returns the secret that key gives to label, HMAC-SHA256(key, label) in hex. Labels are "worker:<worker id>",
// "hive:<node id>" and "queen:<node id>".
func Derive(key Secret, label string) Secret {
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(label))
	return Secret(hex.EncodeToString(m.Sum(nil)))
}

// ForWorker derives the secret that authenticates a worker's beats and the queen's calls to it.
func ForWorker(cluster Secret, workerID string) Secret { return Derive(cluster, "worker:"+workerID) }

// ForHive derives the secret that the hive API of a node takes, and with which that hive reports exits to queens.
func ForHive(cluster Secret, nodeID string) Secret { return Derive(cluster, "hive:"+nodeID) }

// ForQueen derives the secret that the queen of a node takes from other queens.
func ForQueen(cluster Secret, nodeID string) Secret { return Derive(cluster, "queen:"+nodeID) }
