package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/fakehub"
	"github.com/apiary-dev/apiary/core/testutil/ociregistry"
	"github.com/apiary-dev/apiary/plugins/process"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/huggingface"
	"github.com/apiary-dev/apiary/vendors/local"
	"github.com/apiary-dev/apiary/vendors/ollama"
	"github.com/apiary-dev/apiary/vendors/pypi"
	webaddress "github.com/apiary-dev/apiary/vendors/url"
	"github.com/apiary-dev/apiary/workers/provision/npm"
	"github.com/apiary-dev/apiary/workers/provision/path"
)

// A guest may have 4 MiB; what is left between the two is for the next version of the compiler.
const (
	maxGuest  = 4 << 20
	roomInOne = 64 << 10
)

// firstParty is a plugin of this repository with the server that it asks.
type firstParty struct {
	source string // folder below the repository's own
	plugin any    // as it is built in
	module bool   // it runs as a WASM module too
	config string
	refs   []string // to resolve, or to plan; the last one is an error
	search string
	grants []string
}

// parties starts the servers.
func parties(t *testing.T) []firstParty {
	body := []byte(strings.Repeat("model", 1000))
	sum := sha256.Sum256(body)
	digest := hex.EncodeToString(sum[:])
	hub := fakehub.New()
	t.Cleanup(hub.Close)
	hub.Add(fakehub.Repo{ID: "team/stories", Files: []fakehub.File{
		{Path: "README.md", Body: []byte("# x\n")}, {Path: "s-Q4_K_M.gguf", Body: body, LFS: true}, {Path: "s-Q8_0.gguf", Body: body, LFS: true}, {Path: "mmproj-F16.gguf", Body: body, LFS: true},
	}})
	registry := ociregistry.New()
	t.Cleanup(registry.Close)
	if _, err := registry.Push("library/stories", "latest", ociregistry.Layer{Kind: "template", Body: []byte("{{ .Prompt }}")}, ociregistry.Layer{Kind: "model", Body: body}); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/m.gguf":
			w.Header().Set("Accept-Ranges", "bytes")
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			_, _ = w.Write(body)
		case "/SHA256SUMS":
			_, _ = fmt.Fprintf(w, "%s  m.gguf\n", digest)
		case "/simple/story/":
			w.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
			_, _ = fmt.Fprintf(w, `{"meta":{"api-version":"1.1"},"name":"story","files":[{"filename":"story-1.0-py3-none-any.whl","url":"/f/story-1.0-py3-none-any.whl","hashes":{"sha256":%q},"size":9}]}`, digest)
		case "/@eng/linux-x64/1.2.3", "/@eng%2flinux-x64/1.2.3":
			_, _ = io.WriteString(w, `{"name":"@eng/linux-x64","version":"1.2.3","dist":{"tarball":"http://`+r.Host+`/t.tgz","integrity":"sha512-`+strings.Repeat("A", 86)+`=="}}`)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(web.Close)
	folder := t.TempDir()
	for name, content := range map[string]string{"m.gguf": "GGUF", "engine/libllama.so": "x", "engine/libggml.so": "x", "engine/libggml-base.so": "x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(folder, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host := func(u string) string { parsed, _ := url.Parse(u); return parsed.Host }
	at := host(web.URL)
	return []firstParty{
		{source: "vendors/huggingface", plugin: huggingface.New(), module: true, config: `{"endpoint":"` + hub.URL + `"}`, search: "stories", grants: []string{host(hub.URL)},
			refs: []string{"hf:team/stories", "hf:team/stories:Q8_0", "hf:team/nothing"}},
		{source: "vendors/ollama", plugin: ollama.New(), module: true, config: `{"registry":"` + registry.URL + `"}`, grants: []string{host(registry.URL)},
			refs: []string{"ollama:stories", "ollama:nothing"}},
		{source: "vendors/url", plugin: webaddress.New(), module: true, config: `{}`, grants: []string{at},
			refs: []string{web.URL + "/m.gguf", web.URL + "/m.gguf?checksum=file:SHA256SUMS", web.URL + "/none.gguf"}},
		{source: "vendors/pypi", plugin: pypi.New(), module: true, config: `{"registry":"` + web.URL + `/simple"}`, grants: []string{at}, refs: []string{"pypi:story", "pypi:none"}},
		{source: "vendors/local", plugin: local.New(), config: `{}`, refs: []string{"file:" + folder + "/m.gguf", "file:" + folder + "/none.gguf"}},
		{source: "workers/provision/npm", plugin: npm.New(), module: true, config: `{"registry":"` + web.URL + `"}`, grants: []string{at},
			refs: []string{"npm:@eng/{platform}@1.2.3", "npm:@eng/none@1.2.3"}},
		{source: "workers/provision/path", plugin: path.New(), config: `{}`, refs: []string{"path:" + folder + "/engine", "path:" + folder + "/none"}},
	}
}

// TestFirstPartyEverywhere: a plugin of this repository answers the same built in, as a process and as a WASM module in a process of its own.
func TestFirstPartyEverywhere(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	apiary := sync.OnceValue(func() string {
		to := filepath.Join(bin, "apiary")
		goBuild(t, root, to, ".")
		return to
	})
	for _, p := range parties(t) {
		t.Run(filepath.Base(p.source), func(t *testing.T) {
			services := func() vendor.Invoker {
				return sdk.HostDispatch(NewServices(ServicesOptions{
					Name: "p", Grants: Grants{HTTP: p.grants, Private: p.grants, Credentials: []string{"huggingface", "ollama", "url", "pypi", "npm"}},
					Credentials: func(string, string) (secret.Secret, error) { return "", nil }, Store: OpenStore(""), Log: slog.New(slog.DiscardHandler),
				}))
			}
			want := answersOf(t, sdk.Dispatch(p.plugin, sdk.HostClient(services())), p)
			program := filepath.Join(t.TempDir(), "plugin")
			goBuild(t, root, program, "./"+p.source+"/plugin")
			spec := process.Spec{Name: "p", Path: program, Store: filepath.Join(bin, "store"), Host: services(), Log: slog.New(slog.DiscardHandler)}
			compare(t, "process", startParty(t, spec, p), want)
			if !p.module {
				return
			}
			module := filepath.Join(t.TempDir(), "plugin.wasm")
			goBuild(t, root, module, "./"+p.source+"/plugin", "GOOS=wasip1", "GOARCH=wasm")
			raw, err := os.ReadFile(module)
			if err != nil {
				t.Fatal(err)
			}
			if len(raw) > maxGuest-roomInOne {
				t.Errorf("the module has %d bytes, and %d less than %d are possible", len(raw), roomInOne, maxGuest)
			}
			guestImports(t, root, "./"+p.source+"/plugin")
			spec.Path, spec.Host, spec.StartTimeout = apiary(), services(), time.Minute
			spec.Args = []string{"plugin-host", "--wasm", module, "--sha256", fmt.Sprintf("%x", sha256.Sum256(raw)), "--cache", filepath.Join(bin, "cache")}
			compare(t, "module", startParty(t, spec, p), want)
		})
	}
}

// goBuild builds a main package of this repository.
func goBuild(t *testing.T, root, to, pkg string, env ...string) {
	t.Helper()
	args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", to}
	if len(env) > 0 {
		args = append(args, "-buildmode=c-shared")
	}
	cmd := exec.Command("go", append(args, pkg)...)
	cmd.Dir, cmd.Env = root, append(append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS="), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", pkg, err, out)
	}
}

// guestImports wants nothing large in a module.
func guestImports(t *testing.T, root, pkg string) {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", pkg)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOFLAGS=")
	deps, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(deps)) {
		if dep == "regexp" || dep == "net" || dep == "net/http" || dep == "text/template" || strings.HasPrefix(dep, "google.golang.org/") || strings.HasPrefix(dep, "github.com/hashicorp/") {
			t.Errorf("%s as a module holds %s", pkg, dep)
		}
	}
}

func startParty(t *testing.T, spec process.Spec, p firstParty) map[string]string {
	t.Helper()
	on, err := process.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := on.Close(); err != nil {
			t.Error(err)
		}
	}()
	return answersOf(t, on, p)
}

// answersOf asks all that there is to ask. Errors are answers too.
func answersOf(t *testing.T, on vendor.Invoker, p firstParty) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	info, err := Info(ctx, on)
	if err != nil {
		t.Fatal(err)
	}
	schema, err := Schema(ctx, on)
	if err != nil {
		t.Fatal(err)
	}
	if err := Configure(ctx, on, p.config); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{"info": text(t, info, nil), "schema": text(t, schema, nil)}
	platform := vendor.Platform{OS: "linux", Arch: "amd64", Devices: []string{"cpu"}}
	for i, ref := range p.refs {
		var answer any
		var err error
		if info.Kind == vendor.KindVendor {
			answer, err = Vendor(on, info).Resolve(ctx, vendor.ResolveRequest{Reference: ref, Platform: platform})
		} else {
			answer, err = Provisioner(on, info).Plan(ctx, vendor.PlanRequest{Reference: ref, Platform: platform})
		}
		if last := i == len(p.refs)-1; (err != nil) != last {
			t.Errorf("%s: %v", ref, err)
		}
		out[ref] = text(t, answer, err)
	}
	if p.search != "" {
		found, err := Vendor(on, info).(vendor.Searcher).Search(ctx, vendor.SearchRequest{Query: p.search})
		if err != nil || len(found) == 0 {
			t.Errorf("search: %+v, %v", found, err)
		}
		out["search"] = text(t, found, err)
	}
	return out
}

func text(t *testing.T, v any, err error) string {
	t.Helper()
	if err != nil {
		v = err
	}
	raw, merr := json.Marshal(v)
	if merr != nil {
		t.Fatal(merr)
	}
	return string(raw)
}

func compare(t *testing.T, transport string, got, want map[string]string) {
	t.Helper()
	for what, w := range want {
		if got[what] != w {
			t.Errorf("as a %s, %s:\n got %s\nwant %s", transport, what, got[what], w)
		}
	}
}
