// Relaybench measures what the queen's relay costs beside other relays: CPU time per request and per paced token, memory per
// open stream, and added latency, all in front of the same echo workers. Everything runs on loopback and is ended again.
//
//	go run ./core/testutil/relaybench [-quick] [-only paced] [-apiary bin/apiary]
//
// It prints one row a comparison: name, ours, other, ratio, goal, and met, missed or info. CPU time is what the kernel
// accounts to the threads of the relay (/proc/PID/task/*/schedstat), so it needs Linux. Targets are measured in turn within
// each round, in an order that rotates, and the medians of all rounds are compared: other load on the machine then hits all
// of them alike.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"syscall"
	"time"
)

// plan is how long and how often things are measured.
type plan struct {
	rounds      int
	requests    time.Duration // of one cell of requests
	pacedWarmup time.Duration
	paced       time.Duration
	streams     int // of the paced cell
	memory      int // streams of the memory cell
	memoryRuns  int // fresh processes of the memory cell
	only        *regexp.Regexp
}

func main() {
	var (
		apiary  = flag.String("apiary", filepath.Join("bin", "apiary"), "executable of the queen; it is built where it is missing")
		quick   = flag.Bool("quick", false, "fewer and shorter rounds, for a check of at most a minute")
		only    = flag.String("only", "", "measure only cells whose name matches this regular expression")
		reverse = flag.String("reverse", "", "internal: serve a net/http reverse proxy for this upstream")
		listen  = flag.String("listen", "", "internal: address of the reverse proxy")
	)
	flag.Parse()
	if *reverse != "" {
		fail(serveReverse(*listen, *reverse))
		return
	}
	p := plan{rounds: 5, requests: 900 * time.Millisecond, pacedWarmup: 500 * time.Millisecond, paced: 2 * time.Second, streams: 200, memory: 800, memoryRuns: 3}
	if *quick {
		p = plan{rounds: 3, requests: 250 * time.Millisecond, pacedWarmup: 300 * time.Millisecond, paced: 700 * time.Millisecond, streams: 200, memory: 400, memoryRuns: 1}
	}
	var err error
	if p.only, err = regexp.Compile(*only); err != nil {
		fail(fmt.Errorf("-only: %w", err))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	fail(bench(ctx, *apiary, p))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "relaybench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, apiary string, p plan) error {
	if runtime.GOOS != "linux" {
		return errors.New("CPU time is read from /proc, so this runs on Linux only")
	}
	dir, err := os.MkdirTemp("", "relaybench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if apiary, err = executable(ctx, apiary, dir); err != nil {
		return err
	}
	begun := time.Now()
	r := &results{}
	for run := range p.memoryRuns { // fresh processes: one that has run before has memory to reuse
		s, err := start(ctx, apiary, dir)
		if err != nil {
			return err
		}
		err = measureMemory(ctx, s, p, r)
		if err == nil && run == p.memoryRuns-1 {
			err = measureCPU(ctx, s, p, r)
		}
		s.stop()
		if err != nil {
			return err
		}
	}
	r.print(os.Stdout)
	fmt.Fprintf(os.Stderr, "relaybench: %d rounds in %.0f s\n", p.rounds, time.Since(begun).Seconds())
	return nil
}

// executable returns the absolute path of the executable under test, built into dir where it does not exist.
func executable(ctx context.Context, path, dir string) (string, error) {
	if _, err := os.Stat(path); err == nil {
		return filepath.Abs(path)
	}
	out := filepath.Join(dir, "apiary")
	fmt.Fprintf(os.Stderr, "relaybench: %s does not exist; building one\n", path)
	c := exec.CommandContext(ctx, "go", "build", "-o", out, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	c.Stderr = os.Stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("build apiary, from the root of the repository: %w", err)
	}
	return out, nil
}
