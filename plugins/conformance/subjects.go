package conformance

import (
	"context"
	"log/slog"

	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Program is a plugin that is a process: a program of its own, or the process of a module. The host and the log of spec are replaced.
func Program(spec process.Spec) Subject {
	return Subject{Open: func(ctx context.Context, on vendor.Host, log *slog.Logger) (Instance, error) {
		spec := spec
		spec.Host, spec.Log = sdk.HostDispatch(on), log
		p, err := process.Start(ctx, spec)
		if err != nil {
			return nil, err
		}
		return p, nil
	}}
}
