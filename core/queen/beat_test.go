package queen

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/registry"
	"github.com/apiary-dev/apiary/core/secret"
)

const localPeer = "127.0.0.1:40000"

// doorway is a queen that is not running, with the hive h1 on this machine and h2 on another, to which beats are handed.
func doorway(t interface{ Fatal(...any) }) *Queen {
	q, err := New(Options{NodeID: "q", ClusterKey: clusterKey, URL: "http://127.0.0.1:1", Hives: []string{"http://10.0.0.3:7835"}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	for id, address := range map[string]string{"h1": "http://localhost:7835", "h2": "http://10.0.0.2:7835"} {
		q.step(registry.HiveBeat{Beat: contract.HiveBeat{ID: id, Name: id, BootID: "boot", Incarnation: 5, Sequence: 1, Address: address, InventoryDigest: "d"}})
	}
	return q
}

// beatOf is a beat that is taken.
func beatOf(id string) contract.Heartbeat {
	return contract.Heartbeat{Sequence: 1, Worker: contract.WorkerInfo{ID: id, ModelID: "m", Device: "cpu0", Port: 7855, Status: contract.StatusReady, Implementation: "x",
		Version: "1", ContractVersion: 1, Incarnation: 10, HiveID: "h1", Address: "127.0.0.1", PID: 7, BootID: "boot", StartTicks: 9,
		StartedAt: time.Unix(1, 0).UTC(), APIs: []string{"infer"}, Capabilities: []string{}, Slots: 1}}
}

func (q *Queen) beatFrom(peer, id string, body []byte) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	r := httptest.NewRequest("POST", "/v1/heartbeat", bytes.NewReader(body))
	r.RemoteAddr = peer
	r.Header.Set("Authorization", "Bearer "+secret.ForWorker(clusterKey, id).Reveal())
	q.heartbeat(w, r)
	return w
}

func TestBeatFields(t *testing.T) {
	q := doorway(t)
	for _, c := range []struct {
		field  string // that is refused; empty: taken
		change func(*contract.WorkerInfo)
	}{
		{"", func(*contract.WorkerInfo) {}},
		{"", func(w *contract.WorkerInfo) { w.Address = "::1" }},
		{"", func(w *contract.WorkerInfo) { w.Address = "localhost" }},
		{"", func(w *contract.WorkerInfo) { w.HiveID = "" }},
		{"", func(w *contract.WorkerInfo) { w.HiveID, w.BootID = "relaybench", "other" }},
		{"", func(w *contract.WorkerInfo) { w.HiveID, w.Address = "h2", "10.0.0.2" }},
		{"", func(w *contract.WorkerInfo) { w.HiveID, w.Address = "h2", "::ffff:10.0.0.2" }},
		{"", func(w *contract.WorkerInfo) { w.HiveID, w.Address = "new", "10.0.0.3" }}, // a hive of the configuration that has not reported
		{"", func(w *contract.WorkerInfo) { w.ContractVersion = 2 }},                   // listed, not routed
		{"", func(w *contract.WorkerInfo) { w.APIs = append(w.APIs, "rerank") }},       // of a later version
		{"", func(w *contract.WorkerInfo) { w.Slots, w.ContextLength, w.KVTokensUsed = 4096, 100_000_000, 1<<40 }},
		{"worker.address", func(w *contract.WorkerInfo) { w.Address = "" }},
		{"worker.address", func(w *contract.WorkerInfo) { w.Address = "10.0.0.2" }},
		{"worker.address", func(w *contract.WorkerInfo) { w.HiveID, w.Address = "h2", "127.0.0.1" }},
		{"worker.address", func(w *contract.WorkerInfo) { w.HiveID, w.Address = "new", "10.0.0.2" }},
		{"worker.address", func(w *contract.WorkerInfo) { w.HiveID, w.Address = "", "metadata.internal" }},
		{"worker.address", func(w *contract.WorkerInfo) { w.Address = "user@127.0.0.1" }},
		{"worker.address", func(w *contract.WorkerInfo) { w.Address = "127.0.0.1:80" }},
		{"worker.address", func(w *contract.WorkerInfo) { w.Address = "127.0.0.1/x?y" }},
		{"worker.address", func(w *contract.WorkerInfo) { w.Address = "127.0.0.1\r\n" }},
		{"worker.port", func(w *contract.WorkerInfo) { w.Port = 0 }},
		{"worker.port", func(w *contract.WorkerInfo) { w.Port = 65536 }},
		{"worker.status", func(w *contract.WorkerInfo) { w.Status = "Sleeping" }},
		{"worker.status", func(w *contract.WorkerInfo) { w.Status = "" }},
		{"worker.slots", func(w *contract.WorkerInfo) { w.Slots = -1 }},
		{"worker.slots", func(w *contract.WorkerInfo) { w.Slots = 1 << 40 }},
		{"worker.slots_busy", func(w *contract.WorkerInfo) { w.SlotsBusy = -1 }},
		{"worker.queue_depth", func(w *contract.WorkerInfo) { w.QueueDepth = -5 }},
		{"worker.context_length", func(w *contract.WorkerInfo) { w.ContextLength = -1 }},
		{"worker.kv_tokens_used", func(w *contract.WorkerInfo) { w.KVTokensUsed = -1 }},
		{"worker.load_progress", func(w *contract.WorkerInfo) { w.LoadProgress = 1.5 }},
		{"worker.load_progress", func(w *contract.WorkerInfo) { w.LoadProgress = -0.1 }},
		{"worker.incarnation", func(w *contract.WorkerInfo) { w.Incarnation = 0 }},
		{"worker.incarnation", func(w *contract.WorkerInfo) { w.Incarnation = -7 }},
		{"worker.generation", func(w *contract.WorkerInfo) { w.Generation = 1<<63 - 1 }},
		{"worker.contract_version", func(w *contract.WorkerInfo) { w.ContractVersion = 0 }},
		{"worker.pid", func(w *contract.WorkerInfo) { w.PID = 0 }},
		{"worker.boot_id", func(w *contract.WorkerInfo) { w.BootID = "" }},
		{"worker.boot_id", func(w *contract.WorkerInfo) { w.BootID = strings.Repeat("b", 129) }},
		{"worker.model_id", func(w *contract.WorkerInfo) { w.ModelID = "" }},
		{"worker.model_id", func(w *contract.WorkerInfo) { w.ModelID = "m\x1b[31m" }},
		{"worker.model_name", func(w *contract.WorkerInfo) { w.ModelName = "a\nb" }},
		{"worker.model_name", func(w *contract.WorkerInfo) { w.ModelName = strings.Repeat("n", 1025) }},
		{"worker.device", func(w *contract.WorkerInfo) { w.Device = "cpu0\x00" }},
		{"", func(w *contract.WorkerInfo) { w.MemoryBytes = 1 << 50 }},
		{"worker.device_memory_bytes", func(w *contract.WorkerInfo) { w.DeviceMemoryBytes = 1<<50 + 1 }},
		{"worker.memory_bytes", func(w *contract.WorkerInfo) { w.MemoryBytes = 1<<50 + 1 }},
		{"worker.model_id", func(w *contract.WorkerInfo) { w.ModelID = "safe\u202egpj.exe" }},
		{"worker.version", func(w *contract.WorkerInfo) { w.Version = "1\u2028" }},
		{"worker.capabilities", func(w *contract.WorkerInfo) { w.Capabilities = []string{"zero\u200bwidth"} }},
		{"worker.device", func(w *contract.WorkerInfo) { w.Device = strings.Repeat("d", 129) }},
		{"worker.version", func(w *contract.WorkerInfo) { w.Version = "1\t2" }},
		{"worker.implementation", func(w *contract.WorkerInfo) { w.Implementation = "" }},
		{"worker.hive_id", func(w *contract.WorkerInfo) { w.HiveID = "h\u0085" }},
		{"worker.spawn_key", func(w *contract.WorkerInfo) { w.SpawnKey = "k\x7f" }},
		{"worker.apis", func(w *contract.WorkerInfo) { w.APIs = []string{"infer", ""} }},
		{"worker.capabilities", func(w *contract.WorkerInfo) { w.Capabilities = make([]string, 33) }},
	} {
		b := beatOf("w1")
		c.change(&b.Worker)
		body, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		res := q.beatFrom(localPeer, "w1", body)
		var e contract.ErrorBody
		_ = json.Unmarshal(res.Body.Bytes(), &e)
		switch {
		case c.field == "" && res.Code != http.StatusOK:
			t.Errorf("%+v: %d %s", b.Worker, res.Code, res.Body)
		case c.field != "" && (res.Code != http.StatusBadRequest || e.Error.Code != "invalid_beat" || e.Error.Param == nil || *e.Error.Param != c.field || !strings.Contains(e.Error.Message, c.field)):
			t.Errorf("%s: %d %s", c.field, res.Code, res.Body)
		}
	}
	// One on a machine that this queen knows nothing of listens where its beat comes from.
	b := beatOf("w2")
	b.Worker.HiveID, b.Worker.Address = "stranger", "10.9.9.9"
	body, _ := json.Marshal(b)
	if res := q.beatFrom("10.9.9.9:1234", "w2", body); res.Code != http.StatusOK {
		t.Errorf("a worker on another machine: %d %s", res.Code, res.Body)
	}
	if res := q.beatFrom("10.9.9.8:1234", "w2", body); res.Code != http.StatusBadRequest {
		t.Errorf("a worker that names another machine: %d %s", res.Code, res.Body)
	}
	if res := q.beatFrom(localPeer, "w1", []byte(`{"worker":{"id":"w1","port":"80"}}`)); res.Code != http.StatusBadRequest || !strings.Contains(res.Body.String(), "worker.port") {
		t.Errorf("a wrong type: %d %s", res.Code, res.Body)
	}
}

func TestHiveBeatFields(t *testing.T) {
	good := contract.HiveBeat{ID: "h", Name: "n", Version: "1", BootID: "b", Incarnation: 1, Address: "http://10.0.0.1:7835", InventoryDigest: "d"}
	for field, change := range map[string]func(*contract.HiveBeat){
		"":                 func(*contract.HiveBeat) {},
		"id":               func(h *contract.HiveBeat) { h.ID = "" },
		"name":             func(h *contract.HiveBeat) { h.Name = "a\x1b]0;x\a" },
		"version":          func(h *contract.HiveBeat) { h.Version = strings.Repeat("v", 129) },
		"boot_id":          func(h *contract.HiveBeat) { h.BootID = "" },
		"address":          func(h *contract.HiveBeat) { h.Address = "http://user@10.0.0.1:1" },
		"inventory_digest": func(h *contract.HiveBeat) { h.InventoryDigest = "\n" },
		"incarnation":      func(h *contract.HiveBeat) { h.Incarnation = 0 },
		"devices":          func(h *contract.HiveBeat) { h.Devices = -1 },
		"models":           func(h *contract.HiveBeat) { h.Models = -1 },
		"engines":          func(h *contract.HiveBeat) { h.Engines = 1 << 40 },
	} {
		h := good
		change(&h)
		if err := checkHiveBeat(h); (err == nil) != (field == "") || err != nil && !strings.Contains(err.Error(), `"`+field+`"`) {
			t.Errorf("field %q: %v", field, err)
		}
	}
}

// others is all that a queen knows but the worker a.
func (q *Queen) others() registry.Snapshot {
	q.mu.Lock()
	s := q.machine.Snapshot(q.now())
	q.mu.Unlock()
	out := registry.Snapshot{Hives: s.Hives, Panic: s.Panic}
	for _, w := range s.Workers {
		if w.Info.ID != "a" {
			out.Workers = append(out.Workers, w)
		}
	}
	return out
}

// besieged is a queen that knows two hives, a worker b that serves, and a worker c that has crashed.
func besieged(t interface{ Fatal(...any) }) *Queen {
	q := doorway(t)
	for _, id := range []string{"b", "c"} {
		q.step(registry.SpawnBegan{Slot: registry.Slot{ModelID: "m", HiveID: "h1", Device: "cpu0"}, WorkerID: id})
		q.step(registry.Beat{Heartbeat: beatOf(id)})
	}
	q.step(registry.Exited{Report: contract.WorkerExit{WorkerID: "c", Identity: beatOf("c").Worker.Identity(), ExitCode: 1}})
	if n := len(q.others().Workers); n != 2 {
		t.Fatal("the queen is not as it should be")
	}
	return q
}

func sameOthers(before, after registry.Snapshot) string {
	return cmp.Diff(before, after, cmpopts.IgnoreUnexported(registry.Snapshot{}))
}

// TestBeatsOfOneWorkerChangeNoOther: whatever a worker says under its own secret, no other worker and no hive changes.
func TestBeatsOfOneWorkerChangeNoOther(t *testing.T) {
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		q := besieged(t)
		before := q.others()
		for range rapid.IntRange(1, 8).Draw(t, "beats") {
			b := beatOf("a")
			w := &b.Worker
			w.ID = rapid.SampledFrom([]string{"a", "a", "a", "a", "b", "c", ""}).Draw(t, "id")
			w.HiveID = rapid.SampledFrom([]string{"h1", "h1", "h2", "", "h3"}).Draw(t, "hive")
			w.BootID = rapid.SampledFrom([]string{"boot", "boot", "other", ""}).Draw(t, "boot")
			w.Incarnation = rapid.SampledFrom([]int64{10, 11, 12, 5, 1, 0, -1, 1 << 62, 1<<63 - 1}).Draw(t, "incarnation")
			w.PID = rapid.SampledFrom([]int{7, 8, 1, 0}).Draw(t, "pid")
			w.ModelID = rapid.SampledFrom([]string{"m", "m", "n", ""}).Draw(t, "model")
			w.Device = rapid.SampledFrom([]string{"cpu0", "cuda0", ""}).Draw(t, "device")
			w.SpawnKey = rapid.SampledFrom([]string{"", "m#0"}).Draw(t, "key")
			w.Generation = rapid.SampledFrom([]int64{0, 1, 1<<63 - 1}).Draw(t, "generation")
			w.Address = rapid.SampledFrom([]string{"127.0.0.1", "127.0.0.1", "10.0.0.2", "x"}).Draw(t, "address")
			w.Status = rapid.SampledFrom([]contract.WorkerStatus{contract.StatusStarting, contract.StatusReady, contract.StatusStopped, ""}).Draw(t, "status")
			b.Sequence = rapid.SampledFrom([]uint64{0, 1, 2, 3, 1<<64 - 1}).Draw(t, "sequence")
			body, err := json.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			if q.beatFrom(localPeer, "a", body).Code == http.StatusOK {
				taken++
			}
		}
		q.step(registry.Due{})
		if d := sameOthers(before, q.others()); d != "" {
			t.Fatalf("beats of worker a changed others:\n%s", d)
		}
	})
	if taken == 0 {
		t.Error("no beat was taken, so nothing was tested")
	}
}

func FuzzBeats(f *testing.F) {
	good, err := json.Marshal(beatOf("a"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(bytes.ReplaceAll(good, []byte(`"boot"`), []byte(`"other"`)))
	f.Add(append(append(bytes.Clone(good), '\n'), bytes.ReplaceAll(good, []byte(`"incarnation":10`), []byte(`"incarnation":9223372036854775807`))...))
	f.Add(bytes.ReplaceAll(good, []byte(`"id":"a"`), []byte(`"id":"b"`)))
	f.Add(bytes.ReplaceAll(good, []byte(`"h1"`), []byte(`"h2"`)))
	f.Add([]byte(`{"worker":{"id":"a"},"worker":{"id":"b"}}`))
	f.Fuzz(func(t *testing.T, lines []byte) {
		q := besieged(t)
		before := q.others()
		for body := range bytes.SplitSeq(lines, []byte("\n")) {
			res := q.beatFrom(localPeer, "a", body)
			if res.Code != http.StatusOK && (res.Code < 400 || res.Code >= 500 || !json.Valid(res.Body.Bytes())) {
				t.Fatalf("%q was answered with %d %s", body, res.Code, res.Body)
			}
		}
		if d := sameOthers(before, q.others()); d != "" {
			t.Fatalf("beats of worker a changed others:\n%s", d)
		}
	})
}
