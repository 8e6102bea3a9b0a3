package artifact

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/core/testutil/smalldisk"
	"github.com/apiary-dev/apiary/core/tool"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// builder is a provisioner with one plan, whose engine is a program where launch is set.
type builder struct {
	plan   vendor.Plan
	launch *vendor.LaunchSpec
}

func (b *builder) Info() vendor.Info        { return vendor.Info{Name: "builder", Schemes: []string{"build"}} }
func (b *builder) Supports(ref string) bool { return strings.HasPrefix(ref, "build:") }
func (b *builder) Plan(context.Context, vendor.PlanRequest) (*vendor.Plan, error) {
	return &b.plan, nil
}
func (b *builder) Launch(_ context.Context, req vendor.LaunchRequest) (*vendor.LaunchSpec, error) {
	if b.launch == nil {
		return nil, nil
	}
	spec := *b.launch
	spec.Env = map[string]string{"ENGINE": req.EngineDir}
	return &spec, nil
}

const program1 = `#include <stdio.h>
int main(int argc, char **argv) { printf("tiny version %s\n", VERSION); return argc == 2 ? 0 : 1; }
`

const makefile = `bin/tiny: tiny.c
	mkdir -p bin && $(CC) -DVERSION='"1.2.3"' -o bin/tiny tiny.c
`

// workshop is a store with a builder whose sources are a small C program, in the folder src.
func workshop(t *testing.T, tools []string, steps ...vendor.Step) (*Store, *builder) {
	t.Helper()
	body := tgz(t, entry{name: "tiny-1/tiny.c", body: program1}, entry{name: "tiny-1/Makefile", body: makefile})
	web := newServer(t, body)
	b := &builder{plan: vendor.Plan{
		Reference: "build:tiny@1", Name: "tiny", Version: "1", Platform: "here",
		Files: []vendor.File{{Path: "src.tgz", Size: int64(len(body)), Digests: vendor.Digests{SHA256: sum256(body)}, Sources: []vendor.Source{{URL: web.URL + "/0"}}}},
		Steps: slices.Concat([]vendor.Step{{Extract: &vendor.ExtractStep{File: "src.tgz", Prefix: "tiny-1/", Into: "src"}}}, steps),
	}}
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	home, err := os.MkdirTemp("/tmp", "apiary-build-") // where programs may be executed, unlike on many file systems in memory
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = removeAll(home) })
	s := openStore(t, home, func(o *Options) {
		o.Provisioners = []vendor.Provisioner{b}
		o.Tools = func(p vendor.Provisioner) []string {
			if p != vendor.Provisioner(b) {
				return nil
			}
			return tools
		}
		o.Runner = tool.New([]string{own, "exec-child"}, sandbox.Kernel(), "")
	})
	s.builds.every = 20 * time.Millisecond
	return s, b
}

func sh(script string) vendor.Step {
	return vendor.Step{Run: &vendor.RunStep{Tool: "sh", Args: []string{"-c", script}, TimeoutSeconds: 60}}
}

func TestBuild(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"make", "cc"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%s is not installed", name)
		}
	}
	s, b := workshop(t, []string{"make", "cc"},
		vendor.Step{Run: &vendor.RunStep{Tool: "make", Args: []string{"-j{jobs}", "CC=cc"}, Dir: "src"}},
		vendor.Step{Link: &vendor.LinkStep{Name: "tiny", Target: "src/bin/tiny"}},
		vendor.Step{Expect: &vendor.ExpectStep{Path: "tiny", Executable: true, Message: "no program"}},
	)
	b.launch = &vendor.LaunchSpec{Path: "tiny", Args: []string{"--port", "{port}"}, Protocol: vendor.ProtocolOpenAI, ReadyPath: "/health"}
	var log reports
	if !s.IsServer(t.Context(), "build:tiny") || s.IsServer(t.Context(), "nobody:tiny") {
		t.Error("which engines are servers is known before they are installed")
	}
	e, err := s.InstallEngine(t.Context(), "build:tiny", nil, log.add)
	if err != nil {
		t.Fatal(err)
	}
	if e.ID != "build:tiny@1" || e.Build != "tiny version 1.2.3" || !log.has("run", "running make -j{jobs} CC=cc") || !log.has("run", "make: ") || !log.has("self-test", "tiny") {
		t.Errorf("got %+v after %+v", e, log.events)
	}
	if out, err := exec.Command(filepath.Join(s.EngineDir(e), "tiny"), "x").Output(); err != nil || string(out) != "tiny version 1.2.3\n" {
		t.Errorf("%q, %v", out, err)
	}
	if left, _ := filepath.Glob(s.path("engines", tmpPrefix+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// The same sources in another way are another engine, in another folder.
	b.plan.Reference, b.plan.Steps[1].Run.Args = "build:tiny@2", []string{"CC=cc -O2"}
	other, err := s.InstallEngine(t.Context(), "build:other", nil, nil)
	if err != nil || other.Dir == e.Dir || other.SHA256 == e.SHA256 {
		t.Errorf("%+v, %v", other, err)
	}
}

// What a build may not do. Nothing of it becomes visible, nothing stays, and nothing outside is changed.
func TestHostileBuild(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	victim := write(t, filepath.Join(outside, "victim"), []byte("mine"))
	extractAgain := func(into string) vendor.Step {
		return vendor.Step{Extract: &vendor.ExtractStep{File: "src.tgz", Prefix: "tiny-1/", Into: into}}
	}
	for name, c := range map[string]struct {
		tools []string
		steps []vendor.Step
		kind  fault.Kind
		code  string
		part  string
	}{
		"tool not allowed":      {nil, []vendor.Step{sh("true")}, fault.Denied, "tool_not_allowed", `"sh"`},
		"another tool allowed":  {[]string{"make"}, []vendor.Step{sh("true")}, fault.Denied, "tool_not_allowed", "provisioner builder"},
		"tool is missing":       {[]string{"no-such-tool"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "no-such-tool"}}}, fault.Unavailable, "tool_missing", "not installed"},
		"tool by its path":      {[]string{"sh", "/bin/sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "/bin/sh"}}}, fault.Invalid, "bad_plan", "not the name of a tool"},
		"environment":           {[]string{"sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "sh", Env: map[string]string{"LD_PRELOAD": "x"}}}}, fault.Invalid, "bad_plan", "LD_PRELOAD"},
		"path":                  {[]string{"sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "sh", Env: map[string]string{"PATH": "."}}}}, fault.Invalid, "bad_plan", "PATH"},
		"folder outside":        {[]string{"sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "sh", Dir: "../.."}}}, fault.Invalid, "bad_plan", "../.."},
		"no folder":             {[]string{"sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "sh", Dir: "nowhere"}}}, fault.Invalid, "bad_plan", "nowhere"},
		"a file as folder":      {[]string{"sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "sh", Dir: "src/tiny.c"}}}, fault.Invalid, "bad_plan", "not a folder"},
		"too long":              {[]string{"sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "sh", TimeoutSeconds: 1 << 30}}}, fault.Invalid, "bad_plan", "may take"},
		"it fails":              {[]string{"sh"}, []vendor.Step{sh("echo first; echo the reason >&2; exit 3")}, fault.Invalid, "build_failed", "exit status 3: first ⏎ the reason"},
		"endless":               {[]string{"sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "sh", Args: []string{"-c", "echo here; while :; do sleep 1; done"}, TimeoutSeconds: 1}}}, fault.Unavailable, "build_timeout", "here"},
		"endless grandchild":    {[]string{"sh"}, []vendor.Step{{Run: &vendor.RunStep{Tool: "sh", Args: []string{"-c", "sleep 3600 & wait"}, TimeoutSeconds: 1}}}, fault.Unavailable, "build_timeout", "1s"},
		"100 MB of output":      {[]string{"sh"}, []vendor.Step{sh("head -c 100000000 /dev/zero | tr '\\0' x; echo; echo last; exit 1")}, fault.Invalid, "build_failed", "last"},
		"link out, absolute":    {[]string{"sh"}, []vendor.Step{sh("ln -s /etc/passwd src/x")}, fault.Invalid, "bad_build", `"src/x"`},
		"link out, relative":    {[]string{"sh"}, []vendor.Step{sh("ln -s ../../../.. src/x")}, fault.Invalid, "bad_build", `"src/x"`},
		"write through a link":  {[]string{"sh"}, []vendor.Step{sh("ln -s " + outside + " out"), extractAgain("out")}, fault.Invalid, "bad_build", `"out"`},
		"work through a link":   {[]string{"sh"}, []vendor.Step{sh("ln -s " + outside + " out"), {Run: &vendor.RunStep{Tool: "sh", Dir: "out", Args: []string{"-c", "rm victim"}}}}, fault.Invalid, "bad_build", `"out"`},
		"setuid":                {[]string{"sh"}, []vendor.Step{sh("cp /bin/true x; chmod u+s x")}, fault.Invalid, "bad_build", "other rights"},
		"setgid":                {[]string{"sh"}, []vendor.Step{sh("cp /bin/true x; chmod g+s x")}, fault.Invalid, "bad_build", "other rights"},
		"fifo":                  {[]string{"sh"}, []vendor.Step{sh("mkfifo x")}, fault.Invalid, "bad_build", "neither a file"},
		"a further name":        {[]string{"sh"}, []vendor.Step{sh("echo >../hardlink-src; ln ../hardlink-src x; rm -f y; true")}, fault.Invalid, "bad_build", "further name"},
		"too many files":        {[]string{"sh"}, []vendor.Step{sh("i=0; while [ $i -lt 1200 ]; do : >f$i; i=$((i+1)); done")}, fault.Exhausted, "engine_too_large", "1000 files"},
		"too large":             {[]string{"sh"}, []vendor.Step{sh("head -c 30000000 /dev/zero >big")}, fault.Exhausted, "engine_too_large", "more than"},
		"too large and endless": {[]string{"sh"}, []vendor.Step{sh("while :; do head -c 3000000 /dev/zero >>big; done")}, fault.Exhausted, "engine_too_large", "more than"},
		"folder without rights": {[]string{"sh"}, []vendor.Step{sh("mkdir -p a/b; : >a/b/c; chmod 0 a/b a; exit 1")}, fault.Invalid, "build_failed", "exit status 1"},
		"the program is none":   {[]string{"sh"}, []vendor.Step{sh("echo no >prog; chmod +x prog")}, fault.Unavailable, codeSelfTest, "--version"},
		"the program fails":     {[]string{"sh"}, []vendor.Step{sh("printf '#!/bin/sh\\necho broken; exit 9\\n' >prog; chmod +x prog")}, fault.Unavailable, codeSelfTest, "exit status 9: broken"},
		"there is no program":   {[]string{"sh"}, []vendor.Step{sh("true")}, fault.Unavailable, codeSelfTest, "no program prog"},
		"it is not executable":  {[]string{"sh"}, []vendor.Step{sh("cp /bin/true prog; chmod 644 prog")}, fault.Unavailable, codeSelfTest, "no program prog"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, b := workshop(t, c.tools, c.steps...)
			s.builds.bytes, s.builds.entries = 20<<20, 1000
			own, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			s.opts.Runner = tool.New([]string{own, "exec-child"}, sandbox.Support{}, "") // the checks hold where the kernel has no Landlock too
			b.launch = &vendor.LaunchSpec{Path: "prog", Args: []string{"{port}"}, Protocol: vendor.ProtocolOpenAI, ReadyPath: "/health"}
			start := time.Now()
			_, err = s.InstallEngine(t.Context(), "build:tiny", nil, func(string, string, *contract.Progress) {})
			wantFault(t, err, c.kind, c.code, c.part)
			if took := time.Since(start); took > 50*time.Second || len(err.Error()) > 8000 {
				t.Errorf("it took %v and said %d bytes", took, len(err.Error()))
			}
			if left := append(files(t, s, "catalog"), files(t, s, "engines")...); len(left) > 0 && name != "a further name" {
				t.Errorf("left: %v", left)
			}
			if got, err := os.ReadFile(victim); err != nil || string(got) != "mine" {
				t.Errorf("the file outside: %q, %v", got, err)
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
				t.Errorf("outside: %v, %v", entries, err)
			}
		})
	}
}

// A build that is cancelled ends at once, with all that it started.
func TestCancelledBuild(t *testing.T) {
	t.Parallel()
	s, _ := workshop(t, []string{"sh"}, sh("echo ready; sleep 3600"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := s.InstallEngine(ctx, "build:tiny", nil, func(_, message string, _ *contract.Progress) {
		if message == "sh: ready" {
			cancel()
		}
	})
	if fault.KindOf(err) != fault.Interrupted {
		t.Errorf("got %v", err)
	}
	for end := time.Now().Add(20 * time.Second); len(files(t, s, "engines")) > 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
	}
	if left, _ := filepath.Glob(s.path("engines", "*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

// The disk's reserve stays free.
func TestBuildKeepsReserve(t *testing.T) {
	t.Parallel()
	s, _ := workshop(t, []string{"sh"}, sh("echo ready; sleep 3600"))
	s.opts.Reserve = 1 << 30
	calls := 0
	s.free = func(string) (contract.Bytes, error) {
		if calls++; calls < 4 {
			return 1 << 40, nil
		}
		return 1 << 20, nil
	}
	_, err := s.InstallEngine(t.Context(), "build:tiny", nil, nil)
	wantFault(t, err, fault.Exhausted, "no_space", "reserve")
}

func TestBuildModes(t *testing.T) {
	t.Parallel()
	s, _ := workshop(t, []string{"sh"}, sh("umask 0; mkdir -p d/e; : >d/e/f; cp /bin/true d/t; ln d/t d/t2; ln -s d/t l; ln -s nowhere dangling; chmod 7777 d; chmod 0 d/e"))
	e, err := s.InstallEngine(t.Context(), "build:tiny", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"d": "drwxr-xr-x", "d/e": "drwxr-xr-x", "d/e/f": "-rw-r--r--", "d/t": "-rwxr-xr-x", "d/t2": "-rwxr-xr-x"} {
		if st, err := os.Lstat(filepath.Join(s.EngineDir(e), name)); err != nil || st.Mode().String() != want {
			t.Errorf("%s: %v, %v", name, st.Mode(), err)
		}
	}
}

func TestCheckLaunch(t *testing.T) {
	good := func() *vendor.LaunchSpec {
		return &vendor.LaunchSpec{Path: "bin/x", Args: []string{"--port={port}"}, Protocol: vendor.ProtocolOpenAI, ReadyPath: "/health"}
	}
	if err := checkLaunch(good()); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*vendor.LaunchSpec){
		"outside":   func(l *vendor.LaunchSpec) { l.Path = "../x" },
		"absolute":  func(l *vendor.LaunchSpec) { l.Path = "/bin/sh" },
		"no port":   func(l *vendor.LaunchSpec) { l.Args = nil },
		"protocol":  func(l *vendor.LaunchSpec) { l.Protocol = "telnet" },
		"readiness": func(l *vendor.LaunchSpec) { l.ReadyPath = "health" },
		"variable":  func(l *vendor.LaunchSpec) { l.Env = map[string]string{"A=B": ""} },
		"NUL":       func(l *vendor.LaunchSpec) { l.Args = append(l.Args, "\x00") },
	} {
		l := good()
		change(l)
		if checkLaunch(l) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

// A tool that finds the disk full fails with the sentence that says so.
func TestBuildOnFullDisk(t *testing.T) {
	smalldisk.Run(t, "8m", func(home string) {
		s, _ := workshop(t, []string{"sh"}, sh("head -c 50000000 /dev/zero >big"))
		small, err := Open(Options{Home: home, Provisioners: s.opts.Provisioners, Tools: s.opts.Tools, Runner: s.opts.Runner, HTTP: s.opts.HTTP})
		if err != nil {
			t.Fatal(err)
		}
		_, err = small.InstallEngine(t.Context(), "build:tiny", nil, nil)
		wantFault(t, err, fault.Exhausted, "no_space", "is full: building the engine")
		if left := append(files(t, small, "engines"), files(t, small, "catalog")...); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	})
}

// A link may be made to the one file of a name, wherever it is.
func TestDeepLink(t *testing.T) {
	t.Parallel()
	link := vendor.Step{Link: &vendor.LinkStep{Name: "tiny.c", Match: "**/tiny.c"}}
	s, b := workshop(t, nil, link)
	e, err := s.InstallEngine(t.Context(), "build:tiny", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(filepath.Join(s.EngineDir(e), "tiny.c")); err != nil || got != "src/tiny.c" {
		t.Errorf("%q, %v", got, err)
	}
	b.plan.Reference, b.plan.Steps = "build:tiny@2", slices.Concat(b.plan.Steps[:1], []vendor.Step{{Extract: &vendor.ExtractStep{File: "src.tgz", Into: "more"}}, link})
	_, err = s.InstallEngine(t.Context(), "build:other", nil, nil)
	wantFault(t, err, fault.Invalid, "engine_incomplete", "holds 2 files")
}
