package hive

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/core/secret"
)

// tailLines is how many lines of a log go into an exit report.
const tailLines = 20

// watched is a child with what its watcher needs.
type watched struct {
	child   *process.Child
	spec    contract.WorkerSpawn
	exited  chan process.Exit // gets the exit at once
	settled chan bool         // gets whether the exit is to be reported, when the spawn is over
}

// watch waits for a child and tells the queens how it ended. When the hive stops first the child runs on, and its end is noticed
// by its silence.
func (h *Hive) watch(w watched) {
	exit, err := w.child.Wait(h.background)
	if err != nil {
		if h.background.Err() == nil {
			h.log.Error("cannot wait for a worker", "worker", w.spec.WorkerID, "error", err)
		}
		return
	}
	w.exited <- exit
	id := w.child.Identity()
	h.log.Info("worker ended", "worker", id.WorkerID, "pid", id.PID, "exit_code", exit.Code, "signal", exit.Signal, "oom", exit.OOM)
	if !<-w.settled {
		return
	}
	if err := h.removeTmp(id.WorkerID); err != nil {
		h.log.Warn("cannot remove a worker's temporary folder", "worker", id.WorkerID, "error", err)
	}
	h.report(w.spec.QueenURLs, contract.WorkerExit{
		WorkerID: id.WorkerID, Identity: id, ExitCode: exit.Code, Signal: exit.Signal, OOM: exit.OOM,
		LogTail: process.LogTail(filepath.Join(h.workerDir(id.WorkerID), logName), tailLines),
	})
}

// queens are the base URLs of all queens that this hive knows.
func (h *Hive) queens() []string {
	if h.opts.Queens == nil {
		return h.opts.QueenURLs
	}
	out := slices.Clone(h.opts.QueenURLs)
	for _, u := range h.opts.Queens() {
		if !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

// report posts an exit to every queen at once, with a bounded number of attempts each.
func (h *Hive) report(queens []string, exit contract.WorkerExit) {
	queens = slices.Concat(queens, h.queens())
	for i := range queens {
		queens[i] = strings.TrimRight(queens[i], "/")
	}
	slices.Sort(queens)
	var wg sync.WaitGroup
	for _, base := range slices.Compact(queens) {
		wg.Go(func() {
			c := client.New(client.Options{
				Base: base, Token: secret.ForHive(h.opts.ClusterKey, h.opts.NodeID), Timeout: 5 * time.Second, Dial: h.opts.Dial,
			})
			defer c.Close()
			err := run.Retry(h.background, run.Backoff{Attempts: 6, Min: 250 * time.Millisecond, Max: 5 * time.Second}, transient, func(ctx context.Context) error {
				return c.PostJSON(ctx, "/v1/worker-exits", exit, nil)
			})
			if err != nil && h.background.Err() == nil {
				h.log.Warn("cannot report a worker's end to a queen", "queen", base, "worker", exit.WorkerID, "error", err)
			}
		})
	}
	wg.Wait()
}

// transient reports whether the same report may be accepted later.
func transient(err error) bool {
	switch fault.KindOf(err) {
	case fault.Invalid, fault.NotFound, fault.Conflict, fault.Denied:
		return false
	}
	return true
}
