package artifact

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of every archive, whatever its step allows.
const (
	maxArchiveEntries = 10_000
	maxArchiveRatio   = 20      // unpacked to packed; shared libraries reach 4
	ratioSlack        = 1 << 20 // small archives of text may pack better
	headerAllowance   = 2048    // per entry of a tarball: its header, the names of long files and the padding
)

func badArchive(format string, args ...any) error {
	return fault.New(fault.Invalid, "bad_archive", "The archive was refused and nothing of it was installed: "+format+".", args...)
}

// extractor unpacks one archive below a folder. Regular files and folders come out, with mode 0644 or 0755, and where links are allowed
// those that stay in the folder.
type extractor struct {
	ctx   context.Context // of the one call for which an extractor lives
	root  *os.Root
	step  *vendor.ExtractStep
	links bool  // they are allowed
	limit int64 // unpacked bytes
	max   int   // entries

	entries  int
	unpacked int64
	names    map[string]string // files and folders that were made, by their names in lower case
	linked   []linkEntry       // made when all files are there, so that nothing is written by way of a link
	report   func(n int64)
}

// extract unpacks the archive file, of size bytes, into dir, which exists. Links are for archives of engines, whose libraries have
// several names.
func extract(ctx context.Context, file string, size int64, dir string, step *vendor.ExtractStep, links bool, report func(n int64)) error {
	if step.Prefix != "" {
		if err := validPath(strings.TrimSuffix(step.Prefix, "/")); err != nil || !strings.HasSuffix(step.Prefix, "/") {
			return badArchive("its plan wants the folder %q", step.Prefix)
		}
	}
	if step.Into != "." {
		if err := validPath(step.Into); err != nil {
			return badArchive("its plan unpacks into %q", step.Into)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	x := &extractor{ctx: ctx, root: root, step: step, links: links, limit: size*maxArchiveRatio + ratioSlack, max: maxArchiveEntries, report: report}
	if step.MaxBytes > 0 {
		x.limit = min(x.limit, step.MaxBytes)
	}
	if step.MaxEntries > 0 {
		x.max = min(x.max, step.MaxEntries)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := io.ReadFull(f, magic[:]); err != nil {
		return badArchive("it is too short")
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	switch {
	case magic[0] == 0x1f && magic[1] == 0x8b:
		err = x.tarball(f)
	case string(magic[:]) == "PK\x03\x04":
		err = x.zip(f, size)
	default:
		err = badArchive("it is neither a .tar.gz nor a .zip file")
	}
	if err != nil {
		return err
	}
	return x.makeLinks()
}

func (x *extractor) tarball(f io.Reader) error {
	gz, err := gzip.NewReader(bufio.NewReaderSize(f, 256<<10))
	if err != nil {
		return badArchive("it is damaged (%v)", err)
	}
	// Headers count too: a stream of nothing else would never come out of Next.
	tr := tar.NewReader(&boundedReader{ctx: x.ctx, r: gz, left: x.limit + int64(x.max)*headerAllowance})
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if x.ctx.Err() != nil {
			return x.ctx.Err()
		}
		if err != nil {
			return badArchive("it is damaged (%v)", err)
		}
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return badArchive("%q is a sparse file", h.Name)
			}
		}
		switch h.Typeflag {
		case tar.TypeXGlobalHeader:
			if err := x.count("a header", 0); err != nil {
				return err
			}
			continue
		case tar.TypeReg, tar.TypeDir:
		case tar.TypeSymlink, tar.TypeLink:
			if err := x.link(h.Name, h.Linkname, h.Typeflag == tar.TypeLink); err != nil {
				return err
			}
			continue
		default:
			return badArchive("%q is neither a file nor a folder but %s", h.Name, special(h.FileInfo().Mode()))
		}
		if err := x.entry(h.Name, h.Size, h.Typeflag == tar.TypeDir, h.FileInfo().Mode(), tr); err != nil {
			return err
		}
	}
}

// boundedReader fails after left bytes, and when ctx ends.
type boundedReader struct {
	ctx  context.Context
	r    io.Reader
	left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.left <= 0 {
		return 0, errors.New("it unpacks to more than is allowed")
	}
	n, err := b.r.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func (x *extractor) zip(f *os.File, size int64) error {
	zr, err := openZip(f, size)
	if err != nil {
		return badArchive("it is damaged (%v)", err)
	}
	if n := len(zr.File); n > x.max {
		return badArchive("it has %d entries, %d are allowed", n, x.max)
	}
	for _, e := range zr.File {
		mode := e.Mode()
		if mode.Type() == fs.ModeSymlink {
			if err := x.zipLink(e); err != nil {
				return err
			}
			continue
		}
		if !mode.IsRegular() && !mode.IsDir() {
			return badArchive("%q is neither a file nor a folder but %s", e.Name, special(mode))
		}
		if e.UncompressedSize64 > 1<<62 {
			return badArchive("%q has an impossible size", e.Name)
		}
		r, err := e.Open()
		if err != nil {
			return badArchive("it is damaged (%v)", err)
		}
		err = x.entry(e.Name, int64(e.UncompressedSize64), mode.IsDir(), mode, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return nil
}

// count adds an entry of size bytes to the totals, before anything of it is written.
func (x *extractor) count(name string, size int64) error {
	if x.entries++; x.entries > x.max {
		return badArchive("it has more than %d entries", x.max)
	}
	if size < 0 || size > x.limit-x.unpacked {
		return badArchive("it unpacks to more than %s, at %q", contract.Bytes(x.limit), name)
	}
	x.unpacked += size
	return x.ctx.Err()
}

// sameCase refuses a file that, or whose folders, would be another one of the archive where case does not count, as on macOS.
func (x *extractor) sameCase(to string) error {
	if x.names == nil {
		x.names = map[string]string{}
	}
	for p := to; p != "."; p = path.Dir(p) {
		key := strings.ToLower(p)
		if other, ok := x.names[key]; ok && other != p {
			return badArchive("%q and %q differ only in case", other, p)
		}
		x.names[key] = p
	}
	return nil
}

// unpackError tells an archive whose names do not go together from a disk that fails.
func unpackError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrExist), errors.Is(err, syscall.ENOTDIR):
		return badArchive("%q lies in a folder that is a file", name)
	case errors.Is(err, syscall.ENAMETOOLONG):
		return badArchive("the name %q is too long", name)
	}
	return fmt.Errorf("unpack %s: %w", name, err)
}

// place returns where an entry belongs, "" for one that is left out.
func (x *extractor) place(name string) (string, error) {
	clean := strings.TrimPrefix(strings.TrimSuffix(name, "/"), "./")
	if clean == "" || clean == "." {
		return "", nil
	}
	if err := validPath(clean); err != nil {
		return "", badArchive("%w", err)
	}
	rel, inside := strings.CutPrefix(clean, x.step.Prefix)
	if !inside {
		return "", nil
	}
	to := path.Join(x.step.Into, rel)
	if strings.HasPrefix(path.Base(to), tmpPrefix) {
		return "", badArchive("%q has a name that Apiary uses itself", name)
	}
	return to, nil
}

func (x *extractor) entry(name string, size int64, dir bool, mode fs.FileMode, r io.Reader) error {
	if err := x.count(name, size); err != nil {
		return err
	}
	to, err := x.place(name)
	if err != nil || to == "" || dir {
		return err // the folders of files are made with them
	}
	if err := x.sameCase(to); err != nil {
		return err
	}
	if err := x.root.MkdirAll(path.Dir(to), 0o755); err != nil {
		return unpackError(name, err)
	}
	perm := fs.FileMode(0o644)
	if mode.Perm()&0o111 != 0 {
		perm = 0o755
	}
	f, err := x.root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if errors.Is(err, fs.ErrExist) {
		return badArchive("%q comes twice", name)
	}
	if err != nil {
		return unpackError(name, err)
	}
	before := x.unpacked - size
	n, err := copyContext(x.ctx, f, io.LimitReader(r, size+1), func(n int64) { x.report(before + n) })
	if err != nil {
		_ = f.Close()
		if _, ours := errors.AsType[*writeError](err); ours || x.ctx.Err() != nil {
			return err
		}
		return badArchive("it is damaged (%v)", err)
	}
	if n != size {
		_ = f.Close()
		return badArchive("%q has %d bytes and announces %d", name, n, size)
	}
	if err := f.Chmod(perm); err != nil { // whatever the umask
		return errors.Join(err, f.Close())
	}
	return f.Close()
}
