package hive

import (
	"bytes"
	"context"
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/artifact"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// publisher is where a model comes from.
type publisher struct {
	*httptest.Server
	body []byte

	mu    sync.Mutex // mu guards the field below
	asked int
}

const publishedRef, publishedID = "x:m", "x:m@pinned"

func newPublisher(t *testing.T, weights int) *publisher {
	var b bytes.Buffer
	put := func(vs ...any) {
		for _, v := range vs {
			if s, ok := v.(string); ok {
				_ = binary.Write(&b, binary.LittleEndian, uint64(len(s)))
				b.WriteString(s)
			} else {
				_ = binary.Write(&b, binary.LittleEndian, v)
			}
		}
	}
	b.WriteString("GGUF")
	put(uint32(3), uint64(1), uint64(2), "general.architecture", uint32(8), "llama", "llama.context_length", uint32(4), uint32(128))
	put("w", uint32(1), uint64(weights), uint32(24), uint64(0))
	for b.Len()%32 != 0 {
		b.WriteByte(0)
	}
	for i := range weights {
		b.WriteByte(byte(i * 2654435761 >> 13))
	}
	p := &publisher{body: b.Bytes()}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.asked++
		p.mu.Unlock()
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(p.body))
	}))
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

func (p *publisher) count() int { p.mu.Lock(); defer p.mu.Unlock(); return p.asked }

func (*publisher) Info() vendor.Info        { return vendor.Info{Name: "publisher", Schemes: []string{"x"}} }
func (*publisher) Supports(ref string) bool { return strings.HasPrefix(ref, "x:") }

func (p *publisher) Resolve(context.Context, vendor.ResolveRequest) (*vendor.Manifest, error) {
	return &vendor.Manifest{Reference: publishedID, Format: "gguf", Files: []vendor.File{{Path: "m.gguf", Size: int64(len(p.body)),
		Digests: vendor.Digests{SHA256: shaOf(string(p.body))}, Sources: []vendor.Source{{URL: p.URL + "/m.gguf", Ranges: true}}}}}, nil
}

// withStore gives a hive a store of its own, with the publisher as the only vendor.
func withStore(t *testing.T, p *publisher) func(*Options) {
	return func(o *Options) {
		s, err := artifact.Open(artifact.Options{Home: o.Home, Vendors: []vendor.Vendor{p},
			HTTP: egress.NewClient(egress.Options{Own: func(*url.URL) bool { return true }})})
		if err != nil {
			t.Fatal(err)
		}
		o.Artifacts = s
	}
}

// asPeer is the hive as a queen names it to another one.
func (a *api) asPeer(name string) contract.Peer {
	return contract.Peer{HiveID: a.hive.opts.NodeID, Name: name, URL: a.base, Model: publishedID, Ticket: a.ticket(publishedID, secret.TicketLife)}
}

func pullOf(peers ...contract.Peer) contract.ArtifactRef {
	return contract.ArtifactRef{Operation: contract.OpModelDownload, Reference: publishedRef, Peers: peers}
}

// other is a second hive of a test.
func other(t *testing.T, p *publisher) *api {
	return serve(t, withStore(t, p), func(o *Options) { o.NodeID += "-other" })
}

// TestModelFromANeighbour: a hive that is told of another one gets a large model from it, once, however many ask, and asks nobody else.
func TestModelFromANeighbour(t *testing.T) {
	t.Parallel()
	p := newPublisher(t, 64<<20)
	there, here := serve(t, withStore(t, p)), other(t, p)
	want := must[contract.Model](t)(do[contract.Model](there, pullOf(), "Model"))
	asked := p.count()
	var all sync.WaitGroup
	var mu sync.Mutex
	stories := 0
	for range 3 {
		job, err := here.submit(pullOf(here.asPeer("itself"), there.asPeer("tower")))
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			_, err, story := here.follow(job)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, n := range story {
				if strings.Contains(n.Message, "from hive tower") {
					stories++
					break
				}
			}
		})
	}
	all.Wait()
	got := must[contract.Model](t)(do[contract.Model](here, artifactRef(contract.OpModelGet, publishedRef), "Model"))
	if got.ID != publishedID || got.SizeBytes != want.SizeBytes || got.Files[0].SHA256 != shaOf(string(p.body)) || stories != 3 || p.count() != asked {
		t.Errorf("%+v; told by %d, the publisher was asked %d times more", got, stories, p.count()-asked)
	}
}

// TestNeighbourIsKilled: a hive that ends while it sends is no loss; what arrived from it is kept.
func TestNeighbourIsKilled(t *testing.T) {
	t.Parallel()
	p := newPublisher(t, 64<<20)
	there, here := serve(t, withStore(t, p)), other(t, p)
	must[contract.Model](t)(do[contract.Model](there, pullOf(), "Model"))
	asked := p.count()
	front := newLink(t, there.base)
	front.kill = 16 << 20
	peer := there.asPeer("tower")
	peer.URL = front.URL
	got := must[contract.Model](t)(do[contract.Model](here, pullOf(peer), "Model"))
	if got.ID != publishedID || p.count() == asked {
		t.Errorf("%+v, and the publisher was asked %d times", got, p.count()-asked)
	}
}

// link passes requests on, and is dead after so many bytes.
type link struct {
	*httptest.Server
	mu   sync.Mutex // mu guards the fields below
	kill int64
}

func newLink(t *testing.T, to string) *link {
	l := &link{}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := http.NewRequestWithContext(r.Context(), r.Method, to+r.URL.Path, nil)
		if err != nil {
			panic(err)
		}
		out.Header = r.Header.Clone()
		res, err := http.DefaultTransport.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer func() { _ = res.Body.Close() }()
		for k, v := range res.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(res.StatusCode)
		buf := make([]byte, 64<<10)
		for {
			n, err := res.Body.Read(buf)
			l.mu.Lock()
			l.kill -= int64(n)
			dead := l.kill < 0
			l.mu.Unlock()
			if dead {
				panic(http.ErrAbortHandler)
			}
			if _, werr := w.Write(buf[:n]); werr != nil || err != nil {
				return
			}
		}
	}))
	t.Cleanup(func() { l.CloseClientConnections(); l.Close() })
	return l
}

// TestTicketsOfOthers: without a ticket that is right nothing comes from a neighbour, and the model comes from its publisher.
func TestTicketsOfOthers(t *testing.T) {
	t.Parallel()
	p := newPublisher(t, 1<<20)
	there := serve(t, withStore(t, p))
	must[contract.Model](t)(do[contract.Model](there, pullOf(), "Model"))
	for name, ticket := range map[string]string{
		"expired":          there.ticket(publishedID, -6*time.Minute),
		"of another model": there.ticket("x:other@pinned", time.Hour),
		"forged":           there.ticket(publishedID, time.Hour) + "0",
	} {
		here := serve(t, withStore(t, p), func(o *Options) { o.NodeID += "-" + strings.Fields(name)[0] })
		asked := p.count()
		peer := there.asPeer("tower")
		peer.Ticket = ticket
		if got, err := do[contract.Model](here, pullOf(peer), "Model"); err != nil || got.ID != publishedID || p.count() != asked+1 {
			t.Errorf("%s: %+v, %v; the publisher was asked %d times", name, got, err, p.count()-asked)
		}
	}
	p.Close()
	here := serve(t, withStore(t, p), func(o *Options) { o.NodeID += "-last" })
	peer := there.asPeer("tower")
	peer.Ticket += "0"
	if _, err := do[contract.Model](here, pullOf(peer), "Model"); fault.KindOf(err) != fault.Unavailable || strings.Contains(err.Message, "t1.") {
		t.Errorf("with nobody left: %v", err)
	}
}
