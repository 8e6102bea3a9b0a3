package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// neighbour is another hive with a store, as far as peers see it, with its faults.
type neighbour struct {
	*httptest.Server
	store *Store

	mu      sync.Mutex // mu guards the fields below
	asked   []*http.Request
	status  int                   // answered to requests for files, times times
	times   int                   // -1: always
	cutAt   int64                 // files end after so many bytes, cuts times; 0: they do not
	cuts    int                   // -1: always
	dies    bool                  // with the first cut
	wrong   bool                  // one byte is another
	hang    bool                  // nothing is answered
	entry   func(*contract.Model) // changes the catalog entry
	refused bool                  // tickets are not taken
}

const ticketOf = "ticket-of-"

func newNeighbour(t testing.TB, change func(*Options)) *neighbour {
	n := &neighbour{store: openStore(t, t.TempDir(), change)}
	n.Server = httptest.NewServer(n)
	t.Cleanup(func() { n.CloseClientConnections(); n.Close() })
	return n
}

func (n *neighbour) peer(name, model string) contract.Peer {
	return contract.Peer{HiveID: "id-" + name, Name: name, URL: n.URL, Model: model, Ticket: ticketOf + model}
}

func (n *neighbour) with(f func()) { n.mu.Lock(); defer n.mu.Unlock(); f() }

// sent counts the requests for files.
func (n *neighbour) sent() (files int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, r := range n.asked {
		if r.URL.Path != "/v1/blobs" {
			files++
		}
	}
	return files
}

func (n *neighbour) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n.mu.Lock()
	n.asked = append(n.asked, r)
	status, cutAt, wrong, hang, entry := 0, int64(0), n.wrong, n.hang, n.entry
	sha, file := strings.CutPrefix(r.URL.Path, "/v1/blobs/")
	if file && n.times != 0 {
		status = n.status
		n.times--
	}
	if file && n.cuts != 0 {
		cutAt = n.cutAt
		n.cuts--
		if n.dies {
			n.status, n.times = 500, -1
		}
	}
	refused := n.refused
	n.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return
	}
	model, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "+ticketOf)
	if !ok || refused {
		w.WriteHeader(401)
		return
	}
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	if !file {
		m, err := n.store.Model(model)
		if err != nil {
			w.WriteHeader(404)
			return
		}
		if entry != nil {
			entry(&m)
		}
		_ = json.NewEncoder(w).Encode(m)
		return
	}
	f, err := n.store.OpenBlob(sha)
	if err != nil {
		w.WriteHeader(404)
		return
	}
	defer f.Close()
	b, err := os.ReadFile(f.Name())
	if err != nil {
		panic(err)
	}
	if wrong {
		b[len(b)-1] ^= 1
	}
	w.Header().Set("ETag", `"`+sha+`"`)
	if cutAt > 0 {
		w = &cutter{ResponseWriter: w, left: cutAt}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// cutter breaks the connection after some bytes.
type cutter struct {
	http.ResponseWriter
	left int64
}

func (c *cutter) Write(p []byte) (int, error) {
	if int64(len(p)) >= c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= int64(len(p))
	return c.ResponseWriter.Write(p)
}

// neighbourhood is a hub with a model of two shards, two hives that have it, and one that has not.
type neighbourhood struct {
	web    *server
	bodies [][]byte
	a, b   *neighbour
	here   *Store
	id     string
	log    reports
}

func newNeighbourhood(t *testing.T) *neighbourhood {
	h := &neighbourhood{bodies: [][]byte{ggufFile(1, 0, 2, 300_000), ggufFile(2, 1, 2, 300_000)}}
	h.web = newServer(t, h.bodies...)
	change := func(o *Options) { o.Vendors = append(o.Vendors, h.web.vendor("w", 0, 1)) }
	h.a, h.b, h.here = newNeighbour(t, change), newNeighbour(t, change), openStore(t, t.TempDir(), change)
	for _, n := range []*neighbour{h.a, h.b} {
		m, err := n.store.PullModel(t.Context(), "w:x", nil)
		if err != nil {
			t.Fatal(err)
		}
		h.id = m.ID
	}
	h.web.change(func() { h.web.requests = nil })
	return h
}

func (h *neighbourhood) pull(ctx context.Context, ref string) (contract.Model, error) {
	return h.here.PullModel(ctx, ref, h.log.add, h.a.peer("tower", h.id), h.b.peer("attic", h.id))
}

// check fails unless the model is here as it is there.
func (h *neighbourhood) check(t *testing.T, m contract.Model, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	there, err := h.b.store.Model(h.id)
	if err != nil {
		t.Fatal(err)
	}
	if m.ID != h.id || m.Parameters != there.Parameters || m.SizeBytes != there.SizeBytes || m.Vendor != there.Vendor || len(m.Files) != 2 || m.Files[1].SHA256 != sum256(h.bodies[1]) {
		t.Errorf("here it is %+v, and there %+v", m, there)
	}
	if got, err := h.here.Model("w:x"); err != nil || got.ID != h.id || !h.here.complete(got) {
		t.Errorf("the catalog has %+v, %v", got, err)
	}
	h.log.checkMonotonic(t)
	for _, e := range h.log.events {
		if strings.Contains(e.message, ticketOf) {
			t.Errorf("the narration tells a ticket: %s", e.message)
		}
	}
}

// TestPeers: a model comes from the next hive; its origin is not asked, and need not exist any more.
func TestPeers(t *testing.T) {
	t.Parallel()
	h := newNeighbourhood(t)
	h.web.Close()
	m, err := h.pull(t.Context(), "w:x")
	h.check(t, m, err)
	if h.a.sent() != 2 || h.b.sent() != 0 {
		t.Errorf("%d and %d files were asked for", h.a.sent(), h.b.sent())
	}
	if !h.log.has("fetch", "m-00001-of-00002.gguf from hive tower") || !h.log.has("publish", h.id) {
		t.Errorf("narrated was %+v", h.log.events)
	}
	if m, err := h.pull(t.Context(), h.id); err != nil || m.ID != h.id || h.a.sent() != 2 {
		t.Errorf("once more: %v", err)
	}
}

// TestPeerFaults: whatever is wrong with a hive costs time only.
func TestPeerFaults(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		do     func(*neighbourhood)
		origin bool // is asked
		said   string
	}{
		"it breaks off once":         {func(h *neighbourhood) { h.a.cutAt, h.a.cuts = 200_000, 1 }, false, ""},
		"it breaks off always":       {func(h *neighbourhood) { h.a.cutAt, h.a.cuts = 1000, -1 }, false, "hive tower is left out"},
		"it sends other bytes":       {func(h *neighbourhood) { h.a.wrong = true }, false, "hive tower is left out"},
		"both send other bytes":      {func(h *neighbourhood) { h.a.wrong, h.b.wrong = true, true }, true, "hive attic is left out"},
		"it does not answer":         {func(h *neighbourhood) { h.a.hang = true }, false, "hive tower is left out"},
		"it is gone":                 {func(h *neighbourhood) { h.a.Close() }, false, "hive tower is left out"},
		"both are gone":              {func(h *neighbourhood) { h.a.Close(); h.b.Close() }, true, "It is fetched from where it is published"},
		"it takes no tickets":        {func(h *neighbourhood) { h.a.refused = true }, false, "hive tower is left out"},
		"it fails":                   {func(h *neighbourhood) { h.a.status, h.a.times = 500, -1 }, false, "hive tower is left out"},
		"it was emptied":             {func(h *neighbourhood) { _ = h.a.store.RemoveModel(h.id) }, false, "hive tower is left out"},
		"it redirects":               {func(h *neighbourhood) { h.a.status, h.a.times = 302, -1 }, false, "hive tower is left out"},
		"it has no time":             {func(h *neighbourhood) { h.a.status, h.a.times = 503, -1 }, false, ""},
		"both have no time at first": {func(h *neighbourhood) { h.a.status, h.a.times, h.b.status, h.b.times = 503, 2, 503, 2 }, false, "waiting for them"},
		"both never have time":       {func(h *neighbourhood) { h.a.status, h.a.times, h.b.status, h.b.times = 503, -1, 503, -1 }, true, "waiting for them"},
		"it names other files":       {func(h *neighbourhood) { h.a.entry = func(m *contract.Model) { m.Files[0].Path = "../../x.gguf" } }, false, "hive tower is left out"},
		"it has another model":       {func(h *neighbourhood) { h.a.entry = func(m *contract.Model) { m.ID = "w:other" } }, false, "hive tower is left out"},
		"it names digests that it has not": {func(h *neighbourhood) {
			h.a.entry = func(m *contract.Model) { m.Files[0].SHA256 = strings.Repeat("0", 64) }
		}, true, "hive tower is left out"},
		"its files lie elsewhere": {func(h *neighbourhood) {
			h.a.entry = func(m *contract.Model) { m.Files[0].InPlace = &contract.InPlace{Path: "/etc/passwd"} }
		}, false, "hive tower is left out"},
		"it breaks off and the other lies": {func(h *neighbourhood) { h.a.cutAt, h.a.cuts, h.a.dies, h.b.wrong = 200_000, -1, true, true }, true, "hive attic is left out"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newNeighbourhood(t)
			h.here.peerClient = ownClient(impatient)
			h.here.peerClient.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			c.do(h)
			m, err := h.pull(t.Context(), "w:x")
			h.check(t, m, err)
			if c.origin != (h.web.count() > 0) {
				t.Errorf("the origin was asked %d times", h.web.count())
			}
			found := false
			for _, e := range h.log.events {
				found = found || strings.Contains(e.message, c.said)
			}
			if !found {
				t.Errorf("%q was not said in %+v", c.said, h.log.events)
			}
		})
	}
}

// TestPeerDiesInTheMiddle: what has arrived from a hive is not fetched again from the next source.
func TestPeerDiesInTheMiddle(t *testing.T) {
	t.Parallel()
	h := newNeighbourhood(t)
	h.a.cutAt, h.a.cuts, h.a.dies = 250_000, -1, true
	h.b.Close()
	m, err := h.pull(t.Context(), "w:x")
	h.check(t, m, err)
	h.web.mu.Lock()
	defer h.web.mu.Unlock()
	if len(h.web.requests) != 2 || !strings.HasPrefix(h.web.requests[0].Header.Get("Range"), "bytes=") || h.web.requests[0].Header.Get("Range") < "bytes=2" || h.web.requests[0].Header.Get("Authorization") != "" {
		t.Errorf("the origin was asked with %v", h.web.requests[0].Header)
	}
}

// TestPeerOfAnUnknownVendor: who holds a model is enough, also where nobody here could look it up.
func TestPeerOfAnUnknownVendor(t *testing.T) {
	t.Parallel()
	h := newNeighbourhood(t)
	h.here.opts.Vendors = nil
	m, err := h.pull(t.Context(), "w:x")
	h.check(t, m, err)
}

// TestPeersAndTheirFailure: where nobody can help, the origin's error is the one to tell of, and what arrived is kept for the next time.
func TestPeersAndTheirFailure(t *testing.T) {
	t.Parallel()
	h := newNeighbourhood(t)
	h.a.cutAt, h.a.cuts, h.a.dies = 250_000, -1, true
	h.b.Close()
	h.web.Close()
	_, err := h.pull(t.Context(), "w:x")
	wantFault(t, err, fault.Unavailable, codeUnreachable, "could not be reached")
	if partSize(t, h.here) < 200_000 {
		t.Error("nothing was kept")
	}
	h.a.with(func() { h.a.cuts, h.a.times = 0, 0 })
	m, err := h.pull(t.Context(), "w:x")
	h.check(t, m, err)
}

// TestPeersAndLackOfSpace: what is wrong with this hive no other source mends.
func TestPeersAndLackOfSpace(t *testing.T) {
	t.Parallel()
	h := newNeighbourhood(t)
	h.here.free = func(string) (contract.Bytes, error) { return 1000, nil }
	_, err := h.pull(t.Context(), "w:x")
	wantFault(t, err, fault.Exhausted, "no_space", "")
	if h.web.count() != 0 {
		t.Error("the origin was asked")
	}
}

// TestPeersOnce: many who want the model at once have it fetched once, also when one of them leaves.
func TestPeersOnce(t *testing.T) {
	t.Parallel()
	h := newNeighbourhood(t)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			if i == 3 {
				if _, err := h.pull(gone, "w:x"); err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				return
			}
			ref := "w:x"
			if i%2 == 0 {
				ref = h.id
			}
			if _, err := h.pull(t.Context(), ref); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := h.a.sent(); n != 2 {
		t.Errorf("%d files were asked for", n)
	}
}

// TestUnprovedFromPeer: bytes that nobody published a digest for are those that the name promises.
func TestUnprovedFromPeer(t *testing.T) {
	t.Parallel()
	body := ggufFile(5, 0, 1, 1000)
	web := newServer(t, body)
	v := web.vendor("w", 0)
	v.man.Reference, v.man.Files[0].Digests = "w:x", vendor.Digests{}
	n := newNeighbour(t, func(o *Options) { o.Vendors = []vendor.Vendor{v} })
	m, err := n.store.PullModel(t.Context(), "w:x", nil)
	if err != nil || !m.Unproved {
		t.Fatalf("%+v, %v", m, err)
	}
	web.Close()
	here := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = nil })
	got, err := here.PullModel(t.Context(), "w:x", nil, n.peer("tower", m.ID))
	if err != nil || got.ID != m.ID || !got.Unproved {
		t.Errorf("%+v, %v", got, err)
	}
	other := strings.TrimSuffix(m.ID, m.ID[len(m.ID)-3:]) + "fff"
	n.entry = func(e *contract.Model) { e.ID = other }
	p := n.peer("tower", m.ID)
	p.Model = other
	if _, err := openStore(t, t.TempDir(), func(o *Options) { o.Vendors = nil }).PullModel(t.Context(), "w:x", nil, p); err == nil {
		t.Error("a name that promises other bytes is taken")
	}
}
