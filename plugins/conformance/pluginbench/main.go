// Pluginbench measures what a transport of plugins costs: the same vendor resolves a repository of 40 files, which a server on loopback
// describes, inside the program, as a process and as a WASM module; and how long each takes to start, and how much memory it holds.
//
//	go run ./plugins/conformance/pluginbench [-quick] [-apiary bin/apiary]
//
// It prints one row a comparison: name, ours, other, ratio, goal, and met, missed or info. Rows of resolve are in microseconds a call,
// of start in milliseconds, of memory in MB. Targets are measured in turn within each round, in an order that rotates, and the
// medians of all rounds are compared: other load on the machine then hits all of them alike.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/plugins/conformance"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// plan is how often things are measured.
type plan struct {
	rounds int
	calls  int // of each target in a round
	starts int // of each target, cold and warm
}

// memoryGoal is the most that one plugin may hold, in MB.
const memoryGoal = 80

func main() {
	apiary := flag.String("apiary", filepath.Join("bin", "apiary"), "executable that becomes the process of modules; it is built where it is missing")
	quick := flag.Bool("quick", false, "fewer and shorter rounds")
	flag.Parse()
	p := plan{rounds: 9, calls: 100, starts: 5}
	if *quick {
		p = plan{rounds: 5, calls: 40, starts: 3}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, *apiary, p); err != nil {
		fmt.Fprintln(os.Stderr, "pluginbench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, apiary string, p plan) error {
	dir, err := os.MkdirTemp("", "pluginbench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if apiary, err = executable(ctx, apiary, dir); err != nil {
		return err
	}
	server := newServer()
	defer server.Close()
	all, err := targets(ctx, apiary, dir, server)
	if err != nil {
		return err
	}
	r := results{}
	for _, t := range all {
		if err := t.measureStarts(ctx, p.starts, r); err != nil {
			return fmt.Errorf("start %s: %w", t.name, err)
		}
	}
	defer func() {
		for _, t := range all {
			t.stop()
		}
	}()
	for _, t := range all {
		if err := t.run(ctx); err != nil {
			return fmt.Errorf("start %s: %w", t.name, err)
		}
		if err := t.resolve(ctx, p.calls, results{}); err != nil { // warm
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	for round := range p.rounds {
		for i := range all {
			t := all[(i+round)%len(all)]
			if err := t.resolve(ctx, p.calls, r); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
		}
	}
	for _, t := range all {
		if err := t.measureMemory(r); err != nil {
			return fmt.Errorf("the memory of %s: %w", t.name, err)
		}
	}
	r.print(os.Stdout)
	return nil
}

// executable returns the absolute path of the executable, built into dir where it does not exist.
func executable(ctx context.Context, path, dir string) (string, error) {
	if _, err := os.Stat(path); err == nil {
		return filepath.Abs(path)
	}
	out := filepath.Join(dir, "apiary")
	c := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, ".")
	c.Env, c.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := c.Run(); err != nil {
		return "", fmt.Errorf("build apiary, from the root of the repository: %w", err)
	}
	return out, nil
}

// target is a plugin in one transport.
type target struct {
	name      string
	built     func(vendor.Host) any // inside this program; nil: a process
	spec      process.Spec
	forget    string // folder without which the start is a cold one
	settings  string
	reference string
	host      func() vendor.Host

	on vendor.Invoker
}

func (t *target) run(ctx context.Context) error {
	if t.built != nil {
		h := t.host()
		t.on = sdk.Dispatch(t.built(h), h)
	} else {
		spec := t.spec
		spec.Host = sdk.HostDispatch(t.host())
		p, err := process.Start(ctx, spec)
		if err != nil {
			return err
		}
		t.on = p
	}
	return host.Configure(ctx, t.on, t.settings)
}

func (t *target) stop() {
	if p, ok := t.on.(io.Closer); ok {
		_ = p.Close() // it is a measurement's end, and of no interest
	}
	t.on = nil
}

// measureStarts measures starts, the first call included, with nothing kept from before and with what the last one kept.
func (t *target) measureStarts(ctx context.Context, n int, into results) error {
	if t.built != nil {
		return nil
	}
	for range n {
		if err := os.RemoveAll(t.forget); err != nil {
			return err
		}
		for _, kind := range []string{"cold", "warm"} {
			begun := time.Now()
			err := t.run(ctx)
			if err == nil {
				_, err = t.once(ctx)
			}
			took := time.Since(begun)
			t.stop()
			if err != nil {
				return err
			}
			into.add("start-"+kind, t.name, float64(took.Microseconds())/1000)
		}
	}
	return nil
}

// once resolves the repository and returns how long it took, in microseconds.
func (t *target) once(ctx context.Context) (float64, error) {
	begun := time.Now()
	m, err := sdk.Call[vendor.Manifest](ctx, t.on, vendor.MethodResolve, vendor.ResolveRequest{Reference: t.reference})
	if err != nil {
		return 0, err
	}
	if len(m.Files) != files {
		return 0, fmt.Errorf("there are %d files, and should be %d", len(m.Files), files)
	}
	return float64(time.Since(begun).Nanoseconds()) / 1000, nil
}

// resolve adds the median of a number of calls.
func (t *target) resolve(ctx context.Context, calls int, into results) error {
	var took []float64
	for range calls {
		us, err := t.once(ctx)
		if err != nil {
			return err
		}
		took = append(took, us)
	}
	into.add("resolve40", t.name, median(took))
	return nil
}

func (t *target) measureMemory(into results) error {
	p, ok := t.on.(interface{ PID() int })
	if !ok {
		return nil
	}
	bytes, err := conformance.Resident(p.PID())
	if errors.Is(err, os.ErrNotExist) {
		return nil // there is no /proc
	}
	into.add("memory", t.name, float64(bytes)/1e6)
	return err
}

// results are measurements by cell and target.
type results map[string]map[string][]float64

func (r results) add(cell, target string, v float64) {
	if r[cell] == nil {
		r[cell] = map[string][]float64{}
	}
	r[cell][target] = append(r[cell][target], v)
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (r results) print(w io.Writer) {
	row := func(cell, ours, other string, goal float64) {
		a, b := r[cell][ours], r[cell][other]
		if len(a) > 0 && len(b) > 0 {
			write(w, cell+"-"+ours+"/"+other, median(a), median(b), goal)
		}
	}
	row("resolve40", "builtin", "process-hub", 0)
	row("resolve40", "wasm-hub", "process-hub", 6)
	row("resolve40", "wasm-rust", "process", 1.5)
	row("resolve40", "wasm-go", "process", 6)
	for _, cell := range []string{"start-cold", "start-warm"} {
		row(cell, "wasm-rust", "process", 0)
		row(cell, "wasm-go", "process", 0)
	}
	for _, name := range []string{"process", "wasm-rust", "wasm-go"} {
		if v := r["memory"][name]; len(v) > 0 {
			write(w, "memory-"+name+"/bound", median(v), memoryGoal, 1)
		}
	}
}

func write(w io.Writer, name string, ours, other, goal float64) {
	ratio := ours / other
	g, verdict := "-", "info"
	if goal > 0 {
		if g, verdict = fmt.Sprintf("%.2f", goal), "missed"; ratio <= goal {
			verdict = "met"
		}
	}
	_, _ = fmt.Fprintf(w, "plugin/%-30s %8.1f %8.1f %6.2f %5s %s\n", name, ours, other, ratio, g, verdict)
}

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
