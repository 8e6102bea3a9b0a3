// Package config reads Apiary's configuration: it finds the HCL file, fills in defaults, validates everything at once with
// diagnostics that show file, line and text, and prints the effective configuration without its secrets. It also keeps the
// credential store under APIARY_HOME/secrets. It starts nothing and decides nothing that needs a network.
//
// Secrets (rule S2): an unset variable is null and leaves the option out; an empty or blank value is an error, never
// "authentication off". The 32-byte floor of secret.Check is for secrets that Apiary itself would mint; a credential of a
// foreign service is as long as that service made it, so for those only emptiness is refused.
package config

import (
	"log/slog"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

// Roles of an agent.
const (
	RoleQueen = "queen"
	RoleHive  = "hive"
)

// Adapters that this build has, in the order in which messages name them.
const (
	AdapterNative = "native" // llama.cpp in the worker's own process
	AdapterEcho   = "echo"   // no model: answers with what was asked
)

// Config is the effective configuration: every option has a value.
type Config struct {
	Path        string // of the file that was read; "" when the embedded one was used
	Home        string // absolute data folder: APIARY_HOME, else agent.data_dir, else the platform's
	AddrFrom    string // where queen.listen comes from when not from the file: "--addr" or "APIARY_ADDR"; "" otherwise
	Agent       Agent
	Gossip      Gossip
	Queen       Queen
	Hive        Hive
	Plugins     []Plugin
	foreign     bool         // there is a block plugin
	Vendors     []Vendor     // those of this build, in the file's order, then the rest
	Provisioner Provisioners // settings of the provisioners of this build
	Workers     []Worker     // the file's, in its order, then the built-in kinds that it does not name; the first is the default
	Models      []Model      // in the file's order
	Deployments []Deployment // in the file's order
	Credentials []Credential // of the file; those without a value are left out
}

// Agent is the block agent.
type Agent struct {
	Name      string   // host name unless set
	Roles     []string // RoleQueen, RoleHive
	RolesSet  bool     // the file sets roles
	DataDir   string   // Config.Home, once loaded
	Labels    []string // for the conditions of deployments
	Advertise string   // host or address at which other machines reach this agent; "": the listen addresses
	Log       Log
}

// Has reports whether the agent has role.
func (a Agent) Has(role string) bool {
	for _, r := range a.Roles {
		if r == role {
			return true
		}
	}
	return false
}

// Log is the block agent.log.
type Log struct {
	Level  slog.Level
	Format string // "auto", "text" or "json"
}

// Gossip is the block gossip.
type Gossip struct {
	Bind    string        // host:port, for TCP and UDP
	BindSet bool          // the file sets bind; otherwise an agent that finds the port taken uses a free one
	Join    []string      // host:port, dns:host[:port]
	Rejoin  time.Duration // between two tries to join again who is missing, ± a third
	Key     secret.Secret // "": one that follows from the cluster key, on loopback only
}

// Queen is the block queen.
type Queen struct {
	Listen    string   // host:port; APIARY_ADDR, where Options.Addr gives it, wins
	Hives     []string // base URLs of hive APIs
	HivesSet  bool     // the file sets hives
	Heartbeat Heartbeat
	Detection Detection
	Retry     Retry
	Outlier   Outlier
	Timeouts  Timeouts
	Watchdog  Watchdog
	Limits    Limits
	Placement Placement
}

// Heartbeat is the block queen.heartbeat.
type Heartbeat struct {
	Interval time.Duration // between beats of a worker and between polls of a hive, ± 10 %
}

// Detection is the block queen.detection: monotonic ages since the last beat.
type Detection struct {
	Stale        time.Duration
	Suspect      time.Duration
	Down         time.Duration
	Lost         time.Duration
	Forget       time.Duration
	SelfPause    time.Duration // a tick later than this shifts every age by the delay
	StartupGrace time.Duration // after the start nothing becomes down
	ReadyAfter   time.Duration // a queen is ready then, also with hives that did not report

	FlapChanges int // of a hive that goes away or comes back
	FlapWindow  time.Duration
	FlapHold    time.Duration // it is suspect for so long
	BrakeShare  float64       // of the hives; more that fall silent at once are not believed
	BrakeWindow time.Duration
	BrakeHives  int // at least
}

// Retry is the block queen.retry: sending a request again that cannot have been executed.
type Retry struct {
	Attempts  int           // more attempts after the first
	Budget    float64       // share of the active requests that may be retries
	BudgetMin int           // retries that are always allowed
	Poison    time.Duration // a request that ended two workers is refused for this long
}

// Outlier is the block queen.outlier: passive ejection of workers.
type Outlier struct {
	Failures    int           // in a row
	Ejection    time.Duration // times the number of ejections in a row
	MaxEjection time.Duration
	SlowStart   time.Duration
}

// Timeouts is the block queen.timeouts.
type Timeouts struct {
	FirstToken time.Duration
	Stall      time.Duration // between tokens
	Write      time.Duration // to a client that does not read
}

// Watchdog is the block queen.watchdog: workers that have work and make no progress.
type Watchdog struct {
	Stall  time.Duration // before a worker is asked for one token
	Answer time.Duration // it has for that token, twice
}

// Limits is the block queen.limits.
type Limits struct {
	Body          contract.Bytes
	QueuePerModel int
	QueuePerKey   int
	QueueWait     time.Duration
	LoadWait      time.Duration
	Connections   int
}

// Placement is the block queen.placement: the waits before workers are added, ended or replaced.
type Placement struct {
	IdleTTL   time.Duration // of workers that requests started; 0: never
	ScaleUp   time.Duration
	Settle    time.Duration
	ScaleDown time.Duration
	Warm      time.Duration
	EvictIdle time.Duration
}

// Hive is the block hive.
type Hive struct {
	Listen      string // host:port
	ListenSet   bool   // the file sets listen; otherwise Load makes the port 0, a free one, where Options.Addr moves the queen
	WorkerPorts [2]int // first and last
	Spawn       Spawn
	Restart     Restart
	Kill        Kill
	Drain       time.Duration
	OrphanTTL   time.Duration // 0: never
	Mirrors     []string      // base URLs that downloads may lead to although they are private or plain http
	Reserve     Reserve
}

// Spawn is the block hive.spawn: the time that a worker has to become ready, restarted by progress.
type Spawn struct {
	Ready       time.Duration
	ReadyPerGiB time.Duration // added for each GiB of the model
	ReadyMax    time.Duration // however much progress there is
}

// Restart is the block hive.restart.
type Restart struct {
	Backoff []time.Duration // before the first, second, … start; the last repeats
	Reset   time.Duration   // healthy for this long: start over
	Crashes int             // in Window: crash loop
	Window  time.Duration
	Hold    time.Duration // no start after a crash loop
	OOM     int           // restarts after the first death for want of memory
}

// Kill is the block hive.kill.
type Kill struct {
	Term time.Duration // after SIGTERM
	Kill time.Duration // after SIGKILL
}

// Reserve is the block hive.reserve.
type Reserve struct {
	Memory contract.Bytes
	Disk   contract.Bytes
}

// Vendor is a block vendor "NAME".
type Vendor struct {
	Name    string
	Enabled bool
	// The fields below are of the vendor huggingface.
	Endpoint   string            // base URL without a slash at its end; "": the public hub
	Credential secret.Secret     // goes to the host of Endpoint only; "": none
	Offline    bool              // nothing is asked
	From       map[string]string // by option: the environment variable that its value comes from
	// Registry is the URL of the registry of the vendors pypi and ollama; "": the one that pip is configured with, and Ollama's.
	Registry string
}

// Names of vendors that have settings.
const (
	VendorHub    = "huggingface" // of hf: references
	VendorPyPI   = "pypi"
	VendorOllama = "ollama"
	VendorURL    = "url"
)

// Provisioners holds the blocks provisioner "NAME".
type Provisioners struct {
	NPM    NPM
	PyPI   PyPI
	GitHub GitHub
	Recipe Recipe
}

// NPM is the block provisioner "npm".
type NPM struct {
	Registry string // base URL; "": what npm itself is configured with
}

// PyPI is the block provisioner "pypi".
type PyPI struct {
	Registry string // URL of the simple index; "": that of the vendor "pypi"
}

// GitHub is the block provisioner "github".
type GitHub struct {
	Endpoint   string            // URL of the API, without a slash at its end; "": GitHub's own
	Credential secret.Secret     // goes to the host of Endpoint only; "": none
	From       map[string]string // by option: the environment variable that its value comes from
}

// Recipe is the block provisioner "recipe".
type Recipe struct {
	Tools []string // programs that recipes may run
}

// Worker is a block worker "NAME": a kind of worker.
type Worker struct {
	Name    string
	Adapter string
	Source  string // engine reference; "" for echo
	Devices []string
	Context int // tokens; 0: what fits
	Slots   int // 0: the worker's default
	Threads int // 0: free cores
	Env     map[string]string
	Args    []string
}

// Model is a block model "NAME".
type Model struct {
	Name    string
	Source  string // reference
	Aliases []string
}

// Credential is a block credential "NAME", or an entry of the credential store.
type Credential struct {
	Name  string
	Value secret.Secret
	Hosts []string
}
