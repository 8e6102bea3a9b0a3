// Command workerbench measures what the native worker makes of the library: tokens per second through the worker's HTTP API
// against the same library driven in a bare loop, on this machine, in turns. Prompts are short, and the time of both sides
// runs from the first request until the last token, prefill included.
//
// It prints one row for each number of streams: name, ours, other, ratio, goal, met or missed.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/device"
	"github.com/apiary-dev/apiary/workers/llama"
	_ "github.com/apiary-dev/apiary/workers/llama/preflight"
	"github.com/apiary-dev/apiary/workers/sdk"
)

// goal is the part of the bare loop's tokens per second that the worker must reach.
const goal = 0.95

// pause lets the threads of one side stop spinning before the other begins.
const pause = 400 * time.Millisecond

func main() {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		os.Exit(sdk.Main(os.Args[2:], llama.Implementation()))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

type options struct {
	engine, model string
	worker        string
	threads       int
	rounds        int
	tokens        int
	words         int
	streams       []int
	verbose       bool
}

func run(args []string, out, errs io.Writer) int {
	o, err := parse(args, errs)
	if err != nil {
		fmt.Fprintln(errs, err)
		return 2
	}
	for _, f := range []string{o.engine, o.model} {
		if _, err := os.Stat(f); err != nil {
			for _, n := range o.streams {
				fmt.Fprintf(out, "worker/decode-c%d/bare skipped: %s is missing; run `make test-parts`\n", n, f)
			}
			return 0
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := compare(ctx, o, out, errs); err != nil {
		fmt.Fprintln(errs, err)
		return 1
	}
	return 0
}

func parse(args []string, errs io.Writer) (options, error) {
	cache, _ := os.UserCacheDir()
	parts := filepath.Join(cache, "apiary-test")
	o := options{}
	fs := flag.NewFlagSet("workerbench", flag.ContinueOnError)
	fs.SetOutput(errs)
	fs.StringVar(&o.engine, "engine-dir", env("APIARY_TEST_ENGINE", filepath.Join(parts, "engine")), "folder of the engine's libraries")
	fs.StringVar(&o.model, "model-path", env("APIARY_TEST_SMOL", filepath.Join(parts, "smol.gguf")), "GGUF file")
	fs.StringVar(&o.worker, "worker", "", "executable of the worker; default: this program")
	fs.IntVar(&o.threads, "threads", 0, "threads of each side; 0: the free cores")
	fs.IntVar(&o.rounds, "rounds", 5, "rounds of each side")
	fs.IntVar(&o.tokens, "tokens", 96, "tokens to generate for each stream")
	fs.IntVar(&o.words, "words", 16, "words in each prompt")
	streams := fs.String("streams", "1,4,16", "numbers of streams")
	fs.BoolVar(&o.verbose, "v", false, "print each round to stderr")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	for s := range strings.SplitSeq(*streams, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > 64 {
			return o, fmt.Errorf("--streams: %q is not a number from 1 to 64", s)
		}
		o.streams = append(o.streams, n)
	}
	if o.rounds < 1 || o.tokens < 1 || o.words < 1 {
		return o, fmt.Errorf("--rounds, --tokens and --words must be at least 1")
	}
	if o.threads <= 0 {
		o.threads = device.FreeCores()
	}
	return o, nil
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func compare(ctx context.Context, o options, out, errs io.Writer) error {
	most := slices.Max(o.streams)
	// A word of the list is about one token; the template of a prompt adds none.
	context := 4*o.words + o.tokens + 64
	lib, err := llama.OpenLibrary(o.engine, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	loop, err := openLoop(lib, o.model, o.threads, most*context, most)
	if err != nil {
		return err
	}
	defer loop.close()
	w, err := startWorker(ctx, o, context, most, errs)
	if err != nil {
		return err
	}
	defer func() { _ = w.stop() }()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range o.streams {
		var ours, other []float64
		var ourCPU, otherCPU time.Duration
		for round := -1; round < o.rounds; round++ { // the first is not counted
			prompts := make([]string, n)
			for i := range prompts {
				prompts[i] = words(rng, o.words)
			}
			sides := []func() error{
				func() error {
					before := cpuTime(w.cmd.Process.Pid)
					r, err := w.round(ctx, prompts, o.tokens)
					if round >= 0 {
						ours = append(ours, r)
						ourCPU += cpuTime(w.cmd.Process.Pid) - before
					}
					return err
				},
				func() error {
					before := cpuTime(os.Getpid())
					r, err := loop.round(prompts, o.tokens)
					if round >= 0 {
						other = append(other, r)
						otherCPU += cpuTime(os.Getpid()) - before
					}
					return err
				},
			}
			if round%2 == 0 {
				slices.Reverse(sides)
			}
			for _, side := range sides {
				if err := side(); err != nil {
					return err
				}
				time.Sleep(pause)
			}
			if o.verbose && round >= 0 {
				fmt.Fprintf(errs, "c%d round %d: worker %.1f, bare %.1f tokens/s\n", n, round, ours[round], other[round])
			}
		}
		a, b := median(ours), median(other)
		verdict := "missed"
		if a/b >= goal {
			verdict = "met"
		}
		fmt.Fprintf(out, "worker/decode-c%d/bare %.1f-tok/s %.1f-tok/s %.3fx ≥%.2fx %s\n", n, a, b, a/b, goal, verdict)
		if tokens := float64(o.rounds * n * o.tokens); ourCPU > 0 && otherCPU > 0 {
			// With one thread this is the cost itself; several threads also spin while they wait for each other.
			fmt.Fprintf(out, "worker/cpu-per-token-c%d/bare %.2f-ms %.2f-ms %.3fx - info\n", n,
				ms(ourCPU)/tokens, ms(otherCPU)/tokens, float64(ourCPU)/float64(otherCPU))
		}
	}
	return nil
}

func words(rng *rand.Rand, n int) string {
	list := strings.Fields(`the cat sat on a mat and then it went to find some bread for its little friend who lived near
		old river where many tall trees grew under blue sky with birds that sang all day long about summer rain wind snow`)
	out := make([]string, n)
	for i := range out {
		out[i] = list[rng.IntN(len(list))]
	}
	return strings.Join(out, " ")
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// cpuTime returns the processor time that a process has used, to 10 ms; 0 where the system does not say.
func cpuTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name of the program, in parentheses, may hold spaces; utime and stime are the 12th and 13th field after it.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0
	}
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	if err1 != nil || err2 != nil {
		return 0
	}
	return time.Duration(user+system) * 10 * time.Millisecond // a tick is 10 ms on every Linux of interest
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
