// Package fakehub is a server that behaves like the Hugging Face Hub, for tests: repositories with revisions, trees in pages,
// files that are redirected to a second server in the part of the content network, which wants no credentials and whose
// addresses expire, and the refusals and faults of the real thing. Real clients download from it in the tests of this package.
package fakehub

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"time"
)

// File is a file of a repository.
type File struct {
	Path string
	Body []byte
	LFS  bool // large: it has a SHA-256 and comes from the content network
}

// Repo is a repository of models.
type Repo struct {
	ID       string            // "org/name" or a bare name
	Files    []File            // of the branch main
	Refs     map[string][]File // of other branches, tags and refs/pr/N
	Gated    string            // "", "auto" or "manual"
	Private  bool
	Disabled bool
	Tokens   []string // that may see a private repository and read a gated one
	Redacted bool     // hashes of large files are withheld
	MovedTo  string   // the repository is another one now
}

// Faults are what goes wrong, changed with Hub.Set.
type Faults struct {
	PageSize   int    // entries of a page of a tree; 0: 1000
	Token      string // the only token that the hub knows, besides those of repositories; "": any
	LinkHost   string // what a mirror that rewrites nothing puts into Link headers: scheme and host; "": the hub itself
	Limited    int    // so many requests to the hub are answered 429
	LimitHead  map[string]string
	Garbage    string // the answer to each question about a repository
	GarbageTyp string // its content type
	Slow       int    // bytes a second of each download; 0: as fast as it goes
	CutAfter   int64  // bytes after which the content network cuts the first answer of a signature, which then has expired; 0: never
	Wrong      bool   // the content network sends one wrong byte
	NoRanges   bool   // the content network ignores Range
}

// Request is a request that arrived.
type Request struct {
	CDN           bool
	Method, Path  string // with query
	Authorization string
	Range         string
	Agent         string
	Sent          int64 // bytes of the body
	Status        int
}

// Hub is the two servers.
type Hub struct {
	URL, CDN string // base URLs

	hub, cdn *httptest.Server

	mu sync.Mutex
	// mu guards the fields below.
	repos    map[string]Repo
	faults   Faults
	requests []*Request
	signed   map[string]bool // signatures: whether they are valid
	next     int
}

// New starts the servers on loopback.
func New() *Hub {
	h := &Hub{repos: map[string]Repo{}, signed: map[string]bool{}}
	h.hub = httptest.NewServer(h.recorded(false, h.serveHub))
	h.cdn = httptest.NewServer(h.recorded(true, h.serveCDN))
	h.URL, h.CDN = h.hub.URL, h.cdn.URL
	return h
}

// Close ends the servers and what they are sending.
func (h *Hub) Close() {
	h.hub.CloseClientConnections()
	h.cdn.CloseClientConnections()
	h.hub.Close()
	h.cdn.Close()
}

// Add publishes or replaces a repository.
func (h *Hub) Add(r Repo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.repos[r.ID] = r
}

// Set changes what goes wrong.
func (h *Hub) Set(change func(*Faults)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(&h.faults)
}

// Requests returns what arrived since the last call. Counts of answers that are still being sent go on growing.
func (h *Hub) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]Request, 0, len(h.requests))
	for _, r := range h.requests {
		out = append(out, *r)
	}
	h.requests = nil
	return out
}

// Commit returns the commit that a revision of a repository stands for, "" where there is none.
func (h *Hub) Commit(id, revision string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	commit, _, _ := h.repos[id].at(revision)
	return commit
}

// SHA256 returns the digest of data in hex.
func SHA256(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// GitBlob returns the name that git gives data.
func GitBlob(data []byte) string {
	sum := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(data)), data...))
	return hex.EncodeToString(sum[:])
}

// pointer is what git holds in the place of a large file.
func (f File) pointer() []byte {
	return fmt.Appendf(nil, "version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", SHA256(f.Body), len(f.Body))
}

// etag identifies the content, as the hub does it.
func (f File) etag() string {
	if f.LFS {
		return SHA256(f.Body)
	}
	return GitBlob(f.Body)
}

// at finds a revision: a name, a commit, or the beginning of one.
func (r Repo) at(revision string) (commit string, files []File, ok bool) {
	names := []string{"main"}
	for name := range r.Refs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		files := r.Files
		if name != "main" {
			files = r.Refs[name]
		}
		commit := r.commit(files)
		if name == revision || revision == "HEAD" && name == "main" || len(revision) >= 7 && strings.HasPrefix(commit, revision) {
			return commit, files, true
		}
	}
	return "", nil, false
}

func (r Repo) commit(files []File) string {
	sum := sha1.New()
	_, _ = fmt.Fprintln(sum, r.ID)
	for _, f := range files {
		_, _ = fmt.Fprintln(sum, f.Path, f.etag())
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// recorded notes each request and its answer.
func (h *Hub) recorded(cdn bool, serve func(http.ResponseWriter, *http.Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		note := &Request{CDN: cdn, Method: r.Method, Path: r.URL.RequestURI(), Authorization: r.Header.Get("Authorization"), Range: r.Header.Get("Range"), Agent: r.UserAgent(), Status: 200}
		h.requests = append(h.requests, note)
		h.mu.Unlock()
		serve(&counter{ResponseWriter: w, h: h, note: note}, r)
	})
}

// counter counts what is sent.
type counter struct {
	http.ResponseWriter
	h    *Hub
	note *Request
}

func (c *counter) WriteHeader(status int) {
	c.h.mu.Lock()
	c.note.Status = status
	c.h.mu.Unlock()
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.h.mu.Lock()
	c.note.Sent += int64(n)
	c.h.mu.Unlock()
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (c *counter) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// sign makes an address of the content network that works until it is expired.
func (h *Hub) sign(digest, name string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.next++
	signature := fmt.Sprintf("s%d-%s", h.next, digest[:8])
	h.signed[signature] = true
	return h.CDN + "/blobs/" + digest + "?response-content-disposition=" + name + "&Expires=1&Signature=" + signature
}

// serveCDN sends the bytes of large files.
func (h *Hub) serveCDN(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "" {
		http.Error(w, "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>", http.StatusBadRequest)
		return
	}
	signature := r.URL.Query().Get("Signature")
	h.mu.Lock()
	valid, faults := h.signed[signature], h.faults
	body, found := h.blob(strings.TrimPrefix(r.URL.Path, "/blobs/"))
	if faults.CutAfter > 0 && r.Method == http.MethodGet {
		h.signed[signature] = false
	}
	h.mu.Unlock()
	if !valid || !found {
		http.Error(w, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>", http.StatusForbidden)
		return
	}
	if faults.Wrong {
		body = slices.Clone(body)
		body[len(body)/2] ^= 1
	}
	if faults.NoRanges {
		r.Header.Del("Range")
	}
	w.Header().Set("ETag", `"`+SHA256(body)[:32]+`"`) // not the one of the hub
	w.Header().Set("Content-Type", "application/octet-stream")
	http.ServeContent(&slow{ResponseWriter: w, r: r, rate: faults.Slow, cut: faults.CutAfter}, r, "", time.Time{}, bytes.NewReader(body))
}

// blob finds a large file by its digest. The hub is locked.
func (h *Hub) blob(digest string) ([]byte, bool) {
	for _, repo := range h.repos {
		for _, f := range repo.Files {
			if f.LFS && SHA256(f.Body) == digest {
				return f.Body, true
			}
		}
		for _, files := range repo.Refs {
			for _, f := range files {
				if f.LFS && SHA256(f.Body) == digest {
					return f.Body, true
				}
			}
		}
	}
	return nil, false
}

// slow sends at a rate, and ends the connection after some bytes.
type slow struct {
	http.ResponseWriter
	r    *http.Request
	rate int   // bytes a second; 0: at once
	cut  int64 // 0: never
	sent int64
}

func (s *slow) Write(p []byte) (int, error) {
	const steps = 20 // a second
	total := 0
	for len(p) > 0 {
		n := len(p)
		if s.rate > 0 {
			n = min(n, max(1, s.rate/steps))
		}
		if s.cut > 0 {
			if s.sent >= s.cut {
				panic(http.ErrAbortHandler)
			}
			n = int(min(int64(n), s.cut-s.sent))
		}
		m, err := s.ResponseWriter.Write(p[:n])
		total += m
		s.sent += int64(m)
		if err != nil {
			return total, err
		}
		p = p[n:]
		if s.rate > 0 || s.cut > 0 {
			_ = http.NewResponseController(s.ResponseWriter).Flush()
		}
		if s.rate > 0 {
			select {
			case <-time.After(time.Second / steps):
			case <-s.r.Context().Done():
				return total, s.r.Context().Err()
			}
		}
	}
	return total, nil
}
