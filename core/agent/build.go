package agent

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/gateway"
	"github.com/apiary-dev/apiary/core/gossip"
	"github.com/apiary-dev/apiary/core/hive"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/keys"
	"github.com/apiary-dev/apiary/core/metrics"
	"github.com/apiary-dev/apiary/core/placement"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/queen"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/trust"
	pluginhost "github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/workers/llama/bundle"
)

// assembly is an agent that is built and not running.
type assembly struct {
	guard       guard
	drain       *drain
	queen       *queen.Queen
	gateway     *gateway.Gateway
	hive        *hive.Hive
	gossip      *gossip.Gossip // set by buildGossip
	metrics     *metrics.Metrics
	network     network
	credentials *credentials
	start       string          // of this run
	plugins     *pluginhost.Set // nil without a hive
	queenServer *httpd.Server
	hiveServer  *httpd.Server
	queenURL    string
	hiveURL     string
	reloader    *reloader
	workers     atomic.Pointer[[]config.Worker] // the blocks in force
}

// build makes the configured roles for the addresses at which they will be served. It opens the artifact store and starts
// nothing.
func build(o Options, n node, at addresses) (*assembly, error) {
	cfg := o.Config
	a := &assembly{
		drain:       newDrain(),
		credentials: n.credentials,
		network:     network{tls: trust.ClientConfig(n.identity, n.verifier, trust.Expect{})},
		start:       gossip.NewStart(time.Now()),
		queenURL:    baseURL(at.queen, cfg.Agent.Advertise),
		hiveURL:     baseURL(at.hive, cfg.Agent.Advertise),
		guard: guard{
			admin: n.admin, hive: secret.ForHive(n.cluster, n.id),
			loopback: (at.queen == "" || isLoopback(at.queen)) && (at.hive == "" || isLoopback(at.hive)),
			keys:     &keys.Table{},
		},
	}
	a.workers.Store(&cfg.Workers)
	a.reloader = &reloader{load: func() (*config.Config, error) {
		next, err := o.Load()
		if err == nil {
			err = pluginhost.CheckConfig(next)
		}
		if err != nil {
			return nil, err
		}
		return next, nil
	}, log: o.Log, started: cfg, current: cfg, take: func(next *config.Config, changed func(string) bool) { a.take(o, next, changed) }}
	if o.Load == nil {
		a.reloader.load = func() (*config.Config, error) { return cfg, nil }
	}
	m := metrics.New()
	a.metrics = m
	if at.hive != "" {
		if err := a.buildHive(o, n, m); err != nil {
			return nil, err
		}
	}
	if at.queen != "" {
		if err := a.buildQueen(o, n, m); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// take puts what changed of a configuration into force, as far as a running agent can.
func (a *assembly) take(o Options, cfg *config.Config, changed func(string) bool) {
	if o.Level != nil && changed("agent.log") {
		o.Level.Set(cfg.Agent.Log.Level)
	}
	if changed("worker") {
		a.workers.Store(&cfg.Workers)
	}
	if a.queen == nil {
		return
	}
	if changed("queen") {
		a.gateway.SetLimits(gatewayLimits(cfg.Queen))
		a.queen.SetHives(a.hives(cfg))
	}
	if changed("model") || changed("worker") || changed("deployment") {
		a.queen.Reconfigure(queen.Settings{Models: models(cfg), Workers: kinds(cfg), Defaults: spawnDefaults(cfg), Deployments: cfg.Shared()})
	}
}

func (a *assembly) buildHive(o Options, n node, m *metrics.Metrics) error {
	cfg := o.Config
	native := &nativeExecutable{home: cfg.Home, version: o.Version, own: o.Executable, carried: bundle.Binary()}
	store, plugins, err := openStore(o, native, a.network)
	if err != nil {
		return err
	}
	a.plugins = plugins
	var queens []string
	if a.queenURL != "" {
		queens = []string{a.queenURL}
	}
	// What comes before the arguments of the worker contract.
	first := func(verb []string, spec contract.WorkerSpawn) []string {
		args := append(verb, "--orphan-ttl", cfg.Hive.OrphanTTL.String(), "--drain", cfg.Hive.Drain.String())
		for _, w := range *a.workers.Load() {
			if w.Name == spec.Worker.Name && (len(spec.Args) < len(w.Args) || !slices.Equal(spec.Args[:len(w.Args)], w.Args)) { // those of a deployment have them
				args = append(args, w.Args...)
			}
		}
		return args
	}
	a.hive, err = hive.New(hive.Options{
		NodeID: n.id, Name: cfg.Agent.Name, Labels: cfg.Agent.Labels, Version: o.Version, Address: a.hiveURL, Home: cfg.Home, ClusterKey: n.cluster,
		Artifacts: store,
		Launchers: map[string]hive.Launcher{
			config.AdapterNative: func(_ context.Context, spec contract.WorkerSpawn, _ string) (string, []string, error) {
				path, err := native.Path()
				return path, first([]string{"serve"}, spec), err
			},
			config.AdapterEcho: func(_ context.Context, spec contract.WorkerSpawn, _ string) (string, []string, error) {
				return o.Executable, first([]string{"worker", "echo"}, spec), nil
			},
		},
		ExecChild: []string{o.Executable, "exec-child"}, Ports: cfg.Hive.WorkerPorts, QueenURLs: queens,
		Kill: process.KillOptions{Term: cfg.Hive.Kill.Term, Kill: cfg.Hive.Kill.Kill}, ReserveMemory: cfg.Hive.Reserve.Memory,
		Start: a.start, Queens: a.queens, Changed: func() { a.gossip.Kick() }, Dial: a.network.dial, Metrics: m, Log: o.Log.With("role", "hive"),
	})
	if err != nil {
		return err
	}
	routes := a.hive.Routes()
	if a.queenURL == "" {
		routes = append(append(routes, profiling()...), a.reloader.route())
	}
	a.hiveServer, err = a.server(o, routes, a.guard.hiveServer, "hive")
	return err
}

func (a *assembly) buildQueen(o Options, n node, m *metrics.Metrics) error {
	cfg := o.Config
	log := o.Log.With("role", "queen")
	var gw *gateway.Gateway
	var err error
	a.queen, err = queen.New(queen.Options{
		NodeID: n.id, Name: cfg.Agent.Name, Version: o.Version, URL: a.queenURL, ClusterKey: n.cluster, Hives: a.hives(cfg),
		Models: models(cfg), Workers: kinds(cfg), Defaults: spawnDefaults(cfg), Deployments: cfg.Shared(), Registry: registryParams(cfg), Watchdog: queen.Watchdog{Stall: cfg.Queen.Watchdog.Stall, Answer: cfg.Queen.Watchdog.Answer}, Interval: cfg.Queen.Heartbeat.Interval, ReadyAfter: cfg.Queen.Detection.ReadyAfter,
		Home: cfg.Home, IdleTTL: cfg.Queen.Placement.IdleTTL, Placement: placementParams(cfg), Reserve: cfg.Hive.Reserve.Memory, Drain: cfg.Hive.Drain, Ready: cfg.Hive.Spawn.Ready, ReadyGiB: cfg.Hive.Spawn.ReadyPerGiB, ReadyMax: cfg.Hive.Spawn.ReadyMax,
		InFlight: func(id string) int { return gw.InFlight(id) }, Queued: func() map[string]int { return gw.Queued() }, Start: a.start, Company: company(o), Members: a.members, ChangeKeys: a.changeKeys,
		Keys: a.guard.keys, Trust: a.trust(n),
		Dial: a.network.dial, Metrics: m, Log: log,
	})
	if err != nil {
		return err
	}
	a.guard.required = a.queen.KeysRequired
	gw = gateway.New(gateway.Options{
		Directory: a.queen, Secret: func(id string) secret.Secret { return secret.ForWorker(n.cluster, id) },
		Limits: gatewayLimits(cfg.Queen), Metrics: m, Log: log,
	})
	a.gateway = gw
	routes := slices.Concat(a.queen.Routes(), gw.Routes(), profiling(), []httpd.Route{a.reloader.route()})
	a.queenServer, err = a.server(o, routes, a.guard.queen, "queen")
	return err
}

// hives are the hives that the configuration names, and this agent's own.
func (a *assembly) hives(cfg *config.Config) []string {
	hives := slices.Clone(cfg.Queen.Hives)
	if a.hiveURL == "" {
		return hives
	}
	if !cfg.Queen.HivesSet {
		hives = nil // the default names the usual port of the hive of this agent, which may have another one
	}
	if !slices.Contains(hives, a.hiveURL) {
		hives = append([]string{a.hiveURL}, hives...)
	}
	return hives
}

// server makes the HTTP server of a role. Its inference requests are waited for when the agent stops.
func (a *assembly) server(o Options, routes []httpd.Route, authorize func(httpd.Class, *http.Request) error, role string) (*httpd.Server, error) {
	for i := range routes {
		r := &routes[i]
		switch {
		case r.Class == httpd.ClassInference:
			r.Handler = a.drain.counted(r.Handler, httpd.WriteError)
		case strings.HasSuffix(r.Pattern, " /readyz"):
			r.Handler = a.drain.readiness(r.Handler, httpd.WriteError)
		}
	}
	var closed func() bool
	if role == "queen" {
		closed = a.guard.closed
	}
	s, err := httpd.New(httpd.Options{
		Closed: closed, Routes: routes, Authorize: authorize, Hosts: advertised(o.Config.Agent.Advertise), MaxConnections: o.Config.Queen.Limits.Connections,
		WriteTimeout: o.Config.Queen.Timeouts.Write, DrainTimeout: closeTimeout / 2, Log: o.Log.With("role", role),
	})
	if err != nil {
		return nil, fmt.Errorf("make the %s's server: %w", role, err)
	}
	return s, nil
}

func models(cfg *config.Config) []queen.Model {
	var out []queen.Model
	for _, m := range cfg.Models {
		out = append(out, queen.Model{Name: m.Name, Source: m.Source, Aliases: m.Aliases})
	}
	return out
}

func kinds(cfg *config.Config) []contract.WorkerKind {
	var out []contract.WorkerKind
	for _, w := range cfg.Workers {
		out = append(out, contract.WorkerKind{Name: w.Name, Adapter: w.Adapter, Source: w.Source})
	}
	return out
}

// spawnDefaults is what the worker blocks say about the workers that are started for them.
func spawnDefaults(cfg *config.Config) map[string]contract.WorkerSpawn {
	out := map[string]contract.WorkerSpawn{}
	for _, w := range cfg.Workers {
		out[w.Name] = contract.WorkerSpawn{Devices: w.Devices, Context: w.Context, Slots: w.Slots, Threads: w.Threads, Env: w.Env}
	}
	return out
}

func registryParams(cfg *config.Config) registry.Params {
	d, out, r := cfg.Queen.Detection, cfg.Queen.Outlier, cfg.Hive.Restart
	p := registry.DefaultParams()
	p.Stale, p.Suspect, p.Down, p.Lost, p.Forget, p.Grace, p.PauseAfter = d.Stale, d.Suspect, d.Down, d.Lost, d.Forget, d.StartupGrace, d.SelfPause
	p.FlapChanges, p.FlapWindow, p.FlapHold = d.FlapChanges, d.FlapWindow, d.FlapHold
	p.BrakeShare, p.BrakeWindow, p.BrakeHives = d.BrakeShare, d.BrakeWindow, d.BrakeHives
	p.OutlierFailures, p.OutlierBase, p.OutlierMax, p.SlowStart = out.Failures, out.Ejection, out.MaxEjection, out.SlowStart
	p.Backoff, p.HealthyAfter, p.CrashLimit, p.CrashWindow, p.CrashLoopWait, p.OOMRestarts = r.Backoff, r.Reset, r.Crashes, r.Window, r.Hold, r.OOM
	return p
}

func placementParams(cfg *config.Config) placement.Params {
	p := cfg.Queen.Placement
	out := placement.DefaultParams()
	out.EvictIdle, out.ScaleUp, out.Settle, out.ScaleDown, out.Warm, out.Drain = p.EvictIdle, p.ScaleUp, p.Settle, p.ScaleDown, p.Warm, cfg.Hive.Drain
	return out
}

func gatewayLimits(q config.Queen) gateway.Limits {
	return gateway.Limits{
		Body: q.Limits.Body, QueuePerModel: q.Limits.QueuePerModel, QueuePerKey: q.Limits.QueuePerKey, QueueWait: q.Limits.QueueWait, LoadWait: q.Limits.LoadWait,
		FirstToken: q.Timeouts.FirstToken, Stall: q.Timeouts.Stall,
		Retries: q.Retry.Attempts, RetryShare: q.Retry.Budget, RetryMin: q.Retry.BudgetMin, Poison: q.Retry.Poison,
	}
}

// baseURL is where others reach a listener: at the advertised host, or at its own address; loopback where that is every
// interface.
func baseURL(addr, advertise string) string {
	if addr == "" {
		return ""
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "http://" + addr
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	if names := advertised(advertise); len(names) > 0 {
		host = names[0]
	}
	return (&url.URL{Scheme: "http", Host: net.JoinHostPort(host, port)}).String()
}

// advertised is the host of agent.advertise, which may be written with a port.
func advertised(advertise string) []string {
	if advertise == "" {
		return nil
	}
	if host, _, err := net.SplitHostPort(advertise); err == nil {
		return []string{host}
	}
	return []string{advertise}
}

// DumpRoutes writes the table of routes of the configured roles: server, pattern, class, body limit and time limit. It needs
// no data folder and starts nothing.
func DumpRoutes(w io.Writer, o Options) error {
	dir, err := os.MkdirTemp("", "apiary-routes-")
	if err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	cfg := *o.Config
	cfg.Home = dir
	o.Config, o.Log = &cfg, slog.New(slog.DiscardHandler)
	n, err := openNode(o)
	if err != nil {
		return err
	}
	var at addresses
	if cfg.Agent.Has(config.RoleQueen) {
		at.queen = cfg.Queen.Listen
	}
	if cfg.Agent.Has(config.RoleHive) {
		at.hive = cfg.Hive.Listen
	}
	a, err := build(o, n, at)
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "SERVER\tPATTERN\tCLASS\tBODY\tTIMEOUT")
	for _, s := range []struct {
		name   string
		server *httpd.Server
	}{{"queen", a.queenServer}, {"hive", a.hiveServer}} {
		if s.server == nil {
			continue
		}
		for _, r := range s.server.Routes() {
			limit, timeout := "none", "none"
			if r.BodyLimit > 0 {
				limit = r.BodyLimit.String()
			}
			if r.Timeout > 0 {
				timeout = r.Timeout.String()
			}
			_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", s.name, r.Pattern, cmp.Or(string(r.Class), "-"), limit, timeout)
		}
	}
	return t.Flush()
}

// company reports whether there are other agents that this one will hear of: it is told to join some, or remembers them.
func company(o Options) bool {
	st, err := os.Stat(filepath.Join(o.Config.Home, "state", peersFile))
	return err == nil && st.Size() > int64(len("[]")) || len(o.Config.Gossip.Join)+len(o.Join) > 0
}
