package process

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/sandbox"
	"github.com/apiary-dev/apiary/plugins/sdk"
)

// TestHostilePlugin has a plugin try what it may not, with and without Landlock: without, it succeeds in most of it, or the test would
// show nothing.
func TestHostilePlugin(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	mine := []string{"read itself", "write its folder", "write its temporary folder"}
	theirs := []string{"read the admin key", "read another plugin", "read another plugin's state", "read the configuration", "read the user's home",
		"read the agent's environment", "read the agent's memory", "list the agent's files", "write elsewhere", "connect"}
	for name, support := range map[string]sandbox.Support{"without": {}, "with": sandbox.Kernel()} {
		t.Run(name, func(t *testing.T) {
			if name == "with" && support.ABI == 0 {
				t.Skip("skipped: " + support.Why)
			}
			home := filepath.Join(t.TempDir(), "home")
			for _, f := range []string{"secrets/admin.key", "plugins/store/other", "plugins/state/other.json", "config.hcl", "../id_ed25519"} {
				path := filepath.Join(home, f)
				if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte("canary"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			spec, _ := specOf(t)
			spec.ExecChild, spec.Sandbox, spec.Home = []string{executable(t), "exec-child"}, support, home
			spec.Store = filepath.Join(home, "plugins", "programs")
			spec.Env = []string{"TRY_ADDRESS=" + l.Addr().String()}
			p := start(t, spec)
			answer, err := resolve(t.Context(), p, fmt.Sprintf("try:%s:%d", home, os.Getpid()))
			if err != nil {
				t.Fatal(err)
			}
			done := strings.Split(answer.Format, ",")
			for _, what := range mine {
				if !slices.Contains(done, what) {
					t.Errorf("it cannot %s", what)
				}
			}
			for _, what := range theirs {
				ok := slices.Contains(done, what)
				switch {
				case support.ABI == 0 && !ok && !strings.Contains(what, "agent"): // a process table or user namespace of its own hides the agent
					t.Errorf("without Landlock it cannot %s, so that this shows nothing", what)
				case support.ABI > 0 && ok && (what != "connect" || support.ABI >= 4):
					t.Errorf("it could %s", what)
				}
			}
			if slices.Contains(done, "change itself") && support.ABI > 0 {
				t.Error("it could change itself")
			}
		})
	}
}

// TestPythonIsConfined: a script of a virtual environment finds its interpreter and its packages, and with certificates openssl, under
// Landlock as well.
func TestPythonIsConfined(t *testing.T) {
	support := sandbox.Kernel()
	if support.ABI == 0 {
		t.Skip("skipped: " + support.Why)
	}
	program := python(t)
	for _, tls := range []string{TLSNone, ""} {
		if _, err := os.Stat("/usr/bin/openssl"); tls == "" && err != nil {
			continue
		}
		spec, _ := specOf(t)
		spec.Name, spec.Path, spec.TLS, spec.Host = "shelf-python", program, tls, sdk.HostDispatch(pages{})
		spec.ExecChild, spec.Sandbox = []string{executable(t), "exec-child"}, support
		p, err := Start(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		testPython(t, p)
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
