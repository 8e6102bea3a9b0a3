package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/secret"
)

// Credentials is the credential store of a data folder: one file per name under secrets/credentials, mode 0600.
type Credentials struct{ home, dir string }

// credentialFolder is where they are, below the data folder.
const credentialFolder = "secrets/credentials"

// OpenCredentials returns the store under home; its folder is made by the first Set.
func OpenCredentials(home string) *Credentials {
	return &Credentials{home: home, dir: filepath.Join(home, filepath.FromSlash(credentialFolder))}
}

// storedCredential is the contents of a file of the store. Value is no secret.Secret, because that would write ***.
type storedCredential struct {
	Value string   `json:"value"`
	Hosts []string `json:"hosts"`
}

// Set stores or replaces a credential. It is sent only to hosts, of which one at least is needed.
func (s *Credentials) Set(name string, value secret.Secret, hosts []string) error {
	if err := checkName(name); err != nil {
		return fault.New(fault.Invalid, "credential_invalid", "The credential cannot be set: %s.", err)
	}
	if err := checkForeignSecret(value.Reveal()); err != nil {
		return fault.New(fault.Invalid, "credential_invalid", "The credential %s cannot be set: %s.", name, err)
	}
	if len(hosts) == 0 {
		return fault.New(fault.Invalid, "credential_invalid", "The credential %s cannot be set without a host that it may be sent to.", name)
	}
	for _, h := range hosts {
		if err := checkCredentialHost(h); err != nil {
			return fault.New(fault.Invalid, "credential_invalid", "The credential %s cannot be set: %s.", name, err)
		}
	}
	b, err := json.Marshal(storedCredential{Value: value.Reveal(), Hosts: hosts})
	if err != nil {
		return fmt.Errorf("set credential %s: %w", name, err)
	}
	if err := s.publish(name, b); err != nil {
		return fmt.Errorf("set credential %s: %w", name, folder.Full(err, s.home, "the credential "+name, int64(len(b))))
	}
	return nil
}

// publish replaces the file of name by one with the contents b, so that readers see the old one or the new one.
func (s *Credentials) publish(name string, b []byte) error {
	if err := folder.Make(s.home, credentialFolder); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(s.dir, ".new-*") // created 0600; a name cannot begin with a dot
	if err != nil {
		return err
	}
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(s.dir, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	d, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// List returns the stored credentials by name.
func (s *Credentials) List() ([]Credential, error) {
	if err := folder.Check(s.home, credentialFolder); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.dir) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list credentials: %w", err)
	}
	var out []Credential
	for _, e := range entries {
		if checkName(e.Name()) != nil {
			continue // a temporary file of a Set that was interrupted
		}
		c, err := s.get(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// get reads one credential; a missing one is fs.ErrNotExist.
func (s *Credentials) get(name string) (Credential, error) {
	if err := folder.Check(s.home, credentialFolder); err != nil {
		return Credential{}, err
	}
	path := filepath.Join(s.dir, name)
	b, err := read(path)
	if err != nil {
		return Credential{}, fmt.Errorf("read credential %s: %w", name, err)
	}
	st, err := os.Lstat(path)
	if err != nil {
		return Credential{}, fmt.Errorf("read credential %s: %w", name, err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return Credential{}, fault.New(fault.Invalid, "credential_exposed", "The stored credential %s may be read by others or is no regular file; run chmod 600 on %s, or set it again with `apiary credential set %s`.", name, path, name)
	}
	var f storedCredential
	if err := json.Unmarshal(b, &f); err != nil || checkForeignSecret(f.Value) != nil || len(f.Hosts) == 0 {
		return Credential{}, fault.New(fault.Invalid, "credential_damaged", "The stored credential %s is damaged, so it cannot be used; set it again with `apiary credential set %s`, or remove it with `apiary credential rm %s`.", name, name, name)
	}
	return Credential{Name: name, Value: secret.Secret(f.Value), Hosts: f.Hosts}, nil
}

// Remove deletes a credential; a missing one is fault.NotFound.
func (s *Credentials) Remove(name string) error {
	if err := checkName(name); err != nil {
		return fault.New(fault.Invalid, "credential_invalid", "The credential cannot be removed: %s.", err)
	}
	if err := folder.Check(s.home, credentialFolder); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(s.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "credential_not_found", "There is no credential %s in the store; `apiary credential list` shows what is there.", name)
	}
	if err != nil {
		return fmt.Errorf("remove credential %s: %w", name, err)
	}
	return nil
}

// CredentialLookup returns the function that core/artifact asks: the credential called name where host (a URL's Host) is one that
// it belongs to, else "". The file's credentials come before the store's, which is read at each call, so that a new
// credential needs no restart; one of them that cannot be read is an error. A host without a port stands for the default
// port of https only.
func (c *Config) CredentialLookup(store *Credentials) func(name, host string) (secret.Secret, error) {
	return func(name, host string) (secret.Secret, error) {
		k, ok := named(c.Credentials, name, func(k Credential) string { return k.Name })
		if !ok {
			if checkName(name) != nil {
				return "", nil
			}
			var err error
			if k, err = store.get(name); errors.Is(err, fs.ErrNotExist) {
				return "", nil
			} else if err != nil {
				return "", err
			}
		}
		if slices.ContainsFunc(k.Hosts, func(h string) bool { return normalHost(h) == normalHost(host) }) {
			return k.Value, nil
		}
		return "", nil
	}
}

// normalHost is host in lower case without the default port and the dot of the root.
func normalHost(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, ":443"))
	return strings.TrimSuffix(host, ".")
}
