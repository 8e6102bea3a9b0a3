package agent

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// TestReload: only what changed is taken over, a mistake changes nothing, and what waits for a restart is told each time.
func TestReload(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.hcl")
	env := func(name string) (string, bool) {
		return map[string]string{"HOME": "/home/someone"}[name], name == "HOME"
	}
	load := func() (*config.Config, error) { return config.Load(config.Options{Path: path, Env: env}) }
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const listen = "queen {\n  listen = \"127.0.0.1:1\"\n}\n"
	write("")
	first, err := load()
	if err != nil {
		t.Fatal(err)
	}
	var taken *config.Config
	var what string
	r := &reloader{load: load, log: slog.New(slog.DiscardHandler), started: first, current: first, take: func(c *config.Config, changed func(string) bool) {
		taken, what = c, ""
		for _, k := range []string{"agent.log", "queen", "model", "worker", "deployment", "age"} {
			if changed(k) {
				what += k + " "
			}
		}
	}}
	for _, c := range []struct{ text, taken, told string }{
		{"", "", ""},
		{"agent {\n  log {\n    level = \"debug\"\n  }\n}\n", "agent.log ", "agent.log.level"},
		{listen, "agent.log ", "agent.log.level queen.listen!"},
		{listen, "", "queen.listen!"},
		{listen + "model \"a\" {\n  source = \"echo:a\"\n}\n", "model ", "a queen.listen!"},
		{listen + "model \"a\" {\n  source = \"echo:b\"\n}\ndeployment \"d\" {\n  model = \"a\"\n}\n", "model deployment ", "a d queen.listen!"},
		// A change of the model alone is one of the deployment.
		{"model \"a\" {\n  source = \"echo:c\"\n}\ndeployment \"d\" {\n  model = \"a\"\n}\n", "model deployment ", "a d"},
		{"queen {\n  timeouts {\n    stall = \"9s\"\n  }\n}\nworker \"echo\" {\n  slots = 2\n}\n", "queen model worker deployment ", "queen.timeouts.stall echo  a d"},
	} {
		write(c.text)
		done, err := r.reload()
		if err != nil {
			t.Fatal(err)
		}
		var told []string
		for _, x := range done.Changes {
			name := x.Name
			if x.Restart {
				name += "!"
			}
			told = append(told, name)
		}
		if got := strings.Join(told, " "); got != c.told || what != c.taken || done.Path != path || done.Changes == nil {
			t.Errorf("%q:\ntold %q, want %q; taken %q, want %q", c.text, got, c.told, what, c.taken)
		}
	}
	before := taken
	write("queen {\n  listenn = \"x\"\n}\n")
	_, err = r.reload()
	if diags, ok := errors.AsType[config.Diagnostics](err); !ok || diags[0].Line != 2 || fault.KindOf(err) != fault.Invalid {
		t.Errorf("a mistake gave %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.reload(); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a missing file gave %v", err)
	}
	if taken != before || r.current != before {
		t.Error("a mistake was taken over")
	}
	write("")
	if done, err := r.reload(); err != nil || len(done.Changes) != 3 || done.Changes[0].Action != contract.ChangeModify {
		t.Errorf("%+v %v", done, err)
	}
}
