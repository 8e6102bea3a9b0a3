package path

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestPlan(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p := New()
	for osName, lib := range map[string]string{"linux": "libllama.so", "darwin": "libllama.dylib"} {
		plan, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: "path:" + dir + "/.", Platform: vendor.Platform{OS: osName, Arch: "arm64"}})
		if err != nil {
			t.Fatal(err)
		}
		if plan.InPlace != dir || plan.Reference != "path:"+dir || len(plan.Files) != 0 || plan.Steps[0].Expect.Path != lib || plan.Platform != osName+"-arm64" {
			t.Errorf("got %+v", plan)
		}
	}
	for ref, kind := range map[string]vendor.Kind{"path:engine": vendor.KindInvalid, "path:": vendor.KindInvalid, "path:/a\x00": vendor.KindInvalid, "path:" + file: vendor.KindInvalid, "path:" + dir + "/missing": vendor.KindNotFound} {
		_, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: ref})
		if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Kind != kind {
			t.Errorf("%q: %v", ref, err)
		}
	}
}
