package cli

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/apiary-dev/apiary/core/testutil/freeport"
)

// TestScripts runs the command line as people do: each script has a data folder and an address of its own, and what it
// started is stopped at its end, where nothing may be left.
//
// Beside testscript's own commands: `apiary CODE ARG…` runs apiary and wants that exit code; `http METHOD PATH STATUS
// [BODY]` talks to the agent; `listen` takes the agent's port; `newaddress` changes it; `truncated SRC DST BYTES` cuts a file; `waitready`
// waits for the agent and `waitworkers N` for its workers; `samefield A B FIELD` compares two JSON outputs.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setupScript,
		Condition: func(name string) (bool, error) {
			switch name {
			case "engine":
				return engineDir() != "", nil
			case "npm":
				return npmWorks(), nil
			case "pip":
				return pipWorks(), nil
			case "rust", "as", "c", "python":
				return toolchainWorks(name), nil
			}
			return false, fmt.Errorf("unknown condition %q", name)
		},
		Cmds: merged(keyCommands(), merged(merged(merged(hubCommands(), registryCommands()), merged(pluginCommands(), toolchainCommands())), map[string]func(*testscript.TestScript, bool, []string){
			"apiary": scriptApiary, "http": scriptHTTP, "listen": scriptListen, "truncated": scriptTruncated,
			"waitready": scriptWaitReady, "waitworkers": scriptWaitWorkers, "samefield": scriptSameField, "newaddress": scriptNewAddress, "hangup": scriptHangup,
		})),
	})
}

func merged[V any](a, b map[string]V) map[string]V {
	maps.Copy(a, b)
	return a
}

func setupScript(e *testscript.Env) error {
	addr, err := freeport.Address()
	if err != nil {
		return err
	}
	home := filepath.Join(e.WorkDir, "apiary")
	model, err := filepath.Abs("../../vendors/builtin/models/stories260k.gguf")
	if err != nil {
		return err
	}
	e.Setenv("PATH", built+string(os.PathListSeparator)+os.Getenv("PATH"))
	e.Setenv("HOME", filepath.Join(e.WorkDir, "user"))
	e.Setenv("REAL_HOME", os.Getenv("HOME"))
	e.Setenv("APIARY_HOME", home)
	e.Setenv("APIARY_ADDR", addr)
	e.Setenv("NO_COLOR", "1")
	e.Setenv("ENGINE", engineDir())
	e.Setenv("MODEL", model)
	e.Values[hubKey{}] = &scriptHubs{}
	for _, name := range []string{"NPM_CONFIG_REGISTRY", "npm_config_registry", "NPM_CONFIG_USERCONFIG", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "VIRTUAL_ENV", "SSL_CERT_FILE", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"} {
		if v, ok := os.LookupEnv(name); ok {
			e.Setenv(name, v)
		}
	}
	t := e.T()
	e.Defer(func() {
		homes, err := filepath.Glob(filepath.Join(e.WorkDir, "*", "run", "lock"))
		if err != nil {
			t.Fatal(err)
		}
		for _, lock := range homes {
			if err := stopHome(filepath.Dir(filepath.Dir(lock))); err != nil {
				t.Fatal(err)
			}
		}
	})
	return nil
}

// npmWorks reports whether npm can tell about a package, which is what the npm provisioner needs.
func npmWorks() bool {
	path, err := exec.LookPath("npm")
	if err != nil {
		return false
	}
	cmd := exec.Command(path, "view", "@node-llama-cpp/linux-x64@3.21.1", "version", "--fetch-retries=0", "--fetch-timeout=15000")
	out, err := cmd.Output()
	return err == nil && strings.Contains(string(out), "3.21.1")
}

func scriptApiary(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: apiary CODE ARG…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec("apiary", args[1:]...); err != nil {
		exit, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("apiary: %v", err)
		}
		code = exit.ExitCode()
	}
	if code != want {
		ts.Fatalf("apiary %s ended with exit code %d, not %d", strings.Join(args[1:], " "), code, want)
	}
}

func scriptHTTP(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 || len(args) > 4 {
		ts.Fatalf("usage: http METHOD PATH STATUS [BODY]")
	}
	var body io.Reader
	if len(args) == 4 {
		body = strings.NewReader(args[3])
		if path, ok := strings.CutPrefix(args[3], "@"); ok {
			body = strings.NewReader(ts.ReadFile(path))
		}
	}
	req, err := http.NewRequest(args[0], "http://"+ts.Getenv("APIARY_ADDR")+args[1], body)
	ts.Check(err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if b, err := os.ReadFile(filepath.Join(ts.Getenv("APIARY_HOME"), "secrets", "admin.key")); err == nil && !strings.HasPrefix(args[1], "/v1/") {
		req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(b)))
	}
	resp, err := (&http.Client{Timeout: 30 * time.Second}).Do(req)
	ts.Check(err)
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
	if got := strconv.Itoa(resp.StatusCode); got != args[2] {
		ts.Fatalf("%s %s answered %s, not %s", args[0], args[1], got, args[2])
	}
}

func scriptListen(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", ts.Getenv("APIARY_ADDR"))
	ts.Check(err)
	s := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Second}
	go func() { _ = s.Serve(l) }()
	ts.Defer(func() { _ = s.Close() })
}

func scriptTruncated(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: truncated SRC DST BYTES")
	}
	n, err := strconv.Atoi(args[2])
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), b[:n], 0o600))
}

func scriptWaitReady(ts *testscript.TestScript, _ bool, _ []string) {
	url := "http://" + ts.Getenv("APIARY_ADDR") + "/readyz"
	waitUntil(ts, func() bool {
		resp, err := http.Get(url)
		if err != nil {
			return false
		}
		defer func() { _ = resp.Body.Close() }()
		return resp.StatusCode == http.StatusOK
	}, "the agent is not ready")
}

func scriptWaitWorkers(ts *testscript.TestScript, _ bool, args []string) {
	waitUntil(ts, func() bool {
		ts.Check(ts.Exec("apiary", "worker", "list", "--json"))
		return strconv.Itoa(strings.Count(ts.ReadFile("stdout"), `"liveness": "alive"`)) == args[0]
	}, "the workers are not heard")
}

func waitUntil(ts *testscript.TestScript, done func() bool, complaint string) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if done() {
			return
		}
	}
	ts.Fatalf("%s", complaint)
}

// scriptSameField compares the first value of a field in two outputs.
func scriptSameField(ts *testscript.TestScript, _ bool, args []string) {
	field := regexp.MustCompile(`"` + args[2] + `": ([^,\n]+)`)
	a, b := field.FindString(ts.ReadFile(args[0])), field.FindString(ts.ReadFile(args[1]))
	if a == "" || a != b {
		ts.Fatalf("%s: %q before and %q after", args[2], a, b)
	}
}

func scriptNewAddress(ts *testscript.TestScript, _ bool, _ []string) {
	addr, err := freeport.Address()
	ts.Check(err)
	ts.Setenv("APIARY_ADDR", addr)
}
