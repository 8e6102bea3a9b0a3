package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

// TestPluginReadmes runs every command that the READMEs about plugins name, in order and as they stand there, with other ports: that of
// examples in an empty folder, and that of each example in the folder that `apiary plugin new` makes of it.
func TestPluginReadmes(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("there is no bash to run the commands with")
	}
	t.Run("examples", func(t *testing.T) {
		t.Parallel()
		runReadme(t, filepath.Join("..", "..", "examples", "README.md"), t.TempDir(), engineDir() != "" && npmWorks())
	})
	for options, example := range map[string]string{
		"go": "plugin-go", "rust": "plugin-rust", "as": "plugin-assemblyscript", "c": "plugin-c", "python": "plugin-python", "go --kind provisioner": "provisioner-go",
	} {
		language, _, _ := strings.Cut(options, " ")
		t.Run(options, func(t *testing.T) {
			t.Parallel()
			if language != "go" && !toolchainWorks(language) {
				t.Skipf("there is no toolchain for %s", language)
			}
			dir := t.TempDir()
			out, err := script(t, dir, "apiary plugin new --lang "+options+" my-vendor")
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			folder := filepath.Join(dir, "my-vendor")
			original, err := os.ReadFile(filepath.Join("..", "..", "examples", example, "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(filepath.Join(folder, "README.md"))
			if err != nil || len(commands(string(text))) != len(commands(string(original))) || len(commands(string(text))) == 0 {
				t.Fatalf("the README has %d blocks of commands (%v)", len(commands(string(text))), err)
			}
			if language == "python" {
				if err := os.Symlink(pythonEnv(), filepath.Join(folder, ".venv")); err != nil {
					t.Fatal(err)
				}
			}
			runReadme(t, filepath.Join(folder, "README.md"), folder, false)
		})
	}
}

// commands are the blocks of a README that are to be typed into a shell.
func commands(readme string) []string {
	var out []string
	for _, m := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(readme, -1) {
		out = append(out, m[1])
	}
	return out
}

// withoutEngine is what takes the place of `apiary run MODEL`, which needs an engine: an agent, and the model. No process is left to the
// shell, whose $! stays as it was.
const withoutEngine = `(apiary agent >/dev/null 2>&1 &)
until apiary status >/dev/null 2>&1; do sleep 0.1; done
apiary model pull $1`

// runReadme runs the commands of a README in a folder. Where withModel is false nobody talks to the model.
func runReadme(t *testing.T, readme, dir string, withModel bool) {
	t.Helper()
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(commands(string(text)), "\n")
	if !withModel {
		all = regexp.MustCompile(`(?m)^apiary run (\S+).*$`).ReplaceAllString(all, withoutEngine)
	}
	for _, port := range []string{"127.0.0.1:7898", "127.0.0.1:7899"} {
		addr, err := freeport.Address()
		if err != nil {
			t.Fatal(err)
		}
		all = strings.ReplaceAll(all, port, addr)
	}
	home := filepath.Join(dir, ".home")
	t.Cleanup(func() {
		if !exists(filepath.Join(home, "run", "lock")) {
			return
		}
		if err := stopHome(home); err != nil {
			t.Error(err)
		}
	})
	// What was started in the background must not outlive a command that fails.
	out, err := script(t, dir, "set -eu\ntrap 'kill $(jobs -p) 2>/dev/null || true' EXIT\nset -x\n"+all)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(all, ":stories") && !regexp.MustCompile(`(?m)^model: [a-z-]+:stories.* · (verified|ready)`).MatchString(out) {
		t.Errorf("no model:\n%s", out)
	}
	if withModel && !regexp.MustCompile(`(?m)^model: .* · ready in .* on [a-z]+[0-9]+$`).MatchString(out) {
		t.Errorf("nobody served the model:\n%s", out)
	}
}

// script runs a script of bash as a user would, with nothing of apiary in the environment.
func script(t *testing.T, dir, text string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-c", text)
	cmd.Dir = dir
	env := map[string]string{"PATH": built + string(os.PathListSeparator) + os.Getenv("PATH"), "HOME": os.Getenv("HOME"), "NO_COLOR": "1"}
	for _, name := range []string{"NPM_CONFIG_REGISTRY", "npm_config_registry", "NPM_CONFIG_USERCONFIG", "SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"} {
		if v, ok := os.LookupEnv(name); ok {
			env[name] = v
		}
	}
	maps.Copy(env, toolchainEnv())
	for _, name := range slices.Sorted(maps.Keys(env)) {
		cmd.Env = append(cmd.Env, name+"="+env[name])
	}
	out := &bytes.Buffer{}
	log, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	// A file and no pipe: the agent that a command starts must not keep this test waiting.
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	if raw, readErr := os.ReadFile(log.Name()); readErr == nil {
		out.Write(raw)
	}
	if closeErr := log.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("it took too long: %w", err)
	}
	return out.String(), err
}
