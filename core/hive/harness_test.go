package hive

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/metrics"
	"github.com/apiary-dev/apiary/core/process"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
	"github.com/apiary-dev/apiary/workers/echo"
)

// portBlocks counts the hives of this test process: each gets 50 ports of its own.
var portBlocks atomic.Int32

const clusterKey = secret.Secret("0123456789abcdef0123456789abcdef")

// The test binary plays the launcher, the echo worker, a worker that records what it was given, and a hive.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "exec-child":
			fmt.Fprintln(os.Stderr, process.ExecChild(os.Args[2:]))
			os.Exit(127)
		case "echo":
			os.Exit(echo.Main(os.Args[2:]))
		case "recorder":
			os.Exit(recorder(os.Args[2:]))
		case "hostile":
			os.Exit(hostile(os.Args[2:]))
		case "hive":
			os.Exit(hiveProcess(os.Args[2], os.Args[3]))
		}
	}
	os.Exit(m.Run())
}

// recorded is what the recorder writes to the file "recorded" beside its log.
type recorded struct{ Args, Env []string }

// recorder is a worker that only listens, or not even that with --deaf. For each byte in the file "ports" beside its log it says
// once that its port is taken.
func recorder(args []string) int {
	b, _ := json.Marshal(recorded{os.Args, os.Environ()})
	if os.WriteFile("../recorded.tmp", b, 0o600) != nil || os.Rename("../recorded.tmp", "../recorded") != nil {
		return 1
	}
	if left, err := os.ReadFile("../ports"); err == nil && len(left) > 0 {
		if os.WriteFile("../ports", left[1:], 0o600) != nil {
			return 1
		}
		return process.ExitPortTaken
	}
	if slices.Contains(args, "--fail") {
		fmt.Println("the engine is broken")
		return 3
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	if !slices.Contains(args, "--deaf") {
		l, err := net.Listen("tcp", "127.0.0.1:"+args[slices.Index(args, "--port")+1])
		if err != nil {
			return process.ExitPortTaken
		}
		defer func() { _ = l.Close() }()
	}
	select {
	case <-term:
	case <-time.After(time.Minute): // nothing stays behind
	}
	return 0
}

// hiveProcess is an agent with the role hive alone. It spawns one echo worker, prints its WorkerSpawned and waits to be killed.
func hiveProcess(home, node string) int {
	h, err := New(options(home, node))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	j, err := h.jobs.Start(contract.OpWorkerSpawn, "", func(ctx context.Context, n *job.Narrator) (any, error) {
		return h.spawn(ctx, n, echoSpawn("echo-00000001"))
	})
	if err != nil {
		return 1
	}
	events, err := h.jobs.Follow(context.Background(), j.ID, 0)
	if err != nil {
		return 1
	}
	for e := range events {
		if e.Name != contract.JobEventNarration {
			fmt.Println(string(e.Data))
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return fault.ExitCode(h.Run(ctx))
}

func options(home, node string) Options {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	launcher := func(name string) Launcher {
		return func(context.Context, contract.WorkerSpawn, string) (string, []string, error) {
			return exe, []string{name}, nil
		}
	}
	first := 21000 + 50*int(portBlocks.Add(1)%200)
	return Options{
		NodeID: node, Name: "test", Version: "0.0.0", Address: "http://127.0.0.1:7835", Home: home, ClusterKey: clusterKey,
		Artifacts: &store{models: map[string]contract.Model{}, engines: map[string]contract.Engine{}},
		Launchers: map[string]Launcher{"echo": launcher("echo"), "recorder": launcher("recorder"), "hostile": launcher("hostile")},
		ExecChild: []string{exe, "exec-child"}, Ports: [2]int{first, first + 49}, Metrics: metrics.New(),
		Kill: process.KillOptions{Term: 5 * time.Second, Kill: 5 * time.Second},
	}
}

func echoSpawn(workerID string, args ...string) contract.WorkerSpawn {
	return contract.WorkerSpawn{Operation: contract.OpWorkerSpawn, WorkerID: workerID, Model: "echo:test",
		Worker: contract.WorkerKind{Name: "echo", Adapter: "echo"}, Threads: 1, SpawnKey: "echo:test#" + workerID, Args: args,
		Env: map[string]string{"GORACE": "atexit_sleep_ms=0"}}
}

func recorderSpawn(workerID string, args ...string) contract.WorkerSpawn {
	s := echoSpawn(workerID, args...)
	s.Worker.Adapter, s.Model = "recorder", "file:/models/m.gguf@0123456789ab"
	return s
}

// api is a running hive behind its real server, with every exchange checked against the document.
type api struct {
	t    *testing.T
	hive *Hive
	base string
	doc  *apitest.Document
	http *http.Client
	stop func() // ends the hive and waits; its workers stay
}

// serve starts a hive with its own node id. What it leaves running is killed with the test.
func serve(t *testing.T, change ...func(*Options)) *api {
	t.Helper()
	o := options(t.TempDir(), fmt.Sprintf("node-%d-%s", os.Getpid(), strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-"))))
	for _, f := range change {
		f(&o)
	}
	h, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	token := secret.ForHive(o.ClusterKey, o.NodeID)
	s, err := httpd.New(httpd.Options{Routes: h.Routes(), Authorize: func(class httpd.Class, r *http.Request) error {
		if class == httpd.ClassOpen || class == httpd.ClassPeer || token.Equal(httpd.Bearer(r)) {
			return nil
		}
		return fault.New(fault.Denied, "invalid_token", "The token is not valid here.").WithStatus(http.StatusUnauthorized)
	}})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	wg.Go(func() {
		if err := h.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	transport := &http.Transport{}
	a := &api{t: t, hive: h, base: "http://" + l.Addr().String(), doc: apitest.Load(t, "hive-api.yaml"),
		stop: func() { cancel(); transport.CloseIdleConnections(); wg.Wait() }}
	a.http = &http.Client{Transport: a.doc.Transport(t, transport)}
	t.Cleanup(func() {
		a.stop()
		killAll(t, o.NodeID)
	})
	return a
}

// having gives the machine these devices.
func having(ids ...string) func(*Options) {
	return func(o *Options) {
		o.Devices = func(context.Context) ([]contract.Device, error) {
			var list []contract.Device
			for _, id := range ids {
				list = append(list, contract.Device{ID: id, Kind: strings.TrimRight(id, "0123456789"), Name: id, Source: "system"})
			}
			return list, nil
		}
	}
}

func killAll(t *testing.T, node string) {
	t.Helper()
	left, err := process.Scan(node)
	if err != nil {
		t.Error(err)
	}
	for _, e := range left {
		if _, err := process.Kill(context.Background(), e.Identity, process.KillOptions{Term: time.Millisecond}); err != nil {
			t.Error(err)
		}
	}
}

// request calls the hive with its secret and returns status and body.
func (a *api) request(r *http.Request) (int, []byte) {
	a.t.Helper()
	r.Header.Set("Authorization", "Bearer "+secret.ForHive(clusterKey, a.hive.opts.NodeID).Reveal())
	res, err := a.http.Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return res.StatusCode, b
}

func (a *api) get(path string, out any) {
	a.t.Helper()
	r, err := http.NewRequest(http.MethodGet, a.base+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	status, b := a.request(r)
	if status != http.StatusOK || json.Unmarshal(b, out) != nil {
		a.t.Fatalf("GET %s: %d %s", path, status, b)
	}
}

// submit starts an operation, or returns the fault with which it was refused.
func (a *api) submit(op any) (contract.JobAccepted, *fault.Error) {
	a.t.Helper()
	b, err := json.Marshal(op)
	if err != nil {
		a.t.Fatal(err)
	}
	r, err := http.NewRequest(http.MethodPost, a.base+"/v1/jobs", bytes.NewReader(b))
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	status, b := a.request(r)
	if status != http.StatusAccepted {
		var e contract.ErrorBody
		if err := json.Unmarshal(b, &e); err != nil {
			a.t.Fatalf("%d %s", status, b)
		}
		return contract.JobAccepted{}, fault.FromWire(status, e.Error, 0)
	}
	var j contract.JobAccepted
	if err := json.Unmarshal(b, &j); err != nil {
		a.t.Fatal(err)
	}
	return j, nil
}

// follow reads a job's stream to its end. It returns the result, or the fault, and the narration.
func (a *api) follow(j contract.JobAccepted) (json.RawMessage, *fault.Error, []contract.Narration) {
	a.t.Helper()
	r, err := http.NewRequest(http.MethodGet, a.base+j.StreamURL, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	status, b := a.request(r)
	if status != http.StatusOK {
		a.t.Fatalf("GET %s: %d %s", j.StreamURL, status, b)
	}
	var story []contract.Narration
	event := ""
	lines := bufio.NewScanner(bytes.NewReader(b))
	lines.Buffer(nil, len(b)+1)
	for lines.Scan() {
		if v, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
			event = v
		}
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		switch event {
		case contract.JobEventNarration:
			a.doc.Value(a.t, "Narration", []byte(data))
			var n contract.Narration
			if err := json.Unmarshal([]byte(data), &n); err != nil {
				a.t.Fatal(err)
			}
			story = append(story, n)
		case contract.JobEventDone:
			a.doc.Value(a.t, "JobDoneEvent", []byte(data))
			var d contract.JobDoneEvent
			if err := json.Unmarshal([]byte(data), &d); err != nil {
				a.t.Fatal(err)
			}
			return d.Result, nil, story
		case contract.JobEventFailed:
			a.doc.Value(a.t, "JobFailedEvent", []byte(data))
			var f job.FailedEvent
			if err := json.Unmarshal([]byte(data), &f); err != nil {
				a.t.Fatal(err)
			}
			return nil, &fault.Error{Kind: f.Kind, Code: f.Error.Code, Message: f.Error.Message}, story
		case contract.JobEventCancelled:
			return nil, &fault.Error{Kind: fault.Interrupted, Code: "cancelled"}, story
		}
	}
	a.t.Fatalf("the stream ended without an outcome: %s", b)
	return nil, nil, nil
}

// do runs an operation; schema, unless empty, is the document's name of its result.
func do[T any](a *api, op any, schema string) (T, *fault.Error) {
	a.t.Helper()
	var out T
	j, err := a.submit(op)
	if err != nil {
		return out, err
	}
	result, err, _ := a.follow(j)
	if err != nil {
		return out, err
	}
	if schema != "" {
		a.doc.Value(a.t, schema, result)
	}
	if err := json.Unmarshal(result, &out); err != nil {
		a.t.Fatalf("result %s: %v", result, err)
	}
	return out, nil
}

func must[T any](t *testing.T) func(T, *fault.Error) T {
	return func(v T, err *fault.Error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (a *api) spawn(s contract.WorkerSpawn) contract.WorkerSpawned {
	a.t.Helper()
	return must[contract.WorkerSpawned](a.t)(do[contract.WorkerSpawned](a, s, "WorkerSpawned"))
}

func (a *api) delete(id contract.Identity) (contract.WorkerDeleted, *fault.Error) {
	a.t.Helper()
	return do[contract.WorkerDeleted](a, contract.WorkerDelete{Operation: contract.OpWorkerDelete, WorkerID: id.WorkerID, Identity: &id}, "WorkerDeleted")
}

func (a *api) list() []contract.Process {
	a.t.Helper()
	return must[[]contract.Process](a.t)(do[[]contract.Process](a, operation(contract.OpProcessList), ""))
}

func operation(name string) any { return map[string]string{"operation": name} }

func artifactRef(op, ref string) contract.ArtifactRef {
	return contract.ArtifactRef{Operation: op, Reference: ref}
}

// eventually waits for ok.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("gave up waiting: %s", what)
		}
	}
}

// readRecorded reads what a recorder worker was given.
func readRecorded(t *testing.T, a *api, workerID string) recorded {
	t.Helper()
	var got recorded
	eventually(t, "the recorder has written", func() bool {
		b, err := os.ReadFile(filepath.Join(a.hive.workerDir(workerID), "recorded"))
		return err == nil && json.Unmarshal(b, &got) == nil
	})
	return got
}
