package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/apiary-dev/apiary/plugins/toolchain"
)

// toolchainCommands are the commands of scripts that build plugins: `toolchains` makes the compilers of this machine, with what they
// have in their caches, usable in a script, where HOME is another folder. VENV is a virtual environment with what plugins in Python need.
func toolchainCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){"toolchains": scriptToolchains}
}

func scriptToolchains(ts *testscript.TestScript, _ bool, _ []string) {
	for name, value := range toolchainEnv() {
		ts.Setenv(name, value)
	}
}

// toolchainEnv is what compilers need besides PATH. The Go modules that a plugin needs are those of Apiary itself, so they are in the
// cache, and nothing is fetched.
func toolchainEnv() map[string]string {
	env := map[string]string{"VENV": pythonEnv(), "GOPROXY": "off", "GOTOOLCHAIN": "local"}
	if out, err := exec.Command("go", "env", "GOCACHE", "GOMODCACHE").Output(); err == nil {
		if lines := strings.Fields(string(out)); len(lines) == 2 {
			env["GOCACHE"], env["GOMODCACHE"] = lines[0], lines[1]
		}
	}
	home, _ := os.UserHomeDir()
	for variable, folder := range map[string]string{"CARGO_HOME": ".cargo", "RUSTUP_HOME": ".rustup"} {
		if v := os.Getenv(variable); v != "" {
			env[variable] = v
		} else if path := filepath.Join(home, folder); exists(path) {
			env[variable] = path
		}
	}
	for _, variable := range []string{"CLANG", "ASC"} {
		if v := os.Getenv(variable); v != "" {
			env[variable] = v
		}
	}
	return env
}

// pythonEnv is the virtual environment that `make test-parts` makes.
func pythonEnv() string {
	cache, _ := os.UserCacheDir()
	return filepath.Join(cache, "apiary-test", "python")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// toolchainWorks reports whether plugins in a language can be built here without fetching anything.
func toolchainWorks(language string) bool {
	if language == string(toolchain.Python) {
		return exists(filepath.Join(pythonEnv(), "ready"))
	}
	s := &toolchain.Sources{Dir: filepath.Join("..", "..", "examples", "plugin-assemblyscript"), Language: toolchain.Language(language)}
	if language == string(toolchain.AssemblyScript) && !exists(filepath.Join(s.Dir, "node_modules")) && os.Getenv("ASC") == "" {
		return false
	}
	return s.Missing() == nil
}
