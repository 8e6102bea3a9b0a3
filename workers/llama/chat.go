package llama

import (
	"fmt"
	"strings"

	"github.com/ardanlabs/jinja"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

// chatTemplate is the Jinja template of a model, compiled. It is the same engine that yzma's template package uses; that
// package compiles for each call and leaves out the texts of the special tokens, which many templates write.
type chatTemplate struct {
	t        *jinja.Template
	bos, eos string
}

func newChatTemplate(text, bos, eos string) (t *chatTemplate, err error) {
	defer func() {
		if r := recover(); r != nil {
			t, err = nil, fmt.Errorf("compile the chat template: %v", r)
		}
	}()
	c, err := jinja.Compile(text)
	if err != nil {
		return nil, fmt.Errorf("compile the chat template: %w", err)
	}
	return &chatTemplate{c, bos, eos}, nil
}

// render writes the conversation as the model was trained to read it, up to where the assistant speaks. When addBOS is set the
// tokenizer adds the first token, so that the template's own is taken off. A template may refuse a conversation.
func (c *chatTemplate) render(messages []contract.Message, addBOS bool) (text string, err error) {
	defer func() {
		if r := recover(); r != nil {
			text, err = "", refused(fmt.Errorf("%v", r))
		}
	}()
	list := make([]any, len(messages))
	for i, m := range messages {
		list[i] = map[string]any{"role": m.Role, "content": m.Content}
	}
	text, err = c.t.Render(map[string]any{
		"messages": list, "add_generation_prompt": true, "bos_token": c.bos, "eos_token": c.eos,
	})
	if err != nil {
		return "", refused(err)
	}
	if addBOS && c.bos != "" {
		text = strings.TrimPrefix(text, c.bos)
	}
	return text, nil
}

func refused(err error) error {
	return fault.New(fault.Invalid, "template_refused", "The model's chat template does not take this conversation (%w); change the order or the roles of the messages.", err).WithParam("messages")
}
