package artifact

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

type entry struct {
	name string
	body string
	mode int64
	typ  byte
	link string
	pax  map[string]string
}

// tgz makes a .tar.gz of entries.
func tgz(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	gz, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	tw := tar.NewWriter(gz)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.body)), Typeflag: e.typ, Linkname: e.link, PAXRecords: e.pax, Devmajor: 1, Devminor: 3}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(e.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpack extracts an archive into a new folder.
func unpack(t testing.TB, archive []byte, step vendor.ExtractStep) (string, error) {
	t.Helper()
	file := write(t, filepath.Join(t.TempDir(), "a"), archive)
	dir := filepath.Join(t.TempDir(), "out")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	step.Into = "."
	return dir, extract(t.Context(), file, int64(len(archive)), dir, &step, false, func(int64) {})
}

// unpackEngine is unpack for an archive of an engine.
func unpackEngine(t testing.TB, archive []byte, step vendor.ExtractStep) (string, error) {
	t.Helper()
	file := write(t, filepath.Join(t.TempDir(), "a"), archive)
	dir := filepath.Join(t.TempDir(), "out")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	step.Into = "."
	return dir, extract(t.Context(), file, int64(len(archive)), dir, &step, true, func(int64) {})
}

func TestExtract(t *testing.T) {
	a := tgz(t,
		entry{name: "package/", typ: tar.TypeDir, mode: 0o755},
		entry{name: "package/README.md", body: "outside"},
		entry{name: "package/bins/x/lib.so", body: "ELF", mode: 0o4755},
		entry{name: "package/bins/x/sub/b.txt", body: "bee", mode: 0o666},
		entry{name: "package/bins/xy/no", body: "a neighbour"},
	)
	dir, err := unpack(t, a, vendor.ExtractStep{Prefix: "package/bins/x/"})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if !d.IsDir() {
			st, _ := d.Info()
			b, _ := os.ReadFile(p)
			rel, _ := filepath.Rel(dir, p)
			got = append(got, fmt.Sprintf("%s %v %s", rel, st.Mode(), b))
		}
		return err
	})
	if want := "lib.so -rwxr-xr-x ELF,sub/b.txt -rw-r--r-- bee"; strings.Join(got, ",") != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// T58: bombs and traps are refused by type or limit, quickly, and leave next to nothing on the disk.
func TestExtractRefuses(t *testing.T) {
	t.Parallel()
	many := make([]entry, maxArchiveEntries+1)
	for i := range many {
		many[i] = entry{name: fmt.Sprintf("f%d", i), typ: tar.TypeDir, mode: 0o755}
	}
	zeros := strings.Repeat("\x00", 2<<20)
	valid := tgz(t, entry{name: "a", body: strings.Repeat("abc", 1000)})
	for name, c := range map[string]struct {
		archive []byte
		step    vendor.ExtractStep
		part    string
	}{
		"gzip 1000:1":       {archive: tgz(t, entry{name: "a", body: zeros}), part: "unpacks to more than"},
		"gzip of headers":   {archive: headerBomb(t), step: vendor.ExtractStep{MaxEntries: 100}, part: "more than"},
		"over the declared": {archive: valid, step: vendor.ExtractStep{MaxBytes: 2999}, part: "unpacks to more than"},
		"outside counts":    {archive: tgz(t, entry{name: "a", body: zeros}), step: vendor.ExtractStep{Prefix: "b/"}, part: "unpacks to more than"},
		"many entries":      {archive: tgz(t, many...), part: "more than 10000 entries"},
		"step's entries":    {archive: tgz(t, many[:4]...), step: vendor.ExtractStep{MaxEntries: 3}, part: "more than 3 entries"},
		"up":                {archive: tgz(t, entry{name: "../a", body: "x"}), part: "not a relative path"},
		"up inside":         {archive: tgz(t, entry{name: "p/../../a", body: "x"}), part: "not a relative path"},
		"absolute":          {archive: tgz(t, entry{name: "/tmp/a", body: "x"}), part: "not a relative path"},
		"backslash":         {archive: tgz(t, entry{name: `..\a`, body: "x"}), part: "not allowed"},
		"control":           {archive: tgz(t, entry{name: "a\x1b[2J", body: "x"}), part: "not allowed"},
		"symlink":           {archive: tgz(t, entry{name: "a", typ: tar.TypeSymlink, link: "/etc/passwd"}), part: "neither a file nor a folder"},
		"hard link":         {archive: tgz(t, entry{name: "a", body: "x"}, entry{name: "b", typ: tar.TypeLink, link: "a"}), part: "neither a file nor a folder"},
		"device":            {archive: tgz(t, entry{name: "a", typ: tar.TypeChar}), part: "neither a file nor a folder"},
		"fifo":              {archive: tgz(t, entry{name: "a", typ: tar.TypeFifo}), part: "neither a file nor a folder"},
		"sparse 1 PB":       {archive: sparseBomb(t), part: "sparse"},
		"twice":             {archive: tgz(t, entry{name: "a", body: "x"}, entry{name: "a", body: "y"}), part: "comes twice"},
		"file as folder":    {archive: tgz(t, entry{name: "a", body: "x"}, entry{name: "a/b", body: "y"}), part: ""},
		"cut off":           {archive: valid[:len(valid)-20], part: "damaged"},
		"empty":             {archive: nil, part: "too short"},
		"neither":           {archive: []byte("#!/bin/sh\nrm"), part: "neither"},
		"zip bomb":          {archive: zipOf(t, 1, "a%d", zeros), part: "unpacks to more than"},
		"zip many entries":  {archive: zipOf(t, maxArchiveEntries+1, "f%d", ""), part: "entries"},
		"zip up":            {archive: zipOf(t, 1, "../a%d", "x"), part: "not a relative path"},
		"zip damaged":       {archive: zipOf(t, 1, "a%d", "x")[:30], part: "damaged"},
		"other case":        {archive: tgz(t, entry{name: "lib/A.so", body: "x"}, entry{name: "lib/a.so", body: "y"}), part: "differ only in case"},
		"folder in case":    {archive: tgz(t, entry{name: "Lib/a.so", body: "x"}, entry{name: "lib/b.so", body: "y"}), part: "differ only in case"},
		"new line":          {archive: tgz(t, entry{name: "a\nb", body: "x"}), part: "not allowed"},
		"NUL":               {archive: rawTar(t, "a\x00b", "x"), part: ""},
		"right to left":     {archive: tgz(t, entry{name: "a\u202egpj.so", body: "x"}), part: "not allowed"},
		"long name":         {archive: tgz(t, entry{name: strings.Repeat("a", 300), body: "x"}), part: "not a relative path"},
		"deep":              {archive: tgz(t, entry{name: strings.Repeat("a/", 600) + "a", body: "x"}), part: "too long"},
		"dots":              {archive: tgz(t, entry{name: "a/./b", body: "x"}), part: "not a relative path"},
		"slashes":           {archive: tgz(t, entry{name: "a//b", body: "x"}), part: "not a relative path"},
		"drive":             {archive: tgz(t, entry{name: `c:\a`, body: "x"}), part: "not allowed"},
		"through a link":    {archive: tgz(t, entry{name: "d", typ: tar.TypeSymlink, link: ".."}, entry{name: "d/a", body: "x"}), part: "neither a file nor a folder"},
		"block device":      {archive: tgz(t, entry{name: "a", typ: tar.TypeBlock}), part: "neither a file nor a folder"},
		"size of 8 EB":      {archive: hugeTar(t), part: "unpacks to more than"},
		"our name":          {archive: tgz(t, entry{name: tmpPrefix + "x", body: "x"}), part: "uses itself"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			dir, err := unpack(t, c.archive, c.step)
			if err == nil || c.part != "" && (fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), c.part)) {
				t.Fatalf("got %v, want %q", err, c.part)
			}
			if d := time.Since(begin); d > 5*time.Second { // 1 s without the race detector and neighbours
				t.Errorf("took %v", d)
			}
			var onDisk int64
			_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, _ error) error {
				if st, err := d.Info(); err == nil && st.Mode().IsRegular() {
					onDisk += st.Size()
				}
				return nil
			})
			if onDisk > 1<<20 {
				t.Errorf("%d bytes on the disk", onDisk)
			}
			if _, err := os.Lstat(filepath.Join(dir, "..", "a")); err == nil {
				t.Error("a file outside the folder")
			}
		})
	}
}

// TestExtractLinks: the names that an engine's libraries have beside their own come out, and none leads out.
func TestExtractLinks(t *testing.T) {
	sym := func(name, to string) entry { return entry{name: name, typ: tar.TypeSymlink, link: to} }
	hard := func(name, to string) entry { return entry{name: name, typ: tar.TypeLink, link: to} }
	lib := entry{name: "./p/lib/libx.so.1.2", body: "ELF", mode: 0o755}
	archive := tgz(t, sym("./p/libx.so", "lib/libx.so"), sym("./p/lib/libx.so", "libx.so.1"), sym("./p/lib/libx.so.1", "./libx.so.1.2"), lib, hard("./p/bin/x", "./p/lib/libx.so.1.2"),
		sym("./p/bin/lib", "../lib"), sym("./elsewhere", "/etc"))
	for name, a := range map[string][]byte{"tar": archive, "zip": zipLinks(t, map[string]string{"p/libx.so": "lib/libx.so.1.2", "p/bin/lib": "../lib", "p/lib/libx.so": "libx.so.1.2", "p/bin/x": "../lib/libx.so.1.2"}, "p/lib/libx.so.1.2")} {
		dir, err := unpackEngine(t, a, vendor.ExtractStep{Prefix: "p/"})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, file := range []string{"libx.so", "lib/libx.so", "bin/x", "bin/lib/libx.so.1.2"} {
			if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != "ELF" {
				t.Errorf("%s, %s: %q, %v", name, file, got, err)
			}
		}
	}
	many := []entry{lib}
	for i := range maxLinks + 1 {
		many = append(many, sym(fmt.Sprintf("l%d", i), "p/lib/libx.so.1.2"))
	}
	for name, a := range map[string][]byte{
		"absolute":          tgz(t, sym("a", "/etc/passwd")),
		"up":                tgz(t, sym("a/b", "../../c")),
		"up by a hard link": tgz(t, hard("a", "../../etc/passwd")),
		"absolute, hard":    tgz(t, hard("a", "/etc/passwd")),
		"nowhere":           tgz(t, sym("a", "b")),
		"nowhere, hard":     tgz(t, hard("a", "b")),
		"in a circle":       tgz(t, sym("a", "b"), sym("b", "a")),
		"to itself":         tgz(t, sym("a", "a")),
		"to the top":        tgz(t, sym("a", ".")),
		"through a link":    tgz(t, lib, sym("d", "p"), entry{name: "d/a", body: "x"}),
		"link in a link":    tgz(t, lib, sym("d", "p/lib"), sym("d/e", "libx.so.1.2")),
		"up by links":       tgz(t, lib, sym("a/b/c/d", "../../../p"), sym("m", "a/b/c/d/../../../../x")),
		"hard to a link":    tgz(t, lib, sym("a", "p/lib/libx.so.1.2"), hard("b", "a")),
		"twice":             tgz(t, lib, sym("a", "p"), sym("a", "p")),
		"over a file":       tgz(t, lib, sym("p/lib/libx.so.1.2", "libx.so.1.2")),
		"case":              tgz(t, lib, sym("A", "p"), sym("a", "p")),
		"too many":          tgz(t, many...),
		"long target":       tgz(t, lib, sym("a", strings.Repeat("./", 600)+"p")),
		"zip, absolute":     zipLinks(t, map[string]string{"a": "/etc/passwd"}, "f"),
		"zip, up":           zipLinks(t, map[string]string{"a": "../f"}, "f"),
	} {
		dir, err := unpackEngine(t, a, vendor.ExtractStep{})
		if fault.As(err).Code != "bad_archive" || strings.Contains(err.Error(), "type '") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "..", "c")); err == nil {
			t.Errorf("%s: a file outside", name)
		}
	}
	if _, err := unpackEngine(t, tgz(t, lib, sym("x", "p")), vendor.ExtractStep{MaxEntries: 1}); fault.As(err).Code != "bad_archive" {
		t.Errorf("links are not counted: %v", err)
	}
}

// zipLinks makes a .zip file of a file that holds "ELF", and links.
func zipLinks(t testing.TB, links map[string]string, file string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	add := func(name, body string, mode fs.FileMode) {
		h := &zip.FileHeader{Name: name}
		h.SetMode(mode)
		f, err := w.CreateHeader(h)
		if err == nil {
			_, err = f.Write([]byte(body))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range links {
		add(name, to, 0o777|fs.ModeSymlink)
	}
	add(file, "ELF", 0o755)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExtractZip(t *testing.T) {
	dir, err := unpack(t, zipOf(t, 3, "p/f%d", "body"), vendor.ExtractStep{Prefix: "p/"})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "f2")); err != nil || string(got) != "body" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestExtractCancelled(t *testing.T) {
	file := write(t, filepath.Join(t.TempDir(), "a"), tgz(t, entry{name: "a", body: "x"}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := extract(ctx, file, 1<<20, t.TempDir(), &vendor.ExtractStep{Into: "."}, false, func(int64) {}); fault.KindOf(err) != fault.Interrupted {
		t.Errorf("got %v", err)
	}
}

func zipOf(t testing.TB, n int, name, body string) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	for i := range n {
		h := &zip.FileHeader{Name: fmt.Sprintf(name, i), Method: zip.Deflate}
		if body == "" {
			h.Method = zip.Store // a new compressor for each of many entries takes the race detector seconds
		}
		w, err := zw.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// rawTar is an archive of one file in the old form of names, which may hold anything.
func rawTar(t testing.TB, name, body string) []byte {
	t.Helper()
	rec := func(k, v string) string { return fmt.Sprintf("%d %s=%s\n", len(k)+len(v)+5, k, v) }
	return gzipped(t, append(tarBlock("x", 'x', len(rec("path", name)), rec("path", name)), tarBlock("a", '0', len(body), body)...))
}

// hugeTar is an archive of one file that claims the largest size that a header can hold.
func hugeTar(t testing.TB) []byte {
	t.Helper()
	rec := fmt.Sprintf("28 size=%d\n", int64(1)<<62)
	return gzipped(t, append(tarBlock("x", 'x', len(rec), rec), tarBlock("a", '0', 1, "x")...))
}

// tarBlock is a header of a tarball for size bytes and what follows it, filled up to whole blocks.
func tarBlock(name string, typ byte, size int, body string) []byte {
	h := make([]byte, 512)
	copy(h, name)
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00%011o\x00", size, 0))
	copy(h[148:], "        ")
	h[156] = typ
	copy(h[257:], "ustar\x0000")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	h = append(h, body...)
	return append(h, make([]byte, (512-len(body)%512)%512)...)
}

// gzipped packs a tarball without its end.
func gzipped(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	_, err := gz.Write(append(raw, make([]byte, 1024)...))
	if err = errors.Join(err, gz.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// headerBomb is a stream of extended headers with no file after them, which archive/tar reads on and on.
func headerBomb(t testing.TB) []byte {
	t.Helper()
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	if err := tw.WriteHeader(&tar.Header{Name: "a", Typeflag: tar.TypeReg, Mode: 0o644, PAXRecords: map[string]string{"APIARY.x": strings.Repeat("x", 500<<10)}}); err != nil {
		t.Fatal(err)
	}
	head := raw.Bytes()[:raw.Len()-512] // without the header of the file
	var b bytes.Buffer
	gz := gzip.NewWriter(&b)
	for range 10 {
		_, _ = gz.Write(head)
	}
	_ = gz.Close()
	return b.Bytes()
}

// sparseBomb is a file of 1 PB that takes no space in the archive, in the format of GNU tar 1.0.
func sparseBomb(t testing.TB) []byte {
	t.Helper()
	rec := func(k, v string) string { // length, space, key=value, newline
		n := len(k) + len(v) + 3
		for n != len(fmt.Sprint(n))+len(k)+len(v)+3 {
			n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := rec("GNU.sparse.major", "1") + rec("GNU.sparse.minor", "0") + rec("GNU.sparse.name", "a") + rec("GNU.sparse.realsize", "1125899906842624")
	body := "1\n1125899906842624\n0\n" + strings.Repeat("\x00", 491)
	return gzipped(t, append(tarBlock("x", 'x', len(pax), pax), tarBlock("a", '0', len(body), body)...))
}
