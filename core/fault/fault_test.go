package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/apiary-dev/apiary/core/contract"
	"github.com/apiary-dev/apiary/core/fault"
)

func TestKindsMapToStatusAndExitCode(t *testing.T) {
	for _, c := range []struct {
		kind         fault.Kind
		status, exit int
	}{
		{fault.Internal, 500, 1}, {fault.Invalid, 400, 2}, {fault.NotFound, 404, 3}, {fault.Conflict, 409, 4},
		{fault.Unavailable, 503, 5}, {fault.Exhausted, 429, 6}, {fault.Denied, 403, 7}, {fault.Interrupted, 499, 130},
	} {
		err := fmt.Errorf("wrapped: %w", fault.New(c.kind, "code", "Something happened."))
		if got := fault.HTTPStatus(err); got != c.status {
			t.Errorf("%s: status %d, want %d", c.kind, got, c.status)
		}
		if got := fault.ExitCode(err); got != c.exit {
			t.Errorf("%s: exit code %d, want %d", c.kind, got, c.exit)
		}
		if got := fault.FromStatus(c.status); got != c.kind {
			t.Errorf("status %d is %s, want %s", c.status, got, c.kind)
		}
	}
	if fault.HTTPStatus(nil) != 200 || fault.ExitCode(nil) != 0 || fault.KindOf(nil) != "" {
		t.Error("nil is not success")
	}
}

func TestForeignErrors(t *testing.T) {
	if k := fault.KindOf(fmt.Errorf("x: %w", context.Canceled)); k != fault.Interrupted {
		t.Errorf("a cancelled context is %s", k)
	}
	if k := fault.KindOf(context.DeadlineExceeded); k != fault.Unavailable {
		t.Errorf("a passed deadline is %s", k)
	}
	err := fault.New(fault.NotFound, "x", "Not there: %w", fs.ErrNotExist)
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
}

func TestWireHidesForeignText(t *testing.T) {
	w := fault.Wire(errors.New("open /home/u/secret: no such file"), "req-1")
	if strings.Contains(w.Message, "/home") || w.RequestID != "req-1" || w.Type != "server_error" || w.Code != "internal" {
		t.Errorf("wire error %+v", w)
	}
	w = fault.Wire(fault.New(fault.Invalid, "bad_value", "max_tokens is -1; give 1 or more.").WithParam("max_tokens"), "r")
	if w.Message != "max_tokens is -1; give 1 or more." || w.Param == nil || *w.Param != "max_tokens" || w.Type != "invalid_request_error" {
		t.Errorf("wire error %+v", w)
	}
	w = fault.Wire(fault.New(fault.Denied, "no_key", "A key is needed.").WithStatus(http.StatusUnauthorized), "r")
	if w.Type != "authentication_error" {
		t.Errorf("a 401 has type %s", w.Type)
	}
}

func TestWireRoundTrip(t *testing.T) {
	in := fault.New(fault.Exhausted, "queue_full", "The queue is full; try again.").WithRetryAfter(3 * time.Second).WithParam("model")
	out := fault.FromWire(fault.HTTPStatus(in), fault.Wire(in, "r"), 3*time.Second)
	if out.Kind != in.Kind || out.Code != in.Code || out.Message != in.Message || out.Param != in.Param || out.RetryAfter != in.RetryAfter {
		t.Errorf("got %+v, want %+v", out, in)
	}
	if e := fault.FromWire(502, contract.Error{}, 0); e.Message == "" || e.Kind != fault.Unavailable {
		t.Errorf("an empty answer gives %+v", e)
	}
}
