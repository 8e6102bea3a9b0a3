// Package conformance is the suite that every worker passes: it speaks to a running worker over HTTP, knows nothing of what is
// behind it, and reports a sentence for each rule. `apiary worker test URL` runs it for strangers' workers, go tests run it
// for ours. It starts no worker and leaves nothing behind in one.
package conformance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/core/secret"
)

// Target is the worker to test. It should be idle.
type Target struct {
	BaseURL string        // http://127.0.0.1:7855
	Secret  secret.Secret // the worker's own
	Prompt  string        // what to continue; empty: the beginning of a story
	// CheckTimeout bounds each check; 0: 2 min. LoadTimeout bounds the wait for the model; 0: 10 min.
	CheckTimeout, LoadTimeout time.Duration
	Transport                 http.RoundTripper // nil: one of its own
}

// Outcomes of a check.
const (
	Pass = "pass"
	Fail = "fail"
	Skip = "skip" // the worker does not list what the check is about
)

// Result is the outcome of one check.
type Result struct {
	Name    string        `json:"name"`
	Outcome string        `json:"outcome"` // Pass, Fail or Skip
	Detail  string        `json:"detail,omitempty"`
	Took    time.Duration `json:"took_ns"`
}

// Summary counts outcomes.
type Summary struct {
	Passed  int `json:"passed"`
	Failed  int `json:"failed"`
	Skipped int `json:"skipped"`
}

const defaultPrompt = "Once upon a time there was a small bee who lived in a tall tree and wanted to see the sea"

// check is one rule. A skipError skips it, another error fails it.
type check struct {
	name string
	run  func(context.Context, *probe) error
}

type skipError string

func (e skipError) Error() string { return string(e) }

// Run checks target, calls report after each check, and returns the counts. A worker that does not become ready fails and
// ends the run. ctx ends it early; the check at work then fails.
func Run(ctx context.Context, target Target, report func(Result)) Summary {
	target.Prompt = cmp.Or(target.Prompt, defaultPrompt)
	target.CheckTimeout = cmp.Or(target.CheckTimeout, 2*time.Minute)
	target.LoadTimeout = cmp.Or(target.LoadTimeout, 10*time.Minute)
	target.BaseURL = strings.TrimRight(target.BaseURL, "/")
	if target.Transport == nil {
		t := &http.Transport{MaxIdleConnsPerHost: 4, ResponseHeaderTimeout: target.CheckTimeout}
		defer t.CloseIdleConnections()
		target.Transport = t
	}
	p := &probe{Target: target, client: &http.Client{Transport: target.Transport}}
	var sum Summary
	run := func(c check, bound time.Duration) bool {
		start := time.Now()
		checkCtx, cancel := context.WithTimeout(ctx, bound)
		defer cancel()
		err := c.run(checkCtx, p)
		r := Result{Name: c.name, Outcome: Pass, Took: time.Since(start)}
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
	if !run(check{"health", checkHealth}, target.CheckTimeout) || !run(check{"becomes ready", checkReady}, target.LoadTimeout) {
		return sum
	}
	for _, c := range slices.Concat(contractChecks(), openaiChecks(), []check{{"idle at the end", checkIdle}}) {
		if ctx.Err() != nil {
			break
		}
		run(c, target.CheckTimeout)
	}
	return sum
}

func checkHealth(ctx context.Context, p *probe) error {
	res, err := p.send(ctx, http.MethodGet, "/health", nil, "")
	if err != nil {
		return err
	}
	if res.status != http.StatusOK {
		return fmt.Errorf("GET /health without the secret is answered with %d, not 200", res.status)
	}
	return nil
}

// checkReady waits for the end of the load.
func checkReady(ctx context.Context, p *probe) error {
	for {
		w, err := p.info(ctx)
		if err != nil {
			return err
		}
		switch w.Status {
		case contract.StatusReady, contract.StatusBusy:
			return nil
		case contract.StatusStarting:
		default:
			return fmt.Errorf("the status is %q while a model is awaited", w.Status)
		}
		if err := run.Sleep(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("the worker did not become ready, at %.0f %%: %w", 100*w.LoadProgress, err)
		}
	}
}

// checkIdle wants every slot back after the suite.
func checkIdle(ctx context.Context, p *probe) error {
	return p.await(ctx, 5*time.Second, "all slots free and nothing in the queue", func(w contract.WorkerInfo) bool {
		return w.SlotsBusy == 0 && w.QueueDepth == 0 && w.Status == contract.StatusReady
	})
}
