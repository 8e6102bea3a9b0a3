// Package metrics holds Apiary's Prometheus metrics as a value: all names are defined here, and nothing is global. It is the
// only importer of the Prometheus client. What the numbers mean is decided by those who count.
package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are the metrics of one agent. Methods may be called from many goroutines. A nil *Metrics counts nothing, so that
// tests and small tools need none.
type Metrics struct {
	registry *prometheus.Registry

	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	tokens   *prometheus.CounterVec
	retries  prometheus.Counter

	beats    *prometheus.CounterVec
	workers  *prometheus.GaugeVec
	hives    *prometheus.GaugeVec
	events   *prometheus.CounterVec
	jobs     *prometheus.CounterVec
	inflight prometheus.Gauge

	gossip  *prometheus.CounterVec
	dropped *prometheus.CounterVec
	joins   *prometheus.CounterVec
	members *prometheus.GaugeVec
	skewed  prometheus.Gauge
}

// New makes metrics that count from zero, with those of the Go runtime and of the process beside them.
func New() *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiary_requests_total",
			Help: "Inference requests that have ended, by model and by the class of the answer's HTTP status."}, []string{"model", "code"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "apiary_request_duration_seconds",
			Help:    "Time from an inference request's arrival to its end.",
			Buckets: []float64{.005, .025, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300}}, []string{"model"}),
		tokens: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiary_tokens_total",
			Help: "Tokens that workers reported, by model and kind (prompt, cached, completion)."}, []string{"model", "kind"}),
		retries: prometheus.NewCounter(prometheus.CounterOpts{Name: "apiary_request_retries_total",
			Help: "Inference requests that were sent to another worker because the first had not executed them."}),
		beats: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiary_beats_total",
			Help: "Heartbeats by sender (worker, hive) and outcome (accepted, dropped, refused)."}, []string{"sender", "outcome"}),
		workers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiary_workers",
			Help: "Workers that the queen knows, by liveness."}, []string{"liveness"}),
		hives: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiary_hives",
			Help: "Hives that the queen knows, by liveness."}, []string{"liveness"}),
		events: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiary_registry_events_total",
			Help: "Changes in the queen's registry, by kind."}, []string{"kind"}),
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiary_jobs_total",
			Help: "Jobs that have ended, by operation and state."}, []string{"operation", "state"}),
		inflight: prometheus.NewGauge(prometheus.GaugeOpts{Name: "apiary_requests_in_flight",
			Help: "Inference requests that are queued or running."}),
		gossip: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiary_gossip_bytes_total",
			Help: "Bytes of gossip, by way (packet, stream) and direction (in, out)."}, []string{"way", "direction"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiary_gossip_dropped_total",
			Help: "What was received by gossip and not used, by reason."}, []string{"reason"}),
		joins: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "apiary_gossip_joins_total",
			Help: "Attempts to join another agent, by outcome (joined, failed)."}, []string{"outcome"}),
		members: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "apiary_members",
			Help: "Agents of the cluster, this one among them, by state."}, []string{"state"}),
		skewed: prometheus.NewGauge(prometheus.GaugeOpts{Name: "apiary_members_skewed",
			Help: "Agents whose clock differs from this one's by more than is tolerated."}),
	}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.requests, m.duration, m.tokens, m.retries, m.beats, m.workers, m.hives, m.events, m.jobs, m.inflight,
		m.gossip, m.dropped, m.joins, m.members, m.skewed)
	return m
}

// Handler serves the metrics in Prometheus' text format.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Request counts an inference request that has ended with an HTTP status. The caller passes only names of models that exist,
// so that strangers cannot make labels.
func (m *Metrics) Request(model string, status int, d time.Duration) {
	if m == nil {
		return
	}
	code := [6]string{"other", "1xx", "2xx", "3xx", "4xx", "5xx"}
	class := status / 100
	if class < 0 || class > 5 {
		class = 0
	}
	m.requests.WithLabelValues(model, code[class]).Inc()
	m.duration.WithLabelValues(model).Observe(d.Seconds())
}

// Tokens counts the tokens of one request.
func (m *Metrics) Tokens(model string, prompt, cached, completion int) {
	if m == nil {
		return
	}
	for kind, n := range map[string]int{"prompt": prompt, "cached": cached, "completion": completion} {
		if n > 0 {
			m.tokens.WithLabelValues(model, kind).Add(float64(n))
		}
	}
}

// Retry counts an attempt after the first.
func (m *Metrics) Retry() {
	if m != nil {
		m.retries.Inc()
	}
}

// InFlight adds delta to the number of inference requests that are queued or running.
func (m *Metrics) InFlight(delta int) {
	if m != nil {
		m.inflight.Add(float64(delta))
	}
}

// Beat counts a heartbeat. sender is "worker" or "hive"; outcome "accepted", "dropped" or "refused".
func (m *Metrics) Beat(sender, outcome string) {
	if m != nil {
		m.beats.WithLabelValues(sender, outcome).Inc()
	}
}

// Members replaces the numbers of workers and hives by liveness.
func (m *Metrics) Members(workers, hives map[string]int) {
	if m == nil {
		return
	}
	for _, l := range []string{"alive", "stale", "suspect", "down", "lost"} {
		m.workers.WithLabelValues(l).Set(float64(workers[l]))
		m.hives.WithLabelValues(l).Set(float64(hives[l]))
	}
}

// Event counts a change in the registry.
func (m *Metrics) Event(kind string) {
	if m != nil {
		m.events.WithLabelValues(kind).Inc()
	}
}

// Job counts a job that has ended.
func (m *Metrics) Job(operation, state string) {
	if m != nil {
		m.jobs.WithLabelValues(operation, state).Inc()
	}
}

// Gossip counts bytes by way ("packet", "stream") and direction ("in", "out").
func (m *Metrics) Gossip(way, direction string, bytes int) {
	if m != nil && bytes > 0 {
		m.gossip.WithLabelValues(way, direction).Add(float64(bytes))
	}
}

// GossipDropped counts a message, packet or stream that was not used.
func (m *Metrics) GossipDropped(reason string) {
	if m != nil {
		m.dropped.WithLabelValues(reason).Inc()
	}
}

// GossipJoin counts an attempt to join another agent.
func (m *Metrics) GossipJoin(ok bool) {
	if m != nil {
		m.joins.WithLabelValues(map[bool]string{true: "joined", false: "failed"}[ok]).Inc()
	}
}

// GossipMembers sets how many members there are, by state, and how many of them have another time.
func (m *Metrics) GossipMembers(states map[string]int, skewed int) {
	if m == nil {
		return
	}
	m.members.Reset()
	for state, n := range states {
		m.members.WithLabelValues(state).Set(float64(n))
	}
	m.skewed.Set(float64(skewed))
}
