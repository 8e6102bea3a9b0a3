package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/core/openai"
)

// The story of `apiary run` without arguments.
const (
	storyModel  = "builtin:stories260k"
	storyPrompt = "Once upon a time"
	storyTokens = 240
)

// storySampling keeps the small model close to what it is sure of. It has no end of text: after one story it begins the next.
func storySampling() openai.Sampling {
	temperature, topP, tokens := 0.5, 0.9, storyTokens
	return openai.Sampling{Temperature: &temperature, TopP: &topP, MaxTokens: &tokens, Stop: openai.Strings{storyPrompt}}
}

// carefully is how run and chat choose tokens where no flag says how. The agent's own defaults are OpenAI's, made for large models: of a
// small one they take much that it is not sure of, and when it begins to repeat itself, it goes on for ever.
func carefully() openai.Sampling {
	temperature, share, penalty := 0.5, 0.1, 1.1
	return openai.Sampling{Temperature: &temperature, MinP: &share, RepeatPenalty: &penalty}
}

// samplingFlags are the flags by which run and chat choose tokens.
type samplingFlags struct {
	command                *cobra.Command
	tokens                 int
	temperature, topP, min float64
	penalty                float64
	seed                   int64
}

func (f *samplingFlags) add(c *cobra.Command) {
	f.command = c
	c.Flags().IntVar(&f.tokens, "max-tokens", 0, "`tokens` of the answer at most (default: until the text ends, or the context is full)")
	c.Flags().Float64Var(&f.temperature, "temperature", 1, "0 always takes the likeliest token; without this and the next three flags: 0.5, with --min-p 0.1 and --repeat-penalty 1.1")
	c.Flags().Float64Var(&f.topP, "top-p", 1, "take from the likeliest tokens that add up to this `probability`")
	c.Flags().Float64Var(&f.min, "min-p", 0, "leave out tokens less likely than this `share` of the likeliest")
	c.Flags().Float64Var(&f.penalty, "repeat-penalty", 1, "how much less likely tokens get that were there already; 1: not")
	c.Flags().Int64Var(&f.seed, "seed", 0, "the same `number` gives the same answer (default: another one each time)")
}

// check refuses what no worker takes, before anything is started for it.
func (f *samplingFlags) check() error {
	given := f.command.Flags().Changed
	for _, c := range []struct {
		name string
		ok   bool
		v    any
		must string
	}{
		{"max-tokens", f.tokens >= 1, f.tokens, "be at least 1; leave it out for as much as fits"},
		{"temperature", f.temperature >= 0 && f.temperature <= 2, f.temperature, "be from 0 to 2"},
		{"top-p", f.topP > 0 && f.topP <= 1, f.topP, "be more than 0 and at most 1"},
		{"min-p", f.min >= 0 && f.min < 1, f.min, "be at least 0 and less than 1"},
		{"repeat-penalty", f.penalty > 0 && f.penalty <= 10, f.penalty, "be more than 0 and at most 10"},
		{"seed", f.seed >= 0, f.seed, "not be negative"},
	} {
		if given(c.name) && !c.ok {
			return fault.New(fault.Invalid, "bad_flag", "--%s is %v and must %s.", c.name, c.v, c.must)
		}
	}
	return nil
}

// sampling is what the flags say, and else of how tokens are chosen.
func (f *samplingFlags) sampling(otherwise openai.Sampling) openai.Sampling {
	given := f.command.Flags().Changed
	s := otherwise
	if given("temperature") || given("top-p") || given("min-p") || given("repeat-penalty") {
		s.Temperature, s.TopP, s.MinP, s.RepeatPenalty = nil, nil, nil, nil
	}
	if given("max-tokens") {
		s.MaxTokens = &f.tokens
	}
	if given("temperature") {
		s.Temperature = &f.temperature
	}
	if given("top-p") {
		s.TopP = &f.topP
	}
	if given("min-p") {
		s.MinP = &f.min
	}
	if given("repeat-penalty") {
		s.RepeatPenalty = &f.penalty
	}
	if given("seed") {
		s.Seed = &f.seed
	}
	return s
}

func (a *app) runCommand() *cobra.Command {
	var f samplingFlags
	c := &cobra.Command{Use: "run [MODEL] [PROMPT]", Short: "Answer a prompt and exit; without arguments, tell a story", Args: argCount(0, -1, "[MODEL] [PROMPT]")}
	c.Long = c.Short + `.

An agent is started in the background when none runs; the engine, the model and a worker are fetched and started as needed.
A model with a chat template answers; one without continues the text. The prompt "-", or none in a pipe, is read from
standard input. The answer goes to standard output, everything else to standard error. A small model may repeat itself until
its context is full, at --temperature 0 most of all; --max-tokens ends it before.`
	f.add(c)
	c.RunE = interruptible(func(ctx context.Context, args []string) error {
		if err := f.check(); err != nil {
			return err
		}
		if len(args) == 0 {
			return a.tellStory(ctx, f)
		}
		return a.answer(ctx, args[0], strings.Join(args[1:], " "), f)
	})
	return c
}

// tellStory is the first minute: everything that is missing is fetched, then the small model tells a story.
func (a *app) tellStory(ctx context.Context, f samplingFlags) error {
	s := a.story(ctx)
	defer s.end()
	c, err := a.ensure(ctx, s)
	if err != nil {
		return err
	}
	defer c.Close()
	p, err := c.prepare(ctx, a, s, storyModel)
	if err != nil {
		return err
	}
	sampling := f.sampling(storySampling())
	if s.terminal {
		s.line("")
	}
	emit := a.emitter()
	if !a.json {
		if err := emit(storyPrompt); err != nil {
			return err
		}
	} else {
		emit = discard
	}
	result, err := c.complete(ctx, p.name, storyPrompt, sampling, emit)
	if !a.json {
		end := "\n"
		if result.FinishReason == contract.FinishLength && isTerminal(a.out) {
			end = "…\n"
		}
		_, _ = io.WriteString(a.out, end)
	}
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(result)
	}
	if s.terminal {
		s.line("")
	}
	s.line("  " + result.summary())
	s.line(fmt.Sprintf("  Your own model: %s chat file:PATH", me()))
	s.line(fmt.Sprintf("  One from a hub: %s chat hf:HuggingFaceTB/SmolLM2-135M-Instruct-GGUF", me()))
	s.line(fmt.Sprintf("  Any client:     OPENAI_BASE_URL=%s/v1", c.base))
	s.line(fmt.Sprintf("  Stop:           %s stop", me()))
	return nil
}

func discard(string) error { return nil }

// answer runs one prompt.
func (a *app) answer(ctx context.Context, model, prompt string, f samplingFlags) error {
	s := a.story(ctx)
	defer s.end()
	c, err := a.ensure(ctx, s)
	if err != nil {
		return err
	}
	defer c.Close()
	ref, err := reference(model)
	if err != nil {
		return err
	}
	if _, _, err := c.find(ctx, ref); err != nil {
		// Before the prompt is asked for: there is nobody to answer it.
		return a.outdated(c.target, contract.WorkerSpawn{Model: ref}, err)
	}
	if prompt, err = a.prompt(model, prompt); err != nil {
		return err
	}
	p, err := c.prepare(ctx, a, s, model)
	if err != nil {
		return err
	}
	emit := a.emitter()
	if a.json {
		emit = discard
	}
	var result answer
	if p.chat {
		result, err = c.chat(ctx, p.name, []openai.Message{{Role: "user", Content: openai.Content(prompt)}}, f.sampling(carefully()), emit)
	} else {
		result, err = c.complete(ctx, p.name, prompt, f.sampling(carefully()), emit)
	}
	if err != nil {
		if !a.json {
			_, _ = fmt.Fprintln(a.out)
		}
		return err
	}
	if a.json {
		return a.printJSON(result)
	}
	if _, err := fmt.Fprintln(a.out); err != nil {
		return err
	}
	if s.terminal && isTerminal(a.out) {
		s.line("\n  " + result.summary())
	}
	return nil
}

// maxPrompt bounds a prompt from standard input; the agent's limit for a body is about as much.
const maxPrompt = 10 << 20

// prompt is the argument, or what comes on standard input.
func (a *app) prompt(model, given string) (string, error) {
	if given != "" && given != "-" {
		return given, nil
	}
	if isTerminal(a.in) && given == "" {
		return "", fault.New(fault.Invalid, "no_prompt", "What should the model answer? Write `%s run %s \"Hello!\"`, or `%s chat %s` to talk.", me(), model, me(), model)
	}
	b, err := io.ReadAll(io.LimitReader(a.in, maxPrompt+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("read the prompt: %w", err)
	case len(b) > maxPrompt:
		return "", fault.New(fault.Invalid, "prompt_too_large", "The prompt on standard input is larger than %s.", contract.Bytes(maxPrompt))
	case strings.TrimSpace(string(b)) == "":
		return "", fault.New(fault.Invalid, "no_prompt", "The prompt on standard input is empty; write `%s run %s \"Hello!\"`.", me(), model)
	}
	return strings.TrimSuffix(string(b), "\n"), nil
}
