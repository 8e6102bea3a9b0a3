package artifact

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/local"
)

// badReferences are canonical references that nobody who answers for "x:" may give.
func badReferences() map[string]string {
	return map[string]string{
		"another's":      "builtin:stories260k",
		"another's name": "xx:y",
		"no scheme":      "team/model",
		"scheme alone":   "x:",
		"none":           "",
		"too long":       "x:" + strings.Repeat("a", 1023),
		"escape":         "x:\x1b[2J",
		"line":           "x:a\nb",
		"bidi":           "x:a\u202eb",
		"no text":        "x:\xff",
	}
}

// shown reports whether a terminal can show all of s, on one line.
func shown(s string) bool { return utf8.ValidString(s) && !contract.HasHidden(s) }

// TestForeignReference: what a vendor or a provisioner answers cannot take the name of somebody else's, nor one that cannot be shown.
func TestForeignReference(t *testing.T) {
	for name, ref := range badReferences() {
		v, _ := onShelf(t, "https://models.example.org/m")
		v.manifest.Reference = ref
		if err := CheckManifest(&v.manifest, v.Info()); fault.As(err).Code != "bad_manifest" || len(err.Error()) > 600 || !shown(err.Error()) {
			t.Errorf("manifest, %s: %v", name, err)
		}
		plan := &vendor.Plan{Reference: ref, Name: "e", Version: "1", Platform: "p", Files: []vendor.File{{Path: "a", Digests: vendor.Digests{SHA512: "00"}}}}
		if err := CheckPlan(plan, v.Info()); fault.As(err).Code != "bad_plan" || len(err.Error()) > 600 || !shown(err.Error()) {
			t.Errorf("plan, %s: %v", name, err)
		}
	}
	man := &vendor.Manifest{Reference: "builtin:stories260k", Format: "gguf", Files: []vendor.File{{Path: "m.gguf", Role: vendor.RoleWeights, Sources: []vendor.Source{{URL: "file:///m.gguf"}}}}}
	if err := CheckManifest(man, local.New().Info()); fault.As(err).Code != "bad_manifest" {
		t.Errorf("in place: %v", err)
	}
}

// TestForeignReferenceIsNotPublished pulls and installs by way of plugins that answer with a name of others.
func TestForeignReferenceIsNotPublished(t *testing.T) {
	w := newServer(t, stories(t))
	v := w.vendor("evil", 0)
	v.man.Reference = "w:x@pinned"
	s := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = []vendor.Vendor{v, w.vendor("w", 0)} })
	_, err := s.PullModel(t.Context(), "evil:x", nil)
	wantFault(t, err, fault.Invalid, "bad_manifest", "web-evil")
	if _, err := s.Model("w:x@pinned"); fault.As(err).Code != "model_not_found" {
		t.Errorf("the catalog: %v", err)
	}

	p := &taker{plan: vendor.Plan{Reference: "npm:@a/b@1", Name: "e", Version: "1", Platform: "p", Files: []vendor.File{{Path: "a", Digests: vendor.Digests{SHA512: "00"}}}}, id: "npm:@a/b@1"}
	s = openStore(t, t.TempDir(), func(o *Options) { o.Provisioners = []vendor.Provisioner{p} })
	_, err = s.InstallEngine(t.Context(), "evil:x", nil, nil)
	wantFault(t, err, fault.Invalid, "bad_plan", "scheme")
}

// taker is a provisioner of "evil:" that answers with other names.
type taker struct {
	plan vendor.Plan
	id   string
}

func (p *taker) Info() vendor.Info                                              { return vendor.Info{Name: "evil", Schemes: []string{"evil"}} }
func (p *taker) Supports(ref string) bool                                       { return strings.HasPrefix(ref, "evil:") }
func (p *taker) Plan(context.Context, vendor.PlanRequest) (*vendor.Plan, error) { return &p.plan, nil }
func (p *taker) Pin(string, vendor.Platform) (reference, platform string, err error) {
	return p.id, p.plan.Platform, nil
}

// TestHiddenReference: what is asked for must be one that can be shown.
func TestHiddenReference(t *testing.T) {
	s := openStore(t, t.TempDir(), func(o *Options) {
		o.Vendors, o.Provisioners = []vendor.Vendor{local.New()}, []vendor.Provisioner{&taker{}}
	})
	dir := filepath.Join(t.TempDir(), "a\x1b[31m")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := write(t, filepath.Join(dir, "m.gguf"), stories(t))
	_, err := s.PullModel(t.Context(), "file:"+file, nil)
	wantFault(t, err, fault.Invalid, "invalid_reference", "cannot be shown")
	_, err = s.InstallEngine(t.Context(), "evil:\u202e", nil, nil)
	wantFault(t, err, fault.Invalid, "invalid_reference", "cannot be shown")
}
