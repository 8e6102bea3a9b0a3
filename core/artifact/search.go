package artifact

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of a search.
const (
	searchTime     = 20 * time.Second // of one vendor
	searchAtOnce   = 4                // vendors
	searchResults  = 20               // where nobody says how many
	maxDescription = 200              // characters
)

// SearchModels asks all vendors that can search, or the one that req names, and gives each its share of the results. A vendor
// that fails takes nothing from the others: it is in the answer with its error. Where none of several could be asked, and where the
// only one could not, that is the error.
func (s *Store) SearchModels(ctx context.Context, req contract.ModelSearch) (contract.ModelsFound, error) {
	asked, err := s.searchers(req.Vendor)
	if err != nil {
		return contract.ModelsFound{}, err
	}
	limit := min(cmp.Or(max(req.Limit, 0), searchResults), contract.MaxSearchResults)
	found, errs := make([][]contract.ModelFound, len(asked)), make([]error, len(asked))
	var all sync.WaitGroup
	turn := make(chan struct{}, searchAtOnce)
	for i, v := range asked {
		all.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			found[i], errs[i] = s.searchOne(ctx, v, req.Query, limit)
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return contract.ModelsFound{}, ctx.Err()
	}
	out := contract.ModelsFound{Models: inTurn(found, limit), Failed: []contract.VendorFailed{}}
	for i, err := range errs {
		if err != nil {
			s.log.Warn("a vendor could not be searched", "vendor", asked[i].Info().Name, "error", err.Error())
			out.Failed = append(out.Failed, contract.VendorFailed{Vendor: asked[i].Info().Name, Error: fault.Wire(err, "")})
		}
	}
	if len(out.Failed) == len(asked) {
		return contract.ModelsFound{}, allFailed(out.Failed, errs)
	}
	return out, nil
}

// allFailed is the error of a search that no vendor answered: the one that there is, or what each said.
func allFailed(failed []contract.VendorFailed, errs []error) error {
	if len(errs) == 1 {
		return errs[0]
	}
	var said []string
	for _, f := range failed {
		said = append(said, f.Vendor+": "+strings.TrimSuffix(f.Error.Message, "."))
	}
	return fault.New(fault.KindOf(errs[0]), "search_failed", "No vendor could be searched. %s.", strings.Join(said, ". "))
}

// searchers are the vendors that can search, of the name or scheme that is given.
func (s *Store) searchers(name string) ([]vendor.Vendor, error) {
	var can []vendor.Vendor
	var names []string
	known := false
	for _, v := range s.opts.Vendors {
		i := v.Info()
		meant := name == "" || i.Name == name || slices.Contains(i.Schemes, strings.TrimSuffix(name, ":"))
		known = known || meant
		if _, ok := v.(vendor.Searcher); !ok {
			continue
		}
		if names = append(names, i.Name); meant {
			can = append(can, v)
		}
	}
	switch {
	case len(can) > 0:
		return can, nil
	case len(names) == 0:
		return nil, fault.New(fault.Invalid, "no_search", "No vendor of this hive can search; fetch models by their references with `apiary model pull`.")
	case known:
		return nil, fault.New(fault.Invalid, "no_search", "The vendor %q cannot search; those that can are %s.", name, strings.Join(names, ", ")).WithParam("vendor")
	}
	return nil, fault.New(fault.NotFound, "unknown_vendor", "There is no vendor %q; those that can search are %s.", name, strings.Join(names, ", ")).WithParam("vendor")
}

// searchOne asks one vendor, and leaves out of its answer what could not be fetched or shown.
func (s *Store) searchOne(ctx context.Context, v vendor.Vendor, query string, limit int) ([]contract.ModelFound, error) {
	bound, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	results, err := v.(vendor.Searcher).Search(bound, vendor.SearchRequest{Query: query, Limit: int32(limit)})
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return nil, fault.New(fault.Unavailable, "search_timeout", "The vendor %s did not answer the search within %v; try again later.", v.Info().Name, searchTime)
		}
		return nil, pluginhost.Fault(err)
	}
	var out []contract.ModelFound
	for _, r := range results {
		if len(out) == limit {
			break
		}
		if r.Reference == "" || len(r.Reference) > 1024 || r.Reference[0] == '-' || contract.HasHidden(r.Reference) || !v.Supports(r.Reference) {
			continue
		}
		out = append(out, contract.ModelFound{
			Vendor: v.Info().Name, Reference: r.Reference, Description: oneLine(r.Description), SizeBytes: contract.Bytes(max(r.SizeBytes, 0)),
		})
	}
	return out, nil
}

// oneLine is s without what a terminal would act on, and not longer than a description.
func oneLine(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if contract.Hidden(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))), " ")
	if r := []rune(s); len(r) > maxDescription {
		s = string(r[:maxDescription-1]) + "…"
	}
	return s
}

// inTurn takes the best result of each list in turn, up to limit of them.
func inTurn(lists [][]contract.ModelFound, limit int) []contract.ModelFound {
	out := []contract.ModelFound{}
	for rank := 0; ; rank++ {
		more := false
		for _, l := range lists {
			if rank < len(l) && len(out) < limit {
				out, more = append(out, l[rank]), true
			}
		}
		if !more {
			return out
		}
	}
}
