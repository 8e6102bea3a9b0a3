package hive

import (
	"context"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/process"
)

// forcedTerm is how long a worker that is ended by force has from SIGTERM to SIGKILL: enough to say goodbye to its queens.
const forcedTerm = 500 * time.Millisecond

// delete ends the worker that the identity names, with its whole process group.
func (h *Hive) delete(ctx context.Context, n *job.Narrator, op contract.WorkerDelete) (contract.WorkerDeleted, error) {
	n.Info("kill", "Worker %s (process %d) is asked to end.", op.WorkerID, op.Identity.PID)
	// The device is needed if it cannot be killed, and afterwards nothing tells it.
	running, err := process.Scan(h.opts.NodeID)
	if err != nil {
		return contract.WorkerDeleted{}, err
	}
	bounds := h.opts.Kill
	if op.Force && (bounds.Term == 0 || bounds.Term > forcedTerm) {
		bounds.Term = forcedTerm
	}
	outcome, err := process.Kill(ctx, *op.Identity, bounds)
	if fault.KindOf(err) == fault.Unavailable && fault.As(err).Code == process.CodeUnkillable {
		for _, e := range running {
			if e.Identity == *op.Identity {
				h.fence(e.Device, e.Identity)
			}
		}
		h.log.Error("worker cannot be killed, its device is fenced", "worker", op.WorkerID, "pid", op.Identity.PID)
	}
	if err != nil {
		return contract.WorkerDeleted{}, err
	}
	switch outcome {
	case process.OutcomeGone:
		n.Info("kill", "Worker %s was not running any more.", op.WorkerID)
	case process.OutcomeKilled:
		n.Warn("kill", "Worker %s did not end when asked and was killed.", op.WorkerID)
	default:
		n.Info("kill", "Worker %s has ended.", op.WorkerID)
	}
	h.log.Info("worker deleted", "worker", op.WorkerID, "pid", op.Identity.PID, "outcome", outcome)
	return contract.WorkerDeleted{WorkerID: op.WorkerID, Outcome: outcome}, nil
}

// fence keeps new workers off the devices of one that cannot be killed.
func (h *Hive) fence(devices string, id contract.Identity) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for d := range strings.SplitSeq(devices, ",") {
		h.fenced[d] = id
	}
}

// checkFence refuses a fenced device, until the process that holds it is gone after all.
func (h *Hive) checkFence(devices []string) error {
	for _, d := range devices {
		h.mu.Lock()
		id, fenced := h.fenced[d]
		h.mu.Unlock()
		if !fenced {
			continue
		}
		if err := process.Verify(id); err != nil {
			h.mu.Lock()
			if h.fenced[d] == id {
				delete(h.fenced, d)
			}
			h.mu.Unlock()
			continue
		}
		return fault.New(fault.Conflict, "device_fenced",
			"The device %s is held by worker %q (process %d), which cannot be killed; use another device, or restart the machine.", d, id.WorkerID, id.PID)
	}
	return nil
}
