package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/openai"
)

func (a *app) chatCommand() *cobra.Command {
	var f samplingFlags
	var system string
	c := &cobra.Command{Use: "chat MODEL", Short: "Talk with a model", Args: argCount(1, 1, "MODEL")}
	c.Long = c.Short + ".\n\nEach line is a message; /reset forgets the conversation, Ctrl-C ends an answer, Ctrl-D or /bye ends the chat."
	c.Flags().StringVar(&system, "system", "", "`text` of a system message")
	f.add(c)
	c.RunE = func(c *cobra.Command, args []string) error { return a.converse(c.Context(), args[0], system, f) }
	return c
}

// converse reads lines and streams answers until the input ends.
func (a *app) converse(ctx context.Context, model, system string, f samplingFlags) error {
	s := newStory(a.err, a.getenv)
	defer s.clear()
	var c *conn
	var p prepared
	prepare := func(ctx context.Context, _ []string) (err error) {
		if c, err = a.ensure(ctx, s); err != nil {
			return err
		}
		p, err = c.prepare(ctx, a, s, model)
		return err
	}
	if err := a.once(ctx, prepare); err != nil {
		return err
	}
	defer c.Close()
	if !p.chat {
		return fault.New(fault.Invalid, "no_chat_template", "%s has no chat template, so it cannot hold a conversation; `%s run %s \"Once upon\"` lets it continue a text.", model, me(), model)
	}
	history := opening(system)
	lines := bufio.NewReader(a.in)
	terminal := isTerminal(a.in)
	if terminal {
		_, _ = fmt.Fprintf(a.err, "Talking with %s. Ctrl-C ends an answer, Ctrl-D the chat.\n", p.name)
	}
	for {
		if terminal {
			_, _ = io.WriteString(a.err, "> ")
		}
		line, err := lines.ReadString('\n')
		if err != nil && (!errors.Is(err, io.EOF) || strings.TrimSpace(line) == "") {
			if terminal {
				_, _ = fmt.Fprintln(a.err)
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read a message: %w", err)
		}
		switch line = strings.TrimSpace(line); line {
		case "":
			continue
		case "/bye", "/exit", "/quit":
			return nil
		case "/reset":
			history = opening(system)
			continue
		}
		history = append(history, openai.Message{Role: "user", Content: openai.Content(line)})
		var said strings.Builder
		emit := a.emitter()
		err = a.once(ctx, func(ctx context.Context, _ []string) error {
			_, err := c.chat(ctx, p.name, history, f.sampling(), func(piece string) error {
				said.WriteString(piece)
				return emit(piece)
			})
			return err
		})
		_, _ = fmt.Fprintln(a.out)
		history = append(history, openai.Message{Role: "assistant", Content: openai.Content(said.String())})
		switch {
		case err == nil:
		case !terminal:
			return err
		default: // a person can go on, or try again
			a.fail(err)
			if said.Len() == 0 {
				history = history[:len(history)-2]
			}
		}
	}
}

func opening(system string) []openai.Message {
	if system == "" {
		return nil
	}
	return []openai.Message{{Role: "system", Content: openai.Content(system)}}
}

// once runs f so that Ctrl-C ends it alone.
func (a *app) once(ctx context.Context, f func(ctx context.Context, args []string) error) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt)
	defer stop()
	err := f(ctx, nil)
	if err != nil && ctx.Err() != nil {
		return &fault.Error{Kind: fault.Interrupted, Code: "interrupted", Message: "The answer was interrupted.", Err: err}
	}
	return err
}
