package gossip

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

func TestMetadata(t *testing.T) {
	long := Self{NodeID: nodeID(1), Start: NewStart(time.Now()), Name: strings.Repeat("n", 64), Version: strings.Repeat("v", 200),
		Queen: "http://" + strings.Repeat("q", 116) + ":7833", Hive: "http://" + strings.Repeat("h", 116) + ":7835"}
	if err := long.check(); err != nil {
		t.Fatal(err)
	}
	if b := long.meta(true, []string{"00000000", "00000000", "00000000"}).encode(); len(b) > maxMeta {
		t.Errorf("metadata of %d bytes", len(b))
	} else if m, err := decodeMeta(b); err != nil || m.Queen != long.Queen || m.Hive != long.Hive || !m.Leaving {
		t.Errorf("decoded %+v, %v", m, err)
	}
	if m, err := decodeMeta([]byte(`{"v":1,"n":"tower","r":"2","new":{"a":1}}`)); err != nil || m.Name != "tower" {
		t.Errorf("a field of a newer agent: %+v, %v", m, err)
	}
	for _, bad := range []string{
		``, `{}`, `[]`, `{"v":2,"n":"a"}`, `{"v":1,"n":""}`, `{"v":1,"n":"a b"}`, `{"v":1,"n":"a","r":"\u001b[2J"}`, `{"v":1,"n":"a","q":"ftp://h:1"}`, `{"v":1,"n":"a","q":"http://h"}`,
		`{"v":1,"n":"a","q":"http://u:p@h:1"}`, `{"v":1,"n":"a","h":"http://h:1/x"}`, `{"v":1,"n":"a","h":"http://0.0.0.0:1"}`, `{"v":1,"n":"a","h":"http://224.0.0.1:1"}`,
		`{"v":1,"n":"a","k":["x"]}`, `{"v":1,"n":"a","k":["00000000","00000000","00000000","00000000"]}`, `{"v":1,"n":"` + strings.Repeat("a", 600) + `"}`,
	} {
		if m, err := decodeMeta([]byte(bad)); err == nil {
			t.Errorf("%s is taken for %+v", bad, m)
		}
	}
}

func TestPlaces(t *testing.T) {
	m := metadata{Version: 1, Name: "a", Hive: "http://127.0.0.1:7835"}
	if err := m.checkPlace(mustAddr("127.0.0.1")); err != nil {
		t.Error(err)
	}
	if err := m.checkPlace(mustAddr("10.0.0.5")); err == nil || !strings.Contains(err.Error(), "hive.listen") {
		t.Errorf("a hive of another machine on loopback: %v", err)
	}
	if err := (metadata{Hive: "http://10.0.0.5:1"}).checkPlace(mustAddr("0.0.0.0")); err == nil {
		t.Error("an unspecified address")
	}
}

func TestStartsAreOrdered(t *testing.T) {
	var last string
	for _, at := range []time.Time{time.Unix(0, 0), time.Unix(1, 0), time.Unix(1e9, 0), time.Unix(1e9, 1), time.Unix(2e9, 0), time.Unix(9e9, 0)} {
		s := NewStart(at)
		if _, _, err := splitName(nodeID(1) + "." + s); err != nil || s <= last {
			t.Errorf("%s after %s, %v", s, last, err)
		}
		last = s
	}
}

func TestLargestBeatFits(t *testing.T) {
	b := contract.HiveBeat{ID: nodeID(1), Name: strings.Repeat("é", 32), Version: strings.Repeat("v", 64), BootID: strings.Repeat("b", 64), Incarnation: 1<<63 - 1, Sequence: 1<<64 - 1,
		Address: strings.Repeat("a", 128), InventoryDigest: strings.Repeat("d", 32), Devices: 1 << 40, Models: 1 << 40, Engines: 1 << 40, MemoryFree: 1 << 60, DiskFree: 1 << 60}
	if _, err := encodeMessage(kindBeat, beat{From: nodeID(1) + "." + NewStart(time.Now()), Beat: b}); err != nil {
		t.Error(err)
	}
}

func FuzzMessage(f *testing.F) {
	good, _ := encodeMessage(kindBeat, beat{From: nodeID(1) + "." + NewStart(time.Now()), Beat: contract.HiveBeat{ID: nodeID(1)}})
	key, _ := encodeMessage(kindKey, keyOrder{From: nodeID(1) + "." + NewStart(time.Now()), Action: contract.KeyUse, Print: "01234567"})
	for _, seed := range [][]byte{good, key, {kindBeat}, {kindBeat, 2, '{', '}'}, {9, 1}, []byte("\x01\x01null"), []byte("\x01\x01[[[[")} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMessage(b)
		if err != nil {
			return
		}
		switch m := m.(type) {
		case beat:
			if id, _, err := splitName(m.From); err != nil || id != m.Beat.ID {
				t.Errorf("taken: %+v", m)
			}
		case keyOrder:
			if m.check() != nil {
				t.Errorf("taken: %+v", m)
			}
		default:
			t.Errorf("decoded %T", m)
		}
	})
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte(`{"v":1,"n":"tower","r":"1","q":"http://10.0.0.5:7833","h":"http://[::1]:7835","k":["01234567"]}`), "000000000001.0000000000000")
	f.Add([]byte(`{`), "")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		if id, start, err := splitName(name); err == nil && id+"."+start != name {
			t.Errorf("%q is %q and %q", name, id, start)
		}
		if m, err := decodeMeta(b); err == nil && (m.check() != nil || len(m.encode()) > maxMeta) {
			t.Errorf("taken: %+v", m)
		}
	})
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte(`[{"address":"10.0.0.5:7834","seen":"2026-01-01T00:00:00Z"}]`))
	f.Add([]byte(`{"keys":["0123456789abcdef0123456789abcdef"],"retired":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if peers, err := decodePeers(b); err == nil {
			for _, p := range peers {
				if !p.Address.IsValid() || p.Address.Port() == 0 {
					t.Errorf("taken: %+v", p)
				}
			}
		}
		if k, err := decodeKeyFile(b); err == nil && len(k.Keys) > maxKeys {
			t.Errorf("taken: %d keys", len(k.Keys))
		}
	})
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }
