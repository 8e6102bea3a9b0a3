package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/apiary-dev/apiary/core/artifact"
	"github.com/apiary-dev/apiary/plugins/host"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// maxSentence bounds the message of an error, in bytes.
const maxSentence = 8 << 10

// typed returns the error that a plugin meant for the user, or says why err is none.
func typed(err error) (*vendor.Error, error) {
	e, ok := errors.AsType[*vendor.Error](err)
	switch {
	case err == nil:
		return nil, errors.New("it was answered without an error")
	case !ok:
		return nil, fmt.Errorf("the plugin broke instead of answering with an error: %w", err)
	case e.Kind == vendor.KindInternal:
		return nil, fmt.Errorf("the error is an internal one, %q: %s", e.Code, e.Message)
	case !slices.Contains([]vendor.Kind{vendor.KindInvalid, vendor.KindNotFound, vendor.KindUnavailable, vendor.KindExhausted, vendor.KindDenied}, e.Kind):
		return nil, fmt.Errorf("the error has the unknown kind %q", e.Kind)
	case len(e.Message) > maxSentence || !utf8.ValidString(e.Message):
		return nil, fmt.Errorf("the message of the error has more than %d bytes, or is no text: %.200q", maxSentence, e.Message)
	case !endsSentence(strings.TrimSpace(e.Message)):
		return nil, fmt.Errorf("the message of the error is no sentence: %.200q", e.Message)
	}
	return e, nil
}

// endsSentence reports whether s ends as a sentence does, or was cut by the transport.
func endsSentence(s string) bool {
	return slices.ContainsFunc([]string{".", "!", "?", ")", "…"}, func(end string) bool { return strings.HasSuffix(s, end) })
}

// call calls a method of an instance, and keeps what it says.
func (s *suite) call(ctx context.Context, on vendor.Invoker, method string, req any) ([]byte, error) {
	raw, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	reply, err := on.Invoke(ctx, method, raw)
	if err != nil {
		if e, ok := errors.AsType[*vendor.Error](err); ok {
			s.log.note(e.Message, e.HelpURL, strings.Join(e.Candidates, " "))
		} else {
			s.log.note(err.Error())
		}
	}
	return reply, err
}

// ask resolves a reference, or plans it.
func (s *suite) ask(ctx context.Context, on vendor.Invoker, ref string) ([]byte, error) {
	if s.info.Kind == vendor.KindProvisioner {
		return s.call(ctx, on, vendor.MethodPlan, vendor.PlanRequest{Reference: ref, Platform: s.cases.platform()})
	}
	return s.call(ctx, on, vendor.MethodResolve, vendor.ResolveRequest{Reference: ref, Platform: s.cases.platform()})
}

// some is a reference to ask for: one that must be answered, where the cases name one.
func (s *suite) some() string {
	if len(s.cases.Resolve) > 0 {
		return s.cases.Resolve[0].Reference
	}
	return s.info.Schemes[0] + ":conformance/model"
}

// works wants the plugin to answer as ever.
func (s *suite) works(ctx context.Context) error {
	s.host.set(recorded())
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	if len(s.cases.Resolve) == 0 {
		_, err = host.Info(ctx, on)
	} else {
		_, err = s.ask(ctx, on, s.some())
	}
	if err != nil {
		return fmt.Errorf("afterwards the plugin does not work any more: %w", err)
	}
	return nil
}

// answer is what a plugin answers to ask.
type answer struct {
	reference, format, platform string
	files                       []vendor.File
	steps                       []vendor.Step
}

// read reads an answer and holds the core's own checks against it.
func (s *suite) read(raw []byte) (answer, error) {
	if s.info.Kind == vendor.KindProvisioner {
		p := &vendor.Plan{}
		if err := json.Unmarshal(raw, p); err != nil {
			return answer{}, fmt.Errorf("the plan cannot be read: %w", err)
		}
		if err := artifact.CheckPlan(p, s.info); err != nil {
			return answer{}, err
		}
		return answer{p.Reference, "", p.Platform, p.Files, p.Steps}, s.granted(vendor.MethodPlan, raw)
	}
	m := &vendor.Manifest{}
	if err := json.Unmarshal(raw, m); err != nil {
		return answer{}, fmt.Errorf("the manifest cannot be read: %w", err)
	}
	if m.Format == "" {
		return answer{}, errors.New("the manifest names no format, such as \"gguf\"")
	}
	if err := artifact.CheckManifest(m, s.info); err != nil {
		return answer{}, err
	}
	return answer{m.Reference, m.Format, "", m.Files, nil}, s.granted(vendor.MethodResolve, raw)
}

// granted wants files to come only from where the plugin may go itself, and only tools that it asked for. Apiary's own may also name
// what is on this machine.
func (s *suite) granted(method string, raw []byte) error {
	if s.Own {
		var all map[string]any
		if err := json.Unmarshal(raw, &all); err != nil {
			return err
		}
		delete(all, "inPlace")
		files, _ := all["files"].([]any)
		for _, f := range files {
			f, _ := f.(map[string]any)
			sources, _ := f["sources"].([]any)
			f["sources"] = slices.DeleteFunc(sources, func(src any) bool {
				src2, _ := src.(map[string]any)
				at, _ := src2["url"].(string)
				return strings.HasPrefix(at, "file:") || strings.HasPrefix(at, "builtin:")
			})
		}
		var err error
		if raw, err = json.Marshal(all); err != nil {
			return err
		}
	}
	return host.CheckAnswer(s.info.Name, s.grants(), method, raw)
}

// tried asks for a reference and wants a usable answer or an error for people.
func (s *suite) tried(ctx context.Context, on vendor.Invoker, ref string) (*vendor.Error, error) {
	raw, err := s.ask(ctx, on, ref)
	if err != nil {
		return typed(err)
	}
	_, err = s.read(raw)
	return nil, err
}
