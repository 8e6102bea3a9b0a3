package recipe

import (
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

const sha = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

const good = `{"name":"x","version":"1","files":[{"path":"a.tgz","url":"https://h.test/x-{os}-{arch}.tgz","sha256":"` + sha + `"},{"path":"b.tgz","url":"https://h.test/b","sha256":"` + sha + `","platform":"plan9-386"}],
 "steps":[{"extract":{"file":"a.tgz","into":"."}},{"run":{"tool":"make","args":["PLATFORM={platform}","{engine}"],"timeoutSeconds":60}}],
 "launch":{"path":"bin/{os}/x","args":["--model={model}","--port","{port}","-c","{context}","{slots}/{threads}"],"env":{"HERE":"{engine}"}}}`

func with(text string) *Provisioner {
	return New(func(path string) ([]byte, error) {
		if path != "/r/x.hcl" {
			return nil, errors.New("there is no " + path)
		}
		return []byte(text), nil
	})
}

func TestPlan(t *testing.T) {
	on := vendor.Platform{OS: "linux", Arch: "arm64"}
	p := with(good)
	plan, err := p.Plan(t.Context(), vendor.PlanRequest{Reference: "recipe:/r/./x.hcl", Platform: on})
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Files) != 1 || plan.Files[0].Sources[0].URL != "https://h.test/x-linux-arm64.tgz" || plan.Files[0].Digests.SHA256 != sha || plan.Platform != "linux-arm64" ||
		strings.Join(plan.Steps[1].Run.Args, " ") != "PLATFORM=linux-arm64 {engine}" || !strings.HasPrefix(plan.Reference, "recipe:/r/x.hcl@") {
		t.Errorf("got %+v", plan)
	}
	// The canonical reference leads to itself, whatever the spelling of the recipe, and to nothing else.
	again, err := with(strings.ReplaceAll(good, ",\n", ", ")).Plan(t.Context(), vendor.PlanRequest{Reference: plan.Reference, Platform: on})
	if err != nil || again.Reference != plan.Reference {
		t.Errorf("%+v, %v", again, err)
	}
	_, err = with(strings.Replace(good, `"1"`, `"2"`, 1)).Plan(t.Context(), vendor.PlanRequest{Reference: plan.Reference, Platform: on})
	if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != "recipe_changed" {
		t.Errorf("got %v", err)
	}
	spec, err := p.Launch(t.Context(), vendor.LaunchRequest{Reference: plan.Reference, EngineDir: "/e", Model: "/m", Context: 9, Slots: 2, Threads: 3})
	if err != nil || spec.Path != "bin/"+runtime.GOOS+"/x" || strings.Join(spec.Args, " ") != "--model=/m --port {port} -c 9 2/3" || spec.Env["HERE"] != "/e" || spec.ReadyPath != "/health" || spec.Protocol != vendor.ProtocolOpenAI {
		t.Errorf("%+v, %v", spec, err)
	}
	spec, err = with(`{"name":"x","version":"1"}`).Launch(t.Context(), vendor.LaunchRequest{Reference: "recipe:/r/x.hcl"})
	if err != nil || spec.Path != "" {
		t.Errorf("a library: %+v, %v", spec, err)
	}
}

func TestErrors(t *testing.T) {
	on := vendor.Platform{OS: "linux", Arch: "amd64"}
	for name, c := range map[string]struct{ ref, text, code string }{
		"relative":    {"recipe:x.hcl", good, "invalid_reference"},
		"empty":       {"recipe:", good, "invalid_reference"},
		"NUL":         {"recipe:/r/\x00", good, "invalid_reference"},
		"no JSON":     {"recipe:/r/x.hcl", "x", "recipe_invalid"},
		"no file":     {"recipe:/r/x.hcl", `{"name":"x","files":[{"path":"a","url":"https://a.example.org/a","sha256":"x","platform":"plan9-386"}],"steps":[{"run":{"tool":"cc"}}]}`, "no_build"},
		"nothing":     {"recipe:/r/x.hcl", `{"name":"x","files":[]}`, "recipe_invalid"},
		"no https":    {"recipe:/r/x.hcl", `{"files":[{"path":"a","url":"file:///etc/passwd","sha256":"` + sha + `"}]}`, "recipe_invalid"},
		"a password":  {"recipe:/r/x.hcl", `{"files":[{"path":"a","url":"https://u:p@h.test/","sha256":"` + sha + `"}]}`, "recipe_invalid"},
		"bad digest":  {"recipe:/r/x.hcl", `{"files":[{"path":"a","url":"https://h.test/","sha256":"00"}]}`, "recipe_invalid"},
		"wrong shape": {"recipe:/r/x.hcl", `[]`, "recipe_invalid"},
	} {
		_, err := with(c.text).Plan(t.Context(), vendor.PlanRequest{Reference: c.ref, Platform: on})
		if e, ok := errors.AsType[*vendor.Error](err); !ok || e.Code != c.code || strings.Contains(e.Message, "u:p") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := with(good).Plan(t.Context(), vendor.PlanRequest{Reference: "recipe:/other", Platform: on}); err == nil || !strings.Contains(err.Error(), "/other") {
		t.Errorf("got %v", err)
	}
}
