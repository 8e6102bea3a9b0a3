package agent

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/httpd"
	"github.com/apiary-dev/apiary/core/keys"
	"github.com/apiary-dev/apiary/core/secret"
)

var update = flag.Bool("update", false, "write the golden file of the routes")

var pathPart = regexp.MustCompile(`\{[^}]*\}`)

// TestRoutes calls every route of an agent with every kind of credential, shown in every way, and compares who is let in with a table that
// people have read (T52). A route without a class is not in it, because none can be made.
func TestRoutes(t *testing.T) {
	home := t.TempDir()
	cfg, err := config.Load(config.Options{Embedded: []byte("queen {\n}\n"), Env: func(name string) (string, bool) {
		v, ok := map[string]string{"HOME": home, "APIARY_HOME": home}[name]
		return v, ok
	}})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Config: cfg, Executable: "/nonexistent/apiary", Log: slog.New(slog.DiscardHandler)}
	n, err := openNode(o)
	if err != nil {
		t.Fatal(err)
	}
	a, err := build(o, n, addresses{queen: "127.0.0.1:7833", hive: "127.0.0.1:7835"})
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]string{
		"none": "", "bad": "apk_aaaaaaaa_" + strings.Repeat("a", 43), "admin.key": n.admin.Reveal(), "cluster.key": n.cluster.Reveal(),
		"hive's": secret.ForHive(n.cluster, n.id).Reveal(), "another hive's": secret.ForHive(n.cluster, "other").Reveal(),
		"worker's": secret.ForWorker(n.cluster, "llama-00000000").Reveal(), "queen's": secret.ForQueen(n.cluster, n.id).Reveal(),
		"ticket": secret.NewTicket(secret.ForHive(n.cluster, n.id), "blobs:x", time.Now().Add(time.Hour)).Reveal(),
	}
	var list []contract.APIKey
	for _, class := range []string{contract.KeyInference, contract.KeyMetrics, contract.KeyAdmin, "revoked", "expired"} {
		wish := contract.NewKey{Name: class, Class: class}
		at := time.Now()
		switch class {
		case "revoked":
			wish.Class = contract.KeyAdmin
		case "expired":
			wish.Class, wish.TTLSeconds = contract.KeyAdmin, 1
			at = at.Add(-time.Minute)
		}
		key, k, err := keys.Make(wish, at)
		if err != nil {
			t.Fatal(err)
		}
		shown[class+" key"] = key.Reveal()
		if class != "revoked" {
			list = append(list, k)
		}
	}
	a.guard.keys.Set(list)
	kinds := []string{"none", "bad", "revoked key", "expired key", "inference key", "metrics key", "admin key", "admin.key", "cluster.key", "worker's", "hive's", "another hive's", "queen's", "ticket"}
	if len(kinds) != len(shown) {
		t.Fatalf("%d kinds of credentials, and %d are tried", len(shown), len(kinds))
	}
	var got bytes.Buffer
	for _, keyed := range []bool{false, true} {
		// The servers keep the guard that they were made with; this one says whether a key was ever made.
		g := a.guard
		g.required = func() bool { return keyed }
		for _, s := range []struct {
			name   string
			routes []httpd.Route
			check  func(httpd.Class, *http.Request) error
		}{{"queen", a.queenServer.Routes(), g.queen}, {"hive", a.hiveServer.Routes(), g.hiveServer}} {
			server, err := httpd.New(httpd.Options{Routes: s.routes, Authorize: s.check, Log: o.Log})
			if err != nil {
				t.Fatal(err)
			}
			paths := []string{"GET /no/such/path"}
			for _, r := range s.routes {
				paths = append(paths, r.Pattern)
			}
			slices.Sort(paths)
			for _, pattern := range paths {
				var in []string
				for _, kind := range kinds {
					ways := map[string]bool{}
					for _, way := range []string{"Authorization", "x-api-key", "api-key", "query", "cookie", "Basic"} {
						if shown[kind] == "" && way != "Authorization" {
							continue
						}
						ways[way] = enters(server, pattern, way, shown[kind])
					}
					if ways["Authorization"] {
						in = append(in, kind)
					}
					// Keys may be shown in two ways, all else in one, and nothing in any other way.
					without := enters(server, pattern, "", "")
					for _, way := range []string{"api-key", "query", "cookie", "Basic"} {
						if ways[way] && !without {
							t.Errorf("%s %s: %s is taken from %s", s.name, pattern, kind, way)
						}
					}
					if ways["x-api-key"] && !ways["Authorization"] {
						t.Errorf("%s %s: %s is taken from x-api-key alone", s.name, pattern, kind)
					}
				}
				who := strings.Join(in, ", ")
				switch len(in) {
				case 0:
					who = "nobody"
				case len(kinds):
					who = "everybody"
				}
				fmt.Fprintf(&got, "%s %-5s %-40s %s\n", map[bool]string{false: "open ", true: "keyed"}[keyed], s.name, pattern, who)
			}
		}
	}
	path := filepath.Join("testdata", "routes.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Split(string(want), "\n")
	for line := range strings.Lines(got.String()) {
		line = strings.TrimSuffix(line, "\n")
		if i := slices.Index(old, line); i >= 0 {
			old = slices.Delete(old, i, i+1)
		} else {
			t.Errorf("this is not in the table: %s", line)
		}
	}
	for _, line := range old {
		if line != "" {
			t.Errorf("this is in the table alone: %s", line)
		}
	}
}

// enters reports whether a call with a credential gets past the authorization of a route.
func enters(s *httpd.Server, pattern, way, credential string) bool {
	method, path, _ := strings.Cut(pattern, " ")
	path = pathPart.ReplaceAllString(path, "x")
	if way == "query" {
		path += "?key=" + credential + "&api_key=" + credential + "&access_token=" + credential
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(`{"worker":{"id":"llama-00000000"},"from":"other"}`) // a worker's beat, and nothing to the others
	}
	r := httptest.NewRequestWithContext(ctx, method, path, body)
	r.Host = "localhost"
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	switch way {
	case "Authorization":
		if credential != "" {
			r.Header.Set(way, "Bearer "+credential)
		}
	case "x-api-key", "api-key":
		r.Header.Set(way, credential)
	case "cookie":
		r.AddCookie(&http.Cookie{Name: "Authorization", Value: "Bearer " + credential, Quoted: true})
	case "Basic":
		r.SetBasicAuth("apiary", credential)
	}
	w := httptest.NewRecorder()
	func() {
		defer func() { _ = recover() }() // a handler that gives up
		s.ServeHTTP(w, r)
	}()
	if path == "/v1/worker-exits" && w.Code == http.StatusServiceUnavailable {
		return false // a queen that does not know its hives yet has all of them come again
	}
	return w.Code != http.StatusUnauthorized && w.Code != http.StatusForbidden
}
