package artifact

import (
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// step carries out one step of a plan in dir.
func (s *Store) step(ctx context.Context, dir string, st vendor.Step, got map[string]fetched, report Report) error {
	switch {
	case st.Extract != nil:
		g, ok := got[st.Extract.File]
		if !ok {
			return badArchive("its plan names no file %q", st.Extract.File)
		}
		most := g.size*maxArchiveRatio + ratioSlack
		if st.Extract.MaxBytes > 0 {
			most = min(most, st.Extract.MaxBytes)
		}
		if err := s.checkSpace(most, "unpacking the engine"); err != nil {
			return err
		}
		m := newMeter(report, "extract", "unpacking", 0)
		if err := extract(ctx, g.path, g.size, dir, st.Extract, true, func(n int64) { s.at("engine grows"); m.set(n) }); err != nil {
			return s.noSpace(err, "unpacking the engine", most)
		}
		return nil
	case st.Link != nil:
		return s.noSpace(link(dir, st.Link), "installing the engine", 0)
	case st.Run != nil:
		return s.run(ctx, dir, st.Run, report)
	case st.Expect != nil:
		return expect(dir, st.Expect)
	}
	return fault.New(fault.Invalid, "bad_plan", "The plan for the engine has a step that this version of Apiary does not know; update Apiary.")
}

// link makes a relative link to a file of the same folder. A file that has the name already stays.
func link(dir string, l *vendor.LinkStep) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := validPath(l.Name); err != nil {
		return fault.New(fault.Invalid, "bad_plan", "The plan for the engine makes a link with a bad name: %w.", err)
	}
	if _, err := root.Lstat(l.Name); err == nil {
		return nil
	}
	target := l.Target
	if l.Match != "" {
		found, err := glob(root.FS(), l.Match)
		if err != nil || len(found) != 1 {
			return fault.New(fault.Invalid, "engine_incomplete", "The engine holds %d files %s where one is needed, so its build is not one that Apiary can use.", len(found), l.Match)
		}
		target = found[0]
	}
	if err := validPath(target); err != nil {
		return fault.New(fault.Invalid, "bad_plan", "The plan for the engine makes a link to a bad name: %w.", err)
	}
	if rel, err := filepath.Rel(filepath.Dir(l.Name), target); err != nil {
		return err
	} else {
		return root.Symlink(rel, l.Name)
	}
}

// glob is fs.Glob, with "**/" at the beginning for every folder.
func glob(in fs.FS, pattern string) (found []string, err error) {
	base, deep := strings.CutPrefix(pattern, "**/")
	if !deep {
		return fs.Glob(in, pattern)
	}
	err = fs.WalkDir(in, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		ok, err := path.Match(base, path.Base(p))
		if ok {
			found = append(found, p)
		}
		return err
	})
	return found, err
}

// expect fails unless a regular file is there, perhaps through a link.
func expect(dir string, x *vendor.ExpectStep) error {
	if validPath(x.Path) != nil {
		return fault.New(fault.Invalid, "bad_plan", "The plan for the engine expects a file with a bad name.")
	}
	st, err := os.Stat(filepath.Join(dir, filepath.FromSlash(x.Path)))
	if err != nil || !st.Mode().IsRegular() || x.Executable && st.Mode()&0o111 == 0 {
		return fault.New(fault.Invalid, "engine_incomplete", "%s", x.Message)
	}
	return nil
}
