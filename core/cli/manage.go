package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/vendors/huggingface"
	"github.com/apiary-dev/apiary/vendors/ollama"
)

func (a *app) hiveCommand() *cobra.Command {
	list := &cobra.Command{Use: "list", Short: "List the hives that the queen knows", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return ask(ctx, a, op{Operation: contract.OpHiveList}, func(hives []contract.HiveView) error {
				rows := make([][]string, 0, len(hives))
				for _, h := range hives {
					state := string(h.Liveness)
					if h.Drained {
						state += ", drained"
					}
					rows = append(rows, []string{h.Name, h.ID, h.Address, state, fmt.Sprint(h.Devices), fmt.Sprint(h.Models), fmt.Sprint(h.Engines),
						h.MemoryFree.String(), h.DiskFree.String(), h.Version})
				}
				return a.table([]string{"NAME", "ID", "ADDRESS", "STATE", "DEVICES", "MODELS", "ENGINES", "MEMORY FREE", "DISK FREE", "VERSION"}, rows, "The queen knows no hives.")
			})
		})}
	return a.holder("hive", "Look at the hives, and put them on other machines", list, a.hiveDrainCommand(false), a.hiveDrainCommand(true), a.hiveInstallCommand(), a.hiveStartCommand(), a.hiveStopCommand(), a.hiveUninstallCommand())
}

func (a *app) deviceCommand() *cobra.Command {
	var hive string
	list := &cobra.Command{Use: "list", Short: "List what can run a model", Args: argCount(0, 0, ""),
		RunE: interruptible(func(ctx context.Context, _ []string) error {
			return ask(ctx, a, contract.ArtifactRef{Operation: contract.OpDeviceList, HiveID: hive}, func(devices []contract.Device) error {
				rows := make([][]string, 0, len(devices))
				for _, d := range devices {
					cores := "-"
					if d.Cores > 0 {
						cores = fmt.Sprint(d.Cores)
					}
					rows = append(rows, []string{d.ID, d.Kind, d.Name, cores, d.MemoryTotal.String(), d.MemoryFree.String(), d.Source})
				}
				return a.table([]string{"DEVICE", "KIND", "NAME", "CORES", "MEMORY", "FREE", "LISTED BY"}, rows, "There are no devices.")
			})
		})}
	hiveFlag(list, &hive)
	return a.holder("device", "Look at the devices", list)
}

// credentialView is a credential as programs see it: without its value.
type credentialView struct {
	Name  string   `json:"name"`
	Hosts []string `json:"hosts,omitempty"`
}

func (a *app) credentialCommand() *cobra.Command {
	var hosts []string
	set := &cobra.Command{Use: "set NAME", Short: "Store a credential, read from the terminal or from standard input", Args: argCount(1, 1, "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.credentials()
			if err != nil {
				return err
			}
			if len(hosts) == 0 {
				if hosts, err = a.usualHosts(args[0]); err != nil {
					return err
				}
			}
			value, err := a.readSecret(args[0])
			if err != nil {
				return err
			}
			if err := store.Set(args[0], value, hosts); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(credentialView{args[0], hosts})
			}
			_, err = fmt.Fprintf(a.err, "Stored credential %s; it is sent to %s only.\n", args[0], strings.Join(hosts, ", "))
			return err
		}}
	set.Flags().StringSliceVar(&hosts, "host", nil, "`host` that may be sent the credential (repeatable; default for huggingface and ollama: their own)")
	list := &cobra.Command{Use: "list", Short: "List the stored credentials, without their values", Args: argCount(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			store, err := a.credentials()
			if err != nil {
				return err
			}
			all, err := store.List()
			if err != nil {
				return err
			}
			if a.json {
				views := make([]credentialView, 0, len(all))
				for _, c := range all {
					views = append(views, credentialView{c.Name, c.Hosts})
				}
				return a.printJSON(views)
			}
			rows := make([][]string, 0, len(all))
			for _, c := range all {
				rows = append(rows, []string{c.Name, c.Value.String(), strings.Join(c.Hosts, ", ")})
			}
			return a.table([]string{"NAME", "VALUE", "HOSTS"}, rows, "There are no stored credentials.")
		}}
	rm := &cobra.Command{Use: "rm NAME", Aliases: []string{"delete"}, Short: "Forget a stored credential", Args: argCount(1, 1, "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			store, err := a.credentials()
			if err != nil {
				return err
			}
			if err := store.Remove(args[0]); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(credentialView{Name: args[0]})
			}
			_, err = fmt.Fprintf(a.err, "Removed credential %s.\n", args[0])
			return err
		}}
	return a.holder("credential", "Store secrets for vendors, in the data folder", set, list, rm)
}

// usualHosts are the hosts that a credential of that name is for: those of a vendor that has one place, which the configuration
// says.
func (a *app) usualHosts(name string) ([]string, error) {
	if name != huggingface.Credential && name != ollama.Scheme {
		return nil, nil
	}
	cfg, err := a.loadConfig()
	if err != nil {
		return nil, err
	}
	at := cmp.Or(cfg.Vendor(config.VendorHub).Endpoint, huggingface.DefaultEndpoint)
	if name == ollama.Scheme {
		at = cmp.Or(cfg.Vendor(config.VendorOllama).Registry, ollama.DefaultRegistry)
	}
	u, err := url.Parse(at)
	if err != nil {
		return nil, err
	}
	return []string{u.Host}, nil
}

func (a *app) credentials() (*config.Credentials, error) {
	home, err := a.home()
	if err != nil {
		return nil, err
	}
	return config.OpenCredentials(home), nil
}

// readSecret reads a value without showing it. It is never an argument: other users see those.
func (a *app) readSecret(name string) (secret.Secret, error) {
	var line string
	if f, ok := a.in.(interface{ Fd() uintptr }); ok && isTerminal(a.in) {
		_, _ = fmt.Fprintf(a.err, "Value of %s (it is not shown): ", name)
		b, err := term.ReadPassword(int(f.Fd()))
		_, _ = fmt.Fprintln(a.err)
		if err != nil {
			return "", fmt.Errorf("read the value: %w", err)
		}
		line = string(b)
	} else {
		var err error
		if line, err = bufio.NewReader(io.LimitReader(a.in, 64<<10)).ReadString('\n'); err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("read the value: %w", err)
		}
	}
	v := strings.TrimRight(line, "\r\n")
	if strings.TrimSpace(v) == "" {
		return "", fault.New(fault.Invalid, "empty_secret", "The value of credential %s is empty; type it at the prompt or pipe it in.", name)
	}
	return secret.Secret(v), nil
}

func (a *app) configCommand() *cobra.Command {
	validate := &cobra.Command{Use: "validate [FILE]", Short: "Check the configuration and show every mistake", Args: argCount(0, 1, "[FILE]"),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) == 1 {
				a.configPath = args[0]
			}
			cfg, err := a.loadConfig()
			if err == nil {
				err = host.CheckConfig(cfg)
			}
			if diags, ok := errors.AsType[config.Diagnostics](err); ok && a.json {
				if err := a.printJSON(map[string]any{"valid": false, "diagnostics": diags}); err != nil {
					return err
				}
				e := fault.As(err)
				summary, _, _ := strings.Cut(e.Message, "\n")
				return fault.New(e.Kind, e.Code, "%s", summary) // the mistakes are told already
			}
			if err != nil {
				return err
			}
			warnings := openBinds(cfg)
			if a.json {
				return a.printJSON(validView{Valid: true, Path: cfg.Path, Warnings: warnings})
			}
			for _, w := range warnings {
				_, _ = fmt.Fprintln(a.err, "Warning: "+w)
			}
			name := cfg.Path
			if name == "" {
				name = "The built-in configuration"
			}
			_, err = fmt.Fprintf(a.out, "%s is valid.\n", name)
			return err
		}}
	show := &cobra.Command{Use: "show", Short: "Print the effective configuration; secrets are ***", Args: argCount(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			cfg, err := a.loadAgentConfig()
			if e, ok := errors.AsType[*fault.Error](err); ok && e.Code == "address_invalid" {
				cfg, err = a.loadConfig() // the address of an agent elsewhere
			}
			if err != nil {
				return err
			}
			if a.json {
				return cfg.ShowJSON(a.out)
			}
			return cfg.Show(a.out)
		}}
	reload := &cobra.Command{Use: "reload", Short: "Have the running agent read its configuration again", Args: argCount(0, 0, "")}
	reload.Long = reload.Short + `.

It takes over models, workers, deployments, queen.hives, the log level, and the limits of waiting and of repetitions, and says what needs a restart.
env() gives what the agent was started with. A file with a mistake changes nothing. SIGHUP does the same to an agent that does not run in a terminal.`
	reload.RunE = interruptible(func(ctx context.Context, _ []string) error { return a.reload(ctx) })
	return a.holder("config", "Check, show and reload the configuration", validate, show, reload)
}

// validView is what `config validate` says of a file without mistakes.
type validView struct {
	Valid    bool     `json:"valid"`
	Path     string   `json:"path"`
	Warnings []string `json:"warnings,omitempty"`
}

// openBinds says which addresses of a configuration an agent takes only with --insecure-i-know.
func openBinds(cfg *config.Config) (warnings []string) {
	for _, l := range []struct{ role, addr, setting string }{
		{config.RoleQueen, cfg.Queen.Listen, "queen.listen"}, {config.RoleHive, cfg.Hive.Listen, "hive.listen"},
	} {
		if !cfg.Agent.Has(l.role) {
			continue
		}
		if err := httpd.CheckBind(l.addr, false, l.setting); err != nil {
			warnings = append(warnings, fault.As(err).Message)
		}
	}
	if err := httpd.CheckBind(cfg.Gossip.Bind, false, "gossip.bind"); err != nil {
		warnings = append(warnings, fault.As(err).Message)
	}
	return warnings
}

// defaultEngine is the engine of the first native worker block.
func (a *app) defaultEngine() (string, error) {
	cfg, err := a.loadConfig()
	if err != nil {
		return "", err
	}
	for _, w := range cfg.Workers {
		if w.Adapter == config.AdapterNative && w.Source != "" {
			return w.Source, nil
		}
	}
	return "", fault.New(fault.Invalid, "no_engine", "No worker block of the configuration names an engine; give its reference.")
}

// execChildCommand is how hives start workers: it gives up privileges and becomes the program.
func (a *app) execChildCommand() *cobra.Command {
	return &cobra.Command{Use: "exec-child -- PATH [ARGUMENT…]", Hidden: true, Args: cobra.ArbitraryArgs, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error { return process.ExecChild(args) }}
}

func (a *app) agentCommand() *cobra.Command {
	var f agentFlags
	c := &cobra.Command{Use: "agent", Short: "Run an agent in the foreground: queen, hive or both, as configured", Args: argCount(0, 0, "")}
	c.Long = c.Short + ".\n\nSIGTERM stops it: it refuses new requests, lets running ones finish, and leaves the workers alone. A second SIGTERM makes it hurry.\nSIGHUP has it read its configuration again, as `apiary config reload` does; in a terminal it stops the agent, because it says that the terminal was closed."
	c.Flags().StringVar(&a.addr, "addr", "", "the address to listen on as queen, `host:port` (default: APIARY_ADDR, queen.listen of the configuration)")
	c.Flags().BoolVar(&f.insecure, "insecure-i-know", false, "listen where other machines can connect, although there are no keys and certificates")
	c.Flags().StringSliceVar(&f.join, "join", nil, "gossip `address` of an agent to join, host:port or dns:name:port (repeatable; beside gossip.join of the configuration)")
	c.Flags().BoolVar(&f.dump, "dump-routes", false, "print the table of routes and exit")
	c.Flags().BoolVar(&f.background, "background", false, "log to agent.log in the data folder")
	_ = c.Flags().MarkHidden("background") // how other commands start it
	c.RunE = func(*cobra.Command, []string) error {
		return a.serve(f)
	}
	return c
}
