package queen

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/job"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/apitest"
)

const (
	clusterKey = secret.Secret("0123456789abcdef0123456789abcdef")
	engineRef  = "npm:@node-llama-cpp/{platform}@3.21.1"
	modelRef   = "builtin:stories260k"
	modelID    = "builtin:stories260k@0123456789ab"
)

// fakeHive is a hive over real HTTP with a real job manager, whose workers are goroutines that beat.
type fakeHive struct {
	t    *testing.T
	url  string
	id   string
	jobs *job.Manager
	doc  *apitest.Document

	asked atomic.Int32  // for the inventory
	slow  chan struct{} // where it is set, the first answer is on its way until it is closed

	mu      sync.Mutex // guards the fields below
	seq     uint64
	models  []contract.Model
	engines []contract.Engine
	gpus    []contract.Device // as they are now
	procs   map[string]*fakeWorker
	specs   []contract.WorkerSpawn
	pulls   []contract.ArtifactRef
	ops     []string
	pid     int
	memory  contract.Bytes // of the machine
	// behave changes a worker before it starts: what it does is up to its fields.
	behave func(*fakeWorker)
	// hold, where it is set, keeps downloads until it is closed.
	hold chan struct{}
	// fail makes an operation fail.
	fail map[string]error
}

type fakeWorker struct {
	hive     *fakeHive
	spec     contract.WorkerSpawn
	pid      int
	loadFor  time.Duration
	exitCode int // ≠ 0: it ends by itself while it loads
	silent   bool
	busy     int      // slots, without any progress
	port     int      // 0: one that nobody listens on
	queens   []string // to which it beats; guarded by hive.mu
	crash    chan int
	stop     context.CancelFunc
	ended    chan struct{}
}

func newFakeHive(t *testing.T, id string) *fakeHive {
	h := &fakeHive{t: t, id: id, jobs: job.New(job.Options{NodeID: id}), doc: apitest.Load(t, "queen-api.yaml"), procs: map[string]*fakeWorker{},
		pid: 100, memory: 16 * contract.GiB, fail: map[string]error{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/id", func(w http.ResponseWriter, _ *http.Request) { httpd.WriteJSON(w, 200, map[string]string{"id": id}) })
	closed := http.NewServeMux()
	closed.HandleFunc("GET /v1/hive", h.serveBeat)
	closed.HandleFunc("GET /v1/inventory", func(w http.ResponseWriter, _ *http.Request) {
		inv := h.inventory()
		if first := h.asked.Add(1) == 1; first && h.slow != nil {
			<-h.slow
		}
		httpd.WriteJSON(w, 200, inv)
	})
	closed.Handle("POST /v1/jobs", h.jobs.SubmitHandler(h.dispatch))
	closed.Handle("GET /v1/jobs/{id}", h.jobs.GetHandler())
	closed.Handle("GET /v1/jobs/{id}/stream", h.jobs.StreamHandler())
	closed.Handle("DELETE /v1/jobs/{id}", h.jobs.CancelHandler())
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !secret.ForHive(clusterKey, id).Equal(httpd.Bearer(r)) {
			httpd.WriteError(w, r, unauthorized("No."))
			return
		}
		closed.ServeHTTP(w, r)
	})
	srv := httptest.NewServer(mux)
	h.url = srv.URL
	t.Cleanup(func() {
		for _, w := range h.workers() {
			w.kill()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = h.jobs.Close(ctx)
		srv.CloseClientConnections()
		srv.Close()
	})
	return h
}

func (h *fakeHive) withModel(id, ref string) *fakeHive {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.models = append(h.models, contract.Model{ID: id, References: []string{ref}, Vendor: "builtin", Format: "gguf", SizeBytes: contract.MiB})
	return h
}

func (h *fakeHive) withEngine() *fakeHive {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.engines = append(h.engines, contract.Engine{ID: "npm:@node-llama-cpp/linux-x64@3.21.1", References: []string{engineRef}, Name: "llama.cpp",
		Devices: []contract.Device{{ID: "cpu0", Kind: "cpu", Name: "CPU", Source: "engine"}}})
	return h
}

func (h *fakeHive) inventory() contract.Inventory {
	h.mu.Lock()
	defer h.mu.Unlock()
	return contract.Inventory{HiveID: h.id, Digest: fmt.Sprintf("d%d-%d", len(h.models), len(h.engines)), Models: slices.Clone(h.models),
		Engines: slices.Clone(h.engines), Devices: []contract.Device{{ID: "cpu0", Kind: "cpu", Name: "CPU", Cores: 2, MemoryTotal: h.memory, Source: "system"}}}
}

func (h *fakeHive) serveBeat(w http.ResponseWriter, _ *http.Request) {
	digest := h.inventory().Digest
	h.mu.Lock()
	h.seq++
	b := contract.HiveBeat{ID: h.id, Name: h.id + "-name", BootID: "boot", Incarnation: 1, Sequence: h.seq, Address: h.url, InventoryDigest: digest, MemoryFree: 8 * contract.GiB}
	h.mu.Unlock()
	httpd.WriteJSON(w, 200, b)
}

func (h *fakeHive) workers() []*fakeWorker {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*fakeWorker
	for _, w := range h.procs {
		out = append(out, w)
	}
	return out
}

func (h *fakeHive) spawned() []contract.WorkerSpawn {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.specs)
}

func (h *fakeHive) did(op string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, o := range h.ops {
		if o == op {
			n++
		}
	}
	return n
}

func (h *fakeHive) dispatch(op string, body json.RawMessage) (job.Func, error) {
	h.mu.Lock()
	h.ops = append(h.ops, op)
	err := h.fail[op]
	h.mu.Unlock()
	return func(ctx context.Context, n *job.Narrator) (any, error) {
		if err != nil {
			return nil, err
		}
		return h.perform(ctx, n, op, body)
	}, nil
}

func (h *fakeHive) perform(ctx context.Context, n *job.Narrator, op string, body json.RawMessage) (any, error) {
	var ref contract.ArtifactRef
	_ = json.Unmarshal(body, &ref)
	switch op {
	case contract.OpProcessList:
		out := []contract.Process{}
		for _, w := range h.workers() {
			out = append(out, contract.Process{Identity: w.identity(), HiveID: h.id, SpawnKey: w.spec.SpawnKey, Model: w.spec.Model, Device: "cpu0", Port: 1})
		}
		return out, nil
	case contract.OpDeviceList:
		h.mu.Lock()
		defer h.mu.Unlock()
		return append([]contract.Device{{ID: "cpu0", Kind: "cpu", Name: "CPU", Source: "system"}}, h.gpus...), nil
	case contract.OpModelDownload:
		n.Progress("download", "fetching", contract.Progress{Done: 1, Total: 2, Unit: "bytes"})
		if h.hold != nil {
			<-h.hold
		}
		h.mu.Lock()
		h.pulls = append(h.pulls, ref)
		h.mu.Unlock()
		id := ref.Reference + "@0123456789ab"
		if len(ref.Peers) > 0 {
			id = ref.Peers[0].Model
		}
		h.withModel(id, ref.Reference)
		return contract.Model{ID: id, References: []string{ref.Reference}, Vendor: "v", Format: "gguf"}, nil
	case contract.OpModelSearch:
		var s contract.ModelSearch
		_ = json.Unmarshal(body, &s)
		return contract.ModelsFound{Models: []contract.ModelFound{{Vendor: h.id, Reference: "x:" + s.Query}}, Failed: []contract.VendorFailed{}}, nil
	case contract.OpModelDelete:
		h.mu.Lock()
		defer h.mu.Unlock()
		h.models = slices.DeleteFunc(h.models, func(m contract.Model) bool { return m.ID == ref.Reference })
		return nil, nil
	case contract.OpWorkerInstall:
		n.Info("download", "fetching the engine")
		h.withEngine()
		return h.inventory().Engines[0], nil
	case contract.OpWorkerRemove:
		h.mu.Lock()
		defer h.mu.Unlock()
		h.engines = nil
		return nil, nil
	case contract.OpWorkerLogs:
		var r contract.WorkerRef
		_ = json.Unmarshal(body, &r)
		return contract.WorkerLogLines{WorkerID: r.WorkerID, Lines: []string{"a line"}}, nil
	case contract.OpWorkerSpawn:
		var spec contract.WorkerSpawn
		if err := json.Unmarshal(body, &spec); err != nil {
			return nil, err
		}
		n.Info("spawn", "started")
		return h.start(spec), nil
	case contract.OpWorkerDelete:
		var d contract.WorkerDelete
		if err := json.Unmarshal(body, &d); err != nil {
			return nil, err
		}
		for _, w := range h.workers() {
			if w.identity() == *d.Identity {
				w.kill()
				return contract.WorkerDeleted{WorkerID: d.WorkerID, Outcome: "terminated"}, nil
			}
		}
		return contract.WorkerDeleted{WorkerID: d.WorkerID, Outcome: "gone"}, nil
	}
	return nil, fault.New(fault.Invalid, "unknown_operation", "No operation %q.", op)
}

func (h *fakeHive) start(spec contract.WorkerSpawn) contract.WorkerSpawned {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, w := range h.procs {
		if w.spec.SpawnKey == spec.SpawnKey && w.spec.Generation == spec.Generation {
			return contract.WorkerSpawned{Identity: w.identity(), Port: 1, Address: "127.0.0.1", HiveID: h.id, Existing: true}
		}
	}
	h.pid++
	ctx, stop := context.WithCancel(context.Background())
	w := &fakeWorker{hive: h, spec: spec, queens: spec.QueenURLs, pid: h.pid, crash: make(chan int, 1), stop: stop, ended: make(chan struct{})}
	if h.behave != nil {
		h.behave(w)
	}
	h.procs[spec.WorkerID] = w
	h.specs = append(h.specs, spec)
	go w.live(ctx)
	return contract.WorkerSpawned{Identity: w.identity(), Port: 1, Address: "127.0.0.1", HiveID: h.id}
}

func (w *fakeWorker) identity() contract.Identity {
	return contract.Identity{WorkerID: w.spec.WorkerID, BootID: "boot", PID: w.pid, StartTicks: uint64(w.pid)}
}

func (w *fakeWorker) beatTo(queens ...string) {
	w.hive.mu.Lock()
	defer w.hive.mu.Unlock()
	w.queens = queens
}

func (w *fakeWorker) kill() {
	w.stop()
	<-w.ended
}

// live loads, beats and ends.
func (w *fakeWorker) live(ctx context.Context) {
	defer close(w.ended)
	begun := time.Now()
	info := contract.WorkerInfo{ID: w.spec.WorkerID, ModelID: w.spec.Model, Device: strings.Join(w.spec.Devices, ","), Port: 1, Status: contract.StatusStarting,
		Implementation: "fake", Version: "1", ContractVersion: 1, Incarnation: begun.UnixNano(), HiveID: w.hive.id, Address: "127.0.0.1", PID: w.pid, BootID: "boot",
		StartTicks: uint64(w.pid), StartedAt: begun, SpawnKey: w.spec.SpawnKey, Generation: w.spec.Generation, APIs: []string{"infer"}, Capabilities: []string{}, Slots: 1, SlotsBusy: w.busy}
	if w.port != 0 {
		info.Port = w.port
	}
	code := 0
	for seq := uint64(1); ; seq++ {
		if left := w.loadFor - time.Since(begun); left <= 0 {
			if w.exitCode != 0 {
				code = w.exitCode
				break
			}
			info.Status, info.LoadProgress = contract.StatusReady, 1
		} else {
			info.LoadProgress = 0.5
			info.Progress = seq
		}
		if !w.silent {
			w.beat(info, seq)
		}
		t := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ctx.Done():
			t.Stop()
		case code = <-w.crash:
			t.Stop()
		case <-t.C:
			continue
		}
		break
	}
	w.hive.mu.Lock()
	delete(w.hive.procs, w.spec.WorkerID)
	w.hive.mu.Unlock()
	w.report(contract.WorkerExit{WorkerID: w.spec.WorkerID, Identity: w.identity(), ExitCode: code, LogTail: []string{"engine: a secret path"}})
}

func (w *fakeWorker) beat(info contract.WorkerInfo, seq uint64) {
	w.post("/v1/heartbeat", secret.ForWorker(clusterKey, info.ID), contract.Heartbeat{Worker: info, Timestamp: time.Now(), Sequence: seq})
}

func (w *fakeWorker) report(x contract.WorkerExit) {
	w.post("/v1/worker-exits", secret.ForHive(clusterKey, w.hive.id), x)
}

func (w *fakeWorker) post(path string, token secret.Secret, body any) {
	w.hive.mu.Lock()
	queens := w.queens
	w.hive.mu.Unlock()
	for _, base := range queens {
		res, err := send(&http.Client{Transport: w.hive.doc.Transport(w.hive.t, nil), Timeout: 5 * time.Second}, "POST", base+path, token, body)
		if err == nil {
			_, _ = io.Copy(io.Discard, res.Body)
			_ = res.Body.Close()
		}
	}
}

func send(c *http.Client, method, url string, token secret.Secret, body any) (*http.Response, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequest(method, url, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+token.Reveal())
	return c.Do(r)
}
