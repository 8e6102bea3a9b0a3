package vendor

import "context"

// Provisioner resolves engine references to plans. Methods may be called concurrently.
type Provisioner interface {
	// Info describes the plugin. It is pure and never changes while the plugin runs.
	Info() Info
	// Supports reports whether the provisioner can plan ref, without I/O.
	Supports(ref string) bool
	// Plan says which files and steps install the engine ref on platform.
	Plan(ctx context.Context, req PlanRequest) (*Plan, error)
}

// Lister is a Provisioner that can say which engines it offers. Its Info has FeatureList.
type Lister interface {
	List(ctx context.Context, req ListRequest) ([]EngineChoice, error)
}

// Launcher is a Provisioner of engines that are servers of their own. Its Info has FeatureLaunch.
type Launcher interface {
	// Launch says how to start an installed engine. It is pure: it gets all paths and returns a command. An engine that is no
	// program of its own, but a library for the native worker, has a spec without a Path. Before an engine is published the core
	// runs its program with the one argument --version, in the environment of its spec, and it must end well.
	Launch(ctx context.Context, req LaunchRequest) (*LaunchSpec, error)
}

// Pinner is a Provisioner that can tell, without I/O, to which canonical reference a reference leads on a platform. Its Info
// has FeaturePin. The core asks it before it plans, so that an engine that is installed already needs no network.
type Pinner interface {
	// Pin returns the Reference and the Platform that Plan would give, or an error when ref cannot be planned there. The
	// reference is empty where ref leaves open what only Plan can find out, such as the newest version.
	Pin(ref string, p Platform) (reference, platform string, err error)
}

// PlanRequest asks for an engine.
type PlanRequest struct {
	Reference string   `json:"reference,omitempty"`
	Platform  Platform `json:"platform,omitzero"`
}

// ListRequest asks for the engines that a platform can use.
type ListRequest struct {
	Platform Platform `json:"platform,omitzero"`
	Limit    int32    `json:"limit,omitempty"` // most choices wanted
}

// EngineChoice is one engine that a provisioner offers.
type EngineChoice struct {
	Reference   string `json:"reference,omitempty"`
	Description string `json:"description,omitempty"` // one line
	SizeBytes   int64  `json:"sizeBytes,string,omitempty"`
}

// Plan is how to install one engine build: files to fetch and steps to take with them, executed by the core without a
// shell, inside a new folder that becomes visible only when all steps and the self-test have passed.
type Plan struct {
	Reference string `json:"reference,omitempty"` // canonical, pinned, of a scheme of the provisioner: {platform} filled in, exact version; at most 1024 bytes
	Name      string `json:"name,omitempty"`      // "llama.cpp"
	Version   string `json:"version,omitempty"`
	Platform  string `json:"platform,omitempty"` // "linux-x64-cuda"
	Files     []File `json:"files,omitempty"`
	Steps     []Step `json:"steps,omitempty"`
	InPlace   string `json:"inPlace,omitempty"` // path: the engine stays in this absolute folder; Files is empty and Steps only expect
}

// Step is one action. Exactly one field is set.
type Step struct {
	Extract *ExtractStep `json:"extract,omitempty"`
	Link    *LinkStep    `json:"link,omitempty"`
	Run     *RunStep     `json:"run,omitempty"`
	Expect  *ExpectStep  `json:"expect,omitempty"`
}

// ExtractStep unpacks a fetched archive (.tgz, .tar.gz, .zip, .whl) below Into, taking the members below Prefix: files, folders, and links
// to what is unpacked as well.
type ExtractStep struct {
	File       string `json:"file,omitempty"`            // File.Path of the archive
	Prefix     string `json:"prefix,omitempty"`          // "package/bins/linux-x64/": stripped from the names; members outside it are left out
	Into       string `json:"into,omitempty"`            // relative; "." is the engine folder
	MaxBytes   int64  `json:"maxBytes,string,omitempty"` // unpacked, in all
	MaxEntries int    `json:"maxEntries,omitempty"`
}

// LinkStep makes Name a relative symbolic link to Target, both inside the engine folder. Match may be given instead of
// Target: a glob that must match exactly one file; one that begins with **/ looks into every folder.
type LinkStep struct {
	Name   string `json:"name,omitempty"`
	Target string `json:"target,omitempty"`
	Match  string `json:"match,omitempty"`
}

// RunStep runs one program of the operator's list of allowed tools inside the engine folder, with a clean environment. It
// needs the grant "run": whoever may run a compiler may run anything. In Args and Env, {engine} stands for the absolute path of
// the engine folder, which has another name once the engine is published, and {jobs} for the number of processors.
type RunStep struct {
	Tool           string            `json:"tool,omitempty"` // a name without slashes, such as "cmake"
	Args           []string          `json:"args,omitempty"`
	Env            map[string]string `json:"env,omitempty"`            // PATH, HOME, TMPDIR, LANG and what begins with LD_ are the core's
	Dir            string            `json:"dir,omitempty"`            // relative; "": the engine folder
	Network        bool              `json:"network,omitempty"`        // it needs one; otherwise it gets none where the system can withhold it
	TimeoutSeconds int32             `json:"timeoutSeconds,omitempty"` // 0: 30 minutes; at most 6 hours
}

// ExpectStep fails the installation with Message unless Path exists as a regular file.
type ExpectStep struct {
	Path       string `json:"path,omitempty"`
	Executable bool   `json:"executable,omitempty"`
	Message    string `json:"message,omitempty"`
}

// LaunchRequest asks how to start an installed engine.
type LaunchRequest struct {
	Reference string   `json:"reference,omitempty"` // canonical, as the plan has it
	EngineDir string   `json:"engineDir,omitempty"` // absolute
	Model     string   `json:"model,omitempty"`     // absolute path of the weights, or of the folder that holds them
	ModelName string   `json:"modelName,omitempty"` // under which the engine is to serve it
	Devices   []string `json:"devices,omitempty"`   // "cuda0"
	Context   int32    `json:"context,omitempty"`   // tokens; 0: the engine's choice
	Slots     int32    `json:"slots,omitempty"`     // requests at once; 0: the engine's choice
	Threads   int32    `json:"threads,omitempty"`   // 0: the engine's choice
}

// LaunchSpec is how to start an engine. {port} in Args and Env stands for the port that the core chose.
type LaunchSpec struct {
	Path                string            `json:"path,omitempty"` // of the program, relative to the engine folder
	Args                []string          `json:"args,omitempty"`
	Env                 map[string]string `json:"env,omitempty"`
	Protocol            string            `json:"protocol,omitempty"`  // ProtocolOpenAI
	ReadyPath           string            `json:"readyPath,omitempty"` // answers 200 when the model is loaded: "/health"
	ReadyTimeoutSeconds int32             `json:"readyTimeoutSeconds,omitempty"`
}

// ProtocolOpenAI is the protocol of engines that serve the OpenAI API over HTTP.
const ProtocolOpenAI = "openai_http"
