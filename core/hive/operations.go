package hive

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/process"
)

// dispatch turns the body of POST /v1/jobs into a job. What is wrong with the request is said here, before the job exists.
func (h *Hive) dispatch(op string, body json.RawMessage) (job.Func, error) {
	switch op {
	case contract.OpWorkerSpawn:
		return decoded(body, func(s contract.WorkerSpawn) error { return checkSpawn(h.patterns, s) }, h.spawn)
	case contract.OpWorkerDelete:
		return decoded(body, h.checkDelete, h.delete)
	case contract.OpWorkerLogs:
		return decoded(body, func(r contract.WorkerRef) error { return checkName(h.patterns, "worker_id", r.WorkerID) }, h.logs)
	case contract.OpProcessList:
		return func(context.Context, *job.Narrator) (any, error) { return process.List(h.opts.NodeID) }, nil
	case contract.OpDeviceList:
		return func(ctx context.Context, _ *job.Narrator) (any, error) {
			engines, err := h.opts.Artifacts.Engines()
			if err != nil {
				return nil, err
			}
			system, err := h.devices.newest(ctx, time.Second)
			if err != nil {
				return nil, err
			}
			return merged(system, engines), nil
		}, nil
	case contract.OpModelList:
		return func(context.Context, *job.Narrator) (any, error) { return listed(h.opts.Artifacts.Models()) }, nil
	case contract.OpWorkerInstalledList:
		return func(context.Context, *job.Narrator) (any, error) { return listed(h.opts.Artifacts.Engines()) }, nil
	case contract.OpModelGet:
		return decoded(body, checkArtifact, func(_ context.Context, _ *job.Narrator, r contract.ArtifactRef) (contract.Model, error) {
			return h.opts.Artifacts.Model(r.Reference)
		})
	case contract.OpModelSearch:
		return decoded(body, checkSearch, func(ctx context.Context, _ *job.Narrator, r contract.ModelSearch) (contract.ModelsFound, error) {
			return h.opts.Artifacts.SearchModels(ctx, r)
		})
	case contract.OpModelDownload:
		return decoded(body, checkArtifact, h.download)
	case contract.OpModelDelete:
		return decoded(body, checkArtifact, h.deleteModel)
	case contract.OpWorkerInstalledGet:
		return decoded(body, checkArtifact, func(_ context.Context, _ *job.Narrator, r contract.ArtifactRef) (contract.Engine, error) {
			return h.opts.Artifacts.Engine(r.Reference)
		})
	case contract.OpWorkerInstall:
		return decoded(body, checkArtifact, func(ctx context.Context, n *job.Narrator, r contract.ArtifactRef) (contract.Engine, error) {
			return h.install(ctx, n, r.Reference)
		})
	case contract.OpWorkerRemove:
		return decoded(body, checkArtifact, h.removeEngine)
	}
	return nil, fault.New(fault.Invalid, "unknown_operation", "A hive has no operation %q.", cut(op, 64)).WithParam("operation")
}

// decoded reads an operation's fields, checks them, and returns the job that runs do.
func decoded[In, Out any](body json.RawMessage, check func(In) error, do func(context.Context, *job.Narrator, In) (Out, error)) (job.Func, error) {
	var in In
	if err := json.Unmarshal(body, &in); err != nil {
		if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && te.Field != "" {
			return nil, fault.New(fault.Invalid, "invalid_value", "The field %q has the wrong type.", te.Field).WithParam(te.Field)
		}
		return nil, fault.New(fault.Invalid, "invalid_json", "The request body is not the JSON that this operation takes.")
	}
	if err := check(in); err != nil {
		return nil, err
	}
	return func(ctx context.Context, n *job.Narrator) (any, error) {
		out, err := do(ctx, n, in)
		if err != nil {
			return nil, err
		}
		return out, nil
	}, nil
}

// listed makes an empty list of none, which is [] in JSON.
func listed[T any](list []T, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	return append([]T{}, list...), nil
}

func checkSearch(r contract.ModelSearch) error {
	switch {
	case strings.TrimSpace(r.Query) == "" || len(r.Query) > contract.MaxSearchQuery || contract.HasHidden(r.Query):
		return invalid("query", "A search needs words, at most %d characters of them, without control characters.", contract.MaxSearchQuery)
	case contract.HasHidden(r.Vendor) || len(r.Vendor) > maxArg:
		return invalid("vendor", "The vendor %q of the search is not a name.", cut(r.Vendor, 64))
	case r.Limit < 0 || r.Limit > contract.MaxSearchResults:
		return invalid("limit", "A search gives 1 to %d results, and %d were asked for.", contract.MaxSearchResults, r.Limit)
	}
	return nil
}

func checkArtifact(r contract.ArtifactRef) error {
	if err := checkReference(r.Reference); err != nil {
		return err
	}
	return checkPeers(r.Peers)
}

func (h *Hive) checkDelete(op contract.WorkerDelete) error {
	switch {
	case op.Identity == nil:
		return invalid("identity", "A hive ends a worker only by its whole identity: worker_id, boot_id, pid and start_ticks are needed.")
	case op.WorkerID == "":
		return invalid("worker_id", "The worker_id of the worker to delete is missing.")
	case op.WorkerID != op.Identity.WorkerID:
		return invalid("identity", "The identity is of worker %q, and worker %q was to be deleted.", cut(op.Identity.WorkerID, 64), cut(op.WorkerID, 64))
	}
	return nil
}

// reporter narrates the progress of the store.
func reporter(n *job.Narrator) func(action, message string, p *contract.Progress) {
	return func(action, message string, p *contract.Progress) {
		if p == nil {
			n.Info(action, "%s", message)
			return
		}
		n.Progress(action, message, *p)
	}
}

func (h *Hive) download(ctx context.Context, n *job.Narrator, r contract.ArtifactRef) (contract.Model, error) {
	m, err := h.opts.Artifacts.PullModel(ctx, r.Reference, reporter(n), h.others(r.Peers)...)
	if err != nil {
		return m, err
	}
	n.Info("done", "The model %s is on this hive (%s).", m.ID, m.SizeBytes)
	h.log.Info("model fetched", "model", m.ID, "bytes", m.SizeBytes)
	return m, nil
}

// install chooses a build by what the system shows, not by what engines list: a build without GPU support would hide the GPU.
func (h *Hive) install(ctx context.Context, n *job.Narrator, ref string) (contract.Engine, error) {
	system, err := h.devices.newest(ctx, time.Second)
	if err != nil {
		return contract.Engine{}, err
	}
	e, err := h.opts.Artifacts.InstallEngine(ctx, ref, system, reporter(n))
	if err != nil {
		return e, err
	}
	n.Info("done", "The engine %s is installed for %s.", e.ID, e.Platform)
	h.log.Info("engine installed", "engine", e.ID)
	return e, nil
}

// deleteModel removes a model that no worker of this hive serves.
func (h *Hive) deleteModel(_ context.Context, n *job.Narrator, r contract.ArtifactRef) (contract.Model, error) {
	m, err := h.opts.Artifacts.Model(r.Reference)
	if err != nil {
		return m, err
	}
	if err := h.unused(func(e process.Entry) bool { return e.Model == m.ID }, "model_in_use", "model "+m.ID); err != nil {
		return m, err
	}
	if err := h.opts.Artifacts.RemoveModel(m.ID); err != nil {
		return m, err
	}
	n.Info("delete", "The model %s was deleted.", m.ID)
	h.log.Info("model deleted", "model", m.ID)
	return m, nil
}

// removeEngine removes an engine that no worker of this hive runs.
func (h *Hive) removeEngine(_ context.Context, n *job.Narrator, r contract.ArtifactRef) (contract.Engine, error) {
	e, err := h.opts.Artifacts.Engine(r.Reference)
	if err != nil {
		return e, err
	}
	dir := h.opts.Artifacts.EngineDir(e)
	if err := h.unused(func(p process.Entry) bool { return p.EngineDir == dir }, "engine_in_use", "engine "+e.ID); err != nil {
		return e, err
	}
	if err := h.opts.Artifacts.RemoveEngine(e.ID); err != nil {
		return e, err
	}
	n.Info("delete", "The engine %s was removed.", e.ID)
	h.log.Info("engine removed", "engine", e.ID)
	return e, nil
}

func (h *Hive) unused(uses func(process.Entry) bool, code, what string) error {
	running, err := process.Scan(h.opts.NodeID)
	if err != nil {
		return err
	}
	var ids []string
	for _, p := range running {
		if uses(p) {
			ids = append(ids, strconv.Quote(p.WorkerID))
		}
	}
	switch len(ids) {
	case 0:
		return nil
	case 1:
		return fault.New(fault.Conflict, code, "The %s is in use by worker %s; end it first with `apiary worker delete`.", what, ids[0])
	}
	slices.Sort(ids)
	return fault.New(fault.Conflict, code, "The %s is in use by %d workers, %s; end each of them first with `apiary worker delete`.", what, len(ids), strings.Join(ids, ", "))
}

const defaultLogLines = 100

// logs returns the last lines of a worker's log, also of a worker that has ended. It reads on in the rotated file when the log
// was just cut.
func (h *Hive) logs(_ context.Context, _ *job.Narrator, r contract.WorkerRef) (contract.WorkerLogLines, error) {
	n := defaultLogLines
	if r.Lines > 0 {
		n = min(r.Lines, maxLogLines)
	}
	path := filepath.Join(h.workerDir(r.WorkerID), logName)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return contract.WorkerLogLines{}, fault.New(fault.NotFound, "worker_not_found", "This hive has no log of a worker %q; `apiary worker list` shows the workers.", r.WorkerID)
	}
	lines := process.LogTail(path, n)
	if len(lines) < n {
		lines = append(process.LogTail(path+".1", n-len(lines)), lines...)
	}
	return contract.WorkerLogLines{WorkerID: r.WorkerID, Lines: lines}, nil
}
