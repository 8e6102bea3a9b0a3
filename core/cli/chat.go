package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/openai"
)

const chatHelp = `/reset  forget the conversation
/help   show this
/bye    end the chat, as Ctrl-D does
Every other line is a message. Ctrl-C ends an answer; at the prompt it ends the chat.
`

func (a *app) chatCommand() *cobra.Command {
	var f samplingFlags
	var system string
	c := &cobra.Command{Use: "chat MODEL", Short: "Talk with a model", Args: argCount(1, 1, "MODEL")}
	c.Long = c.Short + ".\n\n" + chatHelp + "With --json each answer is a JSON object on a line of its own."
	c.Flags().StringVar(&system, "system", "", "`text` of a system message")
	f.add(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		return a.converse(c.Context(), args[0], system, f)
	}
	return c
}

// chat is a conversation as it goes on.
type chat struct {
	a          *app
	c          *conn
	p          prepared
	f          samplingFlags
	system     string
	history    []openai.Message
	interrupts chan os.Signal
	terminal   bool // a person types
}

// converse reads lines and streams answers until the input ends.
func (a *app) converse(ctx context.Context, model, system string, f samplingFlags) error {
	h := &chat{a: a, f: f, system: system, interrupts: make(chan os.Signal, 1), terminal: isTerminal(a.in)}
	signal.Notify(h.interrupts, os.Interrupt) // for the whole chat, so that no Ctrl-C between two steps kills it
	defer signal.Stop(h.interrupts)
	err := h.once(ctx, "The command was interrupted.", func(ctx context.Context) (err error) {
		s := a.story(ctx)
		defer s.end()
		if h.c, err = a.ensure(ctx, s); err != nil {
			return err
		}
		h.p, err = h.c.prepare(ctx, a, s, model)
		return err
	})
	if h.c != nil {
		defer h.c.Close()
	}
	if err != nil {
		return err
	}
	if !h.p.chat {
		return fault.New(fault.Invalid, "no_chat_template", "%s has no chat template, so it cannot hold a conversation; `%s run %s \"Once upon\"` lets it continue a text.", model, me(), model)
	}
	h.history = opening(system)
	if h.terminal {
		_, _ = fmt.Fprintf(a.err, "Talking with %s. /bye or Ctrl-D ends the chat, Ctrl-C an answer; /help says more.\n", printable(h.p.name))
	}
	return h.talk(ctx)
}

// input is a line that was typed, or why there is none.
type input struct {
	line string
	err  error
}

// talk answers line after line.
func (h *chat) talk(ctx context.Context) error {
	lines, done := make(chan input), make(chan struct{})
	defer close(done)
	// Nothing ends a read of a terminal, so this goroutine is not waited for: it ends with the next line, or with the process.
	go func() {
		for r := bufio.NewReader(h.a.in); ; {
			line, err := r.ReadString('\n')
			select {
			case lines <- input{line, err}:
			case <-done:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		if h.terminal {
			_, _ = io.WriteString(h.a.err, "> ")
		}
		var in input
		select {
		case in = <-lines:
		case <-h.interrupts:
			_, _ = fmt.Fprintln(h.a.err)
			return fault.New(fault.Interrupted, "interrupted", "The chat was interrupted.")
		}
		line := strings.TrimSpace(in.line)
		if in.err != nil && line == "" {
			if h.terminal {
				_, _ = fmt.Fprintln(h.a.err)
			}
			if errors.Is(in.err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read a message: %w", in.err)
		}
		if line == "" {
			continue
		}
		over, isCommand := h.command(line)
		if !isCommand {
			if err := h.say(ctx, line); err != nil {
				return err
			}
		}
		if over || in.err != nil {
			return nil
		}
	}
}

// slash is what a line begins with that is a command and no message: a path has another slash.
var slash = regexp.MustCompile(`^/[A-Za-z?]*( |$)`)

// command carries out a line that begins with a slash. over says that the chat ends.
func (h *chat) command(line string) (over, isCommand bool) {
	if !slash.MatchString(line) {
		return false, false
	}
	switch strings.ToLower(line) {
	case "/bye", "/exit", "/quit":
		return true, true
	case "/reset":
		h.history = opening(h.system)
		_, _ = fmt.Fprintln(h.a.err, "The conversation is forgotten.")
	case "/help", "/?":
		_, _ = io.WriteString(h.a.err, chatHelp)
	default:
		name, _, _ := strings.Cut(line, " ")
		_, _ = fmt.Fprintf(h.a.err, "There is no command %q; /help lists them. Nothing was sent.\n", name)
	}
	return false, true
}

// say sends a message and streams the answer. An error ends the chat only where nobody is there to try again.
func (h *chat) say(ctx context.Context, message string) error {
	before := len(h.history)
	h.history = append(h.history, openai.Message{Role: "user", Content: openai.Content(message)})
	var said strings.Builder
	emit := h.a.emitter()
	if h.a.json {
		emit = discard
	}
	var result answer
	err := h.once(ctx, "The answer was interrupted.", func(ctx context.Context) (err error) {
		result, err = h.c.chat(ctx, h.p.name, h.history, h.f.sampling(carefully()), func(piece string) error {
			said.WriteString(piece)
			return emit(piece)
		})
		return err
	})
	if !h.a.json {
		_, _ = fmt.Fprintln(h.a.out)
	}
	if said.Len() == 0 && err != nil {
		h.history = h.history[:before]
	} else {
		h.history = append(h.history, openai.Message{Role: "assistant", Content: openai.Content(said.String())})
	}
	switch {
	case err == nil && h.a.json:
		return h.a.printLine(result)
	case err == nil || !h.terminal:
		return err
	}
	h.a.fail(err) // a person can go on, or try again
	return nil
}

func opening(system string) []openai.Message {
	if system == "" {
		return nil
	}
	return []openai.Message{{Role: "system", Content: openai.Content(system)}}
}

// once runs f so that Ctrl-C ends it alone.
func (h *chat) once(ctx context.Context, interrupted string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-h.interrupts:
			cancel()
		case <-ended:
		}
	}()
	err := f(ctx)
	stopped := ctx.Err() != nil
	close(ended)
	<-watched
	if err != nil && stopped {
		return &fault.Error{Kind: fault.Interrupted, Code: "interrupted", Message: interrupted, Err: err}
	}
	return err
}
