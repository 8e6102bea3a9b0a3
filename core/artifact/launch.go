package artifact

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/tool"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// versionTime bounds how long a program may take to say its version; a GPU's driver may take seconds.
const versionTime = time.Minute

// selfTest tests the engine and notes what it says: a program by its version, a library by loading it.
func (s *Store) selfTest(ctx context.Context, e *engineEntry, prov vendor.Provisioner, plan *vendor.Plan, dir string, report Report) error {
	spec, err := program(ctx, prov, plan, dir)
	if err != nil {
		return err
	}
	if spec == nil && s.opts.SelfTest == nil {
		return nil
	}
	report("self-test", "testing "+e.Name+" "+e.Version+" for "+e.Platform, nil)
	var r SelfTestReport
	if spec != nil {
		r, err = s.testProgram(ctx, spec, dir)
	} else {
		r, err = s.opts.SelfTest(ctx, dir)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fault.New(fault.Unavailable, codeSelfTest, "The engine %s does not work on this machine, so it was not installed: %w", e.ID, err)
	}
	e.Build, e.Devices, e.Server = r.Build, r.Devices, spec != nil
	return nil
}

// IsServer reports whether the engine that ref names is a program that serves by itself, as far as that can be known without fetching
// anything: of one that is installed, and of one whose provisioner says how it is started.
func (s *Store) IsServer(ctx context.Context, ref string) bool {
	if e, err := s.Engine(ref); err == nil && e.Server {
		return true
	}
	i := slices.IndexFunc(s.opts.Provisioners, func(p vendor.Provisioner) bool { return p.Supports(ref) })
	if i < 0 {
		return false
	}
	spec, err := program(ctx, s.opts.Provisioners[i], &vendor.Plan{Reference: ref}, s.path("engines"))
	return err == nil && spec != nil // what is wrong is told by who needs the engine
}

// program asks the provisioner how the engine of a plan in dir is started; nil where it is no program.
func program(ctx context.Context, prov vendor.Provisioner, plan *vendor.Plan, dir string) (*vendor.LaunchSpec, error) {
	l, ok := prov.(vendor.Launcher)
	if !ok {
		return nil, nil
	}
	spec, err := l.Launch(ctx, vendor.LaunchRequest{Reference: plan.Reference, EngineDir: dir, Model: filepath.Join(dir, "model.gguf"), ModelName: "model"})
	if err != nil {
		return nil, pluginhost.Fault(err)
	}
	if spec == nil || spec.Path == "" {
		return nil, nil
	}
	return spec, nil
}

// checkLaunch refuses what a provisioner may not say about how an engine is started.
func checkLaunch(spec *vendor.LaunchSpec) error {
	if err := validPath(spec.Path); err != nil {
		return fmt.Errorf("its command is wrong: %w", err)
	}
	port := false
	for _, a := range spec.Args {
		if strings.ContainsRune(a, 0) {
			return errors.New("an argument of its command holds a NUL character")
		}
		port = port || strings.Contains(a, "{port}")
	}
	for name, value := range spec.Env {
		if !envName.MatchString(name) || strings.ContainsRune(value, 0) {
			return fmt.Errorf("its command sets %.80q, which is not an environment variable", name)
		}
		port = port || strings.Contains(value, "{port}")
	}
	switch {
	case !port:
		return errors.New("its command does not say where {port} belongs")
	case spec.Protocol != vendor.ProtocolOpenAI:
		return fmt.Errorf("it speaks %.80q, and only %q is known", spec.Protocol, vendor.ProtocolOpenAI)
	case !strings.HasPrefix(spec.ReadyPath, "/"):
		return errors.New("it does not say at which path it tells that it is ready")
	}
	return nil
}

// testProgram tests an engine that is a program: its command is complete, and it can be executed here and tells its version.
func (s *Store) testProgram(ctx context.Context, spec *vendor.LaunchSpec, dir string) (SelfTestReport, error) {
	report := SelfTestReport{Devices: []contract.Device{}}
	if err := checkLaunch(spec); err != nil {
		return report, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return report, err
	}
	defer func() { _ = root.Close() }()
	st, err := root.Stat(filepath.FromSlash(spec.Path))
	if err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return report, fmt.Errorf("there is no program %s in it", spec.Path)
	}
	if s.opts.Runner == nil {
		return report, nil
	}
	work, err := root.Open(".")
	if err != nil {
		return report, err
	}
	defer func() { _ = work.Close() }()
	scratch := dir + "-scratch"
	if err := errors.Join(removeAll(scratch), os.Mkdir(scratch, 0o700)); err != nil {
		return report, s.noSpace(err, "testing the engine", 0)
	}
	defer func() { _ = removeAll(scratch) }()
	env := map[string]string{}
	for name, value := range spec.Env {
		env[name] = strings.ReplaceAll(value, "{port}", "1")
	}
	res, err := s.opts.Runner.Run(ctx, tool.Command{
		Path: filepath.Join(dir, filepath.FromSlash(spec.Path)), Args: []string{"--version"}, Env: env, Dir: work, Scratch: scratch, Engine: true, Timeout: versionTime,
	})
	if err != nil {
		return report, fmt.Errorf("`%s --version` failed: %w", spec.Path, err)
	}
	for _, line := range res.Lines {
		if report.Build == "" || strings.Contains(strings.ToLower(line), "version") && !strings.Contains(strings.ToLower(report.Build), "version") {
			report.Build = printable(line)
		}
	}
	return report, nil
}
