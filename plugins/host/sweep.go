package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/config"
)

// Who uses the shelf holds one of two locks, shared, until it ends or is killed: a command that puts files there holds that of the
// folder of the files, an agent that of the folder above.
const usersFolder = "plugins"

// Hold keeps files that are on the shelf, or get there, from being swept by others until release is called. A command holds it from
// before it puts a file until the lock file names it.
func (s *Shelf) Hold() (release func(), err error) { return s.share(storeFolder) }

// Use keeps the files that the lock file names now until release is called, also where it names others later. Agents do so.
func (s *Shelf) Use() (release func(), err error) { return s.share(usersFolder) }

func (s *Shelf) share(folder string) (release func(), err error) {
	f, err := s.flock(folder, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// flock locks a folder; the lock ends with the file that is returned.
func (s *Shelf) flock(folder string, how int) (*os.File, error) {
	f, err := os.Open(filepath.Join(s.home, filepath.FromSlash(folder)))
	if err != nil {
		return nil, fmt.Errorf("open the folder of plugins: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock the folder of plugins: %w", err), f.Close())
		}
	}
}

// Sweep removes from the shelf what commands that were killed left there, and what this one put there and did not keep. When no agent uses
// the shelf, everything that the lock file does not name goes. While another command puts files there it does nothing: a later call
// finds what is left.
func (s *Shelf) Sweep() error {
	mine, err := s.flock(storeFolder, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	}
	if err != nil {
		return err
	}
	defer func() { _ = mine.Close() }()
	agents, err := s.flock(usersFolder, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	if agents != nil {
		defer func() { _ = agents.Close() }()
	}
	lock, err := config.ReadLock(s.home)
	if err != nil {
		return err // nobody knows what is needed
	}
	named := map[string]bool{}
	for _, p := range lock.Plugins {
		for _, k := range p.Packages {
			named[k.SHA256] = true
		}
	}
	dir := filepath.Join(s.home, filepath.FromSlash(storeFolder))
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for old plugins: %w", err)
	}
	for _, e := range entries {
		digest, _, _ := strings.Cut(e.Name(), ".")
		half := strings.HasPrefix(e.Name(), halfPrefix) || strings.HasSuffix(e.Name(), notesSuffix+newSuffix)
		if half || !named[digest] && (agents != nil || s.added[digest]) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("remove an old plugin: %w", err)
			}
		}
	}
	return nil
}
