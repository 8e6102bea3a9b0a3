package agent

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// RunFile is run/agent.json: where the agent of a data folder listens and which process it is. It is there while the agent
// runs, and after one that was killed.
type RunFile struct {
	NodeID    string            `json:"node_id"`
	Process   contract.Identity `json:"process"` // without a worker id
	Roles     []string          `json:"roles"`
	Queen     string            `json:"queen,omitempty"` // base URL
	Hive      string            `json:"hive,omitempty"`  // base URL
	Version   string            `json:"version"`
	StartedAt time.Time         `json:"started_at"`
	Launch    *Launch           `json:"launch,omitempty"` // nil: of an agent that did not say
}

// CodeAlreadyRunning is the code of the conflict that Run returns when another agent holds the data folder.
const CodeAlreadyRunning = "agent_already_running"

// maxRecord bounds what is read of a file with a record of ours.
const maxRecord = 64 << 10

func runPath(home, name string) string { return filepath.Join(home, "run", name) }

// LogPath is where an agent in the background logs.
func LogPath(home string) string { return filepath.Join(home, "agent.log") }

// ReadRunFile reads the run file of a data folder. A missing one is fs.ErrNotExist.
func ReadRunFile(home string) (RunFile, error) {
	var r RunFile
	if err := folder.Check(home, "run"); err != nil {
		return r, err
	}
	b, err := folder.ReadFile(runPath(home, "agent.json"), maxRecord)
	if err != nil {
		return r, fmt.Errorf("read the run file: %w", err)
	}
	if err := json.Unmarshal(b, &r); err != nil {
		return r, fmt.Errorf("read %s: %w", runPath(home, "agent.json"), err)
	}
	return r, nil
}

// Locked reports whether an agent holds the data folder now.
func Locked(home string) (bool, error) {
	if err := folder.Check(home, "run"); err != nil {
		return false, err
	}
	f, err := folder.OpenFile(runPath(home, "lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the agent's lock: %w", err)
	}
	defer func() { _ = f.Close() }()
	// A shared lock: two who look at once do not see each other as an agent.
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at the agent's lock: %w", err)
	}
	return false, nil
}

// lockHome takes the lock of a data folder. The lock is released by closing the file, or by the end of the process.
func lockHome(home string) (*os.File, error) {
	if err := folder.Make(home, "run"); err != nil {
		return nil, fmt.Errorf("make the run folder: %w", folder.Full(err, home, "the run folder", 0))
	}
	f, err := folder.OpenFile(runPath(home, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the agent's lock: %w", folder.Full(err, home, "the agent's lock", 0))
	}
	// Somebody who only looks holds the lock for an instant, so one refusal is not the answer.
	for range 20 {
		if err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EWOULDBLOCK) {
			break
		}
		if r, readErr := ReadRunFile(home); readErr == nil && alive(r.Process) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, fault.New(fault.Conflict, CodeAlreadyRunning,
			"An agent already runs with the data folder %s; stop it with `apiary stop`, or set APIARY_HOME to another folder.", home)
	}
	return nil, fmt.Errorf("lock the data folder: %w", err)
}

// NodeID is the id of the node whose data folder is home. Before its first agent there is none, which is fs.ErrNotExist.
func NodeID(home string) (string, error) {
	path := filepath.Join(home, "node.json")
	var node struct {
		ID string `json:"id"`
	}
	b, err := folder.ReadFile(path, maxRecord)
	if err != nil {
		return "", fmt.Errorf("read the node's id: %w", err)
	}
	if err := json.Unmarshal(b, &node); err != nil || !nodeIDForm.MatchString(node.ID) {
		return "", fault.New(fault.Invalid, "damaged_node_file",
			"%s does not hold a node id; restore it, or remove it to give this machine a new identity.", path)
	}
	return node.ID, nil
}

var nodeIDForm = regexp.MustCompile(`^[a-z0-9]{12}$`)

// nodeID reads the id of this node, or makes it. The caller holds the lock.
func nodeID(home string) (string, error) {
	id, err := NodeID(home)
	if !errors.Is(err, fs.ErrNotExist) {
		return id, err
	}
	raw := make([]byte, 6)
	_, _ = rand.Read(raw)
	id = hex.EncodeToString(raw)
	return id, writeJSON(filepath.Join(home, "node.json"), map[string]string{"id": id})
}

// writeJSON publishes v under path by rename, so that a reader sees the old or the new file and never half of one.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return publish(path, append(b, '\n'), 0o600)
}

// publish writes a file under a temporary name, syncs it, gives it its name and syncs the folder.
func publish(path string, content []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	full := func(err error) error { return folder.Full(err, dir, filepath.Base(path), int64(len(content))) }
	tmp, err := os.CreateTemp(dir, ".tmp-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, full(err))
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(content)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, full(err))
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return errors.Join(d.Sync(), d.Close())
}
