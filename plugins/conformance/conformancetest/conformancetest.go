// Package conformancetest runs the suite of plugins in go test: each check is a subtest.
package conformancetest

import (
	"context"
	"log/slog"
	"testing"

	"github.com/apiary-dev/apiary/plugins/conformance"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Run checks a plugin with the cases in a file, which need not be there.
func Run(t *testing.T, subject conformance.Subject, casesFile string) conformance.Summary {
	t.Helper()
	cases, err := conformance.ReadCases(casesFile)
	if err != nil {
		t.Fatal(err)
	}
	return conformance.Run(t.Context(), subject, cases, func(r conformance.Result) {
		t.Run(r.Name, func(t *testing.T) {
			switch r.Outcome {
			case conformance.Fail:
				t.Error(r.Detail)
			case conformance.Skip:
				t.Skip(r.Detail)
			}
		})
	})
}

// BuiltIn is a plugin of this program, which make returns a new one of.
func BuiltIn(make func(vendor.Host) any) conformance.Subject {
	return conformance.Subject{Own: true, Open: func(_ context.Context, on vendor.Host, _ *slog.Logger) (conformance.Instance, error) {
		return inProgram{sdk.Dispatch(make(on), on)}, nil
	}}
}

type inProgram struct{ vendor.Invoker }

// Close implements conformance.Instance. There is nothing to end.
func (inProgram) Close() error { return nil }
