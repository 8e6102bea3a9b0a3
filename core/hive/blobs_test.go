package hive

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/secret"
)

const hubModel = "hf:org/repo@0123:Q4_K_M"

func (s *store) OpenBlob(sha string) (*os.File, error) {
	f, err := os.Open(filepath.Join(s.blobs, sha))
	if err != nil {
		return nil, missing("blob_not_found", sha)
	}
	return f, nil
}

// withBlobs puts models with one file each into the store of a hive.
func withBlobs(t *testing.T, contents map[string]string) func(*Options) {
	dir := t.TempDir()
	return func(o *Options) {
		s := o.Artifacts.(*store)
		s.blobs = dir
		for id, text := range contents {
			sha := shaOf(text)
			if err := os.WriteFile(filepath.Join(dir, sha), []byte(text), 0o400); err != nil {
				t.Fatal(err)
			}
			s.models[id] = contract.Model{ID: id, References: []string{id + "!"}, Vendor: "huggingface", Format: "gguf", SizeBytes: contract.Bytes(len(text)), AddedAt: time.Now(),
				Files: []contract.File{{Path: "m.gguf", SizeBytes: contract.Bytes(len(text)), SHA256: sha}}}
		}
	}
}

func shaOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// fetch asks for a path with a token.
func (a *api) fetch(path, token, ranges string) (*http.Response, []byte) {
	a.t.Helper()
	r, err := http.NewRequest(http.MethodGet, a.base+path, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	if ranges != "" {
		r.Header.Set("Range", ranges)
	}
	res, err := a.http.Do(r)
	if err != nil {
		a.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	return res, b
}

func (a *api) ticket(model string, life time.Duration) string {
	return secret.NewTicket(secret.ForHive(clusterKey, a.hive.opts.NodeID), contract.TicketForBlobs(model), time.Now().Add(life)).Reveal()
}

// TestBlobs: a ticket opens the files of its model, whole and in ranges, and nothing else.
func TestBlobs(t *testing.T) {
	t.Parallel()
	const text, other = "GGUF and so on", "another one"
	a := serve(t, withBlobs(t, map[string]string{hubModel: text, "hf:other@1": other}), func(o *Options) {
		s := o.Artifacts.(*store)
		s.models["file:/models/m.gguf@1"] = contract.Model{ID: "file:/models/m.gguf@1", Files: []contract.File{{SHA256: shaOf(text), InPlace: &contract.InPlace{Path: "/models/m.gguf"}}}}
		s.models["hf:gone@1"] = contract.Model{ID: "hf:gone@1", Files: []contract.File{{SHA256: shaOf("gone")}}}
	})
	good := a.ticket(hubModel, time.Hour)
	res, b := a.fetch("/v1/blobs", good, "")
	var m contract.Model
	if err := json.Unmarshal(b, &m); err != nil || res.StatusCode != 200 || m.ID != hubModel || len(m.Files) != 1 || m.Files[0].SHA256 != shaOf(text) {
		t.Fatalf("the entry: %d %s", res.StatusCode, b)
	}
	blob := "/v1/blobs/" + shaOf(text)
	if res, b := a.fetch(blob, good, ""); res.StatusCode != 200 || string(b) != text || res.Header.Get("ETag") != `"`+shaOf(text)+`"` || res.ContentLength != int64(len(text)) {
		t.Errorf("the file: %d %q %v", res.StatusCode, b, res.Header)
	}
	if res, b := a.fetch(blob, good, "bytes=5-7"); res.StatusCode != 206 || string(b) != "and" || res.Header.Get("Content-Range") != fmt.Sprintf("bytes 5-7/%d", len(text)) {
		t.Errorf("a range: %d %q", res.StatusCode, b)
	}
	if res, _ := a.fetch(blob, good, "bytes=100-"); res.StatusCode != 416 {
		t.Errorf("a range beyond the end: %d", res.StatusCode)
	}
	forged := []byte(good)
	forged[len(forged)-1] ^= 1
	elsewhere := secret.NewTicket(secret.ForHive(clusterKey, "another"), contract.TicketForBlobs(hubModel), time.Now().Add(time.Hour)).Reveal()
	otherwise := secret.NewTicket(secret.ForHive(clusterKey, a.hive.opts.NodeID), "logs:x", time.Now().Add(time.Hour)).Reveal()
	for name, c := range map[string]struct {
		path, token string
		status      int
		code        string
	}{
		"no token":                  {blob, "", 401, "invalid_ticket"},
		"a forged ticket":           {blob, string(forged), 401, "invalid_ticket"},
		"one of another hive":       {blob, elsewhere, 401, "invalid_ticket"},
		"an expired one":            {blob, a.ticket(hubModel, -6*time.Minute), 401, "invalid_ticket"},
		"one that lasts too long":   {blob, a.ticket(hubModel, 2*time.Hour), 401, "invalid_ticket"},
		"the hive's secret":         {blob, secret.ForHive(clusterKey, a.hive.opts.NodeID).Reveal(), 401, "invalid_ticket"},
		"one for another purpose":   {blob, otherwise, 403, "wrong_ticket"},
		"one of another model":      {blob, a.ticket("hf:other@1", time.Hour), 403, "not_in_ticket"},
		"no digest":                 {"/v1/blobs/..%2f..%2fnode.json", good, 403, "not_in_ticket"},
		"a digest of nothing":       {"/v1/blobs/" + shaOf("x"), good, 403, "not_in_ticket"},
		"one by a reference":        {blob, a.ticket(hubModel+"!", time.Hour), 404, "model_not_found"},
		"one of no model":           {"/v1/blobs", a.ticket("hf:none@1", time.Hour), 404, "model_not_found"},
		"one of a model in place":   {blob, a.ticket("file:/models/m.gguf@1", time.Hour), 404, "model_not_found"},
		"its entry":                 {"/v1/blobs", a.ticket("file:/models/m.gguf@1", time.Hour), 404, "model_not_found"},
		"a file that has vanished":  {"/v1/blobs/" + shaOf("gone"), a.ticket("hf:gone@1", time.Hour), 404, "blob_not_found"},
		"the entry without a token": {"/v1/blobs", "", 401, "invalid_ticket"},
	} {
		res, b := a.fetch(c.path, c.token, "")
		var e contract.ErrorBody
		if json.Unmarshal(b, &e) != nil || res.StatusCode != c.status || e.Error.Code != c.code || bytes.Contains(b, []byte("/")) || strings.Contains(string(b), other) {
			t.Errorf("%s: %d %s", name, res.StatusCode, b)
		}
	}
}

// TestBusyHive: a bounded number of files is sent at once, and the next one is told when to come back.
func TestBusyHive(t *testing.T) {
	t.Parallel()
	const text = "GGUF and so on"
	a := serve(t, withBlobs(t, map[string]string{hubModel: text}))
	good := a.ticket(hubModel, time.Hour)
	for range maxSending {
		a.hive.sending <- struct{}{}
	}
	if res, b := a.fetch("/v1/blobs/"+shaOf(text), good, ""); res.StatusCode != 503 || res.Header.Get("Retry-After") != "5" {
		t.Errorf("%d %v %s", res.StatusCode, res.Header, b)
	}
	if res, _ := a.fetch("/v1/blobs", good, ""); res.StatusCode != 200 {
		t.Errorf("the entry: %d", res.StatusCode)
	}
	<-a.hive.sending
	for range 2 {
		if res, _ := a.fetch("/v1/blobs/"+shaOf(text), good, ""); res.StatusCode != 200 {
			t.Errorf("%d", res.StatusCode)
		}
	}
}

// TestRefusedPeers: an operation that names more hives than may be, or addresses that are none, is refused.
func TestRefusedPeers(t *testing.T) {
	t.Parallel()
	a := serve(t)
	good := contract.Peer{HiveID: "h2", Name: "tower", URL: "http://127.0.0.1:7835", Model: hubModel, Ticket: "t1.x"}
	change := func(f func(*contract.Peer)) []contract.Peer { p := good; f(&p); return []contract.Peer{p} }
	for name, peers := range map[string][]contract.Peer{
		"too many":           {good, good, good, good, good},
		"no address":         change(func(p *contract.Peer) { p.URL = "" }),
		"a file":             change(func(p *contract.Peer) { p.URL = "file:///etc" }),
		"a password":         change(func(p *contract.Peer) { p.URL = "http://a:b@127.0.0.1:1" }),
		"a query":            change(func(p *contract.Peer) { p.URL = "http://127.0.0.1:1/?x=" }),
		"a hidden character": change(func(p *contract.Peer) { p.Name = "a\nb" }),
		"no hive":            change(func(p *contract.Peer) { p.HiveID = "" }),
		"no model":           change(func(p *contract.Peer) { p.Model = "" }),
		"two models":         append(change(func(p *contract.Peer) { p.Model = "hf:other@1" }), good),
		"no ticket":          change(func(p *contract.Peer) { p.Ticket = "" }),
		"a long ticket":      change(func(p *contract.Peer) { p.Ticket = strings.Repeat("x", 5000) }),
		"a header":           change(func(p *contract.Peer) { p.Ticket = "x\r\nCookie: y" }),
	} {
		ref := artifactRef(contract.OpModelDownload, "file:/models/m.gguf")
		ref.Peers = peers
		if _, err := a.submit(ref); err == nil || err.Code != "invalid_peers" || strings.Contains(err.Message, "t1.x") {
			t.Errorf("%s: %v", name, err)
		}
		spec := echoSpawn("echo-1")
		spec.Peers = peers
		if _, err := a.submit(spec); err == nil || err.Code != "invalid_peers" {
			t.Errorf("a spawn with %s: %v", name, err)
		}
	}
}
