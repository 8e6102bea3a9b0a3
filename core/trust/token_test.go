package trust

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/secret"
)

func sampleToken() Token {
	id, s := newToken()
	return Token{Addresses: []string{"10.0.0.5:7833", "[fd00::5]:7833", "queen.lan:7833"}, Fingerprint: [32]byte{1, 2, 3}, ID: id, Secret: s,
		Role: RoleQueen, Name: "tower", Made: noon, Expires: noon.Add(15 * time.Minute)}
}

func TestTokenRoundTrip(t *testing.T) {
	in := sampleToken()
	s, err := in.Encode()
	if err != nil {
		t.Fatal(err)
	}
	text := s.Reveal()
	if !strings.HasPrefix(text, "apiary1.") || strings.ContainsAny(text, "+/= ") {
		t.Errorf("the token %s is not one word for every shell", text)
	}
	for _, pasted := range []string{text, "  " + text + "\n", text[:40] + "\r\n  " + text[40:]} {
		out, err := ParseToken(pasted)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(in, out, cmp.Comparer(func(a, b secret.Secret) bool { return a.Reveal() == b.Reveal() })); d != "" {
			t.Errorf("the token is another one: %s", d)
		}
	}
	if got := fmt.Sprintf("%v %+v %#v %s", in, in, in, in); strings.Contains(got, in.Secret.Reveal()[:16]) || strings.Contains(got, in.ID) {
		t.Errorf("a token prints as %s", got)
	}
}

// Every character counts: a token with one less, one more, or another one in its place is called damaged, and so is what is none.
func TestTokenDamaged(t *testing.T) {
	s, err := sampleToken().Encode()
	if err != nil {
		t.Fatal(err)
	}
	text := s.Reveal()
	for i := range len(text) {
		other := byte('A')
		if text[i] == 'A' {
			other = 'B'
		}
		bad := []string{text[:i], text[:i] + text[i+1:], text[:i] + string(other) + text[i+1:]}
		for _, b := range bad {
			if _, err := ParseToken(b); err == nil {
				t.Fatalf("%s passes for %s", b, text)
			} else if i != len("apiary") { // there it may be another version
				want(t, err, CodeTokenDamaged)
			}
		}
	}
	for _, bad := range []string{"", "apiary1", "apiary1.", ".", "apiary.x", "apiary1.AAAA", "apiary1." + strings.Repeat("A", 1<<20), text + "A", text + ".A", "Bearer " + text} {
		_, err := ParseToken(bad)
		want(t, err, CodeTokenDamaged)
	}
	_, err = ParseToken("apiary2." + text[8:])
	want(t, err, CodeTokenVersion)
}

// A token has one spelling: nothing may follow it, and no part may be written in another way.
func TestTokenHasOneSpelling(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	for _, name := range []string{"", "a", "ab"} { // all lengths modulo 3
		tok := sampleToken()
		tok.Name = name
		s, err := tok.Encode()
		if err != nil {
			t.Fatal(err)
		}
		text := s.Reveal()
		for _, c := range alphabet {
			if other := text[:len(text)-1] + string(c); other != text {
				_, err := ParseToken(other)
				want(t, err, CodeTokenDamaged)
			}
		}
	}
	s, err := sampleToken().Encode()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(s.Reveal(), tokenPrefix))
	if err != nil {
		t.Fatal(err)
	}
	payload := raw[:len(raw)-checkLength]
	const made = 32 + 8 + 32 + 1 // where the first number begins, which has five bytes
	long := slices.Clone(payload)
	long[made+4] |= 0x80
	long = slices.Insert(long, made+5, 0)
	for name, b := range map[string][]byte{
		"trailing": append(slices.Clone(payload), 0), "short": slices.Clone(payload[:len(payload)-1]), "long number": long, "role": append(append(slices.Clone(payload[:72]), 9), payload[73:]...),
	} {
		_, err := ParseToken(tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, tokenCheck(b)...)))
		if code(err) != CodeTokenDamaged {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := decodeToken(payload); err != nil {
		t.Error(err)
	}
}

func TestTokenNeedsParts(t *testing.T) {
	for name, change := range map[string]func(*Token){
		"role":       func(t *Token) { t.Role = "worker" },
		"address":    func(t *Token) { t.Addresses = nil },
		"addresses":  func(t *Token) { t.Addresses = make([]string, 9) },
		"port":       func(t *Token) { t.Addresses = []string{"10.0.0.5"} },
		"port 0":     func(t *Token) { t.Addresses = []string{"10.0.0.5:0"} },
		"port text":  func(t *Token) { t.Addresses = []string{"10.0.0.5:http"} },
		"every":      func(t *Token) { t.Addresses = []string{"0.0.0.0:7833"} },
		"host":       func(t *Token) { t.Addresses = []string{"a b:7833"} },
		"name":       func(t *Token) { t.Name = "a/b" },
		"id":         func(t *Token) { t.ID = "12" },
		"secret":     func(t *Token) { t.Secret = "12" },
		"before":     func(t *Token) { t.Made = time.Unix(-1, 0) },
		"ends first": func(t *Token) { t.Expires = t.Made.Add(-time.Second) },
	} {
		tok := sampleToken()
		change(&tok)
		if _, err := tok.Encode(); err == nil {
			t.Errorf("%s: a token that cannot be used is made", name)
		}
	}
}

func TestTokenClock(t *testing.T) {
	tok := sampleToken()
	for _, c := range []struct {
		off  time.Duration
		code string
	}{{0, ""}, {-Leeway, ""}, {-Leeway - time.Second, CodeClock}, {-time.Hour, CodeClock}, {time.Hour, ""}} {
		err := tok.CheckClock(noon.Add(c.off))
		want(t, err, c.code)
		if err != nil && (!strings.Contains(err.Error(), "2026-11-29 12:00:00") || !strings.Contains(err.Error(), clockText(noon.Add(c.off)))) {
			t.Errorf("the message does not say both clocks: %v", err)
		}
	}
	if err := tok.CheckClock(time.Unix(0, 0)); code(err) != CodeClock {
		t.Error("1970 passes")
	}
}

func FuzzToken(f *testing.F) {
	s, err := sampleToken().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Reveal())
	f.Add("apiary1.")
	f.Add("apiary12.AAAA")
	f.Fuzz(func(t *testing.T, text string) {
		tok, err := ParseToken(text)
		if err != nil {
			want(t, err, code(err))
			return
		}
		again, err := tok.Encode()
		if err != nil {
			t.Fatalf("a token that was read cannot be written: %v", err)
		}
		if back, err := ParseToken(again.Reveal()); err != nil || fmt.Sprint(back.ID, back.Made, back.Expires, back.Addresses, back.Name, back.Role) != fmt.Sprint(tok.ID, tok.Made, tok.Expires, tok.Addresses, tok.Name, tok.Role) {
			t.Fatalf("%q is read in two ways", text)
		}
	})
}

// FuzzTokenPayload goes past the checksum.
func FuzzTokenPayload(f *testing.F) {
	f.Add(make([]byte, 80))
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := decodeToken(b)
		if err != nil {
			return
		}
		if _, err := tok.Encode(); err != nil {
			t.Fatalf("a token that was read cannot be written: %v", err)
		}
	})
}
