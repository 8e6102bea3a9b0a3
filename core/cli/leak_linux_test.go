package cli

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
)

// TestNothingLeaks (T55, T66): with every secret and text a canary and the log at its most talkative, none of them is in a log, a metric, an
// error, a job's story, a process's arguments, environment or open files, or in what a crash leaves. Each place is shown to be
// looked at by something that must be there.
func TestNothingLeaks(t *testing.T) {
	t.Parallel()
	const prompt, environment, stored, inline, key = "canary-prompt", "canary-environment", "canary-stored", "canary-inline", "canary-key"
	secrets := []string{prompt, environment, stored, inline, key}
	n := newNode(t, fmt.Sprintf(`
agent {
  log {
    level = "debug"
  }
}
queen {
  listen = "ADDR"
}
hive {
  listen = "127.0.0.1:0"
}
credential "inline" {
  value = %q
  hosts = ["models.example.org"]
}
worker "echo" {
  adapter = "echo"
  args    = ["--tps", "50"]
}
`, inline))
	store := n.command("credential", "set", "huggingface")
	store.Stdin = strings.NewReader(stored + "\n")
	if out, err := store.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n.startAs(n.withEnv("HF_TOKEN="+environment, "AWS_SECRET_ACCESS_KEY="+environment))
	var worker contract.WorkerView
	n.run(nil, "worker", "spawn", "echo:leak")
	worker = n.alive()[0]

	var seen bytes.Buffer // all that anybody was told, but for the answers to the one who asked
	ask := func(method, path, body string, header ...string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://"+n.addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer func() { _ = resp.Body.Close() }()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	chat := func(model, more string) string {
		return fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":"%s one two three"}]%s}`, model, prompt, more)
	}
	if code, answer := ask("POST", "/v1/chat/completions", chat("echo:leak", "")); code != 200 || !strings.Contains(answer, prompt) {
		t.Fatalf("the prompt does not come back, so that nothing is proved: %d %s", code, answer)
	}
	for _, bad := range [][]string{
		{"POST", "/v1/chat/completions", chat("echo:leak", `,"temperature":"hot"`)},
		{"POST", "/v1/chat/completions", chat("echo:leak", `,"max_tokens":-1`)},
		{"POST", "/v1/chat/completions", chat("echo:leak", "") + "}"},
		{"POST", "/v1/chat/completions", chat("nobody", "")},
		{"POST", "/v1/embeddings", fmt.Sprintf(`{"model":"echo:leak","input":[[{"x":%q}]]}`, prompt)},
		{"POST", "/v1/jobs", fmt.Sprintf(`{"operation":"ModelDownload","reference":"https://u:%s@127.0.0.1:1/m.gguf"}`, key)},
		{"GET", "/v1/jobs?key=" + key, ""},
		{"GET", "/admin/cluster", ""},
		{"GET", "/v1/nothing?token=" + key, ""},
	} {
		code, answer := ask(bad[0], bad[1], bad[2], "Authorization", "Bearer "+key, "X-Api-Key", key, "Cookie", "session="+key)
		if code < 400 || !strings.Contains(answer, `"request_id":"`) {
			t.Errorf("%s %s: %d %s", bad[0], bad[1], code, answer)
		}
		seen.WriteString(answer)
	}
	_, metrics := ask("GET", "/metrics", "")
	seen.WriteString(metrics)

	// The crash of a worker in the middle of a stream: Go's runtime writes all stacks on SIGQUIT.
	processes := map[int]string{n.cmd.Process.Pid: "agent", worker.PID: "worker"}
	for pid, what := range processes {
		for _, file := range []string{"cmdline", "environ"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
			if what == "agent" && file == "environ" {
				continue // it was given it; other users cannot read it
			}
			if err != nil && os.Geteuid() == 0 || file == "cmdline" && len(b) == 0 {
				t.Errorf("%s of the %s cannot be looked at: %v", file, what, err)
			}
			seen.Write(b)
		}
	}
	if err := n.stream(t.Context(), chat("echo:leak", `,"stream":true`), func(line string) bool {
		_ = syscall.Kill(worker.PID, syscall.SIGQUIT)
		return true
	}); err != nil {
		t.Log("the stream ended with", err)
	}
	n.until(20*time.Second, "the crash is written", func() bool {
		b, _ := os.ReadFile(filepath.Join(n.home, "workers", worker.ID, "worker.log"))
		return bytes.Contains(b, []byte("goroutine "))
	})
	var jobs []contract.Job
	n.run(&jobs, "job", "list")
	for _, j := range jobs {
		out, _ := n.command("job", "follow", j.ID).CombinedOutput()
		seen.Write(out)
	}
	if len(jobs) == 0 {
		t.Error("there are no jobs to look at")
	}
	looked := 0
	err := filepath.WalkDir(n.home, func(path string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(n.home, path)
		if err != nil || !d.Type().IsRegular() || rel == "config.hcl" || strings.HasPrefix(rel, "secrets/") {
			return nil
		}
		b, _ := os.ReadFile(path)
		if looked++; strings.HasSuffix(rel, ".log") && len(b) > 0 {
			looked += 100
		}
		for _, s := range secrets {
			if i := bytes.Index(b, []byte(s)); i >= 0 {
				t.Errorf("%s holds %s: …%.300q", rel, s, b[max(0, i-150):])
			}
		}
		return nil
	})
	if err != nil || looked < 200 {
		t.Errorf("%d files and logs were looked at (%v)", looked, err)
	}
	for _, s := range secrets {
		if i := strings.Index(seen.String(), s); i >= 0 {
			t.Errorf("%s was told: …%.300q", s, seen.String()[max(0, i-150):])
		}
	}
}

// withEnv is the command of the agent with further variables.
func (n *node) withEnv(more ...string) *exec.Cmd {
	cmd := n.command("agent")
	cmd.Env = append(cmd.Env, more...)
	return cmd
}
