package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// tmpPrefix starts the names of files and folders that are not published yet.
const tmpPrefix = ".tmp-"

// copyBuffer is the size of the pieces in which files are read and written.
const copyBuffer = 1 << 20

// publishJSON writes v to path so that after a crash there is the old file or the new one, whole. The folder exists.
func (s *Store) publishJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(path), err)
	}
	dir := filepath.Dir(path)
	full := func(err error) error { return s.noSpace(err, filepath.Base(path), int64(len(b)+1)) }
	f, err := os.CreateTemp(dir, tmpPrefix+"*")
	if err != nil {
		return full(err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // after the rename there is nothing to remove
	s.at("json written")
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return full(fmt.Errorf("write %s: %w", filepath.Base(path), err))
	}
	s.at("json synced")
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("publish %s: %w", filepath.Base(path), err)
	}
	s.at("json renamed")
	return syncDir(dir)
}

// syncDir makes the names in a folder durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // some network file systems cannot
		return fmt.Errorf("sync folder: %w", err)
	}
	return nil
}

// syncTree makes a folder and all below it durable, and returns the bytes of its regular files.
func syncTree(dir string) (int64, error) {
	var total int64
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return syncDir(p)
		case e.Type().IsRegular():
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			st, err := f.Stat()
			if err == nil {
				total += st.Size()
			}
			return errors.Join(err, f.Sync(), f.Close())
		}
		return nil // a link of ours
	})
	return total, err
}

// lockPoll is how often a lock that another process holds is tried again.
const lockPoll = 50 * time.Millisecond

// lock takes the advisory lock file name in partial/, which keeps other goroutines and other processes out, and returns
// the function that gives it back. waiting is called once when somebody else holds it.
func (s *Store) lock(ctx context.Context, name string, waiting func()) (unlock func(), err error) {
	path := s.path("partial", name+".lock")
	for first := true; ; first = false {
		f, err := folder.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, s.noSpace(fmt.Errorf("open lock: %w", err), "a lock file", 0)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		// The holder removes the file when it is done, so the one that was locked must still be the one with the name.
		if err == nil && sameFile(f, path) {
			return func() { _ = os.Remove(path); _ = f.Close() }, nil
		}
		_ = f.Close()
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if first && waiting != nil {
			waiting()
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPoll):
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err1 := f.Stat()
	b, err2 := os.Lstat(path)
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// lockCatalog keeps everybody else from changing the catalogs and from removing blobs. It is held for moments only.
func (s *Store) lockCatalog(ctx context.Context) (unlock func(), err error) {
	return s.lock(ctx, "catalog", nil)
}

// checkSpace refuses to begin writing missing bytes unless 5 % more and the reserve are free.
func (s *Store) checkSpace(missing int64, what string) error {
	if missing <= 0 {
		return nil
	}
	free, err := s.free(s.home)
	if err != nil {
		return err
	}
	need := contract.Bytes(missing) + contract.Bytes(missing)/20 + s.opts.Reserve
	if free < need {
		return fault.New(fault.Exhausted, "no_space", "%s needs %s of disk in %s, with the reserve of %s that stays free, and %s are free there; free some space and run the same command again.", what, need, s.home, s.opts.Reserve, free)
	}
	return nil
}

// blobPath is where the bytes with a digest lie.
func (s *Store) blobPath(sha string) string { return s.path("blobs", "sha256", sha[:2], sha) }

// hasBlob reports whether a published blob is there with the right size. Its bytes were verified before they got the name.
func (s *Store) hasBlob(sha string, size int64) bool {
	st, err := os.Lstat(s.blobPath(sha))
	return err == nil && st.Mode().IsRegular() && (size < 0 || st.Size() == size)
}

// publishBlob gives a verified, synced file the name of its digest.
func (s *Store) publishBlob(from, sha string) error {
	to := s.blobPath(sha)
	dir := filepath.Dir(to)
	if err := folder.Make(s.home, "blobs/sha256/"+sha[:2]); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.Chmod(from, 0o400); err != nil {
		return err
	}
	s.at("blob verified")
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("publish blob: %w", err)
	}
	s.at("blob renamed")
	return syncDir(dir)
}

// validDigest reports whether s is a SHA-256 in lower-case hex.
func validDigest(s string) bool { return validHex(s, 64) }

func validHex(s string, n int) bool { return len(s) == n && strings.Trim(s, "0123456789abcdef") == "" }

// validDigests reports whether the digests that are given have the right form, and can be compared with.
func validDigests(f vendor.File) bool {
	d := f.Digests
	return (d.SHA256 == "" || validDigest(d.SHA256)) && (d.SHA512 == "" || validHex(d.SHA512, 128)) && (d.GitBlobSHA1 == "" || validHex(d.GitBlobSHA1, 40) && f.Size >= 0)
}

// hashText is the SHA-256 of a text, in hex.
func hashText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// copyContext copies until the end of r or of ctx, calling progress with the bytes so far.
func copyContext(ctx context.Context, w io.Writer, r io.Reader, progress func(n int64)) (int64, error) {
	buf := make([]byte, copyBuffer)
	var total int64
	for {
		if err := ctx.Err(); err != nil {
			return total, err
		}
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return total, &writeError{werr}
			}
			total += int64(n)
			if progress != nil {
				progress(total)
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// writeError is a failure of our side of a copy: trying the other side again does not help.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// validSegment is the rule for names that become parts of paths: ^[a-z0-9][a-z0-9._-]{0,63}$ without "..".
func validSegment(s string) bool {
	const first = "abcdefghijklmnopqrstuvwxyz0123456789"
	return s != "" && len(s) <= 64 && strings.IndexByte(first, s[0]) >= 0 && strings.Trim(s, first+"._-") == "" && !strings.Contains(s, "..")
}

// validPath is the rule for relative paths of files that others name: no way out of the folder, nothing that a terminal or
// another operating system reads differently.
func validPath(p string) error {
	if p == "" || len(p) > 1024 {
		return fmt.Errorf("the name %q is empty or too long", p[:min(len(p), 64)])
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." || len(part) > 255 || strings.HasSuffix(part, ".") && len(part) > 1 || strings.HasSuffix(part, " ") {
			return fmt.Errorf("the name %q is not a relative path inside its folder", p)
		}
	}
	for _, r := range p {
		if r < ' ' || r == '\\' || r == 0x7f || r >= 0x80 {
			return fmt.Errorf("the name %q has characters that are not allowed", p)
		}
	}
	return nil
}
