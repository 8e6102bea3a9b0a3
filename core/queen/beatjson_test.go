package queen

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
)

// fullBeat has a value in each field.
func fullBeat() contract.Heartbeat {
	now := time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)
	return contract.Heartbeat{Sequence: 1<<64 - 1, Timestamp: now, Worker: contract.WorkerInfo{
		ID: "w-1", ModelID: "hf:a/b:Q4_K_M", Device: "cuda0,cuda1", Port: 7855, Status: contract.StatusBusy, Implementation: "llama-cpp", Version: "b1", ContractVersion: 1,
		Incarnation: 1<<62 + 1, ModelName: "other", HiveID: "h1", Address: "127.0.0.1", PID: 4321, BootID: "boot", StartTicks: 1 << 63, StartedAt: now.Add(-time.Hour), SpawnKey: "chat#0",
		Generation: -3, APIs: []string{"infer", "embeddings"}, Capabilities: []string{"chat"}, ContextLength: 8192, Slots: 4, SlotsBusy: 3, QueueDepth: 2, KVTokensUsed: 77,
		MemoryBytes: 5 * contract.GiB, DeviceMemoryBytes: 7 * contract.GiB, LoadProgress: 0.4375, Progress: 99,
		Protection: &contract.Protection{NoNewPrivs: true, Landlock: 7, Seccomp: true, Reason: "none"},
	}}
}

// TestUsualBeatsAreReadFast: what workers write is left to encoding/json in no field, and is the same.
func TestUsualBeatsAreReadFast(t *testing.T) {
	for name, change := range map[string]func(*contract.WorkerInfo){
		"all fields":  func(*contract.WorkerInfo) {},
		"few fields":  func(w *contract.WorkerInfo) { w.ModelName, w.SpawnKey, w.Generation = "", "", 0 },
		"no lists":    func(w *contract.WorkerInfo) { w.APIs, w.Capabilities = []string{}, []string{} },
		"local time":  func(w *contract.WorkerInfo) { w.StartedAt = w.StartedAt.In(time.FixedZone("", 3600)) },
		"whole loads": func(w *contract.WorkerInfo) { w.LoadProgress = 1 },
	} {
		b := fullBeat()
		change(&b.Worker)
		body, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		var got, want contract.Heartbeat
		r := beatReader{text: string(body)}
		if !r.beat(&got) || r.at != len(body) {
			t.Errorf("%s: the reader stops before %q", name, body[r.at:])
		}
		if err := json.Unmarshal(body, &want); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}

// FuzzDecodeBeat: whatever comes, what is read is what encoding/json reads.
func FuzzDecodeBeat(f *testing.F) {
	full, err := json.Marshal(fullBeat())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(full)
	for _, change := range [][2]string{
		{`"w-1"`, `"w\u002d1"`}, {`"w-1"`, `"w-1é"`}, {`"w-1"`, "\"w\n\""}, {`4321`, `04321`}, {`4321`, `-0`}, {`4321`, `4321.0`}, {`4321`, `1e3`}, {`4321`, `null`}, {`4321`, `"4321"`},
		{`0.4375`, `.5`}, {`0.4375`, `5.`}, {`0.4375`, `-0.5`}, {`0.4375`, `1E2`}, {`0.4375`, `00.5`}, {`"id"`, `"ID"`}, {`"id":`, `"id": `}, {`"id"`, `"new"`}, {`["chat"]`, `[]`},
		{`["chat"]`, `["chat",]`}, {`["chat"]`, `null`}, {`"2026-03-04T05:06:07.000000089Z"`, `"2026-03-04"`}, {`,"sequence"`, `,"worker":{"id":"b"},"sequence"`},
		{`18446744073709551615`, `18446744073709551616`}, {`,"sequence":18446744073709551615}`, `}{}`}, {`"apis":["infer"`, `"apis":["x","y","z"],"apis":["infer"`},
	} {
		changed := bytes.Replace(full, []byte(change[0]), []byte(change[1]), 1)
		if bytes.Equal(changed, full) {
			f.Fatalf("%s is not in %s", change[0], full)
		}
		f.Add(changed)
	}
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decodeBeat(body)
		var want contract.Heartbeat
		wantErr := json.Unmarshal(body, &want)
		if fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Fatalf("%q: error %v, want %v", body, err, wantErr)
		}
		if d := cmp.Diff(want, got); err == nil && d != "" {
			t.Fatalf("%q: %s", body, d)
		}
	})
}

func BenchmarkTakeBeat(b *testing.B) {
	q := doorway(b)
	beat := fullBeat()
	beat.Worker.Generation = 3
	b.ReportAllocs()
	for n := uint64(1); b.Loop(); n++ {
		beat.Sequence = n
		body, err := json.Marshal(beat)
		if err != nil {
			b.Fatal(err)
		}
		if res := q.beatFrom(localPeer, beat.Worker.ID, body); res.Code != 200 {
			b.Fatal(res.Code, res.Body)
		}
	}
}
