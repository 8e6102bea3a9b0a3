// Package ociregistry is a container registry on this machine, filled as Ollama fills its own: the registry of
// go-containerregistry, which others wrote, with what real ones do in front of it: tokens, redirects of blobs to another host.
package ociregistry

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Layer is a part of a model. Kind is the end of its media type, such as "model".
type Layer struct {
	Kind string
	Body []byte
}

// Faults are what the registry does beside its work.
type Faults struct {
	Token     string // wanted in each request; handed out at /token to everybody, or to who shows User
	User      string // a whole value of Authorization
	Realm     string // where a token is said to be had; empty: at /token
	Redirect  bool   // blobs are sent by another host, at an address that is good for a time
	CutAfter  int64  // connections that send a blob end after so many bytes
	Status    int    // answered to every request for a manifest
	OnlyByTag bool   // manifests are not found by their digests
	RateLimit string // Retry-After of the status
}

// Request is one that was answered.
type Request struct {
	Blobs                              bool // by the host that blobs are redirected to
	Method, Path, Authorization, Range string
}

// Registry is a registry and the host that it keeps blobs on.
type Registry struct {
	URL, BlobURL string

	front, blobs *httptest.Server
	inner        http.Handler

	mu sync.Mutex
	// mu guards the fields below.
	faults   Faults
	requests []Request
}

// New starts an empty registry. Close ends it.
func New() *Registry {
	r := &Registry{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	r.front, r.blobs = httptest.NewServer(http.HandlerFunc(r.serve)), httptest.NewServer(http.HandlerFunc(r.serveBlob))
	r.URL, r.BlobURL = r.front.URL, r.blobs.URL
	return r
}

// Close ends the registry.
func (r *Registry) Close() { r.front.Close(); r.blobs.Close() }

// Set changes the faults.
func (r *Registry) Set(f Faults) { r.mu.Lock(); defer r.mu.Unlock(); r.faults = f }

// Requests returns what was asked since it was last called.
func (r *Registry) Requests() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.requests
	r.requests = nil
	return out
}

func (r *Registry) note(req *http.Request, blobs bool) Faults {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests = append(r.requests, Request{Blobs: blobs, Method: req.Method, Path: req.URL.Path, Authorization: req.Header.Get("Authorization"), Range: req.Header.Get("Range")})
	return r.faults
}

func (r *Registry) serve(w http.ResponseWriter, req *http.Request) {
	f := r.note(req, false)
	if req.URL.Path == "/token" {
		if f.User != "" && req.Header.Get("Authorization") != f.User || req.URL.Query().Get("scope") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": f.Token, "expires_in": 300})
		return
	}
	if f.Token != "" && req.Header.Get("Authorization") != "Bearer "+f.Token {
		name, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/v2/"), "/manifests/")
		realm := f.Realm
		if realm == "" {
			realm = r.URL + "/token"
		}
		w.Header().Set("Www-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="registry",scope="repository:%s:pull"`, realm, name))
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`)
		return
	}
	manifest := strings.Contains(req.URL.Path, "/manifests/")
	switch {
	case manifest && f.Status != 0:
		if f.RateLimit != "" {
			w.Header().Set("Retry-After", f.RateLimit)
		}
		w.WriteHeader(f.Status)
	case manifest && f.OnlyByTag && strings.Contains(req.URL.Path, "sha256:"):
		w.WriteHeader(http.StatusNotFound)
	case f.Redirect && strings.Contains(req.URL.Path, "/blobs/"):
		http.Redirect(w, req, r.BlobURL+req.URL.Path+"?signature="+url.QueryEscape("a+b/c"), http.StatusTemporaryRedirect)
	case !manifest:
		r.send(w, req, f)
	default:
		r.inner.ServeHTTP(w, req)
	}
}

func (r *Registry) serveBlob(w http.ResponseWriter, req *http.Request) {
	f := r.note(req, true)
	if req.URL.Query().Get("signature") != "a+b/c" || req.Header.Get("Authorization") != "" {
		w.WriteHeader(http.StatusBadRequest) // as object stores do
		return
	}
	r.send(w, req, f)
}

func (r *Registry) send(w http.ResponseWriter, req *http.Request, f Faults) {
	if f.CutAfter > 0 {
		w = &cutting{ResponseWriter: w, left: f.CutAfter}
	}
	r.inner.ServeHTTP(w, req)
}

// cutting breaks the connection after left bytes.
type cutting struct {
	http.ResponseWriter
	left int64
}

func (c *cutting) Write(p []byte) (int, error) {
	if int64(len(p)) <= c.left {
		c.left -= int64(len(p))
		return c.ResponseWriter.Write(p)
	}
	_, _ = c.ResponseWriter.Write(p[:c.left])
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

// Push puts a model into the registry, as ollama push does, and returns the digest of its manifest.
func (r *Registry) Push(name, tag string, layers ...Layer) (string, error) {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int    `json:"size"`
	}
	put := func(mediaType string, body []byte) (descriptor, error) {
		d := descriptor{mediaType, digest(body), len(body)}
		return d, r.do("POST", "/v2/"+name+"/blobs/uploads/?digest="+d.Digest, "application/octet-stream", body)
	}
	config, err := put("application/vnd.docker.container.image.v1+json", []byte(`{"model_format":"gguf","model_family":"llama"}`))
	if err != nil {
		return "", err
	}
	var list []descriptor
	for _, l := range layers {
		d, err := put("application/vnd.ollama.image."+l.Kind, l.Body)
		if err != nil {
			return "", err
		}
		list = append(list, d)
	}
	const mediaType = "application/vnd.docker.distribution.manifest.v2+json"
	body, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaType, "config": config, "layers": list})
	if err != nil {
		return "", err
	}
	return digest(body), r.do("PUT", "/v2/"+name+"/manifests/"+tag, mediaType, body)
}

func digest(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// do asks the registry itself, past the faults.
func (r *Registry) do(method, target, mediaType string, body []byte) error {
	req := httptest.NewRequest(method, target, bytes.NewReader(body))
	req.Header.Set("Content-Type", mediaType)
	w := httptest.NewRecorder()
	r.inner.ServeHTTP(w, req)
	if w.Code >= 300 {
		return fmt.Errorf("%s %s: %d %s", method, target, w.Code, w.Body)
	}
	return nil
}
