package process

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// pidfdSignalProcessGroup is PIDFD_SIGNAL_PROCESS_GROUP of Linux 6.9: the signal goes to the group that the process leads,
// also after the process itself was collected.
const pidfdSignalProcessGroup = 1 << 2

func (o KillOptions) withDefaults() KillOptions {
	if o.Term <= 0 {
		o.Term = 10 * time.Second
	}
	if o.Kill <= 0 {
		o.Kill = 5 * time.Second
	}
	return o
}

// target is a process whose identity was verified while its descriptor was open, so that the descriptor means that process
// for ever, whatever becomes of its pid.
type target struct {
	id     contract.Identity
	pidfd  int
	leader bool // of its process group
	send   func(pid int, sig syscall.Signal) error
	seen   map[int]uint64 // start times of members of its group, by pid
}

// Kill ends the process that id names and its whole process group: SIGTERM, once more after a quarter of
// opts.Term, after opts.Term SIGKILL, and after opts.Kill it
// gives up with an Unavailable of CodeUnkillable. The outcome is OutcomeTerminated, OutcomeKilled or OutcomeGone. When another
// process has the pid nothing is signalled and the error is a Conflict. A cancelled ctx ends the wait, not the process.
func Kill(ctx context.Context, id contract.Identity, opts KillOptions) (string, error) {
	opts = opts.withDefaults()
	fd, err := unix.PidfdOpen(id.PID, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) {
		return "", fmt.Errorf("open process %d: %w", id.PID, err)
	}
	if err == nil {
		defer func() { _ = unix.Close(fd) }()
	}
	st, verr := verify(id) // after the descriptor was opened: it cannot mean a later process
	switch {
	case errors.Is(verr, errGone):
		return OutcomeGone, nil
	case verr != nil:
		return "", verr
	case err != nil:
		return OutcomeGone, nil
	}
	// The process that verify saw may have taken the pid after the descriptor's ended: the descriptor's must be alive now.
	if err := unix.PidfdSendSignal(fd, 0, nil, 0); errors.Is(err, unix.ESRCH) {
		return OutcomeGone, nil
	}
	t := &target{id: id, pidfd: fd, leader: st.pgrp == id.PID, send: opts.Send, seen: map[int]uint64{}}
	t.members()
	for _, step := range []struct {
		sig     syscall.Signal
		bound   time.Duration
		outcome string
	}{
		// The second one makes a worker that still finishes requests tell their clients, while there is time.
		{unix.SIGTERM, opts.Term / 4, OutcomeTerminated}, {unix.SIGTERM, opts.Term - opts.Term/4, OutcomeTerminated},
		{unix.SIGKILL, opts.Kill, OutcomeKilled},
	} {
		if err := t.signal(step.sig); err != nil {
			return "", fmt.Errorf("signal worker %s: %w", id.WorkerID, err)
		}
		ended, err := t.await(ctx, step.bound)
		if err != nil {
			return "", err
		}
		if ended {
			return step.outcome, nil
		}
	}
	return "", fault.New(fault.Unavailable, CodeUnkillable,
		"Worker %q (process %d) is still there %s after SIGKILL, probably stuck in its device driver; restart the machine to free the device.",
		id.WorkerID, id.PID, opts.Kill)
}

// signal sends sig to the group, or to the process alone when it leads none.
func (t *target) signal(sig syscall.Signal) error {
	if t.send != nil {
		return t.send(t.id.PID, sig)
	}
	flags := 0
	if t.leader {
		flags = pidfdSignalProcessGroup
	}
	err := unix.PidfdSendSignal(t.pidfd, sig, nil, flags)
	if t.leader && errors.Is(err, unix.EINVAL) {
		err = t.signalGroup(sig)
	}
	if errors.Is(err, unix.ESRCH) {
		return nil // ended meanwhile
	}
	return err
}

// signalGroup serves kernels before 6.9. The group's number can only mean another group after all members are gone, so one
// member that was seen before must be there still.
func (t *target) signalGroup(sig syscall.Signal) error {
	before := t.seen
	for pid, start := range t.members() {
		if before[pid] == start {
			return unix.Kill(-t.id.PID, sig)
		}
	}
	return unix.ESRCH
}

// members returns the processes of the group that run, by pid with their start times, and remembers them.
func (t *target) members() map[int]uint64 {
	out := map[int]uint64{}
	all, err := pids()
	if err != nil {
		return t.seen
	}
	for _, pid := range all {
		st, err := readStat(pid)
		if err != nil || st.dead() {
			continue
		}
		if pid == t.id.PID && st.start == t.id.StartTicks || t.leader && st.pgrp == t.id.PID {
			out[pid] = st.start
		}
	}
	t.seen = out
	return out
}

// await waits until no member of the group runs any more.
func (t *target) await(ctx context.Context, bound time.Duration) (bool, error) {
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		if len(t.members()) == 0 {
			return true, nil
		}
		poll := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			poll.Stop()
			return false, ctx.Err()
		case <-deadline.C:
			poll.Stop()
			return len(t.members()) == 0, nil
		case <-poll.C:
		}
	}
}
