package local

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{
		"one/a b%20.gguf", "one/readme.md", "split/m-00001-of-00002.gguf", "split/m-00002-of-00002.gguf", "gap/m-00002-of-00003.gguf",
		"two/a.gguf", "two/b-00001-of-00002.gguf", "two/b-00002-of-00002.gguf", "empty/x.txt", "at/m.gguf@0123456789ab",
		"odd/m-00003-of-00002.gguf",
	} {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("12345"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	v := New()
	for _, c := range []struct {
		ref       string // below dir, unless absolute
		reference string // below dir
		files     string
		code      string
		part      string
	}{
		{ref: "one/a b%20.gguf", reference: "one/a b%20.gguf", files: "a b%20.gguf"},
		{ref: "one", reference: "one", files: "a b%20.gguf"},
		{ref: "one/../one/", reference: "one", files: "a b%20.gguf"},
		{ref: "one@0123456789ab", reference: "one", files: "a b%20.gguf"},
		{ref: "at/m.gguf@0123456789ab", reference: "at/m.gguf@0123456789ab", files: "m.gguf@0123456789ab"},
		{ref: "split", reference: "split", files: "m-00001-of-00002.gguf m-00002-of-00002.gguf"},
		{ref: "split/m-00002-of-00002.gguf", reference: "split/m-00002-of-00002.gguf", files: "m-00001-of-00002.gguf m-00002-of-00002.gguf"},
		{ref: "odd", reference: "odd", files: "m-00003-of-00002.gguf"},
		{ref: "gap", code: "shard_missing", part: "m-00001-of-00003.gguf"},
		{ref: "two", code: "ambiguous_model", part: "a.gguf, b-00001-of-00002.gguf; name one of them"},
		{ref: "empty", code: "model_not_found", part: "no .gguf"},
		{ref: "missing@0123456789ab", code: "model_not_found"},
		{ref: "/dev/null", code: "not_a_model"},
		{ref: "/dev/null/x", code: "invalid_reference"},
		{ref: "/a\x00b", code: "invalid_reference"},
	} {
		ref := c.ref
		if !strings.HasPrefix(ref, "/") {
			ref = dir + "/" + ref
		}
		for _, form := range []string{"file:", "file://"} {
			m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: form + ref})
			if c.code != "" {
				if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != c.code || !strings.Contains(e.Message, c.part) {
					t.Errorf("%s: %v", c.ref, err)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", c.ref, err)
				continue
			}
			var names []string
			for _, f := range m.Files {
				names = append(names, f.Path)
				u, err := url.Parse(f.Sources[0].URL)
				if err != nil || u.Host != "" || f.Size != 5 {
					t.Errorf("%s: %+v, %v", c.ref, f, err)
				} else if _, err := os.Stat(u.Path); err != nil {
					t.Errorf("%s: the URL does not lead to the file: %v", c.ref, err)
				}
			}
			if m.Reference != "file:"+filepath.Join(dir, c.reference) || strings.Join(names, " ") != c.files || m.Format != "gguf" {
				t.Errorf("%s: got %s with %v", c.ref, m.Reference, names)
			}
		}
	}
	if v.Supports("hf:x") || !v.Supports("file:/x") {
		t.Error("Supports")
	}
}

func FuzzParseShard(f *testing.F) {
	for _, s := range []string{"m-00001-of-00002.gguf", "-00001-of-00002.gguf", "m-0001-of-00002.gguf", "m-00001-of-99999.gguf", "é-+0001-of--0002.gguf"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if s, ok := parseShard(name); ok && (s.index < 1 || s.index > s.count || s.name(s.index) != name) {
			t.Errorf("%q is %+v", name, s)
		}
	})
}
