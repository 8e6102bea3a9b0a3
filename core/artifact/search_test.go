package artifact

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/testutil/fakehub"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// shop is a vendor that can search.
type shop struct {
	name   string
	search func(ctx context.Context, req vendor.SearchRequest) ([]vendor.SearchResult, error)
}

func (s *shop) Info() vendor.Info {
	return vendor.Info{Name: s.name, Kind: vendor.KindVendor, Schemes: []string{s.name[:1]}, Features: []string{vendor.FeatureSearch}}
}
func (s *shop) Supports(ref string) bool { return strings.HasPrefix(ref, s.name[:1]+":") }
func (s *shop) Resolve(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
	return nil, errors.New("not asked for")
}
func (s *shop) Search(ctx context.Context, req vendor.SearchRequest) ([]vendor.SearchResult, error) {
	return s.search(ctx, req)
}

func offering(name string, results ...vendor.SearchResult) *shop {
	return &shop{name, func(context.Context, vendor.SearchRequest) ([]vendor.SearchResult, error) { return results, nil }}
}

func TestSearch(t *testing.T) {
	broken := &shop{"broken", func(context.Context, vendor.SearchRequest) ([]vendor.SearchResult, error) {
		return nil, &vendor.Error{Kind: vendor.KindUnavailable, Code: "closed", Message: "The shop is closed."}
	}}
	many := []vendor.SearchResult{}
	for i := range 200 {
		many = append(many, vendor.SearchResult{Reference: fmt.Sprintf("m:%d", i)})
	}
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Vendors = append(o.Vendors, broken, offering("many", many...), offering("rude",
			vendor.SearchResult{Reference: "r:ok", Description: "two\nlines \x1b[31mand " + strings.Repeat("ä", 500), SizeBytes: -4},
			vendor.SearchResult{Reference: "r:hid\u202eden"}, vendor.SearchResult{Reference: "m:anothers"}, vendor.SearchResult{Reference: "-r"}, vendor.SearchResult{}))
	})
	got, err := s.SearchModels(t.Context(), contract.ModelSearch{Query: "x", Limit: 4})
	if err != nil {
		t.Fatal(err)
	}
	var refs []string
	for _, m := range got.Models {
		refs = append(refs, m.Vendor+" "+m.Reference)
	}
	if want := "many m:0,rude r:ok,many m:1,many m:2"; strings.Join(refs, ",") != want {
		t.Errorf("found %v, want %s", refs, want)
	}
	if d := got.Models[1]; !strings.HasPrefix(d.Description, "two lines [31mand ää") || len([]rune(d.Description)) != maxDescription || d.SizeBytes != 0 {
		t.Errorf("%q, %d bytes", d.Description, d.SizeBytes)
	}
	if len(got.Failed) != 1 || got.Failed[0].Vendor != "broken" || got.Failed[0].Error.Code != "closed" || got.Failed[0].Error.Message != "The shop is closed." {
		t.Errorf("failed: %+v", got.Failed)
	}
	for _, name := range []string{"many", "m", "m:"} {
		if got, err := s.SearchModels(t.Context(), contract.ModelSearch{Query: "x", Vendor: name}); err != nil || len(got.Models) != searchResults || len(got.Failed) != 0 {
			t.Errorf("%s: %d results, %v", name, len(got.Models), err)
		}
	}
	for name, code := range map[string]string{"broken": "closed", "local": "no_search", "nobody": "unknown_vendor"} {
		if _, err := s.SearchModels(t.Context(), contract.ModelSearch{Query: "x", Vendor: name}); err == nil || fault.As(err).Code != code {
			t.Errorf("%s: %v", name, err)
		}
	}
	none := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = append(o.Vendors, broken, &shop{"odd", broken.search}) })
	if _, err := none.SearchModels(t.Context(), contract.ModelSearch{Query: "x"}); fault.KindOf(err) != fault.Unavailable || err.Error() != "No vendor could be searched. broken: The shop is closed. odd: The shop is closed." {
		t.Errorf("where all fail: %v", err)
	}
	if _, err := openStore(t, t.TempDir(), nil).SearchModels(t.Context(), contract.ModelSearch{Query: "x"}); fault.As(err).Code != "no_search" {
		t.Errorf("without any that can: %v", err)
	}
}

// TestSearchDoesNotWait: a vendor that does not answer is given up, and the others are asked at the same time.
func TestSearchDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hangs := func(ctx context.Context, _ vendor.SearchRequest) ([]vendor.SearchResult, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		s := &Store{opts: Options{Vendors: []vendor.Vendor{&shop{"a", hangs}, &shop{"b", hangs}, offering("c", vendor.SearchResult{Reference: "c:x"})}}, log: slog.New(slog.DiscardHandler)}
		begun := time.Now()
		got, err := s.SearchModels(t.Context(), contract.ModelSearch{Query: "x"})
		if took := time.Since(begun); err != nil || took != searchTime || len(got.Models) != 1 || len(got.Failed) != 2 || got.Failed[0].Error.Code != "search_timeout" {
			t.Errorf("%+v, %v after %v", got, err, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.SearchModels(ctx, contract.ModelSearch{Query: "x"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a search that nobody waits for: %v", err)
		}
	})
}

func TestSearchHub(t *testing.T) {
	hub := newHub(t, fakehub.Repo{ID: "team/stories"}, fakehub.Repo{ID: "team/poems"})
	s := hubStore(t, hub, "", hub.URL)
	got, err := s.SearchModels(t.Context(), contract.ModelSearch{Query: "stor"})
	if err != nil || len(got.Models) != 1 || got.Models[0].Reference != "hf:team/stories" || got.Models[0].Vendor != "huggingface" {
		t.Errorf("%+v, %v", got, err)
	}
}
