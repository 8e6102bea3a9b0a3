package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// BootID returns the kernel's random id of this boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// Self returns the identity of the calling process as worker workerID.
func Self(workerID string) (contract.Identity, error) { return identify(workerID, os.Getpid()) }

func identify(workerID string, pid int) (contract.Identity, error) {
	boot, err := BootID()
	if err != nil {
		return contract.Identity{}, err
	}
	st, err := readStat(pid)
	if err != nil {
		return contract.Identity{}, fmt.Errorf("identify process %d: %w", pid, err)
	}
	return contract.Identity{WorkerID: workerID, BootID: boot, PID: pid, StartTicks: st.start}, nil
}

// Harden keeps other users, and memory dumps, away from the calling process: it sets dumpable to 0 and RLIMIT_CORE to 0.
// The first does not survive exec, so each of our processes calls it.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process undumpable: %w", err)
	}
	return noCore()
}

func noCore() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch core dumps off: %w", err)
	}
	return nil
}

// stat is what /proc/PID/stat says of a process.
type stat struct {
	state byte
	pgrp  int
	flags uint64
	start uint64 // clock ticks after boot
}

// dead reports whether nothing of the process runs any more: it only waits to be collected.
func (s stat) dead() bool { return s.state == 'Z' || s.state == 'X' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

// parseStat reads the fields after the command name, which is in parentheses and may hold anything, parentheses included.
func parseStat(b []byte) (stat, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, errors.New("malformed process status")
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 || len(f[0]) != 1 {
		return stat{}, errors.New("malformed process status")
	}
	pgrp, err := strconv.Atoi(f[2])
	flags, err2 := strconv.ParseUint(f[6], 10, 64)
	start, err3 := strconv.ParseUint(f[19], 10, 64)
	if err = errors.Join(err, err2, err3); err != nil {
		return stat{}, fmt.Errorf("malformed process status: %w", err)
	}
	return stat{state: f[0][0], pgrp: pgrp, flags: flags, start: start}, nil
}

// readArgs returns a process's argument vector; it is empty for a kernel thread and for a process that has ended.
func readArgs(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(b) == 0 {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

// flagValue returns the value of the first --name in args, written "--name value" or "--name=value". Ours come first, so a
// later one of the same name is somebody else's.
func flagValue(args []string, name string) string {
	for i, a := range args {
		if a == name && i+1 < len(args) {
			return args[i+1]
		}
		if v, ok := strings.CutPrefix(a, name+"="); ok {
			return v
		}
	}
	return ""
}

// sameUser reports whether a process runs as our user. The owner of its /proc folder does not say: a process that is not
// dumpable shows as root's.
func sameUser(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			f := strings.Fields(rest)
			return len(f) == 4 && f[1] == strconv.Itoa(os.Geteuid())
		}
	}
	return false
}

// Protection says what the kernel holds the process pid to. The kernel does not tell which processes
// Landlock confines, so landlock is the version with which it was started.
func Protection(pid, landlock int) contract.Protection {
	p := contract.Protection{Landlock: landlock}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return p // it has just ended
	}
	for line := range strings.Lines(string(b)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch strings.TrimSpace(name) {
		case "NoNewPrivs":
			p.NoNewPrivs = strings.TrimSpace(value) == "1"
		case "Seccomp":
			p.Seccomp = strings.TrimSpace(value) != "0"
		}
	}
	return p
}

func pids() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("read the process table: %w", err)
	}
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Scan returns the worker processes of our user that carry a --worker-id and --hive-id hiveID, in order of pid. Only leaders
// of a process group count: a fork of a worker has its arguments until it executes something else. A process that ended
// and was not collected has no arguments any more and is not listed.
func Scan(hiveID string) ([]Entry, error) {
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	all, err := pids()
	if err != nil {
		return nil, err
	}
	out := []Entry{}
	for _, pid := range all {
		args, err := readArgs(pid)
		if err != nil || flagValue(args, "--worker-id") == "" || flagValue(args, "--hive-id") != hiveID || !sameUser(pid) {
			continue // gone meanwhile, or not ours
		}
		st, err := readStat(pid)
		if err != nil || st.pgrp != pid {
			continue
		}
		port, _ := strconv.Atoi(flagValue(args, "--port"))
		generation, _ := strconv.ParseInt(flagValue(args, "--generation"), 10, 64)
		landlock, _ := strconv.Atoi(flagValue(args, "--landlock"))
		out = append(out, Entry{Generation: generation, EngineDir: flagValue(args, "--engine-dir"), Process: contract.Process{
			Identity: contract.Identity{WorkerID: flagValue(args, "--worker-id"), BootID: boot, PID: pid, StartTicks: st.start},
			HiveID:   hiveID,
			SpawnKey: flagValue(args, "--spawn-key"),
			Model:    flagValue(args, "--model"),
			Device:   flagValue(args, "--device"),
			Port:     port,
			Zombie:   st.dead(),

			Protection: Protection(pid, landlock),
		}})
	}
	return out, nil
}

// errGone says that there is no process with the pid, or only the remains of the one named.
var errGone = errors.New("no such process")

// Verify reports whether id names a process that runs now. It returns a NotFound when no process has the pid or the one
// that had it has ended, and a Conflict (CodeIdentityMismatch) when another one has it.
func Verify(id contract.Identity) error {
	_, err := verify(id)
	if errors.Is(err, errGone) {
		return fault.New(fault.NotFound, "process_not_found", "Worker %q is not running any more: there is no process %d.", id.WorkerID, id.PID)
	}
	return err
}

func verify(id contract.Identity) (stat, error) {
	mismatch := func(why string) (stat, error) {
		return stat{}, fault.New(fault.Conflict, CodeIdentityMismatch,
			"Process %d is not the worker %q that was meant (%s), so nothing was signalled; list the processes of the hive again.", id.PID, id.WorkerID, why)
	}
	if id.PID <= 1 || id.WorkerID == "" || id.BootID == "" || id.StartTicks == 0 {
		return stat{}, fault.New(fault.Invalid, "invalid_identity",
			"An identity needs worker_id, boot_id, start_ticks and a pid above 1; take it from the worker's information or the hive's process list.")
	}
	st, err := readStat(id.PID)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, errGone
	}
	if err != nil {
		return stat{}, fmt.Errorf("look at process %d: %w", id.PID, err)
	}
	boot, err := BootID()
	switch {
	case err != nil:
		return stat{}, err
	case boot != id.BootID:
		return mismatch("the machine was started again since")
	case st.start != id.StartTicks:
		return mismatch("it was started at another time")
	case st.dead():
		return st, errGone
	}
	args, err := readArgs(id.PID)
	if err != nil || len(args) == 0 {
		// It ended between the two reads, or is ending.
		if st, err2 := readStat(id.PID); err2 != nil || st.dead() || st.start != id.StartTicks {
			return st, errGone
		}
		return mismatch("it has no arguments")
	}
	if flagValue(args, "--worker-id") != id.WorkerID {
		return mismatch("it was not started for that worker")
	}
	return st, nil
}
