package main

import (
	"bytes"
	"context"
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

	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

// The two echo workers: one answers at once, the other paces its tokens.
const (
	fast  = "fast"
	paced = "paced"

	tokensPerSecond = 20
)

// target is one relay, or none, in front of both workers.
type target struct {
	name    string
	addr    map[string]string // by worker
	pids    map[string]int
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
	queen, err := freeport.Address()
	if err != nil {
		return nil, err
	}
	// The agent makes the cluster key, from which the workers' secrets come.
	agent, err := s.run("agent", nil, append(os.Environ(), "APIARY_HOME="+home, "APIARY_ADDR="+queen), apiary, "agent")
	if err != nil {
		return nil, err
	}
	if err := await(ctx, "http://"+queen+"/healthz", nil); err != nil {
		return nil, s.withLog("agent", err)
	}
	cluster, err := secret.Load(filepath.Join(home, "secrets", secret.ClusterKeyFile))
	if err != nil {
		return nil, err
	}
	ours := &target{name: "apiary", addr: map[string]string{fast: queen, paced: queen}, pids: map[string]int{fast: agent, paced: agent}}
	direct := &target{name: "direct", addr: map[string]string{}, pids: map[string]int{}}
	for _, w := range []string{fast, paced} {
		if err := s.worker(ctx, apiary, w, queen, cluster, direct); err != nil {
			return nil, err
		}
	}
	s.targets = []*target{ours}
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
	for _, t := range []*target{ours, direct} {
		for _, w := range []string{fast, paced} {
			if err := s.warm(ctx, t, w); err != nil {
				return nil, s.withLog("agent", fmt.Errorf("%s to worker %s: %w", t.name, w, err))
			}
		}
	}
	ok = true
	return s, nil
}

// worker starts an echo worker that beats to the queen.
func (s *setup) worker(ctx context.Context, apiary, name, queen string, cluster secret.Secret, direct *target) error {
	listen, err := freeport.Address()
	if err != nil {
		return err
	}
	_, port, _ := net.SplitHostPort(listen)
	id := "relaybench-" + name
	token := secret.ForWorker(cluster, id)
	args := []string{"worker", "echo", "--worker-id", id, "--model", model(name), "--device", "cpu0", "--port", port, "--address", "127.0.0.1",
		"--queen-url", "http://" + queen, "--hive-id", "relaybench", "--secret-fd", "3", "--slots", "4096", "--context", "100000000", "--orphan-ttl", "0"}
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
