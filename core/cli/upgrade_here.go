package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/client"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	checkLimit = 20 * time.Second // for what a new program is asked before it is used
	readyLimit = time.Minute      // until an agent that was started is ready
	unitLimit  = 3 * time.Minute  // for systemd to stop a unit: TimeoutStopSec and a little more
)

// ownVariables are those that say which agent it is. Their values are no secrets.
var ownVariables = []string{"APIARY_HOME", "APIARY_CONFIG", "APIARY_ADDR"}

// outsideVariables change what an agent does without being named in its configuration.
var outsideVariables = []string{"PIP_INDEX_URL", "PIP_CONFIG_FILE", "VIRTUAL_ENV", "NPM_CONFIG_REGISTRY", "npm_config_registry", "NPM_CONFIG_USERCONFIG", "npm_config_userconfig",
	"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "CUDA_VISIBLE_DEVICES", "GOMAXPROCS"}

// startedAs says how this agent was started, so that it can be started again. asked are the variables that its configuration looked at.
func (a *app) startedAs(own string, f agentFlags, asked map[string]bool) (*agent.Launch, error) {
	program, err := agent.LookAt(own)
	if err != nil {
		program = agent.Program{Path: own} // it was removed; then any file is another one
	}
	l := &agent.Launch{Program: program, Args: []string{"agent", "--background"}, Env: map[string]string{}, Foreground: !f.background}
	if a.configPath != "" {
		path, err := absolute(a.configPath)
		if err != nil {
			return nil, err
		}
		l.Args = append(l.Args, "--config", path)
	}
	if a.addr != "" {
		l.Args = append(l.Args, "--addr", a.addr)
	}
	if f.insecure {
		l.Args = append(l.Args, "--insecure-i-know")
	}
	for _, j := range f.join {
		l.Args = append(l.Args, "--join", j)
	}
	for _, name := range ownVariables {
		v, ok := os.LookupEnv(name)
		if !ok {
			continue
		}
		if name != "APIARY_ADDR" && v != "" {
			if v, err = absolute(v); err != nil {
				return nil, err
			}
		}
		l.Env[name] = v
	}
	for _, name := range slices.Concat(sortedKeys(asked), outsideVariables) {
		if _, ok := os.LookupEnv(name); ok && !slices.Contains(ownVariables, name) && !slices.Contains(l.Needs, name) {
			l.Needs = append(l.Needs, name)
		}
	}
	l.Unit, l.User = agent.OwnUnit()
	return l, nil
}

// upgradeView is what an upgrade of one agent did, for programs.
type upgradeView struct {
	Host    string   `json:"host,omitempty"` // empty: this machine
	HiveID  string   `json:"hive_id,omitempty"`
	From    string   `json:"from"`
	To      string   `json:"to"`
	Changed bool     `json:"changed"` // another program runs now
	PID     int      `json:"pid,omitempty"`
	Kept    int      `json:"workers_kept"`
	Lost    []string `json:"workers_lost"`
	Notes   []string `json:"notes"`
}

// line says what was done in one line.
func (v upgradeView) line() string {
	words := v.To + " runs already"
	if v.Changed {
		words = v.From + " → " + v.To
		if v.From == v.To {
			words = v.To + ", another build"
		}
	}
	words += " · " + plural(v.Kept, "worker") + " kept"
	if len(v.Lost) > 0 {
		words += " · ended meanwhile: " + strings.Join(v.Lost, ", ")
	}
	return words
}

// candidate is a program that may replace the agent's.
type candidate struct {
	agent.Program
	version string
}

// candidateAt asks a program what it is.
func candidateAt(ctx context.Context, path string) (candidate, error) {
	var c candidate
	path, err := absolute(path)
	if err != nil {
		return c, err
	}
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		path = resolved
	}
	if c.Program, err = agent.LookAt(path); errors.Is(err, fs.ErrNotExist) {
		return c, fault.New(fault.NotFound, "file_not_found", "There is no program %s; correct --binary.", path)
	} else if err != nil {
		return c, fault.New(fault.Invalid, "file_unreadable", "The program %s cannot be looked at: %w.", path, err)
	}
	out, said, err := askProgram(ctx, path, nil, "version", "--json")
	var v struct{ Version, Platform string }
	switch {
	case ctx.Err() != nil:
		return c, ctx.Err()
	case errors.Is(err, fs.ErrPermission):
		return c, fault.New(fault.Invalid, "not_executable", "The file %s may not be executed; `chmod +x` it, or correct --binary.", path)
	case errors.Is(err, syscall.ENOEXEC):
		return c, fault.New(fault.Invalid, "wrong_arch", "The file %s is no program for this machine, which is %s; build one for it, or correct --binary.", path, platform())
	case err != nil:
		return c, fault.New(fault.Invalid, "wrong_program", "The program %s does not say its version (%v); nothing was changed.%s", path, err, quoted(said))
	case json.Unmarshal(out, &v) != nil || v.Version == "" || v.Platform == "":
		return c, fault.New(fault.Invalid, "wrong_program", "The program %s is no apiary: it does not say its version and platform; correct --binary.", path)
	case v.Platform != platform():
		return c, fault.New(fault.Invalid, "wrong_arch", "The program %s is for %s and this machine is %s; build one for it, or correct --binary.", path, v.Platform, platform())
	}
	c.version = v.Version
	return c, nil
}

// askProgram runs a program that ends soon. said is the end of what it wrote to standard error.
func askProgram(ctx context.Context, path string, env []string, args ...string) (out []byte, said []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr limited
	cmd.Stdout, cmd.Stderr, cmd.Env, cmd.WaitDelay = &stdout, &stderr, env, time.Second
	err = cmd.Run()
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("it did not end within %v", checkLimit)
	}
	for l := range strings.Lines(stderr.String()) {
		said = append(said, printable(strings.TrimRight(l, "\n")))
	}
	return stdout.Bytes(), said[max(0, len(said)-10):], err
}

// limited keeps the first 64 KiB.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if room := 64<<10 - l.Len(); room > 0 {
		_, _ = l.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// upgrading is the upgrade of the agent of a data folder on this machine.
type upgrading struct {
	a      *app
	s      *story
	home   string
	next   candidate
	before agent.RunFile // the agent that is replaced
	env    []string      // of the agents that are started; unused under systemd
}

// upgradeHere replaces the agent of this data folder by one that runs another program, without touching its workers.
func (a *app) upgradeHere(ctx context.Context, s *story, binary string) (upgradeView, error) {
	home, err := a.home()
	if err != nil {
		return upgradeView{}, err
	}
	if binary == "" {
		if binary, err = os.Executable(); err != nil {
			return upgradeView{}, fmt.Errorf("find this executable: %w", err)
		}
	}
	s.step("agent  ")
	next, err := candidateAt(ctx, binary)
	if err != nil {
		return upgradeView{}, err
	}
	lock, err := agent.LockUpgrade(home)
	if errors.Is(err, fs.ErrNotExist) {
		return upgradeView{}, noAgentToUpgrade(home)
	}
	if err != nil {
		return upgradeView{}, err
	}
	defer func() { _ = lock.Close() }()
	u := &upgrading{a: a, s: s, home: home, next: next}
	return u.run(ctx)
}

func noAgentToUpgrade(home string) error {
	return fault.New(fault.Unavailable, "no_agent", "No agent runs with the data folder %s, so there is none to upgrade; start one with `apiary agent` or `apiary run`.", home)
}

func (u *upgrading) run(ctx context.Context) (upgradeView, error) {
	none := upgradeView{}
	running, err := u.find(ctx)
	if err != nil {
		return none, err
	}
	l := u.before.Launch
	if l == nil {
		return none, fault.New(fault.Conflict, "agent_too_old", "The agent that runs (%s) does not say how it was started, so nothing was changed; stop it once with `apiary stop --keep-workers`, and start the new program as it was started.", u.before.Version)
	}
	view := upgradeView{From: u.before.Version, To: u.next.version, Lost: []string{}, Notes: []string{}}
	workers, err := u.workers(ctx, running)
	if err != nil {
		return none, err
	}
	if running && u.unchanged() {
		if err := u.await(ctx, contract.Identity{}, nil); err != nil {
			return none, err
		}
		view.To, view.PID, view.Kept = u.before.Version, u.before.Process.PID, len(workers)
		return view, agent.EndUpgrade(u.home, l.Program.Path == agent.KeptProgram(u.home))
	}
	if err := u.prepare(ctx); err != nil {
		return none, err
	}
	if err := (agent.Upgrade{Before: u.before, Program: u.next.Path, BeganAt: time.Now().UTC()}).Begin(u.home); err != nil {
		return none, err
	}
	// From here on there may be no agent, so that a Ctrl-C ends nothing half-way; a second one does.
	if view.PID, err = u.replace(context.WithoutCancel(ctx), running); err != nil {
		return none, err
	}
	view.Changed = true
	now, err := u.workers(ctx, true)
	if err != nil {
		view.Notes = append(view.Notes, "The new agent does not list its workers. ("+fault.As(err).Message+")")
	}
	for _, w := range workers {
		if err == nil && !slices.ContainsFunc(now, func(o contract.Process) bool { return o.Identity == w.Identity }) {
			view.Lost = append(view.Lost, w.WorkerID)
			continue
		}
		view.Kept++
	}
	if l.Unit == "" && l.Foreground {
		view.Notes = append(view.Notes, "The agent runs in the background now; its log is "+agent.LogPath(u.home)+".")
	}
	return view, nil
}

// find looks for the agent to replace, and reports whether it runs: an upgrade that was cut off may have stopped it.
func (u *upgrading) find(ctx context.Context) (running bool, err error) {
	left, err := agent.ReadUpgrade(u.home)
	cut := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	running, err = agent.Locked(u.home)
	if err != nil {
		return false, err
	}
	if !running && !cut {
		return false, noAgentToUpgrade(u.home)
	}
	if !running {
		u.before = left.Before
		u.s.line("An earlier upgrade was cut off after it had stopped the agent; it is taken up again.")
		return false, nil
	}
	for deadline := time.Now().Add(5 * time.Second); ; {
		// One that has just started writes the file as soon as it listens.
		if u.before, err = agent.ReadRunFile(u.home); !errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) || ctx.Err() != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return true, fault.New(fault.Unavailable, "agent_starting", "The agent of %s is still starting and has not said yet where it listens; give the command again in a moment, or look into %s.", u.home, agent.LogPath(u.home))
	}
	if err != nil || !cut || u.before.Process == left.Before.Process {
		return true, err
	}
	// The agent that the earlier upgrade has started: where it is no good, the one before it is what there is to go back to.
	u.s.line("An earlier upgrade was cut off after it had started the new agent.")
	if werr := u.await(ctx, contract.Identity{}, nil); werr != nil && u.unchanged() {
		return true, u.back(context.WithoutCancel(ctx), left.Before, werr)
	}
	return true, nil
}

// unchanged reports whether the agent runs the program that it shall be upgraded to.
func (u *upgrading) unchanged() bool {
	if u.before.Launch == nil {
		return false
	}
	is := u.before.Launch.Program
	if is.Same(u.next.Program) {
		return true
	}
	return is.Size == u.next.Size && is.Unchanged() && sameContent(is.Path, u.next.Path)
}

func sameContent(a, b string) bool {
	x, err := os.ReadFile(a)
	if err != nil {
		return false
	}
	y, err := os.ReadFile(b)
	return err == nil && bytes.Equal(x, y)
}

// prepare finds out what would be in the way, while the agent still runs.
func (u *upgrading) prepare(ctx context.Context) error {
	l := u.before.Launch
	if l.Unit != "" {
		if _, err := exec.LookPath("systemctl"); err != nil {
			return fault.New(fault.Unavailable, "no_systemctl", "The agent runs as %s of systemd, and there is no systemctl here; give the command where it is.", l.Unit)
		}
		if l.Program.Path == u.next.Path {
			return nil
		}
		f, err := os.CreateTemp(filepath.Dir(l.Program.Path), ".apiary-*")
		if err != nil {
			return fault.New(fault.Denied, "not_permitted", "The program of the unit %s, %s, cannot be replaced: %w; give the command as a user who may, such as root.", l.Unit, l.Program.Path, err)
		}
		_ = f.Close()
		return os.Remove(f.Name())
	}
	if st, err := os.Stat(filepath.Join(u.home, "run", "lock")); err == nil {
		if s, ok := st.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Getuid() {
			return fault.New(fault.Denied, "other_user", "The agent of %s was started by another user (%d), as whom the new one would have to run; give the command as that user.", u.home, s.Uid)
		}
	}
	var err error
	if u.env, err = environmentOf(u.before); err != nil {
		return err
	}
	args := []string{"config", "validate"}
	if i := slices.Index(l.Args, "--config"); i >= 0 && i+1 < len(l.Args) {
		args = append(args, "--config", l.Args[i+1])
	}
	if _, said, err := askProgram(ctx, u.next.Path, u.env, args...); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fault.New(fault.Invalid, "config_refused", "The program %s (%s) does not take the agent's configuration, so nothing was changed.%s", u.next.Path, u.next.version, quoted(said))
	}
	return nil
}

// environmentOf is what an agent like that one is started with: its own environment where this user may see it, else this command's, with what
// says which agent it is.
func environmentOf(r agent.RunFile) ([]string, error) {
	env := os.Environ()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", r.Process.PID))
	if err == nil && len(b) > 0 && r.Running() {
		env = strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
	} else {
		var missing []string
		for _, name := range r.Launch.Needs {
			if _, ok := os.LookupEnv(name); !ok {
				missing = append(missing, name)
			}
		}
		if len(missing) > 0 {
			return nil, fault.New(fault.Conflict, "environment_missing", "The agent was started with %s in its environment, and this command was not, so the new agent would lack it; set it here too (empty to go without) and give the command again.", strings.Join(missing, ", "))
		}
	}
	env = slices.DeleteFunc(slices.Clone(env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains(ownVariables, name)
	})
	for _, name := range sortedKeys(r.Launch.Env) {
		env = append(env, name+"="+r.Launch.Env[name])
	}
	return env, nil
}

// workers lists the worker processes of the agent's hive.
func (u *upgrading) workers(ctx context.Context, running bool) ([]contract.Process, error) {
	r := u.before
	if !slices.Contains(r.Roles, "hive") {
		return nil, nil
	}
	if !running {
		return process.List(r.NodeID)
	}
	if now, err := agent.ReadRunFile(u.home); err == nil {
		r = now
	}
	key, err := loadKey(u.home, secret.ClusterKeyFile)
	if err != nil {
		return nil, err
	}
	c := client.New(client.Options{Base: r.Hive, Token: secret.ForHive(key, r.NodeID)})
	defer c.Close()
	list, err := client.Run[[]contract.Process](ctx, c, op{Operation: contract.OpProcessList}, nil)
	if err != nil {
		return nil, fmt.Errorf("list the worker processes: %w", err)
	}
	return list, nil
}

func (u *upgrading) say(message string) {
	u.s.narrate(contract.Narration{Level: "info", Action: "upgrade", Message: message})
}

// replace stops the agent and starts the next one. Where that does not become ready, the one before runs again when it returns.
func (u *upgrading) replace(ctx context.Context, running bool) (pid int, err error) {
	l := u.before.Launch
	if l.Unit != "" && l.Program.Path != u.next.Path {
		if err := placeProgram(u.next.Path, l.Program, true); err != nil {
			return 0, errors.Join(err, agent.EndUpgrade(u.home, false))
		}
	}
	if running {
		u.say("waiting until the agent has finished the requests that run")
		if err := u.stop(ctx, u.before); err != nil {
			return 0, err
		}
	}
	u.say("starting " + u.next.version)
	b, err := u.start(ctx, u.next.Path)
	if err == nil {
		err = u.await(ctx, u.before.Process, b)
	}
	if err != nil {
		b.end()
		return 0, u.back(ctx, u.before, err)
	}
	now, err := agent.ReadRunFile(u.home)
	if err == nil {
		err = agent.EndUpgrade(u.home, u.next.Path == agent.KeptProgram(u.home))
	}
	if l.Unit != "" {
		_ = os.Remove(l.Program.Path + oldSuffix)
	}
	return now.Process.PID, err
}

// back starts the agent again that ran before, because the next one is no good, and says so.
func (u *upgrading) back(ctx context.Context, before agent.RunFile, cause error) error {
	u.say("going back to " + before.Version)
	why := strings.TrimSuffix(fault.As(cause).Message, ".")
	fail := func(next string, err error) error {
		return fault.New(fault.Unavailable, "upgrade_failed", "The agent could not be upgraded to %s: %s. Nor could %s be started again: %w; its workers go on. %s", u.next.version, why, before.Version, err, next)
	}
	again := "Give the command again when the reason is gone, or start the agent as it was started before."
	if r, err := agent.ReadRunFile(u.home); err == nil && r.Process != before.Process {
		if err := u.stop(ctx, r); err != nil {
			return fail(again, err)
		}
	}
	l := before.Launch
	program, kept := l.Program.Path, false
	if !l.Program.Unchanged() {
		if _, err := os.Stat(agent.KeptProgram(u.home)); err == nil {
			program, kept = agent.KeptProgram(u.home), true
		}
	}
	if l.Unit != "" {
		var err error
		if before, berr := agent.LookAt(l.Program.Path + oldSuffix); berr == nil && before.Same(l.Program) {
			err = os.Rename(before.Path, l.Program.Path)
		} else if kept {
			err = placeProgram(program, l.Program, false)
		}
		if err != nil {
			return fail(again, err)
		}
	} else if !kept && !l.Program.Unchanged() {
		return fail(again, fmt.Errorf("the program %s is not there any more", l.Program.Path))
	}
	old := *u
	old.before = before
	if before.Launch.Unit == "" && old.env == nil {
		var err error
		if old.env, err = environmentOf(before); err != nil {
			return fail(again, err)
		}
	}
	b, err := old.start(ctx, program)
	if err == nil {
		err = old.await(ctx, before.Process, b)
	}
	if err != nil {
		return fail(again, err)
	}
	if err := agent.EndUpgrade(u.home, kept && l.Unit == ""); err != nil {
		return err
	}
	return fault.New(fault.Unavailable, "upgrade_failed", "The agent could not be upgraded to %s: %s. %s runs again, and its workers went on.", u.next.version, why, before.Version)
}

// startArgs are the arguments of the agents that are started.
func (u *upgrading) startArgs() []string { return u.before.Launch.Args }

// start starts a program as the agent. Under systemd it is the unit's.
func (u *upgrading) start(ctx context.Context, program string) (*background, error) {
	l := u.before.Launch
	if l.Unit == "" {
		return launch(u.home, program, u.startArgs(), u.env)
	}
	_ = unitControl(ctx, l, "reset-failed", l.Unit)
	return nil, unitControl(ctx, l, "start", l.Unit)
}

// stop ends an agent and leaves its workers.
func (u *upgrading) stop(ctx context.Context, r agent.RunFile) error {
	if l := u.before.Launch; l.Unit != "" {
		return unitControl(ctx, l, "stop", l.Unit)
	}
	_, err := agent.Stop(ctx, r, stopPatience)
	return err
}

func unitControl(ctx context.Context, l *agent.Launch, args ...string) error {
	if l.User {
		args = append([]string{"--user"}, args...)
	}
	ctx, cancel := context.WithTimeout(ctx, unitLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	var said limited
	cmd.Stderr, cmd.WaitDelay = &said, time.Second
	if err := cmd.Run(); err != nil {
		return fault.New(fault.Unavailable, "systemctl_failed", "`systemctl %s` failed (%v): %s", strings.Join(args, " "), err, cmp.Or(printable(strings.TrimSpace(said.String())), "it did not say why"))
	}
	return nil
}

// await waits until another agent than the one that was is ready. b is nil where this command has not started it as a child.
func (u *upgrading) await(ctx context.Context, was contract.Identity, b *background) error {
	u.say("waiting until the agent is ready")
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	var ended <-chan struct{}
	from := int64(0)
	if b != nil {
		ended, from = b.ended, b.from
	}
	for {
		r, err := agent.ReadRunFile(u.home)
		if locked, lerr := agent.Locked(u.home); err == nil && lerr == nil && locked && r.Process != was && readyAt(ctx, r.Queen) && readyAt(ctx, r.Hive) {
			return nil
		}
		select {
		case <-ended:
			return b.failure(u.home)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return fault.New(fault.Unavailable, "agent_not_ready", "it was not ready after %v; its log is %s.%s", readyLimit, agent.LogPath(u.home), quoted(lastLines(agent.LogPath(u.home), from, 5)))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// readyAt reports whether a role is ready; one that there is not is.
func readyAt(ctx context.Context, base string) bool {
	if base == "" {
		return true
	}
	code, err := get(ctx, base+"/readyz")
	return err == nil && code == http.StatusOK
}

// oldSuffix ends the name of the program that a unit ran before, as `apiary hive install` keeps it too.
const oldSuffix = ".apiary-old"

// placeProgram puts a copy of a program where a unit runs another one, was. keep leaves that under oldSuffix, unless it has been replaced.
func placeProgram(from string, was agent.Program, keep bool) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	defer func() { _ = src.Close() }()
	dst, err := os.CreateTemp(filepath.Dir(was.Path), ".apiary-*")
	if err != nil {
		return fmt.Errorf("write the program: %w", err)
	}
	defer func() { _ = os.Remove(dst.Name()) }()
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Chmod(0o755), dst.Sync(), dst.Close()); err != nil {
		return fmt.Errorf("write the program: %w", err)
	}
	if keep && was.Unchanged() {
		_ = os.Remove(was.Path + oldSuffix)
		if err := os.Link(was.Path, was.Path+oldSuffix); err != nil {
			return fmt.Errorf("keep the program that runs: %w", err)
		}
	}
	if err := os.Rename(dst.Name(), was.Path); err != nil {
		return fmt.Errorf("put the program in place: %w", err)
	}
	return nil
}
