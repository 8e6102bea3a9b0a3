package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func testApp(stdin string) (*app, *bytes.Buffer, *bytes.Buffer) {
	var out, err bytes.Buffer
	a := &app{version: "v1", in: strings.NewReader(stdin), out: &out, err: &err, getenv: func(string) string { return "" }}
	return a, &out, &err
}

func TestUnknownCommandsAreInvalid(t *testing.T) {
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"stats"}, "Did you mean `apiary status`?"},
		{[]string{"model", "fetch"}, "There is no command \"fetch\" in `apiary model`."},
		{[]string{"worker", "spwan"}, "Did you mean `apiary worker spawn`?"},
		{[]string{"model", "get"}, "`apiary model get MODEL`; it was given 0 arguments"},
		{[]string{"status", "--nonsense"}, "`apiary status --help`"},
		{[]string{"worker", "spawn", "--slots", "many", "m"}, "The option --slots takes a whole number, not \"many\"; `apiary worker spawn --help`"},
		{[]string{"run", "--temperature", "hot"}, "The option --temperature takes a number, not \"hot\"; `apiary run --help`"},
		{[]string{"run", "--seed"}, "The option --seed needs a value; `apiary run --help`"},
		{[]string{"worker", "logs", "x", "-n", "many"}, "The option --lines takes a whole number, not \"many\""},
		{[]string{"status", "-x"}, "There is no option -x; `apiary status --help`"},
		{[]string{"stat"}, "Did you mean `apiary status`?"},
		{[]string{"satus"}, "Did you mean `apiary status`?"},
		{[]string{"completion", "nosuch"}, "There is no command \"nosuch\" in `apiary completion`."},
		{[]string{"completion", "bash", "x"}, "The command is `apiary completion bash`; it was given 1 argument."},
		{[]string{"help", "nosuch"}, "There is no command \"nosuch\" in `apiary`."},
		{[]string{"help", "model", "fetch"}, "There is no command \"fetch\" in `apiary model`."},
		{[]string{"run", ""}, "The first argument of `apiary run [MODEL] [PROMPT]` is empty"},
		{[]string{"model", "pull", " "}, "The first argument of `apiary model pull MODEL` is empty"},
		{[]string{"run", "m", "--max-tokens", "0"}, "--max-tokens is 0 and must be at least 1"},
		{[]string{"run", "m", "x", "--temperature", "nan"}, "--temperature is NaN and must be from 0 to 2"},
		{[]string{"run", "--temperature", "2.1"}, "--temperature is 2.1 and must be from 0 to 2"},
		{[]string{"chat", "m", "--top-p", "0"}, "--top-p is 0 and must be more than 0 and at most 1"},
		{[]string{"chat", "m", "--min-p", "1"}, "--min-p is 1 and must be at least 0 and less than 1"},
		{[]string{"run", "m", "--seed", "-1"}, "--seed is -1 and must not be negative"},
		{[]string{"worker", "logs", "x", "-n", "0"}, "--lines is 0 and must be from 1 to 10,000"},
		{[]string{"worker", "logs", "x", "-n", "-3"}, "--lines is -3 and must be from 1 to 10,000"},
	} {
		a, _, stderr := testApp("")
		root := a.root()
		root.SetArgs(c.args)
		err := root.Execute()
		if fault.ExitCode(err) != 2 || !strings.Contains(fault.As(err).Message, c.says) || strings.Contains(fault.As(err).Message, "strconv") {
			t.Errorf("%q: exit %d, %v", c.args, fault.ExitCode(err), err)
		}
		if stderr.Len() != 0 {
			t.Errorf("%q printed its usage: %s", c.args, stderr)
		}
	}
	a, out, _ := testApp("")
	root := a.root()
	root.SetArgs([]string{"help", "model", "pull"})
	if err := root.Execute(); err != nil || !strings.Contains(out.String(), "apiary model pull MODEL") {
		t.Errorf("help of a command: %v\n%s", err, out)
	}
	a, out, _ = testApp("")
	root = a.root()
	root.SetArgs([]string{"model"})
	if err := root.Execute(); err != nil || !strings.Contains(out.String(), "pull") {
		t.Errorf("a holder alone: %v\n%s", err, out)
	}
}

// TestEveryCommandHasHelp walks the whole tree.
func TestEveryCommandHasHelp(t *testing.T) {
	a, _, _ := testApp("")
	root := a.root()
	if !strings.Contains(root.Long, "130  interrupted") {
		t.Error("the help does not list the exit codes")
	}
	seen := map[string]bool{}
	commands := root.Commands()
	for len(commands) > 0 {
		c := commands[0]
		commands = append(commands[1:], c.Commands()...)
		seen[c.CommandPath()] = true
		if !c.Hidden && c.Short == "" {
			t.Errorf("%s has no description", c.CommandPath())
		}
		if c.RunE == nil {
			t.Errorf("%s does nothing, or cannot fail", c.CommandPath())
		}
	}
	for _, want := range []string{"agent", "run", "chat", "stop", "status", "model pull", "model list", "model get", "model rm", "worker spawn", "worker list",
		"worker get", "worker delete", "worker logs", "worker test", "worker echo", "engine install", "engine list", "engine rm", "hive list", "device list", "job list",
		"job follow", "job cancel", "credential set", "credential list", "credential rm", "config validate", "config show", "version", "exec-child"} {
		if !seen["apiary "+want] {
			t.Errorf("there is no command apiary %s", want)
		}
	}
}

func TestReference(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	t.Setenv("HOME", dir)
	if err := os.WriteFile("here.gguf", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	here := "file:" + filepath.Join(dir, "here.gguf")
	for arg, want := range map[string]string{
		"builtin:stories260k":            "builtin:stories260k",
		"hf:org/repo:Q4_K_M":             "hf:org/repo:Q4_K_M",
		"echo:test":                      "echo:test",
		"smol":                           "smol",
		"here.gguf":                      here,
		"./here.gguf":                    here,
		"file:here.gguf":                 here,
		"file:./here.gguf":               here,
		"file:~/here.gguf":               here,
		"file:" + dir + "/x/../a.gguf":   "file:" + dir + "/a.gguf",
		"missing.gguf":                   "missing.gguf", // may be a name of the configuration
		"./missing.gguf":                 "file:" + dir + "/missing.gguf",
		"/models/a.gguf":                 "file:/models/a.gguf",
		"file:/models/a.gguf@0123456789": "file:/models/a.gguf@0123456789",
	} {
		if got, err := reference(arg); err != nil || got != want {
			t.Errorf("%s → %s, want %s (error %v)", arg, got, want, err)
		}
	}
	if _, err := reference("file:"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an empty path gave %v", err)
	}
}

func TestBaseURL(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:7833": "http://127.0.0.1:7833", ":7833": "http://127.0.0.1:7833", "0.0.0.0:1": "http://127.0.0.1:1", "[::1]:7": "http://[::1]:7",
		"http://localhost:9/": "http://localhost:9", "https://hive.example.org:443": "https://hive.example.org:443",
	} {
		if got, err := baseURL(in); err != nil || got != want {
			t.Errorf("%s → %s, want %s (error %v)", in, got, want, err)
		}
	}
	for _, in := range []string{"127.0.0.1", "ftp://a:1", "http://u:p@a:1", "a b:1", "http://a:1?x=y"} {
		if got, err := baseURL(in); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q gave %q, %v", in, got, err)
		}
	}
}

func TestStoryInAPipe(t *testing.T) {
	var b bytes.Buffer
	s := newStory(&b, func(string) string { return "" })
	s.step("engine ")
	s.narrate(contract.Narration{Action: "resolve", Message: "npm:x is version 1"})
	for i := range 50 {
		s.narrate(contract.Narration{Action: "fetch", Message: "fetching x.tgz", Progress: &contract.Progress{Done: uint64(i), Total: 50, Unit: "bytes"}})
	}
	s.narrate(contract.Narration{Action: "verify", Message: "sha512 is right"})
	s.done("llama.cpp %s", "ready")
	want := "engine: fetching x.tgz\nengine: llama.cpp ready\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}

func TestStoryOnATerminal(t *testing.T) {
	var b bytes.Buffer
	now := time.Unix(0, 0)
	s := &story{w: &b, terminal: true, width: func() int { return 60 }, now: func() time.Time { return now }}
	s.step("engine ")
	for i := range 1001 { // a second of progress, one event a millisecond
		now = now.Add(time.Millisecond)
		s.narrate(contract.Narration{Action: "fetch", Message: "fetching \x1b[2J" + strings.Repeat("long ", 30), Progress: &contract.Progress{Done: uint64(i), Total: 2000, Unit: "bytes"}})
	}
	if n := strings.Count(b.String(), "\r"); n < 5 || n > 12 {
		t.Errorf("drawn %d times in a second", n)
	}
	if strings.Contains(b.String(), "\x1b[2J") {
		t.Error("control characters of a message reach the terminal")
	}
	for _, line := range strings.Split(b.String(), "\r") {
		if n := len([]rune(strings.TrimPrefix(line, "\x1b[K"))); n > 59 {
			t.Errorf("a line of %d columns on a terminal of 60", n)
		}
	}
	b.Reset()
	s.narrate(contract.Narration{Action: "fetch", Message: "fetched", Progress: &contract.Progress{Done: 2000, Total: 2000, Unit: "bytes"}})
	s.done("ready")
	if got := b.String(); !strings.Contains(got, strings.Repeat("█", barWidth)+" 2.0 KiB") || !strings.HasSuffix(got, "\r\x1b[Kengine ready\n") {
		t.Errorf("the end is %q", got)
	}
}

// TestPlainOutsideATerminal: neither bars nor characters that only a terminal's font may have go into a pipe.
func TestPlainOutsideATerminal(t *testing.T) {
	var b bytes.Buffer
	s := newStory(&b, func(string) string { return "" })
	s.step("engine ")
	s.narrate(contract.Narration{Action: "fetch", Message: "fetching x… y", Progress: &contract.Progress{Done: 1, Total: 50, Unit: "bytes"}})
	s.done("%s", engineLine(s, contract.Engine{Name: "llama.cpp", Version: "3.21.1", Build: "llama.cpp 0.4.0", Platform: "linux-x64", SizeBytes: 2 * contract.MiB}, false))
	want := "engine: fetching x... y\nengine: installed llama.cpp 3.21.1 (0.4.0) for linux-x64 · 2.0 MiB · verified · self-test ok\n"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
	a, _, stderr := testApp("")
	a.fail(fault.New(fault.Invalid, "x", "The line is too long…"))
	if strings.Contains(stderr.String(), "…") {
		t.Errorf("an error in a pipe: %s", stderr)
	}
}

// TestInterruptedStory: what is drawn goes away at once, and nothing is drawn afterwards.
func TestInterruptedStory(t *testing.T) {
	var b bytes.Buffer
	s := &story{w: &b, terminal: true, width: func() int { return 60 }, now: time.Now}
	progress := contract.Narration{Action: "fetch", Message: "fetching", Progress: &contract.Progress{Done: 1, Total: 2, Unit: "bytes"}}
	s.step("engine ")
	s.narrate(progress)
	s.hush()
	if got := b.String(); !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("the line stays: %q", got)
	}
	b.Reset()
	s.narrate(progress)
	s.end()
	if b.Len() != 0 {
		t.Errorf("drawn after the interrupt: %q", &b)
	}
}

func TestTinyAnswersHaveNoRate(t *testing.T) {
	for pieces, want := range map[int]bool{2: false, 15: false, 40: true} {
		var a answer
		now := time.Now()
		a.measure(now, now.Add(time.Millisecond), now.Add(time.Second), pieces)
		if got := a.TokensPerS > 0; got != want || got != strings.Contains(a.summary(), "tokens/s") {
			t.Errorf("%d tokens: %s", pieces, a.summary())
		}
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fault.New(fault.NotFound, "x", "There is no model %q.", "a"), "Error: There is no model \"a\".\n"},
		{os.ErrNotExist, "Error: File does not exist.\n"},
		{&os.PathError{Op: "lstat", Path: "/tmp/a", Err: syscall.ENOTDIR}, "Error: Could not look at /tmp/a: not a directory.\n"},
		{fmt.Errorf("open the agent's log: %w", &os.PathError{Op: "open", Path: "/tmp/a", Err: syscall.EACCES}), "Error: Could not open the agent's log: open /tmp/a: permission denied.\n"},
		{fmt.Errorf("make the data folder: %w", &os.PathError{Op: "mkdir", Path: "/tmp/a", Err: syscall.EACCES}), "Error: Could not make the data folder: mkdir /tmp/a: permission denied.\n"},
		{errors.New("key file /k is damaged: 64 hexadecimal digits are expected"), "Error: Key file /k is damaged: 64 hexadecimal digits are expected.\n"},
		{fault.New(fault.Invalid, "config", "Error: Unknown option\n  on config.hcl line 1\n"), "Error: Unknown option\n  on config.hcl line 1\n"},
		{&fault.Error{Kind: fault.Interrupted}, "Interrupted.\n"},
	} {
		a, _, stderr := testApp("")
		a.fail(c.err)
		if stderr.String() != c.want {
			t.Errorf("%v is shown as %q", c.err, stderr)
		}
	}
	a, _, stderr := testApp("")
	a.json = true
	a.fail(fault.New(fault.NotFound, "model_not_found", "There is none."))
	if want := `{"error":{"message":"There is none.","type":"invalid_request_error","code":"model_not_found","param":null},"exit_code":3}` + "\n"; stderr.String() != want {
		t.Errorf("as JSON: %s", stderr)
	}
}

// Foreign text reaches a terminal without what would change the look of the text around it.
func TestHiddenCharactersAreEscaped(t *testing.T) {
	const foreign, shown = "a\u202eb\u2028c\x1b[31m\u200bd", `a\u202eb\u2028c[31m\u200bd`
	a, out, stderr := testApp("")
	if err := a.table([]string{"NAME", "X"}, [][]string{{foreign, "y"}}, ""); err != nil {
		t.Fatal(err)
	}
	if err := a.fields([][2]string{{"name", foreign}}); err != nil {
		t.Fatal(err)
	}
	a.fail(fault.New(fault.Invalid, "x", "There is no %s here.\nA second line.", foreign))
	s := newStory(stderr, nil)
	s.step("model ")
	s.done("%s", foreign)
	got := out.String() + stderr.String()
	if strings.Count(got, shown) != 4 || contract.HasHidden(strings.ReplaceAll(got, "\n", "")) || !strings.Contains(got, "here.\nA second line.") {
		t.Errorf("%q", got)
	}
}

func TestStatusTable(t *testing.T) {
	a, out, _ := testApp("")
	err := a.showStatus(contract.Status{
		NodeID: "n1", Name: "tower", Version: "v1",
		Hives:  []contract.HiveView{{HiveBeat: contract.HiveBeat{ID: "n1", Name: "tower"}, Liveness: contract.LivenessAlive}, {HiveBeat: contract.HiveBeat{ID: "n2"}, Liveness: contract.LivenessDown}},
		Models: []contract.ModelView{{ID: "builtin:s@1", Names: []string{"smol", "builtin:s"}}},
		Workers: []contract.WorkerView{
			{WorkerInfo: contract.WorkerInfo{ID: "llama-1", ModelID: "builtin:s@1", HiveID: "n1", Device: "cpu0", Status: contract.StatusReady, Slots: 4, SlotsBusy: 1, MemoryBytes: 600 * contract.MiB}, Liveness: contract.LivenessAlive, InFlight: 1},
			{WorkerInfo: contract.WorkerInfo{ID: "llama-2", ModelID: "other@2", HiveID: "n2", Device: "cuda0", Status: contract.StatusStarting, LoadProgress: 0.62}, Liveness: contract.LivenessAlive},
			{WorkerInfo: contract.WorkerInfo{ID: "llama-3", ModelID: "other@2", HiveID: "n2", Device: "cuda0", Status: contract.StatusReady}, Liveness: contract.LivenessDown, Condition: contract.ConditionOOM},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `queen tower v1     1 hive up, 1 not heard     3 workers: 1 loading, 1 oom, 1 ready

MODEL    WORKER   WHERE        STATE         SLOTS  QUEUE  IN FLIGHT  MEMORY
smol     llama-1  tower/cpu0   ready         1/4    0      1          600.0 MiB
other@2  llama-2  n2/cuda0     loading 62 %  -      0      0          0 B
other@2  llama-3  n2/cuda0     oom           -      0      0          0 B
`
	got := out.String()
	if diff := cmp.Diff(strings.Fields(want), strings.Fields(got)); diff != "" {
		t.Error(diff)
	}
	lines := strings.Split(got, "\n")
	if len(lines) < 4 || strings.Index(lines[2], "WORKER") != strings.Index(lines[3], "llama-1") {
		t.Errorf("the columns do not line up:\n%s", got)
	}
}

func TestNumbers(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 3900: "3,900", 1234567: "1,234,567"} {
		if got := thousands(n); got != want {
			t.Errorf("%d is written %s", n, got)
		}
	}
	for ms, want := range map[int64]string{754: "754 ms", 1600: "2 s", 59_400: "59 s", 119_000: "2 m", 3_540_000: "59 m", 3 * 3_600_000: "3 h", 72 * 3_600_000: "3 d"} {
		if got := age(ms); got != want {
			t.Errorf("%d ms are written %s, want %s", ms, got, want)
		}
	}
}

func TestReadableLogLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.log")
	log := "old line\n" + `{"time":"x","level":"ERROR","msg":"service failed","error":"listen: in use"}` + "\nError: The agent cannot listen.\n\n"
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []string{"error: service failed: listen: in use", "Error: The agent cannot listen."}
	if diff := cmp.Diff(want, lastLines(path, int64(len("old line\n")), 10)); diff != "" {
		t.Error(diff)
	}
	if got := lastLines(path, 0, 1); len(got) != 1 || got[0] != want[1] {
		t.Errorf("the last line is %q", got)
	}
}

func TestQueensText(t *testing.T) {
	of := func(records ...string) []contract.Member {
		out := []contract.Member{{Self: true}}
		for _, r := range records {
			out = append(out, contract.Member{Records: r})
		}
		return out
	}
	for want, members := range map[string][]contract.Member{
		"":                           of(""),
		"     2 queens in step":      of(contract.RecordsSame, ""),
		"     2 queens, 1 not heard": of(contract.RecordsUnheard),
		"     4 queens, 1 not in step, 1 not heard": of(contract.RecordsSame, contract.RecordsDifferent, contract.RecordsUnheard),
	} {
		if got := queensText(members); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
