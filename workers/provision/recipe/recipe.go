// Package recipe is the provisioner of engines that are built on this machine: recipe:/path/to/FILE.hcl names a file that says which
// archives to fetch, by address and digest, and which steps to take with them. The provisioner carries nothing out: it turns the
// recipe into a plan, whose programs the core runs where the operator allows them.
//
// A recipe is a file in HCL, as the rest of what a user writes. It reaches this package as JSON, so that it needs no HCL.
package recipe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Scheme is the scheme of the references.
const Scheme = "recipe"

// digits is how much of a recipe's digest a canonical reference holds, in hex.
const digits = 16

// Provisioner plans engines from recipes.
type Provisioner struct {
	read func(path string) ([]byte, error)
}

// New returns the provisioner. Read gives the recipe in a file as one JSON object.
func New(read func(path string) ([]byte, error)) *Provisioner { return &Provisioner{read} }

// Info implements vendor.Provisioner.
func (p *Provisioner) Info() vendor.Info {
	return vendor.Info{
		Name: "recipe", Version: "1.0.0", Kind: vendor.KindProvisioner, Schemes: []string{Scheme}, Features: []string{vendor.FeatureLaunch},
		ContractMinor: vendor.ContractMinor, Description: "Engines built on this machine by the steps of a file.",
	}
}

// Supports implements vendor.Provisioner.
func (p *Provisioner) Supports(ref string) bool { return strings.HasPrefix(ref, Scheme+":") }

// recipe is what a file says.
type recipe struct {
	Name    string        `json:"name"`
	Version string        `json:"version"`
	Files   []file        `json:"files"`
	Steps   []vendor.Step `json:"steps"`
	Launch  *launch       `json:"launch,omitempty"`
}

type file struct {
	Path     string `json:"path"`
	URL      string `json:"url"`
	SHA256   string `json:"sha256"`
	Platform string `json:"platform,omitempty"` // "linux-amd64"; empty: every one
}

type launch struct {
	Path           string            `json:"path"`
	Args           []string          `json:"args,omitempty"`
	Env            map[string]string `json:"env,omitempty"`
	Ready          string            `json:"ready,omitempty"`
	TimeoutSeconds int32             `json:"timeoutSeconds,omitempty"`
}

func fail(code, message string) error {
	return &vendor.Error{Kind: vendor.KindInvalid, Code: code, Param: "reference", Message: message}
}

// open reads the recipe that ref names, for a platform, and returns its canonical reference.
func (p *Provisioner) open(ref string, on vendor.Platform) (*recipe, string, error) {
	at, want := strings.TrimPrefix(ref, Scheme+":"), ""
	if i := strings.LastIndexByte(at, '@'); i >= 0 && len(at)-i-1 == digits && strings.Trim(at[i+1:], "0123456789abcdef") == "" {
		at, want = at[:i], at[i+1:]
	}
	if !path.IsAbs(at) || strings.ContainsRune(at, 0) {
		return nil, "", fail("invalid_reference", "\""+at+"\" is not an absolute path; write recipe:/path/to/the/recipe.hcl.")
	}
	at = path.Clean(at)
	text, err := p.read(at)
	if err != nil {
		return nil, "", err
	}
	var r recipe
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, "", fail("recipe_invalid", "The recipe "+at+" cannot be read; correct it.")
	}
	// In one form, whatever the spelling of the file was.
	if text, err = json.Marshal(r); err != nil {
		return nil, "", err
	}
	sum := sha256.Sum256(text)
	got := hex.EncodeToString(sum[:])[:digits]
	if want != "" && want != got {
		return nil, "", fail("recipe_changed", "The recipe "+at+" is not the one any more that the engine @"+want+" was built by; install recipe:"+at+" to build it as it is now.")
	}
	filled := strings.NewReplacer("{platform}", on.OS+"-"+on.Arch, "{os}", on.OS, "{arch}", on.Arch).Replace(string(text))
	r = recipe{}
	if err := json.Unmarshal([]byte(filled), &r); err != nil {
		return nil, "", fail("recipe_invalid", "The recipe "+at+" cannot be read; correct it.")
	}
	return &r, Scheme + ":" + at + "@" + got, nil
}

// Plan implements vendor.Provisioner.
func (p *Provisioner) Plan(_ context.Context, req vendor.PlanRequest) (*vendor.Plan, error) {
	r, ref, err := p.open(req.Reference, req.Platform)
	if err != nil {
		return nil, err
	}
	plan := &vendor.Plan{Reference: ref, Name: r.Name, Version: r.Version, Platform: req.Platform.OS + "-" + req.Platform.Arch, Steps: r.Steps}
	for _, f := range r.Files {
		if f.Platform != "" && f.Platform != plan.Platform {
			continue
		}
		u, err := url.Parse(f.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
			return nil, fail("recipe_invalid", "The file \""+f.Path+"\" of the recipe "+ref+" has no address of https:// that can be used; correct its url.")
		}
		sha := strings.ToLower(f.SHA256)
		if len(sha) != 64 || strings.Trim(sha, "0123456789abcdef") != "" {
			return nil, fail("recipe_invalid", "The file \""+f.Path+"\" of the recipe "+ref+" has no sha256 of 64 hexadecimal digits; give it, as `sha256sum` prints it.")
		}
		plan.Files = append(plan.Files, vendor.File{
			Path: f.Path, Role: vendor.RoleArchive, Size: -1, Digests: vendor.Digests{SHA256: sha}, Sources: []vendor.Source{{URL: u.String(), Ranges: true}},
		})
	}
	if len(plan.Files) == 0 && len(r.Files) > 0 {
		return nil, &vendor.Error{Kind: vendor.KindNotFound, Code: "no_build", Message: "The recipe " + ref + " has no file for " + plan.Platform + "; add a block file for it."}
	}
	if len(plan.Files) == 0 && !runs(r.Steps) {
		return nil, fail("recipe_invalid", "The recipe "+ref+" makes nothing: it has neither a block file nor a block run; add what the engine is made of.")
	}
	return plan, nil
}

// runs reports whether a program is among steps: what it makes needs nothing that is fetched.
func runs(steps []vendor.Step) bool {
	for _, st := range steps {
		if st.Run != nil {
			return true
		}
	}
	return false
}

// Launch implements vendor.Launcher. It reads the recipe again, which must be the one by which the engine was built.
func (p *Provisioner) Launch(_ context.Context, req vendor.LaunchRequest) (*vendor.LaunchSpec, error) {
	r, _, err := p.open(req.Reference, vendor.Platform{OS: runtime.GOOS, Arch: runtime.GOARCH})
	if err != nil || r.Launch == nil {
		return &vendor.LaunchSpec{}, err
	}
	fill := strings.NewReplacer(
		"{engine}", req.EngineDir, "{model}", req.Model, "{model_name}", req.ModelName, "{devices}", strings.Join(req.Devices, ","),
		"{context}", strconv.Itoa(int(req.Context)), "{slots}", strconv.Itoa(int(req.Slots)), "{threads}", strconv.Itoa(int(req.Threads)),
	).Replace
	l := r.Launch
	spec := &vendor.LaunchSpec{Path: l.Path, Env: map[string]string{}, Protocol: vendor.ProtocolOpenAI, ReadyPath: l.Ready, ReadyTimeoutSeconds: l.TimeoutSeconds}
	if spec.ReadyPath == "" {
		spec.ReadyPath = "/health"
	}
	for _, a := range l.Args {
		spec.Args = append(spec.Args, fill(a))
	}
	for name, value := range l.Env {
		spec.Env[name] = fill(value)
	}
	return spec, nil
}
