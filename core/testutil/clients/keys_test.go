package clients

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// keyObservations is what the scripts about keys print; of each pair the first is of the queen that made the key.
type keyObservations struct {
	Answers []string  `json:"answers"`
	Models  []bool    `json:"models"`
	None    []failure `json:"none"`
	Gone    []failure `json:"gone"`
	Stream  failure   `json:"stream"`
	After   []failure `json:"after"`
}

// TestClientsWithKeys drives two queens of one cluster with both clients: a key of one is good at both, one that was revoked at the other is
// good at neither, and a stream under a key that is revoked meanwhile, at the other queen, ends with an error.
func TestClientsWithKeys(t *testing.T) {
	node := nodeClient(t, "npm-openai", "openai", npmVersion, "keys.cjs")
	python := pythonClient(t, "venv-openai", "openai", pypiVersion, "keys.py")
	if node == nil && python == nil {
		t.Skip("neither client can be had")
	}
	bin := executable(t)
	gossip := []string{freeAddress(t), freeAddress(t)}
	one := startAgent(t, bin, fmt.Sprintf("agent { name = \"one\" }\ngossip { bind = %q }\n", gossip[0]))
	key, err := os.ReadFile(filepath.Join(one.home, "secrets", "cluster.key"))
	if err != nil {
		t.Fatal(err)
	}
	two := startAgent(t, bin, fmt.Sprintf("agent { name = \"two\" }\ngossip {\n  bind = %q\n  join = [%q]\n}\n", gossip[1], gossip[0]), func(home string) {
		dir := filepath.Join(home, "secrets")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cluster.key"), key, 0o600); err != nil {
			t.Fatal(err)
		}
	})
	one.wait(t, "the queens to know each other", func() bool {
		var members []struct{ State, Records string }
		if err := json.Unmarshal(one.run(t, "member", "list", "--json"), &members); err != nil {
			t.Fatal(err)
		}
		return len(members) == 2 && !slices.ContainsFunc(members, func(m struct{ State, Records string }) bool { return m.State != "alive" })
	})
	one.run(t, "run", echoModel, "hello")
	const slow = "echo:slow"
	one.spawnSlow(t, slow)
	two.wait(t, "the second queen to know both workers", func() bool {
		list := two.run(t, "worker", "list")
		return bytes.Contains(list, []byte(echoModel)) && bytes.Contains(list, []byte(slow))
	})
	for name, client := range map[string][]string{"node": node, "python": python} {
		t.Run(name, func(t *testing.T) {
			if client == nil {
				t.Skip("this client cannot be had; the log above says why")
			}
			create := func(a *agent, who string) string {
				return strings.TrimSpace(string(a.run(t, "key", "create", who+" "+name)))
			}
			good, gone := create(one, "good"), create(one, "gone")
			// What one queen has made the other one knows at once; five seconds are allowed.
			for end := time.Now().Add(5 * time.Second); !bytes.Contains(two.run(t, "key", "list"), []byte("gone "+name)); {
				if time.Now().After(end) {
					t.Fatal("after 5 s the second queen does not know the key")
				}
			}
			two.run(t, "key", "revoke", "gone "+name)
			for end := time.Now().Add(5 * time.Second); bytes.Contains(one.run(t, "key", "list"), []byte("gone "+name)); {
				if time.Now().After(end) {
					t.Fatal("after 5 s the first queen does not know that the key is revoked")
				}
			}
			got := observeKeys(t, one, two, client, []string{echoModel, slow, good, gone}, func() { one.run(t, "key", "revoke", "good "+name) })
			refused := failure{APIError: true, Class: "AuthenticationError", Status: 401, Code: "invalid_api_key", Type: "authentication_error"}
			want := keyObservations{Answers: []string{"hello", "hello"}, Models: []bool{true, true}, None: []failure{refused, refused}, Gone: []failure{refused, refused},
				Stream: failure{APIError: true, Class: "APIError", Code: "key_revoked", Type: "authentication_error"}, After: []failure{refused, refused}}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got): %s", d)
			}
		})
	}
}

// observeKeys runs a client's script about keys and returns what it prints. When its stream has begun, it calls revoke.
func observeKeys(t *testing.T, one, two *agent, client, args []string, revoke func()) (got keyObservations) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, client[0], slices.Concat(client[1:], []string{"http://" + one.addr + "/v1", "http://" + two.addr + "/v1"}, args)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + one.home, "NODE_PATH=" + filepath.Join(cacheDir(t), "npm-openai", "node_modules"), "NO_PROXY=127.0.0.1"}
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var rest []string
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if lines.Text() == "streaming" {
			revoke()
			continue
		}
		rest = append(rest, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the client's script: %v\n%s", err, strings.Join(rest, "\n"))
	}
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("the client's script printed no JSON: %v\n%s", err, stdout.String())
	}
	return got
}
