package host

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/apiary-dev/apiary/core/config"
	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
	"github.com/apiary-dev/apiary/plugins/sdk"
	"github.com/apiary-dev/apiary/plugins/vendor"
)

// TestFaultsOfPlugins: what a plugin breaks is told as its fault, in a sentence that names it, and not as one of Apiary's.
func TestFaultsOfPlugins(t *testing.T) {
	of := func(kind vendor.Kind, code, message string) error {
		return &vendor.Error{Kind: kind, Code: code, Message: message}
	}
	for name, c := range map[string]struct {
		err  error
		kind fault.Kind
		code string
		want string
	}{
		"panic":        {of(vendor.KindInternal, "plugin_panic", "The plugin panicked while it answered Resolve: boom."), fault.Unavailable, CodeFailed, "The plugin evil panicked while it answered Resolve: boom; see `apiary plugin doctor evil`."},
		"trap":         {of(vendor.KindInternal, "plugin_trap", "The plugin crashed (out of bounds) while it worked on Resolve; report it to its author."), fault.Unavailable, CodeFailed, "The plugin evil crashed (out of bounds) while it worked on Resolve; see `apiary plugin doctor evil`."},
		"its own word": {of(vendor.KindInternal, "oops", "no such thing"), fault.Unavailable, CodeFailed, "The plugin evil failed while it answered Resolve: no such thing; see `apiary plugin doctor evil`."},
		"unknown kind": {of("strange", "oops", "Something."), fault.Unavailable, CodeFailed, "The plugin evil failed while it answered Resolve: Something; see `apiary plugin doctor evil`."},
		"no message":   {of(vendor.KindInternal, "oops", ""), fault.Unavailable, CodeFailed, "The plugin evil failed while it answered Resolve, without a word; see `apiary plugin doctor evil`."},
		"no type":      {errors.New("a pipe broke"), fault.Unavailable, CodeFailed, "The plugin evil failed while it answered Resolve: a pipe broke; see `apiary plugin doctor evil`."},
		"transport":    {fault.New(fault.Internal, "plugin_reply_large", "The plugin evil answered too much."), fault.Unavailable, "plugin_reply_large", "The plugin evil answered too much."},
		"meant":        {of(vendor.KindNotFound, "none", "There is none."), fault.NotFound, "none", "There is none."},
		"odd code":     {of(vendor.KindInvalid, "x\x1b[31m", "It is \x1b[31mred\nor not."), fault.Invalid, "plugin_error", "It is [31mred or not."},
		"cancelled":    {fmt.Errorf("call: %w", context.Canceled), fault.Interrupted, "cancelled", ""},
		"in time":      {fmt.Errorf("call: %w", context.DeadlineExceeded), fault.Unavailable, "timeout", ""},
	} {
		on := &checked{Invoker: sdk.InvokerFunc(func(context.Context, string, []byte) ([]byte, error) { return nil, c.err }), plugin: config.Plugin{Name: "evil"}}
		_, err := Vendor(on, vendor.Info{Name: "other"}).Resolve(t.Context(), vendor.ResolveRequest{Reference: "evil:x"})
		got := fault.As(Fault(err))
		if got.Kind != c.kind || got.Code != c.code || c.want != "" && got.Message != c.want {
			t.Errorf("%s: %s %s %q", name, got.Kind, got.Code, got.Message)
		}
		if wire := fault.Wire(Fault(err), "id"); c.want != "" && wire.Message != c.want {
			t.Errorf("%s: callers read %q", name, wire.Message)
		}
	}
	on := &checked{Invoker: sdk.InvokerFunc(func(context.Context, string, []byte) ([]byte, error) { return []byte("{"), nil }), plugin: config.Plugin{Name: "evil"}}
	_, err := Provisioner(on, vendor.Info{}).Plan(t.Context(), vendor.PlanRequest{})
	if got := fault.As(Fault(err)); got.Code != CodeFailed || !strings.HasPrefix(got.Message, "The plugin evil gave an answer that cannot be read") {
		t.Errorf("half an answer: %v", err)
	}
	_, err = Vendor(&checked{Invoker: sdk.InvokerFunc(func(context.Context, string, []byte) ([]byte, error) {
		return nil, of(vendor.KindInternal, "", strings.Repeat("x\u202e", 100_000))
	}), plugin: config.Plugin{Name: "evil"}}, vendor.Info{}).Resolve(t.Context(), vendor.ResolveRequest{})
	if len(err.Error()) > 5<<10 || contract.HasHidden(err.Error()) {
		t.Errorf("%d bytes", len(err.Error()))
	}
}
