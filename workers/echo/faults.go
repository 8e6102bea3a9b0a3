package echo

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/workers/sdk"
)

// Faults are the ways in which an echo worker can misbehave; each is a flag of the worker. The zero value does not behave:
// Implementation gives a set that does.
type Faults struct {
	Load            time.Duration // the time that a load takes
	Prefill         time.Duration // the time that a prompt takes, with progress
	TPS             float64       // tokens a second of each request; 0: as fast as it can
	Tokens          int           // tokens of each answer, the prompt's over and over; -1: the prompt's once
	DieAfterTokens  int           // SIGKILL itself after so many tokens of a request; -1: never
	HangAfterTokens int           // never go on after so many tokens; -1: never hang
	HangBeforeFirst bool
	IgnoreSIGTERM   bool
	ForkGrandchild  bool   // a process that outlives the worker unless its whole group is ended
	AllocMB         int    // memory to touch at the end of the load
	ExitDuringLoad  int    // exit code with which to leave halfway through the load; -1: do not
	IgnoreCancel    bool   // go on generating for callers who are gone
	EchoEnv         bool   // answer with environment and arguments
	EchoHeaders     bool   // answer with the header of the request
	EchoBody        bool   // answer with the body of the request
	BindAll         bool   // listen on all addresses whatever --address says
	HTTPStatus      int    // answer every inference request with this status; 0: do not
	Garbage         string // a kind of garbage to answer with, or "true" for each in turn
	LogFlood        bool
	History         string // file to append events to

	floodBytes, floodLines int
	held                   []byte // AllocMB of memory

	// mu guards the field below.
	mu          sync.Mutex
	nextGarbage int
}

func newFaults() *Faults {
	return &Faults{Tokens: -1, DieAfterTokens: -1, HangAfterTokens: -1, ExitDuringLoad: -1, floodBytes: 200 << 20, floodLines: 1_000_000}
}

func (f *Faults) flags(fs *flag.FlagSet) {
	fs.DurationVar(&f.Load, "load", 0, "the `TIME` that a load takes")
	fs.DurationVar(&f.Prefill, "prefill", 0, "the `TIME` that a prompt takes, with progress")
	fs.Float64Var(&f.TPS, "tps", 0, "tokens a second of each request; 0 is as fast as it goes")
	fs.IntVar(&f.Tokens, "tokens", -1, "`NUMBER` of tokens of each answer; -1 is the prompt's")
	fs.IntVar(&f.DieAfterTokens, "die-after-tokens", -1, "die by SIGKILL after this `NUMBER` of tokens of a request")
	fs.IntVar(&f.HangAfterTokens, "hang-after-tokens", -1, "hang after this `NUMBER` of tokens of a request")
	fs.BoolVar(&f.HangBeforeFirst, "hang-before-first", false, "hang before the first token")
	fs.BoolVar(&f.IgnoreSIGTERM, "ignore-sigterm", false, "do not stop on SIGTERM")
	fs.BoolVar(&f.ForkGrandchild, "fork-grandchild", false, "start a process that sleeps for an hour")
	fs.IntVar(&f.AllocMB, "alloc-mb", 0, "`MIB` of memory to use after the load")
	fs.IntVar(&f.ExitDuringLoad, "exit-during-load", -1, "leave with this exit `CODE` halfway through the load")
	fs.BoolVar(&f.IgnoreCancel, "ignore-cancel", false, "go on generating when the caller is gone")
	fs.BoolVar(&f.EchoEnv, "echo-env", false, "answer with the worker's environment and arguments")
	fs.BoolVar(&f.EchoHeaders, "echo-headers", false, "answer with the header of the request")
	fs.BoolVar(&f.EchoBody, "echo-body", false, "answer with the body of the request")
	fs.BoolVar(&f.BindAll, "bind-all", false, "listen on all addresses")
	fs.IntVar(&f.HTTPStatus, "http-status", 0, "answer every inference request with this `STATUS`")
	fs.BoolFunc("garbage", "answer with garbage; --garbage=KIND for one kind: "+garbageKinds(), func(v string) error {
		if v != "true" && !isGarbage(v) {
			return fmt.Errorf("%q is not a kind of garbage; there are %s", v, garbageKinds())
		}
		f.Garbage = v
		return nil
	})
	fs.BoolVar(&f.LogFlood, "log-flood", false, "write 200 MB without a line end and a million lines to the log")
	fs.StringVar(&f.History, "history", "", "append a line of JSON for each event to this `FILE`")
}

// atStart does what a fault does while the worker starts. What it starts is counted in wg and ends with ctx.
func (f *Faults) atStart(wg *sync.WaitGroup, ctx context.Context) error {
	if f.IgnoreSIGTERM {
		signal.Ignore(syscall.SIGTERM)
	}
	if f.ForkGrandchild {
		path, err := exec.LookPath("sleep")
		if err != nil {
			return fmt.Errorf("fork a grandchild: %w", err)
		}
		if err := exec.Command(path, "3600").Start(); err != nil {
			return fmt.Errorf("fork a grandchild: %w", err)
		}
	}
	if f.LogFlood {
		wg.Go(func() { f.flood(ctx, os.Stderr) })
	}
	return nil
}

func (f *Faults) flood(ctx context.Context, w io.Writer) {
	chunk := bytes.Repeat([]byte("flood "), 1<<10)
	for n := 0; n < f.floodBytes && ctx.Err() == nil; n += len(chunk) {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
	for i := 0; i < f.floodLines && ctx.Err() == nil; i++ {
		if _, err := fmt.Fprintf(w, "\nflood line %d", i); err != nil {
			return
		}
	}
}

// allocate uses AllocMB of memory from now on.
func (f *Faults) allocate() {
	if f.AllocMB <= 0 {
		return
	}
	f.held = make([]byte, f.AllocMB<<20)
	for i := 0; i < len(f.held); i += 4096 {
		f.held[i] = 1
	}
}

// before does what a fault does before token n of a request.
func (f *Faults) before(ctx context.Context, n int) error {
	if f.DieAfterTokens >= 0 && n >= f.DieAfterTokens {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // the signal is on its way
	}
	if f.HangBeforeFirst || f.HangAfterTokens >= 0 && n >= f.HangAfterTokens {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (f *Faults) listen(c sdk.Config) (net.Listener, error) {
	host := c.Address
	if f.BindAll {
		host = ""
	}
	return net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(c.Port)))
}

// middleware plays the faults of HTTP.
func (f *Faults) middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case f.HTTPStatus != 0:
			_, _ = io.Copy(io.Discard, r.Body)
			httpd.WriteError(w, r, fault.New(fault.FromStatus(f.HTTPStatus), "echo_status", "The echo worker was told to answer with status %d.", f.HTTPStatus).WithStatus(f.HTTPStatus))
			return
		case f.Garbage != "":
			_, _ = io.Copy(io.Discard, r.Body)
			f.garbage(w)
			return
		case f.EchoEnv:
			r = r.WithContext(withText(r.Context(), map[string][]string{"env": os.Environ(), "args": os.Args}))
		case f.EchoHeaders:
			r = r.WithContext(withText(r.Context(), r.Header))
		case f.EchoBody:
			body, err := io.ReadAll(r.Body)
			if err != nil {
				httpd.WriteError(w, r, httpd.BodyError(err))
				return
			}
			r = r.WithContext(withText(r.Context(), string(body)))
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		next.ServeHTTP(w, r)
	})
}
