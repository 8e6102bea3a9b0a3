package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// Launch is how an agent was started: what it takes to start another one in the same way.
type Launch struct {
	Program Program           `json:"program"`
	Args    []string          `json:"args"`            // without the program's name
	Env     map[string]string `json:"env,omitempty"`   // the variables of Apiary's own that were set, with absolute paths; none is a secret
	Needs   []string          `json:"needs,omitempty"` // names of the other variables that it makes use of: their values may be secrets
	Unit    string            `json:"unit,omitempty"`  // the systemd unit whose main process it is
	User    bool              `json:"user,omitempty"`  // the unit is one of the user's systemd
	// Foreground says that it did not log to agent.log. Args are those of one that does.
	Foreground bool `json:"foreground,omitempty"`
}

// Running reports whether the process of r runs now.
func (r RunFile) Running() bool { return alive(r.Process) }

// Program identifies an executable file as it was at some time.
type Program struct {
	Path     string    `json:"path"` // absolute
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
}

// LookAt identifies the executable at a path.
func LookAt(path string) (Program, error) {
	st, err := os.Stat(path)
	if err != nil {
		return Program{}, err
	}
	return Program{Path: path, Size: st.Size(), Modified: st.ModTime().UTC()}, nil
}

// Same reports whether both are the same file, or a copy that kept its time.
func (p Program) Same(o Program) bool { return p.Size == o.Size && p.Modified.Equal(o.Modified) }

// Unchanged reports whether the file at p's path is still what p identifies.
func (p Program) Unchanged() bool {
	now, err := LookAt(p.Path)
	return err == nil && p.Same(now)
}

// OwnUnit says of which systemd unit this process is the main one. unit is empty where it is of none.
func OwnUnit() (unit string, user bool) {
	// A process that a service started inherits the variable, with another process's number.
	if os.Getenv("SYSTEMD_EXEC_PID") != strconv.Itoa(os.Getpid()) {
		return "", false
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", false
	}
	return unitOf(string(b))
}

// unitOf reads the service out of /proc/self/cgroup.
func unitOf(groups string) (unit string, user bool) {
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) < 3 || f[1] != "" && f[1] != "name=systemd" {
			continue
		}
		if name := path.Base(f[2]); strings.HasSuffix(name, ".service") && !strings.HasPrefix(name, "user@") {
			return name, strings.Contains(f[2], "/user@")
		}
	}
	return "", false
}

// Upgrade is run/upgrade.json: an agent is being replaced by another program. It is there from before the agent is stopped until
// the next one is ready, so that a command which was killed in between can be given again.
type Upgrade struct {
	Before  RunFile   `json:"before"`
	Program string    `json:"program"` // of the new agent
	BeganAt time.Time `json:"began_at"`
}

const upgradeFile = "upgrade.json"

// CodeUpgrading is the code of the conflict that LockUpgrade returns while another command upgrades the agent.
const CodeUpgrading = "upgrade_running"

// LockUpgrade makes sure that no other command upgrades the agent of a data folder, until the file is closed or the process ends.
func LockUpgrade(home string) (*os.File, error) {
	if err := folder.Check(home, "run"); err != nil {
		return nil, err
	}
	f, err := folder.OpenFile(runPath(home, "upgrade.lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of upgrades: %w", folder.Full(err, home, "the lock of upgrades", 0))
	}
	if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fault.New(fault.Conflict, CodeUpgrading, "Another command is upgrading the agent of %s; wait until it has ended, and give this one again if it is still wanted.", home)
	}
	return nil, fmt.Errorf("take the lock of upgrades: %w", err)
}

// ReadUpgrade reads the upgrade that is going on in a data folder, or was cut off. fs.ErrNotExist: there is none.
func ReadUpgrade(home string) (Upgrade, error) {
	var u Upgrade
	b, err := folder.ReadFile(runPath(home, upgradeFile), maxRecord)
	if err != nil {
		return u, fmt.Errorf("read the record of the upgrade: %w", err)
	}
	if err := json.Unmarshal(b, &u); err != nil {
		return u, fmt.Errorf("read %s: %w", runPath(home, upgradeFile), err)
	}
	return u, nil
}

// Begin publishes u. The caller holds the lock of upgrades.
func (u Upgrade) Begin(home string) error { return writeJSON(runPath(home, upgradeFile), u) }

// EndUpgrade says that an upgrade is over. keep leaves the program that an agent has put at KeptProgram: it is in use.
func EndUpgrade(home string, keep bool) error {
	var errs []error
	files := []string{runPath(home, upgradeFile)}
	if !keep {
		files = append(files, KeptProgram(home))
	}
	for _, f := range files {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// KeptProgram is where an agent that is replaced leaves a copy of its program when the file it was started from has been replaced:
// there may be a need to go back to it.
func KeptProgram(home string) string { return runPath(home, "apiary-before") }

// keepProgram leaves a copy of this process's program for the upgrade that ends it, where there is none any more.
func keepProgram(home string, l *Launch) error {
	if l == nil || l.Program.Unchanged() {
		return nil
	}
	if _, err := ReadUpgrade(home); err != nil {
		return nil // it ends for another reason
	}
	kept := KeptProgram(home)
	if l.Program.Path == kept {
		return nil
	}
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("keep this program for the way back: %w", err)
	}
	defer func() { _ = from.Close() }()
	to, err := os.CreateTemp(filepath.Dir(kept), ".tmp-*")
	if err != nil {
		return fmt.Errorf("keep this program for the way back: %w", folder.Full(err, home, "the program", 0))
	}
	defer func() { _ = os.Remove(to.Name()) }()
	n, err := io.Copy(to, from)
	if err = errors.Join(err, to.Chmod(0o700), to.Close()); err == nil {
		err = os.Rename(to.Name(), kept)
	}
	if err != nil {
		return fmt.Errorf("keep this program for the way back: %w", folder.Full(err, home, "the program", n))
	}
	return nil
}
