package keys

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

var t0 = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

func made(t *testing.T, n contract.NewKey) (string, contract.APIKey) {
	t.Helper()
	if n.Name == "" {
		n.Name = "anna"
	}
	s, k, err := Make(n, t0)
	if err != nil {
		t.Fatal(err)
	}
	return s.Reveal(), k
}

func code(err error) string {
	if err == nil {
		return ""
	}
	return fault.As(err).Code
}

func TestCheck(t *testing.T) {
	var table Table
	if _, err := table.Check("apk_anything", t0); code(err) != CodeInvalid || fault.HTTPStatus(err) != http.StatusUnauthorized {
		t.Fatalf("without any keys: %v", err)
	}
	shown, k := made(t, contract.NewKey{TTLSeconds: 60})
	other, _ := made(t, contract.NewKey{Name: "other"})
	if len(shown) != keyLength || strings.Contains(shown, k.Hash) || k.Hash == "" || shown == other {
		t.Fatalf("the key is %q", shown)
	}
	table.Set([]contract.APIKey{k})
	g, err := table.Check(shown, t0.Add(59*time.Second))
	if err != nil || g.ID() != k.ID || g.Class() != contract.KeyInference {
		t.Fatalf("a good key: %v, %v", g, err)
	}
	for what, c := range map[string]struct {
		shown string
		at    time.Time
		want  string
	}{
		"none":              {"", t0, CodeMissing},
		"another one":       {other, t0, CodeInvalid},
		"another secret":    {shown[:len(shown)-1] + string(shown[len(shown)-1]^1), t0, CodeInvalid},
		"longer":            {shown + "a", t0, CodeInvalid},
		"cut":               {shown[:len(shown)-1], t0, CodeInvalid},
		"the id alone":      {k.ID, t0, CodeInvalid},
		"the hash":          {k.Hash, t0, CodeInvalid},
		"very long":         {strings.Repeat("a", 1<<20), t0, CodeInvalid},
		"expired":           {shown, t0.Add(61 * time.Second), CodeExpired},
		"another one's key": {prefix + k.ID + other[len(prefix)+idLength:], t0, CodeInvalid},
	} {
		if _, err := table.Check(c.shown, c.at); code(err) != c.want || fault.KindOf(err) != fault.Denied {
			t.Errorf("%s: %v", what, err)
		}
	}
	table.Set(nil)
	if _, err := table.Check(shown, t0); code(err) != CodeInvalid {
		t.Errorf("after it was revoked: %v", err)
	}
}

func TestMakeRefuses(t *testing.T) {
	for field, n := range map[string]contract.NewKey{
		"name": {Name: "a\nb"}, "class": {Name: "a", Class: "root"}, "ttl_seconds": {Name: "a", TTLSeconds: -1},
		"concurrency":       {Name: "a", KeyLimits: contract.KeyLimits{Concurrency: -1}},
		"tokens_per_minute": {Name: "a", KeyLimits: contract.KeyLimits{TokensPerMinute: -1}},
		"queue":             {Name: "a", KeyLimits: contract.KeyLimits{Queue: -1}},
		"models":            {Name: "a", KeyLimits: contract.KeyLimits{Models: []string{""}}},
	} {
		if _, _, err := Make(n, t0); err == nil || fault.As(err).Param != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, _, err := Make(contract.NewKey{Name: "a", Class: contract.KeyMetrics, KeyLimits: contract.KeyLimits{Queue: 1}}, t0); err == nil {
		t.Error("a key for metrics has a limit")
	}
}

func TestLimits(t *testing.T) {
	shown, k := made(t, contract.NewKey{KeyLimits: contract.KeyLimits{Concurrency: 2, TokensPerMinute: 60, Models: []string{"smol", "hf:a/b"}}})
	var table Table
	table.Set([]contract.APIKey{k})
	g, err := table.Check(shown, t0)
	if err != nil {
		t.Fatal(err)
	}
	if !g.MayAsk("x", "smol") || g.MayAsk("other") || g.MayAsk() {
		t.Error("models are not what the key says")
	}
	never := func(error) { t.Error("cancelled") }
	a, err1 := g.Begin(t0, never)
	b, err2 := g.Begin(t0, never)
	if _, err := g.Begin(t0, never); err1 != nil || err2 != nil || code(err) != CodeConcurrency || fault.As(err).RetryAfter <= 0 {
		t.Fatalf("two at once: %v, %v, then %v", err1, err2, err)
	}
	a.Serving(true)
	a.Serving(true)
	if b.Load() != 1 {
		t.Errorf("one request is served, not %d", b.Load())
	}
	a.End(t0, 90)
	if b.Load() != 0 {
		t.Errorf("no request is served, not %d", b.Load())
	}
	_, err = g.Begin(t0, never)
	if e := fault.As(err); code(err) != CodeTokens || e.RetryAfter < 30*time.Second || e.RetryAfter > 32*time.Second {
		t.Fatalf("90 of 60 tokens spent: %v", err)
	}
	if _, err := g.Begin(t0.Add(29*time.Second), never); code(err) != CodeTokens {
		t.Errorf("29 s later: %v", err)
	}
	c, err := g.Begin(t0.Add(32*time.Second), never)
	if err != nil {
		t.Fatalf("32 s later: %v", err)
	}
	table.Set([]contract.APIKey{k}) // the same again forgets nothing
	if again, err := table.Check(shown, t0); err != nil || again != g {
		t.Errorf("the same keys again: %v, %v", again, err)
	}
	b.End(t0, 0)
	c.End(t0, 0)
}

// The open requests of a key end when it is revoked, and only they.
func TestRevoke(t *testing.T) {
	one, k1 := made(t, contract.NewKey{})
	two, k2 := made(t, contract.NewKey{Name: "two"})
	var table Table
	table.Set([]contract.APIKey{k1, k2})
	g1, _ := table.Check(one, t0)
	g2, _ := table.Check(two, t0)
	ctx, cancel := context.WithCancelCause(context.Background())
	u, err := g1.Begin(t0, cancel)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g2.Begin(t0, func(error) { t.Error("the other key's request ended") }); err != nil {
		t.Fatal(err)
	}
	table.Set([]contract.APIKey{k2})
	if !errors.Is(context.Cause(ctx), ErrRevoked) {
		t.Error("the request goes on")
	}
	u.End(t0, 1)
	if _, err := g1.Begin(t0, func(error) {}); code(err) != CodeRevoked {
		t.Errorf("a request that comes too late: %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	shown, k := made(t, contract.NewKey{KeyLimits: contract.KeyLimits{Concurrency: 8, TokensPerMinute: 1 << 30}})
	var table Table
	table.Set([]contract.APIKey{k})
	var all sync.WaitGroup
	for range 32 {
		all.Go(func() {
			for range 200 {
				g, err := table.Check(shown, t0)
				if err != nil {
					t.Error(err)
					return
				}
				u, err := g.Begin(t0, func(error) {})
				if err != nil {
					continue
				}
				u.Serving(true)
				if u.Load() > 8 {
					t.Error("more than 8 at once")
				}
				u.End(t0, 1)
			}
		})
	}
	for range 100 {
		table.Set([]contract.APIKey{k})
	}
	all.Wait()
	g, _ := table.Check(shown, t0)
	if len(g.open) != 0 || g.serving != 0 {
		t.Errorf("%d are open and %d served at the end", len(g.open), g.serving)
	}
}

func FuzzCheck(f *testing.F) {
	s, k, err := Make(contract.NewKey{Name: "a"}, t0)
	if err != nil {
		f.Fatal(err)
	}
	var table Table
	table.Set([]contract.APIKey{k})
	f.Add("")
	f.Add(s.Reveal()[:20])
	f.Add("apk_" + k.ID + "_")
	f.Fuzz(func(t *testing.T, shown string) {
		if g, err := table.Check(shown, t0); err == nil && shown != s.Reveal() || (g == nil) != (err != nil) {
			t.Fatalf("%q is taken", shown)
		}
	})
}
