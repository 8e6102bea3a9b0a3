// Package conformance is the suite that every plugin passes, whatever its language and its transport: it calls the plugin as the
// core does, with a host of its own behind it that answers from a record, refuses, fails and hangs, and reports a sentence for
// each rule. `apiary plugin test` runs it for authors, go tests run it for ours. It fetches nothing and asks no real server.
package conformance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Subject is a plugin in one transport.
type Subject struct {
	// Open starts an instance, which has not been configured; Run closes it. What the plugin says goes to log.
	Open     func(ctx context.Context, on vendor.Host, log *slog.Logger) (Instance, error)
	Manifest *vendor.StaticManifest // what its file says without being run; nil: nothing
	Own      bool                   // one of Apiary's own: it may name files of this machine
	Calls    int                    // of the check of memory; 0: 1000

	only string // the beginning of the one check that is run, besides those of what the plugin says about itself; "": all
}

// Instance is one run of a plugin. One that has PID() int is a process, whose memory is watched; one that has Done() <-chan struct{} is
// started again by the suite when it has ended.
type Instance interface {
	vendor.Invoker
	Close() error
}

// Outcomes of a check.
const (
	Pass = "pass"
	Fail = "fail"
	Skip = "skip" // it does not apply; Detail says why
)

// Result is the outcome of one check.
type Result struct {
	Name    string        `json:"name"`
	Outcome string        `json:"outcome"`          // Pass, Fail or Skip
	Detail  string        `json:"detail,omitempty"` // one sentence
	Took    time.Duration `json:"took_ns"`
}

// Summary counts outcomes. Contract is the one that the plugin keeps, "" where it does not say.
type Summary struct {
	Contract string `json:"contract,omitempty"`
	Passed   int    `json:"passed"`
	Failed   int    `json:"failed"`
	Skipped  int    `json:"skipped"`
}

// Bounds of the suite.
const (
	checkTime  = 2 * time.Minute  // of a check
	callTime   = 30 * time.Second // of a call in it
	cancelTime = 2 * time.Second  // in which a cancelled call returns
	quickTime  = 5 * time.Second  // of GetInfo and GetSchema
)

// check is one rule. A skipError skips it, another error fails it.
type check struct {
	name string
	kind string // vendor.KindVendor or vendor.KindProvisioner; "": both
	run  func(context.Context, *suite) error
}

type skipError string

func (e skipError) Error() string { return string(e) }

// suite is a run.
type suite struct {
	Subject
	cases  Cases
	host   *testHost
	log    *journal
	info   vendor.Info
	schema vendor.Schema
	values string // the settings, as the plugin gets them

	current Instance
}

// Run checks a plugin and calls report after each check. A plugin that does not start, or does not say what it is, fails and
// ends the run; so does the end of ctx.
func Run(ctx context.Context, subject Subject, cases Cases, report func(Result)) Summary {
	subject.Calls = cmp.Or(subject.Calls, 1000)
	log := &journal{}
	s := &suite{Subject: subject, cases: cases, host: newTestHost(cases.HTTP, log), log: log}
	defer s.drop()
	var sum Summary
	run := func(c check) bool {
		begun := time.Now()
		ctx, cancel := context.WithTimeout(ctx, checkTime)
		defer cancel()
		r := Result{Name: c.name, Outcome: Pass}
		err := c.run(ctx, s)
		r.Took = time.Since(begun)
		if skip, ok := errors.AsType[skipError](err); ok {
			r.Outcome, r.Detail = Skip, string(skip)
			sum.Skipped++
		} else if err != nil {
			r.Outcome, r.Detail = Fail, err.Error()
			sum.Failed++
		} else {
			sum.Passed++
		}
		report(r)
		return r.Outcome != Fail
	}
	for _, c := range describing() {
		if !run(c) && c.name == nameInfo {
			return sum
		}
	}
	sum.Contract = contractOf(s.info.Kind)
	for _, c := range slices.Concat(resolving(), planning(), failing(), living()) {
		if ctx.Err() == nil && (c.kind == "" || c.kind == s.info.Kind) && strings.HasPrefix(c.name, s.only) {
			s.host.set(recorded())
			run(c)
		}
	}
	return sum
}

func contractOf(kind string) string {
	return map[string]string{vendor.KindVendor: vendor.ContractVendor, vendor.KindProvisioner: vendor.ContractProvisioner}[kind]
}

// grants are what an operator would grant: what the cases say, else what the plugin asks for.
func (s *suite) grants() config.Grants {
	g := config.Grants{HTTP: s.info.Requests.HTTP, Credentials: s.info.Requests.Credentials, Run: s.info.Requests.Run}
	if x := s.cases.Grants; x != nil {
		g.HTTP, g.Private = slices.Concat(x.HTTP, x.Private), x.Private
		if len(x.Run) > 0 {
			g.Run = x.Run
		}
	}
	return g
}

// fresh starts an instance and does not configure it.
func (s *suite) fresh(ctx context.Context) (Instance, error) {
	in, err := s.Open(ctx, s.host, slog.New(slog.NewTextHandler(s.log, nil)))
	if err != nil {
		return nil, fmt.Errorf("the plugin does not start: %w", err)
	}
	return in, nil
}

// ready starts an instance and configures it with the settings of the cases.
func (s *suite) ready(ctx context.Context) (Instance, error) {
	in, err := s.fresh(ctx)
	if err != nil {
		return nil, err
	}
	if err := host.Configure(ctx, in, s.values); err != nil {
		return nil, errors.Join(fmt.Errorf("the settings %s are refused: %w", s.values, err), in.Close())
	}
	return in, nil
}

// use returns the instance that checks share; one that has ended is replaced.
func (s *suite) use(ctx context.Context) (Instance, error) {
	if in, ok := s.current.(interface{ Done() <-chan struct{} }); ok {
		select {
		case <-in.Done():
			s.drop()
		default:
		}
	}
	if s.current == nil {
		in, err := s.ready(ctx)
		if err != nil {
			return nil, err
		}
		s.current = in
	}
	return s.current, nil
}

func (s *suite) drop() {
	if s.current != nil {
		_ = s.current.Close() // what is left of a broken plugin is no result of a check
		s.current = nil
	}
}
