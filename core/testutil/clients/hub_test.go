package clients

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/testutil/fakehub"
)

// The versions of the clients of Hugging Face.
const (
	hubNPMVersion  = "2.17.5"
	hubPyPIVersion = "2.4.0"
)

// hubObservations is what the scripts hub.cjs and hub.py print.
type hubObservations struct {
	Commit      string            `json:"commit"`
	Listed      map[string]string `json:"listed"` // by path: the SHA-256 of large files, git's name of others
	Files       map[string]string `json:"files"`  // by path: the SHA-256 of what was downloaded
	PullRequest map[string]string `json:"pull_request"`
	Gated       string            `json:"gated"` // errors: a class or a status
	WithToken   string            `json:"with_token"`
	NoRepo      string            `json:"no_repo"`
	NoRevision  string            `json:"no_revision"`
	NoFile      string            `json:"no_file"`
}

// TestHubClients: the clients of Hugging Face take the hub of our tests for one, page by page, byte by byte and error by error.
func TestHubClients(t *testing.T) {
	node := nodeClient(t, "npm-huggingface-hub", "@huggingface/hub", hubNPMVersion, "hub.cjs")
	python := pythonClient(t, "venv-huggingface-hub", "huggingface_hub", hubPyPIVersion, "hub.py")
	files := []fakehub.File{
		{Path: "README.md", Body: []byte("# Hello\n")}, {Path: "config.json", Body: []byte("{}")},
		{Path: "q/m-Q4_K_M.gguf", Body: bytes.Repeat([]byte("four"), 50_000), LFS: true}, {Path: "q/a b+c-Q8_0.gguf", Body: bytes.Repeat([]byte("8"), 300_000), LFS: true},
	}
	request := []fakehub.File{{Path: "README.md", Body: []byte("# Changed\n")}, {Path: "m-Q8_0.gguf", Body: []byte("eight"), LFS: true}}
	want := hubObservations{Listed: map[string]string{}, Files: map[string]string{}, PullRequest: map[string]string{}}
	for _, f := range files {
		want.Files[f.Path] = fakehub.SHA256(f.Body)
		if want.Listed[f.Path] = fakehub.GitBlob(f.Body); f.LFS {
			want.Listed[f.Path] = fakehub.SHA256(f.Body)
		}
	}
	for _, f := range request {
		want.PullRequest[f.Path] = fakehub.SHA256(f.Body)
	}
	for name, c := range map[string]struct {
		command []string
		errors  hubObservations
	}{
		"node":   {node, hubObservations{Gated: "401", NoRepo: "404", NoRevision: "404", NoFile: "404"}},
		"python": {python, hubObservations{Gated: "GatedRepoError", NoRepo: "RepositoryNotFoundError", NoRevision: "RevisionNotFoundError", NoFile: "RemoteEntryNotFoundError"}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.command == nil {
				t.Skip("this client cannot be had; the log above says why")
			}
			hub := fakehub.New()
			t.Cleanup(hub.Close)
			hub.Add(fakehub.Repo{ID: "test/model", Files: files, Refs: map[string][]fakehub.File{"refs/pr/1": request}})
			const token = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"
			hub.Add(fakehub.Repo{ID: "test/gated", Gated: "manual", Tokens: []string{token}, Files: []fakehub.File{{Path: "m-Q8_0.gguf", Body: []byte("secret"), LFS: true}}})
			hub.Set(func(f *fakehub.Faults) { f.PageSize = 3 })
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			home := t.TempDir()
			cmd := exec.CommandContext(ctx, c.command[0], append(c.command[1:], hub.URL, "test/model", "test/gated", token, filepath.Join(home, "cache"))...)
			// Nothing of the environment may lead a client anywhere else.
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "NODE_PATH=" + filepath.Join(cacheDir(t), "npm-huggingface-hub", "node_modules"), "NO_PROXY=127.0.0.1"}
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Run(); err != nil {
				t.Fatalf("the client's script: %v\n%s", err, stderr.String())
			}
			var got hubObservations
			if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
				t.Fatalf("the client's script printed no JSON: %v\n%s", err, stdout.String())
			}
			want, errs := want, c.errors
			want.Commit, want.Gated, want.NoRepo, want.NoRevision, want.NoFile = hub.Commit("test/model", "main"), errs.Gated, errs.NoRepo, errs.NoRevision, errs.NoFile
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			for _, r := range hub.Requests() {
				if r.CDN && r.Authorization != "" {
					t.Errorf("%+v", r)
				}
			}
		})
	}
}
