package config

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHostileConfigurations: whatever a file holds, reading it ends soon. The times are those of a busy machine.
func TestHostileConfigurations(t *testing.T) {
	list := "[" + strings.Repeat("1,", 20_000) + "1]"
	nest := func(n int, open, middle, shut string) string {
		return strings.Repeat(open, n) + middle + strings.Repeat(shut, n)
	}
	var many, models bytes.Buffer
	for i := range 3000 {
		fmt.Fprintf(&many, "deployment \"d%d\" {\n model = \"nobody\"\n place {\n  require = device.kid == 1\n }\n}\n", i)
		fmt.Fprintf(&models, "model \"m%d\" {\n source = \"echo:m%d\"\n aliases = [\"a%d\"]\n}\n", i, i, i)
	}
	for name, src := range map[string]string{
		"for in for":          "worker \"llama\" {\n args = [for a in " + list + " : [for b in " + list + " : b]]\n}",
		"for over for":        "worker \"llama\" {\n args = " + nest(30, "[for x in ", `["a"]`, ` : "${x}${x}"]`) + "\n}",
		"for in a template":   "agent {\n name = \"%{ for x in " + list + " }%{ for y in " + list + " }${y}%{ endfor }%{ endfor }\"\n}",
		"number as text":      "agent {\n name = \"a${1e9999999}\"\n}",
		"text as number":      "agent {\n name = \"a${\"1e9999999\" * 1}\"\n}",
		"large product":       "agent {\n name = \"a${(1" + strings.Repeat(" * 1e300\n", 10_000) + ")}\"\n}",
		"small number":        "agent {\n name = \"a${1e-9999999}\"\n}",
		"remainder":           "worker \"llama\" {\n context = 1e640000000 % 7\n}",
		"deep blocks":         nest(20_000, "a {\n", "", "}\n"),
		"deep lists":          "deployment \"a\" {\n pin = " + nest(100_000, "[", "", "]") + "\n}",
		"deep condition":      "deployment \"a\" {\n place {\n require = " + nest(60_000, "(", "true", ")") + "\n }\n}",
		"wide condition":      "deployment \"a\" {\n place {\n require = contains(" + strings.ReplaceAll(list, "1", `"a"`) + ", device.kind)\n }\n}",
		"long condition":      "deployment \"a\" {\n place {\n require = (true" + strings.Repeat(" ||\n true", 20_000) + ")\n }\n}",
		"many mistakes":       many.String(),
		"many models":         models.String() + strings.Repeat("deployment \"d\" {\n model = \"nobody\"\n}\n", 1000),
		"many labels":         "deployment " + strings.Repeat("\"a\" ", 50_000) + "{\n}",
		"many attributes":     "deployment \"a\" {\n" + strings.Repeat("pin = []\n", 25_000) + "}",
		"open quotes":         "deployment \"a\" {\n model = \"" + strings.Repeat("${\"", 60_000),
		"zeros":               strings.Repeat("\x00", maxFile),
		"invalid UTF-8":       "deployment \"a\" {\n model = \"" + strings.Repeat("\xff", 100_000) + "\"\n}",
		"names of attributes": "deployment \"a\" {\n" + strings.Repeat("a", maxFile/2) + " = 1\n}",
	} {
		t.Run(name, func(t *testing.T) {
			if len(src) > maxFile {
				src = src[:maxFile]
			}
			done := make(chan Diagnostics, 1)
			go func() {
				_, diags := parse([]byte(src), "f.hcl", "", environment(nil))
				_ = diags.Error()
				done <- diags
			}()
			select {
			case diags := <-done:
				if len(diags) == 0 {
					t.Error("taken")
				}
				if len(diags) > maxMistakes+1 {
					t.Errorf("%d mistakes are told", len(diags))
				}
				for _, d := range diags {
					if len(d.Detail) > maxDetail+8 || len(d.Excerpt) > 4*maxExcerpt+8 {
						t.Errorf("a message of %d characters", len(d.Detail)+len(d.Excerpt))
					}
				}
			case <-time.After(3 * time.Minute):
				t.Fatal("still reading after three minutes")
			}
		})
	}
	// What is moderate is still calculated.
	c, diags := parse([]byte("worker \"llama\" {\n context = 4 * 1024 + (\"1\" - 1)\n args = [for n in [\"a\", \"b\"] : \"--${n}=${1.5}\"]\n}\n"), "f.hcl", "", environment(nil))
	if diags != nil || c.Workers[0].Context != 4096 || strings.Join(c.Workers[0].Args, " ") != "--a=1.5 --b=1.5" {
		t.Errorf("%+v %v", c, diags)
	}
}
