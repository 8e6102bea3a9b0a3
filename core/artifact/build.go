package artifact

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/tool"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of the steps of a plan.
const (
	maxSteps       = 256
	maxRunArgs     = 1000
	maxRunText     = 128 << 10 // bytes of arguments and environment
	defaultRunTime = 30 * time.Minute
	maxRunTime     = 6 * time.Hour
)

// builds are the bounds of an engine's folder while programs work in it.
type builds struct {
	bytes   int64
	entries int
	every   time.Duration // it is looked at
}

var defaultBuilds = builds{bytes: 32 << 30, entries: 200_000, every: 3 * time.Second}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)

// checkRun refuses what a provisioner may not say about a program.
func checkRun(r *vendor.RunStep) error {
	if r.Tool == "" || len(r.Tool) > 64 || strings.ContainsAny(r.Tool, "/\x00") {
		return fmt.Errorf("%.80q is not the name of a tool", r.Tool)
	}
	if r.Dir != "" && r.Dir != "." {
		if err := validPath(r.Dir); err != nil {
			return fmt.Errorf("the folder of a tool is wrong: %w", err)
		}
	}
	size := 0
	for _, a := range r.Args {
		if strings.ContainsRune(a, 0) {
			return errors.New("an argument of a tool holds a NUL character")
		}
		size += len(a)
	}
	for name, value := range r.Env {
		switch {
		case !envName.MatchString(name) || strings.ContainsRune(value, 0):
			return fmt.Errorf("%.80q is not the name of an environment variable, or its value holds a NUL character", name)
		case slices.Contains([]string{"PATH", "HOME", "TMPDIR", "LANG"}, name) || strings.HasPrefix(name, "LD_") || strings.HasPrefix(name, "DYLD_"):
			return fmt.Errorf("it sets %s, which is not a plan's to set", name)
		}
		size += len(name) + len(value)
	}
	if len(r.Args) > maxRunArgs || len(r.Env) > maxRunArgs || size > maxRunText {
		return errors.New("a tool has too many arguments")
	}
	if r.TimeoutSeconds < 0 || time.Duration(r.TimeoutSeconds)*time.Second > maxRunTime {
		return fmt.Errorf("a tool may take %d s, at most %d are allowed", r.TimeoutSeconds, int(maxRunTime.Seconds()))
	}
	return nil
}

// checkTools refuses a plan whose programs are not allowed or not there, before anything is fetched for it.
func (s *Store) checkTools(prov vendor.Provisioner, plan *vendor.Plan) error {
	var allowed []string
	if s.opts.Tools != nil {
		allowed = s.opts.Tools(prov)
	}
	for _, st := range plan.Steps {
		if st.Run == nil {
			continue
		}
		name := st.Run.Tool
		if s.opts.Runner == nil || !slices.Contains(allowed, name) {
			return fault.New(fault.Denied, "tool_not_allowed", "The engine %s needs to run %q, which is not allowed here; what is run may do all that your user may, so add it to the tools of the provisioner %s in the configuration only if you trust where the engine comes from.", plan.Reference, name, prov.Info().Name)
		}
		if _, err := s.opts.Runner.Find(name); err != nil {
			return fault.New(fault.Unavailable, "tool_missing", "The engine %s needs the program %q, which is not installed on this machine; install it and run the same command again: %w", plan.Reference, name, err)
		}
	}
	return nil
}

// run carries out a step that runs a program in the engine's folder dir.
func (s *Store) run(ctx context.Context, dir string, r *vendor.RunStep, report Report) error {
	path, err := s.opts.Runner.Find(r.Tool)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	in := r.Dir
	if in == "" {
		in = "."
	}
	work, err := root.Open(in)
	if err == nil {
		defer func() { _ = work.Close() }()
		if st, serr := work.Stat(); serr != nil || !st.IsDir() {
			err = errors.Join(errors.New("it is not a folder"), serr)
		}
	}
	if err != nil {
		return fault.New(fault.Invalid, "bad_plan", "The plan for the engine runs %s in the folder %q, which is not one of the engine's: %w.", r.Tool, in, err)
	}
	scratch := dir + "-scratch"
	if err := errors.Join(removeAll(scratch), os.Mkdir(scratch, 0o700)); err != nil {
		return s.noSpace(err, "building the engine", 0)
	}
	defer func() { _ = removeAll(scratch) }()

	fill := strings.NewReplacer("{engine}", dir, "{jobs}", strconv.Itoa(runtime.NumCPU())).Replace
	c := tool.Command{Path: path, Dir: work, Env: map[string]string{}, Scratch: scratch, Write: []string{dir}, Network: r.Network, Timeout: defaultRunTime}
	if r.TimeoutSeconds > 0 {
		c.Timeout = time.Duration(r.TimeoutSeconds) * time.Second
	}
	for _, a := range r.Args {
		c.Args = append(c.Args, fill(a))
	}
	for name, value := range r.Env {
		c.Env[name] = fill(value)
	}
	what := printable(strings.Join(append([]string{r.Tool}, r.Args...), " "))
	report("run", "running "+what, nil)
	c.Line = func(line string) { report("run", r.Tool+": "+line, nil) }

	watched, end := s.watch(ctx, dir, scratch)
	result, err := s.opts.Runner.Run(watched, c)
	end()
	if err == nil {
		if !r.Network && !result.Offline {
			report("run", "this system does not let Apiary keep "+r.Tool+" from the network", nil)
		}
		return s.checkTree(dir)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failure, ok := errors.AsType[*tool.Failure](err)
	if !ok {
		return err // a bound of the folder, or it could not be started
	}
	if free, ferr := s.free(s.home); ferr == nil && free < 1<<20 {
		return s.noSpace(fmt.Errorf("%w (%w)", failure, syscall.ENOSPC), "building the engine", 0)
	}
	if failure.Timeout {
		return fault.New(fault.Unavailable, "build_timeout", "The step %q of building the engine took longer than its %v and was ended; its last words were: %w", what, c.Timeout, failure)
	}
	return fault.New(fault.Invalid, "build_failed", "The step %q of building the engine failed, so nothing was installed: %w", what, failure)
}

// printable shortens a text for a message and takes out what a terminal would obey.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if contract.Hidden(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 200 {
		s = strings.ToValidUTF8(s[:200], "") + "…"
	}
	return s
}

// watch returns a context that ends when the folders grow beyond what a build may take, or the disk's reserve is touched. Its cause
// says which. Call end when the program has ended.
func (s *Store) watch(ctx context.Context, dirs ...string) (watched context.Context, end func()) {
	watched, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(s.builds.every)
		defer tick.Stop()
		for {
			select {
			case <-watched.Done():
				return
			case <-tick.C:
			}
			if free, err := s.free(s.home); err == nil && free < s.opts.Reserve {
				cancel(fault.New(fault.Exhausted, "no_space", "The disk that holds %s has %s free, less than the reserve of %s that stays free, so building the engine was ended; free some space and run the same command again.", s.home, free, s.opts.Reserve))
				return
			}
			var size int64
			entries := 0
			for _, dir := range dirs {
				_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
					if err != nil {
						return nil // it goes on changing
					}
					if entries++; entries > s.builds.entries {
						return fs.SkipAll
					}
					if st, err := d.Info(); err == nil && st.Mode().IsRegular() {
						size += st.Size()
					}
					return nil
				})
			}
			if err := s.tooLarge(size, entries); err != nil {
				cancel(err)
				return
			}
		}
	}()
	return watched, func() { cancel(nil); <-done }
}

func (s *Store) tooLarge(size int64, entries int) error {
	if size <= s.builds.bytes && entries <= s.builds.entries {
		return nil
	}
	return fault.New(fault.Exhausted, "engine_too_large", "Building the engine made more than %s or %d files, which is more than an engine may have, so nothing was installed.", contract.Bytes(s.builds.bytes), s.builds.entries)
}

// checkTree looks at everything in an engine's folder after a program worked in it. Files and folders get the modes 0644 or 0755, as
// those from archives; what no archive may hold is refused: links that lead out of the folder, files that are there under another
// name outside, files that give their owner's rights, devices and sockets.
func (s *Store) checkTree(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	bad := func(name, why string) error {
		return fault.New(fault.Invalid, "bad_build", "Building the engine made %q, which is %s, so nothing was installed.", printable(name), why)
	}
	type inode struct{ dev, ino uint64 }
	names := map[inode]uint64{} // how many more names a file with several has
	firsts := map[inode]string{}
	var size int64
	entries := 0
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if entries++; entries > s.builds.entries {
			return s.tooLarge(size, entries)
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		switch mode := st.Mode(); {
		case mode.IsDir():
			return os.Chmod(p, 0o755)
		case mode&fs.ModeSymlink != 0:
			if _, err := root.Stat(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return bad(rel, "a link that leads out of the engine's folder or nowhere")
			}
			return nil
		case !mode.IsRegular():
			return bad(rel, "neither a file nor a folder nor a link")
		case mode&(fs.ModeSetuid|fs.ModeSetgid) != 0:
			return bad(rel, "a program that would run with other rights than those of who starts it")
		}
		size += st.Size()
		if err := s.tooLarge(size, entries); err != nil {
			return err
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Nlink > 1 {
			id := inode{uint64(sys.Dev), sys.Ino}
			if _, ok := firsts[id]; !ok {
				firsts[id], names[id] = rel, uint64(sys.Nlink)
			}
			if names[id]--; names[id] == 0 {
				delete(names, id)
			}
		}
		perm := fs.FileMode(0o644)
		if st.Mode()&0o111 != 0 {
			perm = 0o755
		}
		if st.Mode().Perm() == perm {
			return nil
		}
		return os.Chmod(p, perm)
	})
	if err != nil {
		return err
	}
	for id := range names {
		return bad(firsts[id], "a file that has a further name outside the engine's folder")
	}
	return nil
}

// removeAll is os.RemoveAll for a folder in which programs worked: they may have made folders that cannot be changed.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
