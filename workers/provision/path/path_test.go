package path

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/apiary-dev/apiary/core/fault"
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
	for ref, kind := range map[string]fault.Kind{"path:engine": fault.Invalid, "path:": fault.Invalid, "path:/a\x00": fault.Invalid, "path:" + file: fault.Invalid, "path:" + dir + "/missing": fault.NotFound} {
		if _, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: ref}); fault.KindOf(err) != kind {
			t.Errorf("%q: %v", ref, err)
		}
	}
}
