package queen

import (
	"context"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/secret"
)

// peerJobs is where a queen serves its jobs to other queens.
const peerJobs = "/v1/queens/jobs"

const jobsTimeout = 2 * time.Second // for the lists of other queens

// jobRoutes are those of jobs: for operators, who may ask any queen for any job, and for other queens, who get this queen's.
func (q *Queen) jobRoutes() []httpd.Route {
	var out []httpd.Route
	for _, r := range []struct {
		method, path string
		timeout      time.Duration
		own          http.Handler
	}{
		{"GET", "/{id}", callTimeout, q.jobs.GetHandler()},
		{"GET", "/{id}/stream", 0, q.jobs.StreamHandler()},
		{"DELETE", "/{id}", callTimeout, q.jobs.CancelHandler()},
	} {
		out = append(out, httpd.Route{Pattern: r.method + " /v1/jobs" + r.path, Class: httpd.ClassAdmin, BodyLimit: noBody, Timeout: r.timeout, Handler: q.anyQueens(r.own)},
			httpd.Route{Pattern: r.method + " " + peerJobs + r.path, Class: httpd.ClassQueen, BodyLimit: noBody, Timeout: r.timeout, Handler: q.peerOnly(r.own)})
	}
	return append(out,
		httpd.Route{Pattern: "GET /v1/jobs", Class: httpd.ClassAdmin, BodyLimit: noBody, Timeout: callTimeout, Handler: q.jobs.ListHandler(q.othersJobs)},
		httpd.Route{Pattern: "GET " + peerJobs, Class: httpd.ClassQueen, BodyLimit: noBody, Timeout: callTimeout, Handler: q.peerOnly(q.jobs.ListHandler(nil))})
}

// anyQueens serves a job by its id: this queen's own, or through the queen that runs it.
func (q *Queen) anyQueens(own http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := r.PathValue("id")
		m, ok := q.queenOf(id)
		if !ok {
			own.ServeHTTP(w, r)
			return
		}
		away := fault.New(fault.Unavailable, "queen_away", "Job %s is one of the queen %s, which does not answer; ask again when it is back, and see `apiary member list`.", quoted(id), quoted(m.Name)).WithRetryAfter(q.o.Interval)
		to, err := url.Parse(m.Queen)
		if err != nil || m.State == contract.MemberLeft {
			httpd.WriteError(w, r, away)
			return
		}
		(&httputil.ReverseProxy{
			Rewrite: func(p *httputil.ProxyRequest) {
				p.SetURL(to)
				p.Out.URL.Path, p.Out.URL.RawPath = peerJobs+strings.TrimPrefix(p.In.URL.Path, "/v1/jobs"), ""
				p.Out.Host, p.Out.URL.RawQuery = "", ""
				p.Out.Header = http.Header{"Authorization": {"Bearer " + secret.ForQueen(q.o.ClusterKey, m.ID).Reveal()}, contract.RequestIDHeader: p.In.Header[contract.RequestIDHeader]}
				if v, ok := p.In.Header["Last-Event-Id"]; ok {
					p.Out.Header["Last-Event-Id"] = v
				}
			},
			Transport: q.jobWay, FlushInterval: -1,
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				q.log.Warn("a queen cannot be asked for its job", "queen", m.Name, "job", id, "error", err.Error())
				httpd.WriteError(w, r, away)
			},
			ModifyResponse: func(res *http.Response) error {
				delete(res.Header, contract.RequestIDHeader) // this server has set it
				return nil
			},
		}).ServeHTTP(w, r)
	})
}

// queenOf finds the other queen that a job's id begins with. ok is false for a job of this queen, and where no such queen is known.
func (q *Queen) queenOf(jobID string) (m contract.Member, ok bool) {
	if strings.HasPrefix(jobID, q.o.NodeID+"-") {
		return m, false
	}
	for _, m := range q.o.Members() {
		if m.Queen != "" && !m.Self && strings.HasPrefix(jobID, m.ID+"-") {
			return m, true
		}
	}
	return m, false
}

// othersJobs lists the jobs of the other queens, as far as they answer.
func (q *Queen) othersJobs(ctx context.Context, all bool) []contract.Job {
	ctx, cancel := context.WithTimeout(ctx, jobsTimeout)
	defer cancel()
	path := peerJobs
	if all {
		path += "?all=true"
	}
	var mu sync.Mutex
	var out []contract.Job
	var asked sync.WaitGroup
	for _, p := range q.company.all() {
		p.mu.Lock()
		api, there := p.api, p.counts()
		p.mu.Unlock()
		if !there {
			continue
		}
		asked.Go(func() {
			var list []contract.Job
			if api.GetJSON(ctx, path, &list) != nil {
				return
			}
			list = slices.DeleteFunc(list, func(j contract.Job) bool { return !strings.HasPrefix(j.ID, p.id+"-") })
			mu.Lock()
			defer mu.Unlock()
			out = append(out, list...)
		})
	}
	asked.Wait()
	return out
}
