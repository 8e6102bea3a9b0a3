package artifact

import (
	"archive/tar"
	"archive/zip"
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// maxListed bounds how many members of an archive an error lists.
const maxListed = 8

// errKept ends the use of a fetched archive that may be needed again soon.
var errKept = errors.New("the archive stays")

// checkMember refuses what a vendor may not say about a file inside an archive.
func checkMember(m *vendor.ArchiveMember) error {
	if m.Archive.SHA256 == "" && m.Archive.SHA512 == "" || m.Archive.SHA256 != "" && !validDigest(m.Archive.SHA256) {
		return errors.New("it gives no usable digest of an archive")
	}
	if m.Match == "" {
		return validPath(m.Path)
	}
	if _, err := path.Match(m.Match, "x"); err != nil || m.Path != "" || strings.Contains(m.Match, "/") || len(m.Match) > 255 {
		return fmt.Errorf("it looks for %q in an archive", m.Match[:min(len(m.Match), 64)])
	}
	return nil
}

// fetchMember transfers the archive that holds f, verifies it, and publishes the one member that is wanted. The archive is
// dropped, unless it was only asked for the wrong member.
func (s *Store) fetchMember(ctx context.Context, from origin, f vendor.File, report Report, have func() bool) (contract.File, error) {
	archive := vendor.File{Path: f.Path, Size: f.Member.Size, Digests: f.Member.Archive, Sources: f.Sources}
	if archive.Size == 0 {
		archive.Size = -1
	}
	if !have() {
		if err := s.checkSpace(s.memberNeeds(f, archive), f.Path); err != nil {
			return contract.File{}, err
		}
	}
	var out contract.File
	var wrong error // the archive is right and what was asked of it is not
	err := s.fetch(ctx, from, archive, int64(s.opts.MaxFile), f.Path, report, have, func(got fetched) error {
		var err error
		if out, err = s.publishMember(ctx, f, got, report); err == nil {
			return nil
		}
		if c := fault.As(err).Code; c == codeWhichMember || c == codeNoMember {
			wrong = err
			return errKept
		}
		return err
	})
	return out, cmp.Or(wrong, err)
}

// memberNeeds is how much disk the missing part of an archive and its member need, as far as it is known before the archive
// is there.
func (s *Store) memberNeeds(f vendor.File, archive vendor.File) int64 {
	if archive.Size < 0 {
		return max(f.Size, 0)
	}
	missing := archive.Size
	if st, err := os.Lstat(s.path("partial", partialKey(archive)+".part")); err == nil {
		missing = max(missing-st.Size(), 0)
	}
	return missing + max(f.Size, archive.Size) // a packed file is no smaller unpacked
}

// publishMember takes the member out of a verified archive, verifies it too, and gives it the name of its digest.
func (s *Store) publishMember(ctx context.Context, f vendor.File, got fetched, report Report) (contract.File, error) {
	p := &picker{s: s, ctx: ctx, file: f, size: got.size, tmp: s.path("partial", tmpPrefix+"member-"+got.sha256[:24]), report: report}
	defer func() { _ = os.Remove(p.tmp) }() // after the publishing there is nothing to remove
	if err := p.pick(got.path); err != nil {
		return contract.File{}, s.noSpace(err, "unpacking "+f.Path, max(f.Size, 0))
	}
	if want := f.Digests.SHA256; want != "" && want != p.sha256 {
		return contract.File{}, fault.New(fault.Conflict, codeDigest, "%s in its archive is not what it should be: its sha256 should be %s and is %s; nothing uses it, report this to the maker of its plugin.", f.Path, want, p.sha256)
	}
	if err := inspectRole(p.tmp, f); err != nil {
		return contract.File{}, err
	}
	return contract.File{Path: f.Path, SHA256: p.sha256, SizeBytes: contract.Bytes(p.written)}, s.publishBlob(p.tmp, p.sha256)
}

const (
	codeWhichMember = "ambiguous_model"
	codeNoMember    = "member_not_found"
)

// picker takes one member out of an archive, of which nothing else is written.
type picker struct {
	s      *Store
	ctx    context.Context // of the one call for which a picker lives
	file   vendor.File     // what is wanted
	size   int64           // of the archive
	tmp    string          // where the member goes
	report Report

	found   []string // members that match
	others  []string // some of those that do not
	entries int
	sha256  string
	written int64
}

// bad says what is wrong with the archive.
func (p *picker) bad(format string, args ...any) error {
	return fault.New(fault.Invalid, "bad_archive", "The archive that holds %s was refused and nothing of it is used: "+format+".", append([]any{p.file.Path}, args...)...)
}

// limit is the most that all of the archive may unpack to.
func (p *picker) limit() int64 {
	most := int64(p.s.opts.MaxFile)
	if p.size < most/maxArchiveRatio {
		most = min(most, p.size*maxArchiveRatio+ratioSlack)
	}
	return most
}

func (p *picker) pick(archive string) error {
	f, err := openRegular(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil {
		return p.bad("it is too short")
	}
	switch {
	case magic[0] == 0x1f && magic[1] == 0x8b:
		err = p.tarball(f)
	case string(magic[:]) == "PK\x03\x04":
		err = p.zip(f)
	default:
		err = p.bad("it is neither a .tar.gz nor a .zip file")
	}
	if err != nil {
		return err
	}
	return p.exactlyOne()
}

// exactlyOne fails unless one member matched.
func (p *picker) exactlyOne() error {
	switch wanted := cmp.Or(p.file.Member.Match, p.file.Member.Path); {
	case len(p.found) == 1:
		return nil
	case len(p.found) > 1 && p.file.Member.Match == "":
		return p.bad("it has %q twice", wanted)
	case len(p.found) > 1:
		return fault.New(fault.Invalid, codeWhichMember, "The archive of %s holds %d files that match %s: %s; name one of them in the reference.", p.file.Path, len(p.found), wanted, listed(p.found))
	case len(p.others) == 0:
		return fault.New(fault.NotFound, codeNoMember, "The archive of %s is empty, so there is no %s in it; check the reference.", p.file.Path, wanted)
	default:
		return fault.New(fault.NotFound, codeNoMember, "The archive of %s holds no %s; it holds %s; check the reference.", p.file.Path, wanted, listed(p.others))
	}
}

// listed writes a few names.
func listed(names []string) string {
	slices.Sort(names)
	more := ""
	if len(names) > maxListed {
		names, more = names[:maxListed], fmt.Sprintf(" and %d more", len(names)-maxListed)
	}
	return strings.Join(names, ", ") + more
}

// matches counts an entry, and reports whether it is the member that is wanted. Names that no file may have match nothing.
func (p *picker) matches(name string, dir bool) (bool, error) {
	if p.entries++; p.entries > maxArchiveEntries {
		return false, p.bad("it has more than %d entries", maxArchiveEntries)
	}
	clean := strings.TrimPrefix(name, "./")
	if dir || validPath(clean) != nil {
		return false, p.ctx.Err()
	}
	m := p.file.Member
	is := clean == m.Path
	if m.Match != "" {
		is, _ = path.Match(m.Match, path.Base(clean)) // the pattern was checked
	}
	switch {
	case is:
		p.found = append(p.found, clean)
	case len(p.others) < maxArchiveEntries:
		p.others = append(p.others, clean)
	}
	return is, p.ctx.Err()
}

func (p *picker) zip(f *os.File) error {
	zr, err := openZip(f, p.size)
	if err != nil {
		return p.bad("it is damaged (%v)", err)
	}
	var member *zip.File
	for _, e := range zr.File {
		is, err := p.matches(e.Name, e.Mode().IsDir())
		if err != nil {
			return err
		}
		if is {
			member = e
		}
	}
	if len(p.found) != 1 {
		return nil // exactlyOne says why
	}
	switch {
	case !member.Mode().IsRegular():
		return p.bad("%q is no regular file", member.Name)
	case member.Flags&1 != 0:
		return p.bad("%q is encrypted", member.Name)
	case member.Method != zip.Store && member.Method != zip.Deflate:
		return p.bad("%q is packed with the method %d, which Apiary does not know", member.Name, member.Method)
	case member.UncompressedSize64 > 1<<62:
		return p.bad("%q has an impossible size", member.Name)
	}
	r, err := member.Open()
	if err != nil {
		return p.bad("it is damaged (%v)", err)
	}
	return errors.Join(p.write(r, int64(member.UncompressedSize64)), r.Close())
}

func (p *picker) tarball(f io.Reader) error {
	gz, err := gzip.NewReader(bufio.NewReaderSize(f, copyBuffer))
	if err != nil {
		return p.bad("it is damaged (%v)", err)
	}
	tr := tar.NewReader(&boundedReader{ctx: p.ctx, r: gz, left: p.limit() + maxArchiveEntries*headerAllowance})
	for {
		h, err := tr.Next()
		if p.ctx.Err() != nil {
			return p.ctx.Err()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return p.bad("it is damaged (%v)", err)
		}
		is, err := p.matches(h.Name, h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeXGlobalHeader)
		if err != nil {
			return err
		}
		if !is || len(p.found) > 1 {
			continue // the others are listed all the same
		}
		for k := range h.PAXRecords {
			if strings.HasPrefix(k, "GNU.sparse.") {
				return p.bad("%q is a sparse file", h.Name)
			}
		}
		if h.Typeflag != tar.TypeReg {
			return p.bad("%q is no regular file", h.Name)
		}
		if err := p.write(tr, h.Size); err != nil {
			return err
		}
	}
}

// write puts the member, which has size bytes, beside the archive, and notes its digest.
func (p *picker) write(r io.Reader, size int64) error {
	if size > p.limit() {
		return p.bad("%s unpacks to more than %s", p.file.Path, contract.Bytes(p.limit()))
	}
	if want := p.file.Size; want >= 0 && size != want {
		return fault.New(fault.Conflict, "source_changed", "%s has %d bytes in its archive, and %d were promised; report this to the maker of its plugin.", p.file.Path, size, want)
	}
	if err := p.s.checkSpace(size, "unpacking "+p.file.Path); err != nil {
		return err
	}
	f, err := os.OpenFile(p.tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	m := newMeter(p.report, "extract", "unpacking "+p.file.Path, size)
	h := sha256.New()
	n, err := copyContext(p.ctx, io.MultiWriter(f, h), io.LimitReader(r, size+1), func(n int64) { p.s.at("member grows"); m.set(n) })
	if err != nil {
		_ = f.Close()
		if _, ours := errors.AsType[*writeError](err); ours || p.ctx.Err() != nil {
			return err
		}
		return p.bad("it is damaged (%v)", err)
	}
	if n != size {
		_ = f.Close()
		return p.bad("%s has %d bytes and announces %d", p.file.Path, n, size)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return &writeError{err}
	}
	m.finish(n)
	p.s.at("member complete")
	p.sha256, p.written = hex.EncodeToString(h.Sum(nil)), n
	return nil
}

// maxDirectory bounds the directory of a zip file: it is read into memory as a whole.
const maxDirectory = 8 << 20

// openZip reads the directory of a zip file. What the file says about the length of its directory does not matter: no more
// than maxDirectory is read.
func openZip(f io.ReaderAt, size int64) (*zip.Reader, error) {
	r := &directoryReader{r: f, left: maxDirectory}
	zr, err := zip.NewReader(r, size)
	if err != nil {
		return nil, err
	}
	r.left = -1
	if len(zr.File) > maxArchiveEntries {
		return nil, fmt.Errorf("it has %d entries, %d are allowed", len(zr.File), maxArchiveEntries)
	}
	return zr, nil
}

// directoryReader fails after left bytes; when left is -1, never.
type directoryReader struct {
	r    io.ReaderAt
	left int64
}

func (d *directoryReader) ReadAt(p []byte, off int64) (int, error) {
	if d.left >= 0 {
		if int64(len(p)) > d.left {
			return 0, errors.New("its directory is too long")
		}
		d.left -= int64(len(p))
	}
	return d.r.ReadAt(p, off)
}
