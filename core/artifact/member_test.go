package artifact

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// packed is a file for zipFiles.
type packed struct {
	name, body string
	store      bool
}

// zipFiles makes a zip file.
func zipFiles(t testing.TB, files ...packed) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.name, Method: zip.Deflate}
		if f.store {
			h.Method = zip.Store
		}
		w, err := zw.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// central changes the entry of the last file in the directory of a zip file.
func central(t testing.TB, archive []byte, change func(entry []byte)) []byte {
	t.Helper()
	out := bytes.Clone(archive)
	i := bytes.LastIndex(out, []byte("PK\x01\x02"))
	if i < 0 {
		t.Fatal("no directory")
	}
	change(out[i:])
	return out
}

// memberVendor gives one file inside the archive that w serves as file 0.
func memberVendor(w *server, m vendor.ArchiveMember) *webVendor {
	m.Archive, m.Size = vendor.Digests{SHA256: sum256(w.bodies[0])}, int64(len(w.bodies[0]))
	return &webVendor{scheme: "w", man: vendor.Manifest{Reference: "w:x@pinned", Format: "gguf", Files: []vendor.File{{
		Path: "m.gguf", Role: vendor.RoleWeights, Size: -1, Sources: []vendor.Source{{URL: w.URL + "/0"}}, Member: &m,
	}}}}
}

func TestMember(t *testing.T) {
	t.Parallel()
	model := string(ggufFile(3, 0, 1, 300_000))
	deflated := zipFiles(t, packed{name: "pkg/__init__.py", body: "x"}, packed{name: "pkg/m.gguf", body: model}, packed{name: "../evil", body: "x"})
	stored := zipFiles(t, packed{name: "pkg/m.gguf", body: model, store: true})
	ball := tgz(t, entry{name: "./pkg/"[:6], typ: tar.TypeDir, mode: 0o755}, entry{name: "./pkg/link", typ: tar.TypeSymlink, link: "/etc/passwd"}, entry{name: "./pkg/m.gguf", body: model}, entry{name: "pkg/z", body: "z"})
	for name, c := range map[string]struct {
		archive []byte
		member  vendor.ArchiveMember
	}{
		"deflated by path":    {deflated, vendor.ArchiveMember{Path: "pkg/m.gguf"}},
		"deflated by pattern": {deflated, vendor.ArchiveMember{Match: "*.gguf"}},
		"stored":              {stored, vendor.ArchiveMember{Path: "pkg/m.gguf"}},
		"tar.gz by path":      {ball, vendor.ArchiveMember{Path: "pkg/m.gguf"}},
		"tar.gz by pattern":   {ball, vendor.ArchiveMember{Match: "m.*"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newServer(t, c.archive)
			w.cutAt, w.cuts = len(c.archive)/2, 1
			s, log, err := pull(t, memberVendor(w, c.member), nil)
			if err != nil {
				t.Fatal(err)
			}
			m, err := s.Model("w:x")
			if err != nil {
				t.Fatal(err)
			}
			if f := m.Files[0]; m.ID != "w:x@pinned" || f.Path != "m.gguf" || f.SHA256 != sum256([]byte(model)) || int(f.SizeBytes) != len(model) {
				t.Errorf("got %+v", m)
			}
			p, err := s.ModelPath(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(p); err != nil || string(b) != model {
				t.Errorf("other bytes, %v", err)
			}
			if left := files(t, s, "partial"); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if !log.has("fetch", "m.gguf") || !log.has("extract", "unpacking m.gguf") || !log.has("retry", "") || w.count() != 2 {
				t.Errorf("%d requests, %+v", w.count(), log.events)
			}
		})
	}
}

func TestMemberRefused(t *testing.T) {
	t.Parallel()
	model := string(ggufFile(3, 0, 1, 3000))
	good := zipFiles(t, packed{name: "m.gguf", body: model})
	many := make([]packed, maxArchiveEntries+1)
	for i := range many {
		many[i] = packed{fmt.Sprintf("f%d", i), "", true}
	}
	crowd := make([]entry, maxArchiveEntries+1)
	for i := range crowd {
		crowd[i] = entry{name: fmt.Sprintf("f%d", i), typ: tar.TypeDir, mode: 0o755}
	}
	bomb := strings.Repeat("\x00", 24<<20)
	put16 := func(at int, v uint16) func([]byte) {
		return func(e []byte) { binary.LittleEndian.PutUint16(e[at:], v) }
	}
	put32 := func(at int, v uint32) func([]byte) {
		return func(e []byte) { binary.LittleEndian.PutUint32(e[at:], v) }
	}
	wrong := sum256([]byte("another"))
	for name, c := range map[string]struct {
		archive []byte
		path    string
		change  func(*vendor.File)
		kind    fault.Kind
		code    string
		part    string
	}{
		"zip bomb":            {archive: zipFiles(t, packed{name: "m.gguf", body: bomb}), part: "unpacks to more than"},
		"gzip bomb":           {archive: tgz(t, entry{name: "m.gguf", body: bomb}), part: "unpacks to more than"},
		"bomb beside it":      {archive: tgz(t, entry{name: "bomb", body: bomb}, entry{name: "m.gguf", body: model}), part: "more than is allowed"},
		"headers only":        {archive: bytes.Repeat(headerBomb(t), 5), part: "damaged"},
		"sparse":              {archive: sparseBomb(t), path: "a", part: "sparse"},
		"says more":           {archive: central(t, good, put32(24, uint32(len(model)+1))), part: ""},
		"says less":           {archive: central(t, good, put32(24, uint32(len(model)-1))), part: ""},
		"says 4 GiB":          {archive: central(t, good, put32(24, 1<<32-2)), part: "unpacks to more than"},
		"wrong checksum":      {archive: central(t, good, put32(16, 7)), part: "damaged"},
		"encrypted":           {archive: central(t, good, put16(8, 1)), part: "encrypted"},
		"unknown method":      {archive: central(t, good, put16(10, 93)), part: "method 93"},
		"a link":              {archive: central(t, good, func(e []byte) { put16(4, 3<<8|20)(e); put32(38, 0o120777<<16)(e) }), part: "no regular file"},
		"a link, tar":         {archive: tgz(t, entry{name: "m.gguf", typ: tar.TypeSymlink, link: "/etc/passwd"}), part: "no regular file"},
		"a hard link, tar":    {archive: tgz(t, entry{name: "x", body: model}, entry{name: "m.gguf", typ: tar.TypeLink, link: "x"}), part: "no regular file"},
		"twice":               {archive: zipFiles(t, packed{name: "m.gguf", body: model}, packed{name: "m.gguf", body: model}), part: "twice"},
		"twice, tar":          {archive: tgz(t, entry{name: "m.gguf", body: model}, entry{name: "./m.gguf", body: model}), part: "twice"},
		"many entries":        {archive: zipFiles(t, many...), part: "10001 entries"},
		"many entries, tar":   {archive: tgz(t, crowd...), part: "more than 10000 entries"},
		"cut off":             {archive: good[:len(good)-9], part: "damaged"},
		"cut off, tar":        {archive: tgz(t, entry{name: "m.gguf", body: model})[:200], part: "damaged"},
		"no archive":          {archive: []byte(model), part: "neither"},
		"short":               {archive: []byte("P"), part: "too short"},
		"not there":           {archive: good, path: "n.gguf", kind: fault.NotFound, code: codeNoMember, part: "holds no n.gguf; it holds m.gguf;"},
		"nothing there":       {archive: zipFiles(t), part: "neither"},
		"no model":            {archive: zipFiles(t, packed{name: "m.gguf", body: "text"}), code: "not_a_model", part: "not a model"},
		"other digest":        {archive: good, change: func(f *vendor.File) { f.Digests.SHA256 = wrong }, kind: fault.Conflict, code: codeDigest, part: "should be " + wrong},
		"other size":          {archive: good, change: func(f *vendor.File) { f.Size = 5 }, kind: fault.Conflict, code: "source_changed", part: "5 were promised"},
		"archive not pinned":  {archive: good, change: func(f *vendor.File) { f.Member.Archive = vendor.Digests{} }, code: "bad_manifest", part: "no usable digest"},
		"other archive":       {archive: good, change: func(f *vendor.File) { f.Member.Archive.SHA256 = wrong }, kind: fault.Conflict, code: codeDigest, part: "quarantine"},
		"path up":             {archive: good, path: "../m.gguf", code: "bad_manifest", part: "not a relative path"},
		"path and pattern":    {archive: good, change: func(f *vendor.File) { f.Member.Match = "*" }, code: "bad_manifest", part: "looks for"},
		"pattern of a folder": {archive: good, change: func(f *vendor.File) { f.Member.Path, f.Member.Match = "", "a/*" }, code: "bad_manifest", part: "looks for"},
		"broken pattern":      {archive: good, change: func(f *vendor.File) { f.Member.Path, f.Member.Match = "", "[" }, code: "bad_manifest", part: "looks for"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newServer(t, c.archive)
			path, kind, code := "m.gguf", fault.Invalid, "bad_archive"
			if c.path != "" {
				path = c.path
			}
			if c.kind != "" {
				kind = c.kind
			}
			if c.code != "" {
				code = c.code
			}
			v := memberVendor(w, vendor.ArchiveMember{Path: path})
			if c.change != nil {
				c.change(&v.man.Files[0])
			}
			s, _, err := pull(t, v, nil)
			wantFault(t, err, kind, code, c.part)
			for _, f := range files(t, s, "partial") {
				if code != codeNoMember && c.code != codeDigest && c.code != "source_changed" || strings.Contains(f, tmpPrefix) {
					t.Errorf("left behind: %s", f)
				}
			}
		})
	}
}

// Who asked for the wrong member, or for one of several, does not fetch the archive again.
func TestMemberChosenLater(t *testing.T) {
	t.Parallel()
	a, b := string(ggufFile(1, 0, 1, 100)), string(ggufFile(2, 0, 1, 100))
	archive := zipFiles(t, packed{name: "p/b.gguf", body: b}, packed{name: "p/a.gguf", body: a}, packed{name: "p/readme", body: "x"})
	w := newServer(t, archive)
	v := memberVendor(w, vendor.ArchiveMember{Match: "*.gguf"})
	s, _, err := pull(t, v, nil)
	wantFault(t, err, fault.Invalid, codeWhichMember, "2 files that match *.gguf: p/a.gguf, p/b.gguf; name one of them")
	v.man.Files[0].Member.Match, v.man.Files[0].Member.Path = "", "p/c.gguf"
	_, err = s.PullModel(t.Context(), "w:x", nil)
	wantFault(t, err, fault.NotFound, codeNoMember, "holds no p/c.gguf; it holds p/a.gguf, p/b.gguf, p/readme")
	v.man.Files[0].Member.Path = "p/b.gguf"
	m, err := s.PullModel(t.Context(), "w:x", nil)
	if err != nil || m.Files[0].SHA256 != sum256([]byte(b)) {
		t.Fatalf("%+v, %v", m, err)
	}
	if w.count() != 1 {
		t.Errorf("%d requests", w.count())
	}
	if left := files(t, s, "partial"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The member needs space beside its archive.
func TestMemberSpace(t *testing.T) {
	t.Parallel()
	model := string(ggufFile(1, 0, 1, 400_000))
	w := newServer(t, zipFiles(t, packed{name: "m.gguf", body: model}))
	v := memberVendor(w, vendor.ArchiveMember{Path: "m.gguf"})
	for free, requests := range map[contract.Bytes]int{
		contract.Bytes(len(w.bodies[0])) * 3 / 2: 0, // not even twice the archive
		contract.Bytes(len(model)) - 1000:        1, // the size of the member is known once the archive is there
	} {
		w.change(func() { w.requests = nil })
		s := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = append(o.Vendors, v) })
		s.free = func(string) (contract.Bytes, error) { return free, nil }
		_, err := s.PullModel(t.Context(), "w:x", nil)
		wantFault(t, err, fault.Exhausted, "no_space", "m.gguf")
		if w.count() != requests {
			t.Errorf("with %d free, %d requests", free, w.count())
		}
	}
}

// What a zip file says about its directory does not bound how much is read of it.
func TestZipDirectoryIsBounded(t *testing.T) {
	t.Parallel()
	entry := make([]byte, 46+4)
	copy(entry, "PK\x01\x02")
	binary.LittleEndian.PutUint16(entry[28:], 4)
	n := maxDirectory/len(entry) + 1000
	file := append([]byte("PK\x03\x04"), bytes.Repeat(entry, n)...)
	end := make([]byte, 22)
	copy(end, "PK\x05\x06")
	binary.LittleEndian.PutUint16(end[8:], uint16(n))
	binary.LittleEndian.PutUint16(end[10:], uint16(n))
	binary.LittleEndian.PutUint32(end[12:], uint32(n*len(entry)))
	binary.LittleEndian.PutUint32(end[16:], 4)
	file = append(file, end...)
	_, err := openZip(bytes.NewReader(file), int64(len(file)))
	if err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("got %v", err)
	}
}

func FuzzMember(f *testing.F) {
	model := string(ggufFile(3, 0, 1, 100))
	f.Add(zipFiles(f, packed{name: "m.gguf", body: model}))
	f.Add(tgz(f, entry{name: "m.gguf", body: model}))
	f.Fuzz(func(t *testing.T, archive []byte) {
		s := openStore(t, t.TempDir(), nil)
		file := write(t, s.path("a"), archive)
		p := &picker{s: s, ctx: t.Context(), size: int64(len(archive)), tmp: s.path("tmp"), report: func(string, string, *contract.Progress) {},
			file: vendor.File{Path: "m", Size: -1, Member: &vendor.ArchiveMember{Match: "*.gguf"}}}
		if err := p.pick(file); err == nil {
			if st, err := os.Stat(p.tmp); err != nil || st.Size() != p.written || p.written > p.limit() {
				t.Errorf("%v, %d bytes", err, p.written)
			}
		}
	})
}
