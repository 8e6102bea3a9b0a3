package gossip

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/secret"
)

// maxKeys are accepted at once: the one in use, and those that one is changed from and to.
const maxKeys = 3

// NewKey makes a gossip key: 32 random bytes in hex.
func NewKey() secret.Secret {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw)
	return secret.Secret(hex.EncodeToString(raw))
}

// Keyring holds the gossip keys that this agent accepts, the one that it uses first. What encrypts is derived from the gossip key
// and the cluster key together, so that nobody gets in with one of them.
type Keyring struct {
	cluster secret.Secret
	file    string
	ring    *memberlist.Keyring

	mu      sync.Mutex      // guards the fields below
	keys    []secret.Secret // the one in use first
	retired []string        // fingerprints of keys that were taken out: the configuration may still name one
}

// keyFile is the form of the keyring's file.
type keyFile struct {
	Keys    []string `json:"keys"`
	Retired []string `json:"retired"`
}

// OpenKeyring makes the keyring of the configured key, or, where that is empty, of one that follows from the cluster key. file keeps
// what was changed while agents ran; it comes before the configuration. "" keeps nothing.
func OpenKeyring(cluster, configured secret.Secret, file string) (*Keyring, error) {
	if configured == "" {
		configured = secret.Derive(cluster, "gossip")
	}
	k := &Keyring{cluster: cluster, file: file}
	if file != "" {
		b, err := folder.ReadFile(file, 64<<10)
		if err == nil {
			var f keyFile
			if f, err = decodeKeyFile(b); err == nil {
				for _, s := range f.Keys {
					k.keys = append(k.keys, secret.Secret(s))
				}
				k.retired = f.Retired
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.New(fault.Invalid, "damaged_keyring", "The gossip keys in %s cannot be read: %w; remove the file to use gossip.key of the configuration alone.", file, err)
		}
	}
	if !slices.Contains(k.keys, configured) && !slices.Contains(k.retired, Fingerprint(configured)) {
		// A key that the configuration names anew is meant to be used.
		k.keys = append([]secret.Secret{configured}, k.keys...)
	}
	if len(k.keys) == 0 {
		return nil, fault.New(fault.Invalid, "retired_key", "gossip.key is the key %s, which was taken out of use; write the one that is used now into the configuration.", Fingerprint(configured))
	}
	k.keys = k.keys[:min(len(k.keys), maxKeys)]
	var all [][]byte
	for _, s := range k.keys {
		all = append(all, k.derive(s))
	}
	ring, err := memberlist.NewKeyring(all, all[0])
	if err != nil {
		return nil, fmt.Errorf("make the gossip keys: %w", err)
	}
	k.ring = ring
	return k, nil
}

func decodeKeyFile(b []byte) (keyFile, error) {
	var f keyFile
	if err := json.Unmarshal(b, &f); err != nil {
		return f, errors.New("it is not a list of keys")
	}
	if len(f.Keys) > maxKeys {
		return f, errors.New("it holds too many keys")
	}
	for _, s := range f.Keys {
		if secret.Check(s) != nil {
			return f, errors.New("one of its keys is none")
		}
	}
	return f, nil
}

// derive gives the AES-256 key that encrypts.
func (k *Keyring) derive(s secret.Secret) []byte {
	raw, _ := hex.DecodeString(secret.Derive(k.cluster, "gossip:"+s.Reveal()).Reveal())
	return raw
}

// Fingerprint names a key without telling it: 8 hex digits.
func Fingerprint(s secret.Secret) string {
	sum := sha256.Sum256([]byte("apiary gossip key\x00" + s.Reveal()))
	return hex.EncodeToString(sum[:4])
}

// Fingerprints names the keys that are accepted, the one in use first.
func (k *Keyring) Fingerprints() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]string, 0, len(k.keys))
	for _, s := range k.keys {
		out = append(out, Fingerprint(s))
	}
	return out
}

// InUse is the key that is used.
func (k *Keyring) InUse() secret.Secret {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keys[0]
}

// Keys are all that are accepted, the one in use first.
func (k *Keyring) Keys() []secret.Secret {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.keys)
}

// Replace writes the file of a keyring whose agent does not run: these keys are accepted from its next start on, the first one is
// used, and configured is not, unless it is one of them. An empty configured is the one that follows from the cluster key.
func Replace(file string, cluster, configured secret.Secret, keys []secret.Secret) error {
	if len(keys) == 0 || len(keys) > maxKeys {
		return fmt.Errorf("write the gossip keys: there are %d", len(keys))
	}
	if configured == "" {
		configured = secret.Derive(cluster, "gossip")
	}
	k := &Keyring{file: file, keys: keys}
	if !slices.Contains(keys, configured) {
		k.retired = []string{Fingerprint(configured)}
	}
	return k.save()
}

// Retired reports whether the configured key is one that was taken out of use since.
func (k *Keyring) Retired(configured secret.Secret) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return configured != "" && slices.Contains(k.retired, Fingerprint(configured))
}

// add accepts one more key.
func (k *Keyring) add(s secret.Secret) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case secret.Check(s.Reveal()) != nil:
		return fault.New(fault.Invalid, "bad_key", "The gossip key is too short; `apiary keygen` makes one.")
	case slices.Contains(k.keys, s):
		return nil
	case len(k.keys) >= maxKeys:
		return fault.New(fault.Exhausted, "too_many_keys", "There are %d gossip keys already; take one out of use first.", maxKeys)
	}
	if err := k.ring.AddKey(k.derive(s)); err != nil {
		return fmt.Errorf("add a gossip key: %w", err)
	}
	k.keys = append(k.keys, s)
	k.retired = slices.DeleteFunc(k.retired, func(p string) bool { return p == Fingerprint(s) })
	return k.save()
}

// use encrypts with the key of that fingerprint from now on.
func (k *Keyring) use(print string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := k.index(print)
	if i < 0 {
		return noKey(print)
	}
	s := k.keys[i]
	if err := k.ring.UseKey(k.derive(s)); err != nil {
		return fmt.Errorf("use a gossip key: %w", err)
	}
	k.keys = append([]secret.Secret{s}, slices.Delete(k.keys, i, i+1)...)
	return k.save()
}

// remove accepts the key of that fingerprint no longer.
func (k *Keyring) remove(print string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	i := k.index(print)
	switch {
	case i < 0 && slices.Contains(k.retired, print):
		return nil
	case i < 0:
		return noKey(print)
	case i == 0:
		return fault.New(fault.Conflict, "key_in_use", "The gossip key %s is the one that is used; use another one first.", print)
	}
	if err := k.ring.RemoveKey(k.derive(k.keys[i])); err != nil {
		return fmt.Errorf("take out a gossip key: %w", err)
	}
	k.keys = slices.Delete(k.keys, i, i+1)
	if !slices.Contains(k.retired, print) {
		k.retired = append(k.retired, print)
	}
	k.retired = k.retired[max(0, len(k.retired)-64):]
	return k.save()
}

func (k *Keyring) index(print string) int {
	return slices.IndexFunc(k.keys, func(s secret.Secret) bool { return Fingerprint(s) == print })
}

func noKey(print string) error {
	return fault.New(fault.NotFound, "key_not_found", "There is no gossip key with the fingerprint %.20q; `apiary member keys` lists them.", print)
}

// save writes the keys for the next start. k.mu is held.
func (k *Keyring) save() error {
	if k.file == "" {
		return nil
	}
	f := keyFile{Retired: k.retired}
	for _, s := range k.keys {
		f.Keys = append(f.Keys, s.Reveal())
	}
	b, err := json.Marshal(f)
	if err == nil {
		err = replaceFile(k.file, b)
	}
	if err != nil {
		return fmt.Errorf("write the gossip keys: %w", folder.Full(err, k.file, "the gossip keys", 0))
	}
	return nil
}

// keyOrder is the message of kind kindKey, with which one agent has all others change their keys.
type keyOrder struct {
	From   string `json:"from"`
	Action string `json:"action"` // one of the actions of contract.KeyChange
	Key    string `json:"key,omitempty"`
	Print  string `json:"print,omitempty"`
}

func (o keyOrder) check() error {
	switch {
	case o.Action == contract.KeyAdd && secret.Check(o.Key) == nil && len(o.Key) <= 256:
	case (o.Action == contract.KeyUse || o.Action == contract.KeyRemove) && printPattern.MatchString(o.Print):
	default:
		return errors.New("an order about keys is none that is known here")
	}
	return nil
}

func (k *Keyring) apply(o keyOrder) error {
	switch o.Action {
	case contract.KeyAdd:
		return k.add(secret.Secret(o.Key))
	case contract.KeyUse:
		return k.use(o.Print)
	}
	return k.remove(o.Print)
}

// obey does what another member orders.
func (g *Gossip) obey(o keyOrder) {
	g.mu.Lock()
	n := g.table.nodes[o.From]
	known := n != nil && n.name != g.name && g.table.entries[n.id].current == n
	g.mu.Unlock()
	if !known {
		g.o.Metrics.GossipDropped("stranger")
		return
	}
	if err := g.o.Keys.apply(o); err != nil {
		g.log.Warn("the gossip keys are not changed", "action", o.Action, "asked_by", n.meta.Name, "error", err.Error())
		return
	}
	g.log.Info("the gossip keys have changed", "action", o.Action, "asked_by", n.meta.Name)
	g.tell()
}

// tell has the others know which keys this agent accepts now.
func (g *Gossip) tell() {
	g.mu.Lock()
	if n := g.table.nodes[g.name]; n != nil {
		n.meta.Keys = g.o.Keys.Fingerprints()
	}
	leaving := g.leaving
	g.mu.Unlock()
	if !leaving {
		_ = g.list.UpdateNode(leaveBound)
	}
	g.o.Changed()
}

// ChangeKeys changes the gossip keys of all members, and waits until each of them says that it has. A key is used only when all
// accept it, and taken out only when nobody uses it, so that no packet meets an agent that cannot read it.
func (g *Gossip) ChangeKeys(ctx context.Context, c contract.KeyChange) error {
	o := keyOrder{From: g.name, Action: c.Action, Key: c.Key, Print: c.Fingerprint}
	if c.Action == contract.KeyAdd {
		o.Print = Fingerprint(secret.Secret(c.Key))
	}
	if o.check() != nil {
		return fault.New(fault.Invalid, "bad_key_change", "A change of gossip keys is add with a key of `apiary keygen`, or use or remove with a fingerprint of `apiary member keys`.")
	}
	var ready func(contract.Member) bool
	switch c.Action {
	case contract.KeyUse:
		if !slices.Contains(g.o.Keys.Fingerprints(), o.Print) {
			return noKey(o.Print)
		}
		ready = func(m contract.Member) bool { return slices.Contains(m.Keys, o.Print) }
	case contract.KeyRemove:
		ready = func(m contract.Member) bool { return len(m.Keys) > 0 && m.Keys[0] != o.Print }
	default:
		ready = func(contract.Member) bool { return true }
	}
	if not := g.without(ready); len(not) > 0 {
		return fault.New(fault.Conflict, "keys_differ", "%s of the gossip key %s would cut off %s; repeat the step before until all members have done it, or stop that agent.",
			map[string]string{contract.KeyUse: "Use", contract.KeyRemove: "Removal"}[c.Action], o.Print, not[0])
	}
	if err := g.o.Keys.apply(o); err != nil {
		return err
	}
	msg, err := encodeMessage(kindKey, o)
	if err != nil {
		return err
	}
	done := func(m contract.Member) bool {
		switch c.Action {
		case contract.KeyAdd:
			return slices.Contains(m.Keys, o.Print)
		case contract.KeyUse:
			return len(m.Keys) > 0 && m.Keys[0] == o.Print
		}
		return !slices.Contains(m.Keys, o.Print)
	}
	g.tell()
	return g.order(ctx, msg, done)
}

// order sends a message to all members until each has done what it asks for.
func (g *Gossip) order(ctx context.Context, msg []byte, done func(contract.Member) bool) error {
	for {
		not := g.without(done)
		if len(not) == 0 {
			return nil
		}
		for _, n := range g.list.Members() {
			if n.Name != g.name {
				_ = g.list.SendToAddress(memberlist.Address{Addr: n.Address(), Name: n.Name}, bytes.Clone(msg)) // who missed it is asked again
			}
		}
		select {
		case <-ctx.Done():
			return fault.New(fault.Unavailable, "keys_differ", "%d members have not changed their gossip keys yet, among them %s; give the command again.", len(not), not[0])
		case <-time.After(time.Second):
		}
	}
}

// without names the members that are there and do not pass.
func (g *Gossip) without(pass func(contract.Member) bool) []string {
	var out []string
	for _, m := range g.Members() {
		if m.State == contract.MemberAlive && !pass(m) {
			out = append(out, m.Name)
		}
	}
	return out
}
