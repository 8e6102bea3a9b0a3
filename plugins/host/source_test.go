package host

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
)

func TestParseSource(t *testing.T) {
	t.Chdir("/tmp")
	hex := strings.Repeat("ab", 32)
	for text, want := range map[string]Source{
		"/x/gitea.wasm":                           {Kind: SourcePath, Place: "/x/gitea.wasm", written: "/x/gitea.wasm"},
		"./dist":                                  {Kind: SourcePath, Place: "/tmp/dist", written: "/tmp/dist"},
		"d.tgz//bin/p?checksum=sha256:" + hex:     {Kind: SourcePath, Place: "/tmp/d.tgz", Inside: "bin/p", Archive: ArchiveTar, SHA256: hex, written: "/tmp/d.tgz//bin/p?checksum=sha256:" + hex},
		"odd?name":                                {Kind: SourcePath, Place: "/tmp/odd?name", written: "/tmp/odd?name"},
		"https://example.org/p.wasm":              {Kind: SourceHTTP, Place: "https://example.org/p.wasm"},
		"https://example.org/p.zip":               {Kind: SourceHTTP, Place: "https://example.org/p.zip", Archive: ArchiveZip},
		"https://example.org/p.zip?archive=false": {Kind: SourceHTTP, Place: "https://example.org/p.zip"},
		"https://example.org/get//p.wasm?sig=a%2Fb&archive=tgz&checksum=" + hex: {Kind: SourceHTTP, Place: "https://example.org/get?sig=a%2Fb", Inside: "p.wasm", Archive: ArchiveTar, SHA256: hex},
		"git::https://example.org/a/b.git":                                      {Kind: SourceGit, Place: "https://example.org/a/b.git"},
		"git::https://example.org/b.git//dist/x?ref=v1.2.0":                     {Kind: SourceGit, Place: "https://example.org/b.git", Inside: "dist/x", Ref: "v1.2.0"},
	} {
		if want.written == "" {
			want.written = text
		}
		if got, err := ParseSource(text); err != nil || got != want {
			t.Errorf("%s:\n got %+v, %v\nwant %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "a\nb", "http://example.org/p.wasm", "https://u:p@example.org/p", "https:///p", "ftp://example.org/p", "file:///etc/passwd", "file::/etc/passwd", "s3::https://x/y", "hg::https://x/y",
		"git::ssh://git@example.org/x", "git::git@example.org:x", "git::http://example.org/x", "git::file:///x", "git::/x", "git::ext::sh -c x", "git::https://example.org/x?ref=--upload-pack=x",
		"git::https://example.org/x?ref=a..b", "git::https://example.org/x?depth=1", "git::https://example.org/x?checksum=" + hex, "https://example.org/p.zip//../x", "https://example.org/p.zip//a//b",
		"https://example.org/p.wasm//x", "https://example.org/p?checksum=md5:00", "https://example.org/p?archive=rar", "x.tgz//../../y", "x?checksum=1", strings.Repeat("x", 5000),
	} {
		if got, err := ParseSource(text); fault.As(err).Code != "bad_source" {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	s, err := ParseSource("git::https://example.org/b.git//dist?ref=v1")
	if err != nil || s.With("x.wasm") != "git::https://example.org/b.git//dist/x.wasm?ref=v1" {
		t.Errorf("%s, %v", s.With("x.wasm"), err)
	}
}

// program is the head of a program for Linux.
func program(t testing.TB, machine elf.Machine) []byte {
	var b bytes.Buffer
	h := elf.Header64{Ident: [16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Entry: 0x400000, Ehsize: 64}
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestChoose(t *testing.T) {
	amd, arm := program(t, elf.EM_X86_64), program(t, elf.EM_AARCH64)
	library := bytes.Clone(amd)
	clear(library[24:32]) // no entry
	module, script := []byte("\x00asm\x01\x00\x00\x00"), []byte("#!/bin/sh\n")
	const here = "linux_amd64"
	for name, c := range map[string]struct {
		files     map[string][]byte
		inside    string
		transport string
		path      bool // a folder of this machine
		want      string
		others    string
		code      string
		says      string
	}{
		"module":                 {files: map[string][]byte{"a/p.wasm": module, "README": []byte("# x")}, want: "a/p.wasm"},
		"module before program":  {files: map[string][]byte{"p.wasm": module, "p": amd}, want: "p.wasm"},
		"program before module":  {files: map[string][]byte{"p.wasm": module, "p": amd}, transport: config.TransportProcess, want: "p"},
		"program of the machine": {files: map[string][]byte{"p_1.0_linux_amd64": amd, "p_1.0_linux_arm64": arm, "q_linux_arm64": arm}, want: "p_1.0_linux_amd64", others: "linux_arm64:p_1.0_linux_arm64"},
		"folders of platforms":   {files: map[string][]byte{"linux_amd64/p": amd, "linux_arm64/p": arm}, want: "linux_amd64/p", others: "linux_arm64:linux_arm64/p"},
		"script":                 {files: map[string][]byte{"p": script, "build.sh": script}, want: "p"},
		"script is the last":     {files: map[string][]byte{"p": script, "q": amd}, want: "q"},
		"no library":             {files: map[string][]byte{"libx.so": library}, code: CodeNoPlugin},
		"elsewhere":              {files: map[string][]byte{"p": arm}, code: "wrong_platform", says: `"p"`},
		"several":                {files: map[string][]byte{"p.wasm": module, "q.wasm": module}, code: "several_plugins", says: `"p.wasm", "q.wasm"; name the one that you want: git::https://example.org/r//p.wasm`},
		"named":                  {files: map[string][]byte{"p.wasm": module, "q.wasm": module}, inside: "q.wasm", want: "q.wasm"},
		"in a folder":            {files: map[string][]byte{"a/p.wasm": module, "b/q.wasm": module}, inside: "b", want: "b/q.wasm"},
		"missing":                {files: map[string][]byte{"a/p.wasm": module}, inside: "c", code: "file_not_found"},
		"nothing":                {files: map[string][]byte{"README": []byte("# x")}, code: CodeNoPlugin},
		"history":                {files: map[string][]byte{".git/p.wasm": module}, code: CodeNoPlugin},
		"link":                   {files: map[string][]byte{"p.wasm": []byte("->/etc/passwd"), "a/x": nil}, inside: "p.wasm", code: "file_unreadable", says: "link"},
		"link on the way":        {files: map[string][]byte{"d": []byte("->/etc")}, inside: "d/passwd", code: "file_unreadable", says: "link"},
		"link is no candidate":   {files: map[string][]byte{"p.wasm": []byte("->q"), "q": module}, want: "q"},
		"own folder is shallow":  {files: map[string][]byte{"p.wasm": module, "sdk/q.wasm": module}, path: true, want: "p.wasm"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, content := range c.files {
				at := filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
					t.Fatal(err)
				}
				err := os.WriteFile(at, content, 0o755)
				if to, ok := strings.CutPrefix(string(content), "->"); ok {
					if err = os.Remove(at); err == nil {
						err = os.Symlink(to, at)
					}
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			s := Source{Kind: SourceGit, Inside: c.inside, written: "git::https://example.org/r"}
			if c.inside != "" {
				s.written += "//" + c.inside
			}
			if c.path {
				s.Kind = SourcePath
			}
			got, err := Choose(s, root, c.transport, here)
			if fault.As(err) == nil != (c.code == "") || c.code != "" && (fault.As(err).Code != c.code || !strings.Contains(err.Error(), c.says)) {
				t.Fatalf("%v, want %q with %q", err, c.code, c.says)
			}
			if err != nil {
				return
			}
			var others []string
			for _, v := range got.Others {
				rel, _ := filepath.Rel(root, v.Path)
				others = append(others, v.Platform+":"+rel)
				if k, err := v.Package(t.Context()); err != nil || k.Platform != v.Platform || len(k.SHA256) != 64 {
					t.Errorf("%+v, %v", k, err)
				}
			}
			if got.Member != c.want || got.Path != filepath.Join(root, c.want) || strings.Join(others, " ") != c.others {
				t.Errorf("%+v, want %s and %s", got, c.want, c.others)
			}
		})
	}
}
