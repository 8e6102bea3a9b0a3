package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// prepared is a model that a worker serves.
type prepared struct {
	name string // to use in requests
	chat bool
}

// prepare fetches the model and the engine and starts a worker, as far as they are missing, and tells about it.
func (c *conn) prepare(ctx context.Context, a *app, s *story, arg string) (prepared, error) {
	ref, err := reference(arg)
	if err != nil {
		return prepared{}, err
	}
	p := prepared{name: ref}
	view, w, err := c.find(ctx, ref)
	if err != nil {
		return p, a.outdated(c.target, contract.WorkerSpawn{Model: ref}, err)
	}
	if w == nil || !serving(*w) {
		unlock, err := c.oneAtATime(ctx, s)
		if err != nil {
			return p, err
		}
		defer unlock()
		// Another command may have prepared it meanwhile.
		if view, w, err = c.find(ctx, ref); err != nil {
			return p, err
		}
	}
	if w != nil && serving(*w) {
		p.chat = slices.Contains(w.Capabilities, contract.CapabilityChat)
		return p, nil
	}
	if w == nil {
		if err := c.fetchParts(ctx, a, s, &view); err != nil {
			return p, err
		}
	}
	began := time.Now()
	s.step("model  ")
	ready, existing, err := c.serve(ctx, s, view, w)
	if err != nil {
		return p, err
	}
	p.chat = slices.Contains(ready.Capabilities, contract.CapabilityChat)
	if existing {
		s.done("%s · was running already on %s", ref, ready.Device)
	} else {
		s.done("%s · ready in %.1f s on %s", ref, time.Since(began).Seconds(), ready.Device)
	}
	return p, nil
}

// find looks a name up at the queen: the model it stands for, which has no id while it is not fetched, and a worker of it that
// serves, or else one that is starting. A bare name that stands for nothing is fault.NotFound.
func (c *conn) find(ctx context.Context, ref string) (contract.ModelView, *contract.WorkerView, error) {
	view := contract.ModelView{Source: ref}
	st, err := client.Run[contract.Status](ctx, c.Client, op{Operation: contract.OpStatus}, nil)
	if err != nil {
		return view, nil, err
	}
	if i := slices.IndexFunc(st.Models, func(m contract.ModelView) bool {
		return m.ID == ref || slices.Contains(m.Names, ref) || m.Source == ref
	}); i >= 0 {
		view = st.Models[i]
	}
	if view.ID == "" {
		if !contract.IsReference(view.Source) {
			return view, nil, fault.New(fault.NotFound, "model_not_found",
				"The model %q is neither in the configuration nor in the catalog; `apiary model list` shows the names, and hf:ORG/REPO or file:PATH is one that is not there yet.", ref)
		}
		return view, nil, nil
	}
	of := func(want func(contract.WorkerView) bool) *contract.WorkerView {
		if i := slices.IndexFunc(st.Workers, func(w contract.WorkerView) bool { return w.ModelID == view.ID && want(w) }); i >= 0 {
			return &st.Workers[i]
		}
		return nil
	}
	if w := of(serving); w != nil {
		return view, w, nil
	}
	return view, of(starting), nil
}

// fetchParts brings the model and the engine.
func (c *conn) fetchParts(ctx context.Context, a *app, s *story, view *contract.ModelView) error {
	if strings.HasPrefix(view.Source, "echo:") {
		view.ID = view.Source
		return nil
	}
	s.step("model  ")
	m, err := client.Run[contract.Model](ctx, c.Client, contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: view.Source}, s.narrate)
	if err != nil {
		return err
	}
	view.ID = m.ID
	return c.prepareEngine(ctx, a, s)
}

// serve waits for the worker that is starting, or starts one. existing says that one was found that had been started before.
func (c *conn) serve(ctx context.Context, s *story, view contract.ModelView, w *contract.WorkerView) (ready contract.WorkerView, existing bool, err error) {
	for w != nil {
		now, err := client.Run[contract.WorkerView](ctx, c.Client, contract.WorkerRef{Operation: contract.OpWorkerGet, WorkerID: w.ID}, nil)
		switch {
		case fault.KindOf(err) == fault.NotFound:
			w = nil // it ended: the next one's story says why
			continue
		case err != nil:
			return now, false, err
		case serving(now):
			return now, false, nil
		case !starting(now):
			w = nil
			continue
		}
		s.narrate(contract.Narration{Action: "load", Message: "loading the model", Progress: &contract.Progress{Done: uint64(100 * now.LoadProgress), Total: 100, Unit: "percent"}})
		select {
		case <-ctx.Done():
			return now, false, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	spawned, err := client.Run[contract.WorkerSpawned](ctx, c.Client, contract.WorkerSpawn{Operation: contract.OpWorkerSpawn, Model: view.ID, Wait: true}, s.narrate)
	if err != nil {
		return contract.WorkerView{}, false, err
	}
	ready, err = client.Run[contract.WorkerView](ctx, c.Client, contract.WorkerRef{Operation: contract.OpWorkerGet, WorkerID: spawned.WorkerID}, nil)
	return ready, spawned.Existing, err
}

// oneAtATime makes commands of one data folder prepare models one after the other: two that want the same one would start a
// worker each. The lock ends with the process that holds it.
func (c *conn) oneAtATime(ctx context.Context, s *story) (unlock func(), err error) {
	f, err := folder.OpenFile(filepath.Join(c.home, "run", "prepare.lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil // the agent is another machine's
	}
	if err != nil {
		return nil, fmt.Errorf("take turns with other commands: %w", err)
	}
	for waited := false; ; waited = true {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			_ = f.Close()
			return nil, fmt.Errorf("take turns with other commands: %w", err)
		}
		if !waited {
			s.step("model  ")
			s.narrate(contract.Narration{Action: "wait", Message: "waiting for another command that prepares a model"})
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func starting(w contract.WorkerView) bool {
	return w.Liveness == contract.LivenessAlive && w.Condition == "" && w.Status == contract.StatusStarting
}

func serving(w contract.WorkerView) bool {
	return w.Liveness == contract.LivenessAlive && w.Condition == "" && (w.Status == contract.StatusReady || w.Status == contract.StatusBusy)
}

// prepareEngine installs the engine of the configuration when the queen's hives have none of that reference, so that its
// progress is a step of its own. A configuration without one leaves it to the agent, which may have another.
func (c *conn) prepareEngine(ctx context.Context, a *app, s *story) error {
	ref, err := a.defaultEngine()
	if err != nil {
		if fault.KindOf(err) == fault.Invalid {
			return nil
		}
		return err
	}
	engines, err := client.Run[[]contract.Engine](ctx, c.Client, contract.ArtifactRef{Operation: contract.OpWorkerInstalledList}, nil)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(engines, func(e contract.Engine) bool { return e.ID == ref || slices.Contains(e.References, ref) }) {
		return nil
	}
	s.clear()
	s.step("engine ")
	e, err := client.Run[contract.Engine](ctx, c.Client, contract.ArtifactRef{Operation: contract.OpWorkerInstall, Reference: ref}, s.narrate)
	if err != nil {
		return err
	}
	s.done("%s", engineLine(s, e, false))
	return nil
}
