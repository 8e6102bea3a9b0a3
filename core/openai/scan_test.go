package openai_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/openai"
)

func TestScan(t *testing.T) {
	for _, tc := range []struct{ body, model, prompt, fault, param string }{
		{body: `{"model":"m","messages":[{"role":"user","content":"hi"}]}`, model: "m", prompt: `[{"role":"user","content":"hi"}]`},
		{body: " {\n\"prompt\" : \"x\" ,\"mod\\u0065l\" : \"a\\u00e4\\\"b\" } ", model: `aä"b`, prompt: `"x"`},
		{body: `{"input":["a","b"],"model":"e"}`, model: "e", prompt: `["a","b"]`},
		{body: `{"nested":{"model":"no","stream":true},"model":"yes"}`, model: "yes"},
		{body: `{}`},
		{body: `{"model":"a","model":"b"}`, fault: "only once", param: "model"},
		{body: `{"model":"a","Model":"b"}`, fault: "only once", param: "model"},
		{body: `{"stream":true,"ſtream":false}`, fault: "only once", param: "stream"},
		{body: `{"model":5}`, fault: "as a string", param: "model"},
		{body: `{"stream":1}`, fault: "true or false", param: "stream"},
		{body: `[]`, fault: "JSON object"},
		{body: ``, fault: "JSON object"},
		{body: `{"a":01}`, fault: "not valid JSON"},
		{body: `{"a":1}x`, fault: "not valid JSON"},
		{body: `{"a":"` + "\x01" + `"}`, fault: "not valid JSON"},
		{body: `{"a":NaN}`, fault: "not valid JSON"},
		{body: `{"a":1,}`, fault: "not valid JSON"},
		{body: `{"a`, fault: "not valid JSON"},
		{body: `{"a":` + strings.Repeat("[", 63) + strings.Repeat("]", 63) + `}`},
		{body: `{"a":` + strings.Repeat("[", 64) + strings.Repeat("]", 64) + `}`, fault: "64 levels"},
		{body: `{"a":` + strings.Repeat("[", 100000), fault: "64 levels"},
	} {
		name := tc.body[:min(len(tc.body), 40)]
		s, err := openai.Scan([]byte(tc.body))
		if tc.fault != "" {
			be, ok := errors.AsType[*openai.BodyError](err)
			if !ok || !strings.Contains(be.Error(), tc.fault) || be.Param != tc.param {
				t.Errorf("%s: got %v", name, err)
			}
			continue
		}
		if err != nil || s.Model != tc.model || tc.body[s.PromptFrom:s.PromptTo] != tc.prompt {
			t.Errorf("%s: got %+v %v", name, s, err)
		}
	}
	for body, want := range map[string]bool{`{"stream":true}`: true, `{"stream":false}`: false, `{"stream":null}`: false, `{"x":{"stream":true}}`: false} {
		if s, err := openai.Scan([]byte(body)); err != nil || s.Stream != want {
			t.Errorf("%s: %v %v", body, s.Stream, err)
		}
	}
}

func TestSpliceModel(t *testing.T) {
	body := []byte(`{"a":1,"model" : "alias","b":"x"}`)
	s, err := openai.Scan(body)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(openai.SpliceModel(nil, body, s, `Na"me`)); got != `{"a":1,"model" : "Na\"me","b":"x"}` {
		t.Error(got)
	}
}

func FuzzScan(f *testing.F) {
	for _, s := range []string{`{"model":"m","stream":true,"messages":[]}`, `{"a":"\ud83d\ude00\\\"","b":-1.5e+3}`, `{"é":[{},[],null,true,false]}`,
		`{"aaaaaaaaaaaaaaaaaa\n":"bbbbbbbb` + "\x1f" + `"}`, `[1]`, `"x"`, ` 0 `} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if deep(b) {
			return
		}
		if got, want := openai.Valid(b), json.Valid(b); got != want {
			t.Fatalf("Valid(%q) = %v, encoding/json says %v", b, got, want)
		}
		s, err := openai.Scan(b)
		var fields map[string]json.RawMessage
		if err != nil {
			if be, ok := errors.AsType[*openai.BodyError](err); !ok {
				t.Fatalf("%q: %v is not a BodyError", b, err)
			} else if be.Param == "" && json.Unmarshal(b, &fields) == nil && fields != nil {
				t.Fatalf("%q: %v, but encoding/json reads it", b, err)
			}
			return
		}
		if err := json.Unmarshal(b, &fields); err != nil {
			t.Fatalf("%q passed and encoding/json says %v", b, err)
		}
		var model string
		_ = json.Unmarshal(fields["model"], &model)
		if s.Model != model || s.Stream != (string(fields["stream"]) == "true") {
			t.Fatalf("%q: %+v, want model %q", b, s, model)
		}
		if s.ModelEnd > 0 {
			spliced := openai.SpliceModel(nil, b, s, "x<y>\"")
			again, err := openai.Scan(spliced)
			if err != nil || again.Model != "x<y>\"" {
				t.Fatalf("%q spliced to %q: %+v %v", b, spliced, again, err)
			}
		}
	})
}

func deep(b []byte) bool {
	d := 0
	for _, c := range b {
		if c == '[' || c == '{' {
			d++
		}
	}
	return d >= openai.MaxDepth
}

func BenchmarkScan(b *testing.B) {
	for name, n := range map[string]int{"1KB": 1 << 10, "32KB": 32 << 10} {
		body := []byte(`{"model":"m1","stream":true,"messages":[{"role":"user","content":"` + strings.Repeat("hello world\\n ", n/14) + `"}]}`)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for range b.N {
				if _, err := openai.Scan(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
