package hive

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/sandbox"
)

// program is what a worker runs: its executable, the files of its model, and the folder of its engine, "" for none.
type program struct {
	path, engine string
	model        []string
}

// confinement is what the worker of a spawn may use: it reads its program, engine and model and the system's libraries, uses the
// graphics devices where it runs on one, changes only its own folder, and listens at its port alone. Where it may connect to is not
// limited: Landlock knows ports and no addresses, and a queen that joins later may have any.
func (h *Hive) confinement(spec contract.WorkerSpawn, p program, port int) (sandbox.Policy, error) {
	policy := sandbox.Policy{
		Read:    append(sandbox.System(h.opts.Home), p.path),
		Write:   []string{h.workerDir(spec.WorkerID)},
		Devices: sandbox.Plain(),
		Bind:    []uint16{uint16(port)},
	}
	for _, at := range slices.Concat(p.model, []string{p.engine}) {
		if at == "" {
			continue
		}
		found, err := sandbox.Followed(at)
		if err != nil {
			return policy, fmt.Errorf("look for what worker %s reads: %w", spec.WorkerID, err)
		}
		policy.Read = append(policy.Read, found...)
	}
	for _, dir := range filepath.SplitList(spec.Env["LD_LIBRARY_PATH"]) {
		policy.Read = append(policy.Read, sandbox.Without(dir, h.opts.Home)...)
	}
	if slices.ContainsFunc(spec.Devices, func(d string) bool { return !strings.HasPrefix(d, "cpu") }) {
		policy.Read = append(policy.Read, sandbox.Graphics(h.opts.Home)...)
		policy.Devices = append(policy.Devices, sandbox.GPUs()...)
	}
	return h.support.With(policy), nil
}

// modelFiles returns what a worker reads of a model that it is given as path: files where they lie, or a folder of links.
func (h *Hive) modelFiles(m contract.Model, path string) []string {
	out := []string{}
	if rel, err := filepath.Rel(filepath.Join(h.opts.Home, "views"), path); err == nil && filepath.IsLocal(rel) {
		view, _, _ := strings.Cut(rel, string(filepath.Separator))
		out = append(out, filepath.Join(h.opts.Home, "views", view))
	} else {
		out = append(out, path)
	}
	for _, f := range m.Files {
		if f.InPlace != nil && f.InPlace.Path != path {
			out = append(out, f.InPlace.Path)
		}
	}
	return out
}

// protection is what protects from the workers and plugins of this hive.
func (h *Hive) protection() *contract.Protection {
	return &contract.Protection{NoNewPrivs: true, Landlock: h.support.ABI, Reason: h.support.Why}
}
