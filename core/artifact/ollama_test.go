package artifact

import (
	"encoding/base64"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/egress"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/secret"
	"github.com/apiary-dev/apiary/core/testutil/ociregistry"
	"github.com/apiary-dev/apiary/plugins/vendor"
	"github.com/apiary-dev/apiary/vendors/ollama"
)

// ollamaStore is a store whose vendor asks a registry on this machine.
func ollamaStore(t *testing.T, r *ociregistry.Registry, credential string) *Store {
	t.Helper()
	client := egress.NewClient(egress.Options{Idle: impatient, Own: func(u *url.URL) bool {
		at := u.Scheme + "://" + u.Host
		return at == r.URL || at == r.BlobURL
	}})
	credentials := func(name, host string) (secret.Secret, error) {
		if name == ollama.Scheme && host == strings.TrimPrefix(r.URL, "http://") {
			return secret.Secret(credential), nil
		}
		return "", nil
	}
	v := ollama.New()
	err := v.Configure(t.Context(), vendor.Configuration{
		Values: []byte(`{"registry":"` + r.URL + `"}`), Host: NewHost(HostOptions{Name: "ollama", Credentials: credentials, HTTP: client}),
	})
	if err != nil {
		t.Fatal(err)
	}
	return openStore(t, t.TempDir(), func(o *Options) { o.Vendors, o.HTTP, o.Credentials = []vendor.Vendor{v}, client, credentials })
}

// storyRegistry is a registry with a model.
func storyRegistry(t *testing.T) (r *ociregistry.Registry, model []byte, pinned string) {
	t.Helper()
	model, err := os.ReadFile("../../vendors/builtin/models/stories260k.gguf")
	if err != nil {
		t.Fatal(err)
	}
	r = ociregistry.New()
	t.Cleanup(r.Close)
	pinned, err = r.Push("library/stories", "latest", ociregistry.Layer{Kind: "template", Body: []byte("{{ .Prompt }}")}, ociregistry.Layer{Kind: "model", Body: model},
		ociregistry.Layer{Kind: "params", Body: []byte(`{"stop":["x"]}`)}, ociregistry.Layer{Kind: "license", Body: []byte("MIT")})
	if err != nil {
		t.Fatal(err)
	}
	return r, model, pinned
}

func TestOllama(t *testing.T) {
	t.Parallel()
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:secret"))
	for name, c := range map[string]struct {
		faults     ociregistry.Faults
		credential string
	}{
		"open":                     {},
		"blobs elsewhere":          {faults: ociregistry.Faults{Redirect: true}},
		"cut":                      {faults: ociregistry.Faults{CutAfter: 500_000}},
		"cut elsewhere, for token": {faults: ociregistry.Faults{CutAfter: 500_000, Redirect: true, Token: "t0k"}},
		"token":                    {faults: ociregistry.Faults{Token: "t0k"}},
		"token for a password":     {faults: ociregistry.Faults{Token: "t0k", User: basic, Redirect: true}, credential: basic},
		"token for a token":        {faults: ociregistry.Faults{Token: "t0k", User: "Bearer long-lived"}, credential: "long-lived"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, model, pinned := storyRegistry(t)
			r.Set(c.faults)
			s := ollamaStore(t, r, c.credential)
			var log reports
			m, err := s.PullModel(t.Context(), "ollama:stories", log.add)
			if err != nil {
				t.Fatal(err)
			}
			log.checkMonotonic(t)
			if want := "ollama:" + strings.TrimPrefix(r.URL, "http://") + "/library/stories:latest@" + pinned; m.ID != want || m.Architecture != "llama" || m.Vendor != "ollama" || len(m.Files) != 4 {
				t.Errorf("%+v", m)
			}
			path, err := s.ModelPath(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := os.ReadFile(path); err != nil || sum256(b) != sum256(model) {
				t.Errorf("what the engine gets is not the model: %v", err)
			}
			wanted, tokens := 0, 0
			for _, q := range r.Requests() {
				if q.Path == "/token" {
					tokens++
				}
				if c.faults.Token != "" && !q.Blobs && q.Authorization == "" && q.Path != "/token" {
					wanted++
				}
				if q.Blobs && q.Authorization != "" || q.Path == "/token" && q.Authorization != c.faults.User {
					t.Errorf("the credential went along: %+v", q)
				}
			}
			// One is asked for by the vendor's host, one by the store.
			if c.faults.Token != "" && (tokens != 2 || wanted > 3) {
				t.Errorf("%d tokens, %d refused requests", tokens, wanted)
			}
			// What was pulled needs no network any more.
			if again, err := s.PullModel(t.Context(), m.ID, nil); err != nil || again.ID != m.ID || len(r.Requests()) > 0 {
				t.Errorf("%v, %v", again.ID, err)
			}
		})
	}
}

func TestOllamaRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		faults ociregistry.Faults
		ref    string
		kind   fault.Kind
		code   string
	}{
		"no such model":        {ref: "ollama:other", kind: fault.NotFound, code: "model_not_found"},
		"token for others":     {faults: ociregistry.Faults{Token: "t0k", User: "Bearer somebody"}, kind: fault.Denied, code: "registry_denied"},
		"realm of another":     {faults: ociregistry.Faults{Token: "t0k", Realm: "https://evil.test/token"}, kind: fault.Denied, code: "registry_denied"},
		"realm, another port":  {faults: ociregistry.Faults{Token: "t0k", Realm: "http://127.0.0.1:1/token"}, kind: fault.Denied, code: "registry_denied"},
		"rate limit":           {faults: ociregistry.Faults{Status: 429, RateLimit: "9"}, kind: fault.Exhausted, code: "rate_limited"},
		"in the clear to more": {ref: "ollama:127.0.0.1:1/library/stories", kind: fault.Denied, code: egress.CodeRefused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, _, _ := storyRegistry(t)
			r.Set(c.faults)
			s := ollamaStore(t, r, "canary")
			ref := "ollama:stories"
			if c.ref != "" {
				ref = c.ref
			}
			_, err := s.PullModel(t.Context(), ref, nil)
			wantFault(t, err, c.kind, c.code, "")
			if strings.Contains(err.Error(), "canary") {
				t.Error("the credential is in the message")
			}
		})
	}
}

func TestParseChallenge(t *testing.T) {
	at := &url.URL{Scheme: "https", Host: "r.test"}
	for header, want := range map[string]challenge{
		`Bearer realm="https://r.test/t",service="s",scope="repository:a/b:pull,push"`: {"https://r.test/t", "s", "repository:a/b:pull,push"},
		`bearer  scope="x", realm="https://R.test/t?a=1"`:                              {"https://R.test/t?a=1", "", "x"},
		`Bearer realm=https://r.test/t, service=s`:                                     {"https://r.test/t", "s", ""},
		`Bearer realm="https://r.test:444/t"`:                                          {}, `Bearer realm="http://r.test/t"`: {},
		`Bearer realm="https://r.test.evil/t"`: {}, `Bearer realm="https://u:p@r.test/t"`: {},
		`Bearer realm="Authentication required"`: {}, `Bearer`: {}, `Basic realm="https://r.test/t"`: {}, `Bearer realm="https://r.test/t`: {}, ``: {},
		`Bearer =,=,==`: {}, `Bearer realm="//r.test/t"`: {},
	} {
		got, ok := parseChallenge([]string{"Basic x", header}, at)
		if ok != (want != challenge{}) || ok && got != want {
			t.Errorf("%s: %+v, %v", header, got, ok)
		}
	}
}
