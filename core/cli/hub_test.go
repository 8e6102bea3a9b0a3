package cli

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/apiary-dev/apiary/core/agent"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/testutil/fakehub"
)

// hubKey is under which a script keeps its hub.
type hubKey struct{}

// hubCommands are the commands of scripts about models that are fetched: `hub` starts a hub with some repositories and sets HUB
// and HUB_CDN; `hubset FAULT VALUE` changes what goes wrong; `hubsent BYTES MORE` wants that so many bytes of large files were sent
// since it was last asked, or up to MORE more, and shows the requests; `waitpart BYTES` waits for that much of a file to have
// arrived; `hubgone` ends the hub; `killagent` kills the agent; `nosecret TEXT` wants that it is neither in the environment of a worker nor in the data folder.
func hubCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"hub": scriptHub, "hubset": scriptHubSet, "hubsent": scriptHubSent, "waitpart": scriptWaitPart, "killagent": scriptKillAgent, "nosecret": scriptNoSecret,
		"hubgone": func(ts *testscript.TestScript, _ bool, _ []string) { hubOf(ts).Close() },
	}
}

func scriptHub(ts *testscript.TestScript, _ bool, _ []string) {
	model, err := os.ReadFile(ts.Getenv("MODEL"))
	ts.Check(err)
	other := bytes.Clone(model)
	other[len(other)-1] ^= 1
	h := fakehub.New()
	ts.Defer(h.Close)
	h.Add(fakehub.Repo{ID: "test/stories", Files: []fakehub.File{
		{Path: "README.md", Body: []byte("# Stories\n")},
		{Path: "stories-Q2_K.gguf", Body: other, LFS: true},
		{Path: "stories-Q4_K_M.gguf", Body: model, LFS: true},
		{Path: "stories-Q8_0.gguf", Body: other, LFS: true},
		{Path: "small.gguf", Body: model},
	}})
	h.Add(fakehub.Repo{ID: "test/gated", Gated: "manual", Tokens: []string{"hf_canary"}, Files: []fakehub.File{{Path: "m-Q8_0.gguf", Body: other, LFS: true}}})
	ts.Setenv("HUB", h.URL)
	ts.Setenv("HUB_CDN", h.CDN)
	ts.Value(hubKey{}).(*scriptHubs).hub = h
}

// scriptHubs holds the hub of one script.
type scriptHubs struct{ hub *fakehub.Hub }

func hubOf(ts *testscript.TestScript) *fakehub.Hub {
	h := ts.Value(hubKey{}).(*scriptHubs).hub
	if h == nil {
		ts.Fatalf("the script has no hub")
	}
	return h
}

func scriptHubSet(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: hubset FAULT VALUE")
	}
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	hubOf(ts).Set(func(f *fakehub.Faults) {
		switch args[0] {
		case "slow":
			f.Slow = n
		case "wrong":
			f.Wrong = n == 1
		case "cut":
			f.CutAfter = int64(n)
		case "limited":
			f.Limited = n
		default:
			ts.Fatalf("unknown fault %q", args[0])
		}
	})
}

func scriptHubSent(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: hubsent BYTES MORE")
	}
	want, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	more, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	var sent int64
	for _, r := range hubOf(ts).Requests() {
		_, err := fmt.Fprintf(ts.Stdout(), "%v %s %s range=%s auth=%v status=%d sent=%d\n", r.CDN, r.Method, r.Path, r.Range, r.Authorization != "", r.Status, r.Sent)
		ts.Check(err)
		if r.CDN {
			sent += r.Sent
		}
	}
	if sent < want || sent > want+more {
		ts.Fatalf("%d bytes were sent, not %d and up to %d more", sent, want, more)
	}
}

func scriptWaitPart(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: waitpart BYTES")
	}
	want, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	waitUntil(ts, func() bool {
		parts, err := filepath.Glob(filepath.Join(ts.Getenv("APIARY_HOME"), "partial", "*.part"))
		if err != nil || len(parts) == 0 {
			return false
		}
		st, err := os.Stat(parts[0])
		return err == nil && st.Size() >= want
	}, "the file does not arrive")
}

func scriptKillAgent(ts *testscript.TestScript, _ bool, _ []string) {
	home := ts.Getenv("APIARY_HOME")
	r, err := agent.ReadRunFile(home)
	ts.Check(err)
	ts.Check(syscall.Kill(r.Process.PID, syscall.SIGKILL))
	waitUntil(ts, func() bool { locked, err := agent.Locked(home); return err == nil && !locked }, "the agent does not die")
}

func scriptNoSecret(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: nosecret TEXT")
	}
	home := ts.Getenv("APIARY_HOME")
	id, err := agent.NodeID(home)
	ts.Check(err)
	workers, err := process.Scan(id)
	ts.Check(err)
	if len(workers) == 0 {
		ts.Fatalf("there are no workers to look at")
	}
	for _, w := range workers {
		environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", w.Identity.PID))
		ts.Check(err)
		if strings.Contains(string(environ), args[0]) {
			ts.Fatalf("worker %s has it in its environment", w.Identity.WorkerID)
		}
	}
	ts.Check(filepath.WalkDir(home, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(b), args[0]) {
			err = fmt.Errorf("%s holds it", path)
		}
		return err
	}))
}
