package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

var update = flag.Bool("update", false, "write the golden files")

// environment gives a fixed set of variables; HOME is always there.
func environment(vars map[string]string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		if v, ok := vars[name]; ok {
			return v, true
		}
		if name == "HOME" {
			return "/home/someone", true
		}
		return "", false
	}
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", path, d)
	}
}

func TestBadConfigurations(t *testing.T) {
	files, _ := filepath.Glob("testdata/bad/*.hcl")
	if len(files) < 10 {
		t.Fatalf("%d files", len(files))
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) {
			c, err := Load(Options{Path: f, Env: environment(map[string]string{"EMPTY": "", "CANARY": "a canary value", "CANARY_ADDRESS": "127.0.0.1:canary",
				"CANARY_ARGUMENT": "--port=canary\x00", "CANARY_NAME": "canary-name"})})
			if err == nil || c != nil {
				t.Fatalf("loaded: %v %v", c, err)
			}
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("kind %s", fault.KindOf(err))
			}
			diags, ok := errors.AsType[Diagnostics](err)
			if !ok {
				t.Fatalf("no diagnostics in %v", err)
			}
			for _, d := range diags {
				if d.Line < 1 || d.File != f || d.Excerpt == "" {
					t.Errorf("without a place: %+v", d)
				}
			}
			all, _ := json.Marshal(diags)
			if strings.Contains(err.Error()+string(all), "canary") {
				t.Errorf("a secret is shown:\n%s", err)
			}
			golden(t, strings.TrimSuffix(f, ".hcl")+".golden", err.Error()+"\n")
		})
	}
}

func TestFullConfiguration(t *testing.T) {
	c, err := Load(Options{Path: "testdata/good/full.hcl", Env: environment(map[string]string{"LOCAL": "false", "CONTEXT": "4096"})})
	if err != nil {
		t.Fatal(err)
	}
	here, _ := filepath.Abs("testdata/good")
	want := defaults()
	want.Path = "testdata/good/full.hcl"
	want.Home = filepath.Join(here, "data")
	want.Agent = Agent{Name: "tower", Roles: []string{"queen"}, RolesSet: true, Labels: []string{"quiet", "office"}, Advertise: "10.0.0.5", DataDir: want.Home,
		Log: Log{Level: slog.LevelDebug, Format: "json"}}
	want.Queen.Listen, want.Queen.Hives, want.Queen.HivesSet = "[::1]:0", []string{"http://10.0.0.5:7835"}, true
	want.Queen.Limits.Body, want.Queen.Limits.LoadWait, want.Queen.Limits.QueueWait = 64*contract.KiB, time.Hour, 90*time.Second
	want.Hive.OrphanTTL, want.Hive.Reserve.Disk = 0, 0
	want.Hive.Mirrors = []string{"http://10.0.0.5:9000"}
	want.Vendors = []Vendor{
		{Name: "local"}, {Name: "huggingface", Enabled: true, Endpoint: "http://10.0.0.5:9001/hf", Credential: "canary-token"},
		{Name: "ollama", Enabled: true, Registry: "http://10.0.0.5:5000"}, {Name: "pypi", Enabled: true, Registry: "https://pypi.example.org/simple"}, {Name: "builtin", Enabled: true}, {Name: "url", Enabled: true},
	}
	want.Provisioner.NPM.Registry = "http://127.0.0.1:4873"
	want.Provisioner.GitHub = GitHub{Endpoint: "https://github.example.org/api/v3", Credential: "canary-token"}
	want.Provisioner.Recipe.Tools = []string{"cmake", "ninja"}
	want.Provisioner.PyPI.Registry = "https://engines.example.org/simple"
	want.Workers = []Worker{
		{Name: "gpu", Adapter: "native", Source: "path:" + filepath.Join(here, "engine"), Devices: []string{"cuda0", "cuda1"}, Context: 4096,
			Env: map[string]string{"LANG": "C.UTF-8"}, Args: []string{"--a", "--a"}},
		{Name: "llama", Adapter: "native", Source: defaultEngine, Threads: 2},
		{Name: "echo", Adapter: "echo"},
	}
	want.Models = []Model{{Name: "org/smol", Source: "file:" + filepath.Join(here, "models/smol.gguf"), Aliases: []string{"gpt-4o-mini", "Llama3:8b"}}}
	want.Credentials = []Credential{{Name: "npm", Value: "canary-token", Hosts: []string{"npm.example.org", "127.0.0.1:4873"}}}
	want.Deployments = []Deployment{
		{Name: "chat", Model: "gpt-4o-mini", Worker: "gpu", Context: 8192, IdleTTL: 90 * time.Second, Pin: []string{"tower/cuda0", "laptop"}, Priority: -5,
			Env: map[string]string{"TOKEN": "canary-token", "LANG": "C"}, Args: []string{"--b"}, Replicas: Replicas{Min: 2, Max: 4},
			Place: Place{Require: contract.Expression{Text: `(device.kind == "cuda" && device.memory >= gib(8))`, At: "full.hcl:95"},
				Prefer: contract.Expression{Text: `contains(hive.labels, "quiet")`, At: "full.hcl:99"}}},
		{Name: "everywhere", Model: "builtin:stories260k", IdleTTL: 15 * time.Minute, Replicas: Replicas{Per: "gpu"}, Place: Place{Spread: true}},
		{Name: "hello", Model: "echo:hello", IdleTTL: 15 * time.Minute, Replicas: Replicas{Min: 1}, Place: Place{Spread: true}},
	}
	if d := cmp.Diff(want, c, cmpopts.IgnoreUnexported(Config{}, Plugin{})); d != "" {
		t.Error(d)
	}
	if len(c.Credentials) != 1 || c.Credentials[0].Value.Reveal() != "canary-token" {
		t.Error("file() does not give the secret without its line break")
	}
}

// TestWaitsOfPlacement: what a file says of detection, of the gossip and of placement arrives, and what cannot be is refused.
func TestWaitsOfPlacement(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.hcl")
	load := func(text string) (*Config, error) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return Load(Options{Path: path, Env: environment(nil)})
	}
	c, err := load(`gossip {
  rejoin = "30s"
}
queen {
  detection {
    flap_changes = 5
    flap_window  = "2m"
    flap_hold    = "3m"
    brake_share  = 0.75
    brake_window = "20s"
    brake_hives  = 5
  }
  placement {
    idle_ttl   = 0
    scale_up   = "1s"
    settle     = "2s"
    scale_down = "3s"
    warm       = "4s"
    evict_idle = "5s"
  }
}`)
	if err != nil {
		t.Fatal(err)
	}
	want := defaults().Queen.Detection
	want.FlapChanges, want.FlapWindow, want.FlapHold, want.BrakeShare, want.BrakeWindow, want.BrakeHives = 5, 2*time.Minute, 3*time.Minute, 0.75, 20*time.Second, 5
	if c.Queen.Detection != want || c.Gossip.Rejoin != 30*time.Second {
		t.Errorf("%+v, rejoin %s", c.Queen.Detection, c.Gossip.Rejoin)
	}
	if p := (Placement{ScaleUp: time.Second, Settle: 2 * time.Second, ScaleDown: 3 * time.Second, Warm: 4 * time.Second, EvictIdle: 5 * time.Second}); c.Queen.Placement != p {
		t.Errorf("%+v", c.Queen.Placement)
	}
	for _, wrong := range []string{`queen {
  detection {
    flap_changes = 1
  }
}`, `queen {
  detection {
    brake_share = 1.5
  }
}`, `queen {
  placement {
    scale_up = "0s"
  }
}`, `gossip {
  rejoin = "10ms"
}`} {
		if _, err := load(wrong); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", wrong, err)
		}
	}
}

// TestShowRoundTrip: what Show prints is a valid configuration that means the same, but for the secrets, which it hides.
func TestShowRoundTrip(t *testing.T) {
	env := environment(map[string]string{"LOCAL": "true"})
	for _, f := range []string{"testdata/good/full.hcl", "testdata/good/empty.hcl", "../../config.hcl"} {
		c, err := Load(Options{Path: f, Env: env})
		if err != nil {
			t.Fatal(err)
		}
		var shown, again, js bytes.Buffer
		if err := errors.Join(c.Show(&shown), c.ShowJSON(&js)); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(shown.String()+js.String(), "canary") {
			t.Error("a secret is shown")
		}
		if !json.Valid(js.Bytes()) {
			t.Errorf("not JSON: %s", js.String())
		}
		path := filepath.Join(t.TempDir(), "config.hcl")
		if err := os.WriteFile(path, shown.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		c2, err := Load(Options{Path: path, Env: env})
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		if err := c2.Show(&again); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(shown.String(), again.String()); d != "" {
			t.Errorf("%s: %s", f, d)
		}
	}
}

func TestShow(t *testing.T) {
	c, err := Load(Options{Path: "testdata/good/full.hcl", Env: environment(map[string]string{"LOCAL": "false"})})
	if err != nil {
		t.Fatal(err)
	}
	here, _ := filepath.Abs("testdata/good")
	var text, js bytes.Buffer
	if err := errors.Join(c.Show(&text), c.ShowJSON(&js)); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/good/show.golden", strings.ReplaceAll(text.String(), here, "HERE"))
	golden(t, "testdata/good/show.json.golden", strings.ReplaceAll(js.String(), here, "HERE"))
}

// shipped parses the config.hcl of the repository.
func shipped(t *testing.T) ([]byte, *hclsyntax.Body) {
	t.Helper()
	src, err := os.ReadFile("../../config.hcl")
	if err != nil {
		t.Fatal(err)
	}
	// The examples of blocks that do not exist by default stand in comments; they are part of what is documented.
	_, examples, ok := strings.Cut(string(src), "# Examples of blocks")
	if !ok {
		t.Fatal("no examples")
	}
	text := string(src) + "\n" + regexp.MustCompile(`(?m)^# ?`).ReplaceAllString(examples[strings.Index(examples, "\n"):], "")
	f, diags := hclsyntax.ParseConfig([]byte(text), "config.hcl", hcl.InitialPos)
	if diags.HasErrors() {
		t.Fatal(diags)
	}
	return []byte(text), f.Body.(*hclsyntax.Body)
}

// TestShippedFileIsTheDefault: the built-in text and no text at all mean the same.
func TestShippedFileIsTheDefault(t *testing.T) {
	src, err := os.ReadFile("../../config.hcl")
	if err != nil {
		t.Fatal(err)
	}
	got, diags := parse(src, "config.hcl", "", environment(nil))
	want, diags2 := parse(nil, "empty", "", environment(nil))
	if diags != nil || diags2 != nil {
		t.Fatal(diags, diags2)
	}
	var a, b bytes.Buffer
	if err := errors.Join(got.Show(&a), want.Show(&b)); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.String(), a.String()); d != "" {
		t.Errorf("(-code +config.hcl):\n%s", d)
	}
	if got.Hive.ListenSet || got.Queen.HivesSet {
		t.Error("the built-in text counts as the user's")
	}
}

// TestShippedFileIsComplete: each option of the schema stands in config.hcl, with a comment above it that says its kind and default or
// that it is required.
func TestShippedFileIsComplete(t *testing.T) {
	src, body := shipped(t)
	lines := strings.Split(string(src), "\n")
	comment := func(line int) string {
		var out []string
		for i := line - 2; i >= 0 && strings.HasPrefix(strings.TrimSpace(lines[i]), "#"); i-- {
			out = append(out, strings.TrimLeft(strings.TrimSpace(lines[i]), "# "))
		}
		return strings.Join(out, " ")
	}
	kinds := regexp.MustCompile(`Text|List|Path|Host|One of|Time|Number|Fraction|Amount|First and last|true or false|URL|Reference|Tokens|Object|Expression|As above`)
	defaultSaid := regexp.MustCompile(`Default: |Required`)
	var walk func(b *block, body *hclsyntax.Body, path string, partial bool)
	walk = func(b *block, body *hclsyntax.Body, path string, partial bool) {
		for _, o := range b.options {
			a, ok := body.Attributes[o.name]
			if !ok {
				if !partial {
					t.Errorf("%s.%s does not stand in config.hcl", path, o.name)
				}
				continue
			}
			c := comment(a.NameRange.Start.Line)
			if !kinds.MatchString(c) || !defaultSaid.MatchString(c) {
				t.Errorf("%s.%s: the comment %q does not say the kind of value and the default", path, o.name, c)
			}
			if o.need == "" || !strings.HasSuffix(o.need, ".") {
				t.Errorf("%s.%s: no sentence for a wrong type", path, o.name)
			}
		}
		for _, s := range b.blocks {
			found := false
			for _, in := range body.Blocks {
				if in.Type == s.name {
					found = true
					walk(s, in.Body, path+"."+s.name, false)
				}
			}
			if !found {
				t.Errorf("block %s.%s does not stand in config.hcl", path, s.name)
			}
		}
		for _, g := range b.groups {
			found := false
			for _, in := range body.Blocks {
				if in.Type == g.name {
					s, _ := g.open(in.Labels[0])
					walk(s, in.Body, g.name+" "+in.Labels[0], found)
					found = true
				}
			}
			if !found {
				t.Errorf("no block %s in config.hcl", g.name)
			}
		}
	}
	walk(schema(defaults()), body, "", false)
}

func TestSearchOrder(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) string {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("agent {\n  name = \""+strings.ReplaceAll(filepath.Dir(name), "/", "-")+"\"\n}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	flagged, variable, inHome, inData, system := write("flag/c.hcl"), write("variable/c.hcl"), write("home/config.hcl"), write("data/apiary/config.hcl"), write("etc/c.hcl")
	homeDir, dataDir := filepath.Dir(inHome), filepath.Join(dir, "data")
	for _, c := range []struct {
		name   string
		path   string
		env    map[string]string
		system string
		want   string
	}{
		{"flag", flagged, map[string]string{"APIARY_CONFIG": variable, "APIARY_HOME": homeDir}, system, flagged},
		{"variable", "", map[string]string{"APIARY_CONFIG": variable, "APIARY_HOME": homeDir}, system, variable},
		{"home", "", map[string]string{"APIARY_HOME": homeDir, "APIARY_CONFIG": ""}, system, inHome},
		{"platform's folder", "", map[string]string{"XDG_DATA_HOME": dataDir}, system, inData},
		{"home without a file", "", map[string]string{"APIARY_HOME": filepath.Join(dir, "none")}, system, system},
		{"nothing", "", map[string]string{"APIARY_HOME": filepath.Join(dir, "none")}, filepath.Join(dir, "none"), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, got, err := find(Options{Path: c.path, Env: environment(c.env), Embedded: []byte("# embedded\n")}, c.system)
			if err != nil || got != c.want {
				t.Errorf("%q %v, want %q", got, err, c.want)
			}
			if c.want == "" && string(src) != "# embedded\n" {
				t.Errorf("%q", src)
			}
		})
	}
	// Never the current folder.
	t.Chdir(filepath.Dir(inHome))
	if _, got, err := find(Options{Env: environment(map[string]string{"HOME": dir})}, filepath.Join(dir, "none")); got != "" || err != nil {
		t.Errorf("the current folder was searched: %q %v", got, err)
	}
}

func TestUnreadableFiles(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large.hcl")
	if err := os.WriteFile(large, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]Options{
		"flag":     {Path: filepath.Join(dir, "none.hcl"), Env: environment(nil)},
		"variable": {Env: environment(map[string]string{"APIARY_CONFIG": filepath.Join(dir, "none.hcl")})},
		"folder":   {Path: dir, Env: environment(nil)},
		"device":   {Path: "/dev/zero", Env: environment(nil)},
		"large":    {Path: large, Env: environment(nil)},
		"no home":  {Env: func(string) (string, bool) { return "", false }},
		"address":  {Env: environment(nil), Addr: "nonsense"},
		"scheme":   {Env: environment(nil), Addr: "https://127.0.0.1:1"},
	} {
		want := fault.Invalid
		if name == "flag" || name == "variable" {
			want = fault.NotFound
		}
		c, err := Load(o)
		if want == fault.NotFound && !strings.Contains(err.Error(), filepath.Join(dir, "none.hcl")) {
			t.Errorf("%s: the path is not named: %v", name, err)
		}
		if c != nil || fault.KindOf(err) != want || !strings.HasSuffix(err.Error(), ".") {
			t.Errorf("%s: %v %v", name, c, err)
		}
	}
}

func TestEnvironmentBeatsTheFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.hcl")
	if err := os.WriteFile(path, []byte("agent {\n data_dir = \"~/bees\"\n}\nhive {\n listen = \"127.0.0.1:7835\"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(Options{Path: path, Env: environment(nil)})
	if err != nil {
		t.Fatal(err)
	}
	if c.Home != "/home/someone/bees" || c.Queen.Listen != "127.0.0.1:7833" || !c.Hive.ListenSet || c.Queen.HivesSet || c.Agent.Name == "" {
		t.Errorf("%+v", c)
	}
	for _, addr := range []string{"127.0.0.1:9999", "http://127.0.0.1:9999", "http://127.0.0.1:9999/"} {
		c, err = Load(Options{Path: path, Env: environment(map[string]string{"APIARY_HOME": dir}), Addr: addr})
		if err != nil {
			t.Fatal(err)
		}
		if c.Home != dir || c.Queen.Listen != "127.0.0.1:9999" {
			t.Errorf("%s %s", c.Home, c.Queen.Listen)
		}
	}
}

// TestShowWithAnAddress: what comes from the environment is shown as it takes effect, and where it comes from.
func TestShowWithAnAddress(t *testing.T) {
	for _, x := range []struct{ hive, listen, notes string }{
		{"", "127.0.0.1:0", "# from --addr\n  listen = \"127.0.0.1:9999\"|# a free port, because --addr is given|bind = \"127.0.0.1:0\"|hives = []"},
		{"hive {\n listen = \"127.0.0.1:7835\"\n}\ngossip {\n bind = \"127.0.0.1:7834\"\n}\n", "127.0.0.1:7835", "# from --addr\n|bind = \"127.0.0.1:7834\"|hives = [\"http://127.0.0.1:7835\"]"},
	} {
		path := filepath.Join(t.TempDir(), "c.hcl")
		if err := os.WriteFile(path, []byte(x.hive), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := Load(Options{Path: path, Env: environment(nil), Addr: "127.0.0.1:9999", AddrFrom: "--addr"})
		if err != nil {
			t.Fatal(err)
		}
		var shown bytes.Buffer
		if err := c.Show(&shown); err != nil || c.Hive.Listen != x.listen {
			t.Errorf("%v, the hive at %s", err, c.Hive.Listen)
		}
		text := regexp.MustCompile(` +=`).ReplaceAllString(shown.String(), " =")
		for _, note := range strings.Split(x.notes, "|") {
			if !strings.Contains(text, note) {
				t.Errorf("%q is not in\n%s", note, text)
			}
		}
		if strings.Contains(text, "free port") != (x.hive == "") {
			t.Errorf("the free port in\n%s", text)
		}
		if _, diags := parse(shown.Bytes(), "again.hcl", "", environment(nil)); diags != nil {
			t.Error(diags)
		}
	}
}

func TestSuggest(t *testing.T) {
	names := []string{"listen", "limits", "hives", "replicas", "data_dir"}
	for name, want := range map[string]string{"replica": "replicas", "lisen": "listen", "limit": "limits", "hive": "hives", "xyz": "", "l": "", "datadir": "data_dir"} {
		got := suggest(name, names)
		if want == "" && got != "" || want != "" && got != " Did you mean \""+want+"\"?" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, dir := range []string{"testdata/bad/*.hcl", "testdata/good/*.hcl", "../../config.hcl"} {
		files, _ := filepath.Glob(dir)
		for _, p := range files {
			b, err := os.ReadFile(p)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	env := environment(map[string]string{"EMPTY": "", "CANARY": "a canary value", "CANARY_ADDRESS": "127.0.0.1:canary",
		"CANARY_ARGUMENT": "--port=canary\x00", "CANARY_NAME": "canary-name"})
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 8<<10 {
			return
		}
		c, diags := parse(src, "f.hcl", "", env)
		if (c == nil) == (len(diags) == 0) {
			t.Fatalf("%v %v", c, diags)
		}
		if c == nil {
			if diags.Error() == "" {
				t.Fatal("no message")
			}
			return
		}
		var b bytes.Buffer
		if err := errors.Join(c.Show(&b), c.ShowJSON(&bytes.Buffer{})); err != nil {
			t.Fatal(err)
		}
		if _, diags := parse(b.Bytes(), "again.hcl", "", env); diags != nil {
			t.Fatalf("what Show prints is not valid: %v\n%s", diags, b.String())
		}
	})
}

// TestDeepNesting: a file of open brackets must not overflow the stack.
func TestDeepNesting(t *testing.T) {
	for _, c := range []struct {
		open string
		size int
	}{
		{"(", 1 << 12}, {"[", 1 << 12}, {"!", 1 << 12}, {"{a=", 1 << 12}, {"-", 1 << 12}, {"\"${", 1 << 12}, {"a{", 1 << 12}, {"1+", 1 << 12},
		{"true?1:", 1 << 12}, {"true?", 1 << 12}, {"1<", 1 << 12}, {"a[", 1 << 12}, {"f(", 1 << 12}, {"<<E\n${", 1 << 12},
		{"a.", 1 << 15}, // not nested, and thus not refused for its depth
	} {
		src := "agent {\nname = " + strings.Repeat(c.open, c.size/len(c.open))
		if _, diags := parse([]byte(src), "f.hcl", "", environment(nil)); len(diags) == 0 {
			t.Errorf("%q: no mistake", c.open)
		}
	}
}
