package conformance

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// TestWrongPluginsFail has a wrong plugin for each check, which must see it. A check that is named by no wrong plugin fails
// the test.
func TestWrongPluginsFail(t *testing.T) {
	type wrong struct {
		check   string // beginning of the name
		kind    string // "": a vendor
		plugin  func(*plugin)
		wrap    func(vendor.Invoker, vendor.Host, *slog.Logger) vendor.Invoker
		subject func(*Subject)
		cases   func(*Cases)
	}
	on := func(method string, f func(ctx context.Context, inv vendor.Invoker, req []byte) ([]byte, error)) func(vendor.Invoker, vendor.Host, *slog.Logger) vendor.Invoker {
		return func(inv vendor.Invoker, _ vendor.Host, _ *slog.Logger) vendor.Invoker {
			return sdk.InvokerFunc(func(ctx context.Context, m string, req []byte) ([]byte, error) {
				if m != method {
					return inv.Invoke(ctx, m, req)
				}
				return f(ctx, inv, req)
			})
		}
	}
	resolve := func(f func(ctx context.Context, p *plugin, ref string) (*vendor.Manifest, error)) func(*plugin) {
		return func(p *plugin) { p.resolve = f }
	}
	change := func(f func(*vendor.Manifest)) func(*plugin) { return func(p *plugin) { p.change = f } }
	plan := func(f func(*vendor.Plan)) func(*plugin) { return func(p *plugin) { p.plan = f } }
	launch := func(f func(*vendor.LaunchSpec)) func(*plugin) { return func(p *plugin) { p.launch = f } }
	// status makes the plugin answer to a status of the server in its own way.
	status := func(answer func(status int, body string) (*vendor.Manifest, error)) func(*plugin) {
		return resolve(func(ctx context.Context, p *plugin, ref string) (*vendor.Manifest, error) {
			if p.known(ref) != nil {
				return nil, nil
			}
			resp, err := p.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: p.url})
			if err != nil {
				return answer(0, err.Error())
			}
			return answer(resp.Status, string(resp.Body))
		})
	}
	good := &vendor.Manifest{Reference: "good:tiny@1", Format: "gguf", Files: []vendor.File{{Path: "tiny.gguf", Size: -1, Sources: []vendor.Source{{URL: "https://models.example.org/x"}}}}}
	when := func(code int) func(*plugin) {
		return status(func(status int, _ string) (*vendor.Manifest, error) {
			if status == code {
				return good, nil
			}
			return nil, nil
		})
	}
	mistaken := func(code int) func(*plugin) {
		return status(func(status int, _ string) (*vendor.Manifest, error) {
			if status == code {
				return nil, refuse(vendor.KindInvalid, "bad", "The reference is bad.")
			}
			return nil, nil
		})
	}
	// panics on a body that holds text.
	panics := func(text string) func(*plugin) {
		return status(func(_ int, body string) (*vendor.Manifest, error) {
			if strings.Contains(body, text) && len(body) < 5<<20 || text == "" && body == "" {
				panic("no")
			}
			return nil, nil
		})
	}
	var leaking sync.Mutex
	var leak [][]byte
	var calls atomic.Int64
	var checked []string
	prov := vendor.KindProvisioner
	for _, w := range []wrong{
		{check: "info: it says", wrap: on(vendor.MethodGetInfo, func(_ context.Context, _ vendor.Invoker, _ []byte) ([]byte, error) {
			return []byte(`{"name":"good","kind":"vendor","schemes":["good"],"version":"1.0.` + strconv.FormatInt(calls.Add(1), 10) + `"}`), nil
		})},
		{check: "info: it says", wrap: on(vendor.MethodGetInfo, func(context.Context, vendor.Invoker, []byte) ([]byte, error) {
			return []byte(`{"name":"good","kind":"worker"}`), nil
		})},
		{check: "schema: it describes", wrap: on(vendor.MethodGetSchema, func(context.Context, vendor.Invoker, []byte) ([]byte, error) {
			return nil, refuse(vendor.KindInternal, "x", "No.")
		})},
		{check: "info: name", plugin: func(p *plugin) { p.info.Version = "one" }},
		{check: "info: name", plugin: func(p *plugin) { p.info.Description = "" }},
		{check: "manifest:", subject: func(s *Subject) {
			s.Manifest = &vendor.StaticManifest{Contract: vendor.ContractVendor, Info: vendor.Info{Name: "other"}}
		}},
		{check: "schema: every", plugin: func(p *plugin) { p.schema.Attributes[0].Description = "" }},
		{check: "settings: those", plugin: func(p *plugin) {
			p.config = func(string) error { return refuse(vendor.KindInvalid, "no", "I take none.") }
		}},
		{check: "settings: wrong", plugin: func(p *plugin) {
			p.config = func(values string) error {
				if strings.Contains(values, "ftp") {
					return refuse(vendor.KindInvalid, "no", "It is wrong.")
				}
				return nil
			}
		}},
		{check: "settings: garbage", wrap: on(vendor.MethodConfigure, func(ctx context.Context, inv vendor.Invoker, req []byte) ([]byte, error) {
			if strings.Contains(string(req), "later") {
				return nil, errors.New("it ended")
			}
			return inv.Invoke(ctx, vendor.MethodConfigure, req)
		})},
		{check: "calls: a method", wrap: on("/vendor.v9.Vendor/Resolve", func(context.Context, vendor.Invoker, []byte) ([]byte, error) { return []byte("{}"), nil })},
		{check: "calls: it has", wrap: on(vendor.MethodSearch, func(context.Context, vendor.Invoker, []byte) ([]byte, error) {
			return nil, refuse(vendor.KindInvalid, vendor.CodeUnimplemented, "No.")
		})},
		{check: "calls: unknown fields", wrap: on(vendor.MethodResolve, func(ctx context.Context, inv vendor.Invoker, req []byte) ([]byte, error) {
			if strings.Contains(string(req), "later") {
				return nil, refuse(vendor.KindInvalid, "bad", "A field is not known.")
			}
			return inv.Invoke(ctx, vendor.MethodResolve, req)
		})},
		{check: "references: those of others", plugin: resolve(func(_ context.Context, _ *plugin, ref string) (*vendor.Manifest, error) {
			if len(ref) > 4000 {
				panic("too long")
			}
			return nil, nil
		})},
		{check: "references: those of others", plugin: resolve(func(_ context.Context, _ *plugin, ref string) (*vendor.Manifest, error) {
			if ref == "" {
				return good, nil
			}
			return nil, nil
		})},
		{check: "references: those that must be refused", plugin: resolve(func(_ context.Context, _ *plugin, ref string) (*vendor.Manifest, error) {
			if ref == "good:none" {
				return nil, refuse(vendor.KindInvalid, "bad", "It is bad.")
			}
			return nil, nil
		})},
		{check: "references: those that must be answered", cases: func(c *Cases) { c.Resolve[0].Files = 2 }},
		{check: "references: those that must be answered", plugin: change(func(m *vendor.Manifest) { m.Files[0].Digests = vendor.Digests{} }), cases: func(c *Cases) { c.Resolve[0].Digests = true }},
		{check: "answers: paths", plugin: change(func(m *vendor.Manifest) { m.Files[0].Path = "../x.gguf" })},
		{check: "answers: paths", plugin: change(func(m *vendor.Manifest) { m.Files[0].Digests.SHA256 = "ABC" })},
		{check: "answers: paths", plugin: change(func(m *vendor.Manifest) { m.Files[0].Sources[0].URL = "https://elsewhere.example.org/x" })},
		{check: "answers: paths", plugin: change(func(m *vendor.Manifest) { m.Files[0].Sources[0].Credential = "other" })},
		{check: "answers: paths", plugin: change(func(m *vendor.Manifest) { m.Files = append(m.Files, m.Files[0]); m.Files[1].Path = "TINY.gguf" })},
		{check: "answers: the same", plugin: change(func(m *vendor.Manifest) { m.Meta = map[string]string{"at": strconv.FormatInt(calls.Add(1), 10)} })},
		{check: "answers: the canonical", plugin: change(func(m *vendor.Manifest) { m.Reference = "good:other" })},
		{check: "search:", plugin: func(p *plugin) {
			p.search = func(r []vendor.SearchResult) []vendor.SearchResult { return append(r, r...) }
		}},
		{check: "search:", plugin: func(p *plugin) {
			p.search = func(r []vendor.SearchResult) []vendor.SearchResult { r[0].Reference = "other:x"; return r }
		}},
		{check: "refresh:", plugin: func(p *plugin) {
			p.refresh = func(f []vendor.File) []vendor.File { f[0].Size++; return f }
		}},
		{check: "faults: 404", plugin: when(404)},
		{check: "faults: 401", plugin: mistaken(401)},
		{check: "faults: 403", plugin: mistaken(403)},
		{check: "faults: 429", plugin: status(func(status int, _ string) (*vendor.Manifest, error) {
			if status == 429 {
				return nil, refuse(vendor.KindExhausted, "limited", "Later.")
			}
			return nil, nil
		})},
		{check: "faults: 500", plugin: mistaken(500)},
		{check: "faults: redirect", plugin: status(func(_ int, body string) (*vendor.Manifest, error) {
			if strings.Contains(body, "elsewhere") {
				return nil, errors.New(body)
			}
			return nil, nil
		})},
		{check: "faults: unreachable", plugin: status(func(_ int, body string) (*vendor.Manifest, error) {
			if strings.Contains(body, "could not be asked") {
				return good, nil
			}
			return nil, nil
		})},
		{check: "faults: truncated", plugin: status(func(status int, body string) (*vendor.Manifest, error) {
			if status == 200 && strings.HasPrefix(body, `{"models": {`) && !strings.HasSuffix(body, "}") {
				panic("half")
			}
			return nil, nil
		})},
		{check: "faults: html", plugin: panics("<html>")},
		{check: "faults: empty", plugin: panics("")},
		{check: "faults: null", plugin: status(func(_ int, body string) (*vendor.Manifest, error) {
			if body == "null" {
				panic("null")
			}
			return nil, nil
		})},
		{check: "faults: shape", plugin: panics(`"siblings"`)},
		{check: "faults: list", plugin: panics(`[1,"two"`)},
		{check: "faults: binary", plugin: panics("\xff\xfe")},
		{check: "faults: deep", plugin: panics(`{"a":[{"a":[`)},
		{check: "faults: large", plugin: panics(`{"pad"`)},
		{check: "faults: without", plugin: status(func(_ int, body string) (*vendor.Manifest, error) {
			if strings.Contains(body, "wanted to ask models") {
				return nil, refuse(vendor.KindUnavailable, "x", "It is not there.")
			}
			return nil, nil
		})},
		{check: "secrets:", plugin: func(p *plugin) {
			p.config = func(values string) error { return refuse(vendor.KindInvalid, "x", "Bad: "+values+".") }
			config := p.config
			p.config = func(values string) error {
				if strings.Contains(values, secret) {
					return config(values)
				}
				return nil
			}
		}},
		{check: "secrets:", wrap: func(inv vendor.Invoker, _ vendor.Host, log *slog.Logger) vendor.Invoker {
			return sdk.InvokerFunc(func(ctx context.Context, m string, req []byte) ([]byte, error) {
				log.Info("called", "request", string(req))
				return inv.Invoke(ctx, m, req)
			})
		}},
		{check: "secrets:", plugin: resolve(func(ctx context.Context, p *plugin, _ string) (*vendor.Manifest, error) {
			if resp, err := p.host.HTTP(ctx, vendor.HTTPRequest{Method: "GET", URL: p.url}); err == nil && resp.Status == 404 {
				return nil, refuse(vendor.KindNotFound, "none", "There is nothing at "+resp.URL+".")
			}
			return nil, nil
		})},
		{check: "cancel:", wrap: on(vendor.MethodResolve, func(ctx context.Context, inv vendor.Invoker, req []byte) ([]byte, error) {
			reply, err := inv.Invoke(context.WithoutCancel(ctx), vendor.MethodResolve, req)
			if ctx.Err() != nil {
				time.Sleep(10 * time.Millisecond)
			}
			return reply, err
		})},
		{check: "concurrency:", plugin: func(p *plugin) {
			var busy atomic.Int64
			p.resolve = func(context.Context, *plugin, string) (*vendor.Manifest, error) {
				defer busy.Add(-1)
				if busy.Add(1) > 1 {
					return nil, refuse(vendor.KindUnavailable, "busy", "One at a time.")
				}
				time.Sleep(time.Millisecond)
				return nil, nil
			}
		}},
		{check: "memory:", subject: func(s *Subject) { s.Calls = 400 }, plugin: resolve(func(_ context.Context, p *plugin, ref string) (*vendor.Manifest, error) {
			if p.known(ref) == nil {
				b := make([]byte, 512<<10)
				for i := 0; i < len(b); i += 4096 {
					b[i] = 1
				}
				leaking.Lock()
				defer leaking.Unlock()
				leak = append(leak, b)
			}
			return nil, nil
		})},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Files[0].Digests = vendor.Digests{} })},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Steps[0].Extract.Into = "../x" })},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Steps[0].Extract.File = "other.tgz" })},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Steps[1].Run.Tool = "sh" })},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Steps[1].Run.Tool = "/bin/sh" })},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Steps[2].Link.Name = "/lib.so" })},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Steps[3].Expect.Path = "../x" })},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Steps[3] = vendor.Step{} })},
		{check: "answers: paths", kind: prov, plugin: plan(func(p *vendor.Plan) { p.Files, p.Steps, p.InPlace = nil, nil, "/usr" })},
		{check: "pin:", kind: prov, plugin: func(p *plugin) { p.pin = func(r *string) { *r += "0" } }},
		{check: "list:", kind: prov, plugin: func(p *plugin) {
			p.list = func(c []vendor.EngineChoice) []vendor.EngineChoice { return append(c, c...) }
		}},
		{check: "launch:", kind: prov, plugin: launch(func(l *vendor.LaunchSpec) { l.Path = "/bin/sh" })},
		{check: "launch:", kind: prov, plugin: launch(func(l *vendor.LaunchSpec) { l.Args = []string{strconv.FormatInt(calls.Add(1), 10), "{port}"} })},
		{check: "launch:", kind: prov, plugin: launch(func(l *vendor.LaunchSpec) { l.Protocol = "" })},
		{check: "launch:", kind: prov, plugin: launch(func(l *vendor.LaunchSpec) { l.Args = nil })},
	} {
		kind := w.kind
		if kind == "" {
			kind = vendor.KindVendor
		}
		p := newPlugin(kind)
		if w.plugin != nil {
			w.plugin(p)
		}
		subject, cases := open(p, w.wrap), goodCases()
		if w.subject != nil {
			w.subject(&subject)
		}
		if w.cases != nil {
			w.cases(&cases)
		}
		subject.only = w.check
		found, seen := false, []string{}
		Run(t.Context(), subject, cases, func(r Result) {
			if r.Outcome == Fail {
				seen = append(seen, r.Name+": "+r.Detail)
				found = found || strings.HasPrefix(r.Name, w.check)
			}
		})
		if !found {
			t.Errorf("a plugin that is wrong in %q passes that check; others that fail: %q", w.check, seen)
		}
		leak = nil
		checked = append(checked, w.check)
	}
	for _, c := range slices.Concat(describing(), resolving(), planning(), failing(), living()) {
		if !slices.ContainsFunc(checked, func(w string) bool { return strings.HasPrefix(c.name, w) }) {
			t.Errorf("no wrong plugin shows that the check %q can fail", c.name)
		}
	}
}
