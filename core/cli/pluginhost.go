package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/plugins/wasm"
)

// exitStuck is the exit code of a plugin host whose guest did not end.
const exitStuck = 3

// pluginHostCommand is the process that a WASM plugin runs in: agents start it, and can kill it.
func (a *app) pluginHostCommand() *cobra.Command {
	var file, digest, cache string
	var memory int64
	c := &cobra.Command{Use: "plugin-host", Short: "Run a WASM plugin (started by agents)", Hidden: true, Args: argCount(0, 0, "")}
	f := c.Flags()
	f.StringVar(&file, "wasm", "", "the module, a `file`")
	f.StringVar(&digest, "sha256", "", "its SHA-256, in `hex`")
	f.StringVar(&cache, "cache", "", "private `folder` for compiled code")
	f.Int64Var(&memory, "memory", wasm.DefaultMemoryPages<<16, "memory of an instance, in `bytes`")
	c.RunE = func(*cobra.Command, []string) error {
		if err := process.Harden(); err != nil {
			return err
		}
		go leaveWithParent(os.Getppid()) // compiling takes a while
		module, err := readModule(file, digest)
		if err != nil {
			return err
		}
		if memory < 1<<16 || memory > 1<<32 {
			return fault.New(fault.Invalid, "bad_flag", "--memory must be at least 65536 bytes and at most 4 GiB, not %d.", memory)
		}
		if err := a.boundPluginHost(memory); err != nil {
			return err
		}
		host, log := new(lateHost), pluginLog(a.err)
		m, err := wasm.Open(context.Background(), wasm.Options{
			Module: module, CacheDir: cache, MemoryPages: uint32(memory >> 16), Host: host, Log: log,
			Stuck: func() {
				_, _ = fmt.Fprintln(a.err, "The plugin does not end although its call has; its process ends.")
				os.Exit(exitStuck)
			},
			KillAfter: func(d time.Duration) (cancel func()) {
				cancel, err := process.KillSelfAfter(d)
				if err != nil {
					log.Debug("the kernel sets no bound to a call", "error", err) // the agent has one too
					return func() {}
				}
				return cancel
			},
		})
		if err != nil {
			return err
		}
		debug.FreeOSMemory() // compiling, and reading what was compiled, leaves several times as much behind as stays in use
		err = sdk.ServeInvoker(func(agent vendor.Invoker) vendor.Invoker {
			host.Invoker = agent
			return m
		})
		if errors.Is(err, sdk.ErrByHand) {
			return fault.New(fault.Invalid, "by_hand", "plugin-host is called by the agent, not by people; name the plugin in the configuration instead (%w).", err)
		}
		return err
	}
	return c
}

// lateHost is the agent, which is known only once the module is open.
type lateHost struct{ vendor.Invoker }

// leaveWithParent ends this process when the one that started it is gone.
func leaveWithParent(parent int) {
	for os.Getppid() == parent {
		time.Sleep(time.Second)
	}
	os.Exit(exitStuck)
}

// readModule reads a module and makes sure that what was read is what is pinned.
func readModule(path, digest string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.NotFound, "no_module", "The module of the plugin cannot be opened: %w.", err)
	}
	defer func() { _ = f.Close() }()
	module, err := io.ReadAll(io.LimitReader(f, wasm.MaxModule+1))
	if err != nil {
		return nil, fault.New(fault.Internal, "no_module", "The module of the plugin cannot be read: %w.", err)
	}
	if sum := sha256.Sum256(module); hex.EncodeToString(sum[:]) != strings.ToLower(digest) {
		return nil, fault.New(fault.Denied, "wrong_digest", "The module %s has the SHA-256 %x, but %q is pinned; install the plugin again.", path, sum, digest)
	}
	return module, nil
}

// boundPluginHost keeps what is around the guests within bounds too: code, tables and stacks are not memory of an instance.
func (a *app) boundPluginHost(memory int64) error {
	const instances, own, garbage = 4, 256 << 20, 16 << 20
	debug.SetMemoryLimit(instances*memory + own)
	// Most of the heap is memory of guests, which lives long: with Go's usual 100 there would be as much again of garbage. Small guests
	// keep that, since the heap around them is small and would be collected all the time.
	debug.SetGCPercent(int(min(max(garbage*100/memory, 25), 100)))
	// Guests that do not yield must leave processors for the calls and for what ends them.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), instances+2))
	// A memory that grows is there twice for a moment, and its old half until it is collected.
	return process.LimitMemory(2*instances*memory + 4*own)
}

// pluginLog writes lines for the log of the agent, which adds the time.
func pluginLog(to io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(to, &slog.HandlerOptions{ReplaceAttr: func(groups []string, attr slog.Attr) slog.Attr {
		if len(groups) == 0 && attr.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return attr
	}}))
}

// pluginPack writes a manifest into a module whose compiler cannot.
func (a *app) pluginPack() *cobra.Command {
	return &cobra.Command{Use: "pack MODULE MANIFEST", Short: "Write the manifest of a plugin, a JSON file, into its WASM module", Args: argCount(2, 2, "MODULE MANIFEST"),
		RunE: func(_ *cobra.Command, args []string) error {
			module, err := readInput(args[0])
			if err != nil {
				return err
			}
			text, err := readInput(args[1])
			if err != nil {
				return err
			}
			manifest := new(vendor.StaticManifest)
			if err := json.Unmarshal(text, manifest); err != nil {
				return fault.New(fault.Invalid, "bad_manifest", "%s is no manifest of a plugin: %w.", args[1], err)
			}
			if module, err = wasm.AppendManifest(module, manifest); err != nil {
				return err
			}
			if _, err := wasm.Manifest(module); err != nil {
				return err
			}
			if err := wasm.Validate(module, uint32(manifest.Info.Requests.MemoryBytes>>16)); err != nil {
				return err
			}
			if err := os.WriteFile(args[0], module, 0o644); err != nil {
				return fault.New(fault.Internal, "not_written", "The module cannot be written: %w.", err)
			}
			_, err = fmt.Fprintf(a.out, "%s %s, %d bytes, sha256 %x\n", manifest.Info.Name, manifest.Info.Version, len(module), sha256.Sum256(module))
			return err
		}}
}

// readInput reads a file that the user named.
func readInput(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.NotFound, "no_file", "%s cannot be read: %w.", path, err)
	}
	return b, nil
}
