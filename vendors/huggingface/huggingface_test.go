package huggingface

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/testutil/fakehost"
	"github.com/apiary-dev/apiary/core/testutil/fakehub"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

func TestParse(t *testing.T) {
	sha := strings.Repeat("0a", 20)
	for in, want := range map[string]reference{
		"hf:org/repo":                       {repo: "org/repo"},
		"hf://org/repo":                     {repo: "org/repo"},
		"org/repo:Q8_0":                     {repo: "org/repo", quant: "Q8_0"},
		"hf:gpt2":                           {repo: "gpt2"},
		"hf:gpt2:Q4_0":                      {repo: "gpt2", quant: "Q4_0"},
		"hf:gpt2@v1.0/a.gguf":               {repo: "gpt2", revision: "v1.0", path: "a.gguf"},
		"hf:o/r@main:Q4_K_M":                {repo: "o/r", revision: "main", quant: "Q4_K_M"},
		"hf:o/r@" + sha + ":UD-Q4_K_XL":     {repo: "o/r", revision: sha, quant: "UD-Q4_K_XL"},
		"hf:o/r@refs/pr/4":                  {repo: "o/r", revision: "refs/pr/4"},
		"hf:o/r@refs/pr/4:Q8_0":             {repo: "o/r", revision: "refs/pr/4", quant: "Q8_0"},
		"hf:o/r@refs/pr/4/sub/a.gguf":       {repo: "o/r", revision: "refs/pr/4", path: "sub/a.gguf"},
		"hf:o/r@refs/convert/parquet/x":     {repo: "o/r", revision: "refs/convert/parquet", path: "x"},
		"hf:o/r@feature%2Fx/sub/a b@1.gguf": {repo: "o/r", revision: "feature/x", path: "sub/a b@1.gguf"},
		"hf:o/r/a:b#c?d.gguf":               {repo: "o/r", path: "a:b#c?d.gguf"},
		"hf:O-r_g.1/Re.po_1-x/Q6_K/":        {repo: "O-r_g.1/Re.po_1-x", path: "Q6_K"},
	} {
		got, err := parse(in)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", in, got, err)
			continue
		}
		if again, err := parse(got.String()); err != nil || again != want {
			t.Errorf("%s written as %s: %+v, %v", in, got, again, err)
		}
	}
	for _, in := range []string{
		"", "hf:", "hf:/x", "hf:o/", "hf:o//x", "hf:o/r@", "hf:o/r:", "hf:o/r@:x", "hf:../r", "hf:o/..", "hf:-o/r", "hf:o/r.", "hf:o/a--b", "hf:o/a..b", "hf:o/r@a..b", "hf:o/r@-x",
		"hf:o/r/../../x", "hf:o/r/./x", "hf:o/r@x%00", "hf:o/r@a%2", "hf:o/r\nx", "hf:o r/x", "hf:o/ü", "hf:o/r:a@b", "hf:" + strings.Repeat("a", 3000), "file:/x/y", "https://h/x", `hf:o\r`, "hf:o/r@refs/pr/",
	} {
		if got, err := parse(in); err == nil {
			t.Errorf("%q: %+v", in, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"hf:org/repo@refs/pr/1:Q4_K_M", "hf:o/r@a%2Fb/x/y.gguf", "gpt2", "hf:o/r:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := parse(s)
		if err != nil {
			return
		}
		if again, err := parse(r.String()); err != nil || again != r {
			t.Errorf("%q is %+v, written as %q that is %+v, %v", s, r, r, again, err)
		}
	})
}

func TestSupports(t *testing.T) {
	v := New()
	for ref, want := range map[string]bool{
		"hf:org/repo": true, "hf:x": true, "org/repo": true, "org/repo:Q8_0": true,
		"model": false, "file:/x/y": false, "a/b/c": false, "builtin:x": false, "/abs/path": false, "./rel": false, "https://host/x": false, "": false,
	} {
		if got := v.Supports(ref); got != want {
			t.Errorf("%q: %v", ref, got)
		}
	}
}

func TestConfigure(t *testing.T) {
	for _, endpoint := range []string{"hub", "ftp://hub", "https://", "https://u:p@hub", "https://hub?x=1", "https://hub#x"} {
		err := New().Configure(t.Context(), vendor.Configuration{Values: []byte(`{"endpoint":"` + endpoint + `"}`)})
		if e, ok := err.(*vendor.Error); !ok || e.Param != "endpoint" || e.Kind != vendor.KindInvalid {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
	v := New()
	if err := v.Configure(t.Context(), vendor.Configuration{Values: []byte(`{"endpoint":"https://mirror.example.org/hf/"}`)}); err != nil || v.endpoint != "https://mirror.example.org/hf" {
		t.Errorf("%v, %v", v.endpoint, err)
	}
	if _, err := New().Resolve(t.Context(), vendor.ResolveRequest{Reference: "hf:o/r"}); err == nil {
		t.Error("an answer before Configure")
	}
	if s := v.Schema(); len(s.Attributes) != 2 || !slices.Contains(v.Info().Features, vendor.FeatureSearch) {
		t.Errorf("%+v", s)
	}
}

func TestResolve(t *testing.T) {
	hub := newHub(t)
	files := append(lfs("m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-BF16.gguf"), fakehub.File{Path: "README.md", Body: []byte("hello")}, fakehub.File{Path: "small.gguf", Body: []byte("x")})
	pull := lfs("m-Q4_K_M.gguf")
	pull[0].Body = []byte("other")
	hub.Add(fakehub.Repo{ID: "org/repo", Files: files, Refs: map[string][]fakehub.File{"refs/pr/1": pull, "v1": pull}})
	h := &fakehost.Host{}
	v := configured(t, hub, h)
	sha := hub.Commit("org/repo", "main")

	m := resolve(t, v, "hf:org/repo")
	if m.Reference != "hf:org/repo@"+sha+":Q4_K_M" || m.Format != "gguf" || names(m) != "m-Q4_K_M.gguf" {
		t.Errorf("%+v", m)
	}
	f := m.Files[0]
	if f.Size != int64(len("content of m-Q4_K_M.gguf")) || f.Digests.SHA256 != fakehub.SHA256(files[1].Body) || f.Digests.GitBlobSHA1 != "" {
		t.Errorf("%+v", f)
	}
	if s := f.Sources[0]; s.URL != hub.URL+"/org/repo/resolve/"+sha+"/m-Q4_K_M.gguf" || s.Credential != "huggingface" || !s.Ranges {
		t.Errorf("%+v", s)
	}
	if m.Meta["license"] != "mit" || m.Meta["page"] != hub.URL+"/org/repo" {
		t.Errorf("%v", m.Meta)
	}
	if len(h.Asked) != 2 {
		t.Errorf("asked %v", h.Asked)
	}
	for ref, want := range map[string]string{
		m.Reference:               m.Reference,
		"org/repo":                m.Reference,
		"hf:org/repo@main:q4_k_m": m.Reference,
		"hf:org/repo@" + sha[:9]:  m.Reference,
		"hf:org/repo:m-q8_0.GGUF": "hf:org/repo@" + sha + ":Q8_0",
		"hf:org/repo/M-Q8_0.gguf": "hf:org/repo@" + sha + "/m-Q8_0.gguf",
		"hf:org/repo/small.gguf":  "hf:org/repo@" + sha + "/small.gguf",
		"hf:org/repo@refs/pr/1":   "hf:org/repo@" + hub.Commit("org/repo", "refs/pr/1") + ":Q4_K_M",
		"hf:org/repo@v1:Q4_K_M":   "hf:org/repo@" + hub.Commit("org/repo", "v1") + ":Q4_K_M",
	} {
		m := resolve(t, v, ref)
		if m.Reference != want {
			t.Errorf("%s: %s, want %s", ref, m.Reference, want)
		}
		if again := resolve(t, v, m.Reference); again.Reference != m.Reference || again.Files[0].Path != m.Files[0].Path {
			t.Errorf("%s resolves to %s", m.Reference, again.Reference)
		}
	}
	// A small file has the name that git gives it.
	if f := resolve(t, v, "hf:org/repo/small.gguf").Files[0]; f.Digests != (vendor.Digests{GitBlobSHA1: fakehub.GitBlob([]byte("x"))}) || f.Size != 1 {
		t.Errorf("%+v", f)
	}
}

func TestBareAndRenamed(t *testing.T) {
	hub := newHub(t)
	hub.Add(fakehub.Repo{ID: "gpt2", Files: lfs("gpt2.Q8_0.gguf")})
	hub.Add(fakehub.Repo{ID: "new/name", Files: lfs("x.Q8_0.gguf")})
	hub.Add(fakehub.Repo{ID: "old/name", MovedTo: "new/name"})
	v := configured(t, hub, &fakehost.Host{})
	if m := resolve(t, v, "hf:gpt2"); m.Reference != "hf:gpt2@"+hub.Commit("gpt2", "main")+":Q8_0" {
		t.Error(m.Reference)
	}
	if m := resolve(t, v, "hf:old/name"); m.Reference != "hf:new/name@"+hub.Commit("new/name", "main")+":Q8_0" || !strings.Contains(m.Files[0].Sources[0].URL, "/new/name/resolve/") {
		t.Errorf("%+v", m)
	}
}

func TestChoices(t *testing.T) {
	for name, c := range map[string]struct {
		files, ref, want, suffix string
	}{
		"default":              {"a-Q2_K.gguf a-Q4_K_M.gguf a-Q8_0.gguf", "", "a-Q4_K_M.gguf", ":Q4_K_M"},
		"second default":       {"a-Q2_K.gguf a-Q8_0.gguf", "", "a-Q8_0.gguf", ":Q8_0"},
		"first":                {"b-Q6_K.gguf a-Q2_K.gguf", "", "a-Q2_K.gguf", ":Q2_K"},
		"first, unnamed":       {"z.gguf b.gguf", "", "b.gguf", "/b.gguf"},
		"any case":             {"a.q4_k_m.gguf", ":Q4_K_M", "a.q4_k_m.gguf", ":Q4_K_M"},
		"unsloth":              {"m-Q4_K_M.gguf m-UD-Q4_K_XL.gguf", ":ud-q4_k_xl", "m-UD-Q4_K_XL.gguf", ":UD-Q4_K_XL"},
		"part of a word":       {"m-UD-Q4_K_XL.gguf", ":Q4_K_XL", "m-UD-Q4_K_XL.gguf", ":Q4_K_XL"},
		"whole words first":    {"m-BF16.gguf m-F16.gguf", ":F16", "m-F16.gguf", ":F16"},
		"end of a word":        {"m-BF16.gguf", ":F16", "m-BF16.gguf", ":F16"},
		"a tag of its own":     {"m-instruct.gguf m-base.gguf", ":instruct", "m-instruct.gguf", ":INSTRUCT"},
		"side files":           {"imatrix-Q4_K_M.gguf mtp-Q4_K_M.gguf eagle3-Q4_K_M.gguf m-Q5_0.gguf", "", "m-Q5_0.gguf", ":Q5_0"},
		"folders":              {"Q4_K_M/m-00001-of-00002.gguf Q4_K_M/m-00002-of-00002.gguf Q8_0/m.gguf", "", "Q4_K_M/m-00001-of-00002.gguf Q4_K_M/m-00002-of-00002.gguf", ":Q4_K_M"},
		"folder by name":       {"Q4_K_M/a.gguf Q8_0/b.gguf", "/q8_0", "Q8_0/b.gguf", ":Q8_0"},
		"folder tag":           {"Q6_K/m-Q6_K.gguf Q8_0/m-Q8_0.gguf", ":q6_k", "Q6_K/m-Q6_K.gguf", ":Q6_K"},
		"any shard":            {"m-00001-of-00002.gguf m-00002-of-00002.gguf", "/m-00002-of-00002.gguf", "m-00001-of-00002.gguf m-00002-of-00002.gguf", "/m-00001-of-00002.gguf"},
		"shards with tag":      {"m-Q8_0-00001-of-00002.gguf m-Q8_0-00002-of-00002.gguf", ":Q8_0", "m-Q8_0-00001-of-00002.gguf m-Q8_0-00002-of-00002.gguf", ":Q8_0"},
		"projector":            {"m-Q4_K_M.gguf mmproj-F16.gguf mmproj-F32.gguf", "", "m-Q4_K_M.gguf mmproj-F16.gguf=projector", ":Q4_K_M"},
		"projector by tag":     {"m-Q8_0.gguf mmproj-m-F16.gguf mmproj-m-Q8_0.gguf", "", "m-Q8_0.gguf mmproj-m-Q8_0.gguf=projector", ":Q8_0"},
		"projector in folder":  {"a/m-Q8_0.gguf a/mmproj-F32.gguf b/mmproj-Q8_0.gguf mmproj-Q8_0.gguf", "", "a/m-Q8_0.gguf a/mmproj-F32.gguf=projector", ":Q8_0"},
		"projector above":      {"a/m-Q8_0.gguf b/mmproj-Q8_0.gguf mmproj-F16.gguf", "", "a/m-Q8_0.gguf mmproj-F16.gguf=projector", ":Q8_0"},
		"the projector itself": {"m-Q8_0.gguf mmproj-F16.gguf", "/mmproj-F16.gguf", "mmproj-F16.gguf", "/mmproj-F16.gguf"},
		"odd names":            {"mödel+1 Q4_K_M.gguf", "", "m_del+1 Q4_K_M.gguf", ":Q4_K_M"},
		"same quant twice":     {"a-Q4_K_M.gguf b-Q4_K_M.gguf", "/b-Q4_K_M.gguf", "b-Q4_K_M.gguf", "/b-Q4_K_M.gguf"},
		"safetensors": {
			"config.json model.safetensors tokenizer.json tokenizer_config.json README.md pytorch_model.bin consolidated.safetensors original/x.safetensors chat_template.jinja LICENSE.txt run.py", "",
			"model.safetensors LICENSE.txt=license chat_template.jinja=template config.json=config tokenizer.json=tokenizer tokenizer_config.json=tokenizer", "",
		},
		"safetensors shards": {"model-00001-of-00002.safetensors model-00002-of-00002.safetensors config.json", "", "model-00001-of-00002.safetensors model-00002-of-00002.safetensors config.json=config", ""},
		"safetensors file":   {"a.safetensors b.safetensors config.json", "/b.safetensors", "b.safetensors config.json=config", "/b.safetensors"},
	} {
		t.Run(name, func(t *testing.T) {
			hub := newHub(t)
			list := strings.Fields(c.files)
			if name == "odd names" {
				list = []string{c.files}
			}
			hub.Add(fakehub.Repo{ID: "o/r", Files: lfs(list...)})
			v := configured(t, hub, &fakehost.Host{})
			m := resolve(t, v, "hf:o/r"+c.ref)
			if got := names(m); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			if want := "hf:o/r@" + hub.Commit("o/r", "main") + c.suffix; m.Reference != want {
				t.Errorf("got %s, want %s", m.Reference, want)
			}
			if again := resolve(t, v, m.Reference); again.Reference != m.Reference || names(again) != names(m) {
				t.Errorf("%s resolves to %s with %s", m.Reference, again.Reference, names(again))
			}
		})
	}
}

func TestSafetensorsIndex(t *testing.T) {
	hub := newHub(t)
	index := func(files ...string) fakehub.File {
		var pairs []string
		for i, f := range files {
			pairs = append(pairs, fmt.Sprintf(`"w%d":%q`, i, f))
		}
		return fakehub.File{Path: "model.safetensors.index.json", Body: []byte(`{"metadata":{},"weight_map":{` + strings.Join(pairs, ",") + `}}`)}
	}
	weights := lfs("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.fp16.safetensors")
	hub.Add(fakehub.Repo{ID: "o/whole", Files: append([]fakehub.File{index("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors")}, weights...)})
	hub.Add(fakehub.Repo{ID: "o/part", Files: append([]fakehub.File{index("model-00001-of-00002.safetensors", "model-00003-of-00003.safetensors")}, weights...)})
	hub.Add(fakehub.Repo{ID: "o/broken", Files: append([]fakehub.File{{Path: "model.safetensors.index.json", Body: []byte(`{"weight`)}}, weights...)})
	v := configured(t, hub, &fakehost.Host{})
	if m := resolve(t, v, "hf:o/whole"); names(m) != "model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json=config" || m.Format != "safetensors" {
		t.Errorf("%s %s", names(m), m.Format)
	}
	if e := refusal(t, v, "hf:o/part"); e.Code != "shard_missing" || !strings.Contains(e.Message, "model-00003-of-00003.safetensors") {
		t.Error(e)
	}
	if e := refusal(t, v, "hf:o/broken"); e.Kind != vendor.KindUnavailable {
		t.Error(e)
	}
}

func TestRefusals(t *testing.T) {
	const page = "; open the model's page"
	for name, c := range map[string]struct {
		repo   fakehub.Repo
		faults fakehub.Faults
		token  string
		ref    string
		kind   vendor.Kind
		code   string
		says   string
	}{
		"missing":        {ref: "hf:o/other", kind: vendor.KindNotFound, code: "repo_not_found", says: "does not exist, or it is private"},
		"missing, known": {token: "hf_x", ref: "hf:o/other", kind: vendor.KindNotFound, code: "repo_not_found", says: "apiary credential set huggingface"},
		"private":        {repo: fakehub.Repo{Private: true}, kind: vendor.KindNotFound, code: "repo_not_found"},
		"bad token":      {faults: fakehub.Faults{Token: "hf_good"}, token: "hf_bad", kind: vendor.KindDenied, code: "bad_token", says: "does not accept the token"},
		"gated": {repo: fakehub.Repo{Gated: "manual"}, kind: vendor.KindDenied, code: "gated",
			says: "Hugging Face wants you to accept the licence of o/r first: open the model's page, accept, and set a token with `apiary credential set huggingface`. (401 GatedRepo)"},
		"gated, not listed":  {repo: fakehub.Repo{Gated: "auto"}, token: "hf_x", kind: vendor.KindDenied, code: "gated", says: "(403 GatedRepo)"},
		"disabled":           {repo: fakehub.Repo{Disabled: true}, kind: vendor.KindDenied, code: "repo_disabled", says: "Access to this resource is disabled."},
		"no such revision":   {ref: "hf:o/r@v9", kind: vendor.KindNotFound, code: "revision_not_found", says: `"v9"`},
		"no such file":       {ref: "hf:o/r/x.gguf", kind: vendor.KindNotFound, code: "model_not_found", says: "it has :Q4_K_M, :Q8_0"},
		"no such quant":      {ref: "hf:o/r:Q5_K_M", kind: vendor.KindNotFound, code: "model_not_found", says: `no GGUF file for "Q5_K_M"; it has :Q4_K_M, :Q8_0, ask for example for hf:o/r:Q4_K_M`},
		"no model":           {ref: "hf:o/r/README.md", kind: vendor.KindNotFound, code: "model_not_found", says: "which is no model"},
		"no reference":       {ref: "hf:o/r@", kind: vendor.KindInvalid, code: "invalid_reference"},
		"empty":              {repo: fakehub.Repo{Files: []fakehub.File{}}, kind: vendor.KindNotFound, code: "model_not_found", says: "has no files"},
		"no weights":         {repo: fakehub.Repo{Files: lfs("README.md")}, kind: vendor.KindNotFound, code: "model_not_found", says: "has no GGUF or safetensors file"},
		"pickles":            {repo: fakehub.Repo{Files: lfs("pytorch_model.bin", "config.json")}, kind: vendor.KindInvalid, code: "unsafe_format", says: "can run code"},
		"a pickle":           {repo: fakehub.Repo{Files: lfs("pytorch_model.bin", "m-Q8_0.gguf")}, ref: "hf:o/r/pytorch_model.bin", kind: vendor.KindInvalid, code: "unsafe_format"},
		"quant of none":      {repo: fakehub.Repo{Files: lfs("model.safetensors")}, ref: "hf:o/r:Q4_K_M", kind: vendor.KindNotFound, code: "model_not_found", says: "safetensors and no GGUF"},
		"shard missing":      {repo: fakehub.Repo{Files: lfs("m-Q8_0-00001-of-00003.gguf", "m-Q8_0-00003-of-00003.gguf")}, kind: vendor.KindNotFound, code: "shard_missing", says: "m-Q8_0-00002-of-00003.gguf"},
		"first shard":        {repo: fakehub.Repo{Files: lfs("m-Q8_0-00002-of-00002.gguf")}, kind: vendor.KindNotFound, code: "shard_missing", says: "m-Q8_0-00001-of-00002.gguf"},
		"web page":           {faults: fakehub.Faults{Garbage: "<!doctype html><html>Log in</html>", GarbageTyp: "text/html"}, kind: vendor.KindUnavailable, code: "hub_broken", says: "web page"},
		"web page as JSON":   {faults: fakehub.Faults{Garbage: " <html>", GarbageTyp: "application/json"}, kind: vendor.KindUnavailable, code: "hub_broken", says: "web page"},
		"truncated":          {faults: fakehub.Faults{Garbage: `{"id":"o/r","sha":"`, GarbageTyp: "application/json"}, kind: vendor.KindUnavailable, code: "hub_broken", says: "cut or damaged"},
		"no commit":          {faults: fakehub.Faults{Garbage: `{"id":"o/r","sha":"main"}`, GarbageTyp: "application/json"}, kind: vendor.KindUnavailable, code: "hub_broken", says: "no commit"},
		"rate limit":         {faults: fakehub.Faults{Limited: 1}, kind: vendor.KindExhausted, code: "rate_limited", says: "try again in 56s"},
		"rate limit, longer": {faults: fakehub.Faults{Limited: 1, LimitHead: map[string]string{"Retry-After": "90"}}, kind: vendor.KindExhausted, code: "rate_limited", says: "try again in 1m30s"},
	} {
		t.Run(name, func(t *testing.T) {
			hub := newHub(t)
			c.repo.ID = "o/r"
			if c.repo.Files == nil {
				c.repo.Files = append(lfs("m-Q4_K_M.gguf", "m-Q8_0.gguf"), fakehub.File{Path: "README.md", Body: []byte("x")})
			}
			hub.Add(c.repo)
			hub.Set(func(f *fakehub.Faults) { *f = c.faults })
			v := configured(t, hub, &fakehost.Host{Token: c.token})
			if c.ref == "" {
				c.ref = "hf:o/r"
			}
			e := refusal(t, v, c.ref)
			if e.Kind != c.kind || e.Code != c.code || !strings.Contains(e.Message, c.says) {
				t.Errorf("%s %s: %s", e.Kind, e.Code, e.Message)
			}
			if strings.Contains(e.Message, page) && e.HelpURL == "" {
				t.Error("the page is not named")
			}
		})
	}
}

// Who may read a gated or private repository does, and a hash that is withheld in the list comes from the file itself.
func TestTokens(t *testing.T) {
	hub := newHub(t)
	hub.Add(fakehub.Repo{ID: "o/gated", Files: lfs("m-Q8_0.gguf"), Gated: "auto", Redacted: true, Tokens: []string{"hf_me"}})
	hub.Add(fakehub.Repo{ID: "o/private", Files: lfs("m-Q8_0.gguf"), Private: true, Tokens: []string{"hf_me"}})
	h := &fakehost.Host{Token: "hf_me"}
	v := configured(t, hub, h)
	resolve(t, v, "hf:o/private")
	h.Asked = nil
	m := resolve(t, v, "hf:o/gated")
	if d := m.Files[0].Digests.SHA256; d != fakehub.SHA256([]byte("content of m-Q8_0.gguf")) {
		t.Error(d)
	}
	if n := len(h.Asked); n != 3 || !strings.HasPrefix(h.Asked[2], "HEAD /o/gated/resolve/") {
		t.Errorf("asked %v", h.Asked)
	}
	for _, r := range hub.Requests() {
		if r.CDN {
			t.Errorf("%s %s went to the content network", r.Method, r.Path)
		}
	}
}

func TestPages(t *testing.T) {
	hub := newHub(t)
	var paths []string
	for i := range 4000 {
		paths = append(paths, fmt.Sprintf("checkpoints/%04d.json", i))
	}
	hub.Add(fakehub.Repo{ID: "o/big", Files: lfs(append(paths, "m-Q8_0.gguf", "z/m-Q4_K_M.gguf")...)})
	for name, link := range map[string]string{"hub": "", "mirror that rewrites nothing": "https://hub.example.org"} {
		t.Run(name, func(t *testing.T) {
			hub.Set(func(f *fakehub.Faults) { f.LinkHost = link })
			h := &fakehost.Host{}
			if m := resolve(t, configured(t, hub, h), "hf:o/big"); names(m) != "z/m-Q4_K_M.gguf" {
				t.Error(names(m))
			}
			if len(h.Asked) != 6 {
				t.Errorf("asked %d times", len(h.Asked))
			}
		})
	}
	v := configured(t, hub, &fakehost.Host{})
	for _, link := range []string{
		`<https://h/api/models/o/other/tree/x?cursor=1>; rel="next"`, `<https://h/elsewhere>; rel="next"`, `<%zz>; rel="next"`,
	} {
		if next, err := (question{v: v, repo: "o/big"}).next(link); err == nil {
			t.Errorf("%s leads to %s", link, next)
		}
	}
	next, err := (question{v: v, repo: "o/big"}).next(`<https://x/api/models/o/big>; rel="prev", <https://x/p/api/models/o/big/tree/abc/d%20e?a=1&cursor=%2B>;  rel="next"`)
	if err != nil || next != hub.URL+"/api/models/o/big/tree/abc/d%20e?a=1&cursor=%2B" {
		t.Errorf("%s, %v", next, err)
	}
}

// A list that goes round in a circle ends.
func TestCircle(t *testing.T) {
	hub := newHub(t)
	hub.Add(fakehub.Repo{ID: "o/r", Files: lfs("a-Q8_0.gguf", "b.gguf")})
	v := configured(t, hub, &circle{})
	if e := refusal(t, v, "hf:o/r"); e.Code != "hub_broken" || !strings.Contains(e.Message, "does not end") {
		t.Error(e)
	}
}

func TestOffline(t *testing.T) {
	h := &fakehost.Host{}
	v := New()
	if err := v.Configure(t.Context(), vendor.Configuration{Values: []byte(`{"offline":true}`), Host: h}); err != nil {
		t.Fatal(err)
	}
	if e := refusal(t, v, "hf:o/r"); e.Kind != vendor.KindUnavailable || e.Code != "offline" || len(h.Asked) > 0 {
		t.Errorf("%v, asked %v", e, h.Asked)
	}
}

func TestSearch(t *testing.T) {
	hub := newHub(t)
	for _, id := range []string{"o/story-a", "o/story-b", "p/other", "p/Story-c"} {
		hub.Add(fakehub.Repo{ID: id, Files: lfs("m.gguf"), Gated: map[string]string{"o/story-b": "auto"}[id]})
	}
	found, err := configured(t, hub, &fakehost.Host{}).Search(t.Context(), vendor.SearchRequest{Query: "story", Limit: 2})
	if err != nil || len(found) != 2 || found[0].Reference != "hf:o/story-a" || !strings.Contains(found[1].Description, "licence to accept") {
		t.Errorf("%+v, %v", found, err)
	}
}

func TestWaitFor(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, c := range map[string]struct {
		limit, after string
		want         time.Duration
	}{
		"nothing":          {"", "", 0},
		"not the cause":    {`"api";r=10;t=100`, "", 0},
		"used up":          {`"api";r=0;t=55`, "", 56 * time.Second},
		"the second":       {`"api";r=3;t=9, "resolvers";r=0;t=20`, "", 21 * time.Second},
		"seconds":          {"", "30", 30 * time.Second},
		"date":             {"", now.Add(time.Minute).Format(http.TimeFormat), time.Minute},
		"date in the past": {"", now.Add(-time.Minute).Format(http.TimeFormat), 0},
		"both":             {`"api";r=0;t=5`, "30", 30 * time.Second},
		"nonsense":         {`"api";r=;t=x`, "soon", 0},
		"for ever":         {`"api";r=0;t=99999999999`, "999999999", 24 * time.Hour},
	} {
		if got := waitFor(map[string]string{"Ratelimit": c.limit, "Retry-After": c.after}, now); got != c.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}
