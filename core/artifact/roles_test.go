package artifact

import (
	"fmt"
	"os"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// roleVendor gives the bodies of w as the files of one model, with those roles.
func roleVendor(w *server, roles ...string) *webVendor {
	v := w.vendor("w")
	for i, role := range roles {
		v.man.Files = append(v.man.Files, vendor.File{
			Path: fmt.Sprintf("file%d", i), Role: role, Size: int64(len(w.bodies[i])), Digests: vendor.Digests{SHA256: sum256(w.bodies[i])},
			Sources: []vendor.Source{{URL: fmt.Sprintf("%s/%d", w.URL, i)}},
		})
	}
	return v
}

func TestRoles(t *testing.T) {
	t.Parallel()
	model := ggufFile(1, 0, 1, 100)
	w := newServer(t, []byte("{{ .Prompt }}"), model, []byte(`{"temperature":0.5}`), []byte("free"))
	s, _, err := pull(t, roleVendor(w, vendor.RoleTemplate, vendor.RoleWeights, vendor.RoleConfig, vendor.RoleLicense), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Model("w:x")
	if err != nil || len(m.Files) != 4 || m.Files[0].Role != "" || m.Files[1].Role != vendor.RoleTemplate || m.Files[3].Role != vendor.RoleLicense || m.Architecture != "llama" {
		t.Fatalf("%+v, %v", m, err)
	}
	p, err := s.ModelPath(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(p); err != nil || sum256(b) != sum256(model) {
		t.Errorf("what the engine gets is not the model: %q, %v", b, err)
	}
	if err := s.RemoveModel("w:x"); err != nil {
		t.Fatal(err)
	}
	if left := files(t, s, "blobs"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestRolesRefused(t *testing.T) {
	t.Parallel()
	w := newServer(t, ggufFile(1, 0, 1, 100), []byte("no model"))
	for name, c := range map[string]struct {
		roles      []string
		change     func(*vendor.File)
		code, part string
	}{
		"no weights":           {[]string{vendor.RoleTemplate}, nil, "bad_manifest", "it has no weights"},
		"unknown":              {[]string{vendor.RoleWeights, "program"}, nil, "bad_manifest", `unknown role "program"`},
		"weights that are not": {[]string{vendor.RoleWeights, vendor.RoleWeights}, nil, "not_a_model", "file1"},
		"projector is no GGUF": {[]string{vendor.RoleWeights, vendor.RoleProjector}, nil, "not_a_model", "file1"},
		"huge template":        {[]string{vendor.RoleWeights, vendor.RoleTemplate}, func(f *vendor.File) { f.Size = maxSideFile + 1 }, "bad_manifest", "too much for a file without weights"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := roleVendor(w, c.roles...)
			if c.change != nil {
				c.change(&v.man.Files[len(v.man.Files)-1])
			}
			s := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = append(o.Vendors, v) })
			_, err := s.PullModel(t.Context(), "w:x", nil)
			wantFault(t, err, fault.Invalid, c.code, c.part)
		})
	}
}
