// Beatbench measures what it costs a real queen that many workers beat to it: processor time of the process, everything included, its
// collector and the kernel's part too. Each worker of the load has the secret that is its own and beats every 5 s, as workers/sdk does, over a
// connection that stays open, its own as far as the machine's limit of open files goes. Everything runs on loopback and is ended again.
//
//	go run ./core/testutil/beatbench [-workers 10000] [-window 30s] [-quick] [-apiary bin/apiary]
//
// It prints one row a measurement: name, ours, other, ratio, goal, and met, missed or info. CPU time is what the kernel accounts to the
// process (/proc/PID/task/*/schedstat), so it needs Linux. -profile FILE writes the queen's CPU profile of the same time.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/freeport"

	"github.com/apiary-dev/apiary/core/testutil/spent"
)

const (
	goalCores   = 0.25
	goalWorkers = 10_000
	interval    = 5 * time.Second
	oldest      = 7500 * time.Millisecond // the age from which a worker is stale
)

func main() {
	var (
		apiary  = flag.String("apiary", filepath.Join("bin", "apiary"), "executable of the queen; it is built where it is missing")
		workers = flag.Int("workers", goalWorkers, "workers that beat")
		window  = flag.Duration("window", 30*time.Second, "time that is measured")
		quick   = flag.Bool("quick", false, "2,000 workers for 10 s, as information")
		profile = flag.String("profile", "", "file for the queen's CPU profile")
	)
	flag.Parse()
	if *quick {
		*workers, *window = 2000, 10*time.Second
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, *apiary, *workers, *window, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "beatbench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, apiary string, workers int, window time.Duration, profile string) error {
	if runtime.GOOS != "linux" {
		return errors.New("CPU time is read from /proc, so this runs on Linux only")
	}
	name := fmt.Sprintf("cluster/queen-cpu/%d-workers", workers)
	lines, err := connections(workers)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "beatbench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if apiary, err = executable(ctx, apiary, dir); err != nil {
		return err
	}
	q, err := startQueen(ctx, apiary, dir, workers)
	if err != nil {
		return err
	}
	defer q.stop()
	crowd, err := newCrowd(q, workers)
	if err != nil {
		return err
	}
	beats, end := crowd.start(ctx, lines)
	defer end()
	if err := q.awaitAlive(ctx, workers, 60*time.Second); err != nil {
		return q.withLog(errors.Join(err, crowd.failure()))
	}
	profiled := make(chan error, 1)
	if profile == "" {
		profiled <- nil
	} else {
		go func() { profiled <- q.profile(ctx, profile, window) }()
	}
	before, err := spent.CPU(q.cmd.Process.Pid)
	if err != nil {
		return err
	}
	begun, sent := time.Now(), beats.Load()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(window):
	}
	after, err := spent.CPU(q.cmd.Process.Pid)
	if err != nil {
		return err
	}
	took, n := time.Since(begun), beats.Load()-sent
	if err := errors.Join(<-profiled, crowd.failure()); err != nil {
		return q.withLog(err)
	}
	view, err := q.workers(ctx)
	if err != nil {
		return err
	}
	age := time.Duration(0)
	for _, w := range view {
		age = max(age, time.Duration(w.AgeMS)*time.Millisecond)
	}
	if len(view) != workers || age > oldest {
		return fmt.Errorf("the queen knows %d of %d workers, and heard one %v ago", len(view), workers, age)
	}
	cores := (after - before).Seconds() / took.Seconds()
	if workers == goalWorkers {
		verdict := "met"
		if cores > goalCores {
			verdict = "missed"
		}
		fmt.Printf("%s %.3f-cores - - ≤%.2f %s\n", name, cores, goalCores, verdict)
	} else {
		fmt.Printf("%s %.3f-cores - - - info\n", name, cores)
		fmt.Printf("%s/for-%d %.3f-cores - - ≤%.2f info\n", name, goalWorkers, cores*goalWorkers/float64(workers), goalCores)
	}
	fmt.Printf("%s/a-beat %.1f-µs - - - info\n", name, float64((after-before).Microseconds())/float64(max(n, 1)))
	fmt.Printf("%s/connections %d - - - info\n", name, lines)
	fmt.Printf("%s/oldest-beat %.1f-s - - ≤%.1f info\n", name, age.Seconds(), oldest.Seconds())
	return nil
}

// connections is how many of them the machine's limit of open files allows: a server keeps two thirds of its descriptors for other things
// than clients. The limit is raised where that is allowed. Workers share connections where there are fewer.
func connections(workers int) (int, error) {
	need := 3*uint64(workers) + 2000
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0, fmt.Errorf("read how many files may be open: %w", err)
	}
	if l.Cur < need && unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: need, Max: max(need, l.Max)}) == nil {
		l.Cur = need
	}
	return int(min(uint64(workers), (l.Cur-1000)/3)), nil
}

// executable returns the absolute path of the executable under test, built into dir where it does not exist.
func executable(ctx context.Context, path, dir string) (string, error) {
	if _, err := os.Stat(path); err == nil {
		return filepath.Abs(path)
	}
	out := filepath.Join(dir, "apiary")
	c := exec.CommandContext(ctx, "go", "build", "-o", out, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	c.Stderr = os.Stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("build apiary, from the root of the repository: %w", err)
	}
	return out, nil
}

// queen is an agent with that role alone.
type queen struct {
	cmd     *exec.Cmd
	addr    string
	home    string
	cluster secret.Secret
	admin   secret.Secret
}

func startQueen(ctx context.Context, apiary, dir string, workers int) (*queen, error) {
	q := &queen{home: filepath.Join(dir, "home")}
	if err := os.Mkdir(q.home, 0o700); err != nil {
		return nil, err
	}
	var err error
	if q.addr, err = freeport.Address(); err != nil {
		return nil, err
	}
	config := fmt.Sprintf("agent {\n  roles = [\"queen\"]\n}\nqueen {\n  listen = %q\n  hives = []\n  limits {\n    connections = %d\n  }\n}\n", q.addr, max(8192, workers+500))
	if err := os.WriteFile(filepath.Join(q.home, "config.hcl"), []byte(config), 0o600); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(q.home, "bench.log"))
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	q.cmd = exec.Command(apiary, "agent")
	q.cmd.Env = []string{"APIARY_HOME=" + q.home, "HOME=" + q.home, "PATH=" + os.Getenv("PATH")}
	q.cmd.Stdout, q.cmd.Stderr = log, log
	q.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := q.cmd.Start(); err != nil {
		return nil, err
	}
	ready := func() error {
		if _, err := q.get(ctx, "/healthz"); err != nil {
			return err
		}
		var err error
		if q.cluster, err = secret.Load(filepath.Join(q.home, "secrets", secret.ClusterKeyFile)); err != nil {
			return err
		}
		q.admin, err = secret.Load(filepath.Join(q.home, "secrets", secret.AdminKeyFile))
		return err
	}
	for until := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := ready()
		if err == nil {
			return q, nil
		}
		if ctx.Err() != nil || time.Now().After(until) {
			q.stop()
			return nil, q.withLog(fmt.Errorf("the queen does not start: %w", err))
		}
	}
}

func (q *queen) stop() {
	_ = syscall.Kill(-q.cmd.Process.Pid, syscall.SIGKILL)
	_ = q.cmd.Wait()
}

// withLog adds the last lines of the queen's log to an error.
func (q *queen) withLog(err error) error {
	b, _ := os.ReadFile(filepath.Join(q.home, "bench.log"))
	return fmt.Errorf("%w; its log ends: %s", err, b[max(0, len(b)-1000):])
}

func (q *queen) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+q.addr+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+q.admin.Reveal())
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s is answered with %s: %.300s", path, res.Status, b)
	}
	return b, err
}

func (q *queen) workers(ctx context.Context) ([]contract.WorkerView, error) {
	b, err := q.get(ctx, "/admin/cluster")
	if err != nil {
		return nil, err
	}
	var v contract.ClusterView
	if err := json.Unmarshal(b, &v); err != nil {
		return nil, fmt.Errorf("read the queen's list of workers: %w", err)
	}
	return v.Workers, nil
}

// awaitAlive waits until the queen knows all workers and has settled: its start, and theirs, are not measured.
func (q *queen) awaitAlive(ctx context.Context, workers int, bound time.Duration) error {
	until := time.Now().Add(bound)
	for {
		view, err := q.workers(ctx)
		if err == nil && len(view) == workers {
			break
		}
		if time.Now().After(until) {
			return fmt.Errorf("the queen knows %d of %d workers: %w", len(view), workers, cmp.Or(err, errors.New("no more came")))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * interval):
		return nil
	}
}

// profile writes the queen's CPU profile of the next seconds.
func (q *queen) profile(ctx context.Context, file string, window time.Duration) error {
	b, err := q.get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(window.Seconds())))
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}
