package queen

import (
	"hash/fnv"
	"io"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/placement"
)

// wish is a deployment that was read.
type wish struct {
	contract.Deployment
	judge *config.Judge
	spec  uint32 // identifies what its workers are started with
}

func newWish(d contract.Deployment) (*wish, error) {
	j, err := config.NewJudge(d)
	if err != nil {
		return nil, err
	}
	h := fnv.New32a()
	_, _ = io.WriteString(h, digestOf(struct {
		Source         string
		Worker         contract.WorkerKind
		Context, Slots int
		Threads        int
		Env            map[string]string
		Args           []string
	}{d.Source, d.Worker, d.Context, d.Slots, d.Threads, d.Env, d.Args}))
	return &wish{Deployment: d, judge: j, spec: h.Sum32()}, nil
}

// The generation of a worker that a deployment has carries what it was started with in its lower bits, so that any queen can tell
// from its beats whether it is what the deployment says now. The upper bits count.
const specBits = 32

func wireGeneration(generation int64, spec uint32) int64 { return generation<<specBits | int64(spec) }

// readGeneration takes a generation apart. spec is empty for one that no plan gave.
func readGeneration(wire int64) (generation int64, spec string) {
	if wire < 1<<specBits {
		return wire, ""
	}
	return wire >> specBits, specText(uint32(wire)) //nolint:gosec // the lower bits
}

func specText(spec uint32) string { return strconv.FormatUint(uint64(spec), 16) }

// demandPrefix begins the spawn keys of workers that a request for their model started. No deployment and no model has such a name.
const demandPrefix = "demand:"

// replicaOf says of which deployment a spawn key is a replica. Workers that requests started are of a deployment that has the name of
// their model, onDemand; the name is empty for workers that a person started.
func replicaOf(key string) (deployment string, replica int, onDemand bool) {
	name, n, ok := placement.ParseKey(key)
	if !ok {
		return "", 0, false
	}
	if model, ok := strings.CutPrefix(name, demandPrefix); ok {
		return model, n, true
	}
	if strings.Contains(name, ":") { // a person's worker is keyed by its model
		return "", 0, false
	}
	return name, n, false
}
