package config

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// defaultEngine is the engine of the native worker where the configuration names none.
const defaultEngine = "npm:@node-llama-cpp/{platform}@3.21.1"

// defaults returns the configuration of an empty file, but for the built-in workers and vendors, which are completed after
// decoding because a block of the same name changes them.
func defaults() *Config {
	return &Config{
		Agent: Agent{
			Roles: []string{RoleQueen, RoleHive},
			Log:   Log{Level: slog.LevelInfo, Format: "auto"},
		},
		Gossip: Gossip{Bind: fmt.Sprintf("127.0.0.1:%d", contract.GossipPort), Rejoin: 15 * time.Second},
		Queen: Queen{
			Listen:    fmt.Sprintf("127.0.0.1:%d", contract.QueenPort),
			Hives:     []string{fmt.Sprintf("http://127.0.0.1:%d", contract.HivePort)},
			Heartbeat: Heartbeat{Interval: 5 * time.Second},
			Detection: Detection{
				Stale: 7500 * time.Millisecond, Suspect: 12500 * time.Millisecond, Down: 17500 * time.Millisecond,
				Lost: time.Minute, Forget: 24 * time.Hour,
				SelfPause: 2 * time.Second, StartupGrace: 17500 * time.Millisecond, ReadyAfter: 6 * time.Second,
				FlapChanges: 3, FlapWindow: time.Minute, FlapHold: time.Minute, BrakeShare: 0.5, BrakeWindow: 10 * time.Second, BrakeHives: 3,
			},
			Retry:    Retry{Attempts: 2, Budget: 0.2, BudgetMin: 3, Poison: 10 * time.Minute},
			Outlier:  Outlier{Failures: 5, Ejection: 30 * time.Second, MaxEjection: 300 * time.Second, SlowStart: 30 * time.Second},
			Timeouts: Timeouts{FirstToken: 120 * time.Second, Stall: time.Minute, Write: 30 * time.Second},
			Watchdog: Watchdog{Stall: time.Minute, Answer: 30 * time.Second},
			Limits: Limits{
				Body: 10 * contract.MiB, QueuePerModel: 64, QueuePerKey: 16,
				QueueWait: 30 * time.Second, LoadWait: 2 * time.Minute, Connections: 8192,
			},
			Placement: Placement{IdleTTL: 15 * time.Minute, ScaleUp: 10 * time.Second, Settle: 30 * time.Second, ScaleDown: 5 * time.Minute, Warm: 10 * time.Second, EvictIdle: time.Minute},
		},
		Hive: Hive{
			Listen:      fmt.Sprintf("127.0.0.1:%d", contract.HivePort),
			WorkerPorts: [2]int{contract.FirstWorkerPort, contract.LastWorkerPort},
			Drain:       120 * time.Second,
			OrphanTTL:   10 * time.Minute,
			Spawn:       Spawn{Ready: time.Minute, ReadyPerGiB: 20 * time.Second, ReadyMax: 6 * time.Hour},
			Restart: Restart{
				Backoff: []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 300 * time.Second},
				Reset:   10 * time.Minute, Crashes: 5, Window: 10 * time.Minute, Hold: 15 * time.Minute, OOM: 2,
			},
			Kill:    Kill{Term: 10 * time.Second, Kill: 5 * time.Second},
			Reserve: Reserve{Memory: contract.GiB, Disk: 2 * contract.GiB},
		},
	}
}

// builtinWorkers are the kinds of worker that exist without a block.
func builtinWorkers() []Worker {
	return []Worker{
		{Name: "llama", Adapter: AdapterNative, Source: defaultEngine},
		{Name: "echo", Adapter: AdapterEcho},
	}
}

// builtinVendors are the vendors of this build.
func builtinVendors() []Vendor {
	return []Vendor{{Name: "builtin", Enabled: true}, {Name: "local", Enabled: true}, {Name: VendorHub, Enabled: true}, {Name: VendorPyPI, Enabled: true}, {Name: VendorOllama, Enabled: true}, {Name: VendorURL, Enabled: true}}
}

// named returns the element of s that name is called, and whether there is one.
func named[T any](s []T, name string, nameOf func(T) string) (T, bool) {
	for _, v := range s {
		if nameOf(v) == name {
			return v, true
		}
	}
	var zero T
	return zero, false
}

// complete appends the built-in elements that s lacks.
func complete[T any](s, builtin []T, nameOf func(T) string) []T {
	for _, b := range builtin {
		if _, ok := named(s, nameOf(b), nameOf); !ok {
			s = append(s, b)
		}
	}
	return s
}

func workerName(w Worker) string { return w.Name }

func vendorName(v Vendor) string { return v.Name }
