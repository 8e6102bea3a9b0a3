package wheel

import (
	"errors"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// The order of the examples of PEP 440, and spellings that mean the same.
func TestVersions(t *testing.T) {
	order := []string{"1.0.dev456", "1.0a1", "1.0a2.dev456", "1.0a12.dev456", "1.0a12", "1.0b1.dev456", "1.0b2", "1.0b2.post345.dev456", "1.0b2.post345", "1.0rc1.dev456", "1.0rc1", "1.0", "1.0+abc.5", "1.0+abc.7", "1.0+5",
		"1.0.post456.dev34", "1.0.post456", "1.0.15", "1.1.dev1", "1.10", "2024.1", "1!0.5"}
	for i, a := range order {
		for j, b := range order {
			v, ok1 := ParseVersion(a)
			w, ok2 := ParseVersion(b)
			if !ok1 || !ok2 || sign(v.Compare(w)) != sign(i-j) {
				t.Errorf("%s and %s: %v %v %d", a, b, ok1, ok2, v.Compare(w))
			}
		}
	}
	for a, b := range map[string]string{"1.0": "1", "V1.0.0": "1", "1.0-ALPHA.1": "1.0a1", "1.0c2": "1.0rc2", "1.0preview2": "1.0rc2", "1.0-1": "1.0.post1", "1.0rev2": "1.0.post2", "1.0.r2": "1.0.post2", "1.0dev": "1.0.dev0", "1.0+a-b_c": "1.0+a.b.c", "1.0a": "1.0a0"} {
		v, ok1 := ParseVersion(a)
		w, ok2 := ParseVersion(b)
		if !ok1 || !ok2 || v.Compare(w) != 0 {
			t.Errorf("%s and %s: %v %v", a, b, v, w)
		}
	}
	for _, bad := range []string{"", "a", "1.", "1..2", "1.0x", "1.0+", "1.0+é", "1!", "!1", "1.0a1b1", "1-", "99999999999999999999", "1.0 0", "1.0+a/b", strings.Repeat("1.", 100) + "1"} {
		if v, ok := ParseVersion(bad); ok {
			t.Errorf("%q is %+v", bad, v)
		}
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestReferences(t *testing.T) {
	for ref, want := range map[string]string{
		"pypi:a": "pypi:a", "pypi:A.b__C": "pypi:a-b-c", "pypi:a@1.0": "pypi:a@1.0", "pypi:a==1.0rc1+cu.1": "pypi:a@1.0rc1+cu.1", "pypi:a@1/b/c@2.gguf": "pypi:a@1/b/c@2.gguf", "pypi:a/m.gguf": "pypi:a/m.gguf",
		"pypi:": "", "pypi:-a": "", "pypi:a_": "", "pypi:a b": "", "pypi:../a": "", "pypi:a@": "", "pypi:a@latest": "", "pypi:a@>=1": "", "pypi:a@1.0 ": "", "pypi:a@1@2": "", "pypi:a/": "", "pypi:a/../b": "",
		"pypi:a//b": "", "pypi:a/b\\c": "", "pypi:a/b\x1b": "", "pypi:a?x": "", "pypi:a%2f": "", "npm:a": "", "pypi:" + strings.Repeat("a", 200): "",
	} {
		got, err := ParseReference(ref, "folder/file")
		if want == "" {
			if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Kind != vendor.KindInvalid || e.Code != "invalid_reference" {
				t.Errorf("%q: %v, %v", ref, got, err)
			}
			continue
		}
		if err != nil || got.String() != want {
			t.Errorf("%q: %q, %v", ref, got, err)
		}
	}
}

func TestFitProgram(t *testing.T) {
	linux, mac := vendor.Platform{OS: "linux", Arch: "amd64"}, vendor.Platform{OS: "darwin", Arch: "arm64"}
	for name, c := range map[string]struct {
		files []string
		on    vendor.Platform
		want  string
	}{
		"older C library": {[]string{"x-1-py3-none-manylinux_2_35_x86_64.whl", "x-1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", "x-1-py3-none-manylinux_2_17_aarch64.whl"}, linux, "x-1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl"},
		"any Python":      {[]string{"x-1-cp312-cp312-manylinux_2_17_x86_64.whl", "x-1-py3-none-manylinux_2_17_x86_64.whl"}, linux, "x-1-py3-none-manylinux_2_17_x86_64.whl"},
		"no program":      {[]string{"x-1-py3-none-any.whl", "x-1-py3-none-musllinux_1_2_x86_64.whl", "x-1-py3-none-win_amd64.whl"}, linux, ""},
		"macOS":           {[]string{"x-1-py3-none-macosx_11_0_arm64.whl", "x-1-py3-none-macosx_11_0_x86_64.whl"}, mac, "x-1-py3-none-macosx_11_0_arm64.whl"},
		"universal":       {[]string{"x-1-py3-none-macosx_11_0_universal2.whl"}, mac, "x-1-py3-none-macosx_11_0_universal2.whl"},
	} {
		var wheels []Wheel
		for _, f := range c.files {
			w, ok := parseWheel(File{Filename: f}, "x")
			if !ok {
				t.Fatal(f)
			}
			wheels = append(wheels, w)
		}
		got := ""
		if w := Choose(wheels, c.on, FitProgram); w != nil {
			got = w.Filename
		}
		if got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
