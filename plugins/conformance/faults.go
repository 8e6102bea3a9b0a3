package conformance

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/apiary-dev/apiary/plugins/vendor"
)

// failure is something that goes wrong between a plugin and a server.
type failure struct {
	name, what string
	answer     func(recorded *vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error)
	fails      bool          // nothing can be made of such an answer
	never      []vendor.Kind // that the error may not have: the user would do the wrong thing
}

// retryAfter is how long a server that has enough wants to be left alone.
const retryAfter = 7 // seconds

func faults() []failure {
	temporary := []vendor.Kind{vendor.KindNotFound, vendor.KindInvalid}
	status := func(code int, header map[string]string) func(*vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error) {
		return func(*vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error) {
			return &vendor.HTTPResponse{Status: code, Header: header, Body: []byte(`{"error":"` + http.StatusText(code) + `"}`)}, nil
		}
	}
	body := func(typ, text string) func(*vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error) {
		return func(*vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error) {
			return &vendor.HTTPResponse{Status: 200, Header: map[string]string{"Content-Type": typ}, Body: []byte(text)}, nil
		}
	}
	broken := func(kind vendor.Kind, code, message string) func(*vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error) {
		return func(*vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error) {
			return nil, &vendor.Error{Kind: kind, Code: code, Message: message}
		}
	}
	const js = "application/json"
	return []failure{
		{"404", "there is nothing", status(404, nil), true, nil},
		{"401", "a login is needed", status(401, nil), true, []vendor.Kind{vendor.KindInvalid}}, // some say it of what is not there
		{"403", "a permission is needed", status(403, nil), true, []vendor.Kind{vendor.KindInvalid}},
		{"429", "too many requests", status(429, map[string]string{"Retry-After": fmt.Sprint(retryAfter)}), true, temporary},
		{"500", "the server is broken", status(500, nil), true, temporary},
		{"redirect", "a redirect to a host that was not granted", broken(vendor.KindDenied, "host_not_granted", "The plugin was led to elsewhere.example.org, which was not granted."), true, nil},
		{"unreachable", "the server does not answer", broken(vendor.KindUnavailable, "unreachable", "The server could not be asked."), true, temporary},
		{"truncated", "an answer that ends too early", func(r *vendor.HTTPResponse) (*vendor.HTTPResponse, *vendor.Error) {
			if n := len(r.Body); r.Status == 200 && n > 2 {
				return &vendor.HTTPResponse{Status: 200, Header: r.Header, Body: r.Body[:n/2]}, nil
			}
			return &vendor.HTTPResponse{Status: 200, Header: map[string]string{"Content-Type": js}, Body: []byte(`{"models":[{"na`)}, nil
		}, false, nil},
		{"html", "a web page", body("text/html", "<!DOCTYPE html><html><body>Please \"log in\"</body></html>"), false, nil},
		{"empty", "an empty answer", body(js, ""), false, nil},
		{"null", "null", body(js, "null"), false, nil},
		{"shape", "an object of another shape", body(js, `{"models":7,"files":{"a":1},"siblings":"x","layers":{},"versions":[1],"id":[],"sha":{},"name":1,"assets":true,"dist":"x"}`), false, nil},
		{"list", "a list of other things", body(js, `[1,"two",null,{"path":7,"size":"x"}]`), false, nil},
		{"binary", "bytes that are no text", body(js, "\x00\xff\xfe{\"\x80\":\"\xc3\"}"), false, nil},
		{"deep", "an answer nested 100,000 deep", body(js, strings.Repeat(`{"a":[`, 50_000)+strings.Repeat("]}", 50_000)), false, nil},
		{"large", "an answer of 4 MiB", body(js, `{"pad":"`+strings.Repeat("x", 4<<20)+`"}`), false, nil},
	}
}

// failing are the checks of what a plugin does with servers and hosts that fail.
func failing() []check {
	var out []check
	for _, f := range faults() {
		out = append(out, check{"faults: " + f.name + " (" + f.what + ") is an error for people", "", func(ctx context.Context, s *suite) error { return checkFault(ctx, s, f) }})
	}
	return append(out,
		check{"faults: without a grant it says so", "", checkDenied},
		check{"secrets: none is in a line of the log or in an error", "", checkSecrets},
	)
}

// silent skips a check about requests.
const silent = skipError("it makes no request for what it is asked here")

func checkFault(ctx context.Context, s *suite, f failure) error {
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	before := s.host.count()
	s.host.set(&mode{answer: f.answer})
	e, err := s.tried(ctx, on, s.some())
	asked := s.host.count() > before
	switch {
	case err != nil:
		_ = s.works(ctx) // the next check begins with a plugin that does
		return err
	case !asked:
		return silent
	case e == nil && f.fails:
		return errors.New("the answer is taken for a good one")
	case e != nil && slices.Contains(f.never, e.Kind):
		return fmt.Errorf("the error is of the kind %q, as if the reference were at fault: %s", e.Kind, e.Message)
	case s.cases.Faults[f.name] != "" && (e == nil || e.Kind != s.cases.Faults[f.name]):
		return fmt.Errorf("the error is %+v, and should be of the kind %q", e, s.cases.Faults[f.name])
	case f.name == "429" && e.Kind == vendor.KindExhausted && e.RetryAfterMS != retryAfter*1000:
		return fmt.Errorf("the server wants %d s of quiet, and the error says %d ms", retryAfter, e.RetryAfterMS)
	}
	return s.works(ctx)
}

func checkDenied(ctx context.Context, s *suite) error {
	on, err := s.use(ctx)
	if err != nil {
		return err
	}
	before := s.host.count()
	s.host.set(&mode{denied: true})
	e, err := s.tried(ctx, on, s.some())
	switch {
	case err != nil:
		_ = s.works(ctx)
		return err
	case s.host.count() == before:
		return silent
	case e == nil || e.Kind != vendor.KindDenied:
		return fmt.Errorf("the host denied the request, and the plugin answered %+v, which hides that", e)
	}
	return s.works(ctx)
}

// checkSecrets gives the plugin secrets in its settings and in addresses, and looks for them in all that it has said.
func checkSecrets(ctx context.Context, s *suite) error {
	values, err := decode(s.schema, s.secretSettings())
	if err != nil {
		return err
	}
	in, err := s.fresh(ctx)
	if err != nil {
		return err
	}
	// A setting that is refused, and references that fail, are what is looked for.
	if _, err := s.call(ctx, in, vendor.MethodConfigure, vendor.ConfigureRequest{ConfigJSON: values}); err == nil {
		for _, f := range append(faults(), failure{}) {
			s.host.set(&mode{signed: true, answer: f.answer})
			_, _ = s.ask(ctx, in, s.some())
		}
	}
	_ = in.Close() // what it says at its end is in the journal
	if line := s.log.line(secret); line != "" {
		return fmt.Errorf("a secret is in what it says: %.300q", line)
	}
	return nil
}
