package trust

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
)

// Codes of faults about tokens.
const (
	CodeTokenDamaged = "token_damaged" // truncated, mistyped, or none
	CodeTokenVersion = "token_version" // of a later version of Apiary
	CodeTokenUnknown = "token_unknown" // no queen has made it, or has not told the others yet
	CodeTokenUsed    = "token_used"    // by another machine
	CodeTokenExpired = "token_expired"
	CodeWrongName    = "wrong_name" // it is for a machine of another name
	CodeTooManyToken = "too_many_tokens"
)

// Token lets one agent in, once. Whoever has it may use it, so it prints as ***.
type Token struct {
	Addresses   []string      // host:port of queens, at least one
	Fingerprint [32]byte      // SHA-256 of the certificate of the cluster's CA
	ID          string        // 16 hex digits; no secret
	Secret      secret.Secret // 64 hex digits
	Role        string        // RoleHive, or RoleQueen, which may be both
	Name        string        // of the agent that alone may use it; empty: any
	Made        time.Time     // by the clock of the queen, to the second
	Expires     time.Time
}

// Format hides a token under every verb.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("***")) }

const (
	tokenFamily = "apiary"
	tokenPrefix = tokenFamily + "1."
	checkLength = 4
	maxToken    = 4 << 10 // of its text
	maxQueens   = 8       // addresses in a token
)

var tokenRoles = map[string]byte{RoleHive: 1, RoleQueen: 2}

// Encode gives the token as the one string that people copy.
func (t Token) Encode() (secret.Secret, error) {
	role := tokenRoles[t.Role]
	id, err := hex.DecodeString(t.ID)
	raw, err2 := hex.DecodeString(t.Secret.Reveal())
	if role == 0 || err != nil || err2 != nil || len(id) != 8 || len(raw) != 32 || len(t.Addresses) == 0 || len(t.Addresses) > maxQueens {
		return "", fault.New(fault.Invalid, "bad_token", "A token needs a role, hive or queen, and one to %d addresses of queens.", maxQueens)
	}
	made, ttl := t.Made.Unix(), t.Expires.Unix()-t.Made.Unix()
	if made < 0 || ttl < 0 || t.Name != "" && !nameForm.MatchString(t.Name) {
		return "", fault.New(fault.Invalid, "bad_token", "A token needs a name of a machine, or none, and a time after 1970; check the clock of this machine.")
	}
	b := append(t.Fingerprint[:len(t.Fingerprint):len(t.Fingerprint)], id...)
	b = append(b, raw...)
	b = append(b, role)
	b = binary.AppendUvarint(b, uint64(made))
	b = binary.AppendUvarint(b, uint64(ttl))
	b = append(append(b, byte(len(t.Name))), t.Name...)
	b = append(b, byte(len(t.Addresses)))
	for _, a := range t.Addresses {
		if !isAddress(a) {
			return "", fault.New(fault.Invalid, "bad_address", "%.100q is not an address of a queen; write host:port.", a)
		}
		b = append(append(b, byte(len(a))), a...)
	}
	return secret.Secret(tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, tokenCheck(b)...))), nil
}

func tokenCheck(payload []byte) []byte {
	sum := sha256.Sum256(append([]byte("apiary token\x00"), payload...))
	return sum[:checkLength]
}

// isAddress reports whether a is host:port with a host of parseAddresses.
func isAddress(a string) bool {
	host, port, err := net.SplitHostPort(a)
	if err != nil || len(a) > 255 {
		return false
	}
	_, _, err = parseAddresses([]string{host})
	n, perr := strconv.ParseUint(port, 10, 16)
	return err == nil && perr == nil && n > 0 && strconv.FormatUint(n, 10) == port
}

// ParseToken reads a token. Spaces and line ends, which terminals and chats put into long lines, do not count.
func ParseToken(text string) (Token, error) {
	text = strings.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, text[:min(len(text), 2*maxToken)])
	version, body, ok := strings.Cut(text, ".")
	digits, ours := strings.CutPrefix(version, tokenFamily)
	switch {
	case !ok || !ours || digits == "" || strings.Trim(digits, "0123456789") != "" || len(text) > maxToken:
		return Token{}, fault.New(fault.Invalid, CodeTokenDamaged, "This is no token of Apiary, which begins with %q; copy the whole line that `apiary token create` printed.", tokenPrefix)
	case digits != "1":
		return Token{}, fault.New(fault.Invalid, CodeTokenVersion, "The token is of a later version of Apiary than this program; bring this machine to the version of the queen.")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(body)
	if err != nil || len(b) < checkLength {
		return Token{}, damagedToken()
	}
	b, check := b[:len(b)-checkLength], b[len(b)-checkLength:]
	if string(check) != string(tokenCheck(b)) {
		return Token{}, damagedToken()
	}
	t, err := decodeToken(b)
	if err != nil {
		return Token{}, fault.New(fault.Invalid, CodeTokenDamaged, "The token cannot be read (%w); make another one with `apiary token create`.", err)
	}
	return t, nil
}

func damagedToken() error {
	return fault.New(fault.Invalid, CodeTokenDamaged, "The token is not whole, or has a wrong character; copy the whole line that `apiary token create` printed.")
}

func decodeToken(b []byte) (Token, error) {
	var t Token
	r := reader{b: b}
	copy(t.Fingerprint[:], r.take(32))
	t.ID = hex.EncodeToString(r.take(8))
	t.Secret = secret.Secret(hex.EncodeToString(r.take(32)))
	role := r.take(1)
	for name, b := range tokenRoles {
		if !r.short && role[0] == b {
			t.Role = name
		}
	}
	made, ttl := r.number(), r.number()
	t.Name = r.text()
	for range int(r.byte()) {
		t.Addresses = append(t.Addresses, r.text())
	}
	const most = 1 << 40 // seconds
	switch {
	case r.short || len(r.b) > 0:
		return Token{}, fmt.Errorf("its length is wrong")
	case t.Role == "":
		return Token{}, fmt.Errorf("its role does not exist")
	case t.Name != "" && !nameForm.MatchString(t.Name):
		return Token{}, fmt.Errorf("its name is none")
	case made > most || ttl > most:
		return Token{}, fmt.Errorf("its times are none")
	case len(t.Addresses) == 0 || len(t.Addresses) > maxQueens:
		return Token{}, fmt.Errorf("it has no addresses, or too many")
	}
	for _, a := range t.Addresses {
		if !isAddress(a) {
			return Token{}, fmt.Errorf("one of its addresses is none")
		}
	}
	t.Made = time.Unix(int64(made), 0).UTC()
	t.Expires = time.Unix(int64(made+ttl), 0).UTC()
	return t, nil
}

// reader takes pieces off bytes; after one that is not there it is short, and gives zeros.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || len(r.b) < n {
		r.short = true
		return make([]byte, n)
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) byte() byte { return r.take(1)[0] }

func (r *reader) text() string { return string(r.take(int(r.byte()))) }

// number reads a uvarint in its shortest form.
func (r *reader) number() uint64 {
	n, length := binary.Uvarint(r.b)
	if length <= 0 || len(binary.AppendUvarint(nil, n)) != length {
		r.short = true
		return 0
	}
	r.take(length)
	return n
}

// CheckClock compares the clock of a machine with that of the queen at the time when it made the token: who holds a token from the
// future has a clock that is behind, or the queen's is ahead. A clock that is ahead shows when the queen is asked.
func (t Token) CheckClock(now time.Time) error {
	if now.Before(t.Made.Add(-Leeway)) {
		return clockOff(now, t.Made, " when it made the token, which was before")
	}
	return nil
}

// clockOff is the refusal of two clocks that differ, of who joins and of a queen.
func clockOff(joins, queens time.Time, when string) error {
	return fault.New(fault.Invalid, CodeClock, "The clock of the machine that joins says %s, and that of the queen %s%s; set the one that is wrong, and join again.", clockText(joins), clockText(queens), when)
}

// newToken makes a token's random parts.
func newToken() (id string, s secret.Secret) {
	raw := make([]byte, 40)
	_, _ = rand.Read(raw)
	return hex.EncodeToString(raw[:8]), secret.Secret(hex.EncodeToString(raw[8:]))
}

// hashSecret is what a ledger keeps of a token's secret. One round is enough for 32 random bytes.
func hashSecret(s string) string {
	sum := sha256.Sum256([]byte("apiary join\x00" + s))
	return hex.EncodeToString(sum[:])
}
