package queen

import (
	"net/http"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

const (
	callTimeout  = 30 * time.Second
	jobBody      = 1 * contract.MiB
	exitBody     = 64 * contract.KiB
	noBody       = contract.KiB
	maxLogTail   = 20
	maxTailLine  = 2000
	maxReference = 1024
)

// Routes returns the queen's HTTP surface, without that of the gateway.
func (q *Queen) Routes() []httpd.Route {
	var trusted []httpd.Route
	if q.trust != nil {
		trusted = q.trust.routes()
	}
	return append(slices.Concat(q.keyRoutes(), q.jobRoutes(), trusted), []httpd.Route{
		// Without a bound of its own: it waits for nothing but the body, for which the server has one, and a timer for each beat costs.
		{Pattern: "POST /v1/heartbeat", Class: httpd.ClassWorker, BodyLimit: contract.MaxWorkerBeat, Handler: http.HandlerFunc(q.heartbeat)},
		{Pattern: "POST /v1/worker-exits", Class: httpd.ClassHive, BodyLimit: exitBody, Timeout: callTimeout, Handler: http.HandlerFunc(q.workerExit)},
		{Pattern: "POST " + syncPath, Class: httpd.ClassQueen, BodyLimit: contract.MaxQueenSync, Timeout: callTimeout, Handler: q.peerOnly(http.HandlerFunc(q.sync))},
		{Pattern: "POST /v1/jobs", Class: httpd.ClassAdmin, BodyLimit: jobBody, Timeout: callTimeout, Handler: q.jobs.SubmitHandler(q.dispatch)},
		{Pattern: "GET /admin/cluster", Class: httpd.ClassAdmin, BodyLimit: noBody, Timeout: callTimeout, Handler: http.HandlerFunc(q.cluster)},
		{Pattern: "GET /healthz", Class: httpd.ClassOpen, BodyLimit: noBody, Timeout: callTimeout, Handler: http.HandlerFunc(q.healthz)},
		{Pattern: "GET /readyz", Class: httpd.ClassOpen, BodyLimit: noBody, Timeout: callTimeout, Handler: http.HandlerFunc(q.readyz)},
		{Pattern: "GET /metrics", Class: httpd.ClassMetrics, BodyLimit: noBody, Timeout: callTimeout, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			q.count()
			q.o.Metrics.Handler().ServeHTTP(w, r)
		})},
	}...)
}

// healthz says that the process is alive, and which one it is.
func (q *Queen) healthz(w http.ResponseWriter, _ *http.Request) {
	httpd.WriteJSON(w, http.StatusOK, contract.Health{Status: "ok", NodeID: q.o.NodeID, Start: q.o.Start})
}

// readyz says whether requests should come here.
func (q *Queen) readyz(w http.ResponseWriter, r *http.Request) {
	switch {
	case q.background.Err() != nil:
		httpd.WriteError(w, r, fault.New(fault.Unavailable, "stopping", "The queen is stopping; try another one or later."))
	case !q.settled():
		httpd.WriteError(w, r, fault.New(fault.Unavailable, "starting", "The queen has just started and does not know all hives yet; try again in a few seconds.").
			WithRetryAfter(max(time.Second, q.o.ReadyAfter-q.now())))
	default:
		httpd.WriteJSON(w, http.StatusOK, map[string]string{"status": "ready"})
	}
}

func (q *Queen) cluster(w http.ResponseWriter, _ *http.Request) {
	s := q.Snapshot()
	httpd.WriteJSON(w, http.StatusOK, contract.ClusterView{NodeID: q.o.NodeID, Hives: q.hiveViews(s, false), Workers: q.workerViews(s), Members: q.members()})
}

// workerExit takes a hive's report that a worker's process ended. It carries the hive's secret.
func (q *Queen) workerExit(w http.ResponseWriter, r *http.Request) {
	from := ""
	unknown := false
	for _, l := range *q.links.Load() {
		id, _ := l.known()
		if id == "" {
			unknown = true
		} else if secret.ForHive(q.o.ClusterKey, id).Equal(httpd.Bearer(r)) {
			from = id
		}
	}
	switch {
	case from == "" && unknown: // it may be one of those
		httpd.WriteError(w, r, fault.New(fault.Unavailable, "starting", "The queen does not know all hives yet; report again in a few seconds.").WithRetryAfter(time.Second))
		return
	case from == "":
		httpd.WriteError(w, r, unauthorized("The report does not carry the secret of a hive of this queen."))
		return
	}
	var x contract.WorkerExit
	if err := httpd.ReadJSON(r, &x); err != nil {
		httpd.WriteError(w, r, err)
		return
	}
	if x.WorkerID == "" || x.Identity.WorkerID != x.WorkerID {
		httpd.WriteError(w, r, fault.New(fault.Invalid, "invalid_exit", "A report needs a worker_id and the identity of the process that ended.").WithParam("worker_id"))
		return
	}
	if known, ok := q.Snapshot().Worker(x.WorkerID); ok && known.Info.HiveID != from {
		httpd.WriteError(w, r, fault.New(fault.Denied, "not_your_worker", "The worker %s belongs to another hive.", quoted(x.WorkerID)))
		return
	}
	x.LogTail = x.LogTail[max(0, len(x.LogTail)-maxLogTail):]
	for i, line := range x.LogTail {
		if len(line) > maxTailLine {
			x.LogTail[i] = line[:maxTailLine] + "…"
		}
	}
	x = q.crashed(x)
	q.noteExit(x)
	q.step(registry.Exited{Report: x, Jitter: jitter()})
	w.WriteHeader(http.StatusNoContent)
}

func unauthorized(message string) error {
	return fault.New(fault.Denied, "unauthorized", "%s", message).WithStatus(http.StatusUnauthorized)
}
