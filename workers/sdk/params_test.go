package sdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// parseBody reads a body as the handler of that kind does.
func parseBody(kind, body string) (*job, []string, error) {
	r, err := http.NewRequest(http.MethodPost, "http://w/", strings.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	switch kind {
	case "infer":
		var b contract.InferRequest
		if err := decode(r, &b); err != nil {
			return nil, nil, err
		}
		j, err := inferJob(&b)
		return j, nil, err
	case "chat":
		var b chatBody
		if err := decode(r, &b); err != nil {
			return nil, nil, err
		}
		j, err := chatJob(&b)
		return j, nil, err
	case "completion":
		var b completionBody
		if err := decode(r, &b); err != nil {
			return nil, nil, err
		}
		j, err := completionJob(&b)
		return j, nil, err
	}
	var b embeddingBody
	if err := decode(r, &b); err != nil {
		return nil, nil, err
	}
	in, err := embeddingInputs(&b)
	return nil, in, err
}

func TestRefusalsNameTheField(t *testing.T) {
	manyStops, _ := json.Marshal(make([]string, 100_000))
	bias := "{" + strings.Repeat(`"1":1,`, 1000) + `"2":2}`
	for _, c := range []struct{ kind, field, value string }{
		{"all", "max_tokens", "-1"}, {"all", "max_tokens", "0"}, {"all", "max_tokens", "1.5"}, {"all", "max_tokens", `"7"`}, {"all", "max_tokens", "1e30"},
		{"all", "temperature", "-0.01"}, {"all", "temperature", "2.01"}, {"all", "temperature", `"hot"`}, {"all", "temperature", "1e999"},
		{"all", "top_p", "0"}, {"all", "top_p", "1.01"}, {"all", "top_k", "-1"}, {"all", "min_p", "1"}, {"all", "min_p", "-0.1"},
		{"all", "repeat_penalty", "0"}, {"all", "repeat_penalty", "11"}, {"all", "seed", "1.5"}, {"all", "seed", `"x"`}, {"infer", "seed", "-1"},
		{"all", "stop", string(manyStops)}, {"all", "stop", `[""]`}, {"all", "stop", "[1]"}, {"all", "stop", `["` + strings.Repeat("x", maxStopBytes+1) + `"]`}, {"all", "stream", `"yes"`},
		{"openai", "stop", "5"}, {"openai", "n", "1000000000"}, {"openai", "n", "0"}, {"openai", "n", "2"}, {"openai", "logit_bias", bias},
		{"openai", "max_completion_tokens", "-1"}, {"openai", "stream_options", `{"include_usage":true}`}, {"openai", "presence_penalty", "0.5"},
		{"openai", "frequency_penalty", "-1"}, {"openai", "logprobs", "true"}, {"openai", "logprobs", "3"}, {"openai", "top_logprobs", "5"},
		{"chat", "tools", `[{"type":"function"}]`}, {"chat", "functions", `[{}]`}, {"chat", "response_format", `{"type":"json_object"}`}, {"chat", "modalities", `["text","audio"]`},
		{"chat", "messages", "[]"}, {"chat", "messages", `[{"role":"tool","content":"x"}]`}, {"chat", "messages", `[{"role":"user","content":[{"type":"image_url","image_url":{"url":"http://x/"}}]}]`},
		{"chat", "messages", "[" + strings.Repeat(`{"role":"user","content":"x"},`, maxMessages) + `{"role":"user","content":"x"}]`},
		{"infer", "messages", "[]"}, {"infer", "prompt", "1"}, {"infer", "prompt", `["a"]`},
		{"completion", "prompt", "null"}, {"completion", "prompt", "[]"}, {"completion", "prompt", `["a","b"]`}, {"completion", "prompt", "[1,2]"}, {"completion", "prompt", "{}"},
		{"completion", "echo", "true"}, {"completion", "suffix", `"x"`}, {"completion", "best_of", "3"},
		{"embedding", "input", "[]"}, {"embedding", "input", `""`}, {"embedding", "input", `["a",""]`}, {"embedding", "input", "[[1]]"}, {"embedding", "input", "7"},
		{"embedding", "input", `[` + strings.Repeat(`"a",`, maxInputs) + `"a"]`}, {"embedding", "dimensions", "3"}, {"embedding", "encoding_format", `"hex"`},
	} {
		for _, kind := range map[string][]string{"all": {"infer", "chat", "completion"}, "openai": {"chat", "completion"}}[c.kind] {
			refusal(t, kind, c.field, c.value)
		}
		if c.kind != "all" && c.kind != "openai" {
			refusal(t, c.kind, c.field, c.value)
		}
	}
}

func refusal(t *testing.T, kind, field, value string) {
	t.Helper()
	base := map[string]string{"infer": `"prompt":"a"`, "chat": `"messages":[{"role":"user","content":"a"}]`, "completion": `"prompt":"a"`, "embedding": `"input":"a"`}[kind]
	if strings.HasPrefix(base, `"`+field+`"`) || kind == "infer" && field == "messages" {
		base = `"x":1`
	}
	body := fmt.Sprintf(`{%s,%q:%s}`, base, field, value)
	_, _, err := parseBody(kind, body)
	f := fault.As(err)
	if f == nil || f.Kind != fault.Invalid || !strings.HasPrefix(f.Param, field) {
		t.Errorf("%s %.80s: %#v, want a refusal of %s", kind, body, f, field)
		return
	}
	if !strings.HasSuffix(f.Message, ".") || len(f.Message) > 400 {
		t.Errorf("%s %.80s: the message is no sentence: %q", kind, body, f.Message)
	}
	if strings.Count(f.Message, ": ") > 1 || strings.Count(f.Message, "support") > 1 || strings.Count(f.Message, "value") > 1 {
		t.Errorf("%s %.80s: the message says it twice: %q", kind, body, f.Message)
	}
}

func TestRefusalsOfWholeBodies(t *testing.T) {
	for _, body := range []string{"", "{", "nonsense", "[]", `{"prompt":"a"} {}`, `{"prompt":"a","temperature":NaN}`, strings.Repeat("[", 100_000), `"x"`} {
		if _, _, err := parseBody("infer", body); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%.40q gave %v", body, err)
		}
	}
	for _, body := range []string{`{}`, `{"prompt":"a","messages":[{"role":"user","content":"x"}]}`} {
		if _, _, err := parseBody("infer", body); fault.As(err) == nil || fault.As(err).Param != "prompt" {
			t.Errorf("%s gave %v", body, err)
		}
	}
	r, _ := http.NewRequest(http.MethodPost, "http://w/", http.MaxBytesReader(nil, http.NoBody, 1))
	r.Body = http.MaxBytesReader(nil, readCloser{strings.NewReader("too much")}, 3)
	if err := decode(r, new(contract.InferRequest)); fault.HTTPStatus(err) != http.StatusRequestEntityTooLarge {
		t.Errorf("a body over the limit gave %v", err)
	}
}

type readCloser struct{ *strings.Reader }

func (readCloser) Close() error { return nil }

func TestWhatIsTaken(t *testing.T) {
	for _, c := range []struct {
		kind, body string
		want       job
	}{
		{"infer", `{"prompt":""}`, job{promptParam: "prompt", Request: Request{Temperature: 1, TopP: 1, RepeatPenalty: 1}}},
		{"infer", `{"prompt":"p","max_tokens":5,"temperature":0,"top_p":0.5,"top_k":3,"min_p":0.1,"repeat_penalty":1.1,"seed":18446744073709551615,"stop":["a","b"],"stream":true,"resume_text":"r","model":"m","n_discard":-1}`,
			job{model: "m", promptParam: "prompt", stream: true, stops: []string{"a", "b"}, Request: Request{Prompt: "p", ResumeText: "r", MaxTokens: 5, TopP: 0.5, TopK: 3, MinP: 0.1, RepeatPenalty: 1.1, Seed: 1<<64 - 1}}},
		{"chat", `{"model":"m","messages":[{"role":"developer","content":"d"},{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"assistant","content":null}],
			"stop":"x","max_tokens":1,"max_completion_tokens":9,"seed":-1,"n":1,"stream":true,"stream_options":{"include_usage":true,"x":1},"ignore_eos":true,
			"tools":[],"tool_choice":"none","response_format":{"type":"text"},"logprobs":false,"presence_penalty":0,"frequency_penalty":0,"logit_bias":{},"user":"u","unknown":{}}`,
			job{model: "m", promptParam: "messages", stream: true, includeUsage: true, stops: []string{"x"}, Request: Request{
				Messages:  []contract.Message{{Role: "system", Content: "d"}, {Role: "user", Content: "ab"}, {Role: "assistant"}},
				MaxTokens: 9, Temperature: 1, TopP: 1, RepeatPenalty: 1, Seed: 1<<64 - 1, IgnoreEOS: true}}},
		{"completion", `{"prompt":["one"],"temperature":2,"top_k":null,"stop":null,"logprobs":null,"echo":false,"suffix":"","best_of":1}`,
			job{promptParam: "prompt", Request: Request{Prompt: "one", Temperature: 2, TopP: 1, RepeatPenalty: 1}}},
	} {
		j, _, err := parseBody(c.kind, c.body)
		if err != nil {
			t.Errorf("%s %s: %v", c.kind, c.body, err)
			continue
		}
		if !strings.Contains(c.body, "seed") {
			j.Seed = 0 // drawn
		}
		if !reflect.DeepEqual(*j, c.want) {
			t.Errorf("%s %s: %+v, want %+v", c.kind, c.body, *j, c.want)
		}
	}
	a, _, _ := parseBody("infer", `{"prompt":"a"}`)
	b, _, _ := parseBody("infer", `{"prompt":"a"}`)
	if a.Seed == b.Seed {
		t.Error("two requests without a seed got the same")
	}
	for body, n := range map[string]int{`{"input":"a"}`: 1, `{"input":["a","b"],"encoding_format":"base64","user":"u"}`: 2} {
		if _, in, err := parseBody("embedding", body); err != nil || len(in) != n {
			t.Errorf("%s gave %v, %v", body, in, err)
		}
	}
}

func FuzzBodies(f *testing.F) {
	f.Add("chat", `{"messages":[{"role":"user","content":[{"type":"text","text":"a"}]}],"stop":["x"],"seed":-1}`)
	f.Add("completion", `{"prompt":["a"],"logit_bias":{"1":2}}`)
	f.Add("infer", `{"prompt":"a","temperature":1e3}`)
	f.Add("embedding", `{"input":[1]}`)
	f.Fuzz(func(t *testing.T, kind, body string) {
		j, _, err := parseBody(kind, body)
		if err == nil && j != nil && (j.Temperature < 0 || j.Temperature > 2 || j.TopP <= 0 || j.TopP > 1 || j.MaxTokens < 0 || len(j.stops) > contract.MaxStop || j.promptParam == "") {
			t.Errorf("%s was taken as %+v", body, j)
		}
		if err != nil && fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s gave %v", body, err)
		}
	})
}

func TestAppendString(t *testing.T) {
	for _, s := range []string{"", "plain", "q\"b\\s/", "\n\t\r\x00\x1f\x7f", "é🐝\u2028", "\ufffd"} {
		var got string
		if err := json.Unmarshal(appendString(nil, s), &got); err != nil || got != s {
			t.Errorf("%q became %s (%v)", s, appendString(nil, s), err)
		}
	}
}

func TestArguments(t *testing.T) {
	extra := ""
	impl := Implementation{Name: "fake", Flags: func(fs *flag.FlagSet) { fs.StringVar(&extra, "extra", "", "") }}
	base := []string{"--worker-id", "llama-0011aabb", "--model", "builtin:x@1"}
	c, fd, err := parse(append(base, "--model-path", "/m.gguf", "--engine-dir", "/e", "--device", "cuda0,cuda1", "--port", "7855", "--address", "10.0.0.1",
		"--queen-url", "http://A:1/", "--queen-url=https://b", "--hive-id", "h", "--spawn-key", "m@r#0", "--generation", "7", "--secret-fd", "5",
		"--context", "4096", "--slots", "8", "--threads", "2", "--orphan-ttl", "10s", "--drain", "1m", "--extra", "yes"), impl, os.Stderr)
	want := Config{WorkerID: "llama-0011aabb", Model: "builtin:x@1", ModelPath: "/m.gguf", EngineDir: "/e", Device: "cuda0,cuda1", Port: 7855, Address: "10.0.0.1",
		QueenURLs: []string{"http://a:1", "https://b"}, HiveID: "h", SpawnKey: "m@r#0", Generation: 7, Context: 4096, Slots: 8, Threads: 2, OrphanTTL: 10 * time.Second, Drain: time.Minute}
	if err != nil || fd != 5 || extra != "yes" || !reflect.DeepEqual(c, want) {
		t.Errorf("got %+v %d %v, want %+v", c, fd, err, want)
	}
	c, fd, err = parse(base, impl, os.Stderr)
	if err != nil || fd != 3 || c.Address != "127.0.0.1" || c.Device != "cpu0" || c.OrphanTTL != 10*time.Minute || c.Drain != 2*time.Minute {
		t.Errorf("the defaults are %+v %d %v", c, fd, err)
	}
	for _, bad := range [][]string{
		{"--worker-id", "-x"}, {"--worker-id", "A"}, {"--model", ""}, {"--device", "cpu0;id"}, {"--device", "-m/etc/passwd"}, {"--port", "65536"}, {"--port", "-1"},
		{"--queen-url", "127.0.0.1:7833"}, {"--queen-url", "http://u:p@x"}, {"--queen-url", "file:///etc/passwd"}, {"--secret-fd", "2"}, {"--generation", "-1"},
		{"--context", "-1"}, {"--slots", "x"}, {"--threads", "-2"}, {"--orphan-ttl", "-1s"}, {"--address", ""}, {"stray"}, {"--host=0.0.0.0"}, {"--secret", "x"},
	} {
		if _, _, err := parse(append(base, bad...), impl, os.Stderr); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	for _, missing := range [][]string{base[:2], base[2:]} {
		if _, _, err := parse(missing, impl, os.Stderr); err == nil {
			t.Errorf("%v alone was taken", missing)
		}
	}
	var help bytes.Buffer
	if _, _, err := parse([]string{"-h"}, impl, &help); !errors.Is(err, flag.ErrHelp) || !strings.Contains(help.String(), "-queen-url") || !strings.Contains(help.String(), "-extra") {
		t.Errorf("help gave %v and %q", err, help.String())
	}
}

func TestReadSecret(t *testing.T) {
	for value, ok := range map[string]bool{testKey.Reveal(): true, testKey.Reveal() + "\n": true, "": false, "short": false, strings.Repeat(" ", 40): false} {
		path := filepath.Join(t.TempDir(), "secret")
		if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		fd := int(f.Fd())
		got, err := readSecret(fd) // closes fd: f must not
		if (err == nil) != ok || ok && !got.Equal(testKey.Reveal()) {
			t.Errorf("%q gave %v", value, err)
		}
		if err != nil && len(value) > 0 && strings.Contains(err.Error(), value) {
			t.Errorf("the error shows the secret: %v", err)
		}
		if f.Close() == nil {
			t.Error("the descriptor was left open")
		}
	}
	if _, err := readSecret(987); err == nil {
		t.Error("a descriptor that is not open gave a secret")
	}
}

func TestResidentMemory(t *testing.T) {
	if m := residentMemory(); m < contract.MiB || m > contract.TiB {
		t.Errorf("this process uses %v", m)
	}
}
