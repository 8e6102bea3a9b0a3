package process

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
)

// verify returns the path of a file whose content has the digest of spec and that only this user can change: a copy in the
// store, under its digest. What is checked is what is executed, whatever happens to the original meanwhile.
func verify(spec Spec) (string, error) {
	if err := os.MkdirAll(spec.Store, 0o700); err != nil {
		return "", fmt.Errorf("make the store of plugins: %w", err)
	}
	if err := private(spec.Store); err != nil {
		return "", err
	}
	if spec.SHA256 != "" {
		kept := filepath.Join(spec.Store, spec.SHA256)
		if sum, err := digestKept(kept); err == nil && sum == spec.SHA256 {
			return kept, nil
		}
	}
	from, err := os.Open(spec.Path)
	if err != nil {
		return "", fault.New(fault.NotFound, CodeStart, "The program of the plugin %s cannot be read: %w; check the path, or install the plugin again.", spec.Name, err)
	}
	defer func() { _ = from.Close() }()
	if info, err := from.Stat(); err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", fault.New(fault.Invalid, CodeStart, "The program of the plugin %s at %s is not an executable file; say chmod +x, or install the plugin again.", spec.Name, spec.Path)
	}
	return keep(spec, from)
}

func keep(spec Spec, from io.Reader) (string, error) {
	// A process that another goroutine starts while the copy is open for writing would have it open too, until it executes, and
	// the kernel then refuses to execute the copy.
	syscall.ForkLock.RLock()
	temporary, sum, err := copyTo(spec.Store, from)
	syscall.ForkLock.RUnlock()
	if err != nil {
		return "", fmt.Errorf("keep the program of the plugin %s: %w", spec.Name, err)
	}
	if spec.SHA256 != "" && sum != spec.SHA256 {
		_ = os.Remove(temporary)
		return "", fault.New(fault.Denied, CodeDigest, "The program of the plugin %s at %s has the SHA-256 %s, and %s was installed; if that is meant, say `apiary plugin update %s`.",
			spec.Name, spec.Path, sum, spec.SHA256, spec.Name)
	}
	kept := filepath.Join(spec.Store, sum)
	if err := os.Rename(temporary, kept); err != nil {
		_ = os.Remove(temporary)
		return "", fmt.Errorf("keep the program of the plugin %s: %w", spec.Name, err)
	}
	return kept, nil
}

func copyTo(folder string, from io.Reader) (path, sum string, err error) {
	to, err := os.CreateTemp(folder, ".new-*")
	if err != nil {
		return "", "", err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(to, h), from)
	if err = errors.Join(err, to.Chmod(0o500), to.Close()); err != nil {
		_ = os.Remove(to.Name())
		return "", "", err
	}
	return to.Name(), hex.EncodeToString(h.Sum(nil)), nil
}

// digestKept returns the digest of a file in the store, which must be ours alone.
func digestKept(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o500 || !ours(info) {
		return "", errors.New("not a file that was kept")
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// private fails unless the folder is of this user alone.
func private(folder string) error {
	info, err := os.Lstat(folder)
	if err != nil {
		return fmt.Errorf("look at the store of plugins: %w", err)
	}
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !ours(info) {
		return fault.New(fault.Denied, "store_not_private", "Others may write to %s, from which programs are executed; make it a folder of this user with mode 0700.", folder)
	}
	return nil
}

func ours(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// room is the folder of one process, of this user alone: its sockets and its home. It is locked for as long as it is used.
type room struct {
	dir, home string
	lock      *os.File
}

const (
	roomPrefix  = "apiary-p-"
	longestBase = 40 // bytes: the path of a socket ends at 108, on some systems at 104
)

func newRoom(base string) (*room, error) {
	if base == "" {
		if base = os.TempDir(); len(base) > longestBase {
			base = "/tmp"
		}
	}
	sweep(base)
	dir, err := os.MkdirTemp(base, roomPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a folder for a plugin: %w", err)
	}
	r := &room{dir: dir, home: filepath.Join(dir, "home")}
	if err = os.Mkdir(r.home, 0o700); err == nil {
		r.lock, err = os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	}
	if err == nil {
		err = syscall.Flock(int(r.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if err != nil {
		r.remove()
		return nil, fmt.Errorf("make a folder for a plugin: %w", err)
	}
	return r, nil
}

func (r *room) remove() {
	_ = os.RemoveAll(r.dir)
	if r.lock != nil {
		_ = r.lock.Close()
	}
}

// sweep removes the folders that agents which were killed left behind: nobody has locked them. One that is new may not be locked yet.
func sweep(base string) {
	entries, err := os.ReadDir(base)
	if err != nil {
		return
	}
	for _, e := range entries {
		info, err := e.Info()
		if !strings.HasPrefix(e.Name(), roomPrefix) || err != nil || !info.IsDir() || !ours(info) || time.Since(info.ModTime()) < time.Minute {
			continue
		}
		r := &room{dir: filepath.Join(base, e.Name())}
		lock, err := os.OpenFile(filepath.Join(r.dir, ".lock"), os.O_RDWR|syscall.O_NOFOLLOW, 0)
		if err == nil && syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			r.remove()
		}
		if lock != nil {
			_ = lock.Close()
		}
	}
}
