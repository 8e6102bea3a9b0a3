package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
)

// startLimit bounds the wait for an agent in the background to be ready.
const startLimit = 10 * time.Second

// endLimit is how long an agent that did not become ready may take to end.
const endLimit = 5 * time.Second

// ensure returns a client of the agent, which it starts in the background when none runs.
func (a *app) ensure(ctx context.Context, s *story) (*conn, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	switch t.look(ctx) {
	case ready:
		return t.conn()
	case stranger:
		return nil, t.strange()
	case unready:
		return a.await(ctx, t, nil)
	}
	if !t.local() {
		return nil, fault.New(fault.Unavailable, "no_agent", "No agent answers at %s, which is another machine; start one there with `apiary agent`.", t.base)
	}
	locked, err := agent.Locked(t.home)
	if err != nil {
		return nil, err
	}
	if r, err := agent.ReadRunFile(t.home); locked && err == nil && r.Queen != t.base {
		if r.Queen == "" {
			return nil, t.hiveAlone()
		}
		return nil, fault.New(fault.Conflict, "other_address", "The agent of %s listens at %s and not at %s; stop it with `apiary stop`, or talk to it with --addr %s.", t.home, r.Queen, t.base, r.Queen)
	}
	var b *background
	if !locked {
		if _, err := a.loadAgentConfig(); err != nil {
			return nil, err // the agent would say the same, but only in its log
		}
		if b, err = a.startAgent(t); err != nil {
			return nil, err
		}
	}
	c, err := a.await(ctx, t, b)
	if err == nil && b != nil {
		// Another command may have started one at the same time; then that one serves both.
		if r, err := agent.ReadRunFile(t.home); err == nil && r.Process.PID == b.pid {
			s.line(fmt.Sprintf("agent started (%s) · %s · log %s", strings.Join(r.Roles, " + "), c.base, tilde(agent.LogPath(t.home), a.getenv("HOME"))))
		}
	}
	return c, err
}

// background is an agent that this command started.
type background struct {
	ended chan struct{} // closed when the process has ended
	err   error         // of the process, once ended
	from  int64         // size of the log before the start
	pid   int
	whole *os.Process
}

// end ends an agent that was started and is no good. nil is none.
func (b *background) end() {
	if b == nil {
		return
	}
	for _, s := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		_ = b.whole.Signal(s) // it does nothing once the process was waited for
		select {
		case <-b.ended:
			return
		case <-time.After(endLimit):
		}
	}
}

// startAgent starts `apiary agent`, with more options, in a session of its own, so that closing the terminal does not end it.
func (a *app) startAgent(t target, more ...string) (*background, error) {
	own, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this executable: %w", err)
	}
	if err := os.MkdirAll(t.home, 0o700); err != nil {
		return nil, fmt.Errorf("make the data folder: %w", err)
	}
	args := append([]string{"agent", "--background"}, more...)
	if a.configPath != "" {
		path, err := absolute(a.configPath)
		if err != nil {
			return nil, err
		}
		args = append(args, "--config", path)
	}
	if t.given != "" {
		args = append(args, "--addr", t.given)
	}
	env := os.Environ()
	for _, name := range []string{"APIARY_HOME", "APIARY_CONFIG"} {
		if v := a.getenv(name); v != "" {
			if v, err = absolute(v); err != nil {
				return nil, err
			}
			env = append(env, name+"="+v)
		}
	}
	return launch(t.home, own, args, env)
}

// launch starts a program as the agent of a data folder, which logs to agent.log.
func launch(home, program string, args, env []string) (*background, error) {
	logFile, err := folder.OpenFile(agent.LogPath(home), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the agent's log: %w", err)
	}
	defer func() { _ = logFile.Close() }()
	st, err := logFile.Stat()
	if err != nil {
		return nil, fmt.Errorf("open the agent's log: %w", err)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = home // the folder in which this command runs is not kept from being removed
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start an agent: %w", err)
	}
	b := &background{ended: make(chan struct{}), from: st.Size(), pid: cmd.Process.Pid, whole: cmd.Process}
	go func() {
		b.err = cmd.Wait()
		close(b.ended)
	}()
	return b, nil
}

// await waits until the agent is ready. b is nil when somebody else started it.
func (a *app) await(ctx context.Context, t target, b *background) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	var ended <-chan struct{}
	if b != nil {
		ended = b.ended
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		// Only an agent that holds this data folder counts: another one at the same address has other keys.
		if t.given == "" {
			if r, err := agent.ReadRunFile(t.home); err == nil && r.Queen != "" {
				t.base = r.Queen
			}
		}
		if locked, err := agent.Locked(t.home); err == nil && (locked || b == nil) && t.look(ctx) == ready {
			return t.conn()
		}
		select {
		case <-ended:
			ended = nil
			if exit, ok := errors.AsType[*exec.ExitError](b.err); ok && exit.ExitCode() == fault.ExitCode(fault.New(fault.Conflict, "", "")) {
				if locked, err := agent.Locked(t.home); err == nil && locked {
					continue // another command's agent was first
				}
			}
			return nil, b.failure(t.home)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, fault.New(fault.Unavailable, "agent_not_ready", "The agent at %s is not ready after %v; its log is %s.%s",
				t.base, startLimit, agent.LogPath(t.home), quoted(lastLines(agent.LogPath(t.home), 0, 5)))
		case <-tick.C:
		}
	}
}

// failure says why a started agent ended, with the kind of its exit code and its own words.
func (b *background) failure(home string) error {
	lines := lastLines(agent.LogPath(home), b.from, 10)
	kind := fault.Internal
	if exit, ok := errors.AsType[*exec.ExitError](b.err); ok {
		for _, k := range []fault.Kind{fault.Invalid, fault.NotFound, fault.Conflict, fault.Unavailable, fault.Exhausted, fault.Denied} {
			if exit.ExitCode() == fault.ExitCode(&fault.Error{Kind: k}) {
				kind = k
			}
		}
	}
	for i, l := range lines {
		if message, ok := strings.CutPrefix(l, "Error: "); ok {
			return fault.New(kind, "agent_failed", "The agent did not start: %s", strings.Join(append([]string{message}, lines[i+1:]...), "\n"))
		}
	}
	return fault.New(kind, "agent_failed", "The agent did not start (%v); its log is %s.%s", b.err, agent.LogPath(home), quoted(lines))
}

func quoted(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return "\n  " + strings.Join(lines, "\n  ")
}

// lastLines returns the last n lines that a log has beyond an offset, in a form for people.
func lastLines(path string, from int64, n int) []string {
	f, err := folder.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	if st, err := f.Stat(); err == nil {
		from = max(from, st.Size()-64<<10)
		if st.Size() < from {
			from = 0 // it was rotated
		}
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return nil
	}
	var lines []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if l := readable(sc.Bytes()); l != "" {
			lines = append(lines, l)
		}
	}
	return slices.Clone(lines[max(0, len(lines)-n):])
}

// readable turns a JSON log line into level, message and error.
func readable(line []byte) string {
	var rec struct {
		Level, Msg, Err, Error string
	}
	if json.Unmarshal(line, &rec) != nil || rec.Msg == "" {
		return printable(string(bytes.TrimSpace(line)))
	}
	s := strings.ToLower(rec.Level) + ": " + rec.Msg
	if e := rec.Err + rec.Error; e != "" {
		s += ": " + e
	}
	return printable(s)
}

// local reports whether an agent started here could be the one at this address.
func (t target) local() bool {
	u, err := url.Parse(t.base)
	if err != nil || u.Scheme != "http" {
		return false
	}
	if u.Hostname() == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return err == nil && ip.Unmap().IsLoopback()
}

// tilde shortens a path in the home folder.
func tilde(path, home string) string {
	if rest, ok := strings.CutPrefix(path, filepath.Clean(home)+"/"); ok && home != "" {
		return "~/" + rest
	}
	return path
}
