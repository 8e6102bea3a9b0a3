package trust

import (
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

func claim(t Token, nodeID, key string) Claim {
	return Claim{TokenID: t.ID, Secret: t.Secret.Reveal(), NodeID: nodeID, Name: "tower", Roles: []string{RoleHive}, Key: hex64(key)}
}

func TestMakeToken(t *testing.T) {
	c := newCluster(t)
	tok, rec, err := c.ledger.Make(TokenOrder{Role: RoleHive, Addresses: []string{"10.0.0.5:7833"}})
	if err != nil || !tok.Expires.Equal(noon.Add(DefaultTokenTTL)) {
		t.Fatalf("%v, %v", tok.Expires, err)
	}
	if s := string(rec.Value); rec.Kind != contract.RecordToken || rec.Key != tok.ID || strings.Contains(s, tok.Secret.Reveal()) || !strings.Contains(s, hashSecret(tok.Secret.Reveal())) {
		t.Errorf("the record is %+v", rec)
	}
	for name, o := range map[string]TokenOrder{
		"bad_ttl": {Role: RoleHive, TTL: 25 * time.Hour, Addresses: []string{"a:1"}}, "bad_role": {Role: "admin", Addresses: []string{"a:1"}},
		"bad_name": {Role: RoleHive, Name: "a b", Addresses: []string{"a:1"}}, "bad_token": {Role: RoleHive}, "bad_address": {Role: RoleHive, Addresses: []string{"a"}},
	} {
		_, _, err := c.ledger.Make(o)
		want(t, err, name)
	}
	_, _, err = c.ledger.Make(TokenOrder{Role: RoleHive, TTL: time.Second, Addresses: []string{"a:1"}})
	want(t, err, "bad_ttl")
}

func TestOpenTokensAreBounded(t *testing.T) {
	c := newCluster(t)
	for range maxOpenTokens {
		c.token(TokenOrder{})
	}
	o := TokenOrder{Role: RoleHive, Addresses: []string{"10.0.0.5:7833"}}
	_, _, err := c.ledger.Make(o)
	want(t, err, CodeTooManyToken)
	c.hand.move(DefaultTokenTTL)
	if _, _, err := c.ledger.Make(o); err != nil { // those have expired
		t.Error(err)
	}
}

func TestRelease(t *testing.T) {
	c := newCluster(t)
	tok := c.token(TokenOrder{})
	first, second := claim(tok, "aaaaaaaaaaaa", "1"), claim(tok, "bbbbbbbbbbbb", "2")
	if err := c.ledger.Check(first); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ledger.Redeem(first); err != nil {
		t.Fatal(err)
	}
	want(t, c.ledger.Check(second), CodeTokenUsed)
	c.ledger.Release(second) // which has not got it
	want(t, c.ledger.Check(second), CodeTokenUsed)
	otherKey := claim(tok, "aaaaaaaaaaaa", "2")
	want(t, c.ledger.Check(otherKey), CodeTokenUsed)
	c.ledger.Release(first)
	if _, err := c.ledger.Redeem(second); err != nil {
		t.Error(err)
	}
}

// Two queens share tokens by records alone, whatever the order in which these arrive.
func TestLedgersAgree(t *testing.T) {
	c := newCluster(t)
	tok, made, err := c.ledger.Make(TokenOrder{Role: RoleHive, Addresses: []string{"10.0.0.5:7833"}})
	if err != nil {
		t.Fatal(err)
	}
	second := NewLedger(c.clock)
	want(t, second.Check(claim(tok, "aaaaaaaaaaaa", "1")), CodeTokenUnknown)
	if clashes := second.Take(made); len(clashes) > 0 {
		t.Error(clashes)
	}
	used, err := second.Redeem(claim(tok, "aaaaaaaaaaaa", "1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, records := range [][]contract.Record{{used, made}, {made, used}, {made, used, made, used}} {
		l := NewLedger(c.clock)
		if clashes := l.Take(records...); len(clashes) > 0 {
			t.Error(clashes)
		}
		want(t, l.Check(claim(tok, "bbbbbbbbbbbb", "2")), CodeTokenUsed)
		want(t, l.Check(claim(tok, "aaaaaaaaaaaa", "1")), "")
	}
	l := NewLedger(c.clock)
	l.Take(made, used, contract.Record{Kind: contract.RecordToken, Key: tok.ID, Deleted: true})
	want(t, l.Check(claim(tok, "aaaaaaaaaaaa", "1")), CodeTokenUnknown)
}

// Queens that were cut off from each other may both let somebody in: all find the same one too many.
func TestClash(t *testing.T) {
	c := newCluster(t)
	tok, made, err := c.ledger.Make(TokenOrder{Role: RoleHive, Addresses: []string{"10.0.0.5:7833"}})
	if err != nil {
		t.Fatal(err)
	}
	second := NewLedger(c.clock)
	second.Take(made)
	first, err := c.ledger.Redeem(claim(tok, "aaaaaaaaaaaa", "1"))
	if err != nil {
		t.Fatal(err)
	}
	c.hand.move(time.Second)
	later, err := second.Redeem(claim(tok, "bbbbbbbbbbbb", "2"))
	if err != nil {
		t.Fatal(err)
	}
	wanted := []Clash{{TokenID: tok.ID, NodeID: "bbbbbbbbbbbb", Key: hex64("2")}}
	if got := c.ledger.Take(later); !slices.Equal(got, wanted) {
		t.Errorf("the first queen finds %v", got)
	}
	if got := second.Take(first); !slices.Equal(got, wanted) {
		t.Errorf("the second queen finds %v", got)
	}
	for _, l := range []*Ledger{c.ledger, second} {
		want(t, l.Check(claim(tok, "bbbbbbbbbbbb", "2")), CodeTokenUsed)
		want(t, l.Check(claim(tok, "aaaaaaaaaaaa", "1")), "")
	}
}

func TestTakeIgnoresWhatIsNone(t *testing.T) {
	c := newCluster(t)
	good, _ := json.Marshal(contract.TokenRecord{Hash: hex64("1"), Role: RoleHive, Expires: noon.Add(-tokenKept)})
	for _, r := range []contract.Record{
		{Kind: contract.RecordToken, Key: "x", Value: []byte(`{`)}, {Kind: contract.RecordToken, Key: "x", Value: []byte(`{"hash":"1","role":"hive"}`)},
		record(contract.RecordToken, "x", contract.TokenRecord{Hash: hex64("1"), Role: "admin", Expires: noon}),
		record(contract.RecordToken, "x", contract.TokenRecord{Hash: hex64("1"), Role: RoleHive, Expires: noon.Add(-tokenKept - time.Second)}),
		{Kind: contract.RecordDeployment, Key: "x", Value: good},
	} {
		c.ledger.Take(r)
	}
	if len(c.ledger.tokens) > 0 {
		t.Errorf("%v is taken", c.ledger.tokens)
	}
	c.ledger.Take(contract.Record{Kind: contract.RecordToken, Key: "x", Value: good})
	if len(c.ledger.tokens) != 1 {
		t.Error("a good record is not taken")
	}
}

func TestSweep(t *testing.T) {
	c := newCluster(t)
	tok := c.token(TokenOrder{})
	c.hand.move(DefaultTokenTTL + tokenKept)
	if got := c.ledger.Sweep(); len(got) > 0 {
		t.Error(got)
	}
	want(t, c.ledger.Check(claim(tok, "aaaaaaaaaaaa", "1")), CodeTokenExpired)
	c.hand.move(time.Second)
	if got := c.ledger.Sweep(); len(got) != 1 || got[0].Key != tok.ID || !got[0].Deleted {
		t.Error(got)
	}
	want(t, c.ledger.Check(claim(tok, "aaaaaaaaaaaa", "1")), CodeTokenUnknown)
}

// The ledger's clock is the machine's: one that jumps makes tokens expire, or live on, by as much.
func TestTokensAndClocks(t *testing.T) {
	for off, wanted := range map[time.Duration]string{0: "", time.Hour: CodeTokenExpired, -time.Hour: "", Leeway: ""} {
		c := newCluster(t)
		tok := c.token(TokenOrder{})
		c.hand.move(off)
		want(t, c.ledger.Check(claim(tok, "aaaaaaaaaaaa", "1")), wanted)
	}
	c := newCluster(t)
	tok := c.token(TokenOrder{})
	c.hand.set(time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC))
	want(t, c.ledger.Check(claim(tok, "aaaaaaaaaaaa", "1")), CodeTokenExpired)
}

func TestRoster(t *testing.T) {
	r := NewRoster()
	a := contract.NodeRecord{Name: "tower", Roles: []string{RoleHive}, Key: hex64("1"), Joined: noon}
	rec, undo, err := r.Admit("aaaaaaaaaaaa", a)
	if err != nil || rec.Key != "aaaaaaaaaaaa" {
		t.Fatal(err)
	}
	if _, _, err := r.Admit("bbbbbbbbbbbb", a); code(err) != CodeNameTaken {
		t.Error(err)
	}
	undo()
	undo() // twice does nothing more
	if len(r.Nodes()) > 0 {
		t.Error("the entry is still there")
	}
	if _, _, err = r.Admit("bbbbbbbbbbbb", a); err != nil {
		t.Error(err)
	}
	undo()
	if len(r.Nodes()) != 1 {
		t.Error("another entry went")
	}
	// Undoing a second entry brings the first one back.
	b := a
	b.Name, b.Joined = "tower2", noon.Add(time.Second)
	if _, undo, err = r.Admit("bbbbbbbbbbbb", b); err != nil {
		t.Fatal(err)
	}
	undo()
	if r.Nodes()["bbbbbbbbbbbb"].Name != "tower" {
		t.Errorf("%v", r.Nodes())
	}

	_, _, err = r.Revoke("nobody", noon)
	want(t, err, CodeNoNode)
	id, recs, err := r.Revoke("tower", noon)
	if err != nil || id != "bbbbbbbbbbbb" || len(recs) != 1 || recs[0].Key != hex64("1") || !r.Revoked(hex64("1")) || r.Revoked(hex64("2")) || len(r.Nodes()) > 0 {
		t.Errorf("%v %v %v", id, recs, err)
	}
	_, again, err := r.Revoke("bbbbbbbbbbbb", noon.Add(time.Hour)) // by its id, once more
	if err != nil || len(again) != 1 || string(again[0].Value) != string(recs[0].Value) {
		t.Errorf("%v %v", again, err)
	}
	// A revocation is there for ever, whatever arrives.
	r.Take(contract.Record{Kind: contract.RecordRevocation, Key: hex64("1"), Deleted: true}, contract.Record{Kind: contract.RecordNode, Key: "bbbbbbbbbbbb", Deleted: true})
	if !r.Revoked(hex64("1")) || len(r.nodes) > 0 {
		t.Error("the revocation is gone, or the node is not")
	}

	other := NewRoster()
	other.Take(recs...)
	other.Take(contract.Record{Kind: contract.RecordNode, Key: "x", Value: rec.Value}, contract.Record{Kind: contract.RecordNode, Key: "cccccccccccc", Value: []byte(`{`)},
		contract.Record{Kind: contract.RecordRevocation, Key: "x", Value: recs[0].Value}, rec)
	if !other.Revoked(hex64("1")) || other.Revoked("x") || len(other.nodes) != 1 {
		t.Errorf("%v %v", other.nodes, other.revoked)
	}
	// Two of one name, which were let in by queens that did not reach each other.
	for i, id := range []string{"dddddddddddd", "eeeeeeeeeeee"} {
		other.Take(record(contract.RecordNode, id, contract.NodeRecord{Name: "twin", Roles: []string{RoleQueen}, Key: hex64([]string{"4", "5"}[i]), IssuerKey: hex64("6")}))
	}
	_, _, err = other.Revoke("twin", noon)
	want(t, err, "ambiguous_name")
	if _, recs, err = other.Revoke("eeeeeeeeeeee", noon); err != nil || len(recs) != 2 || !other.Revoked(hex64("6")) {
		t.Errorf("%v %v", recs, err)
	}
	if id, _, err := other.Revoke("twin", noon); err != nil || id != "dddddddddddd" { // the other one is out already
		t.Error(id, err)
	}
}

func TestRosterAtOnce(t *testing.T) {
	r := NewRoster()
	var wg sync.WaitGroup
	var mu sync.Mutex
	in := 0
	for i := range 40 {
		wg.Go(func() {
			_, _, err := r.Admit("aaaaaaaaaa"+string(rune('a'+i/20))+string(rune('a'+i%20)), contract.NodeRecord{Name: "tower", Roles: []string{RoleHive}, Key: hex64("1"), Joined: noon})
			r.Revoked(hex64("2"))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				in++
			}
		})
	}
	wg.Wait()
	if in != 1 {
		t.Errorf("%d have the name", in)
	}
}

// FuzzRecords gives records as they come from other queens.
func FuzzRecords(f *testing.F) {
	f.Add(contract.RecordToken, "0123456789abcdef", []byte(`{"hash":"`+hex64("1")+`","role":"hive","expires":"2026-11-29T12:00:00Z","used_by":"x"}`))
	f.Add(contract.RecordNode, "aaaaaaaaaaaa", []byte(`{"name":"tower","roles":["hive"],"key":"`+hex64("1")+`"}`))
	f.Add(contract.RecordRevocation, hex64("1"), []byte(`{"node_id":"aaaaaaaaaaaa"}`))
	f.Fuzz(func(t *testing.T, kind, key string, value []byte) {
		l, r := NewLedger(clockAt(noon)), NewRoster()
		rec := contract.Record{Kind: kind, Key: key, Value: value}
		l.Take(rec, rec)
		r.Take(rec, rec)
		for _, n := range r.Nodes() {
			if !nameForm.MatchString(n.Name) {
				t.Fatalf("%q is a name", n.Name)
			}
		}
		if l.Check(Claim{TokenID: key}) == nil {
			t.Fatal("a token without a secret is good")
		}
	})
}
