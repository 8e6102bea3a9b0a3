package host

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"debug/macho"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of the files of plugins, in bytes.
const (
	MaxModule  = 32 << 20
	MaxProgram = 512 << 20
	maxNotes   = 256 << 10
)

// Folders of plugins below the data folder.
const (
	storeFolder   = "plugins/store"    // files by digest, and what they say about themselves
	cacheFolder   = "plugins/cache"    // compiled modules
	programFolder = "plugins/programs" // what runs, by digest
	stateFolder   = "state/plugins"    // what plugins keep
)

// Shelf keeps the files of plugins under their SHA-256. A file on it is never changed.
type Shelf struct {
	home  string
	added map[string]bool // digests that were not there before
}

// Parts of the names of files on the shelf.
const (
	halfPrefix  = ".new-" // what is being written
	notesSuffix = ".json" // behind a digest: what the file says about itself
	newSuffix   = ".new"
)

// OpenShelf returns the shelf in a data folder, which it makes.
func OpenShelf(home string) (*Shelf, error) {
	if err := folder.Make(home, storeFolder, cacheFolder, programFolder, stateFolder); err != nil {
		return nil, fmt.Errorf("make the folders for plugins: %w", err)
	}
	return &Shelf{home: home, added: map[string]bool{}}, nil
}

// CacheDir is the folder for compiled modules.
func (s *Shelf) CacheDir() string { return filepath.Join(s.home, filepath.FromSlash(cacheFolder)) }

// Programs is the folder from which programs are run.
func (s *Shelf) Programs() string { return filepath.Join(s.home, filepath.FromSlash(programFolder)) }

// StatePath is the file in which the host keeps what a plugin of that name wants to find again.
func (s *Shelf) StatePath(name string) string {
	return filepath.Join(s.home, filepath.FromSlash(stateFolder), name+".json")
}

// Path is where the file of that digest lies, when it is there.
func (s *Shelf) Path(digest string) string {
	return filepath.Join(s.home, filepath.FromSlash(storeFolder), digest)
}

// Put copies a file onto the shelf, until ctx ends. A full disk is a fault of the kind Exhausted.
func (s *Shelf) Put(ctx context.Context, r io.Reader) (digest string, size int64, err error) {
	dir := filepath.Join(s.home, filepath.FromSlash(storeFolder))
	defer func() { err = folder.Full(err, s.home, "the plugin", 0) }()
	tmp, err := os.CreateTemp(dir, halfPrefix+"*")
	if err != nil {
		return "", 0, fmt.Errorf("keep a plugin: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // after the rename it is not there any more
	sum := sha256.New()
	size, err = io.Copy(io.MultiWriter(tmp, sum), io.LimitReader(untilDone{ctx, r}, MaxProgram+1))
	if err == nil && size > MaxProgram {
		err = tooLarge("The plugin")
	}
	if err == nil {
		err = tmp.Chmod(0o500)
	}
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return "", 0, fmt.Errorf("keep a plugin: %w", err)
	}
	digest = hex.EncodeToString(sum.Sum(nil))
	if _, err := os.Lstat(s.Path(digest)); errors.Is(err, fs.ErrNotExist) {
		s.added[digest] = true
	}
	if err := os.Rename(tmp.Name(), s.Path(digest)); err != nil {
		return "", 0, fmt.Errorf("keep a plugin: %w", err)
	}
	return digest, size, nil
}

// Verify reads the file of a digest again and says whether it still is that.
func (s *Shelf) Verify(digest string) error {
	fd, err := unix.Open(s.Path(digest), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "plugin_missing", "The file of the plugin with the digest %s… is not there; say `apiary plugin install` again.", digest[:12])
	}
	if err != nil {
		return fmt.Errorf("read the plugin %s: %w", digest[:12], err)
	}
	f := os.NewFile(uintptr(fd), s.Path(digest))
	defer func() { _ = f.Close() }()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(f, MaxProgram+1)); err != nil {
		return fmt.Errorf("read the plugin %s: %w", digest[:12], err)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return fault.New(fault.Denied, "plugin_changed", "The file of the plugin with the digest %s… has been changed: it is %s… now, and is not run; say `apiary plugin install` again.", digest[:12], got[:12])
	}
	return nil
}

// SetManifest keeps what the file of a digest says about itself, so that nobody has to run it to know.
func (s *Shelf) SetManifest(digest string, m vendor.StaticManifest) (err error) {
	defer func() { err = folder.Full(err, s.home, "what the plugin says about itself", 0) }()
	raw, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("keep the manifest of a plugin: %w", err)
	}
	if len(raw) > maxNotes {
		return fault.New(fault.Invalid, "manifest_too_large", "What the plugin says about itself has %d KiB; at most %d are kept.", len(raw)>>10, maxNotes>>10)
	}
	tmp := s.Path(digest) + notesSuffix + newSuffix
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("keep the manifest of a plugin: %w", err)
	}
	if err := os.Rename(tmp, s.Path(digest)+notesSuffix); err != nil {
		return fmt.Errorf("keep the manifest of a plugin: %w", err)
	}
	return nil
}

// Manifest returns what SetManifest kept.
func (s *Shelf) Manifest(digest string) (*vendor.StaticManifest, error) {
	raw, err := os.ReadFile(s.Path(digest) + notesSuffix)
	if err != nil {
		return nil, fault.New(fault.NotFound, "plugin_missing", "What the plugin with the digest %s… says about itself is not kept; say `apiary plugin install` again: %w.", digest[:12], err)
	}
	m := new(vendor.StaticManifest)
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("read the manifest of the plugin %s: %w", digest[:12], err)
	}
	return m, nil
}

// Nature says what kind of file a plugin is: its transport and its platform as the lock file calls them, "wasm" or "linux_amd64". A
// file that cannot run here is refused with the reason.
func Nature(path string) (transport, platform string, err error) { return nature(path, path) }

// nature is Nature for a file that messages call name.
func nature(path, name string) (transport, platform string, err error) {
	f, err := openRegular(path, name)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = f.Close() }()
	head := make([]byte, 8)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", "", fault.New(fault.Invalid, "not_a_plugin", "The file %s is empty, so it is no plugin.", name)
	}
	head = head[:n]
	here := runtime.GOOS + "_" + runtime.GOARCH
	switch {
	case strings.HasPrefix(string(head), "\x00asm"):
		return "wasm", "wasm", nil
	case strings.HasPrefix(string(head), elf.ELFMAG):
		x, err := elf.NewFile(f)
		if err != nil {
			return "", "", fault.New(fault.Invalid, "not_a_plugin", "The file %s begins like a program for Linux, but is none: %w.", name, err)
		}
		return native(name, elfPlatform(x), here)
	case strings.HasPrefix(string(head), "#!"):
		return "process", here, nil
	}
	if x, err := macho.NewFile(f); err == nil {
		return native(name, machoPlatform(x), here)
	}
	for begin, archive := range map[string]string{"PK\x03\x04": ArchiveZip, "\x1f\x8b": ArchiveTar} {
		if strings.HasPrefix(string(head), begin) {
			return "", "", fault.New(fault.Invalid, "not_a_plugin", "The file %s is neither a WASM module nor a program, but may be an archive of one: say ?archive=%s behind it.", name, archive)
		}
	}
	return "", "", fault.New(fault.Invalid, "not_a_plugin", "The file %s is neither a WASM module nor a program: it begins with %q.", name, head)
}

func native(name, platform, here string) (string, string, error) {
	if platform != here {
		return "", "", fault.New(fault.Invalid, "wrong_platform", "The file %s is a program for %s; this machine is %s.", name, platform, here)
	}
	return "process", platform, nil
}

// openRegular opens a file of the user, which messages call name. Only a regular one is opened: another one may block for ever, or never end.
func openRegular(path, name string) (*os.File, error) {
	st, err := os.Stat(path)
	if err == nil && !st.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "not_a_plugin", "%s is no regular file, so it is no plugin.", name)
	}
	if err == nil && st.Size() > MaxProgram {
		return nil, tooLarge("The file " + name)
	}
	var f *os.File
	if err == nil {
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO may have taken its place
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, "file_unreadable", "The file %s cannot be read: %w.", name, err)
	}
	return f, nil
}

func tooLarge(what string) error {
	return fault.New(fault.Invalid, "plugin_too_large", "%s has more than %d MiB; that is no plugin.", what, MaxProgram>>20)
}

// untilDone is a reader that ends with a context.
type untilDone struct {
	ctx context.Context
	io.Reader
}

func (r untilDone) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}
