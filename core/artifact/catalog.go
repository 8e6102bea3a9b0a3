package artifact

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// maxEntry bounds a catalog file.
const maxEntry = 1 << 20

// engineEntry is an engine as it stands in the catalog.
type engineEntry struct {
	contract.Engine
	// InsteadOf lists better platforms whose builds failed their self-test on this machine, so that they are not fetched again.
	InsteadOf []string `json:"instead_of,omitempty"`
}

// entryPath names the catalog file of an artifact: readable, and unique by the digest of its ID.
func (s *Store) entryPath(kind, id string) string {
	slug := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '.', r == '_', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, id)
	if len(slug) > 40 {
		slug = slug[len(slug)-40:]
	}
	return s.path("catalog", kind, strings.TrimLeft(slug, ".-")+"-"+hashText(id)[:16]+".json")
}

// readCatalog reads all entries of a kind. One that cannot be read is left out and told of in the log: the others still serve.
func readCatalog[T any](s *Store, kind string) ([]T, error) {
	dir := s.path("catalog", kind)
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	var all []T
	for _, e := range names {
		if strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		v, err := readEntry[T](filepath.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err != nil {
			s.log.Warn("unreadable catalog entry", "file", e.Name(), "error", err.Error())
			continue
		}
		all = append(all, v)
	}
	return all, nil
}

func readEntry[T any](path string) (v T, err error) {
	f, err := folder.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return v, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxEntry))
	if err != nil {
		return v, err
	}
	return v, json.Unmarshal(b, &v)
}

// Models lists the model catalog, ordered by ID. It looks at no model file.
func (s *Store) Models() ([]contract.Model, error) {
	all, err := readCatalog[contract.Model](s, "models")
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(m contract.Model) bool { return !wellFormed(m) })
	slices.SortFunc(all, func(a, b contract.Model) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// wellFormed reports whether an entry can be used as it stands: its digests and names become parts of paths.
func wellFormed(m contract.Model) bool {
	for _, f := range m.Files {
		if !validDigest(f.SHA256) || f.InPlace == nil && validPath(f.Path) != nil || f.InPlace != nil && !filepath.IsAbs(f.InPlace.Path) {
			return false
		}
	}
	return m.ID != "" && len(m.Files) > 0
}

// Model finds a model of the catalog by its ID or by a reference that led to it. Without one, it is fault.NotFound with the
// code model_not_found.
func (s *Store) Model(ref string) (contract.Model, error) {
	all, err := s.Models()
	if err != nil {
		return contract.Model{}, err
	}
	for _, m := range all {
		if m.ID == ref {
			return m, nil
		}
	}
	for _, m := range all {
		if slices.Contains(m.References, ref) {
			return m, nil
		}
	}
	return contract.Model{}, fault.New(fault.NotFound, "model_not_found", "The model %s is not in the catalog of this hive; fetch it with `apiary model pull %s`.", ref, ref)
}

// publishModel puts m into the catalog. Its references lead to no other entry any more. The catalog is locked.
func (s *Store) publishModel(m contract.Model) error {
	if err := s.publishJSON(s.entryPath("models", m.ID), m); err != nil {
		return err
	}
	all, err := s.Models()
	if err != nil {
		return err
	}
	for _, other := range all {
		n := len(other.References)
		other.References = slices.DeleteFunc(other.References, func(r string) bool { return slices.Contains(m.References, r) })
		if other.ID != m.ID && len(other.References) != n {
			if err := s.publishJSON(s.entryPath("models", other.ID), other); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropEntry removes a catalog file for good.
func (s *Store) dropEntry(kind, id string) error {
	p := s.entryPath(kind, id)
	if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove from the catalog: %w", err)
	}
	return syncDir(filepath.Dir(p))
}

// usedBlobs returns the digests of the blobs that models of the catalog need. An unreadable entry makes it an error, since
// blobs may be removed that are not among them.
func (s *Store) usedBlobs() (map[string]bool, error) {
	paths, err := filepath.Glob(s.path("catalog", "models", "*.json"))
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	for _, p := range paths {
		m, err := readEntry[contract.Model](p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read catalog entry %s: %w", filepath.Base(p), err)
		}
		for _, f := range m.Files {
			if f.InPlace == nil {
				used[f.SHA256] = true
			}
		}
	}
	return used, nil
}

// Engines lists the worker catalog, newest first. An engine whose folder is gone is not in it.
func (s *Store) Engines() ([]contract.Engine, error) {
	all, err := s.engines()
	if err != nil {
		return nil, err
	}
	out := make([]contract.Engine, 0, len(all))
	for _, e := range all {
		out = append(out, e.Engine)
	}
	return out, nil
}

func (s *Store) engines() ([]engineEntry, error) {
	all, err := readCatalog[engineEntry](s, "engines")
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(e engineEntry) bool {
		if e.ID == "" || !filepath.IsAbs(e.Dir) && !filepath.IsLocal(e.Dir) {
			return true
		}
		st, err := os.Stat(s.EngineDir(e.Engine))
		return err != nil || !st.IsDir()
	})
	slices.SortFunc(all, func(a, b engineEntry) int {
		if c := b.AddedAt.Compare(a.AddedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, nil
}

// Engine finds an engine of the catalog by its ID or by a reference that led to it, the newest where several do. Without one,
// it is fault.NotFound with the code engine_not_found.
func (s *Store) Engine(ref string) (contract.Engine, error) {
	all, err := s.Engines()
	if err != nil {
		return contract.Engine{}, err
	}
	for _, e := range all {
		if e.ID == ref {
			return e, nil
		}
	}
	for _, e := range all {
		if slices.Contains(e.References, ref) {
			return e, nil
		}
	}
	return contract.Engine{}, fault.New(fault.NotFound, "engine_not_found", "The engine %s is not installed on this hive; install it with `apiary engine install %s`.", ref, ref)
}

// EngineDir returns the absolute folder of an engine.
func (s *Store) EngineDir(e contract.Engine) string {
	if filepath.IsAbs(e.Dir) {
		return e.Dir
	}
	return s.path("engines", e.Dir)
}
