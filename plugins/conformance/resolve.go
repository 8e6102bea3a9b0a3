package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// resolving are the checks of what a plugin makes of references.
func resolving() []check {
	return []check{
		{"calls: a method that it does not have is unimplemented", "", checkUnimplemented},
		{"calls: it has the methods of its features, and no others", "", checkFeatures},
		{"calls: unknown fields of a request are ignored", "", checkUnknownFields},
		{"references: those of others and senseless ones are refused", "", checkForeign},
		{"references: those that must be refused are, for the right reason", "", checkRefused},
		{"references: those that must be answered are", "", checkWanted},
		{"answers: paths, sizes, digests and sources are such that the core takes them", "", checkAnswers},
		{"answers: the same question has the same answer, in each instance", "", checkDeterministic},
		{"answers: the canonical reference leads to itself", "", checkCanonical},
		{"search: results are no more than asked for, and of its schemes", vendor.KindVendor, checkSearch},
		{"refresh: new sources for the same files", vendor.KindVendor, checkRefresh},
	}
}

// noCases skips a check that needs references that are answered.
const noCases = skipError("the cases name no references that must be answered; write some into " + CasesFile)

func checkUnimplemented(ctx context.Context, s *suite) error {
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	for _, method := range []string{"/plugin.v1.Plugin/Later", "/vendor.v9.Vendor/Resolve", "", "/", "GetInfo\x00"} {
		_, err := s.call(ctx, on, method, struct{}{})
		if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != vendor.CodeUnimplemented {
			return fmt.Errorf("the method %q is answered with %v, and not with an error of the code %q", method, err, vendor.CodeUnimplemented)
		}
	}
	return nil
}

func checkFeatures(ctx context.Context, s *suite) error {
	methods := map[string]map[string]string{
		vendor.KindVendor:      {vendor.FeatureSearch: vendor.MethodSearch, vendor.FeatureRefresh: vendor.MethodRefreshSources},
		vendor.KindProvisioner: {vendor.FeatureList: vendor.MethodList, vendor.FeatureLaunch: vendor.MethodLaunch, vendor.FeaturePin: vendor.MethodPin},
	}[s.info.Kind]
	for _, f := range s.info.Features {
		if f == vendor.FeatureBare && s.info.Kind == vendor.KindVendor {
			continue // it has no method of its own
		}
		if methods[f] == "" {
			return fmt.Errorf("it names the feature %q, which a %s does not have", f, s.info.Kind)
		}
	}
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	for feature, method := range methods {
		_, err := s.call(ctx, on, method, struct{}{})
		e, _ := errors.AsType[*vendor.Error](err)
		has := e == nil || e.Code != vendor.CodeUnimplemented
		if named := slices.Contains(s.info.Features, feature); has != named {
			return fmt.Errorf("the feature %q is named: %v, and its method is there: %v", feature, named, has)
		}
	}
	return nil
}

func checkUnknownFields(ctx context.Context, s *suite) error {
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	method := vendor.MethodResolve
	if s.info.Kind == vendor.KindProvisioner {
		method = vendor.MethodPlan
	}
	plain, plainErr := s.ask(ctx, on, s.some())
	platform := map[string]any{}
	raw, err := json.Marshal(s.cases.platform())
	if err == nil {
		err = json.Unmarshal(raw, &platform)
	}
	if err != nil {
		return err
	}
	platform["later"] = map[string]any{"deep": []any{1, "two", nil, true}}
	got, gotErr := s.call(ctx, on, method, map[string]any{"reference": s.some(), "platform": platform, "laterField": []any{map[string]any{"x": 1.5}}, "z": nil})
	if plainErr != nil || gotErr != nil {
		return sameError(plainErr, gotErr)
	}
	return same(plain, got)
}

func sameError(one, two error) error {
	a, err := typed(one)
	if err != nil {
		return err
	}
	b, err := typed(two)
	if err != nil {
		return err
	}
	if a.Code != b.Code || a.Kind != b.Kind {
		return fmt.Errorf("the error was %q and then %q", a.Message, b.Message)
	}
	return nil
}

// same compares two answers by what they mean.
func same(one, two []byte) error {
	a, err := normal(one)
	if err != nil {
		return err
	}
	b, err := normal(two)
	if err != nil {
		return err
	}
	if a != b {
		return fmt.Errorf("the answer was %.300s and then %.300s", a, b)
	}
	return nil
}

func normal(raw []byte) (string, error) {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return "", fmt.Errorf("the answer cannot be read: %w", err)
	}
	out, err := json.Marshal(v)
	return string(out), err
}

func checkForeign(ctx context.Context, s *suite) error {
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	scheme := s.info.Schemes[0] + ":"
	long := strings.Repeat("a", 5000)
	for _, ref := range []string{
		"", ":", scheme, scheme + "//?#", "no-such-scheme:thing", scheme + long, scheme + strings.Repeat("a/", 2500), scheme + "a\x00b", scheme + "a\nb\x1b[31m", scheme + "../../etc/passwd",
		scheme + "\"}],{", scheme + "日本語\u202e", scheme + "%00%ff%2e%2e", scheme + "@:#?&=", " " + scheme + " ", long,
	} {
		e, err := s.tried(ctx, on, ref)
		if err != nil {
			return fmt.Errorf("%.80q: %w", ref, err)
		}
		if e == nil {
			return fmt.Errorf("%.80q is answered as if it were a reference", ref)
		}
	}
	return s.works(ctx)
}

func checkRefused(ctx context.Context, s *suite) error {
	if len(s.cases.Refuse) == 0 {
		return skipError("the cases name no references that must be refused")
	}
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	for _, want := range s.cases.Refuse {
		_, err := s.ask(ctx, on, want.Reference)
		e, err := typed(err)
		if err != nil {
			return fmt.Errorf("%s: %w", want.Reference, err)
		}
		if e.Kind != want.Kind || want.Code != "" && e.Code != want.Code {
			return fmt.Errorf("%s is refused as %q (%s), and should be as %q (%s): %s", want.Reference, e.Kind, e.Code, want.Kind, want.Code, e.Message)
		}
	}
	return nil
}

// each calls f with what is answered for each reference of the cases.
func (s *suite) each(ctx context.Context, f func(on Instance, want Wanted, raw []byte) error) error {
	if len(s.cases.Resolve) == 0 {
		return noCases
	}
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	for _, want := range s.cases.Resolve {
		raw, err := s.ask(ctx, on, want.Reference)
		if err == nil {
			err = f(on, want, raw)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", want.Reference, err)
		}
	}
	return nil
}

func checkWanted(ctx context.Context, s *suite) error {
	return s.each(ctx, func(_ Instance, want Wanted, raw []byte) error {
		got, err := s.read(raw)
		switch {
		case err != nil:
			return err
		case want.Canonical != "" && got.reference != want.Canonical:
			return fmt.Errorf("its canonical reference is %s, and should be %s", got.reference, want.Canonical)
		case want.Format != "" && got.format != want.Format:
			return fmt.Errorf("its format is %q, and should be %q", got.format, want.Format)
		case want.Files > 0 && len(got.files) != want.Files:
			return fmt.Errorf("it has %d files, and should have %d", len(got.files), want.Files)
		}
		for _, f := range got.files {
			if want.Digests && f.Digests == (vendor.Digests{}) && f.Member == nil {
				return fmt.Errorf("%q has no digest, and the case wants one; nothing says what its bytes should be", f.Path)
			}
		}
		return nil
	})
}

func checkAnswers(ctx context.Context, s *suite) error {
	return s.each(ctx, func(_ Instance, _ Wanted, raw []byte) error {
		_, err := s.read(raw)
		return err
	})
}

func checkDeterministic(ctx context.Context, s *suite) error {
	if len(s.cases.Resolve) == 0 {
		return noCases
	}
	other, err := s.ready(ctx)
	if err != nil {
		return err
	}
	err = s.each(ctx, func(on Instance, want Wanted, raw []byte) error {
		for _, in := range []Instance{on, other} {
			again, err := s.ask(ctx, in, want.Reference)
			if err == nil {
				err = same(raw, again)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, other.Close())
}

func checkCanonical(ctx context.Context, s *suite) error {
	return s.each(ctx, func(on Instance, _ Wanted, raw []byte) error {
		got, err := s.read(raw)
		if err != nil {
			return err
		}
		again, err := s.ask(ctx, on, got.reference)
		if err != nil {
			return fmt.Errorf("%s: %w", got.reference, err)
		}
		if err := same(raw, again); err != nil {
			return fmt.Errorf("%s: %w", got.reference, err)
		}
		if !s.ours(got.reference) {
			return fmt.Errorf("%s is not of one of its schemes", got.reference)
		}
		return nil
	})
}

// ours reports whether a reference has one of the plugin's schemes.
func (s *suite) ours(ref string) bool {
	scheme, _, found := strings.Cut(ref, ":")
	return found && slices.Contains(s.info.Schemes, scheme)
}

func checkSearch(ctx context.Context, s *suite) error {
	if !slices.Contains(s.info.Features, vendor.FeatureSearch) {
		return skipError("it does not search")
	}
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	queries := s.cases.Search
	if len(queries) == 0 {
		queries = []Query{{Query: "conformance"}}
	}
	for _, q := range queries {
		for _, limit := range []int32{10, 1} {
			raw, err := s.call(ctx, on, vendor.MethodSearch, vendor.SearchRequest{Query: q.Query, Limit: limit})
			if err != nil && q.Results == 0 {
				if _, err := typed(err); err != nil {
					return err
				}
				continue
			}
			if err != nil {
				return fmt.Errorf("the search for %q: %w", q.Query, err)
			}
			found := &vendor.SearchResponse{}
			if err := json.Unmarshal(raw, found); err != nil {
				return fmt.Errorf("the results cannot be read: %w", err)
			}
			if n := len(found.Results); n > int(limit) || n < min(q.Results, int(limit)) {
				return fmt.Errorf("the search for %q, at most %d, has %d results", q.Query, limit, n)
			}
			for _, r := range found.Results {
				if !s.ours(r.Reference) || strings.ContainsAny(r.Description, "\n\r\x1b") {
					return fmt.Errorf("the result %q is not of its schemes, or is no line: %.200q", r.Reference, r.Description)
				}
			}
		}
	}
	return nil
}

func checkRefresh(ctx context.Context, s *suite) error {
	if !slices.Contains(s.info.Features, vendor.FeatureRefresh) {
		return skipError("its sources do not expire")
	}
	return s.each(ctx, func(on Instance, _ Wanted, raw []byte) error {
		m := &vendor.Manifest{}
		if err := json.Unmarshal(raw, m); err != nil {
			return err
		}
		req := vendor.RefreshRequest{Reference: m.Reference}
		for _, f := range m.Files {
			req.Paths = append(req.Paths, f.Path)
		}
		reply, err := sdk.Call[vendor.RefreshResponse](ctx, on, vendor.MethodRefreshSources, req)
		if err != nil {
			return err
		}
		if len(reply.Files) != len(m.Files) {
			return fmt.Errorf("%d files have new sources, of %d", len(reply.Files), len(m.Files))
		}
		for i, f := range reply.Files {
			if old := m.Files[i]; f.Path != old.Path || f.Size != old.Size || f.Digests != old.Digests || len(f.Sources) == 0 {
				return fmt.Errorf("%s has another size or digest than before, or no source", f.Path)
			}
		}
		return nil
	})
}
