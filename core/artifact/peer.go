package artifact

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/folder"
	"github.com/apiary-dev/apiary/core/run"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// Bounds of what is asked of other hives. Where they cannot help, the origin of a model can, so none is waited for long.
const (
	peerIdle   = 10 * time.Second // without an answer, or bytes worth the name
	peerTries  = 2                // in a row without progress
	peerRounds = 12               // while all that are left send files to others already
	maxNames   = 64               // references that an entry of another hive brings
)

const codeBusy = "hive_busy"

// newPeerClient makes the client for other hives. Where they are a queen has said: so any address may be one, and none leads elsewhere.
func newPeerClient(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Client {
	c := egress.NewClient(egress.Options{Own: func(*url.URL) bool { return true }, Proxy: func(*http.Request) (*url.URL, error) { return nil, nil }, Dial: dial, Idle: peerIdle})
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// peers are the other hives from which one pull may fetch. They belong to its goroutine.
type peers struct {
	list   []contract.Peer // those that are left
	client *http.Client    // with their tickets
	report Report
	busy   bool // one of them had no time, since this was last looked at
}

// ticketed adds the tickets to requests for the blobs of the hives that take them.
type ticketed struct {
	next  http.RoundTripper
	peers []contract.Peer
}

// RoundTrip implements http.RoundTripper.
func (t ticketed) RoundTrip(req *http.Request) (*http.Response, error) {
	if i := slices.IndexFunc(t.peers, func(p contract.Peer) bool { return strings.HasPrefix(req.URL.String(), blobsOf(p)) }); i >= 0 {
		req = req.Clone(req.Context())
		req.Header.Set("Authorization", "Bearer "+t.peers[i].Ticket)
	}
	return t.next.RoundTrip(req)
}

func blobsOf(p contract.Peer) string { return strings.TrimRight(p.URL, "/") + "/v1/blobs" }

func (s *Store) newPeers(list []contract.Peer, report Report) *peers {
	client := *s.peerClient
	client.Transport = ticketed{s.peerClient.Transport, slices.Clone(list)}
	return &peers{list: slices.Clone(list), client: &client, report: report}
}

func placeOf(p contract.Peer) string { return "hive " + printable(cmp.Or(p.Name, p.HiveID)) }

// name says which hive an address is of.
func (p *peers) name(u *url.URL) string {
	for _, o := range p.list {
		if strings.HasPrefix(u.String(), blobsOf(o)) {
			return placeOf(o)
		}
	}
	return u.Host
}

// sources are where a file of the model can be had.
func (p *peers) sources(sha string) []vendor.Source {
	out := make([]vendor.Source, 0, len(p.list))
	for _, o := range p.list {
		out = append(out, vendor.Source{URL: blobsOf(o) + "/" + sha, Ranges: true})
	}
	return out
}

// failed leaves a hive out of the rest of the pull that did not send what it should have, unless it only had no time.
func (p *peers) failed(src vendor.Source, err error) {
	if fault.As(err).Code == codeBusy {
		p.busy = true
		return
	}
	p.leaveOut(func(o contract.Peer) bool { return strings.HasPrefix(src.URL, blobsOf(o)) }, err)
}

func (p *peers) leaveOut(which func(contract.Peer) bool, err error) {
	p.list = slices.DeleteFunc(p.list, func(o contract.Peer) bool {
		if which(o) {
			p.report("peer", fmt.Sprintf("%s is left out: %v", placeOf(o), err), nil)
			return true
		}
		return false
	})
}

// pullFromPeers brings the model that ref names from the hives of list, which have it under the same pinned id.
func (s *Store) pullFromPeers(ctx context.Context, ref string, list []contract.Peer, report Report) (contract.Model, error) {
	p := s.newPeers(list, report)
	id := list[0].Model
	report("resolve", "asking other hives for "+id, nil)
	entry, err := s.entryOf(ctx, p, id)
	if err != nil {
		return contract.Model{}, err
	}
	m := contract.Model{ID: id, Vendor: entry.Vendor, Format: entry.Format, Unproved: entry.Unproved, AddedAt: s.now().UTC()}
	for _, r := range append([]string{ref}, entry.References...) {
		if r != "" && r != id && len(r) <= maxReferenceInPlace && !contract.HasHidden(r) && len(m.References) < maxNames && !slices.Contains(m.References, r) {
			m.References = append(m.References, r)
		}
	}
	files := make([]vendor.File, 0, len(entry.Files))
	for _, f := range entry.Files {
		files = append(files, vendor.File{Path: f.Path, Role: f.Role, Size: int64(f.SizeBytes), Digests: vendor.Digests{SHA256: f.SHA256}})
	}
	from := origin{client: p.client, name: p.name, failed: p.failed, tries: peerTries}
	err = s.bring(ctx, &m, files, func(f vendor.File) (contract.File, error) { return s.fetchFromPeers(ctx, p, from, f, report) }, func() error {
		if m.Unproved && !strings.HasSuffix(id, "@"+digestOf(m.Files)[:12]) {
			return fault.New(fault.Conflict, codeDigest, "The files that other hives have for %s are not those that its name promises.", id)
		}
		return nil
	}, report)
	return m, err
}

// fetchFromPeers brings one file. While the only hives that are left are busy, it waits for them.
func (s *Store) fetchFromPeers(ctx context.Context, p *peers, from origin, f vendor.File, report Report) (contract.File, error) {
	for round := 1; ; round++ {
		if f.Sources = p.sources(f.Digests.SHA256); len(f.Sources) == 0 {
			return contract.File{}, fault.New(fault.Unavailable, "no_peer", "No other hive is left that could send %s.", f.Path)
		}
		p.busy = false
		out, err := s.fetchBlob(ctx, from, f, report)
		if err == nil || ctx.Err() != nil || !p.busy || round == peerRounds {
			return out, err
		}
		report("wait", f.Path+": the hives that have it send files to others already; waiting for them", nil)
		if err := run.Sleep(ctx, s.timing.busy); err != nil {
			return contract.File{}, err
		}
	}
}

// entryOf asks the hives in order for the catalog entry of the model. Those that do not give a usable one are left out.
func (s *Store) entryOf(ctx context.Context, p *peers, id string) (contract.Model, error) {
	for _, o := range slices.Clone(p.list) {
		m, err := s.askEntry(ctx, p, o)
		if err == nil {
			err = checkEntry(m, id, o)
		}
		if err == nil {
			return m, nil
		}
		if ctx.Err() != nil {
			return contract.Model{}, ctx.Err()
		}
		p.leaveOut(func(other contract.Peer) bool { return other.HiveID == o.HiveID }, err)
	}
	return contract.Model{}, fault.New(fault.Unavailable, "no_peer", "No other hive could say what %s consists of.", id)
}

func (s *Store) askEntry(ctx context.Context, p *peers, o contract.Peer) (m contract.Model, err error) {
	ctx, cancel := context.WithTimeout(ctx, metadataTimeout)
	defer cancel()
	req, err := newRequest(ctx, http.MethodGet, blobsOf(o), "", nil)
	if err != nil {
		return m, err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return m, unreachable(placeOf(o), err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return m, fault.New(fault.Unavailable, "source_unavailable", "%s answered %d to the question for a model.", placeOf(o), res.StatusCode)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxEntry+1))
	if err != nil {
		return m, unreachable(placeOf(o), err)
	}
	if len(b) > maxEntry || json.Unmarshal(b, &m) != nil {
		return m, fault.New(fault.Unavailable, "source_broken", "%s answered something that is no entry of a catalog.", placeOf(o))
	}
	return m, nil
}

// checkEntry refuses an entry of another hive that would not have become one here.
func checkEntry(m contract.Model, id string, o contract.Peer) error {
	scheme, _, _ := strings.Cut(id, ":")
	man := &vendor.Manifest{Reference: m.ID, Format: m.Format}
	var total contract.Bytes
	usable := m.ID == id && scheme != "file" && len(m.Vendor) <= 64 && !contract.HasHidden(m.Vendor)
	for _, f := range m.Files {
		usable = usable && f.InPlace == nil && validDigest(f.SHA256) && f.SizeBytes > 0 && f.SizeBytes < 1<<62
		total += f.SizeBytes
		man.Files = append(man.Files, vendor.File{Path: f.Path, Role: f.Role, Size: int64(f.SizeBytes), Sources: []vendor.Source{{URL: o.URL}}})
	}
	if !usable || total != m.SizeBytes {
		return fault.New(fault.Invalid, "bad_entry", "%s has another model than %s, or describes it in a way that cannot be right.", placeOf(o), id)
	}
	return checkManifest(man, vendor.Info{Name: placeOf(o), Schemes: []string{scheme}})
}

// ours reports whether a pull failed for reasons of this hive, which another source does not change.
func ours(ctx context.Context, err error) bool {
	_, writing := errors.AsType[*writeError](err)
	return ctx.Err() != nil || writing || fault.KindOf(err) == fault.Exhausted || folder.IsFull(err)
}
