package clients

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The versions of the clients.
const (
	npmVersion  = "7.57.0"
	pypiVersion = "3.57.0"
)

// text is what a client made of an answer.
type text struct {
	Text         string  `json:"text"`
	Role         string  `json:"role"`
	Pieces       int     `json:"pieces"` // of a stream, with text
	FinishReason string  `json:"finish_reason"`
	Usage        *[3]int `json:"usage"` // prompt, completion and total tokens
}

// failure is what a client made of an error.
type failure struct {
	APIError bool   `json:"api_error"` // it is the client's APIError, or a subclass
	Class    string `json:"class"`
	Status   int    `json:"status"`
	Code     string `json:"code"`
	Type     string `json:"type"`
	Param    string `json:"param"`
	Message  string `json:"message"`
}

// observations is what the scripts in testdata print.
type observations struct {
	Models                 []string `json:"models"`
	Model                  string   `json:"model"`
	Chat                   text     `json:"chat"`
	ChatParts              string   `json:"chat_parts"`
	ChatStream             text     `json:"chat_stream"`
	ChatStreamWithoutUsage *[3]int  `json:"chat_stream_without_usage"`
	Completion             text     `json:"completion"`
	CompletionStream       text     `json:"completion_stream"`
	Length                 string   `json:"length"`
	Embeddings             [][]any  `json:"embeddings"`
	UnknownModel           failure  `json:"unknown_model"`
	UnknownModelStream     failure  `json:"unknown_model_stream"`
	UnknownRetrieve        failure  `json:"unknown_retrieve"`
	BadParameter           failure  `json:"bad_parameter"`
	BadParameterStream     failure  `json:"bad_parameter_stream"`
	Image                  failure  `json:"image"`
	Story                  text     `json:"story"`
	StoryStream            text     `json:"story_stream"`
	StoryTogether          []string `json:"story_together"`
	StoryEmbeddings        failure  `json:"story_embeddings"`
	TooLong                failure  `json:"too_long"`
	CancelledAfter         int      `json:"cancelled_after"`
	WorkerLost             failure  `json:"worker_lost"`
	ReceivedBeforeLoss     bool     `json:"received_before_loss"`
}

const (
	echoModel  = "echo:test"
	storyModel = "story"
	words      = "one two three \U0001F41D" // five tokens to the echo worker, as its own tests have it
)

// TestClients drives an agent with both clients: they must see the same, streamed or not, and each fault as the client's own error.
func TestClients(t *testing.T) {
	node := nodeClient(t, "npm-openai", "openai", npmVersion, "client.cjs")
	python := pythonClient(t, "venv-openai", "openai", pypiVersion, "client.py")
	if node == nil && python == nil {
		t.Skip("neither client can be had")
	}
	engine := filepath.Join(cacheDir(t), "engine")
	_, err := os.Stat(filepath.Join(engine, "libllama.so"))
	story := storyModel
	config := fmt.Sprintf("model %q {\n  source  = \"builtin:stories260k\"\n  aliases = [\"gpt-4o-mini\"]\n}\n", storyModel)
	if err != nil {
		t.Logf("without a real engine, which `make test-parts` fetches: %v", err)
		story = ""
	} else {
		config += fmt.Sprintf("worker \"llama\" {\n  source = %q\n}\n", "path:"+engine)
	}
	a := startAgent(t, executable(t), config)
	a.run(t, "run", echoModel, "hello")
	if story != "" {
		a.run(t, "run", story, "Once upon a time")
	}
	for name, client := range map[string][]string{"node": node, "python": python} {
		t.Run(name, func(t *testing.T) {
			if client == nil {
				t.Skip("this client cannot be had; the log above says why")
			}
			mortal := "echo:mortal-" + name
			pid := a.spawnSlow(t, mortal)
			got := observe(t, a, client, story, mortal, func() { kill(t, pid) })
			check(t, got, story != "")
		})
	}
}

// observe runs a client's script and returns what it prints. When the stream that is to be broken has begun, it calls broken.
func observe(t *testing.T, a *agent, client []string, story, mortal string, broken func()) observations {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, client[0], append(client[1:], "http://"+a.addr+"/v1", echoModel, story, mortal)...)
	// Nothing of the environment may lead a client anywhere else.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + a.home, "NODE_PATH=" + filepath.Join(cacheDir(t), "npm-openai", "node_modules"), "NO_PROXY=127.0.0.1"}
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
	var once sync.Once
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		if lines.Text() == "streaming" {
			once.Do(broken)
			continue
		}
		rest = append(rest, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the client's script: %v\n%s", err, strings.Join(rest, "\n"))
	}
	var got observations
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("the client's script printed no JSON: %v\n%s", err, stdout.String())
	}
	return got
}

// check compares what a client saw with what it must see.
func check(t *testing.T, got observations, withStory bool) {
	t.Helper()
	for _, name := range []string{storyModel, "gpt-4o-mini", echoModel} {
		if !withStory && name != echoModel {
			continue
		}
		if !slices.Contains(got.Models, name) {
			t.Errorf("models.list lacks %s: %v", name, got.Models)
		}
	}
	notFound := failure{APIError: true, Class: "NotFoundError", Status: 404, Code: "model_not_found", Type: "invalid_request_error", Param: "model",
		Message: "The model \"no-such-model\" is neither in the configuration nor in the catalog; `apiary model list` shows the names, and `apiary model pull REFERENCE` adds one, such as hf:ORG/REPO or file:PATH."}
	bad := func(code, param string, message ...string) func(f failure) string {
		want := failure{APIError: true, Class: "BadRequestError", Status: 400, Code: code, Type: "invalid_request_error", Param: param}
		return func(f failure) string {
			for _, m := range message {
				if !strings.Contains(f.Message, m) {
					return fmt.Sprintf("the message %q lacks %q", f.Message, m)
				}
			}
			want.Message = f.Message
			return cmp.Diff(want, f)
		}
	}
	same := func(want failure) func(f failure) string {
		return func(f failure) string { return cmp.Diff(want, f) }
	}
	chat, completion := &[3]int{6, 5, 11}, &[3]int{5, 5, 10}
	for _, c := range []struct{ what, diff string }{
		{"models.retrieve", cmp.Diff(echoModel, got.Model)},
		{"chat", cmp.Diff(text{Text: words, Role: "assistant", FinishReason: "stop", Usage: chat}, got.Chat)},
		{"chat with parts", cmp.Diff(words, got.ChatParts)},
		{"chat, streamed", cmp.Diff(text{Text: words, Pieces: 5, FinishReason: "stop", Usage: chat}, got.ChatStream)},
		{"chat, streamed without usage", cmp.Diff((*[3]int)(nil), got.ChatStreamWithoutUsage)},
		{"completion", cmp.Diff(text{Text: words, FinishReason: "stop", Usage: completion}, got.Completion)},
		{"completion, streamed", cmp.Diff(text{Text: words, Pieces: 5, FinishReason: "stop", Usage: completion}, got.CompletionStream)},
		{"max_tokens", cmp.Diff("length", got.Length)},
		{"embeddings", cmp.Diff([][]any{{0.0, true}, {1.0, true}}, got.Embeddings)},
		{"unknown model", same(notFound)(got.UnknownModel.plain())},
		{"unknown model, streamed", same(notFound)(got.UnknownModelStream.plain())},
		{"unknown model, retrieved", same(notFound)(got.UnknownRetrieve.plain())},
		{"bad parameter", bad("invalid_value", "temperature", "temperature is 9")(got.BadParameter)},
		{"bad parameter, streamed", bad("invalid_value", "max_tokens", "max_tokens is -1")(got.BadParameterStream)},
		{"image", bad("unsupported_value", "messages", "image_url")(got.Image)},
		{"cancelled stream", cmp.Diff(3, got.CancelledAfter)},
		{"worker killed while it streams", same(failure{APIError: true, Class: "APIError", Code: "worker_lost", Type: "server_error", Message: "worker lost"})(got.WorkerLost)},
		{"tokens before that", cmp.Diff(true, got.ReceivedBeforeLoss)},
	} {
		if c.diff != "" {
			t.Errorf("%s (-want +got): %s", c.what, c.diff)
		}
	}
	if withStory {
		checkStory(t, got, bad)
	}
}

// checkStory compares what a client saw of the real model: greedy, so the same words every time.
func checkStory(t *testing.T, got observations, bad func(code, param string, message ...string) func(failure) string) {
	t.Helper()
	if !strings.HasPrefix(got.Story.Text, ", there was a little girl named Lily.") {
		t.Errorf("the story goes %q", got.Story.Text)
	}
	want := text{Text: got.Story.Text, FinishReason: "length", Usage: &[3]int{5, 40, 45}}
	if d := cmp.Diff(want, got.Story); d != "" {
		t.Errorf("story (-want +got): %s", d)
	}
	want.Pieces = got.StoryStream.Pieces
	if d := cmp.Diff(want, got.StoryStream); d != "" || want.Pieces < 10 {
		t.Errorf("story, streamed in %d pieces (-want +got): %s", want.Pieces, d)
	}
	if d := cmp.Diff(slices.Repeat([]string{got.Story.Text}, 4), got.StoryTogether); d != "" {
		t.Errorf("four stories at once (-want +got): %s", d)
	}
	for what, diff := range map[string]string{
		"embeddings of a model that has none": bad("unsupported_api", "model", "/v1/embeddings")(got.StoryEmbeddings),
		"prompt that does not fit":            bad("context_length_exceeded", "prompt", "15004 tokens", "512 tokens")(got.TooLong),
	} {
		if diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
}

// plain removes the status that the clients put before the message.
func (f failure) plain() failure {
	f.Message = strings.TrimPrefix(f.Message, fmt.Sprintf("%d ", f.Status))
	f.Message = strings.TrimPrefix(f.Message, fmt.Sprintf("Error code: %d - ", f.Status))
	return f
}

// nodeClient returns the command of a script for an npm package, which it installs once into the folder dir of the cache; nil, with
// a message, where it cannot be had.
func nodeClient(t *testing.T, dir, pkg, version, file string) []string {
	t.Helper()
	dir = filepath.Join(cacheDir(t), dir)
	node, err := exec.LookPath("node")
	if err != nil {
		t.Logf("the npm package %s is not tested: %v", pkg, err)
		return nil
	}
	installed := func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "node_modules", pkg, "package.json"))
		return err == nil && bytes.Contains(b, []byte(`"version": "`+version+`"`))
	}
	if err := install(dir, installed, [][]string{{"npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--prefix", dir, pkg + "@" + version}}); err != nil {
		t.Logf("the npm package %s is not tested: %v", pkg, err)
		return nil
	}
	return []string{node, script(t, file)}
}

// pythonClient does the same for a PyPI package.
func pythonClient(t *testing.T, dir, pkg, version, file string) []string {
	t.Helper()
	dir = filepath.Join(cacheDir(t), dir)
	python := filepath.Join(dir, "bin", "python")
	installed := func() bool {
		out, err := exec.Command(python, "-c", "import "+pkg+"; print("+pkg+".__version__)").Output()
		return err == nil && strings.TrimSpace(string(out)) == version
	}
	if err := install(dir, installed, [][]string{
		{"python3", "-m", "venv", dir},
		{python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", pkg + "==" + version},
	}); err != nil {
		t.Logf("the PyPI package %s is not tested: %v", pkg, err)
		return nil
	}
	return []string{python, script(t, file)}
}

func script(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// install runs commands unless what they install is there. Two tests at once take turns.
func install(dir string, installed func() bool, commands [][]string) error {
	if installed() {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	if installed() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	for _, c := range commands {
		if out, err := exec.CommandContext(ctx, c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(c, " "), err, out[:min(len(out), 400)])
		}
	}
	if !installed() {
		return errors.New("it was installed and still is not there in the wanted version")
	}
	return nil
}
