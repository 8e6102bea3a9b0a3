package wasm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/tetratelabs/wazero"
	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/fault"
)

// maxCached is the number of modules whose compiled code is kept.
const maxCached = 64

// compile loads the module, through the cache when there is one.
func (m *Module) compile(ctx context.Context) error {
	if m.o.CacheDir == "" {
		return m.load(ctx, nil)
	}
	if err := checkPrivate(m.o.CacheDir); err != nil {
		return err
	}
	if !versionKnown() {
		m.o.Log.Debug("compiled code is not cached: this build does not say which wazero it has")
		return m.load(ctx, nil)
	}
	return m.loadCached(ctx)
}

// versionKnown reports whether wazero knows its own version, which it needs to tell compiled code of other versions from its own.
// Executables do; tests do not, and all call themselves "dev".
func versionKnown() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.ContainsFunc(info.Deps, func(d *debug.Module) bool { return d.Path == "github.com/tetratelabs/wazero" && d.Version != "" })
}

// loadCached loads the module with its folder of the cache locked: wazero must not compile the same module twice at once.
func (m *Module) loadCached(ctx context.Context) error {
	digest := sha256.Sum256(m.o.Module)
	dir := filepath.Join(m.o.CacheDir, hex.EncodeToString(digest[:]))
	unlock, err := lock(ctx, dir)
	if err != nil {
		return err
	}
	defer unlock()
	load := func() error {
		cache, err := wazero.NewCompilationCacheWithDir(dir)
		if err != nil {
			return fmt.Errorf("open the cache of compiled plugins: %w", err)
		}
		return m.load(ctx, cache)
	}
	if err = load(); err != nil && ctx.Err() == nil {
		// What is wrong may be the cached code: a machine that lost power leaves such files.
		if err = errors.Join(m.release(ctx), empty(dir)); err == nil {
			err = load()
		}
	}
	if err != nil {
		return err
	}
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		m.o.Log.Warn("the use of a compiled plugin was not noted", "error", err)
	}
	if err := prune(m.o.CacheDir, maxCached); err != nil {
		m.o.Log.Warn("old compiled plugins were not removed", "error", err)
	}
	return nil
}

// checkPrivate makes sure that dir is a folder of this user that nobody else can write to, and makes it where there is none: who
// can write compiled code there decides what this process executes.
func checkPrivate(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("make the folder of compiled plugins: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the folder of compiled plugins: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("look at the folder of compiled plugins: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || info.Mode().Perm()&0o077 != 0 || int(st.Uid) != os.Geteuid() {
		return fault.New(fault.Denied, "cache_not_private", "The folder %s holds code that Apiary executes, and others can change it or it is not Apiary's own; remove it, and Apiary makes a private one.", dir)
	}
	return nil
}

// lock makes a folder and locks it against other processes and other calls of this one.
func lock(ctx context.Context, dir string) (unlock func(), err error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make the folder of a compiled plugin: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the folder of a compiled plugin: %w", err)
	}
	for {
		err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = d.Close() }, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, errors.Join(fmt.Errorf("lock the folder of a compiled plugin: %w", err), d.Close())
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait while a plugin is compiled: %w", ctx.Err()), d.Close())
		}
	}
}

// empty removes what is in dir.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	if err != nil {
		return fmt.Errorf("empty the folder of a compiled plugin: %w", err)
	}
	return nil
}

// prune leaves the keep entries that were used last.
func prune(dir string, keep int) error {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) <= keep {
		return err
	}
	used := make(map[string]time.Time, len(entries))
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			used[e.Name()] = info.ModTime()
		}
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int {
		return cmp.Or(used[b.Name()].Compare(used[a.Name()]), cmp.Compare(a.Name(), b.Name()))
	})
	for _, e := range entries[keep:] {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}
