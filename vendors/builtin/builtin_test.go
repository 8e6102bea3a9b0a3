package builtin

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestResolveAndOpen(t *testing.T) {
	v := New()
	m, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: "builtin:stories260k"})
	if err != nil {
		t.Fatal(err)
	}
	f := m.Files[0]
	r, n, err := v.Open(t.Context(), f.Sources[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	sum := sha256.Sum256(b)
	if err != nil || int64(len(b)) != n || f.Size != n || hex.EncodeToString(sum[:]) != f.Digests.SHA256 || m.Reference != "builtin:stories260k@"+f.Digests.SHA256[:12] {
		t.Errorf("%d bytes of %d, %+v, %v", len(b), n, m, err)
	}
	if again, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: m.Reference}); err != nil || again.Reference != m.Reference {
		t.Errorf("pinned: %+v, %v", again, err)
	}
	for _, ref := range []string{"builtin:", "builtin:nothing", "builtin:../builtin", "builtin:stories260k@000000000000", "builtin:stories260k@"} {
		if _, err := v.Resolve(t.Context(), vendor.ResolveRequest{Reference: ref}); kind(err) != vendor.KindNotFound || !strings.Contains(err.Error(), "builtin:stories260k") {
			t.Errorf("%s: %v", ref, err)
		}
	}
	if _, _, err := v.Open(t.Context(), "builtin:nothing"); kind(err) != vendor.KindNotFound {
		t.Errorf("open: %v", err)
	}
}

// Each model in the executable says in the licence note where it comes from.
func TestLicence(t *testing.T) {
	names, err := fs.Glob(files, "models/*.gguf")
	if err != nil || len(names) != 1 || names[0] != "models/stories260k.gguf" {
		t.Errorf("%v, %v: add a new model to models/LICENSE.txt and here", names, err)
	}
}

func kind(err error) vendor.Kind {
	if e, ok := errors.AsType[*vendor.Error](err); ok {
		return e.Kind
	}
	return ""
}
