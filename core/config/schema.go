package config

import (
	"fmt"
	"slices"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

const credentialBlock = "credential"

const (
	day = 24 * time.Hour
	// shortest is the least of the times that cannot be switched off. The roles take a zero for "the default", so a 0 in the file
	// would not mean what it says; orphan_ttl alone has a meaning for it.
	shortest = time.Millisecond
)

// schema is the one description of the configuration language: decoding, printing, suggestions and the test of config.hcl all walk
// it. It is bound to c, so an option reads and writes its field.
func schema(c *Config) *block {
	return &block{
		blocks: []*block{agentSchema(&c.Agent), gossipSchema(&c.Gossip), queenSchema(&c.Queen), hiveSchema(&c.Hive)},
		groups: []*group{pluginGroup(c), vendorGroup(c), provisionerGroup(c), workerGroup(c), modelGroup(c), deploymentGroup(c), credentialGroup(c)},
	}
}

func agentSchema(a *Agent) *block {
	return &block{name: "agent",
		options: []option{
			text("name", `A name is needed, for example "tower".`, &a.Name, checkAgentName),
			list("roles", `A list of roles is needed, for example ["queen", "hive"].`, &a.Roles, checkRole),
			text("data_dir", `A folder is needed, for example "/var/lib/apiary".`, &a.DataDir, checkPath),
			list("labels", `A list of labels is needed, for example ["quiet", "office"].`, &a.Labels, checkLabel),
			text("advertise", `A host name or an address is needed, for example "10.0.0.5".`, &a.Advertise, checkHost),
		},
		blocks: []*block{{name: "log", options: []option{
			level("level", &a.Log.Level),
			choice("format", &a.Log.Format, "auto", "text", "json"),
		}}},
	}
}

func gossipSchema(g *Gossip) *block {
	return &block{name: "gossip", options: []option{
		text("bind", `An address and a port are needed, for example "127.0.0.1:7834".`, &g.Bind, checkAddress),
		list("join", `A list of addresses is needed, for example ["10.0.0.5:7834", "dns:apiary.lan"].`, &g.Join, checkJoin),
		duration("rejoin", &g.Rejoin, time.Second, time.Hour),
		ownSecret("key", &g.Key),
	}}
}

func queenSchema(q *Queen) *block {
	return &block{name: "queen",
		options: []option{
			text("listen", `An address and a port are needed, for example "127.0.0.1:7833".`, &q.Listen, checkAddress),
			list("hives", `A list of URLs is needed, for example ["http://127.0.0.1:7835"].`, &q.Hives, checkBaseURL),
		},
		blocks: []*block{
			{name: "heartbeat", options: []option{
				duration("interval", &q.Heartbeat.Interval, 100*time.Millisecond, time.Minute),
			}},
			{name: "detection", options: []option{
				duration("stale", &q.Detection.Stale, 100*time.Millisecond, time.Hour),
				duration("suspect", &q.Detection.Suspect, 100*time.Millisecond, time.Hour),
				duration("down", &q.Detection.Down, 100*time.Millisecond, time.Hour),
				duration("lost", &q.Detection.Lost, 100*time.Millisecond, day),
				duration("forget", &q.Detection.Forget, time.Second, 365*day),
				duration("self_pause", &q.Detection.SelfPause, 100*time.Millisecond, time.Hour),
				duration("startup_grace", &q.Detection.StartupGrace, shortest, time.Hour),
				duration("ready_after", &q.Detection.ReadyAfter, shortest, time.Hour),
				whole("flap_changes", "changes", 3, &q.Detection.FlapChanges, 2, 1000),
				duration("flap_window", &q.Detection.FlapWindow, time.Second, day),
				duration("flap_hold", &q.Detection.FlapHold, time.Second, day),
				share("brake_share", &q.Detection.BrakeShare),
				duration("brake_window", &q.Detection.BrakeWindow, time.Second, time.Hour),
				whole("brake_hives", "hives", 3, &q.Detection.BrakeHives, 2, 100_000),
			}},
			{name: "retry", options: []option{
				whole("attempts", "attempts", 2, &q.Retry.Attempts, 1, 10),
				share("budget", &q.Retry.Budget),
				whole("budget_min", "attempts", 3, &q.Retry.BudgetMin, 1, 1000),
				duration("poison", &q.Retry.Poison, shortest, day),
			}},
			{name: "outlier", options: []option{
				whole("failures", "failures", 5, &q.Outlier.Failures, 1, 1000),
				duration("ejection", &q.Outlier.Ejection, time.Second, day),
				duration("max_ejection", &q.Outlier.MaxEjection, time.Second, day),
				duration("slow_start", &q.Outlier.SlowStart, shortest, day),
			}},
			{name: "timeouts", options: []option{
				duration("first_token", &q.Timeouts.FirstToken, time.Second, day),
				duration("stall", &q.Timeouts.Stall, time.Second, day),
				duration("write", &q.Timeouts.Write, time.Second, time.Hour),
			}},
			{name: "watchdog", options: []option{
				duration("stall", &q.Watchdog.Stall, time.Second, day),
				duration("answer", &q.Watchdog.Answer, time.Second, time.Hour),
			}},
			{name: "limits", options: []option{
				size("body", "10MiB", &q.Limits.Body, contract.KiB, contract.GiB),
				whole("queue_per_model", "requests", 64, &q.Limits.QueuePerModel, 1, 100_000),
				whole("queue_per_key", "requests", 16, &q.Limits.QueuePerKey, 1, 100_000),
				duration("queue_wait", &q.Limits.QueueWait, shortest, time.Hour),
				duration("load_wait", &q.Limits.LoadWait, shortest, day),
				whole("connections", "connections", 8192, &q.Limits.Connections, 16, 1_000_000),
			}},
			{name: "placement", options: []option{
				duration("idle_ttl", &q.Placement.IdleTTL, 0, 365*day),
				duration("scale_up", &q.Placement.ScaleUp, shortest, day),
				duration("settle", &q.Placement.Settle, shortest, day),
				duration("scale_down", &q.Placement.ScaleDown, shortest, day),
				duration("warm", &q.Placement.Warm, shortest, day),
				duration("evict_idle", &q.Placement.EvictIdle, shortest, day),
			}},
		},
	}
}

func hiveSchema(h *Hive) *block {
	return &block{name: "hive",
		options: []option{
			text("listen", `An address and a port are needed, for example "127.0.0.1:7835".`, &h.Listen, checkAddress),
			ports("worker_ports", &h.WorkerPorts),
			duration("drain", &h.Drain, shortest, day),
			duration("orphan_ttl", &h.OrphanTTL, 0, 365*day),
			list("mirrors", `A list of URLs is needed, for example ["http://10.0.0.5:9000"].`, &h.Mirrors, checkMirror),
		},
		blocks: []*block{
			{name: "spawn", options: []option{
				duration("ready", &h.Spawn.Ready, time.Second, day),
				duration("ready_per_gib", &h.Spawn.ReadyPerGiB, shortest, time.Hour),
				duration("ready_max", &h.Spawn.ReadyMax, time.Second, 7*day),
			}},
			{name: "restart", options: []option{
				durations("backoff", &h.Restart.Backoff, day),
				duration("reset", &h.Restart.Reset, time.Second, day),
				whole("crashes", "crashes", 5, &h.Restart.Crashes, 1, 1000),
				duration("window", &h.Restart.Window, time.Second, day),
				duration("hold", &h.Restart.Hold, shortest, 7*day),
				whole("oom", "restarts", 2, &h.Restart.OOM, 1, 1000),
			}},
			{name: "kill", options: []option{
				duration("term", &h.Kill.Term, shortest, time.Hour),
				duration("kill", &h.Kill.Kill, time.Second, time.Hour),
			}},
			{name: "reserve", options: []option{
				size("memory", "1GiB", &h.Reserve.Memory, 0, contract.TiB),
				size("disk", "2GiB", &h.Reserve.Disk, 0, 1024*contract.TiB),
			}},
		},
	}
}

func vendorSchema(v *Vendor) *block {
	b := &block{name: "vendor", label: v.Name, options: []option{boolean("enabled", &v.Enabled)}}
	if v.Name == VendorHub {
		b.options = append(b.options,
			text("endpoint", `The URL of a hub is needed, for example "https://hub.example.org".`, &v.Endpoint, checkEndpoint),
			foreignSecret("credential", &v.Credential),
			boolean("offline", &v.Offline),
		)
	}
	switch v.Name {
	case VendorPyPI:
		b.options = append(b.options, text("registry", `A URL is needed, for example "https://pypi.example.org/simple".`, &v.Registry, checkRegistry))
	case VendorOllama:
		b.options = append(b.options, text("registry", `A URL is needed, for example "https://ollama.example.org".`, &v.Registry, checkHostURL))
	}
	return b
}

func vendorGroup(c *Config) *group {
	known := builtinVendors()
	return &group{
		name:  "vendor",
		check: func(label string) error { return oneOf("vendor", label, known, vendorName) },
		open: func(label string) (*block, func()) {
			v, ok := named(known, label, vendorName)
			if !ok {
				v = Vendor{Name: label}
			}
			return vendorSchema(&v), func() { c.Vendors = append(c.Vendors, v) }
		},
		each: func() []*block { return bind(c.Vendors, vendorSchema) },
	}
}

// provisionerBlocks are the blocks of the provisioners with settings.
func provisionerBlocks(c *Config) []*block {
	p := &c.Provisioner
	return []*block{
		{name: "provisioner", label: "npm", options: []option{
			text("registry", `A URL is needed, for example "https://npm.example.org/".`, &p.NPM.Registry, checkRegistry),
		}},
		{name: "provisioner", label: "pypi", options: []option{
			text("registry", `A URL is needed, for example "https://pypi.example.org/simple".`, &p.PyPI.Registry, checkRegistry),
		}},
		{name: "provisioner", label: "github", options: []option{
			text("endpoint", `The URL of an API is needed, for example "https://github.example.org/api/v3".`, &p.GitHub.Endpoint, checkEndpoint),
			foreignSecret("credential", &p.GitHub.Credential),
		}},
		{name: "provisioner", label: "recipe", options: []option{
			list("tools", `A list of programs is needed, for example ["cmake", "ninja", "cc"].`, &p.Recipe.Tools, checkTool),
		}},
	}
}

func provisionerGroup(c *Config) *group {
	label := func(b *block) string { return b.label }
	return &group{
		name:  "provisioner",
		check: func(name string) error { return oneOf("provisioner", name, provisionerBlocks(c), label) },
		open: func(name string) (*block, func()) {
			all := provisionerBlocks(c)
			if i := slices.IndexFunc(all, func(b *block) bool { return b.label == name }); i >= 0 {
				return all[i], func() {}
			}
			// Refused by check; decoded all the same, to find the other mistakes.
			other := provisionerBlocks(&Config{})[0]
			other.label = name
			return other, func() {}
		},
		each: func() []*block { return provisionerBlocks(c) },
	}
}

func workerSchema(c *Config, w *Worker) *block {
	return &block{name: "worker", label: w.Name, options: []option{
		text("adapter", `One of "native", "echo" is needed, for example "native".`, &w.Adapter, checkAdapter),
		text("source", fmt.Sprintf("A reference to an engine is needed, for example %q.", defaultEngine), &w.Source, checkScheme(c, "engine", "npm", "path", "pypi", "github", "recipe")),
		list("devices", `A list of devices is needed, for example ["cuda0"].`, &w.Devices, checkDevice),
		whole("context", "tokens", 8192, &w.Context, 0, 1<<24),
		whole("slots", "slots", 4, &w.Slots, 0, contract.MaxSlots),
		whole("threads", "threads", 8, &w.Threads, 0, 4096),
		secretMap("env", `An object of texts is needed, for example { LANG = "C.UTF-8" }.`, &w.Env, checkEnv),
		ordered("args", `A list of arguments is needed, for example ["--verbose"].`, &w.Args, checkArg),
	}}
}

func workerGroup(c *Config) *group {
	return &group{
		name:  "worker",
		check: checkName,
		open: func(label string) (*block, func()) {
			w, ok := named(builtinWorkers(), label, workerName)
			if !ok {
				w = Worker{Name: label}
			}
			return workerSchema(c, &w), func() { c.Workers = append(c.Workers, w) }
		},
		each: func() []*block { return bind(c.Workers, func(w *Worker) *block { return workerSchema(c, w) }) },
	}
}

func modelSchema(c *Config, m *Model) *block {
	return &block{name: "model", label: m.Name, options: []option{
		text("source", `A reference to a model is needed, for example "builtin:stories260k".`, &m.Source, modelReference(c)),
		list("aliases", `A list of names is needed, for example ["gpt-4o-mini"].`, &m.Aliases, checkAlias),
	}}
}

func modelReference(c *Config) func(string) error {
	return checkScheme(c, "model", "builtin", "file", "hf", "pypi", "ollama", "https", "http", "url", "echo")
}

func modelGroup(c *Config) *group {
	return &group{
		name:  "model",
		check: checkModelName,
		open: func(label string) (*block, func()) {
			m := Model{Name: label}
			return modelSchema(c, &m), func() { c.Models = append(c.Models, m) }
		},
		each: func() []*block { return bind(c.Models, func(m *Model) *block { return modelSchema(c, m) }) },
	}
}

func credentialSchema(k *Credential) *block {
	return &block{name: credentialBlock, label: k.Name, options: []option{
		foreignSecret("value", &k.Value),
		list("hosts", `A list of hosts is needed, for example ["npm.example.org"].`, &k.Hosts, checkCredentialHost),
	}}
}

func credentialGroup(c *Config) *group {
	return &group{
		name:  credentialBlock,
		check: checkName,
		open: func(label string) (*block, func()) {
			k := Credential{Name: label}
			return credentialSchema(&k), func() { c.Credentials = append(c.Credentials, k) }
		},
		each: func() []*block { return bind(c.Credentials, credentialSchema) },
	}
}

// bind gives the block of each element of s.
func bind[T any](s []T, f func(*T) *block) []*block {
	out := make([]*block, len(s))
	for i := range s {
		out[i] = f(&s[i])
	}
	return out
}

// oneOf says that there is no what called label.
func oneOf[T any](what, label string, known []T, nameOf func(T) string) error {
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = nameOf(k)
		if names[i] == label {
			return nil
		}
	}
	return fmt.Errorf("this build has no %s %q; it has %s.%s", what, label, quoteAll(names), suggest(label, names))
}
