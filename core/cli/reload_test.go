package cli

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/contract"
)

// scriptHangup is `hangup`: SIGHUP to the agent of APIARY_HOME, and a wait until its log says what came of it.
func scriptHangup(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: hangup")
	}
	home := ts.Getenv("APIARY_HOME")
	r, err := agent.ReadRunFile(home)
	ts.Check(err)
	told := func() int {
		b, err := os.ReadFile(filepath.Join(home, "agent.log"))
		ts.Check(err)
		return strings.Count(string(b), "configuration read again") + strings.Count(string(b), "the configuration has a mistake")
	}
	before := told()
	ts.Check(syscall.Kill(r.Process.PID, syscall.SIGHUP))
	for end := time.Now().Add(20 * time.Second); told() == before; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			ts.Fatalf("the agent did not react")
		}
	}
}

func TestChangeLine(t *testing.T) {
	for want, c := range map[string]contract.ConfigChange{
		"+ model smol":                   {Kind: "model", Name: "smol", Action: contract.ChangeAdd},
		"- plugin p   (needs a restart)": {Kind: "plugin", Name: "p", Action: contract.ChangeRemove, Restart: true},
		"~ deployment chat   context 2048 → 8192, place.prefer none → true, env.TOKEN is another one": {Kind: "deployment", Name: "chat", Action: contract.ChangeModify,
			Fields: []contract.FieldChange{{Name: "context", Old: "2048", New: "8192"}, {Name: "place.prefer", New: "true"}, {Name: "env.TOKEN", Old: `"***"`, New: `"***"`}}},
		`~ option agent.log.level   "info" → "debug"`: {Kind: "option", Name: "agent.log.level", Action: contract.ChangeModify, Fields: []contract.FieldChange{{Old: `"info"`, New: `"debug"`}}},
	} {
		if got := changeLine(c); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
