// Package keys is the API keys of a queen: how one is made and told apart, what it may do, and how much of it at once. A key is
// random enough that a fast hash of it is all that is kept. The package stores nothing and shares nothing: it is given the keys that
// exist, as records that queens share, and counts what their holders do on this queen.
package keys

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// A key is "apk_", eight characters that tell which one it is, "_", and 32 random bytes in base64url.
const (
	prefix      = "apk_"
	idLength    = 8
	secretBytes = 32
	keyLength   = len(prefix) + idLength + 1 + (secretBytes*8+5)/6

	// MaxKeys is how many keys there may be.
	MaxKeys = 10_000

	maxModels = 100
	maxModel  = 512
	maxLimit  = 1 << 40
	maxTTL    = 10 * 365 * 24 * time.Hour
)

// idLetters has no letters that look like others. Its length divides 256.
const idLetters = "abcdefghjkmnpqrstuvwxyz023456789"

// Codes of errors.
const (
	CodeMissing     = "missing_key"
	CodeInvalid     = "invalid_api_key"
	CodeExpired     = "expired_api_key"
	CodeClass       = "wrong_key_class"
	CodeModel       = "model_not_allowed"
	CodeConcurrency = "key_concurrency"
	CodeTokens      = "key_tokens_per_minute"
	CodeRevoked     = "key_revoked"
)

// ErrRevoked is why a request ends whose key was revoked.
var ErrRevoked = errors.New("the API key of the request was revoked")

var names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}$`)

// Make makes a key for what is asked, now. It returns the key, which nobody can ever learn again, and what is kept of it. A wish
// that cannot be is a fault of kind Invalid with the field as its Param.
func Make(n contract.NewKey, now time.Time) (secret.Secret, contract.APIKey, error) {
	k := contract.APIKey{Name: n.Name, Class: n.Class, Created: now.UTC().Truncate(time.Second), KeyLimits: n.KeyLimits}
	if k.Class == "" {
		k.Class = contract.KeyInference
	}
	ttl := time.Duration(n.TTLSeconds) * time.Second
	switch {
	case !names.MatchString(n.Name):
		return "", k, invalid("name", "A key needs a name of at most 64 letters, digits, spaces and . _ @ + -, which says whose it is.")
	case k.Class != contract.KeyInference && k.Class != contract.KeyMetrics && k.Class != contract.KeyAdmin:
		return "", k, invalid("class", "A key is of the class inference, metrics or admin.")
	case n.TTLSeconds < 0 || n.TTLSeconds > int64(maxTTL/time.Second):
		return "", k, invalid("ttl_seconds", "A key expires after at most ten years, or never.")
	case n.TokensPerMinute < 0 || n.TokensPerMinute > maxLimit:
		return "", k, invalid("tokens_per_minute", "The tokens per minute of a key must not be negative.")
	case n.Concurrency < 0 || n.Concurrency > maxLimit:
		return "", k, invalid("concurrency", "The number of requests at once must not be negative.")
	case n.Queue < 0 || n.Queue > maxLimit:
		return "", k, invalid("queue", "The number of waiting requests must not be negative.")
	case len(n.Models) > maxModels:
		return "", k, invalid("models", "A key names at most 100 models; without any it may ask for all.")
	case k.Class != contract.KeyInference && (len(n.Models) > 0 || n.Concurrency > 0 || n.TokensPerMinute > 0 || n.Queue > 0):
		return "", k, invalid("class", "Only keys of the class inference have limits.")
	}
	for _, m := range n.Models {
		if m == "" || len(m) > maxModel || contract.HasHidden(m) {
			return "", k, invalid("models", "The models of a key are names or references of 1 to 512 characters.")
		}
	}
	if ttl > 0 {
		k.Expires = k.Created.Add(ttl)
	}
	var raw [idLength + secretBytes]byte
	_, _ = rand.Read(raw[:])
	id := make([]byte, idLength)
	for i := range id {
		id[i] = idLetters[int(raw[i])%len(idLetters)]
	}
	k.ID = string(id)
	full := prefix + k.ID + "_" + base64.RawURLEncoding.EncodeToString(raw[idLength:])
	k.Hash = hashOf(full)
	return secret.Secret(full), k, nil
}

func invalid(field, message string) error {
	return fault.New(fault.Invalid, "invalid_key_request", "%s", message).WithParam(field)
}

func hashOf(key string) string {
	h := sha256.Sum256([]byte(key))
	return hex.EncodeToString(h[:])
}

// Table is the keys that exist now. The zero value, and nil, have none. Its methods may be called from many goroutines; Check takes no lock.
type Table struct {
	grants atomic.Pointer[map[string]*Grant]
	mu     sync.Mutex // serialises Set
}

// Set makes the list the keys that exist. What a key that stays has used stays counted; the open requests of one that is gone end.
func (t *Table) Set(list []contract.APIKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.all()
	next := make(map[string]*Grant, len(list))
	for _, k := range list {
		if g := old[k.ID]; g != nil && g.key.Hash == k.Hash {
			next[k.ID] = g // what it may do never changes
		} else {
			next[k.ID] = &Grant{key: k, open: map[*Use]struct{}{}}
		}
	}
	t.grants.Store(&next)
	for id, g := range old {
		if next[id] != g {
			g.revoke()
		}
	}
}

func (t *Table) all() map[string]*Grant {
	if t != nil {
		if m := t.grants.Load(); m != nil {
			return *m
		}
	}
	return nil
}

// Check finds the key that a caller shows. Of one that nobody has it takes as long as of one whose secret is wrong. The errors are of
// kind Denied and status 401.
func (t *Table) Check(shown string, now time.Time) (*Grant, error) {
	if shown == "" {
		return nil, fault.New(fault.Denied, CodeMissing,
			"This request needs an API key, in the header Authorization: Bearer KEY or x-api-key: KEY; `apiary key create NAME` makes one.").WithStatus(http.StatusUnauthorized)
	}
	var g *Grant
	want := strings.Repeat("0", sha256.Size*2)
	if len(shown) == keyLength && shown[:len(prefix)] == prefix {
		if g = t.all()[shown[len(prefix):len(prefix)+idLength]]; g != nil {
			want = g.key.Hash
		}
	}
	if len(shown) > 4*keyLength {
		shown = shown[:4*keyLength] // it is none of ours
	}
	if subtle.ConstantTimeCompare([]byte(hashOf(shown)), []byte(want)) != 1 || g == nil {
		return nil, fault.New(fault.Denied, CodeInvalid, "The API key of the request is not valid here; it may have been revoked. `apiary key create NAME` makes a new one.").
			WithStatus(http.StatusUnauthorized)
	}
	if g.expired(now) {
		return nil, fault.New(fault.Denied, CodeExpired, "The API key %s expired at %s; `apiary key create NAME` makes a new one.", g.key.ID, g.key.Expires.Format(time.RFC3339)).
			WithStatus(http.StatusUnauthorized)
	}
	return g, nil
}

// Grant is what the holder of a key may do on this queen, and does.
type Grant struct {
	key contract.APIKey

	mu      sync.Mutex // guards the fields below
	revoked bool
	open    map[*Use]struct{}
	spent   float64 // tokens that the minute's allowance has not made good for yet
	spentAt time.Time
	serving int // of open, those that have a worker
}

// ID names the key in logs and lists.
func (g *Grant) ID() string { return g.key.ID }

// Class is what kind of calls the key is for.
func (g *Grant) Class() string { return g.key.Class }

// Queue is how many of its requests may wait for one model; 0: the key does not say.
func (g *Grant) Queue() int { return g.key.Queue }

// MayAsk reports whether the key is for one of the names of a model.
func (g *Grant) MayAsk(names ...string) bool {
	return len(g.key.Models) == 0 || slices.ContainsFunc(names, func(n string) bool { return slices.Contains(g.key.Models, n) })
}

// ErrModel is the refusal of a request for a model that MayAsk denies.
func (g *Grant) ErrModel() error {
	return fault.New(fault.Denied, CodeModel, "The API key %s may not use this model; it may use %s.", g.key.ID, strings.Join(g.key.Models, ", ")).WithParam("model")
}

// expired: nobody else has a say in it, so that no leeway is needed for other clocks than this queen's.
func (g *Grant) expired(now time.Time) bool {
	return !g.key.Expires.IsZero() && now.After(g.key.Expires)
}

// Use is one request under a key.
type Use struct {
	g       *Grant
	cancel  func(error)
	serving bool
}

// Begin counts a request. When the key is revoked while it is open, cancel is called once, with ErrRevoked, and must not block. The
// refusals are of kind Exhausted and name the limit.
func (g *Grant) Begin(now time.Time, cancel func(error)) (*Use, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.revoked {
		return nil, ErrGone()
	}
	if n := g.key.Concurrency; n > 0 && len(g.open) >= n {
		return nil, fault.New(fault.Exhausted, CodeConcurrency, "The API key %s may have %d requests at once (concurrency) and has them; try again when one has ended.", g.key.ID, n).
			WithRetryAfter(time.Second)
	}
	if n := g.key.TokensPerMinute; n > 0 {
		g.refill(now)
		if over := g.spent - float64(n); over >= 0 {
			wait := time.Duration((over + 1) / float64(n) * float64(time.Minute))
			return nil, fault.New(fault.Exhausted, CodeTokens, "The API key %s has used its %d tokens per minute (tokens_per_minute); try again in %.0f s.", g.key.ID, n, max(1, wait.Seconds())).
				WithRetryAfter(max(time.Second, wait))
		}
	}
	u := &Use{g: g, cancel: cancel}
	g.open[u] = struct{}{}
	return u, nil
}

// refill makes good for what was spent, at the allowance of a minute for each minute. g.mu is held.
func (g *Grant) refill(now time.Time) {
	if d := now.Sub(g.spentAt); d > 0 && !g.spentAt.IsZero() {
		g.spent = max(0, g.spent-d.Minutes()*float64(g.key.TokensPerMinute))
	}
	g.spentAt = now
}

// Serving says whether the request has a worker now.
func (u *Use) Serving(on bool) {
	u.g.mu.Lock()
	defer u.g.mu.Unlock()
	u.count(on)
}

func (u *Use) count(on bool) {
	switch {
	case on && !u.serving:
		u.g.serving++
	case !on && u.serving:
		u.g.serving--
	}
	u.serving = on
}

// Load is how many requests of the key have a worker: who has fewer is served first where requests wait.
func (u *Use) Load() int {
	u.g.mu.Lock()
	defer u.g.mu.Unlock()
	return u.g.serving
}

// Grant is the key that the request is under.
func (u *Use) Grant() *Grant { return u.g }

// End counts the request no more, and the tokens that it took.
func (u *Use) End(now time.Time, tokens int) {
	g := u.g
	g.mu.Lock()
	defer g.mu.Unlock()
	u.count(false)
	delete(g.open, u)
	if g.key.TokensPerMinute > 0 {
		g.refill(now)
		g.spent += float64(max(0, tokens))
	}
}

// revoke ends all that is open under a key that is there no more.
func (g *Grant) revoke() {
	g.mu.Lock()
	g.revoked = true
	open := make([]*Use, 0, len(g.open))
	for u := range g.open {
		open = append(open, u)
	}
	g.mu.Unlock()
	for _, u := range open {
		u.cancel(ErrRevoked)
	}
}

// ErrGone is what a request ends with whose key was revoked.
func ErrGone() error {
	return fault.New(fault.Denied, CodeRevoked, "The API key of the request was revoked.").WithStatus(http.StatusUnauthorized)
}
