package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

// The two echo workers: one answers at once, the other paces its tokens.
const (
	fast  = "fast"
	paced = "paced"

	keyed = "keys" // the target that needs API keys

	tokensPerSecond = 20
)

// target is one relay, or none, in front of both workers.
type target struct {
	name    string
	addr    map[string]string // by worker
	pids    map[string]int
	token   string // API key; empty: that of the worker
	skipped string // why it could not be had
}

// setup is everything that runs.
type setup struct {
	targets []*target         // ours first; the last is the worker itself
	tokens  map[string]string // of the workers: peers pass them through
	procs   []*exec.Cmd
	dir     string
}

func (s *setup) direct() *target { return s.targets[len(s.targets)-1] }

// model is the name of a worker's model.
func model(worker string) string { return "echo:" + worker }

func start(ctx context.Context, apiary, dir string) (*setup, error) {
	home, err := os.MkdirTemp(dir, "home-")
	if err != nil {
		return nil, err
	}
	s := &setup{dir: home}
	ok := false
	defer func() {
		if !ok {
			s.stop()
		}
	}()
	// The agent makes the cluster key, from which the workers' secrets come.
	ours, err := s.agent(ctx, apiary, "apiary", home)
	if err != nil {
		return nil, err
	}
	cluster, err := secret.Load(filepath.Join(home, "secrets", secret.ClusterKeyFile))
	if err != nil {
		return nil, err
	}
	// Another one, whose callers need keys.
	second := filepath.Join(home, keyed)
	if err := os.MkdirAll(filepath.Join(second, "secrets"), 0o700); err != nil {
		return nil, err
	}
	if err := os.Link(filepath.Join(home, "secrets", secret.ClusterKeyFile), filepath.Join(second, "secrets", secret.ClusterKeyFile)); err != nil {
		return nil, err
	}
	withKeys, err := s.agent(ctx, apiary, keyed, second)
	if err != nil {
		return nil, err
	}
	if withKeys.token, err = makeKey(ctx, withKeys.addr[fast], second); err != nil {
		return nil, err
	}
	direct := &target{name: "direct", addr: map[string]string{}, pids: map[string]int{}}
	for _, w := range []string{fast, paced} {
		if err := s.worker(ctx, apiary, w, []string{ours.addr[w], withKeys.addr[w]}, cluster, direct); err != nil {
			return nil, err
		}
	}
	s.targets = []*target{ours, withKeys}
	for _, p := range []struct {
		name  string
		start func(ctx context.Context, name, listen, upstream string) (int, error)
	}{{"reverseproxy", s.reverseProxy}, {"haproxy", s.haproxy}, {"vllm-router", s.vllmRouter}} {
		t := &target{name: p.name, addr: map[string]string{}, pids: map[string]int{}}
		s.targets = append(s.targets, t)
		for _, w := range []string{fast, paced} {
			listen, err := freeport.Address()
			if err != nil {
				return nil, err
			}
			name := p.name + "-" + w
			pid, err := p.start(ctx, name, listen, direct.addr[w])
			if err == nil {
				t.addr[w], t.pids[w] = listen, pid
				err = s.warm(ctx, t, w)
			}
			if errors.Is(err, context.Canceled) {
				return nil, err
			} else if err != nil {
				t.skipped = oneLine(s.withLog(name, err).Error())
				break
			}
		}
	}
	s.targets = append(s.targets, direct)
	for _, t := range []*target{ours, withKeys, direct} {
		for _, w := range []string{fast, paced} {
			if err := s.warm(ctx, t, w); err != nil {
				return nil, s.withLog("apiary", fmt.Errorf("%s to worker %s: %w", t.name, w, err))
			}
		}
	}
	ok = true
	return s, nil
}

// agent starts an agent with a data folder, that is a target.
func (s *setup) agent(ctx context.Context, apiary, name, home string) (*target, error) {
	addr, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	pid, err := s.run(name, nil, append(os.Environ(), "APIARY_HOME="+home, "APIARY_ADDR="+addr), apiary, "agent")
	if err != nil {
		return nil, err
	}
	if err := await(ctx, "http://"+addr+"/healthz", nil); err != nil {
		return nil, s.withLog(name, err)
	}
	return &target{name: name, addr: map[string]string{fast: addr, paced: addr}, pids: map[string]int{fast: pid, paced: pid}}, nil
}

// makeKey has the agent at an address make an API key with limits that are far away.
func makeKey(ctx context.Context, addr, home string) (string, error) {
	admin, err := secret.Load(filepath.Join(home, "secrets", secret.AdminKeyFile))
	if err != nil {
		return "", err
	}
	ask, err := json.Marshal(contract.NewKey{Name: "bench", KeyLimits: contract.KeyLimits{Concurrency: 1e6, TokensPerMinute: 1e12, Queue: 1e6}})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/admin/keys", bytes.NewReader(ask))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer "+admin.Reveal())
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	var made contract.MadeKey
	if err := json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&made); err != nil || res.StatusCode != http.StatusCreated {
		return "", fmt.Errorf("make a key: %s, %w", res.Status, err)
	}
	return made.Key, nil
}

// worker starts an echo worker that beats to the queens.
func (s *setup) worker(ctx context.Context, apiary, name string, queens []string, cluster secret.Secret, direct *target) error {
	listen, err := freeport.Address()
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(listen)
	id := "relaybench-" + name
	token := secret.ForWorker(cluster, id)
	args := []string{"worker", "echo", "--worker-id", id, "--model", model(name), "--device", "cpu0", "--port", port, "--address", "127.0.0.1",
		"--hive-id", "relaybench", "--secret-fd", "3", "--slots", "4096", "--context", "100000000", "--orphan-ttl", "0"}
	for _, q := range queens {
		args = append(args, "--queen-url", "http://"+q)
	}
	if name == paced {
		args = append(args, "--tps", fmt.Sprint(tokensPerSecond), "--tokens", "1000000")
	} else {
		args = append(args, "--tokens", "16")
	}
	pid, err := s.run("worker-"+name, strings.NewReader(token.Reveal()), os.Environ(), apiary, args...)
	if err != nil {
		return err
	}
	direct.addr[name], direct.pids[name] = listen, pid
	if s.tokens == nil {
		s.tokens = map[string]string{}
	}
	s.tokens[name] = token.Reveal()
	if err := await(ctx, "http://"+listen+"/health", nil); err != nil {
		return s.withLog("worker-"+name, err)
	}
	return nil
}

// run starts a process whose output goes to a log in the folder; fd3 is given to it as descriptor 3.
func (s *setup) run(name string, fd3 io.Reader, env []string, path string, args ...string) (pid int, err error) {
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }()
	c := exec.Command(path, args...)
	c.Env, c.Stdout, c.Stderr, c.Dir = env, log, log, s.dir
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if fd3 != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return 0, err
		}
		defer func() { _ = r.Close() }()
		defer func() { _ = w.Close() }()
		if _, err := io.Copy(w, fd3); err != nil { // less than what a pipe holds
			return 0, err
		}
		c.ExtraFiles = []*os.File{r}
	}
	if err := c.Start(); err != nil {
		return 0, err
	}
	s.procs = append(s.procs, c)
	return c.Process.Pid, nil
}

// stop ends every process, the last first, and waits for it.
func (s *setup) stop() {
	for i := len(s.procs) - 1; i >= 0; i-- {
		_ = syscall.Kill(-s.procs[i].Process.Pid, syscall.SIGKILL)
		_ = s.procs[i].Wait()
	}
	s.procs = nil
}

// withLog adds the last lines that a process wrote to an error.
func (s *setup) withLog(name string, err error) error {
	b, _ := os.ReadFile(filepath.Join(s.dir, name+".log"))
	if b = bytes.TrimSpace(b); len(b) == 0 {
		return err
	}
	return fmt.Errorf("%w; its log ends: %s", err, b[max(0, len(b)-600):])
}

func oneLine(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), 300)]
}

// await asks for url until it answers 200, for at most 20 s.
func await(ctx context.Context, url string, header http.Header) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		req.Header = header
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New(res.Status)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s did not get ready: %w", url, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
