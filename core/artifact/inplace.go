package artifact

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/gguf"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Files in place are the user's own. Their paths may lead through links, as those of a Hugging Face cache do: links are
// followed once, and what is at their end must be a regular file. The path is kept as the user gave it, because engines find
// the other shards by name.

// openInPlace opens the file at path and says which one it is.
func openInPlace(path string) (*os.File, contract.File, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, contract.File{}, err
	}
	f, err := openRegular(real)
	if err != nil {
		return nil, contract.File{}, err
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, contract.File{}, err
	}
	return f, fingerprint(path, st), nil
}

// fingerprint describes a file in place, but for its digest.
func fingerprint(path string, st fs.FileInfo) contract.File {
	in := &contract.InPlace{Path: path, ModTime: st.ModTime().UTC()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		in.Device, in.Inode = uint64(sys.Dev), uint64(sys.Ino) // the types differ between systems
	}
	return contract.File{Path: filepath.Base(path), SizeBytes: contract.Bytes(st.Size()), InPlace: in}
}

// equalFingerprint compares two descriptions of what is at one path.
func equalFingerprint(a, b contract.File) bool {
	return a.SizeBytes == b.SizeBytes && a.InPlace.Path == b.InPlace.Path && a.InPlace.Device == b.InPlace.Device &&
		a.InPlace.Inode == b.InPlace.Inode && a.InPlace.ModTime.Equal(b.InPlace.ModTime)
}

// sameFingerprint looks at the file in place, without reading it.
func sameFingerprint(f contract.File) bool {
	st, err := os.Stat(f.InPlace.Path)
	return err == nil && st.Mode().IsRegular() && equalFingerprint(f, fingerprint(f.InPlace.Path, st))
}

// readInPlace describes the file at path: its fingerprint, its digest and its header. The digest of a known file with the same
// fingerprint is taken over.
func (s *Store) readInPlace(ctx context.Context, path string, known []contract.File, report Report) (contract.File, *gguf.Info, error) {
	f, file, err := openInPlace(path)
	if err != nil {
		return file, nil, inPlaceError(path, err)
	}
	defer f.Close()
	info, err := inspectOpen(f, path, "")
	if err != nil {
		return file, nil, err
	}
	if i := slices.IndexFunc(known, func(k contract.File) bool { return equalFingerprint(k, file) }); i >= 0 {
		file.SHA256 = known[i].SHA256
		return file, info, nil
	}
	h := sha256.New()
	m := newMeter(report, "verify", "reading "+filepath.Base(path), int64(file.SizeBytes))
	n, err := copyContext(ctx, h, f, m.set)
	if err != nil {
		if ctx.Err() != nil {
			return file, nil, ctx.Err()
		}
		return file, nil, inPlaceError(path, err)
	}
	m.finish(n)
	if st, err := f.Stat(); err != nil || n != int64(file.SizeBytes) || !equalFingerprint(file, fingerprint(path, st)) {
		return file, nil, fault.New(fault.Unavailable, "model_changing", "%s is being written to; try again when it is complete.", path)
	}
	file.SHA256 = hex.EncodeToString(h.Sum(nil))
	return file, info, nil
}

func inPlaceError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "model_not_found", "There is no file %s; check the path, or whether its disk is there.", path)
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Denied, "model_unreadable", "Apiary may not read %s; check its permissions and those of the folders above it.", path)
	case fault.KindOf(err) != fault.Internal:
		return err
	}
	return fmt.Errorf("read %s: %w", path, err)
}

// pullInPlace puts a model of files in place into the catalog. Entries of the same files with other bytes are dropped.
func (s *Store) pullInPlace(ctx context.Context, ref string, man *vendor.Manifest, m contract.Model, report Report) (contract.Model, error) {
	all, err := s.Models()
	if err != nil {
		return contract.Model{}, err
	}
	var known []contract.File
	for _, other := range all {
		for _, f := range other.Files {
			if f.InPlace != nil {
				known = append(known, f)
			}
		}
	}
	paths := make([]string, 0, len(man.Files))
	for _, f := range man.Files {
		u, err := url.Parse(f.Sources[0].URL)
		if err != nil || u.Scheme != "file" || u.Host != "" || !filepath.IsAbs(u.Path) {
			return contract.Model{}, fault.New(fault.Invalid, "bad_manifest", "The vendor %s names a local file without an absolute path; report this to its maker.", m.Vendor)
		}
		paths = append(paths, u.Path)
	}
	if err := s.readAll(ctx, &m, paths, known, report); err != nil {
		return contract.Model{}, err
	}
	if m.ID, err = pin(ref, man, m.Files); err != nil {
		return contract.Model{}, err
	}
	m.References = references(ref, m.ID, man)
	dropped, err := s.replaceInPlace(ctx, &m, man.Reference)
	if err != nil {
		return contract.Model{}, err
	}
	for _, id := range dropped {
		report("changed", fmt.Sprintf("%s has changed since it was added: %s is not in the catalog any more, %s is", man.Reference, id, m.ID), nil)
	}
	report("publish", m.ID+" is in the catalog", nil)
	return m, nil
}

// readAll fills in m's files and what their headers say.
func (s *Store) readAll(ctx context.Context, m *contract.Model, paths []string, known []contract.File, report Report) error {
	m.Files, m.SizeBytes = nil, 0
	infos := make([]*gguf.Info, 0, len(paths))
	for _, p := range paths {
		file, info, err := s.readInPlace(ctx, p, known, report)
		if err != nil {
			return err
		}
		m.Files, infos = append(m.Files, file), append(infos, info)
		m.SizeBytes += file.SizeBytes
	}
	return summarize(m, infos)
}

// replaceInPlace publishes m after dropping the entries that have the same canonical reference and another digest. It
// returns their IDs. The old entry goes first: after a crash the model is read again, and never served under an old name.
func (s *Store) replaceInPlace(ctx context.Context, m *contract.Model, canonical string) ([]string, error) {
	dropped, err := s.dropInPlace(ctx, canonical, m.ID)
	if err != nil {
		return nil, err
	}
	s.at("old entry dropped")
	err = s.publishIfComplete(ctx, m)
	if errors.Is(err, errBlobGone) {
		err = fault.New(fault.Unavailable, "model_changing", "%s is being written to; try again when it is complete.", canonical)
	}
	return dropped, err
}

// dropInPlace drops the entries of canonical but the one with the ID keep.
func (s *Store) dropInPlace(ctx context.Context, canonical, keep string) (dropped []string, err error) {
	unlock, err := s.lockCatalog(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := s.Models()
	if err != nil {
		return nil, err
	}
	for _, other := range all {
		if other.ID != keep && other.Files[0].InPlace != nil && unpinned(other.ID) == canonical {
			if err := s.dropEntry("models", other.ID); err != nil {
				return nil, err
			}
			dropped = append(dropped, other.ID)
		}
	}
	return dropped, nil
}

// unpinned takes the digest off the ID of a model in place.
func unpinned(id string) string {
	if i := strings.LastIndexByte(id, '@'); i > 0 {
		return id[:i]
	}
	return id
}

// verifyInPlace makes sure that the files of m are the ones that were added. A file that was only touched is read again and
// its entry refreshed. Other bytes get an entry of their own, m's is dropped, and the caller is told.
func (s *Store) verifyInPlace(ctx context.Context, m contract.Model) error {
	if s.complete(m) {
		return nil
	}
	canonical := unpinned(m.ID)
	unlock, err := s.lock(ctx, "ref-"+hashText("model:" + canonical)[:32], nil)
	if err != nil {
		return err
	}
	defer unlock()
	var paths []string
	for _, f := range m.Files {
		if f.InPlace == nil {
			return fault.New(fault.Invalid, "bad_model", "The catalog entry of %s mixes files in place with others; pull the model again.", m.ID)
		}
		paths = append(paths, f.InPlace.Path)
	}
	fresh := m
	err = s.readAll(ctx, &fresh, paths, nil, func(string, string, *contract.Progress) {})
	switch fault.KindOf(err) {
	case "":
	case fault.Invalid:
		if _, derr := s.dropInPlace(ctx, canonical, ""); derr != nil {
			return derr
		}
		return fault.New(fault.Conflict, "model_changed", "%s has changed since it was added and was taken out of the catalog; %w", canonical, err)
	default:
		return err // it may be back later
	}
	fresh.ID = canonical + "@" + digestOf(fresh.Files)[:12]
	if fresh.ID == m.ID {
		_, err := s.replaceInPlace(ctx, &fresh, canonical)
		return err
	}
	fresh.AddedAt = s.now().UTC()
	if _, err := s.replaceInPlace(ctx, &fresh, canonical); err != nil {
		return err
	}
	return fault.New(fault.Conflict, "model_changed", "%s has changed since it was added: %s is not in the catalog any more, and %s is; ask for %s to use it.", canonical, m.ID, fresh.ID, canonical)
}
