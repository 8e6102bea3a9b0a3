package llama

import (
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func TestChatTemplate(t *testing.T) {
	hello := []contract.Message{{Role: "system", Content: "Be kind."}, {Role: "user", Content: "Hello {{ bos_token }}"}}
	for _, c := range []struct {
		name, template string
		addBOS         bool
		want           string
	}{
		{"plain", "{% for m in messages %}{% if not loop.first %} {% endif %}{{ m['content'] }}{% endfor %}", true, "Be kind. Hello {{ bos_token }}"},
		{"special tokens", "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}", false,
			"<s>[system]Be kind.</s>[user]Hello {{ bos_token }}</s>"},
		{"the tokenizer adds the first", "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{% endfor %}", true, "[system][user]"},
		{"the assistant is asked to speak", "{% for m in messages %}{{ m.role }} {% endfor %}{% if add_generation_prompt %}assistant:{% endif %}", true,
			"system user assistant:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tmpl, err := newChatTemplate(c.template, "<s>", "</s>")
			if err != nil {
				t.Fatal(err)
			}
			got, err := tmpl.render(hello, c.addBOS)
			if err != nil || got != c.want {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

func TestTemplateThatRefuses(t *testing.T) {
	tmpl, err := newChatTemplate("{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}", "", "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = tmpl.render([]contract.Message{{Role: "system", Content: "x"}}, false)
	if fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "System role not supported") {
		t.Errorf("%v", err)
	}
}

func TestTemplateThatDoesNotCompile(t *testing.T) {
	if _, err := newChatTemplate("{% for m in %}", "", ""); err == nil {
		t.Error("a broken template compiles")
	}
}
