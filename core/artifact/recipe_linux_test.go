package artifact

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/workers/provision/recipe"
)

// A recipe is built with real programs, and again only when it says something else.
func TestRecipe(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"cmake", "ninja", "cc"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	s, _ := workshop(t, []string{"cmake"})
	const lists = "cmake_minimum_required(VERSION 3.13)\nproject(tiny C)\nadd_executable(tiny tiny.c)\ntarget_compile_definitions(tiny PRIVATE VERSION=\"1.2.3\")\ninstall(TARGETS tiny DESTINATION bin)\n"
	body := tgz(t, entry{name: "tiny-1.2.3/tiny.c", body: program1}, entry{name: "tiny-1.2.3/CMakeLists.txt", body: lists})
	web := newServer(t, body)
	file := filepath.Join(t.TempDir(), "tiny.hcl")
	put := func(more string) {
		t.Helper()
		write(t, file, fmt.Appendf(nil, `
name    = "tiny"
version = "1.2.3"

file "source.tar.gz" {
  url    = "%s/0"
  sha256 = "%s"
}
extract {
  file   = "source.tar.gz"
  prefix = "tiny-1.2.3/"
  into   = "src"
}
run {
  tool = "cmake"
  args = ["-G", "Ninja", "-S", "src", "-B", "build", "-DCMAKE_BUILD_TYPE=Release"]
}
run {
  tool    = "cmake"
  args    = ["--build", "build", "--parallel", "{jobs}"]
  timeout = "5m"
}
run {
  tool = "cmake"
  args = ["--install", "build", "--prefix", "{engine}"]
}
run {
  tool = "cmake"
  args = ["-E", "remove_directory", "build"]
}
expect {
  path       = "bin/tiny"
  executable = true
}
launch {
  path = "bin/tiny"
  args = ["--model", "{model}", "--port", "{port}"]
}
%s`, web.URL, sum256(body), more))
	}
	put("")
	p := recipe.New(config.ReadRecipe)
	s.opts.Provisioners = []vendor.Provisioner{p}
	s.opts.Tools = func(vendor.Provisioner) []string { return []string{"cmake"} }
	var log reports
	e, err := s.InstallEngine(t.Context(), "recipe:"+file, nil, log.add)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(e.ID, "recipe:"+file+"@") || e.Build != "tiny version 1.2.3" || e.Name != "tiny" || !log.has("run", "running cmake --build build") {
		t.Errorf("got %+v", e)
	}
	if _, err := os.Stat(filepath.Join(s.EngineDir(e), "build")); err == nil {
		t.Error("the folder build is there still")
	}
	put("# a word\n")
	if again, err := s.InstallEngine(t.Context(), "recipe:"+file, nil, nil); err != nil || again.ID != e.ID || again.AddedAt != e.AddedAt {
		t.Errorf("the same recipe: %+v, %v", again, err)
	}
	put("link {\n  name = \"tiny\"\n  target = \"bin/tiny\"\n}\n")
	if other, err := s.InstallEngine(t.Context(), "recipe:"+file, nil, nil); err != nil || other.ID == e.ID || other.Dir == e.Dir {
		t.Errorf("another recipe: %+v, %v", other, err)
	}
	_, err = p.Launch(t.Context(), vendor.LaunchRequest{Reference: e.ID})
	if err == nil || !strings.Contains(err.Error(), "not the one any more") {
		t.Errorf("got %v", err)
	}
	s.opts.Tools = nil
	put("expect {\n  path = \"bin/other\"\n}\n")
	_, err = s.InstallEngine(t.Context(), "recipe:"+file, nil, nil)
	wantFault(t, err, fault.Denied, "tool_not_allowed", `"cmake"`)
}
