// Package process handles one operating-system process at a time: start it in a session of its own, say who it is, find
// it again in the process table, tell why it ended, end it and all its descendants. It knows a worker's arguments only as
// far as they identify it, keeps no record, and decides nothing.
//
// Linux is supported; elsewhere the package compiles and says that it cannot.
package process

import (
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/core/secret"
)

// ExitPortTaken is the exit code of a worker that found its port in use. The hive then tries another port.
const ExitPortTaken = 98

// SecretFD is the descriptor on which a child finds its secret: a pipe to be read to its end, once.
const SecretFD = 3

// Spec says what to start.
type Spec struct {
	// ExecChild is the argument vector of the launcher, {"/path/apiary", "exec-child"}, which gives up privileges and then
	// becomes Path, so that pid and start time stay. Empty: Path is executed directly, with the privileges of the caller.
	ExecChild []string
	Path      string   // absolute
	Args      []string // without the program's name
	Env       []string // the whole environment, NAME=value
	Dir       string   // working folder; must exist
	LogPath   string   // standard output and error are appended there; its folder must exist
	Secret    secret.Secret
	Sandbox   sandbox.Policy // what it may use; the launcher puts it in force
}

// Exit says how a process ended.
type Exit struct {
	Code   int  // -1 when a signal ended it
	Signal int  // 0 when it exited by itself
	OOM    bool // ended by SIGKILL while the kernel's count of out-of-memory kills in its control group rose
}

// Entry is a worker's process in the process table, with what contract.Process does not carry.
type Entry struct {
	contract.Process
	Generation int64
	EngineDir  string
}

// Outcomes of Kill.
const (
	OutcomeTerminated = "terminated" // it ended within the first bound
	OutcomeKilled     = "killed"     // it had to be killed
	OutcomeGone       = "gone"       // there was no such process
)

// CodeUnkillable is the code of the fault that Kill returns for a process that outlived SIGKILL.
const CodeUnkillable = "unkillable"

// CodeIdentityMismatch is the code of the conflict that Verify and Kill return for a process that is not the one named.
const CodeIdentityMismatch = "identity_mismatch"

// KillOptions bounds a Kill.
type KillOptions struct {
	Term time.Duration // from SIGTERM to SIGKILL; 0: 10 s
	Kill time.Duration // from SIGKILL to giving up; 0: 5 s
	// Send replaces the sending of signals, for tests of processes that cannot be ended. nil: real signals.
	Send func(pid int, sig syscall.Signal) error
}

// List is Scan without what the wire does not carry: the workers of the hive that run on this machine.
func List(hiveID string) ([]contract.Process, error) {
	entries, err := Scan(hiveID)
	if err != nil {
		return nil, err
	}
	out := make([]contract.Process, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Process)
	}
	return out, nil
}
