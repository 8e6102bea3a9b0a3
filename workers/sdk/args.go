package sdk

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"time"

	"github.com/apiary-dev/apiary/core/process"
)

// Config holds the arguments of the worker contract.
type Config struct {
	WorkerID   string
	Model      string // canonical pinned id
	ModelPath  string // file, or first shard; empty for a worker that needs none
	EngineDir  string // folder of the engine's libraries
	Device     string // "cpu0", or several joined by commas
	Port       int    // 0: any free port
	Address    string // host to listen on
	QueenURLs  []string
	HiveID     string
	SpawnKey   string
	Generation int64
	Context    int           // tokens; 0: the engine decides
	Slots      int           // requests at once; 0: the engine decides
	Threads    int           // 0: the engine decides
	Landlock   int           // version of Landlock's interface that the hive put in force for this process; 0: none
	OrphanTTL  time.Duration // without an answer of any queen, until an idle worker ends itself; 0: never
	Drain      time.Duration // bound on open requests after SIGTERM
	LogPath    string        // worker.log, which descriptors 1 and 2 append to; empty: nothing is rotated
	Log        *slog.Logger
}

// Defaults of arguments.
const (
	defaultOrphanTTL = 10 * time.Minute
	defaultDrain     = 2 * time.Minute
)

// parse reads the arguments of the worker contract and those of impl. It returns the descriptor of the secret, too. Help and
// flag errors are written to out.
func parse(args []string, impl Implementation, out io.Writer) (Config, int, error) {
	c := Config{}
	var fd int
	fs := flag.NewFlagSet(impl.Name, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.StringVar(&c.WorkerID, "worker-id", "", "`ID` of this worker (required)")
	fs.StringVar(&c.Model, "model", "", "canonical pinned `ID` of the model (required)")
	fs.StringVar(&c.ModelPath, "model-path", "", "`FILE` of the model")
	fs.StringVar(&c.EngineDir, "engine-dir", "", "`FOLDER` of the engine's libraries")
	fs.StringVar(&c.Device, "device", "cpu0", "`DEVICES` to run on, joined by commas")
	fs.IntVar(&c.Port, "port", 0, "`PORT` to listen on; 0 is any free one")
	fs.StringVar(&c.Address, "address", "127.0.0.1", "`HOST` to listen on")
	fs.Func("queen-url", "base `URL` of a queen; may be given several times", func(v string) error {
		if len(c.QueenURLs) >= maxQueens {
			return fmt.Errorf("at most %d queens can be given", maxQueens)
		}
		u, err := queenURL(v)
		c.QueenURLs = append(c.QueenURLs, u)
		return err
	})
	fs.StringVar(&c.HiveID, "hive-id", "", "node `ID` of the hive that started this worker")
	fs.StringVar(&c.SpawnKey, "spawn-key", "", "`KEY` under which the hive finds this worker again")
	fs.Int64Var(&c.Generation, "generation", 0, "`NUMBER` of the spawn under its key")
	fs.IntVar(&fd, "secret-fd", process.SecretFD, "`DESCRIPTOR` from which the worker's secret is read")
	fs.IntVar(&c.Context, "context", 0, "context length in `TOKENS`; 0 lets the engine decide")
	fs.IntVar(&c.Slots, "slots", 0, "`NUMBER` of requests that run at once; 0 lets the engine decide")
	fs.IntVar(&c.Threads, "threads", 0, "`NUMBER` of threads; 0 lets the engine decide")
	fs.IntVar(&c.Landlock, "landlock", 0, "`VERSION` of Landlock's interface that is in force for this process; 0 is none")
	fs.DurationVar(&c.OrphanTTL, "orphan-ttl", defaultOrphanTTL, "end when idle and no queen answered for this `TIME`; 0 is never")
	fs.DurationVar(&c.Drain, "drain", defaultDrain, "bound on the `TIME` that open requests get after SIGTERM")
	if impl.Flags != nil {
		impl.Flags(fs)
	}
	if err := fs.Parse(args); err != nil {
		if err == flag.ErrHelp {
			fmt.Fprintf(out, "Arguments of the %s worker:\n", impl.Name)
			fs.SetOutput(out)
			fs.PrintDefaults()
		}
		return c, 0, err
	}
	for _, e := range []struct {
		bad bool
		msg string
	}{
		{fs.NArg() > 0, fmt.Sprintf("unexpected argument %q; every argument of a worker has a name", fs.Arg(0))},
		{!workerID.MatchString(c.WorkerID), "--worker-id is required: up to 64 of a-z, 0-9, dot, dash and underscore, beginning with a letter or digit"},
		{c.Model == "", "--model is required: the pinned id of the model"},
		{!devices.MatchString(c.Device), fmt.Sprintf("--device %q is not a device list; write for example cpu0 or cuda0,cuda1", c.Device)},
		{c.Port < 0 || c.Port > 65535, "--port must be from 0 to 65535"},
		{c.Address == "", "--address must not be empty"},
		{fd < 3, "--secret-fd must be 3 or more: 0 to 2 are the standard descriptors"},
		{c.Generation < 0, "--generation must not be negative"},
		{c.Context < 0 || c.Slots < 0 || c.Threads < 0 || c.Landlock < 0, "--context, --slots, --threads and --landlock must not be negative"},
		{c.OrphanTTL < 0 || c.Drain < 0, "--orphan-ttl and --drain must not be negative"},
	} {
		if e.bad {
			return c, 0, fmt.Errorf("%s", e.msg)
		}
	}
	return c, fd, nil
}

var (
	workerID = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)
	devices  = regexp.MustCompile(`^[a-z]+[0-9]+(,[a-z]+[0-9]+)*$`)
)
