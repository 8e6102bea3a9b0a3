package artifact

import (
	"archive/zip"
	"errors"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
)

// maxLinks bounds the links of an archive, maxTarget the name that one leads to, in bytes.
const (
	maxLinks  = 2000
	maxTarget = 1024
)

// linkEntry is a link of an archive that is made when all files are there.
type linkEntry struct {
	name, to string
	leads    string // where it leads, from the folder of the engine
	hard     bool
}

// special says what an entry is that nobody needs in an archive.
func special(mode fs.FileMode) string {
	switch {
	case mode&(fs.ModeDevice|fs.ModeCharDevice) != 0:
		return "a device"
	case mode&fs.ModeNamedPipe != 0:
		return "a pipe"
	case mode&fs.ModeSymlink != 0:
		return "a link"
	}
	return "something else"
}

// link notes a link. A hard one names its file from the top of the archive, the other kind from its own folder.
func (x *extractor) link(name, target string, hard bool) error {
	if !x.links {
		return badArchive("%q is neither a file nor a folder but a link", name)
	}
	if err := x.count(name, 0); err != nil {
		return err
	}
	to, err := x.place(name)
	if err != nil || to == "" {
		return err
	}
	if len(x.linked) == maxLinks {
		return badArchive("it has more than %d links", maxLinks)
	}
	outside := badArchive("the link %q leads to %.80q, which is not in the folder that is unpacked", name, target)
	if len(target) > maxTarget || target == "" || path.IsAbs(target) || strings.ContainsRune(target, 0) {
		return outside
	}
	from := path.Clean(strings.TrimPrefix(target, "./"))
	if !hard {
		from = path.Join(path.Dir(strings.TrimPrefix(name, "./")), target)
	}
	leads, err := x.place(from)
	if err != nil || leads == "" {
		return outside
	}
	if err := x.sameCase(to); err != nil {
		return err
	}
	x.linked = append(x.linked, linkEntry{name: name, to: to, leads: leads, hard: hard})
	return nil
}

// zipLink notes a link of a .zip file, whose content is where it leads.
func (x *extractor) zipLink(e *zip.File) error {
	if e.UncompressedSize64 > maxTarget {
		return badArchive("the link %q leads to a name of %d bytes", e.Name, e.UncompressedSize64)
	}
	r, err := e.Open()
	if err != nil {
		return badArchive("it is damaged (%v)", err)
	}
	target, err := io.ReadAll(io.LimitReader(r, maxTarget+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return badArchive("it is damaged (%v)", err)
	}
	return x.link(e.Name, string(target), false)
}

// makeLinks makes the links. Their folders come first: none of them is a link then. What they lead to is looked at in the end, by
// way of all of them, because they may lead to each other.
func (x *extractor) makeLinks() error {
	for _, l := range x.linked {
		if err := x.root.MkdirAll(path.Dir(l.to), 0o755); err != nil {
			return unpackError(l.name, err)
		}
	}
	for _, hard := range []bool{true, false} { // a hard link is one to a file
		for _, l := range x.linked {
			if l.hard != hard {
				continue
			}
			var err error
			if hard {
				if st, serr := x.root.Lstat(l.leads); serr != nil || !st.Mode().IsRegular() {
					return badArchive("the link %q leads to %q, which is no file of it", l.name, l.leads)
				}
				err = x.root.Link(l.leads, l.to)
			} else {
				var rel string
				if rel, err = filepath.Rel(path.Dir(l.to), l.leads); err == nil {
					err = x.root.Symlink(rel, l.to)
				}
			}
			if errors.Is(err, fs.ErrExist) {
				return badArchive("%q comes twice", l.name)
			}
			if err != nil {
				return unpackError(l.name, err)
			}
		}
	}
	for _, l := range x.linked {
		if _, err := x.root.Stat(l.to); err != nil {
			return badArchive("the link %q leads to %q, which is not in it", l.name, l.leads)
		}
	}
	return nil
}
