package trust

import (
	"crypto/subtle"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// Bounds of tokens.
const (
	DefaultTokenTTL = 15 * time.Minute
	minTokenTTL     = time.Minute
	maxTokenTTL     = 24 * time.Hour
	maxOpenTokens   = 1000
	tokenKept       = 24 * time.Hour // after its end, so that it is called expired and not unknown
)

// Ledger knows the tokens of a cluster by their hashes, and sees to it that each is used once. It keeps nothing: whoever has it publishes
// the records that its methods return, which have neither a time nor a writer yet, and gives it those of other queens. Its methods may be
// called from many goroutines.
type Ledger struct {
	clock *Clock

	mu     sync.Mutex // guards the field below
	tokens map[string]contract.TokenRecord
}

// NewLedger makes an empty ledger.
func NewLedger(clock *Clock) *Ledger {
	return &Ledger{clock: clock, tokens: map[string]contract.TokenRecord{}}
}

// TokenOrder is what a token is to be.
type TokenOrder struct {
	Role        string
	Name        string        // of who alone may use it; empty: any
	TTL         time.Duration // 0: DefaultTokenTTL
	Addresses   []string      // host:port of queens that take it
	Fingerprint [32]byte      // of the cluster's root
}

// Make makes a token. Once its record is published every queen takes it.
func (l *Ledger) Make(o TokenOrder) (Token, contract.Record, error) {
	if o.TTL == 0 {
		o.TTL = DefaultTokenTTL
	}
	switch {
	case o.TTL < minTokenTTL || o.TTL > maxTokenTTL:
		return Token{}, contract.Record{}, fault.New(fault.Invalid, "bad_ttl", "A token lives from a minute to a day; %v is not in between.", o.TTL).WithParam("ttl")
	case tokenRoles[o.Role] == 0:
		return Token{}, contract.Record{}, fault.New(fault.Invalid, "bad_role", "%.100q is not a role; a token is for a hive or a queen.", o.Role).WithParam("role")
	case o.Name != "" && !nameForm.MatchString(o.Name):
		return Token{}, contract.Record{}, fault.New(fault.Invalid, "bad_name", "%.100q cannot be the name of an agent: letters, digits, dots, dashes and underscores, at most 64.", o.Name).WithParam("name")
	}
	now := l.clock.Now()
	t := Token{Addresses: o.Addresses, Fingerprint: o.Fingerprint, Role: o.Role, Name: o.Name, Made: now.Truncate(time.Second), Expires: now.Add(o.TTL).Truncate(time.Second)}
	t.ID, t.Secret = newToken()
	if _, err := t.Encode(); err != nil {
		return Token{}, contract.Record{}, err
	}
	r := contract.TokenRecord{Hash: hashSecret(t.Secret.Reveal()), Role: t.Role, Name: t.Name, Expires: t.Expires}
	l.mu.Lock()
	defer l.mu.Unlock()
	open := 0
	for _, r := range l.tokens {
		if r.UsedBy == "" && now.Before(r.Expires) {
			open++
		}
	}
	if open >= maxOpenTokens {
		return Token{}, contract.Record{}, fault.New(fault.Exhausted, CodeTooManyToken, "There are %d tokens that nobody has used yet; wait until some of them have expired.", open).WithRetryAfter(time.Minute)
	}
	l.tokens[t.ID] = r
	return t, record(contract.RecordToken, t.ID, r), nil
}

// Claim is what somebody who joins says.
type Claim struct {
	TokenID, Secret string
	NodeID, Name    string
	Roles           []string // of checkRoles
	Key             string   // SHA-256 of the public key to be certified, in hex
}

// knows reports whether somebody has a token of this ledger, whatever became of it.
func (l *Ledger) knows(id, presented string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r, ok := l.tokens[id]
	return ok && subtle.ConstantTimeCompare([]byte(hashSecret(presented)), []byte(r.Hash)) == 1
}

// Check tells whether Redeem would take a claim, and why not, and changes nothing.
func (l *Ledger) Check(c Claim) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.check(c)
}

// check is Check. l.mu is held. Who does not know the secret learns nothing about the token.
func (l *Ledger) check(c Claim) error {
	r, ok := l.tokens[c.TokenID]
	if !ok || subtle.ConstantTimeCompare([]byte(hashSecret(c.Secret)), []byte(r.Hash)) != 1 {
		return unknownToken()
	}
	now := l.clock.Now()
	switch {
	case r.UsedBy != "" && (r.UsedBy != c.NodeID || r.UsedKey != c.Key):
		return denied(CodeTokenUsed, "The token was used by another machine at %s; a token lets one machine in, so make another one with `apiary token create`, and if you do not know that machine, look at `apiary member list`.", clockText(r.UsedAt))
	case now.After(r.Expires.Add(Leeway)):
		return denied(CodeTokenExpired, "The token has expired at %s, and the clock of the queen says %s; make another one with `apiary token create`.", clockText(r.Expires), clockText(now))
	case slices.Contains(c.Roles, RoleQueen) && r.Role != RoleQueen:
		return denied(CodeWrongRole, "The token lets a hive in, and this machine wants to be a queen; make one with `apiary token create --role queen`, or set roles = [\"hive\"] in the block agent of the configuration.")
	case r.Name != "" && r.Name != c.Name:
		return denied(CodeWrongName, "The token is for a machine called %s, and this one is called %s; set agent.name in the configuration, or make another token with `apiary token create`.", r.Name, c.Name)
	}
	return nil
}

func unknownToken() error {
	return denied(CodeTokenUnknown, "The queen does not know the token; it is of another queen that has not told this one yet, or was made long ago: try again, or make another one with `apiary token create`.")
}

// Redeem uses a token: of all who claim it at once, one is let in. The same node with the same key may claim again until the token has
// expired, because its answer may have been lost.
func (l *Ledger) Redeem(c Claim) (contract.Record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.check(c); err != nil {
		return contract.Record{}, err
	}
	r := l.tokens[c.TokenID]
	if r.UsedBy == "" {
		r.UsedBy, r.UsedKey, r.UsedAt = c.NodeID, c.Key, l.clock.Now()
		l.tokens[c.TokenID] = r
	}
	return record(contract.RecordToken, c.TokenID, r), nil
}

// Release takes back the use of a token by c, where its record could not be published and nobody was let in.
func (l *Ledger) Release(c Claim) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r, ok := l.tokens[c.TokenID]; ok && r.UsedBy == c.NodeID && r.UsedKey == c.Key {
		r.UsedBy, r.UsedKey, r.UsedAt = "", "", time.Time{}
		l.tokens[c.TokenID] = r
	}
}

// Clash is a token that two queens, which did not reach each other, have each let another node in with.
type Clash struct {
	TokenID string
	NodeID  string // the later one
	Key     string // its public key, to be revoked
}

// Take takes over records of other queens, or those of this one at its start, in any order. What is not about tokens, or is none of
// this version, is left alone.
func (l *Ledger) Take(records ...contract.Record) []Clash {
	var clashes []Clash
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, rec := range records {
		if rec.Kind != contract.RecordToken {
			continue
		}
		if rec.Deleted {
			delete(l.tokens, rec.Key)
			continue
		}
		var r contract.TokenRecord
		if json.Unmarshal(rec.Value, &r) != nil || !hex64Form.MatchString(r.Hash) || tokenRoles[r.Role] == 0 || now.After(r.Expires.Add(tokenKept)) {
			continue
		}
		old, known := l.tokens[rec.Key]
		switch {
		case !known || old.UsedBy == "":
			l.tokens[rec.Key] = r
		case r.UsedBy == "" || r.UsedBy == old.UsedBy && r.UsedKey == old.UsedKey:
		default:
			first, later := old, r
			if later.UsedAt.Before(first.UsedAt) || later.UsedAt.Equal(first.UsedAt) && later.UsedBy+later.UsedKey < first.UsedBy+first.UsedKey {
				first, later = later, first
			}
			l.tokens[rec.Key] = first
			clashes = append(clashes, Clash{TokenID: rec.Key, NodeID: later.UsedBy, Key: later.UsedKey})
		}
	}
	return clashes
}

// Sweep forgets tokens that have expired a day ago, and returns the records that say so.
func (l *Ledger) Sweep() []contract.Record {
	now := l.clock.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []contract.Record
	for _, id := range slices.Sorted(maps.Keys(l.tokens)) {
		if now.After(l.tokens[id].Expires.Add(tokenKept)) {
			delete(l.tokens, id)
			out = append(out, contract.Record{Kind: contract.RecordToken, Key: id, Deleted: true})
		}
	}
	return out
}

// record makes a record of a value that can always be encoded.
func record(kind, key string, value any) contract.Record {
	raw, _ := json.Marshal(value)
	return contract.Record{Kind: kind, Key: key, Value: raw}
}
