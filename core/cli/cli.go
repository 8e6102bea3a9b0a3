// Package cli is the command tree of apiary. It talks to an agent over its HTTP API, starts one in the background where
// a command needs it, and shows answers to people and programs. It holds no logic of queen or hive.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/fault"
)

// Options is what main hands over.
type Options struct {
	Args    []string // without the program's name
	Version string
	Config  []byte // the embedded config.hcl
	Sources fs.FS  // the embedded sources that new plugins are made of
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
}

// app is one run of the command line.
type app struct {
	version  string
	embedded []byte
	sources  fs.FS
	in       io.Reader
	out      io.Writer
	err      io.Writer
	getenv   func(string) string

	// exit is the exit code of a command that ran a process of its own kind (a worker); errors decide otherwise.
	exit int

	addr       string // --addr
	configPath string // --config
	json       bool   // --json
}

const exitCodes = `Exit codes:
  0    ok
  1    internal: a fault of Apiary
  2    invalid: the command, the configuration or the input must change
  3    not found
  4    conflict: the state must change first
  5    unavailable: no agent answers, or try again later
  6    exhausted: a limit is reached, or the disk is full
  7    denied
  130  interrupted`

// Main runs one command and returns the exit code.
func Main(o Options) int {
	a := &app{version: o.Version, embedded: o.Config, sources: o.Sources, in: o.Stdin, out: o.Stdout, err: o.Stderr, getenv: os.Getenv}
	root := a.root()
	root.SetArgs(o.Args)
	if err := root.ExecuteContext(context.Background()); err != nil {
		a.json = a.json || wantsJSON(o.Args)
		a.fail(err)
		return fault.ExitCode(err)
	}
	return a.exit
}

// wantsJSON reports whether --json is among the arguments: a mistake in another option ends their parsing.
func wantsJSON(args []string) bool {
	if i := slices.Index(args, "--"); i >= 0 {
		args = args[:i]
	}
	return slices.Contains(args, "--json")
}

func (a *app) root() *cobra.Command {
	root := a.holder("apiary", "The machines you already own, as one private AI endpoint",
		a.agentCommand(), a.runCommand(), a.chatCommand(), a.stopCommand(), a.upgradeCommand(), a.statusCommand(), a.planCommand(), a.applyCommand(), a.explainCommand(),
		a.modelCommand(), a.workerCommand(), a.engineCommand(), a.hiveCommand(), a.deviceCommand(), a.memberCommand(), a.tokenCommand(), a.joinCommand(), a.keyCommand(), a.jobCommand(),
		a.pluginCommand(), a.credentialCommand(), a.configCommand(), a.keygenCommand(), a.versionCommand(), a.execChildCommand(), a.pluginHostCommand())
	root.Long = root.Short + ".\n\n`apiary run` is the way in: it starts an agent, fetches an engine and tells a story.\n\n" + exitCodes + `

Environment:
  APIARY_HOME    the data folder
  APIARY_ADDR    the agent that commands talk to, and where one that they start listens (host:port or URL)
  APIARY_KEY     an API key of the class admin, for an agent whose data folder is on another machine
  APIARY_CONFIG  the configuration file
  NO_COLOR       no colours`
	root.SilenceUsage, root.SilenceErrors = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	f := root.PersistentFlags()
	f.StringVar(&a.addr, "addr", "", "agent to talk to, `host:port` or URL (default: APIARY_ADDR, the running agent, 127.0.0.1:7833)")
	f.StringVar(&a.configPath, "config", "", "configuration `file` (default: APIARY_CONFIG, APIARY_HOME/config.hcl, /etc/apiary/config.hcl, the built-in one)")
	f.BoolVar(&a.json, "json", false, "answer in JSON, for programs")
	root.SetFlagErrorFunc(flagError)
	root.SetHelpCommand(helpCommand())
	root.InitDefaultCompletionCmd()
	if c, _, err := root.Find([]string{"completion"}); err == nil && c != root {
		hold(c)
		for _, shell := range c.Commands() {
			shell.Args = argCount(0, 0, "")
		}
	}
	return root
}

// holder makes a command that only holds others. cobra answers an unknown sub-command of such a one with its help and
// success; here it is an error.
func (a *app) holder(name, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short}
	hold(c)
	c.AddCommand(subs...)
	return c
}

func hold(c *cobra.Command) {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		if args[0] == "help" { // as in `apiary help`
			return helpOf(c, args[1:])
		}
		return unknownCommand(c, args[0])
	}
}

// unknownCommand says that c has no command called name, and which may have been meant.
func unknownCommand(c *cobra.Command, name string) error {
	hint := ""
	// Of a short word two letters are most of it.
	for distance := 1; distance <= min(2, len(name)/2) && hint == ""; distance++ {
		c.SuggestionsMinimumDistance = distance
		near := c.SuggestionsFor(name)
		if len(near) > 0 {
			i := max(0, slices.IndexFunc(near, func(s string) bool { return strings.HasPrefix(s, name) }))
			hint = fmt.Sprintf(" Did you mean `%s %s`?", c.CommandPath(), near[i])
		}
	}
	return fault.New(fault.Invalid, "unknown_command", "There is no command %q in `%s`.%s `%s --help` lists them.", name, c.CommandPath(), hint, c.CommandPath())
}

// helpCommand is cobra's, but for a name that is none, which is an error here.
func helpCommand() *cobra.Command {
	return &cobra.Command{Use: "help [COMMAND]", Short: "Show the help of a command", Args: cobra.ArbitraryArgs, RunE: func(c *cobra.Command, args []string) error {
		return helpOf(c.Root(), args)
	}}
}

// helpOf shows the help of the command that args name below c.
func helpOf(c *cobra.Command, args []string) error {
	of, rest, err := c.Find(args)
	if err != nil {
		return err
	}
	if len(rest) > 0 {
		return unknownCommand(of, rest[0])
	}
	of.InitDefaultHelpFlag()
	return of.Help()
}

// flagError says what is wrong with an option, without the words of the parser of numbers.
func flagError(c *cobra.Command, err error) error {
	text := strings.TrimSuffix(sentence(err.Error()), ".")
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		text = "There is no option --" + e.GetSpecifiedName()
		if e.GetSpecifiedShortnames() != "" {
			text = "There is no option -" + e.GetSpecifiedName()
		}
	} else if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		text = fmt.Sprintf("The option --%s needs a value", e.GetFlag().Name)
	} else if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		what := "another value"
		switch e.GetFlag().Value.Type() {
		case "int", "int64":
			what = "a whole number"
		case "float64":
			what = "a number"
		case "bool":
			what = "true or false"
		}
		text = fmt.Sprintf("The option --%s takes %s, not %q", e.GetFlag().Name, what, e.GetValue())
	}
	return fault.New(fault.Invalid, "bad_flag", "%s; `%s --help` lists the options.", text, c.CommandPath())
}

// argCount checks the number of positional arguments and says what is missing. The first one is never empty.
func argCount(least, most int, usage string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || (most >= 0 && len(args) > most) {
			return fault.New(fault.Invalid, "bad_arguments", "The command is `%s`; it was given %s.", strings.TrimSpace(c.CommandPath()+" "+usage), plural(len(args), "argument"))
		}
		if len(args) > 0 && strings.TrimSpace(args[0]) == "" {
			instead := "give one"
			if least == 0 {
				instead += ", or leave it out"
			}
			return fault.New(fault.Invalid, "bad_arguments", "The first argument of `%s %s` is empty; %s.", c.CommandPath(), usage, instead)
		}
		return nil
	}
}

// interruptible runs f with a context that Ctrl-C and SIGTERM cancel. After the first the default behaviour is back, so
// that a second Ctrl-C ends a command that does not react.
func interruptible(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, stop)
		err := f(ctx, args)
		if err != nil && ctx.Err() != nil {
			return &fault.Error{Kind: fault.Interrupted, Code: "interrupted", Message: "The command was interrupted.", Err: err}
		}
		return err
	}
}

// loadConfig reads the configuration as the file has it.
func (a *app) loadConfig() (*config.Config, error) {
	return config.Load(config.Options{Path: a.configPath, Embedded: a.embedded, Env: os.LookupEnv})
}

// loadAgentConfig reads the configuration as an agent takes it that is started with this command's --addr or APIARY_ADDR.
func (a *app) loadAgentConfig() (*config.Config, error) { return a.agentConfig(os.LookupEnv) }

func (a *app) agentConfig(env func(string) (string, bool)) (*config.Config, error) {
	o := config.Options{Path: a.configPath, Embedded: a.embedded, Env: env, Addr: a.getenv("APIARY_ADDR")}
	if a.addr != "" {
		o.Addr, o.AddrFrom = a.addr, "--addr"
	}
	return config.Load(o)
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// reference makes what a person typed a reference: a path to a file becomes file: with an absolute path, because the
// agent has another working folder.
func reference(arg string) (string, error) {
	path, isFile := strings.CutPrefix(arg, "file:")
	if !isFile {
		looksLikePath := strings.HasPrefix(arg, "/") || strings.HasPrefix(arg, "./") || strings.HasPrefix(arg, "../")
		scheme, _, hasScheme := strings.Cut(arg, ":")
		if !looksLikePath && (hasScheme && !strings.ContainsAny(scheme, "/.") || !strings.HasSuffix(arg, ".gguf")) {
			return arg, nil
		}
		path = arg
		if _, err := os.Stat(path); err != nil && !looksLikePath {
			return arg, nil
		}
	}
	if home, ok := strings.CutPrefix(path, "~/"); ok {
		dir, err := os.UserHomeDir()
		if err != nil {
			return "", fault.New(fault.Invalid, "no_home", "%s cannot be found because the home folder is not known; write the whole path.", arg)
		}
		path = dir + "/" + home
	}
	if path == "" {
		return "", fault.New(fault.Invalid, "bad_reference", "A path is missing after \"file:\"; write for example file:./model.gguf.")
	}
	abs, err := absolute(path)
	if err != nil {
		return "", err
	}
	return "file:" + abs, nil
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version", Args: argCount(0, 0, ""), RunE: func(*cobra.Command, []string) error {
		if a.json {
			return a.printJSON(map[string]string{"version": a.version, "go": goVersion(), "platform": platform()})
		}
		_, err := fmt.Fprintf(a.out, "apiary %s (%s, %s)\n", a.version, goVersion(), platform())
		return err
	}}
}

// sortedKeys returns the keys of m in order.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
