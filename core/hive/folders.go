package hive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/process"
)

// A worker's folder is workers/<id>, with its log and its temporary folder. The worker rotates its log itself; a log that
// was left large is rotated before the next start.
const (
	logName = "worker.log"
	logMax  = 10 * contract.MiB
	logKeep = 3
	tmpName = "tmp"
)

// Folders of ended workers are kept for their logs: a week, and at most the newest 100.
const (
	keepFolders    = 7 * 24 * time.Hour
	keepFoldersMax = 100
)

func (h *Hive) workersDir() string               { return filepath.Join(h.opts.Home, "workers") }
func (h *Hive) workerDir(workerID string) string { return filepath.Join(h.workersDir(), workerID) }
func (h *Hive) workerTmp(workerID string) string {
	return filepath.Join(h.workerDir(workerID), tmpName)
}

// removeTmp removes an ended worker's temporary folder, unless a new worker of the same id runs.
func (h *Hive) removeTmp(workerID string) error {
	running, err := process.Scan(h.opts.NodeID)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(running, func(e process.Entry) bool { return e.WorkerID == workerID }) {
		return nil
	}
	root, err := os.OpenRoot(h.workersDir())
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return root.RemoveAll(filepath.Join(workerID, tmpName))
}

func (h *Hive) tidy() {
	if err := h.sweep(time.Now()); err != nil {
		h.log.Warn("cannot remove what ended workers left", "error", err)
	}
}

// sweep removes folders of workers that do not run and are old or too many.
func (h *Hive) sweep(now time.Time) error {
	running, err := process.Scan(h.opts.NodeID)
	if err != nil {
		return err
	}
	alive := map[string]bool{}
	for _, e := range running {
		alive[e.WorkerID] = true
	}
	root, err := os.OpenRoot(h.workersDir())
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return fmt.Errorf("list the folders of workers: %w", err)
	}
	type folder struct {
		name string
		used time.Time
	}
	var ended []folder
	for _, e := range entries {
		if !e.IsDir() || alive[e.Name()] {
			continue
		}
		st, err := root.Stat(filepath.Join(e.Name(), logName))
		if err != nil {
			if st, err = root.Stat(e.Name()); err != nil {
				continue
			}
		}
		// A folder that was just made may belong to a worker that is being started.
		if now.Sub(st.ModTime()) > time.Minute {
			ended = append(ended, folder{e.Name(), st.ModTime()})
		}
	}
	slices.SortFunc(ended, func(a, b folder) int { return b.used.Compare(a.used) })
	var errs []error
	for i, f := range ended {
		if i >= keepFoldersMax || now.Sub(f.used) > keepFolders {
			errs = append(errs, root.RemoveAll(f.name))
		}
	}
	return errors.Join(errs...)
}
